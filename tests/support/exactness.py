"""A memory beside the full cache of the library's own model. Not a test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from engine.answer.session import Session
from engine.compression import methods as recipes
from engine.ingest.run import ingest
from engine.types import IngestOptions, Silent
from exact_methods import EXACT
from tiny_architectures import auto_class

TEXT = "".join(
    f"On day {i} the crew of ship {i * 7 % 13} saw {i * i % 97} whales, and it rained.\n"
    for i in range(9)
)
QUESTION = "How many whales?"


def make_store(
    folder: Path, model: Path, patch: pytest.MonkeyPatch, exact: str, **options: Any
) -> Path:
    source = folder / "log.txt"
    source.write_text(TEXT)
    patch.setitem(recipes.METHODS, "exact", EXACT[exact])
    target = folder / "log.sekv"
    ingest(
        [str(source)],
        target,
        IngestOptions(model=str(model), method="exact", **options),
        Silent(),
    )
    return target


def truth(
    session: Session, model: Path, steps: int, window: slice = slice(None)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy ids and logits [steps, V] of the library's own eager model on the whole prompt, or on
    one with only these tokens of the document."""
    whole = auto_class(AutoConfig.from_pretrained(model))
    plain = whole.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    prompt = session.reader.prompt
    ids = [
        *prompt.prefix,
        *session.ids[window].tolist(),
        *prompt.question(session.reader.tokenizer, QUESTION),
    ]
    return greedy(plain, torch.tensor([ids]), steps)


def greedy(model: Any, ids: torch.Tensor, steps: int, **kwargs: Any) -> Any:
    kwargs = {"attention_mask": torch.ones_like(ids)} | kwargs
    out = model.generate(
        ids,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )
    return out.sequences[0, ids.shape[1] :], torch.cat(out.logits)


def from_memory(session: Session, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([session.reader.prompt.question(session.reader.tokenizer, QUESTION)])
    ids = ids.to(session.reader.devices[0])
    mask = torch.ones(1, session.past.length + ids.shape[1], dtype=torch.long).to(ids)
    out: tuple[torch.Tensor, torch.Tensor] = greedy(
        session.reader.model, ids, steps, attention_mask=mask, past_key_values=session.past.cache()
    )
    return out
