"""同一台机器、同一次运行里，与 transformers 的 `generate` 比速度。

四种负载：1 个请求，提示词 32 个 token 或 128 个 token；32 个请求，输出等长；32 个请求，输出长短不一。两边用同样的权重、
同样的 token、同样的 dtype，交替运行，取中位数。
transformers 把一批补齐到同长，并一直算到最长的那条结束；长短不一时，差距主要来自这里。
同一张表里还有首个 token 的时间、此后每个 token 的时间、两边相同的 token 占几成（从头数到第一个不同的）；在 GPU 上，
还有两边各自的显存峰值（权重、KV 缓存，加上运行时多用的）。

Speed beside transformers' `generate`, on the same machine and in the same run.

Four workloads: 1 request with a prompt of 32 tokens or of 128; 32 requests of equal output; 32 requests whose outputs
differ in length. Both sides get the same weights, tokens and dtype, take turns, and the median counts. transformers
pads a batch to one length and computes until the longest is done; with different lengths most of the gap comes from
there.

In the same table: the time to the first token, the time of each token after it, and the share of tokens that are equal
on both sides (up to the first that differs); on a GPU also the peak memory of each side (its weights and KV cache, and
what a run needs beyond).

Usage: python benchmarks/compare_hf.py [--model DIR | --config FILE] [--device cpu|cuda] [--only NAME ...] [--json FILE]
"""

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from operator import and_, eq
from typing import Any

import torch
from common import (
    EMBEDDED_MODEL,
    TOKENIZER_FILES,
    add_model_options,
    environment,
    make_llm,
    model_name,
    spread,
    write_report,
)

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
        "1 request, prompt of 128": [(128, scale)],
        "32 requests, equal outputs": [(32, scale)] * 32,
        f"32 requests, outputs of {shortest}-{scale}": [
            (rng.randint(16, 64), rng.randint(shortest, scale)) for _ in range(32)
        ],
    }


# 用了多少秒，各个请求输出了哪些 token。
# The seconds it took, and the tokens of each request.
Timed = tuple[float, list[list[int]]]


def time_ours(llm: LLM, prompts: list[list[int]], lengths: list[int]) -> Timed:
    """运行本引擎；核对每个请求真的输出了那么多 token。

    Run this engine; checks that each request really made so many tokens.
    """
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, progress=False)
    seconds = time.perf_counter() - start
    tokens = [output.outputs[0].token_ids for output in outputs]
    assert list(map(len, tokens)) == lengths
    return seconds, tokens


def time_theirs(model: Any, prompts: list[list[int]], lengths: list[int]) -> Timed:
    """运行 transformers：左侧补齐成一批，一直生成到最长的输出。

    Run transformers: one batch padded on the left, generating until the longest output is done.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    steps = max(lengths)
    start = time.perf_counter()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, pad_token_id=0)
    seconds = time.perf_counter() - start
    assert out.shape[1] == width + steps
    return seconds, [row[:length] for row, length in zip(out[:, width:].tolist(), lengths)]


def equal_tokens(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """从头数到第一个不同的 token，占全部的几成。

    The tokens before the first that differs, as a share of all.
    """
    equal = sum(sum(accumulate(map(eq, *pair), and_)) for pair in zip(ours, theirs))
    return equal / sum(map(len, ours))


def save_random_model(config: str, folder: str) -> None:
    """按配置造一个随机权重的模型，存成 bf16 的 safetensors，两边都从那里读。

    Make a model with random weights from a configuration and save it as safetensors in bf16, for both sides to read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config), dtype=torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(EMBEDDED_MODEL / name, folder)


def allocated(device: torch.device) -> int:
    """此刻占用的显存，字节；CPU 上量不出来，记 0。

    Memory allocated right now, in bytes; 0 on a CPU, where it cannot be told.
    """
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def measure(run: Callable[[], Timed], device: torch.device, static: int) -> tuple[Timed, float]:
    """计时一次，返回它的结果，以及这一边的显存峰值，单位 GB。

    Time one run: its result, and this side's peak memory in GB.

    Args:
        static: 两次运行之间这一边占着的字节；bytes that this side holds between runs
    """
    before = allocated(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timed = run()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return timed, (static + peak - before) / 1e9


def main() -> None:
    """读选项；给的是 `--config`，就先把随机的模型存进临时文件夹。

    Read the options; with `--config` the random model is first saved to a temporary folder.
    """
    parser = argparse.ArgumentParser(description="与 transformers 比速度 / speed beside transformers")
    add_model_options(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output-tokens", type=int, default=128, help="最长的输出 / the longest output")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="只跑这些负载 / run these workloads only")
    args = parser.parse_args()
    if args.backend == "flash":
        parser.error("flash needs blocks of 256, this comparison counts memory in blocks of 16")
    if args.output_tokens < 2:
        parser.error(f"--output-tokens {args.output_tokens}: the time of a token after the first needs at least 2")
    workloads = make_workloads(args.output_tokens)
    if unknown := set(args.only or ()) - workloads.keys():
        parser.error(f"no workload {', '.join(sorted(unknown))}: use {'; '.join(workloads)}")
    name = model_name(args)
    with tempfile.TemporaryDirectory() as folder:
        if args.config:
            save_random_model(args.config, folder)
            args.model, args.config = folder, None
        report = compare(args, {work: workloads[work] for work in args.only or workloads})
    write_report(args.json, {"model": name} | report)


def compare(args: argparse.Namespace, workloads: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """跑完各种负载，打印一张表，返回要写进 JSON 的。

    Run the workloads and print one table; returns what goes into the JSON.
    """
    from transformers import AutoModelForCausalLM
    from transformers import __version__ as transformers_version

    # 块池正好装得下最大的负载，显存峰值才可比；默认的块池会占满整张卡。
    # A pool that just holds the largest workload makes peak memory comparable; by default it fills the card.
    tokens = max(sum(width + length + 256 for width, length in shape) for shape in workloads.values())
    device = EngineConfig(device=args.device).resolve_device()
    start = allocated(device)
    options = {"device": args.device, "dtype": args.dtype, "num_kvcache_blocks": tokens // 16}
    llm = make_llm(args, enable_prefix_caching=False, **options)
    ours_static = allocated(device) - start
    runner = llm.engine.model_runner
    folder = EngineConfig(model=args.model).resolve_model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=runner.dtype, attn_implementation="sdpa")
    model = model.to(device).eval()
    # 没有结束符，一直写到 `max_new_tokens`，与本引擎的 `ignore_eos` 相同；`min_new_tokens` 会禁用它，选出的就不同了。
    # No end token: it writes until `max_new_tokens`, as this engine does with `ignore_eos`; `min_new_tokens` would ban
    # the end token, and the choice would differ.
    model.generation_config.eos_token_id = None
    theirs_static = allocated(device) - start - ours_static
    rng, vocab_size = random.Random(1), runner.model_config.vocab_size
    results = []
    for name, shape in workloads.items():
        lengths = [length for _, length in shape]
        times: dict[str, list[float]] = {key: [] for key in ("ours", "theirs", "ours_first", "theirs_first", "ratio")}
        peaks = {"ours": 0.0, "theirs": 0.0}
        equal = 1.0
        # 第 0 次是热身，不计入；两边轮流跑，机器忽快忽慢时影响相同。
        # Run 0 warms up and does not count; both take turns, so a machine that speeds up or slows down hits both.
        for repeat in range(args.repeats + 1):
            prompts = [[rng.randrange(vocab_size) for _ in range(width)] for width, _ in shape]
            ones = [1] * len(prompts)
            run_ours, run_theirs = partial(time_ours, llm, prompts), partial(time_theirs, model, prompts)
            (ours, our_tokens), our_peak = measure(partial(run_ours, lengths), device, ours_static)
            (theirs, their_tokens), their_peak = measure(partial(run_theirs, lengths), device, theirs_static)
            first = run_ours(ones)[0], run_theirs(ones)[0]
            if repeat > 0:
                row = {"ours": ours, "theirs": theirs, "ours_first": first[0], "theirs_first": first[1]}
                for key, value in (row | {"ratio": theirs / ours}).items():
                    times[key].append(value)
                peaks = {"ours": max(peaks["ours"], our_peak), "theirs": max(peaks["theirs"], their_peak)}
                equal = min(equal, equal_tokens(our_tokens, their_tokens))
        spreads = {key: spread(values) for key, values in times.items()}
        total, later = sum(lengths), max(lengths) - 1
        results.append(
            {"workload": name, "output_tokens": total, "ratio": spreads["ratio"], "equal_tokens": equal}
            | {f"{side}_tok_per_s": total / spreads[side]["median"] for side in ("ours", "theirs")}
            | {f"{side}_ttft_ms": spreads[f"{side}_first"]["median"] * 1e3 for side in ("ours", "theirs")}
            | {
                f"{side}_tpot_ms": (spreads[side]["median"] - spreads[f"{side}_first"]["median"]) / later * 1e3
                for side in ("ours", "theirs")
            }
            | ({f"{side}_peak_gb": peaks[side] for side in ("ours", "theirs")} if device.type == "cuda" else {})
        )
    print("mini-llama / transformers")
    print(
        f"{'workload':32}{'tok/s':>18}{'ratio (min-max)':>20}{'first token ms':>18}{'ms a token':>16}"
        f"{'peak GB':>16}{'equal':>7}"
    )
    for result in results:
        ratio = result["ratio"]
        pairs = {
            key: f"{result[f'ours_{key}']:,.{digits}f} / {result[f'theirs_{key}']:,.{digits}f}"
            for key, digits in (("tok_per_s", 0), ("ttft_ms", 1), ("tpot_ms", 1), ("peak_gb", 2))
            if f"ours_{key}" in result
        }
        print(
            f"{result['workload']:32}{pairs['tok_per_s']:>18}"
            f"{ratio['median']:>8.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
            f"{pairs['ttft_ms']:>18}{pairs['tpot_ms']:>16}{pairs.get('peak_gb', '-'):>16}{result['equal_tokens']:>7.1%}"
        )
    versions = environment(llm) | {"transformers": transformers_version, "threads": torch.get_num_threads()}
    return {"environment": versions, "repeats": args.repeats, "results": results}


if __name__ == "__main__":
    main()
