"""调度器：每一步决定谁运行、各算多少个 token。

没有“预填充阶段”和“解码阶段”之分：每个序列都有一些已知但还没算的 token（解码时恰好 1 个，新提示是整段），
调度器在一个总的 token 预算里分给它们份额。长提示分到剩余预算，被切成几块，和别人的解码同处一步（分块预填充）。
语义与 vLLM V1 相同。本文件不看钟、不碰设备、不认识张量，因此给定同样的请求，决定永远相同。

The scheduler: who runs in this step, and with how many tokens each.

There is no prefill phase and no decode phase: each sequence has tokens that are known but not computed (exactly 1 when
decoding, the whole prompt when new), and the scheduler shares one token budget among them. A long prompt gets what is
left of the budget, is cut into chunks, and shares its step with the others' decodes (chunked prefill). The semantics
are those of vLLM V1. This file reads no clock, touches no device and knows no tensor, so the same requests always give
the same decisions.
"""

from collections import deque
from itertools import chain
from typing import NamedTuple

from engine.block_manager import BlockManager
from engine.sequence import Sequence, SequenceStatus


class ScheduledSequence(NamedTuple):
    """这一步里的一行：哪个序列，算几个新 token。

    One row of a step: which sequence, and how many new tokens.
    """

    seq: Sequence
    num_new_tokens: int

    @property
    def samples(self) -> bool:
        """算完这几个，已知 token 就全算完了，才有下一个可采样；中途的块不产生 token。

        Only if these complete the known tokens is there a next one to sample; a chunk that ends earlier yields none.
        """
        return self.seq.num_computed_tokens + self.num_new_tokens == self.seq.num_tokens


class Scheduler:
    """两个队列：`waiting` 先来先服务，`running` 按接纳顺序排列。

    Two queues: `waiting` is first come first served, `running` keeps the order of admission.

    Attributes:
        num_preemptions: preemptions so far
    """

    def __init__(
        self,
        block_manager: BlockManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        strict: bool = False,
    ) -> None:
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.strict = strict
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def add(self, seq: Sequence) -> None:
        """新请求排到等待队列末尾；合法性由引擎在此之前检查过。

        A new request joins the end of the waiting queue; the engine has validated it before.
        """
        self.waiting.append(seq)

    def has_unfinished(self) -> bool:
        """还有没有请求要算。

        Whether any request is left.
        """
        return bool(self.waiting or self.running)

    def schedule(self) -> list[ScheduledSequence]:
        """决定这一步：先照顾运行中的，再接纳等待的。

        Decide this step: serve the running ones first, then admit waiting ones.

        Returns:
            one entry per sequence of this step; those with a single new token come first
        """
        scheduled: list[ScheduledSequence] = []
        budget = self.max_num_batched_tokens
        preempted = False

        # 1. 运行中的，按顺序。预算可能小于运行数，轮不到的原地等下一步。
        # 1. The running ones, in order. The budget may be smaller than their number; the rest keep their place.
        index = 0
        while index < len(self.running) and budget > 0:
            seq = self.running[index]
            num_new = min(seq.num_tokens - seq.num_computed_tokens, budget)
            # 没有空页：牺牲最后接纳的那个，再试；牺牲者可能就是自己，那么它退出 `running`，循环也到了尽头。
            # No block free: sacrifice the one admitted last and try again; if that is this one, it leaves `running`.
            while not self.block_manager.can_grow(seq, seq.num_computed_tokens + num_new):
                preempted = True
                if self._preempt_last() is seq:
                    break
            else:
                self.block_manager.grow(seq, seq.num_computed_tokens + num_new)
                scheduled.append(ScheduledSequence(seq, num_new))
                budget -= num_new
                index += 1

        # 2. 等待的，先来先服务；队首进不来，后面的也等着，免得大请求被小请求饿死。
        # 2. The waiting ones, first come first served; a blocked head blocks the rest, or small ones would starve it.
        # 刚发生过抢占就不接纳任何人：页已经不够，再放人进来只会马上又被抢占。
        # After a preemption admit nobody: blocks are short, and a newcomer would be preempted right away.
        while not preempted and self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            seq = self.waiting[0]
            hits = self.block_manager.find_prefix(seq)
            num_cached = len(hits) * self.block_manager.block_size
            num_new = min(seq.num_tokens - num_cached, budget)
            if not self.block_manager.can_allocate(seq, hits, num_cached + num_new):
                break
            self.waiting.popleft()
            self.block_manager.allocate(seq, hits, num_cached + num_new)
            if seq.num_preemptions == 0:
                seq.num_cached_tokens = num_cached
            seq.status = SequenceStatus.RUNNING
            self.running.append(seq)
            scheduled.append(ScheduledSequence(seq, num_new))
            budget -= num_new

        # 只有 1 个新 token 的行排到前面：它们走解码函数，其余走变长函数。排序是稳定的，组内次序不变。
        # Rows with 1 new token come first: they take the decode function, the rest the varlen one. The sort is stable.
        scheduled.sort(key=lambda row: row.num_new_tokens != 1)
        if self.strict:
            self._check(scheduled)
        return scheduled

    def _preempt_last(self) -> Sequence:
        """抢占最后接纳的序列：页全部归还，已算的清零，回到等待队列的最前面，以后连提示带输出重算。

        Preempt the sequence admitted last: all its blocks go back, nothing counts as computed, and it waits at the
        very front, to recompute prompt and output later.
        """
        seq = self.running.pop()
        self.block_manager.free(seq)
        seq.status = SequenceStatus.WAITING
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(seq)
        return seq

    def update(self, schedule: list[ScheduledSequence], token_ids: list[list[int]]) -> list[Sequence]:
        """把采样结果记到各序列上，登记写满的页，收走结束的请求。

        Record the sampled tokens, register full blocks, retire finished requests.

        Args:
            schedule: what `schedule` returned
            token_ids: for each row the tokens it got; empty where it did not sample

        Returns:
            the sequences that finished in this step
        """
        finished = []
        for (seq, num_new), tokens in zip(schedule, token_ids, strict=True):
            seq.num_computed_tokens += num_new
            for token in tokens:
                seq.token_ids.append(token)
                seq.finish_reason = self._finish_reason(seq, token)
                if seq.finish_reason:
                    break
            # 先登记，后释放：释放后的页仍可被命中，但只有登记过的才找得到。
            # Register before freeing: a freed block can still be hit, but only if it was registered.
            self.block_manager.register_full_blocks(seq)
            if seq.finish_reason:
                finished.append(seq)
        self._retire(finished)
        if self.strict:
            self.block_manager.check_integrity([*self.running, *self.waiting, *finished])
        return finished

    def _finish_reason(self, seq: Sequence, token: int) -> str | None:
        """该停了吗：遇到停止 token，或达到长度上限。

        Time to stop: a stop token came, or a length limit is reached.
        """
        if token in seq.stop_token_ids:
            # 与 vLLM 一致：只有用户自己给的停止 id 才写进 `stop_reason`，模型自带的结束符不写。
            # As in vLLM: only a stop id that the user gave is named in `stop_reason`, not the model's own end token.
            seq.stop_reason = token if token in (seq.params.stop_token_ids or ()) else None
            return "stop"
        if seq.num_output_tokens >= seq.params.max_tokens or seq.num_tokens >= self.max_model_len:
            return "length"
        return None

    def _retire(self, sequences: list[Sequence]) -> None:
        """结束的序列交还页，离开队列。

        Finished sequences return their blocks and leave the queues.
        """
        for seq in sequences:
            self.block_manager.free(seq)
            seq.status = SequenceStatus.FINISHED
        if sequences:
            self.running = [seq for seq in self.running if seq.status is SequenceStatus.RUNNING]

    def abort(self, request_id: str) -> Sequence | None:
        """取消一个请求，无论它在等待还是在运行；不存在或已结束则返回 None。

        Cancel a request, waiting or running; None if there is no such request any more.
        """
        for seq in chain(self.waiting, self.running):
            if seq.request_id == request_id:
                seq.finish_reason = "abort"
                if seq.status is SequenceStatus.WAITING:
                    self.waiting.remove(seq)
                self._retire([seq])
                return seq
        return None

    def _check(self, scheduled: list[ScheduledSequence]) -> None:
        """严格模式下每步核对：总 token 数不超预算，运行数不超上限。

        In strict mode, every step: tokens within the budget, running sequences within the cap.
        """
        total = sum(row.num_new_tokens for row in scheduled)
        if total > self.max_num_batched_tokens:
            raise RuntimeError(f"scheduled {total} tokens, the budget is {self.max_num_batched_tokens}")
        if len(self.running) > self.max_num_seqs:
            raise RuntimeError(f"{len(self.running)} sequences run, the cap is {self.max_num_seqs}")
        self.block_manager.check_integrity([*self.running, *self.waiting])
