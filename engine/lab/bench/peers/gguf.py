"""A Llama checkpoint as GGUF, for the row `llama.cpp@FILE.gguf`.

    python -m engine.lab.bench.peers.gguf FILE.gguf MODEL

For models that come as a folder alone; the default model's package holds a GGUF file already.
Weights in 32 bits. The row is fed the reader's own token ids, so the file holds no tokenizer.
Sources: GGUF version 3 (docs/gguf.md of ggml); convert_hf_to_gguf.py of llama.cpp, for Llama.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from engine.errors import ReaderError, SekvError
from engine.models.locate import locate

if TYPE_CHECKING:
    from torch import Tensor

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
UINT32, FLOAT32, STRING = 4, 6, 8
"""Types of values in the header."""
TENSOR_F32 = 0

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(model: str | Path, file: Path) -> None:
    """Write the weights of a Llama as GGUF.

    Args:
        model: folder or hub id.
    Raises:
        ReaderError: the model is no plain Llama.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = loaded.config
    rope = config.rope_parameters
    if config.model_type != "llama" or rope["rope_type"] != "default":
        raise ReaderError(
            f"{model} is no plain Llama; convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    weights: dict[str, Tensor] = dict(loaded.state_dict())
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    tensors = {llama_name(name): _turned(name, weight, config) for name, weight in weights.items()}
    claims: dict[str, str | int | float] = {
        "general.architecture": "llama",
        "general.name": Path(model).name,
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(rope["rope_theta"]),
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "no_vocab",
    }
    head = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(claims))
    head += b"".join(_text(key) + _value(value) for key, value in claims.items())
    place = 0
    for name, tensor in tensors.items():
        # Dimensions stand fastest first, which is the other way round.
        sizes = struct.pack(f"<I{tensor.dim()}Q", tensor.dim(), *reversed(tensor.shape))
        head += _text(name) + sizes + struct.pack("<IQ", TENSOR_F32, place)
        place += tensor.nbytes + len(_padded(tensor.nbytes))
    with file.open("wb") as out:
        out.write(head + _padded(len(head)))
        for tensor in tensors.values():
            out.write(tensor.numpy().tobytes())
            out.write(_padded(tensor.nbytes))


def llama_name(name: str) -> str:
    """llama.cpp's name of a weight."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.{kind}"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def _turned(name: str, weight: Tensor, config: Any) -> Tensor:
    """Queries and keys in the order of llama.cpp, which rotates neighbours and not halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return weight.contiguous()
    rows = weight.view(count, 2, -1, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    return struct.pack("<II", UINT32, value)


def _padded(size: int) -> bytes:
    """The zeros that fill `size` bytes to a multiple of the alignment."""
    return bytes(-size % ALIGNMENT)


if __name__ == "__main__":
    try:
        write(locate(sys.argv[2] if len(sys.argv) > 2 else "").folder, Path(sys.argv[1]))
    except SekvError as error:
        sys.exit(str(error))
