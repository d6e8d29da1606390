"""SwiGLU 激活：MLP 里的门控，调用者是 `models/llama.py`。

The SwiGLU activation: the gate inside the MLP; `models/llama.py` calls it.
"""

import torch.nn.functional as F
from torch import Tensor


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU：silu(gate) * up，其中 silu(x) = x * sigmoid(x)。

    例：1 个 token，`intermediate_size` 为 2，`gate_up` 这一行是 [1, -3, 10, 10]：

    SwiGLU: silu(gate) * up, where silu(x) = x * sigmoid(x).
    For example, 1 token, an `intermediate_size` of 2, and the row of `gate_up` is [1, -3, 10, 10]:

        gate = [1, -3]                  up = [10, 10]
        silu(1) = 1 * 0.731 = 0.731     silu(-3) = -3 * 0.047 = -0.142
        silu(gate) * up = [7.31, -1.42]

    Source: Shazeer 2020, "GLU Variants Improve Transformer".

    Args:
        gate_up: [T, 2 * intermediate_size]，同一次拼接乘法得到的两半；both halves from one stacked product

    Returns:
        [T, intermediate_size]
    """
    # 前一半是 gate，后一半是 up：gate 接近 0 的通道就被关掉。
    # The first half is the gate, the second the gated value: a channel whose gate is near 0 is shut.
    # 顺序由 `LlamaMLP` 里的 `sizes` 决定：gate 在前。写反了形状照样对得上，不会报错，只是输出全成胡话。
    # The order comes from `sizes` in `LlamaMLP`: gate first. Swapped, all shapes still fit; the output is nonsense.
    gate, up = gate_up.chunk(2, dim=-1)  # [T, intermediate_size]
    return F.silu(gate) * up  # [T, intermediate_size]
