"""GGUF files as models: the same numbers, converted once, and one line for what cannot be read."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_gguf
from engine.errors import ReaderError
from engine.models import aliases, cache, locate
from engine.models.gguf import check_architecture, read_header
from engine.models.gguf_worker import convert_file
from engine.models.reader import load_reader
from engine.types import Silent
from repository import ROOT, environment
from tiny_gguf import Type, write_gguf

TEXT = "The ship's log, 1897: \u00fc <|user|> th th\n\n  end"


class RecordedProgress(Silent):
    """A Progress that remembers its stages."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.stages.append(stage)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as GGUF in 32 bits."""
    return write_gguf(source, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        ids = torch.tensor([list(TEXT.encode())])
        out: torch.Tensor = model(ids).logits
    return out


# ---------------------------------------------------------------------------- what is kept


def test_a_file_in_32_bits_computes_what_its_source_computes(
    source: Path, whole: Path, tmp_path: Path
) -> None:
    """To the bit, and the tokenizer and chat template are the same."""
    convert_file(whole, tmp_path / "model", read_header(whole).dtype)
    assert torch.equal(logits(tmp_path / "model"), logits(source))
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "model"))
    assert one.encode(TEXT) == other.encode(TEXT)
    assert one.chat_template == other.chat_template
    assert one.eos_token_id == other.eos_token_id == 260


@pytest.mark.parametrize("kind", [Type.F16, Type.Q8_0])
def test_quantised_weights_are_kept_as_what_they_stand_for(
    kind: Type, source: Path, tmp_path: Path
) -> None:
    """Rounded once, to float16; the dtype to compute in on a GPU is the model's bfloat16."""
    file = write_gguf(source, tmp_path / "tiny.gguf", kind)
    header = read_header(file)
    assert header.dtype == "float16"
    convert_file(file, tmp_path / "model", header.dtype)
    kept = load_file(tmp_path / "model" / "model.safetensors")
    assert {weight.dtype for weight in kept.values()} == {torch.float16}
    name = "model.layers.1.mlp.up_proj.weight"
    (packed,) = (t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_up.weight")
    meant = torch.from_numpy(gguf.dequantize(packed.data, packed.tensor_type).copy())
    assert torch.equal(kept[name], meant.half())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_float16_keeps_quantised_blocks_better_than_bfloat16() -> None:
    """Why the converted weights are float16: a block of Q4_1 is 16 steps of one scale."""
    weights = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).numpy()
    packed = gguf.quantize(weights, Type.Q4_1)
    meant = torch.from_numpy(gguf.dequantize(packed, Type.Q4_1))
    half, brain = (
        float((meant - meant.to(kind).float()).norm()) for kind in (torch.float16, torch.bfloat16)
    )
    assert half < brain / 7


def test_weights_beyond_float16_are_refused(source: Path, tmp_path: Path) -> None:
    changed = tmp_path / "source"
    shutil.copytree(source, changed)
    weights = load_file(changed / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    file = write_gguf(changed, tmp_path / "large.gguf", Type.BF16)
    convert_file(file, tmp_path / "kept", read_header(file).dtype)
    with pytest.raises(ReaderError, match="no numbers in float16"):
        convert_file(file, tmp_path / "model", "float16")


# ---------------------------------------------------------------------------- once


def test_a_file_is_converted_once_whatever_it_is_called(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process of its own; the reader is named by the file, and a copy needs no second one."""
    monkeypatch.setenv("SEKV_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "one.gguf"
    shutil.copy(whole, file)
    monkeypatch.chdir(tmp_path)
    recorded = RecordedProgress()
    found = locate.locate("one.gguf", progress=recorded)
    assert recorded.stages == ["converting one.gguf, once"]
    assert found.name == str(file)
    assert found.folder == cache.folder_of(cache.sha256_of(file, Silent()))
    reader = load_reader(found, device="cpu")
    assert reader.identity.id == str(file)
    moved = file.rename(tmp_path / "other.gguf")
    again = locate.locate(str(moved), progress=recorded)
    assert (again.folder, again.name) == (found.folder, str(moved))
    assert len(recorded.stages) == 1
    assert [entry.origin for entry in cache.entries()] == [str(file)]
    # Where the table knows the file, it has its alias, wherever it lies.
    known = tiny_gguf.write_wheel(moved, tmp_path)
    monkeypatch.setattr(aliases, "KNOWN", (known,))
    for place in (moved, found.folder):
        named = locate.locate(str(place))
        assert (named.name, named.folder, named.window) == ("tiny", found.folder, 512)


def test_a_folder_that_cannot_take_the_weights_is_one_line(
    source: Path, whole: Path, tmp_path: Path
) -> None:
    """A file system that ends in the middle of the weights; nothing is left of them."""
    program = (
        "import resource, signal, sys\n"
        "from engine.models.locate import locate\n"
        "from engine.errors import ReaderError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    locate(sys.argv[1])\n"
        "except ReaderError as error:\n    print(error)\n"
    )
    place = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", program, str(whole)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment(SEKV_CACHE=str(place)),
    )
    assert len(done.stdout.splitlines()) == 1
    assert "the converted weights cannot be written" in done.stdout
    assert "SEKV_CACHE" in done.stdout
    assert [path for path in (place / "models").iterdir() if path.is_dir()] == []


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("architecture", ["no-such", "rwkv6", "clip", ""])
def test_an_architecture_that_transformers_does_not_read_is_one_line(architecture: str) -> None:
    with pytest.raises(ReaderError, match=rf"architecture '{architecture}' is none") as caught:
        check_architecture(architecture)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen2moe", "qwen3moe", "gpt-oss"])
def test_an_architecture_that_it_reads_is_not_refused(architecture: str) -> None:
    check_architecture(architecture)


def test_the_conversion_asks_for_the_architecture_first(source: Path, tmp_path: Path) -> None:
    file = write_gguf(source, tmp_path / "odd.gguf", architecture="rwkv6")
    with pytest.raises(ReaderError, match="architecture 'rwkv6' is none"):
        convert_file(file, tmp_path / "model", "float32")
    file = write_gguf(source, tmp_path / "bloom.gguf", architecture="bloom")
    with pytest.raises(ReaderError, match=r"^bloom: .*silently bypassed"):
        convert_file(file, tmp_path / "model", "float32")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_one_line(share: float, whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        ReaderError, match=r"cut\.gguf (is no GGUF file|cannot be read as GGUF)"
    ) as e:
        locate.locate(str(file))
    assert "\n" not in str(e.value)


def test_a_part_of_several_is_refused(source: Path, tmp_path: Path) -> None:
    file = write_gguf(source, tmp_path / "m-00001-of-00003.gguf", parts=3)
    with pytest.raises(ReaderError, match="one of 3 parts; join them"):
        read_header(file)


def test_other_files_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(ReaderError, match="no such file"):
        locate.locate(str(file))
    file.write_bytes(b"PK\3\4 and more")
    with pytest.raises(ReaderError, match="is no GGUF file"):
        locate.locate(str(file))
    for version in (1, 4, struct.unpack("<I", struct.pack(">I", 3))[0]):
        file.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
        with pytest.raises(ReaderError, match="of a version that is not known"):
            locate.locate(str(file))
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(ReaderError, match="holds no weights"):
        locate.locate(str(file))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(4, 9000), st.binary(min_size=1, max_size=8))))
def test_no_header_is_believed(
    changes: list[tuple[int, bytes]], whole: Path, tmp_path: Path
) -> None:
    """Whatever bytes stand in it: a header or one line, at once, and lengths are never trusted."""
    raw = bytearray(whole.read_bytes())
    for at, piece in changes:
        raw[at : at + len(piece)] = piece
    file = tmp_path / "odd.gguf"
    file.write_bytes(raw)
    try:
        said = f"{read_header(file).types.total()} weights"
    except ReaderError as error:
        said = str(error)
    assert said.endswith(("weights", "get it again", "--merge"))
    assert "\n" not in said
