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

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.kernels import FusedKernels
from engine.batch import build_batch, sampling_rows
from engine.config import EngineConfig, EngineSetup
from engine.gpu.decode_graphs import DecodeGraphs
from engine.gpu.kernel_sampler import KernelSampler, wanted_reports
from engine.gpu.warm_up import warm_up
from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.sampler import Sampler
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LaunchedStep:
    """已发出、还没取回结果的一步。

    A step that has been launched and not read.

    Attributes:
        rows: 每个 logits 对应 `tokens` 的哪一行；for each of the logits its row in `tokens`
        tokens: [rows] int64，采到的 token，正在拷往主机；the sampled tokens on their way to the host
        logprobs: `Sampler.draw` 的返回值，也在拷往主机；what `Sampler.draw` returned, on its way to the host as well
        ready: 两者都到了就触发；CPU 上立刻就有，是 None；fires when both are there; None on a CPU: at once
    """

    schedule: list[ScheduledSequence]
    rows: list[int]
    tokens: Tensor
    logprobs: Tensor | None
    ready: torch.cuda.Event | None

    @property
    def has_guesses(self) -> bool:
        """有没有哪一行带着猜测。

        Whether any row has guesses.
        """
        return max(row.num_logits for row in self.schedule) > 1


def copy_to_host(tensor: Tensor) -> Tensor:
    """拷到页锁定内存，不等它完成；只有页锁定的内存才能这样拷。

    Copy to pinned memory without waiting, which only pinned memory allows.
    """
    on_host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return on_host.copy_(tensor, non_blocking=True)


class OverlappedEngine(LLMEngine):
    """只有 `step` 与同步引擎不同，还多了录好的图；请求的进出、调度、块管理都是同一份代码。

    一步还在途中，就可能有序列让出块：被取消，被抢占，或者刚读到停止 token。这一步还会往这些块里写，却不会写坏谁的：
    之后的每个命令都排在同一条流上、这一步的后面。新主人先写后读，旧的写入必定已被盖掉；登记过的块若被别人命中，
    里面的 K、V 要么早已写好，要么正由这一步写入，写的正是登记的那些 token，而读它的命令还在后面。

    Only `step` differs from the synchronous engine, and there are recorded graphs; requests, scheduling and blocks are
    the same code.
    While a step is in flight a sequence may give up its blocks: aborted, preempted, or its stop token has just been
    read. The step still writes to them and spoils nothing, as each later command stands behind it on the same stream. A
    new owner writes before it reads, over whatever was left there. In a registered block that somebody hits, K and V
    were written before or are being written by this very step, for just the tokens that the block is registered
    under, and the command that reads them comes later.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> None:
        super().__init__(config, on_progress)
        self.launched: LaunchedStep | None = None
        self.sampled: Tensor | None = None
        self.graphs: DecodeGraphs | None = None
        runner = self.model_runner
        if records_graphs(runner.device, runner.backend.supports_cuda_graphs, runner.kernels):
            assert isinstance(self.sampler, KernelSampler)
            rows = self._max_rows(config.max_num_seqs)
            self.graphs = DecodeGraphs(runner, self.pool, self.sampler, rows, on_progress)
        elif runner.device.type == "cuda":
            logger.warning(
                "backend '%s' cannot be recorded in CUDA graphs, its kernels are launched one by one "
                "/ 这个后端录不了 CUDA graph，核函数逐个启动", runner.backend.name,
            )  # fmt: skip

        if runner.device.type == "cuda":
            warm_up(self, self._forward_and_sample)

    def create_sampler(self, setup: EngineSetup) -> Sampler:
        """有采样的核函数就用它，图内图外都是它：一行选中什么，不随这一步能不能用图而变。

        The kernel, where there is one, in graphs and outside: what a row chooses does not depend on whether its step
        fits into a graph.
        """
        if setup.kernels is None or not setup.kernels.has_sampler:
            return super().create_sampler(setup)
        vocab_size, most = setup.model_config.vocab_size, setup.config.max_num_seqs
        return KernelSampler(setup.kernels, vocab_size, most, setup.device, setup.model_config.ranks)

    def reserved_bytes(self, setup: EngineSetup) -> int:
        """图的中间结果留在图里，不还给别人；各档的图轮流用同一块，够最大的一档就行。

        What graphs compute on the way stays with them; all sizes take turns in the same memory, enough for the largest.
        """
        if not records_graphs(setup.device, setup.backend.supports_cuda_graphs, setup.kernels):
            return 0
        # 最大的是 logits，别的合起来也不比它大。例：Qwen3-0.6B，256 行：2 * 256 * 151936 * 2 字节，约 156 MB。
        # The largest is the logits, and the rest together is no larger. Example: Qwen3-0.6B with 256 rows takes
        # 2 * 256 * 151936 * 2 bytes, some 156 MB.
        # 张量并行时，拼接前后的 logits 同时都在，是 2 倍。
        # With tensor parallelism the logits are there twice, before and after they are joined: 2 times as much.
        copies = 2 * min(setup.model_config.ranks.size, 2)
        return copies * self._max_rows(setup.config.max_num_seqs) * setup.model_config.vocab_size * setup.dtype.itemsize

    def _max_rows(self, max_num_seqs: int) -> int:
        """最大的图有几行：一条序列一行，猜测另外要。

        Rows of the largest graph: one a sequence, and guesses want some besides.
        """
        return self.drafter.max_rows(max_num_seqs) if self.drafter else max_num_seqs

    def has_unfinished(self) -> bool:
        """已发出的一步，也要取回结果才算完。

        A launched step has to be collected, too.
        """
        return super().has_unfinished() or self.launched is not None

    def step(self) -> list[RequestOutput]:
        """先发出下一步，再取回上一步的结果：主机忙的时候，GPU 没有闲着。

        Launch the next step first, then collect the one before: while the host works, the GPU does not idle.

        Returns:
            在这一步得知已结束的请求；the requests whose end became known in this step
        """
        outputs: list[RequestOutput] = []
        if self.launched and self.collects_first():
            outputs, self.launched = self._collect(self.launched), None
        # 右边先算完：`_launch` 把第 N + 1 步排进 GPU 的队列就返回，第 N 步往往还在跑。
        # The right side comes first: `_launch` queues step N + 1 on the GPU and returns, mostly while step N runs.
        # 断点停在这里看 `self.scheduler.running[0].token_ids`：末尾的 -1 就是还没读到的 token。
        # Stop here and look at `self.scheduler.running[0].token_ids`: a -1 at the end is a token not read yet.
        previous, self.launched = self.launched, self._launch()
        # 带着猜测的一步马上取回：猜对几个，要等 token 到了主机才知道。有猜测，上一步就已经取回了。
        # A step with guesses is collected at once: how many were right is known when the tokens are on the host. Where
        # there are guesses, the step before has been collected.
        if self.launched and self.launched.has_guesses:
            previous, self.launched = self.launched, None
        return outputs + (self._collect(previous) if previous else [])

    def collects_first(self) -> bool:
        """下一步取决于在途的一步选了哪些 token：语法的掩码要等它，猜测也要等它。

        Whether the next step depends on which tokens the step in flight has chosen: a grammar's mask waits for them,
        and so do guesses.
        """
        running = self.scheduler.running
        return any(seq.guide for seq in running) or bool(self.drafter and self.drafter.awaits(running))

    def _launch(self) -> LaunchedStep | None:
        """安排并发出一步，不等结果；没有可安排的（都在等 token）就返回 None。

        Plan and launch a step without waiting; None if there is nothing to plan, as all wait for their tokens.
        """
        # 占位的 token 也算“已知”，所以这里与同步循环是同一个 `plan`。
        # Placeholders count as known tokens, so this is the same `plan` as in the synchronous loop.
        schedule = self.plan()
        if not schedule:
            return None
        tokens, rows, logprobs = self._forward_and_sample(schedule)
        step = LaunchedStep(schedule, rows, tokens, logprobs, None)
        self.sampled = tokens
        # 记下每个序列的 token 在这一步结果里的行号：下一步要从那里取输入。
        # Note where each sequence's token stands among this step's: the next step takes its input from there.
        for (seq, _), row in zip(sampling_rows(schedule), rows):
            seq.sample_row = row
        # 各行得几个 token 已成定局，现在就记账，下一步才排得出来；是哪几个，由 `_collect` 填。
        # How many tokens each row gets is settled, so it is counted now and the next step can be planned; which ones,
        # `_collect` fills in.
        # 带着猜测时，要等比过了才知道几个，由 `_collect` 一起记。
        # With guesses it takes the comparison to know how many: then `_collect` counts them.
        if not step.has_guesses:
            self.scheduler.advance(schedule, [row.num_logits for row in schedule])
        if tokens.device.type == "cpu":
            return step
        # 拷贝是异步的，事件告诉我们何时到达；不用 `synchronize`，那会连下一步也一起等。
        # The copies are asynchronous and the event tells when they have arrived; a `synchronize` would wait for the
        # next step as well.
        step.tokens, step.logprobs = copy_to_host(tokens), None if logprobs is None else copy_to_host(logprobs)
        step.ready = torch.cuda.Event()
        step.ready.record()
        return step

    # 图的缓冲区就地改写；为什么要在推断模式里，见 `Sampler.draw`。
    # The graphs' buffers are written in place; why in inference mode, see `Sampler.draw`.
    @torch.inference_mode()
    def _forward_and_sample(self, schedule: list[ScheduledSequence]) -> tuple[Tensor, list[int], Tensor | None]:
        """小的一步重放 CUDA graph，其余的逐个启动核函数。

        A small step replays a CUDA graph; others are launched kernel by kernel.

        Returns:
            [rows] int64，采到的 token，在设备上；the sampled tokens, on the device
            `sampling_rows` 的每一项在其中的行号；for each of `sampling_rows` its row there
            `Sampler.draw` 的返回值；what `Sampler.draw` returns
        """
        runner, graphs = self.model_runner, self.graphs
        if graphs is not None and graphs.can_run(schedule):
            tokens, reports, step = graphs.run(schedule)
            return tokens, step.logits_indices, wanted_reports(reports, step.logits_indices, step.samples)
        logits = runner.execute(build_batch(schedule, self.pool.block_size, runner.device, self.sampled))
        samples = sampling_rows(schedule)
        if not samples:
            return torch.empty(0, dtype=torch.int64, device=runner.device), [], None
        tokens, logprobs = self.sampler.draw(samples, logits)
        # 下一步若用图，要从图的缓冲区里读，所以也存一份到那里。
        # If the next step uses a graph, it reads from the graphs' buffer, so keep a copy there.
        # 有猜测的一步可以采出更多行，装不下的不存：谁加了猜测，就要先取回这一步再安排下一步，没有人来这里读。
        # A step with guesses may sample more rows than fit, and these are left out: whoever adds guesses has to collect
        # the step before the next is planned, and nobody reads them here.
        if graphs is not None:
            graphs.sampled[: len(tokens)] = tokens[: len(graphs.sampled)]
        return tokens, list(range(len(samples))), logprobs

    def _collect(self, launched: LaunchedStep) -> list[RequestOutput]:
        """等这一步的 token 到达主机，再记到各序列上。

        Wait until the step's tokens are on the host, then record them.
        """
        # 只等这一步的事件：第 N + 1 步此刻正在 GPU 上跑，不受影响。
        # Only this step's event is waited for: step N + 1 runs on the GPU meanwhile, undisturbed.
        if launched.ready is not None:
            launched.ready.synchronize()
        tokens = launched.tokens.tolist()
        rows = [(row.seq, row.num_logits) for row in launched.schedule]
        token_ids = self.sampler.read(rows, [tokens[row] for row in launched.rows], launched.logprobs)
        settle = self.scheduler.update if launched.has_guesses else self.scheduler.commit
        return self.record(launched.schedule, token_ids, settle(launched.schedule, token_ids))

    def release(self, seq: Sequence) -> RequestOutput | None:
        """图里的块表也让出来。

        The lane of the graphs' tables is let go, too.
        """
        if self.graphs is not None:
            self.graphs.release(seq)
        return super().release(seq)


def records_graphs(device: torch.device, supported: bool, kernels: FusedKernels | None) -> bool:
    """能不能录图：要有 CUDA，注意力后端录得了，采样也有核函数。

    Whether graphs can be recorded: on CUDA, with an attention backend that allows it and a kernel that samples.
    """
    return device.type == "cuda" and supported and kernels is not None and kernels.has_sampler


def create_engine(config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> LLMEngine:
    """CUDA 上用重叠循环；CPU 上没有可重叠的异步设备，`enforce_eager` 是为了单步调试，都用同步循环。

    The overlapped loop on CUDA; the synchronous one on a CPU, where nothing runs beside the host, and with
    `enforce_eager`, which is for stepping through.
    """
    overlapped = config.resolve_device().type == "cuda" and not config.enforce_eager
    return (OverlappedEngine if overlapped else LLMEngine)(config, on_progress)
