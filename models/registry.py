"""模型注册表：`config.json` 里的 `architectures` -> 模型类。

The model registry: `architectures` in `config.json` -> model class.
"""

from pathlib import Path

import torch

from backends.base import AttentionBackend
from models.config import ModelConfig
from models.fields import ModelLoadError
from models.llama import LlamaForCausalLM
from models.qwen2 import Qwen2ForCausalLM
from models.qwen3 import Qwen3ForCausalLM
from models.refusals import unknown_architecture, why_not

# 加模型就在这里加一行；键是 `config.json` 里写的名字。
# A new model is one more line here; the key is the name in `config.json`.
# 都继承自 Llama 的类，所以一个类型就能描述所有的值；Mistral 与 Llama 只差滑动窗口，那由 `config.py` 处理。
# All inherit from Llama's class, so a single type describes every value; Mistral differs from Llama by its sliding
# window alone, which `config.py` takes care of.
MODEL_REGISTRY: dict[str, type[LlamaForCausalLM]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": LlamaForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


def check_folder(folder: Path) -> Path:
    """不能加载的文件夹，先按“它是什么”来拒绝；没有这个文件夹时，由 `load_config` 来说。

    Refuse a folder that cannot be loaded by what it is; where there is no such folder, `load_config` will say so.

    Raises:
        ModelLoadError: 它是别的东西，不是能加载的模型；it is something else than a model that we load
    """
    if folder.is_dir() and (reason := why_not(folder, MODEL_REGISTRY)):
        raise ModelLoadError(reason)
    return folder


def create_model(config: ModelConfig, backend: AttentionBackend) -> LlamaForCausalLM:
    """按配置搭好模型的架子：只有形状，没有内存；`models/loader.py` 的 `materialize` 才分配。

    Build the frame of the model that the configuration names: shapes and no memory; `materialize` in
    `models/loader.py` allocates.

    Raises:
        ModelLoadError: 没有这种架构；no such architecture
    """
    # 只查字典，不按名字导入：`config.json` 是外来数据，不能由它决定运行哪段代码。
    # Look up, never import by name: `config.json` is foreign data and must not decide what code runs.
    model_class = MODEL_REGISTRY.get(config.architecture)
    if model_class is None:
        raise ModelLoadError(unknown_architecture(config.architecture, {}, MODEL_REGISTRY))
    # `meta` 设备上的张量没有数据：再大的模型也立刻建好，尺寸有问题时，还没有为它占过一个字节。
    # Tensors on the `meta` device have no data: however large, the model is built at once, and where its sizes make no
    # sense not a byte has been taken for it.
    with torch.device("meta"):
        return model_class(config, backend).eval()
