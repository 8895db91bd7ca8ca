"""docs/models.md, written from the last walk over architectures and from published configurations.

`make docs` runs this; a test compares the two. Not a test itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from architectures import REFUSED, SERVED, UNTESTED, known, release
from engine.compression.methods import METHODS, CacheShape
from engine.models.identity import of_configuration
from engine.types import AUTO_SHARE

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints.json"
TOKENS = 100_000

PREFACE = """\
# Models

Written by `make docs` from `tests/models/architectures.json` and
`tests/models/checkpoints.json`; edit those, not this page. `sekv models check MODEL` does for your
own checkpoint what was done here for tiny ones.

## Sizes at 100,000 tokens

The cache is what transformers keeps of the document in the layers with full attention, at 16 bits,
as the model's configuration says. The memory is the default budget of `sekv ask`, {share:.0%} of
that; the store is what the default method is expected to write. Layers of other kinds keep a state
that does not grow with the text and is not counted here. These are formulas, not measurements:
[results](results.md) has those. Each entry of the file names the page with the published
configuration (`source`) and the public copy that its numbers were held against (`checked`): a file
of another repository, where it says so of a sister checkpoint, or the defaults of the installed
transformers, which a test compares.

"""

POSITIONS = """
## Positions

Linear, llama3 and yarn scaling of RoPE rotate a key by its position alone, and are exact. Dynamic
NTK scaling and LongRoPE rotate it by the length of the context too: `sekv ingest` chooses that
length (of the longest window, or of the one that `--window` names, with room for question and
answer), the store records it, and answers are those of the model's full cache in a context of that
length (tests/test_rope_length.py). `sekv models check` checks the longest.
"""

OTHER_LAYERS = """
## Layers of other kinds

Sliding-window, chunked, convolutional and recurrent layers keep a state that does not grow with the
text. A store has it exactly, as it is at the end of every window. A document that fits one context
is answered as from the full cache. Of a longer one, read in windows, a question sees the window
with the best passage, with that window's own states, as if it were the document
(tests/test_other_layers.py); `sekv ingest` says so, and `--dry-run` the bytes of the states.
"""

QUANTISED = """
## Quantised weights

GGUF files are converted once to 16 bits. A checkpoint whose `config.json` has a
`quantization_config` is loaded by transformers' own quantizer, and its store names the method:

| method | needs | a CPU | tested |
|---|---|---|---|
| FP8 with a scale per block | nothing | unpacked on loading | tests/models/test_quantized.py |
| bitsandbytes, 4 bits | `sekv[quantized]` | stays packed | the same |
| compressed-tensors | `sekv[quantized]` | unpacked, on a GPU too | the same, packed 4 bits |
| GPTQ, AWQ | gptqmodel | as its package does | not |
| HQQ, torchao, quanto | the package of that name | as its package does | not |

The tests were run on a CPU; no quantised checkpoint was run on a GPU. What transformers does not
know, a package that is missing and a method that needs a GPU are refused in one line. So is
bitsandbytes with 8 bits, on a CPU: its products round what they multiply weights with, too, so that
two orders of the same sums differ by 3 in a logit ([results](results.md)). FP8 on a GPU may do the
same; `sekv models check` finds it.
"""

WALK = """
## Architectures

All architectures that transformers {release} has for causal language models and for
text beside pictures or sound, by the name that a configuration gives as `model_type`: of
{total} {served} are served, {refused} refused, and {untested} were not tested. Of one
that reads pictures or sound the text part alone is loaded. Served means tested: a tiny
random checkpoint (tests/support/tiny_architectures.py, with windows and layers changed
where they must be) was saved whole and loaded, and a text of 900 tokens was read in
chunks of 64 into a store that loses nothing, which was closed and opened again. No logit
of the question behind it and of three tokens that follow one by one differed from eager
attention's by more than the figure (float32; the largest logit stands beside it; 1e-4 is
allowed).

"""


def sizes() -> Iterator[str]:
    yield "| checkpoint | layers with a memory | KV heads | head size | cache | memory | store |"
    yield "|---|---|---|---|---|---|---|"
    for entry in json.loads(CHECKPOINTS.read_text(encoding="utf-8")):
        settings: dict[str, Any] = dict(entry["config"])
        kind = settings.pop("model_type")
        shape = of_configuration(CONFIG_MAPPING[kind](**settings))
        full = 2 * TOKENS * shape.numbers_per_token
        cache = CacheShape(len(shape.memory_layers), shape.kv_heads, shape.head_dim)
        store, _ = METHODS["sekv"].expected_bytes(cache, TOKENS, 1)
        yield (
            f"| {entry['id']} | {len(shape.memory_layers)} of {shape.layers} | {shape.kv_heads} "
            f"| {shape.head_dim} | {_bytes(full)} | {_bytes(AUTO_SHARE * full)} "
            f"| {_bytes(store)} |"
        )


def architectures() -> Iterator[str]:
    yield "| architecture | outcome | difference, largest logit, or why not |"
    yield "|---|---|---|"
    for kind, found in known().items():
        detail = found.detail.replace("|", "\\|")
        if found.outcome == SERVED:
            detail = f"{found.difference:.0e} of {found.largest:.2g}"
        yield f"| {kind} | {found.outcome} | {detail} |"


def page() -> str:
    outcomes = [found.outcome for found in known().values()]
    walk = WALK.format(
        total=len(outcomes),
        release=release(),
        served=outcomes.count(SERVED),
        refused=outcomes.count(REFUSED),
        untested=outcomes.count(UNTESTED),
    )
    head = PREFACE.format(share=AUTO_SHARE) + "\n".join(sizes())
    said = POSITIONS + OTHER_LAYERS + QUANTISED + walk
    return head + "\n" + said + "\n".join(architectures()) + "\n"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


if __name__ == "__main__":
    print(page(), end="")
