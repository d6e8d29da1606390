"""从零训练内置模型 tiny-llama：分词器，对话池，训练，`transformers` 能读的模型目录。

多进程生成并编码对话，装进每行 1024 个词元。与诗人共用的部分在 `training.py`。

    python tools/train_tiny_llama.py --out OUT
    python tools/train_tiny_llama.py --out OUT --device cpu --steps 20 --conversations 2000 --rows 4

Trains the embedded model tiny-llama from scratch: the tokenizer, a pool of conversations, training, and a model folder
`transformers` can read.

Conversations are generated and encoded in several processes and packed into rows of 1024 tokens. What it shares
with the poet is in `training.py`.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.make_corpus import Message, training_conversations
from tools.training import (
    Example,
    add_training_options,
    build_model,
    make_pool,
    model_config,
    next_token_loss,
    pack,
    save_model,
    save_tokenizer,
    token_id,
    train,
    train_tokenizer,
)

BASE_VOCAB = 2048
SHAPE = {"hidden": 256, "intermediate": 704, "heads": 8, "layers": 4}
# 训练用 1024 长的行、除数 2；存盘时改成 4：转得慢的对再慢一半，在位置 2048 的角度就是训练时 1024 的，
# 上下文长一倍，权重不动。
# Training has rows of 1024 and a factor of 2; stored is 4: pairs that turn slowly turn half as fast, position 2048 gets
# the angles that 1024 had in training, and the context is twice as long on the same weights.
ROPE_FACTOR = 4.0
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
CHUNK = 2000
PROMPT_WEIGHT, ANSWER_WEIGHT = 1, 10


def encode_conversations(tokenizer: Tokenizer, conversations: list[list[Message]]) -> Iterator[Example]:
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

    Generates, encodes and packs a chunk of conversations (runs in a worker process).
    """
    path, seed, count, row = job
    conversations = list(training_conversations(seed, count))
    return pack(encode_conversations(Tokenizer.from_file(path), conversations), row)


def main(argv: list[str] | None = None) -> int:
    """命令行入口。

    The command line.
    """
    parser = argparse.ArgumentParser(description="训练内置模型 / train the embedded model")
    parser.add_argument("--out", type=Path, required=True, help="模型目录 / model folder")
    parser.add_argument("--conversations", type=int, default=4_000_000, help="对话池大小 / size of the pool")
    parser.add_argument("--tokenizer-conversations", type=int, default=60_000, help="其中给分词器的 / for BPE")
    add_training_options(parser, steps=22_000, rows=64, row=1024)
    args = parser.parse_args(argv)

    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()
    sample = training_conversations(args.seed * 1_000_003 - 1, args.tokenizer_conversations)
    contents = (message["content"] for conversation in sample for message in conversation)
    tokenizer = train_tokenizer(contents, BASE_VOCAB)
    save_tokenizer(tokenizer, args.out, "<|eot_id|>", chat_template=CHAT_TEMPLATE)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {time.perf_counter() - begin:.0f} s", flush=True)

    chunk = min(CHUNK, args.conversations)
    seeds = (args.seed * 1_000_003 + i for i in range(args.conversations // chunk))
    jobs = [(str(args.out / "tokenizer.json"), seed, chunk, args.row) for seed in seeds]
    ids, weights = make_pool(pack_chunk, jobs, args.workers)
    print(f"pool: {len(ids)} rows of {args.row} tokens, {time.perf_counter() - begin:.0f} s", flush=True)

    config = model_config(tokenizer, **SHAPE)
    model = build_model(config).to(args.device)
    print(f"model: {model.num_parameters():,} parameters", flush=True)
    loss = train(model, next_token_loss(model), ids, weights, args, args.steps, args.seconds)
    save_model(model, model_config(tokenizer, **SHAPE, rope_factor=ROPE_FACTOR), args.out, do_sample=False)
    print(f"done: loss {loss:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
