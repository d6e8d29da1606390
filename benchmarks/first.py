"""引擎启动之后每种请求的第一个，要等多久才有首个 token，与同类后来的相比；以及启动本身要多久。

两个全新的进程先后运行，共用一个临时的核函数缓存：第一个进程看到的是空的，第二个看到的是满的。

How long the first request of each kind waits for its first token after the engine has started, beside a later one of
its kind; and how long starting takes.

Two fresh processes run one after the other on a temporary kernel cache: the first finds it empty, the second filled.

Usage: python benchmarks/first.py --config FILE [--json FILE]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from common import add_model_options, environment, make_llm, model_name, random_prompts, write_report

from mini_llama import LLM, SamplingParams

# 每种请求：提示词长度，采样参数。次序要紧：每种都用到前面还没用过的一样东西。
# Each kind: its prompt length and sampling parameters. The order matters: each uses something that those
# before have not.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "8 tokens": (8, {"temperature": 0.0}),
    "300 tokens": (300, {"temperature": 0.0}),
    "sampled": (300, {"temperature": 0.6}),
    "filtered": (300, {"temperature": 0.8, "top_k": 50, "top_p": 0.95}),
    "penalty": (300, {"temperature": 0.6, "repetition_penalty": 1.1}),
    "logprobs": (300, {"temperature": 0.6, "logprobs": 5}),
    "n=4": (300, {"temperature": 0.6, "n": 4}),
}


def request(llm: LLM, rng: random.Random, kind: str) -> dict[str, float]:
    """一个请求的毫秒数：首个 token，以及全部 8 个。

    The milliseconds of one request: to its first token, and to all 8 of them.
    """
    length, sampling = KINDS[kind]
    prompts = random_prompts(rng, [length], llm.engine.model_runner.model_config.vocab_size)
    start = time.perf_counter()
    (result,) = llm.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True, **sampling), progress=False)
    first = result.metrics.time_to_first_token
    assert first is not None
    return {"first_token": first * 1e3, "all_tokens": (time.perf_counter() - start) * 1e3}


def in_this_process(args: argparse.Namespace) -> dict[str, Any]:
    """造引擎，测每种请求的第一个，和后来几个的中位数。

    Make the engine, and measure the first request of each kind and the median of some later ones.
    """
    llm = make_llm(args)
    start_s = time.monotonic() - args.started
    rng = random.Random(0)
    kinds = {}
    for kind in KINDS:
        first, *later = [request(llm, rng, kind) for _ in range(1 + args.repeats)]
        kinds[kind] = {
            f"{key}_ms": {"first": first[key], "later": statistics.median(each[key] for each in later)} for key in first
        }
    return {"environment": environment(llm), "start_s": start_s, "kinds": kinds}


def main() -> None:
    """先后跑两个进程，打印一张表。

    Run the two processes and print a table.
    """
    parser = argparse.ArgumentParser(description="启动后的第一个请求 / the first request after the start")
    add_model_options(parser)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    # 这是子进程：结果写到标准输出，由父进程来读。
    # This is a child: the results go to standard output, where its parent reads them.
    if args.started is not None:
        print(json.dumps(in_this_process(args)))
        return
    report: dict[str, Any] = {"model": model_name(args), "repeats": args.repeats}
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "warm"):
            # `monotonic` 在同一台机器的各进程里是同一个钟，所以导入 Python 的包也算在启动里。
            # `monotonic` is one clock for all processes of a machine, so imports count as part of the start.
            command = [sys.executable, *sys.argv, "--started", str(time.monotonic())]
            env = os.environ | {"TRITON_CACHE_DIR": folder}
            output = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
            result = json.loads(output.splitlines()[-1])
            report |= {"environment": result.pop("environment"), cache: result}
            print(f"{cache} kernel cache: started in {result['start_s']:.1f} s; ms, first request / later ones")
            for kind, times in result["kinds"].items():
                pairs = [f"{key} {pair['first']:8.2f} / {pair['later']:8.2f}" for key, pair in times.items()]
                print(f"  {kind:12}{'   '.join(pairs)}", flush=True)
    write_report(args.json, report)


if __name__ == "__main__":
    main()
