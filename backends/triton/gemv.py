"""矩阵乘向量：只有 1 行输入时的线性层，速度的上限就是读一遍权重的时间。

等价的 PyTorch：`F.linear(x, weight, bias)`，其中 x 是 [1, in_features]。

单个请求解码时，一步的时间几乎全花在这里。通用的矩阵乘法是为“多行”准备的，只有 1 行时吃不满带宽；
这里每个程序负责几行权重，沿着输入维一块一块地读，乘加都在寄存器里。

Matrix times vector: a linear layer whose input has 1 row; its limit is the time to read the weight once.

The plain PyTorch: `F.linear(x, weight, bias)` with x of [1, in_features].

With a single request decoding, almost all of a step is spent here. General matrix products are made for many rows and
leave bandwidth unused at 1; here each program takes a few rows of the weight and reads along the inputs tile by tile,
with all sums in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def gemv_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, num_rows,
    SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """一个程序：`BLOCK_N` 个输出。

    One program: `BLOCK_N` outputs.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = n < num_rows
    # 词表那么大的权重有几亿个元素，行号先转 64 位再乘。
    # A weight as large as the vocabulary has hundreds of millions of elements: 64 bits before multiplying.
    rows = weight_ptr + n.to(tl.int64)[:, None] * SIZE
    # 每个线程先攒自己那几列的和，循环结束才跨线程求和：跨线程比乘加贵得多。
    # Each thread sums its own columns first, and threads are added up once at the end: that costs far more.
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, SIZE, BLOCK_K):
        column = start + k
        real = column < SIZE
        x = tl.load(x_ptr + column, mask=real, other=0.0).to(tl.float32)
        w = tl.load(rows + column[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        acc += w.to(tl.float32) * x[None, :]
    out = tl.sum(acc, 1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + n, out.to(out_ptr.dtype.element_ty), mask=inside)


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """启动上面的内核。

    Launch the kernel above.

    Args:
        x: [1, in_features]
        weight: [out_features, in_features], contiguous

    Returns:
        [1, out_features]
    """
    num_rows, size = weight.shape
    out = torch.empty(1, num_rows, dtype=x.dtype, device=x.device)
    # H200 上量过：输入维够大时，一个程序 1 行、一次 512 列最快；输入维小，循环太短，改成 2 行、1024 列。
    # Measured on an H200: with large inputs 1 row a program and 512 columns at a time are fastest; with small ones the
    # loop is too short, so take 2 rows and 1024 columns.
    block_n, block_k = (1, 512) if size >= 3072 else (2, 1024)
    gemv_kernel[(triton.cdiv(num_rows, block_n),)](
        x, weight, x if bias is None else bias, out, num_rows,
        SIZE=size, BLOCK_N=block_n, BLOCK_K=block_k, HAS_BIAS=bias is not None, num_warps=4,
    )  # fmt: skip
    return out
