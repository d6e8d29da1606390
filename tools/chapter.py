"""运行文档某一章的 Python 代码，然后留在解释器里，章里定义的名字都能用。

打印的每行代码前面是它在这一章里的行号；输出跟在产生它的语句后面。断点和报错也用这些行号。

Run the Python code of a chapter of the documentation and stay in the interpreter, with all the chapter's names defined.

Each line of code is printed with its number in the chapter; output follows the statement that made it. Breakpoints and
tracebacks have the same numbers.

用法 / Usage: `python tools/chapter.py sampling`
"""

from __future__ import annotations

import argparse
import ast
import code
import contextlib
import linecache
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@dataclass(frozen=True)
class Block:
    """一个代码块。

    A block of code.

    Attributes:
        kind: 语言，例如 `python`；its language, for instance `python`
        code: 代码；the code
        first: 第一行代码的行号，从 1 数；the number of its first line of code, from 1
        marker: 它上面那行注释，没有就是空的；the comment above it, or empty
        heading: 它所在的小节；the section that it is in
    """

    kind: str
    code: str
    first: int
    marker: str
    heading: str

    @property
    def package(self) -> str:
        """要另装的包，不用装就是空的。

        The package that has to be installed for it, or empty.
        """
        return self.marker.partition("needs: ")[2]

    @property
    def runs(self) -> bool:
        """这一块在任何机器上都能运行。

        Whether the block is run on every machine.
        """
        return not self.marker.startswith("not run")


@cache
def read(path: Path) -> tuple[str, list[Block]]:
    """一章去掉代码块的正文，以及各代码块。

    A chapter's prose without its code blocks, and the blocks.

    Raises:
        ValueError: 有代码块没有结束；a block of code does not end
    """
    prose: list[str] = []
    blocks: list[Block] = []
    lines: list[str] = []
    kind, last, heading = None, "", ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if kind is None and line.startswith("```"):
            kind, lines, marker = line[3:].strip(), [], re.fullmatch(r"<!-- ((?:not run|needs): .+) -->", last)
        elif kind is not None and line.rstrip() == "```":
            blocks.append(Block(kind, "\n".join(lines), number - len(lines), marker[1] if marker else "", heading))
            kind = None
        elif kind is not None:
            lines.append(line)
        else:
            prose.append(line)
            heading = line.lstrip("# ") if line.startswith("#") else heading
        last = line
    if kind is not None:
        raise ValueError(f"{path}: the last block of code is not closed; end it with a line ```")
    return "\n".join(prose), blocks


def run_blocks(path: Path, console: code.InteractiveConsole) -> bool:
    """像在解释器里输入那样，逐句运行一章的代码，名字留在 `console` 里。出错就打印出错的地方，返回 False。

    Run a chapter's code statement by statement, as if typed into the interpreter; the names stay in `console`. An error
    is printed with its place, and the answer is False.
    """
    blocks = [block for block in read(path)[1] if block.kind == "python"]
    source: list[str] = []
    for block in blocks:
        # 用空行补齐，行号就是这一章里的行号；报错、`pdb` 和 `inspect` 看到的就是这些行。
        # Padded with empty lines to the line numbers of the chapter; tracebacks, `pdb` and `inspect` see these lines.
        source += [""] * (block.first - 1 - len(source)) + block.code.split("\n")
    linecache.cache[str(path)] = (0, None, [f"{line}\n" for line in source], str(path))
    for block in blocks:
        print(f"\n{os.path.relpath(path, ROOT)}: {block.heading}", flush=True)
        if not block.runs:
            print(f"{block.first:4} | # {block.marker}")
            continue
        last = block.first - 1
        try:
            for statement in ast.parse("\n" * last + block.code, str(path)).body:
                for number in range(last + 1, (last := statement.end_lineno or last) + 1):
                    print(f"{number:4} | {source[number - 1]}".rstrip(), flush=True)
                # 解释器自己的编译器记得 `from __future__`，对后面的语句也有效。
                # The console's own compiler remembers `from __future__` for the statements behind it.
                compiled = console.compile.compiler(ast.Interactive([statement]), str(path), "single")  # type: ignore[arg-type]
                exec(compiled, console.locals)
        # 章里的 `exit()` 也是出错：后面的代码就没有运行。
        # An `exit()` in a chapter is a failure, too: the code behind it is not run.
        except (Exception, KeyboardInterrupt, SystemExit):
            console.showtraceback()
            return False
    return True


def find_chapter(name: str) -> Path:
    """`sampling` 是英文的那一章，`zh/sampling` 是中文的；其余的是路径，要指向 `docs/en` 或 `docs/zh` 里的一个文件。

    `sampling` is the chapter in English, `zh/sampling` the one in Chinese; anything else is a path, which has to lead
    to a file in `docs/en` or `docs/zh`.

    Raises:
        ValueError: 没有这样的文件，它的代码块没有结束，或者里面没有 Python 代码；
            there is no such file, it has an open block of code, or no Python code
    """
    word = re.fullmatch(r"(en/|zh/)?(\w+)", name)
    path = (DOCS / (word[1] or "en") / f"{word[2]}.md" if word else Path(name)).resolve()
    if path.parent not in (DOCS / "en", DOCS / "zh") or path.suffix != ".md" or not path.is_file():
        names = ", ".join(file.stem for file in sorted((DOCS / "en").glob("*.md")))
        raise ValueError(f"no chapter {name!r} in docs/en or docs/zh; use zh/map or one of {names}")
    if not any(block.kind == "python" for block in read(path)[1]):
        raise ValueError(f"{path.relative_to(ROOT)} has no Python code to run; read it, or run another, like sampling")
    return path


def main(arguments: list[str] | None = None) -> int:
    """命令行入口；章里的代码出错为 1，没有这一章为 2。

    The command line; 1 if code of the chapter fails, 2 if there is no such chapter.
    """
    parser = argparse.ArgumentParser(
        description="运行一章的 Python 代码，然后留在解释器里 / run a chapter's Python code and stay in the interpreter"
    )
    parser.add_argument(
        "chapter",
        help="章名或文件 / its name or file: sampling, zh/sampling, docs/zh/sampling.md",
    )
    try:
        path = find_chapter(parser.parse_args(arguments).chapter)
    except ValueError as error:
        print(f"chapter.py: error: {error}", file=sys.stderr)
        return 2
    for block in read(path)[1]:
        if block.kind == "python" and block.package and find_spec(block.package) is None:
            name = f"{path.relative_to(ROOT)}:{block.first}"
            remedy = "the chapter's text says how to install it"
            print(f"chapter.py: error: {name} needs the package {block.package}; {remedy}", file=sys.stderr)
            return 2
    # 与在仓库根目录启动的解释器一样：相对路径、能导入的模块、`__main__` 里的名字。
    # As an interpreter started in the root of the repository: relative paths, modules to import, names of `__main__`.
    os.chdir(ROOT)
    sys.path[0] = str(ROOT)
    module = sys.modules["__main__"] = ModuleType("__main__")
    console = code.InteractiveConsole(vars(module))
    worked = run_blocks(path, console)
    if sys.stdin.isatty():
        # 方向键、历史和 Tab 补全；Windows 的 Python 没有 `readline`。
        # Arrow keys, history and completion by tab; Python on Windows has no `readline`.
        with contextlib.suppress(ImportError):
            import readline
            import rlcompleter

            readline.set_completer(rlcompleter.Completer(vars(module)).complete)
            readline.parse_and_bind("tab: complete")
        try:
            console.interact("\n上面的名字都能用，Ctrl-D 退出 / the names above are defined, Ctrl-D leaves", exitmsg="")
        except SystemExit as leaving:
            # `exit()` 不会把出过的错变成成功。
            # `exit()` does not turn a failure into success.
            if worked or leaving.code:
                raise
    return 0 if worked else 1


if __name__ == "__main__":
    sys.exit(main())
