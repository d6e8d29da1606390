"""用融合核函数选 token：参数按列送到设备上，从 logits 到 token 只有两次启动，所以能录进 CUDA graph。

先读 `engine/sampler.py`：这里只换了“怎样算”，算什么、记什么都在那里。

Choosing tokens with the fused kernel: parameters go to the device in columns, and from logits to tokens there are two
launches, which fit into a CUDA graph. Read `engine/sampler.py` first: only how it is computed is different here; what
is computed and kept is there.
"""

from typing import Any

import torch
from torch import Tensor

from backends.kernels import FusedKernels
from engine.batch import Sample, on_device
from engine.guides import packed_masks
from engine.sampler import Sampler
from engine.sampling_params import MAX_LOGPROBS
from engine.sequence import Sequence


def copy_to_device(on_host: Tensor, device: torch.device) -> Tensor:
    """从页锁定的内存拷到设备上，不等它完成；为什么要页锁定，见 `on_device`。

    Copy to the device from pinned memory without waiting; why pinned, see `on_device`.
    """
    return (on_host.pin_memory() if device.type == "cuda" else on_host).to(device, non_blocking=True)


class KernelSampler(Sampler):
    """多一张禁用 token 的表，每个序列一行，与计数的行相同。

    One more table, of banned tokens, with a row for each sequence as in the counts.

    Attributes:
        masks: [rows, ceil(vocab_size / 32)] int32，一个 token 一位，0 是禁用；a bit a token, 0 bans
    """

    def __init__(self, kernels: FusedKernels, *table: Any) -> None:
        # `table` 就是 `Sampler` 的参数：计数表有多大，掩码就有多少行、多少位。
        # `table` are the arguments of `Sampler`: the masks have as many rows and bits as its counts have numbers.
        super().__init__(*table)
        self.kernels = kernels
        self.masks = self.counts.new_empty(self.counts.shape[1], (self.counts.shape[2] + 31) // 32, dtype=torch.int32)

    def columns(self, samples: list[Sample]) -> Tensor:
        """各行的参数，一列一种，次序是 `SAMPLING_COLUMNS`。

        The rows' parameters, a kind a column, in the order of `SAMPLING_COLUMNS`.

        Returns:
            [len(SAMPLING_COLUMNS), S] int64，在主机上；on the host
        """
        integers, floats, vocab_size = [], [], self.counts.shape[2]
        for seq, index in samples:
            p = seq.params
            # 用到惩罚或禁用的序列才占一行；`min_tokens` 到了，掩码就不用了，语法的掩码则一直用。
            # Only sequences that penalise or ban take a row; once `min_tokens` is reached the mask is off, that of a
            # grammar stays on.
            place, reports = self._row(seq) if seq.edits_scores else -1, 0 if p.logprobs is None else 1 + p.logprobs
            masked = index < p.min_tokens or seq.guide is not None
            integers.append((seq.seed, index, place, masked, min(max(p.top_k, 0), vocab_size), reports))
            penalties = p.repetition_penalty, p.frequency_penalty, p.presence_penalty
            floats.append((0.0 if p.greedy else p.temperature, p.top_p, p.min_p, *penalties))
        # 语法的掩码每步都不同，抽之前写进各自的行；一位一个 token，正是 llguidance 的格式。
        # A grammar's mask is another one every step, written to its row before the draw; a bit a token is llguidance's
        # own layout.
        guided = [(self._row(seq), seq.guide) for seq, _ in samples if seq.guide is not None]
        if guided:
            masks = copy_to_device(packed_masks([guide for _, guide in guided]), self.masks.device)
            self.masks[on_device([row for row, _ in guided], self.masks.device)] = masks
        # 浮点数按位当作整数，好放在同一个张量里。
        # Floats go as the integers of their bits, to fit in the same tensor.
        bits = torch.tensor(floats, dtype=torch.float64, device="cpu").view(torch.int64)
        return torch.cat([torch.tensor(integers, dtype=torch.int64, device="cpu"), bits], dim=1).T.contiguous()

    @torch.inference_mode()
    def draw(self, samples: list[Sample], logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """与 `Sampler.draw` 相同，只是一次算完。

        What `Sampler.draw` does, in one go.
        """
        columns = copy_to_device(self.columns(samples), logits.device)
        tokens, reports = self.kernels.sample(logits, columns, self.counts, self.masks, MAX_LOGPROBS)
        return self.ranks.first(tokens), wanted_reports(reports, list(range(len(samples))), samples)

    def _row(self, seq: Sequence) -> int:
        """新占一行时，也写好它的掩码：停止 token 的位是 0。

        When a row is taken, its mask is written, too: the bits of stop tokens are 0.
        """
        if seq not in self.rows:
            row, words = super()._row(seq), self.masks.shape[1]
            allowed = torch.ones(words * 32, dtype=torch.int64, device=self.masks.device)
            allowed.index_fill_(0, on_device(sorted(seq.stop_token_ids), self.masks.device), 0)
            self.masks[row] = (allowed.view(words, 32) << torch.arange(32, device=self.masks.device)).sum(1)
        return self.rows[seq]


def wanted_reports(reports: Tensor, rows: list[int], samples: list[Sample]) -> Tensor | None:
    """只留下要对数概率的行，和要得最多的那一行的列数；没有人要就返回 None。

    Keep the rows that ask for log-probabilities, with as many columns as the one that asks for most; None if none does.

    Args:
        rows: `samples` 的每一项在 `reports` 里的行号；for each of `samples` its row of `reports`
    """
    asked = [(row, seq.params.logprobs) for row, (seq, _) in zip(rows, samples) if seq.params.logprobs is not None]
    if not asked:
        return None
    most = max(number for _, number in asked)
    return reports[on_device([row for row, _ in asked], reports.device), : 1 + most]
