"""注意力核函数：每个后端的写缓存、解码、预填充各用多少微秒，达到带宽和算力上限的几成。

每个测量把若干次启动录进一张 CUDA graph 再重放，启动间隙不算在内；数据轮换着用，超过 60 MB 的 L2，量到的才是显存。

Attention kernels: the microseconds of each backend's store, decode and prefill, and their share of the ceilings of
bandwidth and arithmetic.

Each measurement records several launches in a CUDA graph and replays it, so that gaps between launches do not count;
data is rotated beyond the 60 MB of L2, so that memory is measured and not the cache.

Usage: python benchmarks/attention.py [--json FILE]
"""

import argparse
import random
import statistics
from collections.abc import Callable

import torch
from common import environment, write_report

from backends import backend_status, create_backend
from backends.base import AttentionBackend
from backends.quantized_cache import quantize

HEADS, KV_HEADS, HEAD_DIM = 24, 8, 128


def measure(launch: Callable[[], object], launches: int) -> float:
    """一次启动多少微秒，7 次重放的中位数。

    Microseconds of a launch, the median of 7 replays.
    """
    for _ in range(3):
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            launch()
    times = []
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / launches * 1e3)
    return statistics.median(times)


def ceilings() -> tuple[float, float]:
    """实测的上限：拷贝带宽（TB/s）和 bf16 矩阵乘法（TFLOP/s）。

    The measured ceilings: copy bandwidth (TB/s) and bf16 matrix products (TFLOP/s).
    """
    source = torch.empty(1 << 30, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    # 用一个逐元素的核函数，而不是 `copy_`：录进图里的 `copy_` 走拷贝引擎，跑不满带宽。
    # An elementwise kernel and not `copy_`: recorded in a graph, that goes to the copy engine, which is slower.
    copy = measure(lambda: torch.neg(source, out=target), 3)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = measure(lambda: a @ b, 5)
    return 2 * source.nbytes / copy / 1e6, 2 * 8192**3 / product / 1e6


class Cache:
    """几条序列的分页缓存，页随机散布。

    The paged cache of some sequences, blocks scattered at random.
    """

    def __init__(self, lengths: list[int], block_size: int, codes: torch.dtype | None = None) -> None:
        counts = [-(-length // block_size) for length in lengths]
        shape = (sum(counts), block_size, KV_HEADS, HEAD_DIM)
        self.k, self.v = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        self.scales: dict[str, torch.Tensor] = {}
        if codes is not None:
            (self.k, k_descale), (self.v, v_descale) = quantize(self.k, codes), quantize(self.v, codes)
            self.scales = {"k_descale": k_descale, "v_descale": v_descale}
        order = torch.randperm(sum(counts))
        table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
        start = 0
        for row, count in enumerate(counts):
            table[row, :count] = order[start : start + count]
            start += count
        self.table = table.cuda()
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device="cuda")


def decode(
    backend: AttentionBackend, lengths: list[int], block_size: int, codes: torch.dtype | None = None
) -> tuple[float, float]:
    """解码：微秒，TB/s（只数 K、V 的字节）。

    Decode: microseconds and TB/s (bytes of K and V only).

    Args:
        codes: 量化的缓存里编码的类型；the type of the codes in a quantized cache
    """
    num_bytes = sum(lengths) * KV_HEADS * HEAD_DIM * 2 * (codes or torch.bfloat16).itemsize
    copies = max(1, int(200e6 // num_bytes) + 1)
    caches = [Cache(lengths, block_size, codes) for _ in range(copies)]
    q = torch.randn(len(lengths), 1, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    turn = iter(range(1 << 30))

    def launch() -> torch.Tensor:
        cache = caches[next(turn) % copies]
        return backend.flash_attn_with_kvcache(
            q, cache.k, cache.v, cache.lengths, cache.table, causal=True, **cache.scales
        )

    micros = measure(launch, max(20, copies))
    return micros, num_bytes / micros / 1e6


def prefill(backend: AttentionBackend, lengths: list[int], block_size: int) -> tuple[float, float]:
    """预填充：微秒，TFLOP/s（因果，只数看得见的一半）。

    Prefill: microseconds and TFLOP/s (causal, only the visible half counts).
    """
    cache = Cache(lengths, block_size)
    total, longest = sum(lengths), max(lengths)
    q = torch.randn(total, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    starts = torch.nn.functional.pad(cache.lengths.cumsum(0, dtype=torch.int32), (1, 0))

    def launch() -> torch.Tensor:
        return backend.flash_attn_varlen_func(
            q, cache.k, cache.v, starts, starts, longest, longest, causal=True, block_table=cache.table
        )

    micros = measure(launch, 10)
    return micros, sum(4 * HEADS * HEAD_DIM * n * n / 2 for n in lengths) / micros / 1e6


def store(backend: AttentionBackend, tokens: int, block_size: int) -> tuple[float, float]:
    """写缓存：微秒，TB/s（读加写）。

    Store: microseconds and TB/s (read plus written).
    """
    cache = Cache([1 << 17], block_size)
    key, value = (torch.randn(tokens, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    slots = torch.randperm(1 << 17, device="cuda")[:tokens]
    micros = measure(lambda: backend.store_kvcache(key, value, cache.k, cache.v, slots), 20)
    return micros, 4 * key.nbytes / micros / 1e6


def main() -> None:
    """对能录进 CUDA graph 的后端逐一测量。

    Measure each backend that can be recorded in a CUDA graph.
    """
    parser = argparse.ArgumentParser(description="注意力核函数 / attention kernels")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    random.seed(0)
    mixed = [random.randint(512, 1024) for _ in range(256)]
    bandwidth, arithmetic = ceilings()
    print(f"ceilings: copy {bandwidth:.2f} TB/s, bf16 product {arithmetic:.0f} TFLOP/s")
    rows = []
    for status in backend_status("cuda"):
        if not status.usable:
            print(f"{status.name}: {status.reason}")
            continue
        backend = create_backend(status.name, "cuda")
        if not backend.supports_cuda_graphs:
            continue
        for block_size in sorted({backend.default_block_size, 256}):
            cases = [
                ("decode 256 x 512-1024", decode(backend, mixed, block_size), "TB/s", bandwidth),
                ("decode 64 x 1024", decode(backend, [1024] * 64, block_size), "TB/s", bandwidth),
                ("decode 8 x 1024", decode(backend, [1024] * 8, block_size), "TB/s", bandwidth),
                ("decode 1 x 2048", decode(backend, [2048], block_size), "TB/s", bandwidth),
                ("prefill 16 x 1024", prefill(backend, [1024] * 16, block_size), "TFLOP/s", arithmetic),
                ("store 8192 tokens", store(backend, 8192, block_size), "TB/s", bandwidth),
            ]
            for codes in backend.code_dtypes if block_size == backend.default_block_size else ():
                name = f"decode 256 x 512-1024, {str(codes).removeprefix('torch.')}"
                cases.append((name, decode(backend, mixed, block_size, codes), "TB/s", bandwidth))
            for name, (micros, rate), unit, ceiling in cases:
                row = {"backend": status.name, "block_size": block_size, "case": name, "us": micros}
                rows.append(row | {"rate": rate, "unit": unit, "share_of_ceiling": rate / ceiling})
                print(
                    f"{status.name:7} block {block_size:3}  {name:38}{micros:9.1f} us {rate:8.2f} {unit:8}"
                    f"{rate / ceiling:6.0%}",
                    flush=True,
                )
    report = {"environment": environment(), "results": rows}
    write_report(args.json, report | {"ceilings": {"copy_tb_per_s": bandwidth, "bf16_tflop_per_s": arithmetic}})


if __name__ == "__main__":
    main()
