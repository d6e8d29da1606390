"""SDPA 后端：把注意力交给 `torch.nn.functional.scaled_dot_product_attention`，写缓存用一次按下标的复制。

不用另装任何包，CPU 和 CUDA 都能跑。SDPA 要的是等长、连续的张量，所以这里要做的事只有两件：
按块表把 K、V 取成连续的，再把长短不一的序列补齐成一批，用掩码盖住补上的部分。

The SDPA backend: attention by `torch.nn.functional.scaled_dot_product_attention`, stores by one copy by index.

It needs no extra install and runs on CPU and CUDA. SDPA wants contiguous tensors of equal length, so there are two
things to do here: gather K and V by the block table, and pad sequences of different lengths into one batch whose
padding a mask hides.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.base import AttentionBackend, AttentionMetadata, check_kvcache_args, check_store_args, check_varlen_args
from backends.quantized_cache import dequantize
from backends.store import store_by_index


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
        len_q: [B]，或者大家共用一个数；or one number for all
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


def _paged_index(block_table: Tensor, lengths: Tensor, width: int, block_size: int) -> tuple[Tensor, Tensor]:
    """块表展开成槽位的矩形，和“是否真实”的掩码：`_padded_index` 的分页版本。

    Spell block tables out as a rectangle of slots, and a mask of the real cells: `_padded_index` for pages.

    Args:
        block_table: [B, max_blocks] int32
        lengths: [B] int64

    Returns:
        slots [B, width] int64, real [B, width] bool
    """
    # 例：块大小 4，块表 [7, 2]：槽位是 28, 29, 30, 31, 8, 9, 10, 11；位置 5 就是其中下标 5 的那个，槽位 9。
    # Example: blocks of 4 and table [7, 2] give slots 28, 29, 30, 31, 8, 9, 10, 11; position 5 is entry 5, slot 9.
    # 块表存 int32 省一半空间，算槽位之前换成 int64：再大的缓存，乘法也不会回绕到 0 以下。
    # The table is int32 to save half the space, int64 before any product:
    # however large the cache, nothing wraps below 0.
    offsets = torch.arange(block_size, device=block_table.device)  # [block_size]
    slots = (block_table.long().unsqueeze(-1) * block_size + offsets).flatten(1)[:, :width]  # [B, width]
    real = torch.arange(width, device=block_table.device) < lengths[:, None]  # [B, width]
    # 空序列的块表整行都是 -1，截到 0，免得越界；它的输出随后会被清零。
    # An empty sequence's row is all -1; clamp it to 0 so it stays in range: its output is set to 0 later.
    return torch.where(real, slots, slots[:, :1]).clamp_(min=0), real  # [B, width]


def _side_by_side(block_table: Tensor, length: int, block_size: int) -> slice | None:
    """只有一条序列，它的块又恰好首尾相接：返回它占的那一段槽位，否则 None。

    If there is a single sequence and its blocks happen to lie side by side: the range of its slots, else None.
    """
    if len(block_table) != 1:
        return None
    blocks = block_table[0, : -(-length // block_size)].tolist()
    # 例：块大小 4，块表 [7, 8, 9]，长度 10：槽位 28 到 37，一个都不缺；[7, 9, 8] 就得逐个去取。
    # Example: blocks of 4, table [7, 8, 9], length 10: slots 28 to 37, none missing; [7, 9, 8] must be gathered.
    start = blocks[0] * block_size
    return slice(start, start + length) if blocks == list(range(blocks[0], blocks[0] + len(blocks))) else None


def _gather(
    cache: Tensor, slots: Tensor | slice, descale: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """按槽位取出 K 或 V。这其实就是查表，所以用 `F.embedding`：CPU 上它比 `cache[slots]` 快得多。

    Take K or V by slot. It is a table look-up, hence `F.embedding`: on a CPU it is much faster than `cache[slots]`.

    Args:
        cache: [num_blocks, block_size, Hkv, D]
        slots: [B, L] int64，或者单条序列的 L 个槽位的区间；or the range of L slots of a single sequence
        descale: [num_blocks, block_size, Hkv]，编码的缩放；scales, if codes are held

    Returns:
        [B, Hkv, L, D]，编码已变回 `dtype`；codes have become `dtype`
    """
    # 缩放就是宽度为 1 的缓存，照样取出，再乘上去：[B, Hkv, L, 1]。
    # Scales are a cache of width 1: take them alike, and multiply: [B, Hkv, L, 1].
    if descale is not None:
        return dequantize(_gather(cache, slots), _gather(descale[..., None], slots), dtype)  # [B, Hkv, L, D]
    num_heads, head_dim = cache.shape[2:]
    # 只有一条序列，它的块又恰好首尾相接：K、V 已经是连续的，开一个窗口就行，不必拷贝。
    # A single sequence whose blocks happen to lie side by side: K and V are contiguous already, a window will do.
    if isinstance(slots, slice):
        return cache.view(-1, num_heads, head_dim)[slots].transpose(0, 1).unsqueeze(0)  # [1, Hkv, L, D]
    # 查表只认 2 维的表：把 (块, 偏移) 并成槽位，把 (头, 维) 并成一行，查完再拆开。
    # A look-up wants a table of 2 dimensions: (block, offset) become the slot, (head, dim) the row; split it after.
    # 断点停在这里，看 `slots[0]`：同一个块里的槽位连续，换块时跳变，这就是分页在张量里的样子。
    # Stop here and look at `slots[0]`: consecutive within a block, a jump where the next block starts. This is paging.
    rows = F.embedding(slots, cache.view(-1, num_heads * head_dim))  # [B, L, Hkv * D]
    return rows.view(*slots.shape, num_heads, head_dim).transpose(1, 2)  # [B, Hkv, L, D]


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, blind: Tensor | None, scale: float) -> Tensor:
    """补齐后的一批，调用一次 SDPA。

    不用 SDPA 自带的 `is_causal`：query 和 key 不等长时，它按左上角对齐，分块预填充会因此看不到历史。

    One SDPA call for a padded batch.
    Not SDPA's own `is_causal`: if queries and keys differ in number, it aligns top-left, and a chunk would miss its
    history.

        2 queries, 5 keys     top-left: 1 0 0 0 0     bottom-right: 1 1 1 1 0
                                        1 1 0 0 0                   1 1 1 1 1

    Args:
        q: [B, Hq, Sq, D]
        k, v: [B, Hkv, Sk, D]
        visible: [B, 1, Sq, Sk] bool，各 query 看得见哪些 key；None 是全部；which keys a query sees; None is every key
        blind: [B, 1, Sq, 1] bool，哪些 query 看不见任何 key；None 是没有；which queries see no key; None: none do

    Returns:
        [B, Hq, Sq, D]
    """
    # `enable_gqa` 让 6 个 query 头配 2 个 KV 头：头 0 到 2 用 KV 头 0，头 3 到 5 用 KV 头 1。
    # `enable_gqa` fits 6 query heads to 2 KV heads: heads 0 to 2 use KV head 0, heads 3 to 5 use KV head 1.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)  # [B, Hq, Sq, D]
    # 什么都看不到的行按约定输出 0；各版本的 SDPA 对这种行的结果并不一致，所以自己清零。
    # A row that sees nothing gives 0 by contract; SDPA's own answer differs between versions, so we set it.
    return out if blind is None else out.masked_fill(blind, 0.0)  # [B, Hq, Sq, D]


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


class _DecodePlan(NamedTuple):
    """解码行从哪里取 K、V，谁看得见谁。

    Where the decode rows gather K and V, and who sees whom.
    """

    slots: Tensor | slice  # [B, L] int64
    visible: Tensor | None  # [B, 1, G * Sq, L] bool
    blind: Tensor | None  # [B, 1, G * Sq, 1] bool


class _PrefillGroup(NamedTuple):
    """长度相近、一起补齐的几条序列：取哪些 query、哪些 key，谁看得见谁。

    Some sequences of similar length, padded together: which queries and keys to take, and who sees whom.
    """

    queries: Tensor  # [B, max_q] int64
    real: Tensor  # [B, max_q] bool
    keys: Tensor  # [B, max_k] int64
    visible: Tensor  # [B, 1, max_q, max_k] bool
    blind: Tensor  # [B, 1, max_q, 1] bool


class _Plan(NamedTuple):
    """一步的计划，各层共用。

    The plan of one step, shared by all layers.
    """

    decode: _DecodePlan | None
    prefill: list[_PrefillGroup]


def _plan_decode(
    cache_seqlens: Tensor, block_table: Tensor, block_size: int, num_queries: int, group_size: int, causal: bool
) -> _DecodePlan | None:
    """解码的计划；没有任何 key 可看时是 None。

    The plan for decoding; None where there is no key to see at all.
    """
    # 读回两个数，下面的分支就都在主机上判断，不必对整个掩码求 `all` 和 `any`。
    # Two numbers read back decide all branches below on the host, with no `all` or `any` over the whole mask.
    shortest, longest = map(int, cache_seqlens.aminmax()) if cache_seqlens.numel() else (0, 0)
    if longest == 0 or num_queries == 0:
        return None
    is_masked = causal and num_queries > 1
    run = None if is_masked else _side_by_side(block_table, longest, block_size)
    if run is not None:
        return _DecodePlan(run, None, None)
    lengths = cache_seqlens.long()  # [B]
    slots, real_k = _paged_index(block_table, lengths, longest, block_size)  # [B, L]
    mask = blind = None
    # 长度都相同，又没有未来要遮，就不用掩码，SDPA 会更快。
    # With equal lengths and no future to hide, no mask is needed and SDPA is faster.
    if shortest < longest or is_masked:
        visible = _visible(real_k, num_queries, lengths, num_queries, causal)[:, None]  # [B, 1, Sq, L]
        # 一组里的次序是先头后 query，所以掩码要整块重复：
        # `repeat` 得 0 1 0 1 0 1，`repeat_interleave` 会错成 0 0 0 1 1 1。
        # Rows of a group go head by head, so the mask repeats as a whole:
        # `repeat` gives 0 1 0 1 0 1 where `repeat_interleave` would give 0 0 0 1 1 1.
        mask = visible if num_queries == 1 else visible.repeat(1, 1, group_size, 1)  # [B, 1, G * Sq, L]
        # 空序列，或比 query 还短的序列，才有什么都看不到的 query。
        # Only an empty sequence, or one shorter than its queries, has queries that see nothing.
        if shortest < (num_queries if is_masked else 1):
            blind = ~mask.any(dim=-1, keepdim=True)  # [B, 1, G * Sq, 1]
    return _DecodePlan(slots, mask, blind)


def _plan_prefill(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, block_table: Tensor | None, block_size: int, causal: bool
) -> list[_PrefillGroup]:
    """预填充的计划，每组一项。

    The plan for prefill, an entry a group.
    """
    lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()  # [num_seqs]
    # `diff` 由累计长度得回各段长度：[0, 3, 8] 得 [3, 5]。分组要在 CPU 上做，所以读回一次，每步只等这一回。
    # `diff` turns sums into lengths: [0, 3, 8] gives [3, 5].
    # Groups are made on the CPU, so they are read back once a step.
    host_q, host_k = lengths_q.tolist(), lengths_k.tolist()
    groups = []
    for group in _similar_lengths(host_q, host_k):
        max_q, max_k = max(host_q[group]), max(host_k[group])
        # 没有 query 就没有输出；没有 key 时输出是 0，而 `out` 本来就是 0。
        # No queries, no output; without keys the output is 0, and `out` is 0 already.
        if max_q == 0 or max_k == 0:
            continue
        len_q, len_k = lengths_q[group].long(), lengths_k[group].long()  # [B]
        queries, real_q = _padded_index(cu_seqlens_q[:-1][group].long(), len_q, max_q)  # [B, max_q]
        if block_table is None:
            keys, real_k = _padded_index(cu_seqlens_k[:-1][group].long(), len_k, max_k)  # [B, max_k]
        else:
            keys, real_k = _paged_index(block_table[group], len_k, max_k, block_size)  # [B, max_k]
        visible = _visible(real_k, len_q, len_k, max_q, causal)[:, None]  # [B, 1, max_q, max_k]
        blind = ~visible.any(dim=-1, keepdim=True)  # [B, 1, max_q, 1]
        groups.append(_PrefillGroup(queries, real_q, keys, visible, blind))
    return groups


class SDPABackend(AttentionBackend):
    """PyTorch 自带的融合注意力；`auto` 在 CPU 上选它。

    PyTorch's own fused attention; `auto` takes it on the CPU.
    """

    name = "sdpa"
    code_dtypes = (torch.int8,)

    def prepare(self, metadata: AttentionMetadata) -> _Plan:
        """从哪里取、谁看得见谁：28 层的模型，每步算 1 次而不是 28 次；断点停在这里，一步只会停 1 次。

        Where to gather and who sees whom: in a model of 28 layers worked out 1 time a step and not 28; a breakpoint
        here stops 1 time a step.
        """
        decode = prefill = None
        if metadata.num_decodes:
            # 解码行只有 1 个 query，因果与否都一样，也就用不到组的大小。
            # A decode row has 1 query: causal or not is the same, and the size of a group does not matter.
            decode = _plan_decode(
                metadata.cache_seqlens, metadata.decode_block_tables, metadata.block_size, 1, 1, causal=True
            )
        if metadata.max_seqlen_q:
            prefill = _plan_prefill(
                metadata.cu_seqlens_q, metadata.cu_seqlens_k, metadata.prefill_block_tables, metadata.block_size,
                causal=True,
            )
        return _Plan(decode, prefill or [])

    def store_kvcache(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                      k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
        """见 `kv_cache.py`。

        See `kv_cache.py`.
        """
        check_store_args(key, value, k_cache, v_cache, slot_mapping, k_descale, v_descale)
        store_by_index(key, value, k_cache, v_cache, slot_mapping, k_descale, v_descale)

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, block_table: Tensor | None = None,
        plan: _Plan | None = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """长度相近的序列补齐成一批，一批调用一次 SDPA。

        Sequences of similar length are padded into a batch, one SDPA call each.
        """
        if plan is None:
            check_varlen_args(q, k, v, cu_seqlens_q, cu_seqlens_k, block_table, k_descale, v_descale)
            groups = _plan_prefill(cu_seqlens_q, cu_seqlens_k, block_table, k.shape[1], causal)
        else:
            groups = plan.prefill
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        # 从 0 开始而不是 `empty`：没有 key 的序列不会再被写，留下的必须正好是约定的 0。
        # Zeros and not `empty`: a sequence without keys is never written below,
        # and what stays must be the 0 of the contract.
        out = torch.zeros_like(q)  # [T, Hq, D]
        for group in groups:
            # 空序列的起点可能等于总长，截回范围内；它的行随后清零。
            # An empty sequence may start at the very end; clamp into range, its rows are zeroed later.
            if block_table is None:
                rows = group.keys.clamp(max=k.shape[0] - 1)  # [B, max_k]
                keys, values = k[rows].transpose(1, 2), v[rows].transpose(1, 2)  # [B, Hkv, max_k, D]
            else:
                keys = _gather(k, group.keys, k_descale, q.dtype)  # [B, Hkv, max_k, D]
                values = _gather(v, group.keys, v_descale, q.dtype)  # [B, Hkv, max_k, D]
            queries = q[group.queries.clamp(max=q.shape[0] - 1)]  # [B, max_q, Hq, D]
            # SDPA 要头在前、长度在后：[B, Hq, max_q, D]，与 flash-attn 的次序相反，所以进出各转置一次。
            # SDPA wants heads before length, [B, Hq, max_q, D],
            # the reverse of flash-attn: hence a transpose on the way in and out.
            attended = _attend(queries.transpose(1, 2), keys, values, group.visible, group.blind, scale)
            # 只把真实的 query 写回去，补齐的行丢掉。
            # Only real queries are written back; the padding is dropped.
            out[group.queries[group.real]] = attended.transpose(1, 2)[group.real]  # [sum(len_q), Hq, D]
        return out  # [T, Hq, D]

    def flash_attn_with_kvcache(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor,
        softmax_scale: float | None = None, causal: bool = False, plan: _Plan | None = None,
        k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    ) -> Tensor:
        """所有解码序列补齐到最长的那条，一次 SDPA。

        All decoding sequences are padded to the longest and served by one SDPA call.
        """
        if plan is None:
            check_kvcache_args(q, k_cache, v_cache, cache_seqlens, block_table, k_descale, v_descale)
        batch, num_queries, num_heads, head_dim = q.shape
        # 同组的 query 头共用 K、V，把它们当成同一个头的多个 query：K、V 不必复制，一次矩阵乘法服务整组。
        # Query heads of a group share K and V, so treat them as queries of a single head: nothing is copied.
        group_size = num_heads // k_cache.shape[2]
        decode = plan.decode if plan is not None else _plan_decode(
            cache_seqlens, block_table, k_cache.shape[1], num_queries, group_size, causal
        )
        # 所有序列都是空的（或没有 query）：没有东西可看，按约定输出全零。
        # Every sequence is empty, or there are no queries: nothing to see, so zeros by contract.
        if decode is None:
            return torch.zeros_like(q)  # [B, Sq, Hq, D]
        scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
        # 编码取出来就变回浮点数：SDPA 自己不认得缩放，省下的只是内存。
        # Codes become floats as they are taken: SDPA itself knows no scales, so memory is all that is saved.
        keys = _gather(k_cache, decode.slots, k_descale, q.dtype)  # [B, Hkv, L, D]
        values = _gather(v_cache, decode.slots, v_descale, q.dtype)  # [B, Hkv, L, D]
        # 例：6 个 query 头、2 个 KV 头、Sq = 1：[B, 6, 1, D] 看作 [B, 2, 3, D]，头 0 到 2 落在 KV 头 0 名下。
        # Example: 6 query heads, 2 KV heads, Sq = 1:
        # [B, 6, 1, D] is seen as [B, 2, 3, D], and heads 0 to 2 fall to KV head 0.
        grouped = q.transpose(1, 2).reshape(batch, -1, group_size * num_queries, head_dim)  # [B, Hkv, G * Sq, D]
        out = _attend(grouped, keys, values, decode.visible, decode.blind, scale)  # [B, Hkv, G * Sq, D]
        # 只有 1 个 query 时，换维不改变内存里的次序，直接看成结果的形状。
        # With 1 query, moving its dimension changes nothing in memory: view it in the shape of the result.
        if num_queries == 1:
            return out.reshape(batch, 1, num_heads, head_dim)  # [B, 1, Hq, D]
        return out.reshape(batch, num_heads, num_queries, head_dim).transpose(1, 2).contiguous()  # [B, Sq, Hq, D]
