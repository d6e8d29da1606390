"""哪些层要量化：用户要求的，或者文件里本来就量化好的。

你在这里：`engine/model_runner.py` 在搭好架子之后、分配内存之前调用。

Which layers are quantized: those that the user asks for, or those that the files bring so.

You are here: `engine/model_runner.py` calls it once the frame stands and before memory is taken.
"""

from pathlib import Path

from layers.quantized import QUANTIZATIONS, quantize_layers
from models.llama import LlamaForCausalLM
from models.loader import model_names, read_headers


def quantize_model(model: LlamaForCausalLM, quantization: str | None, folder: Path | None) -> None:
    """换掉要量化的层的权重；没有要量化的，什么也不做。

    Replace the weights of the layers to be quantized; where there are none, nothing is done.

    Args:
        quantization: 用户要求的；what the user asks for
        folder: 权重在哪里；None 是随机的权重，整个模型都算量化；where the weights are; None: random ones, all quantized

    Raises:
        ModelLoadError: 文件与配置不符；files that do not fit the configuration
    """
    packing = model.config.packing
    if packing is None:
        if quantization is not None:
            quantize_layers(model, QUANTIZATIONS[quantization])
        return
    stored = None
    if folder is not None:
        headers = read_headers(folder, packing)
        stored = {place for name, place in model_names(headers).items() if headers[name][2] == f"int{packing.bits}"}
    quantize_layers(model, packing.bits, stored)
