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

import torch
from torch import Tensor

from backends.base import AttentionBackend, AttentionMetadata
from engine.scheduler import ScheduledSequence
from engine.sequence import PENDING_TOKEN, Sequence, SequenceStatus
from models.llama import LlamaForCausalLM

# 每一步要送到设备上的整数，各占缓冲区的一行；合在一起只需拷贝一次。
# The integers that go to the device in each step, a row of the buffer each; together they are a single copy.
_ROWS = ("input_ids", "sources", "positions", "slots", "seqlens", "tables", "seeds", "output_indices", "temperatures")


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


class DecodeGraphs:
    """各档批大小的图，和它们共用的缓冲区。

    The graphs of all batch sizes, and the buffers that they share.

    Attributes:
        sampled: the tokens of the latest step, [max_num_seqs] int64; the next step reads its input ids from here
    """

    def __init__(
        self, model: LlamaForCausalLM, backend: AttentionBackend, max_num_seqs: int, max_blocks: int, block_size: int,
        device: torch.device,
    ) -> None:
        assert backend.fused is not None and backend.fused.has_sampler, "graphs sample with the fused kernel"
        self.model, self.fused, self.block_size = model, backend.fused, block_size
        self.sizes = graph_sizes(max_num_seqs)
        # 最后一行放上一步采到的 token：它与来自主机的 `input_ids` 在同一块内存里，一次查表就能取齐一批输入。
        # The last row keeps the tokens sampled last: in one memory with the host's `input_ids`, so that one look-up
        # gathers the inputs of a batch.
        self.inputs = torch.zeros(len(_ROWS) + 1, max_num_seqs, dtype=torch.int64, device=device)
        self.sampled = self.inputs[-1]
        self.empty = torch.zeros(1, dtype=torch.int32, device=device)
        # 两份页锁定的主机缓冲区轮流用：上一份可能还在拷贝途中，不能马上覆盖。
        # Two pinned host buffers take turns: the one before may still be on its way and must not be overwritten.
        self.staging = [
            torch.zeros(len(_ROWS), max_num_seqs, dtype=torch.int64, pin_memory=True) for _ in range(2)
        ]
        self.turn = 0
        # 块表常驻设备，一行一个序列；每步只送新增的表项。行数是上限的 2 倍，结束的序列不必马上清理。
        # Block tables stay on the device, a row a sequence; each step sends only new cells. There are 2 times the rows,
        # so that finished sequences need not be cleared at once.
        self.tables = torch.zeros(2 * max_num_seqs, max_blocks, dtype=torch.int32, device=device)
        self.rows: dict[Sequence, list[int]] = {}
        self.free_rows = list(range(2 * max_num_seqs))
        self.logits: dict[int, Tensor] = {}
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._capture()

    def _forward(self, size: int) -> Tensor:
        """图里的内容：取输入、前向、采样，把 token 留给下一步。

        What a graph holds: take the inputs, forward, sample, leave the tokens for the next step.

        Returns:
            logits [size, vocab_size]
        """
        row = {name: self.inputs[i, :size] for i, name in enumerate(_ROWS)}
        # 上一步采到的 token 不经过主机：`sources` 指出每个输入在缓冲区的什么地方，主机给的在第 0 行，采到的在最后一行。
        # A token sampled in the last step never visits the host: `sources` says where in the buffer each input stands,
        # the host's in row 0 and the sampled ones in the last row.
        input_ids = self.inputs.view(-1)[row["sources"]]
        metadata = AttentionMetadata(
            num_decodes=size, slot_mapping=row["slots"], decode_block_tables=self.tables[row["tables"]],
            cache_seqlens=row["seqlens"].to(torch.int32), prefill_block_tables=self.tables[:0], cu_seqlens_q=self.empty,
            cu_seqlens_k=self.empty, max_seqlen_q=0, max_seqlen_k=0,
        )
        logits = self.model.compute_logits(self.model(input_ids, row["positions"], metadata))
        # 温度以 float64 的位模式混在整数里一起送来，省一次拷贝。
        # Temperatures travel among the integers as the bits of a float64, which saves a copy.
        temperatures = row["temperatures"].view(torch.float64)
        self.fused.sample(logits, temperatures, row["seeds"], row["output_indices"], out=self.sampled[:size])
        return logits

    @torch.inference_mode()
    def _capture(self) -> None:
        """从大到小录：小图复用大图的内存池。录之前先真跑一遍，因为录制期间不能触发编译。

        Record from large to small, so that small graphs reuse the pool of large ones. Each runs once before recording,
        as nothing may be compiled during a capture.
        """
        self.inputs[_ROWS.index("slots")] = -1
        pool = None
        for size in reversed(self.sizes):
            self._forward(size)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self.logits[size] = self._forward(size)
            self.graphs[size] = graph
            pool = pool or graph.pool()

    def _table_row(self, seq: Sequence, changes: list[tuple[int, int]]) -> int:
        """序列在设备块表里的行；把还没送过的表项记进 `changes`。

        The sequence's row in the device's tables; cells not sent yet are added to `changes`.
        """
        state = self.rows.get(seq)
        # 被抢占过的序列换了一批块，整行重送。
        # A sequence that was preempted has other blocks now: send the whole row again.
        if state is None or state[2] != seq.num_preemptions:
            if state is None and not self.free_rows:
                done = [other for other in self.rows if other.status is not SequenceStatus.RUNNING]
                self.free_rows += [self.rows.pop(other)[0] for other in done]
            row = self.free_rows.pop() if state is None else state[0]
            state = self.rows[seq] = [row, 0, seq.num_preemptions]
        row, sent, _ = state
        if sent < len(seq.block_table):
            start = row * self.tables.shape[1]
            changes += [(start + i, seq.block_table[i]) for i in range(sent, len(seq.block_table))]
            state[1] = len(seq.block_table)
        return row

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
        for seq, count in schedule:
            rows += count
            if count > 1:
                reread += count * (seq.num_computed_tokens + count)
        return rows <= self.sizes[-1] and reread <= _MAX_REREAD_TOKENS

    def run(self, schedule: list[ScheduledSequence]) -> tuple[Tensor, Tensor, list[int]]:
        """填好输入，重放一张图；不等它算完。

        Fill in the inputs and replay a graph, without waiting for it.

        Returns:
            tokens [rows] int64 and logits [rows, vocab_size], both overwritten by the next step; and each sequence's
            last row, the one whose token counts
        """
        columns: list[list[int]] = [[] for _ in _ROWS[:-1]]
        ids, sources, positions, slots, seqlens, tables, seeds, output_indices = columns
        temperatures: list[float] = []
        last_rows: list[int] = []
        changes: list[tuple[int, int]] = []
        block_size, first_sampled = self.block_size, len(_ROWS) * self.inputs.shape[1]
        for seq, count in schedule:
            table_row = self._table_row(seq, changes)
            for position in range(seq.num_computed_tokens, seq.num_computed_tokens + count):
                token = seq.token_ids[position]
                sources.append(first_sampled + seq.sample_row if token == PENDING_TOKEN else len(ids))
                ids.append(token)
                positions.append(position)
                slots.append(seq.block_table[position // block_size] * block_size + position % block_size)
                seqlens.append(position + 1)
                tables.append(table_row)
                seeds.append(seq.seed)
                output_indices.append(seq.num_output_tokens)
                temperatures.append(seq.params.temperature)
            last_rows.append(len(ids) - 1)
        count = len(ids)
        size = next(size for size in self.sizes if size >= count)
        staging = self.staging[self.turn]
        self.turn ^= 1
        host = staging.numpy()
        for i, column in enumerate(columns):
            host[i, :count] = column
        host[-1, :count].view("float64")[:] = temperatures
        host[:, count:size] = 0
        host[_ROWS.index("slots"), count:size] = -1
        self.inputs[:-1].copy_(staging, non_blocking=True)
        if changes:
            cells = torch.tensor(changes, dtype=torch.int64).to(self.inputs.device, non_blocking=True)
            self.tables.view(-1)[cells[:, 0]] = cells[:, 1].to(torch.int32)
        self.graphs[size].replay()
        return self.sampled[:count], self.logits[size][:count], last_rows
