"""实验 13：一步几个 token。

学什么：猜后面的 token，一遍前向全部检查；每个位置用自己的噪声来抽，所以“相等”就是全部的判断，输出与不猜时相同；
猜错的那个位置怎样作废，缓存为什么不用撤销。
试一试：`--guesses 1`、`--guesses 16`、`--temperature 0`；再改标着 TODO 的几行，看检查怎样发现。
怎样算对：留下几个、抄到什么、每行用哪一份噪声，都与手算的相同；带缓存的小模型写出的，与从头算、不猜的相同，每一步
“已算”到哪里也对；最后把你的 `accept` 装进引擎，诗人写的诗一个 token 也不变。

Lab 13: several tokens a step.

Teaches: guess the tokens that follow, check all of them in one pass; each position is drawn with its own noise, so
equality is the whole test and the output is that without guesses; how the position of a wrong guess becomes void, and
why nothing in the cache has to be undone.
Try: `--guesses 1`, `--guesses 16`, `--temperature 0`; then change the lines marked TODO and see the check find it.
Check: how many are kept, what is copied and which noise a row gets are as worked out by hand; a small model with a
cache writes what is written from scratch and without guesses, and counts as computed what it should after each step; at
last your `accept` is put into the engine, and not a token of the poet's verse changes.
"""

import argparse
import random
from dataclasses import asdict
from unittest.mock import patch

import torch
from common import Arrival, Check, make_engine, run_lab, run_steps, say, title
from torch import Tensor

from engine.drafters import SpeculativeConfig
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from layers.sampler import gumbel_noise

VOCAB_SIZE, NUM_TOKENS, NUM_SEEDS = 8, 40, 20
# 猜测，抽出的，留下的。抽出的比猜测多 1 个：每个猜测之前一个，最后一个猜测之后一个。
# Guesses, draws, what is kept. There is 1 draw more than guesses: one before each of them and one behind the last.
ACCEPTED: list[tuple[list[int], list[int], list[int]]] = [
    ([], [4], [4]),
    ([7, 8, 9], [7, 8, 5, 4], [7, 8, 5]),
    ([7, 8], [7, 8, 3], [7, 8, 3]),
    ([7, 8, 9], [2, 8, 9, 1], [2]),
]
# 文字，抄来的猜测，最多 3 个。末尾的 [1, 2, 3] 最早接着 4；只有 [2, 3] 出现过，就抄它后面的；都没有就不猜。
# A text and the guesses copied from it, at most 3. The end [1, 2, 3] was first followed by 4; where only [2, 3] stood
# before, copy what followed there; no guesses where nothing stood.
COPIED: list[tuple[list[int], list[int]]] = [
    ([1, 2, 3, 4, 5, 1, 2, 3, 6, 2, 3, 1, 2, 3], [4, 5, 1]),
    ([9, 2, 3, 4, 1, 2, 3], [4, 1, 2]),
    ([7, 8, 7, 8, 7, 8], [7, 8]),
    ([1, 2, 3, 4], []),
]


def accept(guesses: list[int], drawn: list[int]) -> list[int]:
    """留下前几个抽出的：猜对一个就多留一个，直到第一个猜错的位置，那里抽出的是真的，也留下。

    The draws that are kept: one more for each right guess, up to the first wrong one, where the draw is the true token
    and is kept as well.
    """
    for index, guess in enumerate(guesses):
        if drawn[index] != guess:
            # TODO 试试写错：`drawn[:index]`，或 `guesses[: index + 1]`。
            # TODO try a mistake: `drawn[:index]`, or `guesses[: index + 1]`.
            return drawn[: index + 1]
    return drawn


def copy_guesses(tokens: list[int], count: int) -> list[int]:
    """末尾的 3 个（没有就 2 个）token，以前最早在哪里出现过，抄那里后面的。

    Where the last 3 tokens (or else 2) stood first, copy what followed there.
    """
    for size in (3, 2):
        # TODO 试试写错：`len(tokens) - size + 1`（查到自己），或者在 `range` 外面套一个 `reversed`。
        # TODO try a mistake: `len(tokens) - size + 1` (it finds itself), or `reversed` around the `range`.
        for start in range(len(tokens) - size):
            if tokens[start : start + size] == tokens[-size:]:
                return tokens[start + size : start + size + count]
    return []


def draw(scores: Tensor, seed: int, first: int) -> list[int]:
    """每行抽一个 token；第 i 行是第 `first + i` 个输出，用那一份噪声。

    A token for each row; row i is output number `first + i` and takes the noise of that.

    Args:
        scores: [rows, VOCAB_SIZE]
    """
    # TODO 试试写错：`torch.full((len(scores),), first)`，每行都用同一份噪声。
    # TODO try a mistake: `torch.full((len(scores),), first)`, the same noise for all rows.
    indices = torch.arange(first, first + len(scores))  # [rows]
    noise = gumbel_noise(torch.full_like(indices, seed), indices, VOCAB_SIZE)  # [rows, VOCAB_SIZE]
    return (scores + noise).argmax(-1).tolist()


def computed_after(computed: int, num_inputs: int, num_drawn: int, num_kept: int) -> int:
    """这一步之后，缓存里有多少个位置算数：算过的，减去作废的。

    How many positions of the cache count after this step: those computed, less those that became void.
    """
    # TODO 试试写错：去掉 `- (num_drawn - num_kept)`。
    # TODO try a mistake: drop `- (num_drawn - num_kept)`.
    return computed + num_inputs - (num_drawn - num_kept)


class SmallModel:
    """缓存里每个位置放着它的 token；一个位置的分数取决于它和前面两个位置的缓存。

    The cache holds its token at each position; a position's scores depend on the cache there and at the 2 before it.
    """

    def __init__(self) -> None:
        self.table = 2 * torch.randn(VOCAB_SIZE**3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
        self.cache: list[int] = []

    def run(self, inputs: list[int], start: int) -> Tensor:
        """把输入写进缓存，从 `start` 起，覆盖那里原来的；再算每个位置的分数。

        Write the inputs into the cache from `start` on, over whatever is there, and score each position.

        Returns:
            [len(inputs), VOCAB_SIZE]
        """
        self.cache[start : start + len(inputs)] = inputs
        rows = [0, 0, *self.cache]
        return torch.stack([
            self.table[rows[p] * VOCAB_SIZE**2 + rows[p + 1] * VOCAB_SIZE + rows[p + 2]]
            for p in range(start, start + len(inputs))
        ])  # fmt: skip


def write(prompt: list[int], seed: int, said: list[int], count: int) -> tuple[list[int], list[int]]:
    """写 `NUM_TOKENS` 个 token，每步带着 `said` 里的 `count` 个猜测；返回它们，和每步之后的“已算”。

    Write `NUM_TOKENS` tokens, each step with `count` guesses of `said`; returns them, and what counts as computed after
    each step.
    """
    model, tokens, computed = SmallModel(), list(prompt), 0
    after: list[int] = []
    # 改坏了的可能没完没了，或者没什么可算：停下来，由检查说清楚。
    # With a mistake it may never end, or have nothing to compute: stop, and the check says what is off.
    while (done := len(tokens) - len(prompt)) < NUM_TOKENS > len(after) and computed < len(tokens):
        # 最后一个总是抽出来的，不用猜；提示词那一步也不猜。
        # The last one is drawn in any case and need not be guessed; none go with the prompt.
        guesses = said[done : min(done + count, NUM_TOKENS - 1)] if done else []
        inputs = [*tokens, *guesses][computed:]
        drawn = draw(model.run(inputs, computed)[-1 - len(guesses) :], seed, done)
        kept = accept(guesses, drawn)
        computed = computed_after(computed, len(inputs), len(drawn), len(kept))
        tokens += kept
        after.append(computed)
    return tokens[len(prompt) :], after


def from_scratch(prompt: list[int], seed: int) -> list[int]:
    """不猜，也不留缓存：每个 token 都把全文重算一遍，用第几个输出的噪声。

    Without guesses and without a cache that stays: each token computes the whole text again, and takes the noise of its
    output number.
    """
    tokens = list(prompt)
    for index in range(NUM_TOKENS):
        noise = gumbel_noise(torch.tensor([seed]), torch.tensor([index]), VOCAB_SIZE)[0]
        tokens.append(int((SmallModel().run(tokens, 0)[-1] + noise).argmax()))
    return tokens[len(prompt) :]


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="several tokens a step / 一步几个 token")
    parser.add_argument("--guesses", type=int, default=4, help="一步猜几个 / guesses a step")
    parser.add_argument("--temperature", type=float, default=0.8)
    args = parser.parse_args()
    try:
        params = SamplingParams(temperature=args.temperature, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True)
        drafts = SpeculativeConfig(model="tiny-poet-draft", num_speculative_tokens=args.guesses)
    except ValueError as error:
        parser.error(str(error))

    prompt = [1, 2, 3]
    answers = {seed: from_scratch(prompt, seed) for seed in range(NUM_SEEDS)}
    written: dict[int, list[int]] = {}
    computed: dict[int, list[int]] = {}
    by_hand: dict[int, list[int]] = {}
    for seed, answer in answers.items():
        # 一个知道答案的人来猜，每个猜测有 0.3 的机会故意说错。
        # One who knows the answer guesses, and says each guess wrong with a chance of 0.3.
        dice = random.Random(seed)
        said = [(token + (dice.random() < 0.3)) % VOCAB_SIZE for token in answer]
        written[seed], computed[seed] = write(prompt, seed, said, args.guesses)
        # 手算：第 1 步是提示词；以后每步，猜对几个就前进几个，再加 1。
        # By hand: step 1 is the prompt; each later step goes on by the number of right guesses and 1 more.
        done, by_hand[seed] = 1, [len(prompt)]
        while done < NUM_TOKENS:
            right = 0
            while right < min(args.guesses, NUM_TOKENS - done - 1) and said[done + right] == answer[done + right]:
                right += 1
            done += right + 1
            by_hand[seed].append(len(prompt) + done - 1)
    title("小模型", "the small model")
    steps = sum(map(len, computed.values()))
    say(
        f"{NUM_SEEDS} 个种子，每个写 {NUM_TOKENS} 个 token，一共 {steps} 步，不猜要 {NUM_SEEDS * NUM_TOKENS} 步。",
        f"{NUM_SEEDS} seeds write {NUM_TOKENS} tokens each, in {steps} steps; without guesses it takes "
        f"{NUM_SEEDS * NUM_TOKENS}.",
    )
    print(f"  seed 0: {written[0]}\n  computed after each step: {computed[0]}")

    check = Check()
    check.same(
        "留下的与手算的相同", "what is kept is as worked out by hand",
        got=[accept(list(guesses), list(drawn)) for guesses, drawn, _ in ACCEPTED],
        expected=[kept for _, _, kept in ACCEPTED], where="case",
        likely=("逐个比较，在第一个不等的地方停下", "compare one by one and stop at the first that differs"),
        mistakes={
            ("猜错的地方，抽出的那个是真的，也要留下", "where a guess was wrong the draw is the true token: keep it"):
                [drawn if guesses == drawn[:-1] else kept[:-1] for guesses, drawn, kept in ACCEPTED],
            ("猜错的地方要留抽出的，不是猜的", "where a guess was wrong keep the draw and not the guess"):
                [drawn if guesses == drawn[:-1] else guesses[: len(kept)] for guesses, drawn, kept in ACCEPTED],
            ("猜错之后抽出的，接的是错的 token，作废", "what was drawn behind a wrong guess follows a wrong token"):
                [drawn for _, drawn, _ in ACCEPTED],
        },
    )  # fmt: skip
    check.same(
        "抄到的与手算的相同", "what is copied is as worked out by hand",
        got=[copy_guesses(tokens, 3) for tokens, _ in COPIED], expected=[guesses for _, guesses in COPIED],
        where="text",
        likely=("先找 3 个的，再找 2 个的，从头找起", "look for 3 first, then for 2, from the beginning on"),
        mistakes={
            ("要最早的一处：最近的一处后面接得短", "take the first place: behind the latest little follows"):
                [[6, 2, 3], *(guesses for _, guesses in COPIED[1:])],
            ("末尾自己不算，否则总是查到它自己", "leave the end itself out, or it always finds itself"):
                [COPIED[0][1], [], *(guesses for _, guesses in COPIED[2:])],
        },
    )  # fmt: skip
    scores = torch.zeros(6, VOCAB_SIZE)
    noise = {i: gumbel_noise(torch.tensor([3]), torch.tensor([i]), VOCAB_SIZE)[0] for i in range(5, 11)}
    check.same(
        "每行用它自己那个输出的噪声", "each row takes the noise of its own output",
        got=draw(scores, 3, 5), expected=[int(noise[5 + row].argmax()) for row in range(6)], where="row",
        likely=("第 i 行是第 `first + i` 个输出", "row i is output number `first + i`"),
        mistakes={
            ("每行的序号要依次加 1，不能都用同一份噪声", "the index goes up by 1 a row: not the same noise for all"):
                [int(noise[5].argmax())] * 6,
        },
    )  # fmt: skip
    check.same(
        "写出的与从头算、不猜的相同", "what is written is what is written from scratch and without guesses",
        got=written, expected=answers, where="seed, token",
        likely=(
            "留下了猜错的，噪声的序号不对，或者“已算”多数了",
            "a wrong guess was kept, a noise is not its own, or too much counts as computed",
        ),
    )  # fmt: skip
    check.same(
        "每一步之后的“已算”与手算的相同", "what counts as computed after each step is as worked out by hand",
        got=computed, expected=by_hand, where="seed, step",
        likely=(
            "算过的减去作废的：抽出了却没有留下几个，就作废几个",
            "those computed less the void ones, which are as many as were drawn and not kept",
        ),
    )  # fmt: skip
    if check.num_off:
        say("先改对这些，再装进引擎。", "Put these right first; then the engine follows.")
        return check.finish()

    # 引擎：诗人和它的草稿模型，一次不猜，一次用你的 `accept`。
    # The engine: the poet and its draft model, once without guesses and once with your `accept`.
    options = {"model": "tiny-poet", "max_model_len": 128, "num_kvcache_blocks": 64}
    plain, guessing = make_engine(**options), make_engine(**options, speculative_config=asdict(drafts))
    texts = {}
    for name, engine in (("plain", plain), ("guessing", guessing)):
        arrivals = [Arrival(0, text, engine.tokenizer.encode(text), params) for text in ("秋風起，", "river:", "moon:")]
        with patch.object(Sequence, "accept", lambda seq, drawn: accept(seq.draft_ids, drawn)):
            outputs = run_steps(engine, arrivals)[1]
        texts[name] = {prompt: output.outputs[0].token_ids for prompt, output in outputs.items()}
    metrics = guessing.metrics()
    right, made = metrics.num_accepted_tokens, metrics.num_generated_tokens
    say(
        f"诗人：{metrics.num_draft_tokens} 个猜测，对了 {right} 个，每步 {made / (made - right):.2f} 个 token。",
        f"The poet: {metrics.num_draft_tokens} guesses, {right} right, {made / (made - right):.2f} tokens a step.",
    )
    check.same(
        "诗人写的一个 token 也不变", "not a token of what the poet writes changes",
        got=texts["guessing"], expected=texts["plain"], where="prompt, token",
        likely=(
            "猜测进了输出，噪声不是那个位置的，或者缓存里留着猜错的",
            "a guess got into the output, a noise is not that of its position, or the cache kept a wrong guess",
        ),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
