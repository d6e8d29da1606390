"""重叠循环：第 N 步还在 GPU 上跑，主机已经在安排第 N + 1 步；第 N 步的 token 晚一步才读。

    同步   |schedule 1|====== GPU 1 ======|update 1|schedule 2|====== GPU 2 ======|
    重叠   |schedule 1|schedule 2|  update 1  |schedule 3|  update 2  |
                      |====== GPU 1 ======|====== GPU 2 ======|====== GPU 3 ======|

为什么可以不等 token 就安排下一步？调度只看“有几个 token”，不看“是哪个 token”；
而下一步的输入 id 就在设备上，不必经过主机。
两个后果：遇到停止 token 的序列会多算一步，那个 token 丢掉；序列末尾会有占位的 token（`PENDING_TOKEN`）。
读源码请先读同步的 `llm_engine.py`：两者的输出相同，有测试为证。

The overlapped loop: while step N runs on the GPU, the host plans step N + 1; step N's tokens are read one step late.

How can the next step be planned without the tokens? The scheduler asks how many tokens there are, not which; and the
next step's input ids are on the device already and need not visit the host. Two consequences: a sequence that meets a
stop token is computed for one step too many, and that token is dropped; and sequences may end in a placeholder
(`PENDING_TOKEN`). Read the synchronous `llm_engine.py` first: both give the same outputs, and tests prove it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from engine.batch import build_batch
from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.scheduler import ScheduledSequence
from engine.sequence import PENDING_TOKEN


@dataclass(slots=True)
class LaunchedStep:
    """已发出、还没取回结果的一步。

    A step that has been launched and not read.

    Attributes:
        samples: which sequences sample
        rows: for each sequence its row in `tokens`
        tokens: the sampled tokens on their way to the host, [rows] int64
        logprobs: what `gather_logprobs` returned, on its way to the host as well
        ready: fires when both have arrived; None on a CPU, where they are there at once
    """

    schedule: list[ScheduledSequence]
    samples: list[bool]
    rows: list[int]
    tokens: Tensor
    logprobs: Tensor | None
    ready: torch.cuda.Event | None


def copy_to_host(tensor: Tensor) -> Tensor:
    """拷到页锁定内存，不等它完成；只有页锁定的内存才能这样拷。

    Copy to pinned memory without waiting, which only pinned memory allows.
    """
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return on_host.copy_(tensor, non_blocking=True)


class OverlappedEngine(LLMEngine):
    """只有 `step` 与同步引擎不同；请求的进出、调度、块管理都是同一份代码。

    Only `step` differs from the synchronous engine; requests, scheduling and blocks are the same code.
    """

    launched: LaunchedStep | None = None
    sampled: Tensor | None = None

    def has_unfinished(self) -> bool:
        """已发出的一步，也要取回结果才算完。

        A launched step has to be collected, too.
        """
        return super().has_unfinished() or self.launched is not None

    def step(self) -> list[RequestOutput]:
        """先发出下一步，再取回上一步的结果：主机忙的时候，GPU 没有闲着。

        Launch the next step first, then collect the one before: while the host works, the GPU does not idle.

        Returns:
            the requests whose end became known in this step
        """
        previous, self.launched = self.launched, self._launch()
        return self._collect(previous) if previous else []

    def _launch(self) -> LaunchedStep | None:
        """安排并发出一步，不等结果；没有可安排的（都在等 token）就返回 None。

        Plan and launch a step without waiting; None if there is nothing to plan, as all wait for their tokens.
        """
        schedule = self.plan()
        if not schedule:
            return None
        samples = [row.samples for row in schedule]
        tokens, rows, logprobs = self._forward_and_sample(schedule, samples)
        self.sampled = tokens
        # 记下每个序列的 token 在这一步结果里的行号：下一步要从那里取输入。
        # Note where each sequence's token stands among this step's: the next step takes its input from there.
        for (seq, _), row in zip(schedule, rows):
            seq.sample_row = row
        self.scheduler.advance(schedule, [int(sampled) for sampled in samples])
        if tokens.device.type == "cpu":
            return LaunchedStep(schedule, samples, rows, tokens, logprobs, None)
        # 拷贝是异步的，事件告诉我们何时到达；不用 `synchronize`，那会连下一步也一起等。
        # The copies are asynchronous and the event tells when they have arrived; a `synchronize` would wait for the
        # next step as well.
        tokens, logprobs = copy_to_host(tokens), None if logprobs is None else copy_to_host(logprobs)
        ready = torch.cuda.Event()
        ready.record()
        return LaunchedStep(schedule, samples, rows, tokens, logprobs, ready)

    def _forward_and_sample(
        self, schedule: list[ScheduledSequence], samples: list[bool]
    ) -> tuple[Tensor, list[int], Tensor | None]:
        """小的一步重放 CUDA graph，其余的逐个启动核函数。

        A small step replays a CUDA graph; others are launched kernel by kernel.

        Returns:
            the sampled tokens on the device, [rows] int64; for each sequence its row there; and what `gather_logprobs`
            returns
        """
        runner = self.model_runner
        graphs, device = runner.graphs, runner.device
        if graphs is not None and graphs.can_run(schedule):
            tokens, logits, rows = graphs.run(schedule)
            # 图里的采样不做过滤和惩罚；有行用到它们，或者要对数概率时，拿图算好的 logits 重采这几行。
            # The graph samples without filters and penalties; rows that use them, or that ask for log-probabilities,
            # are sampled again from its logits.
            again = [(entry, row) for entry, row in zip(schedule, rows) if entry.seq.needs_logits and entry.samples]
            if not again:
                return tokens, rows, None
            where = torch.tensor([row for _, row in again]).to(device, non_blocking=True)
            chosen, logprobs = self.choose([entry for entry, _ in again], logits[where])
            tokens[where] = chosen
            return tokens, rows, logprobs
        batch = build_batch(schedule, runner.block_size, device)
        # 在设备上把占位的输入换成上一步采到的 token；只有解码行会有，它们排在最前面，行号就是下标。
        # Placeholders among the inputs become the tokens of the step before, on the device; only decode rows have them,
        # and as these come first, a row's number is its index.
        pending = [
            (index, row.seq.sample_row)
            for index, row in enumerate(schedule[: batch.metadata.num_decodes])
            if row.seq.token_ids[row.seq.num_computed_tokens] == PENDING_TOKEN
        ]
        if pending:
            assert self.sampled is not None
            where = torch.tensor(pending).to(device, non_blocking=True)
            batch.input_ids[where[:, 0]] = self.sampled[where[:, 1]]
        logits = runner.execute(batch)
        # 不采样的序列没有行，编号时跳过它们。
        # Sequences that do not sample have no row and are skipped in the numbering.
        rows = [number - 1 for number in accumulate(int(sampled) for sampled in samples)]
        if not any(samples):
            return torch.empty(0, dtype=torch.int64, device=device), rows, None
        tokens, logprobs = self.choose(schedule, logits)
        # 下一步若用图，要从图的缓冲区里读，所以也存一份到那里。
        # If the next step uses a graph, it reads from the graphs' buffer, so keep a copy there.
        if graphs is not None:
            graphs.sampled[: len(tokens)] = tokens
        return tokens, rows, logprobs

    def _collect(self, launched: LaunchedStep) -> list[RequestOutput]:
        """等这一步的 token 到达主机，再记到各序列上。

        Wait until the step's tokens are on the host, then record them.
        """
        if launched.ready is not None:
            launched.ready.synchronize()
        tokens = launched.tokens.tolist()
        token_ids = [[tokens[row]] if sampled else [] for row, sampled in zip(launched.rows, launched.samples)]
        self.keep_logprobs(launched.schedule, token_ids, launched.logprobs)
        return self.record(launched.schedule, token_ids, self.scheduler.commit(launched.schedule, token_ids))


def create_engine(config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> LLMEngine:
    """CUDA 上用重叠循环；CPU 上没有可重叠的异步设备，`enforce_eager` 是为了单步调试，都用同步循环。

    The overlapped loop on CUDA; the synchronous one on a CPU, where nothing runs beside the host, and with
    `enforce_eager`, which is for stepping through.
    """
    overlapped = config.resolve_device().type == "cuda" and not config.enforce_eager
    return (OverlappedEngine if overlapped else LLMEngine)(config, on_progress)
