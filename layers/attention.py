"""注意力层：写缓存，再让解码行和预填充行各走一个后端函数。

你在这里：`models/llama.py` 调用本层；本层只认识后端接口契约 `backends/base.py`，不知道具体是哪个后端。

The attention layer: store to the cache, then decode rows and prefill rows each take one backend function.

You are here: `models/llama.py` calls this layer, which knows the contract in `backends/base.py` and no backend by name.
"""

import torch
from torch import Tensor, nn

from backends.base import AttentionBackend, AttentionMetadata
from backends.kv_cache import KVCache


class Attention(nn.Module):
    """一层注意力里与权重无关的部分。

    The part of an attention layer that has no weights.

    Attributes:
        kv_cache: 这一层的块，由 `engine/kv_pool.py` 设置；this layer's blocks, set by `engine/kv_pool.py`
    """

    def __init__(self, backend: AttentionBackend, head_dim: int) -> None:
        super().__init__()
        # 各层共用同一个后端对象，它什么都不记：一步之内共用的东西，在 `metadata.plan` 里。
        # All layers share one backend object, which remembers nothing: what they share in a step is in `metadata.plan`.
        self.backend = backend
        # 64 个分量（均值 0、方差 1）的点积，标准差是 8；乘上 0.125 才回到 1，否则 softmax 几乎只认最大的那一项。
        # A dot product of 64 components (mean 0, variance 1) has standard deviation 8;
        # times 0.125 it is 1 again, or softmax would keep little but the maximum.
        self.softmax_scale = head_dim**-0.5
        # 先空着：权重装完、量出剩下多少显存之后，才知道够分配几个块。
        # Empty for now: only once the weights are loaded and the memory left is measured is the number of blocks known.
        self.kv_cache: KVCache | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> Tensor:
        """先存新 token 的 K、V，再让新 token 看自己和全部历史。

        Store the new tokens' K and V first, then let the new tokens see themselves and all history.

        Args:
            q: [T, Hq, D]
            k, v: [T, Hkv, D]

        Returns:
            [T, Hq, D]
        """
        cache = self.cache()
        # 先存后算，次序不能换：`cache_seqlens` 已把新 token 算在内，后存的话，注意力会读到还没写过的槽位。
        # Store first, attend second: `cache_seqlens` counts the new tokens already,
        # so the other order reads unwritten slots.
        self.backend.store_kvcache(k, v, cache.k, cache.v, metadata.slot_mapping, **cache.scales())
        return self.attend(q, metadata)  # [T, Hq, D]

    def cache(self) -> KVCache:
        """这一层的 KV 缓存。

        This layer's KV cache.
        """
        # 用户的输入造成不了这个错误，只有引擎漏了一步才会，所以这里是 `assert` 而不是 `ValueError`。
        # No input of a user can cause this, only an engine that skipped a step: hence `assert` and not `ValueError`.
        assert self.kv_cache is not None, "the pool sets kv_cache before the first forward"
        return self.kv_cache

    def attend(self, q: Tensor, metadata: AttentionMetadata) -> Tensor:
        """新 token 的 K、V 已在缓存里：解码行和预填充行各调用一个后端函数。

        The new tokens' K and V are in the cache already: decode rows and prefill rows call one backend function each.

        Args:
            q: [T, Hq, D]

        Returns:
            [T, Hq, D]
        """
        cache = self.cache()
        k_cache, v_cache, scales = cache.k, cache.v, cache.scales()  # [num_blocks, block_size, Hkv, D]
        # 批里前 `n` 行是解码行，其余是预填充行；只有一种时，直接返回，不做拼接。
        # The first `n` rows are decodes, the rest prefills; with one kind only, return it without joining.
        # 例：A 解码 1 个 token，B、C 是长 3 和 5 的提示词，T = 9：`q[:1]` 走解码，`q[1:]` 这 8 行走预填充。
        # Example: A decodes 1 token, B and C are prompts of 3 and 5, T = 9:
        # `q[:1]` is the decode, the 8 rows of `q[1:]` prefill.
        n = metadata.num_decodes
        outputs = []
        if n > 0:
            # 解码：每条序列 1 个 query，缓存里已有它自己的 K、V，所以长度包含它。
            # Decode: 1 query a sequence; its own K and V are in the cache already, so the length includes it.
            # 每条解码序列恰好占 1 行，所以 q 的第 i 行就是 `decode_block_tables` 的第 i 行，不需要 `cu_seqlens_q`。
            # A decoding sequence has exactly 1 row,
            # so row i of q is row i of `decode_block_tables`; no `cu_seqlens_q` is needed.
            decoded = self.backend.flash_attn_with_kvcache(
                q[:n].unsqueeze(1), k_cache, v_cache, metadata.cache_seqlens, metadata.decode_block_tables,
                softmax_scale=self.softmax_scale, causal=True, plan=metadata.plan, **scales,
            )  # [n, 1, Hq, D]
            outputs.append(decoded.squeeze(1))  # [n, Hq, D]
        if n < q.shape[0]:
            # 预填充：K、V 也从缓存里取，于是分块预填充和前缀命中不需要任何特别处理。
            # Prefill: K and V come from the cache too, so chunked prefill and prefix hits need nothing special.
            # 例：35 个 token 的提示词命中前缀 32 个：`cu_seqlens_q` = [0, 3]，
            # `cu_seqlens_k` = [0, 35]，3 个 query 看 35 个 key。
            # Example: a prompt of 35 tokens hits a prefix of 32:
            # `cu_seqlens_q` = [0, 3], `cu_seqlens_k` = [0, 35]; 3 queries see 35.
            prefilled = self.backend.flash_attn_varlen_func(
                q[n:], k_cache, v_cache, metadata.cu_seqlens_q, metadata.cu_seqlens_k, metadata.max_seqlen_q,
                metadata.max_seqlen_k, softmax_scale=self.softmax_scale, causal=True,
                block_table=metadata.prefill_block_tables, plan=metadata.plan, **scales,
            )
            outputs.append(prefilled)  # [T - n, Hq, D]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)  # [T, Hq, D]
