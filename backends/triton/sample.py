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


@triton.jit
def mix64(x):
    """与 `layers/sampler.py` 的 `_mix64` 逐位相同，只是用无符号数，右移天然是逻辑右移。

    Bit for bit `_mix64` of `layers/sampler.py`, in unsigned numbers, whose right shift is logical anyway.
    """
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
def sample_kernel(
    logits_ptr, temperature_ptr, seed_ptr, index_ptr, best_ptr, token_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """一个程序：一行里的 BLOCK 个 token，留下其中最好的一个。

    One program: BLOCK tokens of one row; it keeps the best of them.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    token = tile * BLOCK + tl.arange(0, BLOCK)
    inside = token < VOCAB
    score = tl.load(logits_ptr + row * VOCAB + token, mask=inside, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperature_ptr + row)
    if temperature >= 1e-5:
        golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
        seed = tl.load(seed_ptr + row).to(tl.uint64)
        index = tl.load(index_ptr + row).to(tl.uint64)
        key = mix64(mix64(seed + golden) + index * golden)
        low, high = (key & 0xFFFFFFFF).to(tl.uint32), (key >> 32).to(tl.uint32)
        bits = mix32(mix32(token.to(tl.uint32) + low) ^ high)
        # 除以 2 ** 32；float32 会把最大的几个舍入成 1，那样 log(1 - u) 就是 -inf，所以压到 1 以下。
        # Over 2 ** 32; float32 rounds the largest few to 1, where log(1 - u) is -inf, so keep them below 1.
        u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
        # -log(1 - u)：u 很小时直接相减会丢掉有效数字，改用级数的前 4 项，误差小于 float32 的末位。
        # -log(1 - u): for a small u the subtraction loses digits; 4 terms of the series err less than float32's last
        # bit.
        series = u * (1.0 + u * (0.5 + u * (0.3333333433 + u * 0.25)))
        exponential = tl.where(u < 0.01, series, -tl.log(1.0 - u))
        score = score / temperature - tl.log(exponential)
        score = tl.where(inside, score, float("-inf"))
    best, where = tl.max(score, 0, return_indices=True)
    tl.store(best_ptr + row * tl.num_programs(1) + tile, best)
    tl.store(token_ptr + row * tl.num_programs(1) + tile, (tile * BLOCK + where).to(tl.int64))


def sample(logits: Tensor, temperatures: Tensor, seeds: Tensor, output_indices: Tensor) -> Tensor:
    """每行选一个 token，没有 top_k、top_p、min_p 的批才走这里。

    Choose a token for each row; for batches without top_k, top_p and min_p.

    Args:
        logits: [S, vocab], contiguous
        temperatures: [S] float32
        seeds, output_indices: [S] int64

    Returns:
        [S] int64
    """
    rows, vocab = logits.shape
    block = 4096
    tiles = triton.cdiv(vocab, block)
    best = torch.empty(rows, tiles, dtype=torch.float32, device=logits.device)
    token = torch.empty(rows, tiles, dtype=torch.int64, device=logits.device)
    sample_kernel[(rows, tiles)](
        logits, temperatures, seeds, output_indices, best, token, VOCAB=vocab, BLOCK=block, num_warps=8
    )
    return token.gather(1, best.argmax(1, keepdim=True)).squeeze(1)
