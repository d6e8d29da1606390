"""哪些层要量化：用户要求的，或者文件里本来就量化好的。

你在这里：`engine/model_runner.py` 在搭好架子之后、分配内存之前调用。

Which layers are quantized: those that the user asks for, or those that the files bring so.

You are here: `engine/model_runner.py` calls it once the frame stands and before memory is taken.
"""

from pathlib import Path

import torch

from backends.quantized_weight import QuantizedWeight
from layers.quantized import QUANTIZATIONS, quantize_layers
from models.fields import ModelLoadError
from models.llama import LlamaForCausalLM
from models.loader import model_names, read_headers


def quantize_model(model: LlamaForCausalLM, quantization: str | None, folder: Path | None) -> None:
    """换掉要量化的层的权重；没有要量化的，什么也不做。

    Replace the weights of the layers to be quantized; where there are none, nothing is done.

    Args:
        quantization: 用户要求的；what the user asks for
        folder: 权重在哪里；None 是随机的权重，整个模型都算量化；where the weights are; None: random ones, all quantized

    Raises:
        ModelLoadError: 文件与配置不符，或者已经量化成别的；
            files that do not fit the configuration, or are quantized otherwise
        ValueError: 见 `quantize_layers`；see `quantize_layers`
    """
    # 文件自带量化时，只换它量化过的层：别的层它留着浮点数，我们也留着。
    # Where the files bring quantized layers, only those are replaced: what they left in floats stays so.
    packing = model.config.packing
    if packing is None:
        if quantization is not None:
            quantize_layers(model, QUANTIZATIONS[quantization])
        return
    if quantization not in (None, f"int{packing.bits}"):
        raise ModelLoadError(f"quantization={quantization!r}, but the model is int{packing.bits} already: leave it out")
    stored = None
    if folder is not None:
        headers = read_headers(folder, packing)
        # 折叠后的名字是 `X.weight`，类型写着“int4”或“int8”；按模型里的名字去找层。
        # Folded names are `X.weight` of type "int4" or "int8"; layers are found by their names in the model.
        stored = {place for name, place in model_names(headers).items() if headers[name][2] == f"int{packing.bits}"}
        # 配置说量化了，权重却全是浮点数：多半是换过权重却没有换配置，说清楚比装作没事好。
        # The configuration says quantized and all weights are floats: most likely the weights were replaced and the
        # configuration was not, and it is better to say so.
        if not stored:
            raise ModelLoadError("config.json says that weights are quantized, and none is: drop quantization_config")
        # 词嵌入与输出头共用时，只换一个就拆散了它们；这样的文件还没有见过。
        # Where embedding and head are shared, to replace one of them would part them; no such file has been met yet.
        shared = stored & {"lm_head.weight", "model.embed_tokens.weight"}
        if model.config.tie_word_embeddings and shared:
            raise ModelLoadError(f"{min(shared)} is quantized and shared by embedding and head, which is not read")
    quantize_layers(model, packing.bits, stored)


def number_types(model: LlamaForCausalLM, dtype: torch.dtype) -> str:
    """给人看的一句：计算用什么精度，权重和 KV 缓存量化成什么。

    A phrase for people: the precision of the computation, and what weights and KV cache are quantized to.

        "bfloat16, weights int4, KV int8"
    """
    # int4 的模型里，词嵌入和输出头是 int8；说大头，即位数最少的。
    # In an int4 model embedding and head are int8; name what is most of it, the fewest bits.
    names = [str(dtype)]
    # 归一化的权重也叫 `weight`，它们是普通的参数，不算。
    # Norms have a `weight` as well, an ordinary parameter that does not count.
    weights = (getattr(module, "weight", None) for module in model.modules())
    if bits := {weight.bits for weight in weights if isinstance(weight, QuantizedWeight)}:
        names.append(f"weights int{min(bits)}")
    if (stored := model.attention_layers()[0].cache().k.dtype) != dtype:
        names.append(f"KV {stored}")
    return ", ".join(names).replace("torch.", "")
