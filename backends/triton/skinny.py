"""行数很少（2 到 64）的线性层：速度的上限仍是读一遍权重的时间，但每个权重要乘好几行，得用张量核心。

等价的 PyTorch：`F.linear(x, weight, bias)`，其中 x 是 [M, in_features]，M 不超过 64。

A linear layer with few rows (2 to 64): its limit is still the time to read the weight once, but each weight multiplies
several rows, which takes tensor cores.

The plain PyTorch: `F.linear(x, weight, bias)` with x of [M, in_features] and M at most 64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.quantized_weight import Weight
from backends.triton.codes import int4_tile, nibble, parts_of
from backends.triton.fused import gate_values
from backends.triton.launch import await_inputs, early, nearly_done


# 行数是不是 16 的倍数，代码都一样：不为它分别编译，启动就快几秒。
# Whether or not the rows are a multiple of 16, the code is the same: no variant for each saves seconds at start.
@triton.jit(do_not_specialize=["num_rows"])
def skinny_kernel(
    x_ptr, weight_ptr, scale_ptr, zero_ptr, bias_ptr, out_ptr, partial_ptr, arrived_ptr, num_rows, num_outputs,
    SIZE: tl.constexpr, BITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    NUM_SPLITS: tl.constexpr, GATED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """一个程序：所有行的 `BLOCK_N` 个输出，输入维的一段。

    One program: `BLOCK_N` outputs of all rows, over one split of the inputs.
    """
    # x 补到 `BLOCK_M` 行，16、32 或 64：张量核心一次处理 16 行，少于 16 行也是这个价。
    # x is padded to `BLOCK_M` rows, 16, 32 or 64: tensor cores handle 16 at a time, and fewer cost the same.
    tile, split = tl.program_id(0), tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    inside_m, inside_n = m < num_rows, n < num_outputs
    # 越过末尾的输出改读最后一行权重：读了不用，比给每次读取加掩码便宜。
    # Outputs past the end read the last row of the weight instead: cheaper to read and ignore than to mask every load.
    # 门控时 gate 与 up 的行交替，见 `gemv.py`。
    # With a gate, rows of gate and up take turns, see `gemv.py`.
    row = n // 2 + n % 2 * (num_outputs // 2) if GATED else n
    row = tl.minimum(row, num_outputs - 1)
    weight_row = weight_ptr + row.to(tl.int64)[:, None] * SIZE  # [BLOCK_N, 1]
    # 输入维分给各段：3072 列、每次 128 列、4 段，就是每段 6 次循环。
    # The inputs are shared among the splits: 3072 columns, 128 at a time and 4 splits make 6 rounds each.
    STEPS: tl.constexpr = (SIZE + BLOCK_K * NUM_SPLITS - 1) // (BLOCK_K * NUM_SPLITS)
    await_inputs(EARLY)
    x_row = x_ptr + m[:, None] * SIZE  # [BLOCK_M, 1]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(STEPS):
        first = (split * STEPS + step) * BLOCK_K
        if BITS == 4:
            # 一个字 8 个编码，分 8 次乘：第 i 次是各字的第 i 个编码，和它们那些列的 x，见 `codes.py`。
            # A word has 8 codes and takes 8 products: code i of each word with the x of their columns, see `codes.py`.
            words, scale, low, columns = int4_tile(
                weight_ptr, scale_ptr, zero_ptr, row, first, inside_n, SIZE, BLOCK_K // 8
            )
            for i in tl.static_range(8):
                k = columns + 4 * i
                x = tl.load(x_row + k, mask=inside_m[:, None] & (k < SIZE), other=0.0)  # [BLOCK_M, BLOCK_K // 8]
                w = (nibble(words, i) * scale + low).to(x.dtype)  # [BLOCK_N, BLOCK_K // 8]
                acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
        else:
            k = (first + tl.arange(0, BLOCK_K))[None, :]
            if SIZE % (BLOCK_K * NUM_SPLITS) == 0:
                w = tl.load(weight_row + k)  # [BLOCK_N, BLOCK_K]
                x = tl.load(x_row + k, mask=inside_m[:, None], other=0.0)  # [BLOCK_M, BLOCK_K]
            else:
                w = tl.load(weight_row + k, mask=k < SIZE, other=0.0)  # [BLOCK_N, BLOCK_K]
                x = tl.load(x_row + k, mask=inside_m[:, None] & (k < SIZE), other=0.0)  # [BLOCK_M, BLOCK_K]
            acc = tl.dot(x, tl.trans(w.to(x.dtype)), acc, input_precision="ieee")
    last = True
    nearly_done(EARLY)
    if NUM_SPLITS > 1:
        # 各段写下自己的部分和，再签到；最后到达的一段负责合计，总是按段号相加，与先后无关，所以结果每次都一样。
        # Each split writes its partial sum and signs in, and the last to sign in adds up: always in the order of the
        # splits, whoever came first, so that the result is the same every time.
        part = (tile * NUM_SPLITS * BLOCK_M + m)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.store(partial_ptr + split * BLOCK_M * BLOCK_N + part, acc)
        # 栅栏等本程序的所有线程都写完；`acq_rel` 保证看到计数的程序，也看得到计数之前写下的数据。
        # The barrier waits until all threads of this program have written; `acq_rel` makes sure that whoever sees the
        # sign-in also sees what was written before it.
        tl.debug_barrier()
        last = tl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel") == NUM_SPLITS - 1
        if last:
            # 计数归零，留给下一次启动用。
            # The count goes back to zero for the next launch.
            tl.store(arrived_ptr + tile, 0)
            acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for other in range(NUM_SPLITS):
                acc += tl.load(partial_ptr + other * BLOCK_M * BLOCK_N + part, cache_modifier=".cg")
    if last:
        if BITS == 8:
            acc *= tl.load(scale_ptr + row).to(tl.float32)[None, :]
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + row, mask=inside_n, other=0.0).to(tl.float32)[None, :]
        out = acc.to(out_ptr.dtype.element_ty)
        if GATED:
            gate, up = tl.split(tl.reshape(out, [BLOCK_M, BLOCK_N // 2, 2]))
            pair = (tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2))[None, :]
            target = out_ptr + m[:, None] * (num_outputs // 2) + pair
            tl.store(target, gate_values(gate, up), mask=inside_m[:, None] & (pair < num_outputs // 2))
        else:
            target = out_ptr + m[:, None] * num_outputs + n[None, :]
            tl.store(target, out, mask=inside_m[:, None] & inside_n[None, :])


def skinny_linear(x: Tensor, weight: Weight, bias: Tensor | None, arrived: Tensor, gated: bool = False) -> Tensor:
    """启动上面的核函数。

    Launch the kernel above.

    Args:
        x: [M, in_features]，内存连续，M 不超过 64；contiguous, M at most 64
        weight: [out_features, in_features]，内存连续；contiguous
        arrived: [128] int32，值为 0 的计数器，用完又是 0；counters of value 0; they are 0 again afterwards
        gated: 同 `gemv`；as in `gemv`

    Returns:
        [M, out_features]，`gated` 时减半；half as many if `gated`
    """
    num_outputs, size = weight.shape
    out = torch.empty(x.shape[0], num_outputs // 2 if gated else num_outputs, dtype=x.dtype, device=x.device)
    block_m = max(16, triton.next_power_of_2(x.shape[0]))
    *parts, bits = parts_of(weight)
    block_n, block_k, num_splits, num_warps, num_stages = choose_tiles(num_outputs, size, block_m, bits)
    tiles = triton.cdiv(num_outputs, block_n)
    partial = out
    if num_splits > 1:
        partial = torch.empty(tiles * num_splits * block_m * block_n, dtype=torch.float32, device=x.device)
    skinny_kernel[(tiles, num_splits)](
        x, *parts, bias, out, partial, arrived, x.shape[0], num_outputs, SIZE=size, BITS=bits, BLOCK_M=block_m,
        BLOCK_N=block_n, BLOCK_K=block_k, NUM_SPLITS=num_splits, GATED=gated, num_warps=num_warps,
        num_stages=num_stages, **early(x.device, x.shape[0]),
    )  # fmt: skip
    return out


def choose_tiles(num_outputs: int, size: int, block_m: int, bits: int) -> tuple[int, int, int, int, int]:
    """每个程序管几个输出、一次几列、输入切几段、几个 warp、几级流水线。

    How many outputs a program has, columns at a time, splits of the inputs, warps, and pipeline stages.
    """
    # int4 还原要算，tile 宽些，同一份 x 多用几次；H100 上量过，16384 × 3072 的权重，微秒：8 行 26，32 行 40，64 行 60。
    # int4 takes arithmetic to restore; wider tiles use the same x more often. Measured on an H100, a weight of
    # 16384 × 3072: 26 µs for 8 rows, 40 for 32, 60 for 64.
    if bits == 4:
        splits = min(triton.cdiv(128, triton.cdiv(num_outputs, 64)), triton.cdiv(size, 256))
        return (64, 256, splits, 4, 2) if block_m <= 32 else (64, 128, splits, 2, 2)
    # 输出很多时（gate_up、输出头），程序已经够多，tile 大些，x 就少读几遍。
    # With many outputs (gate_up, the output head) there are programs enough; larger tiles read x less often.
    if num_outputs >= 16384:
        return (64, 128, 1, 4, 4) if block_m == 16 else (64, 64, 1, 4, 5)
    # 输出少时，把输入也切开，凑到 128 个程序以上，132 个流式多处理器才都有事做。
    # With few outputs the inputs are cut, too, for 128 programs or more, or the 132 multiprocessors are not all busy.
    #     3072 outputs: 96 tiles, 2 splits, 192 programs     1024 outputs: 32 tiles, 4 splits, 128 programs
    # H200 上量过，8 行：3072 × 8192 的权重用 16.0 微秒，不切是 18.4；1024 × 3072 用 4.7，不切是 7.7。
    # Measured on an H200, 8 rows: a weight of 3072 × 8192 takes 16.0 µs, 18.4 uncut; 1024 × 3072 takes 4.7, uncut 7.7.
    splits = min(triton.cdiv(128, triton.cdiv(num_outputs, 32)), triton.cdiv(size, 128))
    return (32, 128, splits, 2, 5) if block_m == 16 else (32, 128, splits, 4, 4)
