"""量化的 KV 缓存在核函数里的两头：写的时候把头变成编码和缩放，读的时候把缩放乘到分数和权重上。

公式只有一个，写在 `backends/quantized_cache.py`；这里的每一步都照它在 float32 里算，所以编码逐个相同。

Both ends of a quantized KV cache inside kernels: a head becomes codes and a scale when it is stored, and when it is
read the scale multiplies scores and weights.

There is one formula, that of `backends/quantized_cache.py`; each step here follows it in float32, and codes are equal
one by one.
"""

import torch
import triton
import triton.language as tl

from backends.quantized_cache import LIMITS, SMALLEST

_INT8, _FP8 = tl.constexpr(1 / LIMITS[torch.int8]), tl.constexpr(1 / LIMITS[torch.float8_e4m3fn])
_SMALLEST = tl.constexpr(SMALLEST)


@triton.jit
def store_heads(cache_ptr, descale_ptr, row, first, second, mask, HALF: tl.constexpr):
    """几个头写进缓存，每个头分成前后两半；有 `descale_ptr` 时写成编码和缩放。

    Store some heads to the cache, each in two halves; as codes and scales where there is a `descale_ptr`.

    Args:
        row: [heads]，头在缓存里的编号，槽位 × KV 头数 + 头号；numbers in the cache, slot × KV heads + head
        first, second: [heads, HALF]
        mask: [heads]，写哪几个；which of them to store
    """
    # 没有量化时 `descale_ptr` 是 None，编译时就知道：这个 `if` 里的代码不会出现在核函数里。
    # Without quantization `descale_ptr` is None, known to the compiler: the code under this `if` is not in the kernel.
    if descale_ptr is not None:
        first, second, descale = quantize_halves(first, second, cache_ptr.dtype.element_ty)
        tl.store(descale_ptr + row, descale, mask=mask)
    # 两半分两次写：一个头的编码在缓存里仍是连续的 `2 * HALF` 个。
    # The halves are stored one after the other: in the cache a head's codes are `2 * HALF` in a row all the same.
    target = cache_ptr + row[:, None] * (2 * HALF) + tl.arange(0, HALF)[None, :]
    tl.store(target, first, mask=mask[:, None])
    tl.store(target + HALF, second, mask=mask[:, None])


@triton.jit
def quantize_halves(first, second, CODES: tl.constexpr):
    """头分成前后两半：编码也分两半，缩放一个头 1 个。

    A head in two halves: codes in two halves as well, and 1 scale a head.

    Args:
        first, second: [heads, HEAD_DIM // 2]
        CODES: 编码的类型；type of the codes

    Returns:
        [heads, HEAD_DIM // 2], [heads, HEAD_DIM // 2], [heads] float32
    """
    # 缩放要看整个头，两半的最大值再取一次最大值。
    # A scale is the whole head's: the larger of the two halves' maxima.
    a, b = first.to(tl.float32), second.to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(a), 1), tl.max(tl.abs(b), 1))
    # `tl.max` 会漏掉 NaN，`x * 0` 的和不会。
    # `tl.max` passes over a NaN, the sum of `x * 0` does not.
    inverse: tl.constexpr = _INT8 if CODES == tl.int8 else _FP8  # noqa: SIM300
    descale = tl.maximum(largest * inverse, _SMALLEST) + tl.sum(a * 0.0 + b * 0.0, 1)
    return to_codes(a, descale, CODES), to_codes(b, descale, CODES), descale


@triton.jit
def to_codes(x, descale, CODES: tl.constexpr):
    """x / descale，舍入到最近的编码，一样近时取偶数。

    x / descale, rounded to the nearest code, to the even one of two equally near.
    """
    # `div_rn` 与 PyTorch 一样准确舍入，GPU 上普通的除法可能差 1 位。
    # `div_rn` rounds exactly as PyTorch does; a plain division on a GPU may be 1 bit off.
    x = tl.div_rn(x, tl.broadcast_to(descale[:, None], x.shape))
    # NaN 与自己不相等；缩放是 NaN 的头，编码记成 0。
    # A NaN does not equal itself; a head whose scale is NaN has codes of 0.
    x = tl.where(x == x, x, 0.0)
    # 加上 1.5 * 2 ** 23 个 `step` 再减去：float32 放不下更小的位，加法就替我们舍入成 `step` 的整数倍。
    # Add 1.5 * 2 ** 23 times `step` and take it off: float32 has no room for smaller bits, and the addition rounds to a
    # multiple of `step`.
    step = 1.0
    if CODES == tl.float8e4nv:  # noqa: SIM300
        # fp8 有 3 位尾数：`step` 是 x 的 2 的幂除以 8，最小是 2 ** -9。先舍入好再转换：解释器自己的转换只会截断。
        # fp8 has 3 bits of mantissa: `step` is x's power of 2 over 8, at least 2 ** -9. Round before the cast, as the
        # interpreter's own cast cuts off.
        power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        step = tl.maximum(power, 0.015625) * 0.125
    return ((x + 12582912.0 * step) - 12582912.0 * step).to(CODES)


@triton.jit
def scale_values(p, v, descale, DTYPE: tl.constexpr):
    """V 的缩放乘到权重上：N 个数，而不是 N * D 个；返回张量核心要乘的两个矩阵。

    V's scale goes to the weights: N numbers and not N * D. Returns the two matrices for the tensor cores.

    Args:
        p: [M, N] float32，softmax 的权重；the weights of softmax
        v: [N, D]，编码；codes
        descale: [N] float32
        DTYPE: query 的类型；the type of the queries
    """
    # float16 最小只到 6e-8，权重再乘缩放就没有了，所以改乘 V；编码在 bf16 和 float16 里都是准确的。
    # float16 ends at 6e-8, too soon for a weight times a scale: V is multiplied instead. Codes are exact in bf16 and in
    # float16.
    if DTYPE == tl.float16:  # noqa: SIM300
        v = v.to(tl.float32) * descale[:, None]
    else:
        p = p * descale[None, :]
    # 张量核心要求两边同一种类型；-127 到 127 的整数在 bf16 里没有误差。
    # Tensor cores want one type on both sides; integers from -127 to 127 are exact in bf16.
    return p.to(DTYPE), v.to(DTYPE)
