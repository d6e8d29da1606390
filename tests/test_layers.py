"""各个零件：归一化、旋转位置、线性层、激活、词嵌入、注意力层、采样。
The parts: normalisation, rotary positions, linear layers, activation, embedding, the attention layer, sampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import Case, make_problem, step_metadata
from torch import Tensor

from backends import create_backend
from backends.cpu_kernels import CPUKernels
from backends.kv_cache import KVCache
from layers.activation import silu_and_mul
from layers.attention import Attention
from layers.embedding import Embedding, LMHead
from layers.layernorm import RMSNorm
from layers.linear import Linear, StackedLinear
from layers.rotary_embedding import Llama3Scaling, RotaryEmbedding, apply_rotary, inverse_frequencies
from layers.sampler import SamplingInputs, gumbel_noise, sample


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


# ---- RMSNorm ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 64), (3, 4, 128), (1, 2048)])
def test_rms_norm_is_bit_equal_to_transformers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    x = (torch.randn(shape) * 3).to(dtype)
    weight = torch.rand(shape[-1]).add(0.5).to(dtype)
    ours, theirs = RMSNorm(shape[-1], 1e-5), LlamaRMSNorm(shape[-1], 1e-5)
    ours.weight.data, theirs.weight.data = weight, weight
    out = ours(x)
    assert out.dtype == dtype
    assert torch.equal(out, theirs(x).detach())
    assert relative_error(out, formula(x, weight)) < {torch.float32: 1e-6}.get(dtype, 1e-2)


def formula(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


def test_rms_norm_casts_before_the_weight() -> None:
    # 先乘权重再转 bf16，结果会不同：这一组输入恰好能看出次序。
    # Multiplying before the cast gives another result; this input shows the order.
    torch.manual_seed(1)
    x, norm = torch.randn(64, 256).bfloat16(), RMSNorm(256, 1e-6)
    norm.weight.data = torch.rand(256).add(0.5).bfloat16()
    scaled = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(norm(x), scaled.bfloat16() * norm.weight)
    assert not torch.equal(norm(x), (scaled * norm.weight.float()).bfloat16())


def test_rms_norm_of_zeros_and_of_nan() -> None:
    norm = RMSNorm(8, 1e-6)
    norm.weight.data.fill_(2.0)
    x = torch.zeros(2, 8)
    x[1, 3] = float("nan")
    out = norm(x)
    assert torch.equal(out[0], torch.zeros(8))
    assert out[1].isnan().all()


# ---- rotary ----


@pytest.mark.parametrize("factor", [32.0, 8.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama3_frequency_bands(factor: float, head_dim: int) -> None:
    theta, original, low, high = 500000.0, 8192, 1.0, 4.0
    actual = inverse_frequencies(head_dim, theta, Llama3Scaling(factor, low, high, original))
    assert actual.dtype == torch.float32
    bands = {"kept": 0, "divided": 0, "between": 0}
    for i, frequency in enumerate(actual.tolist()):
        plain = theta ** (-2 * i / head_dim)
        wavelength = 2 * math.pi / plain
        if wavelength < original / high:
            band, expected = "kept", plain
        elif wavelength > original / low:
            band, expected = "divided", plain / factor
        else:
            s = (original / wavelength - low) / (high - low)
            band, expected = "between", (1 - s) * plain / factor + s * plain
            assert plain / factor < expected < plain
        bands[band] += 1
        assert frequency == pytest.approx(expected, rel=2e-6), (i, band)
    assert all(count >= 2 for count in bands.values()), bands


def test_plain_frequencies() -> None:
    actual = inverse_frequencies(16, 10000.0, None)
    assert actual.tolist() == pytest.approx([10000.0 ** (-2 * i / 16) for i in range(8)], rel=1e-6)


POSITIONS = [0, 1, 7, 100, 2047, 8191, 8192, 8193, 20000, 65537, 100001, 131071]


def hf_rotary(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> Any:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_theta": theta, "rope_type": "default", **(scaling or {})}
    config = LlamaConfig(head_dim=head_dim, max_position_embeddings=131072, rope_parameters=rope)
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("factor", [None, 32.0, 8.0])
def test_rotary_beyond_8192_is_as_good_as_transformers(factor: float | None) -> None:
    theta, head_dim = 500000.0, 64
    fields = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    fields["original_max_position_embeddings"] = 8192  # type: ignore[assignment]
    scaling = Llama3Scaling(**fields) if factor else None  # type: ignore[arg-type]
    positions = torch.tensor(POSITIONS)
    cos, sin = RotaryEmbedding(head_dim, theta, scaling)(positions)
    assert cos.dtype == sin.dtype == torch.float32
    hf_cos, hf_sin = hf_rotary(head_dim, theta, {"rope_type": "llama3", **fields} if factor else None)(
        torch.zeros(1), positions[None]
    )
    # 真值：频率按公式在 float64 里算，角度也在 float64 里算。
    # The truth: frequencies by the formula in float64, and the angles in float64 as well.
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    if factor:
        smooth = ((8192 * frequencies / (2 * math.pi) - 1.0) / 3.0).clamp(0, 1)
        frequencies = (1 - smooth) * frequencies / factor + smooth * frequencies
    angles = positions[:, None].double() * frequencies
    half = head_dim // 2
    for ours, theirs, truth in ((cos, hf_cos, angles.cos()), (sin, hf_sin, angles.sin())):
        error, hf_error = (ours - truth).norm(), (theirs[0, :, :half] - truth).norm()
        assert float(error) <= 3 * float(hf_error) + 1e-6
        assert float((ours - truth).abs().max()) < 0.05


def test_rotary_matches_transformers_on_heads() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    positions = torch.tensor(POSITIONS)
    q, k = torch.randn(len(POSITIONS), 6, 64), torch.randn(len(POSITIONS), 2, 64)
    cos, sin = RotaryEmbedding(64, 10000.0, None)(positions)
    hf_cos, hf_sin = hf_rotary(64, 10000.0, None)(q, positions[None])
    hf_q, hf_k = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], hf_cos, hf_sin)
    torch.testing.assert_close(apply_rotary(q, cos, sin), hf_q[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(apply_rotary(k, cos, sin), hf_k[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_rotary_keeps_lengths_and_depends_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    rotary = RotaryEmbedding(32, 10000.0, None)
    q, k = torch.randn(1, 1, 32).double(), torch.randn(1, 1, 32).double()

    def rotate(x: Tensor, position: int) -> Tensor:
        cos, sin = rotary(torch.tensor([position]))
        return apply_rotary(x, cos.double(), sin.double())

    assert float(rotate(q, 777).norm()) == pytest.approx(float(q.norm()), rel=1e-6)
    dots = [float((rotate(q, start + 9) * rotate(k, start)).sum()) for start in (0, 5, 300)]
    assert dots == pytest.approx([dots[0]] * 3, abs=1e-4)
    assert abs(dots[0] - float((rotate(q, 2) * rotate(k, 0)).sum())) > 1e-2


def test_rotary_stays_float32_in_a_bfloat16_model() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        rotary = RotaryEmbedding(64, 500000.0, None)
    finally:
        torch.set_default_dtype(torch.float32)
    reference = RotaryEmbedding(64, 500000.0, None)
    assert torch.equal(rotary.inv_freq, reference.inv_freq)
    cos, sin = rotary(torch.tensor([257, 9999]))
    assert torch.equal(cos, reference(torch.tensor([257, 9999]))[0])
    assert apply_rotary(torch.randn(2, 1, 64).bfloat16(), cos, sin).dtype == torch.bfloat16


# ---- linear, activation, embedding ----


@pytest.mark.parametrize("bias", [False, True])
def test_stacked_linear_equals_separate_layers(bias: bool) -> None:
    torch.manual_seed(0)
    sizes = {"q_proj": 48, "k_proj": 16, "v_proj": 16}
    stacked = StackedLinear(32, sizes, bias=bias)
    assert (stacked.bias is not None) == bias
    layers = {name: torch.nn.Linear(32, size, bias=bias) for name, size in sizes.items()}
    assert list(stacked.pieces) == list(sizes)
    for name, layer in layers.items():
        stacked.weight.data[stacked.pieces[name]] = layer.weight.data
        if bias:
            stacked.bias.data[stacked.pieces[name]] = layer.bias.data
    x = torch.randn(7, 32)
    expected = torch.cat([layer(x) for layer in layers.values()], dim=-1).detach()
    torch.testing.assert_close(stacked(x), expected, rtol=1e-6, atol=1e-6)


def test_linear() -> None:
    layer = Linear(3, 2, bias=True)
    layer.weight.data = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    layer.bias.data = torch.tensor([0.5, -1.0])
    assert layer(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[7.5, 1.0]]
    assert Linear(3, 2).bias is None


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_weight_gives_the_same_product(rows: int, bias: bool) -> None:
    layer, kernels = Linear(24, 40, bias=bias), CPUKernels(torch.device("cpu"))
    for parameter in layer.parameters():
        parameter.normal_()
    x = torch.randn(rows, 24)
    plain = layer(x)
    layer.kernels, layer.packed = kernels, kernels.pack(layer.weight)
    assert layer.packed is not None
    torch.testing.assert_close(layer(x), plain)
    # 没有打包的权重也走核函数，结果还是一样。
    # A weight that is not packed goes to the kernels as well, with the same result.
    layer.packed = None
    assert torch.equal(layer(x), plain)


def test_only_small_float32_weights_are_packed() -> None:
    kernels = CPUKernels(torch.device("cpu"))
    for layer in (Linear(8, 4).to(torch.bfloat16), Linear(8, 4).double(), Linear(2048, 2048)):
        assert kernels.pack(layer.weight) is None


def test_silu_and_mul() -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(2, 5, 12).double() * 5
    expected = gate / (1 + (-gate).exp()) * up
    torch.testing.assert_close(silu_and_mul(torch.cat([gate, up], dim=-1)), expected)
    assert torch.equal(
        silu_and_mul(torch.cat([gate, up], -1).bfloat16()), torch.nn.functional.silu(gate.bfloat16()) * up.bfloat16()
    )


def test_embedding_and_tied_head() -> None:
    embedding = Embedding(5, 3)
    embedding.weight.data = torch.arange(15.0).reshape(5, 3)
    assert embedding(torch.tensor([4, 0])).tolist() == [[12.0, 13.0, 14.0], [0.0, 1.0, 2.0]]
    tied, untied = LMHead(embedding, tied=True), LMHead(embedding, tied=False)
    assert tied.weight is embedding.weight
    assert untied.weight.shape == (5, 3) and untied.weight is not embedding.weight
    assert tied(torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [[0.0, 3.0, 6.0, 9.0, 12.0]]


# ---- attention layer ----


@pytest.mark.parametrize("name", ["torch", "sdpa"])
@pytest.mark.parametrize("num_decodes", [0, 2, 4])
@pytest.mark.parametrize("prepared", [False, True])
def test_attention_layer_serves_decodes_and_prefills_in_one_batch(name: str, num_decodes: int, prepared: bool) -> None:
    # 解码行各带 1 个新 token，其余带上下文的尾段；新 token 的 K、V 要由这一层自己写进缓存。
    # Decode rows bring 1 new token, the others a tail; the layer itself has to store the new tokens' K and V.
    new = {0: [4, 2, 5, 3], 2: [1, 1, 5, 3], 4: [1, 1, 1, 1]}[num_decodes]
    contexts = [17, 1, 5, 16] if num_decodes else [17, 2, 5, 16]
    case = Case(6, 2, 32, 8, causal=True)
    problem = make_problem(case, new, contexts)
    assert problem.k_cache is not None and problem.v_cache is not None and problem.block_table is not None
    rows, start = [], 0
    for count, context in zip(new, contexts):
        start += context
        rows += range(start - count, start)
    metadata = step_metadata(problem, num_decodes)
    problem.k_cache.flatten(0, 1)[metadata.slot_mapping] = float("nan")
    problem.v_cache.flatten(0, 1)[metadata.slot_mapping] = float("nan")
    backend = create_backend(name, "cpu")
    if prepared:
        metadata.plan = backend.prepare(metadata)
    layer = Attention(backend, case.head_dim)
    layer.kv_cache = KVCache(problem.k_cache, problem.v_cache)
    out = layer(problem.q, problem.k[rows], problem.v[rows], metadata)
    assert out.shape == problem.q.shape
    assert relative_error(out, problem.reference) < 1e-5


# ---- sampler ----


def inputs(
    rows: int,
    vocab: int,
    temperature: float | list[float] = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seeds: list[int] | None = None,
    indices: list[int] | None = None,
) -> SamplingInputs:
    """同样参数的若干行；种子默认 0, 1, 2, …
    Rows with the same parameters; seeds are 0, 1, 2, ... by default.
    """
    temperatures = temperature if isinstance(temperature, list) else [temperature] * rows
    return SamplingInputs(
        temperatures=torch.tensor(temperatures, dtype=torch.float32)[:, None],
        top_ps=torch.full((rows, 1), top_p),
        min_ps=torch.full((rows, 1), min_p),
        top_ks=torch.full((rows, 1), top_k or vocab),
        seeds=torch.tensor(seeds if seeds is not None else range(rows), dtype=torch.int64),
        output_indices=torch.tensor(indices if indices is not None else [0] * rows, dtype=torch.int64),
        any_filter=top_p < 1.0 or 0 < top_k < vocab,
        any_min_p=min_p > 0.0,
    )


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -2.0, -3.0, -0.5]])
    assert sample(logits, None).tolist() == [1, 0, 3]
    wide = torch.zeros(3, 2304)
    wide[:, [700, 701, 2000]] = 5.0
    assert sample(wide, None).tolist() == [700] * 3
    # 贪心行与采样行同批，也带着过滤时，结果不变。
    # Greedy rows beside sampling ones, filters included, give the same.
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.3}):
        mixed = sample(logits.repeat(2, 1), inputs(6, 4, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0], **options))
        assert mixed[:3].tolist() == [1, 0, 3]


def numpy_distribution(
    logits: np.ndarray, temperature: float, min_p: float, top_k: int, top_p: float
) -> np.ndarray:
    """按 4.5 的次序，用最直白的循环算出每个 token 的概率。
    The probability of each token in the order of 4.5, by the plainest loops.
    """
    weights = np.exp(logits.astype(np.float64) / temperature)
    probabilities = weights / weights.sum()
    kept = [i for i in range(len(logits)) if probabilities[i] >= min_p * probabilities.max()]
    kept = sorted(kept, key=lambda i: (-probabilities[i], i))
    if top_k > 0:
        kept = kept[:top_k]
    total, sum_before, nucleus = sum(probabilities[i] for i in kept), 0.0, []
    for i in kept:
        if sum_before / total < top_p:
            nucleus.append(i)
        sum_before += probabilities[i]
    result = np.zeros(len(logits))
    result[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    return result


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    support = expected > 0
    assert counts[~support].sum() == 0
    return float(((counts[support] - expected[support]) ** 2 / expected[support]).sum())


# 概率都离门槛够远，float32 的舍入不会改变谁留下。
# Probabilities stand well away from every threshold, so float32 rounding changes nobody's fate.
LOGITS = torch.tensor([0.3, 1.9, -0.4, 1.1, 1.1, 0.0, -1.2, 0.8, 1.5, -0.1, 0.55, -0.8])


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 4},
        {"top_p": 0.5},
        {"top_p": 0.87},
        {"top_p": 1e-6},
        {"min_p": 0.35},
        {"min_p": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"temperature": 0.6, "min_p": 0.2},
        {"temperature": 0.6, "top_k": 4},
        {"temperature": 1.7, "top_p": 0.87},
        {"top_k": 5, "top_p": 0.7},
        {"min_p": 0.4, "top_k": 6, "top_p": 0.75},
        {"temperature": 2.0, "min_p": 0.5, "top_k": 3},
        {"temperature": 1.5, "min_p": 0.3, "top_p": 0.6},
    ],
    ids=str,
)
def test_filters_against_numpy(options: dict[str, Any]) -> None:
    draws = 20000
    tokens = sample(LOGITS.expand(draws, -1), inputs(draws, len(LOGITS), **options))
    defaults = {"temperature": 1.0, "min_p": 0.0, "top_k": 0, "top_p": 1.0}
    expected = numpy_distribution(LOGITS.numpy(), **{**defaults, **options})
    counts = np.bincount(tokens.numpy(), minlength=len(LOGITS))
    # 留下的恰好是参照留下的；频率也要对，说明剩下的重新归一化了。
    # Exactly those of the reference are kept; the frequencies fit too, so the rest was renormalised.
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(expected))
    # 自由度至多 11，0.001 的临界值是 31.3；种子固定，结果不会变。
    # At most 11 degrees of freedom, whose critical value at 0.001 is 31.3; seeds are fixed and so is the outcome.
    assert chi_square(counts, expected) < 31.3


def test_top_k_keeps_exactly_k_of_equals() -> None:
    for k in (1, 3, 7):
        tokens = sample(torch.zeros(3000, 8), inputs(3000, 8, top_k=k))
        assert sorted(set(tokens.tolist())) == list(range(k))


def test_rows_have_their_own_parameters() -> None:
    rows = 600
    parameters = inputs(rows, len(LOGITS), top_k=len(LOGITS) - 1)
    parameters.top_ks[:200] = 2
    parameters.top_ks[200:] = len(LOGITS)
    parameters.top_ps[200:400] = 1e-4
    tokens = sample(LOGITS.expand(rows, -1), parameters)
    assert set(tokens[:200].tolist()) == {1, 8}
    assert set(tokens[200:400].tolist()) == {1}
    assert len(set(tokens[400:].tolist())) > 6


def test_masked_tokens_are_never_drawn() -> None:
    logits = LOGITS.clone()
    logits[[1, 4, 8]] = float("-inf")
    for options in ({}, {"top_k": 11}, {"top_p": 0.999}, {"min_p": 0.001}):
        tokens = sample(logits.expand(2000, -1), inputs(2000, len(LOGITS), **options))
        assert not {1, 4, 8} & set(tokens.tolist())


@pytest.fixture(scope="module")
def exact() -> Iterator[np.ndarray]:
    weights = np.exp(LOGITS.double().numpy() / 0.7)
    yield weights / weights.sum()


def test_draws_follow_softmax_over_seeds(exact: np.ndarray) -> None:
    draws = 20000
    tokens = sample(LOGITS.expand(draws, -1), inputs(draws, len(LOGITS), temperature=0.7))
    assert chi_square(np.bincount(tokens.numpy(), minlength=len(LOGITS)), exact) < 40


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345])
def test_draws_follow_softmax_over_one_request(exact: np.ndarray, seed: int) -> None:
    draws = 20000
    parameters = inputs(draws, len(LOGITS), temperature=0.7, seeds=[seed] * draws, indices=list(range(draws)))
    tokens = sample(LOGITS.expand(draws, -1), parameters).numpy()
    assert chi_square(np.bincount(tokens, minlength=len(LOGITS)), exact) < 40
    # 相邻两个输出互不相关：成对的频率等于概率之积（144 格，自由度 143）。
    # Neighbouring outputs are independent: pairs occur as the product of probabilities (144 cells).
    pairs = np.bincount(tokens[:-1:2] * len(LOGITS) + tokens[1::2], minlength=len(LOGITS) ** 2)
    assert chi_square(pairs, np.outer(exact, exact).ravel()) < 230


def test_draws_of_neighbouring_seeds_are_independent(exact: np.ndarray) -> None:
    # `n` 个样本用 seed + i，所以相邻的种子不能相关。
    # The samples of `n` use seed + i, so neighbouring seeds must not be related.
    draws = 20000
    tokens = sample(LOGITS.expand(draws, -1), inputs(draws, len(LOGITS), temperature=0.7)).numpy()
    pairs = np.bincount(tokens[:-1:2] * len(LOGITS) + tokens[1::2], minlength=len(LOGITS) ** 2)
    assert chi_square(pairs, np.outer(exact, exact).ravel()) < 230


def test_noise_is_a_pure_function_of_seed_index_and_token() -> None:
    seeds = torch.tensor([0, 7, -3, 2**63 - 1, 7, 12345])
    indices = torch.tensor([0, 0, 5, 99, 1, 100000])
    vocab = 1003
    whole = gumbel_noise(seeds, indices, vocab)
    assert whole.shape == (6, vocab) and whole.dtype == torch.float32
    assert whole.isfinite().all()
    for row in range(6):
        alone = gumbel_noise(seeds[row : row + 1], indices[row : row + 1], vocab)
        assert torch.equal(alone[0], whole[row])
    order = torch.randperm(6)
    assert torch.equal(gumbel_noise(seeds[order], indices[order], vocab), whole[order])
    many = gumbel_noise(seeds.repeat(50), indices.repeat(50), vocab)
    assert torch.equal(many, whole.repeat(50, 1))
    # 词表更短时，前面的 token 噪声不变。
    # With a shorter vocabulary the tokens before keep their noise.
    for shorter in (1, 2, 17, 512, 1000):
        assert torch.equal(gumbel_noise(seeds, indices, shorter), whole[:, :shorter])
    # 种子、序号、token 各变一个，噪声都变。
    # A change of the seed, of the index or of the token changes the noise.
    assert len({tuple(row) for row in whole.tolist()}) == 6
    assert len(set(whole[1].tolist())) > vocab - 3


def test_noise_matches_the_published_algorithm() -> None:
    # 用 Python 的大整数重写一遍，种子相同的请求在以后的版本里也抽到同样的 token。
    # Once more in Python's big integers: a seed draws the same tokens in later versions too.
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix64(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    def mix32(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    for seed, index in ((0, 0), (42, 3), (-5, 77), (2**63 - 1, 2**31)):
        key = mix64(mix64(seed + golden & mask) + index * golden & mask)
        noise = gumbel_noise(torch.tensor([seed]), torch.tensor([index]), 40)[0]
        for token in (0, 1, 39):
            bits = mix32(mix32(token + key & 0xFFFFFFFF) ^ key >> 32)
            expected = -math.log(-math.log1p(-(bits + 0.5) / 2**32))
            assert float(noise[token]) == pytest.approx(expected, rel=1e-6)


def test_a_request_draws_the_same_alone_and_in_any_batch() -> None:
    torch.manual_seed(0)
    vocab, rows = 517, 9
    logits = torch.randn(rows, vocab) * 3
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01}
    seeds, indices = [11 * i - 20 for i in range(rows)], [i * i for i in range(rows)]
    together = sample(logits, inputs(rows, vocab, seeds=seeds, indices=indices, **options))
    for row in range(rows):
        alone = inputs(1, vocab, seeds=[seeds[row]], indices=[indices[row]], **options)
        assert sample(logits[row : row + 1], alone)[0] == together[row]
    # 别的行关掉了过滤，自己这行（不用过滤）走哪条路都一样。
    # A row without filters draws the same whether or not its neighbours make the batch sort.
    plain = sample(logits, inputs(rows, vocab, seeds=seeds, indices=indices))
    sorting = inputs(rows, vocab, seeds=seeds, indices=indices)
    sorting.any_filter = sorting.any_min_p = True
    assert torch.equal(sample(logits, sorting), plain)


def test_extreme_temperatures_and_logits() -> None:
    logits = torch.tensor([[3e4, 0.0, -3e4, 2.9e4]])
    assert sample(logits, inputs(1, 4, temperature=1e-4)).tolist() == [0]
    assert sample(logits.bfloat16(), inputs(1, 4, temperature=2.0, top_p=0.9)).tolist() == [0]
    assert sample(logits, inputs(1, 4, temperature=9e-6)).tolist() == [0]
    assert sample(torch.empty(0, 4), inputs(0, 4)).shape == (0,)
