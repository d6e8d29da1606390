"""`test_ranks.py` 用 torchrun 起几个这样的进程；同样的场景，它也在自己的进程里用一个 rank 跑一遍，好作比较。

`test_ranks.py` starts several of these by torchrun; the same scenarios run in its own process on one rank, to compare.

Usage: torchrun --nproc-per-node N tests/ranks_program.py MODELS RESULTS SCENARIO ...
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import torch  # noqa: E402
from engine_helpers import featured_requests, mixed_requests, run_requests  # noqa: E402

import engine.kv_pool  # noqa: E402
from engine.config import EngineConfig  # noqa: E402
from engine.gpu.overlapped_engine import OverlappedEngine  # noqa: E402
from engine.guides import StructuredOutputsParams  # noqa: E402
from engine.llm_engine import LLMEngine  # noqa: E402
from engine.outputs import RequestOutput  # noqa: E402
from engine.sampling_params import SamplingParams  # noqa: E402
from layers.ranks import WORLD_SIZE  # noqa: E402
from serving.beam_search import BeamSearchParams  # noqa: E402
from serving.llm import LLM  # noqa: E402

# 名字 -> 造它的参数；KV 头有 2 个也有 4 个，词表有除得尽的，也有除不尽的。
# Name -> how it is made; with 2 KV heads and with 4, vocabularies that divide and one that does not.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "vocab_size": 2307},
    "qwen2": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen2-tied": {},
    "qwen3": {"num_key_value_heads": 4},
    "qwen3-untied": {"tie_word_embeddings": False},
    # 列数切成 4 份仍是 32 的倍数，int4 才切得开。
    # Columns that are multiples of 32 also when cut in 4: only then can int4 be cut.
    "wide": {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "head_dim": 32},
}
DEVICE = os.environ.get("RANKS_DEVICE", "cpu")
# 块池小到一直抢占，预算小到一直分段。
# A pool so small that preemption never ends, a budget so small that chunking never does.
CROWDED = {"num_kvcache_blocks": 20, "kvcache_block_size": 8, "max_num_batched_tokens": 24, "max_model_len": 160}
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def make(models: Path, model: str, size: int, **options: Any) -> LLM:
    """`size` 个 rank 的引擎，严格模式。

    An engine of `size` ranks in strict mode.
    """
    name = str(models / model) if (models / model).exists() else model
    options = {"num_kvcache_blocks": 400, "device": DEVICE, "seed": 5, **options}
    return LLM(name, tensor_parallel_size=size, strict=True, **options)


def told(outputs: list[RequestOutput]) -> list[Any]:
    """结果里要比较的一切。

    All of the results that is compared.
    """
    reports = [
        [
            (each.token_ids, each.text, each.finish_reason, each.stop_reason, each.cumulative_logprob)
            for each in output.outputs
        ]
        for output in outputs
    ]
    return [[output.num_cached_tokens, *report] for output, report in zip(outputs, reports)]


def requests_of(kind: str) -> list[Any]:
    """长短、采样方式各不相同的请求。

    Requests of many lengths and ways of sampling.
    """
    if kind == "featured":
        return featured_requests(16)
    return mixed_requests(2000, 6 if kind == "few" else 12, seed=3)


def run_mixed(models: Path, model: str, size: int, kind: str = "mixed", **options: Any) -> dict[str, Any]:
    """跑一批混合的请求。

    Run a batch of mixed requests.
    """
    run = run_requests(make(models, model, size, **options), requests_of(kind))
    reports = [
        None if (logprobs := output.outputs[0].logprobs) is None else
        [[entry.logprob for entry in report.values()] for report in logprobs] for output in run.outputs
    ]
    return {
        "tokens": run.tokens, "seeds": run.seeds, "logprobs": reports, "preemptions": run.num_preemptions,
        "hits": run.cache_hits,
    }


# ---- 各个场景 ----
# ---- the scenarios ----


def outputs_and_stops(models: Path, size: int) -> Any:
    """`n` 份输出，停止字符串，对数概率，束搜索，没有种子的请求，结构化输出。

    `n` outputs, stop strings, log-probabilities, beams, requests without seeds, structured outputs.
    """
    llm = make(models, "tiny-poet", size, seed=None if size > 1 else 5)
    params = [
        SamplingParams(n=3, seed=1, max_tokens=12, logprobs=2), SamplingParams(seed=2, max_tokens=40, stop=["a", "的"]),
        SamplingParams(seed=4, max_tokens=12, structured_outputs=StructuredOutputsParams(regex="[a-f ]{5,20}")),
        replace(GREEDY, logprobs=5),
    ]
    outputs = told(llm.generate(["a fish", "the color", "床前明月光", "to put"], params, progress=False))
    beams = llm.beam_search(["a fish", "春"], BeamSearchParams(beam_width=3, max_tokens=6))
    found = [[(beam.tokens, beam.cum_logprob) for beam in each.sequences] for each in beams]
    return {"outputs": outputs, "beams": found}


def seeds(models: Path, size: int) -> Any:
    """没有种子的请求：各个 rank 抽到的一样，两次启动则不一样。

    Requests without seeds: all ranks draw the same, two starts do not.
    """
    drawn = []
    for _ in range(2):
        llm = make(models, "llama", size, seed=None)
        drawn.append(llm.engine.requests.prepare([1, 2], SamplingParams()).seed)
    assert drawn[0] != drawn[1]
    return drawn


def chat(models: Path, size: int) -> Any:
    """内置模型回答问题。

    The embedded model answers.
    """
    llm = make(models, "tiny-llama", size)
    questions = ["What is the capital of France?", "什么是前缀缓存？", "What is 23 + 45?"]
    return told(llm.chat([[{"role": "user", "content": each}] for each in questions], progress=False))


def aborts(models: Path, size: int) -> Any:
    """几步之后取消一个请求，别的照常；同样的开头再来一遍，命中缓存；两种循环都这样走。

    A request is aborted after some steps and the others go on; the same beginning comes again and hits the cache. Both
    loops do it.
    """
    options = {"model": models / "llama", "device": DEVICE, "seed": 5, "strict": True, "tensor_parallel_size": size}
    return [abort_one(loop(EngineConfig(**options, **CROWDED))) for loop in (LLMEngine, OverlappedEngine)]


def abort_one(engine: LLMEngine) -> Any:
    """走完之后，每个请求的结果。

    The results of all requests, once all are through.
    """
    names = [engine.add_request(list(range(40 + i)), replace(GREEDY, max_tokens=30)) for i in range(6)]
    finished = {}
    for step in range(400):
        if step == 7:
            finished["aborted"] = engine.abort(names[2])
        if step == 20:
            engine.add_request(list(range(40)), GREEDY, "again")
        finished |= {output.request_id: output for output in engine.step()}
    assert not engine.has_unfinished() and engine.scheduler.num_preemptions > 0
    return [told([finished[name]]) for name in sorted(finished)]


def streams(models: Path, size: int) -> Any:
    """两个交错的流，一个提前关闭。

    Two interleaved streams, one closed early.
    """
    llm = make(models, "tiny-poet", size)
    params = SamplingParams(seed=3, max_tokens=24)
    with closing(llm.stream("a bird", params)) as first, closing(llm.stream("the river", params)) as second:
        pieces = [next(first), next(second), next(first)]
        first.close()
        pieces += list(second)
    assert not llm.engine.has_unfinished()
    return pieces


def same_pool(models: Path, size: int) -> Any:
    """内存不同的 rank 得到同样大的块池。

    Ranks with different memory get a pool of the same size.
    """
    real = engine.kv_pool.available_cpu_memory
    engine.kv_pool.available_cpu_memory = lambda: (1 << 26) - (int(os.environ.get("RANK", 0)) << 20)
    try:
        return make(models, "llama", size, num_kvcache_blocks=None).engine.pool.num_blocks
    finally:
        engine.kv_pool.available_cpu_memory = real


def memory(models: Path, size: int) -> Any:
    """一个 rank 的权重和一个 KV 块占多少字节。

    Bytes of a rank's weights and of a KV block.
    """
    runner = make(models, "qwen3-untied", size).engine.model_runner
    weights = sum(each.nbytes for each in runner.model.parameters())
    return [weights, runner.model.attention_layers()[0].cache().k[0].nbytes]


def diverging_tokens(models: Path, size: int) -> Any:
    """最后一个 rank 在第 4 步记下另一个 token；说得出是哪一步、哪个 rank。

    The last rank records another token in step 4; the error names step and rank.
    """
    engine = make(models, "llama", size).engine
    engine.add_request([1, 2, 3], GREEDY)
    real, steps = engine.sampler.choose, 0

    def choose(*args: Any) -> list[list[int]]:
        nonlocal steps
        steps += 1
        tokens = real(*args)
        return [[9]] if engine.ranks.rank == size - 1 and steps == 4 else tokens

    engine.sampler.choose = choose  # type: ignore[method-assign]
    return error_of(engine.step)


def diverging_calls(models: Path, size: int) -> Any:
    """只有 rank 1 取消了一个请求：下一步的安排就不同了。

    Rank 1 alone aborts a request: the schedule of the next step differs.
    """
    engine = make(models, "llama", size).engine
    names = [engine.add_request([1, 2, 3], GREEDY) for _ in range(2)]
    for _ in range(5):
        engine.step()
    if engine.ranks.rank == 1:
        engine.abort(names[0])
    return error_of(engine.step)


def error_of(step: Callable[[], object]) -> str:
    """走到出错为止。

    Step until it fails.
    """
    try:
        for _ in range(12):
            step()
    except RuntimeError as error:
        return str(error)
    return "no error"


SCENARIOS: dict[str, Callable[[Path, int], Any]] = {
    **{name: lambda models, size, name=name: run_mixed(models, name, size) for name in MODELS},
    "featured": lambda models, size: run_mixed(models, "llama", size, "featured"),
    "crowded": lambda models, size: run_mixed(models, "qwen2-tied", size, **CROWDED),
    "torch": lambda models, size: run_mixed(models, "llama-biases", size, backend="torch", enforce_eager=True),
    "int8": lambda models, size: run_mixed(models, "wide", size, quantization="int8", dtype="float32"),
    "int4": lambda models, size: run_mixed(models, "wide", size, quantization="int4", dtype="float32"),
    "gptq": lambda models, size: run_mixed(models, "gptq", size, dtype="float32"),
    "kv-int8": lambda models, size: run_mixed(models, "wide", size, kv_cache_dtype="int8"),
    "ngram": lambda models, size: run_mixed(models, "llama", size, speculative_config={"method": "ngram"}),
    "draft": lambda models, size: run_mixed(
        models, "tiny-poet", size, "few", speculative_config={"model": "tiny-poet-draft"}, num_kvcache_blocks=12,
        max_model_len=160,
    ),
    **{f.__name__.replace("_", "-"): f for f in (
        outputs_and_stops, seeds, chat, aborts, streams, same_pool, memory, diverging_tokens, diverging_calls,
    )},
}  # fmt: skip


def endless(models: Path) -> None:
    """一直生成，等着被杀死或中断。

    Generate for ever, waiting to be killed or interrupted.
    """
    llm = make(models, "tiny-poet", WORLD_SIZE)
    # 连换行一次写出：`print` 分两次，两个 rank 的就可能交错。
    # The line break goes with the line: `print` writes it by itself, and lines of two ranks may mix.
    sys.stdout.write(f"pid {os.getpid()} rank {llm.engine.ranks.rank}\n")
    sys.stdout.flush()
    while True:
        llm.generate([[5] * 8] * 4, replace(GREEDY, max_tokens=500), progress=False)


def main() -> None:
    """跑各个场景，把结果写成 JSON，每个 rank 一个文件。

    Run the scenarios and write their results as JSON, a file for each rank.
    """
    models, results, *names = sys.argv[1:]
    torch.set_num_threads(1)
    if names == ["endless"]:
        # 后台作业里 SIGINT 被忽略：换成 Python 自己的处理函数。
        # In background jobs SIGINT is ignored: give it Python's own handler.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        endless(Path(models))
    found, seconds = {}, {}
    for name in names:
        began = time.perf_counter()
        found[name] = SCENARIOS[name](Path(models), WORLD_SIZE)
        seconds[name] = time.perf_counter() - began
    Path(results, f"{os.environ['RANK']}.json").write_text(json.dumps({"found": found, "seconds": seconds}))


if __name__ == "__main__":
    main()
