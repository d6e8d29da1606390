"""`tools/chapter.py`：运行一章的代码，留在解释器里；行号、断点、报错、写错的章名。
`tools/chapter.py`: runs a chapter's code and stays in the interpreter; line numbers, breakpoints, errors, wrong names.
"""

from __future__ import annotations

import bdb
import code
import inspect
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from tools.chapter import ROOT, find_chapter, main, read, run_blocks

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
        f"{os.path.relpath(path, ROOT)}: A chapter · 一章",
        "   4 | def double(x):",
        "   5 |     return 2 * x",
        "   6 |",
        "   7 | half = double(0.25); half",
        "0.5",
        "",
        f"{os.path.relpath(path, ROOT)}: More · 更多",
        "  14 | # not run: gpu",
        "",
        f"{os.path.relpath(path, ROOT)}: More · 更多",
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


@pytest.mark.parametrize(("name", "file"), [
    ("sampling", "en/sampling.md"), ("zh/sampling", "zh/sampling.md"), (str(ROOT / "docs/zh/map.md"), "zh/map.md"),
])  # fmt: skip
def test_names_and_paths_of_chapters(name: str, file: str) -> None:
    assert find_chapter(name) == ROOT / "docs" / file


@pytest.mark.parametrize(("name", "says"), [
    ("no_such", "no chapter 'no_such' in docs/en or docs/zh; use zh/map or one of add_backend, "),
    ("glossary", "docs/en/glossary.md has no Python code to run; "),
    # 文件夹和扩展名都算数：引擎里的文件、别处的 zh 文件夹，都不是这一章。
    # Folder and ending count: neither a file of the engine nor one in another folder zh is the chapter.
    (str(ROOT / "engine" / "scheduler.py"), "no chapter '"), ("/zh/docs/en/sampling.md", "no chapter '/zh/docs/en/"),
])  # fmt: skip
def test_another_chapter_or_file_is_one_line(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith(f"chapter.py: error: {says}") and captured.out == ""


def test_the_folders_above_the_repository_do_not_choose_the_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "zh" / "docs"
    for language in ("en", "zh"):
        (docs / language).mkdir(parents=True)
        (docs / language / "a.md").write_text("```python\n1\n```\n", encoding="utf-8")
    monkeypatch.setattr("tools.chapter.DOCS", docs)
    assert find_chapter(str(docs / "en" / "a.md")) == docs / "en" / "a.md"
    # 别的章里没有结束的代码块不碍事；自己的是一行话。
    # An open block of another chapter does no harm; one of its own is told in a line.
    (docs / "en" / "open.md").write_text("```python\n1\n", encoding="utf-8")
    assert find_chapter("a") == docs / "en" / "a.md"
    assert main(["open"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("chapter.py: error: ") and "open.md: the last block of code is not closed" in line


def run_text(tmp_path: Path, code_of_chapter: str) -> tuple[bool, code.InteractiveConsole]:
    path = tmp_path / "a_chapter.md"
    path.write_text(f"# A\n\n```python\n{code_of_chapter}\n```\n", encoding="utf-8")
    console = code.InteractiveConsole({})
    return run_blocks(path, console), console


def test_leaving_early_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worked, console = run_text(tmp_path, "x = 1\nraise SystemExit(0)\nx = 2")
    assert not worked and console.locals["x"] == 1
    assert "line 5, in <module>" in capsys.readouterr().err


def test_future_imports_hold_for_what_follows(tmp_path: Path) -> None:
    worked, console = run_text(tmp_path, "from __future__ import annotations\ndef f(x: int) -> None: ...")
    assert worked and console.locals["f"].__annotations__ == {"x": "int", "return": "None"}
    # 留在解释器里之后，也一样。
    # And in the interpreter afterwards, too.
    console.push("def g(x: int): ...\n")
    assert console.locals["g"].__annotations__ == {"x": "int"}


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
    assert result.stdout.startswith("\ndocs/zh/roofline.md: ")
    assert "BANDWIDTH, ARITHMETIC = 4.2e12, 7.9e14" in result.stdout
    assert ">>>" not in result.stdout + result.stderr


def converse(command: list[str], *turns: tuple[str, str]) -> int:
    """在终端里运行 `command`：等到一段输出，就输入一行；返回退出码。

    Run `command` in a terminal: wait for a text, then type a line; return the exit code.
    """
    terminal, child = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    seen, deadline = "", time.monotonic() + 120
    try:
        for text, line in turns:
            while text not in seen:
                ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, f"{text!r} did not come: {seen}"
                # 程序结束后，Linux 上读终端是 `EIO`。
                # Once the program has ended, reading the terminal is `EIO` on Linux.
                try:
                    new = os.read(terminal, 1 << 16)
                except OSError:
                    new = b""
                assert new, f"ended before {text!r}: {seen}"
                seen += new.decode(errors="replace")
            os.write(terminal, f"{line}\n".encode())
        return process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_stays_in_the_interpreter() -> None:
    ask = "print('shape', [*online_attention(q[4, 3], k[:, 1], v[:, 1], 1.0).shape], __name__)"
    assert converse([*COMMAND, "attention"], (">>> ", ask), ("shape [8] __main__", "exit()")) == 0


@pytest.mark.parametrize(("leave", "status"), [("exit()", 1), ("exit(3)", 3)])
def test_leaving_the_interpreter_keeps_the_failure(leave: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "bad.md").write_text("```python\n1 / 0\n```\n", encoding="utf-8")
    start = (
        "import sys, tools.chapter, pathlib\n"
        "tools.chapter.DOCS = pathlib.Path(sys.argv[1])\n"
        "sys.exit(tools.chapter.main(['bad']))"
    )
    assert converse([sys.executable, "-c", start, str(tmp_path)], (">>> ", leave)) == status
