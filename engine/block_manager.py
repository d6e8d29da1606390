"""块管理器：KV 缓存被切成等大的块（block），这里管谁用哪个块、谁和谁共用、谁该被淘汰。

把它当成操作系统的虚拟内存来读：块类比物理页，`block_table` 类比页表，前缀缓存类比共享页，LRU 队列类比空闲页链表。
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


def num_blocks_needed(num_tokens: int, block_size: int) -> int:
    """装下这么多 token 要几个块，向上取整。

    浪费只在最后一个块：35 个 token 占 3 个块共 48 个槽位，空 13 个；若按最大长度预留，会空出几千个。例，块大小 16：

    Blocks that hold so many tokens, rounded up.
    Waste is in the last block only: 35 tokens take 3 blocks, 48 slots, and 13 stay empty; reserving the maximum length
    instead would leave thousands empty. Example with blocks of 16:

        tokens   0   1   16   17   35
        blocks   0   1    1    2    3
    """
    return (num_tokens + block_size - 1) // block_size


@dataclass(slots=True)
class Block:
    """一个物理块的元数据：引用计数，以及内容的键（未登记则为 None）。

    The account of one physical block: how many sequences use it, and its content's name, if registered.
    """

    # 有几张块表里写着这个块；3 个序列共用系统提示词的第一个块，它就是 3，归 0 才算空闲。
    # How many block tables name it: 3 when 3 sequences share a system prompt's first block, and free only at 0.
    ref_count: int = 0
    # 与 `ref_count` 无关：空闲块也可以有键，意思是“没人用，但还能命中”，像内核的 page cache。
    # Independent of `ref_count`: a free block may bear a name, "unused, can still be hit", like a kernel's page cache.
    key: BlockKey | None = None


@dataclass(slots=True)
class PrefixCacheStats:
    """前缀缓存的命中统计，单位 token。

    Prefix-cache statistics, in tokens.
    """

    queried: int = 0
    hit: int = 0


class BlockManager:
    """分配、共享、登记、释放和淘汰物理块。

    Allocates, shares, registers, frees and evicts physical blocks.

    Attributes:
        free_queue: 空闲块的编号，闲得最久的在前；用字典，从中间删除才是 `O(1)`；
            free block ids, the longest unused first; a dict for removal in `O(1)` from the middle
        cached: 哈希 -> 登记在它名下的块的编号；hash -> the id of the block that bears this name
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        # 下标就是块编号：`blocks[7]` 记的是各层 KV 缓存里的 `k_cache[7]` 和 `v_cache[7]`，每层共用这个编号。
        # The index is the block id: `blocks[7]` is the account of `k_cache[7]` and `v_cache[7]`,
        # the same id in every layer.
        self.blocks = [Block() for _ in range(num_blocks)]
        # 不用 deque：命中时要从队列中间抽走一个块，deque 得从头找，这里是 O(1)。
        # Not a deque: a hit takes its block out of the middle, which a deque has to search for and this does in O(1).
        # 字典里只有键有用，就是块编号；最前面的闲得最久，最先被取走，这就是 LRU。
        # Only the keys matter, they are block ids; the front has been idle longest and goes first, which is LRU.
        self.free_queue: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.cached: dict[int, int] = {}
        self.stats = PrefixCacheStats()

    @property
    def num_blocks(self) -> int:
        """块的总数。

        Blocks in all.
        """
        return len(self.blocks)

    @property
    def num_free_blocks(self) -> int:
        """空闲块的个数，其中有的还留着可命中的旧内容。

        Free blocks; some still hold old contents that can be hit.
        """
        return len(self.free_queue)

    # ---- 前缀缓存 ----
    # ---- prefix cache ----

    def _key(self, seq: Sequence, index: int) -> BlockKey:
        """序列第 `index` 个块的键；按需逐块算出，算过的留着，抢占后不用重算。

        The name of the sequence's block `index`; computed as needed and kept, also across preemption.
        """
        # 从缺的那个块补到 `index`，不能跳着算：每个键都要用前一个块的键，像 Merkle 链，也像 git 提交。
        # From the first missing one up to `index`, none skipped:
        # a name needs the one before, as in a Merkle chain or git.
        while len(seq.block_keys) <= index:
            # 调用者只问满块。若在块里只有 9 个 token 时就算出键，它会一直留着，写满 16 个之后就错了。
            # Callers ask for full blocks only: a name made from 9 tokens would stay, and be wrong with 16 in the block.
            start = len(seq.block_keys) * self.block_size
            # 常见的 bug：每个块都从 None 算起，于是上文不同、本块相同的两个块共用一个键，读到别人的 K、V。
            # A common bug starts every block from None: equal blocks after different beginnings share a name and K, V.
            parent = seq.block_keys[-1] if seq.block_keys else None
            seq.block_keys.append(make_block_key(parent, tuple(seq.token_ids[start : start + self.block_size])))
        return seq.block_keys[index]

    def _find(self, seq: Sequence, index: int) -> int | None:
        """登记在序列第 `index` 个键下的块；哈希相同还不够，整段前缀的 token 都要相同。

        The block that bears the sequence's name number `index`; an equal hash is not enough, the tokens of the whole
        prefix must be equal.
        """
        key = self._key(seq, index)
        # 停在这里看 `key.hash in self.cached`：False 说明这段前缀没登记过，或者它的块已被取走。
        # Stop here and look at `key.hash in self.cached`: False means never registered, or its block has been taken.
        block_id = self.cached.get(key.hash)
        if block_id is None:
            return None
        # 哈希只负责找到桶，和哈希表一样；少了这次核对，一次碰撞就会把甲的上文当成乙的来回答。
        # The hash only finds the bucket, as in a hash table; without this comparison a collision answers one user with
        # another user's context.
        stored = self.blocks[block_id].key
        if stored is None or not stored.same_prefix(key):
            return None
        # 键相同就改用登记的那个对象：下一个块的键以它为 `parent`，比较时走一步就碰头。
        # Equal names: use the registered object from now on; the next block's name has it as `parent`, and comparing
        # two chains then meets after one step.
        # 不这样做，每比一个块都要走回第 0 个块，2048 个块要走 2048 * 2049 / 2 = 2098176 步，而不是 2048 步。
        # Otherwise every comparison walks back to block 0: 2048 blocks take 2048 * 2049 / 2 = 2098176 steps, not 2048.
        seq.block_keys[index] = stored
        return block_id

    def num_shareable_blocks(self, num_tokens: int) -> int:
        """开头的这么多个 token，最多能命中几个块。

        How many blocks of so many tokens at the start can be hit at most.
        """
        # 减 1 的效果，块大小 16：16 个 token 查 0 个块，17 到 32 个查 1 个块，33 个查 2 个块。
        # What the minus 1 does with blocks of 16: 16 tokens look up 0 blocks, 17 to 32 look up 1, 33 look up 2.
        return (num_tokens - 1) // self.block_size if self.enable_prefix_caching else 0

    def find_prefix(self, seq: Sequence) -> list[int]:
        """从头开始连续命中的块，只查不占用。

        至少留 1 个 token 不命中：最后一个 token 必须真算一遍，才有 logits 可采样。
        例：块大小 16，提示词恰好 32 个 token，最多命中 (32 - 1) // 16 = 1 个块。

        The blocks hit in a row from the start; a look only, nothing is taken.
        At least 1 token is left unhit: the last one must be computed, or there are no logits to sample from.
        Example: with blocks of 16 and a prompt of exactly 32 tokens, at most (32 - 1) // 16 = 1 block is hit.
        """
        # 命中的都是满块，新 token 只写进后面自己的块；共享块从不被写，用不着写时复制（copy-on-write）。
        # Hits are full, and new tokens go to one's own blocks behind them:
        # no shared block is written, no copy-on-write.
        hits: list[int] = []
        for index in range(self.num_shareable_blocks(seq.num_tokens)):
            block_id = self._find(seq, index)
            # 断了就停：`num_computed_tokens` 只能从头连着数，中间缺一个块，后面的块查得到也用不上。
            # A miss ends it: `num_computed_tokens` counts from the start without a gap,
            # so a block behind the gap is of no use.
            if block_id is None:
                break
            hits.append(block_id)
        return hits

    def register_full_blocks(self, seq: Sequence) -> None:
        """把序列里刚算满的块登记到前缀缓存，供别人命中。

        Register the sequence's blocks that have just become full and computed, so that others can hit them.
        """
        if not self.enable_prefix_caching:
            return
        # 看已算的数，不看已知的数：刚采到的 token 还没经过前向计算，K、V 不在缓存里，命中的人会读到垃圾值。
        # Go by computed tokens, not known ones: the token just sampled has no K and V in the cache yet,
        # and who hits such a block reads junk.
        # 例，块大小 4：已知 8 个、已算 7 个，7 // 4 = 1，所以第 2 个块要等下一步才登记。
        # Example with blocks of 4: 8 known and 7 computed, 7 // 4 = 1, so block number 2 is registered one step later.
        # 重叠循环里末尾的 token 可能还没读到，含有它的块还算不出键，等读到了再说。
        # In the overlapped loop the last token may not be read yet; a block that holds it has no name until it is.
        num_ready = min(seq.num_computed_tokens, seq.num_tokens - seq.num_pending_tokens)
        while seq.num_registered_blocks < num_ready // self.block_size:
            index = seq.num_registered_blocks
            key = self._key(seq, index)
            # 前一个块查不到（碰撞了，或已被淘汰），这个块登记了也没人走得到，索性不登记。
            # If the block before cannot be found (a collision, or evicted), nobody could reach this one: leave it.
            if index > 0 and self._find(seq, index - 1) is None:
                # 这里返回而不跳过：下一步还会再试，前一个块若被别人重新登记，这个块就能跟着补上。
                # A return and not a skip: the next step tries again,
                # and follows once somebody registers the block before anew.
                return
            # 键已被占用：若内容相同，旧登记保留，本块自用；若是碰撞，也不覆盖。两种情况都不登记。
            # The name is taken: an equal block keeps it and ours stays private; on a collision it stays as well.
            # 例：2 个相同的提示词同一步进来，查不到对方，各算各的；后登记的那份没有键，释放后只是普通的空闲块。
            # Example: 2 equal prompts in one step miss each other and both compute;
            # the later copy gets no name and, once freed, is just an empty block.
            if key.hash not in self.cached:
                self.cached[key.hash] = seq.block_table[index]
                self.blocks[seq.block_table[index]].key = key
            else:
                self._find(seq, index)
            seq.num_registered_blocks += 1

    # ---- 分配与释放 ----
    # ---- allocate and free ----

    def can_allocate(self, seq: Sequence, hits: list[int], num_tokens: int) -> bool:
        """空闲块够不够让一个等待中的序列装下前 `num_tokens` 个 token。

        Whether the free blocks suffice for a waiting sequence's first `num_tokens` tokens.
        """
        # 命中的块若正躺在空闲队列里，取走它也要占一个名额，和新块一样算。
        # A hit that lies in the free queue is consumed by taking it, so it counts like a new block.
        # 例：要 4 个块，命中 2 个且都空闲：新块 2 + 命中 2 = 4，空闲 3 个不够；命中的若有人在用，2 个就够。
        # Example: 4 blocks wanted, 2 of them hits that lie free: 2 new + 2 hits = 4, so 3 free are too few;
        # with the hits in use by others, 2 would do.
        hits_in_queue = sum(self.blocks[block_id].ref_count == 0 for block_id in hits)
        new_blocks = num_blocks_needed(num_tokens, self.block_size) - len(hits)
        return new_blocks + hits_in_queue <= self.num_free_blocks

    def allocate(self, seq: Sequence, hits: list[int], num_tokens: int) -> None:
        """接纳一个序列：先占住命中的块，再补新块。

        Admit a sequence: hold the hits first, then add new blocks.
        """
        # 例，共 5 个块，块大小 4，命中 [0]，要装 9 个 token，也就是 3 个块：
        # Example with 5 blocks of 4, hits [0] and 9 tokens to hold, that is 3 blocks:
        #     before    free_queue [3, 1, 0, 4, 2]   block_table []
        #     hits      free_queue [3, 1, 4, 2]      block_table [0]          num_computed_tokens 4
        #     grow      free_queue [4, 2]            block_table [0, 3, 1]
        assert not seq.block_table, "only a sequence without blocks is admitted"
        # 顺序要紧：先占住命中的块，否则下面取新块时可能正好把它们淘汰掉。
        # The order matters: hold the hits first, or taking new blocks below might evict them.
        for block_id in hits:
            # 从没人用变成有人用，就要离开空闲队列；漏了这步，它会被当成空闲块发给别人，两个序列互相覆盖。
            # Once used it must leave the free queue, or somebody else gets it as empty and both overwrite it.
            if self.blocks[block_id].ref_count == 0:
                del self.free_queue[block_id]
            self.blocks[block_id].ref_count += 1
            seq.block_table.append(block_id)
        # 命中的块已经登记过，K、V 也在缓存里，所以直接计入“已算”：前向从它们后面的 token 开始。
        # Hits are registered and have K and V in the cache, so they count as computed:
        # the forward pass starts behind them.
        seq.num_registered_blocks = len(hits)
        seq.num_computed_tokens = len(hits) * self.block_size
        # 只记第一次接纳：被抢占后命中自己的旧块，不算前缀缓存的功劳，用户看到的数和统计都不变。
        # Only the first admission counts: hitting one's own old blocks after preemption is no merit of the cache and
        # changes neither what the user sees nor the statistics.
        if self.enable_prefix_caching and seq.num_preemptions == 0:
            seq.num_cached_tokens = seq.num_computed_tokens
            self.stats.queried += seq.num_tokens
            self.stats.hit += seq.num_cached_tokens
        self.grow(seq, num_tokens)

    def can_grow(self, seq: Sequence, num_tokens: int) -> bool:
        """空闲块够不够让序列长到 `num_tokens` 个 token。

        Whether the free blocks suffice to let the sequence grow to `num_tokens` tokens.
        """
        # 块大小 16 时，解码每 16 步才缺 1 个块；其余 15 步缺 0 个，空闲块为 0 也放行。
        # With blocks of 16, decoding lacks 1 block once in 16 steps; in the other 15 it lacks 0 and passes with 0 free.
        return num_blocks_needed(num_tokens, self.block_size) - len(seq.block_table) <= self.num_free_blocks

    def grow(self, seq: Sequence, num_tokens: int) -> None:
        """最后一个块写满时才需要新块：需要的块数大于块表长度，就补到够。

        直接比“需要”和“已有”，怎么增长都对，块大小 16：

        Only when the last block is full is a new one needed: while more are needed than the table has, add one.
        Comparing what is needed with what is there is right for any growth, with blocks of 16:

            tokens   15 -> 16        16 -> 17        16 -> 36
            blocks    1 -> 1          1 -> 2          1 -> 3
        """
        # 有的引擎写成 `len % block_size == 1` 就加一个块：每步恰好多 1 个 token 才对，一次多 20 个就会漏。
        # Some engines add a block when `len % block_size == 1`: right if a step adds 1 token, wrong for a chunk of 20.
        while num_blocks_needed(num_tokens, self.block_size) > len(seq.block_table):
            seq.block_table.append(self._take_free_block())

    def _take_free_block(self) -> int:
        """取空闲队列里最久没用的一个块；它若还留着可命中的旧内容，此刻才真正淘汰。

        Take the free block unused for longest; contents that could still be hit are evicted only now.
        """
        # 从最前面取，像内核回收最冷的物理页；调用者已问过 `can_allocate` 或 `can_grow`，队列不会是空的。
        # From the front, as a kernel reclaims the coldest page; callers have asked `can_allocate` or `can_grow`,
        # so the queue is not empty.
        block_id, _ = self.free_queue.popitem(last=False)
        block = self.blocks[block_id]
        # 惰性淘汰：取走时才抹掉键。这里漏抹，别人还会按旧的键命中它，读到的却是新主人的 K、V。
        # Lazy eviction: the name goes only now. Were it left,
        # others would still hit it and read the new owner's K and V.
        if block.key is not None:
            del self.cached[block.key.hash]
            block.key = None
        block.ref_count = 1
        return block_id

    def free(self, seq: Sequence) -> None:
        """归还序列的全部块；内容和键都留着，直到块被别人取走。

        Return all of the sequence's blocks; contents and names stay until somebody takes the block.
        """
        # 从尾到头归还：队列先淘汰尾部，大家共用的开头（如系统提示词）活得最久。
        # Tail first: the queue evicts tails first, so a shared head (a system prompt, say) survives longest.
        # 例：块表 [7, 2, 5]，7 号块另有 1 个序列在用：
        # Example: table [7, 2, 5], and block 7 is used by 1 other sequence:
        #     free_queue [4]  ->  [4, 5, 2]      blocks[7].ref_count 2 -> 1      block_table []
        for block_id in reversed(seq.block_table):
            block = self.blocks[block_id]
            block.ref_count -= 1
            # 归 0 才入队：别人还在用的块不能发出去，和 `shared_ptr` 一个道理。
            # Queued only at 0: a block that others use must not be handed out, as with a `shared_ptr`.
            if block.ref_count == 0:
                self.free_queue[block_id] = None
        # 清空之后，再归还一次也无害：先被抢占、又在等待时被取消的请求，会走到这里两次。
        # Once empty, a second return does no harm: a request preempted and then aborted while waiting comes here twice.
        seq.block_table.clear()
        seq.num_registered_blocks = 0
        # 块没了，K、V 也就没了：已算归 0，调度器会把提示词连同输出当作一个新提示词重算。
        # No blocks, no K and V: with 0 computed, the scheduler recomputes prompt and output like a new prompt.
        seq.num_computed_tokens = 0

    # ---- 自检 ----
    # ---- self-check ----

    def check_integrity(self, sequences: Collection[Sequence]) -> None:
        """核对账目；任何一条不成立都说明引擎有 bug。

        Check the books; anything that does not hold is a bug of the engine.

        Args:
            sequences: 所有可能占着块的序列；all that may hold blocks

        Raises:
            RuntimeError: 某条不变量不成立，消息里写明是哪条；an invariant is broken; the message says which
        """
        # 以块表为准重数一遍，再和账本对照，像 fsck 用目录树核对空闲位图。
        # Count anew from the block tables and compare with the books,
        # as fsck checks the free map against the file tree.
        held = Counter(block_id for seq in sequences for block_id in seq.block_table)
        # 总数偏小是块泄漏：取消请求却忘了归还，池子越用越小，谁也进不来；偏大则是有块还在用就被归还。
        # Too small a total is a leak: an abort that returns nothing shrinks the pool until nobody gets in;
        # too large a one means a block was returned while in use.
        if len(self.free_queue) + len(held) != self.num_blocks:
            raise RuntimeError(f"{len(self.free_queue)} free + {len(held)} used blocks, the pool has {self.num_blocks}")
        for block_id, block in enumerate(self.blocks):
            # 计数偏大，块永远收不回；偏小，块还在用就会发给别人，输出变乱却不报错。
            # Too high a count never gives the block back; too low a one hands it out while in use:
            # garbled text and no error.
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
            # 同一个块出现两次，后面的 token 会覆盖前面的 K、V，像两个虚拟地址误映射到同一个物理页。
            # Twice in one table, and later tokens overwrite earlier K and V,
            # like two virtual pages mapped to one by mistake.
            if len(set(seq.block_table)) != len(seq.block_table):
                raise RuntimeError(f"{seq!r}: a block appears twice in its table")
            if seq.num_computed_tokens > len(seq.block_table) * self.block_size:
                raise RuntimeError(f"{seq!r}: more tokens computed than its blocks hold")
