"""采样核函数的标准答案：按列给的参数，用 `layers/sampler.py` 的朴素写法逐步算。

The oracle of the sampling kernel: parameters in columns, worked out step by step in the plain form of
`layers/sampler.py`.
"""

import torch
from torch import Tensor

from backends.kernels import SAMPLING_COLUMNS
from engine.sampler import gather_logprobs
from layers.sampler import SamplingInputs, apply_penalties, gumbel_noise, sample


def named_columns(columns: Tensor) -> dict[str, Tensor]:
    """每一列的名字和值，浮点数还原成 float32。

    The name and values of each column, floats as float32.
    """
    floats = columns[6:].contiguous().view(torch.float64).float()
    return dict(zip(SAMPLING_COLUMNS, [*columns[:6], *floats]))


def edited_plainly(logits: Tensor, column: dict[str, Tensor], counts: Tensor, masks: Tensor) -> Tensor:
    """禁用，再惩罚；[S, vocab] float32。

    Ban, then penalise; [S, vocab] float32.
    """
    scores, places = logits.float(), column["places"]
    rows = (places >= 0).nonzero().squeeze(1)
    if len(rows) == 0:
        return scores
    bits = torch.arange(32, device=logits.device)
    allowed = ((masks[places[rows]].unsqueeze(-1) >> bits) & 1).flatten(1)[:, : logits.shape[1]].bool()
    banned = ~allowed & (column["masked"][rows] != 0)[:, None]
    kept = scores[rows].masked_fill(banned, float("-inf"))
    penalties = (column[name][rows, None] for name in ("presence", "frequency", "repetition"))
    return scores.index_copy(0, rows, apply_penalties(kept, counts[:, places[rows]], *penalties))


def sample_plainly(
    logits: Tensor, columns: Tensor, counts: Tensor, masks: Tensor, max_logprobs: int
) -> tuple[Tensor, Tensor]:
    """`FusedKernels.sample`，用朴素写法；没有要求的报告是 NaN。

    `FusedKernels.sample` in the plain form; reports that nobody asked for are NaN.
    """
    column, vocab_size = named_columns(columns), logits.shape[1]
    scores = edited_plainly(logits, column, counts, masks)
    top_ks = torch.where(column["top_ks"] > 0, column["top_ks"], vocab_size)
    inputs = SamplingInputs(
        temperatures=column["temperatures"][:, None], top_ps=column["top_ps"][:, None],
        min_ps=column["min_ps"][:, None], top_ks=top_ks[:, None], seeds=column["seeds"],
        output_indices=column["output_indices"], any_filter=True, any_min_p=True,
    )  # fmt: skip
    tokens = sample(scores, inputs)
    rows = ((column["places"] >= 0) & (tokens >= 0)).nonzero().squeeze(1)
    where = (1, column["places"][rows], tokens[rows])
    counts[where] += (counts[where] < 32767).to(counts.dtype)
    shape = (len(logits), 1 + min(max_logprobs, vocab_size), 2)
    reports = torch.full(shape, float("nan"), dtype=torch.float64, device=logits.device)
    wanted = [number - 1 if number > 0 else None for number in column["reports"].tolist()]
    packed = gather_logprobs(logits, tokens, wanted)
    if packed is not None:
        reports[column["reports"] > 0, : packed.shape[1]] = packed
    return tokens, reports


def is_close_call(scores: Tensor, column: dict[str, float], chosen: tuple[int, int]) -> bool:
    """两种算法选得不同，是不是只差在舍入：两者带噪声的分数几乎相等，或者有一个 token 正好在 top_p 的边上。

    Whether two ways of choosing differ by rounding only: their noisy scores are all but equal, or a token lies right at
    the border of top_p.

    Args:
        scores: [vocab] float32，改过的分数；the edited scores
        chosen: 两种算法选的；what the two have chosen
    """
    scaled = scores.double().cpu() / (column["temperatures"] or 1.0)
    ids = torch.tensor([int(column["seeds"])]), torch.tensor([int(column["output_indices"])])
    noise = gumbel_noise(*ids, len(scaled))[0].double() if column["temperatures"] else torch.zeros_like(scaled)
    a, b = (float(scaled[i] + noise[i]) for i in chosen)
    if abs(a - b) <= 1e-5 * max(1.0, abs(a)):
        return True
    scores_of = scaled[list(chosen)]
    kept = scaled
    if column["min_ps"] > 0:
        floor = scaled.max() + torch.tensor(column["min_ps"]).double().log()
        if (scores_of - floor).abs().min() <= 1e-5:
            return True
        kept = scaled[scaled >= floor]
    ranked = kept.sort(descending=True, stable=True).values[: int(column["top_ks"]) or None]
    # 同分的按 id 排；这里只看分数比它高的，加上同分的，`ahead` 在这两者之间。
    # Equal scores go by id; here only what is higher, and what is equal, count: `ahead` lies between the two.
    probabilities = ranked.softmax(0)
    for score in scores_of:
        low, high = probabilities[ranked > score].sum(), probabilities[ranked >= score].sum()
        if low - 1e-5 <= column["top_ps"] <= high + 1e-5:
            return True
    return False
