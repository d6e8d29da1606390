"""量化：模型搭好之后，把线性层、词嵌入和输出头的权重换成 `QuantizedWeight`；层的代码一行不改。

    int8    每个输出通道一个缩放；词嵌入和输出头也换 / a scale for each output channel; embedding and head, too
    int4    每 32 列一组；词嵌入和输出头用 int8      / groups of 32 columns; embedding and head are int8

解码一步要把所有权重从内存读一遍，时间与字节数成正比：每个权重 bfloat16 占 2 字节，int8 占 1，
int4 连缩放和中值占 0.625。

Quantization: once the model is built, the weights of linear layers, embedding and head become `QuantizedWeight`s; not a
line of the layers changes.
A decode step reads all weights from memory once, and takes time in proportion to the bytes: 2 a weight in bfloat16, 1
in int8, 0.625 in int4, with scales and zeros.
"""

import logging
from collections.abc import Collection
from typing import Any

from torch import nn

from backends.quantized_weight import GROUP, QuantizedWeight
from layers.embedding import Embedding, LMHead
from layers.linear import Linear

logger = logging.getLogger(__name__)

# 选项的值 -> 一个权重几位。
# The option's values -> bits of a weight.
QUANTIZATIONS = {"int8": 8, "int4": 4}
# PyTorch 在 CPU 上读 int4 的乘法一次处理 16 个输出、一组 32 列；GPU 上也照此，同一个模型到处一样。
# PyTorch's product that reads int4 on a CPU takes 16 outputs and a group of 32 columns at a time; a GPU does likewise,
# so that a model is the same everywhere.
_OUTPUTS = 16


def quantize_layers(model: nn.Module, bits: int, stored: Collection[str] | None = None) -> None:
    """换掉权重；此时还没有内存，`models/loader.py` 才分配，再由 `copy_` 边读边量化。

    Replace the weights; there is no memory yet, `models/loader.py` allocates it, and `copy_` quantizes while reading.

    Args:
        stored: 文件里本来就量化好的张量名，只换这些；None 则全部；
            tensors that the file brings quantized, and only those; None: all

    Raises:
        ValueError: 拼在一起的层只有一部分量化过，或一份的列数不是整组；
            of layers that are stacked only some are quantized, or a share's columns are no whole groups
    """
    made: dict[Any, QuantizedWeight] = {}
    odd = []
    for name, module in model.named_modules():
        if not isinstance(module, Linear | Embedding) or not _is_chosen(name, module, stored):
            continue
        rows, columns = module.weight.shape
        # 词表大，读一遍也贵；但每个 token 的分数都由它定，所以只到 8 位。
        # The vocabulary is large and costly to read; yet it decides every token's score, so 8 bits are the least.
        is_vocabulary = isinstance(module, Embedding | LMHead)
        divides = rows % _OUTPUTS == 0 and columns % GROUP == 0
        mine = bits if stored is not None or (divides and not is_vocabulary) else 8
        # 文件里的 4 位是 32 列一组，切开的地方也要在两组之间。
        # 4 bits in a file come in groups of 32 columns, and have to be cut between two groups.
        if mine == 4 and columns % GROUP:
            raise ValueError(f"{name} has {columns} columns on each rank, no multiple of {GROUP}: use fewer ranks")
        if not divides and not is_vocabulary and mine != bits:
            odd.append(name)
        # 词嵌入与输出头共用一个参数，换过之后仍是同一个。
        # Embedding and head share a parameter, and go on sharing what replaces it.
        weight = made.setdefault(module.weight, QuantizedWeight.frame(mine, module.weight.shape))
        # 先去掉参数，`nn.Module` 才允许同名的普通属性。
        # The parameter goes first, or `nn.Module` would not take a plain attribute of its name.
        del module.weight
        setattr(module, "weight", weight)  # noqa: B010
    if odd:
        logger.warning(
            "%d layers (%s, ...) stay int8: int4 needs outputs in multiples of %d and inputs of %d. "
            "/ %d 层保持 int8：int4 要求输出是 %d 的倍数、输入是 %d 的倍数。",
            len(odd), odd[0], _OUTPUTS, GROUP, len(odd), _OUTPUTS, GROUP,
        )  # fmt: skip


def _is_chosen(name: str, module: nn.Module, stored: Collection[str] | None) -> bool:
    """文件里这一层是不是量化好的；拼起来的几层要么都是，要么都不是。

    Whether the file brings this layer quantized; of stacked ones it brings all or none.
    """
    if stored is None:
        return True
    names = [f"{name.rpartition('.')[0]}.{each}.weight" for each in getattr(module, "pieces", ())] or [f"{name}.weight"]
    found = [each for each in names if each in stored]
    if 0 < len(found) < len(names):
        missing = next(each for each in names if each not in stored)
        raise ValueError(f"{found[0]} is quantized and {missing} is not: take a checkpoint that quantizes both or none")
    return bool(found)
