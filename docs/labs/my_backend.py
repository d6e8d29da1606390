"""实验 8 的骨架：你自己的注意力后端。把三个标着 TODO 的函数体换成自己的代码。

参数的含义见 `backends/base.py`；每写完一个，运行 `python docs/labs/08_own_backend.py`，它会说下一步做什么。
`plan` 总是 None：这里没有覆盖 `prepare`，每步没有要提前算好的东西。

Lab 8's skeleton: your own attention backend. Replace the three bodies marked TODO by your code.
The arguments are explained in `backends/base.py`; after each one run `python docs/labs/08_own_backend.py`, which says
what comes next. `plan` is always None: `prepare` is not overridden here, and nothing is worked out ahead for a step.
"""

from torch import Tensor

from backends.base import AttentionBackend, check_kvcache_args, check_store_args, check_varlen_args


class MyBackend(AttentionBackend):
    """三个函数，写对了，整个引擎就能跑在它上面。

    Three functions; once they are right, the whole engine runs on them.
    """

    name = "mine"

    def store_kvcache(
        self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """第 i 个 token 的 K、V 写进槽位 `slot_mapping[i]`；槽位 -1 不写。

        Write K and V of token i to slot `slot_mapping[i]`; slot -1 stores nothing.
        """
        check_store_args(key, value, k_cache, v_cache, slot_mapping)
        # 提示：槽位 = 块编号 * 块大小 + 偏移；`k_cache.shape[1]` 是块大小。
        # Hint: slot = block id * block size + offset; `k_cache.shape[1]` is the block size.
        raise NotImplementedError("TODO 1: store_kvcache")

    def flash_attn_with_kvcache(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor,
        softmax_scale: float | None = None, causal: bool = False, plan: None = None,
    ) -> Tensor:
        """解码：第 b 条序列的 query 看缓存里的前 `cache_seqlens[b]` 个 token；长度 0 得到 0。

        Decode: the queries of sequence b see its first `cache_seqlens[b]` cached tokens; a length of 0 gives zeros.
        """
        check_kvcache_args(q, k_cache, v_cache, cache_seqlens, block_table)
        # 提示：先按块表取回 K、V；再 softmax(q·k * scale)·v；query 头 h 用 KV 头 h // (Hq // Hkv)。
        # Hint: gather K and V by the block table; then softmax(q·k * scale)·v; query head h uses KV head
        # h // (Hq // Hkv).
        raise NotImplementedError("TODO 2: flash_attn_with_kvcache")

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, block_table: Tensor | None = None,
        plan: None = None,
    ) -> Tensor:
        """预填充：几条序列首尾相接；因果掩码按右下角对齐，最后一个 query 看得到全部 key。

        Prefill: sequences packed one after the other; the causal mask is aligned bottom-right, and the last query sees
        every key.
        """
        check_varlen_args(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table)
        # 提示：第 i 条序列是 `q[cu_seqlens_q[i]:cu_seqlens_q[i + 1]]`；没有 `block_table` 时 k、v 也同样打包。
        # Hint: sequence i is `q[cu_seqlens_q[i]:cu_seqlens_q[i + 1]]`; without `block_table` k and v are packed too.
        # 什么都看不到的 query 得到 0，不是 NaN。
        # A query that sees nothing gives 0, not NaN.
        raise NotImplementedError("TODO 3: flash_attn_varlen_func")
