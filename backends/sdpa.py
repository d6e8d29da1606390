"""SDPA 后端：把注意力交给 `torch.nn.functional.scaled_dot_product_attention`，写缓存用一次索引赋值。

不用另装任何包，CPU 和 CUDA 都能跑。SDPA 要的是等长、连续的张量，所以这里要做的事只有两件：
按块表把 K、V 取成连续的，再把长短不一的序列补齐成一批，用掩码盖住补上的部分。

The SDPA backend: attention by `torch.nn.functional.scaled_dot_product_attention`, stores by one indexed assignment.

It needs no extra install and runs on CPU and CUDA. SDPA wants contiguous tensors of equal length, so there are two
things to do here: gather K and V by the block table, and pad sequences of different lengths into one batch whose
padding a mask hides.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.base import AttentionBackend, check_kvcache_args, check_store_args, check_varlen_args


def _padded_index(starts: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """把若干段 [start, start + length) 摆成一个矩形：返回下标和“是否真实”的掩码。

    多出来的格子指向本段的第 0 个元素，而不是随便一个地方：那里一定写过，不会把 NaN 引进来。

    Lay the runs [start, start + length) out as a rectangle: indices, and a mask of the real cells.
    A cell past a run's end points at the run's element 0, which has been written, so it cannot bring in a NaN.

    Returns:
        index [B, width] int64, real [B, width] bool
    """
    column = torch.arange(width, device=starts.device)  # [width]
    real = column[None, :] < lengths[:, None]  # [B, width]
    # 例：起点 3、长度 2、宽 4：下标 [3, 4, 3, 3]，掩码 [1, 1, 0, 0]。
    # Example: start 3, length 2, width 4 gives index [3, 4, 3, 3] and mask [1, 1, 0, 0].
    return starts[:, None] + torch.where(real, column, 0), real  # [B, width]


def _visible(real_k: Tensor, len_q: Tensor | int, len_k: Tensor, max_q: int, causal: bool) -> Tensor:
    """每个 query 看得见哪些 key：只看真实的；因果时再按右下角对齐遮住未来。

    Which keys each query may see: real ones only, and if causal none of the future, aligned bottom-right.

    Args:
        real_k: [B, max_k] bool
        len_q: [B], or one number for all
        len_k: [B]

    Returns:
        [B, max_q, max_k] bool
    """
    # `expand` 不复制：同一行掩码给所有 query 看，步长为 0。补齐的 query 也照算，结果最后丢弃。
    # `expand` copies nothing: all queries share a row of the mask by a stride of 0.
    # Padded queries are computed and dropped.
    visible = real_k[:, None, :].expand(-1, max_q, -1)  # [B, max_q, max_k]
    if causal and max_q > 1:
        # 每条序列的偏移不同：query i 的真实位置是 i + (len_k - len_q)。1 个 query 排在末尾，什么都不用遮。
        # An offset for each sequence: query i stands at i + (len_k - len_q). 1 query is last and needs no mask.
        # 例：长 5、2 个 query：它们是位置 3 和 4，分别看到 key 0 到 3 和 0 到 4。
        # Example: length 5 and 2 queries: they are positions 3 and 4, seeing keys 0 to 3 and 0 to 4.
        last_seen = torch.arange(max_q, device=real_k.device) + (len_k - len_q)[:, None]  # [B, max_q]
        columns = torch.arange(real_k.shape[1], device=real_k.device)  # [max_k]
        visible = visible & (columns <= last_seen[:, :, None])  # [B, max_q, max_k]
    return visible  # [B, max_q, max_k]


def _slots_of(positions: Tensor, block_table: Tensor, block_size: int) -> Tensor:
    """逻辑位置 -> 物理槽位：查块表得块编号，再加块内偏移。

    Logical position -> physical slot: the block table gives the block, then add the offset.

    Args:
        positions: [B, L] int64
        block_table: [B, max_blocks] int32

    Returns:
        [B, L] int64
    """
    # 空序列的块表整行都是 -1，截到 0，免得越界；它的输出随后会被清零。
    # An empty sequence's row is all -1; clamp it to 0 so it stays in range: its output is set to 0 later.
    # 例：块大小 4，块表 [7, 2, 5]，位置 9：第 9 // 4 = 2 项是 5 号块，槽位 5 * 4 + 9 % 4 = 21。
    # Example: blocks of 4, table [7, 2, 5], position 9: entry 9 // 4 = 2 is block 5, slot 5 * 4 + 9 % 4 = 21.
    # 块表存 int32 省一半空间，算槽位之前换成 int64：再大的缓存，乘法也不会回绕到 0 以下。
    # The table is int32 to save half the space, int64 before any product:
    # however large the cache, nothing wraps below 0.
    block = block_table.long().gather(1, positions // block_size).clamp_(min=0)  # [B, L]
    return block * block_size + positions % block_size  # [B, L] int64


def _gather(cache: Tensor, slots: Tensor) -> Tensor:
    """按槽位取出 K 或 V。这其实就是查表，所以用 `F.embedding`：CPU 上它比 `cache[slots]` 快得多。

    Take K or V by slot. It is a table look-up, hence `F.embedding`: on a CPU it is much faster than `cache[slots]`.

    Args:
        cache: [num_blocks, block_size, Hkv, D]
        slots: [B, L] int64

    Returns:
        [B, Hkv, L, D]
    """
    num_heads, head_dim = cache.shape[2:]
    # 查表只认 2 维的表：把 (块, 偏移) 并成槽位，把 (头, 维) 并成一行，查完再拆开。
    # A look-up wants a table of 2 dimensions: (block, offset) become the slot, (head, dim) the row; split it after.
    # 断点停在这里，看 `slots[0]`：同一个块里的槽位连续，换块时跳变，这就是分页在张量里的样子。
    # Stop here and look at `slots[0]`: consecutive within a block, a jump where the next block starts. This is paging.
    rows = F.embedding(slots, cache.view(-1, num_heads * head_dim))  # [B, L, Hkv * D]
    return rows.unflatten(-1, (num_heads, head_dim)).transpose(1, 2)  # [B, Hkv, L, D]


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """补齐后的一批，调用一次 SDPA。

    One SDPA call for a padded batch.

    Args:
        q: [B, Hq, Sq, D]
        k, v: [B, Hkv, Sk, D]
        visible: which key each query may see, [B, 1, Sq, Sk] bool; None is every key

    Returns:
        [B, Hq, Sq, D]
    """
    # 不用 SDPA 自带的 `is_causal`：query 和 key 不等长时，它按左上角对齐，分块预填充会因此看不到历史。
    # Not SDPA's own `is_causal`: if queries and keys differ in number,
    # it aligns top-left, and a chunk would miss its history.
    #     2 queries, 5 keys     top-left: 1 0 0 0 0     bottom-right: 1 1 1 1 0
    #                                     1 1 0 0 0                   1 1 1 1 1
    # `enable_gqa` 让 6 个 query 头配 2 个 KV 头：头 0 到 2 用 KV 头 0，头 3 到 5 用 KV 头 1。
    # `enable_gqa` fits 6 query heads to 2 KV heads: heads 0 to 2 use KV head 0, heads 3 to 5 use KV head 1.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)  # [B, Hq, Sq, D]
    if visible is None:
        return out
    # 什么都看不到的行按约定输出 0；各版本的 SDPA 对这种行的结果并不一致，所以自己清零。
    # A row that sees nothing gives 0 by contract; SDPA's own answer differs between versions, so we set it.
    return out.masked_fill(~visible.any(dim=-1, keepdim=True), 0.0)  # [B, Hq, Sq, D]


def _similar_lengths(lengths_q: list[int], lengths_k: list[int]) -> Iterator[slice]:
    """把相邻的序列分成几组，每组补齐后的面积不超过实际面积的两倍，免得一条长提示词让所有短提示词陪跑。

    Split neighbouring sequences into groups whose padded area is at most twice the real one, so that a single long
    prompt does not make all short ones pay its price.
    """
    start, area, max_q, max_k = 0, 0, 0, 0
    for i, (length_q, length_k) in enumerate(zip(lengths_q, lengths_k)):
        # 面积是打分矩阵的格子数。例：提示词长 1000、10、10，补成一批是 3 * 1000 * 1000 格，有用的只有 1000200 格。
        # Area is cells of the score matrix. Example: prompts of 1000,
        # 10 and 10 padded together make 3 * 1000 * 1000 cells, of which 1000200 are of use.
        wider_q, wider_k = max(max_q, length_q), max(max_k, length_k)
        padded = (i - start + 1) * wider_q * wider_k
        # 小批补齐多少都不贵：65536 格以内一律并成一组，少调用几次 SDPA。
        # Padding a small batch costs little: within 65536 cells, stay in one group and save SDPA calls.
        # `i > start` 保证一组至少 1 条：单独一条的补齐面积就是自己的面积，总能成组。
        # `i > start` gives a group at least 1 sequence:
        # alone it is padded to its own size, so every sequence finds a group.
        if i > start and padded > max(2 * (area + length_q * length_k), 65536):
            yield slice(start, i)
            start, area, wider_q, wider_k = i, 0, length_q, length_k
        area, max_q, max_k = area + length_q * length_k, wider_q, wider_k
    # 循环只在换组时交出前一组，最后一组要在这里补交；漏掉它，最后几条序列的输出就是 0。
    # The loop yields a group when the next begins, so the last is yielded here;
    # without it the last sequences would be 0.
    if start < len(lengths_q):
        yield slice(start, len(lengths_q))


def _version(tensor: Tensor) -> int:
    """张量被原地改写的次数；推理模式里建的张量不记这个数，用 -1 表示“不知道”。

    How often a tensor was written in place; one made in inference mode does not count, so -1 is "unknown".
    """
    # `_version` 是 PyTorch 为自动求导记的修改次数，类似乐观锁的版本号。
    # `_version` is the write count that PyTorch keeps for autograd, much like the version of an optimistic lock.
    return -1 if tensor.is_inference() else tensor._version


class _DecodePlan(NamedTuple):
    """一步解码的 gather 索引。

    What one decoding step gathers.

    Attributes:
        slots: [B, L] int64
        visible: [B, 1, Sq, L] bool, or None if all is visible
        key, shape: the arguments that the plan was made for
    """

    slots: Tensor  # [B, L] int64
    visible: Tensor | None  # [B, 1, Sq, L] bool
    # 存张量本身，而不是它的 `id`：旧张量释放后，新张量可能得到同一个 `id`，缓存就会误命中。
    # The tensors themselves and not their `id`: once one is freed,
    # a new tensor may get the same `id`, a false cache hit.
    key: tuple[Tensor, int, Tensor, int]
    shape: tuple[int, ...]

    def made_for(self, cache_seqlens: Tensor, block_table: Tensor, shape: tuple[int, ...]) -> bool:
        """还是不是同一步：必须是同一对张量，而且没被改写过。

        Whether this is still the same step: the same two tensors, not written since.
        """
        # 缓存失效是这里唯一的难点：误用上一步的计划，新 token 就看不见自己。因此拿不准就重算。
        # Cache invalidation is the only hard part:
        # with the last step's plan a new token would not see itself. If in doubt, redo.
        seqlens, seqlens_version, table, table_version = self.key
        return (
            cache_seqlens is seqlens
            and block_table is table
            and shape == self.shape
            # 连写的比较是两个条件：版本没变，而且不是 -1；版本未知时，即使两边都是 -1 也不算命中。
            # The chained comparison is two conditions: the same version,
            # and not -1; if unknown, -1 on both sides is no hit.
            and _version(cache_seqlens) == seqlens_version >= 0
            and _version(block_table) == table_version >= 0
        )


class SDPABackend(AttentionBackend):
    """PyTorch 自带的融合注意力；`auto` 在 CPU 上选它。

    PyTorch's own fused attention; `auto` takes it on the CPU.
    """

    name = "sdpa"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        # 只记最近一步：下一步换了张量，计划就重做，旧的随之释放，不会越积越多。
        # Only the latest step is kept: the next brings new tensors, the plan is made anew and the old one freed.
        self._plan: _DecodePlan | None = None

    def store_kvcache(
        self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """一次索引赋值写完所有 token。

        One indexed assignment for all tokens.
        """
        check_store_args(key, value, k_cache, v_cache, slot_mapping)
        # 缓存是连续的，前两维可以看成一长条槽位：[num_blocks * block_size, Hkv, D]。
        # The cache is contiguous, so its first two dimensions are one row of slots: [num_blocks * block_size, Hkv, D].
        k_slots, v_slots = k_cache.flatten(0, 1), v_cache.flatten(0, 1)  # [num_slots, Hkv, D]
        # 槽位 -1 表示不写，当作下标却指最后一个槽位，会写坏别人的数据，要先滤掉；CPU 上没有 -1 就省一次筛选。
        # Slot -1 stores nothing, but as an index it is the last slot: filter first; on the CPU only if there is a -1.
        if slot_mapping.device.type != "cpu" or (slot_mapping.numel() and int(slot_mapping.min()) < 0):
            # GPU 上总是筛选，因为问“有没有 -1”本身就要等 GPU 一次；`nonzero` 也要等，但不必等两次。
            # On a GPU filter always, as asking for a -1 waits for the GPU by itself;
            # `nonzero` waits too, but not twice.
            rows = torch.nonzero(slot_mapping >= 0).squeeze(1)  # [N]
            key, value, slot_mapping = key[rows], value[rows], slot_mapping[rows]  # [N, Hkv, D], [N, Hkv, D], [N]
        # 例：`slot_mapping` = [21, 0, 1]：`key` 的第 0 行写到槽位 21，第 1、2 行写到槽位 0、1。
        # Example: `slot_mapping` = [21, 0, 1]: row 0 of `key` goes to slot 21, rows 1 and 2 to slots 0 and 1.
        k_slots[slot_mapping] = key  # [N, Hkv, D]
        v_slots[slot_mapping] = value  # [N, Hkv, D]

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
        """长度相近的序列补齐成一批，一批调用一次 SDPA。

        Sequences of similar length are padded into a batch, one SDPA call each.
        """
        check_varlen_args(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table)
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()  # [num_seqs]
        # 从 0 开始而不是 `empty`：没有 key 的序列不会再被写，留下的必须正好是约定的 0。
        # Zeros and not `empty`: a sequence without keys is never written below,
        # and what stays must be the 0 of the contract.
        out = torch.zeros_like(q)  # [T, Hq, D]
        # `diff` 由累计长度得回各段长度：[0, 3, 8] 得 [3, 5]。分组要在 CPU 上做，所以读回一次，每次调用只等这一回。
        # `diff` turns sums into lengths: [0, 3, 8] gives [3, 5].
        # Groups are made on the CPU, so they are read back once a call.
        host_q, host_k = lengths_q.tolist(), lengths_k.tolist()
        for group in _similar_lengths(host_q, host_k):
            max_q, max_k = max(host_q[group]), max(host_k[group])
            # 没有 query 就没有输出；没有 key 时输出是 0，而 `out` 本来就是 0。
            # No queries, no output; without keys the output is 0, and `out` is 0 already.
            if max_q == 0 or max_k == 0:
                continue
            len_q, len_k = lengths_q[group].long(), lengths_k[group].long()  # [B]
            index_q, real_q = _padded_index(cu_seqlens_q[:-1][group].long(), len_q, max_q)  # [B, max_q]
            if block_table is None:
                index_k, real_k = _padded_index(cu_seqlens_k[:-1][group].long(), len_k, max_k)  # [B, max_k]
                # 空序列的起点可能等于总长，截回范围内；它的行随后清零。
                # An empty sequence may start at the very end; clamp into range, its rows are zeroed later.
                index_k.clamp_(max=k.shape[0] - 1)
                keys, values = k[index_k].transpose(1, 2), v[index_k].transpose(1, 2)  # [B, Hkv, max_k, D]
            else:
                # 分页时，下标是“本序列的第几个 token”，从 0 数起，再由块表翻成槽位；打包时才要加各段的起点。
                # Paged, an index counts the sequence's own tokens from 0 and the table makes it a slot;
                # only packed runs add their start.
                positions, real_k = _padded_index(torch.zeros_like(len_k), len_k, max_k)  # [B, max_k]
                slots = _slots_of(positions, block_table[group], k.shape[1])  # [B, max_k]
                keys, values = _gather(k, slots), _gather(v, slots)  # [B, Hkv, max_k, D]
            visible = _visible(real_k, len_q, len_k, max_q, causal)  # [B, max_q, max_k]
            queries = q[index_q.clamp_(max=q.shape[0] - 1)]  # [B, max_q, Hq, D]
            # SDPA 要头在前、长度在后：[B, Hq, max_q, D]，与 flash-attn 的次序相反，所以进出各转置一次。
            # SDPA wants heads before length, [B, Hq, max_q, D],
            # the reverse of flash-attn: hence a transpose on the way in and out.
            attended = _attend(queries.transpose(1, 2), keys, values, visible[:, None], scale)  # [B, Hq, max_q, D]
            # 只把真实的 query 写回去，补齐的行丢掉。
            # Only real queries are written back; the padding is dropped.
            out[index_q[real_q]] = attended.transpose(1, 2)[real_q]  # [sum(len_q), Hq, D]
        return out  # [T, Hq, D]

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
        """所有解码序列补齐到最长的那条，一次 SDPA。

        All decoding sequences are padded to the longest and served by one SDPA call.
        """
        check_kvcache_args(q, k_cache, v_cache, cache_seqlens, block_table)
        batch, num_queries, num_heads, head_dim = q.shape
        scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
        plan = self._plan_decode(cache_seqlens, block_table, k_cache, num_queries, causal)
        # 所有序列都是空的（或没有 query）：没有东西可看，按约定输出全零。
        # Every sequence is empty, or there are no queries: nothing to see, so zeros by contract.
        if plan is None:
            return torch.zeros_like(q)  # [B, Sq, Hq, D]
        keys, values = _gather(k_cache, plan.slots), _gather(v_cache, plan.slots)  # [B, Hkv, L, D]
        # 同组的 query 头共用 K、V，把它们当成同一个头的多个 query：K、V 不必复制，一次矩阵乘法服务整组。
        # Query heads of a group share K and V, so treat them as queries of a single head: nothing is copied.
        group_size = num_heads // k_cache.shape[2]
        # 例：6 个 query 头、2 个 KV 头、Sq = 1：[B, 6, 1, D] 看作 [B, 2, 3, D]，头 0 到 2 落在 KV 头 0 名下。
        # Example: 6 query heads, 2 KV heads, Sq = 1:
        # [B, 6, 1, D] is seen as [B, 2, 3, D], and heads 0 to 2 fall to KV head 0.
        grouped = q.transpose(1, 2).reshape(batch, -1, group_size * num_queries, head_dim)  # [B, Hkv, G * Sq, D]
        # 一组里的次序是先头后 query，所以掩码要整块重复：
        # `repeat` 得 0 1 0 1 0 1，`repeat_interleave` 会错成 0 0 0 1 1 1。
        # Rows of a group go head by head, so the mask repeats as a whole:
        # `repeat` gives 0 1 0 1 0 1 where `repeat_interleave` would give 0 0 0 1 1 1.
        visible = plan.visible if group_size == 1 or plan.visible is None else plan.visible.repeat(1, 1, group_size, 1)
        out = _attend(grouped, keys, values, visible, scale)  # [B, Hkv, G * Sq, D]
        return out.reshape(batch, num_heads, num_queries, head_dim).transpose(1, 2).contiguous()  # [B, Sq, Hq, D]

    def _plan_decode(
        self, cache_seqlens: Tensor, block_table: Tensor, cache: Tensor, num_queries: int, causal: bool
    ) -> _DecodePlan | None:
        """从哪里取、谁看得见谁：一步之内每层都一样，所以第一层算好，其余各层直接用。

        Where to gather and who sees whom: the same for every layer of a step, so the first layer computes it and the
        others reuse it.
        """
        # `cache` 只用到形状：每层的缓存是不同的张量，但槽位相同，所以计划可以跨层共用。
        # Only the shape of `cache` matters: each layer has its own tensor but the same slots,
        # so layers can share the plan.
        shape = (*cache.shape, num_queries, causal)
        if self._plan is not None and self._plan.made_for(cache_seqlens, block_table, shape):
            return self._plan
        # 28 层的模型，这以下的计算每步只做 1 次，而不是 28 次；断点停在这里，一步只会停 1 次。
        # In a model of 28 layers, what follows runs 1 time a step and not 28; a breakpoint here stops 1 time a step.
        lengths = cache_seqlens.long()  # [B]
        max_k = int(lengths.max()) if lengths.numel() else 0
        if max_k == 0 or num_queries == 0:
            return None
        positions, real_k = _padded_index(torch.zeros_like(lengths), lengths, max_k)  # [B, max_k]
        visible = _visible(real_k, num_queries, lengths, num_queries, causal)  # [B, Sq, max_k]
        slots = _slots_of(positions, block_table, cache.shape[1])  # [B, max_k]
        # 人人都看得到全部（例如只有 1 条序列）时不用掩码，SDPA 会更快。
        # If everyone sees everything (with only 1 sequence, say), no mask is needed and SDPA is faster.
        mask = None if bool(visible.all()) else visible[:, None]  # [B, 1, Sq, max_k]
        # 版本号在计划做好时记下；之后谁原地改写了这些张量，`made_for` 就能看出来。
        # Versions are noted as the plan is made; should anyone write to the tensors later, `made_for` can tell.
        key = (cache_seqlens, _version(cache_seqlens), block_table, _version(block_table))
        self._plan = _DecodePlan(slots, mask, key, shape)
        return self._plan
