"""融合步骤：每个都与对应的朴素实现比较；Triton 的在 CPU 上由解释器运行，GPU 上再跑一遍。

The fused steps, each against its plain twin; Triton's are interpreted on the CPU, and run once more on a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backends import create_backend
from backends.cpu_kernels import CPUKernels
from backends.kernels import FusedKernels
from backends.kv_cache import KVCache
from backends.quantized_weight import QuantizedWeight, pack_int4
from layers.activation import silu_and_mul
from layers.layernorm import RMSNorm
from layers.linear import Linear
from layers.rotary_embedding import RotaryEmbedding, apply_rotary
from models.config import parse_config
from models.loader import materialize, randomize_weights
from models.registry import create_model

pytestmark = pytest.mark.usefixtures("one_thread")

# 相对误差：半精度的中间结果会各自舍入一次。
# Relative errors: intermediate results in half precision are each rounded once.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
EPS = 1e-5


@dataclass(frozen=True)
class Place:
    """在哪个设备上、用哪种精度。

    Which device, and which dtype.
    """

    device: str
    dtype: torch.dtype

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return torch.randn(*shape, generator=generator).to(self.device, self.dtype)

    def close(self, out: Tensor, expected: Tensor) -> None:
        tolerance = TOLERANCE[self.dtype]
        assert out.dtype == expected.dtype
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def places() -> Iterator[object]:
    """没有 GPU 时用解释器（它没有 bf16）；有 GPU 时，三种精度都在 GPU 上跑。

    The interpreter (which has no bf16) where there is no GPU, else all three dtypes on the GPU.
    """
    for device, dtypes in {"cpu": (torch.float32, torch.float16), "cuda": tuple(TOLERANCE)}.items():
        marks = [pytest.mark.gpu] if device == "cuda" else []
        if device == "cpu" and torch.cuda.is_available():
            continue
        for dtype in dtypes:
            name = f"{device}-{str(dtype).removeprefix('torch.')}"
            yield pytest.param(Place(device, dtype), id=name, marks=marks)


@pytest.fixture(params=list(places()))
def place(request: pytest.FixtureRequest) -> Place:
    return request.param


def make_rotary(head_dim: int, place: Place) -> RotaryEmbedding:
    """频率表总在 CPU 上算好，再搬到设备上，与加载模型时一样。

    Frequencies are always computed on the CPU and then moved to the device, as when a model is loaded.
    """
    return RotaryEmbedding(head_dim, 500000.0, None).to(place.device)


@pytest.fixture
def triton_kernels(place: Place) -> FusedKernels:
    pytest.importorskip("triton")
    from backends.triton import TritonKernels

    return TritonKernels(torch.device(place.device))


@pytest.fixture(params=["cpu", "triton"])
def kernels(request: pytest.FixtureRequest, place: Place) -> FusedKernels:
    if request.param == "triton":
        return request.getfixturevalue("triton_kernels")
    if place.device != "cpu":
        pytest.skip("these are for the CPU")
    return CPUKernels(torch.device(place.device))


# ---- 归一化与激活 ----
# ---- norm and activation ----


@pytest.mark.parametrize("num_tokens, size", [(1, 64), (3, 96), (2, 1000), (5, 1)])
def test_add_rms_norm(kernels: FusedKernels, place: Place, num_tokens: int, size: int) -> None:
    norm = RMSNorm(size, EPS)
    norm.weight.data = place.random(size, seed=1)
    x, residual = place.random(num_tokens, size, seed=2), place.random(num_tokens, size, seed=3)
    before = x.clone(), residual.clone()
    for delta in (residual, None):
        normed, total = kernels.add_rms_norm(x, delta, norm.weight, EPS)
        expected_normed, expected_total = norm.add_and_norm(x, delta)
        # 和没有舍入的余地：逐位相同。
        # The sum leaves no room for rounding: bit for bit.
        assert torch.equal(total, expected_total)
        place.close(normed, expected_normed)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_tokens, size", [(1, 32), (1, 1), (3, 97), (2, 1500), (16, 33), (40, 33), (200, 40)])
def test_gated_linear(kernels: FusedKernels, place: Place, num_tokens: int, size: int, with_bias: bool) -> None:
    x, weight = place.random(num_tokens, 48), place.random(2 * size, 48, seed=1) / 2
    bias = place.random(2 * size, seed=2) if with_bias else None
    out = kernels.gated_linear(x, weight, bias, kernels.pack(weight))
    assert out.shape == (num_tokens, size)
    # 半精度时，gate 和 up 在相乘之前各舍入过一次。
    # In half precision gate and up have each been rounded before they are multiplied.
    expected = silu_and_mul(x.double() @ weight.double().T + (0 if bias is None else bias.double()))
    limit = 4 * TOLERANCE[place.dtype] * max(1.0, float(expected.abs().max()))
    assert out.dtype == place.dtype and float((out.double() - expected).abs().max()) < limit


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("num_tokens, rows, columns, bits", [
    *((*sizes, bits) for sizes in [(1, 64, 96), (1, 34, 2080), (3, 48, 160), (40, 64, 64), (70, 96, 96)]
      for bits in (8, 4)),
    (1, 32, 72, 8), (4, 32, 40, 8), (40, 128, 256, 4), (64, 128, 256, 4),
])  # fmt: skip
def test_quantized_linear(
    kernels: FusedKernels, place: Place, num_tokens: int, rows: int, columns: int, bits: int, gated: bool
) -> None:
    weight = QuantizedWeight.frame(bits, torch.Size((rows, columns)))
    weight.materialize(place.dtype, torch.device(place.device))
    weight.copy_(place.random(rows, columns, seed=1) / 2)
    x, bias = place.random(num_tokens, columns), place.random(rows, seed=2)
    for added in (None, bias):
        exact = x.double() @ weight.dequantize(torch.float64).T + (0 if added is None else added.double())
        expected = silu_and_mul(exact) if gated else exact
        plain = silu_and_mul(F.linear(x, weight, added)) if gated else F.linear(x, weight, added)
        # `pack` 可能放掉编码，所以交给它一份拷贝。
        # `pack` may let the codes go, so it gets a copy.
        copy = QuantizedWeight(*(part.clone() for part in weight.parts))
        multiply = kernels.gated_linear if gated else kernels.linear
        out = multiply(x, copy, added, kernels.pack(copy))
        assert out.shape == expected.shape and out.dtype == place.dtype
        limit = 8 * TOLERANCE[place.dtype] * max(1.0, float(expected.abs().max()))
        for each in (out, plain):
            assert float((each.double() - expected).abs().max()) < limit


def test_a_word_of_int4_has_every_fourth_column(triton_kernels: FusedKernels, place: Place) -> None:
    from backends.triton.codes import restore

    codes = torch.randint(16, (3, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # 缩放 1、编码 8 的值是 8：还原出来就是编码本身，没有舍入，可以逐个比。
    # With scales of 1, and 8 as the value of code 8, codes are restored as themselves: no rounding, all equal.
    ruler = torch.ones(3, 2, dtype=place.dtype, device=place.device)
    weight = QuantizedWeight(pack_int4(codes).to(place.device), ruler, 8 * ruler)
    expected = weight.dequantize()
    reordered = triton_kernels.pack(weight)
    words = reordered.codes.view(torch.int32).cpu().unflatten(1, (2, 4))
    for q, i in product(range(4), range(8)):
        assert torch.equal(words[..., q] >> 4 * i & 15, codes.unflatten(1, (2, 32))[..., q + 4 * i].int())
    assert weight.codes.is_meta and reordered.nbytes == weight.nbytes
    assert torch.equal(restore(reordered, place.dtype, num_rows=100), expected)
    assert torch.equal(expected.cpu(), codes.to(place.dtype))


@pytest.mark.parametrize("rows, columns, bits", [(3, 40, 8), (21, 600, 8), (9, 544, 4), (34, 2080, 4)])
def test_restore(triton_kernels: FusedKernels, place: Place, rows: int, columns: int, bits: int) -> None:
    from backends.triton.codes import restore

    weight = QuantizedWeight.frame(bits, torch.Size((rows, columns)))
    weight.materialize(place.dtype, torch.device(place.device))
    weight.copy_(place.random(rows, columns))
    exact = weight.dequantize(torch.float64)
    packed = triton_kernels.pack(weight)
    restored = restore(weight if packed is None else packed, place.dtype, num_rows=100)
    assert restored.dtype == place.dtype
    torch.testing.assert_close(restored.double(), exact, rtol=TOLERANCE[place.dtype], atol=TOLERANCE[place.dtype])


@pytest.mark.parametrize("half", [8, 64])
def test_rotary(kernels: FusedKernels, place: Place, half: int) -> None:
    positions = torch.tensor([0, 1, 7, 4095, 131071], device=place.device)
    rotary = make_rotary(2 * half, place)
    cos, sin = rotary(positions)
    if isinstance(kernels, CPUKernels):
        # 整宽的表，`sin` 的前一半带负号：一次乘法就转完。
        # Tables at full width, the first half of `sin` negative: a single product turns everything.
        cos, sin = (torch.cat(halves, dim=-1)[:, None] for halves in ((cos, cos), (-sin, sin)))
    rotary.kernels = kernels
    for out, expected in zip(rotary(positions), (cos, sin)):
        # 角度是 float32，大角度的 cos 在两处实现里可以差几个末位。
        # Angles are float32, and at large ones two implementations of cos may be some last bits apart.
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


# ---- 旋转与写缓存 ----
# ---- rotation and store ----


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("num_heads, num_kv_heads, head_dim", [(6, 2, 16), (4, 4, 32), (3, 1, 64)])
def test_qk_norm_rope_store(
    kernels: FusedKernels, place: Place, num_heads: int, num_kv_heads: int, head_dim: int, with_norm: bool
) -> None:
    num_tokens, block_size = 5, 4
    qkv = place.random(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    positions = torch.tensor([0, 7, 300, 2, 40000], device=place.device)
    rotary = make_rotary(head_dim, place)
    cos, sin = rotary(positions)
    norms = [RMSNorm(head_dim, EPS) for _ in range(2)]
    for seed, norm in enumerate(norms):
        norm.weight.data = place.random(head_dim, seed=10 + seed)
    slots = torch.tensor([9, -1, 0, 4, 11], device=place.device)
    shape = (3, block_size, num_kv_heads, head_dim)
    cache = KVCache(*(torch.full(shape, float("nan"), device=place.device, dtype=place.dtype) for _ in range(2)))

    weights = (norms[0].weight, norms[1].weight) if with_norm else None
    before = qkv.clone()
    angles = kernels.rotary(positions, rotary.inv_freq)
    q = kernels.qk_norm_rope_store(qkv, *angles, weights, EPS, cache, slots)
    assert torch.equal(qkv, before)

    # 逐步写出的做法，与 `LlamaAttention.forward` 的那几行相同。
    # The steps written out, as in `LlamaAttention.forward`.
    sizes = [heads * head_dim for heads in (num_heads, num_kv_heads, num_kv_heads)]
    expected_q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in qkv.split(sizes, dim=-1))
    if with_norm:
        expected_q, k = norms[0](expected_q), norms[1](k)
    place.close(q, apply_rotary(expected_q, cos, sin))
    k = apply_rotary(k, cos, sin)
    stored = [token for token, slot in enumerate(slots.tolist()) if slot >= 0]
    untouched = sorted(set(range(3 * block_size)) - set(slots.tolist()))
    for out, expected in ((cache.k, k), (cache.v, v)):
        place.close(out.flatten(0, 1)[slots[stored]], expected[stored])
        # 槽位 -1 什么也不写：别的槽位都还是 NaN。
        # Slot -1 stores nothing: all other slots are still NaN.
        assert out.flatten(0, 1)[untouched].isnan().all()
    assert torch.equal(cache.v.flatten(0, 1)[slots[stored]], v[stored])


# ---- 行数很少的矩阵乘法 ----
# ---- products with few rows ----


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("in_features, out_features", [(64, 96), (1, 1), (37, 5), (1030, 7), (3100, 3), (8200, 3)])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 64])
def test_skinny_linear(
    triton_kernels: FusedKernels, place: Place, rows: int, in_features: int, out_features: int, with_bias: bool
) -> None:
    x, weight = place.random(rows, in_features), place.random(out_features, in_features, seed=1)
    bias = place.random(out_features, seed=2) if with_bias else None
    out = triton_kernels.linear(x, weight, bias, triton_kernels.pack(weight))
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert out.shape == (rows, out_features) and out.dtype == place.dtype
    # 误差按各项绝对值之和来量：正负相消时，结果本身可以很小。
    # Errors are measured by the sum of absolute terms: where signs cancel, the result itself may be small.
    scale = x.double().abs() @ weight.double().abs().T
    assert float(((out.double() - expected).abs() / (scale + expected.abs())).max()) < TOLERANCE[place.dtype]


def test_a_linear_layer_takes_the_kernel_for_few_rows_only(
    triton_kernels: FusedKernels, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import backends.triton as module

    served: list[str] = []
    for name, function in {"gemv": module.gemv, "skinny_linear": module.skinny_linear}.items():
        monkeypatch.setattr(module, name, lambda *args, n=name, f=function: served.append(n) or f(*args))
    linear, twin = Linear(64, 24), Linear(64, 24)
    linear.weight.data = twin.weight.data = place.random(24, 64)
    linear.kernels, linear.packed = triton_kernels, triton_kernels.pack(linear.weight)
    most = 16 if place.dtype == torch.float32 else module.MAX_SKINNY_ROWS
    for count, expected in {0: [], 1: ["gemv"], 2: ["skinny_linear"], most: ["skinny_linear"], most + 1: []}.items():
        x = place.random(count, 64)
        torch.testing.assert_close(linear(x), twin(x), rtol=5e-2, atol=5e-2)
        assert served == expected
        served.clear()


def test_every_module_with_a_fast_twin_gets_the_kernels(place: Place, kernels: FusedKernels) -> None:
    # 一个自带偏置和逐头归一化的小模型：有 `kernels` 这个属性的模块，一个也不能漏。
    # A small model with biases and norms of heads: no module that has the attribute `kernels` may be left out.
    shape = {
        "architectures": ["Qwen3ForCausalLM"], "vocab_size": 40, "hidden_size": 32, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64, "attention_bias": True,
    }  # fmt: skip
    model = create_model(parse_config(shape), create_backend("torch", "cpu"))
    materialize(model, place.dtype, torch.device(place.device))
    randomize_weights(model, seed=0)
    with_twins = [module for module in model.modules() if hasattr(type(module), "kernels")]
    assert {type(module).__name__ for module in with_twins} == {
        "StackedLinear", "SummedLinear", "LMHead", "RMSNorm", "RotaryEmbedding", "Qwen3Attention", "LlamaMLP",
    }  # fmt: skip
    assert all(module.kernels is None for module in with_twins)
    model.use_kernels(kernels)
    assert all(module.kernels is kernels for module in with_twins)
    packs = isinstance(kernels, CPUKernels) and place.dtype == torch.float32
    assert all((module.packed is not None) == packs for module in with_twins if isinstance(module, Linear))


# ---- 没有行，也不崩溃；切几段 ----
# ---- no rows and no crash; how many splits ----


def test_no_rows(kernels: FusedKernels, place: Place) -> None:
    def empty(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(*shape, dtype=dtype or place.dtype, device=place.device)

    weight, ids = place.random(48), empty(0, dtype=torch.int64)
    for delta in (empty(0, 48), None):
        assert [x.shape for x in kernels.add_rms_norm(empty(0, 48), delta, weight, EPS)] == [(0, 48), (0, 48)]
    matrix = place.random(6, 48)
    assert kernels.gated_linear(empty(0, 48), matrix, None, kernels.pack(matrix)).shape == (0, 3)
    assert kernels.linear(empty(0, 48), matrix, None, kernels.pack(matrix)).shape == (0, 6)
    angles = kernels.rotary(ids, make_rotary(16, place).inv_freq)
    cache = KVCache(place.random(2, 8, 1, 16), place.random(2, 8, 1, 16))
    assert kernels.qk_norm_rope_store(empty(0, 96), *angles, None, EPS, cache, ids).shape == (0, 4, 16)


@pytest.mark.parametrize("lengths", [[5, 9, 5], [0, 0, 3], [1] * 7, [*range(20)], [3, 300, 0, 299, 300]])
def test_the_longest_sequences_start_first(triton_kernels: FusedKernels, place: Place, lengths: list[int]) -> None:
    from backends.triton.decode import longest_first

    order = longest_first(torch.tensor(lengths, dtype=torch.int32, device=place.device))
    # 一样长的保持原来的先后。
    # Those of one length keep their order.
    assert order is not None and order.tolist() == sorted(range(len(lengths)), key=lambda i: -lengths[i])
    assert longest_first(order[:1] * 0 + 7).tolist() == [0]


def test_choose_num_splits() -> None:
    pytest.importorskip("triton")
    from backends.triton.decode import choose_num_splits

    # H200 有 132 个流式多处理器（SM）；8 个 KV 头时的表，批大小 -> 段数。
    # An H200 has 132 multiprocessors; the table for 8 KV heads, batch size -> splits.
    table = {1: 32, 2: 32, 4: 16, 8: 8, 16: 4, 32: 2, 64: 1, 65: 1, 256: 1}
    assert {batch: choose_num_splits(batch, 8, 132) for batch in table} == table
    assert choose_num_splits(1, 1, 132) == 32
    assert choose_num_splits(0, 8, 132) == choose_num_splits(1, 8, 132)
    for batch in range(1, 70):
        for heads in (1, 2, 3, 8):
            splits = choose_num_splits(batch, heads, 132)
            assert splits & (splits - 1) == 0 and 1 <= splits <= 32
            # 刚好不到每个流式多处理器 4 个程序。
            # Just short of 4 programs for each multiprocessor.
            assert splits == 1 or splits * batch * heads < 4 * 132
            assert splits == 32 or 2 * splits * batch * heads >= 4 * 132
