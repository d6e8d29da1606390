"""一次 all-reduce 要多久：张量并行的一层里有两次，行数不同，搬的字节就不同。

GPU 上各录进一张 CUDA graph 再重放，与引擎里一样；除了 NCCL，还测 PyTorch 的对称内存上的两种写法：
各自读完别人的再加（one-shot），和各加一段再分发（two-shot）。CPU 上只有 gloo。

How long an all-reduce takes: a layer has two under tensor parallelism, and the bytes go by the number of rows.
On GPUs each is recorded in a CUDA graph and replayed, as in the engine; beside NCCL stand two forms on PyTorch's
symmetric memory: each rank reads all others' and adds (one-shot), or adds a part and deals it out (two-shot). On a CPU
there is gloo alone.

Usage: torchrun --nproc-per-node 2 benchmarks/all_reduce.py [--hidden-size N] [--rows M ...] [--json FILE]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from common import environment, spread, write_report

from layers.ranks import LOCAL_CUDA, SPEAKS, WORLD_SIZE, connect

# 一张图里几次：少了，量到的是启动图的时间。
# How many in a graph: with few, the launch of the graph is measured.
CALLS = 40


def micros(call: Callable[[], object], device: torch.device) -> float:
    """一次的微秒数。

    Microseconds of one call.
    """

    def repeat() -> None:
        for _ in range(CALLS):
            call()

    run = repeat
    # 先真跑一遍：通信要建立连接，录制期间不能做。
    # Once for real first: connections are made then, and cannot be while recording.
    repeat()
    if device.type == "cuda":
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            repeat()
        run = graph.replay
        run()
        torch.cuda.synchronize()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(10):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / 10 / CALLS * 1e6


def calls(rows: int, hidden_size: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """名字 -> 求和的一种写法。

    The name -> a form of the sum.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.zeros(rows, hidden_size, dtype=dtype, device=device)
    if device.type == "cpu":
        return {"gloo": lambda: dist.all_reduce(x)}
    from torch.distributed import _symmetric_memory as symmetric

    shared, group = symmetric.empty(rows, hidden_size, dtype=dtype, device=device), dist.group.WORLD.group_name
    symmetric.rendezvous(shared, group)
    shared.zero_()
    return {
        "nccl": lambda: dist.all_reduce(x),
        "one-shot": lambda: torch.ops.symm_mem.one_shot_all_reduce(shared, "sum", group),
        "two-shot": lambda: torch.ops.symm_mem.two_shot_all_reduce_(shared, "sum", group),
    }


def main() -> None:
    """读选项，逐个测，打印一张表。

    Read the options, measure one after the other, print a table.
    """
    parser = argparse.ArgumentParser(description="一次 all-reduce 要多久 / how long an all-reduce takes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hidden-size", type=int, default=3072, help="Llama-3.2-3B: 3072")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256, 2048, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if WORLD_SIZE == 1:
        parser.error("only one process: start it with torchrun --nproc-per-node 2")
    device = torch.device(LOCAL_CUDA if args.device == "cuda" else args.device)
    connect(WORLD_SIZE, device, strict=False)
    results: list[dict[str, Any]] = []
    for rows in args.rows:
        ways = calls(rows, args.hidden_size, device)
        times = {name: spread([micros(call, device) for _ in range(args.repeats)]) for name, call in ways.items()}
        results.append({"rows": rows, "us": times})
        if SPEAKS:
            print(f"{rows:6} rows", *(f"{name} {value['median']:8.1f} us" for name, value in times.items()), sep="  ")
    info = environment() | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    write_report(args.json, {"environment": info, "repeats": args.repeats, "ranks": WORLD_SIZE,
                             "hidden_size": args.hidden_size, "results": results})  # fmt: skip


if __name__ == "__main__":
    main()
