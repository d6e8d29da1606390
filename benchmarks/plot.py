"""把各负载的结果画成一张 SVG：每块卡的吞吐量，以及每个输出 token 的时间和它的带宽下限；`report.py` 用它。

Draw the results of the workloads as an SVG: for each card the throughput, and the time per output token beside its
limit by bandwidth; `report.py` uses it.
"""

from typing import Any

# 名字，参数的字节数（bf16），每个 token 的 KV 字节数。
# Name, bytes of the parameters (bf16), bytes of KV for a token.
MODELS = {
    "qwen3-0.6b": ("Qwen3-0.6B", 1.19e9, 114688),
    "llama-3.2-1b-instruct": ("Llama-3.2-1B", 2.47e9, 32768),
    "llama-3.2-3b-instruct": ("Llama-3.2-3B", 6.43e9, 114688),
}
# 拷贝的带宽，单位 TB/s，由 `attention.py` 测得，往下取整。
# The bandwidth of a copy in TB/s, measured by `attention.py` and rounded down.
BANDWIDTH = {"H100 80GB HBM3": 3.0, "H200": 4.2}
# 各负载解码时有几行，平均的上下文有多长：提示词加上输出的一半。
# How many rows each workload decodes, and their mean context: the prompt and half of the output.
CONTEXT = {"n=1": (1, 384), "n=1, top_p": (1, 384), "n=8": (8, 384), "n=64": (64, 384), "8x16384": (8, 16448)}
COLORS = dict(zip(MODELS, ("#4c78a8", "#f58518", "#54a24b")))


def text(x: float, y: float, content: str, size: int = 13) -> str:
    """一行字。

    A line of text.
    """
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{content}</text>'


def bar(y: float, label: str, share: float, value: str, color: str) -> list[str]:
    """一行：名字，长条，数值。

    One line: its name, the bar and the value.
    """
    width = 300 * share
    shape = f'<rect x="250" y="{y:.1f}" width="{width:.1f}" height="16" fill="{color}"/>'
    return [text(10, y + 13, label), shape, text(256 + width, y + 13, value)]


def draw(cards: dict[str, dict[str, Any]]) -> str:
    """整张图；`cards` 先按卡、再按模型找到各负载的结果。

    The whole picture; `cards` has the results of the workloads by card and then by model.
    """
    parts, y = [], 24.0
    for card, models in cards.items():
        if card not in BANDWIDTH:
            raise ValueError(f"no bandwidth is known for {card}: add it to BANDWIDTH in benchmarks/plot.py")
        for metric, title in (
            ("output_tok_per_s", f"{card}: output tokens/s"),
            ("tpot_ms", f"{card}: ms per output token; line: weights and KV cache read at {BANDWIDTH[card]} TB/s"),
        ):
            rows = [
                (model, work, figures[metric])
                for model, result in models.items()
                for work, figures in result.items()
                if metric in figures
            ]
            parts.append(text(10, y, title, size=15))
            y += 12
            longest = max(values["max"] for _, _, values in rows)
            for model, work, values in rows:
                name, weights, kv = MODELS[model]
                best = values["min"] if metric == "tpot_ms" else values["max"]
                value = f"{best:.2f}" if metric == "tpot_ms" else f"{best:,.0f}"
                parts += bar(y, f"{name}, {work}", best / longest, value, COLORS[model])
                if metric == "tpot_ms":
                    count, context = CONTEXT[work]
                    x = 250 + 300 * (weights + count * context * kv) / BANDWIDTH[card] / 1e9 / longest
                    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2:.1f}" y2="{y + 18:.1f}"'
                    parts.append(f'{line} stroke="black" stroke-width="2"/>')
                y += 22
            y += 30
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {y - 30:.0f}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="640" height="100%" fill="white"/>', *parts, "</svg>", ""])
