"""记录器：把一个引擎实例的几个方法包一层，每一步留下一张快照和一串事件。

只改实例，不改类：`engine.step` 原是类里的方法，记录时在实例上放一个同名的函数，先后各做一点记录；
离开 `with` 就删掉它，类里的方法又露出来。没有记录时，引擎里连一个 `if` 都没有多。

The recorder: wrap a few methods of one engine instance; each step leaves a snapshot and a list of events.

Instances are changed, classes are not: while recording, the instance carries a function of the same name as the
method `engine.step`, which records before and after; leaving the `with` deletes it, and the class's method shows again.
Without recording the engine has not even an `if` more.
"""

import ast
import base64
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.base import AttentionMetadata
from backends.torch_backend import gather_pages
from engine.batch import Batch
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.llm_engine import LLMEngine
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence
from layers.attention import Attention

ROOT = Path(__file__).resolve().parent.parent.parent

# 每种事件由源码里的哪一处决定；测试保证每个名字都找得到。
# Where in the source each kind of event is decided; a test holds that each name is found.
SOURCES = {
    "arrive": "engine/scheduler.py::Scheduler.add",
    "fork": "engine/scheduler.py::Scheduler.add_first",
    "admit": "engine/scheduler.py::Scheduler.schedule",
    "hit": "engine/block_manager.py::BlockManager.find_prefix",
    "wait": "engine/block_manager.py::BlockManager.can_allocate",
    "grow": "engine/block_manager.py::BlockManager.grow",
    "evict": "engine/block_manager.py::BlockManager._take_free_block",
    "preempt": "engine/scheduler.py::Scheduler._preempt_last",
    "write": "engine/batch.py::build_batch",
    "chunk": "engine/scheduler.py::ScheduledSequence.samples",
    "sample": "layers/sampler.py::sample",
    "register": "engine/block_manager.py::BlockManager.register_full_blocks",
    "finish": "engine/scheduler.py::Scheduler._finish_reason",
    "free": "engine/block_manager.py::BlockManager.free",
    "abort": "engine/scheduler.py::Scheduler.abort",
}
# 网页要小于 5 MB：快照最多这么多字节，注意力最多这么多字节（base64 之后大三分之一）。
# The page stays below 5 MB: at most so many bytes of snapshots, and of attention, which base64 makes a third larger.
MAX_STEP_BYTES = 3_000_000
MAX_ATTENTION_BYTES = 1_000_000
# 更靠后的 token 不记注意力：第 p 个 token 的一行有 p + 1 个权重，层和头再乘上去。
# Tokens further back record no attention: the row of token p has p + 1 weights, times layers and heads.
MAX_ATTENTION_POSITIONS = 128
# 大块池只记空闲队列的开头：下一个取走的块就在那里。
# Of a large pool only the head of the free queue is kept, where the next block to be taken is.
MAX_FREE_SHOWN = 256


@cache
def source_line(symbol: str) -> int:
    """用 `ast` 找到 `path::Class.method` 的行号；行号从不手写，也就不会过时。

    Find the line of `path::Class.method` with `ast`; no line number is written by hand, so none goes stale.

    Raises:
        ValueError: there is no such name
    """
    path, _, qualified = symbol.partition("::")
    node: ast.AST = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for name in qualified.split("."):
        found = (n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == name)
        node = next(found, ast.Pass())
    if not isinstance(node, ast.ClassDef | ast.FunctionDef):
        raise ValueError(f"{symbol} is not in the source: correct SOURCES")
    return node.lineno


def _ranges(values: list[int]) -> list[tuple[int, int]]:
    """连续的数合成（开头，个数）：[4, 5, 6, 12] 变成 [(4, 3), (12, 1)]。

    Runs as (first, count): [4, 5, 6, 12] becomes [(4, 3), (12, 1)].
    """
    runs = [[value for _, value in run] for _, run in groupby(enumerate(values), lambda pair: pair[1] - pair[0])]
    return [(run[0], len(run)) for run in runs]


@dataclass(slots=True)
class Row:
    """批里的一行。

    One row of the batch.

    Attributes:
        request: whose it is
        start, count: positions [start, start + count) are computed
        slots: the slots written, as runs of (first, count)
        samples: whether it yields a token
        token: the sampled token
        top: the 5 likeliest tokens with their probabilities, from the raw logits
        probability: that of `token`
    """

    request: str
    start: int
    count: int
    slots: list[tuple[int, int]]
    samples: bool
    token: int | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    probability: float | None = None


@dataclass(slots=True)
class Step:
    """一步的快照：前向开始那一刻的队列和块，以及这一步的全部事件。

    A step's snapshot: queues and blocks at the moment the forward pass begins, and all events of the step.

    Attributes:
        time: start, in ms since recording began
        phases: (name, start, duration) in ms
        tables, computed: by request: block table, and tokens computed before this step
        refs: reference counts of the blocks in use
        free: the head of the free queue; `num_free` is its whole length
        named: blocks that the prefix cache can find
        hits, queries, preemptions: totals so far
    """

    time: float
    phases: list[tuple[str, float, float]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    tables: dict[str, list[int]] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    refs: dict[int, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    num_free: int = 0
    named: list[int] = field(default_factory=list)
    hits: int = 0
    queries: int = 0
    preemptions: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)


class Recorder:
    """记录一个引擎；用法是 `with Recorder(engine) as recorder:`，之后取 `recorder.recording()`。

    Records one engine: `with Recorder(engine) as recorder:`, and `recorder.recording()` afterwards.

    Args:
        engine: the synchronous engine
        on_step: called after each step, with the recorder and the step

    Raises:
        ValueError: `engine` runs the overlapped loop
    """

    def __init__(self, engine: LLMEngine, on_step: Callable[["Recorder", Step], None] | None = None) -> None:
        # 重叠循环里，第 N 步的 token 到第 N + 1 步之后才知道，没有“这一步”可以拍照。
        # In the overlapped loop the tokens of step N are known after step N + 1: there is no "this step" to picture.
        if isinstance(engine, OverlappedEngine):
            raise ValueError("the X-ray records the synchronous loop only: use enforce_eager=True (--enforce-eager)")
        self.engine = engine
        self.on_step = on_step
        self.steps: list[Step] = []
        self.num_steps = 0
        self.truncated = False
        self.sequences: dict[str, Sequence] = {}
        self.attention: dict[str, dict[int, str]] = {}
        self._names: dict[int, str] = {}
        self._wrapped: list[tuple[Any, str]] = []
        self._began = time.perf_counter()
        self._pending: list[dict[str, Any]] = []
        self._step = Step(0.0)
        self._step_bytes = 0
        self._attention_bytes = 0
        # 这一步要记的（请求，位置）和它们到目前为止各层的字节。
        # The (request, position) pairs to record in this step, and their bytes, layer by layer.
        self._schedule: list[ScheduledSequence] = []
        self._wanted: dict[tuple[str, int], bytearray] = {}
        self._short: dict[str, Any] = {}

    # ---- 装上与拆下 ----
    # ---- attach and detach ----

    def __enter__(self) -> "Recorder":
        engine, scheduler, manager = self.engine, self.engine.scheduler, self.engine.block_manager
        self._began = time.perf_counter()
        for seq in (*scheduler.running, *scheduler.waiting):
            self.name(seq)
        self._wrap(engine, "step", self._on_step)
        for method, phase in (("schedule", "schedule"), ("sample", "sample"), ("update", "update")):
            self._wrap(engine, method, self._timed(phase))
        self._wrap(engine.model_runner, "execute", self._timed("forward"))
        self._wrap(engine, "choose", self._on_choose)
        for owner, names in (
            (scheduler, "add add_first abort _preempt_last _finish_reason"),
            (manager, "can_allocate can_grow allocate grow _take_free_block free register_full_blocks"),
        ):
            for method in names.split():
                self._wrap(owner, method, getattr(self, f"_on_{method.strip('_')}"))
        # 只有参考后端把注意力逐步写出；别的后端没有“权重”这个中间结果可看。
        # Only the reference backend writes attention out step by step; in the others no weights ever exist.
        if engine.model_runner.backend.name == "torch":
            for layer in engine.model_runner.model.attention_layers():
                self._wrap(layer, "attend", self._on_attend(layer))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name in self._wrapped:
            delattr(owner, name)
        self._wrapped.clear()
        # 最后再拍一张：最后一步结束时归还的块，要到这里才看得到。
        # One last picture: the blocks that the last step returned are seen only here.
        if not self.truncated:
            self._step = Step(self._now(), events=self._pending)
            self._pending = []
            self._picture([])
            self.steps.append(self._step)

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        # `around(original, *args)` 决定何时调用原来的方法，前后各记一点。
        # `around(original, *args)` decides when to call the original, and records before and after.
        setattr(owner, name, lambda *args, **kwargs: around(original, *args, **kwargs))
        self._wrapped.append((owner, name))

    def _now(self) -> float:
        return round((time.perf_counter() - self._began) * 1000, 3)

    def name(self, seq: Sequence) -> str:
        """序列在记录里的名字：请求 id；`n` 份输出的其余各份加上序号；id 被再次使用时加撇号。

        A sequence's name in the recording: the request id, with a number for further outputs of `n`, and with a prime
        where an id is used again.
        """
        if id(seq) not in self._names:
            name = f"{seq.request_id}.{seq.index}" if seq.index else seq.request_id
            while name in self.sequences:
                name += "'"
            # 序列留在 `sequences` 里，它的 `id` 就不会被别的对象用去。
            # The sequence is kept in `sequences`, so that no other object can get its `id`.
            self._names[id(seq)] = name
            self.sequences[name] = seq
        return self._names[id(seq)]

    def _event(self, kind: str, request: str | None = None, **details: Any) -> None:
        self._pending.append({"kind": kind, "request": request, **details})

    # ---- 一步 ----
    # ---- one step ----

    def _on_step(self, original: Callable[[], Any]) -> Any:
        if not self.engine.has_unfinished():
            return original()
        self._step = Step(self._now())
        result = original()
        step = self._step
        # 两步之间的事件（新请求、取消）已在 `_pending` 的开头，归入这一步。
        # Events between steps (arrivals, aborts) stand at the head of `_pending` already and belong to this step.
        step.events, self._pending = self._pending, []
        for (request, position), weights in self._wanted.items():
            self.attention.setdefault(request, {})[position] = base64.b64encode(weights).decode()
        self._wanted = {}
        self.num_steps += 1
        # 额度用完之后照样看得到（`--watch`），只是不再留下。
        # Beyond the allowance steps can still be watched (`--watch`), but are not kept.
        if not self.truncated:
            self.steps.append(step)
            self._step_bytes += len(json.dumps(asdict(step)))
            self.truncated = self._step_bytes > MAX_STEP_BYTES
        if self.on_step:
            self.on_step(self, step)
        return result

    def _timed(self, phase: str) -> Callable[..., Any]:
        def around(original: Callable[..., Any], *args: Any) -> Any:
            started = self._now()
            result = original(*args)
            # CUDA 上的核函数是异步的：不等它算完，前向的时间就只是启动的时间。
            # Kernels on CUDA run asynchronously: without waiting, the forward pass would show its launch time only.
            if phase == "forward" and self.engine.model_runner.device.type == "cuda":
                torch.cuda.synchronize()
            self._step.phases.append((phase, started, round(self._now() - started, 3)))
            if phase == "schedule":
                self._picture(*result)
            return result

        return around

    def _picture(self, schedule: list[ScheduledSequence], batch: Batch | None = None) -> None:
        """拍下队列、块和这一步的批。

        Take the picture of queues, blocks and this step's batch.
        """
        step, scheduler, manager = self._step, self.engine.scheduler, self.engine.block_manager
        self._schedule = schedule
        step.running = [self.name(seq) for seq in scheduler.running]
        step.waiting = [self.name(seq) for seq in scheduler.waiting]
        for seq in (*scheduler.running, *scheduler.waiting):
            step.tables[self.name(seq)] = list(seq.block_table)
            step.computed[self.name(seq)] = seq.num_computed_tokens
        step.refs = {i: block.ref_count for i, block in enumerate(manager.blocks) if block.ref_count}
        step.free = [block_id for block_id, _ in zip(manager.free_queue, range(MAX_FREE_SHOWN))]
        step.num_free = manager.num_free_blocks
        step.named = sorted(manager.cached.values())
        step.hits, step.queries = manager.stats.hit, manager.stats.queried
        step.preemptions = scheduler.num_preemptions
        slots: list[int] = [] if batch is None else batch.metadata.slot_mapping.tolist()
        for seq, count in schedule:
            mine, slots = slots[:count], slots[count:]
            start, samples = seq.num_computed_tokens, seq.num_computed_tokens + count == seq.num_tokens
            step.rows.append(Row(self.name(seq), start, count, _ranges(mine), samples))
            self._event("write", self.name(seq), start=start, count=count, slots=_ranges(mine))
            if not samples:
                self._event("chunk", self.name(seq), done=start + count, known=seq.num_tokens)
            self._want(seq, start, count)

    def _on_choose(self, original: Callable[..., Any], schedule: list[ScheduledSequence], logits: Tensor) -> Any:
        tokens, logprobs = original(schedule, logits)
        probabilities = logits.float().softmax(-1)  # [S, vocab_size]
        top = probabilities.topk(min(5, logits.shape[-1]))
        chosen = probabilities.gather(-1, tokens[:, None])[:, 0]  # [S]
        found = zip(tokens.tolist(), chosen.tolist(), top.indices.tolist(), top.values.tolist())
        for row in self._step.rows:
            if row.samples:
                row.token, p, ids, values = next(found)
                row.probability = round(p, 4)
                row.top = [(i, round(value, 4)) for i, value in zip(ids, values)]
                self._event("sample", row.request, token=row.token, probability=row.probability)
        return tokens, logprobs

    # ---- 注意力 ----
    # ---- attention ----

    def _want(self, seq: Sequence, start: int, count: int) -> None:
        """决定这一行里的哪些位置要记注意力，直到用完额度。

        Decide which positions of this row record their attention, until the allowance is used up.
        """
        config = self.engine.model_runner.model_config
        if self.engine.model_runner.backend.name != "torch":
            return
        for position in range(start, min(start + count, MAX_ATTENTION_POSITIONS)):
            size = config.num_hidden_layers * config.num_attention_heads * (position + 1)
            # 抢占之后重算的位置已经有了，不必再记。
            # A position recomputed after preemption is there already.
            known = position in self.attention.get(self.name(seq), {})
            if not known and not self.truncated and self._attention_bytes + size <= MAX_ATTENTION_BYTES:
                self._attention_bytes += size
                self._wanted[self.name(seq), position] = bytearray()

    def _on_attend(self, layer: Attention) -> Callable[..., Any]:
        def around(original: Callable[..., Any], q: Tensor, metadata: AttentionMetadata) -> Tensor:
            first = 0
            for seq, count in self._schedule:
                wanted = range(seq.num_computed_tokens, seq.num_computed_tokens + count)
                if any((self.name(seq), position) in self._wanted for position in wanted):
                    self._weigh(layer, q[first : first + count], seq)
                first += count
            return original(q, metadata)

        return around

    def _weigh(self, layer: Attention, q: Tensor, seq: Sequence) -> None:
        """照参考后端的写法再算一遍权重，压成每个 1 字节：0 到 255 代表 0 到 1。

        Work the weights out once more, as the reference backend does, at 1 byte each: 0 to 255 stand for 0 to 1.

        Args:
            q: this sequence's queries, [count, Hq, D]
        """
        end = seq.num_computed_tokens + q.shape[0]
        table = torch.tensor(seq.block_table, device=q.device)
        keys = gather_pages(layer.cache().k, table, end)  # [end, Hkv, D]
        keys = keys.repeat_interleave(q.shape[1] // keys.shape[1], dim=1).float()  # [end, Hq, D]
        scores = torch.einsum("qhd,khd->qhk", q.float(), keys) * layer.softmax_scale  # [count, Hq, end]
        for row, position in enumerate(range(seq.num_computed_tokens, end)):
            weights = self._wanted.get((self.name(seq), position))
            if weights is not None:
                shares = scores[row, :, : position + 1].softmax(-1)  # [Hq, position + 1]
                weights += bytes((shares * 255).round().to(torch.uint8).flatten().tolist())

    # ---- 调度器 ----
    # ---- scheduler ----

    def _on_add(self, original: Callable[..., Any], seq: Sequence) -> None:
        self._event("arrive", self.name(seq), tokens=seq.num_prompt_tokens)
        original(seq)

    def _on_add_first(self, original: Callable[..., Any], sequences: list[Sequence]) -> None:
        for seq in sequences:
            self._event("fork", self.name(seq), tokens=seq.num_prompt_tokens)
        original(sequences)

    def _on_preempt_last(self, original: Callable[[], Sequence]) -> Sequence:
        # 先记后调用：原方法会清零 `num_computed_tokens`，要说清丢了多少就得赶在它前面。
        # Recorded before the call: the original resets `num_computed_tokens`, and what is lost must be told.
        seq = self.engine.scheduler.running[-1]
        self._event("preempt", self.name(seq), lost=seq.num_computed_tokens, **self._short)
        return original()

    def _on_finish_reason(self, original: Callable[..., str | None], seq: Sequence, token: int) -> str | None:
        reason = original(seq, token)
        if reason is not None:
            self._event("finish", self.name(seq), reason=reason, token=token, output=seq.num_output_tokens)
        return reason

    def _on_abort(self, original: Callable[[str], Sequence | None], request_id: str) -> Sequence | None:
        seq = original(request_id)
        if seq is not None:
            self._event("abort", self.name(seq))
        return seq

    # ---- 块管理器 ----
    # ---- block manager ----

    def _on_can_allocate(self, original: Callable[..., bool], seq: Sequence, hits: list[int], num_tokens: int) -> bool:
        fits = original(seq, hits, num_tokens)
        if not fits:
            manager = self.engine.block_manager
            needed = manager.num_blocks_needed(num_tokens)
            self._event("wait", self.name(seq), needed=needed, hit=len(hits), free=manager.num_free_blocks)
        return fits

    def _on_can_grow(self, original: Callable[..., bool], seq: Sequence, num_tokens: int) -> bool:
        # 不成功的那一次记下是谁缺块：紧接着的抢占就是为了它。
        # A failure notes who lacks a block: the preemption that follows is for its sake.
        self._short = {"beneficiary": self.name(seq)}
        return original(seq, num_tokens)

    def _on_allocate(self, original: Callable[..., None], seq: Sequence, hits: list[int], num_tokens: int) -> None:
        self._event("admit", self.name(seq), tokens=num_tokens - len(hits) * self.engine.block_manager.block_size)
        if hits:
            self._event("hit", self.name(seq), blocks=list(hits))
        original(seq, hits, num_tokens)

    def _on_grow(self, original: Callable[..., None], seq: Sequence, num_tokens: int) -> None:
        before = len(seq.block_table)
        original(seq, num_tokens)
        if seq.block_table[before:]:
            self._event("grow", self.name(seq), blocks=seq.block_table[before:], tokens=num_tokens)

    def _on_take_free_block(self, original: Callable[[], int]) -> int:
        manager = self.engine.block_manager
        block_id = next(iter(manager.free_queue))
        if manager.blocks[block_id].key is not None:
            self._event("evict", None, blocks=[block_id])
        return original()

    def _on_free(self, original: Callable[[Sequence], None], seq: Sequence) -> None:
        blocks = list(seq.block_table)
        original(seq)
        if blocks:
            kept = [block_id for block_id in blocks if self.engine.block_manager.blocks[block_id].ref_count]
            self._event("free", self.name(seq), blocks=blocks, kept=kept)

    def _on_register_full_blocks(self, original: Callable[[Sequence], None], seq: Sequence) -> None:
        before = seq.num_registered_blocks
        original(seq)
        if seq.num_registered_blocks > before:
            self._event("register", self.name(seq), blocks=seq.block_table[before : seq.num_registered_blocks])

    # ---- 交出记录 ----
    # ---- hand the recording out ----

    def recording(self) -> dict[str, Any]:
        """全部记录，可以直接写成 JSON。

        The whole recording, ready for JSON.
        """
        runner, manager, scheduler = self.engine.model_runner, self.engine.block_manager, self.engine.scheduler
        config, tokenizer = runner.model_config, self.engine.tokenizer
        used = {token for seq in self.sequences.values() for token in seq.token_ids}
        used |= {token for step in self.steps for row in step.rows for token, _ in row.top}
        requests = {}
        for name, seq in self.sequences.items():
            outputs = seq.output_token_ids
            # 第 i 个 token 之后能读到的文字有多长；末尾的半个字符（替换符）先不算。
            # How much text can be read after token i; half a character at the end, a replacement mark, waits.
            texts = [tokenizer.decode(outputs[: i + 1]).rstrip("\ufffd") for i in range(len(outputs))]
            requests[name] = {
                "num_prompt": seq.num_prompt_tokens, "tokens": seq.prompt_token_ids + outputs,
                "text": tokenizer.decode(outputs), "ends": [len(text) for text in texts],
                "finish_reason": seq.finish_reason, "attention": self.attention.get(name, {}),
            }
        return {
            "root": ROOT.as_posix(),
            "backend": runner.backend.name, "device": str(runner.device), "dtype": str(runner.dtype).split(".")[-1],
            "num_blocks": manager.num_blocks, "block_size": manager.block_size,
            "budget": scheduler.max_num_batched_tokens, "max_num_seqs": scheduler.max_num_seqs,
            "num_layers": config.num_hidden_layers, "num_heads": config.num_attention_heads,
            "truncated": self.truncated,
            "sources": {kind: {"symbol": symbol, "line": source_line(symbol)} for kind, symbol in SOURCES.items()},
            "tokens": {token: tokenizer.decode_token(token) for token in sorted(used)},
            "requests": requests, "steps": [asdict(step) for step in self.steps],
        }
