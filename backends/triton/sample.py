"""融合采样：读一遍 logits，同时完成除以温度、加 Gumbel 噪声、取最大值。

等价的 PyTorch 在 `layers/sampler.py`：`(logits / temperature + gumbel_noise(seeds, indices, vocab)).argmax(-1)`；
贪心行（温度 0）不加噪声。词表有十几万个 token，每多读写一遍 [S, vocab] 就要几十微秒。

Fused sampling: read the logits once, and divide by the temperature, add Gumbel noise and take the maximum on the way.

The plain PyTorch is in `layers/sampler.py`: `(logits / temperature + gumbel_noise(seeds, indices, vocab)).argmax(-1)`;
greedy rows (temperature 0) add no noise. With a vocabulary beyond 100000 tokens, every further pass over [S, vocab]
costs tens of microseconds.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.triton.launch import await_inputs, early, nearly_done


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


@triton.jit
def sample_kernel(
    logits_ptr, temperature_ptr, seed_ptr, index_ptr, best_ptr, token_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr,
    FAST: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """一个程序：一行里的 BLOCK 个 token，留下其中最好的一个。

    One program: BLOCK tokens of one row; it keeps the best of them.
    """
    await_inputs(EARLY)
    # 网格有两维：第 0 维是行，第 1 维是词表的第几段。一行交给许多程序，行数少时 GPU 才忙得起来。
    # The grid has two dimensions: dimension 0 is the row, dimension 1 the part of the vocabulary. A row goes to many
    # programs, so that a few rows keep the GPU busy.
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    token = tile * BLOCK + tl.arange(0, BLOCK)
    inside = token < VOCAB
    # 越界的位置读成 -inf，而不是 0：取最大值时一定选不到它们。
    # Positions past the end read as -inf and not 0, so that they never win the maximum.
    raw = tl.load(logits_ptr + row * VOCAB + token, mask=inside, other=float("-inf")).to(tl.float32)
    score = raw
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    # 一个程序只管一行，温度对它是一个数，整个程序一起走或一起跳过这个分支；贪心行因此省下了噪声的计算。
    # A program has one row, whose temperature is a single number, so all of it takes or skips this branch, and greedy
    # rows save the work of the noise.
    if temperature > 0.0:
        golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
        seed = tl.load(seed_ptr + row).to(tl.uint64)
        index = tl.load(index_ptr + row).to(tl.uint64)
        key = mix64(mix64(seed + golden) + index * golden)
        # 密钥是标量，一个程序只算 1 次；`bits` 才对 BLOCK 个 token 各算 1 次，用更便宜的 32 位运算。
        # The key is a scalar, computed 1 time in a program; `bits` is computed 1 time for each of the BLOCK tokens, in
        # cheaper 32-bit arithmetic.
        low, high = (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32)
        bits = mix32(mix32(token.to(tl.uint32) + low) ^ high)
        # 除以 2 ** 32；float32 会把最大的几个舍入成 1，那样 log(1 - u) 就是 -inf，所以压到 1 以下。
        # Over 2 ** 32; float32 rounds the largest few to 1, where log(1 - u) is -inf, so keep them below 1.
        u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
        # -log(1 - u)：u 很小时直接相减会丢掉有效数字，改用级数的前 4 项，误差小于 float32 的末位。
        # -log(1 - u): for a small u the subtraction loses digits; 4 terms of the series err less than float32's last
        # bit.
        series = u * (1.0 + u * (0.5 + u * (0.3333333433 + u * 0.25)))
        # 硬件只有以 2 为底的对数，所以整个比较都换成以 2 为底：分数也除以 log(2)，谁最大不会变。
        # The hardware has logarithms to base 2 only, so the whole comparison is in base 2: scores are over log(2), too,
        # and the largest stays the largest.
        exponential = tl.where(u < 0.01, series * 1.4426950408889634, -log2(1.0 - u, FAST))
        # -log(指数分布的随机数) 就是 Gumbel 噪声；加上它再取最大值，等于按 softmax 的概率抽样。
        # -log of an exponential random number is Gumbel noise; the maximum after adding it is a draw by softmax's
        # probabilities.
        score = score * (1.4426950408889634 / temperature) - log2(exponential, FAST)
        # -inf 除以温度再加噪声仍是 -inf，这一行是保险：越界的 token 无论如何不能选中。
        # -inf over the temperature plus noise is still -inf; this line makes sure: a token past the end must never win.
        score = tl.where(inside, score, float("-inf"))
    # 原来的分数里有 NaN 或 +inf，这一行就坏了：记成 +inf，必被选中，`choose_kernel` 便看得到；好的分数到不了无穷大。
    # A NaN or +inf among the raw scores spoils the row: as +inf it is sure to win, where `choose_kernel` sees it; sound
    # scores never become infinite.
    score = tl.where((raw != raw) | (raw == float("inf")), float("inf"), score)
    # 程序之间不能互相等待，所以每个程序只写下自己这一段的最大值；全局最大值由下面的 `choose_kernel` 选出。
    # Programs cannot wait for each other, so each writes down the best of its own part; the overall best is chosen by
    # `choose_kernel` below.
    best, where = tl.max(score, 0, return_indices=True)
    nearly_done(EARLY)
    tl.store(best_ptr + row * tl.num_programs(1) + tile, best)
    tl.store(token_ptr + row * tl.num_programs(1) + tile, (tile * BLOCK + where).to(tl.int64))


@triton.jit
def choose_kernel(best_ptr, token_ptr, out_ptr, TILES: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """一个程序：从一行各段的最大值里选出全局最大的；这一行若没有可用的分数，就是 -1。

    One program: the overall best among the best of all parts of a row; -1 if the row has no sound score.
    """
    await_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64) * TILES
    i = tl.arange(0, BLOCK)
    score, where = tl.max(tl.load(best_ptr + row + i, mask=i < TILES, other=float("-inf")), 0, return_indices=True)
    # 最大值是 +inf，这一行里有 NaN 或 +inf；是 -inf，则全是 -inf。
    # If the best is +inf, the row holds NaN or +inf; if it is -inf, it holds nothing else.
    sound = tl.abs(score) < float("inf")
    token = tl.load(token_ptr + row + where, mask=sound, other=-1)
    tl.store(out_ptr + tl.program_id(0), token)


def sample(
    logits: Tensor, temperatures: Tensor, seeds: Tensor, output_indices: Tensor, out: Tensor | None = None
) -> Tensor:
    """每行选一个 token，不看 top_k、top_p、min_p；用到它们的行，由 `layers/sampler.py` 另选。

    Choose a token for each row, blind to top_k, top_p and min_p: `layers/sampler.py` chooses again for rows that use
    them.

    Args:
        logits: [S, vocab]，内存连续；contiguous
        temperatures: [S] float32 / float64
        seeds, output_indices: [S] int64
        out: [S] int64，写到哪里；where to write

    Returns:
        [S] int64，选中的 token；最高分是 NaN 或无穷大就是 -1；the chosen tokens; -1 if the top score is NaN or infinite
    """
    rows, vocab = logits.shape
    # 例：词表 128256，每段 4096，每行 32 个程序，各写下 1 个分数和 1 个 token，随后只需比较这 32 个。
    # Example: a vocabulary of 128256 in parts of 4096 gives 32 programs a row, each writes 1 score and 1 token, and
    # only these 32 are compared afterwards.
    block = 4096
    tiles = triton.cdiv(vocab, block)
    best = torch.empty(rows, tiles, dtype=torch.float32, device=logits.device)
    token = torch.empty(rows, tiles, dtype=torch.int64, device=logits.device)
    # 8 个 warp 是 256 个线程，4096 个 token 正好每个线程 16 个。
    # 8 warps are 256 threads, so that 4096 tokens are just 16 a thread.
    sample_kernel[(rows, tiles)](
        logits, temperatures, seeds, output_indices, best, token, VOCAB=vocab, BLOCK=block, num_warps=8,
        FAST=logits.is_cuda,
        **early(logits.device, rows),
    )
    out = torch.empty(rows, dtype=torch.int64, device=logits.device) if out is None else out
    if rows:
        choose_kernel[(rows,)](
            best, token, out, TILES=tiles, BLOCK=triton.next_power_of_2(tiles), num_warps=1,
            **early(logits.device, rows),
        )
    return out
