"""Conversion of a GGUF file by transformers' own loader. Run as a script, never imported.

    python -P gguf_worker.py FILE FOLDER DTYPE

Exit code 2 and one line on stdout where the file or the disk is at fault.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from engine.errors import ReaderError
from engine.models.gguf import check_architecture, read_header
from engine.models.load import check_complete, check_supported, loading


def convert_file(file: Path, folder: Path, dtype: str) -> None:
    """Convert `file` into the folder, which is made.

    Raises:
        ReaderError: what the file holds cannot be used, or the folder cannot be written.
    """
    check_architecture(read_header(file).architecture)
    with TemporaryDirectory() as alone:  # what else lies beside the file is not read with it
        (Path(alone) / "model.gguf").symlink_to(file.resolve())
        place: dict[str, Any] = {"gguf_file": "model.gguf"}
        with loading(file.name):
            config = AutoConfig.from_pretrained(alone, **place)
        check_supported(config)
        with loading(file.name):
            tokenizer = AutoTokenizer.from_pretrained(alone, **place)
            maker: Any = AutoModelForCausalLM
            model, found = maker.from_pretrained(
                alone,
                config=config,
                dtype=getattr(torch, dtype),
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
                **place,
            )
    check_complete(file.name, found)
    if not all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values()):
        raise ReaderError(
            f"{file.name} has weights that are no numbers in {dtype}: it is damaged; get it again"
        )
    # transformers takes for quantised what it has just dequantised, and would not save it.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # On a GPU a model runs in the dtype its configuration names. The tensors are float16,
        # which keeps what they were dequantised to; the model was made in bfloat16, and what it
        # computes on the way may leave the range of float16.
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if dtype != "float32":
            settings["dtype"] = "bfloat16"
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ReaderError(
            f"the converted weights cannot be written: {reason}; free some room, or name another "
            "folder with SEKV_CACHE"
        ) from None


def main() -> int:
    """Convert; an error is one line on stdout."""
    try:
        convert_file(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except ReaderError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
