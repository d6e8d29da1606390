"""画文档里的图：每个 `docs/pictures/NAME.dot` 画成两种语言的 SVG。

源文件里的文字写作“中文 / English”，两种语言相同的只写一次。要用 Graphviz 的 `dot` 和中文字体：
在 Debian 和 Ubuntu 上是 `apt-get install graphviz fonts-noto-cjk`。

Draw the pictures of the documentation: each `docs/pictures/NAME.dot` becomes an SVG in each of both languages.

A text in a source is written "中文 / English", or once where both are the same. It takes Graphviz's `dot` and a Chinese
font: on Debian and Ubuntu `apt-get install graphviz fonts-noto-cjk`.

用法 / Usage: `python tools/pictures.py`
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

PICTURES: Final = Path(__file__).resolve().parent.parent / "docs" / "pictures"
LANGUAGES: Final = ("en", "zh")
OPTIONS: Final = """
    -Gpad=0.15 -Granksep=0.3 -Gnodesep=0.3 -Gfontsize=11 -Nfontsize=11 -Efontsize=11 -Gfontname=sans-serif
    -Nfontname=sans-serif -Efontname=sans-serif -Nshape=box -Nstyle=rounded -Nheight=0.3 -Nmargin=0.15,0.06
    -Earrowsize=0.7 -Gbgcolor=white
"""
# 图里没有外部的东西：字体取读者机器上的，颜色随系统的深浅，没有样式时是白底黑字。
# Nothing external: fonts are those of the reader's machine, colours follow its theme, without styles black on white.
STYLE: Final = """<style>
svg { --ink: #1f2328; --soft: #59636e; --paper: #ffffff; --fill: #f1f4f8; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { svg { --ink: #e0e5eb; --soft: #9aa5b1; --paper: #0f141a; --fill: #1d2530; } }
text { fill: var(--ink); font-family: system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
.edge text { fill: var(--soft); stroke: var(--paper); stroke-width: 4px; paint-order: stroke; }
.graph > polygon { fill: var(--paper); }
.cluster > polygon { fill: none; stroke: var(--soft); stroke-dasharray: 4 3; }
.node > :is(path, polygon, ellipse) { fill: var(--fill); stroke: var(--soft); }
.edge > path { stroke: var(--soft); } .edge > polygon { fill: var(--soft); stroke: var(--soft); }
</style>
"""


def translate(source: str, language: str) -> str:
    """源文件里只留一种语言的文字。

    The source with its texts in one language.
    """
    half = r"\1" if language == "zh" else r"\2"
    return re.sub(r'"([^"/]*[^\x00-\u2fff][^"/]*) / ([^"]*)"', rf'"{half}"', source)


def fingerprint(source: str) -> str:
    """写进图里的摘要，含源文件、`OPTIONS` 和 `STYLE`：它们改了而图没有重画，测试就会发现。

    The digest that a picture carries, of the source, `OPTIONS` and `STYLE`: a test notices one of them that changed
    without a new picture.
    """
    return hashlib.sha256((source + OPTIONS + STYLE).encode()).hexdigest()[:16]


def draw(source: str, language: str) -> str:
    """用 `dot` 画出一种语言的图。

    A picture in one language, drawn by `dot`.
    """
    # 箭头上的文字两边各留一个空格，不贴着线。
    # A blank on either side of a text at an arrow keeps it off the lines.
    text = re.sub(r'(->.*label=")([^"]*)"', r'\1 \2 "', translate(source, language))
    command = ["dot", "-Tsvg", *OPTIONS.split()]
    drawn = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    # 去掉 `dot` 的开头、版本和各元素的内部名字。
    # Without the preamble of `dot`, its version, and the internal names of the elements.
    drawn = re.sub(r"<!--.*?-->\n|<title>.*?</title>\n", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    start = drawn.index(">") + 1
    return f"{drawn[:start]}\n<!-- tools/pictures.py {fingerprint(source)} -->\n{STYLE}{drawn[start:].lstrip()}"


def main(arguments: list[str] | None = None) -> int:
    """命令行入口：画出全部图。

    The command line: draw all pictures.
    """
    argparse.ArgumentParser(description="画文档里的图 / draw the pictures of the docs").parse_args(arguments)
    for path in sorted(PICTURES.glob("*.dot")):
        source = path.read_text(encoding="utf-8")
        for language in LANGUAGES:
            try:
                picture = draw(source, language)
            except FileNotFoundError:
                remedy = "on Debian and Ubuntu: apt-get install graphviz fonts-noto-cjk"
                print(f"pictures.py: error: the program dot is not installed; {remedy}", file=sys.stderr)
                return 2
            except subprocess.CalledProcessError as error:
                print(f"pictures.py: error: {path.name}: {' '.join(error.stderr.split())}", file=sys.stderr)
                return 2
            path.with_suffix(f".{language}.svg").write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
