"""断点之旅：在 `bdb` 下走一遍，每一站的表达式都得到页面上写的值；两种语言的页面说的是同一条路。

The debugger tour: walked under `bdb`, every expression of every stop has the value that the page gives; the pages of
both languages describe the same way.
"""

from __future__ import annotations

import ast
import bdb
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest

import mini_llama

ROOT = Path(__file__).resolve().parent.parent
COMMAND = re.compile(r"^python mini_llama\.py (.*--prompt) \"(.*)\"$", re.MULTILINE)
STOP = re.compile(r"^- at · 停在: `(?P<path>[\w/.]+)::(?P<symbol>[\w.]+)`$", re.MULTILINE)
LINE = re.compile(r"^- line · 行: `(.+)`$", re.MULTILINE)
CONDITION = re.compile(r"^- if · 条件: `(.+)`$", re.MULTILINE)
VALUE = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| [^|]+ \|$", re.MULTILINE)


@dataclass
class Stop:
    """一站：停在哪里，看什么，应当看到什么 / where to stop, what to look at, what one should see"""

    path: str
    symbol: str
    line: str | None
    condition: str | None
    values: list[tuple[str, str]]
    seen: list[tuple[str, str]] = field(default_factory=list)

    def number(self) -> int:
        """停在第几行：写明的那一行，否则是函数体的第一条语句 / the line named, or else the body's first statement"""
        source = (ROOT / self.path).read_text(encoding="utf-8")
        node: ast.AST = ast.parse(source)
        for name in self.symbol.split("."):
            node = next(each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == name)
        assert isinstance(node, ast.FunctionDef), f"{self.symbol} is no function"
        if self.line is None:
            return node.body[1 if ast.get_docstring(node) else 0].lineno
        lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
        found = [n for n, text in enumerate(lines, node.lineno) if text.strip().startswith(self.line)]
        assert len(found) == 1, f"{self.symbol}: {len(found)} lines begin with {self.line!r}"
        return found[0]


def read_tour(language: str) -> tuple[list[str], list[Stop]]:
    """命令行的参数，和各站 / the arguments of the command line, and the stops"""
    text = (ROOT / "docs" / language / "debugger_tour.md").read_text(encoding="utf-8")
    command = COMMAND.search(text)
    assert command is not None
    stops = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        if at := STOP.search(section):
            line, condition = LINE.search(section), CONDITION.search(section)
            stops.append(
                Stop(at["path"], at["symbol"], line and line[1], condition and condition[1], VALUE.findall(section))
            )
    return [*command[1].split(), command[2]], stops


class Guide(bdb.Bdb):
    """按次序在每一站停一次，记下表达式的值 / stops once at each stop, in order, and notes the expressions' values"""

    def __init__(self, stops: list[Stop]) -> None:
        super().__init__()
        self.left = list(stops)
        self.lines = {id(stop): (str(ROOT / stop.path), stop.number()) for stop in stops}
        for path, number in self.lines.values():
            assert self.set_break(path, number) is None

    def user_line(self, frame: FrameType) -> None:
        self.set_continue()
        here = (frame.f_code.co_filename, frame.f_lineno)
        if not self.left or here != self.lines[id(self.left[0])]:
            return
        stop = self.left[0]
        if stop.condition is None or eval(stop.condition, frame.f_globals, frame.f_locals):
            self.left.pop(0)
            stop.seen = [(each, repr(eval(each, frame.f_globals, frame.f_locals))) for each, _ in stop.values]


def test_both_pages_tell_the_same_tour() -> None:
    zh, en = read_tour("zh"), read_tour("en")
    assert zh == en
    assert 10 <= len(en[1]) <= 14
    assert all(stop.values for stop in en[1])


def test_the_tour_sees_what_the_page_says(one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, stops = read_tour("en")
    guide = Guide(stops)
    try:
        assert guide.runcall(mini_llama.main, arguments) == 0
    finally:
        guide.clear_all_breaks()
    assert "23 + 45 = 68." in capsys.readouterr().out
    assert [stop.symbol for stop in guide.left] == [], "not reached, or not in this order"
    for stop in stops:
        assert stop.seen == stop.values, f"{stop.path}::{stop.symbol}"
