"""从 logits 到 token：禁用，惩罚，选择，对数概率。凡是影响“选中哪个 token”的，都在这里和 `layers/sampler.py`。

    choose = draw（设备上 / on the device）+ read（主机上 / on the host）

同步循环一次走完；重叠循环先 `draw`，下一步发出之后才 `read`。每个采到的 id 都经过 `read`。

From logits to tokens: bans, penalties, the choice, log-probabilities. Whatever decides which token is chosen stands
here and in `layers/sampler.py`. The synchronous loop goes through at once; the overlapped one calls `draw`, launches
the next step, and only then reads. Every sampled id passes through `read`.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from engine.batch import Sample, on_device, sampling_rows
from engine.guides import ban
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence, SequenceStatus
from layers.ranks import ALONE, Ranks
from layers.sampler import SamplingInputs, apply_penalties, sample


def build_sampling_inputs(samples: list[Sample], vocab_size: int, device: torch.device) -> SamplingInputs | None:
    """收集各行的采样参数，次序与 logits 相同；全都是贪心时不需要参数，返回 None。

    Collect the rows' sampling parameters in the order of the logits; None if all are greedy and need none.
    """
    params = [seq.params for seq, _ in samples]
    # 全贪心时一次 `argmax` 就够，噪声和排序都省了；只要有一行要采样，整批就一起算。
    # All greedy needs a single `argmax`, no noise and no sort; with any row that samples the whole batch goes that way.
    if all(p.greedy for p in params):
        return None
    # `top_k` 为 0 或 -1 表示不限，换成词表大小，计算时就不必再分情况。
    # A `top_k` of 0 or -1 is off; as the vocabulary's size it needs no case of its own.
    top_ks = [min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]

    def column(values: list[float]) -> Tensor:
        # 补成一列，好与 [S, vocab_size] 的 logits 广播：每行除以自己的温度，不用 Python 循环。
        # A column broadcasts against logits of [S, vocab_size]: each row has its own temperature, without a loop.
        return on_device(values, device, torch.float32).unsqueeze(1)  # [S, 1]

    return SamplingInputs(
        temperatures=column([0.0 if p.greedy else p.temperature for p in params]),
        top_ps=column([p.top_p for p in params]), min_ps=column([p.min_p for p in params]),
        top_ks=on_device(top_ks, device).unsqueeze(1),
        # 噪声由（种子，第几个输出，token id）决定，这里送去前 2 个；没有随机数状态，也就不怕被谁打乱。
        # Noise depends on (seed, output index, token id), and here go the first 2;
        # with no generator state, nothing disturbs it.
        seeds=on_device([seq.seed for seq, _ in samples], device),
        output_indices=on_device([index for _, index in samples], device),
        # 给 128256 个分数排序很贵，没人用 `top_k`、`top_p` 就整批跳过；在主机上判断，不必读 GPU。
        # Sorting 128256 scores is expensive and skipped if nobody uses `top_k` or `top_p`;
        # decided on the host, no GPU read.
        any_filter=any(p.top_p < 1.0 or k < vocab_size for p, k in zip(params, top_ks)),
        any_min_p=any(p.min_p > 0.0 for p in params),
    )


class Sampler:
    """选 token，并记住惩罚要用的计数：用到惩罚的序列各占一行，从第一次采样到结束，被抢占也不丢。

    计数留在设备上：重叠循环里，主机晚一步才知道选了哪个 token，而下一步的惩罚马上就要用到它。

    Chooses tokens, and keeps the counts that penalties need: each sequence that uses them has a row from its first
    sample to its end, also across preemption. The counts stay on the device: in the overlapped loop the host learns one
    step late which token was chosen, and the next step's penalties need it at once.

    Attributes:
        counts: [2, rows, vocab_size] int16，各 token 在不在提示词里（0），输出里几次（1）；
            in the prompt or not (0), how often in the output (1)
    """

    def __init__(self, vocab_size: int, max_num_seqs: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        # 一开始就按上限分配，量显存峰值时才算在内。例：Qwen3-0.6B，256 行：2 * 256 * 151936 * 2 字节，约 156 MB。
        # Made for the most there can be, so that the measured peak of a GPU's memory has it. Example: Qwen3-0.6B with
        # 256 rows takes 2 * 256 * 151936 * 2 bytes, some 156 MB.
        # 不必清零，`_row` 交出一行时才清：在 CPU 上，没有碰过的行并不真占内存。
        # Not zeroed, as `_row` clears a row when it hands it out: on a CPU, rows never touched take no memory.
        try:
            self.counts = torch.empty(2, max_num_seqs, vocab_size, dtype=torch.int16, device=device)
        except (RuntimeError, MemoryError):
            raise ValueError(
                f"max_num_seqs={max_num_seqs} needs {4 * max_num_seqs * vocab_size / 1e9:,.1f} GB for counts, more "
                f"than {device} has: lower it"
            ) from None
        self.rows: dict[Sequence, int] = {}
        self.free_rows = list(range(max_num_seqs))

    # ---- 三个入口 ----
    # ---- three entries ----

    def choose(self, schedule: list[ScheduledSequence], logits: Tensor) -> list[list[int]]:
        """给每行选 token；不采样的行得到空列表。

        Choose tokens for each row; rows that do not sample get an empty list.

        Args:
            logits: [S, vocab_size]
        """
        samples = sampling_rows(schedule)
        # 整步都是长提示词的中途分段时，没有 token 可选；返回的空列表仍与 `schedule` 一行对一行。
        # Nothing but middle chunks of long prompts: no token to choose, but still one list for each row of `schedule`.
        #   budget 2048, prompt 5000: 2048, 2048, 904; samples: False, False, True
        if not samples:
            return [[] for _ in schedule]
        tokens, logprobs = self.draw(samples, logits)
        # CUDA 上的核函数是异步的，结果要到 `tolist` 才非等不可；一次取回 S 个，别写成 S 次 `.item()`。
        # Kernels on CUDA run asynchronously; at `tolist` we must wait: one transfer of S ids, not S calls of `.item()`.
        return self.read([(row.seq, row.num_logits) for row in schedule], tokens.tolist(), logprobs)

    # `counts` 就地改写：建引擎时外面若是推断模式，只有在推断模式里才允许改它。
    # `counts` is changed in place, and if the engine was made in inference mode, only inference mode may change it.
    @torch.inference_mode()
    def draw(self, samples: list[Sample], logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """采样的全部工作，都在设备上，不等结果：禁用与惩罚，采样，计数，对数概率。

        All of sampling, on the device and without waiting: bans and penalties, the choice, counts, log-probabilities.

        Args:
            samples: [S]，要采样的行；the rows
            logits: [S, vocab_size]

        Returns:
            [S] int64，选中的 token；the chosen tokens
            `gather_logprobs` 的返回值；what `gather_logprobs` returns
        """
        # 断点停在这里，比较 `logits` 与 `scores`：没有行要改时，两者就是同一个张量。
        # Stop here and compare `logits` with `scores`: where no row is changed, both are the same tensor.
        scores, penalized = self._edit(samples, logits)
        # 张量并行时每个进程都选一遍，算数的是 rank 0 选的。
        # With tensor parallelism every rank chooses, and what counts is the choice of rank 0.
        tokens = self.ranks.first(sample(scores, build_sampling_inputs(samples, logits.shape[-1], logits.device)))
        # 马上计数，不等主机读到：重叠循环里，下一步的惩罚比主机先用到它。
        # Counted at once, before the host reads it: in the overlapped loop the next step's penalties need it sooner.
        if penalized is not None:
            rows, places = penalized
            # 每个序列一行，带惩罚的也不猜测，所以不会有两次加法落在同一个格子里。
            # Every sequence has its own row and none with penalties has guesses, so no two additions meet in a cell.
            # int16 数到 32767 为止：那么多次之后，惩罚早已压倒任何分数；回绕成负数就成了奖励。
            # int16 counts up to 32767: after so many a penalty outweighs any score; wrapped to negative it would be a
            # reward.
            where = (1, places, tokens[rows])
            self.counts[where] += (self.counts[where] < torch.iinfo(torch.int16).max).to(torch.int16)
        return tokens, gather_logprobs(logits, tokens, [seq.params.logprobs for seq, _ in samples])

    def read(self, rows: list[tuple[Sequence, int]], tokens: list[int], logprobs: Tensor | None) -> list[list[int]]:
        """把到了主机的 token 分给各行，记下对数概率；要在 `commit` 之前调用。

        Deal the tokens that have come to the host out to the rows and record log-probabilities; called before `commit`.

        Args:
            rows: 各行的序列，和它有几个 logits；each row's sequence and how many logits it had
            tokens: 每个 logits 对应一个；one for each of those logits
            logprobs: `draw` 的返回值；what `draw` returned
        """
        # 拷成 NumPy 数组，一行一个视图：不造成千的 Python 对象，页锁定的内存也让给下一步。
        # Copied into a NumPy array with a view for each row: no thousands of Python objects, and pinned memory is left
        # to the next step.
        reports: Any = () if logprobs is None else logprobs.numpy(force=True).copy()
        token_ids, end, told = [], 0, 0
        for seq, count in rows:
            # 每行是一个列表，不是一个数：有的行没有 token，猜对了的行有好几个。
            # A list a row, not a number: some rows have no token, and where guesses were right there are several.
            #   num_logits [1, 0, 1], tokens [42, 7]  ->  [[42], [], [7]]
            start, end = end, end + count
            kept = seq.accept(tokens[start:end])
            token_ids.append(kept)
            if seq.logprobs is None:
                continue
            mine, told = reports[told : told + count], told + count
            # 与 `commit` 一样：重叠循环里多算的那个 token 丢掉，它的对数概率也丢掉。
            # As in `commit`: the extra token of the overlapped loop is dropped, and so is its log-probability.
            # 分数坏了的行（-1）没有 token，也就没有可报告的。
            # A row of bad scores (-1) has no token and so nothing to report.
            if seq.status is not SequenceStatus.FINISHED:
                seq.logprobs.add([pair for pair in zip(kept, mine) if pair[0] >= 0])
        return token_ids

    def release(self, seq: Sequence) -> None:
        """序列结束，让出它的行。

        The sequence has ended: free its row.
        """
        # 还在途中的一步可能仍会写这一行；新主人清零的命令排在它后面，所以无妨。
        # A step still in flight may write to this row; the next owner clears it in a later command, so it does no harm.
        if seq in self.rows:
            self.free_rows.append(self.rows.pop(seq))

    # ---- 采样之前改分数 ----
    # ---- scores are changed before sampling ----

    def _edit(self, samples: list[Sample], logits: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """先禁用，再惩罚。`logits` 本身不改：它还要用来报告原始的对数概率。

        Ban first, then penalise. `logits` itself stays: raw log-probabilities are reported from it.

        Returns:
            [S, vocab_size]，从中采样的分数；what to sample from
            [P], [P]，用到惩罚的行，和在计数表里的行；或 None；rows with penalties and their rows of the counts, or None
        """
        special = [(row, seq, index) for row, (seq, index) in enumerate(samples) if seq.edits_scores]
        # 输出还没到 `min_tokens`，停止 token 的分数就变成 -inf，无论怎样采样都选不中；贪心也一样。
        # While the output is shorter than `min_tokens`, a stop token's score becomes -inf, and no way of sampling
        # chooses it, greedy included.
        banned = [(row, i) for row, seq, index in special if index < seq.params.min_tokens for i in seq.stop_token_ids]
        if banned:
            where = on_device(banned, logits.device).unbind(1)
            logits = logits.index_put(where, logits.new_full((), float("-inf")))  # [S, vocab_size]
        guided = [(row, seq.guide) for row, seq, _ in special if seq.guide is not None]
        if guided:
            logits = ban(logits, guided)  # [S, vocab_size]
        penalized = [(row, seq) for row, seq, _ in special if seq.params.penalizes]
        if not penalized:
            return logits, None
        rows, places = on_device([(row, self._row(seq)) for row, seq in penalized], logits.device).unbind(1)
        params = [seq.params for _, seq in penalized]
        values = [(p.presence_penalty, p.frequency_penalty, p.repetition_penalty) for p in params]
        # 转成一列一列的，好与 [P, vocab_size] 广播。
        # Cut into columns, which broadcast against [P, vocab_size].
        presence, frequency, repetition = on_device(values, logits.device, torch.float32)[:, :, None].unbind(1)
        logits = logits.float()  # [S, vocab_size]
        changed = apply_penalties(logits[rows], self.counts[:, places], presence, frequency, repetition)
        return logits.index_copy(0, rows, changed), (rows, places)

    def _row(self, seq: Sequence) -> int:
        """序列在计数表里的行；第一次来就占一行，记下提示词。

        The sequence's row of the counts; the first time it takes one and counts the prompt.
        """
        if seq not in self.rows:
            # 被抢占的也占着行，而接纳它之前可能先来了别人：不够时，没在运行的都让出来。
            # Preempted sequences keep their rows, and others may come before they are back: when too few are left,
            # those that do not run give theirs up.
            if not self.free_rows:
                for other in [each for each in self.rows if each.status is not SequenceStatus.RUNNING]:
                    self.release(other)
            row = self.rows[seq] = self.free_rows.pop()
            self.counts[:, row] = 0
            # 提示词里的次数没有人用，只看有没有，所以记 1 就够；让出过行的，输出也要重新数。
            # How often it stands in the prompt matters to nobody, only whether it does, so a 1 is enough; who gave up
            # its row has outputs to be counted again.
            self.counts[0, row].index_fill_(0, on_device(seq.prompt_token_ids, self.counts.device), 1)
            times, device = Counter(seq.output_token_ids), self.counts.device
            most = [min(count, torch.iinfo(torch.int16).max) for count in times.values()]
            self.counts[1, row].index_copy_(0, on_device([*times], device), on_device(most, device, torch.int16))
        return self.rows[seq]


# ---- 对数概率 ----
# ---- log-probabilities ----


def gather_logprobs(logits: Tensor, tokens: Tensor, wanted: list[int | None]) -> Tensor | None:
    """在设备上算好要报告的数，拼成一个张量，好一次拷到主机；没有人要就返回 None。

    取自原始的 logits，不受温度、过滤和惩罚影响，与 vLLM 的默认相同：它说的是模型怎么想，不是采样器怎么选。

    Work out on the device what is to be reported, as a single tensor that is one copy to the host; None if nobody asks.
    They are the log-probabilities of the raw logits, before temperature, filters and penalties, as is vLLM's default:
    they tell what the model thinks and not what the sampler does.

    Args:
        logits: [S, vocab_size]
        tokens: [S] int64，没有 token 的是 -1；-1 where there is none
        wanted: [S]，各行要最可能的几个，不要报告的是 None；how many of the likeliest a row wants, None for no report

    Returns:
        [L, 1 + k, 2] float64，要报告的行：所选的对数概率和名次，然后是最高的 k 个对数概率和 id；
            a row that asks: the chosen one's log-probability and rank, then the k highest log-probabilities and ids
    """
    rows = [row for row, number in enumerate(wanted) if number is not None]
    if not rows:
        return None
    where = on_device(rows, logits.device)
    # 各行要的个数不同，一律取最多的那个，到主机上再各取所需：张量没有长短不一的行。
    # Rows want different numbers: all take the largest, and the host cuts them; a tensor has no rows of unequal length.
    k = min(max(number for number in wanted if number is not None), logits.shape[1])
    logprobs = logits[where].float().log_softmax(-1)  # [L, vocab_size]
    chosen = logprobs.gather(1, tokens[where].clamp(min=0).unsqueeze(1))  # [L, 1]
    # 名次就是“比我大的有几个”再加 1，不必排序。
    # A rank is how many are larger, plus 1; no sort is needed.
    rank = (logprobs > chosen).sum(1, keepdim=True) + 1  # [L, 1]
    top = logprobs.topk(k)
    # float64 装得下任何 token id，四样东西因此可以放在同一个张量里。
    # float64 holds any token id exactly, so that all four fit in the same tensor.
    pairs = ((chosen, rank), (top.values, top.indices))
    return torch.cat([torch.stack([a.double(), b.double()], dim=-1) for a, b in pairs], dim=1)
