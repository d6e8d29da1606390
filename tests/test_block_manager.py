"""块管理器，不带模型：命中、淘汰、碰撞、统计和自检的每条行为，包括别的引擎犯过的错。

The block manager without a model: each behaviour of hits, eviction, collisions, statistics and the self-check, with the
bugs of other engines among them.
"""

from collections.abc import Callable

import pytest
from engine_helpers import assert_all_free, few_hashes, make_seq

from engine.block_key import make_block_key
from engine.block_manager import BlockManager, num_blocks_needed
from engine.sequence import Sequence

# 块大小 4，提示词用小整数，方便手算。
# Blocks of 4 and prompts of small integers, to work by hand.
SIZE = 4


def make(num_blocks: int = 8, caching: bool = True) -> BlockManager:
    return BlockManager(num_blocks, SIZE, caching)


def admit(manager: BlockManager, seq: Sequence) -> list[int]:
    """接纳并算完整个序列，返回命中的块。

    Admit and compute the whole sequence; return the hits.
    """
    hits = manager.find_prefix(seq)
    assert manager.can_allocate(seq, hits, seq.num_tokens)
    manager.allocate(seq, hits, seq.num_tokens)
    seq.num_computed_tokens = seq.num_tokens
    manager.register_full_blocks(seq)
    return hits


def prompt(*starts: int) -> list[int]:
    """每个数展开成一个块：prompt(10, 20) 是 [10, 11, 12, 13, 20, 21, 22, 23]。

    Each number becomes a block: prompt(10, 20) is [10, 11, 12, 13, 20, 21, 22, 23].
    """
    return [start + offset for start in starts for offset in range(SIZE)]


# ---- 增长规则 ----
# ---- the growth rule ----


@pytest.mark.parametrize(
    ("tokens", "blocks"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (32, 8)]
)
def test_blocks_needed_rounds_up(tokens: int, blocks: int) -> None:
    assert num_blocks_needed(tokens, SIZE) == blocks


def test_a_block_is_added_only_when_the_last_one_is_full() -> None:
    manager, seq = make(), make_seq("a", [1])
    manager.allocate(seq, [], 1)
    lengths = []
    for tokens in range(1, 10):
        manager.grow(seq, tokens)
        lengths.append(len(seq.block_table))
    assert lengths == [1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_can_grow_counts_only_what_is_missing() -> None:
    manager, seq = make(num_blocks=3), make_seq("a", list(range(4)))
    manager.allocate(seq, [], 4)
    assert manager.can_grow(seq, 12)
    assert not manager.can_grow(seq, 13)


def test_can_allocate_up_to_the_last_block() -> None:
    manager = make(num_blocks=2)
    seq = make_seq("a", list(range(9)))
    assert manager.can_allocate(seq, [], 8)
    assert not manager.can_allocate(seq, [], 9)


def test_admission_needs_an_empty_table() -> None:
    manager, seq = make(), make_seq("a", [1])
    manager.allocate(seq, [], 1)
    with pytest.raises(AssertionError):
        manager.allocate(seq, [], 1)


# ---- 命中 ----
# ---- hits ----


@pytest.mark.parametrize(("length", "hits"), [(3, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3)])
def test_one_token_at_least_is_left_to_compute(length: int, hits: int) -> None:
    manager = make()
    tokens = list(range(length))
    first = make_seq("a", tokens)
    admit(manager, first)
    second = make_seq("b", tokens)
    assert admit(manager, second) == first.block_table[:hits]
    assert hits == (length - 1) // SIZE


def test_a_hit_is_shared_and_counted() -> None:
    manager = make()
    first, second = make_seq("a", [*prompt(10, 20), 1]), make_seq("b", [*prompt(10, 20), 2])
    admit(manager, first)
    admit(manager, second)
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    assert [manager.blocks[b].ref_count for b in second.block_table] == [2, 2, 1]
    manager.check_integrity([first, second])
    manager.free(first)
    assert [manager.blocks[b].ref_count for b in second.block_table] == [1, 1, 1]
    manager.free(second)
    assert_all_free(manager)


def test_shared_second_block_with_a_different_first_is_no_hit() -> None:
    manager = make()
    admit(manager, make_seq("a", [*prompt(10, 20), 1]))
    assert manager.find_prefix(make_seq("b", [*prompt(30, 20), 1])) == []


def test_the_chain_does_not_restart_at_block_1() -> None:
    # 三个块 x、y、z 与 w、y、z：只有第 0 个块不同，后面全部不得命中。
    # Blocks x, y, z and w, y, z: only block 0 differs, and nothing after it may be hit.
    manager = make(12)
    admit(manager, make_seq("a", [*prompt(10, 20, 30), 1]))
    admit(manager, make_seq("b", [*prompt(40, 20, 30), 1]))
    assert len(manager.cached) == 6
    # 同样内容的一个块出现在不同的位置，也是不同的名字。
    # The same contents at another place in the prompt have another name as well.
    assert manager.find_prefix(make_seq("c", [*prompt(20, 30), 1])) == []
    keys = [make_block_key(None, (1, 2)), make_block_key(make_block_key(None, (1, 2)), (1, 2))]
    assert keys[0].hash != keys[1].hash


def test_hits_stop_at_the_first_miss() -> None:
    manager = make(12)
    first = make_seq("a", [*prompt(10, 20, 30), 1])
    admit(manager, first)
    assert manager.find_prefix(make_seq("b", [*prompt(10, 99, 30), 1])) == first.block_table[:1]


def test_two_equal_prompts_in_one_step_share_nothing_and_the_first_name_stays() -> None:
    manager = make()
    tokens = [*prompt(10), 1]
    first, second = make_seq("a", tokens), make_seq("b", tokens)
    # 两个都在任何一个算完之前接纳：谁也没有可命中的块。
    # Both are admitted before either has computed anything: there is nothing to hit.
    for seq in (first, second):
        hits = manager.find_prefix(seq)
        assert hits == []
        manager.allocate(seq, hits, seq.num_tokens)
    for seq in (first, second):
        seq.num_computed_tokens = seq.num_tokens
        manager.register_full_blocks(seq)
    manager.check_integrity([first, second])
    assert set(first.block_table).isdisjoint(second.block_table)
    assert list(manager.cached.values()) == [first.block_table[0]]
    assert manager.blocks[second.block_table[0]].key is None
    third = make_seq("c", tokens)
    assert manager.find_prefix(third) == first.block_table[:1]


def test_a_block_is_registered_only_once_computed() -> None:
    manager, seq = make(), make_seq("a", [*prompt(10, 20), 1])
    manager.allocate(seq, [], seq.num_tokens)
    for computed, registered in [(3, 0), (4, 1), (7, 1), (8, 2), (9, 2)]:
        seq.num_computed_tokens = computed
        manager.register_full_blocks(seq)
        assert len(manager.cached) == seq.num_registered_blocks == registered


def test_output_blocks_are_registered_too() -> None:
    # 多轮对话：下一轮的提示词包含上一轮的回答，应当命中。
    # A chat with several turns: the next prompt holds the last answer and should hit.
    manager, seq = make(), make_seq("a", prompt(10))
    admit(manager, seq)
    for token in prompt(20):
        seq.token_ids.append(token)
    manager.grow(seq, seq.num_tokens)
    seq.num_computed_tokens = seq.num_tokens
    manager.register_full_blocks(seq)
    table = list(seq.block_table)
    manager.free(seq)
    assert manager.find_prefix(make_seq("b", [*prompt(10, 20), 1])) == table


def test_prefix_hit_on_a_freed_block_counts_as_consumed() -> None:
    manager = make(num_blocks=4)
    first = make_seq("a", [*prompt(10, 20), 1])
    admit(manager, first)
    manager.free(first)
    # 9 + 4 个 token 要 4 个块：2 个命中（躺在空闲队列里），还要 2 个新的，共 4 个，正好够。
    # 9 + 4 tokens need 4 blocks: 2 hits that lie in the free queue and 2 new ones, 4 in all, which just fits.
    second = make_seq("b", [*prompt(10, 20), 1, 2, 3, 4, 5])
    hits = manager.find_prefix(second)
    assert len(hits) == 2
    assert manager.can_allocate(second, hits, 13)
    assert not manager.can_allocate(second, hits, 17)
    other = make_seq("c", [50])
    manager.allocate(other, [], 1)
    # 空闲 3 个块，命中 2 个，新块 2 个：若以为命中不占名额，就会错误地答应。
    # 3 free, 2 hits, 2 new: whoever thinks that hits cost nothing would wrongly agree.
    assert manager.find_prefix(second) == hits
    assert not manager.can_allocate(second, hits, 13)
    assert manager.can_allocate(second, hits, 12)
    manager.allocate(second, hits, 12)
    assert second.block_table[:2] == hits
    assert len(set(second.block_table)) == 3
    manager.check_integrity([second, other])
    assert manager.num_free_blocks == 0


def test_hits_in_use_cost_nothing() -> None:
    manager = make(num_blocks=4)
    first = make_seq("a", [*prompt(10, 20), 1])
    admit(manager, first)
    second = make_seq("b", [*prompt(10, 20), 2])
    assert manager.num_free_blocks == 1
    assert manager.can_allocate(second, manager.find_prefix(second), 9)


def test_admission_never_evicts_its_own_hits() -> None:
    # 命中的块恰好是空闲队列里最老的：先取新块的实现会把它们淘汰掉。
    # The hits are the oldest in the free queue: taking new blocks first would evict them.
    manager = make(num_blocks=3)
    first = make_seq("a", [*prompt(10), 1])
    admit(manager, first)
    filler = make_seq("f", [90])
    admit(manager, filler)
    manager.free(first)
    manager.free(filler)
    second = make_seq("b", [*prompt(10), 2, 3, 4, 5, 6])
    hits = manager.find_prefix(second)
    manager.allocate(second, hits, 9)
    assert second.block_table[0] == hits[0]
    assert len(set(second.block_table)) == 3
    manager.check_integrity([second])


# ---- 淘汰 ----
# ---- eviction ----


def test_freed_blocks_keep_their_names_until_taken() -> None:
    manager = make(num_blocks=3)
    first = make_seq("a", [*prompt(10), 1])
    admit(manager, first)
    table = list(first.block_table)
    manager.free(first)
    assert first.block_table == [] and first.num_computed_tokens == 0
    assert manager.num_free_blocks == 3
    assert manager.find_prefix(make_seq("b", [*prompt(10), 1])) == table[:1]
    # 取走 3 个块之后，旧名字才真正消失。
    # Only once all 3 blocks are taken is the old name gone.
    admit(manager, make_seq("c", [*prompt(60, 70), 1]))
    assert manager.find_prefix(make_seq("b", [*prompt(10), 1])) == []


def test_tail_is_freed_first_so_the_head_survives_longest() -> None:
    manager = make(num_blocks=4)
    first = make_seq("a", [*prompt(10, 20, 30), 1])
    admit(manager, first)
    table = list(first.block_table)
    manager.free(first)
    assert list(manager.free_queue) == list(reversed(table))
    again = make_seq("b", [*prompt(10, 20, 30), 1])
    for taken, surviving in [(1, 3), (2, 2), (3, 1), (4, 0)]:
        filler = make_seq(f"f{taken}", [90 + taken])
        manager.allocate(filler, [], 1)
        assert filler.block_table == [table[-taken]]
        assert manager.find_prefix(again) == table[:surviving]


def test_blocks_are_taken_in_the_order_in_which_they_were_freed() -> None:
    manager = make(num_blocks=4)
    seqs = [make_seq(str(i), [i]) for i in range(4)]
    for seq in seqs:
        manager.allocate(seq, [], 1)
    tables = [seq.block_table[0] for seq in seqs]
    for index in (2, 0, 3, 1):
        manager.free(seqs[index])
    new = make_seq("new", list(range(50, 66)))
    manager.allocate(new, [], 16)
    assert new.block_table == [tables[i] for i in (2, 0, 3, 1)]


def test_a_hit_renews_the_block_in_the_lru_order() -> None:
    manager = make(num_blocks=4)
    old, young = make_seq("old", [*prompt(10), 1]), make_seq("young", [*prompt(20), 1])
    admit(manager, old)
    admit(manager, young)
    manager.free(old)
    manager.free(young)
    again = make_seq("again", [*prompt(10), 2])
    admit(manager, again)
    manager.free(again)
    # 现在 old 的块最后释放，young 的先被淘汰。
    # Now old's block was freed last, so young's goes first.
    admit(manager, make_seq("c", [*prompt(60), 1]))
    assert manager.find_prefix(make_seq("x", [*prompt(20), 3])) == []
    assert len(manager.find_prefix(make_seq("y", [*prompt(10), 3]))) == 1


def test_an_evicted_parent_hides_its_child() -> None:
    manager = make(num_blocks=6)
    first = make_seq("a", [*prompt(10, 20), 1])
    admit(manager, first)
    head, child = first.block_table[:2]
    manager.free(first)
    # 手工把头先淘汰，孩子还登记着，但从头走不到它。
    # Evict the head first by hand: the child is still registered but cannot be reached.
    manager.free_queue.move_to_end(head, last=False)
    filler = make_seq("f", [90])
    manager.allocate(filler, [], 1)
    assert filler.block_table == [head]
    again = make_seq("b", [*prompt(10, 20), 1])
    assert manager.find_prefix(again) == []
    assert manager.blocks[child].key is not None
    # 头重新登记以后，孩子又能命中，内容仍然正确。
    # Once the head is registered anew the child can be hit again, and its contents are still right.
    third = make_seq("c", [*prompt(10), 7])
    admit(manager, third)
    assert manager.find_prefix(again) == [third.block_table[0], child]
    manager.check_integrity([filler, third])


# ---- 碰撞 ----
# ---- collisions ----


def test_a_collision_never_serves_another_prompt() -> None:
    with few_hashes(1):
        manager = make()
        first = make_seq("a", [*prompt(10), 1])
        admit(manager, first)
        assert manager.find_prefix(make_seq("b", [*prompt(20), 1])) == []
        assert manager.find_prefix(make_seq("c", [*prompt(10), 9])) == first.block_table[:1]


def test_on_a_collision_neither_the_block_nor_its_successors_are_registered() -> None:
    with few_hashes(1):
        manager = make(num_blocks=10)
        first = make_seq("a", [*prompt(10), 1])
        admit(manager, first)
        second = make_seq("b", [*prompt(20, 30, 40), 1])
        admit(manager, second)
        assert list(manager.cached.values()) == [first.block_table[0]]
        assert all(manager.blocks[b].key is None for b in second.block_table)
        manager.check_integrity([first, second])


def test_successors_of_a_collided_block_stay_out_even_if_their_own_hash_is_free() -> None:
    manager = make(num_blocks=10)
    second = make_seq("b", [*prompt(20, 30), 1])
    first = make_seq("a", [*prompt(10), 1])
    admit(manager, first)
    # 只让 b 的第 0 个块与 a 的第 0 个块碰撞，第 1 个块的哈希是空着的。
    # Only b's block 0 collides with a's block 0; the hash of its block 1 is free.
    collided = make_block_key(None, tuple(prompt(20)))
    object.__setattr__(collided, "hash", first.block_keys[0].hash)
    second.block_keys.append(collided)
    admit(manager, second)
    assert manager.cached == {first.block_keys[0].hash: first.block_table[0]}


def test_keys_compare_whole_prefixes() -> None:
    with few_hashes(1):
        a = make_block_key(make_block_key(None, (1, 2)), (5, 6))
        b = make_block_key(make_block_key(None, (3, 4)), (5, 6))
        same = make_block_key(make_block_key(None, (1, 2)), (5, 6))
        longer = make_block_key(a, (5, 6))
    assert a.hash == b.hash == longer.hash
    assert not a.same_prefix(b)
    assert a.same_prefix(same)
    assert not a.same_prefix(longer) and not longer.same_prefix(a)


def test_equal_prompts_share_their_names_so_comparing_stays_short() -> None:
    # 2000 个块的提示词重复一次：若每比一个块都走回开头，就是两百万步。
    # A prompt of 2000 blocks, repeated: walking back to the start for every block would be two million steps.
    manager = make(4002)
    tokens = [index % 7 for index in range(2000 * SIZE + 1)]
    first, second = make_seq("a", tokens), make_seq("b", tokens)
    admit(manager, first)
    assert len(manager.find_prefix(second)) == 2000
    assert all(mine is theirs for mine, theirs in zip(first.block_keys, second.block_keys))
    # 同时算完的两个：后登记的也改用先登记的名字。
    # Two computed at the same time: the later one takes the earlier one's names as well.
    manager = make()
    pair = [make_seq(name, [*prompt(10, 20), 1]) for name in "cd"]
    for seq in pair:
        manager.allocate(seq, [], 9)
        seq.num_computed_tokens = 9
    for seq in pair:
        manager.register_full_blocks(seq)
    assert pair[0].block_keys[1] is pair[1].block_keys[1]


def test_the_hash_depends_on_parent_and_tokens() -> None:
    parent = make_block_key(None, (1, 2))
    hashes = {
        make_block_key(None, (5, 6)).hash,
        make_block_key(parent, (5, 6)).hash,
        make_block_key(parent, (6, 5)).hash,
        make_block_key(make_block_key(None, (2, 1)), (5, 6)).hash,
    }
    assert len(hashes) == 4


# ---- 关掉前缀缓存 ----
# ---- prefix caching off ----


def test_without_prefix_caching_nothing_is_shared_or_counted() -> None:
    manager = make(caching=False)
    admit(manager, make_seq("a", [*prompt(10), 1]))
    assert admit(manager, make_seq("b", [*prompt(10), 1])) == []
    assert manager.cached == {}
    assert (manager.stats.queried, manager.stats.hit) == (0, 0)


def test_statistics_count_tokens_at_the_first_admission() -> None:
    manager = make(12)
    admit(manager, make_seq("a", [*prompt(10, 20), 1]))
    assert (manager.stats.queried, manager.stats.hit) == (9, 0)
    second = make_seq("b", [*prompt(10, 20), 1, 2])
    admit(manager, second)
    assert (manager.stats.queried, manager.stats.hit) == (19, 8)
    # 抢占后重新接纳不再计数。
    # Re-admission after preemption is not counted again.
    manager.free(second)
    second.num_preemptions = 1
    admit(manager, second)
    assert (manager.stats.queried, manager.stats.hit) == (19, 8)


# ---- 自检：故意弄坏每一条 ----
# ---- the self-check: break each invariant on purpose ----


def lose_a_block(manager: BlockManager, seqs: list[Sequence]) -> None:
    manager.free_queue.popitem()


def free_a_held_block(manager: BlockManager, seqs: list[Sequence]) -> None:
    manager.free_queue[seqs[0].block_table[0]] = None


def count_too_high(manager: BlockManager, seqs: list[Sequence]) -> None:
    manager.blocks[seqs[0].block_table[0]].ref_count += 1


def count_too_low(manager: BlockManager, seqs: list[Sequence]) -> None:
    manager.blocks[seqs[0].block_table[0]].ref_count -= 1


def forget_to_free(manager: BlockManager, seqs: list[Sequence]) -> None:
    seqs[1].block_table.clear()
    seqs[1].num_computed_tokens = 0


def hold_a_free_block(manager: BlockManager, seqs: list[Sequence]) -> None:
    seqs[0].block_table.append(next(iter(manager.free_queue)))


def free_an_unknown_block(manager: BlockManager, seqs: list[Sequence]) -> None:
    manager.free_queue[99] = None


def hold_an_unknown_block(manager: BlockManager, seqs: list[Sequence]) -> None:
    seqs[0].block_table.append(99)


def name_points_to_another_block(manager: BlockManager, seqs: list[Sequence]) -> None:
    name = next(iter(manager.cached))
    manager.cached[name] = (manager.cached[name] + 1) % manager.num_blocks


def name_without_a_block(manager: BlockManager, seqs: list[Sequence]) -> None:
    manager.cached[12345] = seqs[0].block_table[-1]


def block_without_its_name(manager: BlockManager, seqs: list[Sequence]) -> None:
    manager.cached.clear()


def block_twice_in_a_table(manager: BlockManager, seqs: list[Sequence]) -> None:
    block_id = seqs[0].block_table[-1]
    seqs[0].block_table.append(block_id)
    manager.blocks[block_id].ref_count += 1


def more_computed_than_held(manager: BlockManager, seqs: list[Sequence]) -> None:
    seqs[0].num_computed_tokens = len(seqs[0].block_table) * SIZE + 1


@pytest.mark.parametrize(
    "corrupt",
    [
        lose_a_block,
        free_a_held_block,
        count_too_high,
        count_too_low,
        forget_to_free,
        hold_a_free_block,
        free_an_unknown_block,
        hold_an_unknown_block,
        name_points_to_another_block,
        name_without_a_block,
        block_without_its_name,
        block_twice_in_a_table,
        more_computed_than_held,
    ],
)
def test_check_integrity_detects(corrupt: Callable[[BlockManager, list[Sequence]], None]) -> None:
    manager = make(num_blocks=8)
    seqs = [make_seq("a", [*prompt(10), 1]), make_seq("b", [*prompt(10), 2])]
    for seq in seqs:
        admit(manager, seq)
    manager.check_integrity(seqs)
    corrupt(manager, seqs)
    with pytest.raises(RuntimeError):
        manager.check_integrity(seqs)
