"""矩阵乘向量：只有 1 行输入时的线性层，速度的上限就是读一遍权重的时间。

等价的 PyTorch：`F.linear(x, weight, bias)`，其中 x 是 [1, in_features]。

单个请求解码时，一步的时间几乎全花在这里。通用的矩阵乘法是为“多行”准备的，只有 1 行时吃不满带宽；
这里每个程序负责几行权重，多半一次读完整行，乘加都在寄存器里。

Matrix times vector: a linear layer whose input has 1 row; its limit is the time to read the weight once.

The plain PyTorch: `F.linear(x, weight, bias)` with x of [1, in_features].

With a single request decoding, almost all of a step is spent here. General matrix products are made for many rows and
leave bandwidth unused at 1; here each program takes a few rows of the weight, mostly reads them whole at once, and has
all sums in registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.quantized_weight import Weight
from backends.triton.codes import CODE_GROUP, columns_of, nibble, parts_of, rulers
from backends.triton.fused import gate_values
from backends.triton.launch import await_inputs, early


@triton.jit
def int4_sums(
    x_ptr, weight_ptr, scale_ptr, zero_ptr, row, inside, SIZE: tl.constexpr, WORDS: tl.constexpr, EARLY: tl.constexpr
):
    """int4 的这些行各与 x 逐个相乘，求和，一次 `WORDS` 个字；先乘编码，一组才乘一次缩放，`low` 是编码 0 的值：

    The sum of products with x for each of these rows of int4, `WORDS` words at a time; codes are multiplied first, and
    the scale once a group; `low` is the value of code 0:

        Σ (scale * code + low) * x = scale * Σ code * x + low * Σ x

    Args:
        row, inside: [BLOCK_N]，行号，和它是不是真有；numbers of the rows, and whether they are there

    Returns:
        [BLOCK_N] float32
    """
    ROW: tl.constexpr = SIZE // 8
    row, inside = row.to(tl.int64)[:, None], inside[:, None]  # [BLOCK_N, 1]
    word = tl.arange(0, WORDS)[None, :]
    weights = weight_ptr + row * ROW + word  # [BLOCK_N, WORDS]
    # 与 `gemv_kernel` 里一样：第一批权重不等前一个核函数就读，循环里总是先读下一批。
    # As in `gemv_kernel`: the first weights are read without waiting for the kernel before, and each round of the loop
    # reads those of the next.
    words = tl.load(weights, mask=inside & (word < ROW), other=0)
    await_inputs(EARLY)
    acc = tl.zeros([row.shape[0], WORDS // 4], tl.float32)
    for start in range(0, ROW, WORDS):
        products, all_x = tl.zeros(words.shape, tl.float32), tl.zeros(word.shape, tl.float32)
        place, real = x_ptr + columns_of(start + word), start + word < ROW
        # 第 i 次：各字的第 i 个编码，和它们各自那一列的 x。
        # Time i: code i of each word, and the x of its column.
        for i in tl.static_range(8):
            x = tl.load(place + 4 * i, mask=real, other=0.0).to(tl.float32)  # [1, WORDS]
            products += nibble(words, i) * x
            all_x += x
        words = tl.load(weights + start + WORDS, mask=inside & (start + WORDS + word < ROW), other=0)
        # 一组的 4 个字在同一个线程里，加起来不必跨线程。
        # The 4 words of a group are in one thread, and adding them crosses no threads.
        products = tl.sum(tl.reshape(products, [row.shape[0], WORDS // 4, 4]), 2)  # [BLOCK_N, WORDS // 4]
        all_x = tl.sum(tl.reshape(all_x, [1, WORDS // 4, 4]), 2)  # [1, WORDS // 4]
        group = start // 4 + tl.arange(0, WORDS // 4)[None, :]
        scale, low = rulers(scale_ptr, zero_ptr, row, group, inside, SIZE // CODE_GROUP)
        acc += scale * products + low * all_x
    return tl.sum(acc, 1)


@triton.jit
def gemv_kernel(
    x_ptr, weight_ptr, scale_ptr, zero_ptr, bias_ptr, out_ptr, num_rows,
    SIZE: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GATED: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """一个程序：`BLOCK_N` 个输出。

    One program: `BLOCK_N` outputs.
    """
    # 例：`BLOCK_N` = 2 时，第 3 个程序（编号从 0 数起）算第 6、7 个输出。
    # Example: with `BLOCK_N` = 2, program 3 (counted from 0) computes outputs 6 and 7.
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # 输出数不是 `BLOCK_N` 的倍数时，最后一个程序会越过末尾；越界的行由掩码盖住，读成 0，也不写回。
    # Where the outputs are no multiple of `BLOCK_N`, the last program runs past the end; the mask hides those rows,
    # which read as 0 and are not written back.
    inside = n < num_rows
    # 门控时，gate 的行与对应的 up 的行交替着读，一个程序两样齐全。例：共 6 行，次序是 0、3、1、4、2、5。
    # With a gate, rows of gate take turns with their rows of up, so that a program has both. Example: 6 rows are read
    # in the order 0, 3, 1, 4, 2, 5.
    row = n // 2 + n % 2 * (num_rows // 2) if GATED else n
    if BITS == 4:
        out = int4_sums(x_ptr, weight_ptr, scale_ptr, zero_ptr, row, inside, SIZE, BLOCK_K // 8, EARLY)
    else:
        k, inside_row = tl.arange(0, BLOCK_K)[None, :], inside[:, None]
        # 词表那么大的权重有几亿个元素，行号先转 64 位再乘。
        # A weight as large as the vocabulary has hundreds of millions of elements: 64 bits before multiplying.
        # 行 [BLOCK_N, 1] 加列 [1, BLOCK_K]，广播成一张二维的地址表；相邻的列在显存里也相邻，一次能取一整段。
        # Rows [BLOCK_N, 1] plus columns [1, BLOCK_K] broadcast to a table of addresses; neighbouring columns are
        # neighbours in memory, too, and are fetched together.
        weights = weight_ptr + row.to(tl.int64)[:, None] * SIZE + k  # [BLOCK_N, BLOCK_K]
        # 权重从不改变，不必等前一个核函数：等它的工夫，权重已在路上；x 是它写的，要等。
        # Weights never change and need not wait for the kernel before: they are on their way meanwhile; x is what it
        # wrote, and waits.
        w = tl.load(weights, mask=inside_row & (k < SIZE), other=0.0)
        await_inputs(EARLY)
        # 每个线程先攒自己那几列的和，循环结束才跨线程求和：跨线程比乘加贵得多。
        # Each thread sums its own columns first, and threads are added up once at the end: that costs far more.
        # 累加要用 float32：bf16 只有 8 位有效数字，256 + 1 还是 256。
        # Sums want float32: bf16 keeps 8 significant bits, and 256 + 1 is still 256.
        acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        # 每个程序都要读 x，但它只有几 KB，多半在 GPU 的缓存里；贵的是权重。
        # Every program reads x, but it is a few KB and mostly in the GPU's caches; the weight is what costs.
        for start in range(0, SIZE, BLOCK_K):
            x = tl.load(x_ptr + start + k, mask=start + k < SIZE, other=0.0).to(tl.float32)
            # 1 行输入用不上张量核心（它要成块的行），逐个乘加就够：时间花在等数据上，不在算。
            # 1 row of input has no use for tensor cores, which want blocks of rows; plain products do, as the time goes
            # into waiting for data and not into arithmetic.
            acc += w.to(tl.float32) * x
            # 下一轮的权重；多半一轮就是一整行，这时掩码全为假，什么也不读。
            # The weights of the next round; mostly a round is a whole row, and the mask, false all over, reads nothing.
            w = tl.load(weights + start + BLOCK_K, mask=inside_row & (start + BLOCK_K + k < SIZE), other=0.0)
        out = tl.sum(acc, 1)
    # int8 的一行共用一个缩放：先用整数编码乘完，最后才乘它。
    # In int8 a row shares a scale: multiply by the integer codes first, and by the scale at the end.
    if BITS == 8:
        out *= tl.load(scale_ptr + row, mask=inside, other=0.0).to(tl.float32)
    # 没有偏置时传来的是 None，编译时就已知：那一份核函数里，根本没有下面这一行。
    # Without a bias None was passed, which is known at compile time: that kernel does not contain the next line at all.
    if bias_ptr is not None:
        out += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)
    # `out_ptr.dtype.element_ty` 是输出张量的 dtype：全部加完，才从 float32 舍入一次。
    # `out_ptr.dtype.element_ty` is the output's dtype: float32 is rounded once, after all has been added.
    out = out.to(out_ptr.dtype.element_ty)
    if GATED:
        gate, up = tl.split(tl.reshape(out, [BLOCK_N // 2, 2]))
        n = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        tl.store(out_ptr + n, gate_values(gate, up), mask=n < num_rows // 2)
    else:
        tl.store(out_ptr + n, out, mask=inside)


def gemv(x: Tensor, weight: Weight, bias: Tensor | None, gated: bool = False) -> Tensor:
    """启动上面的核函数。

    Launch the kernel above.

    Args:
        x: [1, in_features]
        weight: [out_features, in_features]，内存连续；contiguous
        gated: 前一半输出是 gate，后一半是 up，只要 silu(gate) * up；
            outputs are gate, then up, and silu(gate) * up is wanted

    Returns:
        [1, out_features]，`gated` 时减半；half as many if `gated`
    """
    num_rows, size = weight.shape
    out = torch.empty(1, num_rows // 2 if gated else num_rows, dtype=x.dtype, device=x.device)
    *parts, bits = parts_of(weight)
    block_n, block_k = choose_tile(size, bits)
    # `triton.cdiv` 是向上取整的除法：7 个输出、每个程序 2 个，要 4 个程序。
    # `triton.cdiv` divides and rounds up: 7 outputs at 2 a program take 4 programs.
    gemv_kernel[(triton.cdiv(num_rows, block_n),)](
        x, *parts, bias, out, num_rows, SIZE=size, BITS=bits, BLOCK_N=block_n, BLOCK_K=block_k, GATED=gated,
        num_warps=4, **early(x.device, x.shape[0]),
    )  # fmt: skip
    return out


def choose_tile(size: int, bits: int = 16) -> tuple[int, int]:
    """每个程序几行权重，一次几列；行数总是偶数：门控时，gate 与 up 的行成对。

    宽的权重若是编码，就多取一倍的行：编码短，在路上的字节才不会太少。

    Rows of the weight a program has, and columns at a time; the rows are always even: with a gate, rows of gate and up
    come in pairs.
    Wide weights of codes have twice the rows: codes are short, and enough bytes have to be on their way.
    """
    # 窄的一次读完整行，宽的一次 1024 列：等前一个核函数时，第一批权重都已在路上。
    # Narrow ones take a whole row at once, wide ones 1024 columns: the first of the weights are on their way while the
    # kernel before is awaited.
    # H200 上量过，一步的毫秒数：Llama-3.2-3B（3072 和 8192 列）1.90，一次 2048 列是 1.97，整行是 1.98。
    # Measured on an H200, milliseconds a step: Llama-3.2-3B (3072 and 8192 columns) takes 1.90, with 2048 columns at a
    # time 1.97, with whole rows 1.98.
    # H100 上量过，int4，微秒：16384 × 3072 的权重用 17.9，3072 × 8192 的用 9.0。
    # Measured on an H100, int4: a weight of 16384 × 3072 takes 17.9 µs, one of 3072 × 8192 takes 9.0.
    if bits == 4:
        return 8, 1024 if size <= 4096 else 8192
    if size > 2048:
        return 2 if bits == 16 else 4, 1024
    block_k = max(1024, triton.next_power_of_2(size))
    return 8192 // block_k, block_k
