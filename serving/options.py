"""命令行的一部分：结构化输出的几个选项，和写不出帮助时照样报错的解析器。

A part of the command line: the options of structured outputs, and a parser that tells where its help cannot be written.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.guides import MAX_CHARS, Guides, StructuredOutputsParams
from engine.tokenizer import Tokenizer


class Parser(argparse.ArgumentParser):
    """argparse 写不出帮助时一声不响；这里照样报错。

    argparse says nothing where its help cannot be written; here it is an error like any other.
    """

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file or sys.stderr)


def add_guide_options(add: Callable[..., Any]) -> None:
    """四个选项，至多给一种。

    Four options, of which one kind at most is given.
    """
    add("--json-schema", metavar="FILE_OR_JSON", help="回答是合乎它的 JSON / the answer is JSON of this schema")
    add("--regex", metavar="REGEX", help="整个回答匹配这个正则 / the whole answer matches this regular expression")
    add("--choice", action="append", metavar="TEXT", help="回答是其中之一，可重复 / the answer is one; repeatable")
    add("--grammar", metavar="FILE", help="回答合乎文件里的 Lark 或 GBNF / the answer is of this Lark or GBNF grammar")


def read_guide(args: argparse.Namespace) -> StructuredOutputsParams | None:
    """命令行要求的语法；没有就是 None。

    The grammar that the command line asks for; None if it asks for none.

    Raises:
        ValueError: 文件读不了，或给了几种；a file cannot be read, or several kinds are given
    """
    schema, grammar = args.json_schema, args.grammar
    # 花括号开头的是 JSON，布尔值也是，其余是文件名。
    # What begins with a brace is JSON, as are the booleans; anything else names a file.
    if schema is not None and not schema.lstrip().startswith("{") and schema not in ("true", "false"):
        schema = _read("--json-schema", schema)
    given = schema, args.regex, args.choice, None if grammar is None else _read("--grammar", grammar)
    return StructuredOutputsParams(*given) if any(each is not None for each in given) else None


def _read(option: str, name: str) -> str:
    try:
        with open(name, encoding="utf-8") as file:
            # 多读一个字符就够知道太长了。
            # One character more is enough to know that it is too long.
            return file.read(MAX_CHARS + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {name!r:.80} cannot be read as a text file: {error}") from None


def check_guide(folder: Path, wanted: StructuredOutputsParams | None) -> None:
    """语法写错了，不必等权重读完才知道。

    A mistake in a grammar need not wait until the weights are read.

    Raises:
        ValueError: 语法不对；the grammar is not usable
    """
    if wanted is not None:
        Guides(Tokenizer(folder), 0).compile(wanted)
