"""同一台机器、同一次运行里，与 transformers 的 `generate` 比速度。

三种负载：1 个请求；32 个请求，输出等长；32 个请求，输出长短不一。两边用同样的 token、同样的 dtype，交替运行，取中位数。
transformers 把一批补齐到同长，并一直算到最长的那条结束；长短不一时，差距主要来自这里。
同一张表里还有首个 token 的时间；在 GPU 上，还有两边各自的显存峰值（权重、KV 缓存，加上运行时多用的）。

Speed beside transformers' `generate`, on the same machine and in the same run.

Three workloads: 1 request; 32 requests of equal output; 32 requests whose outputs differ in length. Both sides get the
same tokens and dtype, take turns, and the median counts. transformers pads a batch to one length and computes until
the longest is done; with different lengths most of the gap comes from there.

In the same table: the time to the first token, and on a GPU the peak memory of each side (its weights and KV cache, and
what a run needs beyond).

Usage: python benchmarks/compare_hf.py [--model DIR | --config FILE] [--device cpu|cuda] [--json FILE]
"""

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import add_model_options, environment, make_llm, spread, write_report

from engine.config import EngineConfig
from mini_llama import LLM, SamplingParams


def make_workloads(scale: int) -> dict[str, list[tuple[int, int]]]:
    """每种负载：每个请求的（提示词长度，输出长度）。

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


def load_theirs(args: argparse.Namespace, dtype: torch.dtype, device: torch.device) -> Any:
    """同一个模型，由 transformers 加载；给的是 `--config` 就用随机权重。

    The same model, loaded by transformers; random weights with `--config`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if args.config is None:
        folder = EngineConfig(model=args.model).resolve_model_folder()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device)
    else:
        with device:
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(args.config), dtype=dtype, attn_implementation="sdpa"
            )
    return model.eval()


def allocated(device: torch.device) -> int:
    """此刻占用的显存，字节；CPU 上量不出来，记 0。

    Memory allocated right now, in bytes; 0 on a CPU, where it cannot be told.
    """
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def measure(run: Callable[[], float], device: torch.device, static: int) -> tuple[float, float]:
    """计时一次，返回秒数，以及这一边的显存峰值，单位 GB。

    Time one run: the seconds, and this side's peak memory in GB.

    Args:
        static: bytes that this side holds between runs
    """
    before = allocated(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = run()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return seconds, (static + peak - before) / 1e9


def main() -> None:
    """跑完三种负载，打印一张表，可写成 JSON。

    Run the three workloads, print one table, and write JSON if asked.
    """
    from transformers import __version__ as transformers_version

    parser = argparse.ArgumentParser(description="与 transformers 比速度 / speed beside transformers")
    add_model_options(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output-tokens", type=int, default=128, help="最长的输出 / the longest output")
    args = parser.parse_args()
    if args.backend == "flash":
        parser.error("flash needs blocks of 256, this comparison counts memory in blocks of 16")

    workloads = make_workloads(args.output_tokens)
    # 块池正好装得下最大的负载，显存峰值才可比；默认的块池会占满整张卡。
    # A pool that just holds the largest workload makes peak memory comparable; by default it fills the card.
    tokens = max(sum(width + length + 256 for width, length in shape) for shape in workloads.values())
    device = EngineConfig(device=args.device).resolve_device()
    start = allocated(device)
    llm = make_llm(args, device=args.device, enable_prefix_caching=False, num_kvcache_blocks=tokens // 16)
    ours_static = allocated(device) - start
    runner = llm.engine.model_runner
    model = load_theirs(args, runner.dtype, device)
    theirs_static = allocated(device) - start - ours_static
    rng, vocab_size = random.Random(1), runner.model_config.vocab_size
    results = []
    for name, shape in workloads.items():
        lengths = [length for _, length in shape]
        times: dict[str, list[float]] = {key: [] for key in ("ours", "theirs", "ours_first", "theirs_first", "ratio")}
        peaks = {"ours": 0.0, "theirs": 0.0}
        # 第 0 次是热身，不计入；两边轮流跑，机器忽快忽慢时影响相同。
        # Run 0 warms up and does not count; both take turns, so a machine that speeds up or slows down hits both.
        for repeat in range(args.repeats + 1):
            prompts = [[rng.randrange(vocab_size) for _ in range(width)] for width, _ in shape]
            ones = [1] * len(prompts)
            ours = measure(partial(time_ours, llm, prompts, lengths), device, ours_static)
            theirs = measure(partial(time_theirs, model, prompts, lengths), device, theirs_static)
            first = time_ours(llm, prompts, ones), time_theirs(model, prompts, ones)
            if repeat > 0:
                row = {"ours": ours[0], "theirs": theirs[0], "ours_first": first[0], "theirs_first": first[1]}
                for key, value in (row | {"ratio": theirs[0] / ours[0]}).items():
                    times[key].append(value)
                peaks = {"ours": max(peaks["ours"], ours[1]), "theirs": max(peaks["theirs"], theirs[1])}
        spreads = {key: spread(values) for key, values in times.items()}
        total = sum(lengths)
        results.append(
            {"workload": name, "output_tokens": total, "ratio": spreads["ratio"]}
            | {f"{side}_tok_per_s": total / spreads[side]["median"] for side in ("ours", "theirs")}
            | {f"{side}_ttft_ms": spreads[f"{side}_first"]["median"] * 1e3 for side in ("ours", "theirs")}
            | ({f"{side}_peak_gb": peaks[side] for side in ("ours", "theirs")} if device.type == "cuda" else {})
        )
    print("mini-llama / transformers")
    print(f"{'workload':32}{'tok/s':>18}{'ratio (min-max)':>20}{'first token ms':>18}{'peak GB':>16}")
    for result in results:
        ratio = result["ratio"]
        pairs = {
            key: f"{result[f'ours_{key}']:,.{digits}f} / {result[f'theirs_{key}']:,.{digits}f}"
            for key, digits in (("tok_per_s", 0), ("ttft_ms", 1), ("peak_gb", 2))
            if f"ours_{key}" in result
        }
        print(
            f"{result['workload']:32}{pairs['tok_per_s']:>18}"
            f"{ratio['median']:>8.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
            f"{pairs['ttft_ms']:>18}{pairs.get('peak_gb', '-'):>16}"
        )
    versions = environment(llm) | {"transformers": transformers_version, "threads": torch.get_num_threads()}
    write_report(args.json, versions | {"results": results})


if __name__ == "__main__":
    main()
