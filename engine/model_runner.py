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

from backends import create_backend
from backends.base import AttentionMetadata, KVCache
from engine.batch import Batch
from engine.config import EngineConfig
from models import create_model
from models.config import load_config
from models.loader import load_weights

logger = logging.getLogger(__name__)

# CPU 上 KV 缓存最多占多少内存：再多对笔记本电脑没有意义。
# How much memory the KV cache takes on a CPU at most; more makes no sense on a laptop.
_CPU_POOL_BYTES = 1 << 30


def available_cpu_memory() -> int:
    """此刻可用的内存，单位字节。

    Memory available right now, in bytes.
    """
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
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
        self.device = config.resolve_device()
        self.backend = create_backend(config.backend, self.device)
        self.model_config = load_config(folder)
        self.dtype = config.resolve_dtype(self.model_config.dtype, self.device)
        reason = self.backend.why_unsupported(self.model_config.head_dim, self.dtype)
        if reason:
            raise ValueError(f"backend '{self.backend.name}' does not support this model: {reason}")
        self.block_size = config.kvcache_block_size or self.backend.default_block_size
        self.backend.check_block_size(self.block_size)
        self.max_num_batched_tokens = config.max_num_batched_tokens or (8192 if self.device.type == "cuda" else 2048)
        self.max_num_seqs = config.max_num_seqs

        # 新建的张量直接落在目标设备、目标 dtype 上，省去一次搬运。
        # New tensors are made on the target device in the target dtype, which saves a copy.
        previous_dtype = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                self.model = create_model(self.model_config, self.backend).eval()
        finally:
            torch.set_default_dtype(previous_dtype)
        load_weights(self.model, folder, on_progress)

        limit = self.model_config.max_position_embeddings
        if config.max_model_len is not None and config.max_model_len > limit:
            raise ValueError(
                f"max_model_len={config.max_model_len} exceeds the model's limit of {limit} positions: "
                f"use at most {limit}"
            )
        self.num_blocks = config.num_kvcache_blocks or self._affordable_blocks(config.gpu_memory_utilization)
        self.max_model_len = self._fit_length(config.max_model_len, limit)
        self.kv_pool = self._allocate_pool(self.num_blocks)

    def _block_bytes(self) -> int:
        """一页在所有层里共占多少字节：K 和 V 各一份。

        Bytes of one block over all layers, K and V.
        """
        config = self.model_config
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        return per_token * self.dtype.itemsize * self.block_size

    def _affordable_blocks(self, gpu_memory_utilization: float) -> int:
        """内存装得下多少页；同时不超过用得上的数量（每个运行的序列都达到模型上限）。

        How many blocks fit into the memory, and no more than could ever be used (every running sequence at the limit).
        """
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            budget = int(total * gpu_memory_utilization) - self._peak_forward_bytes()
        else:
            budget = min(_CPU_POOL_BYTES, available_cpu_memory() // 4)
        limit = self.model_config.max_position_embeddings
        useful = self.max_num_seqs * (-(-limit // self.block_size))
        return min(useful, max(budget, 0) // self._block_bytes())

    def _peak_forward_bytes(self) -> int:
        """用最大的一步真跑一次，量出权重加中间结果的显存峰值（含别的程序已占的部分）。

        Run the largest step once and measure the peak of weights and intermediate results, with what other programs
        hold.
        """
        tokens = min(self.max_num_batched_tokens, self.model_config.max_position_embeddings)
        num_blocks = -(-tokens // self.block_size)
        pool = self._allocate_pool(num_blocks)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self.execute(self._dummy_batch(tokens, num_blocks))
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) - pool.nbytes
        free, total = torch.cuda.mem_get_info(self.device)
        others = total - free - torch.cuda.memory_reserved(self.device)
        del pool
        for layer in self.model.attention_layers():
            layer.kv_cache = None
        torch.cuda.empty_cache()
        return peak + others

    def _dummy_batch(self, num_tokens: int, num_blocks: int) -> Batch:
        """一条占满整步的假提示，采样行数也取最大。

        A pretended prompt that fills the whole step, with the largest number of rows that sample.
        """

        def tensor(values: list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self.device)

        metadata = AttentionMetadata(
            num_decodes=0,
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
            logits_indices=torch.arange(min(self.max_num_seqs, num_tokens), device=self.device),
        )

    def _fit_length(self, requested: int | None, limit: int) -> int:
        """最大长度：页池至少要装得下一条这么长的序列，否则它永远跑不完。

        The longest sequence: the pool must hold at least one of it, or it could never finish.

        Raises:
            ValueError: an explicit max_model_len does not fit, or not a single block does
        """
        fits = self.num_blocks * self.block_size
        wanted = requested or limit
        needed = -(-wanted // self.block_size)
        if fits >= wanted:
            return wanted
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
        """一次分配所有层的页池，再按层切给各注意力层。

        Allocate the pool of all layers at once and give each attention layer its share.

        Returns:
            [2, num_layers, num_blocks, block_size, Hkv, D]
        """
        config = self.model_config
        shape = (num_blocks, self.block_size, config.num_key_value_heads, config.head_dim)
        # 用 `empty` 而不清零：没写过的槽位本来就不许被读到，操作系统也因此不必真给内存。
        # `empty`, not zeroed: an unwritten slot must never be read anyway, and the system need not back it with memory.
        pool = torch.empty(2, config.num_hidden_layers, *shape, dtype=self.dtype, device=self.device)
        for index, layer in enumerate(self.model.attention_layers()):
            layer.kv_cache = KVCache(k=pool[0, index], v=pool[1, index])
        return pool

    @torch.inference_mode()
    def execute(self, batch: Batch) -> Tensor:
        """一次前向：全批的 token 走完所有层，只有要采样的行变成 logits。

        One forward pass: all tokens go through all layers, only the rows that sample become logits.

        Returns:
            [S, vocab_size] float32
        """
        hidden = self.model(batch.input_ids, batch.positions, batch.metadata)  # [T, hidden]
        return self.model.compute_logits(hidden[batch.logits_indices])
