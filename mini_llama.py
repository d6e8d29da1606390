"""mini-llama 的命令行和公共接口。

作为程序：`python mini_llama.py --backend torch` 用内嵌的小模型回答几个问题，不需要 GPU，也不需要下载。
作为库：`from mini_llama import LLM, SamplingParams`。
往下读：`engine/llm.py`（入口）-> `engine/llm_engine.py`（主循环）-> `engine/scheduler.py`（谁运行）。

The command line and the public face of mini-llama.

As a program: `python mini_llama.py --backend torch` answers a few questions with the embedded model; no GPU, no
download. As a library: `from mini_llama import LLM, SamplingParams`.
Read on in `engine/llm.py` (the entry), `engine/llm_engine.py` (the loop), `engine/scheduler.py` (who runs).
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backends import BackendUnavailableError, backend_names, backend_status
from engine.compare import compare_backends
from engine.config import EngineConfig
from engine.llm import LLM
from engine.outputs import CompletionOutput, RequestOutput
from engine.sampling_params import SamplingParams

__all__ = ["LLM", "BackendUnavailableError", "CompletionOutput", "RequestOutput", "SamplingParams", "main"]

BUILT_IN_PROMPTS = [
    "introduce yourself",
    "中国的首都是哪里？",
    "list all prime numbers within 100",
    "what is a KV cache?",
    "什么是前缀缓存？",
    "What is 23 + 45?",
]


def build_parser() -> argparse.ArgumentParser:
    """命令行选项，每条帮助都有中英两种语言。

    The options; each has its help in both languages.
    """
    parser = argparse.ArgumentParser(
        prog="mini_llama.py",
        description="可读的 LLM 推理引擎；不带参数就用内嵌模型回答几个问题。"
        " / A readable LLM inference engine; without arguments the embedded model answers a few questions.",
    )
    add = parser.add_argument
    names = ", ".join(["auto", *backend_names()])
    add("--model", metavar="DIR", help="模型文件夹，默认内嵌模型 / model folder; default: the embedded model")
    add("--backend", default="auto", metavar="NAME", help=f"注意力后端 / attention backend: {names}")
    add("--prompt", action="append", metavar="TEXT", help="问题，可重复 / a question; repeatable")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N（默认 auto）/ (default auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16（默认 auto）/ (default auto)")
    add("--max-tokens", type=int, default=256, metavar="N", help="最多输出多少 token / most output tokens (256)")
    add("--temperature", type=float, metavar="X", help="温度，0 是贪心 / temperature, 0 is greedy")
    add("--top-p", type=float, metavar="X", help="只在累计概率达到 X 的 token 里选 / nucleus sampling")
    add("--top-k", type=int, metavar="K", help="只在前 K 个 token 里选 / choose among the K likeliest")
    add("--seed", type=int, metavar="N", help="采样种子 / sampling seed")
    add("--enforce-eager", action="store_true", help="不用 CUDA graph，便于调试 / no CUDA graphs, for debugging")
    add("--list-backends", action="store_true", help="列出后端及能否使用 / list backends and whether they work")
    add(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="两个后端逐步对比 logits 和 token / compare two backends step by step",
    )
    return parser


def _list_backends(console: Console, config: EngineConfig) -> None:
    """打印后端表。

    Print the table of backends.
    """
    device = config.resolve_device()
    table = Table("backend 后端", "usable 可用", "why not 原因", title=f"device 设备: {device}")
    for status in backend_status(device):
        table.add_row(status.name, "yes 是" if status.usable else "no 否", status.reason)
    console.print(table)


def _params(args: argparse.Namespace, defaults: SamplingParams) -> SamplingParams:
    """命令行没给的，就用模型建议的值。

    What the command line leaves out is taken from the model's recommendation.
    """
    names = ("temperature", "top_p", "top_k", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return replace(defaults, max_tokens=args.max_tokens, **given)


def _print_answers(console: Console, prompts: list[str], outputs: list[RequestOutput]) -> None:
    """逐条打印问与答。

    Print each question and its answer.
    """
    for prompt, output in zip(prompts, outputs):
        # 问题里的方括号要转义，否则 rich 会把它当成样式。
        # Square brackets in a question are escaped, or rich would take them for styles.
        console.print(f"[bold cyan]>[/] {escape(prompt)}", highlight=False, soft_wrap=True)
        console.print(output.outputs[0].text, markup=False, highlight=False, soft_wrap=True)
        console.print()


def _print_summary(console: Console, llm: LLM, outputs: list[RequestOutput], started: float) -> None:
    """收尾的表：多少 token、多快、缓存省了多少。

    The closing table: how many tokens, how fast, what the cache saved.
    """
    runner, stats = llm.engine.model_runner, llm.engine.block_manager.stats
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    begin = min(output.metrics.arrival_time for output in outputs)
    end = max(output.metrics.finished_time or begin for output in outputs)
    first = min(output.metrics.first_token_time or end for output in outputs)
    table = Table(show_header=False, title="summary 小结")
    table.add_row("backend 后端", f"{runner.backend.name}, {runner.device}, {runner.dtype}")
    table.add_row("requests 请求", str(len(outputs)))
    table.add_row("output tokens 输出", f"{tokens} ({tokens / max(end - begin, 1e-9):,.0f} tok/s)")
    table.add_row("first token 首个 token", f"{(first - begin) * 1000:.0f} ms")
    table.add_row("prefix cache 前缀缓存", f"{stats.hit} / {stats.queried} tokens")
    table.add_row("KV blocks KV 页", f"{runner.num_blocks} × {runner.block_size} tokens")
    table.add_row("total time 总用时", f"{time.monotonic() - started:.2f} s")
    console.print(table)


def _compare(console: Console, config: EngineConfig, args: argparse.Namespace, prompts: list[str]) -> None:
    """两个后端逐步对比，打印每步的最大差异。

    Compare two backends step by step and print each step's largest difference.
    """
    # 分词器和默认参数从第一个后端的引擎里取；模型很小，多建一次不心疼。
    # Tokenizer and defaults come from an engine of the first backend; it is cheap to build one more.
    engine = LLM(config.model, backend=args.compare[0], device=config.device, dtype=config.dtype).engine
    params = _params(args, engine.generation_defaults)
    token_ids = [engine.tokenizer.encode_chat([{"role": "user", "content": prompt}]) for prompt in prompts]
    table = Table("step 步", "tokens", "max |Δlogit|", "different tokens 不同的 token")
    worst, parted = 0.0, 0
    for result in compare_backends(config, tuple(args.compare), token_ids, params):
        different = "; ".join(
            f"#{request_id}: {engine.tokenizer.decode([a], False)!r} / {engine.tokenizer.decode([b], False)!r}"
            for request_id, a, b in result.different
        )
        difference = f"{result.max_difference:.2e}"
        table.add_row(str(result.step), str(result.num_tokens), difference, escape(different) or "-")
        worst, parted = max(worst, result.max_difference), parted + len(result.different)
    console.print(table)
    verdict = "tokens equal 全部相同" if parted == 0 else f"{parted} tokens differ 处不同"
    console.print(f"{args.compare[0]} vs {args.compare[1]}: max |Δlogit| {worst:.2e}, {verdict}", highlight=False)


def run(args: argparse.Namespace) -> None:
    """执行命令行要求的事。

    Do what the command line asks.
    """
    started = time.monotonic()
    console = Console(soft_wrap=not sys.stdout.isatty())
    config = EngineConfig(
        model=args.model,
        backend=args.backend,
        device=args.device,
        dtype=args.dtype,
        enforce_eager=args.enforce_eager,
        seed=args.seed,
    )
    if args.list_backends:
        return _list_backends(console, config)
    prompts: list[str] = args.prompt or BUILT_IN_PROMPTS
    if args.compare:
        return _compare(console, config, args, prompts)
    llm = LLM(
        config.model,
        backend=config.backend,
        device=config.device,
        dtype=config.dtype,
        enforce_eager=config.enforce_eager,
        seed=config.seed,
        progress=True,
    )
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    outputs = llm.chat(conversations, _params(args, llm.engine.generation_defaults))
    _print_answers(console, prompts, outputs)
    _print_summary(console, llm, outputs, started)


def main(argv: Sequence[str] | None = None) -> int:
    """命令行入口。用户能造成的错误只打印一行，返回 2；Ctrl-C 返回 130。

    The entry point. What a user can cause prints a single line and returns 2; Ctrl-C returns 130.
    """
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, NotImplementedError, BackendUnavailableError) as error:
        print(f"mini_llama.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted 已中断", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # 管道的另一头（如 head）提前关闭时，安静地退出，不打印一屏 traceback。
    # If the other end of a pipe (head, say) closes early, leave quietly instead of printing a traceback.
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
