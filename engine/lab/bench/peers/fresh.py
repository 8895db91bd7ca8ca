"""Plain transformers in a process of its own: model and saved full cache to the first token.

    python -m engine.lab.bench.peers.fresh MODEL CACHE.safetensors ID...

with the ids of the question in the model's prompt. Started by the efficiency suite beside
`sekv ask`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@torch.inference_mode()
def main(name: str, file: Path, prompt: list[int]) -> None:
    """Print the first token of the answer."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = load_file(file)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=rows["0.k"].dtype)
    cache = DynamicCache([(rows[f"{i}.k"], rows[f"{i}.v"]) for i in range(len(rows) // 2)])
    out = model(input_ids=torch.tensor([prompt]), past_key_values=cache, logits_to_keep=1)
    print(tokenizer.decode(out.logits[0, -1].argmax()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(token) for token in sys.argv[3:]])
