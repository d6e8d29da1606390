"""模型执行器：权重，以及“一个批进去、logits 出来”的前向计算。

你在这里：`llm_engine.py` 每步调用一次 `execute`；KV 缓存的内存在 `kv_pool.py`，选 token 在 `sampler.py`。

The model runner: the weights, and the forward pass that takes a batch and gives logits.

You are here: `llm_engine.py` calls `execute` once a step; the KV cache's memory is in `kv_pool.py`, the choice of
tokens in `sampler.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# 本文件只认识后端的接口契约：用哪个后端由配置里的名字决定，换后端不用改这里。
# This file knows the contract of backends only; a name in the configuration picks one.
from backends.base import AttentionMetadata
from engine.batch import Batch
from engine.config import EngineSetup
from models.fields import ModelLoadError
from models.loader import check_weights, load_weights, materialize, randomize_weights
from models.quantized import quantize_model
from models.registry import create_model


class ModelRunner:
    """持有模型。

    Holds the model.
    """

    def __init__(self, setup: EngineSetup, on_progress: Callable[[int, int], None] | None = None) -> None:
        self.device, self.dtype, self.model_config = setup.device, setup.dtype, setup.model_config
        self.backend, self.kernels = setup.backend, setup.kernels
        self.model = create_model(self.model_config, self.backend)
        is_random = setup.config.load_format == "dummy"
        quantize_model(self.model, setup.config.quantization, None if is_random else setup.folder)
        # 先用文件头核对形状，再分配内存：配置里写的尺寸若与文件不符，一个字节都不会为它占。
        # Shapes are checked against the file's header before memory is taken: sizes in the configuration that the file
        # does not bear out cost not a byte.
        if not is_random:
            check_weights(self.model, setup.folder)
        try:
            materialize(self.model, self.dtype, self.device)
        except (RuntimeError, MemoryError) as error:
            # 内存不够，或者配置里的尺寸根本不可能：分配器的消息有好几行，只取第一行。
            # Too little memory, or sizes that cannot be: the allocator's message has many lines, take the first.
            reason = str(error).splitlines()[0]
            raise ModelLoadError(f"{setup.folder} does not fit into the memory of {self.device}: {reason}") from None
        # 此刻参数都是 `torch.empty` 的垃圾值；少填一个，输出就是乱码而不报错，所以 `load_weights` 要核对每一个。
        # Parameters are garbage from `torch.empty` so far: one left out means nonsense, so `load_weights` checks each.
        # 断点停在这里，打印 `self.model`：整个网络的模块树就在眼前，名字与权重文件里的对应。
        # Stop here and print `self.model`: the tree of all modules, whose names follow the weight files.
        if is_random:
            randomize_weights(self.model, seed=self.model_config.ranks.rank)
        else:
            load_weights(self.model, setup.folder, on_progress)
        if self.kernels is not None:
            self.model.use_kernels(self.kernels)

    def forward(self, input_ids: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        """主干的前向：后端先做好每步一次的准备，各层再共用它。

        The forward pass of the trunk: first the backend prepares what is once a step, then all layers share it.

        Args:
            input_ids, positions: [T] int64

        Returns:
            [T, hidden]
        """
        metadata.plan = self.backend.prepare(metadata)
        return self.model(input_ids, positions, metadata)  # [T, hidden]

    @torch.inference_mode()
    def execute(self, batch: Batch) -> Tensor:
        """一次前向：全批的 token 走完所有层，只有要采样的行变成 logits。

        One forward pass: all tokens go through all layers, only the rows that sample become logits.

        Returns:
            [S, vocab_size]，模型自己的 dtype；the model's dtype
        """
        # 断点停在这里看 `batch`：T 个 token 首尾相接，哪几个属于同一条序列，只有 `batch.metadata` 知道。
        # Stop here and look at `batch`: T tokens lie end to end, and only `batch.metadata` knows whose they are.
        # 外面若开着 autocast，矩阵乘法就换了精度，选出的 token 也会变：在这里关掉，出去时恢复。
        # Under a caller's autocast the products would change precision, and tokens with it: off in here, then restored.
        with torch.autocast(self.device.type, enabled=False):
            hidden = self.forward(batch.input_ids, batch.positions, batch.metadata)  # [T, hidden]
            # 1000 个 token 的提示词只有最后 1 个要 logits；全算就是 1000 * 128256 * 4 字节，约 0.5 GB，几乎全扔掉。
            # A prompt of 1000 needs logits for its last 1: all would be 1000 * 128256 * 4 bytes, 0.5 GB for nothing.
            return self.model.compute_logits(hidden.index_select(0, batch.logits_indices))
