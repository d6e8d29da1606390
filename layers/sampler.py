"""采样：从每行 logits 里选出下一个 token，全批一起算，没有对序列的 Python 循环。

随机性来自基于计数器的（counter-based）噪声：它只由（种子，第几个输出，token id）决定，不依赖任何随机数发生器的状态。
所以同一个请求无论和谁同批、是否被抢占重算，抽到的噪声都逐位相同。

Sampling: choose the next token of each row of logits, the whole batch at once, no Python loop over sequences.

Randomness is counter-based noise: a pure function of (seed, output index, token id), with no generator state. So a
request draws bit-for-bit the same noise whoever shares its batch, and whether or not it was preempted and recomputed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class SamplingInputs:
    """一步里要采样的那些行的参数，每行一个值；`engine/sampler.py` 填好。

    The parameters of the rows that sample in this step, one value a row; `engine/sampler.py` fills them.

    Attributes:
        temperatures: [S, 1] float32，贪心的行是 0；greedy rows hold 0
        top_ps, min_ps: [S, 1] float32
        top_ks: [S, 1] int64，不限的是词表大小；off is the vocabulary's size
        seeds: [S] int64
        output_indices: [S] int64，在此之前请求已输出几个 token；how many tokens the request has put out before this one
        any_filter: 有行用到 top_k 或 top_p，需要排序；some row uses top_k or top_p, which need a sort
        any_min_p: 有行用到 min_p；some row uses min_p
    """

    # 列向量 [S, 1] 能与 [S, vocab_size] 逐行运算；若写成 [S]，S = 1 时碰巧能用，多行时就会报错或算错。
    # Columns [S, 1] act row by row on [S, vocab_size]; as [S], S = 1 works by luck, more rows fail or mix up.
    temperatures: Tensor  # [S, 1] float32
    top_ps: Tensor  # [S, 1] float32
    min_ps: Tensor  # [S, 1] float32
    top_ks: Tensor  # [S, 1] int64
    # 种子和序号代替了随机数发生器：被抢占的请求重算到序号 7 的输出时，取到的仍是那一份噪声。
    # Seed and index stand in for a generator: a preempted request that comes to output 7 again draws the same noise.
    seeds: Tensor  # [S] int64
    output_indices: Tensor  # [S] int64
    # 这两个布尔值在 CPU 上由参数算出；若在采样时对 GPU 张量做 `any`，每一步都要停下来等 GPU。
    # Both flags are computed on the CPU from the parameters;
    # `any` on a GPU tensor would wait for the GPU in every step.
    any_filter: bool
    any_min_p: bool


def apply_penalties(logits: Tensor, counts: Tensor, presence: Tensor, frequency: Tensor, repetition: Tensor) -> Tensor:
    """对每行用它自己的三种惩罚。

    Apply to each row its own three penalties.
    Source: repetition is from Keskar et al. 2019, "CTRL"; the other two are those of the OpenAI API.

    Args:
        logits: [P, vocab_size] float32
        counts: [2, P, vocab_size]，各 token 在不在提示词里（0），输出里几次（1）；
            in the prompt or not (0), how often in the output (1)
        presence, frequency, repetition: [P, 1] float32

    Returns:
        [P, vocab_size] float32
    """
    in_prompt, in_output = counts
    # 重复惩罚连提示词也算；除正数、乘负数，两种都是往下压。若一律用除法，负分反而会变大。
    # Repetition counts the prompt as well; positive scores are divided and negative ones multiplied, and both go down.
    # If all were divided, a negative score would go up.
    #     repetition 2:   3.0 -> 1.5     -3.0 -> -6.0
    factor = torch.where((in_prompt > 0) | (in_output > 0), repetition, 1.0)  # [P, vocab_size]
    logits = torch.where(logits > 0, logits / factor, logits * factor)  # [P, vocab_size]
    # 这两种只数输出：提示词里写过 10 遍的专有名词，回答里照样可以说。
    # These two count the output only: a name that the prompt holds 10 times may still be said in the answer.
    return logits - frequency * in_output - presence * (in_output > 0)  # [P, vocab_size]


def _signed(value: int) -> int:
    """把无符号 64 位常数写成 torch 的 int64 能装下的补码。

    An unsigned 64-bit constant as the two's complement that torch's int64 can hold.

        _signed(0xFFFFFFFFFFFFFFFF) -> -1     _signed(5) -> 5
    """
    # 位不变，只换解释：64 位全部置位的无符号数，作为 int64 就是 -1。
    # The bits stay, their meaning changes: the unsigned number of 64 set bits is -1 as an int64.
    return value - (1 << 64) if value >= 1 << 63 else value


# 2^64 除以黄金比例，取奇数：步长为奇数时，要走遍 2^64 个值才会重复，两个输出序号的计数不会相同。
# 2^64 over the golden ratio, made odd: with an odd step nothing repeats before all 2^64 values,
# so output indices never share a count.
_GOLDEN = _signed(0x9E3779B97F4A7C15)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """逻辑右移：torch 对 int64 只有算术右移，高位补的是符号，要抹掉。

    A logical shift: torch shifts int64 arithmetically and copies the sign down, so mask it off.
    """
    # 例：-1 的 64 位全部置位，右移 63 位应得 1；torch 的结果仍是 -1，与掩码 `(1 << 1) - 1` 相与之后才是 1。
    # Example: -1 has all 64 bits set, and shifted by 63 should be 1; torch's -1 is 1 after the mask `(1 << 1) - 1`.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix64(x: Tensor) -> Tensor:
    """splitmix64 的终结混合函数（finalizer）：输入翻转 1 位，输出平均翻转一半的位。
    整数乘法溢出时自然回绕，正是我们要的。

    The finaliser of splitmix64: flip one input bit and half the output bits change on average. Integer products wrap
    around on overflow, as wanted. Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    # 与哈希表打散 key 是一回事：相邻的输入 0、1、2 散到整个值域。每一步都可逆，所以不同的输入不会相撞。
    # What a hash table does to its keys: neighbours 0, 1, 2 scatter over the whole range. Each step is invertible, so
    # different inputs never collide.
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _mix32(x: Tensor) -> Tensor:
    """32 位的混合，在 int32 里算：乘积回绕，正好只留低 32 位；算术右移补上的符号要抹掉。

    A mix of 32 bits in int32: products wrap around, which keeps just the low 32 bits, and the sign that an arithmetic
    shift copies down is masked off.
    Source: the constants are Chris Wellons' "lowbias32".
    """
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - (1 << 32))
    return x ^ (x >> 16 & 0xFFFF)


def _uniform(bits: Tensor) -> Tensor:
    """把 int32 的 32 位当作无符号数，均匀地映到 (0, 1) 之间的 float64；加 0.5 是为了两端都取不到，取对数时不会遇到 0。

    Take the 32 bits of an int32 as an unsigned number, and map it evenly to a float64 in (0, 1); the 0.5 keeps both
    ends out, so that no logarithm meets 0.
    """
    # 翻转最高位再加 2 的 31 次方，-1 就成了 4294967295。
    # With the top bit flipped and 2 to the power 31 added, -1 becomes 4294967295.
    return ((bits ^ -(1 << 31)).double() + (2.0**31 + 0.5)) * 2.0**-32


def gumbel_noise(seeds: Tensor, output_indices: Tensor, vocab_size: int) -> Tensor:
    """每行每个 token 一个标准 Gumbel 噪声。

    Gumbel 技巧：argmax(logits + 噪声) 恰好按 softmax(logits) 的概率抽样，不必真的做一次累积求和。
    例：logits [2, 1, 0] 的 softmax 是 [0.665, 0.245, 0.090]；重复多次，选中的比例正是这 3 个数。

    One standard Gumbel noise for each row and token.
    The Gumbel trick: argmax(logits + noise) is a draw from softmax(logits), with no cumulative sum.
    The softmax of logits [2, 1, 0] is [0.665, 0.245, 0.090]; over many draws the 3 tokens win in just these shares.
    Source: Gumbel 1954; Maddison et al. 2014, "A* sampling".

    Args:
        seeds, output_indices: [S] int64

    Returns:
        [S, vocab_size] float32
    """
    token_ids = torch.arange(vocab_size, dtype=torch.int32, device=seeds.device)  # [vocab_size]
    # 两级计数器：先由（种子，序号）混出这一行的 64 位密钥，再拿它的高低两半去打散每个 token id。
    # Two counters: (seed, index) mix into a key of 64 bits for the row, whose halves then scatter each token id.
    key = _mix64(_mix64(seeds + _GOLDEN) + output_indices * _GOLDEN)[:, None]  # [S, 1]
    # 转成 int32 就是只留低 32 位，下面那些 [S, vocab_size] 的张量因此省一半内存。
    # To int32 is to keep the low 32 bits, which halves the memory of the tensors of [S, vocab_size] below.
    low, high = key.to(torch.int32), (key >> 32).to(torch.int32)  # [S, 1]
    # 逐 token 的部分用 32 位：词表超过 100000 个 token，GPU 上 64 位乘法要拆成好几条指令。
    # Each token's part takes 32 bits: over 100000 tokens, and a 64-bit product is several instructions on a GPU.
    bits = _mix32(_mix32(token_ids + low) ^ high)  # [S, vocab_size] int32
    uniform = _uniform(bits)  # [S, vocab_size] float64
    # 大噪声来自很小的 `uniform`：写成 log1p(-u) 而不是 log(1 - u)，小数才不会被 1 淹没。
    # Large noise comes from a small `uniform`: log1p(-u), not log(1 - u), where the 1 would drown it.
    # 用 float64 取对数再转回：float32 的 SIMD 循环处理余下的元素时，结果可能差 1 ulp，噪声会随批大小变化。
    # Logarithms in float64, then cast: the tail of a float32 SIMD loop may be 1 ulp off, by the batch size.
    # 噪声总在 -3.14 与 22.88 之间：`uniform` 最小是 2 的 -33 次方，最大是 1 减去它。
    # Noise stays between -3.14 and 22.88: `uniform` is at least 2 to the power -33, and at most 1 minus that.
    return -torch.log(-torch.log1p(-uniform)).float()  # [S, vocab_size]


def sample(logits: Tensor, inputs: SamplingInputs | None) -> Tensor:
    """按每行的参数选出 token。

    顺序：温度，min_p，top_k，top_p（在剩下的里重新归一化）。

    Choose a token for each row by its own parameters.
    Order: temperature, min_p, top_k, then top_p on what is left, renormalised.

    Args:
        logits: [S, vocab_size]
        inputs: None 表示每行都是贪心；None means that every row is greedy

    Returns:
        [S] int64，选中的 token；最高分是 NaN 或无穷大就是 -1；the chosen tokens; -1 if the top score is NaN or infinite
    """
    greedy = logits.argmax(dim=-1)  # [S]
    # `argmax` 把 NaN 当作最大，所以看一眼每行选中的那个分数，就知道这一行还能不能用。
    # `argmax` takes NaN for the largest, so one look at the score it chose tells whether a row can be used at all.
    sound = logits.gather(-1, greedy.unsqueeze(-1)).squeeze(-1).abs() < torch.inf  # [S]
    if inputs is None:
        return torch.where(sound, greedy, -1)  # [S]
    logits = logits.float()  # [S, vocab_size]
    # 贪心行也跟着算，温度先用 1 代替以免除以 0，最后再换回 argmax 的结果。
    # Greedy rows go along, with 1 for a temperature so nothing divides by 0; argmax replaces them at the end.
    is_greedy = inputs.temperatures == 0  # [S, 1]
    # 温度改变的是分差：小于 1 时拉大，大于 1 时缩小。
    # Temperature changes the gaps: below 1 they widen, above 1 they shrink.
    #     logits [2, 1]     T = 0.5 -> [4, 2]   -> softmax [0.881, 0.119]
    #                       T = 1   -> [2, 1]   -> softmax [0.731, 0.269]
    #                       T = 2   -> [1, 0.5] -> softmax [0.622, 0.378]
    scores = logits / torch.where(is_greedy, 1.0, inputs.temperatures)  # [S, vocab_size]
    if inputs.any_min_p:
        # 概率低于“最大概率 * min_p”的去掉；在对数上就是低于“最大分数 + log(min_p)”，不必真算 softmax。
        # Drop what is below the top probability times min_p; in logs: below the top score plus log(min_p).
        # 没开 min_p 的行，`min_ps` 是 0，log(0) = -inf，什么都不会去掉，不必另外分支。
        # Rows without min_p hold 0 in `min_ps`, log(0) = -inf, and nothing is dropped: no branch is needed.
        #     scores [2, 1, -1]   softmax [0.705, 0.259, 0.035]   min_p 0.2 * 0.705 = 0.141
        #     floor = 2 + ln 0.2 = 0.39                           -> [2, 1, -inf]
        floor = scores.amax(dim=-1, keepdim=True) + inputs.min_ps.log()  # [S, 1]
        scores = scores.masked_fill(scores < floor, float("-inf"))  # [S, vocab_size]
    # 噪声按 token id 生成，先于排序：同一个请求换了 top_p，每个 token 的噪声也不变。
    # Noise belongs to token ids and comes before the sort: with another top_p each token's noise is still the same.
    noise = gumbel_noise(inputs.seeds, inputs.output_indices, logits.shape[-1])  # [S, vocab_size]
    if not inputs.any_filter:
        sampled = (scores + noise).argmax(dim=-1)  # [S]
    else:
        # 排序后，top_k 就是名次小于 k，top_p 就是“排在我前面的概率和”小于 p；稳定排序让并列时 id 小的在前。
        # Sorted, top_k is rank < k and top_p is "the probability ahead of me" < p; stable: ties go to the lower id.
        scores, order = scores.sort(dim=-1, descending=True, stable=True)  # [S, vocab_size]
        ranks = torch.arange(scores.shape[-1], device=scores.device)  # [vocab_size]
        scores = scores.masked_fill(ranks >= inputs.top_ks, float("-inf"))  # [S, vocab_size]
        # top_k 之后重新做 softmax，剩下的概率和又是 1：top_p 的门槛是对剩下的 token 算的。
        # softmax after top_k makes what is left sum to 1 again: top_p's threshold applies to the tokens left.
        #     probabilities  [0.50, 0.30, 0.15, 0.05]
        #     ahead          [0.00, 0.50, 0.80, 0.95]     top_p = 0.7 -> ranks 0, 1
        probabilities = scores.softmax(dim=-1)  # [S, vocab_size]
        # 常见的错误是拿累加和（0.50、0.80）去与 p 比：p = 0.7 时会丢掉越过 p 的那个 token，p = 0.4 时一个不剩。
        # A common bug compares the running sum (0.50, 0.80): p = 0.7 loses the token that crosses it, p = 0.4 all.
        ahead = probabilities.cumsum(dim=-1) - probabilities  # [S, vocab_size]
        # 名次 0 永远保留：它前面的概率和是 0，而 p 大于 0；p = 1 要显式放行，累加的舍入误差可能略超过 1。
        # Rank 0 always stays, nothing is ahead of it; p = 1 passes all, as rounding may push the sum past 1.
        # p 略微降低，“正好等于 p”才不由舍入误差决定：10 个等概率的 token，p = 0.3 总是留 3 个。
        # p is lowered a little, or rounding would decide what is just p: 10 equal tokens, p = 0.3, and 3 always stay.
        border = inputs.top_ps * (1 - 1e-5)  # [S, 1]
        scores = scores.masked_fill((ahead >= border) & (inputs.top_ps < 1.0), float("-inf"))
        # 分数已按名次排好，噪声也要换到同样的次序；选出名次后，再经 `order` 换回 token id。
        # Scores are in rank order, so noise must be put in the same order;
        # the chosen rank then becomes a token id by `order`.
        #     order = [3, 0, 1, 2]    best rank 1 -> token id 0
        best = (scores + noise.gather(-1, order)).argmax(dim=-1, keepdim=True)  # [S, 1]
        sampled = order.gather(-1, best).squeeze(-1)  # [S]
    # 两种结果都已算好，逐行挑选即可：没有按行的 `if`，贪心与采样的请求才能混在一批里。
    # Both results exist, so this only picks row by row:
    # with no `if` per row, greedy and sampled requests share a batch.
    return torch.where(sound, torch.where(is_greedy.squeeze(-1), greedy, sampled), -1)  # [S]
