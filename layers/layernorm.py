"""RMSNorm：每层进注意力和进 MLP 之前，把每个 token 的向量缩放到同样的“大小”。

RMSNorm: before attention and before the MLP, scale each token's vector to the same size.
"""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """均方根归一化：x / sqrt(mean(x²) + eps) * weight，只缩放，不减均值。

    Root-mean-square normalisation: x / sqrt(mean(x²) + eps) * weight; it scales and subtracts no mean.
    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """归一化最后一维。

        Normalise the last dimension.

        Args:
            x: [..., size]

        Returns:
            [..., size], dtype of x
        """
        # 平方和在 bf16 里会丢精度，所以在 float32 里算；先转回原精度，再乘权重，与训练时的做法一致。
        # A sum of squares loses precision in bf16, so use float32; cast back before the weight, as in training.
        x32 = x.float() if x.dtype != torch.float64 else x
        scale = torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + self.eps)  # [..., 1]
        return (x32 * scale).to(x.dtype) * self.weight
