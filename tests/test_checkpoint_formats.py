"""量化好的权重文件：按公开的次序逐个元素打包，读回来要与打包时的浮点权重相同；读不了的按名字拒绝，坏了的只有一种错误。

GPTQ 与 AWQ 没有与原来的库比较：gptqmodel 7.7 要求 torch 2.14 以上，AutoAWQ 0.2.9 已停止维护，不支持
transformers 5；两者的次序出自它们的源码。compressed-tensors 装得上，就与它自己的打包比较。

Quantized weight files: packed element by element in the published order, they must read as the floats they were packed
from; what is not read is refused by name, and what is damaged gives one kind of error.

GPTQ and AWQ are not compared with their own libraries: gptqmodel 7.7 wants torch 2.14 or later, AutoAWQ 0.2.9 is no
longer maintained and does not support transformers 5; the orders are from their sources. compressed-tensors can be
installed, and its own packing is compared with.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoint_formats import CheckpointFormat, Stored, read_format
from models.config import parse_config
from models.fields import ModelLoadError
from models.loader import read_headers
from models.refusals import why_not

Raw = dict[str, Any]
DTYPES = {torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.float16: "F16", torch.bfloat16: "BF16",
          torch.float32: "F32"}  # fmt: skip


class Layer(NamedTuple):
    """一层：`config.json` 里的说明，文件里的张量，它们所表示的权重 [N, K]（float64）。

    A layer: what `config.json` says, the tensors in the file, and the weights [N, K] that they mean, in float64.
    """

    raw: Raw
    tensors: dict[str, Tensor]
    weights: Tensor
    scales: Tensor


def word(values: list[int], bits: int) -> int:
    """第 i 个值从第 bits * i 位起；返回有符号的 int32 / the value i begins at bit bits * i; a signed int32."""
    total = sum(value << bits * i for i, value in enumerate(values))
    return total - (1 << 32) if total >> 31 else total


def words(count: int, bits: int, value: Callable[[int], int]) -> list[int]:
    """一行值打包成若干个 int32，末尾补 0 / pack a line of values into int32s, filled up with 0."""
    per = 32 // bits
    return [word([value(j) if j < count else 0 for j in range(i, i + per)], bits) for i in range(0, count, per)]


def make(kind: str, bits: int = 4, group: int = 32, rows: int = 8, columns: int = 64, seed: int = 0,
         symmetric: bool = True, dtype: torch.dtype = torch.float16) -> Layer:  # fmt: skip
    """随机的一层，按 `kind` 的次序打包 / a random layer, packed in the order of `kind`."""
    rng = random.Random(f"{kind} {bits} {group} {rows} {columns} {seed}")
    width = columns if group == -1 else group
    groups, top, middle = -(-columns // width), (1 << bits) - 1, 1 << bits - 1
    codes = [[rng.randint(0, top) for _ in range(columns)] for _ in range(rows)]
    zeros = [[middle if symmetric else rng.randint(0, top) for _ in range(groups)] for _ in range(rows)]
    scales = torch.tensor([[rng.uniform(0.001, 0.1) for _ in range(groups)] for _ in range(rows)]).to(dtype)
    weights = torch.empty(rows, columns, dtype=torch.float64)
    for n in range(rows):
        for k in range(columns):
            weights[n, k] = (codes[n][k] - zeros[n][k // width]) * scales[n, k // width].item()

    def int32(lines: list[list[int]]) -> Tensor:
        return torch.tensor(lines, dtype=torch.int32)

    compressed = {"pack": "pack-quantized", "int": "int-quantized"}.get(kind)
    if compressed:
        args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "actorder": None, "group_size": None,
                "strategy": "channel", "dynamic": False}  # fmt: skip
        args |= {} if group == -1 else {"group_size": group, "strategy": "group"}
        scheme = {"targets": ["Linear"], "weights": args, "input_activations": None, "output_activations": None}
        raw: Raw = {"quant_method": "compressed-tensors", "format": compressed, "ignore": ["lm_head"],
                    "kv_cache_scheme": None, "config_groups": {"group_0": scheme}}  # fmt: skip
    elif kind == "awq":
        raw = {"quant_method": "awq", "bits": bits, "group_size": group, "version": "gemm", "zero_point": not symmetric}
    else:
        raw = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": symmetric,
               "checkpoint_format": kind, "damp_percent": 0.01, "true_sequential": True}  # fmt: skip
    if kind in ("gptq", "gptq_v2"):
        qzeros = int32([words(rows, bits, lambda n, g=g: zeros[n][g]) for g in range(groups)])
        ones = word([1] * (32 // bits), bits)
        tensors = {
            "qweight": int32([words(columns, bits, lambda k, n=n: codes[n][k]) for n in range(rows)]).T,
            # 与 GPTQModel 相同，从整个 int32 里减。
            # Subtracted from the whole int32, as GPTQModel does.
            "qzeros": qzeros - ones if kind == "gptq" else qzeros,
            "scales": scales.T,
            "g_idx": torch.tensor([k // width for k in range(columns)], dtype=torch.int32),
        }
    elif kind == "awq":
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        tensors = {
            "qweight": int32([[word([codes[j + o][k] for o in order], 4) for j in range(0, rows, 8)]
                              for k in range(columns)]),
            "qzeros": int32([[word([zeros[j + o][g] for o in order], 4) for j in range(0, rows, 8)]
                             for g in range(groups)]),
            "scales": scales.T,
        }  # fmt: skip
    elif kind == "pack":
        tensors = {
            "weight_packed": int32([words(columns, bits, lambda k, n=n: codes[n][k]) for n in range(rows)]),
            "weight_scale": scales,
            "weight_shape": torch.tensor([rows, columns]),
        }
        if not symmetric:
            packed = int32([words(rows, bits, lambda n, g=g: zeros[n][g]) for g in range(groups)])
            tensors["weight_zero_point"] = packed.T
    else:
        tensors = {
            "weight": torch.tensor([[code - 128 for code in line] for line in codes], dtype=torch.int8),
            "weight_scale": scales,
        }
        if not symmetric:
            tensors["weight_zero_point"] = torch.tensor([[z - 128 for z in line] for line in zeros], dtype=torch.int8)
    named = {f"model.layers.0.mlp.up_proj.{part}": tensor.contiguous() for part, tensor in tensors.items()}
    return Layer({"quantization_config": raw}, named, weights, scales.double().repeat_interleave(width, 1)[:, :columns])


def headers(tensors: dict[str, Tensor]) -> dict[str, Stored]:
    """张量在文件头里的样子 / the tensors as the header of a file has them."""
    return {name: ("model.safetensors", list(each.shape), DTYPES[each.dtype]) for name, each in tensors.items()}


def format_of(raw: Raw) -> CheckpointFormat:
    found = read_format(json.loads(json.dumps(raw)))
    assert found is not None
    return found


NAME = "model.layers.0.mlp.up_proj.weight"
# float32 舍入的相对误差。(code - 8) * scale、(8 - zero) * scale 与两者之和各舍入一次：至多是缩放的 8 + 8 + 15 = 31 倍。
# The relative error of rounding to float32. (code - 8) * scale, (8 - zero) * scale and their sum are rounded once each:
# at most 8 + 8 + 15 = 31 times that of the scale.
ROUNDING = 2.0**-24
KINDS = ("gptq", "gptq_v2", "awq", "pack")


def check(layer: Layer, exact: bool = True) -> None:
    """折叠出来的形状、读出来的表示、还原出来的数，都要对 / shape folded, representation read and floats restored."""
    found = format_of(layer.raw)
    others = {"model.norm.weight": ("model.safetensors", [8], "BF16"), "lm_head.weight": ("x", [8, 8], "F16")}
    folded = found.fold({**others, **headers(layer.tensors)})
    assert folded == {**others, NAME: ("model.safetensors", list(layer.weights.shape), f"int{found.bits}")}
    weight = found.read(NAME, layer.tensors.__getitem__)
    assert list(weight.shape) == list(layer.weights.shape) and weight.bits == found.bits
    assert all(part.is_contiguous() and part.device.type == "cpu" for part in weight.parts)
    assert weight.scales.dtype == torch.float32 and weight.codes.dtype == (torch.int8, torch.uint8)[found.bits == 4]
    assert weight.zeros is None or weight.zeros.dtype == torch.float32
    error = (weight.dequantize().double() - layer.weights).abs()
    # 16 位的缩放乘以最多 15 的整数，在 float32 里没有舍入。
    # A scale of 16 bits times an integer of up to 15 is exact in float32.
    assert error.max() == 0 if exact else bool((error <= 31 * ROUNDING * layer.scales).all())


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_read_as_they_were_packed(kind: str, group: int, symmetric: bool) -> None:
    # 最后两种形状的末一组不满。
    # The last group is short in the last two shapes.
    for seed, (rows, columns) in enumerate(((8, 128), (16, 256), (24, 32), (8, 160), (16, 96))):
        check(make(kind, 4, group, rows, columns, seed, symmetric))


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("kind", ["gptq", "gptq_v2", "pack"])
def test_zeros_of_rows_that_fill_no_word(kind: str, symmetric: bool) -> None:
    for rows in (1, 5, 7, 9, 13):
        check(make(kind, 4, 32, rows, 64, rows, symmetric))


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2", "pack", "int"])
def test_eight_bits_read_as_they_were_packed(kind: str) -> None:
    for rows, columns in ((8, 32), (5, 64), (13, 36), (3, 4)):
        check(make(kind, 8, -1, rows, columns))


@pytest.mark.parametrize("kind", ["pack", "int"])
def test_eight_bits_with_zero_points_of_zero(kind: str) -> None:
    layer = make(kind, 8, -1)
    asymmetric = make(kind, 8, -1, symmetric=False)
    zeros = next(name for name in asymmetric.tensors if name.endswith("zero_point"))
    centre = torch.full_like(asymmetric.tensors[zeros], 0 if kind == "int" else word([128] * 4, 8))
    check(Layer(asymmetric.raw, {**layer.tensors, zeros: centre}, layer.weights, layer.scales))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_scales(kind: str, dtype: torch.dtype) -> None:
    check(make(kind, group=64, columns=128, symmetric=False, dtype=dtype), exact=dtype != torch.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS), st.sampled_from([32, 64, 96, 128, -1]), st.integers(1, 3), st.integers(1, 7),
    st.booleans(), st.integers(0, 1 << 30),
)  # fmt: skip
def test_any_shape_reads_as_it_was_packed(
    kind: str, group: int, eights: int, groups: int, symmetric: bool, seed: int
) -> None:
    check(make(kind, 4, group, 8 * eights, 32 * groups, seed, symmetric))


def test_a_zero_of_zero_borrows_from_the_next_row() -> None:
    """旧格式的零点 0 与 8：字里减 1 时借了位，逐个加 1 会读成 0 与 7。
    Zeros 0 and 8 in the old format: the word was subtracted with a borrow, and adding to each would read 0 and 7.
    """
    layer = make("gptq", rows=2, columns=32, symmetric=False)
    qzeros = next(name for name in layer.tensors if name.endswith("qzeros"))
    tensors = {**layer.tensors, qzeros: torch.tensor([[word([0, 8], 4) - word([1] * 8, 4)]], dtype=torch.int32)}
    weight = format_of(layer.raw).read(NAME, tensors.__getitem__)
    assert weight.zeros is not None
    assert (weight.zeros / weight.scales).round().flatten().tolist() == [8.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_through_a_file(tmp_path: Path, kind: str) -> None:
    layer = make(kind, group=64, columns=128, symmetric=False)
    save_file(layer.tensors, tmp_path / "model.safetensors")
    found = format_of(layer.raw)
    assert found.fold(read_headers(tmp_path))[NAME][1:] == ([8, 128], "int4")
    with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        weight = found.read(NAME, file.get_tensor)
    assert weight.dequantize().double().equal(layer.weights)


# ---- 与 compressed-tensors 自己的打包比较 ----
# ---- against the packing of compressed-tensors itself ----


@pytest.mark.parametrize(
    "kind, bits, group, symmetric",
    [("pack", 4, 32, True), ("pack", 4, 32, False), ("pack", 4, 128, False), ("pack", 4, -1, True),
     ("pack", 4, -1, False), ("pack", 8, -1, True), ("int", 8, -1, True)],
)  # fmt: skip
@pytest.mark.parametrize("rows", [13, 16])
def test_the_library_packs_the_same(kind: str, bits: int, group: int, symmetric: bool, rows: int) -> None:
    reason = "compressed-tensors is not installed: .ci/requirements.txt"
    library = pytest.importorskip("compressed_tensors.compressors", reason=reason)
    quantization = pytest.importorskip("compressed_tensors.quantization", reason=reason)
    layer = make(kind, bits, group, rows, 256, symmetric=symmetric, dtype=torch.float32)
    raw = layer.raw["quantization_config"]
    scheme = quantization.QuantizationScheme.model_validate(raw["config_groups"]["group_0"])
    compressor = library.BaseCompressor.get_value_from_registry(raw["format"])
    # 浮点权重与有符号的零点由库量化并打包。
    # The library quantizes and packs the float weights and the signed zero points.
    names = {name.rpartition(".")[2]: name for name in layer.tensors}
    state = {"weight": layer.weights.float(), "weight_scale": layer.tensors[names["weight_scale"]]}
    if not symmetric:
        width = 256 if group == -1 else group
        zeros = (-layer.weights + 0.0)[:, ::width] / layer.scales[:, ::width]
        codes = layer.tensors[names["weight_packed"]].view(torch.uint8)[:, :: width // 2] & 15
        state["weight_zero_point"] = (zeros.round() + codes - 8).to(torch.int8)
    packed = compressor.compress(state, scheme)
    assert packed.keys() == names.keys()
    for part, name in names.items():
        assert torch.equal(packed[part], layer.tensors[name]), part
    restored = compressor.decompress(packed, scheme)["weight"]
    weight = format_of(layer.raw).read(NAME, lambda name: packed[name.rpartition(".")[2]])
    # 库里的乘积也舍入一次，8 位的乘积最多是缩放的 128 倍，两边相同。
    # The library's product is rounded once as well; with 8 bits it is up to 128 times the scale, on both sides.
    error = (weight.dequantize() - restored).abs()
    assert bool((error <= (31 + 15 if bits == 4 else 128 + 128) * ROUNDING * layer.scales).all())


# ---- 拒绝 ----
# ---- refusals ----


def refused(raw: Raw, *parts: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read_format(raw)
    message = str(caught.value)
    assert message.startswith("config.json: ") and message.isprintable() and len(message) <= 250, message
    assert all(part in message for part in (*parts, "bfloat16", 'quantization="int8" or "int4"')), message


METHODS = ("fp8", "fbgemm_fp8", "bitsandbytes", "hqq", "eetq", "torchao", "quanto", "mxfp4", "modelopt", "aqlm", "vptq",
           "higgs", "spqr", "bitnet", "auto-round", "gguf", "compressed_tensors", "never heard of")  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_other_methods_are_refused_by_name(name: str) -> None:
    refused({"quantization_config": {"quant_method": name, "bits": 4, "group_size": 128}}, repr(name))


MLX = {"group_size": 64, "bits": 4}


@pytest.mark.parametrize(
    "raw, name",
    [
        ({"quantization": MLX}, "MLX"),
        ({"quantization": MLX, "quantization_config": MLX}, "MLX"),
        ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
        ({"quantization_config": {}}, "packed"),
        ({"quantization_config": [1]}, "packed"),
        ({"quantization_config": "gptq"}, "packed"),
        ({"compression_config": {"quant_method": "sparseml"}}, "sparseml"),
        ({"quantization_config": {"quant_method": "x" * 999}}, "xxx"),
        ({"quantization_config": {"quant_method": ["gptq"]}}, "gptq"),
    ],
    ids=str,
)
def test_files_without_a_known_method(raw: Raw, name: str) -> None:
    refused(raw, name)


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"bits": 2}, "bits=2"), ({"bits": 3}, "bits=3"), ({"bits": None}, "bits=None"), ({"bits": 4.0}, "bits=4.0"),
        ({"bits": "4"}, "bits='4'"), ({"bits": 8}, "8 bits in groups of 128"), ({"bits": True}, "bits=True"),
        ({"desc_act": True}, "desc_act=True"), ({"group_size": 16}, "groups of 16"), ({"group_size": 0}, "groups of 0"),
        ({"group_size": -2}, "groups of -2"), ({"group_size": 48}, "groups of 48"),
        ({"group_size": None}, "group_size=None"),
        ({"group_size": 128.0}, "group_size=128.0"), ({"checkpoint_format": "marlin"}, "marlin"),
        ({"checkpoint_format": "gptq_p"}, "gptq_p"), ({"checkpoint_format": None, "format": "marlin"}, "marlin"),
        ({"is_marlin_format": True}, "is_marlin_format"), ({"pack_dtype": "int64"}, "int64"),
        ({"dynamic": {"+:x": {"bits": 8}}}, "dynamic"), ({"adapter": {"rank": 8}}, "adapter"),
    ],
    ids=str,
)  # fmt: skip
def test_gptq_of_other_kinds(changes: Raw, part: str) -> None:
    raw = make("gptq", group=128).raw["quantization_config"]
    refused({"quantization_config": {**raw, **changes}}, "GPTQ", part)


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"version": "gemv"}, "version='gemv'"), ({"version": "GEMV_FAST"}, "version='gemv_fast'"),
        ({"version": "marlin"}, "marlin"), ({"version": "exllama"}, "exllama"), ({"version": "llm-awq"}, "llm-awq"),
        ({"version": 1}, "version='1'"), ({"bits": 3}, "bits=3"), ({"bits": 8}, "bits=8"), ({"bits": 4.0}, "bits=4.0"),
        ({"group_size": 16}, "groups of 16"), ({"group_size": "128"}, "group_size='128'"),
    ],
    ids=str,
)  # fmt: skip
def test_awq_of_other_kinds(changes: Raw, part: str) -> None:
    raw = make("awq", group=128).raw["quantization_config"]
    refused({"quantization_config": {**raw, **changes}}, "AWQ", part)


ACTIVATIONS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
CHANGES: dict[str, tuple[Raw, Raw, Raw, str]] = {
    "float": ({"format": "float-quantized"}, {}, {"type": "float", "num_bits": 8}, "float-quantized"),
    "nvfp4": ({"format": "nvfp4-pack-quantized"}, {}, {}, "nvfp4-pack-quantized"),
    "marlin 24": ({"format": "marlin-24"}, {}, {}, "marlin-24"),
    "dense": ({"format": "dense"}, {}, {}, "dense"),
    "no format": ({"format": None}, {}, {}, "format=None"),
    "mixed": ({}, {"format": "int-quantized"}, {}, "config_groups"),
    "W8A8": ({}, {"input_activations": ACTIVATIONS}, {}, "input_activations, such as W8A8"),
    "outputs": ({}, {"output_activations": ACTIVATIONS}, {}, "output_activations"),
    "some layers": ({}, {"targets": ["re:.*up_proj"]}, {}, "targets"),
    "KV cache": ({"kv_cache_scheme": {"num_bits": 8}}, {}, {}, "kv_cache_scheme"),
    "sparse": ({"sparsity_config": {"format": "sparse-24-bitmask"}}, {}, {}, "sparse-24-bitmask"),
    "rotated": ({"transform_config": {"config_groups": {"u": {}}}}, {}, {}, "transform_config"),
    "no groups": ({"config_groups": {}}, {}, {}, "config_groups"),
    "a preset": ({"config_groups": {"W4A16": ["Linear"]}}, {}, {}, "bits=None"),
    "nonsense": ({"config_groups": 7}, {}, {}, "config_groups"),
    "float type": ({}, {}, {"type": "float"}, "type='float'"),
    "2 bits": ({}, {}, {"num_bits": 2}, "num_bits=2"),
    "no bits": ({}, {}, {"num_bits": None}, "bits=None"),
    "8 bits in groups": ({}, {}, {"num_bits": 8}, "8 bits in groups of 32"),
    "int-quantized, 4 bits": ({"format": "int-quantized"}, {}, {}, "num_bits=4"),
    "act-order": ({}, {}, {"actorder": "group"}, "actorder='group'"),
    "act-order, too": ({}, {}, {"actorder": "dynamic"}, "actorder='dynamic'"),
    "a tensor": ({}, {}, {"strategy": "tensor", "group_size": None}, "strategy='tensor'"),
    "blocks": ({}, {}, {"strategy": "block"}, "strategy='block'"),
    "groups of 16": ({}, {}, {"group_size": 16}, "groups of 16"),
    "no group": ({}, {}, {"group_size": None}, "group_size=None"),
    "dynamic": ({}, {}, {"dynamic": True}, "dynamic=True"),
    "symmetric": ({}, {}, {"symmetric": "yes"}, "symmetric='yes'"),
}


def compressed(changes: Raw, group: Raw, weights: Raw) -> Raw:
    raw = make("pack").raw["quantization_config"]
    scheme = raw["config_groups"]["group_0"]
    scheme = {**scheme, "weights": {**scheme["weights"], **weights}, **group}
    return {"quantization_config": {**raw, "config_groups": {"group_0": scheme}, **changes}}


@pytest.mark.parametrize("case", CHANGES)
def test_compressed_tensors_of_other_kinds(case: str) -> None:
    changes, group, weights, part = CHANGES[case]
    refused(compressed(changes, group, weights), "compressed-tensors", part)


def test_two_groups_of_layers_are_refused() -> None:
    scheme = make("pack").raw["quantization_config"]["config_groups"]["group_0"]
    refused(compressed({"config_groups": {"group_0": scheme, "group_1": scheme}}, {}, {}), "several config_groups")


def test_harmless_keys_are_no_obstacle() -> None:
    plain = format_of(compressed({}, {}, {}))
    assert format_of(compressed({"sparsity_config": {}, "transform_config": {}}, {}, {})) == plain
    assert format_of(compressed({"sparsity_config": {"format": "dense", "targets": []}}, {}, {})) == plain
    assert format_of(compressed({}, {"format": "pack-quantized"}, {"actorder": "static", "observer": "mse"})) == plain
    assert format_of(compressed({}, {}, {"strategy": None, "actorder": "weight"})) == plain
    assert format_of(compressed({}, {}, {"strategy": None, "group_size": -1})).group == -1
    assert format_of({"compression_config": compressed({}, {}, {})["quantization_config"]}) == plain
    gptq = make("gptq").raw["quantization_config"]
    without = {key: value for key, value in gptq.items() if key not in ("desc_act", "checkpoint_format", "sym")}
    assert format_of({"quantization_config": {**without, "dynamic": {}, "pack_dtype": "int32"}}) == format_of(
        {"quantization_config": gptq}
    )
    awq = make("awq", group=128)
    renamed = {"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM", "zero_point": True}
    assert format_of({"quantization_config": renamed}) == format_of(awq.raw)


def test_what_is_not_quantized_has_no_format() -> None:
    assert read_format({}) is None
    assert read_format({"quantization_config": None, "hidden_size": 8}) is None


def test_the_configuration_carries_the_format() -> None:
    raw = json.loads((Path(__file__).parents[1] / "assets/tiny-llama/config.json").read_text())
    layer = make("awq", group=64)
    assert parse_config(raw).packing is None
    assert parse_config({**raw, **layer.raw}).packing == format_of(layer.raw)


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_a_second_file_that_tells_is_no_obstacle_where_config_json_tells(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{}")
    raw: Raw = {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    reason = why_not(tmp_path, ["LlamaForCausalLM"]) or ""
    assert all(part in reason for part in ("GPTQ" if "ize" in file else "AWQ", "quantization_config", "quant_method"))
    (tmp_path / "config.json").write_text(json.dumps({**raw, **make("gptq").raw}))
    assert why_not(tmp_path, ["LlamaForCausalLM"]) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["gptq", "awq", "compressed-tensors", "pack-quantized", "int-quantized", "group", "Linear", 4]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["quant_method", "bits", "group_size", "config_groups", "format", "weights", "num_bits",
                         "targets", "version", "strategy", "sparsity_config", "symmetric"]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["gptq", "awq", "pack"]), st.dictionaries(st.sampled_from(
    ["quant_method", "bits", "group_size", "config_groups", "format", "desc_act", "dynamic", "version", "w_bit",
     "sparsity_config", "kv_cache_scheme"]), JSON, max_size=4))  # fmt: skip
def test_any_description_is_read_or_refused_in_one_line(kind: str, changes: Raw) -> None:
    try:
        found = read_format({"quantization_config": {**make(kind).raw["quantization_config"], **changes}})
    except ModelLoadError as error:
        assert str(error).isprintable() and len(str(error)) <= 250
    else:
        assert found is not None and found.bits in (4, 8) and (found.group == -1 or found.group % 32 == 0)


# ---- 坏了的文件 ----
# ---- damaged files ----

LAYERS = [
    make("gptq", group=32), make("gptq_v2", group=-1), make("awq", group=64), make("pack", symmetric=False),
    make("pack", 8, -1), make("int", 8, -1), make("int", 8, -1, symmetric=False),
]  # fmt: skip


def broken(layer: Layer, stored: dict[str, Stored], *parts: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        format_of(layer.raw).fold(stored)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 300 and ("download" in message or "bfloat16" in message), message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("layer", LAYERS, ids=range(len(LAYERS)))
def test_a_part_that_is_missing_misshapen_or_of_another_type(layer: Layer) -> None:
    stored = headers(layer.tensors)
    for name, (file, shape, kind) in stored.items():
        # 没有缩放的 int8 `weight` 也算这样的层；没有 `weight` 而有缩放的也算。
        # An int8 `weight` without a scale is such a layer, and so is a scale without `weight`.
        broken(layer, {key: value for key, value in stored.items() if key != name}, name, "missing")
        if name != NAME:
            broken(layer, {**stored, name: (file, shape, "U8")}, name, "U8", kind[:1])
        for wrong in ([], [0] * len(shape), [*shape, 1], [1 << 62, *shape[1:]], [shape[0] + 1, *shape[1:]], shape[:-1]):
            # 整行一组时，只有主张量知道有多少列；那样的层自己是完整的，由模型的形状来核对。
            # With whole rows as groups only the main tensor knows the columns; such a layer is consistent in itself,
            # and the model's shapes are what it is compared with.
            alone = name.endswith("qweight") and format_of(layer.raw).group == -1
            if not (alone and len(wrong) == 2):
                broken(layer, {**stored, name: (file, wrong, kind)}, name.rpartition(".")[0])


def test_a_layer_that_is_stored_as_floats_as_well() -> None:
    for layer in LAYERS[:5]:
        broken(layer, {**headers(layer.tensors), NAME: ("x", [8, 64], "BF16")}, "stored twice", NAME)


def test_columns_that_are_no_groups_of_32() -> None:
    for kind in KINDS:
        layer = make(kind, group=-1, columns=40)
        broken(layer, headers(layer.tensors), "[8, 40]", "groups of 32", "bfloat16")


def test_a_group_that_the_file_does_not_have() -> None:
    for kind in KINDS:
        layer, other = make(kind, group=64, columns=128), make(kind, group=32)
        found, needed = ("[8, 2]", "[8, 4]") if kind == "pack" else ("[2, 1]", "[4, 1]")
        broken(other, headers(layer.tensors), found, needed, "config.json")


def test_floats_beside_quantized_layers_stay() -> None:
    layer = make("int", 8, -1)
    others = {"lm_head.weight": ("x", [8, 64], "BF16"), "weight": ("x", [2], "F32"), "a.bias": ("x", [8], "F16")}
    folded = format_of(layer.raw).fold({**others, **headers(layer.tensors)})
    assert folded == {**others, NAME: ("model.safetensors", [8, 64], "int8")}


def test_values_that_cannot_be_read() -> None:
    def fails(layer: Layer, part: str, value: Tensor, *words: str) -> None:
        name = NAME.replace("weight", part)
        with pytest.raises(ModelLoadError) as caught:
            format_of(layer.raw).read(NAME, {**layer.tensors, name: value}.__getitem__)
        message = str(caught.value)
        assert "up_proj" in message and message.isprintable() and all(word in message for word in words), message

    gptq, packed = make("gptq"), make("pack")
    g_idx = torch.arange(64) // 32
    fails(gptq, "g_idx", g_idx.flip(0).int(), "act-order", "bfloat16")
    fails(gptq, "g_idx", torch.full((64,), -1, dtype=torch.int32), "act-order")
    fails(packed, "weight_shape", torch.tensor([8, 63]), "[8, 64]", "download")
    fails(packed, "weight_shape", torch.tensor([-1, 1 << 62]), "[8, 64]")
    for kind in ("gptq_v2", "pack", "int"):
        layer = make(kind, 8, -1, symmetric=False)
        part = {"gptq_v2": "qzeros", "pack": "weight_zero_point", "int": "weight_zero_point"}[kind]
        fails(layer, part, layer.tensors[NAME.replace("weight", part)], "int8 with a zero point", "bfloat16")


SHAPES = st.lists(st.sampled_from([0, 1, 2, 7, 8, 64, 1 << 40, 1 << 63]), max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LAYERS), st.data())
def test_any_header_folds_or_gives_a_clear_error(layer: Layer, data: st.DataObject) -> None:
    stored = headers(layer.tensors)
    for name in list(stored):
        match data.draw(st.sampled_from(["keep", "keep", "drop", "shape", "type", "bare"])):
            case "drop":
                del stored[name]
            case "shape":
                stored[name] = ("x", data.draw(SHAPES), stored[name][2])
            case "type":
                stored[name] = ("x", stored[name][1], data.draw(st.sampled_from(["F8_E4M3", "I8", "I32", "F64"])))
            case "bare":
                stored[name.rpartition(".")[2]] = stored.pop(name)
    try:
        folded = format_of(layer.raw).fold(stored)
    except ModelLoadError as error:
        assert str(error).isprintable() and len(str(error)) <= 300
    else:
        assert all(dtype in ("int4", "int8") for name, (_, _, dtype) in folded.items() if name not in stored)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LAYERS), st.integers(0, 1 << 30))
def test_any_bits_read_as_numbers_or_give_a_clear_error(layer: Layer, seed: int) -> None:
    """编码没有不合法的：乱填的位也读得出来，除非是打乱的列、别的形状、int8 的零点。
    No codes are illegal: random bits read as well, but for shuffled columns, another shape or zero points in int8.
    """
    noise = torch.Generator().manual_seed(seed)
    tensors = {
        name: each if each.is_floating_point() else torch.randint(-128, 128, each.shape, generator=noise).to(each)
        for name, each in layer.tensors.items()
    }
    try:
        weight = format_of(layer.raw).read(NAME, tensors.__getitem__)
    except ModelLoadError as error:
        assert str(error).isprintable()
    else:
        assert list(weight.shape) == list(layer.weights.shape) and bool(weight.dequantize().isfinite().all())
