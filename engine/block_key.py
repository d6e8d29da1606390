"""BlockKey：一个写满的页“叫什么名字”。名字由它自己的 token 和它前面的全部 token 决定。

为什么要把前面的也算进去？因为 K、V 依赖整个上文：同样 16 个 token，上文不同，缓存内容就不同。

BlockKey: what a full block is called. The name depends on its own tokens and on all tokens before it.

Why on those before? Because K and V depend on the whole context: the same 16 tokens after another beginning have other
cache contents.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import xxhash


@dataclass(frozen=True, eq=False, slots=True)
class BlockKey:
    """链式的名字：指向前一页的名字，所以比较两个名字就是比较两段完整的前缀。

    A chained name: it points to the name of the block before, so comparing two names compares two whole prefixes.
    """

    hash: int
    parent: BlockKey | None
    token_ids: tuple[int, ...]

    def same_prefix(self, other: BlockKey) -> bool:
        """逐页比较 token，哈希碰撞也骗不过它；通常第一页就是同一个对象，立刻得出结果。

        Compare tokens block by block, which no hash collision can fool; usually both chains soon share an object.
        """
        mine: BlockKey | None = self
        theirs: BlockKey | None = other
        while mine is not theirs:
            if mine is None or theirs is None or mine.token_ids != theirs.token_ids:
                return False
            mine, theirs = mine.parent, theirs.parent
        return True


def make_block_key(parent: BlockKey | None, token_ids: tuple[int, ...]) -> BlockKey:
    """哈希 = xxh64(前一页的哈希, 本页的 token)。

    hash = xxh64(the previous block's hash, this block's tokens).

    Example: with blocks of 2, tokens [5, 6, 7, 8] give key_0 = h(0, [5, 6]) and key_1 = h(key_0, [7, 8]).
    """
    hasher = xxhash.xxh64(array("q", token_ids).tobytes())
    hasher.update((parent.hash if parent else 0).to_bytes(8, "little"))
    return BlockKey(hasher.intdigest(), parent, token_ids)
