"""评测 tiny-poet 和它的草稿模型：每字符比特数、熵、首位概率、续写的变化、草稿被接受的比例。

概率由 `transformers` 以 float32 算出，续写由本引擎写；旁边是在同样文本上训练的字符三元模型。语料要先用
`make_poet_corpus.py` 造好。

    python tools/eval_tiny_poet.py
    python tools/eval_tiny_poet.py --count 100000 --device cuda

Judges tiny-poet and its draft model: bits a character, entropy, the likeliest token's share, how continuations vary,
how many drafts are accepted.

Probabilities are computed by `transformers` in float32, continuations are written by this engine; beside them stands a
trigram model of characters, trained on the same text. Make the corpus with `make_poet_corpus.py` first.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.sampling_params import SamplingParams
from layers.sampler import gumbel_noise
from serving.llm import LLM
from tools.make_poet_corpus import FOLDER, ROOT, read_corpus
from tools.train_tiny_poet import bits_per_character, encode
from tools.training import load_model

PROMPTS = [
    "春眠不覺曉，", "床前明月光，", "大江东去，", "《秋夜》李白\n", "白雲深處", "明月几时有，",
    "moon:", "philosopher:", "whisper:", "glimmerstone:",
]
SEEDS, TEMPERATURE, NUM_DRAFTS, LENGTH = 8, 0.8, 4, 48
DISCOUNT = 0.75


class Trigram:
    """字符三元模型，插值 Kneser-Ney 平滑，折扣 0.75。

    A trigram model of characters with interpolated Kneser-Ney smoothing, discount 0.75.
    Source: Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling".
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """数出训练文本里的三元组、二元组和单字。

        Counts the trigrams, bigrams and characters of the training text.
        """
        codes = np.frombuffer(mark(texts).encode("utf-32-le"), np.uint32)
        self.characters = np.unique(codes)
        # 词表多留一个位置给没见过的字符。
        # One more place in the vocabulary is for characters never seen.
        self.size = len(self.characters) + 1
        keys, counts = np.unique(self.keys(codes), return_counts=True)
        pairs, endings = np.unique(keys % self.size**2, return_counts=True)
        self.levels = [
            self.level(keys, counts), self.level(pairs, endings),
            self.level(*np.unique(pairs % self.size, return_counts=True)),
        ]

    def keys(self, codes: np.ndarray) -> np.ndarray:
        """每个三元组的编号。

        The number of each trigram.
        """
        found = np.minimum(np.searchsorted(self.characters, codes), len(self.characters) - 1)
        ids = np.where(self.characters[found] == codes, found, self.size - 1).astype(np.int64)
        return (ids[:-2] * self.size + ids[1:-1]) * self.size + ids[2:]

    def level(self, keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        """一阶的表：键与次数，前文与它的总次数、后继种数。

        The table of one order: keys and counts, contexts with their total count and the number of their successors.
        """
        contexts, first, successors = np.unique(keys // self.size, return_index=True, return_counts=True)
        return keys, counts, contexts, np.add.reduceat(counts, first), successors

    def probabilities(self, codes: np.ndarray) -> np.ndarray:
        """`codes` 里从第三个字符起，每个字符在前两个之后的概率。

        The probability of each character of `codes` from the third on, behind its two predecessors.
        """
        trigrams = self.keys(codes)
        result = np.full(len(trigrams), 1 / self.size)
        for level, modulus in zip(reversed(self.levels), (self.size, self.size**2, self.size**3)):
            keys, counts, contexts, totals, successors = level
            wanted = trigrams % modulus
            count = look_up(keys, counts, wanted)
            total, kinds = (look_up(contexts, column, wanted // self.size) for column in (totals, successors))
            known = np.maximum(total, 1)
            mixed = np.maximum(count - DISCOUNT, 0) / known + DISCOUNT * kinds / known * result
            result = np.where(total > 0, mixed, result)
        return result

    def bits_per_character(self, texts: list[str]) -> float:
        """每个字符平均多少比特；结尾也算一个字符。

        Bits a character; the end counts as one.
        """
        codes = np.frombuffer(mark(texts).encode("utf-32-le"), np.uint32)
        # 开头的两个记号不必预测。
        # The two marks at a beginning need no prediction.
        counted = codes[2:] != ord(START)
        return float(-np.log2(self.probabilities(codes)[counted]).sum() / counted.sum())


START, END = "\x02", "\x03"


def mark(texts: Iterable[str]) -> str:
    """把文档接成一串，各自前有两个开头记号，后有一个结尾记号。

    Joins documents into one string, each with two marks before it and one behind.
    """
    return "".join(f"{START}{START}{text}{END}" for text in texts)


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """有序的 `keys` 里 `wanted` 对应的值，没有的是 0。

    The values of `wanted` in the sorted `keys`, 0 where there is none.
    """
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[found] == wanted, values[found], 0)


def uncertainty(model: Any, tokenizer: Tokenizer, texts: list[str], device: str) -> tuple[float, float, float]:
    """每个词元平均的（熵，单位奈特；最大的概率；最大者正是下一个词元的比例）。

    A token's average (entropy in nats, top probability, share of tokens that are the likeliest one).
    """
    sums = np.zeros(4)
    for ids in encode(tokenizer, texts):
        row = torch.tensor([ids], device=device)  # [1, S]
        with torch.inference_mode():
            scores = model(input_ids=row[:, :-1]).logits[0].float().log_softmax(-1)  # [S - 1, vocab]
        best, index = scores.max(-1)
        entropy = -(scores.exp() * scores).sum(-1)
        right = index == row[0, 1:]
        sums += [entropy.sum().item(), best.exp().sum().item(), right.sum().item(), len(right)]
    entropy_sum, top, hits, count = sums
    return entropy_sum / count, top / count, hits / count


def draft_matches(
    model: Any, prompt: list[int], output: list[int], seed: int, temperature: float, device: str
) -> list[bool]:
    """草稿模型在诗人的每个位置上选的词元是否相同；`temperature` 为 0 是贪心。

    Whether the draft chooses the poet's token at each of its positions; a `temperature` of 0 is greedy.
    """
    row = torch.tensor([prompt + output], device=device)  # [1, S]
    with torch.inference_mode():
        logits = model(input_ids=row[:, :-1]).logits[0, len(prompt) - 1 :].float()  # [N, vocab]
    if temperature:
        indices = torch.arange(len(output), device=device)  # [N]
        logits = logits / temperature + gumbel_noise(torch.full_like(indices, seed), indices, logits.shape[-1])
    matches: list[bool] = (logits.argmax(-1) == row[0, len(prompt) :]).tolist()
    return matches


def tokens_per_step(matches: list[bool], num_drafts: int) -> float:
    """每步起草 `num_drafts` 个，接受到第一个不同为止，再加诗人自己的一个：平均每步几个词元。

    Tokens a step when `num_drafts` are drafted and accepted up to the first that differs, and the poet adds one of its
    own.
    """
    steps, position = 0, 0
    while position < len(matches):
        window = matches[position : position + num_drafts]
        position += (window.index(False) if False in window else len(window)) + 1
        steps += 1
    return len(matches) / steps


def speculation(
    llm: LLM, draft: Any, prompts: list[list[int]], temperature: float, device: str
) -> tuple[float, float, float]:
    """诗人从 `prompts` 写下去，草稿模型跟着猜：（共用噪声时相同的比例，独立噪声时的，每步几个词元）。

    The poet writes on from `prompts` and the draft guesses: (share equal with shared noise, with independent noise,
    tokens a step).
    """
    common = SamplingParams(temperature=temperature, max_tokens=LENGTH, ignore_eos=True)
    params = [replace(common, seed=seed) for seed in range(len(prompts))]
    shared: list[bool] = []
    independent: list[bool] = []
    steps: list[float] = []
    for seed, (prompt, result) in enumerate(zip(prompts, llm.generate(prompts, params, progress=False))):
        output = result.outputs[0].token_ids
        matches = draft_matches(draft, prompt, output, seed, temperature, device)
        shared += matches
        independent += draft_matches(draft, prompt, output, seed + len(prompts), temperature, device)
        steps.append(tokens_per_step(matches, NUM_DRAFTS))
    return sum(shared) / len(shared), sum(independent) / len(independent), len(steps) / sum(1 / s for s in steps)


def main(argv: list[str] | None = None) -> int:
    """命令行入口。

    The command line.
    """
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="评测诗人和它的草稿模型 / judge the poet and its draft model")
    assets = ROOT / "assets"
    parser.add_argument("--model", type=Path, default=assets / "tiny-poet", help="诗人 / the poet")
    parser.add_argument("--draft", type=Path, default=assets / "tiny-poet-draft", help="草稿模型 / the draft model")
    parser.add_argument("--corpus", type=Path, default=FOLDER, help="语料文件夹 / folder of the corpus")
    parser.add_argument("--count", type=int, default=200, help="每类留出文档数 / held-out documents a kind")
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="设备 / device")
    parser.add_argument("--show", type=int, default=1, help="每个开头打印几个续写 / continuations to print a prompt")
    args = parser.parse_args(argv)

    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    models: dict[str, Any] = {path.name: load_model(path, args.device) for path in (args.model, args.draft)}
    for path, model in zip((args.model, args.draft), models.values()):
        size = sum(file.stat().st_size for file in path.iterdir())
        print(f"{path.name}: {model.num_parameters():,} parameters, {size:,} bytes")

    trigram = Trigram(document.text for document in read_corpus(args.corpus, "train"))
    held = read_corpus(args.corpus, "held_out")
    heads = ["kind", "characters", "trigram", *models, "entropy, nats/token", "top-1 probability", "top-1 right"]
    print(f"\nBits a character on held-out text:\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for kind in dict.fromkeys(document.kind for document in held):
        texts = [document.text for document in held if document.kind == kind]
        texts = texts[:: max(1, len(texts) // args.count)]
        bits = [bits_per_character(model, tokenizer, texts, args.device) for model in models.values()]
        entropy, top, right = uncertainty(models[args.model.name], tokenizer, texts, args.device)
        print(f"| {kind} | {sum(map(len, texts)):,} | {trigram.bits_per_character(texts):.3f} | "
              f"{bits[0]:.3f} | {bits[1]:.3f} | {entropy:.2f} | {100 * top:.1f} % | {100 * right:.1f} % |")

    llm = LLM(args.model, device=args.device, dtype="float32")
    params = [SamplingParams(temperature=TEMPERATURE, max_tokens=LENGTH, seed=seed) for seed in range(SEEDS)]
    repeated = [prompt for prompt in PROMPTS for _ in range(SEEDS)]
    results = llm.generate(repeated, params * len(PROMPTS), progress=False)
    outputs = [result.outputs[0].text for result in results]
    print(f"\n{SEEDS} seeds at temperature {TEMPERATURE}:")
    for i, prompt in enumerate(PROMPTS):
        own = outputs[i * SEEDS : (i + 1) * SEEDS]
        print(f"- {prompt!r}: {len(set(own))} distinct; " + "; ".join(repr(prompt + text) for text in own[: args.show]))

    prompts = [ids[:8] for ids in encode(tokenizer, PROMPTS + [d.text for d in held[:: max(1, len(held) // 90)]])]
    print(f"\n{len(prompts)} prompts of at most 8 tokens, {LENGTH} tokens each, {NUM_DRAFTS} drafts a step:\n")
    print("| temperature | accepted, shared noise | accepted, independent noise | tokens a step |\n|---|---|---|---|")
    for temperature in (0.0, TEMPERATURE, 1.0):
        shared, independent, steps = speculation(llm, models[args.draft.name], prompts, temperature, args.device)
        print(f"| {temperature} | {100 * shared:.1f} % | {100 * independent:.1f} % | {steps:.2f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
