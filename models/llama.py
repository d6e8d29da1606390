"""Llama 3.x：从 token id 到隐藏向量，再到 logits。每一行右边标着张量形状。

一层（decoder layer）做两件事，都是“归一化 -> 变换 -> 加回去”：注意力让 token 之间交换信息，MLP 让每个 token 自己思考。
调用者是 `engine/model_runner.py`；模块的名字与 Hugging Face 的权重名一一对应，所以加载器不需要改名表。

Llama 3.x: from token ids to hidden vectors to logits, with the tensor's shape at the end of each line.

A decoder layer does two things, each "normalise -> transform -> add back": attention lets tokens exchange information,
the MLP lets each token think by itself. `engine/model_runner.py` is the caller; modules are named as in Hugging Face's
weight files, so the loader needs no table of names.
"""

from torch import Tensor, nn

from backends.base import AttentionBackend, AttentionMetadata
from backends.kernels import FusedKernels
from layers.activation import silu_and_mul
from layers.attention import Attention
from layers.embedding import Embedding, LMHead
from layers.layernorm import RMSNorm
from layers.linear import Linear, StackedLinear
from layers.ranks import SummedLinear
from layers.rotary_embedding import RotaryEmbedding, apply_rotary
from models.config import ModelConfig


class LlamaAttention(nn.Module):
    """自注意力：投影出 q、k、v，旋转，注意力，再投影回去。

    Self-attention: project to q, k, v, rotate, attend, project back.
    """

    kernels: FusedKernels | None = None

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__()
        # Llama-3.2-1B：q 有 32 * 64 = 2048 维，k、v 各有 8 * 64 = 512 维，`qkv_proj` 的权重是 3072 行、2048 列。
        # Llama-3.2-1B: q has 32 * 64 = 2048 components, k and v 8 * 64 = 512 each;
        # `qkv_proj` has 3072 rows and 2048 columns.
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.q_size = config.num_attention_heads * config.head_dim
        self.kv_size = config.num_key_value_heads * config.head_dim
        # 三个投影的输入都是 x，所以合成一次乘法；键是权重文件里的名字，次序与下面的 `split` 相同。
        # All three projections read x, so they are one product;
        # the keys are the file's names, in the order of `split` below.
        sizes = {"q_proj": self.q_size, "k_proj": self.kv_size, "v_proj": self.kv_size}
        self.qkv_proj = StackedLinear(config.hidden_size, sizes, bias=config.attention_bias)
        # 各头的结果拼在一起后，由 `o_proj` 混合；在它之前，头与头之间没有任何往来。
        # `o_proj` mixes the heads once their results are joined; before it, nothing passes from head to head.
        self.o_proj = SummedLinear(self.q_size, config.hidden_size, config.attention_bias, config.ranks)
        self.attn = Attention(backend, config.head_dim)

    def normalize_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Llama 不对 q、k 做归一化；Qwen3 覆盖这个方法。

        Llama does not normalise q and k; Qwen3 overrides this.
        """
        # 留这个空方法，是为了让 Qwen3 只写不同的那一步，不必抄一遍 `forward`。
        # This empty step is there so that Qwen3 writes only what differs and need not copy `forward`.
        return q, k  # [T, Hq, D], [T, Hkv, D]

    def norm_weights(self) -> tuple[Tensor, Tensor] | None:
        """q、k 归一化的权重，交给融合核函数；Llama 没有。

        The weights that normalise q and k, for the fused kernel; Llama has none.
        """
        return None

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
        # 有核函数时，一个就做完下面“拆分、归一化、旋转、写缓存”四件事；下面是与它等价的逐步写法，断点请设在那里。
        # Where there are kernels, one does the steps below (split, normalise, rotate, store); the written-out steps are
        # its twin, and the place for a breakpoint.
        if self.kernels is not None:
            q = self.kernels.qk_norm_rope_store(
                qkv, cos, sin, self.norm_weights(), self.eps, self.attn.cache(), metadata.slot_mapping
            )  # [T, Hq, D]
            return self.o_proj(self.attn.attend(q, metadata).flatten(1))  # [T, hidden]
        # 三者是同一块内存的三个窗口，没有拷贝：相邻两行相距 3072 个元素（1B），所以 v 不连续，核函数要看步长。
        # All three are windows into one memory, nothing is copied: rows are 3072 elements apart (1B),
        # so v is not contiguous and kernels must use its strides.
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)  # [T, Hq*D], [T, Hkv*D], [T, Hkv*D]
        # 把最后一维拆成“头 × 每头的维度”，各头从此互不相干。
        # Split the last dimension into heads × head_dim; from here on the heads do not mix.
        # 例：D = 64，一行 2048 个数里下标 130 的那个，是头 2（130 // 64）的分量 2（130 % 64）。
        # Example: with D = 64, number 130 of a row of 2048 is head 2 (130 // 64), component 2 (130 % 64).
        q = q.unflatten(-1, (-1, self.head_dim))  # [T, Hq, D]
        k = k.unflatten(-1, (-1, self.head_dim))  # [T, Hkv, D]
        v = v.unflatten(-1, (-1, self.head_dim))  # [T, Hkv, D]
        q, k = self.normalize_heads(q, k)  # [T, Hq, D], [T, Hkv, D]
        # 位置信息只加在 q、k 上，v 不转：位置决定“看谁”，不改变“看到的内容”。
        # Only q and k carry position, v does not: position decides whom to look at, not what is seen there.
        # k 先旋转再存入缓存，所以缓存里的 k 自带位置，以后每一步都不必再转。
        # k is rotated before it is stored, so a cached k carries its position and no later step turns it again.
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)  # [T, Hq, D], [T, Hkv, D]
        # 断点停在这里，看 `q.shape` 和 `k.shape`：头数不同，是分组查询注意力；
        # 历史的 K、V 不在参数里，在 `self.attn.kv_cache` 里。
        # Stop here and look at `q.shape` and `k.shape`: the heads differ, by grouped-query attention;
        # the history's K and V are no arguments but in `self.attn.kv_cache`.
        return self.o_proj(self.attn(q, k, v, metadata).flatten(1))  # [T, hidden]


class LlamaMLP(nn.Module):
    """前馈网络：升维，门控，降维。

    The feed-forward network: widen, gate, narrow.
    """

    kernels: FusedKernels | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # 先 gate 后 up，`silu_and_mul` 按这个次序对半切。
        # Gate before value: `silu_and_mul` cuts in this order.
        sizes = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
        self.gate_up_proj = StackedLinear(config.hidden_size, sizes, bias=config.mlp_bias)
        self.down_proj = SummedLinear(config.intermediate_size, config.hidden_size, config.mlp_bias, config.ranks)

    def forward(self, x: Tensor) -> Tensor:
        """逐 token 计算，token 之间互不影响。

        Token by token; tokens do not touch each other.

        Args:
            x: [T, hidden]

        Returns:
            [T, hidden]
        """
        # 1B 的宽度变化：2048 -> 16384（gate 与 up 各 8192）-> 8192 -> 2048。
        # Widths in the 1B: 2048 -> 16384 (gate and up, 8192 each) -> 8192 -> 2048.
        gate_up = self.gate_up_proj
        # 融合步骤算的东西完全一样，只是 2 * intermediate 那么宽的中间结果不必写出来再读回去。
        # A fused step computes the same, but what lies between, 2 * intermediate wide, is not written and read back.
        if self.kernels is not None:
            gated = self.kernels.gated_linear(x, gate_up.weight, gate_up.bias, gate_up.packed)  # [T, intermediate]
        else:
            gated = silu_and_mul(gate_up(x))  # [T, intermediate]
        return self.down_proj(gated)  # [T, hidden]


class LlamaDecoderLayer(nn.Module):
    """一层：注意力加 MLP，各带一条残差。

    One layer: attention and MLP, each with a residual connection.
    """

    # 子类换掉这个类属性就换了注意力，`__init__` 不必重写；同样的手法见 `LlamaForCausalLM.layer_class`。
    # A subclass swaps the attention by this class attribute,
    # with no `__init__` of its own; see `LlamaForCausalLM.layer_class`.
    attention_class: type[LlamaAttention] = LlamaAttention

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__()
        # 属性名就是权重文件里的名字，例如 `model.layers.0.input_layernorm.weight`；改名会让加载失败。
        # Attribute names are names in the weight file,
        # such as `model.layers.0.input_layernorm.weight`; renamed, loading fails.
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = self.attention_class(config, backend)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self, x: Tensor, delta: Tensor | None, cos: Tensor, sin: Tensor, metadata: AttentionMetadata
    ) -> tuple[Tensor, Tensor]:
        """残差流 x 一路直通，每个子层只往上“加”一点修正 delta。

        数学上就是 x = x + attention(norm(x))，再 x = x + mlp(norm(x))；只是把“加”推迟到下一次归一化的时候一起做，
        这两步才能融合成一个核函数。

        The residual stream x runs straight through; each sub-layer only adds a correction delta to it.
        In mathematics: x = x + attention(norm(x)), then x = x + mlp(norm(x)); but each sum waits for the norm that
        follows, so that the two can be one kernel.

        Args:
            x: [T, hidden]
            delta: [T, hidden]，上一层要加到 x 上的；第一层是 None；what the layer before adds to x; None in the first

        Returns:
            [T, hidden], [T, hidden]，x，和这一层自己的 delta；x, and this layer's own delta
        """
        # 归一化的结果只喂给子层，x 本身从不归一化。写成 `x = norm(x)` 再相加，残差就断了，是移植时常见的错误。
        # The normalised value feeds the sub-layer only; x itself is never normalised.
        # With `x = norm(x)` before the sum the residual is lost, a common porting bug.
        normed, x = self.input_layernorm.add_and_norm(x, delta)  # [T, hidden], [T, hidden]
        delta = self.self_attn(normed, cos, sin, metadata)  # [T, hidden]
        normed, x = self.post_attention_layernorm.add_and_norm(x, delta)  # [T, hidden], [T, hidden]
        return x, self.mlp(normed)  # [T, hidden], [T, hidden]


class LlamaModel(nn.Module):
    """词嵌入，若干层，最后一次归一化。

    The embedding, the layers, and a last normalisation.
    """

    def __init__(self, config: ModelConfig, backend: AttentionBackend, layer_class: type[LlamaDecoderLayer]) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, config.ranks)
        # 整个模型只有 1 份：角度只取决于位置，每层都一样。
        # There is 1 for the whole model: angles depend on positions alone and are the same in each layer.
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta, config.rope_scaling)
        # `ModuleList` 给各层编号，权重名里的 `layers.0`、`layers.1` 由此而来；普通列表里的层，加载器看不见。
        # `ModuleList` numbers the layers, hence `layers.0`,
        # `layers.1` in weight names; the loader cannot see into a plain list.
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
        # 例：A 解码第 9 个位置，B 是 3 个 token 的新提示词，
        # `input_ids` 是 [A9, B0, B1, B2]，`positions` 是 [9, 0, 1, 2]，T = 4。
        # Example: A decodes position 9, B is a new prompt of 3 tokens:
        # `input_ids` is [A9, B0, B1, B2], `positions` [9, 0, 1, 2], T = 4.
        # 没有填充，也没有 batch 这一维：除了注意力，每一步都是逐行计算，不在乎一行属于哪条序列。
        # No padding and no batch dimension: apart from attention all work is row by row, whosever the row is.
        x = self.embed_tokens(input_ids)  # [T, hidden]
        cos, sin = self.rotary(positions)  # [T, D // 2]
        delta = None
        for layer in self.layers:
            # 想看某一层改了什么，比较前后的 `x[0] + delta[0]`：这一层最后的改动还在 `delta` 里，没有加进 `x`。
            # To see what a layer changes, compare `x[0] + delta[0]`: its last change is in `delta`, not yet in `x`.
            x, delta = layer(x, delta, cos, sin, metadata)  # [T, hidden], [T, hidden]
        # 残差流一路累加，到最后可能很大；输出头之前再归一化一次，漏掉它 logits 就全错。
        # The residual stream has grown with each addition: without this last normalisation all logits are wrong.
        return self.norm.add_and_norm(x, delta)[0]  # [T, hidden]


class LlamaForCausalLM(nn.Module):
    """完整的语言模型：主干加输出头。

    The whole language model: the trunk and the output head.
    """

    layer_class: type[LlamaDecoderLayer] = LlamaDecoderLayer

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__()
        self.config = config
        # 属性名 `model` 和 `lm_head` 正是权重名的前缀：`model.norm.weight`、`lm_head.weight`。
        # The names `model` and `lm_head` are the prefixes in the file: `model.norm.weight`, `lm_head.weight`.
        self.model = LlamaModel(config, backend, self.layer_class)
        self.lm_head = LMHead(self.model.embed_tokens, config.tie_word_embeddings)

    def use_kernels(self, kernels: FusedKernels) -> None:
        """权重填好之后，把核函数交给每个有融合实现的模块。

        Once the weights are filled, hand the kernels to every module that has a fast twin.
        """
        # 这些模块散布在各处，建好之后统一交给它们，就不必让每个构造函数都多带一个参数。
        # They are everywhere; all get the kernels once they are built, instead of through every constructor.
        for module in self.modules():
            if isinstance(module, Linear | RMSNorm | RotaryEmbedding | LlamaAttention | LlamaMLP):
                module.kernels = kernels
            if isinstance(module, Linear):
                module.packed = kernels.pack(module.weight)

    def forward(self, input_ids: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        """主干：每个 token 一个隐藏向量。

        The trunk: a hidden vector for each token.

        Args:
            input_ids, positions: [T] int64

        Returns:
            [T, hidden]
        """
        return self.model(input_ids, positions, metadata)  # [T, hidden]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """输出头：只对要采样的那几行算，词表很大，每少算一行都值得。

        1000 个 token 的提示词只有最后一行要采样：float32 的 logits 从 1000 * 128256 * 4 字节（513 MB）降到 0.5 MB。
        张量并行时，各进程只算了词表的一段：拼起来，大家都得到全部。

        The output head, for the rows that sample only: with a large vocabulary every row saved counts.
        A prompt of 1000 tokens samples from its last row only: float32 logits shrink from 1000 * 128256 * 4 bytes
        (513 MB) to 0.5 MB.
        With tensor parallelism each rank has computed a range of the vocabulary: joined, all get the whole.

        Args:
            hidden: [S, hidden]

        Returns:
            [S, vocab_size]，模型自己的 dtype，采样器再转成 float32；the model's dtype; the sampler goes on in float32
        """
        # 不在这里转 float32：采样核函数读一遍 bf16、在寄存器里转，比先写出一份 float32 少搬 3 倍的字节。
        # No cast to float32: the sampling kernel reads bf16 and casts in registers; a copy moves 3 times the bytes.
        return self.config.ranks.join(self.lm_head(hidden), self.config.vocab_size)  # [S, vocab_size]

    def attention_layers(self) -> list[Attention]:
        """各层的注意力，从浅到深；KV 缓存按这个顺序绑定。

        The attention of each layer, first to last; KV caches are bound in this order.
        """
        # `modules` 按登记次序深度优先地走，所以第 0 个就是 `model.layers.0` 的注意力，与块池的第 0 层对应。
        # `modules` goes depth first, as registered: entry 0 is the attention of `model.layers.0`, for pool layer 0.
        return [module for module in self.modules() if isinstance(module, Attention)]
