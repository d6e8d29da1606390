"""量化的 KV 缓存：每个数只占 1 字节，每个 token、每个 KV 头另有 1 个 float32 的缩放。

    descale = max(absmax * (1 / limit), 2 ** -126) + sum(x * 0)    limit: int8 127, fp8 (e4m3) 448
    code    = round_half_even(x / descale)                         fp8: rounded to the nearest float8
    x       ≈ code * descale

全部用 float32 计算，各后端用的都是这一个公式，所以同样的输入得到同样的编码；Triton 的写法在 `triton/quantized.py`。
`x * 0` 平时是 0；x 里有 NaN 或无穷大时是 NaN，缩放也就成了 NaN，坏数不会被悄悄藏起来。

A quantized KV cache: 1 byte a number, and 1 float32 scale for each token and KV head.

The formula above, all in float32, is the one that every backend uses, so that equal inputs give equal codes; Triton's
way of writing it is in `triton/quantized.py`. `x * 0` is 0 as a rule; with a NaN or an infinity in x it is NaN and so
is the scale, and what is broken is not hidden.
"""

import torch
from torch import Tensor

# 选项 `kv_cache_dtype` 的名字；"auto" 就是不量化。
# Names of the option `kv_cache_dtype`; "auto" means not quantized.
CODE_DTYPES = {"auto": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
# 编码的最大绝对值；int8 不用 -128，正负才对称。
# The largest absolute value of a code; int8 does without -128, so that both signs reach equally far.
LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
# 全是 0 的头也要有一个大于 0 的缩放，否则 0 / 0 = NaN；2 ** -126 是最小的正规数，除以它不会溢出。
# A head of nothing but 0 needs a scale above 0, too, or 0 / 0 = NaN; 2 ** -126 is the smallest normal number.
SMALLEST = 2.0**-126


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """把浮点数变成编码和缩放，公式在文件开头。

    Turn floats into codes and scales by the formula at the top.

    Args:
        x: [..., D]
        dtype: 编码的类型；of the codes

    Returns:
        codes [..., D], descale [...] float32
    """
    x = x.float()
    # 例：x = [1.0, -0.3, 2.54]，absmax 是 2.54，缩放是 0.02，编码是 [50, -15, 127]。
    # Example: x = [1.0, -0.3, 2.54] has absmax 2.54, scale 0.02 and codes [50, -15, 127].
    descale = (x.abs().amax(-1) * (1 / LIMITS[dtype])).clamp(min=SMALLEST) + (x * 0).sum(-1)  # [...]
    # 缩放是 NaN 时，编码记成 0：0 * NaN 还是 NaN。
    # Where the scale is NaN the codes are 0: 0 * NaN is NaN all the same.
    codes = (x / descale.unsqueeze(-1)).nan_to_num(0.0)  # [..., D]
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), descale


def dequantize(codes: Tensor, descale: Tensor, dtype: torch.dtype) -> Tensor:
    """编码变回浮点数：在 float32 里相乘，再转成 `dtype`。

    Turn codes back into floats: multiply in float32, then cast to `dtype`.

    Args:
        codes: [..., D]
        descale: [..., 1] float32
    """
    return (codes.float() * descale).to(dtype)  # [..., D]


def why_no_codes(codes: torch.dtype | None, supported: tuple[torch.dtype, ...]) -> str | None:
    """只认得 `supported` 的后端读不了 `codes` 时返回原因。

    Why a backend that knows `supported` cannot read `codes`, or None if it can.
    """
    if codes is None or codes in supported:
        return None
    # 例：sdpa 收到 fp8，它认得 auto 和 int8，出路是 triton。
    # Example: asked for fp8, sdpa supports auto and int8, and the way out is triton.
    asked = next(name for name, dtype in CODE_DTYPES.items() if dtype == codes)
    known = ", ".join(name for name, dtype in CODE_DTYPES.items() if dtype is None or dtype in supported)
    way_out = "triton, or sdpa" if codes == torch.int8 else "int8, or triton on a GPU" if supported else "triton"
    return f"kv_cache_dtype={asked}, it supports {known}; use {way_out}"


def why_no_instructions(codes: torch.dtype | None, device: torch.device) -> str | None:
    """GPU 太老，没有转换 fp8 的指令时返回原因；8.9 是 Ada，从这一代起才有。

    Why a GPU is too old, without the instructions that convert fp8; 8.9 is Ada, the first generation that has them.
    """
    if codes != torch.float8_e4m3fn or device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        return None
    # 例：A100 是 8.0，H100 是 9.0，RTX 4090 是 8.9。
    # Example: an A100 has 8.0, an H100 9.0, an RTX 4090 8.9.
    major, minor = torch.cuda.get_device_capability(device)
    return f"kv_cache_dtype=fp8 needs compute capability 8.9, this GPU has {major}.{minor}; use int8"


def check_stored(key: Tensor, k_cache: Tensor, k_descale: Tensor | None, v_descale: Tensor | None) -> torch.dtype:
    """写缓存时 K、V 应有的 dtype：缓存自己的；缓存是编码时，哪种浮点数都行，K 与 V 相同就可以。

    The dtype that K and V must have to be stored: the cache's own. A cache of codes takes any floats, the same for K
    and V.
    """
    dtype = check_codes("k_cache", k_cache, k_cache.dtype, k_descale, v_descale)
    # 浮点的缓存不做转换：精度不同就是上游的错误，见 `base.py` 的 `_check_tensor`。
    # A cache of floats converts nothing: another precision is a mistake made earlier, see `_check_tensor` in `base.py`.
    if k_descale is None:
        return dtype
    # 编码的缓存总要转换，所以 bf16、float16、float32 都收；整数没有缩放可言，报错时按 float32 说。
    # A cache of codes converts anyway, so bf16, float16 and float32 are all welcome; integers are not, and the message
    # asks for float32.
    return key.dtype if key.is_floating_point() else torch.float32


def check_codes(
    argument: str, k: Tensor, floats: torch.dtype, k_descale: Tensor | None, v_descale: Tensor | None
) -> torch.dtype:
    """编码必须带着缩放，浮点数必须不带；返回 K、V 应有的 dtype：编码自己的，或者 `floats`。

    Codes must come with scales and floats without. Returns the dtype that K and V must have: that of the codes, or
    `floats`.

    Args:
        argument: k 的参数名；the name of argument k
        k: [num_blocks, block_size, Hkv, D]
        k_descale, v_descale: [num_blocks, block_size, Hkv] float32

    Raises:
        ValueError: 缺了、多了，或者形状、dtype、设备不符；
            one missing or too many, or its shape, dtype or device does not fit
    """
    shape, has_codes = tuple(k.shape[:-1]), k.dtype in LIMITS
    for name, descale in (("k_descale", k_descale), ("v_descale", v_descale)):
        # 漏了缩放，编码会被当成大小在 127 以内的数，输出看着正常却全是错的，所以在门口就拦下。
        # Without their scales codes would pass for numbers up to 127: output that looks sound and is all wrong.
        if has_codes != (descale is not None):
            wanted = f"given, as {argument} holds codes of" if has_codes else f"None, as {argument} holds no codes but"
            raise ValueError(f"{name} must be {wanted} {k.dtype}")
        if descale is None:
            continue
        # 缩放与编码同在一个块池里，切出来总是连续的；不连续的，核函数会读错位置。
        # Scales lie in a pool as codes do, and slices of it are contiguous; of others kernels would read wrong places.
        found = (tuple(descale.shape), descale.dtype, descale.device, descale.is_contiguous())
        if found != (shape, torch.float32, k.device, True):
            raise ValueError(
                f"{name} must be a contiguous {list(shape)} of torch.float32 on {k.device}, got {list(found[0])} of "
                f"{descale.dtype} on {descale.device}, strides {list(descale.stride())}"
            )
    return k.dtype if has_codes else floats
