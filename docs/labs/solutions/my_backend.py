"""实验 8 的一份参考答案：不求快，只求短。

One solution of lab 8: short rather than fast.
"""

import torch
from torch import Tensor

from backends.base import AttentionBackend, check_kvcache_args, check_store_args, check_varlen_args


def gather(cache: Tensor, table: Tensor, length: int) -> Tensor:
    """按块表取回前 `length` 个 token。

    The first `length` tokens, fetched by the block table.

    Returns:
        [length, Hkv, D]
    """
    # 槽位一个一个算出来，再一次取回；槽位从不越过 `length`，所以碰不到没写过的 NaN。
    # Compute the slots one by one, fetch them at once; none lies past `length`, so unwritten NaN is never touched.
    block_size = cache.shape[1]
    position = torch.arange(length)
    slots = table[position // block_size].long() * block_size + position % block_size  # [length]
    return cache.flatten(0, 1)[slots]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    """一条序列的注意力，逐个 query 头地算。

    One sequence's attention, query head by query head.

    Args:
        q: [Sq, Hq, D]
        k, v: [Sk, Hkv, D]
    """
    (num_q, heads, head_dim), num_k = q.shape, k.shape[0]
    out = torch.zeros_like(q)  # [Sq, Hq, D]
    # 例：3 个 query 接在 5 个 key 的末尾：第 0 个看 3 个，第 1 个看 4 个，第 2 个看 5 个。
    # Example: 3 queries at the end of 5 keys: number 0 sees 3, number 1 sees 4, number 2 sees 5.
    hidden = torch.ones(num_q, num_k, dtype=torch.bool).triu(num_k - num_q + 1) if causal else None  # [Sq, Sk]
    for head in range(heads):
        shared = head // (heads // k.shape[1])
        scores = q[:, head].float() @ k[:, shared].float().T * (head_dim**-0.5 if scale is None else scale)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))  # [Sq, Sk]
        weights = torch.softmax(scores, dim=-1)
        # 一整行都被遮住时，softmax 得到 NaN；只有这些行换成 0，输入里真的 NaN 仍然看得见。
        # A row hidden throughout gives NaN; only such rows become 0, a true NaN of the input stays visible.
        if hidden is not None:
            weights = weights.masked_fill(hidden.all(-1, keepdim=True), 0.0)
        out[:, head] = (weights @ v[:, shared].float()).to(q.dtype)
    return out


class MyBackend(AttentionBackend):
    """三个函数的参考答案。

    The three functions, solved.
    """

    name = "mine"

    def store_kvcache(
        self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """一次写完所有有效的槽位。

        Write all valid slots at once.
        """
        check_store_args(key, value, k_cache, v_cache, slot_mapping)
        valid = slot_mapping >= 0
        k_cache.flatten(0, 1)[slot_mapping[valid]] = key[valid]
        v_cache.flatten(0, 1)[slot_mapping[valid]] = value[valid]

    def flash_attn_with_kvcache(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor,
        softmax_scale: float | None = None, causal: bool = False, plan: None = None,
    ) -> Tensor:
        """逐条序列：取回，再算注意力。

        Sequence by sequence: gather, then attend.
        """
        check_kvcache_args(q, k_cache, v_cache, cache_seqlens, block_table)
        out = torch.zeros_like(q)  # [B, Sq, Hq, D]
        for b, length in enumerate(cache_seqlens.tolist()):
            k, v = (gather(cache, block_table[b], length) for cache in (k_cache, v_cache))
            out[b] = attend(q[b], k, v, softmax_scale, causal)
        return out

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, block_table: Tensor | None = None,
        plan: None = None,
    ) -> Tensor:
        """用累计长度切出每条序列，其余同上。

        The running sums cut out each sequence; the rest is as above.
        """
        check_varlen_args(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table)
        out = torch.zeros_like(q)  # [T, Hq, D]
        starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
        for i in range(len(starts_q) - 1):
            rows, first, last = slice(starts_q[i], starts_q[i + 1]), starts_k[i], starts_k[i + 1]
            if block_table is None:
                keys, values = k[first:last], v[first:last]
            else:
                keys, values = (gather(cache, block_table[i], last - first) for cache in (k, v))
            out[rows] = attend(q[rows], keys, values, softmax_scale, causal)
        return out
