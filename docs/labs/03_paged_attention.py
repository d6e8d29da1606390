"""实验 3：分页注意力。

学什么：块大小、块表、槽位三者的关系；K、V 散落在各块里，注意力怎样按块表把它们取回来。
试一试：`--block-size 8`、`--tokens 33`、`--backend sdpa`；再改标着 TODO 的几行，看检查怎样发现。
怎样算对：每个槽位里躺着的，正是块表要放在那里的 token；手工算的注意力和后端的，都与 PyTorch 自带的相差不到 1e-5。

Lab 3: paged attention.

Teaches: how block size, block table and slot belong together; K and V lie scattered over blocks, and attention fetches
them back by the block table.
Try: `--block-size 8`, `--tokens 33`, `--backend sdpa`; then change the lines marked TODO and see the check find it.
Check: each slot holds the token that the block table puts there; attention by hand and by the backend are within 1e-5
of PyTorch's own.
"""

import argparse

import torch
import torch.nn.functional as F
from common import Check, run_lab, say, title
from torch import Tensor

from backends import BackendUnavailableError, create_backend
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


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """一个 query 的注意力，一个头一个头地手工算。

    Attention of one query by hand, head by head.

    Args:
        q: [Hq, D]
        k, v: [T, Hkv, D]

    Returns:
        [Hq, D]
    """
    out = torch.empty_like(q)  # [Hq, D]
    for head in range(NUM_Q_HEADS):
        # TODO 试试写错：换成 `head % NUM_KV_HEADS`，或去掉下一行的 `/ HEAD_DIM**0.5`。
        # TODO try a mistake: `head % NUM_KV_HEADS`, or drop `/ HEAD_DIM**0.5` below.
        shared = head // (NUM_Q_HEADS // NUM_KV_HEADS)
        weights = torch.softmax(k[:, shared] @ q[head] / HEAD_DIM**0.5, dim=0)  # [T]
        out[head] = weights @ v[:, shared]  # [D]
    return out


def owners(cache: Tensor, new: Tensor) -> list[list[str]]:
    """缓存的每一格里是谁的 K（或 V）：第几个 token，还是空着。

    Whose K (or V) lies in each cell of the cache: which token's, or nobody's.

    Args:
        cache: [num_blocks, block_size, Hkv, D]
        new: [T, Hkv, D]，存进去的；what was stored
    """

    def owner(cell: Tensor) -> str:
        found = [token for token in range(len(new)) if torch.equal(cell, new[token])]
        return f"token {found[0]}" if found else "empty" if cell.isnan().all() else "something else"

    return [[owner(cell) for cell in block] for block in cache]


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
    try:
        backend = create_backend(args.backend, "cpu")
        backend.check_block_size(size)
    except (ValueError, BackendUnavailableError) as error:
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
    homes = [(seq.block_table[p // size], p % size) for p in range(n)]
    my_k = torch.stack([k_cache[block, offset] for block, offset in homes])  # [T, Hkv, D]
    my_v = torch.stack([v_cache[block, offset] for block, offset in homes])  # [T, Hkv, D]
    by_hand = attend(q[0, 0], my_k, my_v)  # [Hq, D]
    table = torch.tensor([seq.block_table], dtype=torch.int32)
    lengths = torch.tensor([n], dtype=torch.int32)
    out = backend.flash_attn_with_kvcache(q, k_cache, v_cache, lengths, table)[0, 0]  # [Hq, D]
    title("注意力", "attention")
    name, difference = backend.name, float((out - by_hand).abs().max())
    say(f"手工与后端 {name} 最大相差 {difference:.1e}", f"By hand and by backend {name}: {difference:.1e} apart")

    # 参照来自 PyTorch，K、V 不经过缓存；`kv_heads` 是每个 query 头读的 KV 头。
    # The reference comes from PyTorch, with K and V that never saw the cache; `kv_heads` are those that the query
    # heads read.
    def reference(kv_heads: list[int], scale: float | None = None) -> Tensor:
        keys, values = (x[:, kv_heads].transpose(0, 1) for x in (k, v))  # [Hq, T, D]
        return F.scaled_dot_product_attention(q[0, 0, :, None], keys, values, scale=scale)[:, 0]  # [Hq, D]

    right = [head // (NUM_Q_HEADS // NUM_KV_HEADS) for head in range(NUM_Q_HEADS)]
    mistakes = {
        ("第 h 个 query 头读第 h // (Hq // Hkv) 个 KV 头", "query head h reads KV head h // (Hq // Hkv)"):
            reference([head % NUM_KV_HEADS for head in range(NUM_Q_HEADS)]),
        ("分数要除以 D 的平方根", "scores are divided by the square root of D"): reference(right, scale=1.0),
    }  # fmt: skip
    check = Check()
    check.same(
        "每个位置的槽位与块表相符", "each position's slot is the one of the block table",
        got=slots, expected=[block * size + offset for block, offset in homes], where="position",
        likely=("偏移是 position % 块大小", "the offset is position % block size"),
        mistakes={
            ("没有经过块表", "the block table was not used"): list(range(n)),
            ("偏移应是余数 `%`，不是商 `//`", "the offset is the remainder `%`, not the quotient `//`"):
                [block * size + p // size for p, (block, _) in enumerate(homes)],
        },
    )  # fmt: skip
    # 每一格该是谁：块表里有的按位置，其余空着。
    # Whose each cell should be: by position where the block table says so, empty elsewhere.
    cells = [["empty"] * size for _ in range(NUM_BLOCKS)]
    for position, (block, offset) in enumerate(homes):
        cells[block][offset] = f"token {position}"
    for what, cache, new in (("K", k_cache, k), ("V", v_cache, v)):
        check.same(
            f"每一格里的 {what} 都是该在那里的 token 的", f"each cell holds {what} of the token that belongs there",
            got=owners(cache, new), expected=cells, where="block, offset",
            likely=("槽位算错，或写缓存时写错了地方或东西", "a wrong slot, or a store of something else or elsewhere"),
        )  # fmt: skip
    for zh, en, result in (("手工", "by hand", by_hand), (f"后端 {name} ", f"by backend {name}", out)):
        check.same(
            f"{zh}算的注意力与 PyTorch 的相差不到 1e-5", f"attention {en} is within 1e-5 of PyTorch's",
            got=result, expected=reference(right), where="head", tolerance=1e-5, mistakes=mistakes,
            likely=("取回的 K、V 不是这条序列的，或不是全部", "the K and V gathered are not its own, or not all"),
        )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
