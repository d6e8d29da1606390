"""SwiGLU 激活：MLP 里的门控，调用者是 `models/llama.py`。

The SwiGLU activation: the gate inside the MLP; `models/llama.py` calls it.
"""

import torch.nn.functional as F
from torch import Tensor


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU：silu(gate) * up，其中 silu(x) = x * sigmoid(x)。

    SwiGLU: silu(gate) * up, where silu(x) = x * sigmoid(x).
    Source: Shazeer 2020, "GLU Variants Improve Transformer".

    Args:
        gate_up: both halves from one fused product, [T, 2 * intermediate_size]

    Returns:
        [T, intermediate_size]
    """
    # 前一半是门，后一半是被门控的值：门接近 0 的通道就被关掉。
    # The first half is the gate, the second the gated value: a channel whose gate is near 0 is shut.
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
