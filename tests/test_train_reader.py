"""The reader's training machinery: exact layout, a start that already looks back, resumable."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from engine.errors import TrainError
from engine.quoting import Guide, Told
from engine.train.reader.batches import Batch, Batches, Curriculum, cut
from engine.train.reader.evaluate import forward
from engine.train.reader.layout import Layout, positions
from engine.train.reader.loop import Options, export_run, train_reader
from engine.train.reader.model import Shape, Tokens, build
from engine.train.reader.optim import orthogonalise
from engine.train.reader.tokenizer import SPECIALS, ask, kin, train, wrap

if TYPE_CHECKING:
    from pathlib import Path

COMMON = (
    "the a of and in to was with harbour river garden letter captain morning window silver "
    "stone winter bread green tall seven north paper candle bridge horse kept found made told"
)
WORDS = COMMON.split()
SMALL = Shape(vocabulary=4096, layers=3)


def prose(seed: int, size: int) -> str:
    """Sentences of common words in paragraphs."""
    rng = Random(seed)
    lines = []
    for number in range(size):
        words = [rng.choice(WORDS) for _ in range(rng.randint(6, 14))]
        lines.append(" ".join(words).capitalize() + "." + ("\n\n" if number % 5 == 4 else ""))
    return " ".join(lines)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One book to train on and one that the generator holds out."""
    folder = tmp_path_factory.mktemp("books")
    (folder / "some-book.txt").write_text(prose(0, 800), encoding="utf-8")
    (folder / "shackleton-south.txt").write_text(prose(1, 400), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    """A small vocabulary learnt from made-up prose."""
    return train([prose(2, 500), ask("Who keeps it?"), "Ann keeps it."], 512)


def layout_of(prefix: int, windows: int, window: int, questions: int, question: int) -> Layout:
    """A layout of one row without padding."""
    present = torch.ones(1, prefix + windows * window, dtype=torch.bool)
    return Layout(prefix, windows, window, questions, question, present)


def twins() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """One set of random weights, run in the layout and as transformers runs it."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM(SMALL.config())
    for name, weight in plain.named_parameters():
        if "proj" in name:
            weight.data *= 3  # attention far from uniform
    laid = build(SMALL, 0)
    laid.load_state_dict(plain.state_dict())
    return laid, plain


def batch_of(ids: torch.Tensor, layout: Layout) -> Batch:
    """Tokens of one row with places; nothing to predict."""
    place = positions(layout, torch.tensor([layout.window]), torch.tensor([0]))
    return Batch(ids, place, ids, torch.zeros(ids.shape), ids, ids, layout)


def test_one_window_and_one_question_is_plain_causal_attention() -> None:
    """Logits and gradients must be those of the model as transformers runs it."""
    laid, plain = twins()
    layout = layout_of(2, 1, 300, 1, 40)  # longer than a chunk of the attention
    ids = torch.randint(7, 4096, (1, layout.total))
    ours = laid.lm_head(forward(laid, batch_of(ids, layout)))
    theirs = plain(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    for logits in (ours, theirs):
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()  # type: ignore[no-untyped-call]
    for mine, other in zip(laid.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.allclose(mine.grad, other.grad, atol=1e-4 * float(other.grad.abs().max()))


def test_windows_and_questions_do_not_see_each_other() -> None:
    """Changing one window or question must leave the others' states as they were."""
    model = build(SMALL, 0)
    layout = layout_of(3, 3, 20, 2, 10)
    ids = torch.randint(7, 4096, (1, layout.total))
    before = forward(model, batch_of(ids, layout))[0]
    other = ids.clone()
    other[0, 3 + 20 : 3 + 40] = torch.randint(7, 4096, (20,))  # the second window
    after = forward(model, batch_of(other, layout))[0]
    same = (before == after).all(-1)
    assert same[: 3 + 20].all()
    assert same[3 + 40 : 3 + 60].all()
    assert not same[3 + 60 :].any()  # both questions see it
    other = ids.clone()
    other[0, -10:] = torch.randint(7, 4096, (10,))  # the second question
    after = forward(model, batch_of(other, layout))[0]
    assert torch.equal(before[:-10], after[:-10])


def test_a_question_sees_windows_as_one_text_under_one_softmax() -> None:
    """Two windows with shared places equal one masked sequence run by transformers."""
    laid, plain = twins()
    plain.set_attn_implementation("eager")
    layout = layout_of(2, 2, 12, 2, 8)
    ids = torch.randint(7, 4096, (1, layout.total))
    batch = batch_of(ids, layout)
    n = layout.document
    block = torch.tensor([0] * 2 + [1] * 12 + [2] * 12 + [3] * 8 + [4] * 8)
    causal = torch.ones(layout.total, layout.total).tril().bool()
    seen = causal & (
        (block[:, None] == block) | (block[None] == 0) | ((block[:, None] > 2) & (block[None] < 3))
    )
    mask = torch.zeros(layout.total, layout.total).masked_fill(~seen, float("-inf"))
    theirs = plain(
        input_ids=ids, position_ids=batch.positions, attention_mask=mask[None, None]
    ).logits
    ours = laid.lm_head(forward(laid, batch))
    assert n == 26
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_padding_changes_nothing() -> None:
    """A short window padded to a longer one must give a question the same state."""
    model = build(SMALL, 0)
    short = layout_of(2, 1, 20, 1, 8)
    ids = torch.randint(7, 4096, (1, short.total))
    expected = forward(model, batch_of(ids, short))[0, -8:]
    padded = layout_of(2, 1, 30, 1, 8)
    padded.present[0, 22:] = False
    more = torch.cat([ids[:, :22], torch.full((1, 10), 6), ids[:, 22:]], dim=1)
    batch = batch_of(more, padded)
    place = positions(padded, torch.tensor([20]), torch.tensor([0]))
    got = forward(model, replace(batch, positions=place))[0, -8:]
    assert torch.allclose(got, expected, atol=1e-5)


def test_first_layer_looks_one_to_four_tokens_back_at_birth() -> None:
    """Each head must put nine tenths of its attention on its own distance."""
    model = build(SMALL, 0)
    model.set_attn_implementation("eager")
    seen = model(torch.randint(7, 4096, (1, 200)), output_attentions=True).attentions[0][0]
    for head in range(4):
        assert seen[head].diagonal(-head - 1)[8:].mean() > 0.9


def test_second_layer_finds_what_followed_before_at_birth() -> None:
    """On a repeat of random tokens the untrained reader already goes on as before."""
    model = build(SMALL, 0)
    model.set_attn_implementation("eager")
    text = torch.randint(7, 4096, (1, 400))
    ids = torch.cat([text, text[:, 100:130]], dim=1)
    out = model(ids, output_attentions=True)
    found = [out.attentions[1][0, 0, 400 + i, 101 + i].item() for i in range(3, 28)]
    assert sum(found) / len(found) > 0.8
    assert (out.logits[0, 403:429].argmax(-1) == ids[0, 404:430]).float().mean() > 0.8


def test_second_layer_keeps_the_first_token_of_the_sentence_at_birth() -> None:
    """Its third head looks at tokens that follow an end of a sentence, the latest most."""
    kinds = [0 if number == 100 else number + 2 for number in range(4096)]
    model = build(SMALL, 0, Tokens(kinds, [1.0] * 4096))
    model.set_attn_implementation("eager")
    ids = torch.randint(200, 4096, (1, 200))
    ids[0, 9::25] = 100
    seen = model(ids, output_attentions=True).attentions[1][0, 2]
    starts = seen[60:, 10::25]
    assert starts.sum(-1).mean() > 0.8
    assert starts[90].argmax() == 5  # token 150 looks at 135, the sixth start


def test_orthogonalise_flattens_singular_values() -> None:
    """A matrix with a spread of a thousand comes out with all of one size."""
    u, v = torch.linalg.qr(torch.randn(1, 32, 32))[0], torch.linalg.qr(torch.randn(1, 64, 32))[0]
    wide = u @ torch.diag(torch.logspace(0, -2, 32)) @ v.mT
    sizes = torch.linalg.svdvals(orthogonalise(wide).float())
    assert sizes.min() > 0.3
    assert sizes.max() < 1.4


def test_spellings_of_a_word_start_out_alike() -> None:
    """With or without a space or a capital; sentence ends are class 0, marks class 1."""
    made = train(["The harbour. the harbour. Harbour.\n\n"] * 20, 400)
    of = kin(made)
    one, other, end = (made.token_to_id(text) for text in ("ĠHarbour", "Ġharbour", "."))
    assert one is not None
    assert other is not None
    assert end is not None
    assert of[one] == of[other] != of[end] == 0
    assert of[SPECIALS.index("<|question|>")] == of[SPECIALS.index("<|answer|>")] == 1


def test_tokenizer_gives_back_any_text(vocabulary: Tokenizer) -> None:
    """Bytes outside the training text survive, digits stand alone, specials have their ids."""
    text = "Zoë paid £1,234.50 — “naïve” 東京 \t\n\n  end."
    assert vocabulary.decode(vocabulary.encode(text).ids) == text
    assert [vocabulary.token_to_id(name) for name in SPECIALS] == list(range(7))
    assert len(vocabulary.encode("1234").ids) == 4


def test_chat_template_is_the_training_format(vocabulary: Tokenizer) -> None:
    """What transformers renders must be what the reader was trained on."""
    chat = wrap(vocabulary).apply_chat_template(
        [
            {"role": "system", "content": "Be exact."},
            {"role": "document", "content": "Ann keeps it."},
            {"role": "user", "content": "Who keeps it?"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    expected = "<|endoftext|>Be exact.<|document|>Ann keeps it.<|question|> Who keeps it?<|answer|>"
    assert chat == expected
    assert ask("Who keeps it?") == "<|question|> Who keeps it?<|answer|>"


def test_an_answer_is_what_a_guide_lets_the_reader_say(vocabulary: Tokenizer) -> None:
    """Pointer, the sentence it stands in, the value; nothing is learnt of what is said for it."""
    from engine.train.reader.episodes import Episode, Question

    document = "It rained. The mayor of Lorne is Ana Silva.\n\nAna Silva went home. It rained."
    quote = "The mayor of Lorne is Ana Silva."
    asked = (
        Question("Who is the mayor of Lorne?", quote, "Ana Silva", "mayor"),
        Question("What does Ana Silva lead?", quote, "Lorne", "mayor"),
        Question("Who is the mayor of York?", "", "", "unanswerable"),
    )
    batches = Batches(None, vocabulary, Curriculum(), 0, 0)  # type: ignore[arg-type]
    row = batches.lay(Episode(document, asked), [200], 9, 200)
    told = [vocabulary.decode(b.ids, skip_special_tokens=False) for b in row.branches]
    first, mark, rest = told[0].partition("<|answer|>")[2].partition("<|document|>")
    assert mark
    assert quote.startswith(first.strip()[:1]) or first.strip() in quote
    assert rest.split("<|value|>")[0].strip() == quote
    assert rest.split("<|value|>")[1].strip() == "Ana Silva<|end|>"
    assert told[1].split("<|value|>")[1].strip() == "Lorne<|end|>"
    assert told[2] == "<|question|> Who is the mayor of York?<|answer|> not stated<|end|>"
    ids = vocabulary.encode(document, add_special_tokens=False)
    seen = Told.of(document, np.array(ids.ids), np.array([end for _, end in ids.offsets]))
    for branch in row.branches[:2]:
        guide = Guide(batches.marks, seen)
        answer = branch.ids[branch.ids.index(SPECIALS.index("<|answer|>")) + 1 :]
        due = answer.index(SPECIALS.index("<|document|>"))
        # A pointer may be longer than a guide asks for.
        for token in answer[:due]:
            if not guide.quoting:
                guide.say(token)
        for token in answer[due:]:
            assert token in guide.allowed()
            guide.say(token)
    batch = batches.collate([row], Random(0), "", 0)
    free = batch.weights[0, -batch.layout.questions * batch.layout.question :]
    learnt = free.view(batch.layout.questions, -1)[0] >= 1
    said = row.branches[0].ids
    value = said.index(SPECIALS.index("<|value|>"))
    quoted = said.index(SPECIALS.index("<|document|>"))
    assert not learnt[quoted - 1 : value].any()
    assert learnt[value : len(said) - 1].all()


def test_windows_are_cut_at_sentence_ends() -> None:
    """The token 9 ends sentences; a window stops after the last one that fits."""
    ids = [1, 1, 9, 1, 1, 1, 9, 1, 1]
    assert cut(ids, {9}, [5, 5, 5]) == [(0, 3), (3, 7), (7, 9)]
    assert cut([1] * 7, {9}, [3, 3]) == [(0, 3), (3, 6)]


def options_for(books: Path, run: Path) -> Options:
    """A run of a few steps on short texts."""
    return Options(
        text=books,
        run=run,
        steps=4,
        warm=2,
        test=0,
        save=0,
        workers=0,
        examples=60,
        quiet=True,
        shape=Shape(layers=3, width=128, heads=4, hidden=128),
        curriculum=Curriculum(stages=((0.0, (128, 256), 2),), budget=512),
    )


def test_a_resumed_run_is_the_run_that_never_stopped(books: Path, tmp_path: Path) -> None:
    """Stop after 2 of 4 steps, go on, and compare every weight and moment."""
    whole, parts = options_for(books, tmp_path / "whole"), options_for(books, tmp_path / "parts")
    train_reader(whole)
    train_reader(replace(parts, stop=2))
    assert train_reader(parts).steps == 4
    with (
        safe_open(whole.run / "checkpoint.safetensors", "pt") as a,
        safe_open(parts.run / "checkpoint.safetensors", "pt") as b,
    ):
        assert set(a.keys()) == set(b.keys())
        for name in a.keys():  # noqa: SIM118
            assert torch.allclose(a.get_tensor(name), b.get_tensor(name), atol=1e-5), name


def test_an_exported_reader_loads_anywhere_and_says_where_it_is_from(
    books: Path, tmp_path: Path
) -> None:
    """The folder must give the same logits through transformers alone, and a full record."""
    options = replace(options_for(books, tmp_path / "run"), stop=1)
    train_reader(options)
    folder = tmp_path / "reader"
    digest = export_run(options, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(folder)
    assert model.config.sekv_window == 2048
    assert model.dtype == torch.float32
    assert tokens.chat_template
    with safe_open(options.run / "checkpoint.safetensors", "pt") as file:
        held = file.get_tensor("master.model.embed_tokens.weight")
    assert torch.equal(model.state_dict()["model.embed_tokens.weight"], held.bfloat16().float())
    record = json.loads((folder / "TRAINING.json").read_text(encoding="utf-8"))
    assert record["sha256"] == digest
    assert record["books"] == ["some-book"]
    assert record["steps"] == 1
    ids = tokens("<|question|> Who?<|answer|>", return_tensors="pt").input_ids
    assert ids[0, 0] == SPECIALS.index("<|question|>")
    with torch.no_grad():
        assert model(ids).logits.shape == (1, ids.shape[1], record["shape"]["vocabulary"])


def test_a_short_seeded_run_reaches_four_fifths_on_random_look_ups(
    books: Path, tmp_path: Path
) -> None:
    """A few dozen steps of random-token look-ups: right tokens among 4096, at least 80 %."""
    result = train_reader(
        replace(
            options_for(books, tmp_path),
            steps=40,
            shape=Shape(layers=3),
            curriculum=Curriculum(
                stages=((0.0, (128, 256), 1),), budget=1024, recall=1, formed=2, find=0
            ),
        )
    )
    assert result.recall >= 0.8


def test_batches_depend_on_seed_and_step_alone(books: Path, vocabulary: Tokenizer) -> None:
    """The same step twice is the same batch; weights fall on predictions only."""
    from engine.train.reader.episodes import Episodes

    curriculum = Curriculum(stages=((0.0, (256,), 2),), budget=700, recall=0, rest=0, find=0)
    made = [
        Batches(Episodes(books, "train", 0), vocabulary, curriculum, 3, 0)[5, 0.5] for _ in range(2)
    ]
    assert torch.equal(made[0].ids, made[1].ids)
    assert torch.equal(made[0].weights, made[1].weights)
    one = made[0]
    scored = one.weights > 0
    assert (one.targets[scored][:, 0] != SPECIALS.index("<|pad|>")).all()
    assert (one.weights[one.answers > 0] >= 1).all()


def test_a_folder_without_books_is_refused(tmp_path: Path) -> None:
    """With a word on what to name."""
    with pytest.raises(TrainError, match="--text"):
        train_reader(Options(text=tmp_path, run=tmp_path / "run"))
