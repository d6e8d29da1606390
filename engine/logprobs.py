"""对数概率：模型给所选的 token 和最可能的几个 token 多大的概率。

取自原始的 logits，不受温度、过滤和惩罚影响，与 vLLM 的默认相同：它说的是模型怎么想，不是采样器怎么选。

Log-probabilities: how likely the model finds the chosen token and the likeliest ones.

They are those of the raw logits, before temperature, filters and penalties, as is vLLM's default: they tell what the
model thinks and not what the sampler does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Logprob:
    """一个 token 的对数概率。

    One token's log-probability.

    Attributes:
        rank: 1 is the likeliest token of the vocabulary
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


def gather_logprobs(logits: Tensor, tokens: Tensor, wanted: list[int | None]) -> Tensor | None:
    """在设备上算好要报告的数，拼成一个张量，好一次拷到主机；没有人要就返回 None。

    Work out on the device what is to be reported, as a single tensor that is one copy to the host; None if nobody asks.

    Args:
        logits: [S, vocab_size]
        tokens: [S] int64
        wanted: for each row how many of the likeliest tokens, None for no report; [S]

    Returns:
        for each row that asks: the chosen token's log-probability and rank, the k highest log-probabilities, their ids;
        k is the largest number wanted; [L, 2 + 2 * k] float64
    """
    rows = [row for row, number in enumerate(wanted) if number is not None]
    if not rows:
        return None
    where = torch.tensor(rows).to(logits.device, non_blocking=True)
    # 各行要的个数不同，一律取最多的那个，到主机上再各取所需：张量没有长短不一的行。
    # Rows want different numbers: all take the largest, and the host cuts them; a tensor has no rows of unequal length.
    k = min(max(number for number in wanted if number is not None), logits.shape[1])
    logprobs = logits[where].float().log_softmax(-1)  # [L, vocab_size]
    chosen = logprobs.gather(1, tokens[where].unsqueeze(1))  # [L, 1]
    # 名次就是“比我大的有几个”再加 1，不必排序。
    # A rank is how many are larger, plus 1; no sort is needed.
    rank = (logprobs > chosen).sum(1, keepdim=True) + 1  # [L, 1]
    top = logprobs.topk(k)
    # float64 装得下任何 token id，四样东西因此可以放在同一个张量里。
    # float64 holds any token id exactly, so that all four fit in the same tensor.
    return torch.cat([part.double() for part in (chosen, rank, top.values, top.indices)], dim=1)


def read_logprobs(row: list[float], token: int, number: int, decode: Callable[[int], str]) -> dict[int, Logprob]:
    """把 `gather_logprobs` 的一行变成给用户的字典：所选的 token 在前，然后是最可能的 `number` 个。

    Turn a row of `gather_logprobs` into the user's dict: the chosen token first, then the `number` likeliest ones.
    """
    (chosen, rank), top = row[:2], row[2:]
    k = len(top) // 2
    # 所选的往往就在最可能的几个里，字典里只留一份：要 5 个，得到 5 项或 6 项。
    # The chosen token is often among the likeliest and stands in the dict once: ask for 5, get 5 or 6.
    entries = [(token, chosen, int(rank))]
    entries += [(int(top[k + i]), top[i], i + 1) for i in range(min(number, k))]
    return {i: Logprob(logprob, rank, decode(i)) for i, logprob, rank in entries}
