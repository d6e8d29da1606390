"""在一个进程里先后运行几个实验，可以先把错误放进实验或引擎；结果以 JSON 打印在最后。

Run some labs one after the other in one process, with mistakes put into a lab or into the engine first; the results
are printed as JSON at the end.
"""

from __future__ import annotations
import __future__

import contextlib
import functools
import importlib
import inspect
import io
import json
import runpy
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# 让改过的函数不去求值自己的标注：其中的名字可能只在类里才有。
# Keep a changed function from evaluating its annotations, whose names may exist in the class only.
FLAGS = __future__.annotations.compiler_flag


def changed(source: str, right: str, wrong: str, where: str) -> str:
    """把恰好出现一次的 `right` 换成 `wrong`。
    Replace `right`, which occurs exactly once, by `wrong`.
    """
    if source.count(right) != 1:
        raise ValueError(f"{where}: {right!r} occurs {source.count(right)} times")
    return source.replace(right, wrong)


@contextlib.contextmanager
def mistaken(where: str, right: str, wrong: str) -> Iterator[None]:
    """引擎里的一个函数（`path::symbol`）换上错误的代码，用完换回；换的是代码对象，谁导入过它都会用到错的。
    A function of the engine (`path::symbol`) gets mistaken code for a while; the code object is swapped, so whoever
    imported it uses the mistake.
    """
    path, symbol = where.split("::")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    function: Any = inspect.unwrap(functools.reduce(getattr, symbol.split("."), module))
    source = changed(textwrap.dedent(inspect.getsource(function)), right, wrong, where)
    namespace: dict[str, Any] = {}
    exec(compile(source, f"<{where}>", "exec", FLAGS, dont_inherit=True), vars(module), namespace)
    code = function.__code__
    function.__code__ = inspect.unwrap(namespace[function.__name__]).__code__
    try:
        yield
    finally:
        function.__code__ = code


def run(arguments: list[str], mistake: list[str] | None) -> tuple[int | None, str]:
    """跑一个实验，返回退出码和输出。
    Run a lab and return its exit code and output.

    Args:
        mistake: where, right, wrong; where is the lab's own file or `path::symbol`
    """
    name, path = arguments[0], ROOT / "docs" / "labs" / arguments[0]
    out, code = io.StringIO(), None
    with contextlib.ExitStack() as stack:
        if mistake is not None:
            source = path.read_text(encoding="utf-8")
            if "::" in mistake[0]:
                stack.enter_context(mistaken(*mistake))
                # 实验用 torchrun 起的进程，也要带着这个错误。
                # Processes that a lab starts by torchrun get the mistake as well.
                start = f"(mistake := run_labs.mistaken(*{mistake!r})).__enter__()"
                source = f"import os, run_labs\nif 'RANK' in os.environ:\n    {start}\n{source}"
            else:
                source = changed(source, mistake[1], mistake[2], name)
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / name
            path.write_text(source, encoding="utf-8")
        sys.argv = [name, *arguments[1:]]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except Exception:
                traceback.print_exc()
    return code, out.getvalue()


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "labs")]
    print("RESULTS" + json.dumps([run(*each) for each in json.loads(sys.argv[1])]))
