"""Tiny random checkpoints that load like real ones, for tests. Not a test itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

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


WINDOW = 24
"""Tokens that a layer with sliding-window or chunked attention sees, itself included."""

_FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_LINEAR, _CONV = "linear_attention", "conv"


def _mixed(kind: str) -> dict[str, Any]:
    """Layers of another kind before and between those with full attention."""
    return {"num_hidden_layers": 4, "layer_types": [kind, _FULL, kind, _FULL]}


_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_SLIDES = {**_mixed(_SLIDING), "sliding_window": WINDOW}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 0, 1]},
    # sliding-window and chunked attention
    "ministral": _SLIDES,
    "gemma2": {**_SLIDES, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_SLIDES, "query_pre_attn_scalar": 16},
    "gemma4_text": {
        **_SLIDES,
        "num_hidden_layers": 6,
        "layer_types": [_SLIDING, _FULL] * 3,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 256 + len(SPECIALS),
        "global_head_dim": 16,
    },
    "gemma3n_text": {
        **_SLIDES,
        "num_hidden_layers": 6,
        "layer_types": [_SLIDING, _FULL] * 3,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 256 + len(SPECIALS),
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 6,
        "altup_num_inputs": 2,
    },
    "gpt_oss": {**_SLIDES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo3": _SLIDES,
    "cohere2": _SLIDES,
    "exaone4": _SLIDES,
    "llama4_text": {
        **_mixed(_CHUNKED),
        "attention_chunk_size": WINDOW,
        "no_rope_layers": [1, 0, 1, 0],
        "intermediate_size_mlp": 96,
        "moe_layers": [],
    },
    # convolutions, linear attention, SSM
    "lfm2": {**_mixed(_CONV), "conv_L_cache": 3, "block_multiple_of": 8},
    "qwen3_next": {
        **_mixed(_LINEAR),
        **_DELTA,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_5_text": {**_mixed(_LINEAR), **_DELTA},
    "granitemoehybrid": {
        **_mixed("mamba"),
        **_MAMBA,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "mamba_expand": 2,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 64,
    },
    "bamba": {**_MAMBA, "num_hidden_layers": 4, "attn_layer_indices": [1, 3], "mamba_expand": 2},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 128},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "attention", "mlp", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "jamba": {
        "num_hidden_layers": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    },
}


LOUDER = {"q_proj": 6.0, "k_proj": 6.0} | dict.fromkeys(
    ("mamba.in_proj", "mamba.out_proj", "mixer.in_proj", "mixer.out_proj"), 12.0
)
"""What weights are multiplied by, by a part of their name; others by 3."""


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
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, **settings | CONFIGS.get(kind, {}) | changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(next((by for part, by in LOUDER.items() if part in name), 3.0))
            if name.endswith("A_log"):
                weight.fill_(-4.0)  # a state remembers a hundred tokens, so that a wrong one shows
    model.generation_config.eos_token_id = None  # tests count tokens
    model.save_pretrained(folder)
    tokenizer(chat=chat).save_pretrained(folder)
    return folder
