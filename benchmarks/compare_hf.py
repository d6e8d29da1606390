"""同一台机器、同一次运行里，与 transformers 的 `generate` 比速度。

三种负载：1 个请求；32 个请求，输出等长；32 个请求，输出长短不一。两边用同样的 token、同样的 dtype，交替运行，取中位数。
transformers 把一批补齐到同长，并一直算到最长的那条结束；长短不一时，差距主要来自这里。

Speed beside transformers' `generate`, on the same machine and in the same run.

Three workloads: 1 request; 32 requests of equal output; 32 requests whose outputs differ in length. Both sides get the
same tokens and dtype, take turns, and the median counts. transformers pads a batch to one length and computes until
the longest is done; with different lengths most of the gap comes from there.

Usage: python benchmarks/compare_hf.py [--model DIR] [--device cpu] [--json FILE]
"""

import argparse
import random
import statistics
import time
from typing import Any

import torch
from common import environment, write_report

from engine.config import EngineConfig
from mini_llama import LLM, SamplingParams


def make_workloads(scale: int) -> dict[str, list[tuple[int, int]]]:
    """每种负载：每个请求的（提示长度，输出长度）。

    Each workload: the (prompt length, output length) of each request.
    """
    rng = random.Random(0)
    shortest = min(8, scale)
    return {
        "1 request": [(32, scale)],
        "32 requests, equal outputs": [(32, scale)] * 32,
        f"32 requests, outputs of {shortest}-{scale}": [
            (rng.randint(16, 64), rng.randint(shortest, scale)) for _ in range(32)
        ],
    }


def time_ours(llm: LLM, prompts: list[list[int]], lengths: list[int]) -> float:
    """本引擎用多少秒；核对每个请求真的输出了那么多 token。

    Seconds that this engine takes; checks that each request really made so many tokens.
    """
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, progress=False)
    seconds = time.perf_counter() - start
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    return seconds


def time_theirs(model: Any, prompts: list[list[int]], lengths: list[int]) -> float:
    """transformers 用多少秒：左侧补齐成一批，一直生成到最长的输出。

    Seconds that transformers takes: one batch padded on the left, generating until the longest output is done.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    steps = max(lengths)
    start = time.perf_counter()
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=0
    )
    seconds = time.perf_counter() - start
    assert out.shape[1] == width + steps
    return seconds


def main() -> None:
    """跑完三种负载，打印表格，可写成 JSON。

    Run the three workloads, print a table, and write JSON if asked.
    """
    from transformers import AutoModelForCausalLM
    from transformers import __version__ as transformers_version

    parser = argparse.ArgumentParser(description="与 transformers 比速度 / speed beside transformers")
    parser.add_argument("--model", help="模型文件夹，默认内嵌模型 / model folder; default: the embedded model")
    parser.add_argument("--backend", default="sdpa")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="每种负载计时几次 / timed runs of each workload")
    parser.add_argument("--output-tokens", type=int, default=128, help="最长的输出 / the longest output")
    parser.add_argument("--json", metavar="FILE", help="结果写到文件 / write the results to a file")
    args = parser.parse_args()

    config = EngineConfig(model=args.model, device=args.device)
    llm = LLM(args.model, backend=args.backend, device=args.device, enable_prefix_caching=False)
    runner = llm.engine.model_runner
    model = AutoModelForCausalLM.from_pretrained(
        config.resolve_model_folder(), dtype=runner.dtype, attn_implementation="sdpa"
    )
    model = model.to(runner.device).eval()
    rng = random.Random(1)
    results = []
    for name, shape in make_workloads(args.output_tokens).items():
        lengths = [length for _, length in shape]
        ours, theirs = [], []
        # 第 0 次是热身，不计入；两边轮流跑，机器忽快忽慢时影响相同。
        # Run 0 warms up and does not count; both take turns, so a machine that speeds up or slows down hits both.
        for repeat in range(args.repeats + 1):
            vocab_size = runner.model_config.vocab_size
            prompts = [[rng.randrange(vocab_size) for _ in range(width)] for width, _ in shape]
            pair = time_ours(llm, prompts, lengths), time_theirs(model, prompts, lengths)
            if repeat > 0:
                ours.append(pair[0])
                theirs.append(pair[1])
        ratios = [b / a for a, b in zip(ours, theirs)]
        results.append(
            {
                "workload": name,
                "output_tokens": sum(lengths),
                "ours_tok_per_s": sum(lengths) / statistics.median(ours),
                "transformers_tok_per_s": sum(lengths) / statistics.median(theirs),
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    print(f"{'workload':32}{'mini-llama tok/s':>18}{'transformers tok/s':>20}{'ratio (min-max)':>22}")
    for row in results:
        spread = f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        print(f"{row['workload']:32}{row['ours_tok_per_s']:18,.0f}{row['transformers_tok_per_s']:20,.0f}{spread:>22}")
    versions = environment(llm) | {"transformers": transformers_version, "threads": torch.get_num_threads()}
    write_report(args.json, versions | {"results": results})


if __name__ == "__main__":
    main()
