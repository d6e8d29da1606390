"""依赖只朝一个方向：`mini_llama → serving → engine → models → layers → backends`；上层不提任何具体后端。
Dependencies point one way: `mini_llama → serving → engine → models → layers → backends`; no layer above names a
backend.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("mini_llama", "serving", "engine", "models", "layers", "backends")
BACKENDS = {"torch", "sdpa", "triton", "flash"}
# 具体后端的模块、类和软件包的名字里会出现的片段。
# Pieces of the names of concrete backends' modules, classes and packages.
BACKEND_MARKS = ("torch_backend", "torchbackend", "sdpa", "triton", "flashbackend", "flash_backend")
OPTIONAL_PACKAGES = {"triton", "flash_attn"}


def source_files(*parts: str) -> dict[str, Path]:
    """模块名到文件的映射 / module names and their files."""
    files: dict[str, Path] = {}
    for part in parts:
        path = ROOT / part
        if path.with_suffix(".py").exists():
            files[part] = path.with_suffix(".py")
        for file in sorted(path.rglob("*.py")):
            names = list(file.relative_to(ROOT).with_suffix("").parts)
            files[".".join(names[:-1] if names[-1] == "__init__" else names)] = file
        assert any(name.split(".")[0] == part for name in files), f"{part} is missing"
    return files


def imports(name: str, path: Path, top_level_only: bool = False) -> Iterator[str]:
    """一个模块导入的全部模块名（绝对形式）/ the absolute names of all modules that a module imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            # `from backends import base` 导入的是子模块。
            # `from backends import base` imports a submodule.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way() -> None:
    wrong = []
    for name, path in source_files(*ORDER).items():
        rank = ORDER.index(name.split(".")[0])
        # 唯一的例外：命令行要记录时才导入 X 光，而且只在函数里导入。
        # The only exception: the command line imports the X-ray when asked to record, and only inside a function.
        at_top = set(imports(name, path, top_level_only=True))
        for module in imports(name, path):
            top = module.split(".")[0]
            if name == "mini_llama" and module.startswith("tools.xray") and module not in at_top:
                continue
            if (top in ORDER and ORDER.index(top) < rank) or top in {"tools", "tests", "benchmarks"}:
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_no_import_cycles() -> None:
    files = source_files(*ORDER)
    graph = {name: {m for m in imports(name, path) if m in files and m != name} for name, path in files.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("part", ["serving", "engine", "models", "layers"])
def test_no_concrete_backend_is_named(part: str) -> None:
    named = []
    for name, path in source_files(part).items():
        for module in imports(name, path):
            in_registry = module.split(".")[0] == "backends"
            names_one = any(mark in module.lower() for mark in BACKEND_MARKS) or (
                in_registry and module.split(".")[-1] in BACKENDS
            )
            if names_one or module.split(".")[0] in OPTIONAL_PACKAGES:
                named.append(f"{name} imports {module}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            word = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                word = node.value.strip().lower()
                word = word if word in BACKENDS else ""
            elif isinstance(node, (ast.Name, ast.Attribute)):
                identifier = (node.id if isinstance(node, ast.Name) else node.attr).lower()
                word = identifier if any(mark in identifier for mark in BACKEND_MARKS) else ""
            if word:
                named.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} names {word}")
    assert named == []


def test_optional_packages_are_imported_under_backends_only() -> None:
    wrong = []
    for name, path in source_files(*ORDER).items():
        for module in imports(name, path):
            if module.split(".")[0] in OPTIONAL_PACKAGES and not name.startswith("backends."):
                wrong.append(f"{name} imports {module}")
    for name in ("backends", "backends.base"):
        path = source_files("backends")[name]
        wrong += [name for module in imports(name, path) if module.split(".")[0] in OPTIONAL_PACKAGES]
    assert wrong == []


def test_importing_mini_llama_imports_no_backend_and_no_optional_package(tmp_path: Path) -> None:
    # 用空的假包代替 triton 和 flash_attn：即使机器上没装它们，这项检查也不是空的。
    # Empty stand-ins for triton and flash_attn: the check means something also where they are not installed.
    for package in OPTIONAL_PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    concrete = sorted(set(source_files("backends")) - {"backends", "backends.base"})
    assert concrete
    code = (
        f"import sys, mini_llama; print(sorted(set({sorted(OPTIONAL_PACKAGES)} + {concrete}) & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
