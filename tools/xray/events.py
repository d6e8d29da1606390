"""快照和事件：一步前后各拍一张快照，两张一比，就知道发生了什么。

你在这里：`recorder.py` 决定何时拍，这里说明拍什么、怎样比。比较的函数只看快照，不看引擎，因此可以单独测试。

Snapshots and events: a snapshot before a part of a step and one after it, and the difference tells what happened.

You are here: `recorder.py` decides when to take them; this says what is in them and how they are compared. Comparing
looks at snapshots only and never at the engine, so it can be tested by itself.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from engine.block_manager import num_blocks_needed
from engine.llm_engine import LLMEngine
from engine.scheduler import Scheduler
from engine.sequence import Sequence

ROOT = Path(__file__).resolve().parent.parent.parent

# 每种事件由源码里的哪一处决定；测试保证每个名字都找得到。
# Where in the source each kind of event is decided; a test holds that each name is found.
SOURCES = {
    "arrive": "engine/scheduler.py::Scheduler.add",
    "fork": "engine/requests.py::Requests.take_released",
    "admit": "engine/scheduler.py::Scheduler.schedule",
    "hit": "engine/block_manager.py::BlockManager.find_prefix",
    "wait": "engine/block_manager.py::BlockManager.can_allocate",
    "grow": "engine/block_manager.py::BlockManager.grow",
    "evict": "engine/block_manager.py::BlockManager._take_free_block",
    "preempt": "engine/scheduler.py::Scheduler._preempt_last",
    "write": "engine/batch.py::flatten",
    "chunk": "engine/scheduler.py::ScheduledSequence",
    "accept": "engine/sequence.py::Sequence.accept",
    "sample": "layers/sampler.py::sample",
    "register": "engine/block_manager.py::BlockManager.register_full_blocks",
    "finish": "engine/scheduler.py::Scheduler._finish_reason",
    "free": "engine/block_manager.py::BlockManager.free",
    "abort": "engine/scheduler.py::Scheduler.abort",
}
# 大块池只记空闲队列的开头：下一个取走的块就在那里。
# Of a large pool only the head of the free queue is kept, where the next block to be taken is.
MAX_FREE_SHOWN = 256

Event = dict[str, Any]
# （名字，开始，持续），单位毫秒。
# (name, start, duration), in ms.
Phase = tuple[str, float, float]
S = TypeVar("S", bound="State")


@cache
def source_line(symbol: str) -> int:
    """用 `ast` 找到 `path::Class.method` 的行号；行号从不手写，也就不会过时。

    Find the line of `path::Class.method` with `ast`; no line number is written by hand, so none goes stale.

    Raises:
        ValueError: 没有这个名字；there is no such name
    """
    path, _, qualified = symbol.partition("::")
    node: ast.AST = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for name in qualified.split("."):
        found = (n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == name)
        node = next(found, ast.Pass())
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        raise ValueError(f"{symbol} is not in the source: correct SOURCES")
    return node.lineno


@dataclass(slots=True)
class State:
    """某一刻的队列和块；序列都用名字表示。

    Queues and blocks at one moment; sequences stand by their names.

    Attributes:
        tables, known, computed: 按请求：块表，已知、已算的 token 数；by request: block table, tokens known, computed
        refs: 在用的块的引用计数；reference counts of the blocks in use
        free: 空闲队列的开头，全长是 `num_free`；the head of the free queue; `num_free` is its whole length
        named: 前缀缓存找得到的块；blocks that the prefix cache can find
        hits, queries, preemptions: 到此为止的合计；totals so far
    """

    running: list[str]
    waiting: list[str]
    tables: dict[str, list[int]]
    known: dict[str, int]
    computed: dict[str, int]
    refs: dict[int, int]
    free: list[int]
    num_free: int
    named: list[int]
    hits: int
    queries: int
    preemptions: int

    @classmethod
    def take(cls: type[S], engine: LLMEngine, name: Callable[[Sequence], str]) -> S:
        """拍下此刻。

        Take a snapshot of this moment.
        """
        scheduler, manager = engine.scheduler, engine.block_manager
        sequences = {name(seq): seq for seq in (*scheduler.running, *scheduler.waiting)}
        return cls(
            running=[name(seq) for seq in scheduler.running],
            waiting=[name(seq) for seq in scheduler.waiting],
            tables={each: list(seq.block_table) for each, seq in sequences.items()},
            known={each: seq.num_tokens for each, seq in sequences.items()},
            computed={each: seq.num_computed_tokens for each, seq in sequences.items()},
            refs={i: manager.blocks[i].ref_count for seq in sequences.values() for i in seq.block_table},
            free=[block_id for block_id, _ in zip(manager.free_queue, range(MAX_FREE_SHOWN))],
            num_free=manager.num_free_blocks,
            named=sorted(manager.cached.values()),
            hits=manager.stats.hit,
            queries=manager.stats.queried,
            preemptions=scheduler.num_preemptions,
        )


@dataclass(slots=True)
class Row:
    """批里的一行。

    One row of the batch.

    Attributes:
        request: 属于哪个请求；whose it is
        start, count: 算的是位置 `[start, start + count)`；positions `[start, start + count)` are computed
        slots: 写入的槽位，连续的合成（开头，个数）；the slots written, as runs of (first, count)
        num_logits: 得到几行 logits，不采样是 0；how many rows of logits it gets; 0 if it does not sample
        guesses: 末尾几个输入是猜测，不是已知的 token；inputs at the end that are guesses and not known tokens
        tokens: 这一步得到的 token；what it got in this step
        probabilities: 各自的概率；the probability of each
        top: 每次最可能的 5 个 token 和概率，取自原始 logits；the 5 likeliest and their probabilities, by the raw logits
        num_allowed, allowed: 语法允许几个 token，其中最可能的 10 个；没有语法是 0；
            how many tokens the grammar allows, and the 10 likeliest of these; 0 without a grammar
    """

    request: str
    start: int
    count: int
    slots: list[tuple[int, int]]
    num_logits: int
    guesses: list[int]
    tokens: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    num_allowed: int = 0
    allowed: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Step(State):
    """一步：调度之后、前向之前的快照，批，以及这一步的全部事件。

    A step: the snapshot after scheduling and before the forward pass, the batch, and all events of the step.

    Attributes:
        time: 开始的时间，从记录开始算起的毫秒；start, in milliseconds since recording began
        phases: （名字，开始，持续），毫秒；(name, start, duration) in milliseconds
    """

    time: float = 0.0
    phases: list[Phase] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


# ---- 比较 ----
# ---- comparing ----


def _event(kind: str, request: str | None, **details: Any) -> Event:
    return {"kind": kind, "request": request, **details}


def _appeared(kind: str, before: State, after: State) -> list[Event]:
    names = [name for name in (*after.running, *after.waiting) if name not in before.known]
    return [_event(kind, name, tokens=after.known[name]) for name in names]


def _taken(named: set[int], name: str, blocks: list[int], num_tokens: int) -> list[Event]:
    # 取走时还有名字的块，旧内容此刻淘汰。
    # A block that still had a name when it was taken: its old contents are evicted now.
    events = [_event("evict", None, blocks=[block]) for block in blocks if block in named]
    return [*events, _event("grow", name, blocks=blocks, tokens=num_tokens)] if blocks else []


def _returned(before: State, name: str, refs: Counter[int]) -> list[Event]:
    # `refs` 跟着往下减：两个共用一个块的先后归还，先还的那次，块还有人在用。
    # `refs` is counted down along: of two that share a block and return it in turn, the first leaves it in use.
    blocks = before.tables[name]
    refs.subtract(blocks)
    return [_event("free", name, blocks=blocks, kept=[i for i in blocks if refs[i]])] if blocks else []


def arrived(before: State, after: State) -> list[Event]:
    """两步之间来了谁。

    Who has come between two steps.
    """
    return _appeared("arrive", before, after)


def aborted(before: State, names: Iterable[str]) -> list[Event]:
    """取消了谁，归还了哪些块。

    Who was cancelled, and which blocks went back.
    """
    refs = Counter(before.refs)
    return [event for name in names for event in (_event("abort", name), *_returned(before, name, refs))]


def planned(before: State, after: State, scheduled: dict[str, int], block_size: int) -> list[Event]:
    """`plan` 的前后：谁长大，为谁抢占了谁，接纳了谁，命中和淘汰了哪些块。

    Before and after `plan`: who grew, who was preempted for whom, who was admitted, which blocks were hit or evicted.

    Args:
        scheduled: 这一步各请求的新 token 数；the new tokens of each request of this step
    """
    # 规划之中新出现的，只能是等第 1 份算完提示词的兄弟序列：别的在 `before` 之前就到了。
    # Those that appear while planning are siblings that waited for number 1: all others came ahead of `before`.
    events = _appeared("fork", before, after)
    victims = [name for name in before.running if name not in after.running]
    refs, num_free, named = Counter(before.refs), before.num_free, set(before.named)
    # 照调度器的次序再走一遍：轮到谁、空闲块不够，就从末尾牺牲，直到够了，或者牺牲的就是它自己。
    # Go through once more in the scheduler's order: whoever is served while blocks are short has the last ones
    # sacrificed for it, until they suffice or it is the victim itself.
    for name in before.running:
        blocks = after.tables[name][len(before.tables[name]) :]
        while name in victims or len(blocks) > num_free:
            victim = victims.pop()
            events.append(_event("preempt", victim, lost=before.computed[victim], beneficiary=name))
            events += _returned(before, victim, refs)
            num_free += sum(refs[block] == 0 for block in before.tables[victim])
        num_free -= len(blocks)
        events += _taken(named, name, blocks, after.computed[name] + scheduled.get(name, 0))
    for name in after.running:
        if name not in before.running:
            # 刚接纳时，已算的恰好就是命中的。
            # Right after admission, what counts as computed is just what was hit.
            table, num_hits = after.tables[name], after.computed[name] // block_size
            events.append(_event("admit", name, tokens=scheduled[name]))
            events += [_event("hit", name, blocks=table[:num_hits])] if num_hits else []
            events += _taken(named, name, table[num_hits:], after.computed[name] + scheduled[name])
    return events


def blocked(scheduler: Scheduler, num_scheduled: int) -> dict[str, int] | None:
    """等待队列的队首是不是因为缺块而进不来；是，就说明缺多少。

    Whether the head of the waiting queue is kept out for want of blocks; if so, by how much.

    Args:
        num_scheduled: 这一步的 token 数；the tokens of this step
    """
    manager, budget = scheduler.block_manager, scheduler.max_num_batched_tokens - num_scheduled
    if not scheduler.waiting or budget <= 0 or len(scheduler.running) >= scheduler.max_num_seqs:
        return None
    seq = next(iter(scheduler.waiting))
    hits = manager.find_prefix(seq)
    num_tokens = min(seq.num_tokens, len(hits) * manager.block_size + budget)
    needed = num_blocks_needed(num_tokens, manager.block_size)
    return {"needed": needed, "hit": len(hits), "free": manager.num_free_blocks}


def updated(before: Step, after: State, finished: dict[str, dict[str, Any]]) -> list[Event]:
    """`update` 的前后：猜对了几个，采到了什么，登记了哪些块，谁结束了，归还了哪些块。

    Before and after `update`: how many guesses were right, what was sampled, which blocks were registered, who
    finished, which blocks went back.

    Args:
        finished: 结束的请求各有什么要说；what is to be told of each request that has finished
    """
    events, refs, new = [], Counter(before.refs), set(after.named) - set(before.named)
    for row in before.rows:
        if row.guesses:
            right = sum(guess == token for guess, token in zip(row.guesses, row.tokens))
            events.append(_event("accept", row.request, guesses=row.guesses, right=right, tokens=len(row.tokens)))
        for token, probability in zip(row.tokens, row.probabilities):
            events.append(_event("sample", row.request, token=token, probability=probability))
    for row in before.rows:
        name = row.request
        # 只有真正登记了的块才算：内容相同的块已有名字时，后来的那个不登记。
        # Only blocks that did get a name count: where an equal block has it already, the later one stays without.
        if blocks := [block for block in before.tables[name] if block in new]:
            events.append(_event("register", name, blocks=blocks))
        if name in finished:
            events.append(_event("finish", name, **finished[name]))
    return events + [event for name in finished for event in _returned(before, name, refs)]
