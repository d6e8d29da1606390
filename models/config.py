"""读 `config.json`：把两种写法的配置变成一个带类型的 `ModelConfig`，不支持的选项在这里就报错。

不执行模型文件夹里的任何代码，只把它当 JSON 读。

Read `config.json`: both spellings become one typed `ModelConfig`, and what is not supported fails here.

No code from the model folder is run; the file is read as JSON and nothing else.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layers.ranks import ALONE, Ranks
from layers.rotary_embedding import Llama3Scaling, RopeScaling
from models.checkpoint_formats import CheckpointFormat, read_format
from models.fields import ModelLoadError, flag, positive_int, positive_number, read_json
from models.refusals import OPTIONS, ROPE_OPTIONS, unsupported_option
from models.sliding_window import read_window
from models.yarn import YarnScaling, read_yarn

# 白名单，而不是 `getattr(torch, name)`：后者会让文件里的一个字符串取到 torch 里的任何东西，例如 `torch.load`。
# An allow list, not `getattr(torch, name)`: with that,
# a string in the file could name anything in torch, `torch.load` say.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# 文件没写的键，各架构有各自的默认值，与 transformers 的相同；写成 null 的不算没写。
# What a file leaves out has a default of its architecture, as in transformers; null is not left out.
_QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False,
         "sliding_window": 4096, "max_window_layers": 28}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048},
    "MistralForCausalLM": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "Qwen2ForCausalLM": _QWEN, "Qwen3ForCausalLM": {**_QWEN, "head_dim": 128},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """模型的形状与常数。

    The model's shapes and constants.

    Attributes:
        head_dim: 一个注意力头的宽度；size of one attention head
        max_position_embeddings: 在这里支持的最长上下文，单位 token；the longest context supported here, in tokens
        rope_theta, rope_scaling: 见 `layers/rotary_embedding.py`；see `layers/rotary_embedding.py`
        dtype: 文件里权重的 dtype；文件没写则为 None；the dtype of the stored weights; None if the file does not say
        sliding_window: `max_position_embeddings` 受它限制时才有值；set if it is what limits `max_position_embeddings`
    """

    # 注册表的键，决定用哪个类来搭，见 `models/registry.py`；Llama-3.2 写的是 `LlamaForCausalLM`。
    # The registry's key, which picks the class, see `models/registry.py`; Llama-3.2 has `LlamaForCausalLM` here.
    architecture: str
    # 词表：嵌入表的行数，也是每个位置要算的 logits 个数。
    # Llama-3.2 是 128256，即 128000 个普通 token 加 256 个特殊 token。
    # The vocabulary: rows of the embedding, and logits per position.
    # Llama-3.2 has 128256: 128000 ordinary tokens and 256 special ones.
    # 它可以大于分词器的词表（Qwen3 就是如此），多出的行从不使用，因此判断 id 越界要看这里。
    # It may exceed the tokenizer's (as in Qwen3); the extra rows are never used,
    # and an id is checked against this number.
    vocab_size: int
    # 宽：`hidden_size` 是残差流里每个 token 的向量长度，1B 是 2048，
    # 3B 是 3072；MLP 中间升到 `intermediate_size`，都是 8192。
    # Width: `hidden_size` is the length of each token's vector, 2048 in the 1B and 3072 in the 3B;
    # inside the MLP it widens to `intermediate_size`, 8192 in both.
    # 深：`num_hidden_layers` 是层数，1B 有 16 层，3B 有 28 层。权重、计算量和 KV 缓存都随它增长。
    # Depth: `num_hidden_layers` is 16 in the 1B and 28 in the 3B; weights, work and KV cache all grow with it.
    #     3B, per layer:   MLP 3 * 3072 * 8192 = 75,497,472    attention 25,165,824    ratio 3 : 1
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    # 3B 有 24 个 query 头，只有 8 个 KV 头：每个 KV 头供 3 个 query 头共用，KV 缓存因此只有三分之一。
    # The 3B has 24 query heads and only 8 KV heads: each KV head serves 3 query heads,
    # and the KV cache is a third of the size.
    #     3B, KV bytes per token (bf16):   K, V 2 * 28 layers * 8 heads * 128 * 2 bytes = 114,688
    num_attention_heads: int
    num_key_value_heads: int
    # 每个头的向量长度。1B：2048 / 32 = 64；3B：3072 / 24 = 128。
    # The vector length of a head. 1B: 2048 / 32 = 64; 3B: 3072 / 24 = 128.
    # 但不能一律这样除：Qwen3-0.6B 的 `hidden_size` 是 1024，16 个头，`head_dim` 却是 128，q 比 x 宽一倍（2048）。
    # Yet do not always divide: Qwen3-0.6B has a `hidden_size` of 1024,
    # 16 heads and a `head_dim` of 128, so q is 2048 wide.
    head_dim: int
    # 模型支持的最长上下文，Llama-3.2 是 131072；引擎的 `max_model_len` 不能超过它。
    # The longest context of the model, 131072 in Llama-3.2; the engine's `max_model_len` cannot exceed it.
    max_position_embeddings: int
    # Llama-3.2 是 1e-5，Qwen3 是 1e-6：写死其中一个，另一个模型的结果就会差一点点，很难查。
    # 1e-5 in Llama-3.2, 1e-6 in Qwen3: hard-wire either and the other model is off by a little, which is hard to find.
    rms_norm_eps: float
    # 转得最慢的那对分量有多慢：theta 越大，波长越长，能分辨的距离越远。Llama-3.2 是 500000，早期 Llama 是 10000。
    # How slow the slowest pair turns: a larger theta means longer waves, which tell larger distances apart. 500000 in
    # Llama-3.2, 10000 in the early Llamas.
    rope_theta: float
    rope_scaling: RopeScaling | None
    # 为真时，输出头就是词嵌入那张表，文件里没有 `lm_head.weight`。
    # If true, the output head is the embedding's table and the file has no `lm_head.weight`.
    #     3B:   128256 * 3072 * 2 bytes = 788 MB saved
    tie_word_embeddings: bool
    # 线性层有没有偏置。Llama-3.2 和 Qwen3 都没有；Qwen2 的 q、k、v 有，但由它的类决定，文件里不写。
    # Whether linear layers have a bias. Llama-3.2 and Qwen3 have none; Qwen2 has one on q, k and v, but there its class
    # decides and the file says nothing.
    attention_bias: bool
    mlp_bias: bool
    # 文件里权重的精度。实际用什么精度算，由引擎的 `dtype` 选项决定。
    # The precision in the file. What the engine computes in is decided by its own `dtype` option.
    dtype: torch.dtype | None
    # 遇到其中任何一个就停。Llama-3.2 有 3 个：128001 文本结束，128008 等待工具结果，128009 一轮对话结束。
    # Any of them ends the output. Llama-3.2 has 3: 128001 end of text, 128008 waiting for a tool, 128009 end of turn.
    eos_token_ids: tuple[int, ...]
    # 滑动窗口：每个 token 只看最近的这么多个，这里没有实现；长度不超过窗口时，看到的就是全部，结果一样。
    # A sliding window, where each token sees the last so many only, is not implemented; as long as no sequence exceeds
    # it, a token sees everything, and the result is the same.
    sliding_window: int | None = None
    # 文件里的权重已经量化，是这种格式。
    # The weights in the file are quantized, in this format.
    packing: CheckpointFormat | None = None
    # 张量并行时，上面的头数和 MLP 宽度是这个进程的那一份，见 `models/shares.py`。
    # With tensor parallelism the heads and the MLP's width above are the share of this process, see `models/shares.py`.
    ranks: Ranks = ALONE
    # 分开之前的配置，权重文件照它核对；没有分开就是 None。
    # The configuration before it was divided, against which files are checked; None if it was not.
    whole: "ModelConfig | None" = None


def _read_rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """两种写法：旧的 `rope_theta` 加 `rope_scaling`；新的 `rope_parameters`，`rope_theta` 在它里面。

    两个都有时 `rope_scaling` 算数，与 transformers 相同：模型卡片教人“加上它”。

        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0, ...}}
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, ...}}

    Two spellings: the older `rope_theta` plus `rope_scaling`, and the newer `rope_parameters` with `rope_theta` inside.
    Where both are there `rope_scaling` counts, as in transformers: model cards tell people to add it.
    """
    newer, older = (raw.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
    rope = older or newer
    if not (isinstance(newer, dict) and isinstance(older, dict)) or any(isinstance(x, dict) for x in rope.values()):
        raise ModelLoadError(f"config.json: rope_parameters/rope_scaling must be one flat object, got {rope!r:.60}")
    rope = {key: value for key, value in rope.items() if value is not None}
    if reason := unsupported_option(rope, ROPE_OPTIONS):
        raise ModelLoadError(f"config.json: rope_parameters/rope_scaling: {reason}")
    # 新写法只在里层有 theta。只看外层会得到默认的 10000：不报错，几乎每对分量的转速却都错了，输出悄悄变差。
    # The newer spelling has theta inside only. Looking outside gives the default 10000: no error, but nearly every pair
    # turns at a wrong speed and the output is quietly worse.
    place = rope if "rope_theta" in rope else raw
    theta = positive_number(place, "rope_theta", 10000.0)
    # 被盖住的 `rope_parameters` 里才有 theta：transformers 用 10000，写文件的人却多半不是这个意思，所以问清楚。
    # Only the hidden `rope_parameters` has a theta: transformers take 10000, which hardly anybody means, so ask.
    if "rope_theta" not in place and (newer.get("rope_theta") or theta) != theta:
        raise ModelLoadError("config.json: rope_scaling hides rope_parameters: copy its rope_theta into rope_scaling")
    return theta, _read_scaling(raw, rope, theta)


def _read_scaling(raw: dict[str, Any], rope: dict[str, Any], theta: float) -> RopeScaling | None:
    """缩放的规则；更早的文件把 `rope_type` 叫作 `type`。

    The rule of scaling; still older files call `rope_type` just `type`.
    """
    # 写了 `factor` 却没写是哪种规则，就不能当作 `default`：它会被悄悄忽略。
    # A `factor` without a rule is not taken for `default`, which would quietly ignore it.
    rope_type = rope.get("rope_type", rope.get("type", None if "factor" in rope else "default"))
    # `dynamic` 在 `factor` 为 1 时什么也不改。
    # With a `factor` of 1 `dynamic` changes nothing.
    if rope_type == "default" or (rope_type == "dynamic" and rope.get("factor") == 1.0):
        return None
    # dynamic、longrope 等其他规则会改变频率；当作没看见的话，短提示词看不出毛病，长提示词才出错。
    # Other rules, such as dynamic or longrope, change the frequencies; ignored, only long prompts would show it.
    if rope_type not in ("linear", "llama3", "yarn"):
        raise ModelLoadError(f"config.json: rope type {rope_type!r:.60} is none of default, linear, llama3 and yarn")
    if "factor" not in rope:
        raise ModelLoadError(f"config.json: rope type {rope_type!r} needs a factor: see the model's card")
    factor = positive_number(rope, "factor")
    if rope_type == "linear":
        return RopeScaling(factor)
    # 写在外层的原训练长度优先；YaRN 可以不写，那就是 `max_position_embeddings`：都与 transformers 相同。
    # The original length outside goes first; YaRN may leave it out and means `max_position_embeddings`, both as in
    # transformers.
    key = "original_max_position_embeddings"
    default = raw.get("max_position_embeddings") if rope_type == "yarn" else None
    original = positive_int(raw if key in raw else rope, key, default)
    if rope_type == "llama3":
        low, high = positive_number(rope, "low_freq_factor"), positive_number(rope, "high_freq_factor")
        # 频率的公式要除以两者之差：相等就是除以 0。
        # The formula divides by their difference: if they are equal, it divides by 0.
        if low >= high:
            raise ModelLoadError("config.json: low_freq_factor must be smaller than high_freq_factor")
        return Llama3Scaling(factor, low, high, original)
    return read_yarn(rope, factor, original, theta)


def parse_token_ids(value: Any, where: str) -> tuple[int, ...]:
    """`eos_token_id` 可以没有、是一个整数、或是一列整数。

    `eos_token_id` may be absent, one integer, or a list of them.
    """
    # 三种写法统一成列表：Llama-3.2 是 [128001, 128008, 128009]，Qwen3 是单个 151645。
    # All forms become a list: Llama-3.2 has [128001, 128008, 128009], Qwen3 the single 151645.
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ModelLoadError(f"{where}: eos_token_id must be an integer or a list of integers, got {value!r}")
    return tuple(ids)


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """把 `config.json` 的内容变成 `ModelConfig`，每个字段都检查过。

    Turn the content of `config.json` into a `ModelConfig`, every field checked.

    Raises:
        ModelLoadError: 缺字段、类型不对，或要求了不支持的东西；a field missing, of the wrong kind or unsupported
    """
    # 写成 null 和没写同样处理：有的 `config.json` 里就有 `"head_dim": null`、`"rope_scaling": null`。
    # null counts as absent: some `config.json` files do contain `"head_dim": null` and `"rope_scaling": null`.
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise ModelLoadError(f"config.json: architectures must name the model class, got {architectures!r:.60}")
    raw = {key: value for key, value in {**_DEFAULTS.get(architectures[0], {}), **raw}.items() if value is not None}
    # 先拒绝不支持的选项，再读形状：报错时说的是真正的原因。
    # Refuse unsupported options before reading shapes, so that the error names the real cause.
    if reason := unsupported_option(raw, OPTIONS):
        raise ModelLoadError(f"config.json: {reason}")
    theta, scaling = _read_rope(raw)
    hidden_size = positive_int(raw, "hidden_size")
    num_heads = positive_int(raw, "num_attention_heads")
    # 没写 KV 头数就是普通的多头注意力：每个 query 头都有自己的 KV 头。
    # Without a number of KV heads it is plain multi-head attention: each query head has its own KV head.
    num_kv_heads = positive_int(raw, "num_key_value_heads", num_heads)
    head_dim = positive_int(raw, "head_dim", hidden_size // num_heads)
    # 24 个 query 头除以 8 个 KV 头，每组 3 个；若是 24 除以 7，最后一组就凑不齐。
    # 24 query heads over 8 KV heads makes groups of 3; 24 over 7 would leave the last group short.
    if num_heads % num_kv_heads:
        raise ModelLoadError(f"config.json: {num_heads} query heads do not divide among {num_kv_heads} KV heads")
    # RoPE 把分量 i 与 i + D/2 配成一对，奇数配不成对。
    # RoPE pairs component i with i + D/2, which an odd D does not allow.
    if head_dim % 2:
        raise ModelLoadError(f"config.json: head_dim={head_dim} must be even for rotary embedding")
    # `dtype` 是新写法，`torch_dtype` 是旧写法；先查类型：值若是列表，不能做字典的键，`in` 会抛出 `TypeError`。
    # `dtype` is the newer spelling, `torch_dtype` the older. The type first: a list cannot be a key, and `in` would
    # raise `TypeError`.
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        raise ModelLoadError(f"config.json: dtype {dtype!r:.60} is not supported: use {', '.join(DTYPES)}")
    # YaRN 能到原训练长度的 `factor` 倍，其他规则就到文件写的长度；窗口更短，就只到窗口。
    # YaRN reaches `factor` times the original length, all other rules the length in the file; a shorter window is the
    # limit.
    length, num_layers = positive_int(raw, "max_position_embeddings"), positive_int(raw, "num_hidden_layers")
    if isinstance(scaling, YarnScaling):
        length = int(scaling.original_max_position_embeddings * scaling.factor)
    window = read_window(raw, num_layers, length)
    return ModelConfig(
        architecture=architectures[0], vocab_size=positive_int(raw, "vocab_size"), hidden_size=hidden_size,
        intermediate_size=positive_int(raw, "intermediate_size"), num_hidden_layers=num_layers, head_dim=head_dim,
        num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, max_position_embeddings=window or length,
        rms_norm_eps=positive_number(raw, "rms_norm_eps", 1e-6), rope_theta=theta, rope_scaling=scaling,
        sliding_window=window, tie_word_embeddings=flag(raw, "tie_word_embeddings"), mlp_bias=flag(raw, "mlp_bias"),
        attention_bias=flag(raw, "attention_bias"), dtype=None if dtype is None else DTYPES[dtype],
        # `generation_config.json` 里可能还有别的结束符，由引擎合并；这里只读 `config.json` 的。
        # `generation_config.json` may list more of them, which the engine adds;
        # only those of `config.json` are read here.
        eos_token_ids=parse_token_ids(raw.get("eos_token_id"), "config.json"), packing=read_format(raw),
    )


def load_config(folder: Path) -> ModelConfig:
    """读模型文件夹里的 `config.json`。

    Read the model folder's `config.json`.

    Raises:
        ModelLoadError: 缺文件夹或文件，或文件有误；the folder or the file is missing, or the file is wrong
    """
    # 先查文件夹：路径打错是最常见的错误，值得一句专门的说明。
    # The folder first: a mistyped path is the most common mistake and earns a message of its own.
    if not folder.is_dir():
        raise ModelLoadError(f"model folder {folder} does not exist: check --model, or download the model first")
    return parse_config(read_json(folder / "config.json"))
