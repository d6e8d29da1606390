"""命令行对自己这个进程做的事：用几个线程，Ctrl-C 落在别处怎么办。作为库时都不做。

What the command line does to its own process: how many threads, and what of a Ctrl-C that falls elsewhere. As a
library none of it is done.
"""

import os
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# 权重文件合计不到 32 MiB 的模型，一步只要一毫秒，多线程省不下时间；别的程序一忙，线程互相等，反而要 100 毫秒。
# With weight files below 32 MiB in all a step takes a millisecond, where threads save nothing; and beside another busy
# program, threads that wait for each other make it 100.
_SMALL_BYTES = 1 << 25


@contextmanager
def one_thread_if_small(folder: Path) -> Iterator[None]:
    """小模型只用一个线程，除非环境里写了 `OMP_NUM_THREADS`；只有命令行这样做，作为库时不碰全局的设置。

    A small model runs on one thread, unless the environment has `OMP_NUM_THREADS`. The command line alone does so: as
    a library it leaves settings of the process alone.
    """
    before = torch.get_num_threads()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size < _SMALL_BYTES and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
