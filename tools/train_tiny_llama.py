"""从零训练内嵌模型：分词器、一个很小的 Llama，以及 `transformers` 能读的模型目录。

顺序：训练分词器，多进程生成并编码对话池，训练，转成 bfloat16 存盘。对话首尾相接地装进每行 1024 个词元，
注意力可以跨过边界，所以模型既见过位置 0 的问题，也见过位置 1000 的问题；更远的它不认得，除非 `--row 2048`。

    python tools/train_tiny_llama.py --out OUT
    python tools/train_tiny_llama.py --out OUT --device cpu --steps 20 --conversations 2000 --rows 4

Trains the embedded model from scratch: the tokenizer, a very small Llama, and a model folder `transformers` can read.

In order: train the tokenizer, generate and encode a pool of conversations in several processes, train, store as
bfloat16. Conversations are packed end to end into rows of 1024 tokens; attention may cross their borders, so the model
has seen questions at position 0 as well as at position 1000; farther ones it does not know, unless `--row 2048`.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.make_corpus import Message, training_conversations

# 与 Llama 3.2 相同的次序，接在 2048 个普通词元之后。
# The order of Llama 3.2, placed after the 2048 ordinary tokens.
BASE_VOCAB = 2048
SPECIAL_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 8)),
]
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
CHUNK = 2000
PROMPT_WEIGHT, ANSWER_WEIGHT = 1, 10


# ---- 分词器 ----
# ---- the tokenizer ----


def train_tokenizer(texts: Iterable[str], vocab_size: int = BASE_VOCAB) -> Tokenizer:
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


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """写 `tokenizer.json` 和含对话模板的 `tokenizer_config.json`。

    Writes `tokenizer.json` and `tokenizer_config.json` with the chat template.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                            "single_word": False, "special": True}
            for t in SPECIAL_TOKENS
        },
        "bos_token": "<|begin_of_text|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|eot_id|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 2048,
        "pad_token": "<|finetune_right_pad_id|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    })


def write_json(path: Path, value: dict[str, Any]) -> None:
    """以缩进的 UTF-8 写 JSON。

    Writes indented JSON in UTF-8.
    """
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# ---- 对话池 ----
# ---- the pool of conversations ----


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """一个特殊词元的编号；没有它就报错。

    The id of a special token; an error if there is none.
    """
    if (index := tokenizer.token_to_id(token)) is None:
        raise ValueError(f"the tokenizer has no token {token!r}; train a new one")
    return index


def encode_conversations(
    tokenizer: Tokenizer, conversations: list[list[Message]]
) -> Iterator[tuple[list[int], list[int]]]:
    """逐个给出对话的（词元，损失权重）：回答连同 `<|eot_id|>` 的权重是其余部分的 10 倍。

    Yields the token ids and the loss weights of each conversation; an answer and the `<|eot_id|>` behind it weigh
    10 times as much as the rest.
    """
    contents = [m["content"].strip() for conversation in conversations for m in conversation]
    encoded = iter(tokenizer.encode_batch(contents, add_special_tokens=False))
    heads = {
        role: tokenizer.encode(f"<|start_header_id|>{role}<|end_header_id|>\n\n", add_special_tokens=False).ids
        for role in ("system", "user", "assistant")
    }
    bos, eot = token_id(tokenizer, "<|begin_of_text|>"), token_id(tokenizer, "<|eot_id|>")
    for conversation in conversations:
        ids, weights = [bos], [PROMPT_WEIGHT]
        for message in conversation:
            head, body = heads[message["role"]], [*next(encoded).ids, eot]
            ids += head + body
            weight = ANSWER_WEIGHT if message["role"] == "assistant" else PROMPT_WEIGHT
            weights += [PROMPT_WEIGHT] * len(head) + [weight] * len(body)
        yield ids, weights


def pack_chunk(job: tuple[str, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """生成、编码并装箱一批对话（在子进程里运行）。

    每行以一个新对话开头，装满 `row` + 1 个词元为止；输入是前 `row` 个，目标是后 `row` 个。

    Generates, encodes and packs a chunk of conversations (runs in a worker process).

    Every row begins with a fresh conversation and is cut at `row` + 1 tokens: the first `row` are input, the last
    `row` targets.
    """
    path, seed, count, row = job
    tokenizer = Tokenizer.from_file(path)
    rows: list[list[int]] = []
    row_weights: list[list[int]] = []
    ids: list[int] = []
    weights: list[int] = []
    for new_ids, new_weights in encode_conversations(tokenizer, list(training_conversations(seed, count))):
        ids += new_ids
        weights += new_weights
        if len(ids) > row:
            rows.append(ids[: row + 1])
            row_weights.append(weights[: row + 1])
            ids, weights = [], []
    return np.array(rows, np.int16).reshape(-1, row + 1), np.array(row_weights, np.uint8).reshape(-1, row + 1)


def make_pool(tokenizer_path: Path, conversations: int, row: int, seed: int, workers: int) -> tuple[Tensor, Tensor]:
    """用 `workers` 个进程生成整个训练池：词元与权重，各 `[N, row + 1]`。

    Makes the whole training pool with `workers` processes: token ids and weights, each `[N, row + 1]`.
    """
    chunks = max(1, conversations // CHUNK)
    jobs = [(str(tokenizer_path), seed * 1_000_003 + i, min(CHUNK, conversations), row) for i in range(chunks)]
    if workers > 1:
        # 子进程用 spawn：分词器的线程池经不起 fork，会死锁。
        # The children are spawned: the tokenizer's thread pool does not survive a fork and would deadlock.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            parts = pool.map(pack_chunk, jobs, chunksize=4)
    else:
        parts = [pack_chunk(job) for job in jobs]
    ids, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    return torch.from_numpy(ids), torch.from_numpy(weights)


# ---- 模型 ----
# ---- the model ----


def model_config(vocab_size: int, special: dict[str, int]) -> dict[str, Any]:
    """`config.json` 的内容，键名与 Llama-3.2-Instruct 相同。

    The content of `config.json`, with the keys of Llama-3.2-Instruct.
    """
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": special["<|begin_of_text|>"],
        "eos_token_id": [special[t] for t in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")],
        "head_dim": 32, "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 704,
        "max_position_embeddings": 2048, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 8,
        "num_hidden_layers": 4, "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 2.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 1024, "rope_type": "llama3"},
        "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": vocab_size,
    }


def rotary_tables(config: dict[str, Any], length: int) -> tuple[Tensor, Tensor]:
    """llama3 缩放后的 cos 与 sin 表。

    The cos and sin tables with llama3 scaling.
    """
    dim, scaling = config["head_dim"], config["rope_scaling"]
    freqs = config["rope_theta"] ** -(torch.arange(0, dim, 2).float() / dim)
    turns = scaling["original_max_position_embeddings"] * freqs / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    freqs = keep * freqs + (1 - keep) * freqs / scaling["factor"]
    angles = torch.arange(length).float()[:, None] * torch.cat([freqs, freqs])  # [length, head_dim]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """把旋转位置编码用到 `x` 上，前后两半配对。

    Applies the rotary position embedding to `x`, pairing its two halves.
    """
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """分组查询注意力。

    Grouped-query attention.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """建四个投影。

        Makes the four projections.
        """
        super().__init__()
        hidden, self.dim = config["hidden_size"], config["head_dim"]
        q, kv = (config[k] * self.dim for k in ("num_attention_heads", "num_key_value_heads"))
        self.q_proj, self.k_proj = nn.Linear(hidden, q, bias=False), nn.Linear(hidden, kv, bias=False)
        self.v_proj, self.o_proj = nn.Linear(hidden, kv, bias=False), nn.Linear(q, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`x` 为 `[B, S, hidden]`，因果注意力。

        Causal attention over `x`, `[B, S, hidden]`.
        """
        q, k, v = (p(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # [B, H, S, D]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU 前馈网络。

    The SwiGLU feed-forward network.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """建三个投影。

        Makes the three projections.
        """
        super().__init__()
        hidden, wide = config["hidden_size"], config["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(hidden, wide, bias=False), nn.Linear(hidden, wide, bias=False)
        self.down_proj = nn.Linear(wide, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """两路投影逐元素相乘，再投影回来：`down(silu(gate(x)) * up(x))`。

        The product of two projections, projected back: `down(silu(gate(x)) * up(x))`.
        """
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """一个解码层。

    One decoder layer.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """建注意力、前馈网络和两个归一化。

        Makes the attention, the feed-forward network and two norms.
        """
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.input_layernorm = nn.RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.post_attention_layernorm = nn.RMSNorm(config["hidden_size"], config["rms_norm_eps"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """两次“归一化、计算、残差相加”。

        Twice: norm, compute, add.
        """
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class TinyLlama(nn.Module):
    """训练用的 Llama，参数名与 `transformers` 的 `LlamaModel` 相同。

    The Llama for training; its parameters have the names of `transformers`' `LlamaModel`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        """建各层并初始化；接残差的投影初值更小。

        Makes and initialises all layers; projections into the residual start smaller.
        """
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * len(self.layers)) if residual else 1))
        cos, sin = rotary_tables(config, config["max_position_embeddings"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """`ids`、`targets`、`weights` 都是 `[B, S]`；返回加权平均的交叉熵。

        `ids`, `targets`, `weights` are `[B, S]`; returns the weighted mean of the cross entropy.
        """
        x, length = self.embed_tokens(ids), ids.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        logits = F.linear(self.norm(x), self.embed_tokens.weight).float()  # [B, S, vocab]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (loss * weights.flatten()).sum() / weights.sum()


# ---- 训练 ----
# ---- training ----


def learning_rate(step: int, progress: float, peak: float, warmup: int) -> float:
    """先线性升温 `warmup` 步，再按余弦降到峰值的 5%。

    Linear warm-up over `warmup` steps, then a cosine down to 5 % of the peak.
    """
    return peak * min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(model: TinyLlama, ids: Tensor, weights: Tensor, args: argparse.Namespace) -> float:
    """训练 `model`，返回最后的损失。

    训练在 `--steps` 步或 `--seconds` 秒处结束，以先到者为准；学习率的余弦跟着更快的那个走。

    Trains `model` and returns the last loss.

    Training ends after `--steps` steps or `--seconds` seconds, whichever is first; the cosine follows the faster one.
    """
    device = torch.device(args.device)
    model.to(device)
    ids, weights = ids.to(device), weights.to(device)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=device.type == "cuda")
    compute: nn.Module = torch.compile(model) if device.type == "cuda" else model  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(args.seed)
    start, loss = time.perf_counter(), torch.zeros(())
    for step in range(args.steps):
        # 第 10 步起计时，编译的时间不算在内。
        # The clock starts at step 10, so that compilation does not count.
        start = time.perf_counter() if step == 10 else start
        elapsed = time.perf_counter() - start
        progress = max(step / args.steps, elapsed / args.seconds if step > 10 else 0.0)
        if progress >= 1:
            break
        rate = learning_rate(step, progress, args.lr, args.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(ids), (args.rows,), generator=generator).to(device)
        rows, row_weights = ids[chosen].long(), weights[chosen].float()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = compute(rows[:, :-1], rows[:, 1:], row_weights[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % args.log_every == 0 or step + 1 == args.steps:
            speed = (step - 9) * args.rows * args.row / elapsed if step > 10 else 0.0
            print(f"step {step:6d}  loss {loss.item():.4f}  lr {rate:.2e}  {speed:,.0f} tok/s", flush=True)
    return float(loss.item())


def save_model(model: TinyLlama, config: dict[str, Any], folder: Path) -> None:
    """把权重转成 bfloat16 存成 `model.safetensors`，并写两个配置文件。

    Stores the weights as bfloat16 in `model.safetensors` and writes both configuration files.
    """
    state = {f"model.{k}": v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {
        "bos_token_id": config["bos_token_id"], "do_sample": False, "eos_token_id": config["eos_token_id"],
    })


def main(argv: list[str] | None = None) -> int:
    """命令行入口。

    The command line.
    """
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="训练内嵌模型 / train the embedded model")
    parser.add_argument("--out", type=Path, required=True, help="模型目录 / model folder")
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="设备 / device")
    parser.add_argument("--steps", type=int, default=22_000, help="最多训练步数 / training steps at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="最长训练时间 / training time at most")
    parser.add_argument("--rows", type=int, default=64, help="每步多少行 / rows a step")
    parser.add_argument("--row", type=int, default=1024, help="每行多少词元 / tokens a row")
    parser.add_argument("--conversations", type=int, default=6_000_000, help="对话池大小 / size of the pool")
    parser.add_argument("--tokenizer-conversations", type=int, default=60_000, help="其中给分词器的 / for BPE")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="数据进程数 / data processes")
    parser.add_argument("--lr", type=float, default=2e-3, help="峰值学习率 / peak learning rate")
    parser.add_argument("--warmup", type=int, default=100, help="升温步数 / warm-up steps")
    parser.add_argument("--seed", type=int, default=1, help="随机种子 / random seed")
    parser.add_argument("--log-every", type=int, default=200, help="每多少步打印一次 / print every so many steps")
    args = parser.parse_args(argv)

    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()
    sample = training_conversations(args.seed * 1_000_003 - 1, args.tokenizer_conversations)
    tokenizer = train_tokenizer(message["content"] for conversation in sample for message in conversation)
    save_tokenizer(tokenizer, args.out)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {time.perf_counter() - begin:.0f} s", flush=True)

    ids, weights = make_pool(args.out / "tokenizer.json", args.conversations, args.row, args.seed, args.workers)
    print(f"pool: {len(ids)} rows of {args.row} tokens, {time.perf_counter() - begin:.0f} s", flush=True)

    special = {token: token_id(tokenizer, token) for token in SPECIAL_TOKENS}
    config = model_config(tokenizer.get_vocab_size(), special)
    model = TinyLlama(config)
    print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    loss = train(model, ids, weights, args)
    save_model(model, config, args.out)
    print(f"done: loss {loss:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
