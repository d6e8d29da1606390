"""Ctrl-C 落在 Python 吞掉异常的地方，命令行怎么办；作为库时不管。

What the command line does where a Ctrl-C falls in a place that swallows exceptions; as a library it is left alone.
"""

import sys
import threading
from _thread import interrupt_main
from typing import Any


def interrupt_again(unraisable: Any) -> None:
    """Python 在 `__del__`、弱引用和垃圾回收的回调里吞掉异常，正好落在那里的 Ctrl-C 就丢了：稍后再发一次。

    Python swallows exceptions in `__del__` and in callbacks of weak references and of the garbage collector, and a
    Ctrl-C that falls in there is lost: send it again a moment later.
    """
    # 别的异常照旧打印，不归这里管。
    # Any other exception is printed as always and is no business of this.
    if unraisable.exc_type is not KeyboardInterrupt:
        return sys.__unraisablehook__(unraisable)
    # 不能在这里直接抛：回调还没走完，抛出的也会被吞掉。
    # Not raised right here: the callback is still running, and would swallow this one, too.
    threading.Timer(0.01, interrupt_main).start()
