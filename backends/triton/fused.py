"""融合内核：把几个小步骤并成一次启动，中间结果不再往返显存。

解码时每个小步骤只处理几 KB 数据，启动本身（几微秒）比计算还贵；一层省下 6 次启动，28 层就是 168 次。

Fused kernels: several small steps in one launch, so that what lies between them never goes to memory and back.

In decoding each small step handles a few KB, and the launch itself (a few microseconds) costs more than the work;
saving 6 launches a layer saves 168 over 28 layers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, normed_ptr, sum_ptr, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """一个程序：一行。

    One program: one row.
    """
    row = tl.program_id(0).to(tl.int64) * SIZE
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    x = tl.load(x_ptr + row + i, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        # 先按原精度相加再存回，和不融合时逐位相同。
        # Add in the original precision and store that, bit for bit what the unfused steps give.
        x = (x + tl.load(residual_ptr + row + i, mask=inside, other=0.0)).to(x.dtype)
        tl.store(sum_ptr + row + i, x, mask=inside)
    x32 = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x32 * x32, 0) / SIZE + eps)
    weight = tl.load(weight_ptr + i, mask=inside, other=0.0)
    tl.store(normed_ptr + row + i, (x32 * scale).to(x.dtype) * weight, mask=inside)


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """残差相加，再 RMSNorm。

    Add the residual, then RMSNorm.

    Args:
        x, residual: [T, size]; residual None adds nothing

    Returns:
        normalised [T, size], sum [T, size]
    """
    size = x.shape[-1]
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(size)
    add_rms_norm_kernel[(x.shape[0],)](
        x, x if residual is None else residual, weight, normed, total, eps,
        SIZE=size, BLOCK=block, HAS_RESIDUAL=residual is not None, num_warps=min(8, max(1, block // 512)),
    )  # fmt: skip
    return normed, total


@triton.jit
def silu_and_mul_kernel(gate_up_ptr, out_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """一个程序：一行里的 BLOCK 个通道。

    One program: BLOCK channels of one row.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < SIZE
    gate = tl.load(gate_up_ptr + row * 2 * SIZE + i, mask=inside, other=0.0)
    up = tl.load(gate_up_ptr + row * 2 * SIZE + SIZE + i, mask=inside, other=0.0)
    gate32 = gate.to(tl.float32)
    # silu 在 float32 里算，转回原精度之后再乘，与不融合时一致。
    # silu in float32, cast back, then multiply, as the unfused steps do.
    tl.store(out_ptr + row * SIZE + i, (gate32 * tl.sigmoid(gate32)).to(gate.dtype) * up, mask=inside)


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
    block = min(1024, triton.next_power_of_2(size))
    silu_and_mul_kernel[(gate_up.shape[0], triton.cdiv(size, block))](gate_up, out, SIZE=size, BLOCK=block, num_warps=4)
    return out


@triton.jit
def qk_norm_rope_store_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, q_out_ptr, k_cache_ptr, v_cache_ptr, slot_mapping_ptr, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """一个程序：一个 token 的 `BLOCK_H` 个头；头号依次是 q 头、k 头、v 头。

    One program: `BLOCK_H` heads of one token; heads are numbered q, then k, then v.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    HEAD_DIM: tl.constexpr = 2 * HALF
    FIRST_V: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    TOTAL: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    i = tl.arange(0, HALF)
    inside = head < TOTAL
    source = qkv_ptr + token * (TOTAL * HEAD_DIM) + head[:, None] * HEAD_DIM + i[None, :]
    # 每个头的前半和后半各取一块，旋转就是这两块之间的加减乘。
    # The first and the second half of each head; the rotation is arithmetic between the two.
    first = tl.load(source, mask=inside[:, None], other=0.0)  # [BLOCK_H, HALF]
    second = tl.load(source + HALF, mask=inside[:, None], other=0.0)  # [BLOCK_H, HALF]
    slot = tl.load(slot_mapping_ptr + token)

    a, b = first.to(tl.float32), second.to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / HEAD_DIM + eps)[:, None]
        # q 头和 k 头各有一份权重，按头号选；v 头选到哪份都无妨，下面不用它归一化的结果。
        # q heads and k heads have a weight each, chosen by the head's number; v heads ignore the result below.
        is_q = (head < NUM_HEADS)[:, None]
        w_first = tl.where(is_q, tl.load(q_weight_ptr + i)[None, :], tl.load(k_weight_ptr + i)[None, :])
        w_second = tl.where(is_q, tl.load(q_weight_ptr + HALF + i)[None, :], tl.load(k_weight_ptr + HALF + i)[None, :])
        a = ((a * scale).to(first.dtype) * w_first).to(tl.float32)
        b = ((b * scale).to(first.dtype) * w_second).to(tl.float32)
    cos = tl.load(cos_ptr + token * HALF + i)[None, :]
    sin = tl.load(sin_ptr + token * HALF + i)[None, :]
    rotated_first = (a * cos - b * sin).to(first.dtype)
    rotated_second = (b * cos + a * sin).to(first.dtype)

    # 三个去处，各写各的头：q 交给注意力，k 转好之后进缓存，v 原样进缓存；槽位 -1 时 k、v 都不写。
    # Three places, each for its own heads: q goes to attention, k (rotated) and v (as it is) go to the cache;
    # at slot -1 neither k nor v is stored.
    stored = slot + 0 * head >= 0
    q_mask = (head < NUM_HEADS)[:, None]
    target = q_out_ptr + token * (NUM_HEADS * HEAD_DIM) + head[:, None] * HEAD_DIM + i[None, :]
    tl.store(target, rotated_first, mask=q_mask)
    tl.store(target + HALF, rotated_second, mask=q_mask)
    k_mask = ((head >= NUM_HEADS) & (head < FIRST_V) & stored)[:, None]
    target = k_cache_ptr + (slot * NUM_KV_HEADS + head - NUM_HEADS)[:, None] * HEAD_DIM + i[None, :]
    tl.store(target, rotated_first, mask=k_mask)
    tl.store(target + HALF, rotated_second, mask=k_mask)
    v_mask = ((head >= FIRST_V) & inside & stored)[:, None]
    target = v_cache_ptr + (slot * NUM_KV_HEADS + head - FIRST_V)[:, None] * HEAD_DIM + i[None, :]
    tl.store(target, first, mask=v_mask)
    tl.store(target + HALF, second, mask=v_mask)


def qk_norm_rope_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm_weights: tuple[Tensor, Tensor] | None,
    eps: float,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """拆出 q、k、v；q、k 归一化（若有）并旋转；k、v 写进缓存；返回 q。

    Split q, k and v; normalise (if the model does) and rotate q and k; store k and v; return q.

    Args:
        qkv: [T, (Hq + 2 * Hkv) * D]
        cos, sin: [T, D // 2] float32
        norm_weights: q's and k's, each [D]

    Returns:
        q [T, Hq, D]
    """
    num_kv_heads, head_dim = k_cache.shape[2:]
    num_tokens = qkv.shape[0]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    q = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    q_weight, k_weight = norm_weights if norm_weights is not None else (qkv, qkv)
    # 一个程序 8 个头：H200 上 256 个 token 时，一个头一个程序要 7 微秒多，时间都花在排队上。
    # 8 heads a program: on an H200 with 256 tokens, a program for each head takes over 7 µs, most of it queueing.
    qk_norm_rope_store_kernel[(num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, 8))](
        qkv, cos, sin, q_weight, k_weight, q, k_cache, v_cache, slot_mapping, eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2, HAS_NORM=norm_weights is not None,
        BLOCK_H=8, num_warps=4,
    )  # fmt: skip
    return q
