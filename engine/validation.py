"""几处共用的检查：同一种值，到处的规则和报错都相同；还有报错里怎样说出是哪个请求。

The checks that several places share: the same kind of value meets the same rule and the same message everywhere; and
how a message names the request that it is about.
"""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any


def is_int(value: object) -> bool:
    """整数，布尔不算：`max_tokens=True` 不是“最多 1 个”；numpy 的整数也算，表格和数组里取出来的往往是 `np.int64`。

    An integer; a bool does not count: `max_tokens=True` does not mean at most 1. numpy's integers do: numbers out of
    tables and arrays are often `np.int64`.
    """
    # bool 是 int 的子类，要排除；先问 `int`，是因为问抽象的 `Integral` 慢得多。
    # bool is a subclass of int and is kept out; `int` comes first, as the abstract `Integral` takes far longer to ask.
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def is_number(value: object) -> bool:
    """实数，布尔不算；NaN 和无穷由调用者的范围检查拦下。

    A real number; a bool does not count, and the caller's range check stops NaN and infinity.
    """
    # 整数也算：`temperature=1` 是最常见的写法。
    # Integers count as well: `temperature=1` is what most people write.
    return isinstance(value, Real) and not isinstance(value, bool)


# 种子、块数都要放进 int64 张量；不在入口拦下，就要等到用的那一步才溢出。
# Seeds and numbers of blocks go into int64 tensors; let in at the door, they would overflow only when used.
MAX_INT = 2**63 - 1


def checked_int(name: str, value: Any, lowest: int, highest: int | None = None) -> int:
    """范围之内的整数，换成 Python 自己的；`highest` 为 None 就没有上限。

    An integer within the range, as Python's own; no upper end if `highest` is None.

    Raises:
        ValueError: 不是整数，或在范围之外；no integer, or out of range
    """
    if not is_int(value) or value < lowest or (highest is not None and value > highest):
        end = "up" if highest is None else f"to {highest}"
        raise ValueError(f"{name}={value!r:.40} is out of range: use an integer from {lowest} {end}")
    return int(value)


def check_flag(name: str, value: object) -> None:
    """开关只能是 True 或 False。

    A switch is True or False and nothing else.

    Raises:
        ValueError: 是别的东西；it is something else
    """
    # 从命令行或 JSON 传来的字符串 "False" 在 Python 里为真，不拦下来就会反着生效。
    # The string "False" from a command line or JSON is true in Python; let through, it would do the opposite.
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")


@contextmanager
def naming(what: str) -> Iterator[None]:
    """在其中抛出的 `ValueError`，报错前面加上 `what`：查的人只知道哪里不对，调用的人才知道是哪一个。

    A `ValueError` raised inside gets `what` in front of its message: who checks knows what is wrong, and only the
    caller knows which one it is.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}" if what else str(error)) from None


def request_name(request_id: Any) -> str:
    """报错里怎样称呼一个请求；用户没给 id 就不必说。

    How messages name a request; without an id of the user's there is nothing to say.

    Raises:
        ValueError: id 不是非空的字符串；the id is no string, or an empty one
    """
    if request_id is None:
        return ""
    if not isinstance(request_id, str) or not request_id:
        raise ValueError(f"request_id={request_id!r:.80} must be a string that is not empty")
    return f"request {request_id}"


def check_unused(request_id: str, in_use: Container[str]) -> None:
    """请求 id 没有被占用。

    A request id is not in use.

    Raises:
        ValueError: 已经有人在用；somebody uses it already
    """
    if request_id in in_use:
        raise ValueError(f"{request_name(request_id)}: this id is already running; choose another")
