"""调度器和块管理器的状态机测试：任意次序的加入、取消、走步，每条规则之后核对账目和每个槽位的内容。

State-machine tests of scheduler and block manager: any order of adding, aborting and stepping; after each rule the
books and the contents of every slot are checked.
"""

import copy
from collections import Counter, defaultdict
from itertools import chain, count
from typing import ClassVar

import hypothesis.strategies as st
import pytest
from engine_helpers import SlotModel, assert_all_free, few_hashes, make_scheduler, make_seq, rows
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.block_manager import num_blocks_needed
from engine.scheduler import ScheduledSequence
from engine.sequence import PENDING_TOKEN, Sequence, SequenceStatus

# 提示词由少数几段拼成，相同的开头因此很常见；块大小 2 让一段恰好是一个或两个块。
# Prompts are made of a few pieces, so equal beginnings are common; with blocks of 2 a piece is one block or two.
PIECES = [[0, 0], [0, 1], [1, 0, 0, 1], [1]]
STOP = 2


class FakeText:
    """代替 `OutputText`：第 `stop_at` 个 token 完成一个停止字符串；核对 token 逐个、按次序、不重不漏地送来。

    In place of `OutputText`: token `stop_at` completes a stop string. Checks that the tokens come one by one, in order,
    none twice and none left out.
    """

    def __init__(self, expected: list[int], stop_at: int, min_tokens: int) -> None:
        self.expected, self.stop_at, self.min_tokens, self.count = expected, stop_at, min_tokens, 0

    def append(self, token: int, check_stop: bool) -> str | None:
        assert token == self.expected[self.count]
        self.count += 1
        assert check_stop == (self.count >= self.min_tokens)
        return "end" if self.count == self.stop_at else None


class SchedulerMachine(RuleBasedStateMachine):
    """被测对象：严格模式的调度器；对照：槽位内容的模型和几条不变式。

    Under test: a strict scheduler. Judges: the model of slot contents, and a few invariants.
    """

    hash_values: int | None = None
    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.live: list[Sequence] = []
        self.names = count()
        self.added: list[str] = []
        self.admitted: list[str] = []
        self.expected: dict[str, list[int]] = {}
        self.by_text: set[str] = set()
        self._hashes = few_hashes(self.hash_values) if self.hash_values else None
        if self._hashes:
            self._hashes.__enter__()

    @initialize(
        num_blocks=st.integers(3, 9),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        caching=st.sampled_from([True, True, True, False]),
    )
    def start(self, num_blocks: int, block_size: int, max_num_seqs: int, budget: int, caching: bool) -> None:
        self.scheduler = make_scheduler(num_blocks, block_size, max_num_seqs, budget, caching=caching)
        self.slots = SlotModel(block_size)

    @rule(
        pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5),
        max_tokens=st.integers(1, 8),
        output=st.lists(st.sampled_from([0, 0, 1, STOP]), min_size=8, max_size=8),
        stop_at=st.none() | st.integers(1, 8),
    )
    def add(self, pieces: list[list[int]], max_tokens: int, output: list[int], stop_at: int | None) -> None:
        limit = self.scheduler.max_model_len
        prompt = [token for piece in pieces for token in piece][: limit - 1]
        seq = make_seq(str(next(self.names)), prompt, max_tokens, stop=(STOP,))
        # 请求会输出什么，加入时就定好，与调度无关；最后的输出必须恰好等于它。
        # What a request will say is fixed here and independent of scheduling; its output must equal just that.
        end = output.index(STOP) + 1 if STOP in output else len(output)
        # 停止 token 先于停止字符串，停止字符串先于长度。
        # A stop token comes before a stop string, and that before a length.
        said = output[: min(end, max_tokens, limit - len(prompt), stop_at or 8)]
        self.expected[seq.request_id] = said
        if stop_at is not None:
            seq.output_text = FakeText(said, stop_at, seq.params.min_tokens)  # type: ignore[assignment]
            self.by_text |= {seq.request_id} if len(said) == stop_at and said[-1] != STOP else set()
        self.added.append(seq.request_id)
        self.live.append(seq)
        self.scheduler.add(seq)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99))
    def abort(self, which: int) -> None:
        seq = self.live[which % len(self.live)]
        assert self.scheduler.abort(seq.request_id) is seq
        assert seq.finish_reason == "abort" and seq.block_table == []
        assert self.scheduler.abort(seq.request_id) is None
        said = self.expected[seq.request_id]
        assert seq.output_token_ids == said[: seq.num_output_tokens]
        self.live.remove(seq)
        self.reached["aborts of admitted requests"] += seq.request_id in self.admitted
        if seq.request_id not in self.admitted:
            self.added.remove(seq.request_id)

    @precondition(lambda self: self.live)
    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.live:
                self.one_step()

    def one_step(self) -> None:
        scheduler = self.scheduler
        running, preemptions = list(scheduler.running), scheduler.num_preemptions
        self.num_held = {seq: len(seq.block_table) for seq in running}
        schedule = self.plan()
        self.check_schedule(schedule, running, scheduler.num_preemptions > preemptions)
        self.slots.execute(schedule, scheduler.block_manager)
        finished = scheduler.update(schedule, [self.sampled(row) for row in schedule])
        assert all(seq.num_computed_tokens < seq.num_tokens for seq in scheduler.running)
        for seq in finished:
            assert seq.output_token_ids == self.expected[seq.request_id]
            self.check_reason(seq)
            self.live.remove(seq)

    def plan(self) -> list[ScheduledSequence]:
        return self.scheduler.schedule()

    def drain(self) -> None:
        """收回还没收回的步；同步的机器没有。

        Collect what has been launched; in the synchronous machine that is nothing.
        """

    def check_reason(self, seq: Sequence) -> None:
        by_text = seq.request_id in self.by_text
        assert seq.stop_reason == ("end" if by_text else None)
        assert seq.finish_reason == ("stop" if by_text or seq.token_ids[-1] == STOP else "length")
        self.reached["stop strings"] += by_text

    def sampled(self, row: ScheduledSequence) -> list[int]:
        return [self.expected[row.seq.request_id][row.seq.num_output_tokens]] if row.samples else []

    def check_schedule(self, schedule: list[ScheduledSequence], before: list[Sequence], preempted: bool) -> None:
        scheduler = self.scheduler
        assert schedule, "a step with live requests schedules something"
        new_tokens = [row.num_new_tokens for row in schedule]
        assert sum(new_tokens) <= scheduler.max_num_batched_tokens and min(new_tokens) >= 1
        assert len(scheduler.running) <= scheduler.max_num_seqs
        # 只有 1 个新 token 的行在前，两组各自保持运行的次序。
        # Rows of 1 new token come first, and both groups keep the running order.
        place = {seq.request_id: index for index, seq in enumerate(scheduler.running)}
        keys = [(row.num_new_tokens != 1, place[row.seq.request_id]) for row in schedule]
        assert keys == sorted(keys)
        for row in schedule:
            seq, num_guesses = row.seq, len(row.seq.draft_ids)
            computed, known = seq.num_computed_tokens + row.num_new_tokens, seq.num_tokens
            # 已知的都排上了，才有猜测；没猜中的下一步重写，它们的块还留着。
            # Guesses only where all known tokens are scheduled; wrong ones are written anew, and their blocks stay.
            assert computed <= known or (num_guesses and computed == known + num_guesses)
            assert row.samples == (computed >= known)
            assert row.num_logits == (1 + num_guesses if row.samples else 0)
            assert seq.num_output_tokens + num_guesses < seq.params.max_tokens
            assert known + num_guesses < scheduler.max_model_len
            needed = num_blocks_needed(computed, scheduler.block_manager.block_size)
            assert len(seq.block_table) == max(needed, self.num_held.get(seq, 0))
        # 原来在运行的，留下的是一个前缀；新接纳的排在后面，抢占的那一步没有新接纳的。
        # Of those that ran before, a prefix remains; newcomers follow, and there are none in a step with a preemption.
        kept = [seq for seq in before if seq.status is SequenceStatus.RUNNING]
        assert kept == before[: len(kept)] == scheduler.running[: len(kept)]
        assert (len(kept) < len(before)) == preempted
        newcomers = scheduler.running[len(kept) :]
        assert not (preempted and newcomers)
        # 排在最前面的运行者每步都有进展，所以不会有死循环。
        # The first of the running advances in each step, so there is no livelock.
        assert scheduler.running[0].request_id in dict(rows(schedule))
        # 第一次接纳的次序就是加入的次序。
        # The order of first admissions is the order of adding.
        self.admitted += [seq.request_id for seq in newcomers if seq.request_id not in self.admitted]
        assert self.admitted == self.added[: len(self.admitted)]

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        scheduler.block_manager.check_integrity(self.live)
        assert {*scheduler.running, *scheduler.waiting} == set(self.live)
        assert len(scheduler.running) + len(scheduler.waiting) == len(self.live)
        assert all(seq.status is SequenceStatus.RUNNING for seq in scheduler.running)
        assert all(seq.status is SequenceStatus.WAITING and not seq.block_table for seq in scheduler.waiting)
        self.slots.check_registered(scheduler.block_manager)

    def teardown(self) -> None:
        try:
            if not hasattr(self, "scheduler"):
                return
            steps = 0
            while self.live:
                self.one_step()
                steps += 1
                assert steps < 2000, "the scheduler makes no progress"
            self.drain()
            assert_all_free(self.scheduler.block_manager)
            self.reached["preemptions"] += self.scheduler.num_preemptions
            self.reached["hits"] += self.scheduler.block_manager.stats.hit
        finally:
            if self._hashes:
                self._hashes.__exit__(None, None, None)


class CollidingMachine(SchedulerMachine):
    """哈希只有 3 个值：几乎每个块都碰撞。

    Hashes take 3 values only: nearly every block collides.
    """

    hash_values = 3
    reached: ClassVar[Counter[str]] = Counter()


class GuessingMachine(SchedulerMachine):
    """每步之前给每个序列随意的猜测：几个对的，接着几个错的；对的可以一直猜到说完之后。

    Before each step every sequence gets guesses as it comes: some that are right, then some that are wrong; right ones
    may go on past the end of what it says.
    """

    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.guesses = [(0, 0)]
        self.turn = 0

    @rule(guesses=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=4))
    def choose(self, guesses: list[tuple[int, int]]) -> None:
        self.guesses = guesses

    def drawn(self, seq: Sequence, number: int) -> int:
        """前面的猜测都对时，第 `number` 个位置抽出的 token；说完之后是别的什么。

        The token drawn at position `number` while all guesses before are right; past the end it is something else.
        """
        said = self.expected[seq.request_id][seq.num_output_tokens :]
        return said[number] if number < len(said) else 7 + number % 2

    def plan(self) -> list[ScheduledSequence]:
        self.turn += 1
        # 没有猜测时的决定：谁运行、各算几个已知的、抢占谁，都不许因为猜测而变。
        # What is decided without guesses: who runs, with how many known tokens, who is preempted; guesses must not
        # change it.
        twin = copy.deepcopy(self.scheduler)
        for seq in chain(twin.running, twin.waiting):
            seq.draft_ids = []
        expected = dict(rows(twin.schedule()))
        for index, seq in enumerate(self.live):
            right, wrong = self.guesses[(self.turn + index) % len(self.guesses)]
            seq.draft_ids = [self.drawn(seq, number) for number in range(right)] + [99] * wrong
        proposed = {seq: len(seq.draft_ids) for seq in self.live}
        schedule = self.scheduler.schedule()
        assert {row.seq.request_id: row.num_new_tokens - len(row.seq.draft_ids) for row in schedule} == expected
        assert [seq.request_id for seq in self.scheduler.running] == [seq.request_id for seq in twin.running]
        self.reached["guesses cut"] += sum(len(row.seq.draft_ids) < proposed[row.seq] for row in schedule)
        return schedule

    def sampled(self, row: ScheduledSequence) -> list[int]:
        seq, tokens = row.seq, list[int]()
        for number in range(row.num_logits):
            # 猜错之后抽出来的是什么都可以，没有人用。
            # Behind a wrong guess anything may be drawn, and nobody uses it.
            right = seq.draft_ids[:number] == tokens
            tokens.append(self.drawn(seq, number) if right else 50 + number)
        kept = seq.accept(tokens)
        self.reached["tokens of right guesses"] += max(len(kept) - 1, 0)
        self.reached["wrong guesses"] += len(tokens) - len(kept)
        self.reached["an end among right guesses"] += len(kept) > len(self.expected[seq.request_id]) - (
            seq.num_output_tokens
        )
        return kept


class LateSlotModel(SlotModel):
    """主机只看到占位时，设备上已经是真的 token：写进槽位的是真的。

    Where the host sees a placeholder the device has the token: the real one is what goes into the slot.
    """

    def __init__(self, block_size: int, sampled: dict[str, list[int]]) -> None:
        super().__init__(block_size)
        self.sampled = sampled

    def prefix(self, seq: Sequence, length: int) -> tuple[int, ...]:
        known = len(seq.token_ids) - seq.num_pending_tokens
        assert PENDING_TOKEN not in seq.token_ids[:known]
        assert seq.token_ids[known:] == [PENDING_TOKEN] * seq.num_pending_tokens
        return (*seq.prompt_token_ids, *self.sampled[seq.request_id])[:length]


class LateMachine(SchedulerMachine):
    """重叠循环的次序：第 N + 1 步已经安排好、发出去，第 N 步的 token 才读到。

    The overlapped loop's order: step N + 1 is planned and launched before step N's tokens are read.
    """

    reached: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.launched: tuple[list[ScheduledSequence], list[list[int]]] | None = None
        self.on_device: dict[str, list[int]] = defaultdict(list)

    @initialize(
        num_blocks=st.integers(3, 9),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        caching=st.sampled_from([True, True, True, False]),
    )
    def start(self, num_blocks: int, block_size: int, max_num_seqs: int, budget: int, caching: bool) -> None:
        self.scheduler = make_scheduler(num_blocks, block_size, max_num_seqs, budget, caching=caching)
        self.slots = LateSlotModel(block_size, self.on_device)

    def one_step(self) -> None:
        scheduler = self.scheduler
        running, preemptions = list(scheduler.running), scheduler.num_preemptions
        waiting_for_tokens = {seq for seq in self.live if seq.num_pending_tokens}
        previous, self.launched = self.launched, None
        schedule = scheduler.schedule()
        self.check_schedule(schedule, running, scheduler.num_preemptions > preemptions)
        # 被抢占时 token 还没读到的，之后照样得到它。
        # A sequence preempted before its token was read gets the token all the same.
        self.reached["preempted with a token unread"] += any(seq not in scheduler.running for seq in waiting_for_tokens)
        if schedule:
            self.slots.execute(schedule, scheduler.block_manager)
            tokens = [self.sampled(row) for row in schedule]
            for row, new in zip(schedule, tokens):
                self.on_device[row.seq.request_id] += new
            scheduler.advance(schedule, [bool(new) for new in tokens])
            self.launched = (schedule, tokens)
        scheduler.block_manager.check_integrity(self.live)
        assert schedule or previous, "with nothing to plan there must be tokens to read"
        if previous:
            self.commit(*previous)

    def commit(self, schedule: list[ScheduledSequence], tokens: list[list[int]]) -> None:
        gone = sum(row.seq not in self.live for row in schedule)
        self.reached["rows of finished or aborted requests"] += gone
        for seq in self.scheduler.commit(schedule, tokens):
            assert seq.output_token_ids == self.expected[seq.request_id]
            self.check_reason(seq)
            self.live.remove(seq)

    def sampled(self, row: ScheduledSequence) -> list[int]:
        if not row.samples:
            return []
        said, index = self.expected[row.seq.request_id], row.seq.num_output_tokens
        # 长度上限数得出来，不会多发一步；停止 token 和停止字符串数不出来，最多多发一步，那一步采到什么都不要紧。
        # Length limits can be counted and launch no extra step; stop tokens and stop strings cannot, and cost one at
        # most, whose token does not matter.
        stopped = said[-1] == STOP or row.seq.request_id in self.by_text
        assert index < len(said) or (index == len(said) and stopped)
        return [said[index] if index < len(said) else 7]

    def check_schedule(self, schedule: list[ScheduledSequence], before: list[Sequence], preempted: bool) -> None:
        scheduler = self.scheduler
        for row in schedule:
            seq = row.seq
            assert seq.num_output_tokens < seq.params.max_tokens and seq.num_tokens < scheduler.max_model_len
        # 已到上限、只等 token 的序列不参与这一步；其余的规矩与同步时一样。
        # Sequences at their limit, which only wait for a token, sit out; the other rules are those of the synchronous
        # loop.
        done = [seq for seq in scheduler.running if seq.num_pending_tokens and self.at_limit(seq)]
        self.reached["waits for its last token"] += bool(done)
        assert not set(done) & {row.seq for row in schedule}
        if not schedule:
            assert set(done) == set(scheduler.running), "a step may be empty only if all wait for their last token"
            return
        new_tokens = [row.num_new_tokens for row in schedule]
        assert sum(new_tokens) <= scheduler.max_num_batched_tokens and min(new_tokens) >= 1
        assert len(scheduler.running) <= scheduler.max_num_seqs
        place = {seq.request_id: index for index, seq in enumerate(scheduler.running)}
        keys = [(row.num_new_tokens != 1, place[row.seq.request_id]) for row in schedule]
        assert keys == sorted(keys)
        kept = [seq for seq in before if seq.status is SequenceStatus.RUNNING]
        assert kept == before[: len(kept)] == scheduler.running[: len(kept)]
        assert (len(kept) < len(before)) == preempted
        newcomers = scheduler.running[len(kept) :]
        assert not (preempted and newcomers)
        first = next(seq for seq in scheduler.running if seq not in done)
        assert first.request_id in dict(rows(schedule))
        self.admitted += [seq.request_id for seq in newcomers if seq.request_id not in self.admitted]
        assert self.admitted == self.added[: len(self.admitted)]

    def at_limit(self, seq: Sequence) -> bool:
        return (
            seq.num_output_tokens >= seq.params.max_tokens or seq.num_tokens >= self.scheduler.max_model_len
        )

    def drain(self) -> None:
        if self.launched:
            self.commit(*self.launched)
            self.launched = None


# 猜测的机器很少遇到抢占，所以平时也要 250 例。
# The guessing machine meets few preemptions, so it always takes 250 examples.
LESS = [(machine, 120) for machine in (SchedulerMachine, CollidingMachine, LateMachine)]
MORE = [pytest.param(machine, 250, marks=pytest.mark.long) for machine, _ in LESS]


@pytest.mark.parametrize(("machine", "examples"), [*LESS, (GuessingMachine, 250), *MORE])
def test_scheduler_machine(machine: type[SchedulerMachine], examples: int) -> None:
    machine.reached.clear()
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    # 机器若从没遇到抢占、命中和取消，上面的通过就不说明什么。
    # Passing would mean little had the machine never met a preemption, a hit or an abort.
    special = ["preempted with a token unread", "rows of finished or aborted requests", "waits for its last token"]
    usual = ["preemptions", "hits", "aborts of admitted requests", "stop strings"]
    guesses = ["guesses cut", "tokens of right guesses", "wrong guesses", "an end among right guesses"]
    for what in usual + special * (machine is LateMachine) + guesses * (machine is GuessingMachine):
        assert machine.reached[what] > 30, machine.reached
