"""KV 块池：量一量还剩多少内存，决定切多少块、最长能到多长，然后分配。

你在这里：`llm_engine.py` 在权重装好之后调用 `create_pool`；块归谁用，是 `block_manager.py` 的事，这里只管内存。

The pool of KV blocks: measure what memory is left, settle how many blocks and what length that makes, then allocate.

You are here: `llm_engine.py` calls `create_pool` once the weights are loaded. Who uses which block is the business of
`block_manager.py`; this is about memory only.
"""

import logging
from dataclasses import dataclass
from itertools import count, islice

import torch

from backends.kv_cache import KVCache
from engine.batch import build_batch
from engine.block_manager import num_blocks_needed
from engine.config import EngineSetup, check_pool_size
from engine.host_memory import available_cpu_memory
from engine.model_runner import ModelRunner
from engine.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence

logger = logging.getLogger(__name__)

# CPU 上 KV 缓存最多占多少内存：再多对笔记本电脑没有意义。
# How much memory the KV cache takes on a CPU at most; more makes no sense on a laptop.
#   Llama-3.2-1B, float32: 2 * 16 * 8 * 64 * 4 = 65536 bytes/token; 2**30 / 65536 = 16384 tokens
_CPU_POOL_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class KVPool:
    """块池的形状，和它撑得起的长度。

    The pool's shape, and the length that it can serve.

    Attributes:
        num_blocks, block_size: 块数，每块多少 token；blocks, and tokens of a block
        max_model_len: 模型和块池都撑得起的最长序列；the longest sequence that both the model and the pool can serve
    """

    num_blocks: int
    block_size: int
    max_model_len: int


def create_pool(
    setup: EngineSetup, runner: ModelRunner, sampler: Sampler, reserved_bytes: int = 0, extra_block_bytes: int = 0
) -> KVPool:
    """像规划容量一样，次序不能换：权重就位后看还剩多少内存，再看最长能到多少，最后才真正分配。

    Capacity planning, in this order: what do the weights leave, what length does that serve, then allocate.

    Args:
        reserved_bytes: 以后还要占用的设备内存；memory of the device that will be taken later
        extra_block_bytes: 每个块在别的缓存里还占多少；what each block takes in other caches besides

    Raises:
        ValueError: 块池装不下要求的长度，或内存放不下块池；
            the pool too small for the length, or the memory for the pool
    """
    config, limit = setup.config, setup.model_config.max_position_embeddings
    each = block_bytes(setup) + extra_block_bytes
    num_blocks = config.num_kvcache_blocks or _affordable_blocks(setup, runner, sampler, reserved_bytes, each)
    # 只剩它一条时没有别人可抢占：装不下就抢占自己，从头重来，再抢占自己，成了死循环。
    # With nobody else to preempt, a sequence that does not fit would preempt itself, start over, and loop for ever.
    #   100 blocks * 16 = 1600; max_model_len 2048  ->  ceil(2048 / 16) = 128 blocks, ValueError
    #   100 blocks * 16 = 1600; max_model_len None, limit 131072  ->  1600, warning
    check_pool_size(num_blocks, setup.block_size, config.max_model_len, limit)
    length = min(config.max_model_len or limit, num_blocks * setup.block_size)
    # 用户写明的长度给不了，就是错误，不能悄悄改小；没写的，才由我们缩短，并且只说一次。
    # A length that the user asked for is never cut silently, but an error; without one we shorten, with a warning.
    if length < (config.max_model_len or limit):
        logger.warning(
            "max_model_len is %d instead of the model's %d: the KV cache holds no more. "
            "/ 最大长度从模型的 %d 降为 %d：KV 缓存只装得下这么多。", length, limit, limit, length,
        )  # fmt: skip
    allocate_cache(setup, runner, num_blocks)
    return KVPool(num_blocks, setup.block_size, length)


def block_bytes(setup: EngineSetup) -> int:
    """一个块在所有层里共占多少字节：K 和 V 各一份；量化时每个数 1 字节，每个头另有 4 字节的缩放。

    Bytes of one block over all layers, K and V; quantized, a number takes 1 byte, and each head 4 more for its scale.
    """
    config = setup.model_config
    # 用 KV 头数，不是查询头数：Llama-3.2-3B 有 24 个查询头、8 个 KV 头，写错就成了 3 倍大。
    # KV heads, not query heads: Llama-3.2-3B has 8 and 24, so a slip makes it 3 times too large.
    #   Llama-3.2-3B, bf16: 2 * 28 * 8 * 128 * 2 = 114688 bytes/token
    #   block_size 16: 16 * 114688 = 1835008 bytes = 1.75 MiB; 131072 tokens: 14 GiB
    head_bytes = config.head_dim + 4 if setup.codes else config.head_dim * setup.dtype.itemsize
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_bytes * setup.block_size


def allocate_cache(setup: EngineSetup, runner: ModelRunner, num_blocks: int) -> None:
    """分配块池，每层得到自己的那一段。

    Allocate the pool and give each layer its part.
    """
    config = setup.model_config
    # 同一个块编号在每一层都有效，所以一条序列只要 1 张块表，而不是每层一张共 28 张。
    # A block id is valid in every layer, so a sequence has 1 block table and not one a layer, 28 in all.
    #   Llama-3.2-3B, 1000 blocks: pool [2, 28, 1000, 16, 8, 128], layer k [1000, 16, 8, 128]
    shape = (num_blocks, setup.block_size, config.num_key_value_heads, config.head_dim)
    # `empty` 而不清零：没写过的槽位本来就不许被读到，操作系统也因此不必真给内存。
    # `empty`, not zeroed: an unwritten slot must never be read anyway, and the system need not back it with memory.
    try:
        pool = torch.empty(2, config.num_hidden_layers, *shape, dtype=setup.codes or setup.dtype, device=setup.device)
        scales = torch.empty(pool.shape[:-1], dtype=torch.float32, device=setup.device) if setup.codes else None
    except (RuntimeError, MemoryError):
        raise ValueError(
            f"{num_blocks} KV cache blocks are {num_blocks * block_bytes(setup) / 1e9:,.1f} GB, which does not "
            f"fit into the memory of {setup.device}: lower num_kvcache_blocks"
        ) from None
    # 各层拿到的是视图，没有复制：层里写 `kv_cache.k`，就是写 `pool` 的那一段；两层的段互不重叠。
    # Each layer gets a view, not a copy: writing `kv_cache.k` writes its part of `pool`, and no two parts overlap.
    for index, layer in enumerate(runner.model.attention_layers()):
        layer.kv_cache = KVCache(*pool[:, index], *(() if scales is None else scales[:, index]))


# ---- 内存装得下多少块 ----
# ---- how many blocks the memory holds ----


def _affordable_blocks(
    setup: EngineSetup, runner: ModelRunner, sampler: Sampler, reserved_bytes: int, bytes_each: int
) -> int:
    """内存装得下多少块；同时不超过用得上的数量（每个运行的序列都达到模型上限）。

    How many blocks fit into the memory, and no more than could ever be used (every running sequence at the limit).
    """
    if setup.device.type == "cuda":
        gpu_memory_utilization = setup.config.gpu_memory_utilization
        # 块池 = 整张卡允许的占用 − 峰值（含别的程序）。忘了减激活的峰值，启动时一切正常，第一个长提示词到来才爆显存。
        # Pool = what may be in use on the whole card − the peak, other programs included. Forget the activations' peak,
        # and it starts well, then runs out of memory on the first long prompt.
        #   80 GB * 0.9 - 8 GB = 64 GB; Llama-3.2-3B: 64e9 / 1835008 = 34877 blocks = 558032 tokens
        total = torch.cuda.get_device_properties(setup.device).total_memory
        try:
            peak = _peak_bytes(setup, runner, sampler)
        except torch.OutOfMemoryError:
            peak = total
        budget = int(total * gpu_memory_utilization) - peak - reserved_bytes
        # 只差几个块，由 `check_pool_size` 说清楚；连一个块都放不下，多半是别的程序占着卡。
        # A few blocks short is for `check_pool_size` to explain; not even one is mostly another program on the card.
        if budget < bytes_each:
            free = torch.cuda.mem_get_info(setup.device)[0]
            raise ValueError(
                f"{setup.device} is too full for the KV cache: beside the weights {free / 1e9:.1f} of "
                f"{total / 1e9:.1f} GB are free, and gpu_memory_utilization={gpu_memory_utilization:g} is the "
                "limit; end other programs on it (nvidia-smi lists them), raise gpu_memory_utilization, or lower "
                f"max_num_batched_tokens={setup.max_num_batched_tokens}"
            )
    else:
        # 权重已经加载，所以“可用”里不再含它；只取四分之一，其余留给中间结果、系统和别的程序。
        # The weights are loaded and no longer "available"; a quarter leaves room for activations and others.
        budget = min(_CPU_POOL_BYTES, available_cpu_memory() // 4)
    limit = setup.model_config.max_position_embeddings
    # 小模型会碰到这个上限：256 条序列、每条 2048 个 token，最多用得上 256 * 128 = 32768 个块，再多也是闲置。
    # Small models meet this cap: 256 sequences of 2048 tokens can use 256 * 128 = 32768 blocks, no more.
    useful = setup.config.max_num_seqs * num_blocks_needed(limit, setup.block_size)
    # 权重已超过上限时 `budget` 为负，整除会得到负的块数；记为 0 块，由 `check_pool_size` 说清楚缺多少。
    # Weights beyond the cap make `budget` negative, and the blocks too; as 0, `check_pool_size` says what is missing.
    # 张量并行时，以最少的进程为准：块表在每个进程里都要成立。
    # With tensor parallelism the rank with the fewest decides: block tables have to hold on every rank.
    return min(setup.model_config.ranks.messages(min(useful, max(budget, 0) // bytes_each)))


def _peak_bytes(setup: EngineSetup, runner: ModelRunner, sampler: Sampler) -> int:
    """用最大的一步真跑一次，量出权重加中间结果的显存峰值（含别的程序已占的部分）。

    Run the largest step once and measure the peak of weights and intermediate results, with what other programs hold.
    """
    schedule = _largest_step(setup)
    # 前向要写 K、V，没有块池就跑不起来；先给一个刚好够用的临时块池，量完再从峰值里扣掉。
    # The forward pass writes K and V and needs blocks: a temporary pool, just enough, taken off the peak later.
    allocate_cache(setup, runner, num_blocks := sum(len(row.seq.block_table) for row in schedule))
    # 峰值是历史最高：不清零，从前的高峰（例如加载时的临时张量）也会算进来，块池就白白变小。
    # The peak is an all-time high: without a reset, an older one (loading, say) would count and shrink the pool.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(setup.device)
    batch = build_batch(schedule, setup.block_size, setup.device)
    # 采样行也取最多：256 行 × 词表 128256 × 4 字节 = 131334144 字节，约 125 MiB，漏掉它就低估了峰值。
    # The most rows that sample: 256 × 128256 × 4 = 131334144 bytes, some 125 MiB; the peak must hold them.
    num_rows = min(setup.config.max_num_seqs, batch.input_ids.shape[0])
    batch.logits_indices = torch.arange(num_rows, device=setup.device)
    logits = runner.execute(batch)  # [num_rows, vocab_size]
    # 采样也算在峰值里：不用核函数时，排序、噪声都是 [S, vocab_size] 的临时张量，256 行时每个就有几百 MB。
    # Sampling belongs to the peak: without kernels sort and noise are [S, vocab_size], hundreds of MB each at 256 rows.
    sampling = [schedule[0].seq.sibling(index) for index in range(num_rows)]
    sampler.draw([(seq, 0) for seq in sampling], logits)
    # 核函数是异步执行的：在这里等它们跑完，出错就在这里报，而不是在后面某个无关的调用里。
    # Kernels run asynchronously: wait here, so that an error shows here and not in some unrelated call later.
    torch.cuda.synchronize(setup.device)
    peak = torch.cuda.max_memory_allocated(setup.device) - num_blocks * block_bytes(setup)
    # `mem_get_info` 看的是整张卡：减去 PyTorch 自己预留的，剩下的属于别的进程和 CUDA 上下文，不能分给块池。
    # `mem_get_info` sees the whole card: less what PyTorch reserves, it is other processes and the CUDA context.
    free, total = torch.cuda.mem_get_info(setup.device)
    others = total - free - torch.cuda.memory_reserved(setup.device)
    # 各层的 `kv_cache` 是块池的视图：视图还在，显存就不释放，真正的块池便装不下。
    # Each layer's `kv_cache` is a view that keeps the memory from the real pool.
    for layer in runner.model.attention_layers():
        layer.kv_cache = None
    for seq in sampling:
        sampler.release(seq)
    torch.cuda.empty_cache()
    return peak + others


def _largest_step(setup: EngineSetup) -> list[ScheduledSequence]:
    """占满整步的假提示词。

    Pretended prompts that fill the whole step.
    """
    # 全部当作预填充：8192 个 token 一起过 MLP 时中间结果最大；纯解码的一步，每条序列才 1 个 token，远不及它。
    # All of it is prefill: 8192 tokens in the MLP make the largest activations; decodes bring 1 token a sequence.
    # 一条提示词不会比模型的上限长：上限 2048、预算 8192，就是 4 条。
    # No prompt exceeds the model's limit: with a limit of 2048 and a budget of 8192 there are 4.
    limit = setup.model_config.max_position_embeddings
    whole, rest = divmod(setup.max_num_batched_tokens, limit)
    # 零头放在最前面：它可能只有 1 个 token，而这样的行要排在前面，与调度器的约定一样。
    # The rest comes first: it may have 1 token only, and such rows come first, as the scheduler promises.
    return pretended_step([(0, rest)] * (rest > 0) + [(0, limit)] * whole, setup.block_size)


def pretended_step(lengths: list[tuple[int, int]], block_size: int) -> list[ScheduledSequence]:
    """一步假的请求，采样的花样全开着，块从 0 号起依次占用；`gpu/warm_up.py` 也用它。

    A step of pretended requests with every way of sampling switched on, in blocks from number 0 on; `gpu/warm_up.py`
    uses it as well.

    Args:
        lengths: 各序列已算的和新的 token 数；the tokens computed before and new of each sequence
    """
    everything = SamplingParams(top_k=2, top_p=0.5, min_p=0.5, presence_penalty=1.0, logprobs=1, min_tokens=1, seed=0)
    blocks, schedule = count(), []
    for computed, new in lengths:
        seq = Sequence("", [0] * (computed + new), computed + new, everything, num_computed_tokens=computed)
        seq.block_table = list(islice(blocks, num_blocks_needed(seq.num_tokens, block_size)))
        schedule.append(ScheduledSequence(seq, new, 1))
    return schedule
