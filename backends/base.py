"""注意力后端的合同：所有后端都实现这里的三个函数，引擎只认识这个类。

你在这里：`layers/attention.py` 调用这三个函数，`torch_backend.py`、`sdpa.py` 等文件实现它们。
函数名、参数名和含义与 flash-attn 包一致，方便把两边的代码并排对照着读。

The contract of attention backends: each backend implements these three functions; the engine knows only this class.

You are here: `layers/attention.py` calls the three functions, `torch_backend.py`, `sdpa.py` and others implement them.
Names, arguments and meaning are those of the flash-attn package, so both sources can be read side by side.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


class BackendUnavailableError(RuntimeError):
    """后端的名字存在，但在这台机器上用不了：消息里写明缺什么、怎么装或改用哪个后端。

    The backend is known but cannot run on this machine; the message says what is missing and what to do.
    """


@dataclass(slots=True)
class KVCache:
    """一层的 KV 缓存：两个按页（block）组织的张量，内容由 `store_kvcache` 写入。

    没写过的槽位里是垃圾（甚至 NaN），后端不得让它们影响输出。

    One layer's KV cache: two paged tensors that `store_kvcache` writes.
    A slot never written holds garbage, even NaN; no backend may let it reach the output.

    Attributes:
        k: keys [num_blocks, block_size, num_kv_heads, head_dim]
        v: values, same shape
    """

    k: Tensor
    v: Tensor


@dataclass(slots=True)
class AttentionMetadata:
    """一步里注意力需要知道的全部信息，由 `engine/batch.py` 填好，随参数一路传到注意力层。

    批里的行分两段：前 `num_decodes` 行各只有一个新 token（解码），其余序列各有一段连续的新 token（预填充）。
    例：2 个解码行，再加长 3 和 5 的两个提示：`cu_seqlens_q` = [0, 3, 8]，T = 2 + 8 = 10。

    All that attention must know about one step; `engine/batch.py` fills it and it travels as an argument.
    The batch has two parts: the first `num_decodes` rows bring one new token each (decode), the other sequences
    a run of new tokens each (prefill). Example: 2 decodes and prompts of 3 and 5 tokens give
    `cu_seqlens_q` = [0, 3, 8] and T = 2 + 8 = 10.

    Attributes:
        num_decodes: rows with one new token; they come first
        slot_mapping: where each new token's K and V go, [T] int64, -1 stores nothing
        decode_block_tables: the decode rows' block ids in logical order, [num_decodes, max_blocks] int32, padded by -1
        cache_seqlens: cached tokens of each decode row, the new one included, [num_decodes] int32
        prefill_block_tables: the prefills' block ids, [num_prefills, max_blocks] int32, padded by -1
        cu_seqlens_q: running sum of the prefills' new tokens, [num_prefills + 1] int32
        cu_seqlens_k: running sum of the prefills' context lengths, the new tokens included, [num_prefills + 1] int32
        max_seqlen_q: the longest run of new tokens among the prefills
        max_seqlen_k: the longest context among the prefills
    """

    num_decodes: int
    slot_mapping: Tensor
    decode_block_tables: Tensor
    cache_seqlens: Tensor
    prefill_block_tables: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int


class AttentionBackend(ABC):
    """一个注意力后端：声明自己支持什么，并实现三个函数。

    加一个新后端只要写一个文件：继承本类，再到 `backends/__init__.py` 登记一行。

    One attention backend: it declares what it supports and implements the three functions.
    A new backend is one file: subclass this, then add one line to `backends/__init__.py`.
    """

    name: ClassVar[str]
    default_block_size: ClassVar[int] = 16
    supports_cuda_graphs: ClassVar[bool] = False

    @classmethod
    def why_unusable(cls, device: torch.device) -> str | None:
        """在 `device` 上用不了时返回原因（含补救办法），能用返回 None。

        Return why it cannot run on `device`, with the remedy, or None if it can.
        """
        return None

    @classmethod
    def why_unsupported(cls, head_dim: int, dtype: torch.dtype) -> str | None:
        """模型的 `head_dim` 或 `dtype` 不受支持时返回原因，支持返回 None。

        Return why a model with this `head_dim` and `dtype` is not supported, or None if it is.
        """
        return None

    @classmethod
    def check_block_size(cls, block_size: int) -> None:
        """检查页大小；默认规则：不小于 8 的 2 的幂。

        Check the block size; the default rule is any power of two from 8.

        Raises:
            ValueError: the size breaks the rule; the message names the sizes that work
        """
        # 2 的幂在二进制里只有 1 位是 1，减 1 后低位全是 1，两者按位与得 0：16 & 15 == 0。
        # A power of 2 has only 1 bit set, minus 1 sets all bits below it, so their AND is 0: 16 & 15 == 0.
        if block_size < 8 or block_size & (block_size - 1):
            raise ValueError(
                f"kvcache_block_size={block_size} does not work with backend '{cls.name}': "
                f"use a power of two from 8 (8, 16, 32, ...; default {cls.default_block_size})"
            )

    @abstractmethod
    def store_kvcache(
        self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """把这一步新算出的 K、V 写进缓存的槽位；槽位 -1 表示不写。

        Write this step's keys and values to their slots; slot -1 stores nothing.

        Args:
            key, value: [T, Hkv, D]
            k_cache, v_cache: [num_blocks, block_size, Hkv, D]
            slot_mapping: [T] int64, slot = block_id * block_size + offset
        """

    @abstractmethod
    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float | None = None,
        causal: bool = False,
        block_table: Tensor | None = None,
    ) -> Tensor:
        """变长注意力：多条序列的 query 首尾相接地打包，各自只看自己的 K、V。

        因果掩码按右下角对齐：query 是上下文的最后一段，最后一个 query 看得到全部 key。

        Attention over sequences of different lengths, packed one after the other; each sees its own K and V only.
        The causal mask is aligned bottom-right: the queries are the tail of the context, and the last sees every key.

        Args:
            q: [T, Hq, D]
            k, v: packed [Tk, Hkv, D], or paged caches [num_blocks, block_size, Hkv, D] when `block_table` is given
            cu_seqlens_q, cu_seqlens_k: [num_seqs + 1] int32, running sums that start at 0
            max_seqlen_q, max_seqlen_k: the longest sequence of each kind
            softmax_scale: None means 1 / sqrt(D)
            block_table: [num_seqs, max_blocks] int32

        Returns:
            [T, Hq, D], dtype of q

        Raises:
            ValueError: a shape, dtype or device does not fit; the message names the argument
        """

    @abstractmethod
    def flash_attn_with_kvcache(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        cache_seqlens: Tensor,
        block_table: Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """解码用的注意力：每条序列带等长的几个 query，对缓存里前 `cache_seqlens[b]` 个 token 做注意力。

        Attention for decoding: every sequence brings the same few queries and attends to its first
        `cache_seqlens[b]` cached tokens; a length of 0 gives zeros.

        Args:
            q: [B, Sq, Hq, D]
            k_cache, v_cache: [num_blocks, block_size, Hkv, D]
            cache_seqlens: [B] int32, the new tokens included
            block_table: [B, max_blocks] int32

        Returns:
            [B, Sq, Hq, D], dtype of q

        Raises:
            ValueError: a shape, dtype or device does not fit; the message names the argument
        """


def _check_tensor(
    argument: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """参数的形状（None 表示任意）、dtype、设备必须相符，否则报出参数名。

    The argument's shape (None is any), dtype and device must fit, else the error names it.
    """
    actual = tensor.shape
    if len(actual) != len(shape) or any(want is not None and want != got for want, got in zip(shape, actual)):
        wanted = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
        raise ValueError(f"{argument} must have shape {wanted}, got {list(actual)}")
    if tensor.dtype != dtype:
        raise ValueError(f"{argument} must have dtype {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{argument} must be on {device}, got {tensor.device}")


def _check_heads(q: Tensor, num_kv_heads: int) -> None:
    """query 头数必须是 KV 头数的整数倍，否则没法分组。

    Query heads must be a multiple of the KV heads, or they cannot be grouped.
    """
    if not q.dtype.is_floating_point:
        raise ValueError(f"q must be a floating-point tensor, got {q.dtype}")
    if num_kv_heads == 0 or q.shape[-2] % num_kv_heads:
        raise ValueError(f"q has {q.shape[-2]} heads, not a multiple of the {num_kv_heads} KV heads of k")


def check_store_args(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    """`store_kvcache` 的参数检查，每个后端第一行都调用它。

    The argument check of `store_kvcache`; every backend calls it first.
    """
    if k_cache.dim() != 4:
        raise ValueError(f"k_cache must have shape [num_blocks, block_size, Hkv, D], got {list(k_cache.shape)}")
    _, _, heads, head_dim = k_cache.shape
    _check_tensor("v_cache", v_cache, tuple(k_cache.shape), k_cache.dtype, k_cache.device)
    # 不连续的张量展平时会变成一份拷贝，写进去的内容就悄悄丢了。
    # Flattening a tensor that is not contiguous makes a copy, and what is written there is silently lost.
    for argument, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if not cache.is_contiguous():
            raise ValueError(f"{argument} must be contiguous, got strides {list(cache.stride())}")
    _check_tensor("key", key, (None, heads, head_dim), k_cache.dtype, k_cache.device)
    _check_tensor("value", value, tuple(key.shape), k_cache.dtype, k_cache.device)
    _check_tensor("slot_mapping", slot_mapping, (key.shape[0],), torch.int64, k_cache.device)


def check_varlen_args(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    block_table: Tensor | None,
) -> None:
    """`flash_attn_varlen_func` 的参数检查。只看形状、dtype 和设备，不读张量内容，因此不会让 GPU 停下来等。

    The argument check of `flash_attn_varlen_func`: shapes, dtypes and devices only; no values are read, so the GPU
    is never made to wait.
    """
    if q.dim() != 3:
        raise ValueError(f"q must have shape [T, Hq, D], got {list(q.shape)}")
    # 后面要用它的长度去核对块表，所以先查它。
    # Its length judges the block table below, so it is checked first.
    if cu_seqlens_q.dim() != 1 or cu_seqlens_q.shape[0] < 1:
        raise ValueError(f"cu_seqlens_q must have shape [num_seqs + 1], got {list(cu_seqlens_q.shape)}")
    head_dim = q.shape[2]
    if block_table is None:
        _check_tensor("k", k, (None, None, head_dim), q.dtype, q.device)
    else:
        _check_tensor("k", k, (None, None, None, head_dim), q.dtype, q.device)
        _check_tensor("block_table", block_table, (cu_seqlens_q.shape[0] - 1, None), torch.int32, q.device)
    _check_tensor("v", v, tuple(k.shape), q.dtype, q.device)
    _check_heads(q, k.shape[-2])
    _check_tensor("cu_seqlens_q", cu_seqlens_q, (None,), torch.int32, q.device)
    _check_tensor("cu_seqlens_k", cu_seqlens_k, tuple(cu_seqlens_q.shape), torch.int32, q.device)


def check_kvcache_args(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor
) -> None:
    """`flash_attn_with_kvcache` 的参数检查。

    The argument check of `flash_attn_with_kvcache`.
    """
    if q.dim() != 4:
        raise ValueError(f"q must have shape [B, Sq, Hq, D], got {list(q.shape)}")
    batch, _, _, head_dim = q.shape
    _check_tensor("k_cache", k_cache, (None, None, None, head_dim), q.dtype, q.device)
    _check_tensor("v_cache", v_cache, tuple(k_cache.shape), q.dtype, q.device)
    _check_heads(q, k_cache.shape[2])
    _check_tensor("cache_seqlens", cache_seqlens, (batch,), torch.int32, q.device)
    _check_tensor("block_table", block_table, (batch, None), torch.int32, q.device)
