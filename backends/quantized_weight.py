"""量化的权重：整数编码，加上把它还原成浮点数的缩放；用起来与普通的权重张量一样。

    int8    w ≈ code * scale                  每行一个 scale / a scale a row
    int4    w ≈ (code - 8) * scale + zero     每行每 32 列一组 / for each 32 columns of a row

你在这里：`layers/quantized.py` 把线性层的权重换成它，`models/loader.py` 填它，融合核函数直接读编码；
没有融合核函数时，`F.linear` 见到它就先还原再乘。

A quantized weight: integer codes and the scales that turn them back into floats; it is used like an ordinary tensor of
weights.

You are here: `layers/quantized.py` gives linear layers such weights, `models/loader.py` fills them, and the fused
kernels read the codes themselves; without kernels `F.linear` meets one, restores it and multiplies.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

# int4 的一组有几列：同组的 32 个权重共用一个缩放和一个中值。
# Columns of a group in int4: 32 weights share a scale and a zero.
GROUP: Final = 32
# 一次量化或还原几个数：16777216 个，bf16 是 32 MiB，在 H100 的二级缓存（50 MB）里放得下。
# Numbers quantized or restored at a time: 16777216 are 32 MiB in bf16 and fit into an H100's second-level cache, 50 MB.
_AT_ONCE: Final = 1 << 24


def quantize_int8(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """每行除以自己的缩放 absmax / 127，舍入到整数。

    例：[0.5, -1.27, 0.02, 1.0] 的 absmax 是 1.27，缩放 0.01，编码 [50, -127, 2, 100]；误差最多半步，即 0.005。

    Divide each row by its scale, absmax / 127, and round.
    Example: [0.5, -1.27, 0.02, 1.0] has absmax 1.27, scale 0.01 and codes [50, -127, 2, 100]; the error is at most
    half a step, 0.005.

    Args:
        weight: [N, K]
        dtype: 缩放的；of the scales

    Returns:
        [N, K] int8, [N]
    """
    weight = weight.float()  # [N, K]
    # 缩放先舍入到要存的精度，再用它去除：它的舍入误差就由编码补上了。
    # The scale is rounded to what is stored before it divides, so that the codes make up for its own rounding.
    scales = (weight.abs().amax(1) / 127).to(dtype)  # [N]
    # 全 0 的行，缩放是 0；除以 1 代替，编码仍是 0。
    # A row of zeros has the scale 0; divide by 1 instead, and the codes are 0 all the same.
    steps = torch.where(scales == 0, 1, scales).float().unsqueeze(1)  # [N, 1]
    # `round` 遇到 .5 取偶数；缩放被舍小了一点时，最大的权重会超出 127，要截住。
    # `round` takes .5 to the even one; where the scale was rounded down the largest weight exceeds 127 and is clamped.
    return (weight / steps).round().clamp(-127, 127).to(torch.int8), scales  # [N, K], [N]


def quantize_int4(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """每行每 32 列一组，组里最小到最大分成 15 步，编码是 0 到 15。

    Each 32 columns of a row are a group; from its least to its greatest are 15 steps, and codes are 0 to 15.

    Returns:
        [N, K // 2] uint8，第 2j 列在低 4 位，第 2j + 1 列在高 4 位；column 2j in the low 4 bits, 2j + 1 in the high
        [N, K // 32], [N, K // 32]，缩放，和编码 8 的值；scales, and the value of code 8
    """
    # 一行 3072 个权重切成 96 组，各有自己的最小和最大。
    # A row of 3072 weights is cut into 96 groups, each with its own least and greatest.
    groups = weight.float().unflatten(1, (-1, GROUP))  # [N, K // 32, 32]
    low, high = groups.aminmax(dim=2)
    scales = ((high - low) / 15).to(dtype)  # [N, K // 32]
    # 例：组里从 -0.7 到 0.8，一步 0.1，编码 8 的值是 -0.7 + 8 * 0.1 = 0.1；0.33 的编码是 8 + 2.3，舍入成 10，即 0.3。
    # Example: a group from -0.7 to 0.8 has steps of 0.1 and code 8 is -0.7 + 8 * 0.1 = 0.1; 0.33 has the code 8 + 2.3,
    # rounded 10, which is 0.3.
    zeros = (low + 8 * scales.float()).to(dtype)  # [N, K // 32]
    # 整组一样大时，缩放是 0，每个值都等于中值。
    # Where a whole group is equal the scale is 0, and every value is the zero.
    steps = torch.where(scales == 0, 1, scales).float()  # [N, K // 32]
    codes = ((groups - zeros.float().unsqueeze(2)) / steps.unsqueeze(2) + 8).round().clamp(0, 15)
    return pack_int4(codes.flatten(1).to(torch.uint8)), scales, zeros


def pack_int4(codes: Tensor) -> Tensor:
    """两个编码放进一个字节：第 2j 列在低 4 位。

    Two codes go into a byte: column 2j in the low 4 bits.

    Args:
        codes: [N, K] uint8，0 到 15；0 to 15

    Returns:
        [N, K // 2] uint8
    """
    return codes[:, 0::2] | codes[:, 1::2] << 4  # [N, K // 2]


def unpack_int4(packed: Tensor) -> Tensor:
    """`pack_int4` 的逆。

    The inverse of `pack_int4`.

    Returns:
        [N, K] uint8
    """
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)  # [N, K]


class QuantizedWeight:
    """一个量化的权重；int4 才有 `zeros`。取行（`weight[rows]`）、复制进来（`copy_`）、`F.linear` 都与张量相同。

    A quantized weight; only int4 has `zeros`. Taking rows (`weight[rows]`), copying into it (`copy_`) and `F.linear`
    are as for a tensor.

    Attributes:
        codes: [N, K] int8，或 [N, K // 2] uint8（见 `quantize_int4`）；or [N, K // 2] uint8, see `quantize_int4`
        scales: [N]，或 [N, K // 32]；or [N, K // 32]
        zeros: 与 `scales` 同形状，int8 为 None；shaped like `scales`, None for int8
    """

    def __init__(self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None) -> None:
        self.codes, self.scales, self.zeros = codes, scales, zeros

    @classmethod
    def frame(cls, bits: int, shape: torch.Size) -> "QuantizedWeight":
        """只有形状，还没有内存。

        Shapes, and no memory yet.
        """
        rows, columns = shape
        groups = (rows, columns // GROUP)
        sizes = ((rows, columns), (rows,)) if bits == 8 else ((rows, columns // 2), groups, groups)
        # `meta` 设备上的张量只有形状：此刻还在用文件头核对，尺寸不合也不会占内存。
        # Tensors on `meta` have shapes only: the headers are still to be checked, and sizes that do not fit are free.
        return cls(*(torch.empty(each, device="meta") for each in sizes))

    def materialize(self, dtype: torch.dtype, device: torch.device) -> None:
        """分配内存，内容由 `copy_` 填。

        Allocate; `copy_` fills it.
        """
        # 编码的类型是定的，缩放和中值跟着模型的精度。
        # The type of the codes is fixed; scales and zeros go by the model's precision.
        kinds = (torch.int8 if self.bits == 8 else torch.uint8, dtype, dtype)
        made = [torch.empty(part.shape, dtype=kind, device=device) for part, kind in zip(self.parts, kinds)]
        self.codes, self.scales, self.zeros = made[0], made[1], made[2] if len(made) == 3 else None

    @property
    def bits(self) -> int:
        """一个权重几位。

        Bits of a weight.
        """
        return 8 if self.zeros is None else 4

    @property
    def parts(self) -> list[Tensor]:
        """各个张量。

        The tensors.
        """
        return [part for part in (self.codes, self.scales, self.zeros) if part is not None]

    @property
    def shape(self) -> torch.Size:
        """还原后的形状。

        The shape when restored.
        """
        return torch.Size((len(self.codes), self.codes.shape[1] * (8 // self.bits)))

    @property
    def dtype(self) -> torch.dtype:
        """还原后的 dtype。

        The dtype when restored.
        """
        return self.scales.dtype

    @property
    def ruler(self) -> Tensor:
        """各把尺子两头的值：装载时看它们是不是有限的数，装不装得进 `dtype`。

        The values at both ends of each ruler: loading looks whether they are finite, and fit into `dtype`.
        """
        if self.zeros is None:
            return torch.stack((-127 * self.scales, 127 * self.scales))
        return torch.stack((self.zeros - 8 * self.scales, self.zeros + 7 * self.scales))

    @property
    def nbytes(self) -> int:
        """占多少字节。

        Bytes that it takes.
        """
        # int4 的 4096 行、4096 列是 8 MiB 编码，加上 bf16 的缩放和中值各 1 MiB：每个权重 5 位。
        # In int4, 4096 rows of 4096 columns are 8 MiB of codes, plus 1 MiB each of scales and zeros: 5 bits a weight.
        return sum(part.nbytes for part in self.parts)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Any:
        """一段行是它的一个窗口，可以往里填；按下标取的行（词嵌入）还原成浮点数。

        A range of rows is a window that can be filled; rows by index, as an embedding takes them, are restored.
        """
        # 编码、缩放、中值的第 0 维都是行，所以同一个下标对三者都适用。
        # Codes, scales and zeros have rows for dimension 0, so one index serves all three.
        taken = QuantizedWeight(*(part[rows] for part in self.parts))
        return taken if isinstance(rows, slice) else taken.dequantize()

    def release(self) -> None:
        """核函数已按自己的次序另存了一份：放掉这里的内存，形状还在，不能再还原。

        The kernels keep it in an order of their own: let this memory go; the shape stays, nothing can be restored.
        """
        # `meta` 上的张量没有数据；误用的人会得到报错，而不是次序错乱的数。
        # Tensors on `meta` have no data: whoever uses them by mistake gets an error and no numbers in a wrong order.
        self.codes, self.scales = self.codes.to("meta"), self.scales.to("meta")
        self.zeros = None if self.zeros is None else self.zeros.to("meta")

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """还原成浮点数；不写 dtype，就与缩放相同。

        Restore the floats, in the dtype of the scales where none is given.

        Returns:
            [N, K]
        """
        dtype = dtype or self.scales.dtype
        # 在 float32 里乘加，最后才舍入一次：bf16 只有 8 位有效数字，127 步的编码经不起中途再舍入。
        # Products and sums are float32, rounded once at the end: bf16 has 8 significant bits, and codes of 127 steps
        # would not stand another rounding on the way.
        if self.zeros is None:
            return (self.codes.float() * self.scales.float().unsqueeze(-1)).to(dtype)  # [N, K]
        steps = unpack_int4(self.codes).unflatten(1, (-1, GROUP)).float() - 8  # [N, K // 32, 32]
        groups = steps * self.scales.float().unsqueeze(2) + self.zeros.float().unsqueeze(2)  # [N, K // 32, 32]
        return groups.flatten(1).to(dtype)  # [N, K]

    @property
    def part_rows(self) -> int:
        """`in_parts` 的一段有几行。

        Rows in a part of `in_parts`.
        """
        return max(1, _AT_ONCE // self.shape[1])

    def in_parts(self) -> "list[QuantizedWeight]":
        """按行切成几段。

        Cut by rows into parts.
        """
        return [self[start : start + self.part_rows] for start in range(0, len(self), self.part_rows)]

    def linear(self, x: Tensor, bias: Tensor | None = None, restore: Callable[..., Tensor] = dequantize,
               multiply: Callable[..., Tensor] = F.linear) -> Tensor:  # fmt: skip
        """一段一段地还原，各乘一次：不会有整个词表那么大的浮点张量。融合核函数的朴素实现。

        Restore a part at a time and multiply it: there is never a float tensor as large as the vocabulary. The plain
        twin of the fused kernels.

        Args:
            x: [T, K]
            restore: 怎样还原一段，默认 `dequantize`；how to restore a part, `dequantize` by default
            multiply: 怎样乘，参数同 `F.linear`；how to multiply, with the arguments of `F.linear`

        Returns:
            [T, N]
        """
        # 例：128256 行、3072 列的输出头切成 24 段，每段还原出来是 bf16 的 32 MiB，而不是整个的 788 MB。
        # Example: a head of 128256 rows and 3072 columns is cut into 24 parts of 32 MiB each in bf16, where the whole
        # would be 788 MB.
        parts = self.in_parts()
        biases = [None] * len(parts) if bias is None else bias.split(self.part_rows)
        outs = [multiply(x, restore(part), added) for part, added in zip(parts, biases)]  # [T, rows]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)  # [T, N]

    def copy_(self, source: "Tensor | QuantizedWeight") -> None:
        """填入浮点权重（边填边量化），或已经量化好的。

        Fill with float weights, quantizing on the way, or with what is quantized already.
        """
        for part, new in self._pairs(source):
            part.copy_(new)

    def equal(self, source: "Tensor | QuantizedWeight") -> bool:
        """这些浮点权重量化之后，是否就是它；已经量化好的，直接比。

        Whether these float weights, quantized, are what it holds; what is quantized already is compared as it is.
        """
        return all(part.equal(new.to(part)) for part, new in self._pairs(source))

    def _pairs(self, source: "Tensor | QuantizedWeight") -> Iterator[tuple[Tensor, Tensor]]:
        """自己的各个张量，和该填进去的。

        Its own tensors, each with what goes into it.
        """
        # 文件自带的：编码原样抄来，只有缩放会换精度。
        # What a file brings: codes are copied as they are, only the scales change their precision.
        if isinstance(source, QuantizedWeight):
            yield from zip(self.parts, source.parts, strict=True)
            return
        quantize: Callable[..., tuple[Tensor, ...]] = quantize_int8 if self.bits == 8 else quantize_int4
        for mine, rows in zip(self.in_parts(), source.split(self.part_rows)):
            yield from zip(mine.parts, quantize(rows.to(self.codes.device), self.scales.dtype), strict=True)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
        """`F.linear(x, weight, bias)` 就是 `linear`。

        `F.linear(x, weight, bias)` is `linear`.
        """
        # torch 的函数遇到不认识的参数，会来问它的类：这里只答应 `F.linear`，别的运算照样报错，不会悄悄算错。
        # A function of torch that meets an argument it does not know asks the argument's class: only `F.linear` is
        # taken on, any other operation still fails and is not quietly wrong.
        if function is not F.linear:
            return NotImplemented
        x, weight, *bias = args
        result: Tensor = weight.linear(x, *bias, **(kwargs or {}))
        return result


# 线性层的权重是其中一种。
# The weight of a linear layer is one of these.
Weight = Tensor | QuantizedWeight
