"""读量化的权重：`gemv.py` 和 `skinny.py` 边读边还原，行多时先还原一段，再交给 cuBLAS。

编码和缩放是什么，见 `backends/quantized_weight.py`；int4 的编码先由 `reorder` 换成这里要的次序。
等价的 PyTorch：`QuantizedWeight.dequantize`。

Reading quantized weights: `gemv.py` and `skinny.py` restore them as they read; with many rows a part is restored first
and goes to cuBLAS. What codes and scales are is in `backends/quantized_weight.py`; codes of int4 are first put in
the order wanted here, by `reorder`. The plain PyTorch is `QuantizedWeight.dequantize`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.quantized_weight import GROUP, QuantizedWeight, pack_int4, unpack_int4
from backends.triton.launch import await_inputs, early

# 核函数里用的一组几列。
# Columns of a group for use in kernels.
CODE_GROUP = tl.constexpr(GROUP)
# 传给核函数的权重：编码或浮点数，缩放，中值，一个权重几位；浮点数没有缩放和中值，int8 没有中值。
# A weight as the kernels take it: codes or floats, scales, zeros, and bits of a weight; floats have neither scales nor
# zeros, int8 has no zeros.
Parts = tuple[Tensor, Tensor | None, Tensor | None, int]


def parts_of(weight: Tensor | QuantizedWeight) -> Parts:
    """拆成核函数的参数。

    Take it apart into arguments of the kernels.
    """
    if not isinstance(weight, QuantizedWeight):
        return weight, None, None, 16
    # int4 的编码由 `reorder` 换成了 32 位的字，核函数一次读一个字。
    # Codes of int4 have become words of 32 bits in `reorder`, and kernels read a word at a time.
    codes = weight.codes if weight.bits == 8 else weight.codes.view(torch.int32)
    return codes, weight.scales, weight.zeros, weight.bits


def reorder(weight: QuantizedWeight) -> QuantizedWeight:
    """装载时把 int4 的编码换成核函数读起来快的次序，原来的随即放掉；占的字节一样多。

    一组 32 列是 4 个 32 位的字，一个字 8 个编码：第 q 个字从低位到高位是第 q、q + 4、...、q + 28 列。一个线程一次取走
    一组的 4 个字；它们的第 i 个编码是相邻的 4 列，x 里对应的 4 个数也相邻，也能一次取走。

    When a model is loaded, codes of int4 are put in an order that kernels read fast; the old ones are let go, and the
    bytes are as many.
    A group of 32 columns is 4 words of 32 bits with 8 codes each: word q has columns q, q + 4, ..., q + 28, from the
    low bits to the high. A thread takes the 4 words of a group at once; their codes i are 4 neighbouring columns, whose
    4 numbers of x are neighbours as well and come at once.
    """
    assert weight.zeros is not None
    columns = unpack_int4(weight.codes).unflatten(1, (-1, 8, 4)).transpose(2, 3)  # [N, K // 32, 4, 8]
    # 一个字的 8 个编码占相邻的 4 个字节；低位的字节在前，正好读成一个 32 位的整数。
    # The 8 codes of a word take 4 bytes in a row; with the low byte first, they are read as an integer of 32 bits.
    reordered = QuantizedWeight(pack_int4(columns.flatten(1)), weight.scales, weight.zeros)
    weight.release()
    return reordered


@triton.jit
def nibble(words, i: tl.constexpr):
    """各个字里的第 i 个编码，float32。

    Code i of each word, in float32.
    """
    # 例：0x000000A3 的第 0 个编码是 3，第 1 个是 10。
    # Example: code 0 of 0x000000A3 is 3, code 1 is 10.
    return ((words >> (4 * i)) & 15).to(tl.float32)


@triton.jit
def columns_of(word):
    """一行里这些字的第 0 个编码各是第几列；第 i 个编码再往后 4 * i 列。

    Which columns codes 0 of these words of a row are; codes i are 4 * i columns further.
    """
    # 例：字 5 是组 1 的第 1 个字，第 0 个编码是第 32 + 1 = 33 列，第 1 个编码是第 37 列。
    # Example: word 5 is word 1 of group 1: its code 0 is column 32 + 1 = 33, its code 1 column 37.
    return word // 4 * CODE_GROUP + word % 4


@triton.jit
def rulers(scale_ptr, zero_ptr, row, group, inside, GROUPS: tl.constexpr):
    """这些行、这些组的缩放，和编码 0 的值，都是 float32；每行共 `GROUPS` 组。

    The scales of these rows and groups, and the values of code 0, in float32; a row has `GROUPS` groups.
    """
    place, mask = row * GROUPS + group, inside & (group < GROUPS)
    scale = tl.load(scale_ptr + place, mask=mask, other=0.0).to(tl.float32)
    # 存的中值是编码 8 的值，往回 8 步就是编码 0 的。
    # What is stored is the value of code 8; 8 steps back is that of code 0.
    return scale, tl.load(zero_ptr + place, mask=mask, other=0.0).to(tl.float32) - 8 * scale


@triton.jit
def int4_tile(codes_ptr, scale_ptr, zero_ptr, row, first, inside, SIZE: tl.constexpr, WORDS: tl.constexpr):
    """这些行里从第 `first` 列起的 `WORDS` 个字；它们的第 i 个编码还原成 `nibble(words, i) * scale + low`。

    `WORDS` words of these rows from column `first` on; their codes i are restored as `nibble(words, i) * scale + low`.

    Args:
        row, inside: [BLOCK_N]，行号，和它是不是真有；numbers of the rows, and whether they are there
        first: 一组的开头；the beginning of a group

    Returns:
        words, scale, low [BLOCK_N, WORDS]，和第 0 个编码的列号 [1, WORDS]；and the columns of codes 0 [1, WORDS]
    """
    row, inside = row.to(tl.int64)[:, None], inside[:, None]  # [BLOCK_N, 1]
    word, group = tl.arange(0, WORDS)[None, :], tl.arange(0, WORDS // 4)[None, :]
    word, group = first // 8 + word, first // CODE_GROUP + group
    # 最后一次可能越过行末：越界的编码、缩放、中值都读成 0，还原出来也是 0。
    # The last round may run past a row's end: codes, scales and zeros read there as 0 and restore to 0.
    words = tl.load(codes_ptr + row * (SIZE // 8) + word, mask=inside & (word < SIZE // 8), other=0)
    scale, low = rulers(scale_ptr, zero_ptr, row, group, inside, SIZE // CODE_GROUP)
    # 一组 4 个字共用一个缩放：[N, 组] 变成 [N, 字]。
    # 4 words of a group share its scale: [N, groups] becomes [N, words].
    scale = tl.reshape(tl.broadcast_to(scale[:, :, None], [row.shape[0], WORDS // 4, 4]), words.shape)
    low = tl.reshape(tl.broadcast_to(low[:, :, None], [row.shape[0], WORDS // 4, 4]), words.shape)
    return words, scale, low, columns_of(word)


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
    start = row.to(tl.int64)[:, None] * SIZE  # [BLOCK_N, 1]
    out_type = out_ptr.dtype.element_ty
    if BITS == 4:
        words, scale, low, columns = int4_tile(codes_ptr, scale_ptr, zero_ptr, row, first, inside, SIZE, BLOCK_K // 8)
        for i in tl.static_range(8):
            k = columns + 4 * i
            out = nibble(words, i) * scale + low  # [BLOCK_N, BLOCK_K // 8]
            tl.store(out_ptr + start + k, out.to(out_type), mask=inside[:, None] & (k < SIZE))
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
