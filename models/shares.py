"""这个进程的那一份：从配置里分出几个头、多宽的 MLP，从权重里切下对应的一块。怎样合起来，见 `layers/ranks.py`。

    Llama-3.2-3B, 2 ranks       whole           rank 0          rank 1
    query heads                 24              0 .. 11         12 .. 23
    KV heads                    8               0 .. 3          4 .. 7
    q_proj [3072, 3072]         rows            0 .. 1535       1536 .. 3071
    o_proj [3072, 3072]         columns         0 .. 1535       1536 .. 3071

层不知道自己是整个还是一份：它们照着这份配置搭起来，权重哪一维对不上，就切哪一维。

The share of this process: so many heads and so wide an MLP out of the configuration, and the part of the weights that
goes with them. How results come together is in `layers/ranks.py`.
Layers do not know whether they are the whole or a share: they are built by this configuration, and a weight is cut
along the one dimension in which it does not fit.
"""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from backends.quantized_weight import QuantizedWeight
from layers.ranks import Ranks
from models.config import ModelConfig
from models.llama import LlamaForCausalLM
from models.registry import create_model


def _divides(config: ModelConfig, size: int) -> bool:
    # KV 头不够分时，几个进程各存一份同样的：2 个 KV 头、4 个进程，每个头有 2 份。
    # Where there are too few KV heads several ranks keep the same one: 2 KV heads on 4 ranks are kept 2 times each.
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    shared = kv_heads % size == 0 or size % kv_heads == 0
    return shared and heads % size == 0 and config.intermediate_size % size == 0


def divide(config: ModelConfig, ranks: Ranks) -> ModelConfig:
    """一个进程的配置；词表由 `Embedding` 自己分，因为分不尽也可以。

    The configuration of one rank; the vocabulary is divided by `Embedding`, as it need not divide evenly.

    Raises:
        ValueError: 分不尽，消息里列出可以的进程数；it does not divide; the message lists the sizes that work
    """
    size = ranks.size
    # 没有分开的配置，`whole` 是 None：核对权重时就不必另搭一个架子。
    # A configuration that is not divided has None for `whole`, and no other frame is built to check weights.
    if size == 1:
        return config
    if not _divides(config, size):
        # 报错时把行得通的都列出来：8 个查询头、2 个 KV 头、MLP 宽 704，可以是 1、2、4、8。
        # The message lists what works: 8 query heads, 2 KV heads and an MLP of width 704 allow 1, 2, 4, 8.
        sizes = [n for n in range(1, config.num_attention_heads + 1) if _divides(config, n)]
        raise ValueError(
            f"tensor_parallel_size={size} does not divide {config.num_attention_heads} heads, "
            f"{config.num_key_value_heads} KV heads and intermediate_size={config.intermediate_size}: use one of "
            f"{', '.join(map(str, sizes))}"
        )
    # KV 头不够分时，每个进程至少也有 1 个。
    # Where there are too few KV heads, each rank has 1 all the same.
    return replace(
        config, num_attention_heads=config.num_attention_heads // size, ranks=ranks, whole=config,
        num_key_value_heads=max(1, config.num_key_value_heads // size),
        intermediate_size=config.intermediate_size // size,
    )  # fmt: skip


def undivided(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """没有分开的架子：文件里存的是整个模型，形状要与它相符。

    The frame that is not divided: files hold the whole model, whose shapes they have to have.
    """
    # 断点停在这里，比较 `whole` 与 `model.config`：不同的只有头数和 MLP 的宽度。
    # Stop here and compare `whole` with `model.config`: only heads and the MLP's width differ.
    whole = model.config.whole
    return model if whole is None else create_model(whole, model.attention_layers()[0].backend)


def cut(whole: Any, target: Any, ranks: Ranks) -> Any:
    """一个权重里该填进 `target` 的那一块；本来就相符的，原样返回。

    The part of a weight that goes into `target`; what fits as it is, is returned as it is.

    Args:
        whole, target: 张量或 `QuantizedWeight`；tensors or `QuantizedWeight`s
    """
    if whole.shape == target.shape:
        return whole
    # 先整个量化，再切：一行的缩放由整行决定，切成几份也不变，输出才与一个进程的相同。
    # Quantize the whole, then cut: a row's scale is settled by all of the row and stays, however many the parts; so the
    # output is that of one process.
    if isinstance(target, QuantizedWeight) and isinstance(whole, Tensor):
        floats, whole = whole, QuantizedWeight.frame(target.bits, whole.shape)
        whole.materialize(target.dtype, target.codes.device)
        whole.copy_(floats)
    # 按输出切的（q、k、v、gate、up、词表）行数不同，按输入切的（o、down）列数不同。
    # What is cut along outputs (q, k, v, gate, up, the vocabulary) differs in rows, along inputs (o, down) in columns.
    dim = 0 if whole.shape[0] != target.shape[0] else 1
    all_of_it, mine = whole.shape[dim], target.shape[dim]
    # 例：4 个进程，`k_proj` 共 64 行。每个要 32 行，就是 2 份，rank 0、1 取前一份；每个要 16 行，就各取各的。
    # 词表除不尽，则有几个进程就是几份。
    # Example with 4 ranks and a `k_proj` of 64 rows: if each needs 32 there are 2 parts, ranks 0 and 1 take the first;
    # if each needs 16, each has its own. A vocabulary that does not divide has as many parts as there are ranks.
    parts, left = divmod(all_of_it, mine)
    if left or ranks.size % parts:
        parts = ranks.size
    start = ranks.rank * parts // ranks.size * mine
    if isinstance(whole, Tensor):
        return _take(whole, dim, start, mine)
    # int4 的编码两列一个字节，缩放 32 列一个；int8 的缩放一行一个，按列切时不动。
    # In int4 a byte holds the codes of two columns and a scale serves 32; in int8 a scale serves a row, and a cut by
    # columns leaves it.
    return QuantizedWeight(*(
        _take(part, dim, start * part.shape[dim] // all_of_it, mine * part.shape[dim] // all_of_it)
        if dim < part.dim() else part for part in whole.parts
    ))  # fmt: skip


def _take(tensor: Tensor, dim: int, start: int, count: int) -> Tensor:
    """第 `start` 个起的 `count` 个；不够的补 0：词表除不尽时，最后一个进程的末尾是空的。

    `count` of them from number `start` on, filled up with 0: where a vocabulary does not divide, the end of the last
    rank's part is empty.
    """
    part = tensor.narrow(dim, min(start, tensor.shape[dim]), max(0, min(count, tensor.shape[dim] - start)))
    # `pad` 从最后一维数起，每维两个数：前面补几个，后面补几个。
    # `pad` counts dimensions from the last, with two numbers each: how many in front, how many behind.
    return F.pad(part, [0, 0] * (tensor.dim() - 1 - dim) + [0, count - part.shape[dim]])
