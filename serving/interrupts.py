"""Ctrl-C 的两个特别之处：落在 Python 吞掉异常的地方（只有命令行管），和几个进程合算一个模型的时候。

Two special cases of Ctrl-C: where it falls in a place that swallows exceptions, which only the command line sees to;
and where several processes share a model.
"""

import os
import signal
import socket
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def in_main_thread() -> bool:
    """只有主线程收得到 Ctrl-C，也只有它能改信号的处理。

    The main thread alone gets Ctrl-C, and it alone can change how signals are handled.
    """
    return threading.get_ident() == threading.main_thread().ident


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


@contextmanager
def never_lost() -> Iterator[None]:
    """库的 C 或 Rust 代码回调 Python 时，落在里面的 Ctrl-C 可能变成库自己的错误，例如“文件损坏”：那其实是 Ctrl-C。

    Where C or Rust code of a library calls back into Python, a Ctrl-C that falls in there may become the library's own
    error, "the file is corrupt" for one: that was Ctrl-C.

    Raises:
        KeyboardInterrupt: 按过 Ctrl-C，随后却抛出了别的；Ctrl-C was pressed, and something else was raised
    """
    if not in_main_thread():
        yield
        return
    # 每来一个信号，解释器就往这里写一个字节，不管 Python 的处理函数抛出的异常后来怎样了。
    # For each signal the interpreter writes a byte here, whatever becomes of what Python's handler raises.
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        except Exception:
            # 末尾补的 0 让这里总有东西可读。
            # The 0 at the end makes sure that there is something to read.
            writer.send(bytes(1))
            if signal.SIGINT in reader.recv(1 << 16):
                raise KeyboardInterrupt from None
            raise
        finally:
            signal.set_wakeup_fd(before)


def leave_at_ctrl_c() -> None:
    """几个进程合算一个模型时，从此 Ctrl-C 立刻结束进程，退出码 130；用户有自己的处理函数时不管。

    一个进程可以走完手上的一步再停，几个进程却不会停在同一步：有的停了，别的还在等它。

    Where several processes share a model, Ctrl-C from now on ends each at once with code 130, unless the user has a
    handler of his own.
    One process can end its step first; several would not stop at the same step, and some wait for who has stopped.
    """
    if not in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    # Python 的处理函数要等主线程回到 Python 里才运行，而它可能正在等同伴；所以另有一个线程等着信号写出的字节。
    # Python runs handlers when the main thread is back in Python, and it may be waiting for others: so a thread waits
    # for the byte that the signal writes.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.set_wakeup_fd(writer)

    def wait() -> None:
        while os.read(reader, 1)[0] != signal.SIGINT:
            pass
        os._exit(130)

    threading.Thread(target=wait, name="Ctrl-C", daemon=True).start()
