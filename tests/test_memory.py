"""内存：运行中的引擎只占权重、块池和一步的中间结果；结束的序列没有人留着；容器的限额算数。

Memory: a running engine holds weights, pool and one step; finished sequences are kept by nobody; a container's limit
counts.
"""

import gc
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import assert_all_free

import engine.host_memory
import engine.kv_pool
import serving.llm
from backends.cpu_kernels import _PACKED, _PADDED, CPUKernels
from engine.detokenizer import OutputText
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.host_memory import available_cpu_memory
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs /proc/self/statm, which tells a process's memory (Linux)"
)


def resident() -> float:
    """本进程占的内存，单位 MB。

    This process's memory in MB.
    """
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# ---- CPU 的乘法只用几种行数 ----
# ---- products of a CPU take few row counts ----


def test_there_are_few_row_counts() -> None:
    assert len(set(_PADDED.values())) == 18 and len(set(_PACKED.values())) == 16
    assert all(count <= rows <= 2 * count for count, rows in _PADDED.items() if count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_products_are_those_of_the_rows(dtype: torch.dtype) -> None:
    kernels = CPUKernels(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator).to(dtype)
    packed = kernels.pack(weight)
    for count in (*range(70), 95, 129, 200, 255, 256, 257, 300, 511, 512, 513, 1024, 2048, 2049):
        x = torch.randn(count, 32, generator=generator).to(dtype)
        got = kernels.linear(x, weight, None, packed)
        assert got.shape == (count, 48) and got.dtype == dtype
        torch.testing.assert_close(got, torch.nn.functional.linear(x, weight), rtol=2e-2, atol=2e-2)


GROWTH = """
import os, sys
import torch; torch.set_num_threads(1)
from mini_llama import LLM, SamplingParams
llm = LLM(device="cpu", dtype=sys.argv[1], num_kvcache_blocks=128, enable_prefix_caching=False)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
def run(length):
    llm.generate([[5] * length], SamplingParams(temperature=0, max_tokens=1), progress=False)
end = int(sys.argv[2])
run(end)
before = resident()
for length in range(2, end): run(length)
print(resident() - before)
"""


@needs_proc
@pytest.mark.parametrize(
    ("dtype", "end", "limit"),
    [
        ("float32", 302, 60),
        pytest.param("float32", 902, 100, marks=pytest.mark.long),
        pytest.param("bfloat16", 902, 100, marks=pytest.mark.long),
    ],
)
def test_hundreds_of_prompt_lengths_hardly_grow_the_process(dtype: str, end: int, limit: float) -> None:
    command = [sys.executable, "-c", GROWTH, dtype, str(end)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < limit, f"{result.stdout.strip()} MB"


# ---- 结束的序列没有人留着 ----
# ---- finished sequences are kept by nobody ----


def alive() -> Counter[str]:
    gc.collect()
    kinds = {Sequence, OutputText, RequestOutput}
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in kinds)


@pytest.mark.parametrize("overlapped", [False, True])
def test_nothing_is_kept_of_finished_requests(overlapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if overlapped:
        monkeypatch.setattr(serving.llm, "create_engine", OverlappedEngine)
    llm = LLM(device="cpu", num_kvcache_blocks=64, max_model_len=200)
    before = alive()
    params = SamplingParams(temperature=0.9, n=3, logprobs=5, max_tokens=6, presence_penalty=0.1, stop=["zz"])
    llm.generate([[n, 5, 6] * 9 for n in range(20)], params, progress=False)
    list(llm.stream([1, 2, 3], SamplingParams(max_tokens=4)))
    next(llm.stream([1, 2, 3], SamplingParams(max_tokens=40, ignore_eos=True)))
    with pytest.raises(ValueError):
        llm.generate([[1], [10**9]], progress=False)
    # 重叠循环里，多算的那一步下次才收回。
    # In the overlapped loop the extra step is collected by the next call.
    while llm.engine.has_unfinished():
        llm.engine.step()
    assert alive() == before


# ---- 容器的限额 ----
# ---- the limit of a container ----

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": GIB, "a/memory.current": GIB // 2}, GIB // 2),
        ("0::/\n", {"memory.max": GIB, "memory.current": 5 << 20}, GIB - (5 << 20)),
        (
            "0::/a\n",
            {"a/memory.max": GIB, "a/memory.current": GIB, "a/memory.stat": f"anon 1\ninactive_file {GIB // 4}"},
            GIB // 4,
        ),
        (
            "7:cpu:/c\n4:memory:/x/y\n0::/\n",
            {
                "memory/memory.limit_in_bytes": 2 * GIB, "memory/memory.usage_in_bytes": GIB // 2,
                "memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB // 4}",
                "memory/c/memory.limit_in_bytes": 1, "memory/c/memory.usage_in_bytes": 1,
            },
            GIB // 4 * 7,
        ),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": 9}, 64 * GIB),
        ("0::/../a\n", {}, 64 * GIB),
        ("", {}, 64 * GIB),
    ],
    ids=["v2, an outer limit", "v2, the root", "v2, page cache", "v1", "no limit", "a path outside", "no cgroups"],
)
def test_memory_is_what_the_cgroup_leaves(
    cgroup: str, files: dict[str, Any], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = {"/proc/self/cgroup": cgroup, "/proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {64 * GIB // 1024} kB\n"}
    system |= {f"/sys/fs/cgroup/{name}": f"{content}\n" for name, content in files.items()}
    monkeypatch.setattr(engine.host_memory, "_lines", lambda path: system.get(str(path), "").splitlines())
    assert available_cpu_memory() == expected


def test_the_pool_takes_a_quarter_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.kv_pool, "available_cpu_memory", lambda: 64 << 20)
    pool = LLM(device="cpu").engine.pool
    # 一个 token 的 K、V 是 2 * 4 层 * 2 头 * 32 维 * 4 字节。
    # K and V of a token are 2 * 4 layers * 2 heads * 32 dimensions * 4 bytes.
    assert pool.num_blocks * pool.block_size == (16 << 20) // 2048


# ---- 耐久 ----
# ---- a soak ----


@needs_proc
@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("count", [250, pytest.param(10_000, marks=pytest.mark.long)])
def test_soak_with_the_real_model(count: int, overlapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """真的前向：长短、采样、`n`、对数概率、流式、取消混在一起；内存不涨，块全空闲，什么都没留下。

    Real forward passes: mixed lengths, sampling, `n`, log-probabilities, streams and aborts; memory does not grow, all
    blocks are free, nothing is kept.
    """
    if overlapped:
        monkeypatch.setattr(serving.llm, "create_engine", OverlappedEngine)
    llm = LLM(device="cpu", num_kvcache_blocks=128, seed=1)
    rng, before, base, seen = random.Random(2), alive(), 0.0, Counter[str]()

    def request() -> tuple[list[int], SamplingParams]:
        prompt = [7] * rng.choice([0, 0, 16, 40]) + [rng.randrange(2000) for _ in range(rng.choice([1, 3, 9, 30, 200]))]
        greedy = rng.random() < 0.5
        return prompt, SamplingParams(
            temperature=0 if greedy else 0.8, top_k=rng.choice([0, 20]), top_p=rng.choice([1, 0.9]),
            max_tokens=rng.choice([1, 2, 5, 12]), n=rng.choice([1, 1, 1, 3]), logprobs=rng.choice([None, None, 2]),
            stop=rng.choice([None, "的", ["e", "a b"]]), repetition_penalty=rng.choice([1, 1, 1.1]),
            ignore_eos=rng.random() < 0.5,
        )

    done = 0
    while done < count:
        batch = [request() for _ in range(rng.randrange(1, 40))]
        done += len(batch)
        kind = rng.random()
        if kind < 0.2:
            for prompt, params in batch[:5]:
                if params.n == 1:
                    for _ in llm.stream(prompt, params):
                        seen["pieces"] += 1
                        if rng.random() < 0.2:
                            break
        elif kind < 0.4:
            names = [llm.engine.add_request(*each) for each in batch]
            while llm.engine.has_unfinished():
                if rng.random() < 0.3:
                    seen["aborts"] += llm.engine.abort(rng.choice(names)) is not None
                llm.engine.step()
        else:
            outputs = llm.generate([each[0] for each in batch], [each[1] for each in batch], progress=False)
            seen.update(str(each.finish_reason) for output in outputs for each in output.outputs)
            del outputs
        if done >= min(1000, count // 2) and not base:
            gc.collect()
            base = resident()
    while llm.engine.has_unfinished():
        llm.engine.step()
    assert alive() == before
    assert_all_free(llm.engine.block_manager)
    grown = resident() - base
    assert grown < 100, f"{grown:.0f} MB"
    assert seen["length"] and seen["stop"] and seen["aborts"] and seen["pieces"]
