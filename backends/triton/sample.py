"""从 logits 到 token：禁用、惩罚、过滤、抽样、对数概率，都在两个核函数里，不排序，也不留 [S, vocab] 的中间结果。

等价的 PyTorch 在 `layers/sampler.py` 和 `engine/sampler.py`。词表有十几万个 token，排一次序要几毫秒，所以倒过来做：
先不管过滤，抽一个；再数它排第几、前面的概率有多少，就知道它留没留下。没留下，排在它后面的也不会留下，只在它前面的里再抽。
噪声是固定的，所以结果与“先过滤、再抽”完全相同。

    分数 [4, 3, 2, 1]，top_k = 2，噪声加上之后是 [4.1, 3.2, 5.0, 1.3]：
    先抽到 token 2，它前面有 2 个，不留；在 token 0、1 里再抽：token 0

From logits to tokens: bans, penalties, filters, the draw and log-probabilities in two kernels, without a sort and
without anything of [S, vocab] in between.

The plain PyTorch is in `layers/sampler.py` and `engine/sampler.py`. With over 100000 tokens a sort takes milliseconds,
so it is done the other way round: draw first, without a filter; then count how many tokens and how much probability are
ahead of the drawn one, which tells whether it is kept. If not, nothing behind it is kept either: draw again among those
ahead of it. The noise is fixed, so the result is just that of filtering first, as in the example above.
Source: the idea is that of rejection sampling in FlashInfer (Ye et al. 2025), here with fixed noise.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.kernels import SAMPLING_COLUMNS
from backends.triton.launch import await_inputs, early, nearly_done

# 参数的名字，按 `columns` 里列的次序。
# The names of the parameters, in the order of the `columns`.
NAMES = tl.constexpr(SAMPLING_COLUMNS)
# 词表分成段，一段 128 个 token；记下每段的最高分，要找最高的几个时，大多数段就不必再看。
# The vocabulary in segments of 128 tokens: with each one's highest score noted, a search for the highest few need not
# look at most of them again.
SEGMENT = tl.constexpr(128)
# 比所有键都小。
# Smaller than any rank's key.
LAST = tl.constexpr(-0x7FFFFFFFFFFFFFFF)


@triton.jit
def mix64(x):
    """与 `layers/sampler.py` 的 `_mix64` 逐位相同，只是用无符号数，右移天然是逻辑右移。

    Bit for bit `_mix64` of `layers/sampler.py`, in unsigned numbers, whose right shift is logical anyway.
    """
    # Triton 的整数乘法溢出时回绕，与 C 的无符号数相同，所以不必像 PyTorch 版那样另做掩码。
    # Integer products in Triton wrap around as C's unsigned ones do, so no extra masks are needed as in the PyTorch
    # version.
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def mix32(x):
    """与 `layers/sampler.py` 的 `_mix32` 逐位相同。

    Bit for bit `_mix32` of `layers/sampler.py`.
    """
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def log2(x, FAST: tl.constexpr):
    """以 2 为底的对数；GPU 上用一条近似指令，误差不到百万分之一。

    The logarithm to base 2; on a GPU a single approximate instruction, with an error below one in a million.
    """
    if FAST:
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return tl.log2(x)


@triton.constexpr_function
def column_of(name, names):
    """编译时就算好：这个参数在第几列。

    Settled when compiling: the column of this parameter.
    """
    return names.index(name)


@triton.jit
def integer(line, NAME: tl.constexpr):
    """这一行的一个整数参数。`line` 是这一行的全部输入，见 `score_kernel`。

    One integer parameter of this row. `line` is all inputs of the row, see `score_kernel`.
    """
    row, _, columns_ptr, stride, _, _, _ = line
    return tl.load(columns_ptr + column_of(NAME, NAMES) * stride + row)


@triton.jit
def number(line, NAME: tl.constexpr):
    """这一行的一个浮点参数：列里放的是 float64 的 64 位。

    One float parameter of this row: the column holds the 64 bits of a float64.
    """
    return integer(line, NAME).to(tl.float64, bitcast=True).to(tl.float32)


@triton.jit
def raw_scores(line, token, inside, VOCAB: tl.constexpr):
    """模型给这些 token 的分数；越界的是 -inf，取最大值时一定选不到。

    The model's scores of these tokens; past the end -inf, which never wins a maximum.
    """
    row, logits_ptr, _, _, _, _, _ = line
    return tl.load(logits_ptr + row * VOCAB + token, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def edited(raw, line, token, inside, VOCAB: tl.constexpr):
    """禁用，再惩罚；朴素实现是 `Sampler._edit` 和 `apply_penalties`。

    Ban, then penalise; the twin is `Sampler._edit` and `apply_penalties`.
    """
    _, _, _, _, counts_ptr, plane, masks_ptr = line
    place = integer(line, "places")
    score = raw
    if place >= 0:
        if integer(line, "masked") != 0:
            # 一个 token 一位，32 位一个字；位是 0 就禁用。
            # A bit a token, 32 to a word; a 0 bans.
            word = tl.load(masks_ptr + place * ((VOCAB + 31) // 32) + token // 32, mask=inside, other=0)
            score = tl.where(((word >> (token % 32)) & 1) == 1, score, float("-inf"))
        in_prompt = tl.load(counts_ptr + place * VOCAB + token, mask=inside, other=0)
        in_output = tl.load(counts_ptr + plane + place * VOCAB + token, mask=inside, other=0)
        factor = tl.where((in_prompt > 0) | (in_output > 0), number(line, "repetition"), 1.0)
        # `div_rn` 舍入到最近，与 PyTorch 逐位相同；Triton 的 `/` 可以差一两个末位，并列就不再并列。
        # `div_rn` rounds to the nearest, bit for bit as PyTorch; Triton's `/` may be off by a last bit or two, and what
        # was equal no longer is.
        score = tl.where(score > 0, tl.math.div_rn(score, factor), score * factor)
        score -= number(line, "frequency") * in_output.to(tl.float32)
        score -= tl.where(in_output > 0, number(line, "presence"), 0.0)
    return score


@triton.jit
def noisy_scores(score, line, token, FAST: tl.constexpr):
    """除以温度，加 Gumbel 噪声；整个比较以 2 为底，谁最大不会变。

    Over the temperature, plus Gumbel noise; the whole comparison is in base 2, and the largest stays the largest.
    """
    golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    seed, index = integer(line, "seeds").to(tl.uint64), integer(line, "output_indices").to(tl.uint64)
    key = mix64(mix64(seed + golden) + index * golden)
    # 密钥是标量，一个程序只算 1 次；`bits` 才对每个 token 各算 1 次，用更便宜的 32 位运算。
    # The key is a scalar, computed 1 time in a program; `bits` is computed 1 time for each token, in cheaper 32-bit
    # arithmetic.
    low, high = (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32)
    bits = mix32(mix32(token.to(tl.uint32) + low) ^ high)
    # 除以 2 ** 32；float32 会把最大的几个舍入成 1，那样 log(1 - u) 就是 -inf，所以压到 1 以下。
    # Over 2 ** 32; float32 rounds the largest few to 1, where log(1 - u) is -inf, so keep them below 1.
    u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    # -log(1 - u)：u 很小时直接相减会丢掉有效数字，改用级数的前 4 项，误差小于 float32 的末位。
    # -log(1 - u): for a small u the subtraction loses digits; 4 terms of the series err less than float32's last bit.
    series = u * (1.0 + u * (0.5 + u * (0.3333333433 + u * 0.25)))
    # 硬件只有以 2 为底的对数，所以分数也除以 log(2)。
    # The hardware has logarithms to base 2 only, so scores are over log(2), too.
    exponential = tl.where(u < 0.01, series * 1.4426950408889634, -log2(1.0 - u, FAST))
    # -log(指数分布的随机数) 就是 Gumbel 噪声；加上它再取最大值，等于按 softmax 的概率抽样。
    # -log of an exponential random number is Gumbel noise; the maximum after adding it is a draw by softmax's
    # probabilities.
    return score * (1.4426950408889634 / number(line, "temperatures")) - log2(exponential, FAST)


@triton.jit
def has_filter(line):
    """这一行用不用 top_k、top_p、min_p；贪心的行不用。

    Whether this row uses top_k, top_p or min_p; a greedy one does not.
    """
    some = (integer(line, "top_ks") > 0) | (number(line, "top_ps") < 1.0) | (number(line, "min_ps") > 0.0)
    return some & (number(line, "temperatures") > 0.0)


# 每一步都可能不同的，不为它们分别编译：第一次遇到时要等编译器。
# No variants for what may differ in every step: whoever meets one first would wait for the compiler.
@triton.jit(do_not_specialize=["columns_ptr", "stride"])
def score_kernel(
    logits_ptr, columns_ptr, counts_ptr, masks_ptr, best_ptr, token_ptr, tops_ptr, stride, plane, VOCAB: tl.constexpr,
    BLOCK: tl.constexpr, FAST: tl.constexpr, EARLY: tl.constexpr,
):
    """一个程序：一行里的 BLOCK 个 token，留下其中最好的一个，和每段的最高分。

    One program: BLOCK tokens of one row; it keeps the best of them, and the highest score of each segment.
    """
    await_inputs(EARLY)
    # 网格有两维：第 0 维是行，第 1 维是词表的第几块。一行交给许多程序，行数少时 GPU 才忙得起来。
    # The grid has two dimensions: dimension 0 is the row, dimension 1 the part of the vocabulary. A row goes to many
    # programs, so that a few rows keep the GPU busy.
    row = tl.program_id(0).to(tl.int64)
    tile, tiles = tl.program_id(1), tl.num_programs(1)
    line = (row, logits_ptr, columns_ptr, stride, counts_ptr, plane, masks_ptr)
    token = tile * BLOCK + tl.arange(0, BLOCK)
    inside = token < VOCAB
    raw = raw_scores(line, token, inside, VOCAB)
    score = edited(raw, line, token, inside, VOCAB)
    noisy = score
    # 一个程序只管一行，温度对它是一个数，整个程序一起走或一起跳过这个分支；贪心行因此省下了噪声的计算。
    # A program has one row, whose temperature is a single number, so all of it takes or skips this branch, and greedy
    # rows save the work of the noise.
    if number(line, "temperatures") > 0.0:
        noisy = noisy_scores(score, line, token, FAST)
    # 分数里有 NaN 或 +inf，这一行就坏了：记成 +inf，必被选中，`choose_kernel` 便看得到；好的分数不许到无穷大。
    # A NaN or +inf among the scores spoils the row: as +inf it is sure to win, where `choose_kernel` sees it; sound
    # scores are kept below infinity.
    noisy = tl.where((score != score) | (score == float("inf")), float("inf"), tl.minimum(noisy, 3e38))
    # 程序之间不能互相等待，所以每个程序只写下自己这一块的最大值；全局最大值由 `choose_kernel` 选出。
    # Programs cannot wait for each other, so each writes down the best of its own part; the overall best is chosen by
    # `choose_kernel`.
    best, where = tl.max(noisy, 0, return_indices=True)
    nearly_done(EARLY)
    tl.store(best_ptr + row * tiles + tile, best)
    tl.store(token_ptr + row * tiles + tile, tile * BLOCK + where)
    if has_filter(line) | (integer(line, "reports") > 0):
        # 一块 2048 个 token 是 16 段；先是改过的分数，再是原始的，报告对数概率要用。
        # A part of 2048 tokens has 16 segments; first of the edited scores, then of the raw ones, for
        # log-probabilities.
        PER_TILE: tl.constexpr = BLOCK // SEGMENT
        top = tops_ptr + (row * 2 * tiles + tile) * PER_TILE + tl.arange(0, PER_TILE)
        tl.store(top, tl.max(tl.reshape(score, [PER_TILE, SEGMENT]), 1))
        tl.store(top + tiles * PER_TILE, tl.max(tl.reshape(raw, [PER_TILE, SEGMENT]), 1))


# ---- 一行的名次 ----
# ---- the ranks of a row ----


@triton.jit
def ordered(x):
    """float32 -> int32，大小次序不变；-0.0 与 0.0 相同。反过来用 `restored`。

    float32 -> int32 in the same order, -0.0 as 0.0; `restored` is the way back.
    """
    # 正的浮点数，位模式当整数看，次序本来就对；负的正好反过来，除符号外的位取反就对了。
    # The bits of positive floats, taken as integers, are in the right order already; negative ones are in the reverse,
    # and flipping all but the sign puts them right.
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def restored(bits):
    """`ordered` 的逆。

    The inverse of `ordered`.
    """
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def rank_key(score, token):
    """名次的键：分数高的大，分数相同时 id 小的大，与稳定排序的次序相同；任何两个 token 的键都不同。

    The key of a rank: larger for higher scores and among equals for the lower id, the order of a stable sort; no two
    tokens share one.
    """
    return (ordered(score).to(tl.int64) << 32) + (0x7FFFFFFF - token)


@triton.jit
def token_of(key):
    """`rank_key` 里的 token。

    The token in a `rank_key`.
    """
    return 0x7FFFFFFF - (key & 0x7FFFFFFF)


@triton.jit
def list_segments(tops, highest, floor, k, list_ptr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr):
    """列出要看的段：最高分不低于 `floor`；若只要最高的 k 个 token，也不低于一个至少有 k 段到得了的数。

    为什么不会漏：有 k 段到得了，就有 k 个 token 到得了，前 k 名必在其中。例：k = 50，1187 段里只剩 50 到 62 段。

    List the segments to look at: their highest score is no lower than `floor` nor, where only the highest k tokens
    count, than a number that at least k segments reach.
    Why nothing is missed: where k segments reach it so do k tokens, and the first k ranks are among them. Example: with
    k = 50, 50 to 62 segments of 1187 are left.

    Returns:
        列了几段，低于多少的不必看；how many are listed, and the score below which nothing counts
    """
    i = tl.arange(0, WIDTH)
    if k < SEGMENTS:
        # 二分：找一个至少有 k 段到得了的数，越大越好；多出来的不到四分之一，就不值得再分。
        # Bisection for a number that at least k segments reach, the larger the better; with less than a quarter too
        # many, it does not pay to go on.
        keys = ordered(tops)
        low, high = tl.min(keys, 0).to(tl.int64), ordered(highest).to(tl.int64) + 1
        while low + 1 < high:
            middle = (low + high) >> 1
            reach = tl.sum((keys >= middle).to(tl.int32), 0)
            low = tl.where(reach >= k, middle, low)
            high = tl.where(reach < k, middle, tl.where(4 * reach <= 5 * k, low + 1, high))
        floor = tl.maximum(floor, restored(low.to(tl.int32)))
    listed = ((tops >= floor) & (i < SEGMENTS)).to(tl.int32)
    tl.store(list_ptr + tl.cumsum(listed, 0) - 1, i, mask=listed > 0)
    # 栅栏：别的线程接着要读这张表。
    # A barrier, as other threads are about to read the list.
    tl.debug_barrier()
    return tl.sum(listed, 0), floor


@triton.jit
def listed_scores(start, count, list_ptr, line, VOCAB: tl.constexpr, CHUNK: tl.constexpr, EDITED: tl.constexpr):
    """表里从 `start` 起的 CHUNK 段。

    CHUNK segments of the list, from `start` on.

    Returns:
        [CHUNK, SEGMENT] 分数，和名次的键；越界的键最小；scores and rank keys, the smallest past the end
    """
    i = start + tl.arange(0, CHUNK)
    segment = tl.load(list_ptr + i, mask=i < count, other=0)
    token = segment[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    inside = (i < count)[:, None] & (token < VOCAB)
    score = raw_scores(line, token, inside, VOCAB)
    if EDITED:
        score = edited(score, line, token, inside, VOCAB)
    return score, tl.where(inside, rank_key(score, token), LAST)


@triton.jit
def mass(cut, highest, count, list_ptr, line, VOCAB: tl.constexpr, CHUNK: tl.constexpr):
    """键不低于 `cut` 的 token 的概率之和，以最高分的概率为 1。

    The sum of probabilities of tokens whose key is `cut` or above, in units of the top one's.
    """
    total = tl.zeros([CHUNK, SEGMENT], tl.float32)
    scale = 1.4426950408889634 / number(line, "temperatures")
    for start in range(0, count, CHUNK):
        score, key = listed_scores(start, count, list_ptr, line, VOCAB, CHUNK, True)
        total += tl.where(key >= cut, tl.exp2((score - highest) * scale), 0.0)
    return tl.sum(total)


@triton.jit
def draw(cut, count, list_ptr, line, VOCAB: tl.constexpr, CHUNK: tl.constexpr, FAST: tl.constexpr):
    """在键不低于 `cut` 的 token 里抽一个，返回它的键。

    Draw among the tokens whose key is `cut` or above; the key of the drawn one.
    """
    best = tl.full([CHUNK, SEGMENT], float("-inf"), tl.float32)
    best_key = tl.full([CHUNK, SEGMENT], LAST, tl.int64)
    for start in range(0, count, CHUNK):
        score, key = listed_scores(start, count, list_ptr, line, VOCAB, CHUNK, True)
        noisy = noisy_scores(score, line, token_of(key), FAST)
        better = (key >= cut) & (noisy > best)
        best, best_key = tl.where(better, noisy, best), tl.where(better, key, best_key)
    return tl.max(tl.where(best == tl.max(best), best_key, LAST))


@triton.jit
def top_k_cut(k, floor, highest, count, list_ptr, line, VOCAB: tl.constexpr, CHUNK: tl.constexpr):
    """第 k 名的键；不低于 `floor` 的不到 k 个时，是一个全都不低于它的数。

    The key of rank k; where fewer than k reach `floor`, a number that they all reach.
    """
    # 二分：不低于 `low` 的至少有 k 个，不低于 `high` 的不到 k 个；正好 k 个时就不必再分。
    # Bisection: at least k are no lower than `low`, fewer than k no lower than `high`; exactly k end it early.
    low, high = ordered(floor).to(tl.int64) << 32, (ordered(highest).to(tl.int64) + 1) << 32
    middle = low
    while low + 1 < high:
        reach = tl.zeros([CHUNK, SEGMENT], tl.int32)
        for start in range(0, count, CHUNK):
            _score, key = listed_scores(start, count, list_ptr, line, VOCAB, CHUNK, True)
            reach += (key >= middle).to(tl.int32)
        total = tl.sum(reach)
        # 第一遍从 `low` 自己数起：不到 k 个，就全都留下。
        # The first pass counts from `low` itself: where fewer than k reach it, they all stay.
        done = (total == k) | ((total < k) & (middle == low))
        low = tl.where(total >= k, middle, low)
        high = tl.where(done, low + 1, tl.where(total < k, middle, high))
        # 两数之和可能溢出，所以先各除以 2。
        # The sum may overflow, so both are divided by 2 first.
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
    return low


@triton.jit
def masses(floor, highest, score, token, line, VOCAB: tl.constexpr, SPAN: tl.constexpr):
    """读一遍整行：不低于 `floor` 的 token 的概率之和，其中排在 `token`（分数是 `score`）前面的又有多少。

    One pass over the row: the sum of probabilities of tokens that reach `floor`, and how much of it is ahead of
    `token`, whose score is `score`.
    """
    whole, ahead = tl.zeros([SPAN], tl.float32), tl.zeros([SPAN], tl.float32)
    scale = 1.4426950408889634 / number(line, "temperatures")
    for start in range(0, VOCAB, SPAN):
        tokens = start + tl.arange(0, SPAN)
        inside = tokens < VOCAB
        scores = edited(raw_scores(line, tokens, inside, VOCAB), line, tokens, inside, VOCAB)
        probability = tl.exp2((scores - highest) * scale)
        whole += tl.where(scores >= floor, probability, 0.0)
        ahead += tl.where((scores > score) | ((scores == score) & (tokens < token)), probability, 0.0)
    return tl.sum(whole), tl.sum(ahead)


@triton.jit
def draw_filtered(
    token, top_ptr, list_ptr, line, VOCAB: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr,
    CHUNK: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """过滤之后抽到的 token；`token` 是不过滤时抽到的。

    The token drawn with the filters; `token` is the one drawn without.
    """
    k, top_p = integer(line, "top_ks"), number(line, "top_ps")
    # 门槛略微降低，与 `layers/sampler.py` 一样；但总大于 0：小到 float32 里成了 0，第一名也会被拒，永远抽不完。
    # The border is lowered a little, as in `layers/sampler.py`, yet stays above 0: one so small that it is 0 in float32
    # would refuse the first rank as well, and the draws would never end.
    border = tl.maximum(top_p, 1e-30) * (1 - 1e-5)
    k = tl.where((k <= 0) | (k > VOCAB), VOCAB, k)
    i = tl.arange(0, WIDTH)
    tops = tl.load(top_ptr + i, mask=i < SEGMENTS, other=float("-inf"))
    highest = tl.max(tops, 0)
    # min_p：不低于“最高分 + 温度 * log(min_p)”；`min_p` 为 0 时是 -inf，什么也不去掉。
    # min_p: no lower than "the highest score plus the temperature times log(min_p)"; a `min_p` of 0 makes that -inf,
    # and nothing is dropped.
    floor = highest + number(line, "temperatures") * tl.log(number(line, "min_ps"))
    score = edited(raw_scores(line, token, True, VOCAB), line, token, True, VOCAB)
    key = rank_key(score, token)
    # 没有 top_k 时，抽到的多半就留得下，读一遍就知道；留不下，也只要看不低于它的那些段。
    # Without top_k the drawn one is mostly kept, as one pass tells; if not, only segments that reach it are looked at.
    refused = True
    whole, ahead = 1.0, 0.0
    if (k == VOCAB) & (score >= floor):
        if top_p < 1.0:
            whole, ahead = masses(floor, highest, score, token, line, VOCAB, CHUNK * SEGMENT)
        refused = ahead >= border * whole
        floor = tl.where(refused, score, floor)
    if refused:
        count, floor = list_segments(tops, highest, floor, k, list_ptr, SEGMENTS, WIDTH)
        # 三个过滤都是“名次在前的留下”，合起来就是一个门槛：键不低于 `cut` 的留下。
        # All three filters keep the first ranks, so together they are one threshold: keys of `cut` and above are kept.
        cut = ordered(floor).to(tl.int64) << 32
        if k < VOCAB:
            cut = top_k_cut(k, floor, highest, count, list_ptr, line, VOCAB, CHUNK)
        if ahead > 0.0:
            cut = key + 1
        elif top_p < 1.0:
            whole = mass(cut, highest, count, list_ptr, line, VOCAB, CHUNK)
        while refused:
            if key < cut:
                key = draw(cut, count, list_ptr, line, VOCAB, CHUNK, FAST)
            refused = False
            if top_p < 1.0:
                # 前面的概率已经够了 top_p，就不留它，门槛移到它的前面：剩下的越来越少，总会停下，第一名前面什么也没有。
                # With top_p's worth of probability ahead it is not kept, and the threshold moves ahead of it: fewer
                # are left each time, and it ends, as nothing is ahead of the first.
                refused = mass(key + 1, highest, count, list_ptr, line, VOCAB, CHUNK) >= border * whole
                cut = tl.where(refused, key + 1, cut)
    return token_of(key).to(tl.int32)


@triton.jit
def report(
    token, top_ptr, list_ptr, report_ptr, line, VOCAB: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """写下对数概率：所选的和它的名次，再是最高的几个和它们的 id；朴素实现是 `gather_logprobs`。

    Write down log-probabilities: of the chosen token with its rank, then the highest with their ids; the twin is
    `gather_logprobs`.
    """
    wanted = tl.minimum(integer(line, "reports") - 1, VOCAB)
    i = tl.arange(0, WIDTH)
    tops = tl.load(top_ptr + i, mask=i < SEGMENTS, other=float("-inf"))
    highest = tl.max(tops, 0)
    lowest = tl.full([], float("-inf"), tl.float32)
    count, _ = list_segments(tops, highest, lowest, tl.maximum(wanted, 1), list_ptr, SEGMENTS, WIDTH)
    chosen = raw_scores(line, token, True, VOCAB)
    SPAN: tl.constexpr = CHUNK * SEGMENT
    total, ahead = tl.zeros([SPAN], tl.float32), tl.zeros([SPAN], tl.int32)
    for start in range(0, VOCAB, SPAN):
        tokens = start + tl.arange(0, SPAN)
        score = raw_scores(line, tokens, tokens < VOCAB, VOCAB)
        total += tl.exp2((score - highest) * 1.4426950408889634)
        ahead += (score > chosen).to(tl.int32)
    # 对数概率 = 分数 - log(Σ exp(分数))，减去最高分是防溢出。
    # A log-probability is the score less log(Σ exp(score)); taking off the highest prevents overflow.
    base = highest + tl.log(tl.sum(total))
    tl.store(report_ptr, (chosen - base).to(tl.float64))
    tl.store(report_ptr + 1, (tl.sum(ahead) + 1).to(tl.float64))
    # 一次取一个最高的，下一次只看比它低的：要的不多，不值得排序。
    # One highest at a time, and the next looks below it only: so few are wanted that a sort would not pay.
    last = (ordered(highest).to(tl.int64) + 1) << 32
    for place in range(wanted):
        found = tl.full([CHUNK, SEGMENT], LAST, tl.int64)
        for start in range(0, count, CHUNK):
            _score, key = listed_scores(start, count, list_ptr, line, VOCAB, CHUNK, False)
            found = tl.maximum(found, tl.where(key < last, key, LAST))
        last = tl.max(found)
        tl.store(report_ptr + 2 + 2 * place, (restored((last >> 32).to(tl.int32)) - base).to(tl.float64))
        tl.store(report_ptr + 3 + 2 * place, token_of(last).to(tl.float64))


@triton.jit(do_not_specialize=["columns_ptr", "out_ptr", "stride"])
def choose_kernel(
    logits_ptr, columns_ptr, counts_ptr, masks_ptr, best_ptr, token_ptr, tops_ptr, list_ptr, out_ptr, report_ptr,
    stride, plane, report_size, VOCAB: tl.constexpr, TILES: tl.constexpr, TILE_WIDTH: tl.constexpr,
    SEGMENTS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, FAST: tl.constexpr, EARLY: tl.constexpr,
):
    """一个程序：一行选出的 token；没有可用的分数就是 -1。

    One program: the token of a row; -1 if it has no sound score.
    """
    await_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    line = (row, logits_ptr, columns_ptr, stride, counts_ptr, plane, masks_ptr)
    i = tl.arange(0, TILE_WIDTH)
    best = tl.load(best_ptr + row * TILES + i, mask=i < TILES, other=float("-inf"))
    best, where = tl.max(best, 0, return_indices=True)
    # 最大值是 +inf，这一行里有 NaN 或 +inf；是 -inf，则全是 -inf。
    # If the best is +inf, the row holds NaN or +inf; if it is -inf, it holds nothing else.
    sound = tl.abs(best) < float("inf")
    token = tl.load(token_ptr + row * TILES + where, mask=sound, other=-1)
    top_ptr, list_ptr = tops_ptr + row * 2 * SEGMENTS, list_ptr + row * SEGMENTS
    if sound & has_filter(line):
        token = draw_filtered(token, top_ptr, list_ptr, line, VOCAB, SEGMENTS, WIDTH, CHUNK, FAST)
    if sound & (integer(line, "reports") > 0):
        report(token, top_ptr + SEGMENTS, list_ptr, report_ptr + row * report_size, line, VOCAB, SEGMENTS, WIDTH, CHUNK)
    nearly_done(EARLY)
    tl.store(out_ptr + row, token.to(tl.int64))
    # 马上计数：下一步的惩罚比主机先用到它。到 int16 的上限为止，回绕成负数就成了奖励。
    # Counted at once: the next step's penalties need it sooner than the host does. It stops at int16's limit, as a
    # count wrapped to negative would be a reward.
    place = integer(line, "places")
    if sound & (place >= 0):
        counted = counts_ptr + plane + place * VOCAB + token
        times = tl.load(counted).to(tl.int32)
        tl.store(counted, tl.minimum(times + 1, 32767).to(tl.int16))


def sample(
    logits: Tensor, columns: Tensor, counts: Tensor, masks: Tensor, max_logprobs: int, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """启动上面的两个核函数。

    Launch the two kernels above.

    Args:
        logits: [S, vocab]，内存连续；contiguous
        columns: [len(SAMPLING_COLUMNS), S] int64，每行内存连续；rows contiguous
        counts: [2, R, vocab] int16，选中的 token 会计数；what is chosen is counted
        masks: [R, ceil(vocab / 32)] int32，1 位一个 token，1 是允许；a bit a token, 1 allows
        max_logprobs: 最多报告最可能的几个；how many of the likeliest a row may report
        out: [S] int64，写到哪里；where to write

    Returns:
        [S] int64，选中的 token，分数坏了的是 -1；the chosen tokens, -1 where scores are not sound
        [S, 1 + max_logprobs, 2] float64，没有要求的不写；what nobody asked for is not written
    """
    rows, vocab = logits.shape
    device = logits.device
    # 例：词表 128256，每块 2048，每行 63 个程序，各写下 1 个分数和 1 个 token，随后只需比较这 63 个。
    # Example: a vocabulary of 128256 in parts of 2048 gives 63 programs a row, each writes 1 score and 1 token, and
    # only these 63 are compared afterwards.
    block, chunk = 2048, 32
    tiles = triton.cdiv(vocab, block)
    segments = tiles * block // SEGMENT.value
    best = torch.empty(rows, tiles, dtype=torch.float32, device=device)
    token = torch.empty(rows, tiles, dtype=torch.int32, device=device)
    tops = torch.empty(rows, 2, segments, dtype=torch.float32, device=device)
    listed = torch.empty(rows, segments, dtype=torch.int32, device=device)
    reports = torch.empty(rows, 1 + min(max_logprobs, vocab), 2, dtype=torch.float64, device=device)
    out = torch.empty(rows, dtype=torch.int64, device=device) if out is None else out
    if rows == 0:
        return out, reports
    # `enable_fp_fusion=False`：乘和加各舍入一次，与 PyTorch 逐位相同，并列的才还是并列。
    # `enable_fp_fusion=False` rounds after the product and after the sum, bit for bit as PyTorch, so that equal scores
    # stay equal.
    options = {"VOCAB": vocab, "FAST": logits.is_cuda, "enable_fp_fusion": False, **early(device, rows)}
    # 4 个 warp 是 128 个线程，2048 个 token 正好每个线程 16 个。H100 上量过，256 行：113 微秒，4096、8 个 warp 是 125。
    # 4 warps are 128 threads, so that 2048 tokens are just 16 a thread. Measured on an H100, 256 rows: 113 µs, against
    # 125 with 4096 and 8 warps.
    score_kernel[(rows, tiles)](
        logits, columns, counts, masks, best, token, tops, columns.stride(0), counts.stride(0), BLOCK=block,
        num_warps=4, **options,
    )  # fmt: skip
    choose_kernel[(rows,)](
        logits, columns, counts, masks, best, token, tops, listed, out, reports, columns.stride(0), counts.stride(0),
        reports.stride(0), TILES=tiles, TILE_WIDTH=triton.next_power_of_2(tiles), SEGMENTS=segments,
        WIDTH=triton.next_power_of_2(segments), CHUNK=chunk, num_warps=16, **options,
    )  # fmt: skip
    return out, reports
