"""吞吐量：random-256，256 个请求，提示词与输出的长度都在 100 到 1024 之间均匀随机，温度 0.6。

`--shared-prefix N` 让所有提示词以同样的 N 个 token 开头，看前缀缓存省下多少。

Throughput: random-256, that is 256 requests whose prompt and output lengths are uniform in 100 to 1024, at temperature
0.6.

`--shared-prefix N` lets all prompts begin with the same N tokens, to see what the prefix cache saves.

Usage: python benchmarks/throughput.py --config FILE [--json FILE]
"""

import argparse
import random
import time

from common import add_model_options, environment, make_llm, random_prompts, spread, write_report

from mini_llama import SamplingParams


def main() -> None:
    """跑若干遍，打印每遍的 tok/s 和中位数。

    Run several times and print each run's tok/s and the median.
    """
    parser = argparse.ArgumentParser(description="吞吐量 / throughput")
    add_model_options(parser)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--shared-prefix", type=int, default=0, metavar="N")
    args = parser.parse_args()
    # 种子固定，次序固定：先是每个提示词的长度和内容，然后才是所有输出长度，与同类引擎的测法一致。
    # A fixed seed and order: each prompt's length and ids first, all output lengths after, as engines of this kind do.
    random.seed(0)
    lengths = []
    for _ in range(args.requests):
        lengths.append(random.randint(100, 1024))
        _ = [random.randint(0, 10000) for _ in range(lengths[-1])]
    outputs = [random.randint(100, 1024) for _ in range(args.requests)]

    llm = make_llm(args)
    vocab_size = llm.engine.model_runner.model_config.vocab_size
    params = [SamplingParams(temperature=0.6, ignore_eos=True, max_tokens=count) for count in outputs]
    speeds, hits = [], []
    rng = random.Random(1)
    for repeat in range(args.repeats + 1):
        prefix = random_prompts(rng, [args.shared_prefix], vocab_size)[0]
        prompts = [prefix + prompt for prompt in random_prompts(rng, lengths, vocab_size)]
        start = time.perf_counter()
        results = llm.generate(prompts, params, progress=False)
        seconds = time.perf_counter() - start
        # 数真正输出的 token，而不是要求的数。
        # Count the tokens really put out, not those asked for.
        tokens = sum(len(result.outputs[0].token_ids) for result in results)
        hits.append(sum(result.num_cached_tokens for result in results))
        print(f"run {repeat}: {tokens} tokens, {seconds:.2f} s, {tokens / seconds:,.0f} tok/s", flush=True)
        # 第 0 遍热身（首次编译），不计入。
        # Run 0 warms up (first compilations) and does not count.
        if repeat > 0:
            speeds.append(tokens / seconds)
    print(f"median {spread(speeds)['median']:,.0f} tok/s")
    report = {"benchmark": "throughput", "requests": args.requests, "shared_prefix": args.shared_prefix}
    report |= {"environment": environment(llm), "config": args.config or args.model, "output_tokens": tokens}
    report |= {"tok_per_s": spread(speeds), "cached_prompt_tokens": hits[-1]}
    write_report(args.json, report)


if __name__ == "__main__":
    main()
