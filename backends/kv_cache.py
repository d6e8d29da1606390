"""KV 缓存：一层的两个张量。

你在这里：`engine/kv_pool.py` 分配它，注意力后端与融合核函数读写它。

The KV cache: the two tensors of a layer.

You are here: `engine/kv_pool.py` allocates it, attention backends and fused kernels read and write it.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class KVCache:
    """一层的 KV 缓存：两个按块（block）组织的张量，内容由 `store_kvcache` 写入。

    没写过的槽位里是垃圾值（甚至 NaN），后端不得让它们影响输出。

    One layer's KV cache: two paged tensors that `store_kvcache` writes.
    A slot never written holds garbage, even NaN; no backend may let it reach the output.

    Attributes:
        k: [num_blocks, block_size, num_kv_heads, head_dim]，键；keys
        v: 值，形状相同；values, same shape
    """

    # 例：Llama-3.2-1B，块大小 16，8 个 KV 头，每头 64 维，bf16：一个块的 K 占 16 KiB，V 也是。
    # Example: Llama-3.2-1B, blocks of 16, 8 KV heads of 64 in bf16: the K of a block takes 16 KiB, and so does V.
    #     16 slots * 8 heads * 64 * 2 bytes = 16384
    k: Tensor  # [num_blocks, block_size, Hkv, D]
    v: Tensor  # [num_blocks, block_size, Hkv, D]
