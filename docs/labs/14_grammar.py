"""实验 14：亲手写一个语法的掩码。

学什么：语法是一个状态和两个问题，“下一个字符行不行”“可以在这里结束吗”；token 有好几个字符，要一个一个走过去；
掩码把走不通的 token 变成 -inf，引擎就只会写出合乎语法的文字。
试一试：`--prompt "river:"`、`--seed 7`、`--temperature 0`、`--words 5`；再改标着 TODO 的几行，看检查怎样发现。
怎样算对：几个小词表上的状态和掩码与手算的相同；真正的词表上，每一步的掩码与 llguidance 对同一个正则给出的相同；
引擎用你的掩码写出的，与它自己的结构化输出逐个 token 相同，也都匹配 `re`；旁边没有语法的请求不变。

Lab 14: write the mask of a grammar by hand.

Teaches: a grammar is a state and two questions, "may this character come next" and "may it end here"; a token has
several characters, which are walked one by one; the mask turns tokens that lead nowhere into -inf, and the engine
writes nothing but text of the grammar.
Try: `--prompt "river:"`, `--seed 7`, `--temperature 0`, `--words 5`; then change the lines marked TODO and see the
check find it.
Check: states and masks on small vocabularies are those worked out by hand; on the real vocabulary each step's mask is
the one that llguidance gives for the same regular expression; what the engine writes with your mask equals its own
structured output token by token and matches `re`; a request without a grammar beside it is unchanged.
"""

import argparse
import re

from common import Arrival, Check, make_engine, run_lab, run_steps, say, title

from engine.guides import Guide, Guides, StructuredOutputsParams
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence

# 语法：每个词是 2 到 9 个小写字母，词前各有一个空格。状态是（写完几个词，手上这个词有几个字母，-1 是还没开始）。
# The grammar: each word has 2 to 9 lower-case letters, with a space before it. The state is (words that are done,
# letters of the word in hand, -1 if none has begun).
SHORTEST, LONGEST = 2, 9
State = tuple[int, int]
START: State = (0, -1)

# 手算：从哪个状态走过哪段文字，到了哪里；None 是走不通。至多 2 个词。
# By hand: from which state, over which text, to where; None leads nowhere. At most 2 words.
WALKS: list[tuple[State, str, State | None]] = [
    (START, " ", (0, 0)), (START, "a", None), (START, " moon", (0, 4)), ((0, 4), " i", (1, 1)), ((0, 1), " i", None),
    ((1, 3), " ", None), ((0, 8), "s", (0, 9)), ((0, 9), "s", None), ((0, 3), "S", None), ((0, 0), " ", None),
]  # fmt: skip
# 一个小词表，几个状态下允许哪些；最后一个是停止 token，倒数第二个没有文字。
# A small vocabulary, and which of it are allowed in some states; the last is a stop token, the one before has no text.
WORDS = [" a", " mo", "on", "n t", "ed by", "the", " ", "", "</s>"]
ALLOWED: dict[State, list[int]] = {
    START: [0, 1, 6], (0, 1): [2, 3, 4, 5], (0, 4): [0, 1, 2, 3, 4, 5, 6, 8], (1, 1): [2, 5], (1, 8): [8],
}  # fmt: skip


def step(state: State, char: str, words: int) -> State | None:
    """走过一个字符；走不通是 None。

    Walk over one character; None if it leads nowhere.

    Args:
        words: 至多几个词；how many words at most
    """
    done, letters = state
    if "a" <= char <= "z":
        # TODO 试试写错：去掉 `letters >= 0`，或把 `<` 换成 `<=`。
        # TODO try a mistake: drop `letters >= 0`, or take `<=` for `<`.
        return (done, letters + 1) if letters >= 0 and letters < LONGEST else None
    if char != " ":
        return None
    if letters < 0:
        return (0, 0)
    # 空格结束手上的词，所以它要够长，后面也要还容得下一个词。
    # A space ends the word in hand, so that must be long enough, and there must be room for another word.
    # TODO 试试写错：去掉 `letters >= SHORTEST`。
    # TODO try a mistake: drop `letters >= SHORTEST`.
    return (done + 1, 0) if letters >= SHORTEST and done + 1 < words else None


def walk(state: State | None, text: str, words: int) -> State | None:
    """走过一个 token 的全部字符。

    Walk over all characters of a token.
    """
    # TODO 试试写错：只看头一个字符，`text[:1]`。
    # TODO try a mistake: look at the first character only, `text[:1]`.
    for char in text:
        state = None if state is None else step(state, char, words)
    return state


def may_end(state: State) -> bool:
    """文字可以在这里结束吗。

    May the text end here?
    """
    return state[1] >= SHORTEST


def allowed(state: State, vocabulary: list[str], stops: set[int], words: int) -> list[int]:
    """此刻允许哪些 token：有文字、走得通的；可以结束时，加上停止 token。

    Which tokens are allowed now: those that have text and lead somewhere; where it may end, stop tokens as well.
    """
    fits = [i for i, text in enumerate(vocabulary) if text and i not in stops and walk(state, text, words) is not None]
    # TODO 试试写错：无论如何都加上 `stops`。
    # TODO try a mistake: add `stops` in any case.
    return sorted([*fits, *(stops if may_end(state) else ())])


class MyGuide(Guide):
    """引擎认得的样子：`mask` 给出掩码，`advance` 往前走。采样和调度用的就是这两个方法。

    The form that the engine knows: `mask` gives the mask, `advance` moves on. Sampler and scheduler use just these two.

    Attributes:
        masks: 每一步允许了哪些；what was allowed in each step
    """

    def __init__(self, vocabulary: list[str], stops: set[int], words: int) -> None:
        self.vocabulary, self.stops, self.words = vocabulary, stops, words
        self.state: State | None = START
        self.masks: list[list[int]] = []

    def mask(self) -> bytearray:
        """一个 token 一位，低位在前。

        A bit a token, the lowest first.
        """
        ids = [] if self.state is None else allowed(self.state, self.vocabulary, self.stops, self.words)
        self.masks.append(ids)
        mask = bytearray((len(self.vocabulary) + 31) // 32 * 4)
        for token in ids:
            # TODO 试试写错：`7 - token % 8`，高位在前。
            # TODO try a mistake: `7 - token % 8`, the highest first.
            mask[token // 8] |= 1 << token % 8
        return mask

    def advance(self, token: int) -> bool:
        """收下选中的 token；有停止 id，就由它来结束。

        Take the chosen token; with stop ids it is these that end the output.
        """
        self.state = walk(self.state, self.vocabulary[token], self.words)
        return False


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="the mask of a grammar / 语法的掩码")
    parser.add_argument("--prompt", default="moon:", help="续写什么 / what to continue")
    parser.add_argument("--words", type=int, default=3, help="至多几个词 / words at most")
    parser.add_argument("--seed", type=int, default=1, help="种子 / seed")
    parser.add_argument("--temperature", type=float, default=1.0, help="温度 / temperature")
    args = parser.parse_args()
    if not 1 <= args.words <= 8 or not 0 < len(args.prompt) <= 100 or args.seed < 0 or not 0 <= args.temperature <= 2:
        parser.error("use --words 1 to 8, a --prompt of 1 to 100 characters, a --seed from 0, a --temperature to 2")

    engine = make_engine(model="tiny-poet", max_model_len=256, num_kvcache_blocks=128)
    tokenizer, stops = engine.tokenizer, set(engine.requests.eos_token_ids)
    special = set(tokenizer.hf_tokenizer.all_special_ids)
    vocabulary = ["" if i in special else tokenizer.decode_token(i) for i in range(engine.requests.vocab_size)]
    # 同一个语法写成正则，交给 llguidance。
    # The same grammar as a regular expression, for llguidance.
    regex = f"( [a-z]{{{SHORTEST},{LONGEST}}}){{1,{args.words}}}"
    prompt, wanted = tokenizer.encode(args.prompt), StructuredOutputsParams(regex=regex)
    free = SamplingParams(temperature=args.temperature, seed=args.seed, max_tokens=100)
    guided = SamplingParams(
        temperature=args.temperature, seed=args.seed, max_tokens=100, structured_outputs=wanted, logprobs=1
    )
    alone = run_steps(engine, [Arrival(0, "free", prompt, free)])[1]["free"].outputs[0]
    theirs = run_steps(engine, [Arrival(0, "guided", prompt, guided)])[1]["guided"].outputs[0]

    # 把自己的掩码放进引擎：请求到来时，换掉它带来的那个。
    # Your mask goes into the engine: when the request arrives, it takes the place of the one that came along.
    mine, real_add = MyGuide(vocabulary, stops, args.words), engine.scheduler.add

    def add(seq: Sequence) -> None:
        seq.guide = mine if seq.request_id == "mine" else seq.guide
        real_add(seq)

    engine.scheduler.add = add  # type: ignore[method-assign]
    both = run_steps(engine, [Arrival(0, "mine", prompt, guided), Arrival(0, "free", prompt, free)])[1]
    output, beside = both["mine"].outputs[0], both["free"].outputs[0]

    title("一步一步：允许几个，选中哪个", "step by step: how many are allowed, which is chosen")
    for number, token in enumerate(output.token_ids):
        ids = mine.masks[number]
        likeliest = max((output.logprobs or [])[number].items(), key=lambda item: item[1].logprob)[0]
        print(f"  step {number:>2}: {len(ids):>5} of {len(vocabulary)} allowed -> {tokenizer.decode_token(token)!r}"
              f"   without a grammar the likeliest: {tokenizer.decode_token(likeliest)!r}")  # fmt: skip
    say(f"有语法：{output.text!r}", f"with the grammar: {output.text!r}, {output.finish_reason}")
    say(f"没有语法：{alone.text!r}", f"without: {alone.text!r}")

    # llguidance 沿着引擎写出的走一遍；它眼里的第 i 步，就是写了 i 个 token 之后。
    # llguidance walks along what the engine has written; its step i is that after i tokens.
    judge = Guides(tokenizer, len(vocabulary)).start(wanted, frozenset(stops))
    right = []
    for token in theirs.token_ids:
        right.append(judge.allowed())
        if token not in stops:
            judge.advance(token)

    # 每一步比较两边，只看一边允许、另一边不允许的。
    # For each step, look at what one side allows and the other does not.
    decode = tokenizer.decode_token
    check = Check()
    names = [f"{state} over {text!r}" for state, text, _ in WALKS]
    check.same(
        "从一个状态走过一段文字，到的地方与手算的相同", "from a state over a text to where it leads by hand",
        got={name: walk(state, text, 2) for name, (state, text, _) in zip(names, WALKS)},
        expected={name: end for name, (_, _, end) in zip(names, WALKS)}, where="from",
        likely=("字母只在词里面、不到最长；空格只在词够长、还有下一个词时",
                "a letter within a word not full; a space after a word long enough, if another may come"),
        mistakes={
            ("token 的每个字符都要走，不只头一个", "every character of a token is walked, not the first alone"):
                {name: step(state, text[0], 2) for name, (state, text, _) in zip(names, WALKS)},
        },
    )  # fmt: skip
    check.same(
        "小词表上允许的与手算的相同", "what is allowed of a small vocabulary is as by hand",
        got={state: allowed(state, WORDS, {len(WORDS) - 1}, 2) for state in ALLOWED}, expected=ALLOWED, where="state",
        likely=("走得通的 token；没有文字的不算；可以结束时加上停止 token",
                "tokens that lead somewhere; none without text; stop tokens where it may end"),
        mistakes={
            ("停止 token 只在可以结束的地方允许", "a stop token is allowed only where the text may end"):
                {state: sorted({*ids, len(WORDS) - 1}) for state, ids in ALLOWED.items()},
            ("没有文字的 token 哪里也到不了，会没完没了", "a token without text gets nowhere, and for ever"):
                {state: sorted({*ids, len(WORDS) - 2}) for state, ids in ALLOWED.items()},
        },
    )  # fmt: skip
    check.same(
        "真正的词表上，每一步的掩码与 llguidance 的相同", "on the real vocabulary each step's mask is llguidance's",
        got=[[decode(i) for i in sorted({*a} ^ {*b})] for a, b in zip(mine.masks, right)],
        expected=[[] for _ in right], where="step",
        likely=("同样的正则，同样的词表：看上面两条", "the same expression, the same vocabulary: see the two above"),
    )  # fmt: skip
    check.same(
        "引擎用你的掩码写的，与它自己的相同", "what the engine writes with your mask is what it writes with its own",
        got=output.token_ids, expected=theirs.token_ids, where="token",
        likely=("掩码的位、`advance`，或者引擎里用到它们的地方：`ban`、`_finish_reason`",
                "the mask's bits, `advance`, or where the engine uses them: `ban`, `_finish_reason`"),
    )  # fmt: skip
    # 结束的原因，和整个文字是不是匹配。
    # Why it ended, and whether the whole text matches.
    check.same(
        "写完了，匹配正则", "complete, and the expression matches", where="output",
        got={name: (each.finish_reason, re.fullmatch(regex, each.text) is not None)
             for name, each in (("yours", output), ("the engine's", theirs))},
        expected={"yours": ("stop", True), "the engine's": ("stop", True)},
        likely=("停止 token 在不能结束的地方也被允许，或 -inf 没有加上",
                "a stop token was allowed where the text may not end, or no -inf was set"),
    )  # fmt: skip
    check.same(
        "旁边没有语法的请求，与单独运行时相同", "the request without a grammar beside it is as it was alone",
        got=beside.token_ids, expected=alone.token_ids, where="token",
        likely=("掩码只加在自己那一行：`ban`", "a mask is for its own row only: `ban`"),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
