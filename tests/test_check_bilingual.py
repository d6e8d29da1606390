"""`tools/check_bilingual.py`：每条规则的正反例，以及仓库自身的检查。
`tools/check_bilingual.py`: good and bad examples of each rule, and the check of this repository itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_bilingual import (
    ANNOTATED,
    DEFAULT_PATHS,
    ROOT,
    Stats,
    check_path,
    check_source,
    classify,
    count_lines,
    is_shape,
    main,
    numbers,
)

HEADER = '"""模块。\nA module.\n"""\n'


def messages(code: str, header: str = HEADER) -> list[str]:
    return [fault.message for fault in check_source(header + code, "example.py")]


GOOD = {
    "pair": "# 最后一页写满时才需要新的一页。\n# Only when the last block is full is a new block needed.\nx = 1\n",
    "two lines a half": "# 第一行，\n# 第二行。\n# Line one,\n# line two.\nx = 1\n",
    "several pairs": "# 甲。\n# First.\n# 乙。\n# Second.\nx = 1\n",
    "blank comment line": "# 甲。\n# First.\n#\n# 乙。\n# Second.\nx = 1\n",
    "names and numbers": (
        "# 当 `a > b` 时取 3 和 1,024，槽位为 -1。\n# Takes 1024 and 3 at slot −1 when `a > b`.\nx = 1\n"
    ),
    "digits in names": "# 用 bf16 存储，H200 上如此。\n# Stored as bfloat so on a GPU.\nx = 1\n",
    "example": "# 例子：\n# For example:\n#   slot = 3 * 16 + 5 = 53\nx = 1\n",
    "example between": "# 例子：\n#   slot = 3 * 16 + 5 = 53\n# Like this.\nx = 1\n",
    "line of code in a half": "# 条件是\n# `a > b`。\n# The condition is\n# `a > b`.\nx = 1\n",
    "quoted Chinese in English": '# 提示词是“你好”。\n# The prompt is "你好".\nx = 1\n',
    "rule": "# ---- 1 ----\nx = 1\n",
    "shape": "x = 1  # [T, Hq, D]\ny = 2  # [T] int64\nz = 3  # q [T, Hq * D], k [T, Hkv, D] -> [[0, 1], [2, -1]]\n",
    "directive": "import os  # noqa: F401\nx = 1  # type: ignore[assignment]\n# ruff: noqa\n# fmt: off\n",
    "hash in a string": 'x = "# not a comment"\n',
    "function": 'def f():\n    """做事。\n    Does it.\n    """\n',
    "private without": "def _f():\n    pass\n\n\nclass _C:\n    def g(self):\n        pass\n",
    "nested without": 'def f():\n    """做事。\n    Does it.\n    """\n    def g():\n        pass\n',
    "init without": 'class C:\n    """类。\n    A class.\n    """\n    def __init__(self):\n        pass\n',
    "setter without": (
        'class C:\n    """类。\n    A class.\n    """\n'
        '    @property\n    def x(self):\n        """值。\n        A value.\n        """\n'
        '    @x.setter\n    def x(self, value):\n        pass\n'
    ),
    "docstring with arguments": (
        'def f(q):\n    """计算 `q` 的注意力，\n    分两行。\n    Attention of `q`,\n    in two lines.\n\n'
        '    参数 / Args:\n        q: [T, Hq, D] 查询 / queries\n    """\n'
    ),
    "docstring in paragraphs": (
        'def f():\n    """做 `a`。\n\n    用 `b`。\n\n    Does `a`, `b`.\n\n    Args:\n        c: see `d`\n    """\n'
    ),
}

BAD = {
    "no English": ("# 只有中文。\nx = 1\n", "the English half is missing"),
    "no Chinese": ("# Only English.\nx = 1\n", "the Chinese half is missing"),
    "no Chinese in the second pair": ("# 甲。\n# First.\nx = 1\n# Second.\ny = 1\n", "the Chinese half is missing"),
    "English first": ("# English.\n# 中文。\nx = 1\n", "English stands before Chinese"),
    "three lines of Chinese": ("# 一\n# 二\n# 三\n# One.\nx = 1\n", "the Chinese half has 3 lines, at most 2"),
    "three lines of English": ("# 一\n# One\n# two\n# three.\nx = 1\n", "the English half has 3 lines, at most 2"),
    "second pair open": ("# 甲。\n# First.\n# 乙。\nx = 1\n", "the English half is missing"),
    "names": ("# 用 `a`。\n# Uses `b`.\nx = 1\n", "names in backticks differ"),
    "name only in one": ("# 用 `a`。\n# Uses it.\nx = 1\n", "names in backticks differ"),
    "numbers": ("# 取 3 个。\n# Takes 4.\nx = 1\n", "numbers differ"),
    "sign": ("# 槽位为 -1。\n# The slot is 1.\nx = 1\n", "numbers differ"),
    "number in words": ("# 取 2 个。\n# Takes two.\nx = 1\n", "numbers differ"),
    "exponent": ("# 误差 1e-5。\n# An error of 1e-6.\nx = 1\n", "numbers differ"),
    "indented prose": ("#   This is the English that hides.\nx = 1\n", "the Chinese half is missing"),
    "trailing text": ("x = 1  # the answer\n", "a comment at the end of a line"),
    "trailing Chinese": ("x = 1  # [T] 个词元\n", "a comment at the end of a line"),
    "trailing prose in brackets": ("x = 1  # [number of tokens]\n", "a comment at the end of a line"),
    "trailing prose behind a shape": ("x = 1  # [T] tokens\n", "a comment at the end of a line"),
    "string as comment": ('x = 1\n"a comment"\n', "a string literal is used as a comment"),
    "attribute docstring": (
        'class C:\n    """类。\n    A class.\n    """\n    x: int = 1\n    """属性。\n    An attribute.\n    """\n',
        "a string literal is used as a comment",
    ),
    "formatted string as comment": ('x = 1\nf"{x}"\n', "a string literal is used as a comment"),
    "function without": ("def f():\n    pass\n", "`f` has no docstring"),
    "async function without": ("async def f():\n    pass\n", "`f` has no docstring"),
    "function in a branch": ("if 1:\n    def f():\n        pass\n", "`f` has no docstring"),
    "class without": ("class C:\n    pass\n", "`C` has no docstring"),
    "method without": (
        'class C:\n    """类。\n    A class.\n    """\n    def g(self):\n        pass\n',
        "`C.g` has no docstring",
    ),
    "docstring in English": ('def f():\n    """Does it."""\n', "the docstring of `f` has no Chinese"),
    "docstring in Chinese": ('def f():\n    """做事。"""\n', "the docstring of `f` has no English"),
    "docstring on one line": ('def f():\n    """做事。Does it."""\n', "the docstring of `f` has no English"),
    "docstring order": ('def f():\n    """Does it.\n    做事。\n    """\n', "the docstring of `f` has English before"),
    "docstring names": (
        'def f():\n    """做 `a`。\n    Does `b`.\n    """\n',
        "the docstring of `f`: names in backticks differ",
    ),
    "docstring with English in a section only": (
        'def f():\n    """做事。\n\n    Args:\n        c: English\n    """\n',
        "the docstring of `f` has no English",
    ),
    "private docstring": ('def _f():\n    """Does it."""\n', "the docstring of `_f` has no Chinese"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert messages(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_bad_for_its_own_reason(name: str) -> None:
    code, reason = BAD[name]
    found = messages(code)
    assert len(found) == 1
    assert found[0].startswith(reason)


def test_module_docstring() -> None:
    assert messages("x = 1\n", header="") == ["the module has no docstring"]
    assert messages("", header="#!/usr/bin/env python3\n" + HEADER) == []


def test_fault_names_file_and_line() -> None:
    (fault,) = check_source(HEADER + "x = 1\n# 只有中文。\n", "engine/a.py")
    assert str(fault) == "engine/a.py:5: the English half is missing"


def test_helpers() -> None:
    assert [classify(text) for text in ("中文 and English", "English", "`x`, 3", "", "  a -> b")] == [
        "zh",
        "en",
        "code",
        "neutral",
        "neutral",
    ]
    assert numbers("8-128, 1e-5 和 3x；bf16、Llama-3.2-1B，(-1)") == {"8", "128", "1e-5", "3", "3.2", "1", "-1"}
    assert is_shape("[num_seqs, max_blocks] int32 cuda")
    assert not is_shape("float32")


def test_stats_count_neither_docstrings_nor_blank_lines() -> None:
    source = HEADER + '\n# 甲。\n# First.\nx = [\n    1,  # [T]\n]\n\n\ndef f():\n    """做。\n    Do.\n    """\n'
    stats = count_lines(source)
    assert (stats.code, stats.comments) == (4, 2)
    assert stats.ratio == 0.5
    assert stats + Stats(1, 1) == Stats(5, 3)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.py").write_text(HEADER + "x = 1\n", encoding="utf-8")
    assert main([str(tmp_path), "--stats"]) == 0
    assert "ratio" in capsys.readouterr().out
    (tmp_path / "bad.py").write_text(HEADER + "# Only English.\n", encoding="utf-8")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path / 'bad.py'}:4: the Chinese half is missing\n"
    assert main([str(tmp_path / "missing")]) == 2


@pytest.mark.parametrize("name", DEFAULT_PATHS)
def test_repository_is_clean(name: str) -> None:
    faults, _ = check_path(ROOT / name)
    assert [str(fault) for fault in faults] == []


@pytest.mark.parametrize("name", ANNOTATED)
def test_repository_is_heavily_commented(name: str) -> None:
    _, stats = check_path(ROOT / name)
    assert stats.ratio >= 0.45, f"{name}: {stats.comments} comment lines to {stats.code} lines of code"
