"""命令行的一部分：可选功能的选项，和写不出帮助时照样报错的解析器。

A part of the command line: the options of optional features, and a parser that tells where its help cannot be written.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from engine.guides import MAX_CHARS, Guides, StructuredOutputsParams
from engine.tokenizer import Tokenizer


class Parser(argparse.ArgumentParser):
    """argparse 写不出帮助时一声不响；这里照样报错。

    argparse says nothing where its help cannot be written; here it is an error like any other.
    """

    def _print_message(self, message: str, file: Any = None) -> None:
        # `--help` 传来标准输出，报错什么也不传。
        # `--help` passes standard output, an error passes nothing.
        print(message, end="", file=file or sys.stderr)


def add_features(parser: argparse.ArgumentParser) -> None:
    """结构化输出的四个选项，猜测的两个；每组至多给一种。

    Four options for structured outputs and two for guesses; of each group one kind at most is given.
    """
    # 语法不单列 GBNF 的选项：llguidance 自己认得出是哪一种。
    # GBNF has no option of its own: llguidance tells by itself which of the two it reads.
    add = parser.add_argument
    add("--json-schema", metavar="FILE_OR_JSON", help="回答是合乎它的 JSON / the answer is JSON of this schema")
    add("--regex", metavar="REGEX", help="整个回答匹配这个正则 / the whole answer matches this regular expression")
    add("--choice", action="append", metavar="TEXT", help="回答是其中之一，可重复 / the answer is one; repeatable")
    add("--grammar", metavar="FILE", help="回答合乎文件里的 Lark 或 GBNF / the answer is of this Lark or GBNF grammar")
    # 两种猜法互相排斥：由 argparse 来拒绝，它的报错写明是哪两个。
    # The two ways of guessing exclude each other: argparse refuses, and its message names them.
    add = parser.add_mutually_exclusive_group().add_argument
    add("--speculate", choices=["ngram"], help="猜后面的 token：抄重复过的 / guess tokens: copy what is repeated")
    add("--draft-model", metavar="DIR", help="由这个小模型来猜 / this small model guesses the tokens that follow")


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
    # 次序就是 `StructuredOutputsParams` 的字段；给了几种由它来拒绝，与作为库使用时是同一句话。
    # In the order of the fields of `StructuredOutputsParams`, which refuses several, in the words that a library user
    # gets.
    given = schema, args.regex, args.choice, None if grammar is None else _read("--grammar", grammar)
    return StructuredOutputsParams(*given) if any(each is not None for each in given) else None


def read_speculation(args: argparse.Namespace) -> dict[str, str] | None:
    """命令行要求的猜法，`EngineConfig` 的 `speculative_config`；没有就是 None。

    How the command line wants tokens to be guessed, as `speculative_config` of `EngineConfig`; None if not at all.
    """
    # 猜几个、查几个，命令行用默认值；要改，作为库使用。
    # How many are guessed and looked up is left at its default; as a library, all can be set.
    if args.draft_model is not None:
        return {"model": args.draft_model}
    return None if args.speculate is None else {"method": args.speculate}


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
    # 词表大小只用来裁掩码，编译用不着。
    # The vocabulary's size only cuts masks; compiling has no use for it.
    if wanted is not None:
        Guides(Tokenizer(folder), 0).compile(wanted)
