"""把源码做成对照阅读的网站：左边是注释，右边是它们所说的代码，一块对一块；文档各章也在里面。

页面不联网：样式和脚本都在输出文件夹里，直接用浏览器打开 `index.html` 即可。

Make a site for reading the source: commentary at the left, the code that it explains at the right, block by block; the
chapters of the documentation are part of it.

The pages need no network: style and script lie in the output folder, so just open `index.html` in a browser.

用法 / Usage: `python tools/annotate.py [--out DIR]`
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import string
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path, PurePosixPath
from posixpath import relpath

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, get_lexer_by_name
from pygments.util import ClassNotFound

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.check_bilingual import (
    ANNOTATED,
    BACKTICKS,
    CJK,
    ROOT,
    SECTION,
    comment_blocks,
    count_lines,
    docstring_node,
    documented,
    entry_halves,
    parts,
)

TEMPLATES = ROOT / "tools" / "site"
# 谁用谁：每一组只导入写在它后面的组。
# Who uses whom: each group imports only from groups that stand behind it.
LAYERS = ("mini_llama", "serving", "engine", "models", "layers", "backends")
LABS = "docs/labs"
REFERENCE = re.compile(r"([\w./-]+\.py)(?:::([\w.]+))?")
IMAGES = {".svg", ".png", ".jpg", ".gif"}
FORMATTER = HtmlFormatter(nowrap=True)


def bilingual(zh: str, en: str) -> str:
    """行内的两种文字，由页面选择显示哪一种；相同则只写一次。

    Both texts inline, and the page chooses which to show; written once if they are the same.
    """
    return zh if zh == en else f'<span class="zh" lang="zh">{zh}</span> <span class="en" lang="en">{en}</span>'


def join_lines(lines: Sequence[str]) -> str:
    """把折开的几行接成一段：汉字之间不加空格，列表的每一项仍另起一行。

    Join wrapped lines to a paragraph: no blank between Chinese characters, and each item of a list on its own line.
    """
    text = ""
    for line in map(str.strip, lines):
        item = re.match(r"\d+\. |- ", line)
        tight = CJK.match(text[-1:]) or CJK.match(line[:1])
        text += line if not text else ("\n" if item else "" if tight else " ") + line
    return text


@dataclass
class Row:
    """页面上的一行：左边的说明，右边的代码。

    One row of a page: commentary left, code right.

    Attributes:
        notes: `HTML`
        lines: 代码行的行号，从 1 数起；numbers of the lines of code, from 1
    """

    notes: str = ""
    lines: list[int] = field(default_factory=list)


@dataclass
class Source:
    """一个源文件：文字、符号所在的行、它导入的文件。

    A source file: its text, the lines of its symbols, the files that it imports.
    """

    path: str
    text: str
    tree: ast.Module
    symbols: dict[str, int] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)

    @property
    def page(self) -> str:
        """页面相对于网站根目录的路径。

        The page's path from the root of the site.
        """
        return f"{self.path}.html"


@dataclass
class Chapter:
    """一章文档，各语言一个文件；只有一种语言时两边相同。

    A chapter of the documentation, a file for each language; both are the same where there is only one.
    """

    name: str
    files: dict[str, Path]

    @property
    def page(self) -> str:
        """页面相对于网站根目录的路径。

        The page's path from the root of the site.
        """
        return f"{self.name}.html"

    def title(self) -> str:
        """两种语言的标题。

        The titles in both languages.
        """
        found = [re.search(r"^# (.+)$", self.files[each].read_text("utf-8"), re.MULTILINE) for each in ("zh", "en")]
        zh, en = (escape(match[1]) if match else self.name for match in found)
        return bilingual(zh, en)


def find_symbols(tree: ast.Module) -> dict[str, int]:
    """模块里和类里的名字各在哪一行：类、函数、方法、变量。

    The lines of the names of a module and its classes: classes, functions, methods, variables.
    """
    symbols: dict[str, int] = {}

    def visit(parent: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                symbols.setdefault(prefix + node.name, node.lineno)
                if isinstance(node, ast.ClassDef):
                    visit(node, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)):
                    symbols.setdefault(prefix + name.id, node.lineno)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                visit(node, prefix)

    visit(tree, "")
    return symbols


def find_sources() -> dict[str, Source]:
    """要展示的全部源文件，使用者排在被使用者前面。

    All source files to show, users before what they use.
    """
    # 动手实验（若有）也是 Python 文件，它们用到后面所有的文件，所以排在最前。
    # The labs, where there are any, are Python files too; they use all that follows and come first.
    paths = sorted((ROOT / LABS).glob("*.py"))
    paths += [p for name in ANNOTATED for p in (sorted((ROOT / name).rglob("*.py")) or [ROOT / name])]
    sources: dict[str, Source] = {}
    for path in paths:
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        tree = ast.parse(text)
        sources[name] = Source(name, text, tree, find_symbols(tree))
    for source in sources.values():
        modules: list[str] = []
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                modules += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        files = [f"{module.replace('.', '/')}{end}" for module in modules for end in (".py", "/__init__.py")]
        source.imports = sorted({file for file in files if file in sources and file != source.path})
    # 先按组，组内按依赖；文件名只用来让次序固定不变。
    # By group first, within it by dependency; names of files only make the order the same every time.
    order = list(TopologicalSorter({p: sources[p].imports for p in sorted(sources)}).static_order())[::-1]
    labs = sorted(path for path in order if path.startswith(LABS))
    code = [path for path in order if path not in labs]
    code.sort(key=lambda path: LAYERS.index(path.removesuffix(".py").split("/")[0]))
    return {path: sources[path] for path in [*labs, *code]}


def find_chapters() -> list[Chapter]:
    """`docs` 里的各章；路径里只差 `en` 和 `zh` 的两个文件是同一章。

    The chapters in `docs`; two files whose paths differ only in `en` and `zh` are one chapter.
    """
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted((ROOT / "docs").rglob("*.md")):
        pieces = path.relative_to(ROOT).with_suffix("").parts
        language = next((piece for piece in pieces if piece in ("en", "zh")), "")
        found["/".join(piece for piece in pieces if piece != language)][language] = path
    chapters = []
    for name, files in found.items():
        any_file = next(iter(files.values()))
        chapters.append(Chapter(name, {each: files.get(each, any_file) for each in ("zh", "en")}))
    return chapters


class Site:
    """整个网站：先读齐源码和文档，再逐页写出。

    The whole site: reads all sources and chapters first, then writes page by page.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.sources = find_sources()
        self.chapters = find_chapters()
        self.pages_of_files = {file.resolve(): c.page for c in self.chapters for file in c.files.values()}
        # 哪个源文件被哪几章提到；渲染各章时记下，源码页最后写。
        # Which chapters mention a source file; noted while chapters are rendered, so source pages are written last.
        self.mentions: dict[str, dict[str, Chapter]] = defaultdict(dict)
        self.template = string.Template((TEMPLATES / "page.html").read_text(encoding="utf-8"))
        self.markdown = MarkdownIt("commonmark", {"highlight": self._fence}).enable("table")

    def build(self) -> None:
        """写出全部页面、样式和脚本。

        Write all pages, the style and the script.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        light = HtmlFormatter(style="default").get_style_defs(".code")
        dark = HtmlFormatter(style="github-dark").get_style_defs(".code")
        style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
        colours = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
        (self.out / "style.css").write_text(colours + style, encoding="utf-8")
        shutil.copy(TEMPLATES / "script.js", self.out / "script.js")
        for chapter in self.chapters:
            self._write(chapter.page, chapter.title(), "page", self._chapter(chapter))
        for source in self.sources.values():
            self._write(source.page, source.path, "source", self._source(source))
        self._write("index.html", "", "page", self._index())

    def _write(self, page: str, here: str, kind: str, body: str) -> None:
        path = self.out / page
        path.parent.mkdir(parents=True, exist_ok=True)
        title = re.sub(r"<[^>]*>", "", here)
        root = relpath(".", PurePosixPath(page).parent.as_posix())
        values = {"title": f"{title} · mini-llama" if title else "mini-llama", "here": here, "kind": kind}
        path.write_text(self.template.substitute(values, root=root, body=body), encoding="utf-8")

    # ---- 链接 ----
    # ---- links ----

    def _link(self, target: str, page: str, text: str) -> str:
        return f'<a href="{relpath(target, PurePosixPath(page).parent.as_posix())}">{text}</a>'

    def _reference(self, text: str) -> str | None:
        """反引号里的 `path::symbol` 在网站里的地址；指向别处则为 None。

        The address in the site of a `path::symbol` in backticks; None if it points elsewhere.

        Raises:
            ValueError: 文件在，却没有这个名字；the file is here and has no such symbol
        """
        match = REFERENCE.fullmatch(text)
        source = match and self.sources.get(match[1])
        if not match or not source:
            return None
        if match[2] and match[2] not in source.symbols:
            raise ValueError(f"`{text}`: {match[1]} has no {match[2]}; correct the name in the documentation")
        return source.page + (f"#{match[2]}" if match[2] else "")

    # ---- 源码页 ----
    # ---- pages of source ----

    def _inline(self, text: str, page: str) -> str:
        html, end = "", 0
        for match in BACKTICKS.finditer(text):
            target, code = self._reference(match[1]), f"<code>{escape(match[1])}</code>"
            html += escape(text[end : match.start()]) + (self._link(target, page, code) if target else code)
            end = match.end()
        return (html + escape(text[end:])).replace("\n", "<br>")

    def _notes(self, block: Sequence[tuple[int, str]], page: str) -> str:
        html = []
        for part in parts(block):
            # 缩进的是算式或图；其中一行写着“中文 / English”时，两种语言都要看到它。
            # Indented lines are formulas or diagrams; one that says "中文 / English" is for both languages.
            drawn = [line for line in part.lines if line.startswith("  ")]
            prose = [line for line in part.lines if line.strip() and not line.startswith("  ")]
            shared = part.language not in ("zh", "en") or any(" / " in line for line in drawn)
            name = "" if part.language not in ("zh", "en") else f' class="{part.language}" lang="{part.language}"'
            if prose:
                html.append(f"<p{name}>{self._inline(join_lines(prose), page)}</p>")
            if drawn:
                html.append(f"<pre{'' if shared else name}>{escape(textwrap.dedent(chr(10).join(drawn)))}</pre>")
        return "\n".join(html)

    def _entry(self, text: str, page: str) -> str:
        # 名字和形状两种语言共用，后面各用各的。
        # Names and shapes are for both languages, what follows is for one.
        shared, zh, en = (self._inline(part, page) for part in entry_halves(text))
        return shared + (bilingual(zh, en) if zh else en)

    def _docstring(self, text: str, page: str) -> str:
        section = SECTION.search(text)
        start = section.start() if section else len(text)
        html = self._notes(list(enumerate(text[:start].splitlines())), page)
        # 小节里一项一行，保留缩进；全角分号后折开的两行先接上。
        # Sections have one line an entry, which keeps its indentation; one broken behind the semicolon is joined first.
        lines = (line for line in re.sub(r"；\n\s*", "；", text[start:]).splitlines() if line.strip())
        fields = "".join(
            f'<div style="--in:{len(line) - len(line.lstrip())}">{self._entry(line.strip(), page)}</div>'
            for line in lines
        )
        return html + (f'\n<div class="section">{fields}</div>' if fields else "")

    def rows(self, source: Source) -> Iterator[Row]:
        """把一个文件切成行：每块注释、每个文字说明都与它下面的代码成一行，顺序不变，一行代码也不少。

        Cut a file into rows: each block of comments and each docstring makes a row with the code it stands for, in the
        order of the file and without losing a line of code.
        """
        lines = source.text.splitlines()
        notes: dict[int, list[str]] = defaultdict(list)
        blocks = comment_blocks(source.text)
        nodes = [node for node, _, _ in documented(source.tree)]
        hidden = {line for block in blocks for line, _ in block}
        for doc in filter(None, map(docstring_node, nodes)):
            hidden.update(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
        code = [n for n, line in enumerate(lines, 1) if n not in hidden and line.strip()]
        for block in blocks:
            # 说的是下面第一行代码；文件末尾的注释单独成行。
            # It speaks of the first line of code below; a comment at the end of the file gets a row of its own.
            below = next((n for n in code if n > block[-1][0]), len(lines) + 1)
            notes[below].append(self._notes(block, source.page))
        for node in nodes:
            # 文字说明与签名并排，所以从装饰器那一行算起；模块的与第一行代码并排。没有说明的函数也另起一行。
            # A docstring stands beside the signature, so it begins at the decorators; the module's at the first line. A
            # function without one begins a row as well.
            if isinstance(node, ast.Module):
                start = next((n for n in code), 1)
            else:
                start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            html = self._docstring(ast.get_docstring(node) or "", source.page)
            notes[start].insert(0 if isinstance(node, ast.Module) else len(notes[start]), html)
        row = Row()
        for number in range(1, len(lines) + 2):
            if number in notes:
                if row.notes or row.lines:
                    yield row
                row = Row("\n".join(notes[number]))
            # 块与块之间的空行去掉，块里面的留着。
            # Blank lines between rows go, those inside a row stay.
            if number in code:
                between = range(row.lines[-1] + 1, number) if row.lines else range(0)
                row.lines += [*([] if hidden & set(between) else between), number]
        yield row

    def _source(self, source: Source) -> str:
        # 整个文件一起上色，再切成行：只看一块，分不清是不是在多行字符串里面。
        # Coloured as a whole and cut up afterwards: a row alone does not show whether it is inside a long string.
        coloured = highlight(source.text, PythonLexer(stripnl=False), FORMATTER).split("\n")
        names: dict[int, str] = {}
        for name, line in source.symbols.items():
            names.setdefault(line, name)
        html = [f"<h1>{source.path}</h1>", self._about(source)]
        for row in self.rows(source):
            code = "".join(
                f'<span class="line" data-n="{n}"{f""" id="{names[n]}" """.rstrip() if n in names else ""}>'
                f"{coloured[n - 1]}</span>"
                for n in row.lines
            )
            empty = "" if row.lines else " empty"
            notes = f'<div class="notes">{row.notes}</div>'
            html.append(f'<div class="row">{notes}<pre class="code{empty}">{code}</pre></div>')
        return "\n".join(html)

    def _about(self, source: Source) -> str:
        users = [other for other in self.sources.values() if source.path in other.imports]
        chapters = self.mentions[source.path].values()
        lists: list[tuple[str, str, list[str]]] = [
            ("导入", "imports", [self._link(self.sources[p].page, source.page, p) for p in source.imports]),
            ("被导入", "imported by", [self._link(other.page, source.page, other.path) for other in users]),
            ("提到它的章节", "chapters", [self._link(c.page, source.page, c.title()) for c in chapters]),
        ]
        html = (f'<p><span class="label">{bilingual(a, b)}</span>{" ".join(x)}</p>' for a, b, x in lists if x)
        return f'<div class="about">{"".join(html)}</div>'

    # ---- 文档页 ----
    # ---- pages of documentation ----

    @staticmethod
    def _fence(text: str, language: str, _: str) -> str:
        """文档里的代码块；认不出的语言（`text`）原样显示。

        A block of code in the documentation; a language not known (`text`) is shown as it is.
        """
        try:
            html = highlight(text, get_lexer_by_name(language), FORMATTER)
        except ClassNotFound:
            html = escape(text)
        return f'<pre class="code">{html}</pre>\n'

    def _tokens(self, chapter: Chapter, file: Path) -> list[list[Token]]:
        """一个文件的各个顶层块，链接已改成网站里的地址，标题有了锚点。

        The top-level blocks of a file, with links turned into the site's addresses and anchors at headings.
        """
        tokens = self.markdown.parse(file.read_text(encoding="utf-8"))
        anchors: dict[str, int] = {}
        for token, following in zip(tokens, [*tokens[1:], None]):
            if token.type == "heading_open" and following:
                slug = re.sub(r"[^\w\- ]", "", following.content.lower()).replace(" ", "-")
                anchors[slug] = anchors.get(slug, -1) + 1
                token.attrSet("id", slug + (f"-{anchors[slug]}" if anchors[slug] else ""))
            if token.children is not None:
                token.children = list(self._relinked(token.children, chapter, file))
        blocks: list[list[Token]] = [[]]
        depth = 0
        for token in tokens:
            blocks[-1].append(token)
            depth += token.nesting
            if depth == 0:
                blocks.append([])
        return blocks[:-1]

    def _relinked(self, children: list[Token], chapter: Chapter, file: Path) -> Iterator[Token]:
        here = PurePosixPath(chapter.page).parent.as_posix()
        inside, dropped = 0, False
        for token in children:
            if token.type == "link_open":
                address = self._address(str(token.attrGet("href")), file)
                # 指向网站之外的文件（例如测试）时，只留文字。
                # Where a link leads to a file that is not on the site, a test for instance, only its text stays.
                dropped = address is None
                if address is not None:
                    token.attrSet("href", address if ":" in address or address[0] == "#" else relpath(address, here))
            elif token.type == "image":
                image = (file.parent / str(token.attrGet("src"))).resolve()
                target = image.relative_to(ROOT).as_posix()
                (self.out / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, self.out / target)
                token.attrSet("src", relpath(target, here))
            inside += token.nesting if token.type.startswith("link_") else 0
            reference = self._reference(token.content) if token.type == "code_inline" and not inside else None
            if reference:
                self.mentions[reference.partition(".html")[0]][chapter.name] = chapter
                yield Token("link_open", "a", 1, attrs={"href": relpath(reference, here)})
                yield token
                yield Token("link_close", "a", -1)
            elif not (dropped and token.type.startswith("link_")):
                yield token

    def _address(self, href: str, file: Path) -> str | None:
        if re.match(r"https?:|mailto:|#", href):
            return href
        path, _, anchor = href.partition("#")
        target = (file.parent / path).resolve()
        page = self.pages_of_files.get(target)
        if page is None and target.is_relative_to(ROOT):
            source = self.sources.get(target.relative_to(ROOT).as_posix())
            page = source.page if source else None
        return page and page + (f"#{anchor}" if anchor else "")

    def _chapter(self, chapter: Chapter) -> str:
        def render(blocks: Sequence[list[Token]]) -> str:
            return "".join(self.markdown.renderer.render(block, self.markdown.options, {}) for block in blocks)

        def sections(blocks: list[list[Token]]) -> list[list[list[Token]]]:
            found: list[list[list[Token]]] = [[]]
            for block in blocks:
                if block[0].type == "heading_open":
                    found.append([])
                found[-1].append(block)
            return found

        zh, en = (sections(self._tokens(chapter, chapter.files[each])) for each in ("zh", "en"))
        # 标题相同的文件逐节对照；节内块数也相同，就逐块对照，否则标题之外整节并排。
        # Files with the same headings are paired section by section; within a section block by block where both have
        # the same kinds of blocks, or else its heading and all the rest.
        if len(zh) != len(en):
            counts = f"{len(zh) - 1} headings in Chinese and {len(en) - 1} in English"
            raise ValueError(f"{chapter.name} has {counts}: make them the same")
        html = []
        for left, right in zip(zh, en):
            same = [block[0].type for block in left] == [block[0].type for block in right]
            heads = [(left[:1], right[:1]), (left[1:], right[1:])]
            pairs = [([a], [b]) for a, b in zip(left, right)] if same else heads
            for a, b in pairs:
                first, second = render(a), render(b)
                html.append(
                    first if first == second else f'<div class="pair"><div class="zh" lang="zh">{first}</div>'
                    f'<div class="en" lang="en">{second}</div></div>'
                )
        return "\n".join(html)

    # ---- 首页 ----
    # ---- the index ----

    def _summary(self, source: Source) -> str:
        """模块文字说明的第一句。

        The first sentence of a module's docstring.
        """
        text = ast.get_docstring(source.tree) or ""
        first: dict[str, str] = {}
        for part in parts(list(enumerate(text.splitlines()))):
            if part.language in ("zh", "en") and not part.lines[0].startswith("  "):
                first.setdefault(part.language, join_lines(part.lines))
        zh = re.split(r"(?<=。)", first.get("zh", ""))[0]
        en = re.split(r"(?<=\.)\s", first.get("en", ""))[0]
        return bilingual(self._inline(zh, "index.html"), self._inline(en, "index.html"))

    def _index(self) -> str:
        chapters = "".join(f"<li>{self._link(c.page, 'index.html', c.title())}</li>" for c in self.chapters)
        intro = bilingual(
            "左边是注释，右边是代码。依赖只朝一个方向，表里每个文件只导入排在它下面的文件："
            "从上往下读，是从用户走到核函数；从下往上读，遇到的名字都已见过。",
            "Commentary at the left, code at the right. Dependencies point one way, and each file imports only files "
            "below it: downwards you go from the user to the kernels, upwards you know every name that you meet.",
        )
        html = [
            "<h1>mini-llama</h1>", f"<h2>{bilingual('文档', 'Documentation')}</h2><ul>{chapters}</ul>",
            f"<h2>{bilingual('源码', 'Source')}</h2><p>{intro}</p>",
            f"<p><code>{' → '.join(LAYERS)}</code></p>", '<table class="modules">',
            f"<tr><th>{bilingual('文件', 'file')}</th><th>{bilingual('内容', 'what it is')}</th>"
            f"<th>{bilingual('代码行', 'lines of code')}</th></tr>",
        ]
        for source in self.sources.values():
            link = self._link(source.page, "index.html", source.path)
            html.append(
                f"<tr><td>{link}</td><td>{self._summary(source)}</td><td>{count_lines(source.text).code}</td></tr>"
            )
        return "\n".join([*html, "</table>"])


def main(arguments: list[str] | None = None) -> int:
    """命令行入口：写出网站，打印首页的位置。

    The command line: write the site and print where its index is.
    """
    parser = argparse.ArgumentParser(description="生成对照阅读的网站 / make the site for reading the source")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="输出文件夹 / output folder")
    out: Path = parser.parse_args(arguments).out
    try:
        Site(out).build()
    except (ValueError, OSError) as error:
        print(f"annotate.py: error: {error}", file=sys.stderr)
        return 2
    print(out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
