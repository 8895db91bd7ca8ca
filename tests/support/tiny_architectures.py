"""Tiny random checkpoints of any architecture of transformers with a decoder. Not a test itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from tiny_models import tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "bos_token_id": 256,
    "eos_token_id": 260,
    "pad_token_id": 260,
    "is_decoder": True,
    # as older architectures call them
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 4096,
    "n_inner": 96,
    "d_model": 64,
    "n_layers": 4,
    "n_heads": 4,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "type_vocab_size": 1,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_shared_expert_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "expert_ffn_hidden_size": 32,
    "zero_expert_num": 1,
    # latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    # windows and recurrent layers
    "sliding_window": 64,
    "attention_chunk_size": 64,
    "mamba_d_state": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    # embeddings per layer
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 261,
}
"""Settings of a small model, by whatever names configurations have for them."""

LATENT = {"num_key_value_heads": 4, "head_dim": 8, "v_head_dim": 12}

WIDE = {"sliding_window": 4096}
"""Of models whose layers all have a window: they are read in contexts that are no longer."""

MIXED = {"layer_types": ["linear_attention", "full_attention"] * 2}

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

THREE_AXES = {"rope_parameters": {**PLAIN_ROPE, "mrope_section": [2, 3, 3]}}

IMAGE_TOKEN = {"vocabulary_map": {"<image>": 259}}

QUANTIZED = {
    "base_channels": 32,
    "channel_multiplier": [1],
    "num_res_blocks": 1,
    "latent_channels": 32,
    "num_embeddings": 16,
    "embed_dim": 32,
}
"""Of an encoder that makes tokens of pictures."""

SPECIAL: dict[str, dict[str, Any]] = {
    "doge": WIDE,
    "ministral": WIDE,
    "ministral3": WIDE,
    "mistral": WIDE,
    "mixtral": WIDE,
    "moshi": WIDE,
    "phi3": WIDE,
    "phimoe": WIDE,
    "starcoder2": WIDE,
    "kolibri1": {"num_hidden_layers": 5},
    "electra": {"embedding_size": 64},
    "falcon_h1": {"mamba_d_ssm": 128},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "bailing_hybrid": {**LATENT, "layer_group_size": 2},
    "kimi_linear": {**LATENT, **MIXED, "linear_head_dim": 16, "linear_num_heads": 4},
    "zamba": {
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
    },
    "zamba2": {
        "num_key_value_heads": 4,
        "head_dim": 32,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4},
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": PLAIN_ROPE}},
    "cosmos3_edge_text": {"rope_parameters": {**PLAIN_ROPE, "mrope_section": [4, 2, 2]}},
    **dict.fromkeys(
        ("glm4v_text", "glm_ocr_text", "paddleocr_vl_text", "qwen2_vl_text", "qwen2_5_vl_text"),
        THREE_AXES,
    ),
    "glm4v_moe_text": {"rope_parameters": {**PLAIN_ROPE, "mrope_section": [2, 1, 1]}},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [32, 32]},
    "glm5_next_text": {"num_key_value_heads": 4},
    "chameleon": IMAGE_TOKEN,
    "emu3": IMAGE_TOKEN,
    "chameleon_vqgan": QUANTIZED,
    "emu3_vqgan": QUANTIZED,
    "janus_vqgan": QUANTIZED,
    "molmo2_vision": {"image_size": [28, 28]},
    "molmo2_adapter": {"vision_feature_layer": [0]},
    "muse_spark_vision": {"num_hidden_layers": 4},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]]},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] * 4},
    "fun_asr_nano": {"adaptor_config": {"hidden_size": 64}},
    "radio": {"video_temporal_patch_size": 2},
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite"), LATENT),
    **dict.fromkeys(("longcat_flash", "minicpm3", "youtu"), LATENT),
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 3},
    "gemma4_text": {"global_head_dim": 32},
    "gemma4_unified_text": {"global_head_dim": 32},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "granitemoehybrid": MIXED,
    "zaya": {"num_experts_per_tok": 1},
}
"""What an architecture, or a part of one, needs beside or otherwise."""


ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "mlp_hidden_size": 32,
    "embed_dim": 32,
    "d_model": 32,
    "hidden_dim": 32,
    "output_dim": 64,
    "out_hidden_size": 64,
    "num_hidden_layers": 1,
    "num_layers": 1,
    "depth": 1,
    "encoder_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
}
"""Settings of a small encoder of pictures or sound."""


def configuration(kind: str, **changes: Any) -> Any:
    """A small configuration of an architecture, named as in transformers' own mapping."""
    return _small(CONFIG_MAPPING[kind](), SMALL, changes)


def _small(usual: Any, settings: dict[str, Any], changes: dict[str, Any]) -> Any:
    """One of the class of a usual configuration, with small parts where it is a wrapper."""
    text = usual.get_text_config(decoder=True)
    held = {name: getattr(usual, name, None) for name in usual.sub_configs}
    parts = {
        name: _small(part, SMALL if part is text else ENCODER, {})
        for name, part in held.items()
        if part is not None
    }
    own = _known(type(usual), settings) if text is usual else {}
    return type(usual)(**{**own, **parts, **SPECIAL.get(usual.model_type, {}), **changes})


def _known(cls: type, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that a class of configurations has, each under one name."""
    names = {field.name for field in dataclasses.fields(cls)}
    aliases = getattr(cls, "attribute_map", {})
    known = {
        name: value
        for name, value in settings.items()
        if name in names or (aliases.get(name) in names and aliases[name] not in settings)
    }
    for alias, name in aliases.items():
        if alias in known and name in known:
            del known[alias]
    return known


def full_attention(kind: str) -> Any:
    """The same with full attention in every layer, where it would mix it with other kinds."""
    made = configuration(kind)
    if getattr(made, "layer_types", None):
        return configuration(kind, layer_types=["full_attention"] * made.num_hidden_layers)
    if getattr(made, "sliding_window", None):
        return configuration(kind, sliding_window=None)
    return made


def auto_class(config: Any) -> Any:
    """What makes the library's whole model of a configuration: a wrapper with its encoders."""
    whole = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    return AutoModelForMultimodalLM if whole else AutoModelForCausalLM


def save(config: Any, folder: Path) -> Path:
    """A random checkpoint whose attention is far from uniform, so that a wrong row shows."""
    torch.manual_seed(7)
    model = auto_class(config).from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(6.0 if "q_proj" in name or "k_proj" in name else 3.0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
