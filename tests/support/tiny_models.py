"""Tiny random checkpoints that load like real ones, for tests. Not a test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CHAT = (
    "<|begin|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ["<|begin|>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"]


def tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: 256 bytes and a few specials."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: i for i, char in enumerate(alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIALS)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    if chat:
        fast.chat_template = CHAT
    return fast


CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}


def checkpoint(kind: str, folder: Path, *, chat: bool = False, **changes: Any) -> Path:
    """Save a random model whose attention is far from uniform, so that a wrong row shows."""
    settings: dict[str, Any] = {
        "vocab_size": 256 + len(SPECIALS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "bos_token_id": 256,
        "eos_token_id": 260,
        "pad_token_id": 260,
        "tie_word_embeddings": False,
    }
    if kind == "mistral":
        settings["sliding_window"] = None
    torch.manual_seed(7)
    config = CONFIGS[kind](**settings | changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(6.0 if "q_proj" in name or "k_proj" in name else 3.0)
    model.generation_config.eos_token_id = None  # tests count tokens
    model.save_pretrained(folder)
    tokenizer(chat=chat).save_pretrained(folder)
    return folder
