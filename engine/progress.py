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
    from engine.llm_engine import LLMEngine

# 每秒最多刷新 10 次：显示不该拖慢它所显示的东西。
# At most 10 refreshes a second: a display should not slow down what it displays.
_REFRESH_SECONDS = 0.1


class GenerationProgress:
    """`LLM.generate` 的进度：完成了几个请求、预填充与解码的速度、队列长度、KV 占用。

    Progress of `LLM.generate`: requests done, prefill and decode speed, queue lengths, KV use.
    """

    def __init__(self, engine: "LLMEngine", progress: Progress, task: TaskID) -> None:
        self._engine, self._progress, self._task = engine, progress, task
        self._shown_at = time.monotonic()
        self._computed, self._generated = engine.num_computed_tokens, engine.num_generated_tokens

    def update(self, num_done: int) -> None:
        """每步之后调用；离上次刷新太近就什么也不做。

        Called after every step; does nothing if the last refresh is too recent.
        """
        elapsed = time.monotonic() - self._shown_at
        if elapsed < _REFRESH_SECONDS:
            return
        engine = self._engine
        generated = engine.num_generated_tokens - self._generated
        # 每个输出 token 之后都要被算一次，所以“算过的减去生成的”就是提示部分。
        # Each output token is computed once later, so "computed minus generated" is the prompts' part.
        prefilled = max(0, engine.num_computed_tokens - self._computed - generated)
        manager = engine.block_manager
        self._progress.update(
            self._task,
            completed=num_done,
            status=f"prefill {prefilled / elapsed:,.0f} tok/s · decode {generated / elapsed:,.0f} tok/s · "
            f"running {len(engine.scheduler.running)} waiting {len(engine.scheduler.waiting)} · "
            f"KV {1 - manager.num_free_blocks / manager.num_blocks:.0%}",
        )
        self._shown_at = time.monotonic()
        self._computed, self._generated = engine.num_computed_tokens, engine.num_generated_tokens


@contextmanager
def generation_progress(engine: "LLMEngine", num_requests: int, enabled: bool) -> Iterator[GenerationProgress]:
    """在一次 `generate` 期间显示进度；结束时，非终端输出一行总结。

    Show progress during one `generate`; where the output is no terminal, print a single line at the end.
    """
    console = Console(file=sys.stderr)
    started, generated = time.monotonic(), engine.num_generated_tokens
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=True,
        disable=not (enabled and console.is_terminal),
    ) as progress:
        task = progress.add_task("generating 生成中", total=num_requests, status="")
        yield GenerationProgress(engine, progress, task)
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
        TextColumn("loading 加载权重"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield LoadingBar(progress)


class LoadingBar:
    """可以直接当 `on_progress` 回调用。

    Can be passed as the `on_progress` callback.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def __call__(self, loaded: int, total: int) -> None:
        self._progress.update(self._task, completed=loaded, total=total)
