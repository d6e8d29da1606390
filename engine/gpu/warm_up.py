"""启动时先跑几步假的：要编译、要加载的都在这里完成，第一个请求不必替大家等编译器。

解码步录图时已经跑过；这里补上逐个启动核函数的几种：长提示词、许多提示词一起、长提示词的一小截尾巴、和解码混在一步里。

Run a few pretended steps at start: what has to be compiled or loaded is done here, and the first request does not wait
for the compiler on behalf of all.
Decode steps have run when their graphs were recorded; here are those whose kernels are launched one by one: a long
prompt, several at once, the short rest of a long one, and prompts beside decodes.
"""

from collections.abc import Callable

import torch

from engine.gpu.decode_graphs import graph_sizes
from engine.kv_pool import pretended_step
from engine.llm_engine import LLMEngine
from engine.scheduler import ScheduledSequence

# 一步里各序列已算的和新的 token 数；只有 1 个新 token 的在前，与调度器的约定一样。
# The tokens computed before and new of each sequence in a step; rows with 1 new token come first, as the scheduler
# promises.
_STEPS = (
    [(0, 300)], [(0, 600)], [(0, 1000)] * 2, [(0, 2048)], [(0, 2048)] * 4, [(0, 8192)], [(0, 500)] * 16,
    [(99, 1)] * 5 + [(0, 300)], [(99, 1)] * 100 + [(0, 2048)] * 2, [(8000, 14)], [(2048, 64)] * 64,
)  # fmt: skip


def warm_up(engine: LLMEngine, run: Callable[[list[ScheduledSequence]], object]) -> None:
    """跑 `_STEPS` 里这个引擎会遇到的；块池此刻是空的，写进去的没有人会读。

    Run those of `_STEPS` that this engine can meet; the pool is empty, and nobody will read what they write.

    Args:
        run: 前向并采样，不记账；forward and sample, with nothing recorded
    """
    pool = engine.pool
    # 草稿模型不录图，它的解码步也要在这里跑一遍，各档批大小都有。
    # A draft model records no graphs: its decode steps of all sizes run here, too.
    sizes = graph_sizes(engine.scheduler.max_num_seqs) if engine.drafter else []
    for step in (*_STEPS, *([(99, 1)] * size for size in sizes)):
        # 上限小的引擎，长度截到上限：短一些，走的还是同样的核函数。
        # Lengths are cut to the limit of an engine whose limit is small: shorter, they still meet the same kernels.
        step = [(min(computed, pool.max_model_len - new), new) for computed, new in step if new < pool.max_model_len]
        step = step or [(0, pool.max_model_len - 1)]
        schedule = pretended_step(step, pool.block_size)
        too_many = len(step) > engine.scheduler.max_num_seqs or schedule[-1].seq.block_table[-1] >= pool.num_blocks
        if too_many or sum(new for _, new in step) > engine.scheduler.max_num_batched_tokens:
            continue
        if engine.drafter:
            engine.drafter.complete(schedule, engine.sampler)
        run(schedule)
        for row in schedule:
            engine.release(row.seq)
    torch.cuda.synchronize()
