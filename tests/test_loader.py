"""读模型文件夹：`config.json` 与 safetensors；每种坏文件都给出一行、说得清楚的 `ModelLoadError`。
Reading a model folder: `config.json` and safetensors; every bad file gives a clear `ModelLoadError` of one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from backends import create_backend
from layers.rotary_embedding import Llama3Scaling
from models.config import ModelConfig, load_config, parse_config, parse_token_ids
from models.fields import ModelLoadError, read_json
from models.llama import LlamaForCausalLM
from models.loader import load_weights, materialize, shard_files, weight_targets
from models.registry import MODEL_REGISTRY, create_model

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "eos_token_id": [1, 2],
    "dtype": "float32",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# 一个装不进 float 的整数，JSON 里可以出现；参数名里不印它。
# An integer too large for a float, which JSON may hold; kept out of the tests' names.
HUGE = pytest.param(10**400, id="huge")
GATE = "model.layers.1.mlp.gate_proj.weight"


CPU = torch.device("cpu")


def frame(config: ModelConfig) -> LlamaForCausalLM:
    """只有形状的架子。
    The frame: shapes only.
    """
    return create_model(config, create_backend("sdpa", "cpu"))


def build(config: dict[str, Any] = CONFIG, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """分配好、还没填的模型。
    A model that is allocated and not filled yet.
    """
    model = frame(parse_config(config))
    materialize(model, dtype, CPU)
    return model


def random_weights(config: dict[str, Any] = CONFIG) -> dict[str, Tensor]:
    """模型需要的全部张量，名字与形状都对，内容随机。
    All tensors that the model needs, names and shapes right, content random.
    """
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(target.shape, generator=generator)
        for name, target in weight_targets(frame(parse_config(config))).items()
    }


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] = CONFIG, shards: int = 1) -> Path:
    """写一个模型文件夹，一个文件或若干分片。
    Write a model folder, one file or several shards.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        names = list(tensors)[i::shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def load(folder: Path) -> LlamaForCausalLM:
    model = frame(load_config(folder))
    materialize(model, torch.float32, CPU)
    load_weights(model, folder)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model", random_weights())


def refuses(call: Callable[[], Any], *parts: str) -> str:
    """恰好是 `ModelLoadError`（也是 `ValueError`），只有一行，含有全部 `parts`。
    Exactly a `ModelLoadError` (a `ValueError` too), of one line, with all of `parts` in it.
    """
    with pytest.raises(ModelLoadError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message and message.isprintable(), repr(message)
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"
    return message


# ---- the frame ----


@pytest.mark.parametrize("architecture", MODEL_REGISTRY)
@pytest.mark.parametrize("tied", [False, True])
def test_a_frame_has_shapes_and_no_memory(architecture: str, tied: bool) -> None:
    # 词嵌入有 2 的 44 次方个数：真要分配，这里就失败了。
    # The embedding has 2 to the power 44 numbers: were any of it allocated, this would fail.
    sizes = {"vocab_size": 2**30, "hidden_size": 2**14, "intermediate_size": 2**20}
    model = frame(parse_config({**CONFIG, **sizes, "architectures": [architecture], "tie_word_embeddings": tied}))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.lm_head.weight.shape == (2**30, 2**14)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    # 频率表不在权重文件里，所以此刻就有内容。
    # The frequencies are in no weight file, so they have their contents already.
    assert [buffer.device for buffer in model.buffers()] == [CPU]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_materialize_names_the_dtype_and_keeps_what_is_shared(dtype: torch.dtype, tied: bool) -> None:
    config = {**CONFIG, "tie_word_embeddings": tied, "attention_bias": True}
    before, after = frame(parse_config(config)), build(config, dtype)
    shapes = {name: parameter.shape for name, parameter in before.named_parameters()}
    assert {name: parameter.shape for name, parameter in after.named_parameters()} == shapes
    assert all(p.dtype == dtype and p.device == CPU and not p.requires_grad for p in after.parameters())
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == tied
    assert torch.equal(after.model.rotary.inv_freq, before.model.rotary.inv_freq)
    assert after.model.rotary.inv_freq.dtype == torch.float32


# ---- what loads ----


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("architecture", MODEL_REGISTRY)
@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_every_tensor_arrives(tmp_path: Path, architecture: str, shards: int, options: dict[str, Any]) -> None:
    config = {**CONFIG, "architectures": [architecture], **options}
    tensors = random_weights(config)
    assert ("lm_head.weight" in tensors) != config["tie_word_embeddings"]
    assert ("model.layers.0.self_attn.q_norm.weight" in tensors) == (architecture == "Qwen3ForCausalLM")
    # Qwen2 的偏置由架构规定，文件里写什么都一样。
    # Qwen2's bias is implied by the architecture, whatever the file says.
    biased = "attention_bias" in options or architecture == "Qwen2ForCausalLM"
    assert ("model.layers.0.self_attn.v_proj.bias" in tensors) == biased
    model = load(write(tmp_path / "model", tensors, config, shards))
    targets = weight_targets(model)
    assert targets.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(targets[name], tensor), name
    # 并成一个的参数，每一行都来自某个张量：元素个数相同，没有一行空着。
    # Every row of the stacked parameters comes from some tensor: as many elements, none left over.
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in tensors.values())


def test_stacked_rows_stand_in_order(folder: Path) -> None:
    tensors, model = load_file(folder / "model.safetensors"), load(folder)
    layer = model.model.layers[1]
    parts = [tensors[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(layer.self_attn.qkv_proj.weight, torch.cat(parts))
    parts = [tensors[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(layer.mlp.gate_up_proj.weight, torch.cat(parts))


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_dtypes_are_converted(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in random_weights().items()}
    model = build(dtype=wanted)
    load_weights(model, write(tmp_path / "model", tensors))
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"].to(wanted))
    assert all(parameter.dtype == wanted for parameter in model.parameters())


def test_progress_is_reported(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    load_weights(build(), folder, lambda done, total: steps.append((done, total)))
    total = len(random_weights())
    assert steps == [(i + 1, total) for i in range(total)]


def test_frequencies_of_old_files_are_not_read(tmp_path: Path) -> None:
    tensors = random_weights()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    load(write(tmp_path / "model", tensors))


def test_tied_weights_may_be_stored_twice_if_equal(tmp_path: Path) -> None:
    config = {**CONFIG, "tie_word_embeddings": True}
    tensors = random_weights(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    for shards in (1, 2):
        model = load(write(tmp_path / f"model{shards}", tensors, config, shards))
        assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
        assert model.lm_head.weight is model.model.embed_tokens.weight
    tensors["lm_head.weight"][3, 5] += 1.0
    for shards in (1, 2):
        folder = write(tmp_path / f"model{shards}", tensors, config, shards)
        refuses(lambda folder=folder: load(folder), "model.embed_tokens.weight", "twice", "config.json")


# ---- folders and files ----


def test_missing_folder_and_files(tmp_path: Path, folder: Path) -> None:
    refuses(lambda: load_config(tmp_path / "nowhere"), "nowhere", "does not exist", "download", "--model")
    refuses(lambda: load_config(folder / "config.json"), "config.json", "does not exist")
    (folder / "config.json").unlink()
    refuses(lambda: load_config(folder), "config.json is missing", "download")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refuses(lambda: load_weights(build(), folder), "model.safetensors", "download", "only safetensors")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"null", b"[1]", b'"text"', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_config_that_is_no_json_object(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refuses(lambda: load_config(folder), "config.json")


def test_config_that_is_a_folder(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refuses(lambda: load_config(folder), "config.json")


@pytest.mark.parametrize("kept", [0, 4, 7, 8, 100, 2000, -1, -400])
def test_truncated_safetensors(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refuses(lambda: load(folder), "model.safetensors", "truncated or corrupt", "download")


@pytest.mark.parametrize(
    "content", [b"\x80\x04pickle", b"\x00" * 64, b"\xff" * 64, b"\x02" + b"\x00" * 7 + b"{}", b"version https://git-lfs"]
)
def test_garbage_instead_of_safetensors(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refuses(lambda: load(folder), str(folder), "download")


def test_what_another_library_says_is_one_line_too(folder: Path) -> None:
    # safetensors 的报错会照抄文件头里的内容，换行也在内。
    # The error of safetensors quotes the file's header, line breaks included.
    header = json.dumps({GATE: ["two\nlines"]}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refuses(lambda: load(folder), "two lines", "truncated or corrupt")


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", random_weights(), shards=3)
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    refuses(lambda: load(folder), path.name, "truncated or corrupt")
    path.unlink()
    refuses(lambda: load(folder), path.name, "missing", "index.json", "download")


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "model.bin", "two\nlines"),
        *(7, None, ["a"], {"a": 1}),
    ],
)
def test_shard_names_that_leave_the_folder(tmp_path: Path, name: Any) -> None:
    folder = write(tmp_path / "model", random_weights(), shards=2)
    save_file(random_weights(), tmp_path / "x")
    save_file(random_weights(), tmp_path / "x.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(lambda: shard_files(folder), "index.json", repr(name), "plain file name")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": null}', "7"]
)
def test_broken_index(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path / "model", random_weights(), shards=2)
    (folder / "model.safetensors.index.json").write_text(content)
    refuses(lambda: load(folder), "model.safetensors.index.json")


def test_a_single_file_wins_over_an_index(tmp_path: Path) -> None:
    # 索引指向的分片里是多余的张量：读了它就会报错。
    # The shard that the index names holds a stray tensor: reading it would fail.
    folder = write(tmp_path / "model", random_weights())
    save_file({"stray": torch.ones(1)}, folder / "stray.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"stray": "stray.safetensors"}}))
    assert shard_files(folder) == [folder / "model.safetensors"]
    load(folder)


# ---- tensors ----


def test_missing_tensor(tmp_path: Path) -> None:
    tensors = random_weights()
    del tensors[GATE]
    refuses(lambda: load(write(tmp_path / "model", tensors)), "1 tensors are missing", GATE, "[24, 16]", "download")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"])
def test_each_kind_of_tensor_is_missed(tmp_path: Path, name: str) -> None:
    tensors = random_weights()
    del tensors[name]
    refuses(lambda: load(write(tmp_path / "model", tensors)), name)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "weight",
        "line\nbreak",
    ],
)
def test_unexpected_tensor(tmp_path: Path, name: str) -> None:
    tensors = {**random_weights(), name: torch.ones(3, 5)}
    refuses(lambda: load(write(tmp_path / "model", tensors)), repr(name), "[3, 5]", "unexpected")


def test_lm_head_of_an_untied_model_is_not_the_embedding(tmp_path: Path) -> None:
    tensors = random_weights()
    model = load(write(tmp_path / "model", tensors))
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("shape", [(23, 16), (24, 15), (16, 24), (24,), (24, 16, 1), (1, 16), (24, 1), (0, 16)])
def test_wrong_shape_names_both_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    # 形状 [1, 16] 能广播成 [24, 16]，也不许。
    # A shape of [1, 16] would broadcast to [24, 16]; not allowed either.
    tensors = {**random_weights(), GATE: torch.ones(shape)}
    refuses(lambda: load(write(tmp_path / "model", tensors)), GATE, str(list(shape)), "[24, 16]", "config.json")


STORED = {torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL",
          torch.float8_e4m3fn: "F8_E4M3"}  # fmt: skip


@pytest.mark.parametrize("dtype", STORED)
def test_integer_and_quantized_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {**random_weights(), GATE: torch.ones(24, 16).to(dtype)}
    refuses(lambda: load(write(tmp_path / "model", tensors)), GATE, STORED[dtype], "floating-point")


def test_config_and_weights_that_do_not_belong_together(folder: Path) -> None:
    for key, value in (("hidden_size", 32), ("vocab_size", 41), ("num_hidden_layers", 1), ("num_hidden_layers", 3)):
        (folder / "config.json").write_text(json.dumps({**CONFIG, key: value}))
        refuses(lambda: load(folder))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["Qwen3ForCausalLM"]}))
    refuses(lambda: load(folder), "4 tensors are missing", "self_attn.k_norm.weight", "[8]")


# ---- config.json ----


def test_config_values() -> None:
    config = parse_config(CONFIG)
    assert config == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        dtype=torch.float32,
        eos_token_ids=(1, 2),
    )


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in CONFIG.items() if key not in keys}


def test_defaults_are_those_of_transformers() -> None:
    keys = ("head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "eos_token_id", "dtype")
    config = parse_config(without(*keys, "rope_parameters"))
    assert (config.head_dim, config.num_key_value_heads) == (4, 4)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 10000.0, None)
    assert (config.tie_word_embeddings, config.eos_token_ids, config.dtype) == (False, (), None)


OPTIONAL = (
    "head_dim",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "use_sliding_window",
    "quantization_config",
    "eos_token_id",
    "dtype",
    "torch_dtype",
)


@pytest.mark.parametrize("key", OPTIONAL)
def test_null_counts_as_absent(key: str) -> None:
    assert parse_config({**CONFIG, key: None}) == parse_config(without(key))


@pytest.mark.parametrize("key", ["rope_theta", "partial_rotary_factor", "rope_type", "type"])
def test_null_counts_as_absent_in_the_rope_object(key: str) -> None:
    for name in ("rope_parameters", "rope_scaling"):
        config = {**without("rope_parameters"), "rope_theta": 5e5, name: {"rope_type": "default"}}
        absent = {**config, name: {k: v for k, v in config[name].items() if k != key}}
        assert parse_config({**config, name: {**config[name], key: None}}) == parse_config(absent)
        assert parse_config(absent).rope_theta == 5e5


def test_an_empty_rope_parameters_hides_no_rope_scaling() -> None:
    config = parse_config({**CONFIG, "rope_parameters": {}, "rope_scaling": LLAMA3})
    assert config.rope_scaling is not None


def test_both_spellings() -> None:
    scaling = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    newer = parse_config({**CONFIG, "rope_parameters": {**LLAMA3, "rope_theta": 500000}, "dtype": "bfloat16"})
    old = without("rope_parameters", "dtype")
    older = parse_config({**old, "rope_theta": 500000, "rope_scaling": LLAMA3, "torch_dtype": "bfloat16"})
    assert newer == older
    assert (newer.rope_theta, newer.rope_scaling, newer.dtype) == (500000.0, scaling, torch.bfloat16)
    for plain in (None, {}, {"rope_type": "default"}, {"type": "default"}):
        assert parse_config({**old, "rope_theta": 1e6, "rope_scaling": plain}).rope_theta == 1e6


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su", "LLAMA3", "", 7, ["llama3"]])
def test_unknown_rope_type(kind: Any) -> None:
    message = refuses(
        lambda: parse_config({**CONFIG, "rope_parameters": {**LLAMA3, "rope_type": kind}}), "rope type", "llama3"
    )
    assert repr(kind) in message
    refuses(lambda: parse_config({**without("rope_parameters"), "rope_scaling": {**LLAMA3, "rope_type": kind}}))


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
@pytest.mark.parametrize("value", [None, 0, -1.0, math.nan, math.inf, "32", True, [32], HUGE])
def test_bad_rope_values(key: str, value: Any) -> None:
    refuses(lambda: parse_config({**CONFIG, "rope_parameters": {**LLAMA3, key: value}}), key)
    missing = {k: v for k, v in LLAMA3.items() if k != key}
    refuses(lambda: parse_config({**CONFIG, "rope_parameters": missing}), key)


def test_rope_that_cannot_be() -> None:
    swapped = {**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 1.0}
    refuses(lambda: parse_config({**CONFIG, "rope_parameters": swapped}), "low_freq_factor", "high_freq_factor")
    refuses(lambda: parse_config({**CONFIG, "rope_parameters": "llama3"}), "rope_parameters", "object")
    refuses(lambda: parse_config({**CONFIG, "rope_parameters": {"rope_theta": -1}}), "rope_theta")


INTEGERS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
]


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("value", [True, False, -1, 0, 1.0, 1.5, "16", [16], {}, math.nan, math.inf, 2**31, HUGE])
def test_bad_integers(key: str, value: Any) -> None:
    refuses(lambda: parse_config({**CONFIG, key: value}), "config.json", key, "positive integer")


@pytest.mark.parametrize("key", [k for k in INTEGERS if k not in ("num_key_value_heads", "head_dim")])
def test_missing_integers(key: str) -> None:
    if key != "max_position_embeddings":
        refuses(lambda: parse_config(without(key)), key)
    refuses(lambda: parse_config({**CONFIG, key: None}), key)


@pytest.mark.parametrize("value", [True, 0, -1e-6, math.nan, math.inf, -math.inf, "1e-5", [1e-5], HUGE])
def test_bad_numbers(value: Any) -> None:
    refuses(lambda: parse_config({**CONFIG, "rms_norm_eps": value}), "rms_norm_eps", "positive number")
    old = without("rope_parameters")
    refuses(lambda: parse_config({**old, "rope_theta": value}), "rope_theta", "positive number")


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
@pytest.mark.parametrize("value", [0, 1, "true", [], math.nan])
def test_bad_flags(key: str, value: Any) -> None:
    refuses(lambda: parse_config({**CONFIG, key: value}), key, "true or false")


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 1.0}, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "4 query heads"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"dtype": "float8"}, "float8"),
        ({"dtype": 16}, "16"),
        ({"dtype": ["float32"]}, "float32"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"eos_token_id": 1.5}, "eos_token_id"),
        ({"architectures": None}, "architectures"),
        ({"architectures": []}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"architectures": [7]}, "architectures"),
    ],
    ids=str,
)
def test_what_is_not_supported(changes: dict[str, Any], part: str) -> None:
    refuses(lambda: parse_config({**CONFIG, **changes}), "config.json", part)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "", "llamaforcausallm", "two\nlines", "\ud800"])
def test_unknown_architecture_lists_the_known(name: str) -> None:
    config = parse_config({**CONFIG, "architectures": [name]})
    message = refuses(lambda: frame(config), "unknown architecture")
    assert all(known in message for known in MODEL_REGISTRY)
    assert repr(name) in message


def test_token_ids() -> None:
    assert parse_token_ids(None, "x") == ()
    assert parse_token_ids(7, "x") == (7,)
    assert parse_token_ids([128001, 128008, 128009], "x") == (128001, 128008, 128009)
    refuses(lambda: parse_token_ids("7", "generation_config.json"), "generation_config.json", "eos_token_id")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["llama3", "silu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*LLAMA3, "rope_theta", "x"]), inner),
    max_leaves=6,
)
KEYS = [*CONFIG, "rope_theta", "rope_scaling", "torch_dtype", "hidden_act", "quantization_config", "attention_bias"]
CHANGES = st.dictionaries(st.sampled_from([*KEYS, "use_sliding_window", "partial_rotary_factor"]), VALUES, max_size=4)


@settings(max_examples=300, deadline=None)
@given(changes=CHANGES, dropped=st.sets(st.sampled_from(KEYS), max_size=2), alone=st.booleans())
@example(changes={"rms_norm_eps": 10**400}, dropped=set(), alone=False)
@example(changes={"architectures": ["two\nlines"], "head_dim": "\n"}, dropped=set(), alone=False)
def test_any_config_parses_or_gives_a_clear_error(changes: dict[str, Any], dropped: set[str], alone: bool) -> None:
    raw = {key: value for key, value in ({} if alone else CONFIG).items() if key not in dropped} | changes
    raw = json.loads(json.dumps(raw))
    try:
        config = parse_config(raw)
    except ModelLoadError as error:
        assert str(error) and str(error).isprintable()
    else:
        assert isinstance(config, ModelConfig)
        assert config.num_attention_heads % config.num_key_value_heads == 0
        assert 0 < config.rms_norm_eps < math.inf and 0 < config.rope_theta < math.inf


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_as_config_give_a_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except ModelLoadError as error:
        assert "\n" not in str(error) and "config.json" in str(error)
