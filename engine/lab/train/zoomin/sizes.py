"""How many parameters a router has, and what share of a model's: from configurations alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.lab.train.zoomin.forms import Shape, SketchForm, SpanForm


@dataclass(frozen=True)
class Model:
    """What a decoder's configuration says. ffn: width of its feed-forward layers."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    size: int
    width: int
    ffn: int
    vocabulary: int
    tied: bool = False
    biased: bool = False

    @property
    def parameters(self) -> int:
        """All of them: embeddings, attention, gated feed-forward, norms."""
        queries, keys = self.heads * self.size, self.kv_heads * self.size
        attention = 2 * self.width * (queries + keys) + self.biased * (queries + 2 * keys)
        layer = attention + 3 * self.width * self.ffn + 2 * self.width
        return self.layers * layer + self.width + self.vocabulary * self.width * (2 - self.tied)


MODELS = (
    Model("Llama-3.2-3B", 28, 24, 8, 128, 3072, 8192, 128256, tied=True),
    Model("Llama-3.1-8B", 32, 32, 8, 128, 4096, 14336, 128256),
    Model("Mistral-7B-v0.3", 32, 32, 8, 128, 4096, 14336, 32768),
    Model("Qwen2.5-14B", 48, 40, 8, 128, 5120, 13824, 152064, biased=True),
)
"""The paper's backbones, by the configurations that their authors publish."""


COLUMNS = 24
"""Columns of each basis with which all of these stay under 0.05 %; see `forms.completed`."""


def router_parameters(model: Model) -> dict[str, int]:
    """Trained parameters by form: W as published, one W per KV head; bases of keys and values, and
    these with `COLUMNS` columns each."""
    shape = (model.layers, model.heads, model.kv_heads, model.size)
    with torch.device("meta"):
        return {
            "per query head": SpanForm(Shape(*shape, per_head=True)).trained,
            "per KV head": SpanForm(Shape(*shape)).trained,
            "sketch": SketchForm(Shape(*shape)).trained,
            f"sketch, {COLUMNS} columns": SketchForm(Shape(*shape, columns=COLUMNS)).trained,
        }


def table() -> str:
    """Parameters and their share of each of `MODELS`, in Markdown."""
    names = list(router_parameters(MODELS[0]))
    lines = [
        "| model | parameters | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for model in MODELS:
        counts = router_parameters(model)
        cells = [f"{n / 1e6:.2f}M ({100 * n / model.parameters:.3f} %)" for n in counts.values()]
        lines.append(
            f"| {model.name} | {model.parameters / 1e9:.2f}B | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"
