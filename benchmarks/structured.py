"""结构化输出花多少时间：同样长的输出，没有语法、正则、JSON Schema 轮流运行；另外单独量编译、一个掩码、前进一次。

贪心，`ignore_eos`，语法在这么多 token 之内写不完，所以各行都恰好输出 `--output-tokens` 个。

What structured outputs cost in time: outputs of equal length without a grammar, with a regular expression and with a
JSON schema take turns; compiling, a mask and an advance are timed by themselves. Greedy with `ignore_eos`, and no
grammar can end within so many tokens, so each row puts out just `--output-tokens`.

Usage: python benchmarks/structured.py [--model DIR] [--repeats N] [--json FILE]
"""

import argparse
import random
import time
from typing import Any

import torch
from common import add_model_options, environment, make_llm, model_name, random_prompts, spread, write_report

from engine.guides import MAX_CHARS, Guides
from mini_llama import LLM, SamplingParams, StructuredOutputsParams

SCHEMA = {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 300}
GRAMMARS: dict[str, StructuredOutputsParams | None] = {
    "no grammar": None,
    "regex": StructuredOutputsParams(regex="([a-z]{1,9} )*"),
    "JSON schema": StructuredOutputsParams(json=SCHEMA),
}
# 恰好到长度的上限。
# Just as long as the limit.
LARGEST = StructuredOutputsParams(choice=[f"choice {number:013}" for number in range(MAX_CHARS // 20)])


def run(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> tuple[float, list[list[int]]]:
    """跑一批，返回秒数和输出。

    Run a batch; seconds and outputs.
    """
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, progress=False)
    seconds = time.perf_counter() - start
    tokens = [output.outputs[0].token_ids for output in outputs]
    assert all(len(each) == params.max_tokens for each in tokens)
    return seconds, tokens


def time_compiling(llm: LLM, wanted: StructuredOutputsParams) -> tuple[float, float]:
    """读一遍词表、编译一个语法，各几毫秒。

    Milliseconds to read the vocabulary, and to compile a grammar.
    """
    vocab_size = llm.engine.model_runner.model_config.vocab_size
    guides, times = Guides(llm.engine.tokenizer, vocab_size), [time.perf_counter()]
    guides.compile(StructuredOutputsParams(regex="a"))
    times.append(time.perf_counter())
    guides.compile(wanted)
    times.append(time.perf_counter())
    return (times[1] - times[0]) * 1e3, (times[2] - times[1]) * 1e3


def time_masks(llm: LLM, wanted: StructuredOutputsParams, tokens: list[int]) -> tuple[float, float]:
    """沿着一份输出走一遍：每个掩码几微秒，每次前进几微秒。

    Walk along an output: microseconds for each mask and for each advance.
    """
    guide, masks, advances = llm.engine.requests.guides.start(wanted, frozenset()), 0.0, 0.0
    for token in tokens:
        times = [time.perf_counter()]
        guide.mask()
        times.append(time.perf_counter())
        guide.advance(token)
        times.append(time.perf_counter())
        masks, advances = masks + times[1] - times[0], advances + times[2] - times[1]
    return masks / len(tokens) * 1e6, advances / len(tokens) * 1e6


def main() -> None:
    """读选项，轮流运行，打印一张表。

    Read the options, run in turns, print a table.
    """
    parser = argparse.ArgumentParser(description="结构化输出花多少时间 / what structured outputs cost")
    add_model_options(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--output-tokens", type=int, default=129)
    args = parser.parse_args()
    if not 2 <= args.output_tokens <= 300:
        parser.error(f"--output-tokens {args.output_tokens}: use 2 to 300, within which no grammar ends")
    llm = make_llm(args, device=args.device, enable_prefix_caching=False)
    vocab_size, rng, results = llm.engine.model_runner.model_config.vocab_size, random.Random(0), []
    llm.engine.requests.guides.compile(StructuredOutputsParams(regex="a"))
    for name, wanted in {**GRAMMARS, "largest": LARGEST}.items():
        if wanted is not None:
            vocabulary, compiling = zip(*(time_compiling(llm, wanted) for _ in range(args.repeats)))
            results.append({"name": name, "vocabulary_ms": spread(vocabulary), "compile_ms": spread(compiling)})
            print(f"{name}: compiled in {results[-1]['compile_ms']['median']:.2f} ms, "
                  f"the vocabulary read in {results[-1]['vocabulary_ms']['median']:.0f} ms")  # fmt: skip
    print(f"{'':14}{'requests':>10}{'ms a token':>12}{'ratio':>8}{'mask us':>10}{'advance us':>12}")
    for count in (1, 32):
        times: dict[str, list[float]] = {name: [] for name in GRAMMARS}
        parts: dict[str, list[tuple[float, float]]] = {name: [] for name in GRAMMARS}
        # 第 0 次是热身，也编译语法，不计入；大家轮流跑，机器忽快忽慢时影响相同。
        # Run 0 warms up, compiles the grammars and does not count; all take turns, so a machine that speeds up or slows
        # down hits all.
        for repeat in range(args.repeats + 1):
            prompts = random_prompts(rng, [args.prompt_tokens] * count, vocab_size)
            for name, wanted in GRAMMARS.items():
                first, total = (
                    run(llm, prompts, SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True,
                                                     structured_outputs=wanted))
                    for length in (1, args.output_tokens)
                )  # fmt: skip
                if repeat > 0:
                    times[name].append((total[0] - first[0]) / (args.output_tokens - 1) * 1e3)
                    if wanted is not None:
                        parts[name].append(time_masks(llm, wanted, total[1][0]))
        for name, values in times.items():
            row: dict[str, Any] = {"name": name, "requests": count, "ms_a_token": spread(values)}
            row["ratio"] = spread([value / free for value, free in zip(values, times["no grammar"])])
            line = f"{name:14}{count:10}{row['ms_a_token']['median']:12.3f}{row['ratio']['median']:8.2f}"
            if parts[name]:
                row["mask_us"], row["advance_us"] = (spread(column) for column in zip(*parts[name]))
                line += f"{row['mask_us']['median']:10.1f}{row['advance_us']['median']:12.1f}"
            print(line)
            results.append(row)
    info = environment(llm) | {"threads": torch.get_num_threads()}
    write_report(args.json, {"model": model_name(args), "environment": info, "repeats": args.repeats,
                             "results": results})  # fmt: skip


if __name__ == "__main__":
    main()
