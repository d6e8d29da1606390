"""调度器，不带模型：预算、接纳、抢占、停止、取消的每条行为，各有一个手算得出的例子。

The scheduler without a model: budget, admission, preemption, stopping and aborts, each behaviour with an example
that can be worked by hand.
"""

from typing import Any

import pytest
from engine_helpers import assert_all_free, few_hashes, make_scheduler, make_seq, rows, run_all, step

from engine.scheduler import ScheduledSequence, Scheduler
from engine.sequence import Sequence, SequenceStatus


def ids(sequences: list[Sequence]) -> list[str]:
    return [seq.request_id for seq in sequences]


# ---- 预算与分块 ----
# ---- budget and chunks ----


def test_a_short_prompt_runs_whole_then_decodes() -> None:
    scheduler = make_scheduler()
    seq = make_seq("a", [1, 2, 3], max_tokens=3)
    scheduler.add(seq)
    assert run_all(scheduler) == [[("a", 3)], [("a", 1)], [("a", 1)]]
    assert seq.output_token_ids == [1003, 1004, 1005]
    assert seq.finish_reason == "length" and seq.status is SequenceStatus.FINISHED
    assert_all_free(scheduler.block_manager)


def test_a_long_prompt_is_cut_into_chunks_and_samples_only_at_the_end() -> None:
    scheduler = make_scheduler(budget=4)
    seq = make_seq("a", list(range(10)), max_tokens=2)
    scheduler.add(seq)
    outputs = []
    for expected in ([("a", 4)], [("a", 4)], [("a", 2)], [("a", 1)]):
        assert step(scheduler) == expected
        outputs.append(seq.num_output_tokens)
    assert outputs == [0, 0, 1, 2]


def test_a_chunk_takes_what_the_decodes_leave_and_runs_beside_them() -> None:
    scheduler = make_scheduler(budget=5)
    scheduler.add(make_seq("a", [1, 2], max_tokens=9))
    scheduler.add(make_seq("b", [3], max_tokens=9))
    assert step(scheduler) == [("b", 1), ("a", 2)]
    scheduler.add(make_seq("c", list(range(10)), max_tokens=9))
    assert step(scheduler) == [("a", 1), ("b", 1), ("c", 3)]
    assert step(scheduler) == [("a", 1), ("b", 1), ("c", 3)]
    assert step(scheduler) == [("a", 1), ("b", 1), ("c", 3)]
    # 最后一段只有 1 个 token，也能采样。
    # The last chunk has a single token, and it samples.
    assert step(scheduler) == [("a", 1), ("b", 1), ("c", 1)]
    assert scheduler.running[2].num_output_tokens == 1


def test_a_chunk_of_one_token_that_is_not_the_last_does_not_sample() -> None:
    scheduler = make_scheduler(budget=2)
    first, second = make_seq("a", [1], max_tokens=9), make_seq("b", [2, 3, 4], max_tokens=9)
    scheduler.add(first)
    scheduler.add(second)
    schedule = scheduler.schedule()
    assert rows(schedule) == [("a", 1), ("b", 1)]
    assert [row.samples for row in schedule] == [True, False]
    scheduler.update(schedule, [[7], []])
    assert (first.num_output_tokens, second.num_output_tokens) == (1, 0)


def test_a_budget_smaller_than_the_running_keeps_everybodys_place() -> None:
    scheduler = make_scheduler(budget=2)
    for name in "abcd":
        scheduler.add(make_seq(name, [ord(name)], max_tokens=3))
    steps = run_all(scheduler)
    # 前两个每步都轮到，做完了才轮到后面的；没有人被抢占或丢失位置。
    # The first two are served in each step, then the next; nobody is preempted or loses the place.
    assert steps == [[("a", 1), ("b", 1)]] * 3 + [[("c", 1), ("d", 1)]] * 3
    assert scheduler.num_preemptions == 0


def test_running_sequences_beyond_the_budget_are_kept() -> None:
    scheduler = make_scheduler(budget=4)
    for name in "abcd":
        scheduler.add(make_seq(name, [ord(name)], max_tokens=9))
    step(scheduler)
    scheduler.max_num_batched_tokens = 2
    assert step(scheduler) == [("a", 1), ("b", 1)]
    assert ids(scheduler.running) == ["a", "b", "c", "d"]
    scheduler.abort("a")
    assert step(scheduler) == [("b", 1), ("c", 1)]


def test_a_budget_of_one_token_still_finishes_everything() -> None:
    scheduler = make_scheduler(budget=1)
    seqs = [make_seq(str(i), list(range(i, i + 5)), max_tokens=3) for i in range(3)]
    for seq in seqs:
        scheduler.add(seq)
    assert all(len(s) == 1 and s[0][1] == 1 for s in run_all(scheduler))
    assert [seq.num_output_tokens for seq in seqs] == [3, 3, 3]


def test_rows_of_one_token_come_first_and_each_group_keeps_its_order() -> None:
    scheduler = make_scheduler(num_blocks=32, budget=64)
    for name, size in [("a", 5), ("b", 1), ("c", 6), ("d", 1)]:
        scheduler.add(make_seq(name, [ord(name)] * size, max_tokens=9))
    assert step(scheduler) == [("b", 1), ("d", 1), ("a", 5), ("c", 6)]
    scheduler.add(make_seq("e", [9] * 3, max_tokens=9))
    assert step(scheduler) == [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 3)]
    assert ids(scheduler.running) == ["a", "b", "c", "d", "e"]


# ---- 接纳 ----
# ---- admission ----


def test_max_num_seqs_caps_the_running_not_only_the_step() -> None:
    scheduler = make_scheduler(max_num_seqs=2, budget=1)
    for name in "abc":
        scheduler.add(make_seq(name, [ord(name)], max_tokens=2))
    # 预算为 1：每步只服务一个，但运行的仍不超过 2 个。
    # With a budget of 1 only one is served in a step, yet no more than 2 ever run.
    seen = []
    while scheduler.has_unfinished():
        step(scheduler)
        seen.append((ids(scheduler.running), ids(list(scheduler.waiting))))
    assert all(len(running) <= 2 for running, _ in seen)
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.add(make_seq(name, [ord(name)], max_tokens=2))
    assert run_all(scheduler) == [[("a", 1), ("b", 1)], [("a", 1), ("b", 1)], [("c", 1)], [("c", 1)]]


def test_running_sequences_not_served_still_count_for_max_num_seqs() -> None:
    scheduler = make_scheduler(max_num_seqs=2, budget=8)
    scheduler.add(make_seq("a", [1] * 4, max_tokens=9))
    scheduler.add(make_seq("b", [2] * 4, max_tokens=9))
    step(scheduler)
    scheduler.add(make_seq("c", [3], max_tokens=9))
    scheduler.max_num_batched_tokens = 3
    assert step(scheduler) == [("a", 1), ("b", 1)]
    assert ids(list(scheduler.waiting)) == ["c"]


def test_the_head_of_the_queue_blocks_those_behind_it() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add(make_seq("a", [1] * 8, max_tokens=3))
    step(scheduler)
    # a 占 2 个块，解码时要第 3 个块；big 要 3 个块进不来，small 明明放得下也要等。
    # a holds 2 blocks and takes a 3rd to decode; big needs 3 and waits, and small, which would fit, waits too.
    scheduler.add(make_seq("big", [2] * 12, max_tokens=1))
    scheduler.add(make_seq("small", [3], max_tokens=1))
    assert step(scheduler) == [("a", 1)]
    assert ids(list(scheduler.waiting)) == ["big", "small"]
    assert step(scheduler) == [("a", 1)]
    assert step(scheduler) == [("small", 1), ("big", 12)]


def test_first_come_first_served() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for name in "cab":
        scheduler.add(make_seq(name, [1, 2], max_tokens=1))
    assert [names[0][0] for names in run_all(scheduler)] == ["c", "a", "b"]


def test_a_prompt_of_just_the_pool_runs() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=4, max_model_len=16)
    seq = make_seq("a", list(range(15)), max_tokens=9)
    scheduler.add(seq)
    assert run_all(scheduler) == [[("a", 15)]]
    assert seq.finish_reason == "length" and seq.num_tokens == 16


@pytest.mark.parametrize("size", [4, 8, 12])
@pytest.mark.parametrize("caching", [True, False])
def test_a_prompt_of_whole_blocks(size: int, caching: bool) -> None:
    # 长度恰好是块大小的整数倍：提示词占满，第一个输出才要新的一个块。
    # A length that is a multiple of the block size: the prompt fills its blocks, the first output needs a new one.
    scheduler = make_scheduler(caching=caching)
    first, second = (make_seq(name, list(range(size)), max_tokens=3) for name in "ab")
    scheduler.add(first)
    assert step(scheduler) == [("a", size)]
    assert len(first.block_table) == size // 4
    scheduler.add(second)
    cached = size - 4 if caching else 0
    assert step(scheduler) == [("a", 1), ("b", size - cached)]
    assert len(first.block_table) == size // 4 + 1
    assert second.num_cached_tokens == cached
    run_all(scheduler)
    assert_all_free(scheduler.block_manager)


def test_two_equal_prompts_in_one_step() -> None:
    scheduler = make_scheduler()
    first, second = (make_seq(name, list(range(9)), max_tokens=2) for name in "ab")
    scheduler.add(first)
    scheduler.add(second)
    assert step(scheduler) == [("a", 9), ("b", 9)]
    assert set(first.block_table).isdisjoint(second.block_table)
    third = make_seq("c", list(range(9)), max_tokens=2)
    scheduler.add(third)
    assert step(scheduler) == [("a", 1), ("b", 1), ("c", 1)]
    assert third.num_cached_tokens == 8
    run_all(scheduler)


def test_a_prefix_hit_saves_budget() -> None:
    scheduler = make_scheduler(budget=9)
    scheduler.add(make_seq("a", list(range(9)), max_tokens=9))
    step(scheduler)
    scheduler.add(make_seq("b", [*range(8), 50], max_tokens=9))
    scheduler.add(make_seq("c", list(range(60, 66)), max_tokens=9))
    assert step(scheduler) == [("a", 1), ("b", 1), ("c", 6)]


def test_a_hit_on_freed_blocks_waits_if_the_rest_does_not_fit() -> None:
    scheduler = make_scheduler(num_blocks=4)
    first = make_seq("a", list(range(9)), max_tokens=1)
    scheduler.add(first)
    step(scheduler)
    holder = make_seq("h", [70], max_tokens=3)
    scheduler.add(holder)
    step(scheduler)
    # 空闲 3 个块，其中 2 个块是命中的；b 共要 4 个块，必须等 h 结束。
    # 3 blocks are free, 2 of them are hits; b needs 4 in all and must wait for h to end.
    second = make_seq("b", [*range(8), 50, 51, 52, 53, 54], max_tokens=1)
    scheduler.add(second)
    assert step(scheduler) == [("h", 1)]
    assert second.status is SequenceStatus.WAITING and second.block_table == []
    assert step(scheduler) == [("h", 1)]
    assert step(scheduler) == [("b", 5)]
    assert second.num_cached_tokens == 8


# ---- 抢占 ----
# ---- preemption ----


def test_the_last_running_sequence_is_preempted_to_the_front_of_the_queue() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=16)
    seqs = [make_seq(name, [ord(name)] * 4, max_tokens=6) for name in "abc"]
    for seq in seqs:
        scheduler.add(seq)
    assert step(scheduler) == [("a", 4), ("b", 4), ("c", 4)]
    scheduler.add(make_seq("d", [9], max_tokens=1))
    # a 取走最后的空块，b 没有了：抢占 c，b 用 c 的块；这一步谁也不接纳，d 也不行。
    # a takes the last free block and b finds none: c is preempted and b gets its block; nobody is admitted, not even d.
    assert step(scheduler) == [("a", 1), ("b", 1)]
    assert ids(scheduler.running) == ["a", "b"]
    assert ids(list(scheduler.waiting)) == ["c", "d"]
    c = seqs[2]
    assert c.status is SequenceStatus.WAITING
    assert (c.block_table, c.num_computed_tokens, c.num_preemptions) == ([], 0, 1)
    assert c.num_output_tokens == 1
    assert scheduler.num_preemptions == 1


def test_nobody_is_admitted_in_the_step_of_a_preemption_even_if_it_would_fit() -> None:
    scheduler = make_scheduler(num_blocks=5, max_model_len=20, caching=False)
    scheduler.add(make_seq("a", [1] * 4, max_tokens=9))
    scheduler.add(make_seq("b", [2] * 15, max_tokens=5))
    assert step(scheduler) == [("a", 4), ("b", 15)]
    scheduler.add(make_seq("c", [3], max_tokens=1))
    # a 要第 2 个块：抢占 b，还回 4 个块，a 只用 1 个块；剩 3 个块，b 的 7 个 token 和 c 都放得下，但这一步谁也不接纳。
    # a needs a second block: b gives back 4 and a takes 1; in the 3 left, 7 tokens of b and c would fit, yet nobody
    # is admitted in this step.
    scheduler.max_num_batched_tokens = 8
    assert step(scheduler) == [("a", 1)]
    assert scheduler.block_manager.num_free_blocks == 3
    assert ids(list(scheduler.waiting)) == ["b", "c"]


def test_a_preempted_sequence_is_readmitted_and_recomputes_prompt_and_output() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=16, caching=False)
    seqs = [make_seq(name, [ord(name)] * 4, max_tokens=6) for name in "abc"]
    for seq in seqs:
        scheduler.add(seq)
    steps = run_all(scheduler)
    # c 的输出已有 1 个，重新接纳时连提示词一起算 5 个。
    # c has 1 output token; readmitted it computes 5 with its prompt.
    readmission = [rows for rows in steps[1:] if ("c", 5) in rows]
    assert len(readmission) == 1
    for seq in seqs:
        assert seq.output_token_ids == [1004, 1005, 1006, 1007, 1008, 1009]
    assert_all_free(scheduler.block_manager)


def test_a_preempted_sequence_hits_its_own_blocks_which_is_no_merit_of_the_cache() -> None:
    scheduler = make_scheduler(num_blocks=6, max_model_len=24)
    a, b = make_seq("a", [1] * 4, max_tokens=9), make_seq("b", [2] * 12, max_tokens=9)
    scheduler.add(a)
    scheduler.add(b)
    step(scheduler)
    step(scheduler)
    assert scheduler.num_preemptions == 0
    while not b.num_preemptions:
        step(scheduler)
    queried = scheduler.block_manager.stats.queried
    while b.status is SequenceStatus.WAITING:
        last = step(scheduler)
    # b 有 16 个 token 左右，自己的前几个块还在：只需重算余下的。
    # b's own first blocks are still there: only the rest is computed again.
    assert 0 < dict(last)["b"] < b.num_tokens - 1
    assert b.num_cached_tokens == 0
    assert scheduler.block_manager.stats.queried == queried
    assert scheduler.block_manager.stats.hit == 0
    run_all(scheduler)
    assert_all_free(scheduler.block_manager)


def test_a_sequence_may_preempt_itself() -> None:
    scheduler = make_scheduler(num_blocks=3, max_model_len=12)
    a, b = make_seq("a", [1] * 4, max_tokens=8), make_seq("b", [2] * 4, max_tokens=8)
    scheduler.add(a)
    scheduler.add(b)
    step(scheduler)
    # a 取走最后一个块；b 是最后一个，只能牺牲自己。
    # a takes the last block; b is the last one and can only sacrifice itself.
    assert step(scheduler) == [("a", 1)]
    assert ids(list(scheduler.waiting)) == ["b"]
    run_all(scheduler)
    assert (a.num_output_tokens, b.num_output_tokens) == (8, 8)


def test_one_step_may_preempt_several() -> None:
    scheduler = make_scheduler(num_blocks=6, max_model_len=24, budget=16)
    scheduler.add(make_seq("a", [1] * 23, max_tokens=1))
    assert step(scheduler) == [("a", 16)]
    # 手工让另外两个各占 1 个块地运行起来；a 的最后一段要 2 个块，两个都得让出来。
    # Let two others run with 1 block each by hand; a's last chunk needs 2 blocks, so both must go.
    for name in "bc":
        seq = make_seq(name, [ord(name)] * 3)
        scheduler.block_manager.allocate(seq, [], 3)
        seq.status = SequenceStatus.RUNNING
        scheduler.running.append(seq)
    schedule = scheduler.schedule()
    assert rows(schedule) == [("a", 7)]
    assert ids(scheduler.running) == ["a"]
    assert ids(list(scheduler.waiting)) == ["b", "c"]
    assert scheduler.num_preemptions == 2
    scheduler.update(schedule, [[5]])
    run_all(scheduler)
    assert_all_free(scheduler.block_manager)


def test_preemption_in_the_middle_of_a_chunked_prompt() -> None:
    scheduler = make_scheduler(num_blocks=5, max_model_len=20, budget=6)
    a, b = make_seq("a", [1] * 4, max_tokens=12), make_seq("b", [2] * 14, max_tokens=2)
    scheduler.add(a)
    scheduler.add(b)
    steps = run_all(scheduler)
    assert scheduler.num_preemptions > 0
    assert any(0 < dict(s).get("b", 0) < 6 for s in steps)
    assert (a.num_output_tokens, b.num_output_tokens) == (12, 2)
    assert_all_free(scheduler.block_manager)


def test_constant_preemption_gives_everybody_all_tokens() -> None:
    scheduler = make_scheduler(num_blocks=5, max_model_len=20, budget=16)
    seqs = [make_seq(str(i), [i] * (i % 7 + 1), max_tokens=10) for i in range(12)]
    for seq in seqs:
        scheduler.add(seq)
    run_all(scheduler)
    assert scheduler.num_preemptions > 5
    for seq in seqs:
        start = 1000 + seq.num_prompt_tokens
        assert seq.output_token_ids == list(range(start, start + 10))
    assert_all_free(scheduler.block_manager)


def test_scheduling_under_forced_collisions() -> None:
    with few_hashes(2):
        scheduler = make_scheduler(num_blocks=8, max_model_len=32)
        for index in range(10):
            scheduler.add(make_seq(str(index), [index % 3] * 9, max_tokens=5))
        run_all(scheduler)
        assert_all_free(scheduler.block_manager)


# ---- 停止 ----
# ---- stopping ----


def test_stop_token_ends_and_only_a_users_own_is_the_reason() -> None:
    scheduler = make_scheduler()
    model_end = make_seq("a", [1], max_tokens=9, stop=(1001,))
    users = make_seq("b", [1], max_tokens=9, stop=(1001,), stop_token_ids=[1001])
    other = make_seq("c", [1], max_tokens=2, stop=(5,))
    for seq in (model_end, users, other):
        scheduler.add(seq)
    run_all(scheduler)
    assert (model_end.finish_reason, model_end.stop_reason) == ("stop", None)
    assert (users.finish_reason, users.stop_reason) == ("stop", 1001)
    assert (other.finish_reason, other.stop_reason) == ("length", None)
    assert model_end.output_token_ids == [1001]


def test_a_stop_token_wins_over_the_length_limit() -> None:
    scheduler = make_scheduler()
    seq = make_seq("a", [1], max_tokens=1, stop=(1001,))
    scheduler.add(seq)
    run_all(scheduler)
    assert seq.finish_reason == "stop"


def test_output_that_reaches_max_model_len_ends_with_length() -> None:
    scheduler = make_scheduler(max_model_len=7)
    seq = make_seq("a", [1, 2, 3], max_tokens=100)
    scheduler.add(seq)
    run_all(scheduler)
    assert seq.num_tokens == 7 and seq.finish_reason == "length"


def test_update_returns_the_finished_and_they_leave_at_once() -> None:
    scheduler = make_scheduler()
    seqs = [make_seq("a", [1], max_tokens=1), make_seq("b", [2], max_tokens=2)]
    for seq in seqs:
        scheduler.add(seq)
    schedule = scheduler.schedule()
    assert scheduler.update(schedule, [[5], [6]]) == [seqs[0]]
    assert ids(scheduler.running) == ["b"]
    assert seqs[0].block_table == []


def test_update_takes_a_list_of_tokens_per_sequence_and_stops_inside_it() -> None:
    scheduler = make_scheduler()
    seq = make_seq("a", [1], max_tokens=9, stop=(7,))
    scheduler.add(seq)
    schedule = scheduler.schedule()
    assert scheduler.update(schedule, [[5, 7, 8]]) == [seq]
    assert seq.output_token_ids == [5, 7]


def test_update_wants_a_row_of_tokens_for_each_scheduled_row() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_seq("a", [1]))
    schedule = scheduler.schedule()
    with pytest.raises(ValueError):
        scheduler.update(schedule, [])


# ---- 猜测 ----
# ---- guesses ----


def decoding(scheduler: Scheduler, *sizes: int, **params: Any) -> list[Sequence]:
    """几个序列，提示词有这么长，都已算完，各有 1 个输出。

    Sequences with prompts of these lengths, all computed, with 1 output each.
    """
    seqs = [make_seq("abcdef"[i], [i + 1] * size, **params) for i, size in enumerate(sizes)]
    for seq in seqs:
        scheduler.add(seq)
    step(scheduler)
    return seqs


def test_a_row_with_guesses_has_logits_for_each_and_keeps_what_was_right() -> None:
    # 已知 4 个、已算 3 个，猜 3 个：一行 4 个新 token、4 行 logits；2 个猜对，第 3 个猜错，得到 3 个 token。
    # 4 known, 3 computed, 3 guesses: a row of 4 new tokens with 4 logits; 2 are right and number 3 is wrong, which
    # gives 3 tokens.
    scheduler = make_scheduler()
    (seq,) = decoding(scheduler, 3, max_tokens=12)
    seq.draft_ids = [11, 12, 99]
    (row,) = schedule = scheduler.schedule()
    assert (row.num_new_tokens, row.num_logits, row.samples) == (4, 4, True)
    assert seq.inputs(3, 7) == [1003, 11, 12, 99] and seq.token_ids == [1, 1, 1, 1003]
    tokens = seq.accept([11, 12, 13, 14])
    assert tokens == [11, 12, 13]
    scheduler.update(schedule, [tokens])
    assert (seq.num_computed_tokens, seq.num_tokens, seq.draft_ids) == (6, 7, [])
    # 全猜对，比猜测多得 1 个；第 1 个就猜错，得 1 个。
    # All right: 1 more than there were guesses. Wrong from the start: 1.
    for guesses, came, kept in (([21, 22], [21, 22, 23], [21, 22, 23]), ([98, 97], [31, 32, 33], [31])):
        known = seq.num_tokens
        seq.draft_ids = guesses
        schedule = scheduler.schedule()
        tokens = seq.accept(came)
        scheduler.update(schedule, [tokens])
        assert tokens == kept and seq.token_ids[known:] == kept
        assert (seq.num_computed_tokens, seq.num_tokens) == (known + len(kept) - 1, known + len(kept))


@pytest.mark.parametrize(
    ("options", "max_tokens", "left"),
    [
        ({}, 99, 5),
        ({"budget": 4}, 99, 3),
        ({"budget": 3}, 99, 2),
        # 已输出 1 个，还可以输出 2 个：猜 1 个就够，另一个总是抽出来的。
        # 1 is out and 2 more may come: 1 guess is enough, the other is drawn in any case.
        ({}, 3, 1),
        ({}, 2, 0),
        ({"max_model_len": 7}, 99, 2),
        ({"max_model_len": 5}, 99, 0),
        # 块大小 4，只有 2 个块：已知 4 个，还放得下 4 个。
        # 2 blocks of 4: 4 are known and 4 more fit.
        ({"num_blocks": 2, "max_model_len": 99}, 99, 4),
        ({"num_blocks": 1, "max_model_len": 99}, 99, 0),
    ],
)
def test_guesses_are_cut_to_what_has_room(options: dict[str, Any], max_tokens: int, left: int) -> None:
    scheduler = make_scheduler(**options)
    (seq,) = decoding(scheduler, 3, max_tokens=max_tokens)
    seq.draft_ids = [11, 12, 13, 14, 15]
    (row,) = scheduler.schedule()
    assert seq.draft_ids == [11, 12, 13, 14, 15][:left]
    assert (row.num_new_tokens, row.num_logits) == (1 + left, 1 + left)


def test_guesses_take_no_budget_and_no_block_from_anybody() -> None:
    # 预算 5，3 个在解码：各得 1 个，剩 2 个给 a 的猜测。
    # A budget of 5 and 3 that decode: each gets 1, and the 2 left are for guesses of a.
    scheduler = make_scheduler(budget=5)
    seqs = decoding(scheduler, 1, 1, 1, max_tokens=9)
    for seq in seqs:
        seq.draft_ids = [11, 12, 13]
    schedule = scheduler.schedule()
    assert rows(schedule) == [("b", 1), ("c", 1), ("a", 3)]
    scheduler.update(schedule, [[5], [5], [5]])
    # 新来的也先于猜测。
    # Newcomers come before guesses as well.
    scheduler.add(make_seq("n", [9], max_tokens=2))
    seqs[1].draft_ids = [11, 12, 13]
    assert rows(scheduler.schedule()) == [("a", 1), ("c", 1), ("n", 1), ("b", 2)]
    # 只剩 1 个空闲块，b 的下一个 token 要用它：a 不许为猜测拿走，谁也不被抢占。
    # 1 block is free and b needs it for its next token: a must not take it for guesses, and nobody is preempted.
    scheduler = make_scheduler(num_blocks=3, max_model_len=12)
    a, _ = decoding(scheduler, 3, 4, max_tokens=9)
    a.draft_ids = [11, 12, 13]
    assert rows(scheduler.schedule()) == [("a", 1), ("b", 1)]
    assert scheduler.num_preemptions == 0 and a.draft_ids == []


def test_guesses_of_an_unfinished_or_waiting_prompt() -> None:
    # 提示词没算完就轮不到猜测；算完的那一步可以带上。
    # While the prompt is unfinished guesses have no place; the step that ends it may carry some.
    scheduler = make_scheduler(budget=5)
    seq = make_seq("a", list(range(8)), max_tokens=9)
    scheduler.add(seq)
    seq.draft_ids = [11, 12]
    (row,) = schedule = scheduler.schedule()
    assert (row.num_new_tokens, row.num_logits, seq.draft_ids) == (5, 0, [])
    scheduler.update(schedule, [[]])
    seq.draft_ids = [11, 12, 13]
    (row,) = schedule = scheduler.schedule()
    assert (row.num_new_tokens, row.num_logits, seq.draft_ids) == (5, 3, [11, 12])
    scheduler.update(schedule, [seq.accept([11, 5, 6])])
    assert (seq.output_token_ids, seq.num_computed_tokens) == ([11, 5], 9)
    # 等待的也一样：接纳的那一步若算完了提示词，就带上猜测。
    # So with a waiting one: if the step that admits it ends the prompt, it carries the guesses.
    other = make_seq("b", [50, 51], max_tokens=9)
    scheduler.add(other)
    other.draft_ids = [61]
    schedule = scheduler.schedule()
    assert rows(schedule) == [("a", 1), ("b", 3)] and schedule[1].num_logits == 2
    scheduler.update(schedule, [[6], other.accept([61, 62])])
    assert (other.output_token_ids, other.num_computed_tokens) == ([61, 62], 3)


def test_a_stop_token_among_guesses_that_were_right() -> None:
    scheduler = make_scheduler()
    (seq,) = decoding(scheduler, 3, max_tokens=9, stop=(12,))
    seq.draft_ids = [11, 12, 13, 14]
    schedule = scheduler.schedule()
    tokens = [seq.accept([11, 12, 13, 14, 15])]
    assert scheduler.update(schedule, tokens) == [seq]
    # 停止 token 之后的作废，也不算数。
    # What follows the stop token is void and does not count.
    assert tokens == [[11, 12]] and seq.output_token_ids == [1003, 11, 12] and seq.finish_reason == "stop"
    # 块大小 4：停在第 6 个，写满的只有第 0 个块，后面那个也有作废的 token，不许登记。
    # Blocks of 4: it stops at 6, only block 0 is full of them; the next one holds void tokens and is not registered.
    assert len(scheduler.block_manager.cached) == 1
    assert_all_free(scheduler.block_manager)


def test_an_unusable_row_among_guesses() -> None:
    # 分数坏掉的一行抽出 -1：在猜错处之后没有人用，在猜对处请求就以出错结束，之前的 token 算数。
    # A row whose scores are broken draws -1: behind a wrong guess nobody uses it; after right ones the request ends
    # with an error, and the tokens before it count.
    scheduler = make_scheduler()
    (seq,) = decoding(scheduler, 3, max_tokens=9)
    for guesses, came, kept in (([99], [11, -1], [11]), ([12, 13], [12, -1, 14], [12, -1])):
        seq.draft_ids = guesses
        schedule = scheduler.schedule()
        tokens = seq.accept(came)
        assert tokens == kept
        scheduler.update(schedule, [tokens])
    assert tokens == [12] and seq.output_token_ids == [1003, 11, 12] and seq.finish_reason == "error"
    assert_all_free(scheduler.block_manager)


def test_strict_mode_finds_a_sequence_with_nothing_left_to_compute() -> None:
    scheduler = make_scheduler()
    (seq,) = decoding(scheduler, 3, max_tokens=9)
    schedule = scheduler.schedule()
    seq.num_computed_tokens += 1
    with pytest.raises(RuntimeError, match="nothing left to compute"):
        scheduler.update(schedule, [[5]])


# ---- 取消 ----
# ---- abort ----


def test_abort_a_waiting_request() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for name in "abc":
        scheduler.add(make_seq(name, [1], max_tokens=2))
    step(scheduler)
    aborted = scheduler.abort("b")
    assert aborted is not None and aborted.finish_reason == "abort" and aborted.status is SequenceStatus.FINISHED
    assert ids(list(scheduler.waiting)) == ["c"]
    assert [s[0][0] for s in run_all(scheduler)] == ["a", "c", "c"]


def test_abort_a_running_request_frees_its_blocks_and_the_others_go_on() -> None:
    scheduler = make_scheduler()
    seqs = [make_seq(name, [ord(name)] * 5, max_tokens=3) for name in "abc"]
    for seq in seqs:
        scheduler.add(seq)
    step(scheduler)
    free = scheduler.block_manager.num_free_blocks
    scheduler.abort("b")
    assert scheduler.block_manager.num_free_blocks == free + 2
    assert ids(scheduler.running) == ["a", "c"]
    run_all(scheduler)
    assert [seq.num_output_tokens for seq in seqs] == [3, 1, 3]
    assert_all_free(scheduler.block_manager)


def test_abort_of_a_sharer_leaves_the_shared_blocks_to_the_other() -> None:
    scheduler = make_scheduler()
    first, second = (make_seq(name, [*range(8), ord(name)], max_tokens=4) for name in "ab")
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)
    step(scheduler)
    shared = first.block_table[:2]
    assert second.block_table[:2] == shared
    scheduler.abort("a")
    assert all(block_id not in scheduler.block_manager.free_queue for block_id in shared)
    run_all(scheduler)
    assert_all_free(scheduler.block_manager)


def test_abort_a_preempted_request() -> None:
    scheduler = make_scheduler(num_blocks=3, max_model_len=12)
    for name in "ab":
        scheduler.add(make_seq(name, [ord(name)] * 4, max_tokens=8))
    step(scheduler)
    step(scheduler)
    assert ids(list(scheduler.waiting)) == ["b"]
    aborted = scheduler.abort("b")
    assert aborted is not None and aborted.num_output_tokens == 1
    run_all(scheduler)
    assert_all_free(scheduler.block_manager)


def test_abort_of_an_unknown_or_finished_request_is_none() -> None:
    scheduler = make_scheduler()
    assert scheduler.abort("nobody") is None
    scheduler.add(make_seq("a", [1], max_tokens=1))
    run_all(scheduler)
    assert scheduler.abort("a") is None


# ---- 严格模式 ----
# ---- strict mode ----


def test_strict_mode_checks_budget_and_cap() -> None:
    scheduler = make_scheduler(budget=4, max_num_seqs=1)
    seq = make_seq("a", [1, 2, 3])
    with pytest.raises(RuntimeError, match="budget is 4"):
        scheduler._check([ScheduledSequence(seq, 5, 1)])
    scheduler.running = [seq, make_seq("b", [1])]
    with pytest.raises(RuntimeError, match="cap is 1"):
        scheduler._check([])


def test_strict_mode_checks_the_blocks_in_every_step() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_seq("a", [1, 2], max_tokens=9))
    step(scheduler)
    scheduler.block_manager.free_queue.popitem()
    with pytest.raises(RuntimeError):
        step(scheduler)
    scheduler = make_scheduler()
    scheduler.add(make_seq("a", [1, 2], max_tokens=9))
    schedule = scheduler.schedule()
    scheduler.block_manager.free_queue.popitem()
    with pytest.raises(RuntimeError):
        scheduler.update(schedule, [[5]])


def test_nothing_to_do_is_an_empty_schedule() -> None:
    scheduler = make_scheduler()
    assert not scheduler.has_unfinished()
    assert scheduler.schedule() == []


def test_the_scheduler_reads_no_clock_and_no_device() -> None:
    # 同样的请求，两次运行的决定完全一致。
    # The same requests give the same decisions twice.
    def run() -> list[list[tuple[str, int]]]:
        scheduler = make_scheduler(num_blocks=6, max_model_len=24, budget=9)
        for index in range(8):
            scheduler.add(make_seq(str(index), [index % 2] * (index + 1), max_tokens=6))
        return run_all(scheduler)

    assert run() == run()
    import engine.block_manager
    import engine.scheduler

    for module in (engine.scheduler, engine.block_manager):
        assert not {"time", "torch", "random"} & set(vars(module))
