"""别人量化好的权重文件：认出是哪一种，译成我们的 `QuantizedWeight`；读不了的，按名字拒绝。

各种文件存的是同一件事，w = (code - zero) * scale，只是装箱的次序不同，见下表；
8 个 4 位的编码装进一个 int32，低位在前。

你在这里：`config.py` 用 `read_format` 认出格式；`loader.py` 先用 `fold` 核对文件头，再用 `read` 逐层读出。

Weight files that others have quantized: tell which kind it is and translate it into our `QuantizedWeight`; what cannot
be read is refused by name.

They all store the same thing, w = (code - zero) * scale, and differ in how it is packed, see the table; 8 codes of 4
bits go into an int32, the lowest bits first.

You are here: `config.py` tells the format with `read_format`; `loader.py` checks the headers with `fold` and then reads
layer by layer with `read`.

    int32   31..28  27..24  23..20  19..16  15..12  11..8   7..4    3..0
    code       7       6       5       4       3       2      1       0

    layout          codes of a word                       tensors of a layer [N, K] with G groups of columns
    GPTQ            8 columns of a row (zeros: 8 rows)    qweight [K/8, N], qzeros [G, N/8], scales [G, N], g_idx [K]
    AWQ             8 rows, as 0, 2, 4, 6, 1, 3, 5, 7     qweight [K, N/8], qzeros [G, N/8], scales [G, N]
    pack-quantized  8 columns of a row (zeros: 8 rows)    weight_packed [N, K/8], weight_scale [N, G],
                                                          weight_zero_point [N/8, G], weight_shape [2]
    int-quantized   one int8 each                         weight [N, K], weight_scale [N, 1], weight_zero_point [N, 1]
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backends.quantized_weight import GROUP, QuantizedWeight, pack_int4, unpack_int4
from models.fields import ModelLoadError

# 文件头里写的一个张量：在哪个文件，形状，类型。
# A tensor as the header of its file has it: which file, shape, type.
Stored = tuple[str, list[int], str]
# 一层的一个张量该有的形状，和可以有的类型。
# The shape that a tensor of a layer must have, and the types that it may have.
Part = tuple[list[int], tuple[str, ...]]
# 取一层的一个张量，按它的短名：“qweight”。
# Takes a tensor of a layer by its short name: "qweight".
Take = Callable[[str], Tensor]

# `config.json` 里说明量化的键；mlx-lm 写前两个。
# The keys of `config.json` that tell of quantization; mlx-lm writes the first two.
KEYS = ("quantization", "quantization_config", "compression_config")
_SCALES, _WORDS, _WHOLE = ("F16", "BF16", "F32"), ("I32",), ("I64", "I32")
_OTHER = "config.json belongs to another model, or the file is damaged: download both again"
_INSTEAD = 'take the model\'s bfloat16 version, and quantization="int8" or "int4" here'


@dataclass(frozen=True, slots=True)
class CheckpointFormat(ABC):
    """一种权重文件的格式；每种装箱次序是一个子类。

    A format of weight files; each order of packing is a subclass.

    Attributes:
        bits: 4 或 8；4 or 8
        group: 几列共用一个缩放，32 的倍数；-1 是整行；columns that share a scale, a multiple of 32; -1 is whole rows
    """

    bits: int
    group: int

    def fold(self, stored: dict[str, Stored]) -> dict[str, Stored]:
        """把一层的几个张量合成一项 `X.weight`，形状是还原后的 [N, K]，类型是“int4”或“int8”；其余的不动。

        The tensors of a layer become one entry `X.weight` with the restored shape [N, K] and the dtype "int4" or
        "int8"; all others stay.

        Raises:
            ModelLoadError: 少了一个，形状或类型对不上；one is missing, or shapes or types do not fit together
        """
        # 这里只要名字，形状随便给一个。
        # Only the names are wanted here, so any shape will do.
        parts, folded = list(self._parts(1, 1)), dict(stored)
        # int-quantized 的编码也叫 `weight`：没量化的层里，它是浮点数。
        # The codes of int-quantized are called `weight` as well: in a layer that is not quantized those are floats.
        layers = dict.fromkeys(
            name.rpartition(".")[0] for name, (_, _, kind) in stored.items()
            if (part := name.rpartition(".")[2]) in parts and (part != "weight" or kind == "I8")
        )  # fmt: skip
        for layer in layers:
            # 凡有一个就要有全部：只剩下 `scales` 的层，也是一个坏了的层。
            # Where there is one there must be all: a layer of which only `scales` is left is a damaged one as well.
            names = {part: f"{layer}.{part}" for part in parts}
            taken = {part: folded.pop(name) for part, name in names.items() if name in folded}
            missing = [names[part] for part in parts if part not in taken]
            if missing or f"{layer}.weight" in folded:
                what = f"{missing[0]!r:.100} is missing" if missing else f"'{layer:.90}.weight' is stored twice"
                raise ModelLoadError(f"tensor {what} in the quantized layer {layer!r:.60}: {_OTHER}")
            file, packed, _ = taken[parts[0]]
            if len(packed) != 2 or 0 in packed:
                raise ModelLoadError(f"tensor {names[parts[0]]!r:.100} has shape {packed!s:.60}, no matrix: {_OTHER}")
            # 只有主张量说得出 N 与 K，其余的形状由此算出，再去比较。
            # Only the main tensor tells N and K; the shapes of all others follow from it and are compared.
            #     GPTQ, group 128:   qweight [512, 4096]   N 4096, K 4096   scales [32, 4096]
            rows, columns = self._size(*packed)
            for part, (shape, kinds) in self._parts(rows, columns).items():
                _, found, kind = taken[part]
                if found != shape or kind not in kinds:
                    what = f"tensor {names[part]!r:.100} is {kind} {found!s:.60}"
                    raise ModelLoadError(f"{what}, needed is {kinds[0]} {shape!s:.60}: {_OTHER}")
            if self.bits == 4 and columns % GROUP:
                what = f"tensor {names[parts[0]]!r:.100} restores to {[rows, columns]!s:.60}"
                raise ModelLoadError(f"{what}, and 4 bits need columns in groups of {GROUP}: {_INSTEAD}")
            folded[f"{layer}.weight"] = file, [rows, columns], f"int{self.bits}"
        return folded

    def read(self, name: str, get: Callable[[str], Tensor]) -> QuantizedWeight:
        """读出一层。

        Read a layer.

        Args:
            name: `fold` 给的名字，“X.weight”；the name that `fold` gave, "X.weight"
            get: 按名字取文件里的一个张量；takes a tensor from the file by its name

        Returns:
            在 CPU 上，缩放和中值是 float32；on the CPU, scales and zeros in float32

        Raises:
            ModelLoadError: 列的次序是打乱的，8 位却有零点，形状不符；shuffled columns, 8 bits with zero points, a shape
        """
        layer = name.removesuffix("weight")
        codes, scales, zeros = self._unpack(layer, lambda part: get(layer + part))
        if self.bits == 8:
            # 我们的 int8 没有零点：无符号的编码以 128 为零，减去它就是有符号的；翻转最高位就是减 128。
            # Our int8 has no zero point: unsigned codes have their zero at 128, and to flip the highest bit is to
            # subtract that.
            if zeros is not None and bool((zeros != 128).any()):
                raise ModelLoadError(f"tensor {name!r:.100} is int8 with a zero point, which is not read: {_INSTEAD}")
            return QuantizedWeight((codes ^ 128).view(torch.int8), scales.float().flatten().contiguous())
        # (code - zero) * scale = (code - 8) * scale + (8 - zero) * scale；例：zero 11，scale 0.1，我们的中值是 -0.3。
        # (code - zero) * scale = (code - 8) * scale + (8 - zero) * scale; for example zero 11 and scale 0.1 make -0.3.
        # 16 位的缩放乘以不超过 15 的整数，float32 装得下，所以这一步没有舍入。
        # A scale of 16 bits times an integer of up to 15 fits into float32: nothing is rounded in this step.
        scales = scales.float()  # [N, G]
        offsets = torch.zeros_like(scales) if zeros is None else (8 - zeros.float()) * scales  # [N, G]
        # 例：一组 128 列，就是我们的 4 组，缩放重复 4 次；最后一组可以不满。
        # Example: a group of 128 columns is 4 of ours, and its scale is repeated 4 times; the last may be short.
        repeat, groups = self._width(codes.shape[1]) // GROUP, codes.shape[1] // GROUP
        scales, offsets = (part.repeat_interleave(repeat, 1)[:, :groups].contiguous() for part in (scales, offsets))
        return QuantizedWeight(pack_int4(codes).contiguous(), scales, offsets)

    # 比一行还宽的组就是整行；文件里写的宽度可以大得离谱。
    # A group wider than a row is the row; a file may claim an absurd width.
    def _width(self, columns: int) -> int:
        return columns if self.group < 0 else min(self.group, columns)

    def _groups(self, columns: int) -> int:
        return -(-columns // self._width(columns))

    # 最后一个 int32 可以不满：13 行的零点要 2 个，多出的 3 个位置不用。
    # The last int32 may be short: zeros of 13 rows take 2 of them, and 3 places stay unused.
    def _words(self, codes: int) -> int:
        return -(-codes * self.bits // 32)

    def _codes(self, words: Tensor) -> Tensor:
        """一行 int32 里的编码，低位在前：[R, C] -> [R, C * 32 // bits] uint8。

        The codes in rows of int32, lowest bits first: [R, C] -> [R, C * 32 // bits] uint8.
        """
        # 只有一列的转置也算连续，步长却不是 1，`contiguous` 不会管它；`clone` 会。
        # A transpose of one column counts as contiguous, with a stride that is not 1; `contiguous` leaves it, `clone`
        # does not.
        octets = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)  # [R, 4 * C]
        return octets if self.bits == 8 else unpack_int4(octets)

    @abstractmethod
    def _size(self, first: int, second: int) -> tuple[int, int]:
        """主张量的形状 -> N, K。

        The shape of the main tensor -> N, K.
        """

    @abstractmethod
    def _parts(self, rows: int, columns: int) -> dict[str, Part]:
        """[N, K] 的一层有哪些张量，主张量在先。

        The tensors of a layer of [N, K], the main one first.
        """

    @abstractmethod
    def _unpack(self, layer: str, take: Take) -> tuple[Tensor, Tensor, Tensor | None]:
        """无符号的编码 [N, K]、缩放 [N, G]、零点 [N, G]；零点在正中就没有。

        Unsigned codes [N, K], scales [N, G], zero points [N, G], or None where they are in the middle.
        """


@dataclass(frozen=True, slots=True)
class Gptq(CheckpointFormat):
    """GPTQ：沿输入打包，一个 int32 是同一行相邻的 8 列；整个矩阵是转置的。

        qweight[i, n]   columns 8i .. 8i+7 of row n          qzeros[g, j]   rows 8j .. 8j+7 of group g, minus 1
        scales[g, n]    of group g in row n                  g_idx[k]       group of column k, here k // group

    GPTQ packs along the inputs: an int32 is 8 neighbouring columns of a row, and the whole matrix is transposed.

    Attributes:
        minus_one: 零点存的是减 1 之后的（“gptq”），还是原样（“gptq_v2”）；zeros are stored minus 1, or as they are
    """

    minus_one: bool

    def _size(self, first: int, second: int) -> tuple[int, int]:
        return second, first * 32 // self.bits

    def _parts(self, rows: int, columns: int) -> dict[str, Part]:
        groups = self._groups(columns)
        return {"qweight": ([self._words(columns), rows], _WORDS), "qzeros": ([groups, self._words(rows)], _WORDS),
                "scales": ([groups, rows], _SCALES), "g_idx": ([columns], _WHOLE)}  # fmt: skip

    def _unpack(self, layer: str, take: Take) -> tuple[Tensor, Tensor, Tensor | None]:
        codes, scales = self._codes(take("qweight").T), take("scales").T  # [N, K], [N, G]
        columns = codes.shape[1]
        # 先量化重要的列，同一组的列就不相邻了，而我们的组是相邻的 32 列。
        # To quantize important columns first scatters the columns of a group, and ours are 32 neighbours.
        # 打乱了列的文件，有的不写 `desc_act`；看 `g_idx` 才知道。
        # Some files with shuffled columns do not say `desc_act`; `g_idx` tells.
        if not torch.equal(take("g_idx").long(), torch.arange(columns) // self._width(columns)):
            raise ModelLoadError(f"tensor '{layer:.90}g_idx' shuffles the columns (act-order): not read, {_INSTEAD}")
        # 写文件的程序从整个 int32 里减：零点为 0 时要向高位借 1；整个加回去，借的就还上了。
        # Writers subtract from the whole int32, and a zero of 0 borrows 1 from above; adding to the whole returns it.
        #     zeros 0, 8      0x80 - 0x11 = 0x6f      0x6f + 0x11 = 0x80
        ones = (0x11111111 if self.bits == 4 else 0x01010101) if self.minus_one else 0
        return codes, scales, self._codes(take("qzeros") + ones)[:, : len(scales)].T


@dataclass(frozen=True, slots=True)
class Awq(CheckpointFormat):
    """AWQ（gemm）：沿输出打包，一个 int32 是同一列相邻的 8 行，次序是 0、2、4、6、1、3、5、7。

        qweight[k, j]   low bits  row 8j+0 | 8j+2 | 8j+4 | 8j+6 | 8j+1 | 8j+3 | 8j+5 | 8j+7  high bits, of column k
        qzeros[g, j]    the same rows of group g              scales[g, n]   of group g in row n

    AWQ (gemm) packs along the outputs: an int32 is 8 neighbouring rows of a column, in the order 0, 2, 4, 6, 1, 3, 5,
    7.
    """

    def _size(self, first: int, second: int) -> tuple[int, int]:
        return second * 8, first

    def _parts(self, rows: int, columns: int) -> dict[str, Part]:
        groups = self._groups(columns)
        return {"qweight": ([columns, self._words(rows)], _WORDS), "qzeros": ([groups, self._words(rows)], _WORDS),
                "scales": ([groups, rows], _SCALES)}  # fmt: skip

    def _unpack(self, layer: str, take: Take) -> tuple[Tensor, Tensor, Tensor | None]:
        # 偶数的在前，是为它自己的核函数排的：与 0x000f000f 做一次与，就取出相邻的第 0 行和第 1 行，各占 16 位。
        # Even ones come first for its own kernels: an "and" with 0x000f000f takes out the neighbours, rows 0 and 1, in
        # 16 bits each.
        def rows(words: Tensor) -> Tensor:
            # 第 1 行在第 4 个位置，第 2 行在第 1 个位置，依此类推。
            # Row 1 lies at place 4, row 2 at place 1, and so on.
            return self._codes(words).unflatten(1, (-1, 8))[:, :, [0, 4, 1, 5, 2, 6, 3, 7]].flatten(1).T

        return rows(take("qweight")), take("scales").T, rows(take("qzeros"))


@dataclass(frozen=True, slots=True)
class PackQuantized(CheckpointFormat):
    """compressed-tensors 的 pack-quantized：权重沿输入打包，零点却沿输出打包；有符号的值加 8（8 位加 128）之后存。

        weight_packed[n, i]      columns 8i .. 8i+7 of row n       weight_scale[n, g]   of group g in row n
        weight_zero_point[j, g]  rows 8j .. 8j+7 of group g        weight_shape         N, K

    pack-quantized of compressed-tensors packs weights along the inputs, yet zero points along the outputs; signed
    values are stored plus 8 (128 for 8 bits).
    """

    symmetric: bool

    def _size(self, first: int, second: int) -> tuple[int, int]:
        return first, second * 32 // self.bits

    def _parts(self, rows: int, columns: int) -> dict[str, Part]:
        groups = self._groups(columns)
        parts: dict[str, Part] = {"weight_packed": ([rows, self._words(columns)], _WORDS),
                                  "weight_scale": ([rows, groups], _SCALES), "weight_shape": ([2], _WHOLE)}  # fmt: skip
        return parts if self.symmetric else {**parts, "weight_zero_point": ([self._words(rows), groups], _WORDS)}

    def _unpack(self, layer: str, take: Take) -> tuple[Tensor, Tensor, Tensor | None]:
        codes, scales = self._codes(take("weight_packed")), take("weight_scale")
        # 列数不是 8 的倍数时，末尾有填充；那样的矩阵在 `fold` 里看不出来。
        # Columns that are no multiple of 8 are filled up at the end, which `fold` cannot see.
        if take("weight_shape").tolist() != list(codes.shape):
            raise ModelLoadError(f"tensor '{layer:.90}weight_shape' is not {list(codes.shape)}: {_OTHER}")
        if self.symmetric:
            return codes, scales, None
        return codes, scales, self._codes(take("weight_zero_point").T)[:, : len(codes)].T


@dataclass(frozen=True, slots=True)
class IntQuantized(CheckpointFormat):
    """compressed-tensors 的 int-quantized：一个权重就是一个 int8，不打包。

    int-quantized of compressed-tensors: a weight is an int8, nothing is packed.
    """

    symmetric: bool

    def _size(self, first: int, second: int) -> tuple[int, int]:
        return first, second

    def _parts(self, rows: int, columns: int) -> dict[str, Part]:
        parts: dict[str, Part] = {"weight": ([rows, columns], ("I8",)), "weight_scale": ([rows, 1], _SCALES)}
        return parts if self.symmetric else {**parts, "weight_zero_point": ([rows, 1], ("I8",))}

    def _unpack(self, layer: str, take: Take) -> tuple[Tensor, Tensor, Tensor | None]:
        # 翻转最高位就是加 128：变成无符号的，与别的格式走同一条路。
        # To flip the highest bit is to add 128: unsigned codes go the way of the other formats.
        zeros = None if self.symmetric else take("weight_zero_point").view(torch.uint8) ^ 128
        return take("weight").view(torch.uint8) ^ 128, take("weight_scale"), zeros


def read_format(raw: dict[str, Any]) -> CheckpointFormat | None:
    """`config.json` 说权重是哪种格式；没有量化返回 None。

    Which format `config.json` says the weights have; None if they are not quantized.

    Raises:
        ModelLoadError: 这种量化在这里读不了；a quantization that is not read here
    """
    found = [raw[key] for key in KEYS if raw.get(key) is not None]
    if not found:
        return None
    # mlx-lm 不写 `quant_method`，只有 `bits`；旧的 bitsandbytes 只有 `load_in_8bit`。
    # mlx-lm writes no `quant_method`, just `bits`; old files of bitsandbytes have `load_in_8bit` only.
    fields = _object(found[0])
    guess = "MLX" if "bits" in fields else "bitsandbytes" if any("load_in" in key for key in fields) else "packed"
    name = str(fields.get("quant_method", guess))
    readers = {"gptq": _read_gptq, "awq": _read_awq, "compressed-tensors": _read_compressed}
    if name.lower() not in readers:
        raise _not_read(name)
    return readers[name.lower()](fields)


def _read_gptq(fields: dict[str, Any]) -> CheckpointFormat:
    # `dynamic` 给某些层别的位数；`adapter` 是要另加的低秩修正。
    # `dynamic` gives some layers other bits; `adapter` is a low-rank correction to be added.
    # 2 位和 3 位、打乱的列、marlin 重排过的，都不读。
    # Not read are 2 and 3 bits, shuffled columns, and what marlin has reordered.
    layouts = ("gptq", "gptq_v2")
    _allow("GPTQ", fields, bits=(4, 8), desc_act=(False,), checkpoint_format=layouts, format=layouts, dynamic=({},),
           adapter=({},), pack_dtype=("int32",), is_marlin_format=(False,))  # fmt: skip
    layout = fields.get("checkpoint_format", fields.get("format", "gptq"))
    return Gptq(*_grouped("GPTQ", fields.get("bits"), fields.get("group_size")), minus_one=layout == "gptq")


def _read_awq(fields: dict[str, Any]) -> CheckpointFormat:
    # AutoAWQ 自己的文件里，这两个键另有名字；`version` 有大写的，也有小写的。
    # AutoAWQ's own file has other names for two keys; `version` occurs in capitals and in small letters.
    fields = {"bits": fields.get("w_bit"), "group_size": fields.get("q_group_size"), **fields}
    _allow("AWQ", {**fields, "version": str(fields.get("version", "gemm")).lower()}, version=("gemm",), bits=(4,))
    return Awq(*_grouped("AWQ", fields["bits"], fields["group_size"]))


def _read_compressed(fields: dict[str, Any]) -> CheckpointFormat:
    kind, layout, groups = "compressed-tensors", fields.get("format"), _object(fields.get("config_groups"))
    group = _object(next(iter(groups.values()), None))
    weights = _object(group.get("weights"))
    _allow(kind, {"format": layout, **group}, format=("pack-quantized", "int-quantized"), targets=(["Linear"],))
    # 激活也要量化的（W8A8），结果与只量化权重的不同，这里不实现。
    # Quantized activations, as in W8A8, give other results than quantized weights alone, and are not implemented.
    for key in ("input_activations", "output_activations"):
        if key in group:
            raise _not_read(kind, f"{key}, such as W8A8,")
    # 几组各有各的位数；不量化的层写在 `ignore` 里，它们本来就存成浮点数，不必看。
    # Several groups have bits of their own; layers in `ignore` are stored as floats anyway and need no look.
    if len(groups) != 1 or group.get("format", layout) != layout:
        raise _not_read(kind, "several config_groups")
    _allow(kind, fields, kv_cache_scheme=({},), transform_config=({},))
    _allow(f"{kind} (sparsity_config)", _object(fields.get("sparsity_config")), format=("dense",))
    # “weight”与“static”只是量化时的先后，存的次序不变；“group”和“dynamic”才打乱列。
    # "weight" and "static" are an order of quantizing only and leave the columns; "group" and "dynamic" shuffle them.
    _allow(kind, weights, type=("int",), num_bits=(8,) if layout == "int-quantized" else (4, 8), dynamic=(False,),
           symmetric=(True, False), strategy=("group", "channel"),
           actorder=(None, False, "weight", "static"))  # fmt: skip
    whole = weights.get("strategy") == "channel"
    bits, width = _grouped(kind, weights.get("num_bits"), -1 if whole else weights.get("group_size"))
    return (PackQuantized if layout == "pack-quantized" else IntQuantized)(bits, width, weights.get("symmetric", True))


def _object(value: Any) -> dict[str, Any]:
    """JSON 对象里不是 null 的项；不是对象就是空的。

    The entries of a JSON object that are not null; nothing if it is none.
    """
    return {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else {}


def _grouped(kind: str, bits: Any, group: Any) -> tuple[int, int]:
    """位数与组宽：4 位一组是 32 的倍数或整行，8 位只能是整行。

    Bits and width of a group: 4 bits have a multiple of 32 or whole rows, 8 bits whole rows only.
    """
    # 用 `type` 而不用 `isinstance`：布尔值也算整数。
    # `type` and not `isinstance`, for which a bool is an integer.
    for key, value in (("bits", bits), ("group_size", group)):
        if type(value) is not int:
            raise _not_read(kind, f"{key}={value!r:.40}")
    if group != -1 and (bits == 8 or group <= 0 or group % GROUP):
        raise _not_read(kind, f"{bits} bits in groups of {group!s:.40}")
    return bits, group


def _allow(kind: str, fields: dict[str, Any], **options: tuple[Any, ...]) -> None:
    """每个键只有这些值能读；没写就是第一个。

    The values of each key that are read; the first is meant where it is absent.
    """
    for key, values in options.items():
        value = fields.get(key, values[0])
        # 比较写法：4.0 与 True 等于 4 与 1，却不是合法的值。
        # Compare how they are written: 4.0 and True equal 4 and 1 and are no such values.
        if repr(value) not in map(repr, values):
            raise _not_read(kind, key if isinstance(value, dict | list) else f"{key}={value!r:.40}")


def _not_read(kind: str, detail: str = "") -> ModelLoadError:
    what = f"{kind!r:.50} with {detail}" if detail else f"{kind!r:.50}"
    return ModelLoadError(f"config.json: quantization_config: {what} is not read: {_INSTEAD}")
