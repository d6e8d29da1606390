"""融合核函数：把几个小步骤并成一次启动，中间结果不再往返显存。

解码时每个小步骤只处理几 KB 数据，启动本身（几微秒）比计算还贵；一层省下几十次启动，28 层就是近千次。

Fused kernels: several small steps in one launch, so that what lies between them never goes to memory and back.

In decoding each small step handles a few KB, and the launch itself (a few microseconds) costs more than the work;
saving dozens of launches a layer saves close to a thousand over 28 layers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.triton.launch import await_inputs, early, nearly_done
from backends.triton.quantized import store_heads


@triton.jit
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, normed_ptr, sum_ptr, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """一个程序：一行。

    One program: one row.
    """
    # 一整行交给一个程序：求均方要用到整行，放在同一个程序里，中间结果就一直留在寄存器里。
    # A whole row goes to one program: the mean square needs all of it, and within one program what lies between stays
    # in registers.
    row = tl.program_id(0).to(tl.int64) * SIZE
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    # 例：`SIZE` = 3072 时 `BLOCK` = 4096，多出的 1024 个位置读成 0，平方和不受影响。
    # Example: `SIZE` = 3072 has `BLOCK` = 4096, and the 1024 positions beyond read as 0, which adds nothing to the
    # squares.
    weight = tl.load(weight_ptr + i, mask=inside, other=0.0)
    await_inputs(EARLY)
    x = tl.load(x_ptr + row + i, mask=inside, other=0.0)
    if residual_ptr is not None:
        # 先按原精度相加再存回，和不融合时逐位相同。
        # Add in the original precision and store that, bit for bit what the unfused steps give.
        x = (x + tl.load(residual_ptr + row + i, mask=inside, other=0.0)).to(x.dtype)
        tl.store(sum_ptr + row + i, x, mask=inside)
    # 平方和在 float32 里算；除以的是真正的 `SIZE`，不是补齐后的 `BLOCK`。
    # Squares are summed in float32 and divided by the true `SIZE`, not the padded `BLOCK`.
    x32 = x.to(tl.float32)
    # `tl.sum` 要跨线程相加，由编译器安排线程之间交换数据；`tl.rsqrt(x)` 是 1 除以 x 的平方根。
    # `tl.sum` adds across threads, and the compiler arranges their exchange; `tl.rsqrt(x)` is 1 over the square root of
    # x.
    scale = tl.rsqrt(tl.sum(x32 * x32, 0) / SIZE + eps)
    nearly_done(EARLY)
    tl.store(normed_ptr + row + i, (x32 * scale).to(x.dtype) * weight, mask=inside)


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """残差相加，再 RMSNorm。

    Add the residual, then RMSNorm.

    Args:
        x, residual: [T, size]，residual 为 None 就什么也不加；residual None adds nothing

    Returns:
        [T, size], [T, size]，归一化的结果，和两者之和；the normalised, and the sum
    """
    size = x.shape[-1]
    normed = torch.empty_like(x)
    # 没有残差时，和就是 x 本身，核函数不写 `sum_ptr`，也就不必另分配。
    # Without a residual the sum is x itself; the kernel does not write `sum_ptr`, so nothing is allocated for it.
    total = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(size)
    # 网格是 [T]，一行一个程序；每 256 个元素配 1 个 warp，最多 8 个：`SIZE` = 1024 用 4 个 warp，每个线程 8 个元素。
    # The grid is [T], one program a row, with 1 warp for each 256 elements and at most 8:
    # `SIZE` = 1024 takes 4 warps, 8 elements a thread.
    add_rms_norm_kernel[(x.shape[0],)](
        x, residual, weight, normed, total, eps, SIZE=size, BLOCK=block, num_warps=min(8, max(1, block // 256)),
        **early(x.device, x.shape[0]),
    )  # fmt: skip
    return normed, total


@triton.jit
def gate_values(gate, up):
    """silu(gate) * up：silu 在 float32 里算，转回原精度之后再乘，与不融合时一致。

    silu(gate) * up: silu in float32, cast back, then multiply, as the unfused steps do.
    """
    gate32 = gate.to(tl.float32)
    return (gate32 * tl.sigmoid(gate32)).to(gate.dtype) * up


@triton.jit
def silu_and_mul_kernel(gate_up_ptr, out_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """一个程序：一行里的 BLOCK 个通道。

    One program: BLOCK channels of one row.
    """
    await_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    # 这里每个通道互不相干，一行可以切给几个程序：T = 1 时也有足够多的程序，能占满更多的流式多处理器。
    # Channels are independent here, so a row can be cut for several programs: even at T = 1 there are enough of them to
    # occupy more multiprocessors.
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < SIZE
    # 一行有 2 * SIZE 个数：前 SIZE 个是 gate，后 SIZE 个是 up，所以 up 的地址再加一个 SIZE。
    # A row has 2 * SIZE numbers: first SIZE of gate, then SIZE of up, so the address of up has one more SIZE.
    gate = tl.load(gate_up_ptr + row * 2 * SIZE + i, mask=inside, other=0.0)
    up = tl.load(gate_up_ptr + row * 2 * SIZE + SIZE + i, mask=inside, other=0.0)
    nearly_done(EARLY)
    tl.store(out_ptr + row * SIZE + i, gate_values(gate, up), mask=inside)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up。

    silu(gate) * up.

    Args:
        gate_up: [T, 2 * size]

    Returns:
        [T, size]
    """
    size = gate_up.shape[-1] // 2
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    # 例：`size` = 8192 时，网格是 [T, 8]，每个程序 1024 个通道，128 个线程各 8 个。
    # Example: with `size` = 8192 the grid is [T, 8], 1024 channels a program, and 128 threads take 8 each.
    block = min(1024, triton.next_power_of_2(size))
    silu_and_mul_kernel[(gate_up.shape[0], triton.cdiv(size, block))](
        gate_up, out, SIZE=size, BLOCK=block, num_warps=4, **early(gate_up.device, gate_up.shape[0])
    )
    return out


# `position_ptr` 是一个大张量的切片，对不对齐随 token 数而变；不为它分别编译。
# `position_ptr` is a slice of a larger tensor, aligned or not by the number of tokens: no variant for each.
@triton.jit(do_not_specialize=["position_ptr"])
def rotary_kernel(position_ptr, inv_freq_ptr, cos_ptr, sin_ptr, HALF: tl.constexpr, EARLY: tl.constexpr):
    """一个程序：一个 token 的角度。

    One program: the angles of one token.
    """
    await_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, HALF)
    angle = tl.load(position_ptr + token).to(tl.float32) * tl.load(inv_freq_ptr + i)
    tl.store(cos_ptr + token * HALF + i, tl.cos(angle))
    tl.store(sin_ptr + token * HALF + i, tl.sin(angle))


def rotary(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """各位置的 cos 和 sin。

    The cos and sin at each position.

    Args:
        positions: [T] int64
        inv_freq: [D // 2] float32

    Returns:
        cos, sin: [T, D // 2] float32
    """
    num_tokens, half = positions.shape[0], inv_freq.shape[0]
    cos, sin = torch.empty(2, num_tokens, half, dtype=torch.float32, device=positions.device)
    if num_tokens:
        rotary_kernel[(num_tokens,)](
            positions, inv_freq, cos, sin, HALF=half, num_warps=1, **early(positions.device, num_tokens)
        )
    return cos, sin


@triton.jit(do_not_specialize=["slot_mapping_ptr"])
def qk_norm_rope_store_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, q_out_ptr, k_cache_ptr, v_cache_ptr, k_descale_ptr,
    v_descale_ptr, slot_mapping_ptr, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_H: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """一个程序：一个 token 的 `BLOCK_H` 个头；头号依次是 q 头、k 头、v 头。

    One program: `BLOCK_H` heads of one token; heads are numbered q, then k, then v.
    """
    await_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    # 例：32 个 q 头、8 个 KV 头，共 48 个头，每个程序 8 个：头 0 到 31 是 q，32 到 39 是 k，40 到 47 是 v。
    # Example: 32 q heads and 8 KV heads make 48, 8 a program: heads 0 to 31 are q, 32 to 39 are k, 40 to 47 are v.
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    # 由编译时常数算出的数，也要标成 `tl.constexpr`，后面才能当常数用。
    # What is computed from compile-time numbers is marked `tl.constexpr` too, to count as a constant below.
    HEAD_DIM: tl.constexpr = 2 * HALF
    FIRST_V: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    TOTAL: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    i = tl.arange(0, HALF)
    inside = head < TOTAL
    source = qkv_ptr + token * (TOTAL * HEAD_DIM) + head[:, None] * HEAD_DIM + i[None, :]
    # 每个头的前半和后半各取一个小块，旋转就是这两个小块之间的加减乘。
    # The first and the second half of each head; the rotation is arithmetic between the two.
    first = tl.load(source, mask=inside[:, None], other=0.0)  # [BLOCK_H, HALF]
    second = tl.load(source + HALF, mask=inside[:, None], other=0.0)  # [BLOCK_H, HALF]
    slot = tl.load(slot_mapping_ptr + token)

    a, b = first.to(tl.float32), second.to(tl.float32)
    if q_weight_ptr is not None:
        # 沿第 1 维求和，每个头得到一个数；前半和后半的平方和相加，就是整个头的。
        # Summing along dimension 1 leaves a number for each head; the squares of both halves together are the whole
        # head's.
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / HEAD_DIM + eps)[:, None]
        # q 头和 k 头各有一份权重，按头号选；v 头选到哪份都无妨，下面不用它归一化的结果。
        # q heads and k heads have a weight each, chosen by the head's number; v heads ignore the result below.
        is_q = (head < NUM_HEADS)[:, None]
        w_first = tl.where(is_q, tl.load(q_weight_ptr + i)[None, :], tl.load(k_weight_ptr + i)[None, :])
        w_second = tl.where(is_q, tl.load(q_weight_ptr + HALF + i)[None, :], tl.load(k_weight_ptr + HALF + i)[None, :])
        a = ((a * scale).to(first.dtype) * w_first).to(tl.float32)
        b = ((b * scale).to(first.dtype) * w_second).to(tl.float32)
    # 同一个 token 的所有头转同样的角度，所以 cos 和 sin 只读一行，广播给 `BLOCK_H` 个头。
    # All heads of a token turn by the same angles, so one row of cos and sin is read and broadcast to `BLOCK_H` heads.
    cos = tl.load(cos_ptr + token * HALF + i)[None, :]
    sin = tl.load(sin_ptr + token * HALF + i)[None, :]
    rotated_first = (a * cos - b * sin).to(first.dtype)
    rotated_second = (b * cos + a * sin).to(first.dtype)

    # 三个去处，各写各的头：q 交给注意力，k 转好之后进缓存，v 原样进缓存；槽位 -1 时 k、v 都不写。
    # Three places, each for its own heads: q goes to attention, k (rotated) and v (as it is) go to the cache;
    # at slot -1 neither k nor v is stored.
    # `slot` 是一个数，加上 `0 * head` 就成了与 `head` 同形状的一排，后面的掩码才能逐头组合。
    # `slot` is one number; plus `0 * head` it has the shape of `head`, and the masks below combine head by head.
    stored = slot + 0 * head >= 0
    nearly_done(EARLY)
    q_mask = (head < NUM_HEADS)[:, None]
    target = q_out_ptr + token * (NUM_HEADS * HEAD_DIM) + head[:, None] * HEAD_DIM + i[None, :]
    tl.store(target, rotated_first, mask=q_mask)
    tl.store(target + HALF, rotated_second, mask=q_mask)
    # 不属于 k 的头，算出的地址没有意义（甚至是负的偏移），但掩码为假，不会去写：这就是没有 `if` 的分支。
    # For heads that are not k the address is meaningless, even a negative offset, but where the mask is false nothing
    # is written: this is branching without `if`.
    k_mask = (head >= NUM_HEADS) & (head < FIRST_V) & stored
    row = slot * NUM_KV_HEADS + head
    # 量化的缓存：在寄存器里就变成编码，见 `quantized.py`。
    # A quantized cache: they become codes while still in registers, see `quantized.py`.
    store_heads(k_cache_ptr, k_descale_ptr, row - NUM_HEADS, rotated_first, rotated_second, k_mask, HALF)
    v_mask = (head >= FIRST_V) & inside & stored
    store_heads(v_cache_ptr, v_descale_ptr, row - FIRST_V, first, second, v_mask, HALF)


def qk_norm_rope_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, norm_weights: tuple[Tensor, Tensor] | None, eps: float, k_cache: Tensor,
    v_cache: Tensor, slot_mapping: Tensor, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
) -> Tensor:
    """拆出 q、k、v；q、k 归一化（若有）并旋转；k、v 写进缓存；返回 q。

    Split q, k and v; normalise (if the model does) and rotate q and k; store k and v; return q.

    Args:
        qkv: [T, (Hq + 2 * Hkv) * D]
        cos, sin: [T, D // 2] float32
        norm_weights: [D], [D]，q 和 k 的；those of q and k

    Returns:
        q [T, Hq, D]
    """
    num_kv_heads, head_dim = k_cache.shape[2:]
    num_tokens = qkv.shape[0]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    q = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    # 没有归一化时传的是 None：编译时就知道，编译出的核函数里没有那几行。
    # Without normalisation None is passed: that is known to the compiler, and its kernel is without those lines.
    q_weight, k_weight = norm_weights or (None, None)
    # 一个程序 8 个头：H200 上 256 个 token 时，一个头一个程序要 7 微秒多，时间都花在排队上；token 少时，4 个头更快。
    # 8 heads a program: on an H200 with 256 tokens, a program for each head takes over 7 µs, most of it queueing; with
    # few tokens 4 heads are faster.
    block_h = 4 if num_tokens <= 16 else 8
    qk_norm_rope_store_kernel[(num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, block_h))](
        qkv, cos, sin, q_weight, k_weight, q, k_cache, v_cache, k_descale, v_descale, slot_mapping, eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2, BLOCK_H=block_h, num_warps=4,
        **early(qkv.device, num_tokens),
    )  # fmt: skip
    return q
