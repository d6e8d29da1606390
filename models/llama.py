"""Llama 3.x：从 token id 到隐藏向量，再到 logits。每一行右边标着张量形状。

一层（decoder layer）做两件事，都是“归一化 -> 变换 -> 加回去”：注意力让 token 之间交换信息，MLP 让每个 token 自己思考。
调用者是 `engine/model_runner.py`；模块的名字与 Hugging Face 的权重名一一对应，所以加载器不需要改名表。

Llama 3.x: from token ids to hidden vectors to logits, with the tensor's shape at the end of each line.

A decoder layer does two things, each "normalise -> transform -> add back": attention lets tokens exchange information,
the MLP lets each token think by itself. `engine/model_runner.py` is the caller; modules are named as in Hugging Face's
weight files, so the loader needs no table of names.
"""

import torch
from torch import Tensor, nn

from backends.base import AttentionBackend, AttentionMetadata
from layers.activation import silu_and_mul
from layers.attention import Attention
from layers.embedding import Embedding, LMHead
from layers.layernorm import RMSNorm
from layers.linear import FusedLinear, Linear
from layers.rotary_embedding import RotaryEmbedding, apply_rotary
from models.config import ModelConfig


class LlamaAttention(nn.Module):
    """自注意力：投影出 q、k、v，旋转，注意力，再投影回去。

    Self-attention: project to q, k, v, rotate, attend, project back.
    """

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_size = config.num_attention_heads * config.head_dim
        self.kv_size = config.num_key_value_heads * config.head_dim
        self.qkv_proj = FusedLinear(
            config.hidden_size,
            {"q_proj": self.q_size, "k_proj": self.kv_size, "v_proj": self.kv_size},
            bias=config.attention_bias,
        )
        self.o_proj = Linear(self.q_size, config.hidden_size, bias=config.attention_bias)
        self.attn = Attention(backend, config.head_dim)

    def normalize_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Llama 不对 q、k 做归一化；Qwen3 覆盖这个方法。

        Llama does not normalise q and k; Qwen3 overrides this.
        """
        return q, k

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, metadata: AttentionMetadata) -> Tensor:
        """一层自注意力。

        One layer of self-attention.

        Args:
            x: [T, hidden]
            cos, sin: [T, D // 2] float32

        Returns:
            [T, hidden]
        """
        qkv = self.qkv_proj(x)  # [T, (Hq + 2 * Hkv) * D]
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        # 把最后一维拆成“头 × 每头的维度”，各头从此互不相干。
        # Split the last dimension into heads × head_dim; from here on the heads do not mix.
        q = q.unflatten(-1, (-1, self.head_dim))  # [T, Hq, D]
        k = k.unflatten(-1, (-1, self.head_dim))  # [T, Hkv, D]
        v = v.unflatten(-1, (-1, self.head_dim))  # [T, Hkv, D]
        q, k = self.normalize_heads(q, k)
        # 位置信息只加在 q、k 上，v 不转：位置决定“看谁”，不改变“看到的内容”。
        # Only q and k carry position, v does not: position decides whom to look at, not what is seen there.
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        return self.o_proj(self.attn(q, k, v, metadata).flatten(1))  # [T, hidden]


class LlamaMLP(nn.Module):
    """前馈网络：升维，门控，降维。

    The feed-forward network: widen, gate, narrow.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
        self.gate_up_proj = FusedLinear(config.hidden_size, sizes, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """逐 token 计算，token 之间互不影响。

        Token by token; tokens do not touch each other.

        Args:
            x: [T, hidden]

        Returns:
            [T, hidden]
        """
        return self.down_proj(silu_and_mul(self.gate_up_proj(x)))


class LlamaDecoderLayer(nn.Module):
    """一层：注意力加 MLP，各带一条残差。

    One layer: attention and MLP, each with a residual connection.
    """

    attention_class: type[LlamaAttention] = LlamaAttention

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = self.attention_class(config, backend)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, metadata: AttentionMetadata) -> Tensor:
        """残差流 x 一路直通，每个子层只往上“加”一点修正。

        The residual stream x runs straight through; each sub-layer only adds a correction to it.

        Args:
            x: [T, hidden]

        Returns:
            [T, hidden]
        """
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, metadata)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    """词嵌入，若干层，最后一次归一化。

    The embedding, the layers, and a last normalisation.
    """

    def __init__(
        self, config: ModelConfig, backend: AttentionBackend, layer_class: type[LlamaDecoderLayer]
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta, config.rope_scaling)
        self.layers = nn.ModuleList(layer_class(config, backend) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        """全批的 token 平铺成一维，序列的边界只有 `metadata` 知道。

        All tokens of the batch lie flat in one dimension; only `metadata` knows where sequences begin and end.

        Args:
            input_ids, positions: [T] int64

        Returns:
            [T, hidden]
        """
        x = self.embed_tokens(input_ids)  # [T, hidden]
        cos, sin = self.rotary(positions)  # [T, D // 2]
        for layer in self.layers:
            x = layer(x, cos, sin, metadata)
        return self.norm(x)


class LlamaForCausalLM(nn.Module):
    """完整的语言模型：主干加输出头。

    The whole language model: the trunk and the output head.
    """

    layer_class: type[LlamaDecoderLayer] = LlamaDecoderLayer

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config, backend, self.layer_class)
        self.lm_head = LMHead(self.model.embed_tokens, config.tie_word_embeddings)

    def forward(self, input_ids: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        """主干：每个 token 一个隐藏向量。

        The trunk: a hidden vector for each token.

        Args:
            input_ids, positions: [T] int64

        Returns:
            [T, hidden]
        """
        return self.model(input_ids, positions, metadata)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """输出头：只对要采样的那几行算，词表很大，每少算一行都值得。

        The output head, for the rows that sample only: with a large vocabulary every row saved counts.

        Args:
            hidden: [S, hidden]

        Returns:
            [S, vocab_size] float32
        """
        return self.lm_head(hidden).float()

    def attention_layers(self) -> list[Attention]:
        """各层的注意力，从浅到深；KV 缓存按这个顺序绑定。

        The attention of each layer, first to last; KV caches are bound in this order.
        """
        return [module for module in self.modules() if isinstance(module, Attention)]


def randomize_weights(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """填入随机权重，用于测速：速度与权重的值无关。

    Fill in random weights, for measuring speed, which does not depend on their values.
    """
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=std, generator=generator)
