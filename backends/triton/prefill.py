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
from triton.tools.ragged_tma import create_ragged_descriptor, load_ragged

from backends.triton.decode import kv_rows
from backends.triton.quantized import scale_values

# 平均每条序列超过这么多个 query，才用 `prefill_hopper_kernel`。
# `prefill_hopper_kernel` is used from this many queries a sequence on, on average.
HOPPER_QUERIES = 768


@triton.jit(do_not_specialize=["cu_seqlens_q_ptr", "cu_seqlens_k_ptr", "block_table_ptr", "table_stride"])
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, k_descale_ptr, v_descale_ptr, out_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, block_table_ptr,
    scale_log2, table_stride, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """一个程序：一条序列、一个 query 头、BLOCK_M 个 query。

    One program: one sequence, one query head, BLOCK_M queries.
    """
    seq = tl.program_id(2)
    head = tl.program_id(1)
    # 例：32 个 query 头、8 个 KV 头，每组 4 个：query 头 0 到 3 用 KV 头 0，头 5 用 KV 头 1。
    # Example: 32 query heads and 8 KV heads make groups of 4: query heads 0 to 3 use KV head 0, and head 5 uses KV head
    # 1.
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    # 因果掩码下靠后的 query 看得更多、算得更久，让它们先开始，收尾时就不会只剩一个在忙。
    # Under the causal mask later queries see more and take longer; start with them, so none is left alone at the end.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)

    # 相邻的两个累计长度之差就是长度：[0, 3, 8] 的序列 1 从第 3 行开始，长 8 - 3 = 5。
    # Neighbouring running sums differ by the length: in [0, 3, 8] sequence 1 begins at row 3 and has 8 - 3 = 5.
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
    # 例：长 100 的序列用两个 64 行的 tile，后一个只有 36 行是真的；其余读成 0，照算但不写回，免得写到别的序列里。
    # Example: a sequence of 100 takes tiles of 64 rows; the latter has 36 real ones. The others read as 0, are computed
    # along and never written, as that place may be another sequence's.
    real_query = m_offsets < q_len
    q_row = ((q_start + m_offsets).to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    q = tl.load(q_ptr + q_row[:, None] + d[None, :], mask=real_query[:, None], other=0.0)  # [BLOCK_M, D]

    # 在线 softmax 的三个累加器，都是 float32；带数字的例子见 `decode.py`。
    # The three accumulators of the online softmax, all float32; for an example with numbers see `decode.py`.
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
    # 例：`BLOCK_M` = `BLOCK_N` = 64，从头预填充 200 个 token，`first` = 64：`all_see` = 65，`whole` = 64，`end` = 128。
    # Example: `BLOCK_M` = `BLOCK_N` = 64, 200 tokens with nothing cached, `first` = 64: `all_see` = 65, `whole` = 64,
    # `end` = 128.
    #     keys 0 .. 63: part one, no mask     64 .. 127: part two, masked     128 .. 199: never read
    whole = all_see // BLOCK_N * BLOCK_N

    table = block_table_ptr + seq.to(tl.int64) * table_stride
    # 第一段：不需要任何掩码的整个 tile。大部分计算都在这里，少一次比较就快一截。
    # Part one: whole tiles that need no mask. Most of the work is here, and each comparison saved counts.
    for n in range(0, whole, BLOCK_N):
        token = n + tl.arange(0, BLOCK_N)
        row = kv_rows(n, token, token < k_len, table, k_start, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, BLOCK_N)
        # `row` 作列、`d` 作行，取出来就是转置好的 K；没有掩码，因为这个 tile 里全是真实的 key。
        # With `row` for columns and `d` for rows, K arrives transposed; there is no mask, as all keys of this tile are
        # real.
        k = tl.load(k_ptr + row[None, :] + d[:, None])  # [D, BLOCK_N]
        scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale_log2  # [BLOCK_M, BLOCK_N]
        # 量化的缓存：K 的缩放乘到分数上，V 的乘到权重上，见 `decode.py`。
        # A quantized cache: K's scale multiplies scores and V's the weights, see `decode.py`.
        if k_descale_ptr is not None:
            scores *= tl.load(k_descale_ptr + row // HEAD_DIM)[None, :]
        # 每一行都看得见这里的每个 key，所以 `m_new` 一定不是 -inf，不必像第二段那样防 NaN。
        # Every row sees every key here, so `m_new` is never -inf and needs no guard against NaN as in part two.
        m_new = tl.maximum(m, tl.max(scores, 1))
        shrink = tl.exp2(m - m_new)
        p = tl.exp2(scores - m_new[:, None])
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + row[:, None] + d[None, :])  # [BLOCK_N, D]
        if v_descale_ptr is not None:
            p, v = scale_values(p, v, tl.load(v_descale_ptr + row // HEAD_DIM), q.dtype)
        # 第三个参数是累加的起点：p @ v 直接加在缩小后的 `acc` 上，张量核心本来就会做“乘完再加”。
        # The third argument is what to add to: p @ v goes on top of the shrunken `acc`, as tensor cores multiply and
        # add anyway.
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        m = m_new
    # 第二段：对角线附近和结尾，逐个判断谁看得见谁。
    # Part two: near the diagonal and at the end, decide one by one who sees whom.
    for n in range(whole, end, BLOCK_N):
        token = n + tl.arange(0, BLOCK_N)
        valid = token < k_len
        row = kv_rows(n, token, valid, table, k_start, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, BLOCK_N)
        k = tl.load(k_ptr + row[None, :] + d[:, None], mask=valid[None, :], other=0.0)
        scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale_log2
        # 末尾之外的槽位没写过，缩放也是垃圾值，所以同样用掩码读成 0。
        # Slots past the end were never written and their scales are garbage, too: masked, they read as 0.
        if k_descale_ptr is not None:
            scores *= tl.load(k_descale_ptr + row // HEAD_DIM, mask=valid, other=0.0)[None, :]
        visible = valid[None, :]
        if CAUSAL:
            # [1, BLOCK_N] 与 [BLOCK_M, 1] 比较，广播成一张 [BLOCK_M, BLOCK_N] 的布尔表：谁看得见谁。
            # [1, BLOCK_N] compared with [BLOCK_M, 1] broadcasts to a table of booleans, [BLOCK_M, BLOCK_N]: who sees
            # whom.
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
        if v_descale_ptr is not None:
            p, v = scale_values(p, v, tl.load(v_descale_ptr + row // HEAD_DIM, mask=valid, other=0.0), q.dtype)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        m = m_new

    # 到最后才除一次总和；什么都没看到的行 `total` 是 0，改除以 1，输出就是约定的 0。
    # Divide by the sum once, at the very end; a row that saw nothing has `total` 0 and divides by 1, giving the agreed
    # 0.
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out_ptr + q_row[:, None] + d[None, :], out.to(out_ptr.dtype.element_ty), mask=real_query[:, None])


@triton.jit(do_not_specialize=["cu_seqlens_q_ptr", "cu_seqlens_k_ptr", "block_table_ptr", "table_stride"])
def prefill_hopper_kernel(
    q_ptr, k_desc, v_desc, out_ptr, cu_seqlens_q_ptr, cu_seqlens_k_ptr, block_table_ptr, scale_log2, table_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """与上面相同的计算，为 Hopper 写的：分页、因果、半精度。

    描述符（tensor descriptor）记着一个张量的地址、形状和步长。有了它，一个线程发一条指令，搬运单元（TMA）就把整个 tile
    搬进共享内存；上面的核函数要所有线程逐个算地址。空出来的线程由 `warp_specialize` 分工，三组 warp 同时干活：

        搬运    | K0 V0 | K1 V1 | K2 V2 | ...      把后面的 tile 搬来
        计算 A          | tile 0 | tile 1 | ...    前 64 个 query：张量核心算乘积时，B 正在算 exp2
        计算 B          | tile 0 | tile 1 | ...    后 64 个 query：反过来

    The same computation as above, made for Hopper: paged, causal, half precision.

    A tensor descriptor holds a tensor's address, shape and strides. With it one thread gives one instruction, and the
    copy engine (TMA) moves a whole tile into shared memory; in the kernel above all threads compute addresses one by
    one. `warp_specialize` shares out the freed threads, three groups of warps at work at once, as drawn above: one
    brings the tiles to come, two compute 64 queries each, and while the tensor cores multiply for A, B takes its exp2.
    Source: Shah et al. 2024, "FlashAttention-3", section 3.1.
    """
    seq, head = tl.program_id(2), tl.program_id(1)
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    q_start = tl.load(cu_seqlens_q_ptr + seq)
    q_len = tl.load(cu_seqlens_q_ptr + seq + 1) - q_start
    k_len = tl.load(cu_seqlens_k_ptr + seq + 1) - tl.load(cu_seqlens_k_ptr + seq)
    first, shift = tile * BLOCK_M, k_len - q_len
    m_offsets = first + tl.arange(0, BLOCK_M)
    # q 的描述符在这里现做：编译器要把它对半分给 A、B，CPU 上做好的改不了。最后一个累计长度是总行数。
    # q's descriptor is made here: the compiler halves it for A and B, and could not change one made on the CPU. The
    # last running sum is the number of all rows.
    rows = tl.load(cu_seqlens_q_ptr + tl.num_programs(2))
    q_desc = tl.make_tensor_descriptor(
        q_ptr, [rows, NUM_HEADS * HEAD_DIM], [NUM_HEADS * HEAD_DIM, 1], [BLOCK_M, HEAD_DIM]
    )
    # 序列结尾之后的行属于下一条序列：照算，不写回；总行数之外的读成 0。
    # Rows past the sequence's end are the next one's: computed along and never written; rows past all read as 0.
    q = q_desc.load([q_start + first, head * HEAD_DIM])  # [BLOCK_M, D]

    # 最大值从 float32 的下限（而不是 -inf）开始：什么都没看到的行算 -inf - `m`，得 -inf 而不是 NaN。
    # The maximum starts at float32's lower limit, not at -inf: a row that sees nothing computes -inf - `m`, which is
    # -inf and not NaN.
    m = tl.full([BLOCK_M], -3.4e38, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    # 编译器只会给唯一一个循环分工：所以不分两段，每个 tile 都用掩码；也不能提前退出，多出来的程序走 0 轮。
    # The compiler shares out the work of a single loop only: so there are no two parts, and each tile is masked; nor
    # may a program leave early, and those past the end make 0 rounds.
    end = tl.where(first < q_len, tl.minimum(first + BLOCK_M + shift, k_len), 0)
    table = block_table_ptr + seq.to(tl.int64) * table_stride
    for n in tl.range(0, end, BLOCK_N, warp_specialize=True):
        # `BLOCK_N` 整除块大小，所以一个 tile 只在一个块里，查一次块表就够。
        # `BLOCK_N` divides the block size, so a tile lies within one block, and the block table is read once.
        slot = tl.load(table + n // PAGE_SIZE) * PAGE_SIZE + n % PAGE_SIZE
        k = load_ragged(k_desc, slot, k_len - n, [0, kv_head * HEAD_DIM])  # [BLOCK_N, D]
        scores = tl.dot(q, k.T)  # [BLOCK_M, BLOCK_N]
        token = n + tl.arange(0, BLOCK_N)
        scores = tl.where(token[None, :] <= m_offsets[:, None] + shift, scores, float("-inf"))
        # 缩放大于 0，最大值先求再缩放也一样；乘和减就合成一条指令。
        # The scale is above 0, so the maximum may be scaled after it is found; multiply and subtract become one
        # instruction.
        m_new = tl.maximum(m, tl.max(scores, 1) * scale_log2)
        shrink = tl.exp2(m - m_new)
        p = tl.exp2(scores * scale_log2 - m_new[:, None])
        total = total * shrink + tl.sum(p, 1)
        # 结尾之后的槽位可能是 NaN，而 0 × NaN 还是 NaN；`load_ragged` 只读 `k_len - n` 行，其余由硬件填 0。
        # Slots past the end may hold NaN, and 0 × NaN is NaN; `load_ragged` reads `k_len - n` rows and no more, for the
        # others the hardware gives 0.
        v = load_ragged(v_desc, slot, k_len - n, [0, kv_head * HEAD_DIM])
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        m = m_new

    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    row = ((q_start + m_offsets).to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    out_ptrs = out_ptr + row[:, None] + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(m_offsets < q_len)[:, None])


def suits_hopper(q: Tensor, k: Tensor, page_size: int, num_seqs: int, softmax_scale: float) -> bool:
    """是否用 `prefill_hopper_kernel`，它不读编码；解释模式也用它，好让测试走到。

    Whether to use `prefill_hopper_kernel`, which reads no codes; the interpreter uses it, too, so that the tests reach
    it.

    Args:
        page_size: 块大小，打包时为 0；the block size, 0 if packed
    """
    # H100 上量过（32 个头、8 个 KV 头，TFLOP/s）：4 条 2048 是 414，另一个核函数 350；64 条 100 到 1024 的反过来，
    # 214 和 247：这个核函数不能提前退出，短序列末尾多出来的程序也要走完。
    # Measured on an H100 (32 heads, 8 KV heads, TFLOP/s): 4 of 2048 make 414, the other kernel 350; with 64 of 100 to
    # 1024 it is the reverse, 214 and 247: this kernel cannot leave early, and programs past a short one's end go on.
    long = q.shape[0] > HOPPER_QUERIES * num_seqs
    hopper = q.device.type != "cuda" or torch.cuda.get_device_capability(q.device)[0] == 9
    half = k.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] in (64, 128)
    return hopper and half and page_size >= 64 and long and softmax_scale > 0


def prefill_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    softmax_scale: float, causal: bool, block_table: Tensor | None, k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
) -> Tensor:
    """启动上面两个核函数中的一个。

    Launch one of the two kernels above.

    Args:
        q: [T, Hq, D]，内存连续；contiguous
        k, v: [Tk, Hkv, D]，有 `block_table` 时是分页的缓存；paged caches with `block_table`
        k_descale, v_descale: [num_blocks, block_size, Hkv] float32，量化的缓存才有；of a quantized cache

    Returns:
        [T, Hq, D]
    """
    out = torch.empty_like(q)
    num_seqs = cu_seqlens_q.shape[0] - 1
    if num_seqs == 0 or max_seqlen_q == 0:
        return out
    num_heads, head_dim = q.shape[1:]
    page_size = 0 if block_table is None else k.shape[1]
    # 1.4427 是 log2(e)，乘进缩放里，softmax 就能用 exp2：硬件直接算的是 2 的幂，exp(1) = 2 ** 1.4427 = 2.718。
    # 1.4427 is log2(e); folded into the scale it lets softmax use exp2, as powers of 2 are what the hardware
    # computes: exp(1) = 2 ** 1.4427 = 2.718.
    scale_log2 = softmax_scale * 1.4426950408889634
    if causal and block_table is not None and suits_hopper(q, k, page_size, num_seqs, softmax_scale):
        block_n = min(page_size, 128)
        # 核函数里现做的描述符每个 128 字节，放在显存里，由 Triton 启动时向这个函数要。
        # A descriptor made in the kernel takes 128 bytes of device memory, for which Triton asks this at launch.
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=q.device))
        # 描述符把缓存看成一行一个槽位的 [slots, Hkv * D]，每次取 `block_n` 行、一个头的 D 列。
        # To the descriptors the caches are [slots, Hkv * D], a slot a row, of which `block_n` rows and one head's D
        # columns are taken at a time.
        caches = [create_ragged_descriptor(x.flatten(0, 1).flatten(1), [block_n, head_dim]) for x in (k, v)]
        prefill_hopper_kernel[(triton.cdiv(max_seqlen_q, 128), num_heads, num_seqs)](
            q, *caches, out, cu_seqlens_q, cu_seqlens_k, block_table, scale_log2, block_table.stride(0),
            NUM_HEADS=num_heads, NUM_KV_HEADS=k.shape[-2], HEAD_DIM=head_dim, PAGE_SIZE=page_size, BLOCK_M=128,
            BLOCK_N=block_n, num_warps=4, num_stages=2,
        )  # fmt: skip
        return out
    # H200 上量过 16 × 1024、head_dim 128：小块 64 × 64 用 397 微秒，128 × 64 用 458 微秒。query 很少时 16 行就够。
    # Measured on an H200, 16 × 1024, head_dim 128: tiles of 64 × 64 take 397 µs, 128 × 64 take 458.
    # With few queries 16 rows do.
    block_m = 64 if max_seqlen_q > 16 else 16
    # 网格：（query 的 tile，query 头，序列）。例：两条序列，最长 200，32 个头：[4, 32, 2]，共 256 个程序。
    # The grid: (tile of queries, query head, sequence). Example: two sequences, at most 200 long, 32 heads:
    # [4, 32, 2], which is 256 programs.
    prefill_kernel[(triton.cdiv(max_seqlen_q, block_m), num_heads, num_seqs)](
        q, k, v, k_descale, v_descale, out, cu_seqlens_q, cu_seqlens_k,
        # 打包时没有块表，随便传一个张量占位：`PAGE_SIZE` 为 0 的那份核函数不会读它。
        # Packed K and V have no block table, and any tensor stands in: the kernel compiled for `PAGE_SIZE` 0 never
        # reads it.
        cu_seqlens_q if block_table is None else block_table, scale_log2,
        0 if block_table is None else block_table.stride(0),
        NUM_HEADS=num_heads, NUM_KV_HEADS=k.shape[-2], HEAD_DIM=head_dim, PAGE_SIZE=page_size, CAUSAL=causal,
        # 4 个 warp（128 个线程）分一个 tile；2 级流水线：算这一个 tile 时，下一个可以已经在路上，再多要占更多共享内存。
        # 4 warps (128 threads) share a tile; a pipeline of 2 stages: the next tile can be on its way while this one is
        # computed. More stages would take more shared memory.
        BLOCK_M=block_m, BLOCK_N=64, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
