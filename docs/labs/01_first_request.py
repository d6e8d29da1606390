"""实验 1：第一个请求。

学什么：一句话怎样变成 token id，引擎怎样把回答一个 token 一个 token 地写出来，为什么停下。
试一试：加 `--max-tokens 3`，看 `finish_reason` 变成什么；加 `--temperature 1 --seed 7` 跑两遍，看回答是否相同。
怎样算对：`finish_reason` 与输出对得上；同样的种子再跑一遍，token 全部相同；最后一行是 `check: OK`。

Lab 1: the first request.

Teaches: how a sentence becomes token ids, how the engine writes its answer token by token, and why it stops.
Try: add `--max-tokens 3` and see what `finish_reason` becomes; run `--temperature 1 --seed 7` twice and compare.
Check: `finish_reason` fits the output; a second run with the same seed gives the same tokens; the last line is
`check: OK`.
"""

import argparse
import sys

from common import Check, ask, make_engine, say, title

from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="first request / 第一个请求")
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    # 关掉前缀缓存：第二遍也从头算起，两遍的每一步都一模一样。
    # No prefix caching: the second run starts from nothing too, so all steps of both runs are the same.
    engine = make_engine(max_model_len=512, num_kvcache_blocks=64, enable_prefix_caching=False)
    decode = engine.tokenizer.decode_token
    params = SamplingParams(temperature=args.temperature, seed=args.seed, max_tokens=args.max_tokens)
    prompt = ask(engine, args.prompt)

    title("提示词", "the prompt")
    say(f"对话模板加上了标记，共 {len(prompt)} 个 token：", f"The chat template adds its marks; {len(prompt)} tokens:")
    print("  " + " ".join(f"{i}:{decode(i)!r}" for i in prompt))

    title("一步一步地回答", "the answer, step by step")
    engine.add_request(prompt, params, "first")
    seq = next(iter(engine.scheduler.waiting))
    finished: list[RequestOutput] = []
    number = 0
    while not finished:
        new = seq.num_tokens - seq.num_computed_tokens
        finished = engine.step()
        number += 1
        token = seq.token_ids[-1]
        print(f"  step {number:>2}: {new:>3} tokens in -> {token:>4} {decode(token)!r}")
    result = finished[0]
    output = result.outputs[0]
    say(f"回答：{output.text}", f"finish_reason: {output.finish_reason}")
    ttft = result.metrics.time_to_first_token or 0.0
    say(f"首个 token 用了 {ttft * 1000:.1f} 毫秒", f"Time to first token: {ttft * 1000:.1f} ms")

    engine.add_request(prompt, params, "again")
    again: list[RequestOutput] = []
    while not again:
        again = engine.step()

    check = Check()
    stopped = output.token_ids[-1] in engine.requests.eos_token_ids
    check.that(
        output.finish_reason == ("stop" if stopped else "length"),
        "以停止 token 结尾是 stop，否则是 length", "it is stop after a stop token, else length",
    )
    check.that(
        stopped or len(output.token_ids) == args.max_tokens,
        "不是停止 token，就恰好用完 `max_tokens`", "without a stop token it used up `max_tokens`",
    )
    check.that(
        output.token_ids == again[0].outputs[0].token_ids,
        "再跑一遍，token 全部相同", "a second run gives the same tokens",
    )
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
