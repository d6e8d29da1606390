"""两个内置模型共用的训练：分词器，装箱，用 `transformers` 的 `LlamaForCausalLM` 建的模型，训练循环，存盘。

`train_tiny_llama.py` 和 `train_tiny_poet.py` 只说各自学什么。文档首尾相接地装进等长的行，注意力可以跨过边界：
模型既见过位置 0 的开头，也见过行尾的开头，所以一行多长，它就认得多长的上下文。

What the training of both embedded models shares: tokenizer, packing, a model built with `transformers`'
`LlamaForCausalLM`, the training loop, storing.

`train_tiny_llama.py` and `train_tiny_poet.py` only say what each of them learns. Documents are packed end to end into
rows of one length, and attention may cross their borders: the model has seen beginnings at position 0 and at the
end of a row, so it knows a context as long as a row.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

# 与 Llama 3.2 相同的次序，接在普通词元之后。
# The order of Llama 3.2, placed after the ordinary tokens.
SPECIAL_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 8)),
]
CONTEXT = 2048
# 一篇文档：词元和每个词元的损失权重。
# One document: its token ids and the loss weight of each.
Example = tuple[list[int], list[int]]
Loss = Callable[[Tensor, Tensor], Tensor]


# ---- 分词器 ----
# ---- the tokenizer ----


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """在 `texts` 上训练字节级 BPE；每个汉字、每个数字先单独切开，再合并字节。

    Trains a byte-level BPE on `texts`; every Han character and every digit is split off before bytes are merged.
    """
    tokenizer = Tokenizer(models.BPE())
    # 模板生成的文本很规整，不先切开的话，BPE 会把整句并成一个词元。标点带走后面的空格，`", "` 就是一个词元。
    # Templated text is so regular that BPE would merge whole sentences; punctuation takes a following space, as in
    # `", "`, which is one token.
    words = r" ?\p{L}+|\s*[\r\n]+| ?[^\s\p{L}\p{N}]+(?: (?!\p{L}))?|\s+(?!\S)|\s+"
    split = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (r"\p{Han}", r"\p{N}", words)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    bos = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, eos_token: str, **extra: str) -> None:
    """写 `tokenizer.json` 和 `tokenizer_config.json`；`extra` 是后者的其他键，例如 `chat_template`。

    Writes `tokenizer.json` and `tokenizer_config.json`; `extra` holds further keys of the latter, such as
    `chat_template`.
    """
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config: dict[str, Any] = {
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                            "single_word": False, "special": True}
            for t in SPECIAL_TOKENS
        },
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": eos_token,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT,
        "pad_token": "<|finetune_right_pad_id|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", dict(sorted((config | extra).items())))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """以缩进的 UTF-8 写 JSON。

    Writes indented JSON in UTF-8.
    """
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """一个特殊词元的编号；没有它就报错。

    The id of a special token; an error if there is none.
    """
    if (index := tokenizer.token_to_id(token)) is None:
        raise ValueError(f"the tokenizer has no token {token!r}; train a new one")
    return index


# ---- 装箱 ----
# ---- packing ----


def pack(examples: Iterable[Example], row: int) -> tuple[np.ndarray, np.ndarray]:
    """把文档首尾相接地装进等长的行。

    每行装满 `row` + 1 个词元为止：输入是前 `row` 个，目标是后 `row` 个。超过半行的文档等到一行的开头再装，
    这样它到得了行尾：上下文的末尾就是这样学会的。

    Packs documents end to end into rows of one length.

    A row is cut at `row` + 1 tokens: the first `row` are input, the last `row` targets. A document longer than half a
    row waits for the beginning of one, so that it reaches the end: this is how the end of the context is learned.
    """
    rows: list[list[int]] = []
    row_weights: list[list[int]] = []
    ids: list[int] = []
    weights: list[int] = []
    stream, waiting = iter(examples), deque[Example]()
    while True:
        example = next(stream, None) if ids or not waiting else waiting.popleft()
        if example and ids and len(example[0]) > row // 2:
            waiting.append(example)
            continue
        # 语料取完了，还在等的就直接接上。
        # With the corpus at its end, what still waits is simply joined on.
        example = example or (waiting.popleft() if waiting else None)
        if example is None:
            break
        ids += example[0]
        weights += example[1]
        if len(ids) > row:
            rows.append(ids[: row + 1])
            row_weights.append(weights[: row + 1])
            ids, weights = [], []
    if not rows:
        raise ValueError(f"the documents do not fill a row of {row} tokens; take more of them or a shorter --row")
    return np.array(rows, np.int16), np.array(row_weights, np.uint8)


def make_pool(
    pack_chunk: Callable[[Any], tuple[np.ndarray, np.ndarray]], jobs: Sequence[Any], workers: int
) -> tuple[Tensor, Tensor]:
    """用 `workers` 个进程对每个 `jobs` 运行 `pack_chunk`，接成整个训练池：词元与权重，各 `[N, row + 1]`。

    Runs `pack_chunk` on all `jobs` in `workers` processes and joins the whole training pool: token ids and weights,
    each `[N, row + 1]`.
    """
    if workers > 1:
        # 子进程用 spawn：分词器的线程池经不起 fork，会死锁。
        # The children are spawned: the tokenizer's thread pool does not survive a fork and would deadlock.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            parts = pool.map(pack_chunk, jobs, chunksize=1)
    else:
        parts = [pack_chunk(job) for job in jobs]
    ids, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    return torch.from_numpy(ids), torch.from_numpy(weights)


# ---- 模型 ----
# ---- the model ----


def model_config(
    tokenizer: Tokenizer, hidden: int, intermediate: int, heads: int, layers: int, rope_factor: float = 2.0
) -> dict[str, Any]:
    """`config.json` 的内容，键名与 Llama-3.2 相同；每头 32 维，2 个键值头；`rope_factor` 是 llama3 缩放的除数。

    The content of `config.json`, with the keys of Llama-3.2; 32 dimensions a head, 2 key and value heads;
    `rope_factor` is the factor of llama3 scaling.
    """
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": token_id(tokenizer, "<|begin_of_text|>"),
        "eos_token_id": [token_id(tokenizer, t) for t in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")],
        "head_dim": 32, "hidden_act": "silu", "hidden_size": hidden, "initializer_range": 0.02,
        "intermediate_size": intermediate, "max_position_embeddings": CONTEXT, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": 2, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": rope_factor, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 1024, "rope_type": "llama3"},
        "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """训练时的注意力：整行、无填充、无缓存，所以只需要 `is_causal`。

    `transformers` 自带的 `sdpa` 在 `torch.compile` 之下会造出整张掩码，慢得多。

    Attention in training: whole rows, no padding, no cache, so `is_causal` is all it takes.

    The `sdpa` that comes with `transformers` builds a whole mask under `torch.compile`, which is much slower.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("causal", causal_attention)


def build_model(config: dict[str, Any]) -> LlamaForCausalLM:
    """按 `config` 建一个初始化好的 float32 模型；接残差的投影初值更小。

    Builds an initialised float32 model by `config`; projections into the residual start smaller.
    """
    # `transformers` 会改写嵌套的 `rope_scaling`，而 `config` 还要原样存盘。
    # `transformers` rewrites the nested `rope_scaling`, and `config` is to be stored as it is.
    values = deepcopy(config) | {"torch_dtype": "float32", "use_cache": False, "attn_implementation": "causal"}
    model = LlamaForCausalLM(LlamaConfig(**values))
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config["num_hidden_layers"]))
    return model


# ---- 训练 ----
# ---- training ----


def next_token_loss(model: LlamaForCausalLM) -> Loss:
    """加权平均的交叉熵，作为（`[B, S + 1]` 词元，`[B, S + 1]` 权重）的函数。

    The weighted mean of the cross entropy as a function of (`[B, S + 1]` ids, `[B, S + 1]` weights).
    """

    def loss(ids: Tensor, weights: Tensor) -> Tensor:
        logits = model(input_ids=ids[:, :-1]).logits.float()  # [B, S, vocab]
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")  # [B * S]
        return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()

    return loss


def distillation_loss(model: LlamaForCausalLM, teacher: LlamaForCausalLM) -> Loss:
    """`model` 与 `teacher` 的分布之间的 KL 散度，再按权重平均。

    The KL divergence between the distributions of `teacher` and `model`, averaged by weight.
    """

    def loss(ids: Tensor, weights: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(input_ids=ids[:, :-1]).logits.float().log_softmax(-1)  # [B, S, vocab]
        logits = model(input_ids=ids[:, :-1]).logits.float().log_softmax(-1)  # [B, S, vocab]
        losses = (target.exp() * (target - logits)).sum(-1)  # [B, S]
        return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()

    return loss


def learning_rate(step: int, progress: float, peak: float, warmup: int, floor: float) -> float:
    """先线性升温 `warmup` 步，再按余弦降到峰值的 `floor` 倍。

    Linear warm-up over `warmup` steps, then a cosine down to `floor` times the peak.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * cosine)


def add_training_options(parser: argparse.ArgumentParser, steps: int, rows: int, row: int) -> None:
    """训练循环的选项；默认 `steps` 步，每步 `rows` 行，每行 `row` 个词元。

    The options of the training loop; the default is `steps` steps of `rows` rows of `row` tokens.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="设备 / device")
    parser.add_argument("--steps", type=int, default=steps, help="最多训练步数 / training steps at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="最长训练时间 / training time at most")
    parser.add_argument("--rows", type=int, default=rows, help="每步多少行 / rows a step")
    parser.add_argument("--row", type=int, default=row, help="每行多少词元 / tokens a row")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="数据进程数 / data processes")
    parser.add_argument("--lr", type=float, default=2e-3, help="峰值学习率 / peak learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="升温步数 / warm-up steps")
    parser.add_argument("--seed", type=int, default=1, help="随机种子 / random seed")
    parser.add_argument("--log-every", type=int, default=200, help="每多少步打印一次 / print every so many steps")


def train(
    model: LlamaForCausalLM, loss: Loss, ids: Tensor, weights: Tensor, args: argparse.Namespace, steps: int,
    seconds: float, floor: float = 0.05,
) -> float:
    """训练 `model`，返回最后的损失。

    训练在 `steps` 步或 `seconds` 秒处结束，以先到者为准；学习率的余弦跟着更快的那个走。

    Trains `model` and returns the last loss.

    Training ends after `steps` steps or `seconds` seconds, whichever is first; the cosine follows the faster one.
    """
    device = torch.device(args.device)
    ids, weights = ids.to(device), weights.to(device)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=device.type == "cuda")
    compute: Loss = torch.compile(loss) if device.type == "cuda" else loss
    generator = torch.Generator().manual_seed(args.seed)
    start, value = time.perf_counter(), torch.zeros(())
    model.train()
    for step in range(steps):
        # 第 10 步起计时，编译的时间不算在内。
        # The clock starts at step 10, so that compilation does not count.
        start = time.perf_counter() if step == 10 else start
        elapsed = time.perf_counter() - start
        progress = max(step / steps, elapsed / seconds if step > 10 else 0.0)
        if progress >= 1:
            break
        rate = learning_rate(step, progress, args.lr, args.warmup, floor)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(ids), (args.rows,), generator=generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = compute(ids[chosen].long(), weights[chosen].float())
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % args.log_every == 0 or step + 1 == steps:
            speed = (step - 9) * args.rows * args.row / elapsed if step > 10 else 0.0
            print(f"step {step:6d}  loss {value.item():.4f}  lr {rate:.2e}  {speed:,.0f} tok/s", flush=True)
    model.eval()
    return float(value.item())


def save_model(model: LlamaForCausalLM, config: dict[str, Any], folder: Path, **generation: Any) -> None:
    """把权重转成 bfloat16 存成 `model.safetensors`，并写两个配置文件；`generation` 是建议的采样参数。

    Stores the weights as bfloat16 in `model.safetensors` and writes both configuration files; `generation` holds the
    recommended sampling parameters.
    """
    state = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {
        "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], **generation,
    })


def load_model(folder: Path, device: str, attention: str = "sdpa") -> LlamaForCausalLM:
    """读回存盘的模型，float32 计算：权重已经过 bfloat16 舍入，评测的就是发布的那一个。

    Reads a stored model back, to compute in float32 on weights that went through bfloat16 rounding: what is judged is
    what ships.

    Args:
        attention: `causal` 用于整行的训练；`causal` is for whole rows in training
    """
    logging.disable_progress_bar()
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    model.to(device).eval()  # type: ignore[arg-type]
    return model
