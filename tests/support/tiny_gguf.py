"""Tiny Llama checkpoints as GGUF files, and the wheels that carry them. Not a test itself."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from engine.lab.bench.peers.gguf import llama_name
from engine.models.aliases import KnownModel, Wheel
from tiny_models import checkpoint

Type = gguf.GGMLQuantizationType


def source(folder: Path) -> Path:
    """A tiny Llama with a chat template, and one merge: GGUF knows no tokenizer without any."""
    checkpoint("llama", folder, chat=True, vocab_size=262)
    file = folder / "tokenizer.json"
    inner = json.loads(file.read_text())
    special = {token["content"]: token["id"] for token in inner["added_tokens"]}
    inner["model"]["vocab"] |= special | {"th": 261}
    inner["model"]["merges"] = [["t", "h"]]
    file.write_text(json.dumps(inner))
    return folder


def write_gguf(
    checkpoint: Path,
    file: Path,
    kind: Type = Type.F32,
    *,
    architecture: str = "llama",
    parts: int = 0,
) -> Path:
    """Write a Llama folder as one GGUF file, matrices in `kind`, vectors in 32 bits."""
    config = json.loads((checkpoint / "config.json").read_text())
    out = gguf.GGUFWriter(file, architecture)
    out.add_name("tiny")
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(config["head_dim"])
    out.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    out.add_vocab_size(config["vocab_size"])
    if parts:
        out.add_uint16("split.count", parts)
    _add_tokenizer(out, checkpoint)
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        weight = _order(name, weight, config)
        own = kind if weight.ndim > 1 else Type.F32
        out.add_tensor(llama_name(name), gguf.quants.quantize(weight, own), raw_dtype=own)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def _add_tokenizer(out: gguf.GGUFWriter, checkpoint: Path) -> None:
    inner = json.loads((checkpoint / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in inner["added_tokens"]}
    known = {index: text for text, index in inner["model"]["vocab"].items()} | special
    out.add_tokenizer_model("gpt2")
    out.add_token_list([known[index] for index in sorted(known)])
    out.add_token_types([3 if index in special else 1 for index in sorted(known)])
    out.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    out.add_bos_token_id(256)
    out.add_eos_token_id(260)
    out.add_pad_token_id(260)
    template = checkpoint / "chat_template.jinja"
    if template.is_file():
        out.add_chat_template(template.read_text())


def _order(name: str, weight: Any, config: Any) -> Any:
    """Queries and keys in the order of llama.cpp, which rotates neighbours and not halves."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return np.ascontiguousarray(weight)
    rows = weight.reshape(count, 2, -1, weight.shape[1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


def write_wheel(file: Path, folder: Path, package: str = "tiny_model") -> KnownModel:
    """Pack a GGUF file into a wheel as an index would hold it; the model that the wheel is."""
    name = f"{package}-1.0"
    wheel = folder / f"{name}-py3-none-any.whl"
    member = f"{package}/{file.name}"
    record = {
        f"{package}/__init__.py": b"raise RuntimeError('a model is data; nobody imports it')\n",
        member: file.read_bytes(),
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        "Requires-Dist: there-is-no-such-package\n".encode(),
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: none\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in record.items():
            archive.writestr(path, data)
        archive.writestr(f"{name}.dist-info/RECORD", "".join(f"{path},,\n" for path in record))
    data = wheel.read_bytes()
    return KnownModel(
        alias="tiny",
        hub="nobody/tiny",
        wheel=Wheel(
            package=package.replace("_", "-"),
            version="1.0",
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            member=member,
            member_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        ),
        licence="Apache-2.0",
        parameters=1000,
        context=4096,
        window=512,
        default=True,
    )
