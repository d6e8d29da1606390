"""依赖只朝一个方向：`mini_llama → serving → engine → models → layers → backends`；上层不提任何具体后端；
调度器不需要 torch；每个部分的代码行数有上限；可选的功能只出现在该出现的文件里。

Dependencies point one way: `mini_llama → serving → engine → models → layers → backends`; no layer above names a
backend; the scheduler needs no torch; every part has a limit of code lines; optional features show in few files only.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import count_code
from tools.count_code import PACKAGES, ROOMS, Room, files_of, unlisted

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("mini_llama", "serving", "engine", "models", "layers", "backends")
BACKENDS = {"torch", "sdpa", "triton", "flash"}
# 具体后端的模块、类和软件包的名字里会出现的片段。
# Pieces of the names of concrete backends' modules, classes and packages.
BACKEND_MARKS = ("torch_backend", "torchbackend", "sdpa", "triton", "flashbackend", "flash_backend")
GPU_PACKAGES = {"triton", "flash_attn"}
# 选中了才导入的软件包。
# Packages that are imported by what was chosen only.
OPTIONAL_PACKAGES = GPU_PACKAGES | {"llguidance", "starlette", "uvicorn", "ray"}
# 后端的契约：谁都可以导入，它们不导入任何实现。
# The contracts of backends: anybody may import them, and they import no implementation.
CONTRACTS = {
    "backends.base", "backends.kernels", "backends.kv_cache", "backends.quantized_cache", "backends.quantized_weight",
}  # fmt: skip


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


@pytest.mark.parametrize("part", ["mini_llama", "serving", "engine", "models", "layers"])
def test_no_concrete_backend_is_named(part: str) -> None:
    named = []
    for name, path in source_files(part).items():
        for module in imports(name, path):
            in_registry = module.split(".")[0] == "backends"
            names_one = any(mark in module.lower() for mark in BACKEND_MARKS) or (
                in_registry and module.split(".")[-1] in BACKENDS
            )
            if names_one or module.split(".")[0] in GPU_PACKAGES:
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


def test_gpu_packages_are_imported_under_backends_only() -> None:
    wrong = []
    for name, path in source_files(*ORDER).items():
        for module in imports(name, path):
            if module.split(".")[0] in GPU_PACKAGES and (not name.startswith("backends.") or name in CONTRACTS):
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_contracts_import_contracts_only() -> None:
    files = source_files("backends")
    assert set(files) > CONTRACTS
    for name in CONTRACTS:
        modules = {module for module in imports(name, files[name]) if module in files}
        assert modules <= CONTRACTS, name


def test_importing_mini_llama_imports_no_backend_and_no_optional_package(tmp_path: Path) -> None:
    # 用空的假包代替它们：即使机器上没装，这项检查也不是空的。
    # Empty stand-ins: the check means something also where they are not installed.
    for package in OPTIONAL_PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    concrete = sorted(set(source_files("backends")) - {"backends"} - CONTRACTS)
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


# ---- 调度器不需要 torch ----
# ---- the scheduler needs no torch ----

WITHOUT_TORCH = (
    "scheduler", "block_manager", "block_key", "sequence", "sampling_params", "outputs", "detokenizer", "validation",
    "guides",
)  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_scheduling_loads_no_torch(name: str) -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        f"import engine.{name}; print(time.perf_counter() - start)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'numpy', 'models'}))\n"
    )
    seconds = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        time, heavy = result.stdout.splitlines()
        assert heavy == "[]"
        seconds.append(float(time))
        # 平时不到 0.1 秒；机器忙时放宽，但 torch 那样的导入无论如何也混不过去。
        # Mostly under 0.1 seconds; a busy machine gets more, but an import like torch's would not get past.
        if seconds[-1] < 1.0:
            break
    assert min(seconds) < 1.0, seconds


# ---- 代码行数 ----
# ---- lines of code ----


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_part_keeps_within_its_limit(room: Room) -> None:
    counts = {str(path.relative_to(ROOT)): count_code.count_code(path) for path in files_of(room)}
    assert sum(counts.values()) <= room.limit, counts


def test_every_file_has_one_place() -> None:
    assert unlisted() == []
    assert set(PACKAGES) == set(ORDER) - {"mini_llama"}
    # 除了还没有的功能，表里的每个名字都有文件。
    # Apart from features to come, every name in the table has a file.
    for room in ROOMS:
        missing = [pattern for pattern in room.files if not list(ROOT.glob(pattern))]
        assert missing == [] or room.name == "capabilities", missing


@pytest.mark.parametrize(
    "source, lines",
    [
        ("", 0),
        ("\n\n# 注释 / a comment\n\n", 0),
        ('"""一行 / one line."""\n', 0),
        ('"""几行\n\nseveral\n"""\nx = 1\n', 1),
        ("x = 1  # 行尾 / at the end\n", 1),
        ('def f() -> None:\n    """文档 / doc."""\n', 1),
        ("class A:\n    '''文档\n    doc\n    '''\n\n    x = 1\n", 2),
        ('def f():\n    "doc" " of two strings"\n    return 1\n', 2),
        ('x = """几行\n\n也算\n"""\n', 4),
        ('f(\n    "text"\n)\n', 3),
        ('(\n    "text"\n)\n', 3),
        ("f(\n    1,\n\n    # 之间 / between\n    2,\n)\n", 4),
        ("x = 1; y = 2\n", 1),
        ("x = 1 + \\\n    2\n", 2),
        ('"doc"; x = 1\n', 1),
        ("if x:\n    pass\nelse:\n    pass\n", 4),
        ("@decorator\ndef f(): ...\n", 2),
        ('x = f"{1}"\n', 1),
        ("x = 1", 1),
    ],
)
def test_counting(tmp_path: Path, source: str, lines: int) -> None:
    (tmp_path / "file.py").write_text(source, encoding="utf-8")
    assert count_code.count_code(tmp_path / "file.py") == lines


def test_files_without_a_place_are_found(tmp_path: Path) -> None:
    rooms = (Room("a", 1, ("engine/a.py", "engine/both.py")), Room("b", 1, ("engine/b*.py", "mini_llama.py")))
    (tmp_path / "engine" / "gpu").mkdir(parents=True)
    for name in ("engine/a.py", "engine/b.py", "engine/new.py", "engine/both.py", "engine/gpu/new.py", "mini_llama.py"):
        (tmp_path / name).write_text("")
    assert unlisted(rooms, tmp_path) == ["engine/both.py", "engine/gpu/new.py", "engine/new.py"]


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_code.main([]) == 0
    table = capsys.readouterr()
    assert table.err == ""
    for room in ROOMS:
        (line,) = (line for line in table.out.splitlines() if line.startswith(room.name))
        lines, limit, left = (int(word.replace(",", "")) for word in line.removeprefix(room.name).split())
        assert limit == room.limit and left == limit - lines and 0 <= lines <= limit
    assert count_code.main(["--files"]) == 0
    assert "    engine/scheduler.py" in capsys.readouterr().out
    monkeypatch.setattr(count_code, "ROOMS", (Room("too small", 3, ("engine/scheduler.py",)),))
    assert count_code.main([]) == 1
    assert "too small has" in capsys.readouterr().err


def test_the_command_runs_by_itself() -> None:
    command = [sys.executable, "tools/count_code.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "core path" in result.stdout


# ---- 可选的功能只出现在这些文件里 ----
# ---- optional features show in these files only ----

# 名字里的片段 -> 可以出现的文件；功能自己的文件不必列。
# A piece of a name -> files where it may stand; a feature's own file need not be listed.
SHOWS = {
    "draft": {
        "engine/gpu/overlapped_engine.py", "engine/gpu/warm_up.py", "engine/llm_engine.py", "engine/outputs.py",
        "engine/scheduler.py", "engine/sequence.py", "serving/console.py", "serving/flags.py",
    },
    "quantiz": {
        "backends/base.py", "backends/cpu_kernels.py", "backends/kernels.py", "backends/sdpa.py", "backends/store.py",
        "backends/torch_backend.py", "engine/config.py", "engine/model_runner.py", "models/loader.py",
        "models/shares.py",
        "serving/compare.py", "serving/console.py",
        *(f"backends/triton/{name}.py" for name in ("__init__", "codes", "decode", "fused", "gemv", "prefill")),
        *(f"backends/triton/{name}.py" for name in ("quantized", "skinny", "store")),
    },
    "guide": {
        "engine/gpu/kernel_sampler.py", "engine/gpu/overlapped_engine.py", "engine/requests.py", "engine/sampler.py",
        "engine/sampling_params.py", "engine/scheduler.py", "engine/sequence.py", "mini_llama.py",
        "serving/flags.py",
    },
    "ranks.": {
        "engine/config.py", "engine/gpu/decode_graphs.py", "engine/gpu/kernel_sampler.py",
        "engine/gpu/overlapped_engine.py", "engine/kv_pool.py", "engine/llm_engine.py", "engine/model_runner.py",
        "engine/sampler.py", "layers/embedding.py", "mini_llama.py", "models/config.py", "models/llama.py",
        "models/qwen2.py", "models/shares.py", "serving/chat.py", "serving/llm.py",
    },
}  # fmt: skip


def features_named(path: Path) -> set[str]:
    """一个文件的标识符里出现的片段；注释和字符串不算，`ranks` 只看它作为模块时。

    The pieces that occur in a file's identifiers; comments and strings do not count, and `ranks` only as a module.
    """
    with path.open("rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type in (tokenize.NAME, tokenize.OP)]
    found = set()
    for token, following in zip(tokens, [*tokens[1:], None]):
        name = token.string.lower() + ("." if following is not None and following.string == "." else "")
        found |= {piece for piece in SHOWS if piece in name and (piece != "ranks." or name == piece)}
    modules = set(imports("name", path))
    return found | ({"ranks."} if any("ranks" in module.split(".") for module in modules) else set())


def test_optional_features_show_in_few_files() -> None:
    own = set(files_of(next(room for room in ROOMS if room.name == "capabilities")))
    places: dict[str, set[str]] = {piece: set() for piece in SHOWS}
    for path in source_files(*ORDER).values():
        for piece in features_named(path) if path not in own else ():
            places[piece].add(str(path.relative_to(ROOT)))
    # 相等，不只是不多：不再出现的文件也要从表里去掉。
    # Equal and not just no more: a file where it no longer shows leaves the table.
    assert places == SHOWS


@pytest.mark.parametrize(
    "source, pieces",
    [
        ("x = seq.draft_ids", {"draft"}),
        ("def cut(num_drafts): ...", {"draft"}),
        ("class DraftModel: ...", {"draft"}),
        ("LLM(quantization=None)", {"quantiz"}),
        ("from layers.quantized import pack", {"quantiz"}),
        ("import engine.guides", {"guide"}),
        ("from layers import ranks", {"ranks."}),
        ("from layers.ranks import sum_over", {"ranks."}),
        ("y = ranks.gather(x)", {"ranks."}),
        ("ranks = sort(x)\ny = ranks >= k\nz = num_ranks.bit_length()", set()),
        ("raw.get('quantization_config')  # a draft, a guide\nf = f'guide'", set()),
    ],
)
def test_the_search_for_features(tmp_path: Path, source: str, pieces: set[str]) -> None:
    (tmp_path / "file.py").write_text(source + "\n", encoding="utf-8")
    assert features_named(tmp_path / "file.py") == pieces
