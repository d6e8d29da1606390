"""把 `results/` 里的 JSON 变成文档里的表和图；`--write` 写进两种语言的 `performance.md` 和 `performance.svg`。

Turn the JSON of `results/` into the tables and the plot of the docs; `--write` puts them into `performance.md` of both
languages and `performance.svg`.

Usage: python benchmarks/report.py [--write]
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from plot import MODELS, draw

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
# 每个数怎样叫，几位小数。
# What each figure is called, and its decimals.
METRICS = {
    "output_tok_per_s": ("output tok/s", 0),
    "input_tok_per_s": ("input tok/s", 0),
    "seconds": ("s", 3),
    "ttft_ms": ("TTFT ms", 2),
    "tpot_ms": ("TPOT ms", 3),
    "itl_p99_ms": ("ITL p99 ms", 3),
}
CEILINGS = {"copy_tb_per_s": ("copy", "TB/s"), "bf16_tflop_per_s": ("bf16 product", "TFLOP/s")}
NAMES = {model: name for model, (name, _, _) in MODELS.items()} | {
    "tiny-llama": "embedded model", "tiny-poet": "embedded poet"
}


def load(kind: str) -> list[Any]:
    """这一类的全部结果，按文件名排序。

    All results of this kind, in the order of their file names.
    """
    files = sorted(RESULTS.glob(f"{kind}-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) | {"file": path.name} for path in files]


def card(result: Any) -> str:
    """在什么上面测的：卡的名字，不是 GPU 就是 CPU。

    What it was measured on: the card's name, or CPU where it is no GPU.
    """
    device = result["environment"]["device"]
    return device.removeprefix("NVIDIA ") if device.startswith("NVIDIA ") else "CPU"


def cell(metric: str, values: dict[str, float]) -> str:
    """几遍里最好的，以及最差的离它多远。

    The best of the runs, and how far the worst is from it.
    """
    best, worst = values["min"], values["max"]
    if metric.endswith("per_s"):
        best, worst = worst, best
    apart = abs(worst - best) / best
    return f"{best:,.{METRICS[metric][1]}f}" + (f" ({apart:.1%})" if apart else "")


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """一张 Markdown 表。

    A table in Markdown.
    """
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def by_card() -> dict[str, dict[str, Any]]:
    """各负载的结果，先按卡、再按模型找。

    The results of the workloads, by card and then by model.
    """
    cards: dict[str, dict[str, Any]] = {}
    for result in sorted(load("workloads"), key=lambda result: (card(result), list(MODELS).index(result["model"]))):
        cards.setdefault(card(result), {})[result["model"]] = result["results"]
    return cards


def setting() -> list[str]:
    """每份结果是在什么条件下得到的。

    The conditions under which each file of results was made.
    """
    keys = ("torch", "transformers", "python", "backend", "dtype", "date")
    rows = [
        [f"`{result['file']}`", card(result), str(result.get("repeats", "–"))]
        + [result["environment"].get(key, "–").removeprefix("torch.") for key in keys]
        for result in load("*")
    ]
    return table(["results", "on", "runs", *keys], rows)


def workloads() -> list[str]:
    """每块卡一张表：一行是一个负载的一个数，一列是一个模型。

    One table for each card: a row for each figure of each workload, a column for each model.
    """
    lines = []
    for name, models in by_card().items():
        # 字典当作有次序的集合：各行按结果里的次序，缺的模型写一横。
        # Dicts as ordered sets: rows in the order of the results, a dash where a model has none.
        figures = {(work, metric): 0 for result in models.values() for work in result for metric in result[work]}
        rows = [
            [work, METRICS[metric][0]]
            + [cell(metric, result[work][metric]) if work in result else "–" for result in models.values()]
            for work, metric in figures
        ]
        lines += ["", *table([name, "figure", *(NAMES[model] for model in models)], rows)]
    return lines[1:]


def first() -> list[str]:
    """启动之后的第一个请求，与后来的相比。

    The first request after the start beside later ones.
    """
    rows = []
    for result in load("first"):
        where = f"{card(result)}, {NAMES[result['model']]}"
        starts = [f"{result[cache]['start_s'] * 1e3:,.0f} / –" for cache in ("empty", "warm")]
        rows.append([where, "process start to ready", *starts])
        for kind in result["warm"]["kinds"]:
            pairs = [result[cache]["kinds"][kind]["first_token_ms"] for cache in ("empty", "warm")]
            rows.append([where, kind, *(f"{pair['first']:,.1f} / {pair['later']:,.1f}" for pair in pairs)])
    return table(["where", "kind of request", "empty kernel cache, ms", "warm kernel cache, ms"], rows) if rows else []


def attention() -> list[str]:
    """注意力核函数。

    Attention kernels.
    """
    results = load("attention")
    ceilings = [(result, key, value) for result in results for key, value in result["ceilings"].items()]
    rows = [
        [card(result), "ceiling", "–", CEILINGS[key][0], "–", f"{value:.2f} {CEILINGS[key][1]}", "100%"]
        for result, key, value in ceilings
    ] + [
        [
            card(result),
            row["backend"],
            str(row["block_size"]),
            row["case"].replace(" x ", " × "),
            f"{row['us']:.1f}",
            f"{row['rate']:.2f} {row['unit']}",
            f"{row['share_of_ceiling']:.0%}",
        ]
        for result in results
        for row in result["results"]
    ]
    return table(["card", "backend", "block", "case", "µs", "rate", "share"], rows)


def compare_hf() -> list[str]:
    """与 transformers 相比；每格是本引擎 / transformers。

    Beside transformers; each cell is this engine / transformers.
    """
    rows = []
    for result in load("compare_hf"):
        where = f"{card(result)}, {NAMES[result['model']]}, {result['environment']['dtype'].removeprefix('torch.')}"
        for row in result["results"]:
            pairs = [
                " / ".join(f"{row[s + key]:,.{digits}f}" for s in ("ours_", "theirs_") if s + key in row) or "–"
                for key, digits in (("tok_per_s", 0), ("ttft_ms", 1), ("tpot_ms", 1), ("peak_gb", 2))
            ]
            span = f"{row['ratio']['min']:.2f}–{row['ratio']['max']:.2f}"
            equal = f"{row['equal_tokens']:.0%}" if "equal_tokens" in row else "–"
            rows.append([where, row["workload"], pairs[0], f"{row['ratio']['median']:.2f} ({span})", *pairs[1:], equal])
    return table(
        ["where", "workload", "tok/s", "ratio", "first token ms", "ms a token", "peak GB", "equal tokens"], rows
    )


def quantization() -> list[str]:
    """量化与不量化；时间是几遍的中位数。

    Quantized and not; times are the median of the runs.
    """
    rows = []
    for result in load("quantization"):
        for row in result["results"]:
            bytes_of = [f"{row[key] / unit:,.0f}" if key in row else "–"
                        for key, unit in (("weight_bytes", 1e6), ("kv_bytes", 1))]  # fmt: skip
            times = [f"{row['first']['median']:,.0f}", f"{row['later']['median']:.1f}", f"{row['ratio']:.2f}"]
            rows.append([f"{card(result)}, {NAMES[result['model']]}", row["name"], *times, *bytes_of])
    head = ["where", "numbers", "first token ms", "ms a token", "ratio", "weights MB", "KV cache bytes a token"]
    return table(head, rows)


def speculation() -> list[str]:
    """猜与不猜；各数是几遍的中位数。

    With guesses and without; figures are the median of the runs.
    """
    rows = []
    for result in load("speculation"):
        where = f"{card(result)}, {NAMES[result['model']]}, temperature {result['temperature']:g}"
        for row in result["results"]:
            share = f"{row['accepted']['median']:.0%}" if row["drafted_steps"]["max"] else "–"
            steps = [f"{row['tokens_per_step']['median']:.2f}", f"{row['drafted_steps']['median']:.0%}", share]
            rows.append([where, row["name"], f"{row['tok_per_s']['median']:,.0f}", f"{row['ratio']:.2f}", *steps])
    return table(["where", "guesses", "tok/s", "ratio", "tokens a step", "steps with guesses", "accepted"], rows)


def structured() -> list[str]:
    """有语法与没有语法；时间是几遍的中位数。

    With a grammar and without; times are the median of the runs.
    """
    rows = []
    for result in load("structured"):
        compiled = {row["name"]: row["compile_ms"]["median"] for row in result["results"] if "compile_ms" in row}
        used = set()
        for row in result["results"]:
            if "requests" in row:
                parts = [f"{row[key]['median']:.1f}" if key in row else "–" for key in ("mask_us", "advance_us")]
                compiling = f"{compiled[row['name']]:.2f}" if row["name"] in compiled else "–"
                used.add(row["name"])
                times = [f"{row['ms_a_token']['median']:.2f}", f"{row['ratio']['median']:.2f}", *parts, compiling]
                rows.append([f"{card(result)}, {NAMES[result['model']]}", row["name"], str(row["requests"]), *times])
        for name in sorted(compiled.keys() - used):
            where = f"{card(result)}, {NAMES[result['model']]}"
            rows.append([where, f"{name} grammar", "–", "–", "–", "–", "–", f"{compiled[name]:.0f}"])
    head = ["where", "grammar", "requests", "ms a token", "ratio", "mask µs", "advance µs", "compiled in ms"]
    return table(head, rows)


def ranks() -> list[str]:
    """同一台机器上，几个 GPU 合算一个模型，与一个 GPU 相比；几遍里最好的。

    Several GPUs of one machine that share a model beside one of them; the best of the runs.
    """
    alone: dict[tuple[str, str], Any] = {}
    rows = []
    for result in sorted(load("ranks"), key=lambda result: result["environment"]["ranks"]):
        where, number = (card(result), NAMES[result["model"]]), result["environment"]["ranks"]
        base = alone.setdefault(where, result["results"])
        if number == 1:
            continue
        for work, figures in result["results"].items():
            for metric, values in figures.items():
                best = [(max if metric.endswith("per_s") else min)(each["min"], each["max"])
                        for each in (values, base[work][metric])]  # fmt: skip
                cells = [cell(metric, base[work][metric]), cell(metric, values), f"{best[0] / best[1]:.2f}"]
                rows.append([", ".join(where), str(number), work, METRICS[metric][0], *cells])
    return table(["where", "GPUs", "workload", "figure", "1 GPU", "all", "ratio"], rows)


def all_reduce() -> list[str]:
    """一次 all-reduce 的微秒数；几遍的中位数。

    Microseconds of an all-reduce; the median of the runs.
    """
    rows = []
    for result in load("all_reduce"):
        for row in result["results"]:
            times = [f"{row['us'][name]['median']:.1f}" if name in row["us"] else "–"
                     for name in ("nccl", "one-shot", "two-shot")]  # fmt: skip
            size = f"{row['rows'] * result['hidden_size'] * 2:,}"
            rows.append([f"{result['ranks']} × {card(result)}", str(row["rows"]), size, *times])
    return table(["where", "rows", "bytes", "NCCL µs", "one-shot µs", "two-shot µs"], rows)


TABLES: tuple[Callable[[], list[str]], ...] = (
    setting, workloads, first, attention, compare_hf, quantization, speculation, structured, ranks, all_reduce,
)


def rewrite(chapter: str) -> str:
    """一章里，两行标记之间的表换成现在的结果。

    A chapter with the tables between its marks replaced by the results that are there now.
    """
    for make in TABLES:
        mark = f"<!-- benchmarks/report.py: {make.__name__} -->"
        new = "\n".join([mark, "", *make(), "", "<!-- end -->"])
        chapter, count = re.subn(rf"{re.escape(mark)}.*?<!-- end -->", lambda _, new=new: new, chapter, flags=re.S)
        if count != 1:
            raise ValueError(f"{mark} stands {count} times in the chapter: it must stand once, with <!-- end --> below")
    return chapter


def main() -> None:
    """打印各张表，或者写进文档。

    Print the tables, or write them into the docs.
    """
    parser = argparse.ArgumentParser(description="结果的表和图 / tables and plot of the results")
    parser.add_argument("--write", action="store_true", help="写进文档 / write them into the docs")
    if not parser.parse_args().write:
        for make in TABLES:
            print("\n".join([*make(), ""]))
        return
    for language in ("en", "zh"):
        path = DOCS / language / "performance.md"
        path.write_text(rewrite(path.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "performance.svg").write_text(draw(by_card()), encoding="utf-8")


if __name__ == "__main__":
    main()
