"""一次写完所有 token 的 K、V；逐个 token 的写法在 `torch_backend.py`。

Store the K and V of all tokens at once; the store that goes token by token is in `torch_backend.py`.
"""

import torch
from torch import Tensor

from backends.quantized_cache import quantize


def store_by_index(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                   k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
    """一次按下标复制，写完所有 token；槽位 -1 的不写。

    One copy by index for all tokens; those of slot -1 are left out.
    """
    # 量化的缓存：缩放就是宽度为 1 的缓存，用同一个函数写；PyTorch 不按下标复制 fp8，编码就当作整数来搬。
    # A quantized cache: scales are a cache of width 1, stored by this function, too. PyTorch copies no fp8 by index, so
    # codes move as integers.
    if k_descale is not None and v_descale is not None:
        (key, ks), (value, vs) = quantize(key, k_cache.dtype), quantize(value, v_cache.dtype)
        store_by_index(ks[..., None], vs[..., None], k_descale[..., None], v_descale[..., None], slot_mapping)
        key, value, k_cache, v_cache = (x.view(torch.int8) for x in (key, value, k_cache, v_cache))
    # 缓存是连续的，前两维可以看成一长条槽位：[num_blocks * block_size, Hkv, D]。
    # The cache is contiguous, so its first two dimensions are one row of slots: [num_blocks * block_size, Hkv, D].
    k_slots, v_slots = k_cache.view(-1, *key.shape[1:]), v_cache.view(-1, *key.shape[1:])  # [num_slots, Hkv, D]
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
    k_slots.index_copy_(0, slot_mapping, key)  # [N, Hkv, D]
    v_slots.index_copy_(0, slot_mapping, value)  # [N, Hkv, D]
