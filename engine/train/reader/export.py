"""Writes a trained reader as a folder any user of transformers can load. No training here."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from engine.train.reader.model import Shape
from engine.train.reader.tokenizer import END, PAD, SPECIALS, wrap

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

WEIGHTS = "model.safetensors"
RECORD = "TRAINING.json"


def export(
    folder: Path,
    weights: Mapping[str, Tensor],
    shape: Shape,
    tokenizer: Tokenizer,
    record: Mapping[str, Any],
    reluctance: float = 0.0,
) -> str:
    """Write config, weights (bfloat16), tokenizer with chat template, and the training record.

    Args:
        folder: made if missing.
        weights: named as in LlamaForCausalLM; the tied head may be left out.
        reluctance: nats to take from the first token of "not stated"; `sekv_reluctance`.
        record: what TRAINING.json says beside the weights' fingerprint.
    Returns:
        sha256 of the weights file, in hex.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wrap(tokenizer, shape.positions).save_pretrained(folder, save_jinja_files=False)
    config = shape.config()
    config.architectures = ["LlamaForCausalLM"]
    config.sekv_reluctance = reluctance
    config.dtype = "float32"  # bfloat16 on disk only: CPUs compute faster in float32
    config.save_pretrained(folder)
    GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id,
        eos_token_id=SPECIALS.index(END),
        pad_token_id=SPECIALS.index(PAD),
        do_sample=False,
        max_new_tokens=128,
    ).save_pretrained(folder)
    path = folder / WEIGHTS
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in weights.items()
        if name != "lm_head.weight"
    }
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors keeps its files to their owner
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = json.dumps({**record, "sha256": digest}, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    return digest
