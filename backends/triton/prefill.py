"""变长的预填充注意力（flash attention）：分页或打包的 K、V，因果掩码按右下角对齐。

它等价于下面几行普通的 PyTorch（对每条序列、每个 query 头）：

    scores = q @ k.T * softmax_scale                                  # [Sq, Sk]
    visible = arange(Sk)[None, :] <= arange(Sq)[:, None] + (Sk - Sq)
    out = softmax(scores.masked_fill(~visible, -inf)) @ v             # [Sq, D]

只是从不把 [Sq, Sk] 的分数矩阵写进显存：每个程序拿 BLOCK_M 个 query，沿着 key 一小块一小块地走，边走边做在线 softmax。

Prefill attention over sequences of different lengths (flash attention): paged or packed K and V, causal mask aligned
bottom-right.

It equals the few lines of plain PyTorch above, for each sequence and query head, but the [Sq, Sk] scores never go to
memory: each program takes BLOCK_M queries and walks along the keys tile by tile, with an online softmax on the way.
Source: Dao 2023, "FlashAttention-2".
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def kv_rows(
    n, token, valid, table, k_start, kv_head,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """这些 token 的 K、V 各从哪个元素开始；`PAGE_SIZE` 为 0 表示打包存放、没有块表。

    Where these tokens' K and V begin; a `PAGE_SIZE` of 0 means packed, without a block table.
    """
    if PAGE_SIZE == 0:
        slot = k_start.to(tl.int64) + token
    elif PAGE_SIZE >= BLOCK_N:
        page = tl.load(table + n // PAGE_SIZE).to(tl.int64)
        slot = page * PAGE_SIZE + n % PAGE_SIZE + tl.arange(0, BLOCK_N)
    else:
        page = tl.load(table + token // PAGE_SIZE, mask=valid, other=0).to(tl.int64)
        slot = page * PAGE_SIZE + token % PAGE_SIZE
    return (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM


@triton.jit
def prefill_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    cu_seqlens_q_ptr,
    cu_seqlens_k_ptr,
    block_table_ptr,
    scale_log2,
    table_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """一个程序：一条序列、一个 query 头、BLOCK_M 个 query。

    One program: one sequence, one query head, BLOCK_M queries.
    """
    seq = tl.program_id(2)
    head = tl.program_id(1)
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    # 因果掩码下靠后的 query 看得更多、算得更久，让它们先开始，收尾时就不会只剩一个在忙。
    # Under the causal mask later queries see more and take longer; start with them, so none is left alone at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)

    q_start = tl.load(cu_seqlens_q_ptr + seq)
    q_len = tl.load(cu_seqlens_q_ptr + seq + 1) - q_start
    k_start = tl.load(cu_seqlens_k_ptr + seq)
    k_len = tl.load(cu_seqlens_k_ptr + seq + 1) - k_start
    first = tile * BLOCK_M
    # 网格按最长的序列开，短序列多出来的程序立刻退出。
    # The grid is made for the longest sequence; programs past a shorter one's end leave at once.
    if first >= q_len:
        return

    m_offsets = first + tl.arange(0, BLOCK_M)
    d = tl.arange(0, HEAD_DIM)
    real_query = m_offsets < q_len
    q_row = ((q_start + m_offsets).to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    q = tl.load(q_ptr + q_row[:, None] + d[None, :], mask=real_query[:, None], other=0.0)  # [BLOCK_M, D]

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)

    # 右下角对齐：query i 能看到 key 0 到 i + `shift`；本 tile 的 query 都看得见的 key，一共 `all_see` 个。
    # Bottom-right: query i sees keys 0 to i + `shift`; all queries of this tile see the first `all_see` keys.
    shift = k_len - q_len
    if CAUSAL:
        end = tl.maximum(tl.minimum(first + BLOCK_M + shift, k_len), 0)
        all_see = tl.maximum(tl.minimum(first + shift + 1, k_len), 0)
    else:
        end = k_len
        all_see = k_len
    whole = all_see // BLOCK_N * BLOCK_N

    table = block_table_ptr + seq.to(tl.int64) * table_stride
    # 第一段：不需要任何掩码的整个 tile。大部分计算都在这里，少一次比较就快一截。
    # Part one: whole tiles that need no mask. Most of the work is here, and each comparison saved counts.
    for n in range(0, whole, BLOCK_N):
        token = n + tl.arange(0, BLOCK_N)
        row = kv_rows(n, token, token < k_len, table, k_start, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, BLOCK_N)
        k = tl.load(k_ptr + row[None, :] + d[:, None])  # [D, BLOCK_N]
        scores = tl.dot(q, k, input_precision="ieee") * scale_log2  # [BLOCK_M, BLOCK_N]
        m_new = tl.maximum(m, tl.max(scores, 1))
        shrink = tl.exp2(m - m_new)
        p = tl.exp2(scores - m_new[:, None])
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + row[:, None] + d[None, :])  # [BLOCK_N, D]
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        m = m_new
    # 第二段：对角线附近和结尾，逐个判断谁看得见谁。
    # Part two: near the diagonal and at the end, decide one by one who sees whom.
    for n in range(whole, end, BLOCK_N):
        token = n + tl.arange(0, BLOCK_N)
        valid = token < k_len
        row = kv_rows(n, token, valid, table, k_start, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, BLOCK_N)
        k = tl.load(k_ptr + row[None, :] + d[:, None], mask=valid[None, :], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale_log2
        visible = valid[None, :]
        if CAUSAL:
            visible = visible & (token[None, :] <= m_offsets[:, None] + shift)
        scores = tl.where(visible, scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, 1))
        # 到目前为止什么都没看到的行，最大值还是 -inf，换成 0 再减，避免 -inf - (-inf) = NaN。
        # A row that has seen nothing so far still has -inf; subtract 0 instead, as -inf - (-inf) = NaN.
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        shrink = tl.exp2(m - base)
        p = tl.exp2(scores - base[:, None])
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + row[:, None] + d[None, :], mask=valid[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        m = m_new

    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out_ptr + q_row[:, None] + d[None, :], out.to(out_ptr.dtype.element_ty), mask=real_query[:, None])


def prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    causal: bool,
    block_table: Tensor | None,
) -> Tensor:
    """启动上面的核函数。

    Launch the kernel above.

    Args:
        q: [T, Hq, D], contiguous
        k, v: [Tk, Hkv, D], or [num_blocks, block_size, Hkv, D] with `block_table`

    Returns:
        [T, Hq, D]
    """
    out = torch.empty_like(q)
    num_seqs = cu_seqlens_q.shape[0] - 1
    if num_seqs == 0 or max_seqlen_q == 0:
        return out
    num_heads, head_dim = q.shape[1:]
    # H200 上量过 16 × 1024、head_dim 128：小块 64 × 64 用 397 微秒，128 × 64 用 458 微秒。query 很少时 16 行就够。
    # Measured on an H200, 16 × 1024, head_dim 128: tiles of 64 × 64 take 397 µs, 128 × 64 take 458.
    # With few queries 16 rows do.
    block_m = 64 if max_seqlen_q > 16 else 16
    prefill_kernel[(triton.cdiv(max_seqlen_q, block_m), num_heads, num_seqs)](
        q,
        k,
        v,
        out,
        cu_seqlens_q,
        cu_seqlens_k,
        cu_seqlens_q if block_table is None else block_table,
        softmax_scale * 1.4426950408889634,
        0 if block_table is None else block_table.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=k.shape[-2],
        HEAD_DIM=head_dim,
        PAGE_SIZE=0 if block_table is None else k.shape[1],
        CAUSAL=causal,
        BLOCK_M=block_m,
        BLOCK_N=64,
        num_warps=4,
        num_stages=2,
    )
    return out
