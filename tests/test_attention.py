"""注意力后端的三个函数：逐一与 float64 版本比较，再查 NaN 的去向、坏参数和超大的槽位。
The three functions of the attention backends: each against float64, then NaN, bad arguments and huge slots.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import (
    BACKENDS,
    Case,
    Target,
    all_cases,
    assert_solved,
    attention_oracle,
    decode_problem,
    make_problem,
    page,
    run_decode,
    run_varlen,
    running_sum,
    step_metadata,
    supported,
    targets,
    varlen_problem,
)
from torch import Tensor

from backends import backend_names

NAN = float("nan")
TARGETS = targets()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """张量很小，多线程只会互相等待。
    The tensors are small; more threads would only wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def marks(target: Target) -> list[pytest.MarkDecorator]:
    missing = target.spec.missing()
    skip = [pytest.mark.skip(reason=f"not installed: {', '.join(missing)}")] if missing else []
    return [*skip, pytest.mark.gpu] if target.device == "cuda" else skip


def one_by_one(targets: list[Target]) -> list[Any]:
    return [pytest.param(target, id=str(target), marks=marks(target)) for target in targets]


def pairs(condition: Callable[[Case], bool]) -> list[Any]:
    """（用例，后端）的参数表，同一用例的各后端挨在一起，答案只算一次。
    (case, backend) parameters; the backends of a case stand together, so its answer is computed once.
    """
    return [
        pytest.param(target, case, id=f"{target}-{case}", marks=marks(target))
        for case in all_cases()
        for target in TARGETS
        if condition(case) and supported(target, case)
    ]


@pytest.fixture(autouse=True)
def hopper_from_few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hopper 的预填充核函数为长提示词准备，测试里的短提示词也让它算。
    Hopper's prefill kernel is for long prompts; in the tests it takes short ones, too.
    """
    if importlib.util.find_spec("triton"):
        monkeypatch.setattr("backends.triton.prefill.HOPPER_QUERIES", 32)


@pytest.fixture(params=one_by_one(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


def small_case(target: Target, **changes: Any) -> Case:
    """该后端支持的一个小用例。
    A small case that the backend supports.
    """
    spec = target.spec
    block_size = 16 if 16 in spec.block_sizes else spec.block_sizes[0]
    dtype = torch.float32 if torch.float32 in spec.dtypes else spec.dtypes[0]
    return replace(Case(6, 2, 64, block_size, causal=True, dtype=dtype), **changes)


# ---- float64 ----


def test_oracle_on_a_problem_solved_by_hand() -> None:
    # 两个 key 与 query 的分数是 0 和 ln 3，权重 1/4 和 3/4：0.25 * 8 + 0.75 * 4 = 5。
    # The scores of the two keys are 0 and ln 3, the weights 1/4 and 3/4: 0.25 * 8 + 0.75 * 4 = 5.
    q = torch.tensor([1.0, 1.0]).reshape(2, 1, 1)
    k = torch.tensor([0.0, 3.0]).log1p().reshape(2, 1, 1) * torch.tensor(3.0).log() / torch.tensor(4.0).log()
    v = torch.tensor([8.0, 4.0]).reshape(2, 1, 1)
    plain = attention_oracle(q, k, v, [2], [2], 1.0, causal=False)
    causal = attention_oracle(q, k, v, [2], [2], 1.0, causal=True)
    assert plain.flatten().tolist() == pytest.approx([5.0, 5.0], rel=1e-6)
    assert causal.flatten().tolist() == pytest.approx([8.0, 5.0], rel=1e-6)


@pytest.mark.parametrize("target, case", pairs(lambda case: True))
def test_varlen(target: Target, case: Case) -> None:
    problem = varlen_problem(case)
    assert_solved(run_varlen(target, problem), problem)


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("target, case", pairs(lambda case: case.block_size is not None))
def test_with_kvcache(target: Target, case: Case, num_queries: int) -> None:
    problem = decode_problem(case, num_queries)
    assert_solved(run_decode(target, problem), problem)


def test_a_long_prompt_among_short_ones(target: Target) -> None:
    lengths = [(1, 1), (2, 2), (280, 290), (1, 40), (3, 3), (0, 0), (1, 7), (270, 270), (260, 300), (1, 300)]
    for block_size in (None, small_case(target).block_size):
        head_dim = target.spec.head_dims[0]
        case = small_case(target, num_q_heads=2, num_kv_heads=1, head_dim=head_dim, block_size=block_size)
        problem = make_problem(case, [q for q, _ in lengths], [k for _, k in lengths])
        assert_solved(run_varlen(target, problem), problem)


def test_large_scores_do_not_overflow(target: Target) -> None:
    # 分数上千：不先减去最大值的话，exp 在 float32 里就是无穷大。
    # Scores in the thousands: without subtracting the maximum, exp is infinite in float32.
    case = small_case(target, softmax_scale=1.0)
    problem = make_problem(case, [5, 1], [20, 40], magnitude=100.0)
    assert_solved(run_varlen(target, problem), problem, tolerance=2e-3 if case.dtype == torch.float32 else 5e-2)


def test_no_sequences_at_all(target: Target) -> None:
    case = small_case(target)
    q = torch.empty(0, 6, 64, dtype=case.dtype, device=target.device)
    cache = torch.full((2, case.block_size or 16, 2, 64), NAN, dtype=case.dtype, device=target.device)
    table = torch.empty(0, 3, dtype=torch.int32, device=target.device)
    none = torch.empty(0, dtype=torch.int32, device=target.device)
    backend = target.create()
    start = running_sum([], target.device)
    out = backend.flash_attn_varlen_func(q, cache, cache, start, start, 0, 0, block_table=table)
    assert out.shape == (0, 6, 64)
    assert backend.flash_attn_with_kvcache(q.reshape(0, 1, 6, 64), cache, cache, none, table).shape == (0, 1, 6, 64)
    no_queries = torch.empty(2, 0, 6, 64, dtype=case.dtype, device=target.device)
    two = torch.zeros(2, dtype=torch.int32, device=target.device)
    assert backend.flash_attn_with_kvcache(no_queries, cache, cache, two, two[:, None]).shape == (2, 0, 6, 64)


def test_strided_queries_and_untouched_inputs(target: Target) -> None:
    # 模型里的 q 是 qkv 的一段，并不连续。
    # In the model q is a slice of qkv, not contiguous.
    problem = varlen_problem(small_case(target))
    wide = torch.cat([problem.q, torch.full_like(problem.q, NAN)], dim=-1)
    q = wide[..., : problem.case.head_dim]
    assert not q.is_contiguous()
    inputs = {name: getattr(problem, name).clone() for name in ("k_cache", "v_cache", "block_table")}
    assert_solved(run_varlen(target, replace(problem, q=q)), problem)
    for name, before in inputs.items():
        assert torch.equal(getattr(problem, name).nan_to_num(7.0), before.nan_to_num(7.0)), name


def test_every_backend_is_tested() -> None:
    assert {spec.name for spec in BACKENDS} == set(backend_names())


def test_a_backend_declares_every_dimension_of_its_tests(target: Target) -> None:
    backend = target.create()
    cases = [case for case in all_cases() if supported(target, case)]
    assert {case.block_size for case in cases} == {None, *target.spec.block_sizes}
    assert {case.head_dim for case in cases} == set(target.spec.head_dims)
    assert {case.dtype for case in cases} == set(target.spec.dtypes)
    assert all(backend.why_unsupported(case.head_dim, case.dtype) is None for case in cases)
    for block_size in target.spec.block_sizes:
        backend.check_block_size(block_size)


@pytest.mark.parametrize("num_processors, num_splits", [(1, 1), (3, 1), (6, 2), (24, 8)])
def test_decoding_in_splits(target: Target, num_processors: int, num_splits: int) -> None:
    # 一条长历史切成几段，段数可以比 tile 多；别的后端不切，结果同样要对。
    # One long history in several splits, possibly more of them than tiles; other backends do not split and must be
    # right all the same.
    for block_size in target.spec.block_sizes:
        problem = make_problem(small_case(target, block_size=block_size), [1, 1, 1], [300, 65, 0])
        backend = target.create()
        if target.spec.name == "triton":
            from backends.triton.decode import choose_num_splits

            # 3 条序列乘 2 个 KV 头是 6 个程序，凑到流式多处理器个数的 4 倍之前停下；只有 1 个时，tile 也换成大的。
            # 3 sequences times 2 KV heads are 6 programs; it stops short of 4 for each multiprocessor. With 1 of them
            # tiles are large, too.
            backend.num_processors = num_processors  # type: ignore[attr-defined]
            assert choose_num_splits(3, 2, num_processors) == num_splits
        assert_solved(run_decode(target, problem, backend), problem)


# ---- NaN ----


def test_empty_sequences_give_zeros_although_every_slot_is_nan(target: Target) -> None:
    case = small_case(target)
    device, backend = target.device, target.create()
    cache = torch.full((3, case.block_size or 16, 2, 64), NAN, dtype=case.dtype, device=device)
    q = torch.randn(4, 6, 64).to(device, case.dtype)
    table = torch.full((2, 2), -1, dtype=torch.int32, device=device)
    lengths = torch.zeros(2, dtype=torch.int32, device=device)
    for causal in (False, True):
        out = backend.flash_attn_with_kvcache(q.reshape(2, 2, 6, 64), cache, cache, lengths, table, causal=causal)
        assert torch.equal(out, torch.zeros_like(out))
        cu_q, cu_k = running_sum([3, 1], device), running_sum([0, 0], device)
        out = backend.flash_attn_varlen_func(q, cache, cache, cu_q, cu_k, 3, 0, causal=causal, block_table=table)
        assert torch.equal(out, torch.zeros_like(out))
        packed = cache.flatten(0, 1)[:0]
        out = backend.flash_attn_varlen_func(q, packed, packed, cu_q, cu_k, 3, 0, causal=causal)
        assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_a_nan_stays_in_its_sequence_in_large_blocks_and_half_precision(target: Target, where: str) -> None:
    # 块大、query 多、半精度：Hopper 的预填充核函数走的就是这条路。序列 1 的 query 从第 70 行起，key 从第 90 行起。
    # Large blocks, many queries, half precision: the way of the prefill kernel for Hopper. Sequence 1 has its queries
    # from row 70 and its keys from row 90 on.
    case = Case(2, 1, 64, 256, causal=True, dtype=torch.float16)
    lengths_q, lengths_k = [70, 130, 66], [90, 300, 66]
    problem = make_problem(case, lengths_q, lengths_k)
    position = {"q": 70 + 100, "k": 90 + 40, "v": 90 + 40}[where]
    getattr(problem, where)[position, 0, 5] = NAN
    k_cache, v_cache, table = page(problem.k, problem.v, lengths_k, 256, case.generator())
    reference = attention_oracle(problem.q, problem.k, problem.v, lengths_q, lengths_k, case.scale(), causal=True)
    problem = replace(problem, k_cache=k_cache, v_cache=v_cache, block_table=table, reference=reference)
    out = run_varlen(target, problem).cpu()
    assert torch.equal(torch.isnan(out), torch.isnan(reference))
    torch.testing.assert_close(out.double(), reference, rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("paged", [False, True])
def test_a_true_nan_stays_visible_and_stays_in_its_sequence(target: Target, where: str, paged: bool) -> None:
    case = small_case(target, causal=False)
    lengths_q, lengths_k = [2, 3, 1], [18, 20, 5]
    problem = make_problem(case, lengths_q, lengths_k)
    # 序列 1 的 query 是第 2 到 4 行，key 是第 18 到 37 行。
    # Sequence 1 has queries 2 to 4 and keys 18 to 37.
    getattr(problem, where)[3 if where == "q" else 30, 1, 5] = NAN
    k_cache, v_cache, table = page(problem.k, problem.v, lengths_k, case.block_size or 16, case.generator())
    reference = attention_oracle(problem.q, problem.k, problem.v, lengths_q, lengths_k, case.scale(), causal=False)
    expected = torch.isnan(reference)
    assert expected.any() and not expected[:2].any() and not expected[5:].any()
    problem = replace(problem, k_cache=k_cache, v_cache=v_cache, block_table=table, reference=reference)
    if not paged:
        problem.case, problem.block_table = replace(case, block_size=None), None
    out = run_varlen(target, problem).cpu()
    assert torch.equal(torch.isnan(out), expected)
    torch.testing.assert_close(out.double(), reference, rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_a_true_nan_stays_visible_in_decoding(target: Target, where: str) -> None:
    case = small_case(target)
    lengths = [18, 20, 5]
    problem = make_problem(case, [1, 1, 1], lengths)
    getattr(problem, where)[1 if where == "q" else 37, 1, 5] = NAN
    k_cache, v_cache, table = page(problem.k, problem.v, lengths, case.block_size or 16, case.generator())
    reference = attention_oracle(problem.q, problem.k, problem.v, [1, 1, 1], lengths, case.scale(), causal=True)
    problem = replace(problem, k_cache=k_cache, v_cache=v_cache, block_table=table)
    out = run_decode(target, problem).cpu()
    assert torch.isnan(reference[1]).any()
    assert torch.equal(torch.isnan(out), torch.isnan(reference))


# ---- store_kvcache ----


@pytest.mark.parametrize("strided", [False, True])
def test_store_writes_each_token_to_its_slot_and_nothing_else(target: Target, strided: bool) -> None:
    for dtype in target.spec.dtypes:
        block_size, generator = 8, torch.Generator().manual_seed(3)
        key, value = torch.randn(2, 20, 2, 16, generator=generator).to(dtype)
        slots = torch.randperm(5 * block_size, generator=generator)[:20]
        slots[[0, 7, 19]] = -1
        # 槽位 -1 若被当成“最后一格”，最后一个块就会被写坏。
        # If slot -1 were taken for the last slot, the last block would be ruined.
        caches = torch.full((2, 6, block_size, 2, 16), NAN, dtype=dtype)
        expected = caches.clone()
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                expected[0, slot // block_size, slot % block_size] = key[token]
                expected[1, slot // block_size, slot % block_size] = value[token]
        caches, key, value = (x.to(target.device) for x in (caches, key, value))
        if strided:
            both = torch.cat([key, value], dim=1)
            key, value = both[:, :2], both[:, 2:]
            assert not key.is_contiguous()
        target.create().store_kvcache(key, value, caches[0], caches[1], slots.to(target.device))
        torch.testing.assert_close(caches.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("slots", [[], [-1, -1, -1]])
def test_store_of_nothing(target: Target, slots: list[int]) -> None:
    dtype = target.spec.dtypes[0]
    caches = torch.full((2, 2, 8, 1, 16), NAN, dtype=dtype, device=target.device)
    tokens = torch.ones(len(slots), 1, 16, dtype=dtype, device=target.device)
    mapping = torch.tensor(slots, dtype=torch.int64, device=target.device)
    target.create().store_kvcache(tokens, tokens, caches[0], caches[1], mapping)
    assert caches.isnan().all()


def test_what_is_stored_is_what_attention_reads(target: Target) -> None:
    case = small_case(target)
    block_size = case.block_size or 16
    problem = make_problem(case, [1, 1], [block_size + 3, 2 * block_size])
    assert problem.block_table is not None and problem.k_cache is not None and problem.v_cache is not None
    slots = [
        int(problem.block_table[row, p // block_size]) * block_size + p % block_size
        for row, length in enumerate(problem.lengths_k)
        for p in range(length)
    ]
    k_cache, v_cache = (torch.full_like(problem.k_cache, NAN, device=target.device) for _ in range(2))
    key, value = problem.k.to(target.device), problem.v.to(target.device)
    target.create().store_kvcache(key, value, k_cache, v_cache, torch.tensor(slots, device=target.device))
    assert_solved(run_decode(target, replace(problem, k_cache=k_cache, v_cache=v_cache)), problem)


# 解释执行的核函数不测：GPU 上的测试会测它。
# Interpreted kernels are left out: the test on a GPU covers them.
@pytest.mark.parametrize("target", one_by_one([t for t in TARGETS if not t.interpreted]), indirect=True)
def test_slots_beyond_2_to_the_31_elements(target: Target) -> None:
    # 只预留地址，不写满：CPU 上没碰过的页不占内存，所以这里实际只用几 MB。
    # Address space only: pages never touched take no memory on the CPU, so this really uses a few MB.
    block_size, heads, head_dim = target.spec.block_sizes[-1], 8, 128
    dtype = torch.bfloat16
    num_blocks = 2**31 // (block_size * heads * head_dim) + 4
    try:
        caches = [
            torch.empty(num_blocks, block_size, heads, head_dim, dtype=dtype, device=target.device) for _ in range(2)
        ]
    except RuntimeError as error:
        pytest.skip(f"this machine cannot reserve 2 x 4 GiB: {error}")
    assert caches[0].numel() > 2**31
    case = Case(heads, heads, head_dim, block_size, causal=True, dtype=dtype)
    problem = make_problem(replace(case, block_size=None), [1], [block_size + 2])
    blocks = [num_blocks - 1, num_blocks - 2]
    slots = [blocks[p // block_size] * block_size + p % block_size for p in range(block_size + 2)]
    backend, device = target.create(), target.device
    backend.store_kvcache(problem.k.to(device), problem.v.to(device), *caches, torch.tensor(slots, device=device))
    assert torch.equal(caches[0][blocks[0]].cpu(), problem.k[:block_size])
    assert torch.equal(caches[1][blocks[1], :2].cpu(), problem.v[block_size:])
    table = torch.tensor([blocks], dtype=torch.int32)
    paged = replace(problem, case=case, k_cache=caches[0], v_cache=caches[1], block_table=table)
    assert_solved(run_decode(target, paged), paged)
    assert_solved(run_varlen(target, paged), paged)


# ---- one step's tensors serve every layer ----


def test_tensors_that_change_between_calls_are_read_again(target: Target) -> None:
    # 同一对 `cache_seqlens`、`block_table` 服务一步里的各层；换内容、换张量、换参数都不能沿用旧的结果。
    # The same `cache_seqlens` and `block_table` serve all layers of a step; nothing old may survive a change.
    case = small_case(target)
    problem = make_problem(case, [2, 2, 2], [18, 20, 5])
    assert problem.k_cache is not None and problem.v_cache is not None and problem.block_table is not None
    backend, device = target.create(), target.device
    q = problem.q.unflatten(0, (3, 2)).to(device)
    k_cache, v_cache = problem.k_cache.to(device), problem.v_cache.to(device)
    table = problem.block_table.to(device)
    lengths = torch.tensor([18, 20, 5], dtype=torch.int32, device=device)

    def check(queries: Tensor = q, causal: bool = True) -> None:
        out = backend.flash_attn_with_kvcache(queries, k_cache, v_cache, lengths, table, causal=causal)
        plain = target.create().flash_attn_with_kvcache(
            queries, k_cache, v_cache, lengths.clone(), table.clone(), causal=causal
        )
        assert torch.equal(out, plain)

    check()
    check()
    # 换上全新的张量：改写次数与旧的一样，内容不同。
    # Brand-new tensors: written as often as the old ones, with other contents.
    lengths = torch.tensor([2, 9, 4], dtype=torch.int32, device=device)
    check()
    table = problem.block_table[[0, 2, 1]].to(device)
    lengths = torch.tensor([5, 5, 5], dtype=torch.int32, device=device)
    check()
    table = problem.block_table[[1, 1, 0]].to(device)
    check()
    check(causal=False)
    check(queries=q[:, :1])
    lengths.copy_(torch.tensor([17, 3, 2], dtype=torch.int32))
    check()
    table[[0, 2]] = table[[2, 0]]
    check()
    lengths.zero_()
    check()
    lengths = torch.tensor([3, 3, 3], dtype=torch.int32, device=device)
    check()
    with torch.inference_mode():
        lengths = torch.tensor([5, 5, 5], dtype=torch.int32, device=device)
        table = table.clone()
        check()
        lengths.fill_(2)
        check()


def test_a_second_layer_reads_its_own_cache(target: Target) -> None:
    case = small_case(target)
    problem = make_problem(case, [1, 1], [18, 5])
    assert problem.k_cache is not None and problem.v_cache is not None and problem.block_table is not None
    backend, device = target.create(), target.device
    table = problem.block_table.to(device)
    lengths = torch.tensor([18, 5], dtype=torch.int32, device=device)
    q, k_cache, v_cache = problem.q[:, None].to(device), problem.k_cache.to(device), problem.v_cache.to(device)
    first = backend.flash_attn_with_kvcache(q, k_cache, v_cache, lengths, table, causal=True)
    second = backend.flash_attn_with_kvcache(q, k_cache, -v_cache, lengths, table, causal=True)
    assert torch.equal(second, -first)


# 每批：（新 token 数，上下文长度），解码行在前。
# Each batch: (new tokens, context lengths), decode rows first.
BATCHES = {
    "decodes and prefills": ([1, 1, 1, 5, 3], [17, 1, 33, 5, 20]),
    "decodes": ([1, 1, 1], [3, 40, 16]),
    "decodes of equal length": ([1, 1], [19, 19]),
    # 块在内存里恰好首尾相接，或者只有一个块：不取也不遮的捷径。
    # Blocks that happen to lie side by side, or a single one: the short cut without gathering and masks.
    "one decode": ([1], [7]),
    "prefills": ([4, 2, 9], [4, 18, 9]),
    "a decode and a prompt": ([1, 6], [5, 6]),
}


@pytest.mark.parametrize("batch", BATCHES)
def test_a_plan_serves_all_layers_and_the_backend_keeps_nothing(target: Target, batch: str) -> None:
    new, contexts = BATCHES[batch]
    num_decodes, device = new.count(1), target.device
    problem = make_problem(small_case(target), new, contexts)
    metadata = step_metadata(problem, num_decodes, device)
    backend = target.create()
    before = dict(vars(backend))
    tensors = {name: value.clone() for name, value in before.items() if isinstance(value, Tensor)}
    plan = backend.prepare(metadata)
    first_new = [start - count for start, count in zip(torch.tensor(contexts).cumsum(0).tolist(), new)]
    rows = [first + i for first, count in zip(first_new, new) for i in range(count)]
    # 各层的 q、K、V 都不同，块表和长度是同一份。
    # Every layer has other q, K and V; tables and lengths are the same.
    for a, b, c in ((1, 1, 1), (-1, 1, 2), (0.5, -1, -1)):
        q, k, v = a * problem.q, b * problem.k, c * problem.v
        k_cache, v_cache = b * problem.k_cache, c * problem.v_cache  # type: ignore[operator]
        # 新 token 的槽位也先填上 NaN，由 `store_kvcache` 来写。
        # Slots of the new tokens are NaN as well, for `store_kvcache` to write.
        for cache in (k_cache, v_cache):
            cache.flatten(0, 1)[metadata.slot_mapping.cpu()] = NAN
        q, k_cache, v_cache = q.to(device), k_cache.to(device), v_cache.to(device)
        backend.store_kvcache(k[rows].to(device), v[rows].to(device), k_cache, v_cache, metadata.slot_mapping)

        def attend(plan: Any, q: Tensor = q, k_cache: Tensor = k_cache, v_cache: Tensor = v_cache) -> Tensor:
            decoded = backend.flash_attn_with_kvcache(
                q[:num_decodes, None], k_cache, v_cache, metadata.cache_seqlens, metadata.decode_block_tables,
                causal=True, plan=plan,
            )  # fmt: skip
            prefilled = backend.flash_attn_varlen_func(
                q[num_decodes:], k_cache, v_cache, metadata.cu_seqlens_q, metadata.cu_seqlens_k,
                metadata.max_seqlen_q, metadata.max_seqlen_k, causal=True,
                block_table=metadata.prefill_block_tables, plan=plan,
            )  # fmt: skip
            return torch.cat([decoded[:, 0], prefilled])

        out = attend(plan)
        assert torch.equal(out, attend(None))
        reference = attention_oracle(q.cpu(), k, v, new, contexts, problem.case.scale(), causal=True)
        assert_solved(out, replace(problem, reference=reference))
    assert vars(backend).keys() == before.keys()
    assert all(vars(backend)[name] is value for name, value in before.items())
    assert all(torch.equal(before[name], content) for name, content in tensors.items())


@pytest.mark.parametrize("blocks", [[3, 4, 5], [3, 5, 4]])
def test_a_single_sequence_whose_blocks_lie_side_by_side_or_not(target: Target, blocks: list[int]) -> None:
    case = small_case(target)
    block_size = case.block_size or 16
    length = 2 * block_size + 3
    problem = make_problem(replace(case, block_size=None), [1], [length])
    caches = [torch.full((7, block_size, 2, 64), NAN, dtype=case.dtype) for _ in range(2)]
    slots = [blocks[p // block_size] * block_size + p % block_size for p in range(length)]
    for cache, content in zip(caches, (problem.k, problem.v)):
        cache.flatten(0, 1)[slots] = content
    table = torch.tensor([[*blocks, -1]], dtype=torch.int32)
    paged = replace(problem, case=case, k_cache=caches[0], v_cache=caches[1], block_table=table)
    assert_solved(run_decode(target, paged), paged)
    backend, metadata = target.create(), step_metadata(paged, 1, target.device)
    q, k_cache, v_cache = (x.to(target.device) for x in (paged.q[:, None], *caches))
    arguments = (q, k_cache, v_cache, metadata.cache_seqlens, metadata.decode_block_tables)
    out = backend.flash_attn_with_kvcache(*arguments, causal=True, plan=backend.prepare(metadata))
    assert_solved(out[:, 0], paged)


# ---- bad arguments ----

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one row less": lambda x: x[:-1],
    "one dimension less": lambda x: x[0],
    "one dimension more": lambda x: x[None],
    "another head_dim": lambda x: x[..., :-2],
    "another number of heads": lambda x: torch.cat([x, x[..., :1, :]], dim=-2),
    "no heads": lambda x: x[..., :0, :],
    "float64": lambda x: x.double(),
    "int64": lambda x: x.long(),
    "int32": lambda x: x.int(),
    "another device": lambda x: x.to("meta"),
    "a scalar": lambda x: x.flatten()[0],
    "empty": lambda x: x[:0],
    "not contiguous": lambda x: torch.stack([x, x], dim=1)[:, 0],
}

STORE_ERRORS = {
    "key": ["one dimension less", "another head_dim", "another number of heads", "float64", "another device"],
    "value": ["one row less", "one dimension more", "another head_dim", "float64", "another device"],
    "k_cache": ["one dimension less", "one dimension more", "not contiguous"],
    "v_cache": ["one row less", "another head_dim", "float64", "another device", "not contiguous"],
    "slot_mapping": ["one row less", "one dimension more", "int32", "float64", "another device", "a scalar"],
}
VARLEN_ERRORS = {
    "q": ["one dimension less", "one dimension more", "another number of heads"],
    "k": ["one dimension less", "one dimension more", "another head_dim", "float64", "another device"],
    "v": ["one row less", "another head_dim", "another number of heads", "float64", "another device"],
    "cu_seqlens_q": ["one dimension more", "int64", "float64", "another device", "a scalar", "empty"],
    "cu_seqlens_k": ["one row less", "one dimension more", "int64", "another device", "a scalar"],
    "block_table": ["one row less", "one dimension less", "one dimension more", "int64", "another device"],
}
KVCACHE_ERRORS = {
    "q": ["one dimension less", "one dimension more", "another number of heads"],
    "k_cache": ["one dimension less", "one dimension more", "another head_dim", "float64", "another device"],
    "v_cache": ["one row less", "another head_dim", "another number of heads", "float64", "another device"],
    "cache_seqlens": ["one row less", "one dimension more", "int64", "float64", "another device", "a scalar"],
    "block_table": ["one row less", "one dimension less", "one dimension more", "int64", "another device"],
}


def bad(errors: dict[str, list[str]]) -> list[Any]:
    return [pytest.param(name, change, id=f"{name}-{change}") for name in errors for change in errors[name]]


def good_arguments(target: Target) -> dict[str, Tensor]:
    """一组合法的张量，三个函数都从这里取自己要的。
    A set of valid tensors from which each of the three functions takes its own.
    """
    case = small_case(target)
    problem = make_problem(case, [2, 2], [17, 5])
    assert problem.k_cache is not None and problem.v_cache is not None and problem.block_table is not None
    tensors = {
        "q": problem.q,
        "k_cache": problem.k_cache,
        "v_cache": problem.v_cache,
        "block_table": problem.block_table,
        "cache_seqlens": torch.tensor([17, 5], dtype=torch.int32),
        "cu_seqlens_q": running_sum([2, 2], "cpu"),
        "cu_seqlens_k": running_sum([17, 5], "cpu"),
        "k": problem.k,
        "v": problem.v,
        "key": problem.k[:4],
        "value": problem.v[:4],
        "slot_mapping": torch.tensor([3, 0, -1, 9]),
    }
    return {name: tensor.to(target.device) for name, tensor in tensors.items()}


def refuses(call: Callable[[dict[str, Tensor]], Any], good: dict[str, Tensor], name: str, change: str) -> None:
    """改之前能跑，改之后报 `ValueError`，并点出参数的名字。
    It runs before the change; after it, a `ValueError` names the argument.
    """
    call(good)
    with pytest.raises(ValueError, match=rf"^{name} (must|has) "):
        call({**good, name: CHANGES[change](good[name])})


@pytest.mark.parametrize("name, change", bad(STORE_ERRORS))
def test_store_refuses(target: Target, name: str, change: str) -> None:
    names = ("key", "value", "k_cache", "v_cache", "slot_mapping")
    refuses(lambda a: target.create().store_kvcache(*(a[n] for n in names)), good_arguments(target), name, change)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("name, change", bad(VARLEN_ERRORS))
def test_varlen_refuses(target: Target, name: str, change: str, paged: bool) -> None:
    if name == "block_table" and not paged:
        return
    good = good_arguments(target)
    if paged:
        good["k"], good["v"] = good["k_cache"], good["v_cache"]

    def call(a: dict[str, Tensor]) -> Tensor:
        table = a["block_table"] if paged else None
        arguments = (a["q"], a["k"], a["v"], a["cu_seqlens_q"], a["cu_seqlens_k"], 2, 17)
        return target.create().flash_attn_varlen_func(*arguments, block_table=table)

    refuses(call, good, name, change)


@pytest.mark.parametrize("name, change", bad(KVCACHE_ERRORS))
def test_with_kvcache_refuses(target: Target, name: str, change: str) -> None:
    names = ("q", "k_cache", "v_cache", "cache_seqlens", "block_table")
    call = target.create().flash_attn_with_kvcache
    good = good_arguments(target)
    good["q"] = good["q"].unflatten(0, (2, 2))
    refuses(lambda a: call(*(a[n] for n in names)), good, name, change)


def test_integer_tensors_and_missing_kv_heads_are_refused(target: Target) -> None:
    backend, good = target.create(), good_arguments(target)
    ints = {name: good[name].nan_to_num().int() for name in ("q", "k", "v", "k_cache", "v_cache")}
    starts = (good["cu_seqlens_q"], good["cu_seqlens_k"], 2, 17)
    lengths = (good["cache_seqlens"], good["block_table"])
    with pytest.raises(ValueError, match=r"^q must be a floating-point"):
        backend.flash_attn_varlen_func(ints["q"], ints["k"], ints["v"], *starts)
    with pytest.raises(ValueError, match=r"^q must be a floating-point"):
        backend.flash_attn_with_kvcache(ints["q"][:, None][:2], ints["k_cache"], ints["v_cache"], *lengths)
    with pytest.raises(ValueError, match=r"^q has 6 heads"):
        backend.flash_attn_varlen_func(good["q"], good["k"][:, :0], good["v"][:, :0], *starts)
    with pytest.raises(ValueError, match=r"^q has 6 heads"):
        caches = good["k_cache"][:, :, :0], good["v_cache"][:, :, :0]
        backend.flash_attn_with_kvcache(good["q"][:, None][:2], *caches, *lengths)
