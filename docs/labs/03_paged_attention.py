"""实验 3：分页注意力。

学什么：块大小、块表、槽位三者的关系；K、V 散落在各块里，注意力怎样按块表把它们取回来。
试一试：`--block-size 8`、`--tokens 33`、`--backend sdpa`；再改 `slot_of` 里标着 TODO 的一行，看检查怎样发现。
怎样算对：按块表手工取回的 K、V 与写进去的逐个相同；手工算的注意力与后端的结果相差不到 1e-5。

Lab 3: paged attention.

Teaches: how block size, block table and slot belong together; K and V lie scattered over blocks, and attention fetches
them back by the block table.
Try: `--block-size 8`, `--tokens 33`, `--backend sdpa`; then change the line marked TODO in `slot_of` and see the check
find it.
Check: K and V gathered by hand through the block table equal what was stored; attention by hand is within 1e-5 of the
backend's.
"""

import argparse
import sys

import torch
from common import Check, say, title

from backends import create_backend
from engine.block_manager import BlockManager
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence

NUM_BLOCKS, NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = 12, 8, 2, 32


def slot_of(position: int, block_table: list[int], block_size: int) -> int:
    """位置 -> 槽位：在第几个块里，块里第几格。

    Position -> slot: which block, and which place in it.
    """
    # TODO 试试写错：把 `%` 换成 `//`，或把 `block_table[...]` 换成 `position // block_size`。
    # TODO try a mistake: `//` for `%`, or `position // block_size` for `block_table[...]`.
    return block_table[position // block_size] * block_size + position % block_size


def make_sequence(name: str, num_tokens: int) -> Sequence:
    """一个只有提示词的序列。

    A sequence with a prompt only.
    """
    return Sequence(name, list(range(num_tokens)), num_tokens, SamplingParams())


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="paged attention / 分页注意力")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--backend", default="torch", help="torch, sdpa")
    args = parser.parse_args()
    size, n = args.block_size, args.tokens
    backend = create_backend(args.backend, "cpu")
    try:
        backend.check_block_size(size)
    except ValueError as error:
        parser.error(str(error))
    if not 1 <= n <= (NUM_BLOCKS - 3) * size:
        parser.error(f"--tokens must be from 1 to {(NUM_BLOCKS - 3) * size} with blocks of {size}")

    # 先让别的序列占几个块，再还掉中间的：留给我们的块就不连续了，和真实服务一样。
    # Let others take blocks and give some back: ours then do not lie in a row, as in a real service.
    manager = BlockManager(NUM_BLOCKS, size, enable_prefix_caching=False)
    others = [make_sequence(name, size) for name in "ABCDEF"]
    for other in others:
        manager.allocate(other, [], size)
    for index in (4, 1, 3):
        manager.free(others[index])
    seq = make_sequence("ours", n)
    # 新序列从空闲队列的头上取块；把旧块转到前面，块表就乱了序。
    # A new sequence takes blocks from the head of the free queue; move the returned ones there for a mixed order.
    for block_id in (1, 4, 3):
        manager.free_queue.move_to_end(block_id, last=False)
    manager.allocate(seq, [], n)

    title("块表", "the block table")
    print(f"  {n} tokens, block size {size}: ceil({n} / {size}) = {len(seq.block_table)} blocks {seq.block_table}")
    for position in sorted({0, 1, size - 1, size, n - 1} & set(range(n))):
        slot = slot_of(position, seq.block_table, size)
        print(f"  position {position:>3}: table[{position // size}] = block {seq.block_table[position // size]:>2}, "
              f"offset {position % size:>2} -> slot {slot}")  # fmt: skip
    waste = len(seq.block_table) * size - n
    say(f"最后一个块里空着 {waste} 个槽位。", f"{waste} slots of the last block stay empty.")

    torch.manual_seed(0)
    k, v = torch.randn(2, n, NUM_KV_HEADS, HEAD_DIM)  # [T, Hkv, D]
    q = torch.randn(1, 1, NUM_Q_HEADS, HEAD_DIM)  # [B, Sq, Hq, D]
    # 没写过的槽位填 NaN：谁误读了它们，结果立刻变成 NaN。
    # Unwritten slots hold NaN: whoever reads one by mistake gets NaN at once.
    k_cache = torch.full((NUM_BLOCKS, size, NUM_KV_HEADS, HEAD_DIM), float("nan"))
    v_cache = k_cache.clone()
    slots = [slot_of(position, seq.block_table, size) for position in range(n)]
    backend.store_kvcache(k, v, k_cache, v_cache, torch.tensor(slots))

    # 手工取回：块编号和偏移由块表直接算出，不经过 `slot_of`。
    # Gathered by hand: block and offset come straight from the table, not through `slot_of`.
    places = [(seq.block_table[p // size], p % size) for p in range(n)]
    my_k = torch.stack([k_cache[block, offset] for block, offset in places])  # [T, Hkv, D]
    my_v = torch.stack([v_cache[block, offset] for block, offset in places])  # [T, Hkv, D]
    by_hand = torch.empty(NUM_Q_HEADS, HEAD_DIM)
    for head in range(NUM_Q_HEADS):
        # 4 个 query 头共用 1 个 KV 头：8 // 2 = 4。
        # 4 query heads share 1 KV head: 8 // 2 = 4.
        shared = head // (NUM_Q_HEADS // NUM_KV_HEADS)
        weights = torch.softmax(my_k[:, shared] @ q[0, 0, head] / HEAD_DIM**0.5, dim=0)  # [T]
        by_hand[head] = weights @ my_v[:, shared]  # [D]
    table = torch.tensor([seq.block_table], dtype=torch.int32)
    lengths = torch.tensor([n], dtype=torch.int32)
    out = backend.flash_attn_with_kvcache(q, k_cache, v_cache, lengths, table)[0, 0]  # [Hq, D]
    difference = float((out - by_hand).abs().max())
    title("注意力", "attention")
    name = backend.name
    say(f"手工与后端 {name} 最大相差 {difference:.1e}", f"By hand and by backend {name}: {difference:.1e} apart")

    check = Check()
    check.that(
        torch.equal(my_k, k) and torch.equal(my_v, v), "取回的 K、V 与写入的相同", "K and V gathered equal those stored"
    )
    check.that(difference < 1e-5, "注意力相差不到 1e-5", "attention is less than 1e-5 apart")
    written = int((~k_cache.isnan()).all(-1).all(-1).sum())
    check.that(written == n, f"恰好写了 {n} 个槽位", f"exactly {n} slots were written")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
