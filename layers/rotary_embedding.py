"""旋转位置编码（RoPE）：把 q、k 的每对分量旋转一个与位置成正比的角度，让点积只取决于相对距离。

Rotary position embedding (RoPE): rotate each pair of q and k components by an angle proportional to the position, so
that their dot product depends on the distance alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backends.kernels import FusedKernels


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1 起的长上下文缩放参数，含义见 `inverse_frequencies`。

    The long-context scaling of Llama 3.1 and later; `inverse_frequencies` explains the fields.
    """

    # Llama 3.2 的值：`factor` 32（Llama 3.1 是 8），low 1，high 4，原训练长度 8192。
    # The values of Llama 3.2: `factor` 32 (8 in Llama 3.1), low 1, high 4, and an original length of 8192.
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
    # 先转 float32 再除：整数张量相除得到默认 dtype，调用者的程序若把它设成 bf16，频率就只剩 8 位有效数字。
    # To float32 before dividing: a quotient of int tensors has the default dtype, and where the caller's program has
    # set that to bf16, frequencies would keep 8 significant bits.
    # 固定在 CPU 上算：不同设备的 pow 可能差最后一位，位置一大，角度就差得多。
    # Always on the CPU: pow may differ by the last bit between devices, and a large position magnifies that.
    # 写明设备还有一个用处：模型搭在 `meta` 设备上，参数都没有数据，这张频率表却是真的算出来了。
    # To name the device has another use: a model is built on the `meta` device and its parameters have no data, but
    # these frequencies are really computed.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim  # [D // 2]
    # Llama-3.2-1B（64 维、theta 500000）：第 0 对每个位置转 1 弧度，
    # 6.28 个位置一圈；第 31 对要 2084765 个位置才转一圈。
    # Llama-3.2-1B (64 dims, theta 500000): pair 0 turns 1 radian per position,
    # a full turn in 6.28 positions; pair 31 needs 2084765 positions for a turn.
    # 像钟表的秒针和时针：快的分辨相邻的 token，慢的分辨相隔几万的 token，合在一起每个位置都不同。
    # Like the hands of a clock: fast ones tell neighbours apart,
    # slow ones what is far away; together each position differs.
    frequencies = 1.0 / (theta**exponents)  # [D // 2]
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies  # [D // 2]
    # 一个波长在原训练长度里转了几圈：Llama 3.2 的原长是 8192，波长 2048 转 4 圈。
    # Turns within the original training length: for Llama 3.2's 8192, a wavelength of 2048 makes 4 turns.
    turns = scaling.original_max_position_embeddings / wavelengths  # [D // 2]
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # `smooth` 是“保留原频率”的比例：转满 `high` 圈以上为 1，不足 `low` 圈为 0，中间线性。
    # `smooth` is the share of the original frequency: 1 from `high` turns up, 0 below `low`, linear in between.
    # 1B 的 32 对：0 到 14 转满 4 圈以上，不动；18 到 31 不足 1 圈，频率除以 32；15 到 17 在中间。
    # The 32 pairs of the 1B: 0 to 14 make more than 4 turns and stay; 18 to 31 make less than 1 and are divided by 32;
    # 15 to 17 lie in between.
    # `clamp` 代替三个分支：断点停在这里，看 `smooth` 从 1 降到 0。
    # `clamp` replaces three branches: stop here and watch `smooth` fall from 1 to 0.
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # [D // 2]
    # 例：波长 4096 转 2 圈，`smooth` = (2 - 1) / (4 - 1) = 0.333，新频率是原来的 0.667 / 32 + 0.333 = 0.354 倍。
    # Example: a wavelength of 4096 makes 2 turns, `smooth` = (2 - 1) / (4 - 1) = 0.333, and the new frequency is
    # 0.667 / 32 + 0.333 = 0.354 times the old one.
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies  # [D // 2]


class RotaryEmbedding(nn.Module):
    """由位置算出 cos、sin；一步只算一次，所有层共用。

    Turn positions into cos and sin, once per step for all layers.
    """

    kernels: FusedKernels | None = None

    def __init__(self, head_dim: int, theta: float, scaling: Llama3Scaling | None) -> None:
        super().__init__()
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
            cos, sin: [T, head_dim // 2] float32; with kernels, in the shape that these want
        """
        if self.kernels is not None:
            return self.kernels.rotary(positions, self.inv_freq)
        # 位置会超过 100000，bf16 连 257 都表示不了，角度必须用 float32 算。
        # Positions exceed 100000 while bf16 cannot even hold 257, so angles are float32.
        # 例：位置 3，频率 [1, 0.01]，角度是 [3, 0.03] 弧度。各序列的 token 混在一批里也没关系，每行只看自己的位置。
        # Example: position 3 and frequencies [1, 0.01] give angles [3, 0.03] in radians.
        # Sequences may mix in a batch: each row knows its own position.
        angles = positions[:, None].float() * self.inv_freq  # [T, head_dim // 2]
        return angles.cos(), angles.sin()  # [T, head_dim // 2]


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """旋转每个头的分量对 (x[i], x[i + D/2])，这是 Hugging Face 权重采用的配对方式。

    Rotate each head's pairs (x[i], x[i + D/2]), the pairing that Hugging Face weights use.

    Args:
        x: [T, heads, D]
        cos, sin: [T, D // 2]

    Returns:
        [T, heads, D], dtype of x
    """
    # 插入的这一维会广播到所有头：同一个 token 的各个头转同样的角度。
    # The new dimension broadcasts over the heads: all heads of a token turn by the same angles.
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, D // 2]
    # 配对是 (x[0], x[2])、(x[1], x[3])（D = 4），不是论文里相邻的 (x[0], x[1])。用错了不会报错，模型却只会说胡话。
    # Pairs are (x[0], x[2]) and (x[1], x[3]) for D = 4, not the paper's neighbours (x[0], x[1]).
    # The wrong choice raises no error and yields nonsense.
    first, second = x.chunk(2, dim=-1)  # [T, heads, D // 2]
    # 二维旋转矩阵 [[cos, -sin], [sin, cos]] 作用在 (first, second) 上；与 float32 的 cos 相乘时自动升到 float32。
    # The rotation [[cos, -sin], [sin, cos]] on (first, second); multiplying by float32 cos promotes to float32.
    # 例：(1, 0) 转 90 度，cos 是 0，sin 是 1，得到 (0, 1)。
    # Example: (1, 0) turned by 90 degrees, with a cos of 0 and a sin of 1, becomes (0, 1).
    # 只看相对距离：q 和 k 都是 (1, 0)，在位置 5 和 3，或在 105 和 103，点积都是 cos(2) = -0.416。
    # Only the distance counts: with q and k both (1, 0), positions 5 and 3, or 105 and 103, give cos(2) = -0.416 alike.
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)  # [T, heads, D]
