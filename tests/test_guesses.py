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
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import (
    Request,
    Run,
    SlotModel,
    add_guesses,
    assert_all_free,
    assert_equal_or_close_call,
    check_logprobs,
    make_scheduler,
    make_seq,
    mixed_requests,
    run_requests,
    small_model_folder,
)
from overlap_helpers import MAX_LEN, ROOMY, make_llm

from engine.batch import build_batch, flatten
from engine.sampling_params import SamplingParams
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
        for seq, count, _ in schedule:
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


# ---- 真的前向 ----
# ---- a real forward pass ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("guesses") / "model")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """混合请求，没有惩罚；一部分要 `min_tokens`、对数概率、停止字符串。

    Mixed requests without penalties; some with `min_tokens`, log-probabilities or stop strings.
    """
    requests = mixed_requests(vocab_size=2000, count=40, seed=9)
    for index, request in enumerate(requests):
        least = request.params.max_tokens // 2
        extra = [dict(min_tokens=least), dict(logprobs=2), dict(stop=["th", "的"]), {}][index % 4]
        request.params = replace(request.params, **extra)
    return requests


@pytest.fixture(scope="module")
def plain(folder: Path, requests: list[Request]) -> Run:
    return run_requests(make_llm(folder, overlapped=False, **ROOMY, enable_prefix_caching=False), requests)


VARIANTS: dict[str, dict[str, Any]] = {
    "roomy": {},
    "reference backend": dict(backend="torch"),
    "tiny pool": dict(num_kvcache_blocks=MAX_LEN // 16),
    "budget of 7 tokens, tiny pool": dict(max_num_batched_tokens=7, num_kvcache_blocks=MAX_LEN // 16 + 1),
    "blocks of 8, few at once": dict(kvcache_block_size=8, num_kvcache_blocks=200, max_num_seqs=5),
}


@pytest.mark.parametrize("kind", ["right", "wrong", "mixed"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_real_model_gives_the_tokens_of_the_run_without_guesses(
    folder: Path, requests: list[Request], plain: Run, name: str, kind: str
) -> None:
    llm = make_llm(folder, overlapped=False, **{**ROOMY, **VARIANTS[name]})
    seen = add_guesses(llm.engine, plain, kind)
    run = run_requests(llm, requests)
    assert assert_equal_or_close_call(plain, run, requests) <= 2
    check_logprobs(plain, run, requests)
    for a, b in zip(plain.outputs, run.outputs):
        if a.outputs[0].token_ids == b.outputs[0].token_ids:
            assert (a.outputs[0].text, a.outputs[0].stop_reason) == (b.outputs[0].text, b.outputs[0].stop_reason)
    assert (run.num_preemptions > 10) == ("tiny pool" in name)
    assert llm.engine.num_generated_tokens == sum(map(len, run.tokens))
    assert seen["guesses"] > 100 and (seen["right"] > 50) == (kind != "wrong")
    if kind == "right" and name == "roomy":
        # 最长的输出 40 个 token，每步平均 4 个。
        # The longest output has 40 tokens, with 4 a step on average.
        assert len(run.decisions) < len(plain.decisions) / 2


def test_guesses_of_several_outputs_and_a_prefix_hit(folder: Path) -> None:
    # 两份输出共用提示词的块，各带各的猜测；种子相差 1，所以各说各的。
    # Two outputs share the prompt's blocks, each with guesses of its own; their seeds differ by 1, and so do the texts.
    params = SamplingParams(temperature=1.0, seed=8, max_tokens=24, n=2, ignore_eos=True)
    prompt = list(range(3, 60))
    expected = make_llm(folder, overlapped=False, **ROOMY).generate([prompt], params, progress=False)[0]
    answers = [completion.token_ids for completion in expected.outputs]
    assert answers[0] != answers[1]
    engine = (llm := make_llm(folder, overlapped=False, **ROOMY)).engine
    real = engine.plan

    def plan() -> list[ScheduledSequence]:
        for seq in engine.scheduler.running:
            said = seq.num_output_tokens
            seq.draft_ids = [*answers[seq.index][said : said + 3], answers[1 - seq.index][0]]
        return real()

    engine.plan = plan  # type: ignore[method-assign]
    output = llm.generate([prompt], params, progress=False)[0]
    assert [completion.token_ids for completion in output.outputs] == answers
    assert engine.num_computed_tokens > len(prompt) + 2 * 24
    assert_all_free(engine.block_manager)


# ---- 摊平 ----
# ---- laying flat ----


def test_a_row_with_guesses_laid_flat() -> None:
    # 块大小 4。A 已知 6 个、已算 5 个，猜 2 个；B 的提示词 3 个；C 解码 1 个；D 的提示词还没完。
    # Blocks of 4. A has 6 known, 5 computed and 2 guesses; B is a prompt of 3; C decodes 1; D's prompt does not end.
    sizes = {"a": 4, "b": 3, "c": 2, "d": 9}
    a, b, c, d = (make_seq(name, [10 * i + j for j in range(sizes[name])]) for i, name in enumerate(sizes))
    a.token_ids += [50, 51]
    c.token_ids += [52]
    a.num_computed_tokens, a.block_table, a.draft_ids = 5, [7, 2], [60, 61]
    b.block_table, c.block_table, d.block_table = [0], [5], [1, 3]
    c.num_computed_tokens = 2
    schedule = [ScheduledSequence(*row) for row in ((c, 1, 1), (a, 3, 3), (b, 3, 1), (d, 5, 0))]
    step = flatten(schedule, 4)
    assert step.input_ids == [52, 51, 60, 61, 10, 11, 12, 30, 31, 32, 33, 34]
    assert step.positions == [2, 5, 6, 7, 0, 1, 2, 0, 1, 2, 3, 4]
    assert step.slots == [22, 9, 10, 11, 0, 1, 2, 4, 5, 6, 7, 12]
    assert step.logits_indices == [0, 1, 2, 3, 6]
    # 同一行的几个位置，输出的序号依次往上数。
    # The positions of a row count their outputs up.
    assert step.samples == [(c, 1), (a, 2), (a, 3), (a, 4), (b, 0)]
    assert step.pending == []
    batch = build_batch(schedule, 4, torch.device("cpu"))
    assert batch.input_ids.tolist() == step.input_ids and batch.positions.tolist() == step.positions
    assert batch.metadata.slot_mapping.tolist() == step.slots
    assert batch.logits_indices.tolist() == step.logits_indices
    assert (batch.metadata.num_decodes, batch.metadata.cache_seqlens.tolist()) == (1, [3])
    assert batch.metadata.cu_seqlens_q.tolist() == [0, 3, 6, 11]
    assert batch.metadata.cu_seqlens_k.tolist() == [0, 8, 11, 16]
    assert batch.metadata.prefill_block_tables.tolist() == [[7, 2], [0, -1], [1, 3]]
