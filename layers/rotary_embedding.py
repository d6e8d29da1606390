"""旋转位置编码（RoPE）：把 q、k 的每对分量旋转一个与位置成正比的角度，让点积只取决于相对距离。

Rotary position embedding (RoPE): rotate each pair of q and k components by an angle proportional to the position, so
that their dot product depends on the distance alone.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from backends.kernels import FusedKernels


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """让模型看得比训练时更远的规则；这一种最简单，即 `linear`：所有频率除以 `factor`。

    A rule that lets a model see further than it was trained; this one is the simplest, `linear`: every frequency is
    divided by `factor`.
    """

    factor: float
    # 只有 YaRN 不是 1：q 和 k 都乘了它，所以点积放大它的平方倍。
    # Other than 1 with YaRN alone: q and k are both multiplied by it, so dot products grow by its square.
    attention_factor: float = field(default=1.0, kw_only=True)

    def frequencies(self, waves: Tensor, theta: float) -> Tensor:
        """缩放之后的频率。

        The frequencies after scaling.

        Args:
            waves: [D // 2] float32，每对分量转 1 弧度要几个位置；positions that 1 radian of each pair takes

        Returns:
            [D // 2] float32
        """
        # `factor` 为 4 时，位置 4000 的角度就是原来位置 1000 的：没有新的角度，代价是相邻位置只差原来的 0.25。
        # With a `factor` of 4, position 4000 has the old angle of 1000: none new, but neighbours are 0.25 as far apart.
        return 1.0 / waves / self.factor  # [D // 2]


@dataclass(frozen=True, slots=True)
class Llama3Scaling(RopeScaling):
    """Llama 3.1 起的规则：波长短的不动，波长长的除以 `factor`，中间平滑过渡。

    模型因此能看到比训练时更远的位置，近处的感觉却不变。

    The rule of Llama 3.1 and later: short wavelengths stay, long ones are divided by `factor`, blended in between; so
    the model reaches further than it was trained, and what is near feels as before.
    """

    # Llama 3.2 的值：`factor` 32（Llama 3.1 是 8），low 1，high 4，原训练长度 8192。
    # The values of Llama 3.2: `factor` 32 (8 in Llama 3.1), low 1, high 4, and an original length of 8192.
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def frequencies(self, waves: Tensor, theta: float) -> Tensor:
        """见 `RopeScaling.frequencies`。

        See `RopeScaling.frequencies`.
        """
        frequencies = 1.0 / waves  # [D // 2]
        # 一个波长在原训练长度里转了几圈：Llama 3.2 的原长是 8192，波长 2048 转 4 圈。
        # Turns within the original training length: for Llama 3.2's 8192, a wavelength of 2048 makes 4 turns.
        turns = self.original_max_position_embeddings / (2 * math.pi / frequencies)  # [D // 2]
        low, high = self.low_freq_factor, self.high_freq_factor
        # `smooth` 是“保留原频率”的比例：转满 `high` 圈以上为 1，不足 `low` 圈为 0，中间线性。
        # `smooth` is the share of the original frequency: 1 from `high` turns up, 0 below `low`, linear in between.
        # 1B 的 32 对：0 到 14 不动；18 到 31 除以 32；15 到 17 在中间。断点停在这里，看 `smooth` 从 1 降到 0。
        # Of the 1B's 32 pairs, 0 to 14 stay, 18 to 31 are divided by 32, 15 to 17 lie in between: stop here and watch
        # `smooth` fall from 1 to 0.
        smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # [D // 2]
        # 例：波长 4096 转 2 圈，`smooth` = (2 - 1) / (4 - 1) = 0.333，新频率是原来的 0.667 / 32 + 0.333 = 0.354 倍。
        # A wavelength of 4096 has 2 turns: `smooth` = (2 - 1) / (4 - 1) = 0.333, factor 0.667 / 32 + 0.333 = 0.354.
        return (1 - smooth) * frequencies / self.factor + smooth * frequencies  # [D // 2]


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """每对分量每前进一个位置转多少弧度。

    第 0 对转得最快，最后一对最慢：freq_i = theta^(-2i / head_dim)。像钟表的秒针和时针：快的分辨相邻的 token，
    慢的分辨相隔几万的 token，合在一起每个位置都不同。

    Radians that each pair of components turns per position.
    Pair 0 is the fastest, the last the slowest: freq_i = theta^(-2i / head_dim). Like the hands of a clock: fast ones
    tell neighbours apart, slow ones what is far away; together all positions differ.
    Source: Su et al. 2021, "RoFormer"; the llama3 rule as published with Llama 3.1.

    Returns:
        [head_dim // 2] float32
    """
    # 先转 float32 再除：整数张量相除得到默认 dtype，调用者的程序若把它设成 bf16，频率就只剩 8 位有效数字。
    # To float32 first: ints divide to the default dtype, and if a caller set it to bf16, 8 significant bits remain.
    # 写明 CPU：不同设备的 pow 可能差最后一位，位置一大，角度就差得多；搭架子用的 `meta` 设备则什么也不算。
    # The CPU by name: elsewhere pow may differ in the last bit, and positions magnify it; and `meta` computes nothing.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim  # [D // 2]
    # Llama-3.2-1B（64 维、theta 500000）：第 0 对 6.28 个位置一圈，第 31 对要 2084765 个位置才转一圈。
    # Llama-3.2-1B (64 dims, theta 500000): pair 0 makes a full turn in 6.28 positions; pair 31 needs 2084765.
    waves = theta**exponents  # [D // 2]
    return 1.0 / waves if scaling is None else scaling.frequencies(waves, theta)  # [D // 2]


class RotaryEmbedding(nn.Module):
    """由位置算出 cos、sin；一步只算一次，所有层共用。

    Turn positions into cos and sin, once per step for all layers.
    """

    kernels: FusedKernels | None = None

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
        super().__init__()
        self.attention_factor = 1.0 if scaling is None else scaling.attention_factor
        # 缓冲区而不是参数：它不在权重文件里（`persistent=False`），也必须始终是 float32。
        # A buffer and no parameter: it is in no weight file (`persistent=False`) and must stay float32.
        # 所以加载时只换它的设备；`model.to(torch.bfloat16)` 会连它一起转换，长文本的位置就乱了：这是很常见的错误。
        # Loading therefore moves its device only; `model.to(torch.bfloat16)` would convert it too, and long texts would
        # lose their positions: a common bug.
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", inverse_frequencies(head_dim, theta, scaling), persistent=False)  # [D // 2]

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos 和 sin 表，每个 token 一行。

        The cos and sin of each token's angles.

        Args:
            positions: [T] int64

        Returns:
            cos, sin: [T, head_dim // 2] float32，有融合核函数时是它要的形状；with kernels, in the shape that these want
        """
        if self.kernels is not None:
            cos, sin = self.kernels.rotary(positions, self.inv_freq)
        else:
            # 位置会超过 100000，bf16 连 257 都表示不了，角度必须用 float32 算。
            # Positions exceed 100000 while bf16 cannot even hold 257, so angles are float32.
            # 例：位置 3，频率 [1, 0.01]，角度是 [3, 0.03] 弧度。各序列的 token 混在一批里也没关系，每行只看自己的位置。
            # Example: position 3 and frequencies [1, 0.01] give angles [3, 0.03] in radians.
            # Sequences may mix in a batch: each row knows its own position.
            angles = positions[:, None].float() * self.inv_freq  # [T, head_dim // 2]
            cos, sin = angles.cos(), angles.sin()  # [T, head_dim // 2]
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos, sin  # [T, head_dim // 2]


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """旋转每个头的分量对 (x[i], x[i + D/2])，这是 Hugging Face 权重采用的配对方式。

    例：(1, 0) 转 90 度，cos 是 0，sin 是 1，得到 (0, 1)。点积只看相对距离：q 和 k 都是 (1, 0)，在位置 5 和 3，
    或在 105 和 103，都得到 cos(2) = -0.416。

    Rotate each head's pairs (x[i], x[i + D/2]), the pairing that Hugging Face weights use.
    For example, (1, 0) turned by 90 degrees, with a cos of 0 and a sin of 1, becomes (0, 1). Only the distance counts
    in a dot product: with q and k both (1, 0), positions 5 and 3, or 105 and 103, give cos(2) = -0.416 alike.

    Args:
        x: [T, heads, D]
        cos, sin: [T, D // 2]

    Returns:
        [T, heads, D]，dtype 与 x 相同；dtype of x
    """
    # 插入的这一维会广播到所有头：同一个 token 的各个头转同样的角度。
    # The new dimension broadcasts over the heads: all heads of a token turn by the same angles.
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, D // 2]
    # 配对是 (x[0], x[2])、(x[1], x[3])（D = 4），不是论文里相邻的 (x[0], x[1])。用错了不会报错，模型却只会说胡话。
    # Pairs are (x[0], x[2]) and (x[1], x[3]) for D = 4, not the paper's (x[0], x[1]): no error, but nonsense.
    first, second = x.chunk(2, dim=-1)  # [T, heads, D // 2]
    # 二维旋转矩阵 [[cos, -sin], [sin, cos]] 作用在 (first, second) 上；与 float32 的 cos 相乘时自动升到 float32。
    # The rotation [[cos, -sin], [sin, cos]] on (first, second); multiplying by float32 cos promotes to float32.
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)  # [T, heads, D]
