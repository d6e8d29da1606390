"""把 `results/` 里的 JSON 画成一张 SVG：吞吐量，以及每个输出 token 的时间和它的带宽下限。

Draw the JSON of `results/` as an SVG: throughput, and the time per output token beside its limit by bandwidth.

Usage: python benchmarks/plot.py [FILE]      (default: docs/performance.svg)
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# 名字，参数的字节数（bf16），每个 token 的 KV 字节数。
# Name, bytes of the parameters (bf16), bytes of KV for a token.
MODELS = {
    "qwen3-0.6b": ("Qwen3-0.6B", 1.19e9, 114688),
    "llama-3.2-1b-instruct": ("Llama-3.2-1B", 2.47e9, 32768),
    "llama-3.2-3b-instruct": ("Llama-3.2-3B", 6.43e9, 114688),
}
BANDWIDTH = 4.2e12
COLORS = ("#4c78a8", "#f58518", "#54a24b")


def load(kind: str, model: str) -> Any:
    """一份结果。

    One file of results.
    """
    return json.loads((RESULTS / f"{kind}-{model}.json").read_text(encoding="utf-8"))


def text(x: float, y: float, content: str, size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{content}</text>'


def bar(x: float, y: float, width: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="16" fill="{color}"/>'


def draw() -> str:
    """整张图。

    The whole picture.
    """
    parts = [text(10, 24, "random-256, output tokens/s", size=15)]
    rates = {model: load("throughput", model)["tok_per_s"]["median"] for model in MODELS}
    for i, (model, rate) in enumerate(rates.items()):
        y = 40 + 24 * i
        parts += [text(10, y + 13, MODELS[model][0]), bar(130, y, 420 * rate / max(rates.values()), COLORS[i])]
        parts.append(text(136 + 420 * rate / max(rates.values()), y + 13, f"{rate:,.0f}"))
    parts.append(text(10, 146, "ms per output token; black line: weights and KV cache read once at 4.2 TB/s", size=15))
    rows = [(i, model, row) for i, model in enumerate(MODELS) for row in load("latency", model)["results"]]
    longest = max(row["tpot_ms"]["median"] for _, _, row in rows)
    for position, (i, model, row) in enumerate(rows):
        name, weights, kv = MODELS[model]
        n, value = row["n"], row["tpot_ms"]["median"]
        y = 162 + 22 * position + 8 * i
        # 平均上下文：128 个提示词 token，加上 512 个输出的一半。
        # The mean context: 128 prompt tokens and half of the 512 output tokens.
        limit = (weights + n * (128 + 256) * kv) / BANDWIDTH * 1e3
        parts += [text(10, y + 13, f"{name}, n={n}"), bar(150, y, 400 * value / longest, COLORS[i])]
        x = 150 + 400 * limit / longest
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2}" y2="{y + 18}" stroke="black" stroke-width="2"/>')
        parts.append(text(156 + 400 * value / longest, y + 13, f"{value:.2f}"))
    height = 162 + 22 * len(rows) + 30
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="640" height="{height}" fill="white"/>', *parts, "</svg>", ""])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "performance.svg"
    target.write_text(draw(), encoding="utf-8")
