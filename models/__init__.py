"""模型注册表：`config.json` 里的 `architectures` -> 模型类。

The model registry: `architectures` in `config.json` -> model class.
"""


from backends.base import AttentionBackend
from models.config import ModelConfig, ModelLoadError
from models.llama import LlamaForCausalLM
from models.qwen3 import Qwen3ForCausalLM

# 加模型就在这里加一行；键是 `config.json` 里写的名字。
# A new model is one more line here; the key is the name in `config.json`.
MODEL_REGISTRY: dict[str, type[LlamaForCausalLM]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


def create_model(config: ModelConfig, backend: AttentionBackend) -> LlamaForCausalLM:
    """按配置搭好模型，权重尚未填入。

    Build the model that the configuration names; its weights are not filled yet.

    Raises:
        ModelLoadError: no such architecture
    """
    model_class = MODEL_REGISTRY.get(config.architecture)
    if model_class is None:
        raise ModelLoadError(
            f"unknown architecture '{config.architecture}': supported are {', '.join(MODEL_REGISTRY)}"
        )
    return model_class(config, backend)


__all__ = ["MODEL_REGISTRY", "ModelConfig", "ModelLoadError", "create_model"]
