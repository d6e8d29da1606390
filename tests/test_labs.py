"""每个实验都跑一遍，检查都通过；照它说的试一试，检查也给出它说的结果。
Every lab runs and its check passes; the tasks it names give what it says.

全部实验分在两个子进程里先后运行：不必每次都导入 torch。
Two processes run the labs one after the other, so that torch is not imported for each.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import backends

ROOT = Path(__file__).resolve().parent.parent
LABS = ROOT / "docs" / "labs"
NAMES = sorted(path.name for path in LABS.glob("[0-9]*.py"))

RUNNER = """
import contextlib, io, json, runpy, sys, traceback
runs = json.loads(sys.argv[1])
sys.path.insert(0, "docs/labs")
sys.dont_write_bytecode = True
results = []
for name, *arguments in runs:
    sys.argv = [name, *arguments]
    out, code = io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_path(f"docs/labs/{name}", run_name="__main__")
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
    results.append((code, out.getvalue()))
print("RESULTS" + json.dumps(results))
"""

# 一个实验、它的参数、退出码、输出里要有的话。
# A lab, its arguments, the exit code, and what the output must say.
DEFAULTS = [([name], 0, "check: OK") for name in NAMES if not name.startswith("08")]
TASKS: list[tuple[list[str], int, str]] = [
    (["01_first_request.py", "--max-tokens", "3"], 0, "finish_reason: length"),
    (["01_first_request.py", "--temperature", "1", "--seed", "7", "--max-tokens", "1"], 0, "check: OK"),
    (["02_one_tokens_way.py", "--token", "3", "--layer", "0"], 0, "check: OK"),
    (["02_one_tokens_way.py", "--layer", "4"], 2, "layers from 0 to 3"),
    (["03_paged_attention.py", "--block-size", "8", "--tokens", "33", "--backend", "sdpa"], 0, "= 5 blocks"),
    (["03_paged_attention.py", "--block-size", "12"], 2, "power of two"),
    (["04_continuous_batching.py", "--max-num-seqs", "1"], 0, "check: OK"),
    (["04_continuous_batching.py", "--max-num-seqs", "5"], 0, "check: OK"),
    (["05_chunked_prefill.py", "--budget", "128"], 0, "took 1 chunks: [90]"),
    (["05_chunked_prefill.py", "--budget", "1"], 0, "check: OK"),
    (["05_chunked_prefill.py", "--prompt-tokens", "200"], 0, "check: OK"),
    (["06_prefix_caching.py", "--block-size", "8"], 0, "cached 40 = 5 blocks"),
    (["06_prefix_caching.py", "--block-size", "64"], 0, "hits [0, 0, 0]"),
    (["06_prefix_caching.py", "--no-caching"], 0, "hits [0, 0, 0]"),
    (["07_preemption.py", "--blocks", "4", "--caching"], 0, "check: OK"),
    (["07_preemption.py", "--blocks", "9"], 0, "0 preempted, 0 tokens computed again"),
    (["07_preemption.py", "--blocks", "3"], 2, "max_model_len"),
    (["08_own_backend.py"], 0, "Missing: TODO 1: store_kvcache. Open docs/labs/my_backend.py"),
    (["08_own_backend.py", "--solution"], 0, "check: OK"),
    (["09_adapt_model.py", "--no-bias"], 1, "unexpected tensor"),
    (["09_adapt_model.py", "--activation", "silu"], 1, "check: 1 off"),
    (["10_compare_backends.py", "--error", "0.1"], 1, "check: 1 off"),
    (["10_compare_backends.py", "--error", "-0.8"], 1, "check: 2 off"),
    (["10_compare_backends.py", "--b", "nope"], 2, "unknown backend 'nope'"),
    (["11_profile.py", "--requests", "1", "--steps", "2", "--backend", "torch"], 0, "check: OK"),
]
RUNS = DEFAULTS + TASKS


def environment(folder: Path) -> dict[str, str]:
    """单线程、UTF-8，trace 文件写进测试的文件夹。
    One thread, UTF-8, and trace files go to the test's folder.
    """
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "TMPDIR": str(folder), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """全部运行的（退出码，输出）。
    (exit code, output) of all runs.
    """
    folder = tmp_path_factory.mktemp("labs")

    def run(half: list[list[str]]) -> list[tuple[int, str]]:
        process = subprocess.run(
            [sys.executable, "-c", RUNNER, json.dumps(half)], cwd=ROOT, env=environment(folder), capture_output=True,
            text=True, encoding="utf-8", timeout=300,
        )  # fmt: skip
        assert process.returncode == 0 and "RESULTS" in process.stdout, process.stderr
        return [(code, out) for code, out in json.loads(process.stdout.split("RESULTS")[1])]

    # 单数的一半和双数的一半同时跑：CI 有 2 个核。
    # The odd half and the even half run at the same time: CI has 2 cores.
    every = [arguments for arguments, _, _ in RUNS]
    with ThreadPoolExecutor(2) as pool:
        even, odd = pool.map(run, (every[::2], every[1::2]))
    together: list[tuple[int, str]] = [(0, "")] * len(RUNS)
    together[::2], together[1::2] = even, odd
    return together


def test_there_are_eleven_labs() -> None:
    assert [name[:2] for name in NAMES] == [f"{number:02}" for number in range(1, 12)]


@pytest.mark.parametrize("index", range(len(RUNS)), ids=[" ".join(arguments) for arguments, _, _ in RUNS])
def test_a_lab_says_what_it_promises(results: Any, index: int) -> None:
    _, expected, says = RUNS[index]
    code, out = results[index]
    assert code == expected, out
    assert says in out, out
    assert "Traceback" not in out
    if expected == 0:
        assert re.search(r"[\u4e00-\u9fff]", out), "the output is in both languages"


def test_a_lab_starts_with_the_command_of_the_docs(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "docs/labs/03_paged_attention.py"], cwd=ROOT, env=environment(tmp_path),
        capture_output=True, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert process.returncode == 0 and process.stdout.endswith("check: OK\n"), process.stdout + process.stderr


def test_the_labs_find_mistakes(tmp_path: Path) -> None:
    # 照 TODO 说的写错：检查必须发现。
    # The mistakes that the TODOs suggest: the check must find them.
    source = (LABS / "03_paged_attention.py").read_text(encoding="utf-8")
    right = "block_table[position // block_size] * block_size + position % block_size"
    wrong = "position // block_size * block_size + position % block_size"
    assert source.count(right) == 1
    (tmp_path / "wrong.py").write_text(source.replace(right, wrong), encoding="utf-8")
    # 答案少了右下角对齐：看得到的 key 太少，第三关不过。
    # A solution without the bottom-right alignment: queries see too few keys, and it fails a later stage.
    solution = (LABS / "solutions" / "my_backend.py").read_text(encoding="utf-8")
    assert solution.count("triu(num_k - num_q + 1)") == 1
    broken, half = tmp_path / "broken", tmp_path / "half"
    broken.mkdir()
    half.mkdir()
    (broken / "my_backend.py").write_text(solution.replace("num_k - num_q + 1", "1"), encoding="utf-8")
    # 只写完第一个函数：它通过，接着要第二个。
    # Only the first function is written: it passes, and the second is asked for.
    todo = 'raise NotImplementedError("TODO 1: store_kvcache")'
    store = (
        "valid = slot_mapping >= 0\n"
        "        k_cache.flatten(0, 1)[slot_mapping[valid]] = key[valid]\n"
        "        v_cache.flatten(0, 1)[slot_mapping[valid]] = value[valid]"
    )
    skeleton = (LABS / "my_backend.py").read_text(encoding="utf-8")
    assert todo in skeleton and store in solution
    (half / "my_backend.py").write_text(skeleton.replace(todo, store), encoding="utf-8")
    code = (
        "import runpy, sys\n"
        "folder, labs, script = sys.argv[1:4]\n"
        "sys.path[:0] = [folder, labs]\n"
        "sys.argv = [script]\n"
        "runpy.run_path(script, run_name='__main__')\n"
    )

    def run(folder: Path, script: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(folder), str(LABS), str(script)], cwd=ROOT, env=environment(tmp_path),
            capture_output=True, text=True, encoding="utf-8", timeout=120,
        )  # fmt: skip

    own = LABS / "08_own_backend.py"
    runs = [(tmp_path, tmp_path / "wrong.py"), (broken, own), (half, own)]
    expected = [(1, "OFF"), (1, "OFF  flash_attn_with_kvcache"), (0, "Missing: TODO 2: flash_attn_with_kvcache")]
    with ThreadPoolExecutor(2) as pool:
        for process, (status, says) in zip(pool.map(lambda each: run(*each), runs), expected):
            assert process.returncode == status and says in process.stdout, process.stdout + process.stderr


# 实验 8 的错误答案：改哪里，改成什么，评判要说出什么。
# Wrong solutions of lab 8: what is changed into what, and what the judge has to say.
MISTAKES = {
    "slot -1 is stored": ("slot_mapping >= 0", "slot_mapping >= -1", "slots [39] were written"),
    "slot off by one": ("[slot_mapping[valid]] = key", "[slot_mapping[valid] + 1] = key", "not in slot 21 = block 2"),
    "key where value goes": ("= value[valid]", "= key[valid]", "value of token 0 is not in slot 21"),
    "heads in turns": ("head // (heads // k.shape[1])", "head % k.shape[1]", "KV head h // (Hq // Hkv)"),
    "mask top-left": ("triu(num_k - num_q + 1)", "triu(1)", "aligned bottom-right"),
    "no mask": ("if causal else None", "if False else None", "hides the keys behind"),
    "no scale": ("(head_dim**-0.5 if scale is None else scale)", "1.0", "1 / sqrt(D)"),
    "rows that see nothing": ("hidden.all(-1, keepdim=True)", "hidden.all(-1, keepdim=True) & False", "sees nothing"),
    "unwritten slots": ("arange(length)", "arange(-(-length // block_size) * block_size)", "past the length"),
    "blocks backwards": ("block_size].long()", "block_size].long().flip(0)", "the wrong keys: the block table"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_lab_8_finds_the_mistake_and_says_where(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, says = MISTAKES[name]
    solution = (LABS / "solutions" / "my_backend.py").read_text(encoding="utf-8")
    assert solution.count(right) == 1
    (tmp_path / "wrong_backend.py").write_text(solution.replace(right, wrong), encoding="utf-8")
    monkeypatch.syspath_prepend(str(LABS))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("wrong_backend", None)
    lab = runpy.run_path(str(LABS / "08_own_backend.py"))
    monkeypatch.setitem(backends._REGISTRY, "mine", backends._Entry("wrong_backend", "MyBackend"))
    with pytest.raises(AssertionError) as caught:
        lab["judge_store"]()
        lab["judge_decode"](lab["selected_cases"](False))
        lab["judge_varlen"](lab["selected_cases"](False))
    message = str(caught.value)
    assert says in message, message
    if "slot " not in says and "slots" not in says:
        assert re.search(r"\d+ NaN; first wrong: sequence \d+ .* query \d+, head \d+: got \[.*\], expected \[", message)


def test_docstrings_say_what_to_learn_to_try_and_to_check() -> None:
    for name in NAMES:
        text = ast.get_docstring(ast.parse((LABS / name).read_text(encoding="utf-8"))) or ""
        for mark in ("学什么：", "试一试：", "怎样算对：", "Teaches: ", "Try: ", "Check: "):
            assert mark in text, f"{name} lacks {mark}"


def test_labs_keep_the_comment_rules() -> None:
    process = subprocess.run(
        [sys.executable, "tools/check_bilingual.py", "docs/labs"], cwd=ROOT, capture_output=True, text=True,
        encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_lists_every_lab(language: str) -> None:
    text = (ROOT / "docs" / language / "labs.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"python docs/labs/{name}" in text
