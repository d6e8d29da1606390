"""测速脚本：每种负载都跑得起来，数字说得通；文档里的表和图就是现有的结果。
The benchmarks: each workload runs and its figures make sense; the docs' tables and plot are the results that are there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CHAPTERS = {lang: (DOCS / lang / "performance.md").read_text(encoding="utf-8") for lang in ("en", "zh")}


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """测速脚本彼此按名字导入，要先让它们的文件夹在搜索路径里。
    The benchmarks import each other by name, so their folder has to be on the search path.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """小规模地跑一遍：负载、第一个请求、与 transformers 相比；结果都在一个文件夹里。
    A small run of the workloads, the first request and the comparison with transformers; results are in one folder.
    """
    folder = tmp_path_factory.mktemp("results")
    tiny = ["--config", "assets/tiny-llama/config.json", "--device", "cpu", "--output-tokens", "4"]
    for name, options in {
        "workloads": ["--scale", "64"],
        "first": ["--repeats", "1"],
        "compare_hf": [*tiny, "--dtype", "float32"],
        "quantization": [*tiny, "--transformers"],
        "speculation": ["--model", "tiny-poet", "--draft-model", "tiny-poet-draft", "--device", "cpu",
                        "--output-tokens", "64"],
        "structured": ["--device", "cpu", "--output-tokens", "4"],
    }.items():
        command = [sys.executable, f"benchmarks/{name}.py", "--repeats", "2", "--json", str(folder / f"{name}-x.json")]
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.long
def test_every_workload_runs(results: Path, scripts: None) -> None:
    from workloads import WORKLOADS

    report = load(results / "workloads-x.json")
    assert report["scale"] == 64 and report["repeats"] == 2
    assert {name: tuple(figures) for name, figures in report["results"].items()} == {
        name: workload.metrics for name, workload in WORKLOADS.items()
    }
    for figures in report["results"].values():
        assert all(values["min"] <= values["median"] <= values["max"] for values in figures.values())
        # TPOT 是两次计时之差，这么小的规模、机器又忙时，可以是负的。
        # TPOT is the difference of two timings, which may be negative at such a scale on a busy machine.
        assert all(values["min"] > 0 for name, values in figures.items() if name != "tpot_ms")


def test_workloads_have_their_sizes(scripts: None) -> None:
    from workloads import WORKLOADS

    outputs = {name: sum(output for _, output in each.requests) for name, each in WORKLOADS.items()}
    assert outputs["random-256"] == 133966 and "133,966" in CHAPTERS["en"] and "133,966" in CHAPTERS["zh"]
    small = WORKLOADS["shared"].scaled(32)
    assert small.requests == [(2, 2)] * 8 and small.shared == 64
    assert WORKLOADS["n=1"].scaled(1, fewer_outputs=8).requests == [(128, 64)]
    for chapter in CHAPTERS.values():
        assert all(f"`{name}`" in chapter for name in WORKLOADS)


@pytest.mark.long
def test_first_requests_are_measured_on_both_caches(results: Path, scripts: None) -> None:
    from first import KINDS

    report = load(results / "first-x.json")
    for cache in ("empty", "warm"):
        assert report[cache]["start_s"] > 0 and report[cache]["kinds"].keys() == KINDS.keys()
        for times in report[cache]["kinds"].values():
            assert all(0 < times["first_token_ms"][key] < times["all_tokens_ms"][key] for key in ("first", "later"))


@pytest.mark.long
def test_both_sides_of_the_comparison_write_the_same_tokens(results: Path, scripts: None) -> None:
    from compare_hf import equal_tokens

    assert equal_tokens([[1, 2, 3], [4]], [[1, 5, 3], [4]]) == 0.5
    rows = load(results / "compare_hf-x.json")["results"]
    assert [row["workload"] for row in rows][:2] == ["1 request", "1 request, prompt of 128"]
    # 同样的权重：若两边各有各的随机权重，几乎没有相同的。
    # The same weights: if each side had random weights of its own, hardly any would be equal.
    assert all(row["equal_tokens"] >= 0.9 for row in rows)


@pytest.mark.long
def test_quantized_weights_and_caches_are_smaller(results: Path, scripts: None) -> None:
    rows = {row["name"]: row for row in load(results / "quantization-x.json")["results"]}
    assert list(rows) == ["bfloat16", "int8", "int4", "int4, KV int8", "transformers"]
    assert all(row["first"]["min"] > 0 for row in rows.values())
    bf16, int8, int4 = (rows[name]["weight_bytes"] for name in ("bfloat16", "int8", "int4"))
    # 归一化的权重和缩放也算在内，所以比一半略多。
    # Weights of norms and scales are counted, too: a little more than half.
    assert 0.5 < int8 / bf16 < 0.52 and 0.3 < int4 / int8 < 1
    assert rows["int4, KV int8"]["weight_bytes"] == int4
    # 一个头 32 维：bf16 64 字节，int8 32 + 4 字节。
    # A head has 32 components: 64 bytes in bf16, 32 + 4 in int8.
    assert rows["int4, KV int8"]["kv_bytes"] / rows["int4"]["kv_bytes"] == 36 / 64


@pytest.mark.long
def test_guesses_save_steps(results: Path, scripts: None) -> None:
    rows = {row["name"]: row for row in load(results / "speculation-x.json")["results"]}
    assert list(rows) == ["no guesses", "n-grams", "draft model"]
    assert rows["no guesses"]["tokens_per_step"]["max"] == 1 == rows["no guesses"]["ratio"]
    draft = rows["draft model"]
    assert draft["tokens_per_step"]["min"] > 1.3 and draft["drafted_steps"]["min"] > 0.9
    # 每个有猜测的步多得“猜对的比例 × 4”个。
    # A step with guesses yields the share that is right, times 4, more.
    for key in ("min", "max"):
        more = draft["tokens_per_step"][key] - 1
        assert abs(more - 4 * draft["accepted"][key] * draft["drafted_steps"][key]) < 0.15


def test_an_oracle_is_right_as_often_as_it_says(scripts: None) -> None:
    from speculation import RIGHT, throw_dice

    from engine.sampling_params import SamplingParams
    from engine.sequence import Sequence

    kept = []
    for number in range(2000):
        seq = Sequence("", [0] * (number + 1), 1, SamplingParams(), draft_ids=[1, 1, 1, 1])
        kept.append(len(throw_dice(seq, [5, 6, 7, 8, 9])))
    # 前 i 个全对的机会是 0.8 的 i 次方。
    # The first i are all right with a chance of 0.8 to the power i.
    assert abs(sum(kept) / 2000 - (1 + sum(RIGHT**i for i in range(1, 5)))) < 0.1 and set(kept) == {1, 2, 3, 4, 5}


@pytest.mark.long
def test_grammars_are_measured_beside_none(results: Path) -> None:
    rows = load(results / "structured-x.json")["results"]
    assert [row["name"] for row in rows if "compile_ms" in row] == ["regex", "JSON schema", "largest"]
    timed = [row for row in rows if "requests" in row]
    assert [(row["name"], row["requests"]) for row in timed] == [
        (name, count) for count in (1, 32) for name in ("no grammar", "regex", "JSON schema")
    ]
    for row in timed:
        assert ("mask_us" in row) == (row["name"] != "no grammar")
        assert (row.get("mask_us", {"min": 1})["min"] > 0 and row["name"] != "no grammar") or row["ratio"]["max"] == 1


@pytest.mark.long
def test_two_ranks_time_an_all_reduce(tmp_path: Path, scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import report

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--device", "cpu", "--rows", "1", "3", "--repeats", "2", "--json", str(tmp_path / "all_reduce-x.json")]
    done = subprocess.run([*command, "benchmarks/all_reduce.py", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("gloo") == 2, done.stderr[-3000:]
    rows = load(tmp_path / "all_reduce-x.json")["results"]
    assert [row["rows"] for row in rows] == [1, 3] and all(row["us"]["gloo"]["min"] > 0 for row in rows)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert [line.split(" | ")[1:3] for line in report.all_reduce()[2:]] == [["1", "6,144"], ["3", "18,432"]]


def test_the_docs_show_the_results_that_are_there(scripts: None) -> None:
    import plot
    import report

    for chapter in CHAPTERS.values():
        assert report.rewrite(chapter) == chapter, "run python benchmarks/report.py --write"
    assert plot.draw(report.by_card()) == (DOCS / "performance.svg").read_text(encoding="utf-8")
    assert all(each["scale"] == 1 for each in report.load("workloads"))


@pytest.mark.long
def test_report_of_new_results(results: Path, scripts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """新的结果一放进来，表和图里就都有，缺的是一横。
    New results, once they are there, stand in the tables and the plot, with a dash for what is missing.
    """
    import plot
    import report
    from workloads import WORKLOADS

    for path in results.glob("*.json"):
        result = load(path) | {"model": "qwen3-0.6b"}
        result["environment"]["device"] = "NVIDIA H100 80GB HBM3"
        (tmp_path / path.name).write_text(json.dumps(result), encoding="utf-8")
    other = load(tmp_path / "workloads-x.json") | {"model": "llama-3.2-3b-instruct"}
    del other["results"]["prefill"]
    (tmp_path / "workloads-y.json").write_text(json.dumps(other), encoding="utf-8")
    monkeypatch.setattr(report, "RESULTS", tmp_path)

    lines = report.workloads()
    assert lines[0] == "| H100 80GB HBM3 | figure | Qwen3-0.6B | Llama-3.2-3B |"
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines[2:]} == WORKLOADS.keys()
    assert [line.endswith("| – |") for line in lines[2:]] == ["| prefill |" in line for line in lines[2:]]
    assert len(report.first()) == 2 + 1 + 7 and len(report.compare_hf()) == 2 + 4 and len(report.structured()) == 2 + 7
    drawn = plot.draw(report.by_card())
    assert all(f"Qwen3-0.6B, {name}<" in drawn for name in ("random-256-filtered", "n=1, top_p", "8x16384", "shared"))
    with pytest.raises(ValueError, match="no bandwidth is known for A100: add it"):
        plot.draw({"A100": {}})
    with pytest.raises(ValueError, match="stands 0 times in the chapter"):
        report.rewrite("# Performance\n")


def test_cells_name_the_best_run(scripts: None) -> None:
    from report import cell

    values = {"median": 110.0, "min": 100.0, "max": 125.0}
    assert cell("output_tok_per_s", values) == "125 (20.0%)"
    assert cell("tpot_ms", values) == "100.000 (25.0%)"
    assert cell("seconds", dict.fromkeys(values, 0.5)) == "0.500"
