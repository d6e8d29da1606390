"""显示：终端里是 rich 的进度条和表格，输出被重定向时是纯文本。只看引擎的计数，不影响引擎。

Display: rich bars and tables on a terminal, plain text where the output is redirected. It reads the engine's counters
and changes nothing.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from backends import backend_status
from engine.llm_engine import LLMEngine
from engine.outputs import EngineMetrics, RequestOutput
from engine.sequence import Sequence
from engine.tokenizer import Tokenizer
from models.quantized import number_types
from serving.compare import StepComparison, show_token
from serving.prompts import NOT_FINITE

# 每秒最多刷新 10 次：显示不该拖慢它所显示的东西。
# At most 10 refreshes a second: a display should not slow down what it displays.
#   10 ms/step: 100 calls/s -> 10 updates/s, 90 early returns
_REFRESH_SECONDS = 0.1
# C0、DEL 和 C1：ESC 写成 "\x1b"。
# C0, DEL and C1: ESC is spelt "\x1b".
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
# 没有好好说完的回答，后面加上的话。
# What is added to an answer that did not end by itself.
MARKS = {
    "length": "[截断/cut:--max-tokens]",
    "abort": "[已停止 / stopped]",
    "error": f"[出错：分数成了 NaN 或无穷大（换 float32 试试），或语法没留下 token / error: {NOT_FINITE}]",
}


class GenerationProgress:
    """`LLM.generate` 的进度：完成了几个请求、预填充与解码的速度、队列长度、KV 占用。

    Progress of `LLM.generate`: requests done, prefill and decode speed, queue lengths, KV use.
    """

    def __init__(self, engine: LLMEngine, sequences: list[Sequence], progress: Progress, task: TaskID) -> None:
        self._engine, self._sequences, self._progress, self._task = engine, sequences, progress, task
        # 记下起点：引擎的计数器从启动累计至今，第 2 次 `generate` 若不减掉从前的，一开始就会显示天文数字。
        # The starting point: counters run since start-up; not subtracted, the 2nd `generate` opens with absurd speeds.
        self._shown_at, self._before = time.monotonic(), engine.metrics()

    def update(self) -> None:
        """每步之后调用；离上次刷新太近就什么也不做。

        Called after every step; does nothing if the last refresh is too recent.
        """
        # 每步都会调用，所以快的一支放在最前：只读一次时钟，做一次比较。
        # Called in every step, so the cheap way out stands first: one look at the clock and one comparison.
        elapsed = time.monotonic() - self._shown_at
        if elapsed < _REFRESH_SECONDS:
            return
        now, before = self._engine.metrics(), self._before
        generated = now.num_generated_tokens - before.num_generated_tokens
        # 每个输出 token 之后都要被算一次，所以“算过的减去生成的”就是提示词部分。
        # Each output token is computed once later, so "computed minus generated" is the prompts' part.
        # 例外是最后一个输出 token，它不再被算：所以每个请求少计 1 个，仅供显示，无妨。
        # But the last output token is never computed: each request counts 1 too few, which a display can bear.
        #   prompt 100, output 5: computed 100 + 4 = 104; 104 - 5 = 99
        prefilled = max(0, now.num_computed_tokens - before.num_computed_tokens - generated)
        # 抢占后的重算也落在预填充里：等待数涨、预填充速度高而完成数不动，就是块池太小。
        # Recomputation shows as prefill: a busy prefill, a growing queue, nothing done: the pool is too small.
        self._progress.update(
            self._task,
            # KV 接近 100% 而 `waiting` 大于 0，是块池太小；KV 空着却在排队，是 `max_num_seqs` 或预算太小。
            # KV near 100% with `waiting` above 0: too small a pool. KV idle with a queue: `max_num_seqs` or the budget.
            completed=sum(seq.request_finished for seq in self._sequences),
            status=f"prefill {prefilled / elapsed:,.0f} tok/s · decode {generated / elapsed:,.0f} tok/s · "
            f"running {now.num_running} waiting {now.num_waiting} · KV {now.kv_cache_usage:.0%}",
        )
        # 时间和计数要一起往前移：速度等于两者的增量相除，只移一个，下一次就算错。
        # Time and counts move on together: a speed divides the growth of both, so moving only one spoils the next.
        self._shown_at, self._before = time.monotonic(), now


def _bar(console: Console, enabled: bool, *further: ProgressColumn) -> Progress:
    """说明、进度条、完成了几个，再加上 `further`。

    What it is, the bar, how many are done, and then `further`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), *further)
    # 结束后擦掉进度条，终端里只留答案。
    # The bar is erased at the end; only the answers stay on the terminal.
    # 不是终端就不画：CI 日志里的进度条，是满屏的控制字符。
    # Without a terminal nothing is drawn: in a CI log a progress bar is a screenful of control characters.
    return Progress(*columns, console=console, transient=True, disable=not (enabled and console.is_terminal))


@contextmanager
def generation_progress(engine: LLMEngine, sequences: list[Sequence], enabled: bool) -> Iterator[GenerationProgress]:
    """在一次 `generate` 期间显示进度；结束时，非终端输出一行总结。

    Show progress during one `generate`; where the output is no terminal, print a single line at the end.
    """
    # 进度写到 stderr：`python mini_llama.py > answers.txt` 时，文件里只有答案和小结。
    # Progress goes to stderr: after `python mini_llama.py > answers.txt` the file holds answers and summary only.
    console = Console(file=sys.stderr)
    started, generated = time.monotonic(), engine.num_generated_tokens
    with _bar(console, enabled, TimeElapsedColumn(), TextColumn("{task.fields[status]}")) as progress:
        task = progress.add_task("generating 生成中", total=len(sequences), status="")
        # `yield` 之前是进入 `with`，之后是离开；没有 `try`，所以出错或 Ctrl-C 时不会再打印下面的总结。
        # Before `yield` we enter `with`, after it we leave; there is no `try`, so an error or Ctrl-C skips the summary.
        yield GenerationProgress(engine, sequences, progress, task)
    # 重定向时至少留一行：几小时后翻日志，也能看出那次跑了多少、多快。
    # When redirected leave one line at least: hours later the log still tells how much was run, and how fast.
    if enabled and not console.is_terminal:
        tokens, seconds = engine.num_generated_tokens - generated, time.monotonic() - started
        print(f"{len(sequences)} requests, {tokens} output tokens, {seconds:.2f} s", file=sys.stderr)


@contextmanager
def loading_progress(enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """启动时的进度条：加载权重，在 GPU 上还要编译核函数、录图；给出 `on_progress` 回调；不是终端就不显示。

    A bar while the engine starts: weights load and, on a GPU, kernels are compiled and graphs recorded. It is the
    `on_progress` callback; nothing where the output is no terminal.
    """
    with _bar(Console(file=sys.stderr), enabled) as progress:
        # 权重按张量计数而不是按字节：读到哪个张量都知道，字节数却要先把文件头全扫一遍；之后是图，按张数。
        # Weights are counted in tensors, not bytes: the loader meets them one by one, bytes would need all file headers
        # first; then come the graphs, counted one by one.
        # 总数此刻还不知道，要等加载器第一次回调；None 让进度条先来回滚动。
        # The total is unknown until the loader first calls back; None lets the bar pulse until then.
        task = progress.add_task("starting 启动中", total=None)
        yield lambda loaded, total: progress.update(task, completed=loaded, total=total)


# ---- 表格 ----
# ---- tables ----


def make_table(console: Console, *headers: str, **options: Any) -> Table:
    """终端里画框线；重定向到文件时只留对齐的纯文本，方便 grep。

    With lines in a terminal; where the output is redirected, aligned plain text that grep can read.
    """
    return Table(*headers, box=box.HEAVY_HEAD if console.is_terminal else None, **options)


def print_backends(console: Console, device: torch.device) -> None:
    """打印后端表。

    Print the table of backends.
    """
    # 能不能用取决于设备：同一台机器上，`--device cpu` 和 `--device cuda` 的表可以不同。
    # Usable depends on the device: on one machine the tables of `--device cpu` and `--device cuda` may differ.
    table = make_table(console, "backend 后端", "usable 可用", "why not 原因", title=f"device 设备: {device}")
    # 用不了的也列出来并写明原因：用户要知道的往往正是“为什么不行”。
    # Unusable ones are listed with their reason: "why not" is often exactly what the user wants to know.
    for status in backend_status(device):
        table.add_row(status.name, "yes 是" if status.usable else "no 否", status.reason)
    console.print(table)


def printable(text: str) -> str:
    """控制字符写成看得见的样子，换行和制表符除外：模型写出的 ESC 能改颜色、移光标，甚至改掉终端的标题。

    Control characters spelt out, but for newline and tab: an ESC that a model writes can change colours, move the
    cursor, even rename the terminal.
    """
    return text.translate(_CONTROLS)


def print_answers(console: Console, prompts: list[str], outputs: list[RequestOutput]) -> None:
    """逐条打印问与答。

    Print each question and its answer.
    """
    for prompt, output in zip(prompts, outputs):
        # 问题里的方括号要转义，否则 rich 会把它当成样式。
        # Square brackets in a question are escaped, or rich would take them for styles.
        # `soft_wrap=True` 让 rich 不按终端宽度硬折行：答案里的换行只该来自模型，复制出来才是原文。
        # `soft_wrap=True` breaks no lines: a line break in an answer is the model's own, and copying gives its text.
        console.print(f"[bold cyan]>[/] {escape(printable(prompt))}", highlight=False, soft_wrap=True)
        # 答案更不能当样式解析：模型写出 "[red]" 或 "[/]"，轻则吞字，重则 rich 抛出异常。
        # Still less may an answer be read as markup: a "[red]" or "[/]" by the model would vanish, or make rich raise.
        answer = output.outputs[0]
        text = f"{printable(answer.text)} {MARKS.get(str(answer.finish_reason), '')}".rstrip(" ")
        console.print(text, end="\n\n", markup=False, highlight=False, soft_wrap=True)


def format_hits(metrics: EngineMetrics) -> str:
    """前缀缓存的命中，一行。

    The hits of the prefix cache, in a line.
    """
    hits, queries = metrics.prefix_cache_hits, metrics.prefix_cache_queries
    return f"{hits} / {queries} tokens ({metrics.prefix_cache_hit_rate:.0%})"


def print_summary(console: Console, engine: LLMEngine, outputs: list[RequestOutput], started: float) -> None:
    """收尾的表：多少 token、多快、缓存省了多少。

    The closing table: how many tokens, how fast, what the cache saved.
    """
    # 数字都取自引擎和各请求自己的记录，不另外计时：命令行看到的与库用户看到的是同一份数据。
    # All numbers come from the engine and the requests' own records: the command line shows what a library user sees.
    runner, pool, metrics = engine.model_runner, engine.pool, engine.metrics()
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
    table = make_table(console, show_header=False, title="summary 小结")
    table.add_row("backend 后端", f"{runner.backend.name}, {runner.device}, {number_types(runner.model, runner.dtype)}")
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
    table.add_row("prefix cache 前缀缓存", format_hits(metrics))
    # 大于 0 就是块不够用：被抢占的请求要重算，`computed` 会比提示词加输出多。
    # Above 0, blocks ran short: what was preempted is recomputed, and `computed` exceeds prompts plus outputs.
    table.add_row("preemptions 抢占", f"{metrics.num_preemptions} ({metrics.num_computed_tokens} tokens computed 算过)")
    # 猜的人不在，就没有这一行；每步几个 token 只数有猜测的步。
    # Without a drafter there is no such line; tokens a step count steps with guesses only.
    if metrics.num_drafts:
        right, guesses = metrics.num_accepted_tokens, metrics.num_draft_tokens
        share = f"{right} / {guesses} right 猜对 ({right / guesses:.0%})"
        table.add_row("guesses 猜测", f"{share}, {1 + right / metrics.num_drafts:.2f} tokens a step 每步")
    # 两数相乘就是 KV 缓存的容量：运行中的请求，提示词加输出，合计最多这么多 token（共用的块只算一次）。
    # Their product is the KV cache's capacity: all running requests, prompts and outputs (shared blocks count once).
    table.add_row("KV blocks KV 块", f"{pool.num_blocks} × {pool.block_size} tokens")
    table.add_row("total time 总用时", f"{time.monotonic() - started:.2f} s")
    console.print(table)


def print_comparison(
    console: Console, names: tuple[str, str], steps: Iterable[StepComparison], tokenizer: Tokenizer
) -> None:
    """打印两个后端每步的最大差异，最后是结论。

    Print the largest difference of two backends in each step, and the verdict.
    """
    # float32 应在 1e-3 以内。bf16 不同：16 到 32 之间的相邻两数就差 0.125，只差一个末位便有这么多。
    # In float32 expect less than 1e-3. Not so in bf16: from 16 to 32 its neighbours lie 0.125 apart, just one last bit.
    table = make_table(console, "step 步", "tokens", "max |Δlogit|", "different tokens 不同的 token")
    worst, parted, broken = 0.0, 0, dict[str, int]()
    for result in steps:
        different = "; ".join(
            f"#{name}: {show_token(tokenizer, a)} / {show_token(tokenizer, b)}" for name, a, b in result.different
        )
        difference = f"{result.max_difference:.2e}"
        table.add_row(str(result.step), str(result.num_tokens), difference, escape(different) or "-")
        # `parted` 数的是选得不同的次数；每次之后两边都改用 A 的 token，所以它们各自独立。
        # `parted` counts differing choices; after each both sides go on with A's token, so one does not cause the next.
        # NaN 与谁比都为假，`max` 会把它丢掉；写成“不大于才保留”，一旦出现就留到最后。
        # NaN compares false with everything and `max` would lose it; kept this way it stays to the end.
        worst = worst if result.max_difference <= worst or worst != worst else result.max_difference
        parted += len(result.different)
        # 只留最早的一步：从那里查起，后面的都是它带出来的。
        # The earliest step alone is kept: that is where to look, and later ones follow from it.
        broken = {name: result.step for name in result.broken} | broken
    console.print(table)
    verdict = "tokens equal 全部相同" if parted == 0 else f"{parted} tokens differ 处不同"
    console.print(f"{names[0]} vs {names[1]}: max |Δlogit| {worst:.2e}, {verdict}", highlight=False)
    for name, step in broken.items():
        verdict = f"从第 {step} 步起坏了，分数是 NaN 或无穷大 / broken from step {step} on, scores are NaN or infinite"
        console.print(f"{name}: {verdict}", highlight=False)
