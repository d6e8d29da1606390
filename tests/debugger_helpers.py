"""在 `bdb` 下停在文档说的地方：由文件、函数名和一行的开头找到行号，停下时调用一个函数。

Stops under `bdb` where the docs say: file, function and the beginning of a line give the line's number, and each stop
calls a function.
"""

from __future__ import annotations

import ast
import bdb
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent


def find_line(path: str, symbol: str, line: str | None) -> int:
    """以 `line` 开头的那一行的行号，没有写明就是函数体的第一条语句。

    The number of the line that begins with `line`, or else of the body's first statement.
    """
    source = (ROOT / path).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(source)
    for name in symbol.split("."):
        node = next(each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == name)
    assert isinstance(node, ast.FunctionDef), f"{symbol} is no function"
    if line is None:
        return node.body[1 if ast.get_docstring(node) else 0].lineno
    lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
    found = [n for n, text in enumerate(lines, node.lineno) if text.strip().startswith(line)]
    assert len(found) == 1, f"{symbol}: {len(found)} lines begin with {line!r}"
    return found[0]


class Guide(bdb.Bdb):
    """每到一处就调用 `arrive`，然后接着跑。

    Calls `arrive` at each of the places, and goes on.

    Args:
        places: (path in the repository, line number)
    """

    def __init__(self, places: list[tuple[str, int]], arrive: Callable[[tuple[str, int], FrameType], None]) -> None:
        super().__init__()
        self.places = {(str(ROOT / path), number): (path, number) for path, number in places}
        self.arrive = arrive
        for place in self.places:
            assert self.set_break(*place) is None

    def user_line(self, frame: FrameType) -> None:
        self.set_continue()
        if place := self.places.get((frame.f_code.co_filename, frame.f_lineno)):
            self.arrive(place, frame)
