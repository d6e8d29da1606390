"""数代码行，看每个部分还剩多少空间：读者一个晚上读得完，是这个项目的一项功能。

一行算代码，只要上面除了注释和文档字符串还有别的；空行不算。表里写明每个部分有哪些文件、最多多少行，测试守着它。

Count lines of code, and see how much room each part has left: that a reader gets through it in an evening is a feature.

A line counts as code if there is anything on it besides comments and docstrings; blank lines do not count. The table
says which files each part has and how many lines at most; a test holds it.

Usage: python tools/count_code.py [--files]
"""

import argparse
import io
import sys
import tokenize
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("serving", "engine", "models", "layers", "backends")
_LAYOUT: Final = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


class Room(NamedTuple):
    """一个部分：名字，最多几行代码，哪些文件（可用通配符）。

    A part: its name, lines of code at most, and its files, which may be patterns.
    """

    name: str
    limit: int
    files: tuple[str, ...]


def _in(folder: str, names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.py" for name in names.split())


# 核心逐个列名：新来的文件要先想好它属于哪里。
# The core lists its files one by one: a new one has to be given a place first.
ROOMS: Final = (
    Room(
        "core path",
        2450,
        (
            *_in("engine", "__init__ config sampling_params validation tokenizer detokenizer outputs requests"),
            *_in("engine", "sequence block_key block_manager scheduler batch model_runner kv_pool sampler llm_engine"),
            *_in("models", "__init__ registry config fields loader llama qwen3"),
            *_in("layers", "__init__ activation attention embedding layernorm linear rotary_embedding sampler"),
            *_in("backends", "__init__ base kv_cache kernels torch_backend"),
        ),
    ),
    Room("serving", 900, ("serving/*.py",)),
    Room("engine/gpu", 320, ("engine/gpu/*.py",)),
    Room("fast kernels", 1600, (*_in("backends", "sdpa store cpu_kernels flash"), "backends/triton/*.py")),
    Room("mini_llama.py", 200, ("mini_llama.py",)),
    # 可选的功能各有各的文件，现在还没有的也先留好位置。
    # Optional features have files of their own; those to come have their place already.
    Room(
        "capabilities",
        800,
        (
            *_in("engine", "drafters guides"),
            *_in("layers", "ranks quantized"),
            *_in("backends", "quantized_cache quantized_weight"),
            *_in("models", "checkpoint_formats quantized"),
        ),
    ),
    # 只有某些模型、某些机器会遇到的：别的模型，少见的写法，怎样拒绝读不了的，容器的内存限额，模型分给几个进程。
    # What only some models or machines meet: other models, rare notations, refusals of what cannot be read, the memory
    # limits of containers, a model shared by several processes.
    Room(
        "further models and hosts",
        250,
        (*_in("engine", "host_memory"), *_in("models", "hub refusals sliding_window yarn qwen2 shares")),
    ),
)


def code_lines(source: str) -> set[int]:
    """源码里是代码的行号，从 1 数起。

    The numbers of the lines of code in a source, from 1.
    """
    lines: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*_LAYOUT, tokenize.COMMENT):
            statement.append(token)
        # 只由字符串组成的语句什么也不做，那就是文档字符串；放在括号里的、赋了值的，都不止是字符串。
        # A statement of nothing but strings does nothing: it is a docstring. In brackets, or assigned, it is more.
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if any(part.type != tokenize.STRING for part in statement):
                for part in statement:
                    lines.update(range(part.start[0], part.end[0] + 1))
            statement = []
    return lines


def count_code(path: Path) -> int:
    """一个文件的代码行数。

    A file's lines of code.
    """
    with tokenize.open(path) as file:
        return len(code_lines(file.read()))


def files_of(room: Room, root: Path = ROOT) -> list[Path]:
    """一个部分里此刻有的文件。

    The files that a part has right now.
    """
    return sorted(path for pattern in room.files for path in root.glob(pattern))


def unlisted(rooms: tuple[Room, ...] = ROOMS, root: Path = ROOT) -> list[str]:
    """不恰好属于一个部分的文件。

    The files that do not belong to exactly one part.
    """
    listed = [path for room in rooms for path in files_of(room, root)]
    files = [root / "mini_llama.py", *(path for package in PACKAGES for path in (root / package).rglob("*.py"))]
    return sorted(str(path.relative_to(root)) for path in files if listed.count(path) != 1)


def main(arguments: list[str] | None = None) -> int:
    """打印表格；有哪个部分超了，或者有文件没有归属，就以 1 结束。

    Print the table; the exit code is 1 if a part is over its limit or a file has no place.
    """
    parser = argparse.ArgumentParser(description="数代码行 / count lines of code")
    parser.add_argument("--files", action="store_true", help="也列出每个文件 / list every file, too")
    show_files = parser.parse_args(arguments).files
    problems = [f"{name} is in no part, or in several: see ROOMS" for name in unlisted()]
    print(f"{'':34}{'lines':>6}{'limit':>7}{'left':>7}")
    for room in ROOMS:
        counts = {path.relative_to(ROOT): count_code(path) for path in files_of(room)}
        total = sum(counts.values())
        print(f"{room.name:34}{total:6,}{room.limit:7,}{room.limit - total:7,}")
        for path, count in counts.items() if show_files else ():
            print(f"    {path!s:30}{count:6,}")
        if total > room.limit:
            problems.append(f"{room.name} has {total} lines of code, its limit is {room.limit}")
    print("\n".join(problems), end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
