"""Qwen2 与 Qwen2.5：与 Llama 只差一处，q、k、v 的投影带偏置，`o_proj` 不带；文件里不写，由架构规定。

Qwen2 and Qwen2.5: one difference from Llama, a bias on the projections of q, k and v and none on `o_proj`; the file
does not say so, the architecture implies it.
"""

from dataclasses import replace

from backends.base import AttentionBackend
from layers.ranks import SummedLinear
from models.config import ModelConfig
from models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM


class Qwen2Attention(LlamaAttention):
    """q、k、v 带偏置的自注意力。

    Self-attention with a bias on q, k and v.
    """

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        # `attention_bias` 管着四个投影，而 Qwen2 只有三个带：先都带上，再把 `o_proj` 换成不带的。
        # `attention_bias` is for all four projections while Qwen2 has it on three: take it for all, then replace
        # `o_proj` by one without.
        super().__init__(replace(config, attention_bias=True), backend)
        self.o_proj = SummedLinear(self.q_size, config.hidden_size, False, config.ranks)


class Qwen2DecoderLayer(LlamaDecoderLayer):
    """换上 Qwen2 注意力的一层。

    A layer with Qwen2's attention.
    """

    attention_class = Qwen2Attention


class Qwen2ForCausalLM(LlamaForCausalLM):
    """完整的 Qwen2 语言模型。

    The whole Qwen2 language model.
    """

    layer_class = Qwen2DecoderLayer
