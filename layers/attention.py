"""注意力层：写缓存，再让解码行和预填充行各走一个后端函数。

你在这里：`models/llama.py` 调用本层；本层只认识后端合同 `backends/base.py`，不知道具体是哪个后端。

The attention layer: store to the cache, then decode rows and prefill rows each take one backend function.

You are here: `models/llama.py` calls this layer, which knows the contract in `backends/base.py` and no backend by name.
"""

import torch
from torch import Tensor, nn

from backends.base import AttentionBackend, AttentionMetadata, KVCache


class Attention(nn.Module):
    """一层注意力里与权重无关的部分。

    The part of an attention layer that has no weights.

    Attributes:
        kv_cache: this layer's pages; `engine/model_runner.py` sets it once the pool is allocated
    """

    def __init__(self, backend: AttentionBackend, head_dim: int) -> None:
        super().__init__()
        self.backend = backend
        self.softmax_scale = head_dim**-0.5
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
        assert self.kv_cache is not None, "the model runner sets kv_cache before the first forward"
        k_cache, v_cache = self.kv_cache.k, self.kv_cache.v
        self.backend.store_kvcache(k, v, k_cache, v_cache, metadata.slot_mapping)

        # 批里前 `n` 行是解码行，其余是预填充行；只有一种时，直接返回，不做拼接。
        # The first `n` rows are decodes, the rest prefills; with one kind only, return it without joining.
        n = metadata.num_decodes
        outputs = []
        if n > 0:
            # 解码：每条序列 1 个 query，缓存里已有它自己的 K、V，所以长度包含它。
            # Decode: 1 query a sequence; its own K and V are in the cache already, so the length includes it.
            decoded = self.backend.flash_attn_with_kvcache(
                q[:n].unsqueeze(1),  # [n, 1, Hq, D]
                k_cache,
                v_cache,
                metadata.cache_seqlens,
                metadata.decode_block_tables,
                softmax_scale=self.softmax_scale,
                causal=True,
            )
            outputs.append(decoded.squeeze(1))  # [n, Hq, D]
        if n < q.shape[0]:
            # 预填充：K、V 也从缓存里取，于是分块预填充和前缀命中不需要任何特别处理。
            # Prefill: K and V come from the cache too, so chunked prefill and prefix hits need nothing special.
            prefilled = self.backend.flash_attn_varlen_func(
                q[n:],
                k_cache,
                v_cache,
                metadata.cu_seqlens_q,
                metadata.cu_seqlens_k,
                metadata.max_seqlen_q,
                metadata.max_seqlen_k,
                softmax_scale=self.softmax_scale,
                causal=True,
                block_table=metadata.prefill_block_tables,
            )
            outputs.append(prefilled)  # [T - n, Hq, D]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
