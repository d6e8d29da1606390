"""采样之前对分数的改动：`min_tokens` 禁用停止 token，三种惩罚压低出现过的 token。

惩罚要知道每个 token 出现过几次。计数留在设备上：重叠循环里，主机晚一步才知道选了哪个 token，
而下一步的惩罚马上就要用到它。

What happens to scores before sampling: `min_tokens` bans stop tokens, three penalties lower tokens that have appeared.

Penalties need to know how often each token has appeared. The counts stay on the device: in the overlapped loop the host
learns one step late which token was chosen, and the next step's penalties need it at once.
"""

import torch
from torch import Tensor

from engine.sequence import Sequence
from layers.penalties import apply_penalties


class Penalties:
    """用到惩罚的序列各占计数表的一行，从第一次采样到结束；被抢占时这一行还在，因为已输出的 token 不变。

    Each sequence that uses penalties has a row of the counts, from its first sample to its end; it keeps the row when
    preempted, as its output stays.

    Attributes:
        counts: whether each token stands in the prompt (0), how often in the output (1); [2, rows, vocab_size] int32
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        # 起初 0 行：没有请求用到惩罚，就不占一个字节。
        # 0 rows at first: while no request uses penalties, not a byte is taken.
        self.counts = torch.zeros(2, 0, vocab_size, dtype=torch.int32, device=device)
        self.rows: dict[Sequence, int] = {}
        self.free_rows: list[int] = []

    def apply(self, sequences: list[Sequence], logits: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """先禁用，再惩罚。`logits` 本身不改：它还要用来报告原始的对数概率。

        Ban first, then penalise. `logits` itself stays: raw log-probabilities are reported from it.

        Args:
            sequences: those that sample, one a row
            logits: [S, vocab_size]

        Returns:
            what to sample from, [S, vocab_size]; and the rows that use penalties with their rows of the counts, both
            [P], or None
        """
        special = [(row, seq) for row, seq in enumerate(sequences) if seq.needs_logits]
        # 停止 token 的分数变成 -inf，无论怎样采样都选不中；贪心也一样。
        # A stop token's score becomes -inf, and no way of sampling chooses it, greedy included.
        banned = [(row, i) for row, seq in special if seq.bans_stops for i in seq.stop_token_ids]
        if banned:
            where = self._on_device(banned).unbind(1)
            logits = logits.index_put(where, logits.new_full((), float("-inf")))  # [S, vocab_size]
        penalized = [(row, seq) for row, seq in special if seq.params.penalizes]
        if not penalized:
            return logits, None
        rows, places = self._on_device([(row, self._row(seq)) for row, seq in penalized]).unbind(1)
        values = [seq.params for _, seq in penalized]
        columns = torch.tensor([(p.presence_penalty, p.frequency_penalty, p.repetition_penalty) for p in values])
        # 转成一列一列的，好与 [P, vocab_size] 广播。
        # Cut into columns, which broadcast against [P, vocab_size].
        presence, frequency, repetition = columns.to(logits.device, non_blocking=True)[:, :, None].unbind(1)
        logits = logits.float()  # [S, vocab_size]
        changed = apply_penalties(logits[rows], self.counts[:, places], presence, frequency, repetition)
        return logits.index_copy(0, rows, changed), (rows, places)

    def count(self, rows: Tensor, places: Tensor, tokens: Tensor) -> None:
        """刚采到的 token 计上一次；token 还在设备上，不必等它到主机。

        Count the tokens just sampled, which are on the device; there is no wait for the host.

        Args:
            rows, places: what `apply` returned, [P]
            tokens: [S] int64
        """
        # 每个序列一行，所以不会有两次加法落在同一个格子里。
        # Every sequence has its own row, so no two additions meet in a cell.
        self.counts[1, places, tokens[rows]] += 1

    def release(self, seq: Sequence) -> None:
        """序列结束，让出它的行。

        The sequence has ended: free its row.
        """
        # 还在途中的一步可能仍会写这一行；新主人清零的命令排在它后面，所以无妨。
        # A step still in flight may write to this row; the next owner clears it in a later command, so it does no harm.
        if seq in self.rows:
            self.free_rows.append(self.rows.pop(seq))

    def _row(self, seq: Sequence) -> int:
        """序列在计数表里的行；第一次来就占一行，记下提示词。

        The sequence's row of the counts; the first time it takes one and counts the prompt.
        """
        if seq not in self.rows:
            if not self.free_rows:
                # 不够就翻倍，像动态数组：表按同时用到惩罚的序列数增长，而不是一开始就按上限分配。
                # Doubled when too small, like a dynamic array: it grows with the sequences that use penalties at once
                # and is not made for the most there could be.
                more = torch.zeros_like(self.counts) if self.rows else self.counts.new_zeros(2, 4, self.counts.shape[2])
                self.free_rows.extend(range(self.counts.shape[1], self.counts.shape[1] + more.shape[1]))
                self.counts = torch.cat([self.counts, more], dim=1)
            row = self.rows[seq] = self.free_rows.pop()
            self.counts[:, row] = 0
            # 提示词里的次数没有人用，只看有没有，所以记 1 就够。
            # How often it stands in the prompt matters to nobody, only whether it does, so a 1 is enough.
            self.counts[0, row].index_fill_(0, self._on_device(seq.prompt_token_ids), 1)
        return self.rows[seq]

    def _on_device(self, values: list[tuple[int, int]] | list[int]) -> Tensor:
        """整数送到设备上，不等拷贝完成。

        Integers on the device, without waiting for the copy.
        """
        return torch.tensor(values, dtype=torch.int64).to(self.counts.device, non_blocking=True)
