"""实验 1：第一个请求。

学什么：文字怎样变成 token id，引擎怎样一个一个地续写；每一步有哪些候选，温度和种子怎样从中选出一个。
试一试：`--prompt "moon:"`，看 `finish_reason` 变成什么；`--temperature 1.5` 和 `--temperature 0`，看最后一张表；
`--seed 7`；改 `shares` 里标着 TODO 的一行，看检查怎样发现。
怎样算对：贪心的每一步，都与只给那段上文、从头算起的最可能的候选相同；同样的种子写出同样的文字，不管与谁同批；
许多种子抽到的份额，与按温度手算的相差不到 0.1。

Lab 1: the first request.

Teaches: how text becomes token ids, how the engine continues it one by one; which candidates each step has, and how
temperature and seed choose one of them.
Try: `--prompt "moon:"` and see what `finish_reason` becomes; `--temperature 1.5` and `--temperature 0`, for the last
table; `--seed 7`; change the line marked TODO in `shares` and see the check find it.
Check: each greedy step takes the likeliest candidate that the same context gives when computed from the start; the same
seed writes the same text, whoever shares its batch; the shares that many seeds draw are within 0.1 of those worked out
by hand from the temperature.
"""

import argparse
from math import exp

from common import Arrival, Check, make_engine, run_lab, run_steps, say, title

from engine.outputs import CompletionOutput, RequestOutput
from engine.sampling_params import GREEDY_TEMPERATURE, SamplingParams

TOP, NUM_SEEDS = 4, 400


def shares(logprobs: list[float], temperature: float) -> list[float]:
    """候选的对数概率 -> 各占多大份额：除以温度，取指数，再让总和是 1。

    The candidates' log-probabilities -> their shares: divide by the temperature, exponentiate, make the sum 1.
    """
    # 温度是 0，或者低得与 0 无异，就是贪心：最可能的全得。
    # A temperature of 0, or as low as makes no difference, is greedy: the likeliest takes all.
    if temperature < GREEDY_TEMPERATURE:
        return [1.0] + [0.0] * (len(logprobs) - 1)
    # TODO 试试写错：把 `/` 换成 `*`。
    # TODO try a mistake: `*` for `/`.
    scores = [logprob / temperature for logprob in logprobs]
    # 先都减去最大的：份额不变，`exp` 也不会全得 0。
    # Subtract the largest first: shares stay the same, and `exp` cannot give 0 for all.
    weights = [exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="first request / 第一个请求")
    parser.add_argument("--prompt", default="春眠不覺曉，")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    sampled = []
    try:
        for seed in (args.seed, args.seed + 1):
            sampled.append(SamplingParams(temperature=args.temperature, seed=seed, max_tokens=args.max_tokens))
    except ValueError as error:
        parser.error(str(error))
    # 会犹豫的模型，只会续写，没有对话模板；关掉前缀缓存，每个请求都从头算起。
    # The model that hesitates; it only continues text and has no chat template. No prefix caching: every request
    # computes from the start.
    engine = make_engine(model="tiny-poet", max_model_len=128, num_kvcache_blocks=512, enable_prefix_caching=False)
    decode = engine.tokenizer.decode_token
    prompt = engine.tokenizer.encode(args.prompt)
    if len(prompt) < 2:
        parser.error(f"--prompt {args.prompt!r} is too short: write at least one character")
    if len(prompt) + args.max_tokens > 128:
        parser.error(f"a prompt of {len(prompt)} tokens and --max-tokens {args.max_tokens}: use at most 128 in all")

    def complete(prompts: list[list[int]], params: list[SamplingParams]) -> list[CompletionOutput]:
        arrivals = [Arrival(0, str(i), *each) for i, each in enumerate(zip(prompts, params))]
        outputs = run_steps(engine, arrivals)[1]
        return [outputs[arrival.name].outputs[0] for arrival in arrivals]

    title("提示词", "the prompt")
    print(f"  {len(prompt)} tokens: " + " ".join(f"{i}:{decode(i)!r}" for i in prompt))

    title("贪心，一步一步", "greedy, step by step")
    greedy = SamplingParams(temperature=0.0, max_tokens=args.max_tokens, logprobs=TOP)
    engine.add_request(prompt, greedy, "greedy")
    seq = next(iter(engine.scheduler.waiting))
    finished: list[RequestOutput] = []
    number = 0
    while not finished:
        new = seq.num_tokens - seq.num_computed_tokens
        finished = engine.step()
        candidates = " ".join(f"{decode(i)!r} {exp(each.logprob):.0%}" for i, each in seq.logprobs[-1].items())
        print(f"  step {number:>2}: tokens in {new:>2} -> {decode(seq.token_ids[-1])!r}   of {candidates}")
        number += 1
    output = finished[0].outputs[0]
    say(f"续写：{output.text!r}", f"finish_reason: {output.finish_reason}")

    title(f"温度 {args.temperature}", f"temperature {args.temperature}")
    # 先单独跑一个种子，再让它与另一个种子同批。
    # First a seed by itself, then the same seed in a batch with another.
    alone, again, other = complete([prompt], sampled[:1]) + complete([prompt] * 2, sampled)
    for seed, each in ((args.seed, alone), (args.seed, again), (args.seed + 1, other)):
        print(f"  seed {seed}: {each.text!r}")

    # 只在最可能的几个里抽（`top_k`），才好一个一个数。
    # Draw among the likeliest only (`top_k`), so that they can be counted.
    draws = complete([prompt] * NUM_SEEDS, [
        SamplingParams(temperature=args.temperature, seed=seed, max_tokens=1, top_k=TOP) for seed in range(NUM_SEEDS)
    ])  # fmt: skip
    first = sorted(seq.logprobs[0].items(), key=lambda item: -item[1].logprob)[:TOP]
    names, logprobs = [f"{i}:{decode(i)!r}" for i, _ in first], [each.logprob for _, each in first]
    by_hand = shares(logprobs, args.temperature)
    drawn = [sum(each.token_ids[0] == i for each in draws) / NUM_SEEDS for i, _ in first]
    say(f"首个 token，{NUM_SEEDS} 个种子：", f"The first token, {NUM_SEEDS} seeds:")
    for row in zip(names, logprobs, by_hand, drawn):
        print("  {}: probability {:.1%}, share by hand {:.0%}, drawn {:.0%}".format(row[0], exp(row[1]), *row[2:]))

    check = Check()
    # 参照：每一步都当作新请求，把那段上文从头算一遍，不用上一步留下的任何东西。
    # The reference: each step as a new request whose context is computed from the start, with nothing kept from the
    # step before.
    count = len(output.token_ids)
    contexts = [prompt + output.token_ids[:i] for i in range(count)]
    fresh = complete(contexts, [SamplingParams(temperature=0.0, max_tokens=1, logprobs=1)] * count)
    likeliest = [max((each.logprobs or [{}])[0].items(), key=lambda item: item[1].logprob)[0] for each in fresh]
    check.same(
        "贪心的每一步，都取从头算起时最可能的", "each greedy step takes what is likeliest, computed from the start",
        got=[decode(i) for i in output.token_ids], expected=[decode(i) for i in likeliest], where="step",
        likely=(
            "第 0 步就不对：没有取分数最高的；以后才不对：解码的位置，或缓存里的 K、V",
            "wrong from step 0 on: not the highest score; only later: a decode's position, or K and V in the cache",
        ),
    )  # fmt: skip
    ends = [i for i, token in enumerate(output.token_ids) if token in engine.requests.eos_token_ids]
    check.same(
        "遇到停止 token 就停，否则恰好用完 `max_tokens`", "it ends at a stop token, or else with `max_tokens` used up",
        got={"finish_reason": output.finish_reason, "length": count},
        expected={"finish_reason": "stop", "length": ends[0] + 1} if ends
        else {"finish_reason": "length", "length": args.max_tokens}, where="its",
        likely=("`Scheduler._finish_reason`", "`Scheduler._finish_reason`"),
    )  # fmt: skip
    check.same(
        "同样的种子，同样的 token，不管与谁同批", "the same seed gives the same tokens, whoever shares its batch",
        got=again.token_ids, expected=alone.token_ids, where="token",
        likely=(
            "噪声只能由（种子，第几个输出，token id）决定：`gumbel_noise`",
            "noise may depend on (seed, output index, token id) only: `gumbel_noise`",
        ),
    )  # fmt: skip
    check.same(
        "抽到的份额与手算的相差不到 0.1", "the shares drawn are within 0.1 of those by hand",
        got=dict(zip(names, drawn)), expected=dict(zip(names, by_hand)), where="token", tolerance=0.1,
        likely=("候选的份额：`sample`", "the candidates' shares: `sample`"),
        mistakes={
            ("每个种子都抽到同一个：噪声没有用上种子", "every seed draws the same: the noise ignores the seed"):
                {name: float(i == draws[0].token_ids[0]) for name, (i, _) in zip(names, first)},
            ("对数概率要除以温度，不能乘，也不能漏", "log-probabilities are divided by the temperature"):
                dict(zip(names, shares(logprobs, 1 / max(args.temperature, GREEDY_TEMPERATURE)))),
        },
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
