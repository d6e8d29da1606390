"""线性层：普通的一个，和把几个矩阵并成一次乘法的一个。

将来做张量并行时要切的维度在这里就看得出来：`FusedLinear` 按输出维（权重的第 0 维）切，
其后的 `Linear`（o_proj、down_proj）按输入维（权重的第 1 维）切，再求和。

Linear layers: a plain one, and one that makes several matrices a single product.

Where tensor parallelism would cut is visible here: `FusedLinear` along its outputs (dimension 0 of the weight), the
`Linear` that follows it (o_proj, down_proj) along its inputs (dimension 1 of the weight), followed by a sum.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x·Wᵀ + b，权重形状与 safetensors 文件里的一致：[out_features, in_features]。

    y = x·Wᵀ + b, the weight shaped as in the safetensors file: [out_features, in_features].
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        # 在 CPU 上按转置的次序存放（形状不变）：解码时 x 只有 1 行，这样读权重更快。
        # On the CPU store it in transposed order (same shape): decoding has 1 row of x, and weights then read faster.
        if torch.get_default_device().type == "cpu":
            weight = torch.empty(in_features, out_features).t()
        else:
            weight = torch.empty(out_features, in_features)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """矩阵乘法。

        The product.

        Args:
            x: [T, in_features]

        Returns:
            [T, out_features]
        """
        return F.linear(x, self.weight, self.bias)


class FusedLinear(Linear):
    """几个输入相同的线性层并成一个：q、k、v 三次乘法变一次，gate、up 两次变一次。

    解码时每次乘法都要把权重从内存读一遍，次数少、每次大，才跑得满带宽。

    Several linear layers with the same input as one: the three products of q, k, v become one, the two of gate and
    up become one. Decoding reads every weight once per step; few large products use the bandwidth best.

    Attributes:
        pieces: checkpoint name -> its rows of the fused weight, in order; the loader fills them one by one
    """

    def __init__(self, in_features: int, sizes: dict[str, int], bias: bool = False) -> None:
        super().__init__(in_features, sum(sizes.values()), bias)
        self.pieces: dict[str, slice] = {}
        start = 0
        # 例：q 64 行、k 16 行、v 16 行：q 占 0 到 63，k 占 64 到 79，v 占 80 到 95。
        # Example: q 64 rows, k 16, v 16: q has rows 0 to 63, k has 64 to 79, v has 80 to 95.
        for name, size in sizes.items():
            self.pieces[name] = slice(start, start + size)
            start += size
