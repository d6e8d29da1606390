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
    entry_halves,
    is_shape,
    main,
    numbers,
)
from tools.count_code import count_code

HEADER = '"""模块。\nA module.\n"""\n'


def messages(code: str, header: str = HEADER) -> list[str]:
    return [fault.message for fault in check_source(header + code, "example.py")]


def section(name: str, *entries: str) -> str:
    """一个函数，它的文档字符串有这样一个小节；项里的换行就是折行。

    A function whose docstring has such a section; a line break in an entry is one in the source.
    """
    lines = "".join(f"        {entry}\n".replace("\n", "\n" + " " * 12, entry.count("\n")) for entry in entries)
    return f'def f():\n    """做。\n    Does.\n\n    {name}:\n{lines}    """\n'


def body(*lines: str) -> str:
    """一个函数，函数体是这几行。

    A function with these lines for its body.
    """
    return "def _f():\n" + "".join(f"    {line}\n" for line in lines)


def section_fault(name: str, entry: str, reason: str) -> tuple[str, str]:
    """小节里有这样一项的函数，和它的违规。

    A function with such an entry in a section, and what is wrong with it.
    """
    return section(name, entry), f"{name} {reason}"


NOT_IN_BOTH = "of `f`: an entry is not written `name: 中文；English`"
BROKEN = "of `f`: an entry is broken only behind `；`, and only where 120 columns do not hold it"

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
        '    Args:\n        q: [T, Hq, D]，查询；queries\n    """\n'
    ),
    "docstring in paragraphs": (
        'def f():\n    """做 `a`。\n\n    用 `b`。\n\n    Does `a`, `b`.\n\n    Source: Su 2021, "RoFormer".\n    """\n'
    ),
    "entries without words": section(
        "Args", "q: [T, Hq, D] bfloat16", "k, v: [Tk, Hkv, D]", 'device: "auto", "cpu", ...', "x: `a * b`"
    ),
    "entries in both languages": section(
        "Attributes",
        "x: 分数；the scores",
        "n: 最多 8 个；None 不限；at most 8; None is any",
        "f, g: 见 `h`；see `h`",
        'mode: "auto" 或 "on"；"auto" or "on"',
    ),
    "entries of Returns have no name": section("Returns", "[T] int64，选中的；the chosen ones", "其余；the rest"),
    "entries of Returns may have one": section("Returns", "cos, sin: [T, D]", "others: 其余；the rest"),
    "a long entry is broken behind the semicolon": section("Raises", f"ValueError: {'甲' * 40}；\n{'an error ' * 5}"),
    "the longest entry that is not broken": section("Raises", f"ValueError: {'甲' * 40}；{'x' * 18}"),
    "as many comments as code": body("# 甲。", "# First.", "x = 1", "# 乙。", "# Second.", "return x"),
    "one line of code, one of comment": body("# 甲。", "# First.", "return 1"),
    "a signature of several lines": (
        "def _f(\n    # 甲。\n    # First.\n    x,\n):\n    # 乙。\n    # Second.\n    return x\n"
    ),
    "code on one line": "# 甲，\n# 乙。\n# First.\ndef _f(): return 1\n",
    "an example of three lines": body("# 例：", "# Example:", *["#     1 + 1"] * 3, *["x = 1"] * 4),
    "a docstring is no comment": (
        'def f():\n    """做。例：\n    Does. For example:\n\n' + "        1 + 1\n" * 5 + '    """\n    return 1\n'
    ),
    "comments outside functions": "# 甲。\n# First.\n# 乙。\n# Second.\nx = 1\n",
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
        'def f():\n    """做事。\n\n    Args:\n        c: 中文；English\n    """\n',
        "the docstring of `f` has no English",
    ),
    "entry in English": section_fault("Args", "c: English", NOT_IN_BOTH),
    "entry in Chinese": section_fault("Attributes", "c: 中文", NOT_IN_BOTH),
    "entry of Returns in English": section_fault("Returns", "the rest", NOT_IN_BOTH),
    "entry of Yields in Chinese": section_fault("Yields", "其余", NOT_IN_BOTH),
    "entry behind a shape in English": section_fault("Returns", "[T] int64，the rest", NOT_IN_BOTH),
    "entry with a slash": section_fault("Raises", "E: 不对 / it is wrong", NOT_IN_BOTH),
    "entry in the wrong order": section_fault("Raises", "E: wrong；不对", NOT_IN_BOTH),
    "entry with other names": section_fault("Args", "c: 见 `a`；see `b`", "of `f`: names in backticks differ"),
    "entry with other numbers": section_fault("Args", "c: 最多 3 个；at most 4", "of `f`: numbers differ"),
    "entry on the title's line": (
        'def f():\n    """做。\n    Does.\n\n    Returns: the rest\n    """\n', f"Returns {NOT_IN_BOTH}"
    ),
    "entry in a title of both languages": (
        'def f():\n    """做。\n    Does.\n\n    参数 / Args:\n        c: it\n    """\n', f"Args {NOT_IN_BOTH}"
    ),
    "entry without a name": section_fault("Raises", "值不对；it is wrong", "of `f`: an entry begins with the name"),
    "short entry broken": section_fault("Args", "c: 中文；\nEnglish", BROKEN),
    "entry that 120 columns hold": section_fault("Raises", f"ValueError: {'甲' * 40}；\n{'x' * 18}", BROKEN),
    "entry broken elsewhere": section_fault("Args", f"c: {'甲' * 50}；an\nerror of this kind", BROKEN),
    "entry of three lines": section_fault("Args", f"c: {'甲' * 50}；\nan error\nof this kind", BROKEN),
    "shape on two lines": section_fault("Args", "q: [T,\nD]", "of `f`: an entry without words takes one line"),
    "more Chinese than code": (
        body("# 甲，", "# 乙。", "# First.", "return 1"), "`_f` has 2 Chinese lines of comment to 1 of code",
    ),
    "more English than code": (
        body("# 甲。", "# First", "# of all.", "return 1"), "`_f` has 2 English lines of comment to 1 of code",
    ),
    "a nested function's comments": (
        body("x = 1", "def g():", "    # 甲。", "    # First", "    # of all.", "    return 1", "return g"),
        "`_f.g` has 2 English lines of comment to 1 of code",
    ),
    "a signature is no body": (
        "def _f(\n    x,\n    y,\n):\n    # 甲。\n    # First\n    # of all.\n    return x\n",
        "`_f` has 2 English lines of comment to 1 of code",
    ),
    "a docstring is no code": (
        'def f():\n    """做。\n    Does.\n    """\n    # 甲。\n    # First\n    # of all.\n    return 1\n',
        "`f` has 2 English lines of comment to 1 of code",
    ),
    "an example of four lines": (
        body("# 例：", "# Example:", *["#     1 + 1"] * 4, *["x = 1"] * 5), "an example of 4 lines, at most 3"
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


def test_an_example_counts_for_both_languages() -> None:
    assert messages(body("# 甲。", "# First.", "#   1 + 1", "return 1")) == [
        "`_f` has 2 Chinese lines of comment to 1 of code",
        "`_f` has 2 English lines of comment to 1 of code",
    ]


def test_an_entry_is_cut_into_what_is_shared_and_the_two_languages() -> None:
    assert entry_halves("q, k: [T, D] int64，查询；queries") == ("q, k: [T, D] int64，", "查询", "queries")
    assert entry_halves("甲；乙；one; two") == ("", "甲；乙", "one; two")
    assert entry_halves("q: [T, D]") == ("q: [T, D]", "", "")


@pytest.mark.parametrize("name", ANNOTATED)
def test_lines_of_code_are_counted_as_by_count_code(name: str) -> None:
    path = ROOT / name
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        assert count_lines(file.read_text(encoding="utf-8")).code == count_code(file), file


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
