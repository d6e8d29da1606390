"""记录器：把一个引擎实例的 5 个方法包一层，在它们前后拍快照，每一步留下一张快照和一串事件。

    plan -> execute -> choose -> update，以及两步之间的 / and between steps: abort

只改实例，不改类：`engine.plan` 原是类里的方法，记录时在实例上放一个同名的函数，先后各做一点记录；
离开 `with` 就删掉它，类里的方法又露出来。没有记录时，引擎里连一个 `if` 都没有多。
发生了什么，由前后两张快照比出来，见 `events.py`；块管理器和调度器内部的方法一个也不碰。

The recorder: wrap 5 methods of one engine instance and take snapshots around them; each step leaves a snapshot and a
list of events.

Instances are changed, classes are not: while recording, the instance carries a function of the same name as the
method `engine.plan`, which records before and after; leaving the `with` deletes it, and the class's method shows again.
Without recording the engine has not even an `if` more. What happened is the difference of two snapshots, see
`events.py`; no inner method of the block manager or the scheduler is touched.
"""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from backends.torch_backend import gather_pages
from engine.batch import Batch
from engine.detokenizer import Detokenizer
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence
from layers.attention import Attention
from models.quantized import number_types
from tools.xray import events
from tools.xray.events import Event, Phase, Row, State, Step

# 网页要小于 5 MB：快照最多这么多字节，注意力最多这么多字节（base64 之后大三分之一）。
# The page stays below 5 MB: at most so many bytes of snapshots, and of attention, which base64 makes a third larger.
MAX_STEP_BYTES = 3_000_000
MAX_ATTENTION_BYTES = 1_000_000
# 更靠后的 token 不记注意力：第 p 个 token 的一行有 p + 1 个权重，层和头再乘上去。
# Tokens further back record no attention: the row of token p has p + 1 weights, times layers and heads.
MAX_ATTENTION_POSITIONS = 128


def _ranges(values: list[int]) -> list[tuple[int, int]]:
    """连续的数合成（开头，个数）：[4, 5, 6, 12] 变成 [(4, 3), (12, 1)]。

    Runs as (first, count): [4, 5, 6, 12] becomes [(4, 3), (12, 1)].
    """
    runs = [[value for _, value in run] for _, run in groupby(enumerate(values), lambda pair: pair[1] - pair[0])]
    return [(run[0], len(run)) for run in runs]


class Recorder:
    """记录一个引擎；用法是 `with Recorder(engine) as recorder:`，之后取 `recorder.recording()`。

    Records one engine: `with Recorder(engine) as recorder:`, and `recorder.recording()` afterwards.

    Args:
        engine: 同步的引擎；the synchronous engine
        on_step: 每步之后调用，参数是记录器和这一步；called after each step, with the recorder and the step

    Raises:
        ValueError: `engine` 用的是重叠循环；`engine` runs the overlapped loop
    """

    def __init__(self, engine: LLMEngine, on_step: Callable[["Recorder", Step], None] | None = None) -> None:
        # 重叠循环里，第 N 步的 token 到第 N + 1 步之后才知道，没有“这一步”的快照。
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
        self._names: dict[Sequence, str] = {}
        self._undo: list[Callable[[], None]] = []
        self._began = time.perf_counter()
        self._events: list[Event] = []
        self._step_bytes = 0
        self._attention_bytes = 0
        # 这一步要记的（请求，位置）和它们到目前为止各层的字节。
        # The (request, position) pairs to record in this step, and their bytes, layer by layer.
        self._schedule: list[ScheduledSequence] = []
        self._wanted: dict[tuple[str, int], bytearray] = {}

    # ---- 装上与拆下 ----
    # ---- attach and detach ----

    def __enter__(self) -> "Recorder":
        engine, runner = self.engine, self.engine.model_runner
        self._began = time.perf_counter()
        # 最近的一张快照；两步之间的变化，都是和它比出来的。
        # The latest snapshot; what changes between steps is found by comparing with it.
        self._state = State.take(engine, self.name)
        self._wrap(engine, "abort", self._on_abort)
        self._wrap(engine, "plan", self._on_plan)
        self._wrap(runner, "execute", self._on_execute)
        self._wrap(engine.sampler, "choose", self._on_choose)
        self._wrap(engine.scheduler, "update", self._on_update)
        # 只有参考后端把注意力逐步写出；别的后端没有“权重”这个中间结果可看。
        # Only the reference backend writes attention out step by step; in the others no weights ever exist.
        if runner.backend.is_reference:
            for layer in runner.model.attention_layers():
                self._undo.append(layer.register_forward_hook(self._on_attention).remove)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()
        # 最后再拍一张：最后一步结束时归还的块，要到这里才看得到。
        # One last picture: the blocks that the last step returned are seen only here.
        if not self.truncated:
            self._look()
            step = Step.take(self.engine, self.name)
            step.time, step.events, self._events = self._now(), self._events, []
            self.steps.append(step)

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        # `around(original, *args)` 决定何时调用原来的方法，前后各记一点。
        # `around(original, *args)` decides when to call the original, and records before and after.
        setattr(owner, name, lambda *args, **kwargs: around(original, *args, **kwargs))
        self._undo.append(lambda: delattr(owner, name))

    def _now(self) -> float:
        return round((time.perf_counter() - self._began) * 1000, 3)

    def name(self, seq: Sequence) -> str:
        """序列在记录里的名字：请求 id；`n` 份输出的其余各份加上序号；id 被再次使用时加撇号。

        A sequence's name in the recording: the request id, with a number for further outputs of `n`, and with a prime
        where an id is used again.
        """
        if seq not in self._names:
            name = f"{seq.request_id}.{seq.index}" if seq.index else seq.request_id
            while name in self.sequences:
                name += "'"
            self._names[seq], self.sequences[name] = name, seq
        return self._names[seq]

    # ---- 一步 ----
    # ---- one step ----

    def _look(self) -> State:
        """两步之间来了谁，到这时才看得到。

        Who has come between two steps is seen only now.
        """
        before, self._state = self._state, State.take(self.engine, self.name)
        self._events += events.arrived(before, self._state)
        return self._state

    def _on_abort(self, abort: Callable[[str], RequestOutput | None], request_id: str) -> RequestOutput | None:
        # 先看一眼：刚到来就被取消的，两步之间就没了。
        # Look first: one that is cancelled right after it has come would be gone before the next step.
        before = self._look()
        output = abort(request_id)
        self._state = State.take(self.engine, self.name)
        gone = [name for name in before.known if name not in self._state.known]
        self._events += events.aborted(before, [name for name in gone if self.sequences[name].finish_reason == "abort"])
        return output

    def _on_plan(self, plan: Callable[[], list[ScheduledSequence]]) -> list[ScheduledSequence]:
        before = self._look()
        phases: list[Phase] = []
        schedule = self._timed(phases, "schedule", plan)
        self._schedule, self._wanted = schedule, {}
        self._step = step = Step.take(self.engine, self.name)
        self._state, step.phases, step.time = step, phases, phases[0][1]
        scheduled = {self.name(row.seq): row.num_new_tokens for row in schedule}
        self._events += events.planned(before, step, scheduled, self.engine.block_manager.block_size)
        # 发生过抢占的一步不接纳任何人，队首也就没有试过。
        # A step that has preempted admits nobody, so the head of the queue was not tried.
        tried = step.preemptions == before.preemptions
        if tried and (lack := events.blocked(self.engine.scheduler, sum(scheduled.values()))):
            self._event("wait", step.waiting[0], **lack)
        self._planned = self._now()
        return schedule

    def _on_execute(self, execute: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        # `build_batch` 是一个函数，不是哪个实例的方法：它的时间就是两次调用之间的空当。
        # `build_batch` is a function and no instance's method: its time is the gap between the two calls.
        self._step.phases.append(("batch", self._planned, round(self._now() - self._planned, 3)))
        slots, inputs = batch.metadata.slot_mapping.tolist(), batch.input_ids.tolist()
        for row in self._schedule:
            seq, count = row.seq, row.num_new_tokens
            name, start = self.name(seq), seq.num_computed_tokens
            mine, slots, fed, inputs = _ranges(slots[:count]), slots[count:], inputs[:count], inputs[count:]
            # 已知的 token 之后若还有输入，那就是猜测。
            # Inputs that follow the known tokens are guesses.
            guesses = fed[seq.num_tokens - start :]
            self._step.rows.append(Row(name, start, count, mine, row.num_logits, guesses))
            self._event("write", name, start=start, count=count, slots=mine)
            if not row.samples:
                self._event("chunk", name, done=start + count, known=seq.num_tokens)
            self._want(name, start, count)
        return self._timed(self._step.phases, "forward", execute, batch)

    def _on_choose(
        self, choose: Callable[..., list[list[int]]], schedule: list[ScheduledSequence], logits: Tensor
    ) -> list[list[int]]:
        self._logits, first = logits, 0
        # 语法此刻允许什么，要在选之前看：选中的 token 记下之后，它就往前走了。
        # What a grammar allows now has to be looked at before the choice: it moves on once the token is recorded.
        for row, planned in zip(self._step.rows, schedule):
            if row.num_logits and planned.seq.guide is not None:
                ids = planned.seq.guide.allowed()
                best = logits[first, ids].topk(min(10, len(ids))).indices.tolist()
                row.num_allowed, row.allowed = len(ids), [ids[i] for i in best]
            first += row.num_logits
        return self._timed(self._step.phases, "sample", choose, schedule, logits)

    def _on_update(
        self, update: Callable[..., list[Sequence]], schedule: list[ScheduledSequence], token_ids: list[list[int]]
    ) -> list[Sequence]:
        step = self._step
        finished = self._timed(step.phases, "update", update, schedule, token_ids)
        # `update` 之后才看 `token_ids`：停止 token 后面猜对的，它已经删掉。
        # `token_ids` is read after `update`, which has deleted right guesses behind a stop token.
        self._fill(step.rows, token_ids, self._logits)
        after = State.take(self.engine, self.name)
        ends = {
            self.name(seq): {
                "reason": seq.finish_reason, "token": seq.token_ids[-1], "output": seq.num_output_tokens,
            } for seq in finished
        }  # fmt: skip
        self._events += events.updated(step, after, ends)
        self._state = after
        self._close(step)
        return finished

    def _close(self, step: Step) -> None:
        """一步走完：收下它的事件和注意力。

        The step is done: take its events and its attention.
        """
        # 两步之间的事件（新请求、取消）已在开头，归入这一步。
        # Events between steps (arrivals, aborts) stand at the head already and belong to this step.
        step.events, self._events = self._events, []
        # 猜错的位置下一步重算，它们的权重不算数。
        # Positions of wrong guesses are computed again in a later step, and their weights do not count.
        ends = {row.request: row.start + row.count - max(row.num_logits - len(row.tokens), 0) for row in step.rows}
        for (request, position), weights in self._wanted.items():
            if position < ends[request]:
                self.attention.setdefault(request, {})[position] = base64.b64encode(weights).decode()
        self.num_steps += 1
        # 额度用完之后照样看得到（`--watch`），只是不再留下。
        # Beyond the allowance steps can still be watched (`--watch`), but are not kept.
        if not self.truncated:
            self.steps.append(step)
            self._step_bytes += len(json.dumps(asdict(step)))
            self.truncated = self._step_bytes > MAX_STEP_BYTES
        if self.on_step:
            self.on_step(self, step)

    def _event(self, kind: str, request: str, **details: Any) -> None:
        self._events.append({"kind": kind, "request": request, **details})

    def _timed(self, phases: list[Phase], phase: str, call: Callable[..., Any], *args: Any) -> Any:
        began = self._now()
        result = call(*args)
        # CUDA 上的核函数是异步的：不等它算完，前向的时间就只是启动的时间。
        # Kernels on CUDA run asynchronously: without waiting, the forward pass would show its launch time only.
        if self.engine.model_runner.device.type == "cuda":
            torch.cuda.synchronize()
        phases.append((phase, began, round(self._now() - began, 3)))
        return result

    def _fill(self, rows: list[Row], token_ids: list[list[int]], logits: Tensor) -> None:
        """把得到的 token、它们的概率和前 5 名填进各行。

        Fill the rows with the tokens they got, their probabilities and the top 5.

        Args:
            logits: [S, vocab_size]
        """
        probabilities = logits.float().softmax(-1)  # [S, vocab_size]
        top = probabilities.topk(min(5, logits.shape[-1]))
        ids, values, first = top.indices.tolist(), top.values.tolist(), 0
        for row, tokens in zip(rows, token_ids):
            for index, token in enumerate(tokens, first):
                row.tokens.append(token)
                row.probabilities.append(round(probabilities[index, token].item(), 4))
                row.top.append([(i, round(value, 4)) for i, value in zip(ids[index], values[index])])
            first += row.num_logits

    # ---- 注意力 ----
    # ---- attention ----

    def _want(self, name: str, start: int, count: int) -> None:
        """决定这一行里的哪些位置要记注意力，直到用完额度。

        Decide which positions of this row record their attention, until the allowance is used up.
        """
        config = self.engine.model_runner.model_config
        if not self.engine.model_runner.backend.is_reference:
            return
        for position in range(start, min(start + count, MAX_ATTENTION_POSITIONS)):
            size = config.num_hidden_layers * config.num_attention_heads * (position + 1)
            # 抢占之后重算的位置已经有了，不必再记。
            # A position recomputed after preemption is there already.
            known = position in self.attention.get(name, {})
            if not known and not self.truncated and self._attention_bytes + size <= MAX_ATTENTION_BYTES:
                self._attention_bytes += size
                self._wanted[name, position] = bytearray()

    def _on_attention(self, layer: Attention, args: tuple[Any, ...], _: Tensor) -> None:
        # 钩子在 `forward` 之后：这一步的 K 已在缓存里。
        # The hook runs after `forward`: this step's K is in the cache.
        q, first = args[0], 0
        for row in self._schedule:
            start, count = row.seq.num_computed_tokens, row.num_new_tokens
            if any((self.name(row.seq), position) in self._wanted for position in range(start, start + count)):
                self._weigh(layer, q[first : first + count], row.seq)
            first += count

    def _weigh(self, layer: Attention, q: Tensor, seq: Sequence) -> None:
        """照参考后端的写法再算一遍权重，压成每个 1 字节：0 到 255 代表 0 到 1。

        Work the weights out once more, as the reference backend does, at 1 byte each: 0 to 255 stand for 0 to 1.

        Args:
            q: [count, Hq, D]，这条序列的 query；this sequence's queries
        """
        end = seq.num_computed_tokens + q.shape[0]
        table = torch.tensor(seq.block_table, device=q.device)
        cache = layer.cache()
        keys = gather_pages(cache.k, table, end, cache.k_descale)  # [end, Hkv, D]
        keys = keys.repeat_interleave(q.shape[1] // keys.shape[1], dim=1).float()  # [end, Hq, D]
        scores = torch.einsum("qhd,khd->qhk", q.float(), keys) * layer.softmax_scale  # [count, Hq, end]
        for row, position in enumerate(range(seq.num_computed_tokens, end)):
            weights = self._wanted.get((self.name(seq), position))
            if weights is not None:
                shares = scores[row, :, : position + 1].softmax(-1)  # [Hq, position + 1]
                weights += bytes((shares * 255).round().to(torch.uint8).flatten().tolist())

    # ---- 交出记录 ----
    # ---- hand the recording out ----

    def recording(self) -> dict[str, Any]:
        """全部记录，可以直接写成 JSON。

        The whole recording, ready for JSON.
        """
        runner, manager, scheduler = self.engine.model_runner, self.engine.block_manager, self.engine.scheduler
        config, tokenizer = runner.model_config, self.engine.tokenizer
        used = {token for seq in self.sequences.values() for token in seq.token_ids}
        for row in (row for step in self.steps for row in step.rows):
            used |= {*row.guesses, *row.allowed, *(token for top in row.top for token, _ in top)}
        requests = {}
        for name, seq in self.sequences.items():
            outputs = seq.output_token_ids
            # 第 i 个 token 之后能读到的文字有多长；末尾的半个字符（替换符）先不算。
            # How much text can be read after token i; half a character at the end, a replacement mark, waits.
            detokenizer = Detokenizer(tokenizer, prompt_token_ids=seq.prompt_token_ids)
            pieces = [detokenizer.push(token) for token in outputs]
            requests[name] = {
                "num_prompt": seq.num_prompt_tokens, "tokens": seq.prompt_token_ids + outputs,
                "text": "".join(pieces) + detokenizer.rest(), "ends": list(accumulate(map(len, pieces))),
                "finish_reason": seq.finish_reason, "attention": self.attention.get(name, {}),
            }
        return {
            "root": events.ROOT.as_posix(),
            "backend": runner.backend.name, "device": str(runner.device),
            "dtype": number_types(runner.model, runner.dtype),
            "num_blocks": manager.num_blocks, "block_size": manager.block_size,
            "budget": scheduler.max_num_batched_tokens, "max_num_seqs": scheduler.max_num_seqs,
            "num_layers": config.num_hidden_layers, "num_heads": config.num_attention_heads,
            # 张量并行时，记录里只有这个进程的头。例：2 个进程、共 8 个头，rank 1 的是 4 到 7。
            # With tensor parallelism these are the heads of this process: of 8 heads on 2 ranks, rank 1 has 4 to 7.
            "rank": config.ranks.rank, "num_ranks": config.ranks.size,
            "truncated": self.truncated,
            "sources": {
                kind: {"symbol": symbol, "line": events.source_line(symbol)} for kind, symbol in events.SOURCES.items()
            },
            "tokens": {token: tokenizer.decode_token(token) for token in sorted(used)},
            "requests": requests, "steps": [asdict(step) for step in self.steps],
        }
