"""X 光：从外面记录一次运行，写成一个网页、一份 Chrome trace，或在终端里直接看。

    observe -> Recorder（记录）-> write_page / write_trace / Watch

命令行给了 `--xray`、`--xray-trace` 或 `--watch` 才会导入这里；引擎的代码不知道它的存在。

X-ray: record a run from outside and write it as a web page or a Chrome trace, or watch it in the terminal.
The command line imports this only for `--xray`, `--xray-trace` or `--watch`; the engine's code does not know of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from engine.llm_engine import LLMEngine
from tools.xray.chrome_trace import write_trace
from tools.xray.page import write_page
from tools.xray.recorder import Recorder
from tools.xray.watch import Watch

__all__ = ["Recorder", "Watch", "check_writable", "observe", "write_page", "write_trace"]


@contextmanager
def observe(
    engine: LLMEngine, console: Console, page: str | None = None, trace: str | None = None, watch: bool = False
) -> Iterator[Recorder]:
    """在 `with` 之内记录 `engine`，离开时写文件；出错或 Ctrl-C 时，已经记下的照样写出。

    Record `engine` inside the `with` and write the files when leaving; after an error or Ctrl-C what has been recorded
    is written all the same.

    Args:
        page: 网页写到这里；write the web page here
        trace: Chrome trace 写到这里；write the Chrome trace here
        watch: 每一步都显示在 `console` 上；show each step on `console`

    Raises:
        ValueError: 文件写不出去，或 `engine` 用的是重叠循环；cannot be written, or `engine` runs the overlapped loop
    """
    for name in filter(None, (page, trace)):
        check_writable(name)
    live = Watch(console) if watch else None
    recorder = Recorder(engine, live.show if live else None)
    try:
        with recorder:
            if live is None:
                yield recorder
            else:
                with live:
                    yield recorder
    finally:
        recording = recorder.recording()
        try:
            if page is not None:
                write_page(recording, Path(page))
                console.print(f"xray 网页 / page: {page}", markup=False)
            if trace is not None:
                write_trace(recording, Path(trace))
                console.print(f"xray trace: {trace} (https://ui.perfetto.dev)", markup=False)
        except OSError as error:
            raise ValueError(f"cannot write the recording: {error.strerror}; give another file") from None


def check_writable(name: str) -> None:
    """先看能不能写：跑完几分钟才发现文件夹不存在，记录就白做了。

    See first whether a file can be written: a missing folder found after minutes would waste the run.

    Raises:
        ValueError: 不能写；it cannot
    """
    path = Path(name)
    try:
        # 命名管道没有人读，打开就会一直等；设备（/dev/stdout）可以。
        # To open a named pipe that nobody reads waits for ever; a device (/dev/stdout) will do.
        existed = path.exists()
        if existed and not path.is_file() and not path.is_char_device():
            raise OSError(0, "it is not a file")
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {name}: {error.strerror}; give another file") from None
