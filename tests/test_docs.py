"""`docs/` 的每一章：两种语言一一对应，链接有效，代码能运行。
Every chapter of `docs/`: both languages match, links lead somewhere, code runs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from codeop import compile_command
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools import chapter as chapter_file
from tools.chapter import DOCS, ROOT, Block

LANGS = ("en", "zh")
CHAPTERS = sorted({path.stem for lang in LANGS for path in (DOCS / lang).glob("*.md")})
CLOSING = ["## Try it · 动手试试", "## Breakpoint · 断点", "## Questions · 问与答"]
# 这两章是用来查的，不是用来读的：一章是数据，一章是词条。
# These two are for looking things up: one is figures, the other entries.
REFERENCE = ("glossary", "performance")
# 代码块上面那行注释：为什么不运行；或者要用哪个包，没装就跳过。
# The comment above a block: why it is not run; or which package it needs, without which it is skipped.
MARKERS = ("not run: gpu", "not run: download", "not run: terminal", "needs: triton")


def read(lang: str, chapter: str) -> tuple[str, list[Block]]:
    return chapter_file.read(DOCS / lang / f"{chapter}.md")


def headings(lang: str, chapter: str) -> list[str]:
    return re.findall(r"^#+ .*$", read(lang, chapter)[0], re.M)


def links(lang: str, chapter: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", read(lang, chapter)[0])


def links_in_any_language(lang: str, chapter: str) -> list[str]:
    """图在两种语言里各有一张，只差文件名里的语言。
    Each language has its own pictures, whose names differ in the language only.
    """
    return [re.sub(rf"\.{lang}\.svg$", ".svg", link) for link in links(lang, chapter)]


def symbols(lang: str, chapter: str) -> set[tuple[str, str]]:
    return set(re.findall(r"`([\w./-]+)::([^`]+)`", read(lang, chapter)[0]))


@cache
def names_in(path: Path) -> set[str]:
    """文件里的类、函数、方法、模块级和类级的赋值，写作 `A.b`。
    The classes, functions, methods and assignments of modules and classes in a file, written `A.b`.
    """
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                named = [name for target in targets for name in ast.walk(target)]
                found.update(prefix + name.id for name in named if isinstance(name, ast.Name))

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def blocks_to_run(kind: str, chapter: str) -> list[Block]:
    """两种语言的代码块相同，跑一遍就够。
    The blocks are the same in both languages, so one run will do.
    """
    blocks = read("en", chapter)[1] if (DOCS / "en" / f"{chapter}.md").exists() else []
    return [block for block in blocks if block.kind == kind and block.runs]


def skip_without_packages(blocks: list[Block]) -> None:
    missing = sorted({block.package for block in blocks if block.package and find_spec(block.package) is None})
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(command: list[str]) -> None:
    """在激活的环境里、仓库根目录下运行；读者没有设过 `TRITON_INTERPRET`。
    Run in an activated environment at the repository's root; readers have not set `TRITON_INTERPRET`.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("TRITON_INTERPRET", None)
    result = subprocess.run(command, cwd=ROOT, env=env, input="/exit\n", capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_both_languages_match(chapter: str) -> None:
    for lang in LANGS:
        assert (DOCS / lang / f"{chapter}.md").exists()
    assert headings("en", chapter) == headings("zh", chapter)
    assert links_in_any_language("en", chapter) == links_in_any_language("zh", chapter)
    assert symbols("en", chapter) == symbols("zh", chapter)
    english, chinese = ([(b.kind, b.code, b.marker) for b in read(lang, chapter)[1]] for lang in LANGS)
    assert english == chinese


@pytest.mark.parametrize("chapter", [chapter for chapter in CHAPTERS if chapter not in REFERENCE])
def test_chapter_ends_with_the_three_sections(chapter: str) -> None:
    assert [heading for heading in headings("en", chapter) if heading.startswith("## ")][-3:] == CLOSING


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("lang", LANGS)
def test_links_lead_somewhere(lang: str, chapter: str) -> None:
    for link in links(lang, chapter):
        path = link.partition("#")[0]
        assert link.startswith("https://") or (DOCS / lang / path).exists(), link
    for name, symbol in symbols(lang, chapter):
        path = ROOT / name
        assert path.is_file(), name
        assert symbol.partition("[")[0] in names_in(path), f"{name}::{symbol}"


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("lang", LANGS)
def test_only_known_markers(lang: str, chapter: str) -> None:
    prose, blocks = read(lang, chapter)
    marked = [block for block in blocks if block.marker]
    # 每个标记都紧挨在一个本来会运行的代码块上面。
    # Each marker stands directly above a block that would run without it.
    assert re.findall(r"<!--\s*(?:not run|needs).*", prose) == [f"<!-- {block.marker} -->" for block in marked]
    requirements = (ROOT / ".ci/requirements.txt").read_text(encoding="utf-8").splitlines()
    for block in marked:
        assert block.marker in MARKERS and block.kind in ("python", "bash"), block
        # 读者看不见注释，所以正文也要写明怎样装这个包，版本与检查所用的相同。
        # Readers do not see comments, so the text, too, says how to install the package, in the version of the checks.
        if block.package:
            (wanted,) = [line for line in requirements if re.match(rf"{block.package}\b", line)]
            assert f'pip install "{wanted}"' in prose
    assert {block.kind for block in blocks} <= {"python", "bash", "text"}


WITH_PYTHON = [chapter for chapter in CHAPTERS if blocks_to_run("python", chapter)]


@pytest.mark.parametrize("chapter", WITH_PYTHON)
def test_python_blocks_run(chapter: str) -> None:
    skip_without_packages(blocks_to_run("python", chapter))
    run([sys.executable, "tools/chapter.py", chapter])


@pytest.mark.parametrize("chapter", WITH_PYTHON)
def test_python_blocks_can_be_pasted(chapter: str) -> None:
    """每一块都能逐行输入解释器：语句之间、块的末尾都没有没写完的东西。
    Each block can be typed into the interpreter line by line, with nothing left open between statements or at its end.
    """
    for block in read("en", chapter)[1]:
        typed: list[str] = []
        for number, line in enumerate(block.code.split("\n") if block.kind == "python" else [], block.first):
            typed.append(line)
            try:
                complete = compile_command("\n".join(typed)) is not None
            except SyntaxError as error:
                pytest.fail(f"docs/en/{chapter}.md:{number}: {error}")
            typed = [] if complete else typed
        assert not typed, f"docs/en/{chapter}.md:{block.first}: a blank line has to end the block"


@pytest.mark.long
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{chapter}-{block.first}")
        for chapter in CHAPTERS
        for block in blocks_to_run("bash", chapter)
    ],
)
def test_bash_blocks_run(block: Block) -> None:
    skip_without_packages([block])
    run(["bash", "-e", "-o", "pipefail", "-c", block.code])
