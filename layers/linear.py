"""线性层：普通的一个，和把几个矩阵并成一次乘法的一个。

张量并行时，`StackedLinear` 按输出维（权重的第 0 维）切，其后的 o_proj、down_proj 按输入维（第 1 维）切，
再求和，见 `layers/ranks.py`。

Linear layers: a plain one, and one that makes several matrices a single product.

With tensor parallelism `StackedLinear` is cut along its outputs (dimension 0 of the weight), and what follows it,
o_proj and down_proj, along its inputs (dimension 1), with a sum behind it; see `layers/ranks.py`.
"""

from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.kernels import FusedKernels


class Linear(nn.Module):
    """y = x·Wᵀ + b，权重形状与 safetensors 文件里的一致：[out_features, in_features]。

    y = x·Wᵀ + b, the weight shaped as in the safetensors file: [out_features, in_features].

    Attributes:
        kernels: 融合核函数，由 `LlamaForCausalLM.use_kernels` 设置；fused ones, set by `LlamaForCausalLM.use_kernels`
        packed: `kernels.pack` 由权重另存的一份；what `kernels.pack` made of the weight
    """

    kernels: FusedKernels | None = None
    packed: Any = None

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        # Llama 3.2 和 Qwen3 的线性层都没有偏置，`config.json` 里写着 `attention_bias` 为假。
        # The linear layers of Llama 3.2 and Qwen3 have no bias: `config.json` sets `attention_bias` to false.
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """矩阵乘法。

        The product.

        Args:
            x: [T, in_features]

        Returns:
            [T, out_features]
        """
        return self.product(x, self.bias)  # [T, out_features]

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """乘上权重，加上给出的偏置。

        Times the weight, plus the bias that is given.
        """
        # 权重的每一行与 x 做一次点积，得到输出的一个分量：
        # Each row of the weight makes a dot product with x, and that is one component of the output:
        #     x = [1, 2]    W = [[1, 0], [0, 1], [1, 1]]    y = [1, 2, 3]
        # 解码 1 行时，时间全花在读权重上；32 行一起算，权重仍只读 1 遍，在 GPU 上几乎不更慢。
        # Decoding 1 row, all the time goes into reading weights; 32 rows read them 1 time, too, and take hardly longer.
        if self.kernels is not None:
            return self.kernels.linear(x, self.weight, bias, self.packed)  # [T, out_features]
        return F.linear(x, self.weight, bias)  # [T, out_features]


class StackedLinear(Linear):
    """几个输入相同的线性层并成一个：q、k、v 三次乘法变一次，gate、up 两次变一次。

    解码时每次乘法都要把权重从内存读一遍，次数少、每次大，才跑得满带宽。
    例：Llama-3.2-1B 的 q 有 2048 行，k、v 各 512 行，共 3072 行，k 占 2048 到 2559。

    Several linear layers with the same input as one: the three products of q, k, v become one, the two of gate and
    up become one. Decoding reads every weight once per step; few large products use the bandwidth best.
    Example: in Llama-3.2-1B q has 2048 rows, k and v 512 each, 3072 in all; k has rows 2048 to 2559.

    Attributes:
        pieces: 文件里的名字 -> 它占拼接权重的哪些行，按次序；加载器逐段填写；
            checkpoint name -> its rows of the stacked weight, in order; the loader fills them one by one
    """

    def __init__(self, in_features: int, sizes: dict[str, int], bias: bool = False) -> None:
        # 输出的每个分量只用到权重的一行，所以把几个矩阵上下叠起来，等于把它们的输出首尾相接。
        # Each output uses one row of the weight only, so stacking matrices by rows joins their outputs end to end.
        super().__init__(in_features, sum(sizes.values()), bias)
        # 例：q 64 行、k 16 行、v 16 行：q 占 0 到 63，k 占 64 到 79，v 占 80 到 95。
        # Example: q 64 rows, k 16, v 16: q has rows 0 to 63, k has 64 to 79, v has 80 to 95.
        # Python 的字典记得插入次序；前向里 `split` 的次序必须与它相同，错了不会报错，因为 k 和 v 一样大。
        # A dict keeps its order, which `split` must use; k and v are equally large, and a mix-up raises no error.
        ends = accumulate(sizes.values())
        self.pieces = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends)}
