"""滑动窗口：Mistral 和 Qwen 的配置里有它，真正用它的模型却很少；这里看清楚用没用。

你在这里：`config.py` 读配置时来问；窗口比能到的长度小，就成了长度的上限。

Sliding windows: the configurations of Mistral and Qwen have one, yet few models use it; here it is made out whether
they do.

You are here: `config.py` asks while it reads the configuration; a window smaller than the length limits the length.
"""

from typing import Any

from models.fields import ModelLoadError, flag, positive_int


def read_window(raw: dict[str, Any], num_layers: int, length: int) -> int | None:
    """有效的滑动窗口；没有窗口，没有一层用它，或它不小于能到的长度 `length`，返回 None。

    The sliding window that is in force; None if there is none, if no layer uses it, or if it is no smaller than
    `length`, the length that the model reaches.
    """
    if not flag(raw, "use_sliding_window", "sliding_window" in raw):
        return None
    # Qwen 的文件写明哪些层用窗口：逐层列出，或者从第 `max_window_layers` 层起。
    # Qwen's files say which layers use it: one by one, or those from layer `max_window_layers` on.
    kinds, first = raw.get("layer_types") or [], raw.get("max_window_layers", 0)
    if not isinstance(kinds, list) or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise ModelLoadError(f"config.json: layer_types={kinds!r:.60} is not supported: only full_attention is")
    if ("sliding_attention" not in kinds) if kinds else isinstance(first, int) and first >= num_layers:
        return None
    if "sliding_window" not in raw:
        raise ModelLoadError("config.json: use_sliding_window=True without sliding_window: set it to false")
    window = positive_int(raw, "sliding_window")
    return window if window < length else None
