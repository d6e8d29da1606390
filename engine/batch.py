"""批构造器：把调度器的决定摊平成几个一维张量，模型一次前向就能算完全部序列。

你在这里：`llm_engine.py` 的 `step` 调用 `build_batch`，结果交给 `model_runner.py`。

一个完整的小例子，块大小 4：
序列 A 已算 9 个 token，这步解码 1 个，块表 [7, 2, 5]；序列 B 是新提示词，3 个 token，块表 [0]。

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

from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from backends.base import AttentionMetadata
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence

# 要采样的一行：哪个序列，它的第几个输出。
# A row that samples: which sequence, and which of its outputs.
Sample = tuple[Sequence, int]


@dataclass(slots=True)
class Batch:
    """一步的全部输入。

    All inputs of one step.

    Attributes:
        input_ids, positions: [T] int64
        metadata: 注意力需要的信息；what attention needs
        logits_indices: [S] int64，要采样的行；the rows that sample
    """

    # T 是这一步的新 token 总数，各序列首尾相接，没有填充：长 3 和 5 的提示词是 T = 8，补齐则要算 2 * 5 = 10。
    # T counts this step's new tokens, end to end and without padding:
    # prompts of 3 and 5 give T = 8; padded, 2 * 5 = 10.
    input_ids: Tensor
    # 每个 token 在它自己序列里的位置，旋转位置编码要用；与它在批里排第几行无关。
    # Where each token stands in its own sequence, for rotary embedding; its row in the batch does not matter.
    positions: Tensor
    metadata: AttentionMetadata
    logits_indices: Tensor


def on_device(values: list[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """主机上的数送到设备上，不等拷贝完成。

    Numbers of the host on the device, without waiting for the copy.
    """
    # `device` 要写明，进程可以另有默认设备；只有页锁定的内存才真的不用等，从普通内存拷，要等 GPU 做完手上那一步。
    # `device` is named, as the process may have another default; only pinned memory really spares the wait: from
    # ordinary memory a copy waits for the GPU's present step.
    on_host = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


def _rectangle(tables: list[list[int]], device: torch.device) -> Tensor:
    """把长短不一的块表补齐成矩形。

    Pad block tables of different lengths to a rectangle.

    Returns:
        [num_seqs, max_blocks] int32
    """
    # 空位填 -1，因为 0 是真实的块编号。-1 自己不会报错，torch 当它是最后一个块；后端按长度截断，从不读空位。
    # Empty cells hold -1, as 0 is a real id. By itself -1 is no error but torch's last block; backends never read it.
    #     [[7, 2, 5], [0]]  ->  [[7, 2, 5], [0, -1, -1]]
    width = max(map(len, tables), default=0)
    rows = [table + [-1] * (width - len(table)) for table in tables]
    # `reshape` 是为空批准备的：没有解码行时 torch 给出的形状是 [0]，后端要的是 [0, 0]。
    # `reshape` is for no rows at all: without decodes torch makes the shape [0], and the backends want [0, 0].
    return on_device(rows, device, torch.int32).reshape(len(tables), width)


@dataclass(slots=True)
class FlatStep:
    """一步摊平之后、变成张量之前：CUDA graph 用的也是它。

    A step laid flat, before it becomes tensors; CUDA graphs use it as well.

    Attributes:
        input_ids, positions, slots: [T]，每个新 token 一个值；a value a new token
        logits_indices: [S]，要算 logits 的 token；the tokens that need logits
        samples: [S]，它们各属于哪个序列、是第几个输出；for each of them its sequence and which output it is
        pending: 只在设备上的输入：（`input_ids` 的下标，上一步的 token 里的行号）；
            inputs on the device only: (index in `input_ids`, row among the last step's tokens)
    """

    input_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    logits_indices: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    pending: list[tuple[int, int]] = field(default_factory=list)


def sampling_rows(schedule: list[ScheduledSequence]) -> list[Sample]:
    """哪些行要采样，各是哪个序列的第几个输出；次序就是 logits 的次序。

    Which rows sample, and which output of which sequence each is; in the order of the logits.
    """
    # 同一序列有几行时，序号依次往上数：噪声由序号决定，猜测对不对都不会改变。
    # A sequence's rows count up: the noise depends on the number, whether or not the guesses are right.
    return [(row.seq, row.seq.num_output_tokens + i) for row in schedule for i in range(row.num_logits)]


def flatten(schedule: list[ScheduledSequence], block_size: int) -> FlatStep:
    """把各行的新 token 首尾相接：输入、位置、槽位，以及哪些要采样。

    Put the rows' new tokens end to end: inputs, positions, slots, and which of them sample.
    """
    # 先攒成 Python 列表，最后各转一次张量：逐个元素写 GPU 张量，每写一个就是一次主机到设备的拷贝。
    # Collect Python lists and convert each once: a GPU tensor written element by element is a host copy for each.
    step = FlatStep(samples=sampling_rows(schedule))
    for row in schedule:
        seq, start = row.seq, row.seq.num_computed_tokens
        # 这一行只算 [start, end)：命中的和以前算过的都在 `start` 之前，K、V 已在缓存里，不再进模型。
        # This row computes [start, end) only: what was hit or computed before `start` is in the cache and stays out.
        # 例：提示词 20 个 token，已算 12 个，这步 6 个：
        # Example: a prompt of 20, 12 computed, 6 in this step:
        #     input_ids += token_ids[12:18]      positions += 12, 13, 14, 15, 16, 17
        end = start + row.num_new_tokens
        step.input_ids += seq.inputs(start, end)
        # 常见的 bug：每个分段的位置又从 0 数起。不会报错，只是旋转位置编码全错，输出成了胡话。
        # A common bug starts each chunk's positions at 0 again: no error, but wrong rotations and babble.
        step.positions += range(start, end)
        # 位置 -> 槽位：第 `p // block_size` 个块的第 `p % block_size` 个槽位。Python 整数不会溢出，张量用 int64。
        # Position -> slot: offset `p % block_size` of block `p // block_size`. Python ints never overflow; int64 after.
        # 停在这里看 `seq.block_table`：相邻的位置跨块时，槽位可以跳到任何地方，逻辑连续、物理不连续。
        # Stop here and look at `seq.block_table`: across a block border slots jump anywhere, contiguous only in logic.
        #     block_size 4, block_table [7, 2, 5]:   p = 6, 7, 8, 9  ->  slots 10, 11, 20, 21
        step.slots += [seq.block_table[p // block_size] * block_size + p % block_size for p in range(start, end)]
        # 重叠循环里，最后一个输入可能还没读到主机：记下它在上一步结果的哪一行。
        # In the overlapped loop the last input may not be on the host yet: note its row among the last step's tokens.
        if seq.num_pending_tokens and end == seq.num_tokens:
            step.pending.append((len(step.input_ids) - 1, seq.sample_row))
        # 只有最后那个 token 用来预测下一个（有猜测时，每个猜测也要）。词表 128256、提示词 1000 个 token，
        # float32 的 logits 全算要 513 MB，只算 1 行是 0.5 MB。
        # Only the last token predicts what comes next (and each guess, where there are some). With a vocabulary of
        # 128256 and a prompt of 1000, logits of all rows in float32 would be 513 MB, of 1 row 0.5 MB.
        num_logits = row.num_logits
        step.logits_indices += range(len(step.input_ids) - num_logits, len(step.input_ids))
    return step


def build_batch(
    schedule: list[ScheduledSequence], block_size: int, device: torch.device, sampled: Tensor | None = None
) -> Batch:
    """把一步的调度结果变成张量。

    Turn a step's schedule into tensors.

    Args:
        schedule: 只有一个新 token 的行在前，即 `Scheduler.schedule` 的返回值；
            rows with a single new token first, as `Scheduler.schedule` returns them
        sampled: [rows] int64，上一步的 token，有输入只在设备上时才用；the last tokens, if inputs are on the device only
    """
    step = flatten(schedule, block_size)
    # 调度器已把这些行排在最前，所以个数就是分界线：`[:num_decodes]` 走解码函数，`[num_decodes:]` 走变长函数。
    # The scheduler put these rows first, so their number is the border:
    # `[:num_decodes]` decode, `[num_decodes:]` varlen.
    num_decodes = sum(row.num_new_tokens == 1 for row in schedule)
    # 上下文含这一步的新 token，因为 K、V 先写后读：少加就看不见自己，多加会读到没写过的槽位。
    # The context includes the new tokens, as K and V are stored before they are read: less, and a token misses itself;
    # more, and it reads slots never written.
    contexts = [row.seq.num_computed_tokens + row.num_new_tokens for row in schedule]
    new_tokens = [row.num_new_tokens for row in schedule]
    tables = [row.seq.block_table for row in schedule]
    # 同一种整数先接成一个张量，再切开：7 次小拷贝变成 2 次，拷到 GPU 时每次都要十几微秒。
    # Integers of a kind become one tensor, cut up afterwards: 2 copies instead of 7, of microseconds each to a GPU.
    def tensors(dtype: torch.dtype, *lists: list[int]) -> tuple[Tensor, ...]:
        joined = on_device(list(chain(*lists)), device, dtype)
        return joined.split_with_sizes([len(values) for values in lists])

    # 槽位用 int64：它还要乘每个槽位的元素数，大缓存里会超过 2**31；块表和长度用 int32，与 flash-attn 一致。
    # Slots are int64: they are multiplied by the elements of a slot, beyond 2**31 in a large cache;
    # tables and lengths are int32, as in flash-attn.
    ids, places, slot_mapping, rows = tensors(
        torch.int64, step.input_ids, step.positions, step.slots, step.logits_indices
    )
    # 累计长度把“每条多长”变成“每条从哪开始”：长度 [3, 5] 得到 [0, 3, 8]。
    # Running sums turn "how long" into "where it starts": lengths [3, 5] give [0, 3, 8].
    # q 与 k 的长度可以不同。例：A 是 3 个 token 的新提示词；B 已算 16 个，这步再算 5 个，要看 21 个 key：
    # q and k may differ. Example: A is a new prompt of 3;
    # B has 16 computed and 5 more in this step, which see 21 keys:
    #     cu_seqlens_q [0, 3, 8]      cu_seqlens_k [0, 3, 24]
    cache_seqlens, cu_seqlens_q, cu_seqlens_k = tensors(
        torch.int32, contexts[:num_decodes], list(accumulate(new_tokens[num_decodes:], initial=0)),
        list(accumulate(contexts[num_decodes:], initial=0)),
    )
    metadata = AttentionMetadata(
        num_decodes=num_decodes, slot_mapping=slot_mapping, cache_seqlens=cache_seqlens, cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k, block_size=block_size,
        # 解码和预填充各用一个矩形：否则一条很长的提示词会把所有解码行的块表都撑宽。
        # A rectangle each for decodes and prefills, or a single long prompt would widen every decode row's table.
        decode_block_tables=_rectangle(tables[:num_decodes], device),
        prefill_block_tables=_rectangle(tables[num_decodes:], device),
        # 后端用最大长度决定补齐多宽、启动多少线程块；在主机上就算好，省得为读一个数停下来等 GPU。
        # Backends pad and size their launches by the longest; known on the host, nobody waits for the GPU to tell it.
        max_seqlen_q=max(new_tokens[num_decodes:], default=0),
        max_seqlen_k=max(contexts[num_decodes:], default=0),
    )
    # 占位的输入在设备上换成上一步采到的 token，不经过主机。
    # Placeholders among the inputs become the tokens of the step before, on the device and without the host.
    if step.pending:
        assert sampled is not None, "only the overlapped loop has pending inputs, and it passes the tokens"
        where = on_device(step.pending, device)  # [N, 2]
        ids[where[:, 0]] = sampled[where[:, 1]]
    return Batch(input_ids=ids, positions=places, metadata=metadata, logits_indices=rows)
