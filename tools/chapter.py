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
        print(f"\n{path.name}: {block.heading}", flush=True)
        if not block.runs:
            print(f"{block.first:4} | # {block.marker}")
            continue
        last = block.first - 1
        try:
            for statement in ast.parse("\n" * last + block.code, str(path)).body:
                for number in range(last + 1, (last := statement.end_lineno or last) + 1):
                    print(f"{number:4} | {source[number - 1]}".rstrip(), flush=True)
                exec(compile(ast.Interactive([statement]), str(path), "single", dont_inherit=True), console.locals)
        except (Exception, KeyboardInterrupt):
            console.showtraceback()
            return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """命令行入口；章里的代码出错为 1，没有这一章为 2。

    The command line; 1 if code of the chapter fails, 2 if there is no such chapter.
    """
    parser = argparse.ArgumentParser(
        description="运行一章的 Python 代码，然后留在解释器里 / run a chapter's Python code and stay in the interpreter"
    )
    parser.add_argument(
        "chapter",
        help="章名或文件：sampling、docs/zh/sampling.md / its name or file: sampling, docs/zh/sampling.md",
    )
    asked = Path(parser.parse_args(arguments).chapter)
    folder = DOCS / ("zh" if "zh" in asked.parts else "en")
    path = folder / f"{asked.stem}.md"
    chapters = {file: [b for b in read(file)[1] if b.kind == "python"] for file in sorted(folder.glob("*.md"))}
    if not chapters.get(path):
        names = ", ".join(file.stem for file, blocks in chapters.items() if blocks)
        print(f"chapter.py: error: no chapter {asked.stem!r} with Python code; there are {names}", file=sys.stderr)
        return 2
    for block in chapters[path]:
        if block.package and find_spec(block.package) is None:
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
        console.interact("\n上面的名字都能用，Ctrl-D 退出 / the names above are defined, Ctrl-D leaves", exitmsg="")
    return 0 if worked else 1


if __name__ == "__main__":
    sys.exit(main())
