"""Triton 后端：自己写的 GPU 核函数，一个文件一类。

store（写缓存）、decode（解码）、prefill（预填充）、fused（融合）、gemv（1 行的线性层）、
skinny（2 到 64 行的线性层）、sample（采样）；共用 quantized（量化的缓存）、codes（量化的权重）、launch（启动选项）。

`TRITON_INTERPRET=1` 时，同一份核函数在 CPU 上逐个程序地解释执行：慢，但可以打断点，测试也靠它。

The Triton backend: our own GPU kernels, a file for each kind: store, decode, prefill, fused, gemv (linear
layers at 1 row), skinny (at 2 to 64), sample; they share quantized (a quantized cache), codes (quantized weights) and
launch (launch options).

With `TRITON_INTERPRET=1` the same kernels are interpreted on the CPU, program by program: slow, but a breakpoint works
in them, and the tests use it.
"""

import os
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.base import AttentionBackend, AttentionMetadata, check_kvcache_args, check_store_args, check_varlen_args
from backends.kernels import FusedKernels
from backends.kv_cache import KVCache
from backends.quantized_cache import LIMITS
from backends.quantized_weight import QuantizedWeight, Weight
from backends.triton import fused, sample
from backends.triton.codes import reorder, restore
from backends.triton.decode import decode_attention, longest_first
from backends.triton.gemv import gemv
from backends.triton.launch import MAX_SKINNY_ROWS
from backends.triton.prefill import prefill_attention
from backends.triton.skinny import skinny_linear
from backends.triton.store import store_kvcache


def why_no_triton(device: torch.device) -> str | None:
    """这台设备上跑不了 Triton 核函数的原因；`flash` 后端也用它。

    Why Triton kernels cannot run on this device; the `flash` backend asks it, too.
    """
    if device.type != "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "needs a CUDA GPU (or TRITON_INTERPRET=1, for tests); use sdpa on the CPU"
    if not torch.cuda.is_available():
        return "no CUDA device here; use sdpa on the CPU"
    major, minor = torch.cuda.get_device_capability(device)
    # 8.0 是 Ampere：bf16 的张量核心和异步拷贝都从这一代开始。
    # 8.0 is Ampere, the first generation with bf16 tensor cores and asynchronous copies.
    if (major, minor) < (8, 0):
        return f"needs compute capability 8.0, this GPU has {major}.{minor}; use sdpa"
    return None


class TritonKernels(FusedKernels):
    """融合步骤的 Triton 实现。

    The fused steps in Triton.
    """

    has_sampler = True

    @classmethod
    def why_unusable(cls, device: torch.device) -> str | None:
        """与注意力后端的要求相同。

        What the attention backend asks for, too.
        """
        return why_no_triton(device)

    @classmethod
    def why_unsupported(cls, head_dim: int, dtype: torch.dtype, codes: torch.dtype | None = None) -> str | None:
        """与注意力后端支持的相同。

        What the attention backend supports, too.
        """
        return TritonBackend.why_unsupported(head_dim, dtype, codes)

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        # 切段的程序在这里计数（谁最后到达），见 `skinny.py`；每次用完都归零，不必每次启动都先清零。
        # Where programs with splits sign in, see `skinny.py`; every use leaves it at zero, and no launch must clear it.
        self.arrived = torch.zeros(128, dtype=torch.int32, device=device)

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """见 `fused.py`。

        See `fused.py`.
        """
        return fused.add_rms_norm(x, residual, weight, eps)

    def pack(self, weight: Weight) -> Any:
        """int4 换成核函数要的次序；别的照原样读。

        int4 in the order of the kernels; all else is read as it is.
        """
        return reorder(weight) if isinstance(weight, QuantizedWeight) and weight.bits == 4 else None

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None, packed: Any) -> Tensor:
        """见 `_multiply`。

        See `_multiply`.
        """
        return self._multiply(x, weight if packed is None else packed, bias, gated=False)

    def gated_linear(self, x: Tensor, weight: Weight, bias: Tensor | None, packed: Any) -> Tensor:
        """行少时，同一个核函数乘完就做门控；行多时接着用 `fused.py`。

        With few rows the kernel that multiplies also gates; with many, `fused.py` follows.
        """
        return self._multiply(x, weight if packed is None else packed, bias, gated=True)

    def _multiply(self, x: Tensor, weight: Weight, bias: Tensor | None, gated: bool) -> Tensor:
        """1 行用 `gemv.py`，2 到 64 行用 `skinny.py`，更多行交给 cuBLAS：通用的矩阵乘法为许多行准备，行少时吃不满带宽。

        `gemv.py` for 1 row, `skinny.py` for 2 to 64, cuBLAS for more: general products are made for many rows and leave
        bandwidth unused at few.
        """
        num_rows = x.shape[0]
        if num_rows == 1:
            return gemv(x, weight, bias, gated)
        # float32 用不上张量核心，行再多就不如 cuBLAS。
        # float32 has no use for tensor cores: with more rows cuBLAS is better.
        if 1 < num_rows <= (MAX_SKINNY_ROWS if x.element_size() == 2 else 16):
            return skinny_linear(x, weight, bias, self.arrived, gated)
        if isinstance(weight, QuantizedWeight):
            # 一段一段地还原，各乘一次：一段很小，刚还原好，还在 GPU 的二级缓存里，乘法就从那里读。
            # A part at a time is restored and multiplied: being small, it is still in the GPU's second-level cache, and
            # the product reads it from there.
            out = weight.linear(x, bias, partial(restore, dtype=x.dtype, num_rows=num_rows))
        else:
            out = F.linear(x, weight, bias)
        return fused.silu_and_mul(out) if gated else out

    def rotary(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        """见 `fused.py`。

        See `fused.py`.
        """
        return fused.rotary(positions, inv_freq)

    def qk_norm_rope_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, norm_weights: tuple[Tensor, Tensor] | None, eps: float,
        kv_cache: KVCache, slot_mapping: Tensor,
    ) -> Tensor:
        """见 `fused.py`。

        See `fused.py`.
        """
        return fused.qk_norm_rope_store(
            qkv, cos, sin, norm_weights, eps, kv_cache.k, kv_cache.v, slot_mapping, **kv_cache.scales()
        )

    def sample(
        self, logits: Tensor, columns: Tensor, counts: Tensor, masks: Tensor, max_logprobs: int,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """见 `sample.py`。

        See `sample.py`.
        """
        return sample.sample(logits, columns, counts, masks, max_logprobs, out)


class TritonBackend(AttentionBackend):
    """自己的核函数：块大小是不小于 8 的 2 的幂，长度在设备上读，可以录进 CUDA graph。

    Our own kernels: blocks of any power of 2 from 8, lengths read on the device, ready for CUDA graphs.
    """

    name = "triton"
    supports_cuda_graphs = True
    code_dtypes = tuple(LIMITS)
    # Hopper 的预填充核函数一次从一个块里取 128 个 key，块至少要有这么多，见 `prefill.py`。
    # The prefill kernel for Hopper takes 128 keys of one block at a time, and blocks must hold as many; see
    # `prefill.py`.
    default_block_size = 128

    @classmethod
    def why_unusable(cls, device: torch.device) -> str | None:
        """需要 CUDA，或解释模式。

        Needs CUDA, or the interpreter.
        """
        return why_no_triton(device)

    @classmethod
    def why_unsupported(cls, head_dim: int, dtype: torch.dtype, codes: torch.dtype | None = None) -> str | None:
        """`head_dim` 是 16 到 256 的 2 的幂。

        `head_dim` is a power of 2 from 16 to 256.
        """
        if head_dim not in (16, 32, 64, 128, 256):
            return f"head_dim={head_dim}, it supports 16, 32, 64, 128 and 256; use sdpa"
        if dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
            return "bfloat16 cannot be interpreted, as NumPy has none; use float32 or float16"
        if dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"dtype {dtype}, it supports float16, bfloat16 and float32; use sdpa"
        return super().why_unsupported(head_dim, dtype, codes)

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        # 流式多处理器的个数决定历史切成几段；解释模式下取 H200 的 132，走到的代码才相同。
        # The number of multiprocessors decides the splits; the interpreter takes an H200's 132, to run the same code.
        properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        self.num_processors = properties.multi_processor_count if properties else 132
        # 切段时每（序列，KV 头）一个计数器；切段的只有程序数不到流式多处理器 2 倍的批。
        # With splits, a counter for each (sequence, KV head); only batches with fewer than 2 programs a multiprocessor
        # are split.
        self.arrived = torch.zeros(2 * self.num_processors, dtype=torch.int32, device=device)

    def prepare(self, metadata: AttentionMetadata) -> Tensor | None:
        """解码行从长到短的次序，各层共用；行少时同时都在跑，不必排。

        The decode rows from long to short, for all layers; a few all run at once and need no order.
        """
        # H100 上量过，Qwen3-0.6B 长短不一的一步：256 行从 8.86 毫秒降到 8.70。
        # Measured on an H100, a step of Qwen3-0.6B with mixed lengths: 256 rows go from 8.86 ms to 8.70.
        return longest_first(metadata.cache_seqlens) if metadata.num_decodes > 64 else None

    def store_kvcache(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                      k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
        """一个程序搬一个 token，见 `store.py`。

        One program a token, see `store.py`.
        """
        check_store_args(key, value, k_cache, v_cache, slot_mapping, k_descale, v_descale)
        store_kvcache(key, value, k_cache, v_cache, slot_mapping, k_descale, v_descale)

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, block_table: Tensor | None = None,
        plan: Any = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """变长的预填充，见 `prefill.py`。

        Prefill over different lengths, see `prefill.py`.
        """
        check_varlen_args(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table, k_descale, v_descale)
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        # 核函数按连续存放算地址；K、V 缓存必然连续，打包的 K、V 和 q 可能是别人的切片。
        # The kernel computes addresses of contiguous tensors; caches are, but q and packed K and V may be slices.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return prefill_attention(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, scale, causal, block_table, k_descale, v_descale
        )

    def flash_attn_with_kvcache(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor,
        softmax_scale: float | None = None, causal: bool = False, plan: Any = None,
        k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """解码，见 `decode.py`；每条序列有好几个 query 时，它就是变长的预填充。

        Decoding, see `decode.py`; with several queries a sequence it is prefill over different lengths.
        """
        check_kvcache_args(q, k_cache, v_cache, cache_seqlens, block_table, k_descale, v_descale)
        batch, num_queries, num_heads, head_dim = q.shape
        scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
        if num_queries == 1:
            out = decode_attention(
                q.squeeze(1).contiguous(), k_cache, v_cache, cache_seqlens, block_table, scale, self.num_processors,
                self.arrived, plan, k_descale, v_descale,
            )
            return out.unsqueeze(1)
        starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device)
        # 长度要变成累计长度：[3, 5] 得到 [0, 3, 8]。
        # Lengths become running sums: [3, 5] gives [0, 3, 8].
        cu_seqlens_k = F.pad(cache_seqlens.cumsum(0, dtype=torch.int32), (1, 0))
        flat = q.reshape(-1, num_heads, head_dim).contiguous()
        out = prefill_attention(
            flat, k_cache, v_cache, starts * num_queries, cu_seqlens_k, num_queries, scale, causal, block_table,
            k_descale, v_descale,
        )
        return out.view_as(q)
