"""mini-llama 的命令行和公共接口。

作为程序：`python mini_llama.py --backend torch` 用内置的小模型回答几个问题，不需要 GPU，也不需要下载。
作为库：`from mini_llama import LLM, SamplingParams`；asyncio 程序用 `AsyncLLM`。
往下读：`serving/llm.py`（入口）-> `engine/llm_engine.py`（主循环）-> `engine/scheduler.py`（谁运行）。

The command line and the public face of mini-llama.

As a program: `python mini_llama.py --backend torch` answers a few questions with the embedded model; no GPU, no
download. As a library: `from mini_llama import LLM, SamplingParams`; asyncio programs take `AsyncLLM`.
Read on in `serving/llm.py` (the entry), `engine/llm_engine.py` (the loop), `engine/scheduler.py` (who runs).
"""

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# 依赖只有一个方向：命令行 -> `serving` -> `engine` -> `models` -> `layers` -> `backends`；下层从不导入上层。
# Dependencies point one way: command line -> `serving` -> `engine` -> `models` -> `layers` -> `backends`, and never back.
from backends import BackendUnavailableError, backend_names, backend_status
from engine.config import EngineConfig
from engine.llm_engine import load_generation_config
from engine.outputs import CompletionOutput, EngineMetrics, RequestOutput
from engine.sampling_params import SamplingParams
from engine.tokenizer import Message, Tokenizer
from serving.async_llm import AsyncLLM, EngineDeadError
from serving.beam_search import BeamSearchParams
from serving.compare import compare_backends
from serving.llm import LLM

# 使用者只该依赖这几个名字；其余都是内部实现，随时会改。
# Users may rely on these names; all else is internal and may change at any time.
__all__ = [
    "LLM", "AsyncLLM", "BackendUnavailableError", "BeamSearchParams", "CompletionOutput", "EngineDeadError",
    "RequestOutput", "SamplingParams", "main",
]

# 6 个问题一起提交，在 `LLMEngine.step` 下断点，第一步就能看到 6 行的 `schedule`：批处理从这里看起。
# All 6 are submitted together: a breakpoint in `LLMEngine.step` shows a `schedule` of 6 rows at once, which is a batch.
# 内容取自内置模型学过的范围：它是谁、各国首都、素数、术语、两位数加法；问别的，它会说不知道。
# Taken from what the embedded model has learnt: itself, capitals, primes, terms, sums; asked for more, it declines.
BUILT_IN_PROMPTS = [
    "introduce yourself", "中国的首都是哪里？", "list all prime numbers within 100", "what is a KV cache?",
    "什么是前缀缓存？", "What is 23 + 45?",
]

CHAT_HELP = """\
/help    这份帮助 / this help
/reset   忘掉之前的对话 / forget the conversation
/stats   前缀缓存的命中率，上一个回答的速度 / hit rate of the prefix cache, speed of the last answer
/exit    离开，也可以按 Ctrl-D / leave, as Ctrl-D does
Ctrl-C   停下正在写的回答 / stop the answer that is being written"""


def build_parser() -> argparse.ArgumentParser:
    """命令行选项，每条帮助都有中英两种语言。

    The options; each has its help in both languages.
    """
    # 建解析器不加载模型，也不碰 GPU：`--help` 应当马上返回。
    # Building the parser loads no model and touches no GPU: `--help` should return at once.
    parser = argparse.ArgumentParser(
        prog="mini_llama.py",
        description="可读的 LLM 推理引擎；不带参数就用内置模型回答几个问题。"
        " / A readable LLM inference engine; without arguments the embedded model answers a few questions.",
    )
    add = parser.add_argument
    # 不写 `choices`：后端名由注册表检查，作为库使用时报的也是同一个错，并列出可用的名字。
    # No `choices`: the registry checks the name, so the library gives the same error, with the names that there are.
    names = ", ".join(["auto", *backend_names()])
    add("--model", metavar="DIR", help="模型文件夹，默认内置模型 / model folder; default: the embedded model")
    # 想逐行看注意力怎么算，用 `--backend torch`：没有融合，每个中间张量都能在调试器里打开。
    # To watch attention line by line take `--backend torch`: nothing is fused, and every tensor opens in the debugger.
    add("--backend", default="auto", metavar="NAME", help=f"注意力后端 / attention backend: {names}")
    # 默认值必须是 None：`append` 会往默认列表后面追加，给了默认问题，用户的问题就和它们混在一起。
    # The default must be None: `append` adds to a default list and would mix user's and built-in questions.
    add("--prompt", action="append", metavar="TEXT", help="问题，可重复 / a question; repeatable")
    add("--chat", action="store_true", help="交互对话，边写边显示 / talk to the model, answers are streamed")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N（默认 auto）/ (default auto)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16（默认 auto）/ (default auto)")
    # 不用 `SamplingParams` 的 16：那是 vLLM 的默认值，一句话常常说到一半就断了。
    # Not the 16 of `SamplingParams`: that is vLLM's default, and many a sentence would break off halfway.
    add("--max-tokens", type=int, default=256, metavar="N", help="最多输出多少 token / most output tokens (256)")
    # 不设默认值：None 表示“没写，听模型的”，0 表示“我要贪心”，这是两回事。
    # No default: None means "not given, ask the model", 0 means "greedy, please"; they are not the same.
    add("--temperature", type=float, metavar="X", help="温度，0 是贪心 / temperature, 0 is greedy")
    add("--top-p", type=float, metavar="X", help="只在累计概率达到 X 的 token 里选 / nucleus sampling")
    add("--top-k", type=int, metavar="K", help="只在前 K 个 token 里选 / choose among the K likeliest")
    add("--seed", type=int, metavar="N", help="采样种子 / sampling seed")
    # 调试时加上它：重放的 CUDA graph 不经过 Python，断点停不住。
    # Add it for debugging: a replayed CUDA graph does not pass through Python, and no breakpoint is hit.
    add("--enforce-eager", action="store_true", help="不录图、不融合、不重叠 / no CUDA graphs, fusion or overlap")
    # 块池小到装不下所有请求，才看得到排队、抢占和前缀缓存的淘汰：6 个内置问题用 12 个块就够挤。
    # Only a pool too small for all shows waiting, preemption and eviction: 12 blocks are tight for the 6 questions.
    add("--num-kvcache-blocks", type=int, metavar="N", help="KV 块的个数 / number of KV blocks")
    add("--max-num-batched-tokens", type=int, metavar="N", help="每步的 token 预算 / token budget of a step")
    add("--xray", metavar="FILE", help="记录这次运行，写成一个网页 / record the run as a web page")
    add("--xray-trace", metavar="FILE", help="记录成 Perfetto 能打开的 trace / record a trace for Perfetto")
    add("--watch", action="store_true", help="在终端里看每一步 / watch each step in the terminal")
    add("--list-backends", action="store_true", help="列出后端及能否使用 / list backends and whether they work")
    add(
        "--compare", nargs=2, metavar=("A", "B"),
        help="两个后端逐步对比 logits 和 token / compare two backends step by step",
    )
    return parser


def _table(console: Console, *headers: str, **options: Any) -> Table:
    """终端里画框线；重定向到文件时只留对齐的纯文本，方便 grep。

    With lines in a terminal; where the output is redirected, aligned plain text that grep can read.
    """
    return Table(*headers, box=box.HEAVY_HEAD if console.is_terminal else None, **options)


def _list_backends(console: Console, config: EngineConfig) -> None:
    """打印后端表。

    Print the table of backends.
    """
    # 能不能用取决于设备：同一台机器上，`--device cpu` 和 `--device cuda` 的表可以不同。
    # Usable depends on the device: on one machine the tables of `--device cpu` and `--device cuda` may differ.
    device = config.resolve_device()
    table = _table(console, "backend 后端", "usable 可用", "why not 原因", title=f"device 设备: {device}")
    # 用不了的也列出来并写明原因：用户要知道的往往正是“为什么不行”。
    # Unusable ones are listed with their reason: "why not" is often exactly what the user wants to know.
    for status in backend_status(device):
        table.add_row(status.name, "yes 是" if status.usable else "no 否", status.reason)
    console.print(table)


def _params(args: argparse.Namespace, defaults: SamplingParams) -> SamplingParams:
    """命令行没给的，就用模型建议的值。

    What the command line leaves out is taken from the model's recommendation.
    """
    # 优先级：命令行 > 模型的 `generation_config.json` > `SamplingParams` 的默认值。
    # Precedence: command line > the model's `generation_config.json` > the defaults of `SamplingParams`.
    names = ("temperature", "top_p", "top_k", "seed")
    # 必须用 `is not None` 判断：写成 `if value`，用户明确给的 `--temperature 0` 和 `--seed 0` 就被丢掉了。
    # It has to be `is not None`: a plain `if value` would drop an explicit `--temperature 0` or `--seed 0`.
    #   --temperature 0 --top-k 5  ->  {"temperature": 0.0, "top_k": 5}
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    # `replace` 会重新构造，于是重新检查：`--top-p 2` 在这里就报错，不会带病进入引擎。
    # `replace` constructs anew and so checks anew: `--top-p 2` fails here and never reaches the engine.
    return replace(defaults, max_tokens=args.max_tokens, **given)


def _print_answers(console: Console, prompts: list[str], outputs: list[RequestOutput]) -> None:
    """逐条打印问与答。

    Print each question and its answer.
    """
    for prompt, output in zip(prompts, outputs):
        # 问题里的方括号要转义，否则 rich 会把它当成样式。
        # Square brackets in a question are escaped, or rich would take them for styles.
        # `soft_wrap=True` 让 rich 不按终端宽度硬折行：答案里的换行只该来自模型，复制出来才是原文。
        # `soft_wrap=True` breaks no lines: a line break in an answer is the model's own, and copying gives its text.
        console.print(f"[bold cyan]>[/] {escape(prompt)}", highlight=False, soft_wrap=True)
        # 答案更不能当样式解析：模型写出 "[red]" 或 "[/]"，轻则吞字，重则 rich 抛出异常。
        # Still less may an answer be read as markup: a "[red]" or "[/]" by the model would vanish, or make rich raise.
        console.print(output.outputs[0].text, markup=False, highlight=False, soft_wrap=True)
        console.print()


def _hits(metrics: EngineMetrics) -> str:
    """前缀缓存的命中，一行。

    The hits of the prefix cache, in a line.
    """
    hits, queries = metrics.prefix_cache_hits, metrics.prefix_cache_queries
    return f"{hits} / {queries} tokens ({metrics.prefix_cache_hit_rate:.0%})"


def _print_summary(console: Console, llm: LLM, outputs: list[RequestOutput], started: float) -> None:
    """收尾的表：多少 token、多快、缓存省了多少。

    The closing table: how many tokens, how fast, what the cache saved.
    """
    # 数字都取自引擎和各请求自己的记录，不另外计时：命令行看到的与库用户看到的是同一份数据。
    # All numbers come from the engine and the requests' own records: the command line shows what a library user sees.
    runner, metrics = llm.engine.model_runner, llm.engine.metrics()
    # 只数输出 token：吞吐量不算提示词，否则一个长提示词就能把数字抬高几倍。
    # Output tokens only: throughput leaves prompts out, or one long prompt would multiply the number.
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    # 从第一个请求入队到最后一个完成；加载权重的时间不在内，它另计入 `total time`。
    # From the first arrival to the last finish; loading is not included, it is part of `total time`.
    begin = min(output.metrics.arrival_time for output in outputs)
    end = max(output.metrics.finished_time or begin for output in outputs)
    # 没有首个 token 的请求（例如被取消）按 `end` 算，不会让 `min` 遇到 None 而报错。
    # A request without a first token, aborted for instance, counts as `end`, so `min` never meets a None.
    first = min(output.metrics.first_token_time or end for output in outputs)
    table = _table(console, show_header=False, title="summary 小结")
    table.add_row("backend 后端", f"{runner.backend.name}, {runner.device}, {runner.dtype}")
    table.add_row("requests 请求", str(len(outputs)))
    # 除数至少 1e-9：全部在同一时刻结束时也不会除以 0。
    # The divisor is 1e-9 at least: no division by 0, even if all ends in the same instant.
    table.add_row("output tokens 输出", f"{tokens} ({tokens / max(end - begin, 1e-9):,.0f} tok/s)")
    table.add_row("first token 首个 token", f"{(first - begin) * 1000:.0f} ms")
    # 各请求平均的平均；只有 1 个 token 的请求没有“之后的每个”，不算在内。
    # The mean of the requests' means; one of 1 token has no "each after the first" and is left out.
    gaps = [gap for output in outputs if (gap := output.metrics.time_per_output_token) is not None]
    if gaps:
        table.add_row("next tokens 之后每个", f"{sum(gaps) / len(gaps) * 1000:.1f} ms")
    # 同一步进来的请求互相命中不了，因为块算完才登记；所以内置的 6 个问题，命中通常是 0。
    # In one step nobody hits another's blocks, which are registered once computed; so the built-in 6 mostly hit 0.
    table.add_row("prefix cache 前缀缓存", _hits(metrics))
    # 大于 0 就是块不够用：被抢占的请求要重算，`computed` 会比提示词加输出多。
    # Above 0, blocks ran short: what was preempted is recomputed, and `computed` exceeds prompts plus outputs.
    table.add_row("preemptions 抢占", f"{metrics.num_preemptions} ({metrics.num_computed_tokens} tokens computed 算过)")
    # 两数相乘就是 KV 缓存的容量：运行中的请求，提示词加输出，合计最多这么多 token（共用的块只算一次）。
    # Their product is the KV cache's capacity: all running requests, prompts and outputs (shared blocks count once).
    table.add_row("KV blocks KV 块", f"{runner.num_blocks} × {runner.block_size} tokens")
    table.add_row("total time 总用时", f"{time.monotonic() - started:.2f} s")
    console.print(table)


@contextmanager
def _ctrl_c_noted() -> Iterator[list[int]]:
    """其间第一次 Ctrl-C 只记下来，第二次才抛 `KeyboardInterrupt`。

    Meanwhile the first Ctrl-C is only noted; a second one raises `KeyboardInterrupt`.
    """
    # 直接抛出，会打断引擎的半步；而对话之后还要用同一个引擎，所以等到两步之间再停。
    # Raised at once, it would break off in the middle of a step of an engine that the chat goes on to use.
    pressed: list[int] = []

    def note(number: int, _: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _answer(llm: LLM, history: list[Message], params: SamplingParams) -> str:
    """边生成边打印回答，记进 `history`；返回一行统计。

    Print an answer while it is generated and add it to `history`; returns a line of statistics.

    Raises:
        ValueError: the last question is too long, or not valid text
    """
    engine, start = llm.engine, 0
    # 历史加回答要装进 `max_model_len`：装不下就丢掉最早的一问一答，回答至少留得下半个窗口或 `max_tokens`。
    # History and answer must fit `max_model_len`: else the oldest exchanges go, until `max_tokens` or half the window
    # is left for the answer.
    limit = engine.model_runner.max_model_len
    room = limit - min(params.max_tokens, limit // 2)
    while start < len(history) - 1 and len(engine.tokenizer.encode_chat(history[start:])) > room:
        start += 2
    # 这一行会检查问题；它抛错时历史还没动过。
    # This line validates the question; if it raises, the history has not been touched.
    stream = llm.stream_chat(history[start:], params)
    if start:
        del history[:start]
        print(f"[对话太长，忘掉最早的 {start // 2} 轮 / too long: oldest exchanges forgotten: {start // 2}]")
    before, started, pieces = engine.metrics(), time.monotonic(), []
    with _ctrl_c_noted() as pressed, closing(stream):
        for piece in stream:
            pieces.append(piece)
            print(piece, end="", flush=True)
            # 离开 `closing` 就关闭迭代器，请求随之取消；已经写出的留在历史里。
            # Leaving `closing` closes the iterator, and that aborts the request; what was written stays in the history.
            if pressed:
                print(" [已停止 / stopped]", end="")
                break
    print()
    history.append({"role": "assistant", "content": "".join(pieces)})
    after, seconds = engine.metrics(), max(time.monotonic() - started, 1e-9)
    tokens = after.num_generated_tokens - before.num_generated_tokens
    return (
        f"{tokens} tokens, {tokens / seconds:,.0f} tok/s, "
        f"cached 命中 {after.prefix_cache_hits - before.prefix_cache_hits} prompt tokens"
    )


def _chat(llm: LLM, params: SamplingParams) -> None:
    """交互对话：读一行，答一段；每次都把全部历史发给引擎，重复的开头由前缀缓存省下。

    Talk: read a line, answer it. All of the history is sent every time; the prefix cache saves the part it knows.
    """
    # 标准输入被关掉（`<&-`）时是 None。
    # It is None where standard input was closed (`<&-`).
    if sys.stdin is None:
        raise ValueError("--chat reads questions from standard input, which is closed")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        # 导入它，`input` 就能用方向键编辑和翻历史；Windows 上没有。
        # Importing it gives `input` line editing and the arrow keys; Windows has none.
        with suppress(ImportError):
            import readline  # noqa: F401
        print("输入问题，/help 看命令 / ask a question, /help lists the commands")
    history: list[Message] = []
    last = "-"
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return print(end="\n" if terminal else "")
        if line == "/exit":
            return
        if line == "/help":
            print(CHAT_HELP)
        elif line == "/reset":
            history.clear()
            print("[对话已清空 / the conversation is forgotten]")
        elif line == "/stats":
            print(f"prefix cache 前缀缓存  {_hits(llm.engine.metrics())}\nlast answer 上个回答   {last}")
        elif line.startswith("/"):
            print(f"[没有这个命令 / no such command: {line}; /help]")
        elif line:
            history.append({"role": "user", "content": line})
            try:
                last = _answer(llm, history, params)
            except ValueError as error:
                # 这一句问不了（例如太长），不是程序坏了：说一声，忘掉它，接着聊。
                # This question cannot be asked, being too long say, and nothing is broken: say so and go on without it.
                history.pop()
                print(f"error: {error}", file=sys.stderr)


def _compare(console: Console, config: EngineConfig, args: argparse.Namespace, prompts: list[str]) -> None:
    """两个后端逐步对比，打印每步的最大差异。

    Compare two backends step by step and print each step's largest difference.
    """
    # 分词器和默认参数直接从模型文件夹里读，不必为它们再建一个引擎。
    # Tokenizer and defaults are read from the model folder; no engine is built for them.
    folder = config.resolve_model_folder()
    tokenizer = Tokenizer(folder)
    params = _params(args, load_generation_config(folder)[0])
    token_ids = [tokenizer.encode_chat([{"role": "user", "content": prompt}]) for prompt in prompts]
    # float32 应在 1e-3 以内。bf16 不同：16 到 32 之间的相邻两数就差 0.125，只差一个末位便有这么多。
    # In float32 expect less than 1e-3. Not so in bf16: from 16 to 32 its neighbours lie 0.125 apart, just one last bit.
    table = _table(console, "step 步", "tokens", "max |Δlogit|", "different tokens 不同的 token")
    worst, parted = 0.0, 0
    for result in compare_backends(config, tuple(args.compare), token_ids, params):
        # 用 `!r` 打印并保留特殊 token：否则空格、换行和 BOS 在表里看不见，两边看上去一样。
        # Printed by `!r` with special tokens, or blanks, line breaks and BOS are invisible and both sides look alike.
        different = "; ".join(
            f"#{request_id}: {tokenizer.decode([a], False)!r} / {tokenizer.decode([b], False)!r}"
            for request_id, a, b in result.different
        )
        difference = f"{result.max_difference:.2e}"
        table.add_row(str(result.step), str(result.num_tokens), difference, escape(different) or "-")
        # `parted` 数的是选得不同的次数；每次之后两边都改用 A 的 token，所以它们各自独立。
        # `parted` counts differing choices; after each both sides go on with A's token, so one does not cause the next.
        # NaN 与谁比都为假，`max` 会把它丢掉；写成“不大于才保留”，一旦出现就留到最后。
        # NaN compares false with everything and `max` would lose it; kept this way it stays to the end.
        worst = worst if result.max_difference <= worst or worst != worst else result.max_difference
        parted += len(result.different)
    console.print(table)
    verdict = "tokens equal 全部相同" if parted == 0 else f"{parted} tokens differ 处不同"
    console.print(f"{args.compare[0]} vs {args.compare[1]}: max |Δlogit| {worst:.2e}, {verdict}", highlight=False)


def run(args: argparse.Namespace) -> None:
    """执行命令行要求的事。

    Do what the command line asks.
    """
    # 最先开始计时：总用时含加载，那才是敲下回车后等的时间。
    # The clock starts first: the total includes loading, which is what one waits for after pressing Enter.
    started = time.monotonic()
    # 输出不是终端时，rich 按 80 列排版，会把长行截成几段，表格也一样；给足宽度，文件里的一行仍是一行，可以 grep。
    # Without a terminal rich assumes 80 columns and cuts up long lines, those of tables too; given the width, a line in
    # a file stays a line for grep.
    # `emoji=False`：否则问答里的 `:key:` 会被 rich 换成图形。
    # `emoji=False`: or rich would turn a `:key:` in a question or an answer into a picture.
    console = Console(width=None if sys.stdout.isatty() else 1000, emoji=False)
    # 先造配置，下面三条路都从它取值：写错的数（例如 `--seed -1`）在这里就报错，不等模型加载。
    # The configuration first, all three ways below read it: a bad number such as `--seed -1` fails before any loading.
    names = ("model", "backend", "device", "dtype", "enforce_eager", "seed", "num_kvcache_blocks")
    options = {name: getattr(args, name) for name in (*names, "max_num_batched_tokens")}
    config = EngineConfig(**options)
    tracing = args.xray or args.xray_trace or args.watch
    # 重叠循环里两步交错，拍不出“这一步”的照片：记录时改用同步循环，并说一声。
    # The overlapped loop interleaves two steps, and "this step" cannot be pictured: record the synchronous one, say so.
    if tracing and config.resolve_device().type == "cuda" and not args.enforce_eager:
        options["enforce_eager"] = True
        print("xray: 记录的是同步循环，已启用 / records the synchronous loop: --enforce-eager is on", file=sys.stderr)
    # 放在加载之前：后端用不了的时候，正是最需要这张表的时候。
    # Before any loading: when no backend works is just when this table is needed.
    if args.list_backends:
        return _list_backends(console, config)
    # 这里才填默认问题：没有 `--prompt` 时 `args.prompt` 是 None。
    # The default questions enter only here: without `--prompt`, `args.prompt` is None.
    prompts: list[str] = args.prompt or BUILT_IN_PROMPTS
    if args.compare:
        return _compare(console, config, args, prompts)
    llm = LLM(**options, progress=True)
    if args.chat:
        return _chat(llm, _params(args, llm.engine.generation_defaults))
    # 每个问题是一段独立的对话，互相看不到；想让模型记得上文，要把之前的消息一起放进列表。
    # Each question is a conversation of its own; to be remembered, earlier messages have to be sent along.
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    # 单步进入这一行，就跟着一个请求走完全程：`chat` -> `_run` -> `LLMEngine.step`。
    # Step into this line and follow a request all the way: `chat` -> `_run` -> `LLMEngine.step`.
    with ExitStack() as stack:
        # 要记录才导入：平常运行时，记录器的代码一行也不执行。
        # Imported only to record: in an ordinary run not a line of the recorder is executed.
        if tracing:
            from tools.xray import observe

            stack.enter_context(observe(llm.engine, console, args.xray, args.xray_trace, args.watch))
        params = _params(args, llm.engine.generation_defaults)
        # `--watch` 自己占着终端，进度条会和它互相覆盖。
        # `--watch` has the terminal to itself: a progress bar would draw over it.
        quiet: dict[str, Any] = {"progress": False} if args.watch else {}
        outputs = llm.chat(conversations, params, **quiet)
    _print_answers(console, prompts, outputs)
    _print_summary(console, llm, outputs, started)


def main(argv: Sequence[str] | None = None) -> int:
    """命令行入口。用户能造成的错误只打印一行，返回 2；Ctrl-C 返回 130。

    The entry point. What a user can cause prints a single line and returns 2; Ctrl-C returns 130.
    """
    # `argv` 由参数传入：测试可以直接调用 `main(["--list-backends"])`，不必另起进程；None 时才读 `sys.argv`。
    # `argv` is a parameter: tests call `main(["--list-backends"])` without a new process; None means `sys.argv`.
    # 终端不支持某个字符时（例如 ASCII 的环境），打印一个问号，而不是丢掉整个回答。
    # Where the terminal lacks a character (an ASCII locale, say), print a question mark and do not lose the answer.
    # 输入也一样：对话里的一个坏字节不该结束程序。
    # Input alike: a bad byte in a chat should not end the program.
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.chat and (args.prompt or args.compare or args.list_backends):
        parser.error("--chat 不能与 --prompt、--compare、--list-backends 同用 / cannot be combined with them")
    if (args.xray or args.xray_trace or args.watch) and (args.chat or args.compare or args.list_backends):
        parser.error("--xray 与 --watch 不能与 --chat、--compare、--list-backends 同用 / cannot be combined with them")
    try:
        run(args)
    # 只接住用户能造成的错误；引擎的自检失败是 `AssertionError` 或 `RuntimeError`，要连同 traceback 露出来。
    # Catch only what a user can cause; a failed self-check is an `AssertionError` or `RuntimeError`, traceback and all.
    except (ValueError, NotImplementedError, BackendUnavailableError) as error:
        print(f"mini_llama.py: error: {error}", file=sys.stderr)
        # 退出码 2 与 argparse 对错误参数的做法一致，脚本据此分清“用法不对”和“跑的时候坏了”（1）。
        # Exit code 2 is what argparse uses for bad arguments, so scripts tell wrong usage from a crash (1).
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted 已中断", file=sys.stderr)
        # 130 = 128 + 2：shell 约定，被 2 号信号（SIGINT）中断；块已由 `LLM._run` 的 `finally` 归还。
        # 130 = 128 + 2, the shell's code for signal 2 (SIGINT); blocks were returned by the `finally` of `LLM._run`.
        return 130
    return 0


if __name__ == "__main__":
    # 管道的另一头（如 head）提前关闭时，安静地退出，不打印一屏 traceback。
    # If the other end of a pipe (head, say) closes early, leave quietly instead of printing a traceback.
    try:
        code = main()
        # 缓冲区里可能还有没写出去的内容：在这里写，管道断了才会落到下面的 `except`，而不是在退出时报错。
        # Output may still be buffered: flushed here, a broken pipe reaches the `except` below and is no error at exit.
        sys.stdout.flush()
    except BrokenPipeError:
        # 解释器退出时还会再冲一次 stdout：把它改指向 `os.devnull`，那一次就不会再出错。
        # The interpreter flushes stdout once more at exit: pointed at `os.devnull`, that flush cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
