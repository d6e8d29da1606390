"""一步里零个、一个或几个 token：序列带着猜测，猜对几个就多得几个。输出与没有猜测时相同，猜错的不留痕迹。

谁来猜不是这里的事：测试在每次安排之前写好 `draft_ids`，照着答案写对的，也写错的。

None, one or several tokens a step: sequences carry guesses and get one more token for each that is right. The outputs
are those without guesses, and wrong ones leave no trace. Who guesses does not matter here: the tests set `draft_ids`
before each step is planned, right ones from the answers, and wrong ones.
"""

import random
import zlib
from collections import Counter
from collections.abc import Callable

import pytest
from engine_helpers import (
    SlotModel,
    assert_all_free,
    make_scheduler,
    make_seq,
)

from engine.scheduler import ScheduledSequence, Scheduler
from engine.sequence import Sequence, SequenceStatus

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- 没有模型：照稿子念的 token ----
# ---- without a model: tokens by a script ----

STOP = 5


def next_token(tokens: tuple[int, ...]) -> int:
    """上文之后的那个 token，像一个贪心的模型；6 个里有 1 个是停止 token。

    The token after this context, like that of a greedy model; 1 of 6 is the stop token.
    """
    return zlib.crc32(bytes(tokens)) % 6


def continuation(seq: Sequence, count: int) -> list[int]:
    tokens = tuple(seq.token_ids)
    for _ in range(count):
        tokens = (*tokens, next_token(tokens))
    return list(tokens[seq.num_tokens :])


def sampled(row: ScheduledSequence) -> list[int]:
    """这一行各个位置抽出的 token，猜测也当作上文；再由序列自己取舍。

    The tokens drawn at the row's positions, with the guesses as context; the sequence then keeps what it may.
    """
    seq, first = row.seq, row.seq.num_tokens
    inputs = (*seq.token_ids, *seq.draft_ids)
    return seq.accept([next_token(inputs[: first + i]) for i in range(row.num_logits)])


def script(seed: int, with_guesses: bool, seen: Counter[str]) -> dict[str, tuple[list[int], str | None]]:
    """一场随机的戏：块池和预算都很小，中途有人加入和离开；每步核对账目和槽位的内容，返回每个请求的输出。

    A random play: pool and budget are tiny, some join and leave on the way; in each step the books and the contents of
    the slots are checked. Returns each request's output.
    """
    rng, dice = random.Random(seed), random.Random(-seed)
    block_size, num_blocks = rng.choice([1, 2, 4, 8]), rng.randint(3, 9)
    max_num_seqs, budget = rng.randint(1, 5), rng.randint(1, 14)
    scheduler = make_scheduler(num_blocks, block_size, max_num_seqs, budget, caching=rng.random() < 0.8)
    slots, limit = SlotModel(block_size), scheduler.max_model_len
    heads = [[rng.randrange(5) for _ in range(size)] for size in (2, 4, 9)]
    seqs = []
    for number in range(rng.randint(2, 7)):
        prompt = [*rng.choice(heads), *(rng.randrange(5) for _ in range(rng.randint(0, 5)))][: limit - 1]
        stop = (STOP,) if rng.random() < 0.6 else ()
        seqs.append(make_seq(str(number), prompt, rng.choice([1, 2, 3, 9, 30]), stop=stop))
    late = seqs[rng.randint(1, len(seqs)) :]
    for seq in seqs[: len(seqs) - len(late)]:
        scheduler.add(seq)
    steps = 0
    while scheduler.has_unfinished() or late:
        steps += 1
        assert steps < 1000, "the scheduler makes no progress"
        if late and (steps % 3 == 0 or not scheduler.has_unfinished()):
            scheduler.add(late.pop())
        proposed = {}
        for seq in [*scheduler.running, *scheduler.waiting] if with_guesses else []:
            right, wrong = dice.choice([(0, 0), (0, 2), (1, 0), (2, 1), (4, 0), (7, 1)])
            seq.draft_ids = continuation(seq, right) + [9] * wrong
            proposed[seq] = list(seq.draft_ids)
        preemptions = scheduler.num_preemptions
        schedule = scheduler.schedule()
        slots.execute(schedule, scheduler.block_manager)
        token_ids = [sampled(row) for row in schedule]
        for row, tokens in zip(schedule, token_ids):
            guesses = proposed.get(row.seq, [])
            seen["cut"] += row.samples and row.seq.draft_ids != guesses
            seen[["none", "one", "several"][min(len(tokens), 2)]] += 1
            seen["wrong"] += len(row.seq.draft_ids) >= len(tokens) > 0
            seen["chunks"] += not row.samples
        before = {row.seq: row.seq.num_output_tokens for row in schedule}
        finished = scheduler.update(schedule, token_ids)
        for row, tokens in zip(schedule, token_ids):
            assert row.seq.num_output_tokens == before[row.seq] + len(tokens) and row.seq.draft_ids == []
        for seq in scheduler.running:
            assert seq.num_computed_tokens < seq.num_tokens
        slots.check_registered(scheduler.block_manager)
        seen["preemptions"] += scheduler.num_preemptions - preemptions
        for seq in finished:
            several = with_guesses and before[seq] + 1 < seq.num_output_tokens
            why = "max_model_len" if seq.num_tokens == limit else seq.finish_reason
            seen[f"{why} among guesses"] += several
    assert_all_free(scheduler.block_manager)
    seen["hits"] += scheduler.block_manager.stats.hit
    assert all(seq.status is SequenceStatus.FINISHED for seq in seqs)
    return {seq.request_id: (seq.output_token_ids, seq.finish_reason) for seq in seqs}


def test_outputs_are_those_without_guesses() -> None:
    seen, plain = Counter[str](), Counter[str]()
    for seed in range(400):
        assert script(seed, True, seen) == script(seed, False, plain), seed
    # 该遇到的都遇到了，否则上面的相等不说明什么。
    # All of this was met, or the equality above would mean little.
    for what in (
        "none", "one", "several", "cut", "wrong", "chunks", "preemptions", "hits", "stop among guesses",
        "length among guesses", "max_model_len among guesses",
    ):
        assert seen[what] > 20, (what, seen)


# ---- 故意弄坏：上面的测试找得到 ----
# ---- broken on purpose: the test above finds it ----


def count_wrong_guesses_as_computed(patch: pytest.MonkeyPatch) -> None:
    real = Scheduler.advance

    def advance(self: Scheduler, schedule: list[ScheduledSequence], num_sampled: list[int]) -> None:
        wrong = [max(row.num_logits - count, 0) for row, count in zip(schedule, num_sampled)]
        real(self, schedule, num_sampled)
        for row, count in zip(schedule, wrong):
            row.seq.num_computed_tokens += count

    patch.setattr(Scheduler, "advance", advance)


def register_before_it_is_known_what_was_right(patch: pytest.MonkeyPatch) -> None:
    real = Scheduler.update

    def update(self: Scheduler, schedule: list[ScheduledSequence], token_ids: list[list[int]]) -> list[Sequence]:
        for seq, count in schedule:
            known, computed = list(seq.token_ids), seq.num_computed_tokens
            seq.token_ids, seq.num_computed_tokens = [*known, *seq.draft_ids], computed + count
            self.block_manager.register_full_blocks(seq)
            seq.token_ids, seq.num_computed_tokens = known, computed
        return real(self, schedule, token_ids)

    patch.setattr(Scheduler, "update", update)


def name_blocks_that_hold_wrong_guesses(patch: pytest.MonkeyPatch) -> None:
    real = Scheduler.update

    # 名字是对的，槽位里却还是猜错的那个：像是忘了重写。
    # The name is right, but the slot still holds the wrong guess, as if it had been forgotten to write it anew.
    def update(self: Scheduler, schedule: list[ScheduledSequence], token_ids: list[list[int]]) -> list[Sequence]:
        wrong = [row.num_logits > len(tokens) for row, tokens in zip(schedule, token_ids)]
        finished = real(self, schedule, token_ids)
        for row, was_wrong in zip(schedule, wrong):
            if was_wrong and row.seq.status is SequenceStatus.RUNNING:
                row.seq.num_computed_tokens += 1
                self.block_manager.register_full_blocks(row.seq)
                row.seq.num_computed_tokens -= 1
        return finished

    patch.setattr(Scheduler, "update", update)


def keep_what_follows_a_wrong_guess(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sequence, "accept", lambda self, drawn: drawn)


def keep_guesses_as_known(patch: pytest.MonkeyPatch) -> None:
    real = Scheduler.advance

    def advance(self: Scheduler, schedule: list[ScheduledSequence], num_sampled: list[int]) -> None:
        guesses = [list(row.seq.draft_ids) for row in schedule]
        real(self, schedule, num_sampled)
        for row, mine in zip(schedule, guesses):
            row.seq.draft_ids = mine

    patch.setattr(Scheduler, "advance", advance)


def do_not_cut(patch: pytest.MonkeyPatch) -> None:
    def fit(self: Scheduler, seq: Sequence, num_known: int, budget: int) -> int:
        end = seq.num_computed_tokens + num_known + len(seq.draft_ids)
        if end - len(seq.draft_ids) < seq.num_tokens or not self.block_manager.can_grow(seq, end):
            seq.draft_ids = []
        self.block_manager.grow(seq, seq.num_computed_tokens + num_known + len(seq.draft_ids))
        return len(seq.draft_ids)

    patch.setattr(Scheduler, "_fit_drafts", fit)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (count_wrong_guesses_as_computed, "nothing left to compute"),
        (register_before_it_is_known_what_was_right, "writes a block that others can hit"),
        (name_blocks_that_hold_wrong_guesses, "block . holds .*, its name is"),
        (keep_what_follows_a_wrong_guess, "holds|attends to"),
        (keep_guesses_as_known, r"\[9\] == \[\]"),
        (do_not_cut, "the budget is"),
    ],
)
def test_a_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [script(seed, False, Counter()) for seed in range(60)]
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError), match=message):
        for seed, outputs in enumerate(expected):
            assert script(seed, True, Counter()) == outputs
