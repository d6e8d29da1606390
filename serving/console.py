"""进度显示：终端里是 rich 的进度条，输出被重定向时一句纯文本。只看引擎的计数，不影响引擎。

Progress display: rich bars on a terminal, a line of plain text where the output is redirected. It reads the engine's
counters and changes nothing.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    # 只有类型标注用得到它：运行时不导入，显示模块便不依赖它所观察的引擎。
    # Needed by annotations only: nothing is imported at run time, so the display does not depend on what it watches.
    from engine.llm_engine import LLMEngine

# 每秒最多刷新 10 次：显示不该拖慢它所显示的东西。
# At most 10 refreshes a second: a display should not slow down what it displays.
#   10 ms/step: 100 calls/s -> 10 updates/s, 90 early returns
_REFRESH_SECONDS = 0.1


class GenerationProgress:
    """`LLM.generate` 的进度：完成了几个请求、预填充与解码的速度、队列长度、KV 占用。

    Progress of `LLM.generate`: requests done, prefill and decode speed, queue lengths, KV use.
    """

    def __init__(self, engine: "LLMEngine", progress: Progress, task: TaskID) -> None:
        self._engine, self._progress, self._task = engine, progress, task
        # 记下起点：引擎的计数器从启动累计至今，第 2 次 `generate` 若不减掉从前的，一开始就会显示天文数字。
        # The starting point: counters run since start-up; not subtracted, the 2nd `generate` opens with absurd speeds.
        self._shown_at = time.monotonic()
        self._before = engine.metrics()

    def update(self, num_done: int) -> None:
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
            completed=num_done,
            status=f"prefill {prefilled / elapsed:,.0f} tok/s · decode {generated / elapsed:,.0f} tok/s · "
            f"running {now.num_running} waiting {now.num_waiting} · KV {now.kv_cache_usage:.0%}",
        )
        # 时间和计数要一起往前移：速度等于两者的增量相除，只移一个，下一次就算错。
        # Time and counts move on together: a speed divides the growth of both, so moving only one spoils the next.
        self._shown_at, self._before = time.monotonic(), now


@contextmanager
def generation_progress(engine: "LLMEngine", num_requests: int, enabled: bool) -> Iterator[GenerationProgress]:
    """在一次 `generate` 期间显示进度；结束时，非终端输出一行总结。

    Show progress during one `generate`; where the output is no terminal, print a single line at the end.
    """
    # 进度写到 stderr：`python mini_llama.py > answers.txt` 时，文件里只有答案和小结。
    # Progress goes to stderr: after `python mini_llama.py > answers.txt` the file holds answers and summary only.
    console = Console(file=sys.stderr)
    started, generated = time.monotonic(), engine.num_generated_tokens
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        # 结束后擦掉进度条，终端里只留答案。
        # The bar is erased at the end; only the answers stay on the terminal.
        transient=True,
        # 不是终端就不画：CI 日志里的进度条，是满屏的控制字符。
        # Without a terminal nothing is drawn: in a CI log a progress bar is a screenful of control characters.
        disable=not (enabled and console.is_terminal),
    ) as progress:
        task = progress.add_task("generating 生成中", total=num_requests, status="")
        # `yield` 之前是进入 `with`，之后是离开；没有 `try`，所以出错或 Ctrl-C 时不会再打印下面的总结。
        # Before `yield` we enter `with`, after it we leave; there is no `try`, so an error or Ctrl-C skips the summary.
        yield GenerationProgress(engine, progress, task)
    # 重定向时至少留一行：几小时后翻日志，也能看出那次跑了多少、多快。
    # When redirected leave one line at least: hours later the log still tells how much was run, and how fast.
    if enabled and not console.is_terminal:
        tokens, seconds = engine.num_generated_tokens - generated, time.monotonic() - started
        print(f"{num_requests} requests, {tokens} output tokens, {seconds:.2f} s", file=sys.stderr)


@contextmanager
def loading_progress() -> Iterator["LoadingBar"]:
    """加载权重时的进度条；不是终端就不显示。

    A bar while weights load; nothing where the output is no terminal.
    """
    console = Console(file=sys.stderr)
    with Progress(
        TextColumn("loading 加载权重"), BarColumn(bar_width=20), MofNCompleteColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:
        # 权重按张量计数而不是按字节：读到哪个张量都知道，字节数却要先把文件头全扫一遍。
        # Counted in tensors, not bytes: the loader meets them one by one, bytes would need all file headers first.
        yield LoadingBar(progress)


class LoadingBar:
    """可以直接当 `on_progress` 回调用。

    Can be passed as the `on_progress` callback.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        # 总数此刻还不知道，要等加载器第一次回调；None 让进度条先来回滚动。
        # The total is unknown until the loader first calls back; None lets the bar pulse until then.
        self._task = progress.add_task("", total=None)

    # 加载器只要一个函数，不认识 rich；定义 `__call__` 让本对象可以直接传过去。
    # The loader wants a function and knows nothing of rich; with `__call__` this object can be passed as it is.
    def __call__(self, loaded: int, total: int) -> None:
        self._progress.update(self._task, completed=loaded, total=total)
