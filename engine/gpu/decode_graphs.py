"""CUDA graph：把解码一步的几百次核函数启动录下来，以后一次启动全部重放。

为什么值得：解码时每个核函数只跑几微秒，而 CPU 逐个启动也要几微秒，GPU 大半时间在等。录成图之后，CPU 每步只启动一次。
代价：图里的地址和形状都是固定的。所以输入放在固定的缓冲区里，每步只改内容；每档批大小各录一张图，
实际的批向上补齐到最近的一档。
补齐的行：槽位 -1（不写缓存）、长度 0（注意力输出 0），块表里都是合法的块编号，不会越界。

CUDA graphs: record the hundreds of kernel launches of a decode step once, then replay all with a single launch.

Why it pays: in decoding a kernel runs for microseconds, and launching it from the CPU takes microseconds, too, so the
GPU mostly waits. With a graph the CPU launches once a step. The price: addresses and shapes are frozen. So inputs live
in fixed buffers whose contents change, and there is a graph for each of several batch sizes; a batch is padded to the
next. Padded rows: slot -1 (stores nothing), length 0 (attention gives 0), and a table of valid block ids.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backends.base import AttentionMetadata
from backends.kernels import SAMPLING_COLUMNS
from engine.batch import FlatStep, flatten
from engine.block_manager import num_blocks_needed
from engine.gpu.kernel_sampler import KernelSampler, copy_to_device
from engine.kv_pool import KVPool
from engine.model_runner import ModelRunner
from engine.sampling_params import MAX_LOGPROBS
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence, SequenceStatus

# 图的一行（row）是一个新 token。每行要送到设备上的整数，一种一列；合在一起只需拷贝一次。
# A row of a graph is a new token. The integers that go to the device for a row, a column for each kind; together they
# are a single copy.
_COLUMNS = ("input_ids", "sources", "positions", "slots", "seqlens", "lanes", *SAMPLING_COLUMNS)
_FIRST_SAMPLING = len(_COLUMNS) - len(SAMPLING_COLUMNS)


# 用图算短提示词时，各行一共最多重读这么多 token 的上文；以 Llama-3.2-3B 为例，每层约 0.25 GiB，合 65 微秒。
# With short prompts in a graph, all rows together read at most so many tokens of context again;
# for Llama-3.2-3B that is about 0.25 GiB a layer, some 65 µs.
_MAX_REREAD_TOKENS = 65536


def graph_sizes(max_num_seqs: int) -> list[int]:
    """录哪几种批大小：1、2、4，然后每 8 一档，最后一档就是 `max_num_seqs`，不管它是不是 8 的倍数。

    Which batch sizes to record: 1, 2, 4, then every 8, and at last `max_num_seqs`, be it a multiple of 8 or not.
    """
    sizes = {1, 2, 4, *range(8, max_num_seqs, 8), max_num_seqs}
    return sorted(size for size in sizes if size <= max_num_seqs)


@dataclass(slots=True)
class Lane:
    """一条序列在设备块表里的那一条，和已经送到了哪里。

    A sequence's lane of the block tables on the device, and how far it has been sent.

    Attributes:
        num_sent: 它的块表已有多少项在设备上；blocks of its table that the device has
        num_preemptions: 送去时序列被抢占过几次；抢占会换掉块；
            the sequence's when they were sent; each one changes its blocks
    """

    index: int
    num_sent: int
    num_preemptions: int


class DecodeGraphs:
    """各档批大小的图，和它们共用的缓冲区。

    The graphs of all batch sizes, and the buffers that they share.

    Attributes:
        sampled: [max_num_seqs] int64，最近一步的 token，下一步从这里取输入；
            the tokens of the latest step; the next step reads its input ids from here
    """

    def __init__(
        self, runner: ModelRunner, pool: KVPool, sampler: KernelSampler,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.runner, self.sampler, self.block_size = runner, sampler, pool.block_size
        max_num_seqs = len(sampler.masks)
        self.sizes = graph_sizes(max_num_seqs)
        device = runner.device
        # 最后一列放上一步采到的 token：它与来自主机的 `input_ids` 在同一块内存里，一次查表就能取齐一批输入。
        # The last column keeps the tokens sampled last: in one memory with the host's `input_ids`, so that one look-up
        # gathers the inputs of a batch.
        self.inputs = torch.zeros(len(_COLUMNS) + 1, max_num_seqs, dtype=torch.int64, device=device)
        self.sampled = self.inputs[-1]
        self.empty = torch.zeros(1, dtype=torch.int32, device=device)
        # 两份页锁定的主机缓冲区轮流用：上一份可能还在拷贝途中，不能马上覆盖。
        # Two pinned host buffers take turns: the one before may still be on its way and must not be overwritten.
        self.staging = torch.zeros(2, len(_COLUMNS), max_num_seqs, dtype=torch.int64, device="cpu", pin_memory=True)
        self.turn = 0
        # 块表常驻设备，一条序列一条（lane）；每步只送新增的表项。
        # Block tables stay on the device, a lane a sequence; each step sends only new cells.
        max_blocks = num_blocks_needed(pool.max_model_len, pool.block_size)
        self.tables = torch.zeros(max_num_seqs, max_blocks, dtype=torch.int32, device=device)
        self.lanes: dict[Sequence, Lane] = {}
        self.free_lanes = list(range(max_num_seqs))
        self.reports: dict[int, Tensor] = {}
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        # 图里有 NCCL 的核函数时，要赶在它收场之前放掉，见 `layers/ranks.py`。
        # Graphs with kernels of NCCL have to go before it is shut down, see `layers/ranks.py`.
        weakref.finalize(self, self.graphs.clear)
        self._capture(on_progress or (lambda done, total: None))

    def _forward(self, size: int) -> Tensor:
        """图里的内容：取输入、前向、采样，把 token 留给下一步。

        What a graph holds: take the inputs, forward, sample, leave the tokens for the next step.

        Returns:
            reports [size, 1 + MAX_LOGPROBS, 2]
        """
        column = {name: self.inputs[i, :size] for i, name in enumerate(_COLUMNS)}
        # 上一步采到的 token 不经过主机：`sources` 指出每个输入在缓冲区的什么地方，主机给的在第 0 列，采到的在最后一列。
        # A token sampled in the last step never visits the host: `sources` says where in the buffer each input stands,
        # the host's in column 0 and the sampled ones in the last column.
        input_ids = self.inputs.view(-1)[column["sources"]]
        metadata = AttentionMetadata(
            num_decodes=size, slot_mapping=column["slots"], decode_block_tables=self.tables[column["lanes"]],
            cache_seqlens=column["seqlens"].to(torch.int32), prefill_block_tables=self.tables[:0],
            cu_seqlens_q=self.empty, cu_seqlens_k=self.empty, max_seqlen_q=0, max_seqlen_k=0,
            block_size=self.block_size,
        )
        hidden = self.runner.forward(input_ids, column["positions"], metadata)  # [size, hidden]
        logits = self.runner.model.compute_logits(hidden)  # [size, vocab_size]
        columns, it = self.inputs[_FIRST_SAMPLING:-1, :size], self.sampler
        # 选中的 token 写在 `self.sampled`，返回的是对数概率的报告。
        # The chosen tokens go to `self.sampled`; what is returned are the reports of log-probabilities.
        reports = it.kernels.sample(logits, columns, it.counts, it.masks, MAX_LOGPROBS, self.sampled[:size])[1]
        it.ranks.first(self.sampled[:size])
        return reports

    @torch.inference_mode()
    def _capture(self, on_progress: Callable[[int, int], None]) -> None:
        """从大到小录：小图复用大图的内存池。录之前先真跑一遍，因为录制期间不能触发编译。

        Record from large to small, so that small graphs reuse the pool of large ones. Each runs once before recording,
        as nothing may be compiled during a capture.
        """
        self.inputs[_COLUMNS.index("slots")] = self.inputs[_COLUMNS.index("places")] = -1
        pool = None
        # 与 `ModelRunner.execute` 一样，不受外面的 autocast 影响。
        # Like `ModelRunner.execute`, out of reach of a caller's autocast.
        with torch.autocast(self.runner.device.type, enabled=False):
            for size in reversed(self.sizes):
                self._forward(size)
                torch.cuda.synchronize()
                self.graphs[size] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graphs[size], pool=pool):
                    self.reports[size] = self._forward(size)
                pool = pool or self.graphs[size].pool()
                on_progress(len(self.graphs), len(self.sizes))

    def _lane(self, seq: Sequence, cells: list[int], blocks: list[int]) -> int:
        """序列在设备块表里的那一条；还没送过的表项，把位置记进 `cells`，块编号记进 `blocks`。

        The sequence's lane of the tables; for what is not sent yet, `cells` gets the place and `blocks` the block id.
        """
        lane = self.lanes.get(seq)
        if lane is None:
            # 被抢占的也占着一条，而接纳它之前可能先来了别人：不够时，没在运行的都让出来。
            # Preempted sequences hold lanes, and others may come before they are back: when none is left, those that
            # do not run give theirs up.
            if not self.free_lanes:
                for other in [each for each in self.lanes if each.status is not SequenceStatus.RUNNING]:
                    self.release(other)
            lane = self.lanes[seq] = Lane(self.free_lanes.pop(), 0, seq.num_preemptions)
        # 被抢占过的序列换了一批块，整条重送。
        # A sequence that was preempted has other blocks now: send the whole lane again.
        if lane.num_preemptions != seq.num_preemptions:
            lane.num_sent, lane.num_preemptions = 0, seq.num_preemptions
        start = lane.index * self.tables.shape[1]
        cells += range(start + lane.num_sent, start + len(seq.block_table))
        blocks += seq.block_table[lane.num_sent :]
        lane.num_sent = len(seq.block_table)
        return lane.index

    def release(self, seq: Sequence) -> None:
        """序列结束，让出它的那一条，不再引用它。

        The sequence has ended: its lane is free, and nothing here refers to it any more.
        """
        # 还在途中的一步可能正在读这一条；新主人改写它的命令排在那一步后面，同一条流上按次序执行，所以无妨。
        # A step in flight may be reading this lane; the next owner writes it by a later command, and a stream keeps its
        # order, so it does no harm.
        if seq in self.lanes:
            self.free_lanes.append(self.lanes.pop(seq).index)

    def can_run(self, schedule: list[ScheduledSequence]) -> bool:
        """这一步能不能用图：每个新 token 占一行，行数不超过最大的图。

        短提示词也可以：一段 n 个新 token 就是同一序列的 n 行，长度依次多 1，各看自己之前的部分，正好是因果注意力。
        代价是每行都把上文重读一遍，所以只在重读的总量不大时这样做，换来的是首个 token 早几毫秒。

        Whether graphs can run this step: every new token takes a row, and the largest graph must hold them.
        Short prompts qualify, too: n new tokens are n rows of the same sequence whose lengths grow by 1, each seeing
        what precedes it, which is causal attention. The price is that each row reads its context again, so it is done
        only where that is little; the first token comes some milliseconds earlier.
        """
        rows = reread = 0
        for seq, count, _ in schedule:
            rows += count
            if count > 1:
                reread += count * (seq.num_computed_tokens + count)
        return rows <= self.sizes[-1] and reread <= _MAX_REREAD_TOKENS

    def run(self, schedule: list[ScheduledSequence]) -> tuple[Tensor, Tensor, FlatStep]:
        """填好输入，重放一张图；不等它算完。

        Fill in the inputs and replay a graph, without waiting for it.

        Returns:
            tokens [rows] int64, reports [rows, 1 + MAX_LOGPROBS, 2]，下一步会覆盖两者；
                both overwritten by the next step
            摊平的这一步，其中的 `logits_indices` 是有用的行；the flat step, whose `logits_indices` are what counts
        """
        step = flatten(schedule, self.block_size)
        count = len(step.input_ids)
        # 输入一般在第 0 列自己的位置上；还没到主机的，在最后一列、上一步采到它的那一行。
        # An input is mostly in column 0, at its own place; one that has not come to the host is in the last column, in
        # the row that sampled it.
        sources, first_sampled = list(range(count)), len(_COLUMNS) * self.inputs.shape[1]
        for index, row in step.pending:
            sources[index] = first_sampled + row
        # 同一序列的几行指向同一条 lane。例：A 已算 9 个，解码 1 个，lane 是 0；B 是 3 个 token 的新提示词，lane 是 1：
        # The rows of a sequence point to one lane. Example: A has 9 computed, decodes 1, its lane is 0; B is a new
        # prompt of 3 tokens, its lane is 1:
        #     lanes [0, 1, 1, 1]      positions [9, 0, 1, 2]      seqlens [10, 1, 2, 3]
        lanes: list[int] = []
        cells: list[int] = []
        blocks: list[int] = []
        for seq, num_new_tokens, _ in schedule:
            lanes += [self._lane(seq, cells, blocks)] * num_new_tokens
        # 长度是位置加 1：看得见自己和前面的，看不见后面的，所以 B 的 3 行合起来就是因果掩码。
        # A length is the position plus 1: a row sees itself and what precedes it, nothing behind, so the 3 rows of B
        # together are the causal mask.
        columns = (step.input_ids, sources, step.positions, step.slots, [p + 1 for p in step.positions], lanes)
        # 图的形状是固定的：41 行就重放 48 行的那张，多出来的 7 行补齐。
        # A graph's shape is frozen: 41 rows replay the graph of 48, and the other 7 are padded.
        size = next(size for size in self.sizes if size >= count)
        # 这份缓冲区上次用在两步之前，那一步的结果已经取回，它的拷贝自然也早就完成，可以覆盖。
        # This buffer was last used two steps ago; that step has been collected, so its copy is done, and it may be
        # overwritten.
        staging, self.turn = self.staging[self.turn], self.turn ^ 1
        # 与 `staging` 是同一块内存：往 NumPy 数组里填一个列表，比调用一次 torch 便宜。
        # The same memory as `staging`: to fill a list into a NumPy array costs less than a call of torch.
        host = staging.numpy()
        # 补齐的行全是 0，长度也是 0，槽位是 -1。不采样的行在图里也走一遍采样，结果没有人用：
        # 参数都是 0（贪心、不报告）最省，`places` 是 -1 就不计数。
        # Padded rows hold 0 for all, the length included, and slot -1. Rows that do not sample go through sampling in
        # the graph all the same, unused: parameters of 0 (greedy, no report) cost least; -1 in `places` counts nothing.
        host[:, :size] = 0
        host[_COLUMNS.index("slots"), count:size] = host[_COLUMNS.index("places"), :size] = -1
        for i, column in enumerate(columns):
            host[i, :count] = column
        # 采样的几列只填要采样的行；断点停在这里看 `host[:, :size]`，次序就是 `_COLUMNS`。
        # The columns of sampling are filled for rows that sample; stop here and look at `host[:, :size]`, whose order
        # is that of `_COLUMNS`.
        if step.samples:
            host[_FIRST_SAMPLING:, step.logits_indices] = self.sampler.columns(step.samples).numpy()
        # 一次拷贝送去全部的列，只留下最后一列不动：那里是上一步采到的 token，图马上要读。
        # One copy sends all columns but the last, which holds the tokens of the step before: the graph reads them.
        self.inputs[:-1].copy_(staging, non_blocking=True)
        # 一条序列写满一个块才多一格，所以大多数步里没有几格要改。
        # A sequence gets another cell only when a block is full, so in most steps few cells change.
        # 许多长提示词同时开始解码时，一次要送 9000 格：交给 NumPy 的平列表，比交给 torch 的元组快 10 倍。
        # When many long prompts begin to decode, it is 9000 cells at once: flat lists for NumPy take a 10th of the time
        # of tuples for torch.
        if cells:
            where, ids = copy_to_device(torch.from_numpy(np.array([cells, blocks])), self.inputs.device)
            self.tables.view(-1)[where] = ids.to(torch.int32)
        # 排进队列就返回：token 和报告此刻还没算出来，读它们的命令排在后面，自然读得到。
        # Queued, and back at once: tokens and reports are not there yet, but commands that read them stand behind it.
        self.graphs[size].replay()
        return self.sampled[:count], self.reports[size][:count], step
