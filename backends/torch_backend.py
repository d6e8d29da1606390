"""参考后端：用最朴素的张量运算写出注意力的每一步，一条序列接一条序列地算。

它不求快，只求看得清：取块、打分、掩码、softmax、加权求和各占一行，适合设断点。
其余后端都以它为参照（它自己则由测试里的 float64 版本检验）。

The reference backend: every step of attention in plain tensor operations, one sequence after the other.

It is made to be seen, not to be fast: gather, scores, mask, softmax and weighted sum stand on lines of their own,
ready for a breakpoint. The other backends are judged by it, and it by a float64 version in the tests.
"""

from typing import Any

import torch
from torch import Tensor

from backends.base import AttentionBackend, check_kvcache_args, check_store_args, check_varlen_args
from backends.quantized_cache import dequantize, quantize


def gather_pages(cache: Tensor, block_table: Tensor, length: int, descale: Tensor | None = None) -> Tensor:
    """按块表把一条序列散落在各块里的 token 收拢成连续的一段，这就是“分页”的全部秘密。

    Collect one sequence's tokens from its pages into one contiguous run: this is the whole secret of paging.

    Args:
        cache: [num_blocks, block_size, Hkv, D]
        block_table: [max_blocks] int32，这条序列的块编号；this sequence's block ids
        length: 取多少个 token；number of tokens to take
        descale: [num_blocks, block_size, Hkv]，编码的缩放；scales, if codes are held

    Returns:
        [length, Hkv, D]，编码已变回 float32；codes have become float32
    """
    block_size = cache.shape[1]
    # 例：块大小 16，`length` = 35 时要 3 个块；块表里更靠后的 -1 不会被读到。
    # Example: with blocks of 16, a `length` of 35 takes 3 blocks; any -1 further back in the table is never read.
    num_blocks = (length + block_size - 1) // block_size
    # 像按 inode 的块列表读文件：块表 [7, 2, 5] 取出 7、2、5 号块，共 48 个槽位，再截下前 35 个。
    # Like reading a file by its inode's block list: [7, 2, 5] takes blocks 7, 2 and 5, 48 slots, cut to 35 next.
    pages = cache[block_table[:num_blocks].long()]  # [num_blocks, block_size, Hkv, D]
    # 最后一个块可能没写满，切片把没写过的槽位（也许是 NaN）留在外面。
    # The last block may be partly empty; the slice leaves its unwritten slots, possibly NaN, outside.
    # 不能指望掩码：NaN * 0 还是 NaN，权重为 0 的槽位只要参加了求和，输出就毁了。
    # The mask alone would not do: NaN * 0 is still NaN, so a slot of weight 0 ruins a sum that it takes part in.
    rows = pages.flatten(0, 1)[:length]  # [length, Hkv, D]
    # 缩放就是宽度为 1 的缓存，照样收拢，再乘上去。
    # Scales are a cache of width 1: gather them alike, and multiply.
    if descale is not None:
        rows = dequantize(rows, gather_pages(descale[..., None], block_table, length), torch.float32)
    return rows  # [length, Hkv, D]


def attend(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool) -> Tensor:
    """一条序列的注意力：softmax(q·kᵀ·scale + mask)·v；不是因果注意力时，全都看得见。

    因果掩码按左上角对齐是常见的错误：q 与 k 等长时两种对齐结果相同，看不出错；
    分块预填充时，第 0 个 query 就只看得到 key 0。

    One sequence's attention: softmax(q·kᵀ·scale + mask)·v; unless it is causal, all is visible.
    To align a causal mask top-left is a common bug: equal lengths hide it, but in a chunked prefill query 0 would see
    only key 0.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1; grouped heads: Ainslie et al. 2023, GQA.

    Args:
        q: [Sq, Hq, D]
        k, v: [Sk, Hkv, D]

    Returns:
        [Sq, Hq, D]，dtype 与 q 相同；dtype of q
    """
    num_queries, num_keys = q.shape[0], k.shape[0]
    # bf16 只有 8 位有效数字，分数和 softmax 都提到 float32 再算；输入是 float64 就保持 float64。
    # bf16 keeps 8 significant bits, so scores and softmax are computed in float32; float64 input stays float64.
    # 例：bf16 里 8 到 16 之间的分数间隔是 0.0625，exp 之后就差 6%。
    # Example: scores between 8 and 16 are 0.0625 apart in bf16, which exp turns into 6%.
    compute_dtype = torch.promote_types(q.dtype, torch.float32)

    # 分组查询注意力：相邻的 Hq // Hkv 个 query 头共用一个 KV 头，这里把 KV 头复制开来对齐。
    # Grouped-query attention: Hq // Hkv neighbouring query heads share one KV head; repeat KV heads to line up.
    # 6 个 query 头、2 个 KV 头，每组 3 个。`repeat_interleave` 得 0 0 0 1 1 1；`repeat` 得 0 1 0 1 0 1，是常见的错误。
    # 6 query heads, 2 KV heads: 3 each. `repeat_interleave` gives 0 0 0 1 1 1; `repeat` 0 1 0 1 0 1, a common bug.
    group_size = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group_size, dim=1).to(compute_dtype)  # [Sk, Hq, D]
    v = v.repeat_interleave(group_size, dim=1).to(compute_dtype)  # [Sk, Hq, D]

    # 每个 query 与每个 key 的相似度。断点停在这里，看 `scores[0]`：它就是第 0 个头的注意力图。
    # How much each query matches each key. Stop here and look at `scores[0]`: it is head 0's attention map.
    scores = torch.einsum("qhd,khd->hqk", q.to(compute_dtype), k) * softmax_scale  # [Hq, Sq, Sk]

    # 因果掩码按右下角对齐：2 个 query、5 个 key 时，第 0 个 query 是第 3 个 token，能看到 key 0 到 3。
    # A causal mask is aligned bottom-right: with 2 queries and 5 keys, query 0 is token 3 and sees keys 0 to 3.
    #     query 0 (token 3):  1 1 1 1 0
    #     query 1 (token 4):  1 1 1 1 1
    query_position = torch.arange(num_queries, device=q.device) + (num_keys - num_queries)  # [Sq]
    key_position = torch.arange(num_keys, device=q.device)  # [Sk]
    visible = (key_position[None, :] <= query_position[:, None]) | (not causal)  # [Sq, Sk]
    # 在 softmax 之前填 -inf，exp 之后正好是 0，其余的权重加起来仍是 1；softmax 之后再清零，总和就不到 1 了。
    # -inf before softmax becomes 0 by exp and the other weights still sum to 1;
    # zeroing after softmax would leave less than 1.
    scores = scores.masked_fill(~visible, float("-inf"))  # [Hq, Sq, Sk]

    # 例：分数 [2, 1, 0]，exp 是 [7.39, 2.72, 1]，除以总和 11.11 得 [0.665, 0.245, 0.090]。
    # Example: scores [2, 1, 0] have exp [7.39, 2.72, 1]; over their sum 11.11 that is [0.665, 0.245, 0.090].
    weights = torch.softmax(scores, dim=-1)  # [Hq, Sq, Sk]
    # 一个 key 都看不到的行，softmax 会得 0/0 = NaN；按约定它的输出是 0。输入里真正的 NaN 不在此列，仍然看得见。
    # A row that sees no key gives 0/0 = NaN in softmax; by contract its output is 0. A true NaN in the input stays.
    weights = weights.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)  # [Hq, Sq, Sk]
    # 每个输出是各行 v 的加权平均：0.665 * v[0] + 0.245 * v[1] + 0.090 * v[2]。在这里看 `weights[0]`，每行的和是 1。
    # An output averages rows of v: 0.665 * v[0] + 0.245 * v[1] + 0.090 * v[2]. Rows of `weights[0]` sum to 1.
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)  # [Sq, Hq, D]


class TorchBackend(AttentionBackend):
    """参考后端，任何设备都能跑。

    The reference backend; it runs on any device.
    """

    name = "torch"
    is_reference = True
    code_dtypes = (torch.int8,)

    def store_kvcache(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                      k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
        """逐个 token 写入：慢，但一眼能看出槽位怎样变成（块编号，块内偏移）。

        Token by token: slow, but it shows how a slot becomes (block id, offset).
        """
        check_store_args(key, value, k_cache, v_cache, slot_mapping, k_descale, v_descale)
        block_size = k_cache.shape[1]
        # 量化的缓存：每个头变成编码和 1 个缩放。缩放就是宽度为 1 的缓存，用同一个函数写；编码接着走下面的循环。
        # A quantized cache: a head becomes codes and 1 scale. Scales are a cache of width 1, stored by this function,
        # too; the codes go on to the loop below.
        if k_descale is not None and v_descale is not None:
            (key, ks), (value, vs) = quantize(key, k_cache.dtype), quantize(value, v_cache.dtype)
            self.store_kvcache(ks[..., None], vs[..., None], k_descale[..., None], v_descale[..., None], slot_mapping)
        # 一次 `tolist` 读回全部槽位；在循环里逐个取 `slot_mapping[i]`，GPU 上每个 token 都要等一次。
        # One `tolist` reads all slots back;
        # taking `slot_mapping[i]` inside the loop would wait for the GPU at each token.
        for token, slot in enumerate(slot_mapping.tolist()):
            # 槽位 -1 表示不写（CUDA graph 的补齐行会用到）。
            # Slot -1 stores nothing (the padding rows of CUDA graphs use it).
            # 不跳过的话，divmod(-1, 16) = (-1, 15)：Python 的负下标指向最后一个块的最后一个槽位，悄悄写坏别人的数据。
            # If not skipped, divmod(-1, 16) = (-1, 15):
            # a negative index is the last slot of the last block, another sequence's data.
            if slot == -1:
                continue
            # 例：块大小 16，槽位 53 在 3 号块，块内偏移 5：53 = 3 * 16 + 5。
            # Example: with blocks of 16, slot 53 is block 3, offset 5: 53 = 3 * 16 + 5.
            block_id, offset = divmod(slot, block_size)
            k_cache[block_id, offset] = key[token]  # [Hkv, D]
            v_cache[block_id, offset] = value[token]  # [Hkv, D]

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, block_table: Tensor | None = None,
        plan: Any = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """打包的变长注意力：用累计长度切出每条序列，再逐条计算。

        Packed attention: the running sums cut out each sequence, then one after the other.
        """
        check_varlen_args(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table, k_descale, v_descale)
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        # `max_seqlen_q` 和 `max_seqlen_k` 在这里用不到：核函数要靠它们决定启动规模，逐条循环不需要。
        # `max_seqlen_q` and `max_seqlen_k` go unused:
        # kernels size their launch by them, a loop over sequences need not.
        starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        out = torch.zeros_like(q)  # [T, Hq, D]
        for i in range(len(starts_q) - 1):
            # 例：`cu_seqlens_q` = [0, 3, 8] 时，序列 1 的 query 是第 3 到 7 行。
            # Example: with `cu_seqlens_q` = [0, 3, 8], the queries of sequence 1 are rows 3 to 7.
            rows = slice(starts_q[i], starts_q[i + 1])
            # 两种来源，同一种结果：这条序列自己的 K、V，连续、等长，之后的计算不再知道有没有分页。
            # Two sources, one result: this sequence's own K and V in one run; what follows no longer knows of pages.
            if block_table is None:
                keys = k[starts_k[i] : starts_k[i + 1]]  # [length, Hkv, D]
                values = v[starts_k[i] : starts_k[i + 1]]  # [length, Hkv, D]
            else:
                length = starts_k[i + 1] - starts_k[i]
                keys = gather_pages(k, block_table[i], length, k_descale)  # [length, Hkv, D]
                values = gather_pages(v, block_table[i], length, v_descale)  # [length, Hkv, D]
            out[rows] = attend(q[rows], keys, values, scale, causal)  # [rows, Hq, D]
        return out  # [T, Hq, D]

    def flash_attn_with_kvcache(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor,
        softmax_scale: float | None = None, causal: bool = False, plan: Any = None,
        k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """解码注意力：先按块表取出历史的 K、V，再做同样的注意力。

        Decode attention: gather the history's K and V by the block table, then the same attention.
        """
        check_kvcache_args(q, k_cache, v_cache, cache_seqlens, block_table, k_descale, v_descale)
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        out = torch.zeros_like(q)  # [B, Sq, Hq, D]
        # 与变长版本的差别只有一处：每条序列的 query 一样多，所以 q 是规整的 4 维，不需要累计长度。
        # It differs from the varlen version in one thing:
        # all sequences have as many queries, so q is a plain 4-dim tensor.
        for b, length in enumerate(cache_seqlens.tolist()):
            keys = gather_pages(k_cache, block_table[b], length, k_descale)  # [length, Hkv, D]
            values = gather_pages(v_cache, block_table[b], length, v_descale)  # [length, Hkv, D]
            out[b] = attend(q[b], keys, values, scale, causal)  # [Sq, Hq, D]
        return out  # [B, Sq, Hq, D]
