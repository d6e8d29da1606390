"""写 KV 缓存：一个程序搬一个 token 的 K 和 V。

等价的 PyTorch：`k_cache.flatten(0, 1)[slot_mapping] = key`（跳过 -1），V 同理。

Store to the KV cache: one program moves one token's K and V.

The plain PyTorch: `k_cache.flatten(0, 1)[slot_mapping] = key` (skipping -1), and V likewise.
"""

import triton
import triton.language as tl
from torch import Tensor

from backends.triton.quantized import store_heads


# 核函数（kernel）是在 GPU 上运行的函数。`triton.jit` 把下面这段 Python 编译成 GPU 指令，
# 不由 Python 解释器执行（`TRITON_INTERPRET=1` 时除外）。
# A kernel is a function that runs on the GPU. `triton.jit` compiles the Python below into GPU instructions, and no
# Python interpreter runs it (except with `TRITON_INTERPRET=1`).
# 传进来的张量在核函数里只是指针：没有形状，也没有越界检查，地址要自己算。
# A tensor passed in is a mere pointer inside: it has no shape and no bounds check, and addresses are ours to compute.
@triton.jit
def store_kernel(
    key_ptr, value_ptr, k_cache_ptr, v_cache_ptr, k_descale_ptr, v_descale_ptr, slot_mapping_ptr, key_stride,
    value_stride,
    # `tl.constexpr` 是编译时就知道的数：每换一组值，就另编译一份核函数，所以只用于很少变化的数。
    # `tl.constexpr` is a number known at compile time: each new set of values compiles another kernel, so it is for
    # numbers that rarely change.
    ROW: tl.constexpr, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """一个程序：一个 token。

    One program: one token.
    """
    # 所有程序执行同一份代码，只有 `tl.program_id(0)` 不同：第 0 个程序得 0，第 1 个得 1。像循环变量，只是各轮并行。
    # All programs run this code, only `tl.program_id(0)` differs: 0, then 1, a loop variable with rounds in parallel.
    # 64 位：下面 `token * key_stride` 这样的乘积可能超过 int32 的上限 2147483647。
    # 64 bits, as a product such as `token * key_stride` below may exceed int32's maximum 2147483647.
    token = tl.program_id(0).to(tl.int64)
    # 指针加整数就是往后数几个元素（不是字节），`tl.load` 从那里读出值来。
    # Pointer plus integer is that many elements further on (not bytes), and `tl.load` reads the value there.
    slot = tl.load(slot_mapping_ptr + token)
    # 槽位 -1 表示不写（CUDA graph 的补齐行会用到）。
    # Slot -1 stores nothing (the padding rows of CUDA graphs use it).
    if slot < 0:
        return
    # 量化的缓存：一个头一行，写成编码和缩放，见 `quantized.py`；没有量化时传来的是 None，这一段不会被编译。
    # A quantized cache: a head a row, stored as codes and scales, see `quantized.py`; otherwise None was passed, and
    # this part is not compiled.
    if k_descale_ptr is not None:
        head = tl.arange(0, BLOCK // HEAD_DIM)
        real = head < ROW // HEAD_DIM
        # 每个头的前一半的位置，[heads, HEAD_DIM // 2]；后一半各加 HEAD_DIM // 2。
        # Where each head's first half lies, [heads, HEAD_DIM // 2]; the second half is HEAD_DIM // 2 further on.
        HALF: tl.constexpr = HEAD_DIM // 2
        j = head[:, None] * HEAD_DIM + tl.arange(0, HALF)[None, :]
        k, v = key_ptr + token * key_stride + j, value_ptr + token * value_stride + j
        mask = real[:, None]
        # 缩放按（槽位，头）编号，一个头 1 个。
        # Scales are numbered by (slot, head), 1 for each head.
        row = slot * (ROW // HEAD_DIM) + head
        k_first, k_second = tl.load(k, mask=mask, other=0.0), tl.load(k + HALF, mask=mask, other=0.0)
        store_heads(k_cache_ptr, k_descale_ptr, row, k_first, k_second, real, HALF)
        v_first, v_second = tl.load(v, mask=mask, other=0.0), tl.load(v + HALF, mask=mask, other=0.0)
        store_heads(v_cache_ptr, v_descale_ptr, row, v_first, v_second, real, HALF)
        return
    # 一个 token 的 K 是连续的 `ROW` = Hkv * D 个数；`tl.arange` 只能是 2 的幂，多出来的用掩码盖住。
    # A token's K is `ROW` = Hkv * D numbers in a row; `tl.arange` wants a power of 2, the mask hides the excess.
    i = tl.arange(0, BLOCK)
    inside = i < ROW
    # `i` 是一排整数，所以 `k_cache_ptr + slot * ROW + i` 是一排地址：一条语句搬整行，由程序里的各个线程分担。
    # `i` is a row of integers, so `k_cache_ptr + slot * ROW + i` is a row of addresses: one statement moves the whole
    # row, shared among the program's threads.
    # 例：`ROW` = 24 时 `BLOCK` = 32，第 24 到 31 个位置的掩码为假，既不读也不写；没有掩码就会写坏下一个槽位。
    # With `ROW` = 24 and `BLOCK` = 32 the mask keeps positions 24 to 31, the next slot's, from being read and written.
    tl.store(k_cache_ptr + slot * ROW + i, tl.load(key_ptr + token * key_stride + i, mask=inside), mask=inside)
    tl.store(v_cache_ptr + slot * ROW + i, tl.load(value_ptr + token * value_stride + i, mask=inside), mask=inside)


def store_kvcache(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor,
                  k_descale: Tensor | None = None, v_descale: Tensor | None = None) -> None:
    """启动上面的核函数。

    Launch the kernel above.

    Args:
        key, value: [T, Hkv, D]，最后两维内存连续；the last two dimensions contiguous
        k_cache, v_cache: [num_blocks, block_size, Hkv, D]
        slot_mapping: [T] int64
        k_descale, v_descale: [num_blocks, block_size, Hkv] float32，量化的缓存才有；of a quantized cache
    """
    # 从这里起又是普通的 Python：在 CPU 上算好参数，把核函数交给 GPU 就返回，不等它做完。
    # From here on it is plain Python again: it prepares the arguments on the CPU, hands the kernel to the GPU and
    # returns without waiting for it.
    num_tokens, num_heads, head_dim = key.shape
    # 没有 token 就不启动：CUDA 不接受大小为 0 的网格。
    # With no tokens nothing is launched: CUDA takes no grid of size 0.
    if num_tokens == 0:
        return
    row = num_heads * head_dim
    # 方括号里是网格（grid）：启动多少个程序。这里每个 token 一个；GPU 把它们分给各个流式多处理器，次序不保证。
    # In square brackets stands the grid, how many programs to launch: one for each token here. The GPU shares them
    # among its multiprocessors, in no guaranteed order.
    store_kernel[(num_tokens,)](
        key, value, k_cache, v_cache, k_descale, v_descale, slot_mapping, key.stride(0), value.stride(0),
        # `num_warps` 是一个程序用几个 warp；1 个 warp 是 32 个步调一致的线程，4 个就是 128 个线程。
        # `num_warps` is the number of warps in a program; 1 warp is 32 threads in step, so 4 are 128 threads.
        ROW=row, BLOCK=triton.next_power_of_2(row), HEAD_DIM=head_dim, num_warps=4,
    )  # fmt: skip
