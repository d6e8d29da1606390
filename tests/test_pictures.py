"""文档里的图：两种语言各一张，与源文件一致；在浏览器里显示完整，文字是所选的语言。
The pictures of the documentation: one in each language, as their source says; a browser shows them whole, in the chosen
language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from chromium import Page, browser, find_chromium

from tools.annotate import Site
from tools.check_bilingual import CJK
from tools.pictures import LANGUAGES, PICTURES, fingerprint, main, translate

DOCS = PICTURES.parent
NAMES = sorted(path.stem for path in PICTURES.glob("*.dot"))
SVG = "{http://www.w3.org/2000/svg}"


def picture(name: str, language: str) -> Path:
    return PICTURES / f"{name}.{language}.svg"


def texts(path: Path) -> list[str]:
    return [(element.text or "").strip() for element in ElementTree.parse(path).iter(f"{SVG}text")]


def pictures_of_chapters(language: str) -> dict[str, list[str]]:
    chapters = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / language).glob("*.md")}
    found = {name: re.findall(r"!\[(.+?)\]\(\.\./pictures/(.+?)\)", text) for name, text in sorted(chapters.items())}
    # 图的说明也是这一章的语言。
    # The alternative text is in the chapter's language, too.
    assert all(bool(CJK.search(alt)) == (language == "zh") for images in found.values() for alt, _ in images)
    return {name: [file for _, file in images] for name, images in found.items() if images}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_picture_is_drawn_and_shown(language: str) -> None:
    drawn = sorted(path.name for path in PICTURES.glob(f"*.{language}.svg"))
    assert drawn == [f"{name}.{language}.svg" for name in NAMES]
    assert sorted(file for files in pictures_of_chapters(language).values() for file in files) == drawn
    assert len(list(PICTURES.glob("*.svg"))) == len(NAMES) * len(LANGUAGES)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_the_source(name: str) -> None:
    source = (PICTURES / f"{name}.dot").read_text(encoding="utf-8")
    counts = []
    for language in LANGUAGES:
        svg = picture(name, language).read_text(encoding="utf-8")
        remedy = f"{name}.dot, OPTIONS or STYLE has changed since; run python tools/pictures.py"
        assert f"<!-- tools/pictures.py {fingerprint(source)} -->" in svg, remedy
        counts.append([svg.count('class="node"'), svg.count('class="edge"')])
        shown = " ".join(translate(source, language).replace("\\n", "\n").split())
        assert all(text in shown for text in texts(picture(name, language)))
        # 没有外部的东西，也没有 HTML。
        # Nothing external, and no HTML.
        outside = svg.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
        assert not re.search(r"https?:|href|url\(|@import|foreignObject|<script", outside)
    assert counts[0] == counts[1] and min(counts[0]) > 0
    english, chinese = (texts(picture(name, language)) for language in LANGUAGES)
    assert not any(map(CJK.search, english)) and any(map(CJK.search, chinese))
    # 中文图里不剩可以翻译的英文。
    # No English that has a translation is left in the Chinese picture.
    translated = set(english) - {text for text in english if text in translate(source, "zh")}
    assert translated and not translated & set(chinese)


@pytest.mark.parametrize("name", ["OPTIONS", "STYLE"])
def test_what_decides_the_drawing_is_in_the_fingerprint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("digraph {}")
    monkeypatch.setattr(f"tools.pictures.{name}", "")
    assert fingerprint("digraph {}") != before != fingerprint("digraph { a }")


def test_translate() -> None:
    source = 'a [label="一\\n二 / one\\ntwo"]\nb [label="/ c"]\nc [label="x / y"]\na -> b [label="T 个 / T", dir=both]'
    chinese = 'a [label="一\\n二"]\nb [label="/ c"]\nc [label="x / y"]\na -> b [label="T 个", dir=both]'
    english = 'a [label="one\\ntwo"]\nb [label="/ c"]\nc [label="x / y"]\na -> b [label="T", dir=both]'
    assert [translate(source, language) for language in LANGUAGES] == [english, chinese]


def test_without_graphviz_there_is_a_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("pictures.py: error: ") and "apt-get install graphviz fonts-noto-cjk" in line


# ---- 浏览器 ----
# ---- the browser ----


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("chromium is not installed")
    with browser(program) as found:
        yield found


def open_page(page: Page, path: Path, fragment: str = "") -> None:
    # 只差井号后面的地址不会重新加载，所以先离开。
    # An address that differs only behind the hash is not loaded anew, so leave the page first.
    for url in ("about:blank", path.as_uri() + fragment):
        page.events.clear()
        page.open(url)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_cut_off(page: Page, name: str, language: str) -> None:
    open_page(page, picture(name, language))
    wide = page.run("""(() => {
        const box = (e) => e.getBoundingClientRect(), inside = (a, b) =>
            a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
        const all = [...document.querySelectorAll("text")];
        return [all.length, all.filter((text) => {
            const node = text.closest(".node");
            const shape = node ? node.querySelector("path, ellipse, polygon") : document.documentElement;
            return !inside(box(text), box(shape));
        }).map((text) => text.textContent)];
    })()""")
    assert wide == [len(texts(picture(name, language))), []]


def test_the_site_shows_every_picture(page: Page, tmp_path: Path) -> None:
    Site(tmp_path).build()
    script = """[...document.images].filter((i) => i.getClientRects().length > 0)
        .map((i) => [i.naturalWidth > 0, i.getAttribute("src"), i.alt])"""
    for language in LANGUAGES:
        for chapter, files in pictures_of_chapters(language).items():
            open_page(page, tmp_path / "docs" / f"{chapter}.html", f"#lang={language}")
            shown = page.run(script)
            assert [(loaded, Path(src).name) for loaded, src, _ in shown] == [(True, file) for file in files]
            for _, src, alt in shown:
                assert bool(CJK.search(alt)) == (language == "zh")
                image = tmp_path / "docs" / src
                assert image.read_bytes() == (PICTURES / image.name).read_bytes()
