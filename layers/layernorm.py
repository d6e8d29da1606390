"""RMSNorm：每层进注意力和进 MLP 之前，把每个 token 的向量缩放到同样的“大小”。

RMSNorm: before attention and before the MLP, scale each token's vector to the same size.
"""

import torch
from torch import Tensor, nn

from backends.kernels import FusedKernels


class RMSNorm(nn.Module):
    """均方根归一化：x / sqrt(mean(x²) + eps) * weight，只缩放，不减均值。

    Root-mean-square normalisation: x / sqrt(mean(x²) + eps) * weight; it scales and subtracts no mean.
    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """

    kernels: FusedKernels | None = None

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)  # [size]
        # `eps`（Llama 3.2 是 1e-5）只为防止全 0 的向量除以 0；平时它比均方小得多，不影响结果。
        # `eps` (1e-5 in Llama 3.2) only keeps an all-0 vector from dividing by 0; elsewhere it is too small to matter.
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """归一化最后一维；float64 的输入不降精度，跑出来的结果可以当标准答案，检验别的精度。

        Normalise the last dimension; float64 input keeps its precision, so that a run in float64 can judge the others.

        Args:
            x: [..., size]

        Returns:
            [..., size]，dtype 与 x 相同；dtype of x
        """
        # 平方和要在 float32 里算：bf16 里 256 + 1 还是 256；float16 里分量 300 的平方 90000 超过上限 65504，成了 inf。
        # Squares are summed in float32: in bf16 256 + 1 is 256; in float16 300 squared, 90000, is past 65504: inf.
        x32 = x.float() if x.dtype != torch.float64 else x  # [..., size]
        # 例：x = [3, 4]，均方是 12.5，均方根是 3.54，结果 [0.85, 1.13] 的均方根正好是 1。
        # Example: x = [3, 4] has mean square 12.5 and root 3.54; the result [0.85, 1.13] has a root mean square of 1.
        scale = torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + self.eps)  # [..., 1]
        # 先转回原精度，再乘权重，次序与训练时相同。次序反了只差最后一位，但几十层之后可能选出不同的 token。
        # Cast back first, then the weight, as in training: else the last bit differs, and in the end perhaps the token.
        return (x32 * scale).to(x.dtype) * self.weight  # [..., size]

    def add_and_norm(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """把子层的修正加到残差流上，再归一化；有融合核函数时，一次启动做完两件事。

        Add a sub-layer's correction to the residual stream, then normalise; a fused kernel does both in one launch.

        Args:
            x: [T, size]，残差流；the residual stream
            delta: [T, size]，要加上去的；第一层之前没有，为 None；what to add; None at the very first layer

        Returns:
            [T, size], [T, size]，归一化的结果，和新的残差流；the normalised, and the new residual stream
        """
        if self.kernels is not None:
            return self.kernels.add_rms_norm(x, delta, self.weight, self.eps)  # [T, size], [T, size]
        if delta is not None:
            x = x + delta  # [T, size]
        return self(x), x  # [T, size], [T, size]
