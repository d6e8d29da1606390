"""CPU 上的融合核函数：用更少的 torch 调用，得到与逐步写法相同的结果。

The fused kernels on a CPU: the results of the written-out steps with fewer calls of torch.
"""

import logging
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backends.kernels import FusedKernels
from backends.kv_cache import KVCache
from backends.quantized_weight import GROUP, QuantizedWeight, Weight, unpack_int4
from backends.store import store_by_index

logger = logging.getLogger(__name__)

# oneDNN 为见过的每种行数编译一份乘法并一直留着，约 1 MB：几百种提示词长度就是几百 MB，所以行数只用这些。
# 解码时多是 8 到 32 行，这一段排得密。
# oneDNN compiles products for every number of rows that it meets and keeps them, some 1 MB: hundreds of prompt lengths
# are hundreds of MB, so rows come in these numbers only. Decoding takes 8 to 32 most of the time: there they lie close.
_ROW_COUNTS = (1, 2, 4, *range(8, 30, 2), 32, 64, 128, 256)
_PADDED = {count: next(rows for rows in _ROW_COUNTS if rows >= count) for count in range(257)}
# 打包的乘法只用 8 到 64 行：更少时，时间都花在读权重上，打包没有用处；更多时，补行白费的工夫太多。
# 另加长提示词常见的 3 种，正好是这个数才用。
# The packed product takes 8 to 64 rows: with fewer, reading the weights is all the time it takes, and packing gains
# nothing; with more, padding wastes too much. Besides it has 3 that long prompts come in, used at just these numbers.
_PACKED = {count: rows for count, rows in _PADDED.items() if 8 <= rows <= 64} | {n: n for n in (512, 1024, 2048)}

# 读整数权重的乘法，行数超过这么多就不如先还原再乘。2 核 AVX-512 上量过，一步的毫秒数：32 行 349 与 418，
# 64 行 733 与 632。
# Beyond so many rows it is better to restore the integers first and then multiply: measured on 2 cores with AVX-512,
# milliseconds a step, 349 against 418 with 32 rows and 733 against 632 with 64.
_UNPACK_ROWS = 32


def _pad(x: Tensor, rows: int) -> Tensor:
    """补到 `rows` 行：把开头几行再抄一遍，结果里不要它们。

    Pad to `rows` rows with copies of the first ones, whose results nobody uses.
    """
    return x if x.shape[0] == rows else torch.cat((x, x[: rows - len(x)]))  # [rows, in_features]


@cache
def _root(value: float) -> Tensor:
    """平方根，做成张量并记住：`torch.hypot` 不收 Python 的数。

    A square root as a tensor, remembered: `torch.hypot` takes no Python numbers.
    """
    return torch.tensor(value, dtype=torch.float32, device="cpu").sqrt()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """与 `RMSNorm.forward` 等价，float32 时用 5 次调用代替 8 次。

    The twin of `RMSNorm.forward`, in float32 with 5 calls instead of 8.
    """
    size = x.shape[-1]
    if x.dtype != torch.float32:
        # 不把权重交给它：先转回原精度再乘权重，次序与朴素实现相同。
        # The weight stays outside: cast back first, then multiply, in the twin's order.
        return F.rms_norm(x, (size,), None, eps) * weight  # [..., size]
    # 向量的长度除以 sqrt(size) 就是均方根；hypot(a, b) = sqrt(a² + b²)，正好把 `eps` 加在根号里面。
    # A vector's length over sqrt(size) is its root mean square; hypot(a, b) = sqrt(a² + b²) adds `eps` inside the root.
    #     x = [3, 4]: length 5, 5 / sqrt(2) = 3.54
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(size**-0.5)  # [..., 1]
    return (x / torch.hypot(rms, _root(eps))).mul_(weight)  # [..., size]


@cache
def _has_bf16_units() -> bool:
    """CPU 有没有 bf16 的乘法指令；没有时，bf16 的矩阵乘法比 float32 慢一倍以上。

    Whether the CPU multiplies bf16 in hardware; where it does not, products in bf16 take more than twice as long as in
    float32.
    """
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _say_slow(dtype: torch.dtype) -> None:
    """每种精度只说一次。

    Said once for each type.
    """
    logger.warning(
        "quantized weights in %s are restored in every step, which is slow: use dtype bfloat16. "
        "/ 量化的权重在 %s 下每步都要还原，很慢：请用 bfloat16。", dtype, dtype,
    )  # fmt: skip


def _pack_quantized(weight: QuantizedWeight) -> tuple[Tensor, Tensor] | None:
    """int4 按 PyTorch 的乘法要的次序重排，原来的编码随即放掉，内存里不留两份；int8 照原样就能用。

    int4 is reordered for PyTorch's product, and the old codes are let go, so that memory never keeps both; int8 is used
    as it is.

    Returns:
        编码，[K // 32, N, 2] 的缩放和中值；codes, and scales with zeros of [K // 32, N, 2]
    """
    if weight.scales.dtype != torch.bfloat16:
        _say_slow(weight.scales.dtype)
        return None
    # 一次处理 16 个输出；别人的文件里不整除的层，照朴素实现算。
    # It takes 16 outputs at a time; a layer of somebody's file that does not divide runs the plain twin.
    if weight.zeros is None or len(weight) % 16:
        return None
    codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpack_int4(weight.codes).int(), 2)
    # 缩放和中值交替存放，组在最外层：[K // 32, N, 2]。
    # Scales and zeros alternate, and groups come first: [K // 32, N, 2].
    packed = codes, torch.stack((weight.scales.T, weight.zeros.T), dim=-1).contiguous()
    weight.release()
    return packed


class CPUKernels(FusedKernels):
    """CPU 上的“融合”：没有自己的核函数，只是用更少的 torch 调用得到同样的结果。

    小模型在 CPU 上解码 1 行时，一次 torch 调用的开销是 1 微秒左右，比真正的计算还长：调用的次数就是时间。

    "Fusion" on a CPU: no kernels of our own, only fewer calls of torch for the same result.
    When a small model decodes 1 row on a CPU, calling torch takes some 1 microsecond, longer than the work itself: the
    number of calls is the time.
    """

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """见 `_rms_norm`。

        See `_rms_norm`.
        """
        x = x if residual is None else x + residual  # [T, size]
        return _rms_norm(x, weight, eps), x  # [T, size], [T, size]

    def pack(self, weight: Weight) -> Any:
        """小权重按 oneDNN 喜欢的分块次序另存一份，其余的不存。

        多行时，默认的矩阵乘法在有些 CPU 上只有它的一半快。打包的是同样的 float32 数，结果的误差也一样。

        A small weight is kept once more in the blocked order that oneDNN likes, any other is not.
        With many rows the default product is only half as fast on some CPUs. The same float32 numbers are packed, with
        the same error.
        """
        if isinstance(weight, QuantizedWeight):
            return _pack_quantized(weight)
        # 另存一份要占内存，所以只为小权重做：不到 4194304 个元素，一份最多 16 MiB。
        # The second copy takes memory, so it is for small weights only: below 4194304 elements, at most 16 MiB each.
        small_float = weight.dtype == torch.float32 and weight.numel() < 1 << 22
        if small_float and torch.backends.mkldnn.is_available():
            return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 32)
        return None

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None, packed: Any) -> Tensor:
        """行数合适，又有打包的权重，就用它。

        With the packed weight where there is one and the number of rows suits it.
        """
        if isinstance(weight, QuantizedWeight):
            return self._quantized_linear(x, weight, bias, packed)  # [T, out_features]
        count = x.shape[0]
        if packed is not None and count in _PACKED:
            # `default` 是重载的名字：直接点名，就省下每次调用时挑选重载的几微秒。
            # `default` names the overload, which saves the microseconds of choosing one in every call.
            multiply, rows = torch.ops.mkldnn._linear_pointwise.default, _PACKED[count]
            if count == rows:
                return multiply(x, packed, bias, "none", [], "")  # [T, out_features]
            return multiply(_pad(x, rows), packed, bias, "none", [], "")[:count]  # [T, out_features]
        # float32 的普通乘法不经过 oneDNN，半精度的经过：按 256 行切开，各补到常用的行数。
        # The plain product in float32 does not go through oneDNN, that of half precision does: it is cut into parts of
        # 256 rows, each padded.
        if x.dtype == torch.float32 or count in _ROW_COUNTS:
            return F.linear(x, weight, bias)  # [T, out_features]
        parts = [(part, _PADDED[len(part)]) for part in x.split(_ROW_COUNTS[-1])]
        return torch.cat([F.linear(_pad(part, rows), weight, bias)[: len(part)] for part, rows in parts])

    def _quantized_linear(
        self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None, packed: Any
    ) -> Tensor:
        """行少时直接读整数权重；行多时一段一段地还原，再用普通的乘法。

        With few rows the integers are read as they are; with many a part at a time is restored for a plain product.
        """
        # PyTorch 的这两个乘法只为 bf16 写过向量指令，别的精度反而慢几十倍：那就走朴素实现。
        # These products of PyTorch have vector instructions for bf16 only and are dozens of times slower in any other
        # type, for which the plain twin runs.
        # 例：Qwen3-0.6B 的各层乘一遍，bf16 用 42 毫秒，float32 用 316 毫秒。
        # Example: once through the layers of Qwen3-0.6B takes 42 ms in bf16 and 316 in float32.
        if x.dtype != torch.bfloat16 or (weight.bits == 4 and packed is None):
            return weight.linear(x, bias)  # [T, out_features]
        # 重排过的 int4 只剩这一种读法，行多时也用它。
        # int4, once reordered, can be read in this way only, with many rows too.
        if packed is not None:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed[0], GROUP, packed[1])  # [T, out_features]
        # 输入不是 16 的倍数时，PyTorch 的这个乘法会读到末尾之外。
        # Where the inputs are no multiple of 16 this product of PyTorch reads past the end.
        elif x.shape[0] <= _UNPACK_ROWS and weight.shape[1] % 16 == 0:
            out = torch.ops.aten._weight_int8pack_mm(x, weight.codes, weight.scales)  # [T, out_features]
        else:
            # 128 行的提示词：还原一遍权重的工夫，分摊到 128 行上就不显眼了。
            # A prompt of 128 rows: the work of restoring the weights is shared by 128 rows and hardly shows.
            kind = torch.bfloat16 if _has_bf16_units() else torch.float32
            multiply = partial(self.linear, packed=None)
            out = weight.linear(x.to(kind), None, partial(QuantizedWeight.dequantize, dtype=kind), multiply).to(x.dtype)
        return out if bias is None else out + bias  # [T, out_features]

    def rotary(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        """整宽的角度表，供一次乘法用完；`sin` 的前一半带负号。

        Tables of angles at full width, for a single product; the first half of `sin` is negative.

        Returns:
            cos, sin: [T, 1, D] float32
        """
        angles = positions[:, None].float() * inv_freq  # [T, D // 2]
        cos, sin = angles.cos(), angles.sin()  # [T, D // 2]
        return torch.cat((cos, cos), dim=-1).unsqueeze(1), torch.cat((-sin, sin), dim=-1).unsqueeze(1)  # [T, 1, D]

    def gated_linear(self, x: Tensor, weight: Weight, bias: Tensor | None, packed: Any) -> Tensor:
        """原地相乘，省一次分配。

        Multiply in place, which saves an allocation.
        """
        gate, up = self.linear(x, weight, bias, packed).chunk(2, dim=-1)  # [T, size]
        return F.silu(gate).mul_(up)  # [T, size]

    def qk_norm_rope_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, norm_weights: tuple[Tensor, Tensor] | None, eps: float,
        kv_cache: KVCache, slot_mapping: Tensor,
    ) -> Tensor:
        """q 和 k 在 qkv 里相邻，当作一个张量一起旋转。

        q and k are neighbours in qkv and are rotated together, as one tensor.
        """
        num_kv_heads, head_dim = kv_cache.k.shape[2:]
        heads = qkv.view(len(qkv), qkv.shape[1] // head_dim, head_dim)  # [T, Hq + 2 * Hkv, D]
        num_heads = heads.shape[1] - 2 * num_kv_heads
        qk, v = heads.split_with_sizes((num_heads + num_kv_heads, num_kv_heads), dim=1)  # [T, Hq + Hkv, D], [T, Hkv, D]
        if norm_weights is not None:
            parts = qk.split_with_sizes((num_heads, num_kv_heads), dim=1)  # [T, Hq, D], [T, Hkv, D]
            qk = torch.cat([_rms_norm(part, weight, eps) for part, weight in zip(parts, norm_weights)], dim=1)
        # `roll` 转半圈，把前后两半对调；`sin` 的前一半带负号，见 `rotary`。例（D = 2）：
        # `roll` by half a turn swaps the halves; the first half of `sin` is negative, see `rotary`. Example (D = 2):
        #     [a, b] * [cos, cos] + [b, a] * [-sin, sin] = [a cos - b sin, b cos + a sin]
        turned = (qk * cos).addcmul_(qk.roll(head_dim // 2, -1), sin).to(qkv.dtype)  # [T, Hq + Hkv, D]
        q, k = turned.split_with_sizes((num_heads, num_kv_heads), dim=1)  # [T, Hq, D], [T, Hkv, D]
        store_by_index(k, v, kv_cache.k, kv_cache.v, slot_mapping, kv_cache.k_descale, kv_cache.v_descale)
        return q  # [T, Hq, D]
