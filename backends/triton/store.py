"""写 KV 缓存：一个程序搬一个 token 的 K 和 V。

等价的 PyTorch：`k_cache.flatten(0, 1)[slot_mapping] = key`（跳过 -1），V 同理。

Store to the KV cache: one program moves one token's K and V.

The plain PyTorch: `k_cache.flatten(0, 1)[slot_mapping] = key` (skipping -1), and V likewise.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def store_kernel(
    key_ptr, value_ptr, k_cache_ptr, v_cache_ptr, slot_mapping_ptr, key_stride, value_stride,
    ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """一个程序：一个 token。

    One program: one token.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    # 槽位 -1 是填充行，什么也不写。
    # Slot -1 is padding: store nothing.
    if slot < 0:
        return
    # 一个 token 的 K 是连续的 `ROW` = Hkv * D 个数；`tl.arange` 只能是 2 的幂，多出来的用掩码盖住。
    # A token's K is `ROW` = Hkv * D numbers in a row; `tl.arange` wants a power of 2, the mask hides the excess.
    i = tl.arange(0, BLOCK)
    inside = i < ROW
    tl.store(k_cache_ptr + slot * ROW + i, tl.load(key_ptr + token * key_stride + i, mask=inside), mask=inside)
    tl.store(v_cache_ptr + slot * ROW + i, tl.load(value_ptr + token * value_stride + i, mask=inside), mask=inside)


def store_kvcache(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """启动上面的内核。

    Launch the kernel above.

    Args:
        key, value: [T, Hkv, D], the last two dimensions contiguous
        k_cache, v_cache: [num_blocks, block_size, Hkv, D]
        slot_mapping: [T] int64
    """
    num_tokens, num_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    row = num_heads * head_dim
    store_kernel[(num_tokens,)](
        key, value, k_cache, v_cache, slot_mapping, key.stride(0), value.stride(0),
        ROW=row, BLOCK=triton.next_power_of_2(row), num_warps=4,
    )  # fmt: skip
