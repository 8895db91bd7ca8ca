"""docs/recipes.md, written from the table of methods (`make docs`).

A test compares the two, so the page cannot say what the program does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.compression.methods import METHODS, Method
from engine.lab.bench import peers

PREFACE = """\
# Methods

Written from the table in `engine/recipe.py` by `make docs`; edit the table, not this page.

A method is a few choices: where the document is cut, what stands for a span, how its tokens are
kept on the host, how a query finds spans, and when and by which query a layer chooses anew. All
run in one engine with one budget in bytes, everything counted. None of them knows a question while
it reads; where a published method does, the document's own end takes the question's place, and
the line says so. `NAME+zoomr` compresses long answers beside the document memory of NAME, and
`NAME+PART.FIELD=VALUE` is the method with another setting of those in its table, such as
`sekv+codec.bits=4+local=64`; a store remembers its settings.

`compresskv` needs to know the model's retrieval heads: those of the default model ship with the
tool, others are measured by `sekv train heads`.
"""

PARTS = ("segmenter", "summariser", "codec", "router", "selector", "output")

PEERS = """\
## Peers: systems of others in the same table

`sekv bench --method` takes these names too, in the suites qa, fidelity, niah, ruler, multi,
longbench and infinitebench: `kvpress` means all its presses, `trial` what the laboratory tries,
`peers` all but these. A peer is one more row. It
gets the document that the model has read, in the same windows, holds it in its own way before it
has seen any question, and then answers all questions through the same session as every store: the
same prompt and greedy decoding, the question's own rows exact. It sees all windows, where our
methods see the best passages of a document of more than one. Bytes are
those that really lie on the device; of a float32 model exact rows are kept in 16 bits, as ours
are, except by `transformers:plain` and `transformers:reload`, which like `full` keep the model's
own. `transformers:plain` reads the document anew with the attention of transformers itself, so that
nothing of ours takes part in its answers: the reference of suite qa. A press is asked for
less until its real bytes are within the budget; one that only masks keeps all rows, and its bytes
say so (its masked rows are hidden, where kvpress puts a key in their place that no query sees).

A peer that is not installed, or that fails, is a line of the table with the reason; installed
later, the same command asks only it. What is needed:

    pip install 'sekv[bench]'           # optimum-quanto, and what kvpress imports
    pip install --no-deps kvpress       # 0.5.5 pins transformers < 5.3, and runs with ours
    pip install llama-cpp-python        # compiles for minutes
    python -m engine.lab.bench.peers.gguf model.gguf FOLDER   # for llama.cpp@model.gguf

llama-cpp-python needs a C++ compiler and ninja, and so does optimum-quanto, which compiles when
it is first used. The default model needs no conversion: its package holds the file that it was made
from, SmolLM2-135M-Instruct.Q4_1.gguf. `peers.gguf` takes the folder of any plain Llama; other
models are converted with `convert_hf_to_gguf.py` of llama.cpp. llama.cpp is fed the reader's own
token ids and windows, which are sequences of their own until all are read and then one; its state
is saved, restored into a new context, and asked. Keys and values have 16 bits there, or what
`llama.cpp:q8_0@FILE` and `llama.cpp:q4_0@FILE` name, weights those of the file (32 from
`peers.gguf`).

    sekv bench --suite niah --text books --method sekv,full,transformers,kvpress --budget 10%
    sekv bench --suite niah,ruler --text books --method sekv,full,peers,llama.cpp@model.gguf
    sekv bench --suite efficiency --text books --method sekv,llama.cpp@model.gguf

Trials hold a document in ways that no store has, to see what a byte could do: written anew from
papers, or variations of our own code. They hold documents of one window. What a question will look
for, some of them learn from the document read once more behind itself.

A method with another router than the model's own is NAME@FILE, or NAME@none.

Of the ratios by which the efficiency suite measures (R1 to R12 in its table), R9, how much of the
answers a budget keeps, is what the other suites are for. It times everything on the machine it
runs on: a device's memory over a bus, or many questions at once, it does not measure. Its peers
there are reading again, the full cache reloaded, and llama.cpp with each kind of its cache where
its model file is named; other programs are not timed.
"""


def page() -> str:
    """The whole page."""
    methods = (line for recipe in METHODS.values() for line in _method(recipe))
    return "\n".join([PREFACE, *methods, PEERS, *_peers()])


def _peers() -> Iterator[str]:
    yield "| peer | budget | what it is |"
    yield "|---|---|---|"
    for peer in peers.PEERS.values():
        yield f"| `{peer.name}` | {'all' if peer.whole else 'yes'} | {peer.source} |"
    yield ""


def _method(recipe: Method) -> Iterator[str]:
    yield f"## {recipe.name}\n"
    yield f"Source: {recipe.source}.\n"
    if recipe.differs:
        yield f"Differs: {recipe.differs}.\n"
    yield "| part | choice | settings |"
    yield "|---|---|---|"
    settings = recipe.settings()
    for part in PARTS:
        if part not in settings:
            continue
        chosen = dict(settings[part])
        kind = chosen.pop("kind")
        yield f"| {part} | `{kind}` | {_settings(chosen)} |"
    rest = {name: settings[name] for name in ("sinks", "local", "keep", "whole")}
    yield f"| exact | | {_settings(rest)} |"
    yield ""


def _settings(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value != "")


if __name__ == "__main__":
    print(page(), end="")
