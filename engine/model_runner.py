"""模型执行者：权重、KV 缓存的显存，以及“一个批进去、logits 出来”的前向计算。

你在这里：`llm_engine.py` 每步调用一次 `execute`。

The model runner: the weights, the KV cache's memory, and the forward pass that takes a batch and gives logits.

You are here: `llm_engine.py` calls `execute` once a step.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

# 本文件只认识后端的注册表和接口契约：用哪个后端由配置里的名字决定，换后端不用改这里。
# This file knows the registry and the contract of backends only; a name in the configuration picks one.
from backends import choose_backend, create_backend
from backends.base import AttentionMetadata, KVCache
from engine.batch import Batch
from engine.block_manager import num_blocks_needed
from engine.config import EngineConfig
from engine.gpu.decode_graphs import DecodeGraphs
from layers.linear import Linear
from layers.sampler import SamplingInputs, sample
from models.config import ModelLoadError, load_config
from models.llama import randomize_weights
from models.loader import load_weights
from models.registry import create_model

logger = logging.getLogger(__name__)

# CPU 上 KV 缓存最多占多少内存：再多对笔记本电脑没有意义。
# How much memory the KV cache takes on a CPU at most; more makes no sense on a laptop.
#   Llama-3.2-1B, float32: 2 * 16 * 8 * 64 * 4 = 65536 bytes/token; 2**30 / 65536 = 16384 tokens
_CPU_POOL_BYTES = 1 << 30


def available_cpu_memory() -> int:
    """此刻可用的内存，单位字节。

    Memory available right now, in bytes.
    """
    # 在容器里这是宿主机的数字，看不到 cgroup 的限额；限额小时，请自己给出 `num_kvcache_blocks`。
    # In a container this is the host's number, blind to the cgroup's limit: if that is small, set `num_kvcache_blocks`.
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            # 取 `MemAvailable` 而不是 `MemFree`：页缓存随时可以回收，`MemFree` 却把它算成已经用掉的。
            # `MemAvailable`, not `MemFree`, which counts the page cache as used though it can be reclaimed at any time.
            if line.startswith("MemAvailable:"):
                #   "MemAvailable:   16384000 kB"  ->  16384000 * 1024
                return int(line.split()[1]) * 1024
    # macOS 没有 /proc，退而取总内存；上面的 1 GiB 上限仍然管用。
    # macOS has no /proc, so take the total; the cap of 1 GiB above still holds.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class ModelRunner:
    """持有模型和 KV 缓存。

    Holds the model and the KV cache.

    Attributes:
        max_model_len: the longest sequence that both the model and the pool can serve
        num_blocks, block_size: the pool's shape
    """

    def __init__(self, config: EngineConfig, folder: Path, on_progress: Callable[[int, int], None] | None = None):
        # 先做不花钱的检查，再做花钱的加载：选错后端应当立刻报错，而不是读完 6 GB 权重之后。
        # Cheap checks come before the expensive load: a wrong backend fails at once, not after reading 6 GB of weights.
        self.device = config.resolve_device()
        self.model_config = load_config(folder)
        self.dtype = config.resolve_dtype(self.model_config.dtype, self.device)
        name = config.backend
        if name == "auto":
            name = choose_backend(self.device, self.model_config.head_dim, self.dtype)
        self.backend = create_backend(name, self.device)
        # 单步调试时逐个执行：融合的核函数里没有可以停的地方。
        # One step after the other for debugging: inside a fused kernel there is nowhere to stop.
        if config.enforce_eager:
            self.backend.fused = None
        # “能在这台机器上跑”和“支持这个模型”是两回事：前者 `create_backend` 已查过，后者要知道 `head_dim` 才能查。
        # Two questions: `create_backend` answered "does it run here"; "does it suit this model" needs `head_dim`.
        reason = self.backend.why_unsupported(self.model_config.head_dim, self.dtype)
        if reason:
            raise ValueError(f"backend '{self.backend.name}' does not support this model: {reason}")
        # 这里用 `or` 取默认值是安全的：`EngineConfig` 已拒绝 0，不会把用户写的 0 当成没写。
        # `or` is safe here: `EngineConfig` has refused 0, so no user's 0 is mistaken for "not given".
        self.block_size = config.kvcache_block_size or self.backend.default_block_size
        self.backend.check_block_size(self.block_size)
        # 预算越大，长提示算完得越快，但同一步里的解码都要等它；CPU 慢，所以给得小些。
        # A larger budget finishes long prompts sooner but delays the decodes of the same step; a slow CPU gets less.
        self.max_num_batched_tokens = config.max_num_batched_tokens or (8192 if self.device.type == "cuda" else 2048)
        self.max_num_seqs = config.max_num_seqs

        # 新建的张量直接落在目标设备、目标 dtype 上，省去一次搬运。
        # New tensors are made on the target device in the target dtype, which saves a copy.
        previous_dtype = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                self.model = create_model(self.model_config, self.backend).eval()
        except (RuntimeError, MemoryError) as error:
            # 内存不够，或者配置里的尺寸根本不可能：分配器的消息有好几行，只取第一行。
            # Too little memory, or sizes that cannot be: the allocator's message has many lines, take the first.
            reason = str(error).splitlines()[0]
            raise ModelLoadError(f"{folder} does not fit into the memory of {self.device}: {reason}") from None
        finally:
            # 默认 dtype 是进程级的全局状态：不还原，同一进程里别人的 torch 代码也会跟着变成 bf16。
            # The default dtype is global to the process: left changed, everybody's torch code would make bf16 tensors.
            torch.set_default_dtype(previous_dtype)
        # 此刻参数都是 `torch.empty` 的垃圾值；少填一个，输出就是乱码而不报错，所以 `load_weights` 要核对每一个。
        # Parameters are garbage from `torch.empty` so far: one left out means nonsense, so `load_weights` checks each.
        # 断点停在这里，打印 `self.model`：整个网络的模块树就在眼前，名字与权重文件里的对应。
        # Stop here and print `self.model`: the tree of all modules, whose names follow the weight files.
        if config.load_format == "dummy":
            randomize_weights(self.model, seed=0)
        else:
            load_weights(self.model, folder, on_progress)
        for module in self.model.modules():
            if isinstance(module, Linear):
                module.pack_weight()

        # 超过 `limit` 的位置，RoPE 的角度模型没有见过：不会报错，只会越说越乱，所以在这里拒绝。
        # Beyond `limit` the model has never seen RoPE's angles: no error, just worse and worse text, so refuse here.
        limit = self.model_config.max_position_embeddings
        if config.max_model_len is not None and config.max_model_len > limit:
            raise ValueError(
                f"max_model_len={config.max_model_len} exceeds the model's limit of {limit} positions: "
                f"use at most {limit}"
            )
        # 像规划容量一样，三步的顺序不能换：权重就位后看还剩多少内存，再看最长能到多少，最后才真正分配。
        # Capacity planning, in this order: what do the weights leave, what length does that serve, then allocate.
        self.num_blocks = config.num_kvcache_blocks or self._affordable_blocks(config.gpu_memory_utilization)
        self.max_model_len = self._fit_length(config.max_model_len, limit)
        self._allocate_pool(self.num_blocks)
        self.graphs: DecodeGraphs | None = None
        if self.device.type == "cuda" and not config.enforce_eager:
            self._prepare_graphs()

    def _prepare_graphs(self) -> None:
        """录 CUDA graph；后端声明自己录不了，就告警一次，改为逐个启动核函数。

        Record the CUDA graphs; a backend that declares it cannot gets a message and is launched kernel by kernel.
        """
        fused = self.backend.fused
        if not self.backend.supports_cuda_graphs or fused is None or not fused.has_sampler:
            logger.warning(
                "backend '%s' cannot be recorded in CUDA graphs, its kernels are launched one by one "
                "/ 后端 '%s' 录不了 CUDA graph，核函数逐个启动",
                self.backend.name, self.backend.name,
            )  # fmt: skip
            return
        max_blocks = num_blocks_needed(self.max_model_len, self.block_size)
        self.graphs = DecodeGraphs(
            self.model, self.backend, self.max_num_seqs, max_blocks, self.block_size, self.device
        )

    def _block_bytes(self) -> int:
        """一个块在所有层里共占多少字节：K 和 V 各一份。

        Bytes of one block over all layers, K and V.
        """
        config = self.model_config
        # 用 KV 头数，不是查询头数：Llama-3.2-3B 有 24 个查询头、8 个 KV 头，写错就成了 3 倍大。
        # KV heads, not query heads: Llama-3.2-3B has 8 and 24, so a slip makes it 3 times too large.
        #   Llama-3.2-3B, bf16: 2 * 28 * 8 * 128 * 2 = 114688 bytes/token
        #   block_size 16: 16 * 114688 = 1835008 bytes = 1.75 MiB; 131072 tokens: 14 GiB
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        return per_token * self.dtype.itemsize * self.block_size

    def _affordable_blocks(self, gpu_memory_utilization: float) -> int:
        """内存装得下多少块；同时不超过用得上的数量（每个运行的序列都达到模型上限）。

        How many blocks fit into the memory, and no more than could ever be used (every running sequence at the limit).
        """
        if self.device.type == "cuda":
            # 块池 = 上限 − 峰值。忘了减激活的峰值，启动时一切正常，第一个长提示词到来才爆显存。
            # Pool = cap − peak. Forget the activations' peak and it starts well,
            # then runs out of memory on the first long prompt.
            #   80 GB * 0.9 - 8 GB = 64 GB; Llama-3.2-3B: 64e9 / 1835008 = 34877 blocks = 558032 tokens
            total = torch.cuda.get_device_properties(self.device).total_memory
            try:
                peak = self._peak_forward_bytes()
            except torch.OutOfMemoryError:
                peak = total
            budget = int(total * gpu_memory_utilization) - peak
            # 只差几个块，由 `_fit_length` 说清楚；连一个块都放不下，多半是别的程序占着卡。
            # A few blocks short is for `_fit_length` to explain; not even one is mostly another program on the card.
            if budget < self._block_bytes():
                free = torch.cuda.mem_get_info(self.device)[0]
                raise ValueError(
                    f"{self.device} is too full for the KV cache: beside the weights {free / 1e9:.1f} of "
                    f"{total / 1e9:.1f} GB are free, and gpu_memory_utilization={gpu_memory_utilization:g} is the "
                    "limit; end other programs on it (nvidia-smi lists them), raise gpu_memory_utilization, or lower "
                    f"max_num_batched_tokens={self.max_num_batched_tokens}"
                )
        else:
            # 权重已经加载，所以“可用”里不再含它；只取四分之一，其余留给中间结果、系统和别的程序。
            # The weights are loaded and no longer "available"; a quarter leaves room for activations and others.
            budget = min(_CPU_POOL_BYTES, available_cpu_memory() // 4)
        limit = self.model_config.max_position_embeddings
        # 小模型会碰到这个上限：256 条序列、每条 2048 个 token，最多用得上 256 * 128 = 32768 个块，再多也是闲置。
        # Small models meet this cap: 256 sequences of 2048 tokens can use 256 * 128 = 32768 blocks, no more.
        useful = self.max_num_seqs * num_blocks_needed(limit, self.block_size)
        # 权重已超过上限时 `budget` 为负，整除会得到负的块数；记为 0 块，由 `_fit_length` 说清楚缺多少。
        # Weights beyond the cap make `budget` negative, and the blocks too; as 0, `_fit_length` says what is missing.
        return min(useful, max(budget, 0) // self._block_bytes())

    def _peak_forward_bytes(self) -> int:
        """用最大的一步真跑一次，量出权重加中间结果的显存峰值（含别的程序已占的部分）。

        Run the largest step once and measure the peak of weights and intermediate results, with what other programs
        hold.
        """
        tokens = min(self.max_num_batched_tokens, self.model_config.max_position_embeddings)
        num_blocks = num_blocks_needed(tokens, self.block_size)
        # 前向要写 K、V，没有块池就跑不起来；先给一个刚好够用的临时块池，量完再从峰值里扣掉。
        # The forward pass writes K and V and needs blocks: a temporary pool, just enough, taken off the peak later.
        pool = self._allocate_pool(num_blocks)
        # 峰值是历史最高：不清零，从前的高峰（例如加载时的临时张量）也会算进来，块池就白白变小。
        # The peak is an all-time high: without a reset, an older one (loading, say) would count and shrink the pool.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        logits = self.execute(self._dummy_batch(tokens, num_blocks))
        # 采样也算在峰值里：排序和噪声都是 [S, vocab_size] 的临时张量，256 行时每个就有几百 MB。
        # Sampling belongs to the peak: the sort and the noise are [S, vocab_size], hundreds of MB each at 256 rows.
        sample(logits, SamplingInputs.costliest(logits.shape[0], self.device))
        # 核函数是异步执行的：在这里等它们跑完，出错就在这里报，而不是在后面某个无关的调用里。
        # Kernels run asynchronously: wait here, so that an error shows here and not in some unrelated call later.
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) - pool.nbytes
        # `mem_get_info` 看的是整张卡：减去 PyTorch 自己预留的，剩下的属于别的进程和 CUDA 上下文，不能分给块池。
        # `mem_get_info` sees the whole card: less what PyTorch reserves, it is other processes and the CUDA context.
        free, total = torch.cuda.mem_get_info(self.device)
        others = total - free - torch.cuda.memory_reserved(self.device)
        # 只 `del pool` 不够：各层的 `kv_cache` 是它的视图，视图还在，显存就不释放，真正的块池便装不下。
        # `del pool` is not enough: each layer's `kv_cache` is a view that keeps the memory from the real pool.
        del pool
        for layer in self.model.attention_layers():
            layer.kv_cache = None
        torch.cuda.empty_cache()
        return peak + others

    def _dummy_batch(self, num_tokens: int, num_blocks: int) -> Batch:
        """一条占满整步的假提示词，采样行数也取最大。

        A pretended prompt that fills the whole step, with the largest number of rows that sample.
        """

        def tensor(values: list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)

        # 全部当作预填充：8192 个 token 一起过 MLP 时中间结果最大；纯解码的一步，每条序列才 1 个 token，远不及它。
        # All of it is prefill: 8192 tokens in the MLP make the largest activations; decodes bring 1 token a sequence.
        metadata = AttentionMetadata(
            num_decodes=0,
            # 块按 0, 1, 2 的顺序排，槽位等于位置：块大小 16 时，位置 17 在 1 号块的偏移 1 处，槽位 1 * 16 + 1 = 17。
            # Blocks stand in order 0, 1, 2, so slot = position: with blocks of 16, position 17 is slot 1 * 16 + 1 = 17.
            slot_mapping=torch.arange(num_tokens, device=self.device),
            decode_block_tables=torch.empty(0, num_blocks, dtype=torch.int32, device=self.device),
            cache_seqlens=tensor([], torch.int32),
            prefill_block_tables=torch.arange(num_blocks, dtype=torch.int32, device=self.device).unsqueeze(0),
            cu_seqlens_q=tensor([0, num_tokens], torch.int32),
            cu_seqlens_k=tensor([0, num_tokens], torch.int32),
            max_seqlen_q=num_tokens,
            max_seqlen_k=num_tokens,
        )
        return Batch(
            input_ids=torch.zeros(num_tokens, dtype=torch.int64, device=self.device),
            positions=torch.arange(num_tokens, device=self.device),
            metadata=metadata,
            # 采样行也取最多：256 行 × 词表 128256 × 4 字节 = 131334144 字节，约 125 MiB，漏掉它就低估了峰值。
            # The most rows that sample: 256 × 128256 × 4 = 131334144 bytes, some 125 MiB; the peak must hold them.
            logits_indices=torch.arange(min(self.max_num_seqs, num_tokens), device=self.device),
        )

    def _fit_length(self, requested: int | None, limit: int) -> int:
        """最大长度：块池至少要装得下一条这么长的序列，否则它永远跑不完。

        The longest sequence: the pool must hold at least one of it, or it could never finish.

        Raises:
            ValueError: an explicit max_model_len does not fit, or not a single block does
        """
        # 只剩它一条时没有别人可抢占：装不下就抢占自己，从头重来，再抢占自己，成了死循环。
        # With nobody else to preempt, a sequence that does not fit would preempt itself, start over, and loop for ever.
        #   100 blocks * 16 = 1600; max_model_len 2048  ->  ceil(2048 / 16) = 128 blocks, ValueError
        #   100 blocks * 16 = 1600; max_model_len None, limit 131072  ->  1600, warning
        fits = self.num_blocks * self.block_size
        wanted = requested or limit
        needed = num_blocks_needed(wanted, self.block_size)
        if fits >= wanted:
            return wanted
        # 用户写明的长度给不了，就是错误，不能悄悄改小；没写的，才由我们缩短，并且只说一次。
        # A length that the user asked for is never cut silently, but an error; without one we shorten, with a warning.
        if requested is not None or fits == 0:
            raise ValueError(
                f"the KV cache cannot hold one sequence of max_model_len={wanted}: it needs {needed} blocks of "
                f"{self.block_size} tokens, there are {self.num_blocks}; use max_model_len <= {fits}, or more memory"
            )
        logger.warning(
            "max_model_len is %d instead of the model's %d: the KV cache holds no more. "
            "/ 最大长度从模型的 %d 降为 %d：KV 缓存只装得下这么多。",
            fits, limit, limit, fits,
        )  # fmt: skip
        return fits

    def _allocate_pool(self, num_blocks: int) -> Tensor:
        """一次分配所有层的块池，再按层切给各注意力层。

        Allocate the pool of all layers at once and give each attention layer its share.

        Returns:
            [2, num_layers, num_blocks, block_size, Hkv, D]
        """
        config = self.model_config
        # 同一个块编号在每一层都有效，所以一条序列只要 1 张块表，而不是每层一张共 28 张。
        # A block id is valid in every layer, so a sequence has 1 block table and not one a layer, 28 in all.
        #   Llama-3.2-3B, 1000 blocks: pool [2, 28, 1000, 16, 8, 128], layer k [1000, 16, 8, 128]
        shape = (num_blocks, self.block_size, config.num_key_value_heads, config.head_dim)
        # 用 `empty` 而不清零：没写过的槽位本来就不许被读到，操作系统也因此不必真给内存。
        # `empty`, not zeroed: an unwritten slot must never be read anyway, and the system need not back it with memory.
        try:
            pool = torch.empty(2, config.num_hidden_layers, *shape, dtype=self.dtype, device=self.device)
        except (RuntimeError, MemoryError):
            raise ValueError(
                f"{num_blocks} KV cache blocks are {num_blocks * self._block_bytes() / 1e9:,.1f} GB, which does not "
                f"fit into the memory of {self.device}: lower num_kvcache_blocks"
            ) from None
        # 各层拿到的是视图，没有复制：层里写 `kv_cache.k`，就是写 `pool` 的那一段；两层的段互不重叠。
        # Each layer gets a view, not a copy: writing `kv_cache.k` writes its part of `pool`, and no two parts overlap.
        for index, layer in enumerate(self.model.attention_layers()):
            layer.kv_cache = KVCache(k=pool[0, index], v=pool[1, index])
        return pool

    def sample(self, logits: Tensor, inputs: SamplingInputs | None) -> Tensor:
        """选 token；不过滤的行用后端的融合采样（若有）。

        Choose tokens; rows that do not filter use the backend's fused sampling, where it has one.

        Args:
            logits: [S, vocab_size]

        Returns:
            [S] int64
        """
        return sample(logits, inputs, self.backend.fused)

    # 推理不求梯度：`inference_mode` 连张量的版本号和视图关系都不记，每个操作花在主机上的时间更少。
    # No gradients here: `inference_mode` skips even the versions and views of tensors, so the host works less.
    @torch.inference_mode()
    def execute(self, batch: Batch) -> Tensor:
        """一次前向：全批的 token 走完所有层，只有要采样的行变成 logits。

        One forward pass: all tokens go through all layers, only the rows that sample become logits.

        Returns:
            [S, vocab_size], the model's dtype
        """
        # 断点停在这里看 `batch`：T 个 token 首尾相接，哪几个属于同一条序列，只有 `batch.metadata` 知道。
        # Stop here and look at `batch`: T tokens lie end to end, and only `batch.metadata` knows whose they are.
        hidden = self.model(batch.input_ids, batch.positions, batch.metadata)  # [T, hidden]
        # 1000 个 token 的提示词只有最后 1 个要 logits；全算就是 1000 * 128256 * 4 字节，约 0.5 GB，几乎全扔掉。
        # A prompt of 1000 tokens needs logits for its last 1: all would be 1000 * 128256 * 4 bytes, 0.5 GB thrown away.
        return self.model.compute_logits(hidden.index_select(0, batch.logits_indices))
