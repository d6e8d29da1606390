"""采样：从每行 logits 里选出下一个 token，全批一起算，没有对序列的 Python 循环。

随机性来自“计数器式”噪声：它只由（种子，第几个输出，token id）决定，不依赖任何随机数发生器的状态。
所以同一个请求无论和谁同批、是否被抢占重算，抽到的噪声都逐位相同。

Sampling: choose the next token of each row of logits, the whole batch at once, no Python loop over sequences.

Randomness is counter-based noise: a pure function of (seed, output index, token id), with no generator state. So a
request draws bit-for-bit the same noise whoever shares its batch, and whether or not it was preempted and recomputed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# 低于这个温度就当作贪心：除以它会让 float32 溢出。
# Below this temperature sampling is greedy: dividing by it would overflow float32.
GREEDY_TEMPERATURE = 1e-5


@dataclass(slots=True)
class SamplingInputs:
    """一步里要采样的那些行的参数，每行一个值；`engine/batch.py` 填好。

    The parameters of the rows that sample in this step, one value a row; `engine/batch.py` fills them.

    Attributes:
        temperatures: [S, 1] float32; greedy rows hold 0
        top_ps, min_ps: [S, 1] float32
        top_ks: [S, 1] int64; off is the vocabulary's size
        seeds: [S] int64
        output_indices: how many tokens the request has put out before this one, [S] int64
        any_filter: some row uses top_k or top_p, which need a sort
        any_min_p: some row uses min_p
    """

    temperatures: Tensor
    top_ps: Tensor
    min_ps: Tensor
    top_ks: Tensor
    seeds: Tensor
    output_indices: Tensor
    any_filter: bool
    any_min_p: bool


def _signed(value: int) -> int:
    """把无符号 64 位常数写成 torch 的 int64 能装下的补码。

    An unsigned 64-bit constant as the two's complement that torch's int64 can hold.
    """
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """逻辑右移：torch 对 int64 只有算术右移，高位补的是符号，要抹掉。

    A logical shift: torch shifts int64 arithmetically and copies the sign down, so mask it off.
    """
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(x: Tensor) -> Tensor:
    """splitmix64 的收尾混合：输入变 1 位，输出平均变一半的位。整数乘法溢出时自然回绕，正是我们要的。

    The finaliser of splitmix64: flip one input bit and half the output bits change on average. Integer products wrap
    around on overflow, as wanted. Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def gumbel_noise(seeds: Tensor, output_indices: Tensor, vocab_size: int) -> Tensor:
    """每行每个 token 一个标准 Gumbel 噪声。

    Gumbel 技巧：argmax(logits + 噪声) 恰好按 softmax(logits) 的概率抽样，不必真的做一次累积求和。

    One standard Gumbel noise for each row and token.
    The Gumbel trick: argmax(logits + noise) is a draw from softmax(logits), with no cumulative sum.
    Source: Gumbel 1954; Maddison et al. 2014, "A* sampling".

    Args:
        seeds, output_indices: [S] int64

    Returns:
        [S, vocab_size] float32
    """
    token_ids = torch.arange(vocab_size, device=seeds.device)
    # 两级计数器：先由（种子，序号）得到这一行的起点，再按 token id 一步一个黄金比例常数地走。
    # Two counters: (seed, index) gives the row's start, then one golden-ratio step per token id.
    row = _mix64(_mix64(seeds + _GOLDEN) + output_indices * _GOLDEN)  # [S]
    bits = _mix64(row[:, None] + token_ids * _GOLDEN)  # [S, vocab_size]
    # 取高 52 位，加 0.5，落在 (0, 1) 的开区间里，两次取对数都不会遇到 0。
    # Take the top 52 bits plus 0.5: strictly inside (0, 1), so neither logarithm meets 0.
    uniform = (_shift_right(bits, 12).double() + 0.5) * 2.0**-52
    # 用 float64 取对数再转回：float32 的向量化尾部可能差 1 个末位，会让噪声随批大小变化。
    # Logarithms in float64, then cast: a float32 vector loop's tail may differ by 1 last bit with the batch size.
    return -torch.log(-torch.log(uniform)).float()


def sample(logits: Tensor, inputs: SamplingInputs | None) -> Tensor:
    """按每行的参数选出 token。

    顺序：温度，min_p，top_k，top_p（在剩下的里重新归一化）。

    Choose a token for each row by its own parameters.
    Order: temperature, min_p, top_k, then top_p on what is left, renormalised.

    Args:
        logits: [S, vocab_size]
        inputs: None means that every row is greedy

    Returns:
        token ids [S] int64
    """
    greedy = logits.argmax(dim=-1)
    if inputs is None:
        return greedy
    logits = logits.float()
    # 贪心行也跟着算，温度先用 1 代替以免除以 0，最后再换回 argmax 的结果。
    # Greedy rows go along, with 1 for a temperature so nothing divides by 0; argmax replaces them at the end.
    is_greedy = inputs.temperatures < GREEDY_TEMPERATURE  # [S, 1]
    scores = logits / torch.where(is_greedy, 1.0, inputs.temperatures)
    if inputs.any_min_p:
        # 概率低于“最大概率 * min_p”的去掉；在对数上就是低于“最大分数 + log(min_p)”，不必真算 softmax。
        # Drop what is below the top probability times min_p; in logs: below the top score plus log(min_p).
        floor = scores.amax(dim=-1, keepdim=True) + inputs.min_ps.log()
        scores = scores.masked_fill(scores < floor, float("-inf"))
    noise = gumbel_noise(inputs.seeds, inputs.output_indices, logits.shape[-1])
    if not inputs.any_filter:
        sampled = (scores + noise).argmax(dim=-1)
    else:
        # 排序后，top_k 就是名次小于 k，top_p 就是“排在我前面的概率和”小于 p；稳定排序让并列时 id 小的在前。
        # Sorted, top_k is rank < k and top_p is "the probability ahead of me" < p; stable: ties go to the lower id.
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(scores.shape[-1], device=scores.device)
        scores = scores.masked_fill(ranks >= inputs.top_ks, float("-inf"))
        probabilities = scores.softmax(dim=-1)
        ahead = probabilities.cumsum(dim=-1) - probabilities
        # 名次 0 永远保留：它前面的概率和是 0，而 p 大于 0；p = 1 要显式放行，累加的舍入误差可能略超过 1。
        # Rank 0 always stays, nothing is ahead of it; p = 1 passes all, as rounding may push the sum past 1.
        scores = scores.masked_fill((ahead >= inputs.top_ps) & (inputs.top_ps < 1.0), float("-inf"))
        best = (scores + noise.gather(-1, order)).argmax(dim=-1, keepdim=True)
        sampled = order.gather(-1, best).squeeze(-1)
    return torch.where(is_greedy.squeeze(-1), greedy, sampled)
