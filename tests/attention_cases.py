"""注意力测试的参照与用例：独立写成的 float64 版本、随机问题的生成器、受测后端的清单。
The judge and the cases of the attention tests: an independent float64 version, random problems, the backends to test.

加一个后端：在 `BACKENDS` 里加一行，写明它支持的设备、dtype 和块大小，全部用例就会跑到它。
To add a backend: one more line in `BACKENDS` with its devices, dtypes and block sizes, and every case runs on it.
"""

from __future__ import annotations

import importlib.util
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from backends import create_backend
from backends.base import AttentionBackend, AttentionMetadata


@dataclass(frozen=True)
class BackendSpec:
    """一个受测后端，以及它声明支持的范围。
    A backend under test, and what it claims to support.
    """

    name: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    block_sizes: tuple[int, ...] = (8, 16, 256)
    head_dims: tuple[int, ...] = (16, 32, 64, 80, 96, 128, 256)
    # 核函数逐个编译（GPU）或逐个程序解释（CPU），全部用例太慢；这里挑出要跑的，None 是全部。
    # Kernels are compiled one by one (GPU) or interpreted program by program (CPU), and all cases would take too long;
    # this picks those that run, None is all.
    picks: Callable[[Case], bool] | None = None
    packages: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """要用而没有装的包。
        The packages that it needs and that are not installed.
        """
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


POWERS_OF_TWO = (16, 32, 64, 128, 256)
HALF = (torch.bfloat16, torch.float16)


def picked_for_the_interpreter(case: Case) -> bool:
    """每种布局、head_dim、掩码都出现，但不是每种组合。
    Each layout, head_dim and mask occurs, but not each combination.
    """
    shape = (case.num_q_heads, case.num_kv_heads, case.head_dim, case.block_size, case.causal, case.dtype)
    return shape in {
        (6, 2, 64, None, True, torch.float32),
        (6, 2, 16, None, False, torch.float32),
        (6, 2, 64, 8, True, torch.float32),
        (6, 2, 32, 16, True, torch.float32),
        (6, 2, 128, 16, False, torch.float32),
        (6, 2, 64, 256, True, torch.float32),
        (1, 1, 16, 256, False, torch.float32),
        (8, 2, 16, 16, True, torch.float32),
        (4, 4, 16, 8, False, torch.float32),
        (1, 1, 32, 8, True, torch.float32),
        (2, 1, 256, 16, True, torch.float32),
        (6, 2, 64, 16, True, torch.float16),
        (6, 2, 64, 256, True, torch.float16),
        (8, 2, 128, 256, True, torch.float16),
    }


def picked_for_the_compiler(case: Case) -> bool:
    """在 GPU 上：float32 主要用 3 个一组的头，其余头数各取一种；半精度全取。
    On a GPU: float32 mostly with heads in groups of 3, the other head counts in one size; all of half precision.
    """
    if case.dtype != torch.float32 or case.head_dim == 256:
        return True
    if (case.num_q_heads, case.num_kv_heads) == (6, 2):
        return case.causal or case.head_dim == 64
    return case.head_dim == 32 and case.causal and case.block_size in (None, 16)


# 解释器里没有 bf16 的算术（numpy 没有这种类型），所以 CPU 上只测 float32 和 float16。
# The interpreter has no bf16 arithmetic (numpy lacks the type), so on the CPU it is float32 and float16 only.
BACKENDS = (
    BackendSpec("torch"),
    BackendSpec("sdpa"),
    BackendSpec(
        "triton",
        devices=("cpu",),
        dtypes=(torch.float32, torch.float16),
        head_dims=POWERS_OF_TWO,
        picks=picked_for_the_interpreter,
        packages=("triton",),
    ),
    BackendSpec(
        "triton",
        devices=("cuda",),
        head_dims=POWERS_OF_TWO,
        picks=picked_for_the_compiler,
        packages=("triton",),
    ),
    BackendSpec(
        "flash",
        devices=("cuda",),
        dtypes=HALF,
        block_sizes=(256,),
        head_dims=(64, 128),
        packages=("flash_attn", "triton"),
    ),
)

HEADS = ((1, 1), (4, 4), (8, 2), (6, 2))
HEAD_DIMS = (16, 32, 64, 80, 96, 128)
# 块大小 None 表示不分页：K、V 打包成 [Tk, Hkv, D]。
# A block size of None means no pages: K and V are packed as [Tk, Hkv, D].
LAYOUTS = (None, 8, 16, 256)

# 相对误差的上限：半精度的输出本身只有 8 或 11 位有效数字。
# Limits of the relative error: half-precision output itself holds only 8 or 11 significant bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Target:
    """某个后端在某个设备上。
    One backend on one device.
    """

    spec: BackendSpec
    device: str

    def __str__(self) -> str:
        return f"{self.spec.name}-{self.device}"

    @property
    def interpreted(self) -> bool:
        """Triton 核函数在 CPU 上逐个程序解释执行，很慢。
        Triton kernels run program by program on the CPU, which is slow.
        """
        return self.spec.name == "triton" and self.device == "cpu"

    def create(self) -> AttentionBackend:
        backend = create_backend(self.spec.name, self.device)
        # 假装 GPU 很小，历史就切得少，解释得快；单独的测试让它切得多。
        # Pretend to a small GPU: fewer splits, which is faster to interpret; a test of its own has many.
        if self.interpreted:
            backend.num_processors = 12  # type: ignore[attr-defined]
        return backend


@dataclass(frozen=True)
class Case:
    """一个问题的形状；内容由形状决定的种子随机生成。
    The shape of a problem; its content is random with a seed that follows from the shape.
    """

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int | None
    causal: bool
    softmax_scale: float | None = None
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        layout = f"block{self.block_size}" if self.block_size else "packed"
        kind = str(self.dtype).removeprefix("torch.")
        parts = [f"{self.num_q_heads}h{self.num_kv_heads}", f"d{self.head_dim}", layout, kind]
        return "-".join(parts + ["causal"] * self.causal + ["scale"] * (self.softmax_scale is not None))

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

    def scale(self) -> float:
        return self.head_dim**-0.5 if self.softmax_scale is None else self.softmax_scale


@dataclass
class Problem:
    """一个完整的问题，在 CPU 上，连同 float64 的答案。
    A whole problem on the CPU, with its float64 answer.

    Attributes:
        q [T, Hq, D]; k, v packed [Tk, Hkv, D]
        k_cache, v_cache: the same K and V in shuffled blocks, NaN in every unused slot; None if the case is packed
        block_table: [num_seqs, max_blocks] int32, padded by -1
        reference: [T, Hq, D] float64
    """

    case: Case
    lengths_q: list[int]
    lengths_k: list[int]
    q: Tensor
    k: Tensor
    v: Tensor
    k_cache: Tensor | None
    v_cache: Tensor | None
    block_table: Tensor | None
    reference: Tensor


def targets() -> list[Target]:
    """此机上能测的（后端，设备）；缺包的也在内，由测试跳过并说明缺什么。
    The (backend, device) pairs that can be tested on this machine; those without their packages are among them, and the
    tests skip them and say what is missing.
    """
    available = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    found = [Target(spec, device) for spec in BACKENDS for device in spec.devices if device in available]
    # 有 GPU 的机器上不开解释模式，Triton 就只在 GPU 上测。
    # On a machine with a GPU the interpreter is off, and Triton is tested on the GPU only.
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    return [t for t in found if interpreting or not t.interpreted]


def supported(target: Target, case: Case) -> bool:
    """后端是否声明支持这个用例。
    Whether the backend claims to support the case.
    """
    spec = target.spec
    if case.dtype not in spec.dtypes or case.head_dim not in spec.head_dims:
        return False
    if case.block_size is not None and case.block_size not in spec.block_sizes:
        return False
    return spec.picks is None or spec.picks(case)


def all_cases() -> Iterator[Case]:
    """float32：头数 × head_dim × 布局 × 掩码，softmax_scale 隔一个给一次；再加半精度的一小批。
    float32: heads × head_dim × layout × mask, every other one with a softmax_scale; then a few in half precision.
    """
    for number, (heads, head_dim, layout, causal) in enumerate(product(HEADS, HEAD_DIMS, LAYOUTS, (False, True))):
        # 块很大时张量也大，只取几个 head_dim。
        # With large blocks the tensors are large as well: a few head_dims do.
        if layout == 256 and head_dim not in (16, 64, 128):
            continue
        yield Case(*heads, head_dim, layout, causal, softmax_scale=0.3 if number % 4 in (1, 2) else None)
    for dtype, heads, head_dim, layout in product(
        (torch.bfloat16, torch.float16), ((8, 2), (6, 2)), (64, 128), LAYOUTS
    ):
        yield Case(*heads, head_dim, layout, causal=True, dtype=dtype)
    # head_dim 256 只取两个：它是共享内存用得最多的。
    # Two with a head_dim of 256, which takes the most shared memory.
    for dtype in (torch.float32, torch.bfloat16):
        yield Case(2, 1, 256, 16, causal=True, dtype=dtype)


def varlen_lengths(block_size: int | None) -> list[tuple[int, int]]:
    """（query 数，key 数）：空的、单个的、正好写满块的、上下文的尾段、query 比 key 多的。
    (queries, keys): empty, single, exact multiples of the block, tails of a context, more queries than keys.
    """
    b = block_size or 16
    pairs = [(1, 1), (0, 0), (1, b), (b, b), (3, 2 * b + 3), (0, 5), (5, 2 * b), (7, 3)]
    return [*pairs, (4, 0), (1, b - 1), (2, b + 1), (b + 2, b + 2), (1, 3 * b), (2, 2)]


def decode_lengths(block_size: int | None) -> list[int]:
    """解码时各序列缓存了几个 token。
    How many cached tokens each sequence has in decoding.
    """
    b = block_size or 16
    return [1, 0, b, b - 1, 2 * b, b + 1, 2, 3 * b - 2, 0]


def attention_oracle(
    q: Tensor, k: Tensor, v: Tensor, lengths_q: list[int], lengths_k: list[int], scale: float, causal: bool
) -> Tensor:
    """float64 的注意力，逐序列、逐 query、逐头地循环；不与任何后端共用代码。
    Attention in float64, looping over sequences, queries and heads; it shares no code with any backend.
    """
    queries, keys, values = (x.double().cpu().numpy() for x in (q, k, v))
    out = np.zeros_like(queries)
    group = queries.shape[1] // keys.shape[1]
    first_q = first_k = 0
    for len_q, len_k in zip(lengths_q, lengths_k):
        for i in range(len_q):
            # 最后一个 query 看得到全部 key，往前每退一个少看一个。
            # The last query sees every key; each one before it sees one less.
            seen = max(0, len_k - (len_q - 1 - i)) if causal else len_k
            if seen == 0:
                continue
            for head in range(queries.shape[1]):
                own_keys = keys[first_k : first_k + seen, head // group]
                own_values = values[first_k : first_k + seen, head // group]
                scores = own_keys @ queries[first_q + i, head] * scale
                weights = np.exp(scores - scores.max())
                out[first_q + i, head] = weights @ own_values / weights.sum()
        first_q += len_q
        first_k += len_k
    return torch.from_numpy(out)


def visible_rows(lengths_q: list[int], lengths_k: list[int], causal: bool) -> Tensor:
    """每个 query 是否至少看得到一个 key。
    Whether each query sees at least one key. [T] bool
    """
    rows = []
    for len_q, len_k in zip(lengths_q, lengths_k):
        rows += [len_k - (len_q - 1 - i) > 0 if causal else len_k > 0 for i in range(len_q)]
    return torch.tensor(rows, dtype=torch.bool)


def page(
    k: Tensor, v: Tensor, lengths: list[int], block_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """把打包的 K、V 放进打乱次序的块里；没用到的槽位全是 NaN，块表用 -1 补齐。
    Put packed K and V into shuffled blocks; unused slots are all NaN, the block table is padded by -1.
    """
    counts = [-(-length // block_size) for length in lengths]
    num_blocks = sum(counts) + 3
    free = torch.randperm(num_blocks, generator=generator).tolist()
    k_cache = torch.full((num_blocks, block_size, *k.shape[1:]), float("nan"), dtype=k.dtype)
    v_cache = torch.full_like(k_cache, float("nan"))
    table = torch.full((len(lengths), max(counts, default=0) + 2), -1, dtype=torch.int32)
    start = 0
    for row, length in enumerate(lengths):
        for column, first in enumerate(range(0, length, block_size)):
            table[row, column] = block = free.pop()
            size = min(block_size, length - first)
            k_cache[block, :size] = k[start + first : start + first + size]
            v_cache[block, :size] = v[start + first : start + first + size]
        start += length
    return k_cache, v_cache, table


def make_problem(case: Case, lengths_q: list[int], lengths_k: list[int], magnitude: float = 1.0) -> Problem:
    """按给定长度造一个随机问题并算出答案。
    Make a random problem of the given lengths and solve it.
    """
    generator = case.generator()

    def random(rows: int, heads: int) -> Tensor:
        return torch.randn(rows, heads, case.head_dim, generator=generator).to(case.dtype)

    q = random(sum(lengths_q), case.num_q_heads) * magnitude
    k, v = random(sum(lengths_k), case.num_kv_heads), random(sum(lengths_k), case.num_kv_heads)
    paged = page(k, v, lengths_k, case.block_size, generator) if case.block_size else (None, None, None)
    reference = attention_oracle(q, k, v, lengths_q, lengths_k, case.scale(), case.causal)
    return Problem(case, lengths_q, lengths_k, q, k, v, *paged, reference)


@lru_cache(maxsize=4)
def varlen_problem(case: Case) -> Problem:
    """`flash_attn_varlen_func` 的问题；各后端先后做同一个，所以留着。
    A problem for `flash_attn_varlen_func`; the backends take the same one in turn, so it is kept.
    """
    lengths = varlen_lengths(case.block_size)
    return make_problem(case, [q for q, _ in lengths], [k for _, k in lengths])


@lru_cache(maxsize=4)
def decode_problem(case: Case, num_queries: int) -> Problem:
    """`flash_attn_with_kvcache` 的问题：每条序列 `num_queries` 个 query。
    A problem for `flash_attn_with_kvcache`: `num_queries` queries a sequence.
    """
    lengths = decode_lengths(case.block_size)
    return make_problem(case, [num_queries] * len(lengths), lengths)


def running_sum(lengths: list[int], device: str) -> Tensor:
    """长度 [3, 5] 变成 [0, 3, 8]，int32。
    Lengths [3, 5] become [0, 3, 8], int32.
    """
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32, device=device)


def step_metadata(problem: Problem, num_decodes: int, device: str = "cpu") -> AttentionMetadata:
    """把问题当作引擎的一步：前 `num_decodes` 条序列解码，其余预填充；每条的 query 就是它的新 token。
    The problem as one step of the engine: the first `num_decodes` sequences decode, the others prefill; the queries of
    each are its new tokens.
    """
    n, block_size, table = num_decodes, problem.case.block_size, problem.block_table
    new, contexts = problem.lengths_q, problem.lengths_k
    assert block_size is not None and table is not None and set(new[:n]) <= {1}
    slots = [
        int(table[row, p // block_size]) * block_size + p % block_size
        for row, (count, context) in enumerate(zip(new, contexts))
        for p in range(context - count, context)
    ]
    return AttentionMetadata(
        num_decodes=n,
        slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
        decode_block_tables=table[:n].to(device),
        cache_seqlens=torch.tensor(contexts[:n], dtype=torch.int32, device=device),
        prefill_block_tables=table[n:].to(device),
        cu_seqlens_q=running_sum(new[n:], device),
        cu_seqlens_k=running_sum(contexts[n:], device),
        max_seqlen_q=max(new[n:], default=0),
        max_seqlen_k=max(contexts[n:], default=0),
        block_size=block_size,
    )


def run_varlen(target: Target, problem: Problem) -> Tensor:
    """让后端做这个问题。
    Have the backend solve the problem.
    """
    case, device = problem.case, target.device
    paged = case.block_size is not None
    k, v = (problem.k_cache, problem.v_cache) if paged else (problem.k, problem.v)
    assert k is not None and v is not None
    return target.create().flash_attn_varlen_func(
        problem.q.to(device),
        k.to(device),
        v.to(device),
        running_sum(problem.lengths_q, device),
        running_sum(problem.lengths_k, device),
        max(problem.lengths_q),
        max(problem.lengths_k),
        softmax_scale=case.softmax_scale,
        causal=case.causal,
        block_table=problem.block_table.to(device) if problem.block_table is not None else None,
    )


def run_decode(target: Target, problem: Problem, backend: AttentionBackend | None = None) -> Tensor:
    """让后端做这个问题，结果摊平成 [B * Sq, Hq, D]。
    Have the backend solve the problem; the result is flattened to [B * Sq, Hq, D].
    """
    backend = backend or target.create()
    device = target.device
    assert problem.k_cache is not None and problem.v_cache is not None and problem.block_table is not None
    out = backend.flash_attn_with_kvcache(
        problem.q.unflatten(0, (len(problem.lengths_q), -1)).to(device),
        problem.k_cache.to(device),
        problem.v_cache.to(device),
        torch.tensor(problem.lengths_k, dtype=torch.int32, device=device),
        problem.block_table.to(device),
        softmax_scale=problem.case.softmax_scale,
        causal=problem.case.causal,
    )
    return out.flatten(0, 1)


def assert_solved(out: Tensor, problem: Problem, tolerance: float | None = None) -> None:
    """整体与最大的相对误差都在容许之内，什么都看不到的行恰好是 0。
    Both the whole and the largest relative error are within the limit, and rows that see nothing are exactly 0.
    """
    case = problem.case
    assert out.dtype == case.dtype
    assert out.shape == problem.q.shape
    tolerance = TOLERANCE[case.dtype] if tolerance is None else tolerance
    difference = out.double().cpu() - problem.reference
    norm = problem.reference.norm()
    assert norm > 0, "an empty problem proves nothing"
    assert float(difference.norm() / norm) <= tolerance
    assert float(difference.abs().max() / problem.reference.abs().max()) <= 2 * tolerance
    blind = ~visible_rows(problem.lengths_q, problem.lengths_k, case.causal)
    assert torch.equal(out.cpu()[blind], torch.zeros_like(out.cpu()[blind]))
