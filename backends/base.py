"""注意力后端的接口契约：所有后端都实现这里的三个函数，引擎只认识这个类。

你在这里：`layers/attention.py` 调用这三个函数，`torch_backend.py`、`sdpa.py` 等文件实现它们。
函数名、参数名和含义与 flash-attn 包一致，方便把两边的代码并排对照着读。

The contract of attention backends: each backend implements these three functions; the engine knows only this class.

You are here: `layers/attention.py` calls the three functions, `torch_backend.py`, `sdpa.py` and others implement them.
Names, arguments and meaning are those of the flash-attn package, so both sources can be read side by side.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from backends.quantized_cache import check_codes, check_stored, why_no_codes


class BackendUnavailableError(RuntimeError):
    """后端的名字存在，但在这台机器上用不了：消息里写明缺什么、怎么装或改用哪个后端。

    The backend is known but cannot run on this machine; the message says what is missing and what to do.
    """


@dataclass(slots=True)
class AttentionMetadata:
    """一步里注意力需要知道的全部信息，由 `engine/batch.py` 填好，随参数一路传到注意力层。

    批里的行分两部分：前 `num_decodes` 行各只有一个新 token（解码），其余序列各有一段连续的新 token（预填充）。
    例：2 个解码行，再加长 3 和 5 的两个提示词：`cu_seqlens_q` = [0, 3, 8]，T = 2 + 8 = 10。

    All that attention must know about one step; `engine/batch.py` fills it and it travels as an argument.
    The batch has two parts: the first `num_decodes` rows bring one new token each (decode), the other sequences
    a run of new tokens each (prefill). Example: 2 decodes and prompts of 3 and 5 tokens give
    `cu_seqlens_q` = [0, 3, 8] and T = 2 + 8 = 10.

    Attributes:
        num_decodes: 只有一个新 token 的行数，排在最前；rows with one new token; they come first
        slot_mapping: [T] int64，各新 token 的 K、V 写到哪里，-1 不写；where the new K and V go, -1 stores nothing
        decode_block_tables: [num_decodes, max_blocks] int32，解码行的块编号，按逻辑次序，补 -1；
            the decode rows' block ids in logical order, padded by -1
        cache_seqlens: [num_decodes] int32，各解码行的 token 数，含新的；tokens of each decode row, the new one included
        prefill_block_tables: [num_prefills, max_blocks] int32，预填充行的块编号，补 -1；the prefills' ids, padded by -1
        cu_seqlens_q: [num_prefills + 1] int32，预填充行新 token 数的累计和；running sum of the prefills' new tokens
        cu_seqlens_k: [num_prefills + 1] int32，预填充行上下文长度的累计和，含新 token；
            running sum of the prefills' context lengths, the new tokens included
        max_seqlen_q: 预填充行里最多的新 token 数；the longest run of new tokens among the prefills
        max_seqlen_k: 预填充行里最长的上下文；the longest context among the prefills
        block_size: 每块多少 token；tokens of a block
        plan: 后端的 `prepare` 为这一步算好的；what the backend's `prepare` returned for this step
    """

    # 按这一步的新 token 数划分，不看处在哪个阶段：提示词的最后一个分段若只剩 1 个 token，也归入解码行。
    # The split goes by the new tokens of this step, not by phase: a prompt's last chunk of 1 token is a decode row too.
    num_decodes: int
    # 必须是 int64：3B 的每个槽位有 8 * 128 = 1024 个元素，槽位 2097152 的首元素下标是 2^31，int32 已经装不下。
    # int64 is a must: in the 3B a slot has 8 * 128 = 1024 elements, so slot 2097152 begins at element 2^31, past int32.
    slot_mapping: Tensor  # [T] int64
    # 块表就是操作系统的页表。例：块表 [7, 2, 5]，块大小 4，位置 9 在第 9 // 4 = 2 项，即 5 号块，槽位 5 * 4 + 1 = 21。
    # A block table is the system's page table. Example: table [7, 2, 5], blocks of 4:
    # position 9 is in entry 9 // 4 = 2, which is block 5, so slot 5 * 4 + 1 = 21.
    decode_block_tables: Tensor  # [num_decodes, max_blocks] int32
    cache_seqlens: Tensor  # [num_decodes] int32
    prefill_block_tables: Tensor  # [num_prefills, max_blocks] int32
    # q 与 k 各有一份累计长度，因为长度可以不同：缓存里已有 32 个 token，这步再算 3 个，q 长 3，k 长 35。
    # q and k have sums of their own, as lengths may differ:
    # with 32 tokens cached and 3 new ones, q has length 3 and k 35.
    cu_seqlens_q: Tensor  # [num_prefills + 1] int32
    cu_seqlens_k: Tensor  # [num_prefills + 1] int32
    # 最大值是 Python 整数：核函数靠它决定启动多少线程块，若要从 GPU 读回来，每一层都得停下来等。
    # The maxima are Python ints: kernels size their launch by them,
    # and reading them from the GPU would stall every layer.
    max_seqlen_q: int
    max_seqlen_k: int
    block_size: int
    plan: Any = None


class AttentionBackend(ABC):
    """一个注意力后端：声明自己支持什么，并实现三个函数。

    加一个新后端只要写一个文件：继承本类，再到 `backends/__init__.py` 登记一行。

    One attention backend: it declares what it supports and implements the three functions.
    A new backend is one file: subclass this, then add one line to `backends/__init__.py`.
    """

    name: ClassVar[str]
    # 块小，每条序列最后一个块浪费得少，前缀命中也更细；块大，块表更短。16 是折中，也是 vLLM 的默认值。
    # Small blocks waste less at a sequence's end and match prefixes more finely,
    # large ones need shorter tables; 16 is the compromise, and vLLM's default.
    default_block_size: ClassVar[int] = 16
    # CUDA graph 只能重放录下的核函数；把长度读回 CPU 再决定怎么算的后端录不了，所以默认是 False。
    # A CUDA graph replays recorded kernels;
    # a backend that reads lengths back to the CPU cannot be recorded: False by default.
    supports_cuda_graphs: ClassVar[bool] = False
    # 参考后端为真：它旁边不用融合的核函数，每一步都能逐行看。
    # True for the reference: no fused kernels run beside it, so that every step can be followed line by line.
    is_reference: ClassVar[bool] = False
    # 认得哪些量化缓存的编码：要多认 `k_descale`、`v_descale` 两个参数，所以默认一种也没有。
    # Which codes of quantized caches it reads: none by default, as that takes arguments, `k_descale` and `v_descale`.
    code_dtypes: ClassVar[tuple[torch.dtype, ...]] = ()

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @classmethod
    def why_unusable(cls, device: torch.device) -> str | None:
        """在 `device` 上用不了时返回原因（含补救办法），能用返回 None。

        Return why it cannot run on `device`, with the remedy, or None if it can.
        """
        # 默认哪里都能跑，只要设备真的在；要求更多的后端覆盖它，返回一句写明缺什么的话。
        # By default it runs anywhere, if the device is there; a backend that needs more overrides this and says what.
        if device.type == "cuda" and not torch.cuda.is_available():
            return "no CUDA device here; use device='cpu'"
        return None

    @classmethod
    def why_unsupported(cls, head_dim: int, dtype: torch.dtype, codes: torch.dtype | None = None) -> str | None:
        """模型的 `head_dim`、`dtype` 或量化缓存的 `codes` 不受支持时返回原因，支持返回 None。

        Return why a model with this `head_dim` and `dtype`, and a cache of such `codes`, is not supported, or None if
        it is.

        Args:
            codes: 量化缓存里编码的类型，None 是不量化；the codes' type in a quantized cache, None: not quantized
        """
        # 默认支持一切模型；核函数只为某些 `head_dim` 写过的后端在这里拒绝，好过给出错误的结果。
        # By default all models are; a backend whose kernels know a few values of `head_dim` refuses rather than err.
        return why_no_codes(codes, cls.code_dtypes)

    @classmethod
    def check_block_size(cls, block_size: int) -> None:
        """检查块大小；默认规则：不小于 8 的 2 的幂。

        Check the block size; the default rule is any power of two from 8.

        Raises:
            ValueError: 块大小不合规则，消息里写明哪些可以；it breaks the rule; the message names the sizes that work
        """
        # 2 的幂在二进制里只有 1 位是 1，减 1 后低位全是 1，两者按位与得 0：16 & 15 == 0。
        # A power of 2 has only 1 bit set, minus 1 sets all bits below it, so their AND is 0: 16 & 15 == 0.
        # 2 的幂还让 `//` 和 `%` 变成移位和按位与：块大小 16 时，槽位 53 >> 4 = 3 是块编号，53 & 15 = 5 是偏移。
        # A power of 2 also turns `//` and `%` into shift and mask: with blocks of 16,
        # slot 53 >> 4 = 3 is the block, 53 & 15 = 5 the offset.
        if block_size < 8 or block_size & (block_size - 1):
            raise ValueError(
                f"kvcache_block_size={block_size} does not work with backend '{cls.name}': "
                f"use a power of two from 8 (8, 16, 32, ...; default {cls.default_block_size})"
            )

    def prepare(self, metadata: AttentionMetadata) -> Any:
        """每步一次，在第一层之前：各层都要用、又只由这一步决定的东西，在这里算好；默认没有。

        结果放进 `metadata.plan`，随参数传到每一层的两个注意力函数；后端自己什么都不记。

        Once a step, before the first layer: work out what all layers need and only the step decides; by default
        nothing. The result becomes `metadata.plan` and travels as an argument to both attention functions of every
        layer; the backend itself remembers nothing.

        Returns:
            后端自己的函数认得就行；录进 CUDA graph 时只能用设备上的运算算出；
                anything that this backend's own functions understand; inside a CUDA graph made by device work only
        """
        return None

    @abstractmethod
    def store_kvcache(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                      k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
        """把这一步新算出的 K、V 写进缓存的槽位；槽位 -1 表示不写。

        缓存是量化的，就写编码和缩放。缩放的名字同 flash-attn 3，含义不同：那里每条序列、每个头 1 个，这里每个 token、
        每个头 1 个。

        Write this step's keys and values to their slots; slot -1 stores nothing.

        If the cache is quantized, codes and scales are written. Scales have the names of flash-attn 3 but not its
        meaning: there it is 1 for each sequence and head, here 1 for each token and head.

        Args:
            key, value: [T, Hkv, D]
            k_cache, v_cache: [num_blocks, block_size, Hkv, D]
            slot_mapping: [T] int64，`slot = block_id * block_size + offset`
            k_descale, v_descale: [num_blocks, block_size, Hkv] float32，缩放，量化的缓存才有，在这里写入；
                scales of a quantized cache, written here
        """

    @abstractmethod
    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, block_table: Tensor | None = None,
        plan: Any = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """变长注意力：多条序列的 query 首尾相接地打包，各自只看自己的 K、V。

        因果掩码按右下角对齐：query 是上下文的最后一段，最后一个 query 看得到全部 key。

        Attention over sequences of different lengths, packed one after the other; each sees its own K and V only.
        The causal mask is aligned bottom-right: the queries are the tail of the context, and the last sees every key.

        Args:
            q: [T, Hq, D]
            k, v: [Tk, Hkv, D]，打包的；有 `block_table` 时是分页的缓存；packed; with `block_table` paged caches
            cu_seqlens_q, cu_seqlens_k: [num_seqs + 1] int32，累计和，从 0 开始；running sums that start at 0
            max_seqlen_q, max_seqlen_k: 两者各自最长的序列；the longest sequence of each kind
            softmax_scale: None 就是 `1 / sqrt(D)`；None means `1 / sqrt(D)`
            block_table: [num_seqs, max_blocks] int32
            plan: `prepare` 为这些参数算好的；None 则现算；what `prepare` returned for these arguments; None: made now
            k_descale, v_descale: 同 `store_kvcache`，只用于分页的缓存；as for `store_kvcache`, with paged caches only

        Returns:
            [T, Hq, D]，dtype 与 q 相同；dtype of q

        Raises:
            ValueError: 形状、dtype 或设备不符，写明是哪个参数；a shape, dtype or device does not fit; it says which
        """

    @abstractmethod
    def flash_attn_with_kvcache(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor,
        softmax_scale: float | None = None, causal: bool = False, plan: Any = None,
        k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """解码用的注意力：每条序列带等长的几个 query，对缓存里前 `cache_seqlens[b]` 个 token 计算注意力。

        Attention for decoding: every sequence brings the same few queries and attends to its first
        `cache_seqlens[b]` cached tokens; a length of 0 gives zeros.

        Args:
            q: [B, Sq, Hq, D]
            k_cache, v_cache: [num_blocks, block_size, Hkv, D]
            cache_seqlens: [B] int32，含新的 token；the new tokens included
            block_table: [B, max_blocks] int32
            plan: `prepare` 为这些参数算好的；None 则现算；what `prepare` returned for these arguments; None: made now
            k_descale, v_descale: 同 `store_kvcache`；as for `store_kvcache`

        Returns:
            [B, Sq, Hq, D]，dtype 与 q 相同；dtype of q

        Raises:
            ValueError: 形状、dtype 或设备不符，写明是哪个参数；a shape, dtype or device does not fit; it says which
        """


def _check_tensor(
    argument: str, tensor: Tensor, shape: tuple[int | str, ...], dtype: torch.dtype, device: torch.device,
) -> None:
    """参数的形状（写名字的那一维可以任意大）、dtype、设备必须相符，否则报出参数名。

    The argument's shape (a dimension given by name may have any size), dtype and device must fit, else the error names
    it.
    """
    # 每个参数都在入口检查：放过去的话，错误会在几层之下的核函数里冒出来，没有参数名，甚至不报错、直接读错内存。
    # Arguments are checked at the door: let through, an error comes up deep in a
    # kernel without the argument's name, or the kernel just reads wrong memory.
    actual = tensor.shape
    # 先比维数：`zip` 按短的一方截断，[4, 8] 与只写了 4 的 1 维要求也能逐项相等。
    # Compare the number of dimensions first: `zip` stops at the shorter, so [4, 8] would match 1 dimension of 4.
    if len(actual) != len(shape) or any(type(want) is int and want != got for want, got in zip(shape, actual)):
        # 例：要 [T, 8, 64]，得到 [10, 64, 8]：两者都在消息里，一眼看出头和维写反了。
        # Example: wanted [T, 8, 64], got [10, 64, 8]: with both in the message it is plain what was swapped.
        raise ValueError(f"{argument} must have shape [{', '.join(map(str, shape))}], got {list(actual)}")
    # dtype 不做隐式转换：静默的转换每层、每步都要付一次拷贝的代价，还会掩盖上游的错误。
    # No implicit conversion of the dtype:
    # it would cost a copy in each layer of each step and hide a mistake made earlier.
    if tensor.dtype != dtype:
        raise ValueError(f"{argument} must have dtype {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{argument} must be on {device}, got {tensor.device}")


def _check_heads(q: Tensor, num_kv_heads: int) -> None:
    """query 头数必须是 KV 头数的整数倍，否则没法分组。

    Query heads must be a multiple of the KV heads, or they cannot be grouped.
    """
    # 默认缩放 1/sqrt(D) 和 softmax 都要小数，整数张量在这里就拦下。
    # The scale 1/sqrt(D) and softmax need fractions, so integer tensors stop here.
    if not q.dtype.is_floating_point:
        raise ValueError(f"q must be a floating-point tensor, got {q.dtype}")
    # 头在 -2 维，3 维的 [T, Hq, D] 和 4 维的 [B, Sq, Hq, D] 都适用。24 个头对 8 个可以，10 对 4 就分不匀。
    # Heads are dimension -2, in 3 dims [T, Hq, D] and in 4 dims [B, Sq, Hq, D]. 24 over 8 is fine, 10 over 4 is uneven.
    if num_kv_heads == 0 or q.shape[-2] % num_kv_heads:
        raise ValueError(f"q has {q.shape[-2]} heads, not a multiple of the {num_kv_heads} KV heads of k")


def check_store_args(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                     k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
    """`store_kvcache` 的参数检查，每个后端第一行都调用它。

    The argument check of `store_kvcache`; every backend calls it first.
    """
    _check_tensor("k_cache", k_cache, ("num_blocks", "block_size", "Hkv", "D"), k_cache.dtype, k_cache.device)
    # 缓存在引擎启动时就分配好，以它的形状和 dtype 为准，检查其余参数。
    # The cache was allocated when the engine started, so its shape and dtype judge all other arguments.
    _, _, heads, head_dim = k_cache.shape
    _check_tensor("v_cache", v_cache, tuple(k_cache.shape), k_cache.dtype, k_cache.device)
    # 不连续的张量展平时会变成一份拷贝，写进去的内容就悄悄丢了。
    # Flattening a tensor that is not contiguous makes a copy, and what is written there is silently lost.
    for argument, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if not cache.is_contiguous():
            raise ValueError(f"{argument} must be contiguous, got strides {list(cache.stride())}")
    _check_tensor("key", key, ("T", heads, head_dim), check_stored(key, k_cache, k_descale, v_descale), k_cache.device)
    _check_tensor("value", value, tuple(key.shape), key.dtype, k_cache.device)
    # 每个新 token 一个槽位。int32 的槽位在小缓存上也能通过测试，显存一大就溢出，所以在这里一律拒绝。
    # One slot per new token. int32 slots pass every test on a small
    # cache and overflow on a large one, so they are refused.
    _check_tensor("slot_mapping", slot_mapping, (key.shape[0],), torch.int64, k_cache.device)


def check_varlen_args(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, block_table: Tensor | None,
    k_descale: Tensor | None = None, v_descale: Tensor | None = None,
) -> None:
    """`flash_attn_varlen_func` 的参数检查。只看形状、dtype 和设备，不读张量内容，因此不会让 GPU 停下来等。

    The argument check of `flash_attn_varlen_func`: shapes, dtypes and devices only; no values are read, so the GPU
    is never made to wait.
    """
    _check_tensor("q", q, ("T", "Hq", "D"), q.dtype, q.device)
    # 后面要用它的长度去核对块表，所以先查它；没有序列也有 1 项。
    # Its length judges the block table below, so it is checked first; with no sequence it still has 1 entry.
    _check_tensor("cu_seqlens_q", cu_seqlens_q, (max(cu_seqlens_q.numel(), 1),), torch.int32, q.device)
    head_dim = q.shape[2]
    # 编码和缩放只出现在分页的缓存里，打包的 k 必须是浮点数。
    # Codes and their scales are in paged caches only, packed k must be floats.
    dtype = check_codes("k", k, q.dtype, k_descale, v_descale)
    # 没有块表时，k 是打包的 [Tk, Hkv, D]；有块表时，k 是整个块池，长度由 `cu_seqlens_k` 给出。
    # Without a table k is packed, [Tk, Hkv, D]; with one k is the whole pool, and `cu_seqlens_k` gives the lengths.
    if block_table is None:
        _check_tensor("k", k, ("Tk", "Hkv", head_dim), q.dtype, q.device)
    else:
        _check_tensor("k", k, ("num_blocks", "block_size", "Hkv", head_dim), dtype, q.device)
        # `cu_seqlens_q` 比序列数多 1 项：[0, 3, 8] 是 2 条序列，块表就要有 2 行。
        # `cu_seqlens_q` has 1 entry more than there are sequences: [0, 3, 8] is 2 sequences, so the table needs 2 rows.
        _check_tensor("block_table", block_table, (cu_seqlens_q.shape[0] - 1, "max_blocks"), torch.int32, q.device)
    _check_tensor("v", v, tuple(k.shape), dtype, q.device)
    # 打包的 [Tk, Hkv, D] 和分页的 [num_blocks, block_size, Hkv, D]，KV 头都在 -2 维，一种写法两用。
    # Packed [Tk, Hkv, D] or paged [num_blocks, block_size, Hkv, D]: KV heads are dimension -2 in both.
    _check_heads(q, k.shape[-2])
    _check_tensor("cu_seqlens_k", cu_seqlens_k, tuple(cu_seqlens_q.shape), torch.int32, q.device)


def check_kvcache_args(q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor,
                       k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
    """`flash_attn_with_kvcache` 的参数检查。

    The argument check of `flash_attn_with_kvcache`.
    """
    _check_tensor("q", q, ("B", "Sq", "Hq", "D"), q.dtype, q.device)
    # 每条序列的 query 数（Sq）不受限制：普通解码是 1，以后的投机解码一次验证好几个。
    # Any number of queries a sequence (Sq) will do: 1 in plain decoding,
    # several at once in speculative decoding later on.
    batch, _, _, head_dim = q.shape
    dtype = check_codes("k_cache", k_cache, q.dtype, k_descale, v_descale)
    _check_tensor("k_cache", k_cache, ("num_blocks", "block_size", "Hkv", head_dim), dtype, q.device)
    _check_tensor("v_cache", v_cache, tuple(k_cache.shape), dtype, q.device)
    _check_heads(q, k_cache.shape[2])
    # 只查形状，不查值是否越过块表的宽度：读值会让 GPU 停下来等，这一点由引擎的块管理器保证。
    # Shapes only, not whether a value exceeds the table's width:
    # reading values would stall the GPU, and the engine's block manager sees to it.
    _check_tensor("cache_seqlens", cache_seqlens, (batch,), torch.int32, q.device)
    _check_tensor("block_table", block_table, (batch, "max_blocks"), torch.int32, q.device)
