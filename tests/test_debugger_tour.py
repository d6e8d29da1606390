"""断点之旅：在 `bdb` 下走一遍，每一站的表达式都得到页面上写的值；两种语言的页面说的是同一条路。

The debugger tour: walked under `bdb`, every expression of every stop has the value that the page gives; the pages of
both languages describe the same way.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass, field
from types import FrameType

import pytest
from debugger_helpers import ROOT, Guide, find_line
from engine_helpers import environment, python

import mini_llama

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

    def place(self) -> tuple[str, int]:
        return self.path, find_line(self.path, self.symbol, self.line)


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


def test_both_pages_tell_the_same_tour() -> None:
    zh, en = read_tour("zh"), read_tour("en")
    assert zh == en
    assert 10 <= len(en[1]) <= 14
    assert all(stop.values for stop in en[1])


def test_the_tour_sees_what_the_page_says(one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, stops = read_tour("en")
    left = list(stops)

    # 按次序在每一站停一次，记下表达式的值。
    # Stop once at each stop, in order, and note the expressions' values.
    def arrive(place: tuple[str, int], frame: FrameType) -> None:
        names = frame.f_globals, frame.f_locals
        if left and left[0].place() == place and eval(left[0].condition or "True", *names):
            stop = left.pop(0)
            stop.seen = [(each, repr(eval(each, *names))) for each, _ in stop.values]

    guide = Guide([stop.place() for stop in stops], arrive)
    try:
        assert guide.runcall(mini_llama.main, arguments) == 0
    finally:
        guide.clear_all_breaks()
    assert "23 + 45 = 68." in capsys.readouterr().out
    assert [stop.symbol for stop in left] == [], "not reached, or not in this order"
    for stop in stops:
        assert stop.seen == stop.values, f"{stop.path}::{stop.symbol}"


def test_pdb_walks_the_same_way() -> None:
    """页面上的命令，原样由管道送进 pdb；每站的每个表达式，打印出来的正是页面上的值。

    The commands of the page piped into pdb as they stand; every expression of every stop prints the value of the page.
    """
    text = (ROOT / "docs" / "en" / "debugger_tour.md").read_text(encoding="utf-8")
    arguments, stops = read_tour("en")
    section = text.partition("## With pdb")[2].partition("\n## ")[0]
    command, setup = re.findall(r"^```\w+\n(.*?)\n```$", section, re.MULTILINE | re.DOTALL)
    assert shlex.split(command) == ["python", "-m", "pdb", "mini_llama.py", *arguments]
    steps = {
        int(number): re.findall(r"`([^`]+)`", commands)
        for numbers, commands in re.findall(r"^\| ([\d, ]+) \| (.+) \|$", section, re.MULTILINE)
        for number in numbers.split(",")
    }
    assert sorted(steps) == list(range(1, len(stops) + 1))
    # 每条命令之后，pdb 打印的是下一个提示符之前的那一段。
    # What pdb prints for a command is what precedes the next prompt.
    commands, expected = setup.splitlines(), {}
    for number, stop in enumerate(stops, 1):
        commands += steps[number]
        for expression, value in stop.values:
            commands.append(f"p {expression}")
            expected[len(commands)] = (number, expression, value)
    result = subprocess.run(
        [python(), *shlex.split(command)[1:]], cwd=ROOT, env=environment(), input="\n".join([*commands, "q", ""]),
        capture_output=True, text=True, encoding="utf-8", timeout=120,
    )
    answers = result.stdout.split("(Pdb) ")
    seen = {at: (*expected[at][:2], answers[at].strip()) for at in expected if at < len(answers)}
    assert seen == expected, result.stdout + result.stderr
