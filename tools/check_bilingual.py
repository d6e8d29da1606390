"""检查注释与文档字符串是否中英文成对、内容一致。
Check that comments and docstrings stand in Chinese and English pairs that agree.

规则（测试 `tests/test_check_bilingual.py` 对每条都有正反例）：
The rules (`tests/test_check_bilingual.py` has a good and a bad example of each):

1. 注释独占一行，位于语句上方；先中文后英文，每半最多两行；一块注释可以含多对。
1. A comment stands on its own lines above the statement; Chinese first, then English, at most two lines
   a half; one block may hold several pairs.
2. 一对之中，反引号里的名字集合相同，数字集合也相同（都写成阿拉伯数字）。
2. Within a pair the set of names in backticks is the same, and so is the set of numbers (written as digits).
3. 与语言无关的行可以放在任何位置：缩进三格以上的算式或图，以及不含字母的行。
3. Language-neutral lines may stand anywhere: examples and diagrams indented by three spaces or more, and
   lines without letters.
4. 行尾注释只写形状，例如 `# [T, Hq, D] float32`，或者工具指令，例如 `# noqa: E501`。
4. A comment at the end of a line is only a shape such as `# [T, Hq, D] float32`, or a tool's directive such
   as `# noqa: E501`.
5. 每个模块、公开类、公开函数和公开方法都有文档字符串（嵌套的除外）；凡有文档字符串，先中文后英文，
   各自成行，两种语言反引号里的名字相同。
5. Every module, public class, public function and public method has a docstring (nested ones apart);
   wherever there is one, Chinese comes before English, each on its own lines, with the same names in
   backticks.
6. 小节 `Args`、`Attributes`、`Returns`、`Raises`、`Yields` 一项一行，写成 `q: [T, Hq, D]，查询；queries`：
   形状只写一次，在最前面；然后是中文、全角分号、英文，名字和数字按第 2 条。只有形状或常量的项没有语言。
   一行超过 120 列时，英文移到下一行，再缩进 4 格；除此之外不折行。其他小节（`Source` 等）只写一次，不检查。
6. The sections `Args`, `Attributes`, `Returns`, `Raises` and `Yields` have one line an entry, written like
   `q: [T, Hq, D]，查询；queries`: the shape once and first; then Chinese, a full-width semicolon and English,
   with names and numbers as in rule 2. An entry of nothing but shapes or constants is in no language. Where a
   line would be longer than 120 columns, the English goes to the next one, 4 deeper; there is no other break.
   Other sections (`Source` and so on) are written once and not checked.
7. 函数体里，无论哪种语言，注释行都不比代码行多；一个算式或图最多 3 行，更长的写进文档字符串。函数体从签名之后算起，
   只有一条 `return` 的函数也一样：一行代码，每种语言至多一行注释。代码行按 `tools/count_code.py` 来数；
   文档字符串不计，算式和图两种语言都计。
7. Inside a function's body comments take no more lines than code, in either language; a formula or diagram
   has at most 3 lines, and a longer one goes into the docstring. The body begins behind the signature, even if
   it is a single `return`: for one line of code, at most one line of comment in each language. Lines of code are
   what `tools/count_code.py` counts; docstrings do not count, formulas and diagrams count for both languages.
8. 不允许把字符串当注释用。
8. No string literal serves as a comment.

用法 / Usage: `python tools/check_bilingual.py [--stats] [PATH ...]`
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.count_code import code_lines

ROOT = Path(__file__).resolve().parent.parent
ANNOTATED = ("serving", "engine", "layers", "models", "backends", "mini_llama.py")
DEFAULT_PATHS = (*ANNOTATED, "tools")
MAX_LINES_PER_HALF = 2
MAX_LINES_PER_EXAMPLE = 3
MAX_COLUMNS = 120

Language = Literal["zh", "en", "code", "neutral"]

# 汉字，以及中文的标点和全角字符。
# Han characters, and Chinese punctuation and full-width forms.
CJK = re.compile(r"[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]")
BACKTICKS = re.compile(r"`+([^`]+)`+")
# 英文里可以引用中文原文：引号和反引号里的内容不参与语言判断。
# English may quote Chinese text: what stands in quotes or backticks does not decide the language.
QUOTED = re.compile(r"`+[^`]+`+|\"[^\"]*\"|“[^”]*”|「[^」]*」")
# 紧跟在字母后面的数字属于名字（`bf16`、`H200`），不算数字。
# Digits right behind a letter belong to a name (`bf16`, `H200`) and are no number.
NUMBER = re.compile(r"(?<![A-Za-z0-9_.])(?:(?<![)\]])-)?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?")
# 只出现在英文句子里、不会出现在算式里的词：缩进行若含有它们，就是散文。
# Words of English prose that no formula has: an indented line with one of them is prose.
PROSE = re.compile(
    r"\b(?:the|an|are|was|of|to|this|that|these|those|it|its|when|must|will|can|because|which|then|than|has|have|"
    r"does|be|we|you)\b",
    re.IGNORECASE,
)
# 文档字符串里小节的第一行，例如 `Args:` 或 `参数 / Args:`。
# The first line of a section of a docstring, such as `Args:` or `参数 / Args:`.
SECTION = re.compile(
    r"^(?:\S+ / )?(?:Args|Arguments|Attributes|Returns|Yields|Raises|Examples?|Notes?|Sources?|Usage)\b.*:",
    re.MULTILINE,
)
# 每一项都有两种语言的小节；项的开头是名字和冒号，`Returns` 里可以没有。
# The sections whose entries are in both languages; an entry begins with names and a colon, optional in `Returns`.
PAIRED = re.compile(r"^(?:\S+ / )?(Args|Arguments|Attributes|Returns|Yields|Raises)\b.*?:\s*(.*)$")
HEAD = re.compile(r"[\w*.`\"]+(?:, [\w*.`\"]+)*: +")
DIRECTIVE = re.compile(
    r"^#(?:!| ?(?:type:|noqa\b|fmt:|ruff:|mypy:|pragma:|pylint:|isort:|-\*-|(?:en)?coding[:=]))"
)
DTYPE = re.compile(
    r"\b(?:u?int(?:8|16|32|64)?|float(?:8|16|32|64)?|fp(?:8|16|32|64)|bf16|bfloat16|half|bool|long|byte|complex64|"
    r"cpu|cuda|meta)\b"
)
# 形状：方括号里是由逗号隔开的短表达式，前面可以有变量名。
# A shape: short expressions between commas in square brackets, with or without a variable's name before it.
SHAPE = re.compile(r"(?:\b[A-Za-z_]\w*(?:\.\w+)*\s*[:=]?\s*)?\[(?P<items>[^\[\]]*)\]")
TWO_WORDS = re.compile(r"[A-Za-z_]\w*\s+[A-Za-z_]\w*")


@dataclass(frozen=True, order=True)
class Fault:
    """一处违规：文件、行号和说明。
    One fault: the file, the line and what is wrong there.
    """

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Stats:
    """一个文件或文件夹的行数：代码行和注释行；文档字符串和空行都不计。
    The lines of a file or folder: code and comments; docstrings and blank lines count as neither.
    """

    code: int = 0
    comments: int = 0

    def __add__(self, other: Stats) -> Stats:
        return Stats(self.code + other.code, self.comments + other.comments)

    @property
    def ratio(self) -> float:
        """注释行数与代码行数之比。
        Comment lines per line of code.
        """
        return self.comments / max(1, self.code)


@dataclass
class Half:
    """一对注释中的一半：语言、首行行号、各行文字。
    One half of a pair: its language, the number of its first line, its lines.
    """

    language: Language
    line: int
    lines: list[str]


def classify(text: str) -> Language:
    """判断一行文字（不含 `#` 和它后面的一个空格）的语言。
    Tell the language of one line of text (without its `#` and the one space behind).

    Returns:
        `"zh"`, `"en"`
        `"code"`: 只有反引号、数字和符号；only backticks, numbers and signs
        `"neutral"`: 空行，或缩进的算式和图；blank, or an indented formula or diagram
    """
    bare = QUOTED.sub(" ", text)
    if CJK.search(bare):
        return "zh"
    indented = text.startswith("  ")
    if not text.strip() or (indented and not PROSE.search(bare)):
        return "neutral"
    return "en" if re.search(r"[A-Za-z]", bare) else "code"


def names(text: str) -> set[str]:
    """收集反引号里的名字，空白归一。
    Collect the names in backticks, with their white space made uniform.
    """
    return {" ".join(match.split()) for match in BACKTICKS.findall(text)}


def numbers(text: str) -> set[str]:
    """收集反引号之外的数字；`1,024` 与 `1024` 相同，两种减号相同。
    Collect the numbers outside backticks; `1,024` equals `1024`, and both minus signs are one.
    """
    plain = BACKTICKS.sub(" ", text).replace("\u2212", "-")
    return {match.replace(",", "").lower() for match in NUMBER.findall(plain)}


def is_shape(text: str) -> bool:
    """判断行尾注释是否只写了形状，例如 `[T, Hq, D] float32`。
    Tell whether a comment at the end of a line is only a shape, such as `[T, Hq, D] float32`.
    """
    if "[" not in text or CJK.search(text):
        return False
    # 由内向外逐层去掉方括号，例如 `[[0, 1], [2, -1]]`。
    # Take the brackets away from the inside out, for instance of `[[0, 1], [2, -1]]`.
    while match := SHAPE.search(text):
        if TWO_WORDS.search(match["items"]):
            return False
        text = text[: match.start()] + " " + text[match.end() :]
    return not re.search(r"[A-Za-z]", DTYPE.sub(" ", text))


def _disagreement(zh: str, en: str, with_numbers: bool) -> str | None:
    kinds = [("names in backticks", names(zh), names(en))]
    if with_numbers:
        kinds.append(("numbers", numbers(zh), numbers(en)))
    for what, left, right in kinds:
        if left != right:
            only_zh, only_en = sorted(left - right), sorted(right - left)
            return f"{what} differ between the halves: only in Chinese {only_zh}, only in English {only_en}"
    return None


def parts(block: Iterable[tuple[int, str]]) -> Iterator[Half]:
    """把一块注释（行号和文字）切成语言相同的几段；算式和空行自成 `neutral` 段，`tools/annotate.py` 也用它排版。
    Cut a block of commentary (line numbers and text) where the language changes; formulas and blank lines are
    `neutral` parts of their own. `tools/annotate.py` lays its pages out by it.
    """
    current: Half | None = None
    for line, text in block:
        language = classify(text)
        # 只有代码的行跟随它上面的那一半。
        # A line of nothing but code belongs to the half above it.
        follows = language == "code" and current is not None and current.language != "neutral"
        if current is not None and (follows or language == current.language):
            current.lines.append(text)
        else:
            if current is not None:
                yield current
            current = Half(language, line, [text])
    if current is not None:
        yield current


def _halves(block: list[tuple[int, str]]) -> Iterator[Half]:
    current: Half | None = None
    for part in parts(block):
        if part.language == "neutral":
            continue
        if current is not None and part.language in ("code", current.language):
            current.lines += part.lines
        elif part.language != "code":
            if current is not None:
                yield current
            current = part
    if current is not None:
        yield current


def _check_block(block: list[tuple[int, str]], path: str) -> Iterator[Fault]:
    halves = list(_halves(block))
    for half in halves:
        if len(half.lines) > MAX_LINES_PER_HALF:
            name = "Chinese" if half.language == "zh" else "English"
            message = f"the {name} half has {len(half.lines)} lines, at most {MAX_LINES_PER_HALF} are allowed"
            yield Fault(path, half.line, message)
    index = 0
    while index < len(halves):
        half = halves[index]
        following = halves[index + 1] if index + 1 < len(halves) else None
        if half.language == "en":
            # 整块以英文开头、后面又有中文：顺序反了；否则就是缺了中文。
            # A block that begins in English, with Chinese behind it, has the order wrong; else Chinese is
            # missing.
            swapped = index == 0 and following is not None
            yield Fault(
                path, half.line, "English stands before Chinese" if swapped else "the Chinese half is missing"
            )
            index += 2 if swapped else 1
        elif following is None:
            yield Fault(path, half.line, "the English half is missing")
            index += 1
        else:
            zh, en = "\n".join(half.lines), "\n".join(following.lines)
            if difference := _disagreement(zh, en, with_numbers=True):
                yield Fault(path, half.line, difference)
            index += 2


def _comments(source: str) -> Iterator[tuple[tokenize.TokenInfo, bool]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not DIRECTIVE.match(token.string):
            yield token, not token.line[: token.start[1]].strip()


def comment_blocks(source: str) -> list[list[tuple[int, str]]]:
    """独占一行的注释，连在一起的为一块；每行给出行号和去掉井号的文字。
    The comments on lines of their own, a block for each run of lines: line numbers, and texts without the hash sign.
    """
    blocks: list[list[tuple[int, str]]] = []
    for token, alone in _comments(source):
        if not alone:
            continue
        # 井号之后的一个空格不算缩进。
        # The one space behind the hash sign is no indentation.
        line, text = token.start[0], token.string[1:].removeprefix(" ")
        if not blocks or blocks[-1][-1][0] + 1 != line:
            blocks.append([])
        blocks[-1].append((line, text))
    return blocks


def _check_comments(source: str, path: str) -> Iterator[Fault]:
    for token, alone in _comments(source):
        if not alone and not is_shape(token.string[1:]):
            yield Fault(path, token.start[0], "a comment at the end of a line may only be a shape like `# [T, D]`")
    for block in comment_blocks(source):
        yield from _check_block(block, path)


def entry_halves(text: str) -> tuple[str, str, str]:
    """把小节的一项切成三段：两种语言共用的（名字和形状），中文，英文；没有分号的，中文为空。
    Cut an entry of a section into three: what both languages share (names and shapes), Chinese, English; without the
    semicolon the Chinese is empty.
    """
    head = HEAD.match(text)
    shared = head[0] if head else ""
    rest = text[len(shared) :]
    first, comma, behind = rest.partition("，")
    if is_shape(first):
        shared, rest = shared + first + comma, behind
    # 只有形状或常量：没有语言。
    # Nothing but a shape or constants: no language.
    if not re.search(r"[A-Za-z]", QUOTED.sub(" ", rest)) and not CJK.search(QUOTED.sub(" ", rest)):
        return shared + rest, "", ""
    zh, _, en = rest.rpartition("；")
    return shared, zh.strip(), en.strip()


def _check_entry(lines: list[str], indent: int) -> str | None:
    text = "".join(lines)
    _, zh, en = entry_halves(text)
    if not zh and not en:
        return None if len(lines) == 1 else "an entry without words takes one line"
    if not CJK.search(QUOTED.sub(" ", zh)) or not re.search("[A-Za-z]", en) or CJK.search(QUOTED.sub(" ", en)):
        return "an entry is not written `name: 中文；English`"
    if len(lines) > 1:
        width = indent + sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)
        if len(lines) > 2 or not lines[0].endswith("；") or width <= MAX_COLUMNS:
            return f"an entry is broken only behind `；`, and only where {MAX_COLUMNS} columns do not hold it"
    return _disagreement(zh, en, with_numbers=True)


def _check_sections(docstring: str, column: int, line: int, what: str, path: str) -> Iterator[Fault]:
    # 小节的标题顶格，各项缩进 4 格，续行缩进 8 格。
    # A section's title is not indented, its entries are by 4, and what continues them by 8.
    section, found = "", list[tuple[str, list[str]]]()
    for text in docstring.splitlines():
        if text.strip() and not text.startswith(" "):
            title = PAIRED.match(text)
            section = title[1] if title else ""
            if title and title[2]:
                found.append((section, [title[2]]))
        elif section and text.startswith(" " * 8) and found:
            found[-1][1].append(text.strip())
        elif section and text.strip():
            found.append((section, [text.strip()]))
    for section, lines in found:
        message = _check_entry(lines, column + 4)
        if not message and section not in ("Returns", "Yields") and not HEAD.match(lines[0]):
            message = "an entry begins with the name it is about and a colon"
        if message:
            yield Fault(path, line, f"{section} of {what}: {message}: {lines[0]!r}")


def _check_docstring(docstring: str, line: int, what: str, path: str) -> Iterator[Fault]:
    # 小节另有规则；名为 `Source` 等的只写一次，不参与比较。
    # Sections have a rule of their own; those like `Source` are written once and not compared.
    section = SECTION.search(docstring)
    text = docstring[: section.start()] if section else docstring
    parts = list(_halves(list(enumerate(text.splitlines()))))
    languages = [part.language for part in parts]
    if "zh" not in languages:
        yield Fault(path, line, f"the docstring of {what} has no Chinese paragraph")
    elif "en" not in languages:
        yield Fault(path, line, f"the docstring of {what} has no English paragraph on its own lines")
    elif languages[0] == "en":
        yield Fault(path, line, f"the docstring of {what} has English before Chinese")
    else:
        zh, en = ("\n".join(part.lines) for part in parts[:2])
        if difference := _disagreement(zh, en, with_numbers=False):
            yield Fault(path, line, f"the docstring of {what}: {difference}")


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.Module) -> Iterator[tuple[Documented, str, bool]]:
    """列出可以有文档字符串的节点、它的称呼、是否必须有文档字符串。
    List the nodes that may have a docstring, how to call each, and whether it must have one.
    """
    yield tree, "the module", True

    def walk(parent: ast.AST, prefix: str, public: bool) -> Iterator[tuple[Documented, str, bool]]:
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(node, prefix, public)
                continue
            name = f"{prefix}{node.name}"
            decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
            # 重载的签名和属性的写入方法由主体的文档字符串说明。
            # Overloaded signatures and property setters are explained by the docstring of the main body.
            required = public and not node.name.startswith("_") and not decorators & {"overload", "setter"}
            yield node, f"`{name}`", required
            inner = required and isinstance(node, ast.ClassDef) and not prefix
            yield from walk(node, f"{name}.", inner)

    yield from walk(tree, "", True)


def docstring_node(node: Documented) -> ast.Constant | None:
    """节点的文档字符串；没有则为 None。
    The docstring of a node, or None.
    """
    match node.body:
        case [ast.Expr(value=ast.Constant(value=str()) as constant), *_]:
            return constant
    return None


def _check_docstrings(tree: ast.Module, path: str) -> Iterator[Fault]:
    docstrings: set[ast.expr] = set()
    for node, what, required in documented(tree):
        docstring, line = docstring_node(node), getattr(node, "lineno", 1)
        if docstring is not None:
            docstrings.add(docstring)
            text = ast.get_docstring(node) or ""
            yield from _check_docstring(text, line, what, path)
            yield from _check_sections(text, docstring.col_offset, line, what, path)
        elif required:
            yield Fault(path, line, f"{what} has no docstring")
    for expression in (node for node in ast.walk(tree) if isinstance(node, ast.Expr)):
        value = expression.value
        is_text = isinstance(value, ast.JoinedStr) or (
            isinstance(value, ast.Constant) and isinstance(value.value, (str, bytes))
        )
        if is_text and value not in docstrings:
            yield Fault(path, expression.lineno, "a string literal is used as a comment")


def _check_bodies(source: str, tree: ast.Module, path: str) -> Iterator[Fault]:
    code = code_lines(source)
    language: dict[int, Language] = {}
    for part in (part for block in comment_blocks(source) for part in parts(block)):
        drawn = [text for text in part.lines if text.startswith("  ")] if part.language == "neutral" else []
        if len(drawn) > MAX_LINES_PER_EXAMPLE:
            yield Fault(path, part.line, f"an example of {len(drawn)} lines, at most {MAX_LINES_PER_EXAMPLE}")
        language.update({part.line + i: part.language for i, text in enumerate(part.lines) if text.strip()})
    for node, what, _ in documented(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            start = max([node.lineno, *(line + 1 for line in code if line < node.body[0].lineno)])
            body = range(start, (node.end_lineno or start) + 1)
            number = len(code.intersection(body))
            for half, name in (("en", "Chinese"), ("zh", "English")):
                lines = sum(line in body and each != half for line, each in language.items())
                if lines > number:
                    yield Fault(path, node.lineno, f"{what} has {lines} {name} lines of comment to {number} of code")


def check_source(source: str, path: str) -> list[Fault]:
    """检查一个文件的源码，返回按行号排序的违规列表。
    Check the source of one file and return its faults, ordered by line.

    Args:
        path: 只用于报告；used in the report only
    """
    tree = ast.parse(source)
    faults = {*_check_comments(source, path), *_check_docstrings(tree, path), *_check_bodies(source, tree, path)}
    return sorted(faults)


def count_lines(source: str) -> Stats:
    """数一个文件的代码行和独占一行的注释行；一行里只要有代码就是代码行。
    Count the lines of code and the comment lines of one file; a line with any code on it is a line of code.
    """
    code = code_lines(source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {each.start[0] for each in tokens if each.type == tokenize.COMMENT and each.string.strip("# ")}
    return Stats(code=len(code), comments=len(comments - code))


def check_path(path: Path) -> tuple[list[Fault], Stats]:
    """检查一个文件，或一个文件夹里的全部 Python 文件；返回违规和行数。
    Check one file, or all Python files in a folder; return the faults and the line counts.

    Raises:
        FileNotFoundError: 路径不存在；there is nothing at the path
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    faults: list[Fault] = []
    total = Stats()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        source = file.read_text(encoding="utf-8")
        faults += check_source(source, str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file))
        total += count_lines(source)
    return faults, total


def main(arguments: list[str] | None = None) -> int:
    """命令行入口：打印违规；没有违规返回 0，有则返回 1，路径有误返回 2。
    The command line: print the faults; return 0 if there are none, 1 if there are some, 2 for a wrong path.
    """
    parser = argparse.ArgumentParser(description="检查双语注释 / check the bilingual comments")
    everything = " ".join(DEFAULT_PATHS)
    parser.add_argument("paths", nargs="*", help=f"文件或文件夹，缺省为 / by default: {everything}")
    parser.add_argument("--stats", action="store_true", help="打印注释与代码的比例 / print the comment ratio")
    options = parser.parse_args(arguments)
    faults: list[Fault] = []
    table: list[tuple[str, Stats]] = []
    for path in [Path(text).resolve() for text in options.paths] or [ROOT / name for name in DEFAULT_PATHS]:
        try:
            found, stats = check_path(path)
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            return 2
        faults += found
        table.append((path.name, stats))
    for fault in faults:
        print(fault)
    if options.stats:
        print(f"{'':16}{'code':>8}{'comments':>10}{'ratio':>8}")
        for name, stats in table:
            print(f"{name:16}{stats.code:8}{stats.comments:10}{stats.ratio:8.2f}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
