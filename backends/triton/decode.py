"""分页解码注意力（flash-decoding）：每条序列 1 个 query，对缓存里的全部历史计算注意力。

它等价于下面几行普通的 PyTorch（对每条序列 b、每个 KV 头 h）：

    k = k_cache[block_table[b]].flatten(0, 1)[:length, h]        # [length, D]
    v = v_cache[block_table[b]].flatten(0, 1)[:length, h]        # [length, D]
    scores = q[b, h * G : (h + 1) * G] @ k.T * softmax_scale     # [G, length]
    out[b, h * G : (h + 1) * G] = softmax(scores) @ v            # [G, D]

解码受限于带宽：每个 K、V 元素只从显存读一次，服务同组的 G 个 query 头；序列太少时再把历史切成几段并行。

Paged decode attention (flash-decoding): 1 query a sequence, attention over all of its cached history.

It equals the few lines of plain PyTorch above, for each sequence b and KV head h. Decoding is bound by bandwidth: each
element of K and V is read from memory once and serves all G query heads of its group; with few sequences the history is
cut into splits that run in parallel.
Source: Dao et al. 2023, "Flash-Decoding for long-context inference"; Milakov and Gimelshein 2018, online softmax.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.triton.launch import await_inputs, early, nearly_done
from backends.triton.quantized import scale_values


@triton.jit
def kv_rows(
    n, token, valid, table, k_start, kv_head,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """从第 n 个起的一个 tile 的 token，K、V 各从哪个元素开始；`PAGE_SIZE` 就是块大小，0 表示打包存放、没有块表。

    查块表：块编号乘块大小再加块内偏移，就是槽位；先转成 64 位再乘，大缓存会超过 2 ** 31 个元素。

    Where the K and V begin of a tile of tokens from number n on; `PAGE_SIZE` is the block size, and 0 means packed,
    without a block table.
    The block table gives the block; times block size plus offset is the slot, in 64 bits before multiplying, as a large
    cache exceeds 2 ** 31 elements.

    Returns:
        [BLOCK_N] int64，元素下标，调用者再加上 `HEAD_DIM` 维的偏移；
            indices of elements, to which the caller adds the offsets along `HEAD_DIM`
    """
    # `PAGE_SIZE` 在编译时已知，三个分支只有一个会被编译，运行时没有判断。
    # `PAGE_SIZE` is known at compile time: one branch of the three is compiled, and nothing is decided at run time.
    if PAGE_SIZE == 0:
        slot = k_start.to(tl.int64) + token
    elif PAGE_SIZE >= BLOCK_N:
        # 块不小于 tile：整个 tile 在同一个块里，只查一次。
        # A block is no smaller than the tile, which then lies in a single block: look it up once.
        page = tl.load(table + n // PAGE_SIZE).to(tl.int64)
        # 例：块大小 256，n = 320：第 320 // 256 = 1 项，块内偏移 64，从那里起连续取 `BLOCK_N` 个槽位。
        # Example: blocks of 256, n = 320: entry 320 // 256 = 1, offset 64, then `BLOCK_N` slots in a row.
        slot = page * PAGE_SIZE + n % PAGE_SIZE + tl.arange(0, BLOCK_N)
    else:
        # 块比 tile 小：一个 tile 分在几个块里，逐个 token 查表。例：64 个 token、块大小 16，是 4 个块。
        # Blocks smaller than the tile: it lies in several blocks, and each token looks up its own. Example: 64 tokens
        # in blocks of 16 are 4 blocks.
        page = tl.load(table + token // PAGE_SIZE, mask=valid, other=0).to(tl.int64)
        slot = page * PAGE_SIZE + token % PAGE_SIZE
    return (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM


@triton.jit
def merge_splits(partial_ptr, lse_ptr, out_ptr, row, parts, HEAD_DIM: tl.constexpr, NUM_SPLITS: tl.constexpr):
    """合并一个（序列，query 头）的各段：out = Σ w_i * out_i / Σ w_i，其中 w_i = 2 ** lse_i。

    Merge the splits of a (sequence, query head): out = Σ w_i * out_i / Σ w_i with w_i = 2 ** lse_i.
    """
    s = tl.arange(0, NUM_SPLITS)
    d = tl.arange(0, HEAD_DIM)
    real = s < parts
    # 例：两段的 lse 是 3 和 2，权重就是 1 和 0.5：前一段占三分之二。
    # Example: splits with lse 3 and 2 have weights 1 and 0.5, so the first counts for two thirds.
    # `.cg` 绕过本处理器的 L1：别的处理器写的数在 L2 里。
    # `.cg` passes by this multiprocessor's L1: what others wrote is in L2.
    lse = tl.load(lse_ptr + row * NUM_SPLITS + s, mask=real, other=float("-inf"), cache_modifier=".cg")
    weight = tl.exp2(lse - tl.max(lse, 0))  # [NUM_SPLITS]
    partial = tl.load(
        partial_ptr + (row * NUM_SPLITS + s[:, None]) * HEAD_DIM + d[None, :], mask=real[:, None], other=0.0,
        cache_modifier=".cg",
    )  # fmt: skip
    out = tl.sum(partial * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out_ptr + row * HEAD_DIM + d, out.to(out_ptr.dtype.element_ty))


# 张量进了核函数只剩指针，大写的 `tl.constexpr` 参数在编译时就已知；GPU 的基本概念见 `store.py` 的注释。
# Inside a kernel a tensor is a mere pointer, and the `tl.constexpr` arguments in capitals are known at compile time;
# for the basics of a GPU see the comments in `store.py`.
@triton.jit(do_not_specialize=["cache_seqlens_ptr", "block_table_ptr", "table_stride"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, k_descale_ptr, v_descale_ptr, out_ptr, partial_ptr, lse_ptr, arrived_ptr, order_ptr,
    cache_seqlens_ptr, block_table_ptr, scale_log2, table_stride,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, NUM_SPLITS: tl.constexpr, EARLY: tl.constexpr,
):
    """一个程序：一条序列、一个 KV 头、历史的一段。

    One program: one sequence, one KV head, one split of the history.
    """
    await_inputs(EARLY)
    # 网格有 3 维：KV 头、序列、段。例：8 个 KV 头、1 条序列、32 段，共 256 个程序，132 个流式多处理器都能分到。
    # The grid has 3 dimensions: KV head, sequence, split. Example: 8 KV heads, 1 sequence and 32 splits are 256
    # programs, enough for all 132 multiprocessors.
    # 程序按这个次序开工，第 0 维变得最快：同一个 token 的各个 KV 头在显存里相邻，也就差不多同时去读。
    # Programs start in this order, dimension 0 changing fastest: a token's KV heads are neighbours in memory and are
    # read at about the same time.
    kv_head = tl.program_id(0)
    seq = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    # 最长的先开工，见 `order_kernel`。
    # The longest start first, see `order_kernel`.
    if order_ptr is not None:
        seq = tl.load(order_ptr + seq).to(tl.int64)

    # 长度在设备上读，不是启动参数：同一张 CUDA graph 才能服务所有长度。
    # The length is read on the device and is no launch argument, so that one CUDA graph serves all lengths.
    length = tl.load(cache_seqlens_ptr + seq)
    # 把历史按 tile 平分给各段；例：10 个 tile 分给 4 段，每段 3 个，最后一段只剩 1 个。
    # Share the tiles among the splits; example: 10 tiles over 4 splits are 3 each, and the last is left with 1.
    tiles = tl.cdiv(length, BLOCK_N)
    split_len = tl.cdiv(tiles, NUM_SPLITS) * BLOCK_N
    # 例：`BLOCK_N` = 64 时，长度 600 是 10 个 tile，4 段的起点是 0、192、384、576，最后一段只有 24 个 token。
    # Example: with `BLOCK_N` = 64, length 600 is 10 tiles; 4 splits begin at 0, 192, 384 and 576,
    # and the last has 24 tokens.
    start = split * split_len
    end = tl.minimum(start + split_len, length)
    # 短的历史分不满：2 个 tile 切 4 段，后 2 段是空的，直接退出；长度 0 也留 1 段，由它写出 0。
    # A short history does not fill all splits: with 2 tiles for 4 of them, the last 2 are empty and leave; at length 0
    # there is still 1, to write zeros.
    parts = tl.maximum(tl.cdiv(length, tl.maximum(split_len, 1)), 1)
    if split >= parts:
        return

    # 同组的 G 个 query 头拼成一个小矩阵，补到 16 行：`tl.dot` 至少要 16 行才用得上张量核心。
    # The group's G query heads form a small matrix, padded to 16 rows: `tl.dot` needs 16 to use tensor cores.
    # `tl.arange` 的长度必须是 2 的幂：tile 要平均分给线程，线程数（32 乘 warp 数）也是 2 的幂。
    # The length of `tl.arange` must be a power of 2: a tile is shared evenly among threads, whose number (32 times the
    # warps) is a power of 2 as well.
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, HEAD_DIM)
    # 例：32 个 query 头、8 个 KV 头，`GROUP` = 4：KV 头 2 服务 query 头 8 到 11；补上的 12 行读成 0，也不写回。
    # Example: 32 query heads, 8 KV heads, `GROUP` = 4: KV head 2 serves query heads 8 to 11;
    # the other 12 rows read as 0 and are not written back.
    q_head = kv_head * GROUP + g
    q_row = (seq * (NUM_KV_HEADS * GROUP) + q_head) * HEAD_DIM
    real_head = g < GROUP
    q = tl.load(q_ptr + q_row[:, None] + d[None, :], mask=real_head[:, None], other=0.0)  # [BLOCK_G, D]

    # 在线 softmax 的三个累加器：目前的最大分数 m、指数之和 total、加权和 acc。
    # The accumulators of the online softmax: largest score so far m, sum of exponentials total, weighted sum acc.
    # 三者都是 float32，并且一直留在寄存器里：bf16 只有 8 位有效数字，累加几百项就不准了。
    # All three are float32 and stay in registers: bf16 keeps 8 significant bits, too few for sums of hundreds of terms.
    m = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, HEAD_DIM], tl.float32)

    table = block_table_ptr + seq * table_stride
    # 流水线：`num_stages` 让编译器可以在算这一个 tile 时，就发出后面 tile 的读取，乘法不必每轮都干等显存。
    # Pipelining: `num_stages` lets the compiler issue the loads of later tiles while this one is computed, so that the
    # products need not wait for memory in every round.
    for n in range(start, end, BLOCK_N):
        token = n + tl.arange(0, BLOCK_N)
        # 末尾的 tile 可能越过 `end`：GPU 的指针没有越界检查，掩码为假的位置不读显存，直接得到 `other` 的值。
        # The last tile may run past `end`: a GPU's pointers have no bounds check; where the mask is false, memory is
        # not read and the value is that of `other`.
        valid = token < end
        kv_row = kv_rows(n, token, valid, table, 0, kv_head, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE, BLOCK_N)
        # K 直接按转置的形状 [D, N] 取，省去一次转置。
        # K is loaded in its transposed shape [D, N], which saves a transpose.
        k = tl.load(k_ptr + kv_row[None, :] + d[:, None], mask=valid[None, :], other=0.0)  # [D, BLOCK_N]
        # `tl.dot` 是矩阵乘法，bf16 和 fp16 用张量核心；`"ieee"` 让 float32 的输入按完整精度相乘，不降成 TF32。
        # `tl.dot` is a matrix product, on tensor cores for bf16 and fp16; `"ieee"` multiplies float32 inputs in full
        # precision and not in TF32.
        scores = tl.dot(q, k.to(q.dtype), input_precision="ieee") * scale_log2  # [BLOCK_G, BLOCK_N]
        # 量化的缓存：一个 key 的 D 个编码共用 1 个缩放，乘积之后再乘也一样：q · (code * s) = (q · code) * s。
        # A quantized cache: all D codes of a key share 1 scale, so it may multiply the product:
        # q · (code * s) = (q · code) * s.
        if k_descale_ptr is not None:
            scores *= tl.load(k_descale_ptr + kv_row // HEAD_DIM, mask=valid, other=0.0)[None, :]
        # 越界的 key 读成 0，分数是 0 而不是“没有”；换成 -inf，2 ** -inf 才正好是 0。
        # A key past the end reads as 0, and its score is 0 and not "none"; as -inf it becomes 2 ** -inf, which is just
        # 0.
        scores = tl.where(valid[None, :], scores, float("-inf"))

        # 新的最大值出现时，旧的累加器按 2 ** (旧 - 新) 缩小，结果与一次看完全部分数相同。
        # When a larger score appears, the old accumulators shrink by 2 ** (old - new), as if all were seen at once.
        # 减去最大值是防溢出：2 ** 200 在 float32 里已是 inf，而 2 ** (分数 - 最大值) 总在 0 与 1 之间。
        # Subtracting the maximum prevents overflow: 2 ** 200 is inf in float32, while 2 ** (score - maximum) is between
        # 0 and 1.
        # 例：先看到分数 2，`total` 是 1；又看到 3：旧的乘 2 ** (2 - 3) = 0.5，`total` = 1 * 0.5 + 1 = 1.5。
        # Example: score 2 comes first, `total` is 1; then 3: the old is scaled by 2 ** (2 - 3) = 0.5,
        # and `total` = 1 * 0.5 + 1 = 1.5.
        # v 是 10 和 20 时，`acc` 从 10 变成 10 * 0.5 + 20 = 25，输出 25 / 1.5 = 16.67，与一次算完的 softmax 相同。
        # With v of 10 and 20, `acc` goes from 10 to 10 * 0.5 + 20 = 25, and 25 / 1.5 = 16.67 is what one full softmax
        # gives.
        m_new = tl.maximum(m, tl.max(scores, 1))
        # 一段刚开始时，m 还是 -inf，2 ** -inf = 0：空的累加器乘 0，仍是 0。
        # At the start of a split, m is still -inf, and 2 ** -inf = 0: empty accumulators times 0 stay 0.
        shrink = tl.exp2(m - m_new)
        p = tl.exp2(scores - m_new[:, None])
        total = total * shrink + tl.sum(p, 1)
        # 没写过的槽位可能是 NaN，0 * NaN 还是 NaN，所以取 V 时也要把它们换成 0。
        # An unwritten slot may hold NaN, and 0 * NaN is NaN, so V's invalid rows are loaded as 0, too.
        v = tl.load(v_ptr + kv_row[:, None] + d[None, :], mask=valid[:, None], other=0.0)  # [BLOCK_N, D]
        # p 先转成 v 的精度：张量核心要求两个输入的 dtype 相同；乘积的累加仍是 float32。
        # p is cast to v's precision first: tensor cores want both inputs of one dtype; the products still add up in
        # float32.
        # V 的缩放各个 token 不同，乘在权重上：Σ p · (code * s) = Σ (p * s) · code。
        # V's scale differs from token to token and multiplies the weights: Σ p · (code * s) = Σ (p * s) · code.
        if v_descale_ptr is not None:
            p, v = scale_values(p, v, tl.load(v_descale_ptr + kv_row // HEAD_DIM, mask=valid, other=0.0), q.dtype)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new

    # 长度为 0 时 total 是 0：除以 1，输出就是 0，而不是 0 / 0。
    # At length 0 total is 0: divide by 1, so the output is 0 and not 0 / 0.
    empty = total == 0.0
    nearly_done(EARLY)
    out = acc / tl.where(empty, 1.0, total)[:, None]
    out_type = out_ptr.dtype.element_ty
    # 只有 1 段时直接写出结果；否则先写下 float32 的部分结果，由最后到达的程序合并。
    # 1 part is the result itself; else it is kept in float32, for the program that arrives last to merge.
    if parts == 1:
        tl.store(out_ptr + q_row[:, None] + d[None, :], out.to(out_type), mask=real_head[:, None])
    elif NUM_SPLITS > 1:
        part = q_row // HEAD_DIM * NUM_SPLITS + split
        tl.store(partial_ptr + part[:, None] * HEAD_DIM + d[None, :], out, mask=real_head[:, None])
        # 各段的“总权重”以 log2 记下，合并时按它加权。
        # Each split's total weight is kept as its log2, by which the merge weighs it.
        tl.store(lse_ptr + part, m + tl.log2(total), mask=real_head)
        # 与 `skinny.py` 一样签到：栅栏等本程序的线程都写完，计数说明谁最后到达。
        # Sign in as in `skinny.py`: the barrier waits until this program's threads have written, and the count tells
        # who is last.
        tl.debug_barrier()
        counter = arrived_ptr + seq * NUM_KV_HEADS + kv_head
        if tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1:
            tl.store(counter, 0)
            for i in range(GROUP):
                merge_splits(partial_ptr, lse_ptr, out_ptr, seq * (NUM_KV_HEADS * GROUP) + kv_head * GROUP + i, parts,
                             HEAD_DIM, NUM_SPLITS)  # fmt: skip


def choose_num_splits(batch: int, num_kv_heads: int, num_processors: int) -> int:
    """历史切成几段：程序数将要凑满每个流式多处理器 4 个时停下，取 2 的幂，最多 32。

    例（132 个流式多处理器，8 个 KV 头）：1 条序列切 32 段，8 条切 8 段，33 条起不切。
    只看批大小、不看长度，所以录进 CUDA graph 之后仍然适用。

    How many splits: a power of 2 that stops short of 4 programs for each multiprocessor, at most 32.
    Example (132 multiprocessors, 8 KV heads): 1 sequence is cut into 32, 8 into 8, and from 33 on there is 1.
    It depends on the batch size and not on lengths, so it holds inside a CUDA graph.
    """
    programs = max(1, batch * num_kv_heads)
    splits = 1
    # H200 上量过：1 条 2048 的序列，32 段用 9.1 微秒，64 段用 9.6；8 条 600 的，8 段用 13.1，16 段用 15.9。
    # Measured on an H200: 1 sequence of 2048 takes 9.1 µs in 32 splits, 9.6 in 64;
    # 8 sequences of 600 take 13.1 in 8 splits, 15.9 in 16.
    while splits < 32 and 2 * splits * programs < 4 * num_processors:
        splits *= 2
    return splits


@triton.jit(do_not_specialize=["batch"])
def order_kernel(cache_seqlens_ptr, order_ptr, batch, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """一个程序：一条序列的名次，即有几条比它长；一样长的，编号小的在前。

    One program: the rank of a sequence, that is how many are longer; among equals the smaller number comes first.
    """
    await_inputs(EARLY)
    seq = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    # 例：长度 [5, 9, 5]：序列 0 前面有 1 条，序列 1 没有，序列 2 有 2 条，次序是 [1, 0, 2]。
    # Example: lengths [5, 9, 5]: 1 precedes sequence 0, none precedes 1, and 2 precede 2; the order is [1, 0, 2].
    own = tl.load(cache_seqlens_ptr + seq)
    lengths = tl.load(cache_seqlens_ptr + i, mask=i < batch, other=-1)
    rank = tl.sum(((lengths > own) | ((lengths == own) & (i < seq))).to(tl.int32), 0)
    tl.store(order_ptr + rank, seq)


def longest_first(cache_seqlens: Tensor) -> Tensor:
    """各序列开工的次序，长的在前：短的最后填空，各流式多处理器才差不多同时收工。

    The order in which sequences start, the longest first: short ones fill the gaps at the end, so that all
    multiprocessors finish at about the same time.

    Args:
        cache_seqlens: [B] int32

    Returns:
        [B] int32
    """
    batch = cache_seqlens.shape[0]
    order = torch.empty_like(cache_seqlens)
    order_kernel[(batch,)](
        cache_seqlens, order, batch, BLOCK=triton.next_power_of_2(batch), num_warps=1,
        **early(cache_seqlens.device, batch),
    )  # fmt: skip
    return order


def choose_tile(head_dim: int, element_size: int) -> tuple[int, int, int]:
    """一个 tile 几个 token，几个 warp，几级流水线；6 级最多提前 5 个 tile 取数。

    Tokens of a tile, warps, and pipeline stages; 6 stages load up to 5 tiles ahead.

    Args:
        element_size: 缓存里一个数几个字节；bytes of a number in the cache
    """
    # 编码只有 1 字节：tile 大一倍，字节数相同。H100 上量过，256 行、512 到 1024 个 token：int8 179 微秒，原先 201；
    # bf16 269。
    # Codes are 1 byte: twice the tile is as many bytes. Measured on an H100, 256 rows of 512 to 1024 tokens: int8 takes
    # 179 µs, was 201; bf16 takes 269.
    if element_size == 1:
        return 64, 2, 3
    # H200 上量过，Qwen3-0.6B 一步的毫秒数：长短不一的 64 行 2.82，64 个 token、3 级是 2.93；256 行 6.29，原先 6.37。
    # Measured on an H200, milliseconds a step of Qwen3-0.6B: 64 rows of mixed lengths take 2.82, with 64 tokens and 3
    # stages 2.93; 256 rows take 6.29, where it was 6.37.
    if head_dim * element_size <= 256:
        return 32, 2, 6
    # 头宽到 float32 的 128 时，6 级放不进共享内存，少提前一些。
    # Heads as wide as 128 in float32 leave no room for 6 stages in shared memory: fewer ahead.
    return 64, 2, 3


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor, softmax_scale: float,
    num_processors: int, arrived: Tensor, order: Tensor | None = None, k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
) -> Tensor:
    """启动上面的核函数。

    Launch the kernel above.

    Args:
        q: [B, Hq, D]，内存连续；contiguous
        k_cache, v_cache: [num_blocks, block_size, Hkv, D]
        cache_seqlens: [B] int32
        block_table: [B, max_blocks] int32，每行内存连续；rows contiguous
        arrived: [2 * num_processors] int32，值为 0 的计数器，用完又是 0；counters of value 0, and 0 again afterwards
        order: `longest_first` 的结果，None 则按编号；what `longest_first` returned; None: by their numbers
        k_descale, v_descale: [num_blocks, block_size, Hkv] float32，量化的缓存才有；of a quantized cache

    Returns:
        [B, Hq, D]
    """
    batch, num_heads, head_dim = q.shape
    _, page_size, num_kv_heads, _ = k_cache.shape
    out = torch.empty_like(q)
    if batch == 0:
        return out
    group = num_heads // num_kv_heads
    num_splits = choose_num_splits(batch, num_kv_heads, num_processors)
    # 只有 1 段时，核函数直接写 `out`，部分结果用不到，传谁都行。
    # With 1 split the kernel writes `out` itself; parts are not used, whatever they are.
    partial = lse = out
    if num_splits > 1:
        partial = torch.empty(batch, num_heads, num_splits, head_dim, dtype=torch.float32, device=q.device)
        lse = torch.empty(batch, num_heads, num_splits, dtype=torch.float32, device=q.device)
    block_n, num_warps, num_stages = choose_tile(head_dim, k_cache.element_size())
    decode_kernel[(num_kv_heads, batch, num_splits)](
        # 没有量化时传的是 None：编译时就知道，编译出的核函数里没有缩放。
        # Without quantization None is passed: that is known to the compiler, and its kernel has no scales in it.
        q, k_cache, v_cache, k_descale, v_descale, out, partial, lse, arrived, order, cache_seqlens, block_table,
        # exp(x) = 2 ** (x * log2(e))：硬件只有 2 的幂，先把常数乘进缩放里。
        # exp(x) = 2 ** (x * log2(e)): the hardware has powers of 2 only, so fold the constant into the scale.
        softmax_scale * 1.4426950408889634, block_table.stride(0),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, BLOCK_G=max(16, triton.next_power_of_2(group)), HEAD_DIM=head_dim,
        PAGE_SIZE=page_size, BLOCK_N=block_n, NUM_SPLITS=num_splits, num_warps=num_warps, num_stages=num_stages,
        **early(q.device, batch),
    )
    return out
