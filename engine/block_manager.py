"""块管理器：KV 缓存被切成等大的页（block），这里管谁用哪一页、谁和谁共用、谁该被淘汰。

把它当成操作系统的虚拟内存来读：序列的 `block_table` 是页表，块是物理页，前缀缓存是共享页，LRU 队列是空闲页链表。
它只管编号，从不碰张量；所以没有模型、没有 GPU 也能测试它。

The block manager: the KV cache is cut into blocks of equal size, and this decides who uses which, who shares, and who
is evicted.

Read it as an operating system's virtual memory: a sequence's `block_table` is the page table, blocks are physical
pages, prefix caching is shared pages, the LRU queue is the free list. It deals in numbers and never touches a tensor,
so it is tested without a model and without a GPU.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from engine.block_key import BlockKey, make_block_key
from engine.sequence import Sequence


@dataclass(slots=True)
class Block:
    """一个物理页的账：多少序列在用，内容叫什么名字（没登记就没有名字）。

    The account of one physical block: how many sequences use it, and its content's name, if registered.
    """

    ref_count: int = 0
    key: BlockKey | None = None


@dataclass(slots=True)
class PrefixCacheStats:
    """前缀缓存的命中统计，单位 token。

    Prefix-cache statistics, in tokens.
    """

    queried: int = 0
    hit: int = 0

    @property
    def hit_rate(self) -> float:
        """命中率，没查过时为 0。

        The share of hits, 0 before the first query.
        """
        return self.hit / self.queried if self.queried else 0.0


class BlockManager:
    """分配、共享、登记、释放和淘汰物理页。

    Allocates, shares, registers, frees and evicts physical blocks.

    Attributes:
        free_queue: free block ids, the longest unused first; a dict for removal in O(1) from the middle
        cached: hash -> the id of the block that bears this name
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.blocks = [Block() for _ in range(num_blocks)]
        self.free_queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.cached: dict[int, int] = {}
        self.stats = PrefixCacheStats()

    @property
    def num_blocks(self) -> int:
        """总页数。

        Blocks in all.
        """
        return len(self.blocks)

    @property
    def num_free_blocks(self) -> int:
        """空闲页数，其中有的还留着可命中的旧内容。

        Free blocks; some still hold old contents that can be hit.
        """
        return len(self.free_queue)

    def num_blocks_needed(self, num_tokens: int) -> int:
        """装下这么多 token 要几页，向上取整。

        Blocks that hold so many tokens, rounded up.
        """
        return (num_tokens + self.block_size - 1) // self.block_size

    # ---- 前缀缓存 ----
    # ---- prefix cache ----

    def _key(self, seq: Sequence, index: int) -> BlockKey:
        """序列第 `index` 页的名字；按需逐页算出，算过的留着，抢占后不用重算。

        The name of the sequence's block `index`; computed as needed and kept, also across preemption.
        """
        while len(seq.block_keys) <= index:
            start = len(seq.block_keys) * self.block_size
            parent = seq.block_keys[-1] if seq.block_keys else None
            seq.block_keys.append(make_block_key(parent, tuple(seq.token_ids[start : start + self.block_size])))
        return seq.block_keys[index]

    def _find(self, key: BlockKey) -> int | None:
        """叫这个名字的页；哈希相同还不够，整段前缀的 token 都要相同。

        The block of this name; an equal hash is not enough, the tokens of the whole prefix must be equal.
        """
        block_id = self.cached.get(key.hash)
        if block_id is None:
            return None
        stored = self.blocks[block_id].key
        return block_id if stored is not None and stored.same_prefix(key) else None

    def find_prefix(self, seq: Sequence) -> list[int]:
        """从头开始连续命中的页，只查不占用。

        至少留 1 个 token 不命中：最后一个 token 必须真算一遍，才有 logits 可采样。
        例：页大小 16，提示恰好 32 个 token，最多命中 (32 - 1) // 16 = 1 页。

        The blocks hit in a row from the start; a look only, nothing is taken.
        At least 1 token is left unhit: the last one must be computed, or there are no logits to sample from.
        Example: with blocks of 16 and a prompt of exactly 32 tokens, at most (32 - 1) // 16 = 1 block is hit.
        """
        hits: list[int] = []
        if not self.enable_prefix_caching:
            return hits
        for index in range((seq.num_tokens - 1) // self.block_size):
            block_id = self._find(self._key(seq, index))
            if block_id is None:
                break
            hits.append(block_id)
        return hits

    def register_full_blocks(self, seq: Sequence) -> None:
        """把序列里刚算满的页登记到前缀缓存，供别人命中。

        Register the sequence's blocks that have just become full and computed, so that others can hit them.
        """
        if not self.enable_prefix_caching:
            return
        while seq.num_registered_blocks < seq.num_computed_tokens // self.block_size:
            index = seq.num_registered_blocks
            key = self._key(seq, index)
            # 前一页查不到（碰撞了，或已被淘汰），这一页登记了也没人走得到，索性不登记。
            # If the block before cannot be found (a collision, or evicted), nobody could reach this one: leave it.
            if index > 0 and self._find(seq.block_keys[index - 1]) is None:
                return
            # 名字已被占用：若内容相同，旧登记保留，本页自用；若是碰撞，也不覆盖。两种情况都不登记。
            # The name is taken: an equal block keeps it and ours stays private; on a collision it stays as well.
            if key.hash not in self.cached:
                self.cached[key.hash] = seq.block_table[index]
                self.blocks[seq.block_table[index]].key = key
            seq.num_registered_blocks += 1

    # ---- 分配与释放 ----
    # ---- allocate and free ----

    def can_allocate(self, seq: Sequence, hits: list[int], num_tokens: int) -> bool:
        """空闲页够不够让一个等待中的序列装下前 `num_tokens` 个 token。

        Whether the free blocks suffice for a waiting sequence's first `num_tokens` tokens.
        """
        # 命中的页若正躺在空闲队列里，取走它也要占一个名额，和新页一样算。
        # A hit that lies in the free queue is consumed by taking it, so it counts like a new block.
        hits_in_queue = sum(self.blocks[block_id].ref_count == 0 for block_id in hits)
        new_blocks = self.num_blocks_needed(num_tokens) - len(hits)
        return new_blocks + hits_in_queue <= self.num_free_blocks

    def allocate(self, seq: Sequence, hits: list[int], num_tokens: int) -> None:
        """接纳一个序列：先占住命中的页，再补新页。

        Admit a sequence: hold the hits first, then add new blocks.
        """
        assert not seq.block_table, "only a sequence without blocks is admitted"
        # 顺序要紧：先占住命中的页，否则下面取新页时可能正好把它们淘汰掉。
        # The order matters: hold the hits first, or taking new blocks below might evict them.
        for block_id in hits:
            if self.blocks[block_id].ref_count == 0:
                del self.free_queue[block_id]
            self.blocks[block_id].ref_count += 1
            seq.block_table.append(block_id)
        seq.num_registered_blocks = len(hits)
        seq.num_computed_tokens = len(hits) * self.block_size
        # 只统计第一次接纳：被抢占后命中自己的旧页，不算前缀缓存的功劳。
        # Count the first admission only: hitting one's own old blocks after preemption is no merit of the cache.
        if self.enable_prefix_caching and seq.num_preemptions == 0:
            self.stats.queried += seq.num_tokens
            self.stats.hit += seq.num_computed_tokens
        self.grow(seq, num_tokens)

    def can_grow(self, seq: Sequence, num_tokens: int) -> bool:
        """空闲页够不够让序列长到 `num_tokens` 个 token。

        Whether the free blocks suffice to let the sequence grow to `num_tokens` tokens.
        """
        return self.num_blocks_needed(num_tokens) - len(seq.block_table) <= self.num_free_blocks

    def grow(self, seq: Sequence, num_tokens: int) -> None:
        """最后一页写满时才需要新的一页：需要的页数大于块表长度，就补到够。

        Only when the last block is full is a new one needed: while more are needed than the table has, add one.
        """
        while self.num_blocks_needed(num_tokens) > len(seq.block_table):
            seq.block_table.append(self._take_free_block())

    def _take_free_block(self) -> int:
        """取空闲队列里最久没用的一页；它若还留着可命中的旧内容，此刻才真正淘汰。

        Take the free block unused for longest; contents that could still be hit are evicted only now.
        """
        block_id, _ = self.free_queue.popitem(last=False)
        block = self.blocks[block_id]
        if block.key is not None:
            del self.cached[block.key.hash]
            block.key = None
        block.ref_count = 1
        return block_id

    def free(self, seq: Sequence) -> None:
        """归还序列的全部页；内容和名字都留着，直到页被别人取走。

        Return all of the sequence's blocks; contents and names stay until somebody takes the block.
        """
        # 从尾到头归还：队列先淘汰尾部，大家共用的开头（如系统提示）活得最久。
        # Tail first: the queue evicts tails first, so a shared head (a system prompt, say) survives longest.
        for block_id in reversed(seq.block_table):
            block = self.blocks[block_id]
            block.ref_count -= 1
            if block.ref_count == 0:
                self.free_queue[block_id] = None
        seq.block_table.clear()
        seq.num_registered_blocks = 0
        seq.num_computed_tokens = 0

    # ---- 自检 ----
    # ---- self-check ----

    def check_integrity(self, sequences: Collection[Sequence]) -> None:
        """核对账目；任何一条不成立都说明引擎有 bug。

        Check the books; anything that does not hold is a bug of the engine.

        Args:
            sequences: all that may hold blocks

        Raises:
            RuntimeError: an invariant is broken; the message says which
        """
        held = Counter(block_id for seq in sequences for block_id in seq.block_table)
        if len(self.free_queue) + len(held) != self.num_blocks:
            raise RuntimeError(f"{len(self.free_queue)} free + {len(held)} used blocks, the pool has {self.num_blocks}")
        for block_id, block in enumerate(self.blocks):
            if block.ref_count != held[block_id]:
                raise RuntimeError(f"block {block_id}: ref_count {block.ref_count}, held by {held[block_id]} tables")
            if (block.ref_count == 0) != (block_id in self.free_queue):
                raise RuntimeError(f"block {block_id}: ref_count {block.ref_count}, but in the wrong place")
            if block.key is not None and self.cached.get(block.key.hash) != block_id:
                raise RuntimeError(f"block {block_id}: it bears a name that leads elsewhere")
        for name, block_id in self.cached.items():
            key = self.blocks[block_id].key
            if key is None or key.hash != name:
                raise RuntimeError(f"block {block_id}: the cache knows it as {name:#x}, it does not")
        for seq in sequences:
            if len(set(seq.block_table)) != len(seq.block_table):
                raise RuntimeError(f"{seq!r}: a block appears twice in its table")
            if seq.num_computed_tokens > len(seq.block_table) * self.block_size:
                raise RuntimeError(f"{seq!r}: more tokens computed than its blocks hold")
