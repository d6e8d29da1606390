"""flash 后端：flash-attn 2 包自己的两个函数，加上 Triton 的写缓存。

要装 `flash-attn`（2.x）；它的分页缓存要求块大小是 256 的倍数。

The flash backend: the flash-attn 2 package's own two functions, with Triton's store.

It needs `flash-attn` (2.x), whose paged caches want a block size that is a multiple of 256.
"""

from typing import Any

import torch
from torch import Tensor

from backends.base import AttentionBackend, check_kvcache_args, check_store_args, check_varlen_args
from backends.triton import why_no_triton
from backends.triton.store import store_kvcache


def _refuse_codes(*descales: Tensor | None) -> None:
    """flash-attn 2 的函数不认得缩放。

    flash-attn 2's functions know no scales.
    """
    # 引擎选后端时就会拒绝；直接调用这几个函数的人，在这里得到同样的话，而不是把编码当成浮点数算出来的结果。
    # The engine refuses when it picks a backend; whoever calls these functions directly is told the same here, and does
    # not get what codes give when they are taken for floats.
    if any(descale is not None for descale in descales):
        raise ValueError("k_descale and v_descale must be None: flash-attn 2 reads floats only; use triton or sdpa")


class FlashBackend(AttentionBackend):
    """包装 flash-attn：检查参数，其余原样交给它。

    A wrapper of flash-attn: check the arguments and hand over the rest as it is.
    """

    name = "flash"
    # 默认值也得是 256：它是 flash-attn 的分页缓存接受的最小块。
    # The default must be 256, too: it is the smallest block that flash-attn's paged caches take.
    default_block_size = 256
    # 长度以 GPU 张量的形式交给核函数，由它在 GPU 上读，所以启动可以录下来，换了长度再重放。
    # Lengths go to the kernel as GPU tensors and are read there, so a launch can be recorded and replayed at other
    # lengths.
    supports_cuda_graphs = True

    @classmethod
    def why_unusable(cls, device: torch.device) -> str | None:
        """需要 Ampere 以上的 CUDA GPU。

        Needs a CUDA GPU from Ampere on.
        """
        return "needs a CUDA GPU; use sdpa on the CPU" if device.type != "cuda" else why_no_triton(device)

    @classmethod
    def why_unsupported(cls, head_dim: int, dtype: torch.dtype, codes: torch.dtype | None = None) -> str | None:
        """只有 fp16 和 bf16；`head_dim` 是 8 的倍数，最多 256。

        fp16 and bf16 only; `head_dim` a multiple of 8, at most 256.
        """
        # 它的核函数是为张量核心预先编译好的 CUDA 程序，没有 float32 的版本。
        # Its kernels are CUDA programs compiled beforehand for tensor cores, and there is none for float32.
        if dtype not in (torch.float16, torch.bfloat16):
            return f"dtype {dtype}, flash-attn supports float16 and bfloat16; use triton"
        if head_dim % 8 or head_dim > 256:
            return f"head_dim={head_dim}, flash-attn supports multiples of 8 up to 256; use sdpa"
        return super().why_unsupported(head_dim, dtype, codes)

    @classmethod
    def check_block_size(cls, block_size: int) -> None:
        """256 的倍数。

        A multiple of 256.
        """
        if block_size <= 0 or block_size % 256:
            raise ValueError(
                f"kvcache_block_size={block_size} does not work with backend 'flash': use a multiple of 256"
            )

    def __init__(self, device: torch.device) -> None:
        # 选中本后端时才导入：没装 flash-attn 的机器也能用别的后端。
        # Imported when this backend is chosen: machines without flash-attn can use the others.
        import flash_attn

        super().__init__(device)
        self.flash_attn: Any = flash_attn

    def store_kvcache(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                      k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
        """Triton 的写缓存。

        Triton's store.
        """
        _refuse_codes(k_descale, v_descale)
        check_store_args(key, value, k_cache, v_cache, slot_mapping)
        store_kvcache(key, value, k_cache, v_cache, slot_mapping)

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, block_table: Tensor | None = None,
        plan: Any = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """flash-attn 的同名函数。

        flash-attn's function of this name.
        """
        _refuse_codes(k_descale, v_descale)
        check_varlen_args(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table)
        # 没有 query 就没有输出；flash-attn 会把它当作错误。
        # No queries, no output; flash-attn would call it an error.
        if q.numel() == 0:
            return torch.empty_like(q)
        # `max_seqlen_q` 是 Python 整数：网格的大小在 CPU 上定，不能去 GPU 上读。
        # `max_seqlen_q` is a Python int: the size of the grid is settled on the CPU and must not be read from the GPU.
        return self.flash_attn.flash_attn_varlen_func(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=softmax_scale, causal=causal,
            block_table=block_table,
        )

    def flash_attn_with_kvcache(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor,
        softmax_scale: float | None = None, causal: bool = False, plan: Any = None,
        k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """flash-attn 的同名函数。

        flash-attn's function of this name.
        """
        _refuse_codes(k_descale, v_descale)
        check_kvcache_args(q, k_cache, v_cache, cache_seqlens, block_table)
        # 没有 query 就没有输出；flash-attn 会把它当作错误。
        # No queries, no output; flash-attn would call it an error.
        if q.numel() == 0:
            return torch.empty_like(q)
        # 没有传新的 k、v：它们已由 `store_kvcache` 写进缓存，`cache_seqlens` 也已把它们算在内。
        # No new k and v are passed: `store_kvcache` has put them in the cache already, and `cache_seqlens` counts them.
        return self.flash_attn.flash_attn_with_kvcache(
            q, k_cache, v_cache, cache_seqlens=cache_seqlens, block_table=block_table, softmax_scale=softmax_scale,
            causal=causal,
        )
