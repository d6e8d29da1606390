"""读量化的权重：`gemv.py` 和 `skinny.py` 边读边还原，行多时先还原一段，再交给 cuBLAS。

编码怎么存，见 `backends/quantized_weight.py`。等价的 PyTorch：`QuantizedWeight.dequantize`。

Reading quantized weights: `gemv.py` and `skinny.py` restore them as they read; with many rows a part is restored first
and goes to cuBLAS. How codes are stored is in `backends/quantized_weight.py`; the plain PyTorch is
`QuantizedWeight.dequantize`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.quantized_weight import GROUP, QuantizedWeight
from backends.triton.launch import await_inputs, early

# 核函数里用的一组几列，和它占几个字节。
# Columns of a group for use in kernels, and the bytes that they take.
CODE_GROUP, GROUP_BYTES = tl.constexpr(GROUP), tl.constexpr(GROUP // 2)
# 传给核函数的权重：编码或浮点数，缩放，中值，一个权重几位；浮点权重没有后两样，随便传什么占位。
# A weight as the kernels take it: codes or floats, scales, zeros, and bits of a weight; a float weight has neither
# scales nor zeros, and anything stands in.
Parts = tuple[Tensor, Tensor, Tensor, int]


def parts_of(weight: Tensor | QuantizedWeight) -> Parts:
    """拆成核函数的参数。

    Take it apart into arguments of the kernels.
    """
    # int8 没有中值，用缩放占位：核函数按 `BITS` 编译，那一份里没有读它的代码。
    # int8 has no zeros and scales stand in: a kernel is compiled for its `BITS`, and that one does not read them.
    if isinstance(weight, QuantizedWeight):
        return weight.codes, weight.scales, weight.scales if weight.zeros is None else weight.zeros, weight.bits
    return weight, weight, weight, 16


@triton.jit
def int4_tile(
    codes_ptr, scale_ptr, zero_ptr, row, first, inside, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    """`BLOCK_N` 行、从第 `first` 组起 `BLOCK_G` 组的权重，float32；分成偶数列和奇数列，因为一个字节里正好各有一个。

    Weights of `BLOCK_N` rows and `BLOCK_G` groups from group `first` on, in float32; even and odd columns apart, as a
    byte holds one of each.

    Returns:
        [BLOCK_N, BLOCK_G * GROUP_BYTES]，偶数列和奇数列；even and odd columns
    """
    # 最后一次可能越过行末：多出的组掩码为假，编码、缩放、中值都读成 0，乘出来也是 0。
    # The last round may run past a row's end: the groups beyond are masked, and codes, scales and zeros read as 0 make
    # products of 0.
    group = first + tl.arange(0, BLOCK_G)
    real = inside[:, None] & (group < GROUPS)[None, :]
    place = row.to(tl.int64)[:, None] * GROUPS + group[None, :]  # [BLOCK_N, BLOCK_G]
    # 一组 32 列是相邻的 16 个字节，一个线程正好一次取走；缩放和中值一组各读一次。
    # A group of 32 columns is 16 bytes side by side, which a thread takes at once; scale and zero are read once each.
    byte = place[:, :, None] * GROUP_BYTES + tl.arange(0, GROUP_BYTES)[None, None, :]  # [BLOCK_N, BLOCK_G, 16]
    codes = tl.load(codes_ptr + byte, mask=real[:, :, None], other=0)
    # `[:, :, None]` 让一个缩放广播给组里的 16 个字节。
    # `[:, :, None]` broadcasts a scale to the 16 bytes of its group.
    scale = tl.load(scale_ptr + place, mask=real, other=0.0).to(tl.float32)[:, :, None]
    zero = tl.load(zero_ptr + place, mask=real, other=0.0).to(tl.float32)[:, :, None]
    # 低 4 位是偶数列，高 4 位是奇数列。例：字节 0xA3 是编码 3 和 10，减 8 得 -5 和 2 步。
    # The low 4 bits are the even column, the high ones the odd. Example: byte 0xA3 is codes 3 and 10, less 8 they are
    # -5 and 2 steps.
    even = ((codes & 15).to(tl.float32) - 8) * scale + zero  # [BLOCK_N, BLOCK_G, 16]
    odd = ((codes >> 4).to(tl.float32) - 8) * scale + zero  # [BLOCK_N, BLOCK_G, 16]
    width: tl.constexpr = BLOCK_G * GROUP_BYTES
    return tl.reshape(even, [BLOCK_N, width]), tl.reshape(odd, [BLOCK_N, width])


@triton.jit
def restore_kernel(
    codes_ptr, scale_ptr, zero_ptr, out_ptr, num_rows, SIZE: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """一个程序：`BLOCK_N` 行、`BLOCK_K` 列。

    One program: `BLOCK_N` rows and `BLOCK_K` columns.
    """
    # 写的地方可能是上一段刚用过的内存，所以要等前一个核函数读完它。
    # The place written to may be memory that the part before has just used: wait until the kernel before has read it.
    await_inputs(EARLY)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < num_rows
    first = tl.program_id(1) * BLOCK_K
    start = row.to(tl.int64)[:, None] * SIZE
    out_type = out_ptr.dtype.element_ty
    if BITS == 4:
        even, odd = int4_tile(
            codes_ptr, scale_ptr, zero_ptr, row, first // CODE_GROUP, inside, SIZE // CODE_GROUP, BLOCK_N,
            BLOCK_K // CODE_GROUP,
        )
        # 两半写到相邻的列，合起来仍是连续的一行。
        # The halves go to neighbouring columns and make a contiguous row again.
        k = first + 2 * tl.arange(0, BLOCK_K // 2)[None, :]
        mask = inside[:, None] & (k < SIZE)
        tl.store(out_ptr + start + k, even.to(out_type), mask=mask)
        tl.store(out_ptr + start + k + 1, odd.to(out_type), mask=mask)
    else:
        k = first + tl.arange(0, BLOCK_K)[None, :]
        mask = inside[:, None] & (k < SIZE)
        codes = tl.load(codes_ptr + start + k, mask=mask, other=0).to(tl.float32)
        scale = tl.load(scale_ptr + row, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + start + k, (codes * scale[:, None]).to(out_type), mask=mask)


def restore(weight: QuantizedWeight, dtype: torch.dtype, num_rows: int) -> Tensor:
    """启动上面的核函数：还原成浮点数。

    Launch the kernel above: restore the floats.

    Args:
        num_rows: 这一步的行数，同 `early`；rows of the step, as for `early`

    Returns:
        [N, K]
    """
    outputs, size = weight.shape
    codes, scales, zeros, bits = parts_of(weight)
    out = torch.empty(outputs, size, dtype=dtype, device=codes.device)
    # 一个程序 8 行、512 列：写出 8 KB 的 bf16，足够多的程序同时在写。
    # A program has 8 rows and 512 columns: it writes 8 KB of bf16, and enough programs write at once.
    block_k = 16 * GROUP
    restore_kernel[(triton.cdiv(outputs, 8), triton.cdiv(size, block_k))](
        codes, scales, zeros, out, outputs, SIZE=size, BITS=bits, BLOCK_N=8, BLOCK_K=block_k, num_warps=4,
        **early(codes.device, num_rows),
    )  # fmt: skip
    return out
