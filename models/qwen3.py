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
        # 权重只有 `head_dim` 个数（0.6B 是 128），不是 16 * 128 = 2048 个：逐头归一化，不是把所有头合起来归一化。
        # The weight has `head_dim` numbers (128 in the 0.6B), not 16 * 128 = 2048:
        # each head is normalised by itself, not all heads together.
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def norm_weights(self) -> tuple[Tensor, Tensor]:
        """q_norm 与 k_norm 的权重。

        The weights of q_norm and k_norm.
        """
        return self.q_norm.weight, self.k_norm.weight

    def normalize_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """在 head_dim 这一维上归一化，同一层的所有头共用一份权重。

        归一化后每个头的长度约为 sqrt(128) = 11.3（权重为 1 时），q·k / 11.3 的绝对值最多 11.3，不会无限增大。

        Normalise over head_dim; all heads of a layer share the weight.
        Normalised, a head has length sqrt(128) = 11.3 (weights of 1), so q·k / 11.3 is at most 11.3 and cannot grow
        without end.

        Args:
            q: [T, Hq, D]
            k: [T, Hkv, D]
        """
        # 必须在旋转之前：权重逐维不同，先旋转再乘权重，配对的两维会乘上不同的数，旋转就变了形。
        # Before the rotation: weights differ by component; after it they would stretch a pair unequally, and the angle.
        return self.q_norm(q), self.k_norm(k)  # [T, Hq, D], [T, Hkv, D]


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
