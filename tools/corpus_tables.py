"""读 `assets/corpus` 里的语料表；每张表是什么、怎样书写，见那里的 `README.md`。

Reads the tables of the corpus from `assets/corpus`; its `README.md` says what each of them is and how it is written.
"""

import re
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent.parent / "assets" / "corpus"
LANGS: Final = ("en", "zh")
Sections = dict[str, tuple[str, ...]]


def read_sections(path: Path) -> Sections:
    """读一个 `.txt` 文件：`# ` 开头的行是节名，其余一行一条；条目首尾的 `_` 是空格。

    Reads a `.txt` file: a line that begins with `# ` names a section, every other line is an entry; `_` at either end
    of an entry is a space.
    """
    head, *parts = re.split(r"^# ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if head.strip():
        raise ValueError(f"{path}: {head.strip().splitlines()[0]!r} stands before the first section")
    sections: Sections = {}
    for part in parts:
        name, *lines = (line.strip() for line in part.splitlines())
        if name in sections:
            raise ValueError(f"{path}: there are two sections named {name!r}")
        sections[name] = tuple(re.sub(r"^_|_$", " ", line) for line in lines if line)
    return sections


def read_rows(path: Path) -> list[list[str]]:
    """读一个 `.tsv` 文件：以制表符分列，第一行是表头。

    Reads a `.tsv` file: tabs separate its columns and the first line is its head.
    """
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def by_language(name: str) -> dict[str, Sections]:
    """两种语言的同名 `.txt` 文件。

    The `.txt` files of this name in both languages.
    """
    return {lang: read_sections(FOLDER / lang / f"{name}.txt") for lang in LANGS}


COUNTRIES: Final = read_rows(FOLDER / "countries.tsv")
SPECIAL_CAPITALS: Final = {name: dict(zip(LANGS, row)) for name, *row in read_rows(FOLDER / "special_capitals.tsv")}
ANSWERS: Final = {intent: dict(zip(LANGS, row)) for intent, *row in read_rows(FOLDER / "answers.tsv")}

IDENTITY: Final = by_language("identity")
SMALL_TALK: Final = by_language("small_talk")
TEMPLATES: Final = by_language("templates")
UNKNOWN: Final = by_language("unknown")
ALIASES: Final = by_language("aliases")
KEYWORDS: Final = by_language("keywords")
PHRASES: Final = by_language("phrases")
WORDS: Final = by_language("words")
