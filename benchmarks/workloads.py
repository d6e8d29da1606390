"""一个模型的全部负载：造一次引擎，逐个负载跑几遍，记下最好的和差得最远的。

`random-256` 是 256 个请求，提示词与输出的长度都在 100 到 1024 之间均匀随机；`n=8` 是 8 个请求，提示词各 128 个 token，
输出各 512 个。TTFT 是 `max_tokens=1` 的总时间，TPOT =（总时间 - TTFT）/（输出 - 1），ITL 是相邻两步之间的间隔。

All workloads of one model: the engine is made once, each workload runs some times, and the best and the worst are kept.

`random-256` is 256 requests, prompt and output lengths uniform in 100 to 1024; `n=8` is 8 requests with prompts of 128
tokens and 512 outputs. TTFT is the total with `max_tokens=1`, TPOT = (total - TTFT) / (outputs - 1), ITL is the gap
between steps.

Usage: python benchmarks/workloads.py --config FILE [--only NAME ...] [--json FILE]
       torchrun --nproc-per-node 2 benchmarks/workloads.py --config FILE ...
"""

import argparse
import random
import time
from typing import Any, NamedTuple

from common import add_model_options, environment, make_llm, model_name, random_prompts, spread, write_report
from report import cell

from layers.ranks import SPEAKS
from mini_llama import LLM, SamplingParams


def random_256() -> list[tuple[int, int]]:
    """种子固定，次序固定：先是每个提示词的长度和内容，然后才是所有输出长度，与同类引擎的测法一致。

    A fixed seed and order: each prompt's length and ids first, all output lengths after, as engines of this kind do.
    """
    rng = random.Random(0)
    lengths = []
    for _ in range(256):
        lengths.append(rng.randint(100, 1024))
        _ = [rng.randint(0, 10000) for _ in range(lengths[-1])]
    return [(length, rng.randint(100, 1024)) for length in lengths]


class Workload(NamedTuple):
    """一种负载。

    A workload.

    Attributes:
        requests: 每个请求的（自己的提示词长度，输出长度）；each request's (own prompt length, output length)
        metrics: 要哪几个数；which figures are wanted
        sampling: 采样参数；sampling parameters
        shared: 所有提示词共同的开头有多长；the length of the beginning that all prompts share
    """

    requests: list[tuple[int, int]]
    metrics: tuple[str, ...]
    sampling: dict[str, Any]
    shared: int = 0

    def scaled(self, scale: int, fewer_outputs: int = 1) -> "Workload":
        """请求数和各个长度都缩小 `scale` 倍，至少是 1，输出至少是 2。

        The number of requests and all lengths are divided by `scale`, to 1 at least and outputs to 2.

        Args:
            fewer_outputs: 输出再缩小这么多倍；outputs are divided by so much again
        """
        count = max(1, len(self.requests) // scale)
        requests = [
            (max(1, prompt // scale), max(2, output // scale // fewer_outputs))
            for prompt, output in self.requests[:count]
        ]
        return self._replace(requests=requests, shared=self.shared // scale)


OUTPUT, INPUT = ("output_tok_per_s",), ("input_tok_per_s",)
LATENCY = ("ttft_ms", "tpot_ms", "itl_p99_ms")
GREEDY = {"temperature": 0.0}
RANDOM_256 = random_256()
WORKLOADS = {
    "random-256": Workload(RANDOM_256, OUTPUT, {"temperature": 0.6}),
    "random-256-filtered": Workload(RANDOM_256, OUTPUT, {"temperature": 0.8, "top_k": 50, "top_p": 0.95}),
    "random-256-penalty": Workload(RANDOM_256, OUTPUT, {"temperature": 0.6, "repetition_penalty": 1.1}),
    "random-256-logprobs": Workload(RANDOM_256, OUTPUT, {"temperature": 0.6, "logprobs": 5}),
    "n=1": Workload([(128, 512)], LATENCY, GREEDY),
    "n=8": Workload([(128, 512)] * 8, LATENCY, GREEDY),
    "n=64": Workload([(128, 512)] * 64, LATENCY, GREEDY),
    "n=1, top_p": Workload([(128, 512)], LATENCY, {"temperature": 0.6, "top_p": 0.95}),
    "prefill": Workload([(2048, 4)] * 64, INPUT, GREEDY),
    "8x16384": Workload([(16384, 128)] * 8, ("input_tok_per_s", "tpot_ms"), GREEDY),
    "shared": Workload([(64, 64)] * 256, OUTPUT, {"temperature": 0.6}, shared=2048),
    "32 outputs": Workload([(512, 256)], ("seconds",), {"temperature": 0.6, "n": 32}),
}


def run(llm: LLM, workload: Workload, rng: random.Random, max_tokens: int | None = None) -> tuple[float, list[float]]:
    """跑一遍，返回总秒数和各步之间的间隔；核对真的输出了那么多 token。

    One run: the total seconds and the gaps between steps; checks that so many tokens were really put out.
    """
    # 每次都是新的随机 token，前缀缓存只帮得上 `shared` 和 `n`。
    # New random tokens each time, so that the prefix cache helps with `shared` and `n` alone.
    vocab_size = llm.engine.model_runner.model_config.vocab_size
    beginning, *own = random_prompts(rng, [workload.shared, *(prompt for prompt, _ in workload.requests)], vocab_size)
    outputs = [max_tokens or output for _, output in workload.requests]
    params = [SamplingParams(ignore_eos=True, max_tokens=output, **workload.sampling) for output in outputs]
    start = last = time.perf_counter()
    for prompt, one in zip(own, params):
        llm.engine.add_request(beginning + prompt, one)
    gaps, finished = [], []
    while llm.engine.has_unfinished():
        finished += llm.engine.step()
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    made = sum(len(output.token_ids) for request in finished for output in request.outputs)
    assert made == sum(outputs) * workload.sampling.get("n", 1)
    return last - start, gaps


def measure(llm: LLM, workload: Workload, rng: random.Random) -> dict[str, float]:
    """跑一遍，得到这种负载要的数。

    One run, for the figures that the workload wants.
    """
    first = run(llm, workload, rng, max_tokens=1)[0] if "tpot_ms" in workload.metrics else 0.0
    seconds, gaps = run(llm, workload, rng)
    outputs = [output for _, output in workload.requests]
    # 头两步是预填充和等它的一步。
    # The first two steps are the prefill and one that waits for it.
    steps = sorted(gaps[2:] or gaps)
    # 要 TPOT 的，预填充的速度按 `max_tokens=1` 的那遍算；`prefill` 的 4 个输出算在时间里。
    # Where TPOT is wanted, prefill is that of the run with `max_tokens=1`; with `prefill` its 4 outputs are included.
    figures = {
        "output_tok_per_s": sum(outputs) * workload.sampling.get("n", 1) / seconds,
        "input_tok_per_s": sum(workload.shared + prompt for prompt, _ in workload.requests) / (first or seconds),
        "seconds": seconds,
        "ttft_ms": first * 1e3,
        "tpot_ms": (seconds - first) / (max(outputs) - 1) * 1e3,
        "itl_p99_ms": steps[len(steps) * 99 // 100] * 1e3,
    }
    return {metric: figures[metric] for metric in workload.metrics}


def main() -> None:
    """逐个负载测量，边测边打印、边写 JSON。

    Measure each workload, and print and write the JSON as it goes.
    """
    parser = argparse.ArgumentParser(description="全部负载 / all workloads")
    add_model_options(parser)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--quantization", help="权重量化 / quantize the weights")
    parser.add_argument("--kv-cache-dtype", default="auto", help="KV 缓存的类型 / type of the KV cache")
    parser.add_argument("--scale", type=int, default=1, help="请求数和长度缩小几倍 / divide counts and lengths")
    args = parser.parse_args()
    llm = make_llm(args, quantization=args.quantization, kv_cache_dtype=args.kv_cache_dtype)
    report: dict[str, Any] = {"model": model_name(args), "environment": environment(llm), "scale": args.scale}
    report |= {"repeats": args.repeats, "results": {}}
    rng = random.Random(1)
    for name in args.only:
        # 热身的一遍输出短些，不计入。
        # The run that warms up has shorter outputs and does not count.
        measure(llm, WORKLOADS[name].scaled(args.scale, fewer_outputs=8), rng)
        runs = [measure(llm, WORKLOADS[name].scaled(args.scale), rng) for _ in range(args.repeats)]
        report["results"][name] = {metric: spread([each[metric] for each in runs]) for metric in runs[0]}
        figures = [f"{metric} {cell(metric, values)}" for metric, values in report["results"][name].items()]
        if SPEAKS:
            print(f"{name:20}  {'  '.join(figures)}", flush=True)
        write_report(args.json, report)


if __name__ == "__main__":
    main()
