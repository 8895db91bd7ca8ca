"""Models of transformers as readers: prefill as the plain model does it, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Qwen2Config,
)

from engine.attention import seam
from engine.attention.causal_chunk import attend_chunk
from engine.errors import ReaderError, SekvError
from engine.ingest import build
from engine.models import load, surprisal
from engine.models.identity import tokenizer_fingerprint
from engine.models.prompt import Prompt
from engine.models.reader import PROBE_TOKENS, VECTORS_AT_ONCE, Reader, load_reader
from engine.store.library import compare_identity
from tiny_books import QUESTION, TEXT, read, session
from tiny_models import checkpoint, tokenizer

IDS = list(TEXT[:150].encode())


# ---------------------------------------------------------------------------- prefill


def prefilled(reader: Reader, chunk: int, ids: list[int] = IDS, done: int = 0) -> Any:
    """All rows and the surprisal of a window; the first `done` chunks are put back, not read."""
    prefix = reader.prefix()
    chunks = list(reader.read_window(ids, prefix, chunk, []))
    if done:
        later = list(reader.read_window(ids, prefix, chunk, chunks[:done]))
        chunks = chunks[:done] + later
    layers = range(reader.layers)
    return (
        [torch.cat([c.k[i] for c in chunks], 1) for i in layers],
        [torch.cat([c.v[i] for c in chunks], 1) for i in layers],
        torch.cat([c.surprisal for c in chunks]),
        chunks,
    )


def own_cache(reader: Reader, ids: list[int]) -> tuple[Any, torch.Tensor]:
    """Cache and logits of the library's own eager model over prefix and ids."""
    from transformers import DynamicCache

    plain = AutoModelForCausalLM.from_pretrained(
        reader.identity.id, dtype=torch.float32, attn_implementation="eager"
    )
    cache = DynamicCache(config=plain.config)
    with torch.no_grad():
        whole = torch.tensor([[*reader.prompt.prefix, *ids]])
        logits = plain(whole, past_key_values=cache).logits[0]
    return cache.layers, logits


@pytest.mark.parametrize("chunk", [1, 7, 50, 149, 150, 1000])
def test_any_chunk_size_gives_the_plain_model_s_rows(chunk: int, reader: Reader) -> None:
    k, v, surprisal, chunks = prefilled(reader, chunk)
    layers, logits = own_cache(reader, IDS)
    for index, layer in enumerate(layers):
        torch.testing.assert_close(k[index], layer.keys[0, :, 1:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(v[index], layer.values[0, :, 1:], atol=1e-4, rtol=1e-4)
    expected = -logits[:-1].log_softmax(-1).gather(-1, torch.tensor(IDS)[:, None])[:, 0]
    torch.testing.assert_close(surprisal, expected, atol=1e-4, rtol=1e-4)
    assert [c.start for c in chunks] == list(range(0, len(IDS), chunk))


def test_surprisal_is_taken_in_pieces_and_that_changes_nothing(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, whole, _ = prefilled(reader, 150)
    monkeypatch.setitem(surprisal.HEAD_ROWS, "cpu", 11)
    *_, pieces, _ = prefilled(reader, 150)
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_chunks_that_were_read_before_are_put_back(done: int, reader: Reader) -> None:
    """To the bit: a resumed run writes what an uninterrupted one writes."""
    whole, resumed = prefilled(reader, 40), prefilled(reader, 40, done=done)
    for a, b in zip(whole[0] + whole[1], resumed[0] + resumed[1], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole[2], resumed[2])


def test_a_window_is_held_once_and_freed_layer_by_layer(reader: Reader) -> None:
    """After m chunks the bytes of m chunks are held, not of m (m + 1) / 2; who lets go of a
    layer's rows gets its bytes back."""
    *_, chunks = prefilled(reader, 10)
    assert len(chunks) == 15

    def held(layers: range) -> int:
        rows = [x for c in chunks for i in layers for x in (c.k[i], c.v[i])]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in rows}
        return sum(storages.values())

    identity = reader.identity
    row = 2 * identity.kv_heads * identity.head_dim * 4
    once = (len(reader.prompt.prefix) + len(IDS)) * row
    assert held(range(reader.layers)) == once * reader.layers
    rows = build._take_rows(chunks, 1)
    assert rows[0][0].shape[1] == len(IDS)
    assert held(range(1)) == 0
    assert held(range(1, reader.layers)) == once * (reader.layers - 1)
    hidden = sum(c.hidden.untyped_storage().nbytes() for c in chunks)
    assert hidden == sum(c.hidden.nbytes for c in chunks)


def test_a_chunk_attends_as_with_a_mask(subtests: pytest.Subtests) -> None:
    for past in (0, 1, 17, 300):
        for rows in (1, 2, 65):
            for dtype in (torch.float32, torch.bfloat16):
                with subtests.test(past=past, rows=rows, dtype=dtype):
                    made = torch.Generator().manual_seed(past + rows)
                    q = torch.randn(1, 6, rows, 16, generator=made).to(dtype)
                    k, v = (
                        torch.randn(1, 2, past + rows, 16, generator=made).to(dtype)
                        for _ in range(2)
                    )
                    seen = torch.ones(rows, past + rows, dtype=torch.bool).tril(past)
                    wanted = torch.nn.functional.scaled_dot_product_attention(
                        q.double(),
                        k.double().repeat_interleave(3, 1),
                        v.double().repeat_interleave(3, 1),
                        attn_mask=seen,
                        scale=0.3,
                    )
                    found = attend_chunk(q, k, v, 0.3)
                    close = 1e-5 if dtype == torch.float32 else 2e-2
                    torch.testing.assert_close(
                        found.double(), wanted.transpose(1, 2), atol=close, rtol=close
                    )


def test_a_word_s_vector_is_the_mean_of_its_tokens_behind_a_space(reader: Reader) -> None:
    words = ["petrel", "tide", "1910", *(f"w{number}" for number in range(VECTORS_AT_ONCE))]
    made = reader.word_vectors(words)
    table = reader.model.get_input_embeddings().weight
    for row in (0, 2, len(words) - 1):
        ids = reader.tokenizer.encode(f" {words[row]}", add_special_tokens=False)
        torch.testing.assert_close(made[row], table[ids].float().mean(0))
    assert len(made) == len(words)


def test_no_token_sees_a_later_one(reader: Reader) -> None:
    """Rows of the first tokens are the same whatever follows."""
    short, long = prefilled(reader, 30, IDS[:60]), prefilled(reader, 30, IDS[:60] + IDS[:40])
    for a, b in zip(short[0] + short[1], long[0] + long[1], strict=True):
        assert torch.equal(a, b[:, :60])
    assert torch.equal(short[2], long[2][:60])


def test_windows_begin_at_the_same_place(reader: Reader) -> None:
    """A window's rows do not depend on the windows before it."""
    alone = prefilled(reader, 50, IDS[70:130])
    prefix = reader.prefix()
    list(reader.read_window(IDS[:70], prefix, 50, []))
    after = list(reader.read_window(IDS[70:130], prefix, 50, []))
    assert torch.equal(alone[0][1], torch.cat([c.k[1] for c in after], 1))


# ---------------------------------------------------------------------------- architectures


ROPE = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


@pytest.mark.parametrize("kind", sorted(ROPE))
def test_scaled_rope_answers_as_the_full_cache(kind: str, tmp_path: Path) -> None:
    """A scaling that does not depend on the length read so far is no obstacle."""
    model = checkpoint(
        "llama", tmp_path / "model", rope_parameters=ROPE[kind], max_position_embeddings=1024
    )
    store = read(tmp_path / "store", model, method="full")
    with session(store, max_new_tokens=1) as opened:
        prompt = opened.reader.prompt.question(opened.reader.tokenizer, QUESTION)
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            logits = opened.reader.model(
                input_ids=ids,
                attention_mask=torch.ones(1, opened.memory.length + len(prompt)).to(ids),
                past_key_values=opened.past.cache(),
            ).logits[0]
        _, expected = own_cache(opened.reader, [*opened.ids.tolist(), *prompt])
    torch.testing.assert_close(logits, expected[-len(prompt) :], atol=1e-4, rtol=0)


SMALL: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
REFUSED = {
    "no full attention": Lfm2Config(**SMALL, layer_types=["conv"] * 2),
    "sparse attention": AutoConfig.for_model("deepseek_v4", **SMALL),
    "falcon": FalconConfig(vocab_size=261, hidden_size=32, num_hidden_layers=2),
    "bloom": BloomConfig(vocab_size=261, hidden_size=32, n_layer=2, n_head=2),
    "mpt": MptConfig(vocab_size=261, d_model=32, n_layers=2, n_heads=2),
    "no causal model": AutoConfig.for_model("t5"),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_attention_that_the_memory_cannot_stand_in_for_is_refused(what: str) -> None:
    """From the configuration alone, in one line that names the model."""
    config = REFUSED[what]
    with pytest.raises(ReaderError, match=rf"^{config.model_type}: ") as caught:
        load.check_supported(config)
    assert "\n" not in str(caught.value)


def test_attention_that_it_can_stand_in_for_is_not() -> None:
    for config in (
        LlamaConfig(**SMALL),
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None),
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=64),
        Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=16),
        Qwen2Config(**SMALL, num_key_value_heads=2, use_sliding_window=True, max_window_layers=1),
        Qwen2Config(**SMALL, num_key_value_heads=2, use_sliding_window=False),
        *(LlamaConfig(**SMALL, rope_parameters=rope) for rope in ROPE.values()),
    ):
        load.check_supported(config)


def saved(folder: Path, kind: str, **settings: Any) -> Path:
    config = AutoConfig.for_model(kind, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_values_that_change_after_they_were_cached_are_refused(tmp_path: Path) -> None:
    """Differential attention calls the registered function, with other values than it caches."""
    folder = saved(tmp_path / "model", "diffllama", **SMALL, num_key_value_heads=2)
    with pytest.raises(ReaderError, match="after it has cached them") as caught:
        read(tmp_path / "store", folder)
    assert "\n" not in str(caught.value)


def test_a_layer_that_forgets_the_memory_stops_the_answer(
    reader: Reader, model: Path, tmp_path: Path
) -> None:
    """The last guard: a forward in which a layer never called the registered function."""
    store = read(tmp_path, model, reader=reader)
    with session(store, reader) as opened:
        config = reader.model.config
        config._attn_implementation = "eager"
        try:
            with pytest.raises(ReaderError, match=r"layers \[0, 1, 2\].*silently bypassed"):
                opened.ask(QUESTION)
        finally:
            config._attn_implementation = "sekv"


def test_the_memory_is_found_under_whatever_name_transformers_gives_it(
    reader: Reader, model: Path, tmp_path: Path
) -> None:
    """`past_key_values` became `cache` in 5.24, and the memory was silently not there."""
    store = read(tmp_path, model, reader=reader)
    ids = torch.tensor([[3, 4, 5]])
    with session(store, reader, full=True) as opened, torch.inference_mode():
        usual = reader.model(input_ids=ids, past_key_values=opened.past.cache()).logits
        cache = opened.past.cache()
        handed: list[Any] = []

        def renamed(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            handed.append(kwargs.get("sekv"))
            return args, {("past_key_values" if k == "cache" else k): v for k, v in kwargs.items()}

        hook = reader.model.register_forward_pre_hook(renamed, with_kwargs=True)
        try:
            other = reader.model(input_ids=ids, cache=cache).logits
        finally:
            hook.remove()
    assert handed == [cache]
    assert torch.equal(other, usual)


def test_an_answer_without_a_look_into_the_document_is_refused(
    reader: Reader, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = read(tmp_path, model, reader=reader)
    monkeypatch.setattr(seam, "_memory_cache", lambda args, kwargs: None)
    with (
        session(store, reader) as opened,
        pytest.raises(ReaderError, match="did not look into the document"),
    ):
        opened.ask(QUESTION)


# ---------------------------------------------------------------------------- loading


@pytest.mark.parametrize("device", ["tpu", "cuda:", "CPU", "cuda:x", "", "cpu:0", "meta"])
def test_an_unknown_device_is_one_line(device: str) -> None:
    with pytest.raises(ReaderError, match="unknown device"):
        load.pick_device(device)


def test_apples_gpu_is_refused_with_what_to_use() -> None:
    with pytest.raises(ReaderError, match=r"\(mps\) is not supported: .*; use cpu$"):
        load.pick_device("mps:0")


def test_a_device_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ReaderError, match=r"no device 'cuda:99' here .*--device cpu"):
        load.pick_device("cuda:99")


@pytest.mark.parametrize("dtype", ["int8", "fp16", "float64", ""])
def test_an_unknown_dtype_is_one_line(dtype: str) -> None:
    with pytest.raises(ReaderError, match="unknown dtype"):
        load.pick_dtype(dtype, torch.device("cpu"), LlamaConfig())


def test_the_dtype_is_the_checkpoint_s_on_a_gpu_and_float32_on_a_cpu() -> None:
    config = LlamaConfig(dtype=torch.bfloat16)
    assert load.pick_dtype("auto", torch.device("cuda"), config) == torch.bfloat16
    assert load.pick_dtype("auto", torch.device("cpu"), config) == torch.float32
    assert load.pick_dtype("float16", torch.device("cpu"), config) == torch.float16


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", '{"model_type": "no-such-type"}'),
        ("model.safetensors", "nonsense"),
        ("model.safetensors", None),
        ("config.json", "null"),
        ("generation_config.json", "[]"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "null"),
        ("tokenizer.json", '{"model": []}'),
        ("tokenizer.json", None),
    ],
)
def test_a_damaged_model_is_one_line(
    file: str, content: str | None, model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    with pytest.raises(SekvError, match=r"cannot load model|no weight files|tokenizer") as caught:
        load_reader(str(copy), device="cpu")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- identity


def test_an_identity_names_the_shape_and_settings(model: Path, reader: Reader) -> None:
    identity = reader.identity
    assert identity.id == str(model)
    assert identity.architecture == "LlamaForCausalLM"
    assert (identity.layers, identity.heads, identity.kv_heads, identity.head_dim) == (3, 4, 2, 16)
    assert identity.rope["rope_type"] == "default"
    assert load_reader(str(model), device="cpu").identity == identity


def test_one_changed_weight_is_another_model(model: Path, reader: Reader, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    same = load_reader(str(copy), device="cpu").identity
    assert replace(same, id="") == replace(reader.identity, id="")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    changed = load_reader(str(copy), device="cpu").identity
    assert replace(changed, weights="", behaviour=()) == replace(same, weights="", behaviour=())
    assert changed.weights != same.weights


def test_another_chat_template_is_another_tokenizer(model: Path) -> None:
    one, two = tokenizer(), tokenizer(chat=True)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(tokenizer())
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(two)


def test_a_chat_model_reads_behind_its_prefix(tmp_path: Path) -> None:
    """The template's head is prefilled once, before the document; the prompt follows it."""
    model = checkpoint("qwen3", tmp_path / "model", chat=True)
    store = read(tmp_path / "store", model)
    with session(store) as opened:
        prefix = opened.reader.prompt.prefix
        assert len(prefix) > 50
        assert opened.memory.length == len(prefix) + len(TEXT)
        assert opened.store.manifest.prompt["kind"] == "chat"
        assert opened.memory.layers[0].pinned_token[: len(prefix)].tolist() == [-1] * len(prefix)
        assert opened.ask(QUESTION).usage.answer_tokens == 8
        recorded = json.loads(json.dumps(opened.reader.prompt.to_json()))
        assert opened.store.manifest.prompt == recorded


def test_a_prompt_without_a_prefix_is_refused(reader: Reader) -> None:
    bare = Reader(
        reader.model,
        reader.tokenizer,
        reader.identity,
        Prompt((), "", "", "document"),
        reader.located,
    )
    with pytest.raises(ReaderError, match="no token before the document"):
        bare.prefix()


def test_what_is_computed_is_known_by_a_few_numbers(model: Path, reader: Reader) -> None:
    """The same computation gives the same numbers, another one gives others, far apart."""
    usual = reader.identity.behaviour
    assert len(usual) == 2 * PROBE_TOKENS - 1
    assert min(usual) > 0
    assert reader.behaviour() == usual
    frequencies = reader.model.model.rotary_emb.inv_freq
    kept = frequencies.clone()
    try:
        frequencies.mul_(2)
        other = reader.behaviour()
    finally:
        frequencies.copy_(kept)
    changed = replace(reader.identity, behaviour=other)
    assert "computes something else" in compare_identity(
        reader.identity, changed, ("float32", "float32")
    )
    rounded = load_reader(str(model), device="cpu", dtype="bfloat16")
    assert rounded.dtype_name == "bfloat16"
    assert rounded.identity.behaviour != usual
    dtypes = ("float32", rounded.dtype_name)
    assert compare_identity(reader.identity, rounded.identity, dtypes) == ""
