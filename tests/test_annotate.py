"""对照阅读的网站：文件、章节、链接、锚点都在；不联网；语言开关在真的浏览器里有效。

The site for reading the source: files, chapters, links and anchors are there; no network; the language switch works in
a real browser.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tools.annotate import ROOT, Site, find_chapters, find_sources, join_lines, main
from tools.check_bilingual import ANNOTATED

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """一个页面的锚点、链接，以及会被加载的东西 / a page's anchors, links, and what it loads"""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href":
                (self.links if tag == "a" else self.loads).append(value or "")
            elif name in ("src", "srcset", "data", "poster"):
                self.loads.append(value or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    assert main(["--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_every_file_and_chapter_is_there(pages: dict[str, Page]) -> None:
    files = [p for name in ANNOTATED for p in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]
    expected = {f"{path.relative_to(ROOT).as_posix()}.html" for path in files}
    expected |= {f"docs/labs/{path.name}.html" for path in (ROOT / "docs" / "labs").glob("*.py")}
    expected |= {f"docs/{path.stem}.html" for path in (ROOT / "docs" / "en").glob("*.md")}
    assert expected <= set(pages)
    # 首页能走到每一页。
    # The index leads to every page.
    assert set(pages) - {"index.html"} == {*pages["index.html"].links} - {"./index.html"}


def test_links_and_anchors_resolve(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), f"{name}: an anchor stands twice"
        for link in page.links:
            if re.match(r"https?:|mailto:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (site / name).parent.joinpath(path).resolve() if path else site / name
            found = pages.get(target.relative_to(site.resolve()).as_posix() if path else name)
            if found is None or (anchor and anchor not in found.ids):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_the_network(site: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for load in page.loads:
            assert load == "data:," or (site / name).parent.joinpath(load).exists(), f"{name} loads {load}"
    for path in (site / "style.css", site / "script.js"):
        assert not re.search(r"https?:|@import|url\(|fetch\(|import\(", path.read_text(encoding="utf-8")), path


def test_no_line_of_code_is_lost(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for source in site.sources.values():
        shown = [number for row in site.rows(source) for number in row.lines]
        assert shown == sorted(set(shown))
        # 语法树里每个名字所在的行都在，注释都不在。
        # The line of every name of the syntax tree is there, and no comment is.
        assert {node.lineno for node in ast.walk(source.tree) if isinstance(node, ast.Name)} <= set(shown)
        lines = source.text.splitlines()
        left = [lines[n - 1] for n in shown if re.match(r" *# (?!noqa|fmt:|type:|mypy:|ruff:)", lines[n - 1])]
        assert left == []


def test_commentary_stands_beside_its_code(tmp_path: Path) -> None:
    site = Site(tmp_path)
    source = site.sources["engine/scheduler.py"]
    lines = source.text.splitlines()
    rows = [(row.notes, [lines[n - 1].strip() for n in row.lines]) for row in site.rows(source)]
    # 签名旁边是文字说明，语句旁边是注释。
    # The docstring beside the signature, the comment beside the statement.
    [signature] = [notes for notes, code in rows if code[:1] == ["def schedule(self) -> list[ScheduledSequence]:"]]
    assert "Decide this step" in signature and '<span class="en" lang="en">one entry a sequence' in signature
    assert "with a budget of 8" in signature and "<pre>step 1   A 1" in signature
    sort = "scheduled.sort(key=lambda row: row.num_new_tokens != 1)"
    [statement] = [notes for notes, code in rows if code[:1] == [sort]]
    assert "False sorts before True" in statement and "<pre>before   [(A, 6)" in statement


def test_files_import_only_what_is_below() -> None:
    order = list(find_sources())
    for index, source in enumerate(find_sources().values()):
        assert not set(source.imports) & set(order[:index]), source.path
    assert next(path for path in order if not path.startswith("docs/labs/")) == "mini_llama.py"
    assert order[-1].startswith("backends/")


def test_docs_lead_to_code_and_back(pages: dict[str, Page]) -> None:
    for chapter in find_chapters():
        text = "".join(path.read_text(encoding="utf-8") for path in chapter.files.values())
        sources = set(re.findall(r"`((?:serving|engine|layers|models|backends)/[\w/]+\.py)::", text))
        for source in sources:
            assert any(f"{source}.html" in link for link in pages[chapter.page].links), (chapter.name, source)
            assert any(link.endswith(chapter.page) for link in pages[f"{source}.html"].links), (source, chapter.name)


def test_a_wrong_symbol_stops_the_build(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site._reference("engine/scheduler.py::Scheduler.schedule") == "engine/scheduler.py.html#Scheduler.schedule"
    assert site._reference("tests/test_engine.py") is None
    with pytest.raises(ValueError, match=r"engine/scheduler\.py has no Scheduler\.plan"):
        site._reference("engine/scheduler.py::Scheduler.plan")


def test_wrapped_lines_are_joined() -> None:
    assert join_lines(["先算，", "再存 `k`，", "最后 sum"]) == "先算，再存 `k`，最后 sum"
    assert join_lines(["a line", "and more", "1. item"]) == "a line and more\n1. item"


# ---- 浏览器 ----
# ---- the browser ----


class Browser:
    """一个无界面的 Chromium，经管道用 DevTools 协议控制 / a headless Chromium, driven by DevTools through a pipe"""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()

        # 协议规定：3 号管道读命令，4 号管道写回答。
        # The protocol says: commands come in at descriptor 3, answers go out at 4.
        def connect() -> None:
            fds = os.dup(to_browser), os.dup(from_browser)
            os.dup2(fds[0], 3)
            os.dup2(fds[1], 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.number, self.session = b"", 0, ""
        self.errors: list[str] = []
        [page] = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                piece = os.read(self.read, 1 << 16)
                assert piece, "chromium has closed the pipe"
                self.buffer += piece
            text, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.errors.append(json.dumps(answer["params"]))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def resize(self, width: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)

    def open(self, address: str) -> None:
        # 只差井号后面的地址不会重新加载，所以先离开。
        # An address that differs only behind the hash is not loaded anew, so leave the page first.
        if self.evaluate("location.href").partition("#")[0] == address.partition("#")[0]:
            self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + 20
        while not self.evaluate(f"document.readyState == 'complete' && location.href == {json.dumps(address)}"):
            assert time.monotonic() < deadline, f"{address} does not load"
            time.sleep(0.01)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.write)
        os.close(self.read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture
def visible(browser: Browser) -> Callable[[], tuple[bool, bool]]:
    """眼前能看到中文吗，能看到英文吗 / is Chinese seen, is English seen"""

    def seen() -> tuple[bool, bool]:
        script = "[...document.querySelectorAll('main .{}')].some((e) => e.getClientRects().length > 0)"
        return browser.evaluate(script.format("zh")), browser.evaluate(script.format("en"))

    return seen


@pytest.mark.parametrize("page", ["engine/scheduler.py.html", "docs/debugger_tour.html"])
def test_language_switch(site: Path, browser: Browser, visible: Callable[[], tuple[bool, bool]], page: str) -> None:
    address, expected = (site / page).as_uri(), {"zh": (True, False), "en": (False, True), "both": (True, True)}
    browser.errors.clear()
    for language, seen in expected.items():
        browser.open(f"{address}#lang={language}")
        assert visible() == seen, language
        # 记得住：没有井号的地址也是这个语言。
        # Remembered: the address without a hash has the same language.
        browser.open(address)
        assert visible() == seen, language
    for language, seen in expected.items():
        browser.evaluate(f"document.querySelector('[data-set={language}]').click()")
        assert visible() == seen, language
        assert browser.evaluate("document.querySelector('[aria-pressed=true]').dataset.set") == language
    assert browser.errors == []


@pytest.mark.long
def test_every_page_fits_the_window(site: Path, pages: dict[str, Page], browser: Browser) -> None:
    wide = []
    for page in sorted(pages):
        browser.open(f"{(site / page).as_uri()}#lang=both")
        for width in (1280, 390):
            browser.resize(width)
            if browser.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append((page, width))
    assert wide == []


def test_columns(site: Path, browser: Browser) -> None:
    script = (
        "(() => { const [a, b] = ['.notes', '.code'].map((s) => document.querySelector('.row ' + s)"
        ".getBoundingClientRect()); return [a.left < b.left, Math.abs(a.top - b.top) < 2]; })()"
    )
    browser.open(f"{(site / 'engine/batch.py.html').as_uri()}#lang=en")
    for width, side_by_side in ((1280, [True, True]), (390, [False, False])):
        browser.resize(width)
        assert browser.evaluate(script) == side_by_side
