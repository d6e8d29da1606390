"""真实的模型文件夹：能加载的与 `transformers` 相同，不能加载的用一行话说出它是什么；不可信的文件夹什么也占不到。

Real model folders: what loads equals `transformers`, what does not is told in one line by what it is, and an untrusted
folder gets hold of nothing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_config, save_tokenizer
from safetensors.torch import load_file, save_file
from test_models import assert_as_good_as_transformers, load, random_tokens, run, save_model
from torch import Tensor

import mini_llama
import models.loader
from engine.config import EngineConfig
from mini_llama import LLM, SamplingParams
from models.config import _DEFAULTS, load_config, parse_config
from models.fields import ModelLoadError
from models.registry import MODEL_REGISTRY

pytestmark = pytest.mark.usefixtures("one_thread")

Raw = dict[str, Any]
Edit = Callable[[Path], Any]


# ---- 文件夹 ----
# ---- folders ----


def make_folder(folder: Path, architecture: str = "llama", **overrides: Any) -> Path:
    """一个完整的文件夹：随机的小模型，加上内置模型的分词器。
    A complete folder: a small random model, and the embedded model's tokenizer.
    """
    save_model(folder, architecture, **{"vocab_size": 2304, **overrides})
    save_tokenizer(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "model")


def edit_config(folder: Path, *dropped: str, **changes: Any) -> None:
    raw = {key: value for key, value in read_config(folder).items() if key not in dropped}
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    weights = edit(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, folder / "model.safetensors")


def rename(folder: Path, new_name: Callable[[str], str]) -> None:
    edit_weights(folder, lambda weights: {new_name(name): tensor for name, tensor in weights.items()})


def generate(folder: Path, **options: Any) -> list[int]:
    llm = LLM(folder, device="cpu", num_kvcache_blocks=16, **options)
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    return list(llm.generate([[5, 6, 7]], params, progress=False)[0].outputs[0].token_ids)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """到时间还没完就报错：等一根管道，会永远等下去。
    An error if it is not done in time: a pipe would be waited for for ever.
    """

    # 不能是 `TimeoutError`：它是 `OSError`，会被当成“读不了”而吞掉。
    # No `TimeoutError`: that is an `OSError`, and would be swallowed as "cannot be read".
    def ring(*_: Any) -> None:
        pytest.fail(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(folder: Path, *parts: str, **options: Any) -> str:
    """整个引擎拒绝它：恰好是 `ModelLoadError`，一行，不长，含有全部 `parts`，没有印出字典。
    The whole engine refuses it: exactly a `ModelLoadError`, one short line with all `parts` and no dictionary in it.
    """
    with within(60), pytest.raises(ModelLoadError) as caught:
        LLM(folder, device="cpu", num_kvcache_blocks=16, **options)
    message = str(caught.value).replace(str(folder), "DIR")
    assert message.isprintable() and len(message) <= 250 and "{" not in message, message
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"
    return message


# ---- 能加载的 ----
# ---- what loads ----

HEAD = "lm_head.weight"
EMBED = "model.embed_tokens.weight"
# 改动 -> 仍然与 `transformers` 相同。
# A change -> and it still equals `transformers`.
LOADS: dict[str, tuple[Raw, Edit]] = {
    "no head_dim": ({}, lambda f: edit_config(f, "head_dim")),
    "no KV heads": ({"num_key_value_heads": 4}, lambda f: edit_config(f, "num_key_value_heads")),
    "KV heads null": ({"num_key_value_heads": 4}, lambda f: edit_config(f, num_key_value_heads=None)),
    "no dtype": ({}, lambda f: edit_config(f, "dtype")),
    "torch_dtype": ({}, lambda f: edit_config(f, "dtype", torch_dtype="float32")),
    "no length": ({}, lambda f: edit_config(f, "max_position_embeddings")),
    "no rope": ({}, lambda f: edit_config(f, "rope_parameters")),
    "swish is silu": ({}, lambda f: edit_config(f, hidden_act="swish")),
    "tied, head stored": ({}, lambda f: edit_weights(f, lambda w: {**w, HEAD: w[EMBED]})),
    "tied, only the head stored": ({}, lambda f: rename(f, lambda name: HEAD if name == EMBED else name)),
    "trunk only, tied": ({}, lambda f: rename(f, lambda name: name.removeprefix("model."))),
    "trunk and head": ({"tie_word_embeddings": False}, lambda f: rename(f, lambda name: name.removeprefix("model."))),
    "frequencies of old files": (
        {},
        lambda f: edit_weights(
            f, lambda w: {**w, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6).half()}
        ),
    ),
    "masks of old files": (
        {},
        lambda f: edit_weights(f, lambda w: {**w, "model.layers.1.self_attn.masked_bias": torch.tensor(-1e4)}),
    ),
    "qwen2 as its files are": (
        {"architecture": "qwen2"},
        lambda f: edit_config(f, "layer_types", use_sliding_window=False, sliding_window=131072, max_window_layers=28),
    ),
    "qwen2, window after the last layer": (
        {"architecture": "qwen2"},
        lambda f: edit_config(f, "layer_types", use_sliding_window=True, sliding_window=4, max_window_layers=2),
    ),
    "qwen2, all layers full": (
        {"architecture": "qwen2"},
        lambda f: edit_config(f, use_sliding_window=True, sliding_window=4, layer_types=["full_attention"] * 2),
    ),
    "mistral, window null": ({"architecture": "mistral"}, lambda f: edit_config(f, sliding_window=None)),
    "mistral, window of all positions": ({"architecture": "mistral"}, lambda f: edit_config(f, sliding_window=512)),
}


@pytest.mark.parametrize("case", LOADS)
def test_what_real_files_leave_out_or_add_is_read_as_transformers_reads_it(tmp_path: Path, case: str) -> None:
    options, edit = LOADS[case]
    head_dim = 12 if case == "no head_dim" else 16
    folder = save_model(tmp_path / "model", **{"head_dim": head_dim, **options})
    edit(folder)
    assert_as_good_as_transformers(folder, random_tokens(21))


@pytest.mark.parametrize("prefix", ["language_model.", "module.", "_orig_mod."])
@pytest.mark.parametrize("tied", [False, True])
def test_an_outer_prefix_is_taken_off_if_all_else_fits(tmp_path: Path, prefix: str, tied: bool) -> None:
    # transformers 不认这样的前缀，只好与原来的文件夹相比。
    # transformers does not know such prefixes, so the folder itself, before, is the judge.
    folder = save_model(tmp_path / "model", tie_word_embeddings=tied)
    before = run(load(folder), random_tokens(21))
    rename(folder, lambda name: prefix + name)
    assert torch.equal(run(load(folder), random_tokens(21)), before)


def test_a_prefix_inside_the_trunk_leaves_the_head_where_it_is(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", tie_word_embeddings=False)
    before = run(load(folder), random_tokens(21))
    rename(folder, lambda name: name.replace("model.", "model.language_model."))
    assert torch.equal(run(load(folder), random_tokens(21)), before)


def test_defaults_are_those_of_transformers() -> None:
    import transformers

    assert _DEFAULTS.keys() == MODEL_REGISTRY.keys()
    for name, defaults in _DEFAULTS.items():
        theirs = getattr(transformers, name.replace("ForCausalLM", "Config"))
        fields = {"max_position_embeddings", "num_key_value_heads", "head_dim", "sliding_window", "use_sliding_window"}
        for key in fields | {"max_window_layers", "rms_norm_eps", "tie_word_embeddings"}:
            common = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
            assert getattr(theirs, key, None) == {**common, **defaults}.get(key), f"{name}.{key}"
        assert theirs.default_theta == 10000.0


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_without_a_dtype_in_the_file_the_weights_tell(folder: Path, stored: torch.dtype) -> None:
    # 归一化的权重常常另存一种精度：看最大的那个张量。
    # Norms are often stored in another precision: the largest tensor counts.
    edit_weights(folder, lambda w: {k: t.float() if "norm" in k else t.to(stored) for k, t in w.items()})
    edit_config(folder, "dtype")
    assert load_config(folder).dtype is None
    assert models.loader.stored_dtype(folder) == stored
    assert EngineConfig(folder, device="cpu").resolve().dtype == torch.float32
    # CUDA 上取它：这里没有 CUDA，就问那条规则本身。
    # On CUDA it is taken; without CUDA here the rule itself is asked.
    assert len(generate(folder)) == 4
    (folder / "model.safetensors").unlink()
    assert EngineConfig(folder, device="cpu", load_format="dummy").resolve().dtype == torch.float32


def test_a_head_that_differs_from_its_embedding_is_a_question(tmp_path: Path) -> None:
    # transformers 5 读成不共用，4 读成共用：不知道该信哪个，所以问，照着改了就能加载。
    # transformers 5 reads it as untied, 4 as tied: nobody knows, so ask; and what the remedy says loads.
    folder = make_folder(tmp_path / "model", tie_word_embeddings=False)
    edit_config(folder, tie_word_embeddings=True)
    refused(folder, EMBED, "twice", "lm_head.weight", "set tie_word_embeddings to false")
    edit_config(folder, tie_word_embeddings=False)
    assert_as_good_as_transformers(folder, random_tokens(21))


# ---- 长度与滑动窗口 ----
# ---- lengths and sliding windows ----

WINDOWS: list[tuple[str, Raw, int | None]] = [
    ("LlamaForCausalLM", {}, None),
    ("LlamaForCausalLM", {"sliding_window": None}, None),
    ("LlamaForCausalLM", {"sliding_window": 100}, 100),
    ("LlamaForCausalLM", {"sliding_window": 100, "use_sliding_window": False}, None),
    ("LlamaForCausalLM", {"sliding_window": 512}, None),
    ("MistralForCausalLM", {"sliding_window": 100}, 100),
    ("MistralForCausalLM", {"sliding_window": None}, None),
    ("MistralForCausalLM", {"max_position_embeddings": 32768}, 4096),
    ("Qwen2ForCausalLM", {"sliding_window": 100}, None),
    ("Qwen2ForCausalLM", {"sliding_window": 100, "use_sliding_window": True}, None),
    ("Qwen2ForCausalLM", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1}, 100),
    ("Qwen3ForCausalLM", {"use_sliding_window": True, "max_window_layers": 0, "max_position_embeddings": 9000}, 4096),
    ("Qwen3ForCausalLM", {"sliding_window": 9, "use_sliding_window": True, "layer_types": ["full_attention"]}, None),
    (
        "Qwen3ForCausalLM",
        {"sliding_window": 9, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
        9,
    ),
]
SHAPE: Raw = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize("architecture, changes, window", WINDOWS, ids=str)
def test_a_window_is_the_limit_where_a_layer_uses_it(architecture: str, changes: Raw, window: int | None) -> None:
    config = parse_config({**SHAPE, "architectures": [architecture], **changes})
    assert config.sliding_window == window
    expected = window or {**SHAPE, **changes}["max_position_embeddings"]
    assert config.max_position_embeddings == expected


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"sliding_window": 4, "layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({"sliding_window": 4, "layer_types": "sliding_attention"}, "layer_types"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"sliding_window": "4096"}, "sliding_window"),
        ({"sliding_window": 4, "use_sliding_window": "no"}, "use_sliding_window"),
    ],
    ids=str,
)
def test_windows_that_cannot_be(changes: Raw, part: str) -> None:
    with pytest.raises(ModelLoadError, match=part):
        parse_config({**SHAPE, "architectures": ["LlamaForCausalLM"], **changes})


def test_within_the_window_mistral_equals_transformers(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "mistral", sliding_window=16)
    # 正好 16 个 token 还相同；第 17 个就看不到第 1 个了，两边从那里分开，可见窗口确实起作用。
    # Exactly 16 tokens are still equal; token 17 no longer sees token 1, and there both part: the window is real.
    assert_as_good_as_transformers(folder, random_tokens(16))
    with pytest.raises(AssertionError):
        assert_as_good_as_transformers(folder, random_tokens(17))


@pytest.mark.parametrize("architecture", ["mistral", "qwen2"])
def test_the_window_is_said_once_and_a_longer_length_is_refused(
    tmp_path: Path, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: Raw = {"sliding_window": 64, "max_window_layers": 0, "use_sliding_window": True}
    folder = make_folder(tmp_path / "model", architecture, **options)
    with caplog.at_level(logging.WARNING):
        llm = LLM(folder, device="cpu", num_kvcache_blocks=64)
    assert llm.engine.pool.max_model_len == 64
    assert len(caplog.records) == 1 and "sliding window, 64" in caplog.records[0].getMessage()
    caplog.clear()
    with pytest.raises(ValueError, match=r"max_model_len=65 exceeds .*sliding window.* of 64 .*use at most 64"):
        LLM(folder, device="cpu", num_kvcache_blocks=64, max_model_len=65)
    assert LLM(folder, device="cpu", num_kvcache_blocks=64, max_model_len=64).engine.pool.max_model_len == 64
    assert not caplog.records


def test_an_explicit_length_may_use_all_that_yarn_reaches(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512}
    folder = make_folder(tmp_path / "model", rope_parameters=yarn)
    assert read_config(folder)["max_position_embeddings"] == 512
    assert LLM(folder, device="cpu", num_kvcache_blocks=256, max_model_len=2048).engine.pool.max_model_len == 2048
    with pytest.raises(ValueError, match="limit of 2048 positions"):
        LLM(folder, device="cpu", num_kvcache_blocks=256, max_model_len=2049)


# ---- 按“它是什么”拒绝 ----
# ---- refused by what it is ----

ARCHITECTURES: dict[str, tuple[Raw, str]] = {
    "GemmaForCausalLM": ({"hidden_act": "gelu"}, ""),
    "GPT2LMHeadModel": ({"n_embd": 64}, ""),
    "Phi3ForCausalLM": ({"rope_scaling": {"type": "longrope"}}, ""),
    "MixtralForCausalLM": ({"num_local_experts": 8}, "mixture of experts"),
    "Qwen3MoeForCausalLM": ({"num_experts": 128}, "mixture of experts"),
    "DeepseekV3ForCausalLM": ({"n_routed_experts": 256, "quantization_config": {"quant_method": "fp8"}}, "mixture"),
    "LlavaForConditionalGeneration": ({"vision_config": {}}, "vision"),
    "Qwen3VLForConditionalGeneration": ({"text_config": {}, "vision_config": {"depth": 1}}, "vision"),
    "Gemma3ForConditionalGeneration": ({"text_config": {}, "vision_config": {}}, "vision"),
    "GptOssForCausalLM": ({"num_local_experts": 32, "is_encoder_decoder": False}, "mixture of experts"),
    "OlmoForCausalLM": ({"is_encoder_decoder": False, "num_experts": 0, "vision_config": None}, "'OlmoForCausalLM': "),
    "WhisperForConditionalGeneration": ({"encoder_layers": 4}, "speech"),
    "T5ForConditionalGeneration": ({"is_encoder_decoder": True}, "encoder-decoder"),
    "BartForConditionalGeneration": ({"encoder_layers": 2}, "encoder-decoder"),
    "BertForMaskedLM": ({}, "encoder"),
    "XLMRobertaModel": ({}, "embedding"),
    "Qwen3Model": ({}, "embedding"),
    "LlamaForSequenceClassification": ({}, "classifier"),
    "two\nlines": ({}, "two"),
    "x" * 10000: ({}, "xxx"),
    "": ({}, "''"),
}


@pytest.mark.parametrize("name", ARCHITECTURES, ids=lambda name: name[:20])
def test_an_unknown_architecture_is_named_before_anything_else(tmp_path: Path, name: str) -> None:
    raw, kind = ARCHITECTURES[name]
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], **raw}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    message = refused(tmp_path, "unknown architecture", kind, name[:50].replace("\n", "\\n"), "transformers")
    assert all(known in message for known in MODEL_REGISTRY)


MLX: Raw = {"group_size": 64, "bits": 4, **{f"model.layers.{i}.mlp": {"group_size": 64} for i in range(40)}}
PACKED: dict[str, Raw] = {
    "AWQ": {"quantization_config": {"bits": 3, "quant_method": "awq", "version": "gemv"}},
    "AWQ, in capitals": {"quantization_config": {"quant_method": "AWQ"}},
    "GPTQ": {"quantization_config": {"bits": 3, "quant_method": "gptq", "desc_act": True}},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "fbgemm_fp8": {"quantization_config": {"quant_method": "fbgemm_fp8"}},
    "mxfp4": {"quantization_config": {"quant_method": "mxfp4"}},
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}},
    "bitsandbytes, old": {"quantization_config": {"load_in_8bit": True, "llm_int8_threshold": 6.0}},
    "compressed-tensors": {"quantization_config": {"quant_method": "compressed-tensors", "ignore": ["x" * 999]}},
    "MLX": {"quantization_config": MLX, "quantization": MLX},
    "MLX, one key": {"quantization": MLX},
    "packed": {"quantization_config": {}},
    "compression_config": {"compression_config": {"quant_method": "compressed-tensors"}},
    "nonsense": {"quantization_config": [1]},
}


@pytest.mark.parametrize("kind", PACKED)
def test_compressed_weights_are_named_in_a_short_line(folder: Path, kind: str) -> None:
    edit_config(folder, **PACKED[kind])
    (folder / "model.safetensors").unlink()
    name = kind.split(",")[0]
    name = {"compression_config": "compressed-tensors", "nonsense": "packed"}.get(name, name)
    refused(folder, "quantization_config", name, "bfloat16")


ADAPTER = {"base_model_name_or_path": "some-org/some-base", "peft_type": "LORA"}
FOLDERS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "adapter": (lambda f: replace_all(f, {"adapter_config.json": ADAPTER}), ("LoRA", "some-org/some-base", "merge")),
    "adapter beside a model": (
        lambda f: (f / "adapter_config.json").write_text(json.dumps(ADAPTER)),
        ("LoRA", "some-org/some-base", "merge"),
    ),
    "adapter without a base": (lambda f: replace_all(f, {"adapter_config.json": []}), ("LoRA", "merge")),
    "adapter, broken": (lambda f: (f / "adapter_config.json").write_text("{"), ("LoRA", "merge")),
    "GGUF": (lambda f: replace_all(f, {"model-q4.gguf": {}}), ("GGUF", "llama.cpp", "safetensors")),
    "GGUF with config.json": (
        lambda f: [(f / "model.safetensors").unlink(), (f / "m.gguf").touch()],
        ("GGUF", "llama.cpp"),
    ),
    "diffusers": (lambda f: replace_all(f, {"model_index.json": {}}), ("diffusers",)),
    "makers' format": (
        lambda f: replace_all(f, {"params.json": {}, "consolidated.00.pth": {}}),
        ("config.json", "download"),
    ),
    "embedding model": (lambda f: (f / "modules.json").write_text("[]"), ("embedding", "sentence-transformers")),
    "embedding model, other mark": (
        lambda f: (f / "config_sentence_transformers.json").write_text("{}"),
        ("embedding", "sentence-transformers"),
    ),
    "GPTQ without a word in config.json": (
        lambda f: (f / "quantize_config.json").write_text("{}"),
        ("GPTQ", "quantization_config", '"gptq"'),
    ),
    "AWQ without a word in config.json": (
        lambda f: (f / "quant_config.json").write_text("{}"),
        ("AWQ", "quantization_config", '"awq"'),
    ),
    "sentencepiece": (
        lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"),
        ("tokenizer.model", "AutoTokenizer", "save_pretrained('DIR')"),
    ),
    "vocab.json": (
        lambda f: (f / "tokenizer.json").rename(f / "vocab.json"),
        ("vocab.json", "AutoTokenizer", "save_pretrained('DIR')"),
    ),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ("pickle", "safetensors", "AutoModelForCausalLM", "save_pretrained('DIR')"),
    ),
    "pickle shards": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model-00001-of-00002.bin"),
        ("pickle", "AutoModelForCausalLM"),
    ),
    ".pth": (lambda f: (f / "model.safetensors").rename(f / "model.pth"), (".pth", "safetensors", "convert")),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("model.safetensors", "download")),
    "shards without an index": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"),
        ("model.safetensors.index.json", "download"),
    ),
    "bidirectional": (lambda f: edit_config(f, is_causal=False), ("is_causal=False",)),
    "gelu": (lambda f: edit_config(f, hidden_act="gelu_pytorch_tanh"), ("hidden_act='gelu_pytorch_tanh'", "silu")),
    "interleaved rope": (lambda f: edit_config(f, rope_interleaved=True), ("rope_interleaved=True",)),
    "softcapping": (lambda f: edit_config(f, final_logit_softcapping=30.0), ("final_logit_softcapping=30.0",)),
    "partly rotated": (lambda f: edit_config(f, partial_rotary_factor=0.5), ("partial_rotary_factor=0.5",)),
    "a long value": (lambda f: edit_config(f, hidden_act=["x" * 10000]), ("hidden_act",)),
}


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    refused(tmp_path, "config.json is missing", "download")
    with pytest.raises(ModelLoadError, match=r"has neither model.safetensors nor"):
        models.loader.shard_files(tmp_path)


def replace_all(folder: Path, files: dict[str, Any]) -> None:
    """只留这些文件。
    Keep these files alone.
    """
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("kind", FOLDERS)
def test_other_folders_are_refused_by_what_they_are(folder: Path, kind: str) -> None:
    spoil, parts = FOLDERS[kind]
    spoil(folder)
    refused(folder, *parts)


def test_the_remedy_for_pickle_works(folder: Path) -> None:
    # 照着那一行做，同一个文件夹就能加载，权重一个不差。
    # Do as the line says, and the same folder loads, with the same weights.
    weights = load_file(folder / "model.safetensors")
    expected = generate(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    code = refused(folder, "convert").split('python -c "')[1].rstrip('"').replace("DIR", str(folder))
    exec(code, {})
    assert generate(folder) == expected


def test_the_command_line_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GemmaForCausalLM"]}))
    assert mini_llama.main(["--model", str(tmp_path), "--prompt", "hi"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "GemmaForCausalLM" in captured.err
    assert captured.out == ""


# ---- 便宜的检查在先 ----
# ---- cheap checks first ----


class ReadingSpy:
    """记下读了哪些张量的内容；打开文件、看文件头不算。
    Records whose data are read; to open a file and look at its header does not count.
    """

    real = staticmethod(models.loader.safe_open)
    read: list[str]

    def __init__(self, *args: Any, **options: Any) -> None:
        self.file = self.real(*args, **options)

    def __enter__(self) -> ReadingSpy:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.file.__exit__(*error)

    def keys(self) -> list[str]:
        return self.file.keys()

    def get_tensor(self, name: str) -> Tensor:
        self.read.append(name)
        return self.file.get_tensor(name)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """到目前为止读过的张量。
    The tensors that have been read so far.
    """
    monkeypatch.setattr(ReadingSpy, "read", [], raising=False)
    monkeypatch.setattr(models.loader, "safe_open", ReadingSpy)
    return ReadingSpy.read


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """谁要分配参数的内存，谁就失败。
    Whoever allocates memory for parameters fails.
    """

    def materialize(*_: Any) -> None:
        raise AssertionError("memory is allocated")

    monkeypatch.setattr("engine.model_runner.materialize", materialize)


def test_the_spy_sees_a_good_folder_being_read(folder: Path, reading: list[str]) -> None:
    generate(folder)
    assert EMBED in reading


def without_tensor(folder: Path, name: str) -> None:
    edit_weights(folder, lambda weights: {key: tensor for key, tensor in weights.items() if key != name})


GATE = "model.layers.1.mlp.gate_proj.weight"
CHEAP: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "tokenizer.json missing": (lambda f: (f / "tokenizer.json").unlink(), ("tokenizer.json",)),
    "tokenizer.json broken": (lambda f: (f / "tokenizer.json").write_text("version https://git-lfs"), ("tokenizer",)),
    "generation_config.json broken": (lambda f: (f / "generation_config.json").write_text("{"), ("generation_config",)),
    "layers 10**9": (lambda f: edit_config(f, num_hidden_layers=10**9), ("num_hidden_layers",)),
    "layers 4000": (lambda f: edit_config(f, num_hidden_layers=4000), ("tensors are missing", "model.layers.10.")),
    "layers 1": (lambda f: edit_config(f, num_hidden_layers=1), ("unexpected", "model.layers.1.")),
    "head_dim 2**31 - 2": (lambda f: edit_config(f, head_dim=2**31 - 2), ("head_dim",)),
    "head_dim 65534": (lambda f: edit_config(f, head_dim=65534), ("self_attn.", "[131068, 48]")),
    "vocabulary 2**31 - 1": (lambda f: edit_config(f, vocab_size=2**31 - 1), (EMBED, "[2304, 48]", "[2147483647, 48]")),
    "hidden size": (lambda f: edit_config(f, hidden_size=2**30), ("[2304, 48]", "[2304, 1073741824]")),
    "intermediate size": (lambda f: edit_config(f, intermediate_size=2**30), ("mlp.down_proj", "[48, 1073741824]")),
    "heads": (lambda f: edit_config(f, num_attention_heads=2**30), ("self_attn",)),
    "length": (lambda f: edit_config(f, max_position_embeddings=2**31), ("max_position_embeddings",)),
    "missing tensor": (lambda f: without_tensor(f, GATE), ("1 tensors are missing", GATE, "[80, 48]", "download")),
    "head missing": (
        lambda f: edit_config(f, tie_word_embeddings=False),
        ("lm_head.weight [2304, 48]", "tie_word_embeddings"),
    ),
    "unexpected tensor": (
        lambda f: edit_weights(f, lambda w: {**w, "model.layers.0.self_attn.q_proj.qweight": torch.ones(3, 5)}),
        ("unexpected", "q_proj.qweight", "[3, 5]"),
    ),
    "bias that Llama does not have": (
        lambda f: edit_weights(f, lambda w: {**w, "model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
        ("unexpected", "q_proj.bias", "[64]"),
    ),
    "vision tower": (
        lambda f: edit_weights(f, lambda w: {**w, "vision_tower.patch.weight": torch.ones(3)}),
        ("unexpected", "vision_tower.patch.weight"),
    ),
    "wrong shape": (
        lambda f: edit_weights(f, lambda w: {**w, GATE: torch.ones(80, 1)}),
        (GATE, "[80, 1]", "[80, 48]"),
    ),
    "integers": (lambda f: edit_weights(f, lambda w: {**w, GATE: w[GATE].to(torch.int8)}), (GATE, "I8")),
    "qwen3 in a llama's clothes": (
        lambda f: edit_config(f, architectures=["Qwen3ForCausalLM"]),
        ("tensors are missing", "self_attn.k_norm.weight", "[16]"),
    ),
    "qwen2 in a llama's clothes": (
        lambda f: edit_config(f, architectures=["Qwen2ForCausalLM"]),
        ("tensors are missing", "self_attn.k_proj.bias", "[32]"),
    ),
}


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("kind", CHEAP)
def test_it_is_refused_before_memory_is_taken_or_a_weight_is_read(folder: Path, reading: list[str], kind: str) -> None:
    spoil, parts = CHEAP[kind]
    spoil(folder)
    refused(folder, *parts)
    assert reading == []


# ---- 不可信的文件夹 ----
# ---- untrusted folders ----

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]


@pytest.mark.parametrize("name", [*FILES, "model.safetensors.index.json", "adapter_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "broken link"])
def test_what_is_no_regular_file_is_not_opened(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(folder.parent / "pipe")
        path.symlink_to(folder.parent / "pipe")
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/nowhere")
    refused(folder, name, "download")


def test_a_huge_json_file_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    refused(folder, "config.json", "too large")


ODD_NAMES = ["a\nb", "a\x1b[31m", "x" * 5000, "字" * 150, "\ud800", "a\0b", "../x"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name[:9]))
def test_odd_shard_names(folder: Path, name: str) -> None:
    index = {"weight_map": {EMBED: f"{name}.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, repr(name)[1:-1][:9], "model.safetensors.index.json")


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(folder: Path, header: str | dict[str, Any], data: bytes, length: int | None = None) -> None:
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    size = struct.pack("<Q", len(encoded) if length is None else length)
    (folder / "model.safetensors").write_bytes(size + encoded + data)


def spoil_entry(name: str, **changes: Any) -> Edit:
    def spoil(folder: Path) -> None:
        header, data = header_of(folder)
        write_header(folder, {**header, name: {**header[name], **changes}}, data)

    return spoil


def spoil_header(change: Callable[[str], str], length: int | None = None) -> Edit:
    def spoil(folder: Path) -> None:
        header, data = header_of(folder)
        write_header(folder, change(json.dumps(header)), data, length)

    return spoil


def twice(text: str) -> str:
    entry = json.dumps(json.loads(text)[GATE])
    return text[:-1] + f', "{GATE}": {entry.replace("[80, 48]", "[48, 80]")}' + "}"


CORRUPT: dict[str, Edit] = {
    "length of 2**63": spoil_header(str, 2**63),
    "length of 2**40": spoil_header(str, 2**40),
    "length beyond the file": spoil_header(str, 10**7),
    "length 0": spoil_header(str, 0),
    "length too short": spoil_header(str, 100),
    "40 MB of spaces": spoil_header(lambda text: text + " " * 40_000_000),
    "deep brackets": spoil_header(lambda text: "[" * 100_000),
    "a name twice": spoil_header(twice),
    "overlap": spoil_entry(GATE, data_offsets=[0, 80 * 48 * 4]),
    "beyond the end": spoil_entry(GATE, data_offsets=[10**12, 10**12 + 80 * 48 * 4]),
    "backwards": spoil_entry(GATE, data_offsets=[100, 0]),
    "negative": spoil_entry(GATE, shape=[-80, -48]),
    "not a number": spoil_entry(GATE, shape=["80", 48]),
    "too many numbers": spoil_entry(GATE, shape=[2**62, 2**62]),
    "unknown dtype": spoil_entry(GATE, dtype="X9"),
    "a line break in an error": spoil_entry(GATE, dtype="X\n9\x1b[31m"),
    "no entries": lambda f: write_header(f, {}, b""),
    "data cut off": lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1),
    "data too long": lambda f: (f / "model.safetensors").open("ab").write(b"x"),
    "empty": lambda f: os.truncate(f / "model.safetensors", 0),
    "7 bytes": lambda f: os.truncate(f / "model.safetensors", 7),
    "a git-lfs pointer": lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
}


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("kind", CORRUPT)
def test_a_corrupt_file_is_one_line(folder: Path, reading: list[str], kind: str) -> None:
    CORRUPT[kind](folder)
    refused(folder, "download")
    assert reading == []


@pytest.mark.usefixtures("no_memory")
def test_odd_tensor_names_stay_one_short_line(folder: Path) -> None:
    for name in ("a\nb\x1b[31m", "x" * 100_000, "model.layers.0.\nweight"):
        edit_weights(folder, lambda weights, name=name: {**weights, name: torch.ones(1)})  # type: ignore[misc]
        refused(folder, "unexpected", repr(name)[1:5])
        without_tensor(folder, name)


@pytest.mark.usefixtures("no_memory")
def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", max_shard_size="60KB", tie_word_embeddings=False)
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    weights = load_file(first)
    save_file({**load_file(second), **{name: tensor + 1 for name, tensor in weights.items()}}, second)
    refused(folder, first.name, second.name, "download")


@pytest.mark.usefixtures("no_memory")
def test_shards_are_checked_together(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", max_shard_size="60KB")
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    os.truncate(last, last.stat().st_size - 4)
    refused(folder, last.name, "truncated or corrupt", "download")


# ---- NaN 与无穷 ----
# ---- NaN and infinity ----


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [EMBED, GATE, "model.layers.0.self_attn.v_proj.weight", "model.norm.weight"])
def test_one_bad_number_names_its_tensor(folder: Path, name: str, value: float, stored: torch.dtype) -> None:
    def spoil(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = {key: tensor.to(stored) for key, tensor in weights.items()}
        weights[name].view(-1)[-1] = value
        return weights

    edit_weights(folder, spoil)
    refused(folder, name, "NaN or infinity", "download")


def test_a_number_too_large_for_the_dtype_is_told_apart(folder: Path) -> None:
    def spoil(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights[GATE][3, 4] = 1e5
        return weights

    edit_weights(folder, spoil)
    refused(folder, GATE, "does not fit into torch.float16", "bfloat16", dtype="float16")
    assert len(generate(folder, dtype="bfloat16")) == 4
