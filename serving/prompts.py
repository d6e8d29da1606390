"""几个提示词一起来时的检查：报错要说出是第几个。引擎一次只认识一个请求，所以这些不在引擎里。

Checks where several prompts come together: a message has to say which of them it is about. The engine knows one request
at a time, so this is none of its business.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from engine.validation import naming

T = TypeVar("T")
# `finish_reason` 是 "error" 时的说法。
# What a `finish_reason` of "error" means.
NOT_FINITE = "scores became NaN or infinite (try dtype float32), or a grammar left no token"


def nth(index: int, total: int) -> str:
    """`total` 个提示词里的第几个，从 1 数起；只有一个就不必说。

    Which of `total` prompts, counted from 1; a single one needs no number.
    """
    return f"prompt {index + 1} of {total}" if total > 1 else ""


def each_prompt(function: Callable[..., T], *columns: Sequence[Any]) -> list[T]:
    """同 `map`，每个提示词一行；抛出的 `ValueError` 说明是第几个。

    Like `map`, with a row for each prompt; a `ValueError` raised says which one it was.
    """
    results = []
    # 遇到一个错就停：`generate` 先这样查全部提示词，一个也没有加进引擎。
    # An error ends it: `generate` checks all prompts this way before it adds any to the engine.
    for index, row in enumerate(zip(*columns)):
        with naming(nth(index, len(columns[0]))):
            results.append(function(*row))
    return results


def check_finite(finish_reason: str | None) -> None:
    """一份输出不是因为分数坏了才结束。

    An output did not end because its scores were broken.

    Raises:
        ValueError: 正是因为这个；that is why it ended
    """
    # 引擎只结束坏了的那个请求，别的照常；要整个调用都失败，是接口层的决定。
    # The engine ends the broken request alone and goes on with the others; that a whole call fails is decided up here.
    if finish_reason == "error":
        raise ValueError(NOT_FINITE)
