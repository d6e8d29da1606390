"""猜测值不值：同一个模型不猜、抄 n 元组、问草稿模型，轮流运行；再加一个有八成把握的“先知”，看机器最多能省多少。

真实权重时续写几行诗和词典的释义；随机权重（`--config`）时提示词是随机的 token，n 元组几乎查不到，
量的就是“白猜”的代价；先知猜的每个 token 有 80 % 的机会算对，与抽出了什么无关，只为量时间。

Whether guessing pays: the same model without guesses, with n-grams and with a draft model take turns, and an "oracle"
that is right 80 % of the time shows what the machine could save at best.
With real weights they continue lines of verse and dictionary glosses. With random ones (`--config`) prompts are random
tokens, n-grams find next to nothing, and what is measured is the price of guessing in vain. Each of the oracle's
guesses counts as right with a chance of 80 %, whatever was drawn: it is there for the time alone.

Usage: python benchmarks/speculation.py [--model DIR --draft-model DIR | --config FILE] [--temperature X] [--json FILE]
"""

import argparse
import random
import time
from typing import Any

import torch
from common import ROOT, add_model_options, environment, make_llm, model_name, random_prompts, spread, write_report

from engine.drafters import Drafter
from engine.sequence import Sequence
from mini_llama import LLM, SamplingParams

TEXTS = (ROOT / "benchmarks" / "speculation.txt").read_text(encoding="utf-8").splitlines()
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
RIGHT = 0.8


class Oracle(Drafter):
    """猜什么都行：对不对由掷骰子决定。

    Any guess will do: a throw of dice says whether it is right.
    """

    def guess(self, seq: Sequence) -> list[int]:
        return [1] * self.num_draft_tokens


def throw_dice(seq: Sequence, drawn: list[int]) -> list[int]:
    """代替 `Sequence.accept`：每个猜测有 80 % 的机会算对。

    In place of `Sequence.accept`: each guess counts as right with a chance of 80 %.
    """
    dice = random.Random(seq.num_output_tokens)
    wrong = (index for index in range(len(drawn) - 1) if dice.random() >= RIGHT)
    return drawn[: next(wrong, len(drawn) - 1) + 1]


def run(llm: LLM, prompts: list[Any], params: SamplingParams) -> dict[str, float]:
    """跑一遍：秒数、每步几个 token、猜对的比例。

    One run: seconds, tokens a step, the share of guesses that were right.
    """
    before, start = llm.engine.metrics(), time.perf_counter()
    outputs = llm.generate(prompts, params, progress=False)
    seconds, after = time.perf_counter() - start, llm.engine.metrics()
    drafts, guesses, right = (
        getattr(after, name) - getattr(before, name)
        for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    )
    # 一行一步：首个 token 也是一步；没有猜测的步得 1 个 token。
    # A row a step, the first token included; a step without guesses yields 1 token.
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {
        "tok_per_s": tokens / seconds, "tokens_per_step": tokens / (tokens - right),
        "drafted_steps": drafts / (tokens - right), "accepted": right / guesses if guesses else 0.0,
    }  # fmt: skip


def main() -> None:
    """读选项，轮流运行，打印一张表。

    Read the options, run in turns, print a table.
    """
    parser = argparse.ArgumentParser(description="猜测值不值 / whether guessing pays")
    add_model_options(parser)
    parser.add_argument("--draft-model", metavar="DIR")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--requests", type=int, default=1, help="同时几个 / how many at once")
    parser.add_argument("--prompt-tokens", type=int, default=2000, help="随机提示词的长度 / of random prompts")
    parser.add_argument("--output-tokens", type=int, default=128)
    args = parser.parse_args()
    ways: dict[str, Any] = {"no guesses": None, "n-grams": NGRAM}
    if args.draft_model:
        ways["draft model"] = {"model": args.draft_model, "num_speculative_tokens": 4}
    if args.config:
        ways["oracle, 80 %"] = NGRAM
    # 真实权重：请求轮流取各行；随机权重：长度一样的随机提示词。
    # Real weights: requests take the lines in turn; random weights: random prompts of equal length.
    longest = args.prompt_tokens if args.config else 64
    blocks = args.requests * ((longest + args.output_tokens) // 16 + 2)
    common = {"device": args.device, "dtype": args.dtype, "enable_prefix_caching": False, "kvcache_block_size": 16,
              "num_kvcache_blocks": blocks, "max_num_seqs": args.requests}  # fmt: skip
    args.max_model_len = args.max_model_len or longest + args.output_tokens
    llms = {name: make_llm(args, **common, speculative_config=way) for name, way in ways.items()}
    if args.config:
        llms["oracle, 80 %"].engine.drafter = Oracle(NGRAM["num_speculative_tokens"])
    params = SamplingParams(temperature=args.temperature, seed=0, max_tokens=args.output_tokens, ignore_eos=True)
    rng, found = random.Random(0), {name: list[dict[str, float]]() for name in ways}
    vocab_size = llms["no guesses"].engine.model_runner.model_config.vocab_size
    accept = Sequence.accept
    for repeat in range(args.repeats + 1):
        texts = [TEXTS[(args.requests * repeat + i) % len(TEXTS)] for i in range(args.requests)]
        prompts = random_prompts(rng, [longest] * args.requests, vocab_size) if args.config else texts
        for name, llm in llms.items():
            Sequence.accept = throw_dice if name.startswith("oracle") else accept  # type: ignore[method-assign]
            figures = run(llm, prompts, params)
            # 第 0 次是热身，不计入。
            # Run 0 warms up and does not count.
            found[name] += [figures] if repeat > 0 else []
    Sequence.accept = accept  # type: ignore[method-assign]
    results = []
    print(f"{'':16}{'tok/s':>10}{'ratio':>8}{'tokens a step':>16}{'steps with guesses':>20}{'accepted':>10}")
    for name, runs in found.items():
        result: dict[str, Any] = {"name": name} | {key: spread([each[key] for each in runs]) for key in runs[0]}
        base = spread([each["tok_per_s"] for each in found["no guesses"]])
        result["ratio"] = result["tok_per_s"]["median"] / base["median"]
        middle = {key: value["median"] for key, value in result.items() if isinstance(value, dict)}
        print(f"{name:16}{middle['tok_per_s']:10,.1f}{result['ratio']:8.2f}{middle['tokens_per_step']:16.2f}"
              f"{middle['drafted_steps']:20.0%}{middle['accepted']:10.0%}")  # fmt: skip
        results.append(result)
    info = environment(llms["no guesses"]) | {"threads": torch.get_num_threads()}
    write_report(args.json, {"model": model_name(args), "environment": info, "repeats": args.repeats,
                             "requests": args.requests, "temperature": args.temperature,
                             "output_tokens": args.output_tokens, "results": results})  # fmt: skip


if __name__ == "__main__":
    main()
