"use strict";
// One page of a store: the text in blocks that exist only near the window, shaded by what an
// answer read. Everything is drawn from the JSON in #data; nothing is loaded, nothing is sent.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const BLOCK = 2400; // characters of a block, about
  const LISTED = 12; // passages listed beside the text
  const MOST_HITS = 5000;
  const SPECIAL = /^<(\|[^|<>]*\||\/?s|end_of_turn|eos|pad)>$/; // marks of the prompt, no words

  // ---- the book: all sources behind each other, in one count of characters ------------------

  const base = [];
  let length = 0;
  for (const source of data.sources) {
    base.push(length);
    length += source.text.length;
  }
  const spans = data.spans;
  const count = spans.start.length;
  const from = new Int32Array(count);
  const to = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    from[i] = base[spans.source[i]] + spans.start[i];
    to[i] = base[spans.source[i]] + spans.end[i];
  }
  const pageAt = new Map();
  const pageStarts = [];
  const pageLabels = [];
  data.sources.forEach((source, s) => {
    for (const [label, at] of source.pages) {
      if (!label) continue;
      const place = base[s] + at;
      if (!pageAt.has(place)) pageStarts.push(place), pageLabels.push(label);
      pageAt.set(place, label);
    }
  });

  // The first index whose value is greater than `value`, in ascending `list`.
  const after = (list, value) => {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle] > value) high = middle; else low = middle + 1;
    }
    return low;
  };
  const spanAt = (place) => Math.max(0, after(from, place) - 1);
  const sourceAt = (place) => Math.max(0, after(base, place) - 1);
  const pageOf = (place) => {
    const index = after(pageStarts, place) - 1;
    return index < 0 || pageStarts[index] < base[sourceAt(place)] ? "" : pageLabels[index];
  };
  const words = (a, b) => {
    const s = sourceAt(a);
    return data.sources[s].text.slice(a - base[s], b - base[s]);
  };
  const share = (part) => (100 * part).toFixed(part < 0.0995 ? 1 : 0) + " %";

  // ---- the answer: who read what, at which step ---------------------------------------------

  const asked = data.asked;
  const cells = data.layers * data.heads;
  const reads = []; // one decision each: {step, span, cell, weight, score}
  if (asked) {
    asked.reads.forEach((flat, step) => {
      for (let i = 0; i < flat.length; i += 4) {
        reads.push({ step, span: flat[i], cell: flat[i + 1], weight: flat[i + 2] / asked.scale, score: flat[i + 3] / asked.scale });
      }
    });
  }
  const state = { step: -1, span: -1, shade: asked ? "read" : "surprisal", hits: [], hit: -1, list: [] };
  const citedRanges = (asked ? asked.citations : [])
    .map(([s, a, b, page]) => ({ a: base[s] + a, b: base[s] + b, page }));

  const shade = () => {
    if (state.shade === "surprisal") shadeSurprisal(); else shadeRead();
    drawLegend();
  };
  const drawLegend = () => {
    const read = state.shade === "read";
    const said = read ? READ.map((part) => `first ${share(part)}`) : SURPRISING.map((part) => `top ${share(part)}`);
    $("legend").replaceChildren(...said.map((text, level) => {
      const key = document.createElement("li");
      key.style.setProperty("--heat", SHADES[level]);
      key.textContent = text;
      return key;
    }));
    $("legend-note").textContent = read
      ? "Spans by attention, the heaviest first: those of a shade and the darker ones together have that part of it."
      : "Spans by the mean surprisal of their tokens.";
  };

  // Weight of every span at the chosen step (-1: the whole answer), per layer and head on average.
  const weights = new Float64Array(count);
  let heaviest = 0;
  const weigh = () => {
    weights.fill(0);
    for (const r of reads) if (state.step < 0 || r.step === state.step) weights[r.span] += r.weight / cells;
    if (state.step < 0 && asked) for (let i = 0; i < count; i++) weights[i] /= asked.said.length || 1;
    heaviest = 0;
    for (const w of weights) if (w > heaviest) heaviest = w;
    state.list = [];
    for (let i = 0; i < count; i++) if (weights[i] > 0) state.list.push(i);
    state.list.sort((x, y) => weights[y] - weights[x] || x - y);
    shade();
  };
  // Five shades, by what the spans of a shade have together: a linear scale shows one dark span and
  // nothing else, and a root makes everything orange.
  const SHADES = [1, 0.62, 0.36, 0.18, 0.06];
  const READ = [0.25, 0.5, 0.75, 0.9, 1]; // of all attention on zoomed spans, the heaviest first
  const SURPRISING = [0.02, 0.1, 0.25, 0.5]; // of all spans, the most surprising first; others have none
  const shades = new Float64Array(count);
  const shadeRead = () => {
    shades.fill(0);
    const all = state.list.reduce((sum, i) => sum + weights[i], 0);
    let before = 0; // attention of heavier spans
    for (const i of state.list) {
      shades[i] = SHADES[READ.findIndex((part) => before < part * all)];
      before += weights[i];
    }
  };
  const shadeSurprisal = () => {
    shades.fill(0);
    const order = [...spans.surprisal.keys()].sort((x, y) => spans.surprisal[y] - spans.surprisal[x]);
    order.forEach((i, rank) => {
      const level = SURPRISING.findIndex((part) => rank < Math.ceil(part * count));
      if (level >= 0) shades[i] = SHADES[level];
    });
  };
  const heatOf = (i) => shades[i];

  // ---- the text, in blocks ------------------------------------------------------------------

  const book = $("book");
  const blocks = []; // {a, b, element, full}
  data.sources.forEach((source, s) => {
    const title = document.createElement("div");
    title.className = "source";
    title.textContent = source.name;
    book.append(title);
    const text = source.text;
    for (let a = 0; a < text.length;) {
      let b = Math.min(text.length, a + BLOCK);
      if (b < text.length) {
        const line = text.lastIndexOf("\n", b);
        const space = text.lastIndexOf(" ", b);
        b = line > a + BLOCK / 3 ? line + 1 : space > a ? space + 1 : b;
      }
      const element = document.createElement("div");
      element.className = "block";
      element.dataset.block = blocks.length;
      book.append(element);
      blocks.push({ a: base[s] + a, b: base[s] + b, element, full: false });
      a = b;
    }
  });
  const blockStarts = blocks.map((block) => block.a);

  const estimate = () => {
    const style = getComputedStyle(book);
    const wide = book.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const line = parseFloat(style.lineHeight);
    const fit = Math.max(10, wide / (parseFloat(style.fontSize) * 0.46));
    for (const block of blocks) {
      if (block.full) continue;
      let lines = 0;
      for (const part of words(block.a, block.b).replace(/\n$/, "").split("\n")) lines += Math.max(1, Math.ceil(part.length / fit));
      block.element.style.height = lines * line + "px";
    }
  };

  const next = (list, at, end) => {
    const index = after(list, at);
    return index < list.length && list[index] < end ? list[index] : end;
  };
  let hitEdges = [];
  const citedEdges = citedRanges.flatMap((r) => [r.a, r.b]).sort((x, y) => x - y);
  const hitAt = (place) => {
    const index = after(state.hits, place) - 1;
    return index >= 0 && place < state.hits[index] + state.lengths[index] ? index : -1;
  };

  // Text [a, b) into an element, cut where pages, matches and citations begin or end.
  const write = (parent, a, b) => {
    for (let at = a; at < b;) {
      const label = pageAt.get(at);
      if (label !== undefined) {
        const badge = document.createElement("span");
        badge.className = "page";
        badge.dataset.label = label;
        parent.append(badge);
      }
      const end = Math.min(next(pageStarts, at, b), next(hitEdges, at, b), next(citedEdges, at, b));
      const hit = hitAt(at);
      const cited = citedRanges.some((r) => r.a <= at && at < r.b);
      let node = document.createTextNode(words(at, end));
      if (hit >= 0 || cited) {
        const mark = document.createElement("mark");
        mark.className = (hit >= 0 ? "hit" : "") + (hit >= 0 && hit === state.hit ? " now" : "") + (cited ? " cited" : "");
        mark.append(node);
        node = mark;
      }
      parent.append(node);
      at = end;
    }
  };
  const fill = (block) => {
    const pieces = document.createDocumentFragment();
    let at = block.a;
    for (let i = spanAt(block.a); i < count && from[i] < block.b; i++) {
      const a = Math.max(at, from[i]), b = Math.min(block.b, to[i]);
      if (b <= a) continue;
      write(pieces, at, a);
      const element = document.createElement("span");
      element.className = "span" + (spans.anchor[i] ? " anchor" : "") + (i === state.span ? " chosen" : "");
      element.dataset.span = i;
      element.style.setProperty("--heat", heatOf(i).toFixed(3));
      write(element, a, b);
      pieces.append(element);
      at = b;
    }
    write(pieces, at, block.b);
    block.element.replaceChildren(pieces);
    block.element.style.height = "";
    block.full = true;
  };
  const empty = (block) => {
    block.element.style.height = block.element.offsetHeight + "px";
    block.element.replaceChildren();
    block.full = false;
  };
  const refill = () => blocks.forEach((block) => block.full && fill(block));
  const reshade = () => {
    for (const element of book.querySelectorAll(".span")) {
      const i = Number(element.dataset.span);
      element.style.setProperty("--heat", heatOf(i).toFixed(3));
      element.classList.toggle("chosen", i === state.span);
    }
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const block = blocks[Number(entry.target.dataset.block)];
      if (entry.isIntersecting && !block.full) fill(block);
      else if (!entry.isIntersecting && block.full) empty(block);
    }
  }, { root: book, rootMargin: "1200px 0px" });

  // Bring a place to the middle of the window. Blocks around it settle first, hence twice.
  const go = (place) => {
    const block = blocks[Math.max(0, after(blockStarts, place) - 1)];
    if (!block) return;
    const show = () => {
      if (!block.full) fill(block);
      const target = [...block.element.querySelectorAll(".span")]
        .reverse().find((element) => from[Number(element.dataset.span)] <= place);
      (target || block.element).scrollIntoView({ block: target ? "center" : "start" });
    };
    show();
    requestAnimationFrame(() => { show(); drawMap(); });
  };

  // ---- minimap ------------------------------------------------------------------------------

  const map = $("map");
  const seen = () => {
    const top = book.getBoundingClientRect().top;
    const at = (y) => {
      let low = 0, high = blocks.length - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (blocks[middle].element.getBoundingClientRect().bottom > y) high = middle; else low = middle + 1;
      }
      const block = blocks[low], box = block.element.getBoundingClientRect();
      const part = box.height ? Math.min(1, Math.max(0, (y - box.top) / box.height)) : 0;
      return block.a + part * (block.b - block.a);
    };
    return [at(top), at(top + book.clientHeight)];
  };
  const drawMap = () => {
    if (!blocks.length) return;
    const ratio = window.devicePixelRatio || 1;
    const wide = map.clientWidth, high = map.clientHeight;
    if (map.width !== Math.round(wide * ratio) || map.height !== Math.round(high * ratio)) {
      map.width = Math.round(wide * ratio);
      map.height = Math.round(high * ratio);
    }
    const pen = map.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, high);
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
    const rows = Math.max(1, Math.floor(high / 2));
    const read = new Float64Array(rows), odd = new Float64Array(rows), tokens = new Float64Array(rows);
    for (let i = 0; i < count; i++) {
      const row = Math.min(rows - 1, Math.floor((from[i] / length) * rows));
      read[row] = Math.max(read[row], weights[i]);
      odd[row] += spans.surprisal[i];
      tokens[row] += 1;
    }
    let low = Infinity, top = 0;
    for (let r = 0; r < rows; r++) if (tokens[r]) { odd[r] /= tokens[r]; low = Math.min(low, odd[r]); top = Math.max(top, odd[r]); }
    pen.fillStyle = colour("--quiet");
    for (let r = 0; r < rows; r++) {
      if (!tokens[r]) continue;
      pen.globalAlpha = 0.12 + 0.4 * (top > low ? (odd[r] - low) / (top - low) : 0);
      pen.fillRect(2, r * 2, wide * 0.4, 2);
    }
    pen.fillStyle = colour("--hot");
    for (let r = 0; r < rows; r++) {
      if (!read[r]) continue;
      pen.globalAlpha = 0.15 + 0.85 * Math.sqrt(read[r] / heaviest);
      pen.fillRect(wide * 0.45, r * 2, wide * 0.5, 2);
    }
    pen.globalAlpha = 1;
    pen.fillStyle = colour("--mark");
    for (const r of citedRanges) pen.fillRect(0, (r.a / length) * high - 1, wide, 3);
    pen.fillStyle = colour("--find");
    for (const hit of state.hits) pen.fillRect(0, (hit / length) * high, wide * 0.2, 2);
    const [a, b] = seen();
    pen.strokeStyle = colour("--ink");
    pen.strokeRect(0.5, (a / length) * high + 0.5, wide - 1, Math.max(4, ((b - a) / length) * high));
    map.setAttribute("aria-valuenow", String(Math.round((100 * a) / length)));
    map.setAttribute("aria-valuetext", pageOf(a) || share(a / length));
  };
  let waiting = false;
  const drawSoon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; drawMap(); });
  };
  const pointAt = (event) => go(Math.min(length - 1, Math.max(0, (event.offsetY / map.clientHeight) * length)));
  map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); pointAt(event); });
  map.addEventListener("pointermove", (event) => { if (event.buttons) pointAt(event); });
  map.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: -0.01, ArrowDown: 0.01, PageUp: -0.1, PageDown: 0.1, Home: -1, End: 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    go(Math.min(length - 1, Math.max(0, seen()[0] + moves[event.key] * length)));
  });

  // ---- beside the text ----------------------------------------------------------------------

  const button = (text, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", act);
    return made;
  };
  const closeSide = () => { $("side").classList.remove("open"); $("open-side").setAttribute("aria-expanded", "false"); };
  // The words of a span; those that it begins or ends within are whole.
  const excerpt = (i) => {
    const source = data.sources[sourceAt(from[i])].text, start = base[sourceAt(from[i])];
    const inWord = (at) => at > 0 && at < source.length && /\S/.test(source[at - 1]) && /\S/.test(source[at]);
    let a = from[i] - start, b = to[i] - start;
    for (let n = 0; n < 30 && inWord(a); n++) a--;
    for (let n = 0; n < 30 && inWord(b); n++) b++;
    const text = source.slice(a, b).replace(/\s+/g, " ").trim();
    if (text.length <= 90) return text;
    const space = text.lastIndexOf(" ", 90);
    return text.slice(0, space > 45 ? space : 90) + "\u2026";
  };
  const visible = (text) => (text.trim() ? text.trim() : JSON.stringify(text));

  const drawList = () => {
    if (!asked) return;
    const whole = state.step < 0;
    const said = whole ? "" : visible(asked.said[state.step] || "");
    $("read-title").textContent = whole ? "Passages read" : "Passages read for " + said;
    $("passages").replaceChildren(...state.list.slice(0, LISTED).map((i) => {
      const item = document.createElement("li");
      const made = button(excerpt(i), () => choose(i, true));
      const weight = document.createElement("b");
      const page = pageOf(from[i]);
      weight.textContent = (page ? page + ", " : "") + share(weights[i]);
      made.prepend(weight);
      made.style.setProperty("--heat", Math.sqrt(weights[i] / heaviest).toFixed(3));
      made.setAttribute("aria-current", String(i === state.span));
      item.append(made);
      return item;
    }));
    const rows = whole ? asked.moved : [asked.moved[state.step] || [0, 0, 0]];
    const sum = rows.reduce((t, r) => [t[0] + r[0], t[1] + r[1], t[2] + r[2]], [0, 0, 0]);
    $("moved").textContent = state.list.length
      ? `Shares are means over all layers and KV heads. ${(sum[0] / 1e6).toFixed(2)} MB moved, ${sum[1].toLocaleString("en")} fetched, ${sum[2].toLocaleString("en")} reused.`
      : "No passage was zoomed here: what was read was resident already.";
    $("step-label").textContent = whole ? `Whole answer: ${asked.answer}` : `Token ${state.step + 1} of ${asked.said.length}: ${said}`;
    $("step").setAttribute("aria-valuetext", $("step-label").textContent);
  };

  const drawTokens = () => {
    if (!asked) return;
    const chosen = new Float64Array(asked.said.length);
    if (state.span >= 0) for (const r of reads) if (r.span === state.span) chosen[r.step] += r.weight;
    let top = 0;
    for (const w of chosen) top = Math.max(top, w);
    [...$("tokens").children].forEach((chip, step) => {
      chip.classList.toggle("now", step === state.step);
      chip.style.setProperty("--heat", top ? Math.sqrt(chosen[step] / top).toFixed(3) : "0");
    });
    const now = $("tokens").children[state.step];
    if (now) $("tokens").scrollLeft = now.offsetLeft - $("tokens").clientWidth / 2;
  };

  const drawHeat = () => {
    if (!asked) return;
    const values = new Float64Array(cells);
    if (state.span >= 0) {
      for (const r of reads) if (r.span === state.span && (state.step < 0 || r.step === state.step)) values[r.cell] += r.weight;
      if (state.step < 0) for (let c = 0; c < cells; c++) values[c] /= asked.rates.length;
    } else {
      const rows = state.step < 0 ? asked.rates : [asked.rates[state.step]];
      for (const row of rows) for (let c = 0; c < cells; c++) values[c] += row[c] / (rows.length * count);
    }
    let top = 0, best = 0;
    values.forEach((value, c) => { if (value > top) { top = value; best = c; } });
    const even = top > 0 && values.every((value) => value > 0.999 * top); // a block of one colour says nothing
    [...$("heat").children].forEach((cell, c) => {
      cell.style.setProperty("--heat", even ? "0.3" : top ? (values[c] / top).toFixed(3) : "0");
      cell.title = `layer ${Math.floor(c / data.heads)}, KV head ${c % data.heads}: ${share(values[c])}`;
    });
    $("heat-title").textContent = state.span >= 0 ? "Who read the passage" : "Zoom rate by layer and KV head";
    const place = `layer ${Math.floor(best / data.heads)}, KV head ${best % data.heads}`;
    const of = state.span >= 0 ? "its attention" : "all spans";
    $("heat-note").textContent = !top ? "Nobody, here."
      : even ? `Rows are layers, columns KV heads; all the same: ${share(top)} of ${of}.`
      : `Rows are layers, columns KV heads. Most: ${place}, ${share(top)} of ${of}.`;
    $("heat").setAttribute("aria-label", $("heat-title").textContent + ". " + $("heat-note").textContent);
  };

  const drawPassage = () => {
    const i = state.span;
    $("passage").hidden = i < 0;
    if (i < 0) return;
    const page = pageOf(from[i]);
    $("chosen").textContent = `${excerpt(i)} (${page ? page + ", " : ""}span ${i}, surprisal ${(spans.surprisal[i] / 100).toFixed(2)}${spans.anchor[i] ? ", anchor" : ""})`;
    const mine = reads.filter((r) => r.span === i && (state.step < 0 || r.step === state.step));
    const steps = new Set(mine.map((r) => r.step));
    const mean = (of) => mine.reduce((t, r) => t + of(r), 0) / (mine.length || 1);
    $("readers").textContent = !asked ? "" : !mine.length ? "Not read here."
      : `Read by ${new Set(mine.map((r) => r.cell)).size} of ${cells} layers and heads for ${steps.size} of ${asked.said.length} tokens: estimated ${share(mean((r) => r.score))}, real ${share(mean((r) => r.weight))} of their attention on average.`;
  };

  const draw = () => { drawList(); drawTokens(); drawHeat(); drawPassage(); reshade(); drawSoon(); };

  const choose = (i, move) => {
    state.span = i;
    if (move) { closeSide(); go(from[i]); }
    draw();
  };
  const pick = (step, move) => {
    state.step = step;
    $("step").value = String(step + 1);
    weigh();
    draw();
    if (move && state.list.length) go(from[state.list[0]]);
  };
  book.addEventListener("click", (event) => {
    const element = event.target.closest(".span");
    if (!element || String(getSelection())) return;
    const i = Number(element.dataset.span);
    choose(i === state.span ? -1 : i, false);
  });
  $("drop").addEventListener("click", () => choose(-1, false));
  $("open-side").addEventListener("click", () => {
    const open = $("side").classList.toggle("open");
    $("open-side").setAttribute("aria-expanded", String(open));
  });
  for (const radio of document.getElementsByName("shade")) {
    radio.checked = radio.value === state.shade;
    radio.disabled = radio.value === "read" && !asked;
    radio.addEventListener("change", () => { state.shade = radio.value; shade(); reshade(); });
  }

  // ---- search -------------------------------------------------------------------------------

  state.lengths = [];
  const search = () => {
    const query = $("query").value.trim();
    state.hits = [];
    state.lengths = [];
    state.hit = -1;
    if (query) {
      const pattern = query.replace(/[.*+?^${}()|[\]\\\/]/g, "\\$&").replace(/\s+/g, "\\s+");
      data.sources.forEach((source, s) => {
        for (const match of source.text.matchAll(new RegExp(pattern, "giu"))) {
          if (state.hits.length >= MOST_HITS) break;
          state.hits.push(base[s] + match.index);
          state.lengths.push(match[0].length);
        }
      });
    }
    hitEdges = state.hits.flatMap((hit, n) => [hit, hit + state.lengths[n]]);
  };
  const found = () => {
    const total = state.hits.length + (state.hits.length >= MOST_HITS ? "+" : "");
    $("found").textContent = !$("query").value.trim() ? "" : state.hits.length ? `${state.hit + 1} / ${total}` : "none";
  };
  let searched = "";
  const step = (by) => {
    const query = $("query").value.trim();
    if (query !== searched) {
      search();
      searched = query;
      state.hit = by > 0 ? -1 : 0;
    }
    if (state.hits.length) state.hit = (state.hit + by + state.hits.length) % state.hits.length;
    found();
    refill();
    drawSoon();
    if (state.hits.length) go(state.hits[state.hit]);
  };
  $("find").addEventListener("submit", (event) => { event.preventDefault(); step(1); });
  $("before").addEventListener("click", () => step(-1));
  $("query").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.shiftKey) { event.preventDefault(); step(-1); }
    if (event.key === "Escape") { $("query").value = ""; step(1); book.focus(); }
  });

  // ---- keys ---------------------------------------------------------------------------------

  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input[type=search], canvas") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); $("query").focus(); }
    else if (event.key === "Escape") { closeSide(); choose(-1, false); }
    else if (asked && !event.target.closest("input") && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
      const by = event.key === "ArrowRight" ? 1 : -1;
      event.preventDefault();
      pick(Math.min(asked.said.length - 1, Math.max(-1, state.step + by)), true);
    } else if ((event.key === "j" || event.key === "k") && state.list.length) {
      const at = state.list.indexOf(state.span), by = event.key === "j" ? 1 : -1;
      choose(state.list[at < 0 ? 0 : (at + by + state.list.length) % state.list.length], true);
    }
  });

  // ---- begin --------------------------------------------------------------------------------

  for (const [name, value] of data.facts) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    $("facts").append(term, text);
  }
  if (asked) {
    for (const id of ["told", "heads", "read", "steps"]) $(id).hidden = false;
    $("question").textContent = asked.question;
    $("answer").textContent = asked.answer;
    citedRanges.forEach((range, n) => {
      const page = range.page ? range.page + ": " : "";
      $("cited").append(button(`[${n + 1}] ${page}${words(range.a, range.b).replace(/\s+/g, " ")}`, () => { closeSide(); go(range.a); }));
    });
    $("held").hidden = !asked.resident.length;
    for (const [name, size, part] of asked.resident) {
      const term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = name;
      text.textContent = size;
      text.style.setProperty("--part", part);
      $("resident").append(term, text);
    }
    $("heat").style.gridTemplateColumns = `repeat(${data.heads}, minmax(0, 1fr))`;
    for (let c = 0; c < cells; c++) $("heat").append(document.createElement("div"));
    asked.said.forEach((text, n) => {
      const chip = document.createElement("span");
      chip.textContent = text.replace(/\n/g, "\u23ce");
      chip.hidden = SPECIAL.test(text.trim());
      chip.addEventListener("click", () => pick(n === state.step ? -1 : n, true));
      $("tokens").append(chip);
    });
    $("step").max = String(asked.said.length);
    $("step").addEventListener("input", () => pick(Number($("step").value) - 1, true));
  }
  weigh();
  estimate();
  for (const block of blocks) watcher.observe(block.element);
  book.addEventListener("scroll", drawSoon, { passive: true });
  window.addEventListener("beforeprint", () => blocks.forEach((block) => block.full || fill(block)));
  window.addEventListener("resize", () => { estimate(); drawSoon(); });
  draw();
  if (citedRanges.length) go(citedRanges[0].a);
  else if (state.list.length) go(from[state.list[0]]);
})();
