"""从零训练内置模型 tiny-llama：分词器，对话池，训练，`transformers` 能读的模型目录。

多进程生成并编码对话，装进每行 1024 个词元；最后用 2048 长的行续练。与诗人共用的部分在 `training.py`。

    python tools/train_tiny_llama.py --out OUT
    python tools/train_tiny_llama.py --out OUT --device cpu --steps 20 --conversations 2000 --rows 4 --extension-steps 2
    python tools/train_tiny_llama.py --out OUT --extend DIR --device cpu

Trains the embedded model tiny-llama from scratch: the tokenizer, a pool of conversations, training, and a model folder
`transformers` can read.

Conversations are generated and encoded in several processes and packed into rows of 1024 tokens; at the end it
continues on rows of 2048. What it shares with the poet is in `training.py`.
"""

import argparse
import shutil
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
    CONTEXT,
    Example,
    add_training_options,
    build_model,
    load_model,
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
# 训练用 1024 长的行、llama3 缩放的除数 2，之后改成 4：转得慢的对再慢一半，在位置 2048 的角度就是先前 1024 的。
# 只这样改，上下文已经长了一倍；再用 2048 长的行续练 200 步，学习率降到 0，模型就适应了新的角度。
# Training has rows of 1024 and a factor of 2 in llama3 scaling, then 4: slow pairs turn half as fast, and position 2048
# has the angles of 1024. That alone doubles the context; 200 steps on rows of 2048, the rate falling to 0, adapt to it.
ROPE_FACTOR = 4.0
EXTENSION = {"row": CONTEXT, "rows": 4, "lr": 1e-4, "warmup": 20, "seed": 5, "log_every": 10}
EXTENSION_DATA_SEED = 777
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


def extend(source: Path, args: argparse.Namespace) -> float:
    """把 `source` 里的模型续练到 `CONTEXT`，存进 `args.out`；返回最后的损失。

    Continues the model in `source` on rows of `CONTEXT`, stores it in `args.out` and returns the last loss.
    """
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    config = model_config(tokenizer, **SHAPE, rope_factor=ROPE_FACTOR)
    model = build_model(config)
    model.load_state_dict(load_model(source, "cpu").state_dict())
    job = (str(source / "tokenizer.json"), EXTENSION_DATA_SEED, args.extension_conversations, CONTEXT)
    ids, weights = map(torch.from_numpy, pack_chunk(job))
    options = argparse.Namespace(**{**vars(args), **EXTENSION})
    steps = args.extension_steps
    loss = train(model.to(args.device), next_token_loss(model), ids, weights, options, steps, 1e9, floor=0.0)
    save_model(model, config, args.out, do_sample=False)
    return loss


def main(argv: list[str] | None = None) -> int:
    """命令行入口。

    The command line.
    """
    parser = argparse.ArgumentParser(description="训练内置模型 / train the embedded model")
    parser.add_argument("--out", type=Path, required=True, help="模型目录 / model folder")
    parser.add_argument("--conversations", type=int, default=4_000_000, help="对话池大小 / size of the pool")
    parser.add_argument("--tokenizer-conversations", type=int, default=60_000, help="其中给分词器的 / for BPE")
    parser.add_argument("--extend", type=Path, metavar="DIR", help="只续练 DIR 里的模型 / only extend the model in DIR")
    parser.add_argument("--extension-steps", type=int, default=200, help="续练步数 / steps of the extension")
    parser.add_argument("--extension-conversations", type=int, default=14_000, help="其对话数 / its conversations")
    add_training_options(parser, steps=22_000, rows=64, row=1024)
    args = parser.parse_args(argv)

    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    begin = time.perf_counter()
    if args.extend:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(args.extend / name, args.out / name)
        print(f"done: loss {extend(args.extend, args):.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
        return 0
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
    print(f"before the extension: loss {loss:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    save_model(model, config, args.out, do_sample=False)
    loss = extend(args.out, args)
    print(f"done: loss {loss:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
