"""`tools/chapter.py`：运行一章的代码，留在解释器里；行号、断点、报错、写错的章名。
`tools/chapter.py`: runs a chapter's code and stays in the interpreter; line numbers, breakpoints, errors, wrong names.
"""

from __future__ import annotations

import bdb
import code
import inspect
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from tools.chapter import ROOT, main, read, run_blocks

COMMAND = [sys.executable, str(ROOT / "tools" / "chapter.py")]
TEXT = """# A chapter · 一章

```python
def double(x):
    return 2 * x

half = double(0.25); half
```

## More · 更多

<!-- not run: gpu -->
```python
half = 0
```

```bash
false
```

```python
# 同样的名字 / the same names
print(double(half))
double(
    None
)
print("never")
```
"""


def test_shows_each_statement_above_its_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a_chapter.md"
    path.write_text(TEXT, encoding="utf-8")
    console = code.InteractiveConsole({})
    assert run_blocks(path, console) is False
    out, err = capsys.readouterr()
    assert out.split("\n") == [
        "",
        "a_chapter.md: A chapter · 一章",
        "   4 | def double(x):",
        "   5 |     return 2 * x",
        "   6 |",
        "   7 | half = double(0.25); half",
        "0.5",
        "",
        "a_chapter.md: More · 更多",
        "  14 | # not run: gpu",
        "",
        "a_chapter.md: More · 更多",
        "  22 | # 同样的名字 / the same names",
        "  23 | print(double(half))",
        "1.0",
        "  24 | double(",
        "  25 |     None",
        "  26 | )",
        "",
    ]
    # 报错只有这一章的行，没有本工具的；函数的源码也找得到。
    # The traceback has lines of the chapter and none of the tool; the source of functions is found, too.
    places = [line.strip() for line in err.splitlines() if line.startswith("  File ")]
    assert places == [f'File "{path}", line 24, in <module>', f'File "{path}", line 5, in double']
    assert "return 2 * x" in err and err.splitlines()[-1].startswith("TypeError")
    assert inspect.getsource(console.locals["double"]) == "def double(x):\n    return 2 * x\n"


def test_breakpoints_are_set_by_the_lines_of_the_chapter(tmp_path: Path) -> None:
    path = tmp_path / "a_chapter.md"
    path.write_text(TEXT, encoding="utf-8")
    stops: list[tuple[int, object]] = []

    class Debugger(bdb.Bdb):
        def user_line(self, frame: FrameType) -> None:
            if frame.f_code.co_filename == str(path):
                stops.append((frame.f_lineno, frame.f_locals.get("x")))
            self.set_continue()

    debugger = Debugger()
    assert debugger.set_break(str(path), 5) is None
    debugger.runcall(run_blocks, path, code.InteractiveConsole({}))
    assert stops == [(5, 0.25), (5, 0.5), (5, None)]


def test_a_mistyped_statement_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "typo.md"
    path.write_text("# Typo\n\n```python\nx = 1\nx = = 2\n```\n", encoding="utf-8")
    assert run_blocks(path, code.InteractiveConsole({})) is False
    err = capsys.readouterr().err
    assert f'File "{path}", line 5' in err and "SyntaxError" in err


def test_an_open_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "open.md"
    path.write_text("# Open\n\n```python\nx = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"open\.md: the last block of code is not closed"):
        read(path)


@pytest.mark.parametrize("name", ["no_such", "glossary"])
def test_unknown_chapter_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"chapter.py: error: no chapter '{name}' with Python code; there are add_backend, ")
    assert "sampling" in line


def test_a_missing_package_is_told_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tools.chapter.find_spec", lambda name: None)
    assert main(["triton_kernels"]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert "needs the package triton" in line and captured.out == ""


def test_ends_without_a_terminal(tmp_path: Path) -> None:
    # 从哪个文件夹启动都行；`stdin` 不是终端，运行完就结束。
    # It may be started from any folder; where `stdin` is no terminal, it ends after the code.
    path = ROOT / "docs" / "zh" / "roofline.md"
    result = subprocess.run([*COMMAND, str(path)], cwd=tmp_path, input="print(1)\n", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("\nroofline.md: ") and "BANDWIDTH, ARITHMETIC = 4.2e12, 7.9e14" in result.stdout
    assert ">>>" not in result.stdout + result.stderr


def test_stays_in_the_interpreter() -> None:
    terminal, child = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*COMMAND, "attention"], stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    seen, deadline = "", time.monotonic() + 120

    def wait_for(text: str) -> None:
        nonlocal seen
        while text not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(terminal, 1 << 16).decode(errors="replace")

    try:
        wait_for(">>> ")
        os.write(terminal, b"print('shape', [*online_attention(q[4, 3], k[:, 1], v[:, 1], 1.0).shape], __name__)\n")
        wait_for("shape [8] __main__")
        os.write(terminal, b"exit()\n")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
