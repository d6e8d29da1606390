"""旋转位置编码（RoPE）：把 q、k 的每对分量旋转一个与位置成正比的角度，让点积只取决于相对距离。

Rotary position embedding (RoPE): rotate each pair of q and k components by an angle proportional to the position, so
that their dot product depends on the distance alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1 起的长上下文缩放参数，含义见 `inverse_frequencies`。

    The long-context scaling of Llama 3.1 and later; `inverse_frequencies` explains the fields.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def inverse_frequencies(head_dim: int, theta: float, scaling: Llama3Scaling | None) -> Tensor:
    """每对分量每前进一个位置转多少弧度。

    第 0 对转得最快（分辨近处），最后一对最慢（分辨远处）：freq_i = theta^(-2i / head_dim)。
    llama3 缩放：波长短的不动，波长长的除以 `factor`，中间平滑过渡；
    于是模型能看到比训练时更远的位置，近处的感觉却不变。

    Radians that each pair of components turns per position.
    Pair 0 is the fastest (it tells near positions apart), the last the slowest: freq_i = theta^(-2i / head_dim).
    llama3 scaling keeps short wavelengths, divides long ones by `factor`, and blends in between; so the model reaches
    further than it was trained, and what is near feels as before.
    Source: Su et al. 2021, "RoFormer"; the llama3 rule as published with Llama 3.1.

    Returns:
        [head_dim // 2] float32
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    frequencies = 1.0 / (theta**exponents)
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    # 一个波长在原训练长度里转了几圈：Llama 3.2 的原长是 8192，波长 2048 转 4 圈。
    # Turns within the original training length: for Llama 3.2's 8192, a wavelength of 2048 makes 4 turns.
    turns = scaling.original_max_position_embeddings / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # `smooth` 是“保留原频率”的比例：转满 `high` 圈以上为 1，不足 `low` 圈为 0，中间线性。
    # `smooth` is the share of the original frequency: 1 from `high` turns up, 0 below `low`, linear in between.
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


class RotaryEmbedding(nn.Module):
    """由位置算出 cos、sin；一步只算一次，所有层共用。

    Turn positions into cos and sin, once per step for all layers.
    """

    def __init__(self, head_dim: int, theta: float, scaling: Llama3Scaling | None) -> None:
        super().__init__()
        # 普通属性而不是参数：它不在权重文件里，也必须始终是 float32。
        # A plain attribute, not a parameter: it is in no weight file and must stay float32.
        self.inv_freq = inverse_frequencies(head_dim, theta, scaling).to(torch.get_default_device())

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos 和 sin 表，每个 token 一行。

        The cos and sin of each token's angles.

        Args:
            positions: [T] int64

        Returns:
            cos, sin: [T, head_dim // 2] float32
        """
        # 位置会超过 100000，bf16 连 257 都表示不了，角度必须用 float32 算。
        # Positions exceed 100000 while bf16 cannot even hold 257, so angles are float32.
        angles = positions[:, None].float() * self.inv_freq  # [T, head_dim // 2]
        return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """旋转每个头的分量对 (x[i], x[i + D/2])，这是 Hugging Face 权重采用的配对方式。

    Rotate each head's pairs (x[i], x[i + D/2]), the pairing that Hugging Face weights use.

    Args:
        x: [T, heads, D]
        cos, sin: [T, D // 2]

    Returns:
        [T, heads, D], dtype of x
    """
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, D // 2]
    first, second = x.chunk(2, dim=-1)
    # 二维旋转矩阵 [[cos, -sin], [sin, cos]] 作用在 (first, second) 上；与 float32 的 cos 相乘时自动升到 float32。
    # The rotation [[cos, -sin], [sin, cos]] on (first, second); multiplying by float32 cos promotes to float32.
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
