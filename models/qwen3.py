"""Qwen3：与 Llama 只差一处，q、k 在旋转之前各做一次逐头的 RMSNorm，使注意力的分数不会过大。

Qwen3: one difference from Llama, an RMSNorm of each head of q and k before the rotation, which keeps attention scores
from growing too large.
"""

from torch import Tensor

from backends.base import AttentionBackend
from layers.layernorm import RMSNorm
from models.config import ModelConfig
from models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM


class Qwen3Attention(LlamaAttention):
    """带 q_norm、k_norm 的自注意力。

    Self-attention with q_norm and k_norm.
    """

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__(config, backend)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def normalize_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """在 head_dim 这一维上归一化，同一层的所有头共用一份权重。

        Normalise over head_dim; all heads of a layer share the weight.

        Args:
            q: [T, Hq, D]
            k: [T, Hkv, D]
        """
        return self.q_norm(q), self.k_norm(k)


class Qwen3DecoderLayer(LlamaDecoderLayer):
    """换上 Qwen3 注意力的一层。

    A layer with Qwen3's attention.
    """

    attention_class = Qwen3Attention


class Qwen3ForCausalLM(LlamaForCausalLM):
    """完整的 Qwen3 语言模型。

    The whole Qwen3 language model.
    """

    layer_class = Qwen3DecoderLayer
