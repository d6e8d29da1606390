"""BlockKey：一个满块的键。键由块里的 token 和它前面的全部 token 决定。

为什么要把前面的也算进去？因为 K、V 依赖整个上文：同样 16 个 token，上文不同，缓存内容就不同。

BlockKey: what a full block is called. The name depends on its own tokens and on all tokens before it.

Why on those before? Because K and V depend on the whole context: the same 16 tokens after another beginning have other
cache contents.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import xxhash


# `eq=False`：自动生成的比较会沿 `parent` 递归，131072 个 token、块大小 16 就是 8192 层，超过递归上限。
# `eq=False`: a generated comparison recurses along `parent`; 131072 tokens in blocks of 16 are 8192 levels,
# beyond the recursion limit.
@dataclass(frozen=True, eq=False, slots=True)
class BlockKey:
    """链式的键：指向前一个块的键，所以比较两个键就是比较两段完整的前缀。

    A chained name: it points to the name of the block before, so comparing two names compares two whole prefixes.
    """

    # 64 位哈希不能当身份证：xxh64 很快，但防不住有人故意造碰撞，所以下面还存着原始的 token。
    # A hash of 64 bits is no proof of identity: xxh64 is fast but no defence against collisions made on purpose,
    # so the tokens are kept as well.
    hash: int
    # `repr=False`：调试器里看一个键，不该把前面整条链都打印出来。
    # `repr=False`: looking at a name in the debugger should not print the whole chain before it.
    parent: BlockKey | None = field(repr=False)
    # 一个块的 16 个 id 只有几百字节；同一个块的 K、V 在 Llama-3.2-3B 的 bf16 缓存里是 1.75 MiB。
    # The 16 ids of a block are a few hundred bytes; its K and V in a bf16 cache of Llama-3.2-3B are 1.75 MiB.
    token_ids: tuple[int, ...]

    def same_prefix(self, other: BlockKey) -> bool:
        """逐块比较 token，哈希碰撞也骗不过它；链的开头多半是同一个对象，走到那里就有结果。

        Compare tokens block by block, which no hash collision can fool; chains that began with a hit share objects, and
        comparing ends there.
        """
        mine: BlockKey | None = self
        theirs: BlockKey | None = other
        # 两条链走到同一个对象，或同时走到 None，就是相同：对象相同，它前面的链也相同。
        # Meeting at one object, or both at None, means equal:
        # from the same object on, the rest of both chains is the same.
        #     mine    [7, 8] -> [5, 6] -> None
        #     theirs  [7, 8] -> [9, 9] -> None      False
        while mine is not theirs:
            # 只比本块的 token 不够：上面的例子里最后一个块相同而上文不同，K、V 就不同。
            # This block's tokens alone do not do: above, the last blocks agree, but contexts differ and so do K and V.
            if mine is None or theirs is None or mine.token_ids != theirs.token_ids:
                return False
            mine, theirs = mine.parent, theirs.parent
        return True


def make_block_key(parent: BlockKey | None, token_ids: tuple[int, ...]) -> BlockKey:
    """哈希 = xxh64(前一个块的哈希, 本块的 token)。

    hash = xxh64(the previous block's hash, this block's tokens).

    Example: with blocks of 2, tokens [5, 6, 7, 8] give key_0 = h(0, [5, 6]) and key_1 = h(key_0, [7, 8]).
    """
    # 每个 id 固定 8 字节（"q" 是 int64）；若拼成文本，[1, 23] 和 [12, 3] 都是 "123"，自己造出碰撞。
    # 8 bytes an id ("q" is int64); joined as text, [1, 23] and [12, 3] would both be "123", a home-made collision.
    hasher = xxhash.xxh64(array("q", token_ids).tobytes())
    # 把前一个块的哈希也算进去，就成了链：改动第一个 token，后面每个块的键都会变。
    # Feeding in the hash of the block before makes the chain: change the first token, and every name behind it changes.
    hasher.update((parent.hash if parent else 0).to_bytes(8, "little"))
    return BlockKey(hasher.intdigest(), parent, token_ids)
