"""从零训练 tiny-poet 和它的草稿模型 tiny-poet-draft，一条命令，两个 `transformers` 能读的模型目录。

先用 `make_poet_corpus.py` 造好语料；之后不需要网络。诗人学语料；草稿模型学诗人：诗人续写许多开头，一半贪心、一半采样，
草稿模型在这些文字和语料上逼近诗人的分布，所以共用噪声时多半选中同一个词元。

    python tools/train_tiny_poet.py --out OUT
    python tools/train_tiny_poet.py --out OUT --device cpu --documents 2000 --steps 3 --draft-steps 3 --rows 1

Trains tiny-poet and its draft model tiny-poet-draft from scratch: one command, two model folders `transformers` can
read.

Make the corpus with `make_poet_corpus.py` first; after that no network is needed. The poet learns the corpus; the draft
learns the poet, which continues many beginnings, half of them greedily and half by sampling; on that text and on the
corpus the draft comes near the poet's distribution, so that with shared noise both mostly choose the same token.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.make_poet_corpus import FOLDER, Document, read_corpus, read_simplifier, render
from tools.training import (
    CONTEXT,
    Example,
    add_training_options,
    build_model,
    distillation_loss,
    load_model,
    make_pool,
    model_config,
    next_token_loss,
    pack,
    save_model,
    save_tokenizer,
    token_id,
    train,
)

SHAPE = {"hidden": 256, "intermediate": 640, "heads": 8, "layers": 5}
DRAFT_SHAPE = {"hidden": 96, "intermediate": 320, "heads": 4, "layers": 2}
# 名篇每遍多出现几次，读者才有机会看到它记住了什么。
# Famous poems come several times a pass, so that a reader can see what it knows by heart.
PASSES, FAMOUS_REPEATS, CHUNK = 4, 8, 20_000
# 草稿模型的续写：开头取几个词元，最多写多长，一批多少个。
# The continuations for the draft: tokens of the beginning, longest length, how many at a time.
BEGINNINGS, LONGEST, BATCH = (2, 4, 8, 16), 160, 8192


def pack_documents(job: tuple[Path, list[Document], int, int]) -> tuple[np.ndarray, np.ndarray]:
    """渲染、编码并装箱一批文档（在子进程里运行）。

    Renders, encodes and packs a chunk of documents (runs in a worker process).
    """
    folder, documents, seed, row = job
    table, rng = read_simplifier(folder), random.Random(seed)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = encode(tokenizer, [render(document, table, rng) for document in documents])
    return pack(((ids, [1] * len(ids)) for ids in encoded), row)


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """每篇文档的词元，前有 `<|begin_of_text|>`，后有 `<|end_of_text|>`。

    The ids of each document, with `<|begin_of_text|>` before and `<|end_of_text|>` behind.
    """
    end = token_id(tokenizer, "<|end_of_text|>")
    return [[*encoding.ids, end] for encoding in tokenizer.encode_batch(texts)]


def corpus_jobs(
    documents: list[Document], folder: Path, row: int, seed: int
) -> list[tuple[Path, list[Document], int, int]]:
    """整个训练池的任务：几遍语料，每遍重新洗牌，字体和题目重新选。

    The jobs of the whole pool: several passes over the corpus, each newly shuffled, with script and title chosen anew.
    """
    rng = random.Random(seed)
    repeated = [d for document in documents for d in [document] * (FAMOUS_REPEATS if document.famous else 1)]
    jobs = []
    for _ in range(PASSES):
        rng.shuffle(repeated)
        chunks = (repeated[i : i + CHUNK] for i in range(0, len(repeated), CHUNK))
        jobs += [(folder, chunk, rng.randrange(2**32), row) for chunk in chunks]
    return jobs


def continuations(poet: Any, beginnings: list[list[int]], sample: bool) -> Iterator[Example]:
    """诗人把每个开头续写到 `<|end_of_text|>`，开头连同续写一起给出；`beginnings` 一样长。

    The poet continues each beginning up to `<|end_of_text|>`; yields beginning and continuation together. `beginnings`
    have one length.
    """
    end = poet.config.eos_token_id[0]
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    for start in range(0, len(beginnings), BATCH):
        prompts = torch.tensor(beginnings[start : start + BATCH], device=poet.device)  # [B, S]
        with torch.inference_mode():
            rows = poet.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=LONGEST, eos_token_id=end,
                pad_token_id=end, **how,
            )
        for ids in rows.tolist():
            body = ids[: ids.index(end) + 1] if end in ids else ids
            yield body, [1] * len(body)


def draft_pool(poet: Any, texts: list[list[int]], count: int, row: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """诗人的续写装成的训练池：`count` 个开头取自 `texts`，贪心与采样各续写一次。

    The pool packed from the poet's continuations: `count` beginnings from `texts`, each continued greedily and by
    sampling.
    """
    examples: list[Example] = []
    for length in BEGINNINGS:
        long_enough = [ids[:length] for ids in texts if len(ids) > length]
        chosen = rng.sample(long_enough, min(count // len(BEGINNINGS), len(long_enough)))
        for sample in (False, True):
            examples += continuations(poet, chosen, sample)
    rng.shuffle(examples)
    ids, weights = pack(examples, row)
    return torch.from_numpy(ids), torch.from_numpy(weights)


def bits_per_character(model: Any, tokenizer: Tokenizer, texts: list[str], device: str, batch: int = 64) -> float:
    """每篇从头读起，每个字符平均多少比特；结尾也算一个字符。

    Bits a character, each document read from its beginning; its end counts as one character.
    """
    total = 0.0
    encoded = sorted(encode(tokenizer, texts), key=len)
    for start in range(0, len(encoded), batch):
        rows = encoded[start : start + batch]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)  # [B, S]
        used = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)  # [B, S]
        with torch.inference_mode():
            scores = model(input_ids=ids[:, :-1]).logits.float().log_softmax(-1)  # [B, S - 1, vocab]
        chosen = scores.gather(-1, ids[:, 1:, None]).squeeze(-1)  # [B, S - 1]
        total -= (chosen * used[:, 1:]).sum().item()
    return total / np.log(2) / sum(len(text) + 1 for text in texts)


def report(name: str, model: Any, tokenizer: Tokenizer, documents: list[Document], device: str) -> None:
    """打印留出文本上的比特数，按种类。

    Prints the bits on held-out text, by kind.
    """
    kinds = {kind: [d.text for d in documents if d.kind == kind] for kind in ("shi", "ci", "gloss")}
    bits = (f"{k} {bits_per_character(model, tokenizer, v, device):.3f}" for k, v in kinds.items() if v)
    print(f"{name}: held-out bits a character: {', '.join(bits)}", flush=True)


def train_poet(
    tokenizer: Tokenizer, pool: tuple[Tensor, Tensor], held: list[Document], folder: Path, args: argparse.Namespace
) -> None:
    """训练诗人，存到 `folder`。

    Trains the poet and stores it in `folder`.
    """
    config = model_config(tokenizer, **SHAPE)
    poet = build_model(config).to(args.device)
    print(f"poet: {poet.num_parameters():,} parameters", flush=True)
    loss = train(poet, next_token_loss(poet), *pool, args, args.steps, args.seconds)
    save_model(poet, config, folder, do_sample=True, temperature=0.8)
    print(f"poet: loss {loss:.4f}", flush=True)
    report("poet", load_model(folder, args.device), tokenizer, held, args.device)


def train_draft(
    tokenizer: Tokenizer, pool: tuple[Tensor, Tensor], texts: list[list[int]], held: list[Document],
    folders: tuple[Path, Path], args: argparse.Namespace,
) -> None:
    """让诗人续写 `texts` 的开头，再训练草稿模型；`folders` 是（诗人，草稿模型）。

    Lets the poet continue beginnings of `texts`, then trains the draft model; `folders` is (poet, draft model).
    """
    rng = random.Random(args.seed)
    own = draft_pool(load_model(folders[0], args.device), texts, args.continuations, args.row, rng)
    # 一半是诗人写的，一半是语料。
    # Half of it is by the poet, half is corpus.
    ids, weights = (torch.cat([mine, corpus[: len(mine)]]) for mine, corpus in zip(own, pool))
    config = model_config(tokenizer, **DRAFT_SHAPE)
    draft = build_model(config).to(args.device)
    print(f"draft: {draft.num_parameters():,} parameters, {len(own[0])} rows by the poet", flush=True)
    teacher = load_model(folders[0], args.device, "causal")
    loss = train(draft, distillation_loss(draft, teacher), ids, weights, args, args.draft_steps, args.draft_seconds)
    save_model(draft, config, folders[1], do_sample=True, temperature=0.8)
    print(f"draft: loss {loss:.4f}", flush=True)
    report("draft", load_model(folders[1], args.device), tokenizer, held, args.device)


def main(argv: list[str] | None = None) -> int:
    """命令行入口。

    The command line.
    """
    parser = argparse.ArgumentParser(description="训练诗人和它的草稿模型 / train the poet and its draft model")
    parser.add_argument("--out", type=Path, required=True, help="放两个模型目录 / where both model folders go")
    parser.add_argument("--corpus", type=Path, default=FOLDER, help="语料文件夹 / folder of the corpus")
    parser.add_argument("--documents", type=int, default=10**9, help="最多用多少篇 / documents at most")
    parser.add_argument("--draft-only", action="store_true", help="诗人已在 --out 里 / the poet is in --out already")
    parser.add_argument("--draft-steps", type=int, default=3_000, help="草稿模型的步数 / steps of the draft")
    parser.add_argument("--draft-seconds", type=float, default=1e9, help="草稿模型的时间 / time of the draft")
    parser.add_argument("--continuations", type=int, default=32_768, help="诗人续写多少个 / beginnings to continue")
    add_training_options(parser, steps=9_000, rows=32, row=CONTEXT)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    begin, rng = time.perf_counter(), random.Random(args.seed)
    tokenizer = Tokenizer.from_file(str(args.corpus / "tokenizer.json"))
    documents, held = (read_corpus(args.corpus, name) for name in ("train", "held_out"))
    documents, held = (rng.sample(part, min(args.documents, len(part))) for part in (documents, held))
    pool = make_pool(pack_documents, corpus_jobs(documents, args.corpus, args.row, args.seed), args.workers)
    print(f"pool: {len(pool[0])} rows of {args.row} tokens, {time.perf_counter() - begin:.0f} s", flush=True)

    folders = (args.out / "tiny-poet", args.out / "tiny-poet-draft")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(tokenizer, folder, "<|end_of_text|>")
    if not args.draft_only:
        train_poet(tokenizer, pool, held, folders[0], args)
    table = read_simplifier(args.corpus)
    some = rng.sample(documents, min(args.continuations, len(documents)))
    texts = encode(tokenizer, [render(document, table, rng) for document in some])
    train_draft(tokenizer, pool, texts, held, folders, args)
    print(f"done: {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
