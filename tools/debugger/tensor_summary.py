"""用一行文字概括一个张量，供调试器显示。
Sum up a tensor in one line, for the debugger to show.

    Tensor[3, 8, 64] float32 cpu | 0.12 -1.5 0.33 … | min -3.1 max 2.9
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHOWN_VALUES = 6
# 更大的张量（例如整个 KV 缓存）不求极值，否则每走一步调试器都要等它。
# Larger tensors (a whole KV cache, say) get no extremes: the debugger would wait for them at every step.
MAX_ELEMENTS_FOR_EXTREMES = 4_194_304


def _number(value: bool | int | float | complex) -> str:
    return f"{value:.4g}" if isinstance(value, (float, complex)) else str(value)


def _head(tensor: torch.Tensor) -> str:
    # 只切出开头几个值再搬到 CPU，不展平也不复制整个张量。
    # Only the first few values are cut out and moved to the CPU; the whole is neither flattened nor copied.
    head = tensor
    while head.dim() > 1:
        head = head[0] if head.shape[1:].numel() >= SHOWN_VALUES else head[:SHOWN_VALUES].reshape(-1)
    shown = [_number(value) for value in head.reshape(-1)[:SHOWN_VALUES].tolist()]
    return " ".join(shown) + (" …" if tensor.numel() > len(shown) else "")


def _extremes(tensor: torch.Tensor) -> str:
    if tensor.dtype.is_complex or not 1 < tensor.numel() <= MAX_ELEMENTS_FOR_EXTREMES:
        return ""
    if not tensor.is_floating_point():
        return f"min {_number(tensor.min().item())} max {_number(tensor.max().item())}"
    # float8 等类型没有 min 和 max，先转成 float32；极值不计 NaN，NaN 的个数单独列出。
    # Types such as float8 have no min and max, so float32 first; NaNs do not count for them, their number
    # stands apart.
    plain = tensor.float() if tensor.dtype.itemsize < 4 else tensor
    numbers = plain[~plain.isnan()]
    text = f"min {_number(numbers.min().item())} max {_number(numbers.max().item())}" if len(numbers) else ""
    missing = tensor.numel() - len(numbers)
    return f"{text} NaN {missing}".strip() if missing else text


def summarize(tensor: torch.Tensor) -> str:
    """返回形状、类型、设备、开头几个值、最小值和最大值；有 NaN 时给出个数。
    Return shape, dtype, device, the first few values, minimum and maximum; with NaNs, their number.

    读不出值的张量（`meta` 设备、稀疏布局、正在捕获的 CUDA graph）只显示形状、类型和设备，绝不抛出异常。
    A tensor whose values cannot be read (`meta` device, sparse layout, a CUDA graph being captured) shows
    only shape, dtype and device; nothing is ever raised.
    """
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    parts = [f"{type(tensor).__name__}{list(tensor.shape)} {dtype} {tensor.device}"]
    # 捕获 CUDA graph 时读值会同步设备，使捕获失败，所以连试都不能试。
    # While a CUDA graph is captured, reading values would synchronise and break the capture: not even a try.
    capturing = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    if tensor.is_meta or tensor.numel() == 0 or capturing:
        return parts[0]
    for describe in (_head, _extremes):
        # 有的类型或布局不支持某种运算：少显示一段，好过调试器报错。
        # Some dtype or layout lacks some operation: one part less is better than an error in the debugger.
        with contextlib.suppress(Exception), torch.no_grad():
            parts.append(describe(tensor.detach()))
    return " | ".join(part for part in parts if part)
