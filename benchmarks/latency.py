"""延迟：n 个 128 token 的提示词，各输出 512 个 token，贪心。

TTFT 是 `max_tokens=1` 的总时间；TPOT =（总时间 - TTFT）/ 511；ITL 是相邻两步之间的间隔，看它是否稳定。

Latency: n prompts of 128 tokens, 512 output tokens each, greedy.

TTFT is the total with `max_tokens=1`; TPOT = (total - TTFT) / 511; ITL is the gap between steps and shows whether it is
steady.

Usage: python benchmarks/latency.py --config FILE [--json FILE]
"""

import argparse
import random
import statistics
import time

from common import add_model_options, environment, make_llm, random_prompts, spread, write_report

from mini_llama import LLM, SamplingParams


def run_once(llm: LLM, prompts: list[list[int]], max_tokens: int) -> tuple[float, list[float]]:
    """跑一遍，返回总秒数和各步之间的间隔。

    One run: total seconds, and the gaps between steps.
    """
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    start = last = time.perf_counter()
    for prompt in prompts:
        llm.engine.add_request(prompt, params)
    gaps, finished = [], []
    while llm.engine.has_unfinished():
        finished += llm.engine.step()
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    assert sum(len(output.outputs[0].token_ids) for output in finished) == len(prompts) * max_tokens
    return last - start, gaps


def main() -> None:
    """对每个 n 打印 TTFT、TPOT 和 ITL。

    Print TTFT, TPOT and ITL for each n.
    """
    parser = argparse.ArgumentParser(description="延迟 / latency")
    add_model_options(parser)
    parser.add_argument("--output-tokens", type=int, default=512)
    parser.add_argument("--n", type=int, nargs="+", default=[1, 8, 64])
    args = parser.parse_args()
    llm = make_llm(args)
    vocab_size = llm.engine.model_runner.model_config.vocab_size
    rng = random.Random(0)
    rows = []
    for n in args.n:
        firsts, per_token, gaps = [], [], []
        for repeat in range(args.repeats + 1):
            first, _ = run_once(llm, random_prompts(rng, [128] * n, vocab_size), 1)
            total, steps = run_once(llm, random_prompts(rng, [128] * n, vocab_size), args.output_tokens)
            if repeat > 0:
                firsts.append(first * 1e3)
                per_token.append((total - first) / (args.output_tokens - 1) * 1e3)
                gaps += steps[2:]
        itl = statistics.quantiles(gaps, n=100)
        row = {"n": n, "ttft_ms": spread(firsts), "tpot_ms": spread(per_token)}
        row |= {"itl_ms_p50": itl[49] * 1e3, "itl_ms_p99": itl[98] * 1e3}
        rows.append(row)
        print(
            f"n={n:3}  TTFT {row['ttft_ms']['median']:7.2f} ms  TPOT {row['tpot_ms']['median']:6.3f} ms"
            f" ({row['tpot_ms']['min']:.3f}-{row['tpot_ms']['max']:.3f})"
            f"  ITL p50 {row['itl_ms_p50']:.3f} p99 {row['itl_ms_p99']:.3f} ms",
            flush=True,
        )
    write_report(
        args.json,
        {
            "benchmark": "latency",
            "config": args.config or args.model,
            "environment": environment(llm),
            "output_tokens": args.output_tokens,
            "results": rows,
        },
    )


if __name__ == "__main__":
    main()
