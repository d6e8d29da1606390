"""批构造器：把调度器的决定摊平成几个一维张量，模型一次前向就能吃下全部序列。

你在这里：`llm_engine.py` 的 `step` 调用 `build_batch`，结果交给 `model_runner.py`。

一个完整的小例子，页大小 4：
序列 A 已算 9 个 token，这步解码 1 个，块表 [7, 2, 5]；序列 B 是新提示，3 个 token，块表 [0]。

    input_ids            [A9, B0, B1, B2]
    positions            [ 9,  0,  1,  2]
    slot_mapping         [5*4+1 = 21,  0,  1,  2]
    num_decodes          1
    cache_seqlens        [10]
    cu_seqlens_q         [0, 3]
    cu_seqlens_k         [0, 3]
    decode_block_tables  [[7, 2, 5]]
    prefill_block_tables [[0]]
    logits_indices       [0, 3]

The batch builder: flatten the scheduler's decision into a few one-dimensional tensors, so that one forward pass takes
all sequences. `step` in `llm_engine.py` calls `build_batch` and hands the result to `model_runner.py`.

The example above, with blocks of 4: sequence A has 9 computed tokens and decodes 1, its table is [7, 2, 5]; sequence B
is a new prompt of 3 tokens with table [0]. Only the last token of each sequence needs logits: rows [0, 3].
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from backends.base import AttentionMetadata
from engine.scheduler import ScheduledSequence
from layers.sampler import SamplingInputs


@dataclass(slots=True)
class Batch:
    """一步的全部输入。

    All inputs of one step.

    Attributes:
        input_ids, positions: [T] int64
        metadata: what attention needs
        logits_indices: the rows that sample, [S] int64
    """

    input_ids: Tensor
    positions: Tensor
    metadata: AttentionMetadata
    logits_indices: Tensor


def _rectangle(tables: list[list[int]], device: torch.device) -> Tensor:
    """把长短不一的块表补齐成矩形。

    Pad block tables of different lengths to a rectangle.

    Returns:
        [num_seqs, max_blocks] int32
    """
    # 空位填 -1 而不是 0：万一有代码误读，-1 会立刻出错，而不是悄悄读到 0 号页里别人的数据。
    # Empty cells hold -1 and not 0: code that reads one by mistake fails at once, not on another's block 0.
    width = max(map(len, tables), default=0)
    rows = [table + [-1] * (width - len(table)) for table in tables]
    return torch.tensor(rows, dtype=torch.int32, device=device).reshape(len(tables), width)


def build_batch(schedule: list[ScheduledSequence], block_size: int, device: torch.device) -> Batch:
    """把一步的调度结果变成张量。

    Turn a step's schedule into tensors.

    Args:
        schedule: rows with a single new token first, as `Scheduler.schedule` returns them
    """
    input_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logits_indices: list[int] = []
    for row in schedule:
        seq, start = row.seq, row.seq.num_computed_tokens
        end = start + row.num_new_tokens
        input_ids += seq.token_ids[start:end]
        positions += range(start, end)
        # 位置 -> 槽位：第 `p // block_size` 页的第 `p % block_size` 格。Python 整数不会溢出，张量用 int64。
        # Position -> slot: offset `p % block_size` of block `p // block_size`. Python ints never overflow; int64 after.
        slots += [seq.block_table[p // block_size] * block_size + p % block_size for p in range(start, end)]
        if row.samples:
            logits_indices.append(len(input_ids) - 1)

    num_decodes = sum(row.num_new_tokens == 1 for row in schedule)
    contexts = [row.seq.num_computed_tokens + row.num_new_tokens for row in schedule]
    new_tokens = [row.num_new_tokens for row in schedule]
    tables = [row.seq.block_table for row in schedule]
    def tensor(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    metadata = AttentionMetadata(
        num_decodes=num_decodes,
        slot_mapping=tensor(slots, torch.int64),
        decode_block_tables=_rectangle(tables[:num_decodes], device),
        cache_seqlens=tensor(contexts[:num_decodes], torch.int32),
        prefill_block_tables=_rectangle(tables[num_decodes:], device),
        # 前缀和把“每条多长”变成“每条从哪开始”：长度 [3, 5] 得到 [0, 3, 8]。
        # Running sums turn "how long" into "where it starts": lengths [3, 5] give [0, 3, 8].
        cu_seqlens_q=tensor(list(accumulate(new_tokens[num_decodes:], initial=0)), torch.int32),
        cu_seqlens_k=tensor(list(accumulate(contexts[num_decodes:], initial=0)), torch.int32),
        max_seqlen_q=max(new_tokens[num_decodes:], default=0),
        max_seqlen_k=max(contexts[num_decodes:], default=0),
    )
    return Batch(
        input_ids=tensor(input_ids, torch.int64),
        positions=tensor(positions, torch.int64),
        metadata=metadata,
        logits_indices=tensor(logits_indices, torch.int64),
    )


def build_sampling_inputs(
    schedule: list[ScheduledSequence], vocab_size: int, device: torch.device
) -> SamplingInputs | None:
    """收集要采样的那些行的参数，次序与 `Batch.logits_indices` 相同；全都是贪心时不需要参数，返回 None。

    Collect the parameters of the rows that sample, in the order of `Batch.logits_indices`; None if all are greedy and
    need none.
    """
    sequences = [row.seq for row in schedule if row.samples]
    params = [seq.params for seq in sequences]
    if all(p.greedy for p in params):
        return None
    # `top_k` 为 0 或 -1 表示不限，换成词表大小，计算时就不必再分情况。
    # A `top_k` of 0 or -1 is off; as the vocabulary's size it needs no case of its own.
    top_ks = [p.top_k if p.top_k > 0 else vocab_size for p in params]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)  # [S, 1]

    return SamplingInputs(
        temperatures=column([p.temperature for p in params]),
        top_ps=column([p.top_p for p in params]),
        min_ps=column([p.min_p for p in params]),
        top_ks=torch.tensor(top_ks, dtype=torch.int64, device=device).unsqueeze(1),
        seeds=torch.tensor([seq.seed for seq in sequences], dtype=torch.int64, device=device),
        output_indices=torch.tensor([seq.num_output_tokens for seq in sequences], dtype=torch.int64, device=device),
        any_filter=any(p.top_p < 1.0 or k < vocab_size for p, k in zip(params, top_ks)),
        any_min_p=any(p.min_p > 0.0 for p in params),
    )
