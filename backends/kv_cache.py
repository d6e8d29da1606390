"""KV 缓存：一层的两个张量，量化时各带一份缩放。

你在这里：`engine/kv_pool.py` 分配它，注意力后端与融合核函数读写它。

The KV cache: the two tensors of a layer, with their scales if it is quantized.

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
        k_descale, v_descale: [num_blocks, block_size, num_kv_heads] float32，量化时的缩放，见 `quantized_cache.py`；
            scales if quantized, see `quantized_cache.py`
    """

    # 例：Llama-3.2-1B，块大小 16，8 个 KV 头，每头 64 维，bf16：一个块的 K 占 16 KiB，V 也是。
    # Example: Llama-3.2-1B, blocks of 16, 8 KV heads of 64 in bf16: the K of a block takes 16 KiB, and so does V.
    #     16 slots * 8 heads * 64 * 2 bytes = 16384
    k: Tensor  # [num_blocks, block_size, Hkv, D]
    v: Tensor  # [num_blocks, block_size, Hkv, D]
    k_descale: Tensor | None = None  # [num_blocks, block_size, Hkv] float32
    v_descale: Tensor | None = None  # [num_blocks, block_size, Hkv] float32

    def scales(self) -> dict[str, Tensor | None]:
        """量化时要多传给后端的两个参数；没有量化就一个也不传，后端也就不必认识它们。

        The two more arguments that a backend gets if the cache is quantized; otherwise there are none, and a backend
        need not know them.
        """
        return {} if self.k_descale is None else {"k_descale": self.k_descale, "v_descale": self.v_descale}
