"""实验 4：连续批处理。

学什么：请求随时到来，短的先走，空出的位置下一步就有人补上；与“凑齐一批、等最长的”比，差多少步。
试一试：`--max-num-seqs 1`、`--max-num-seqs 5`；改 `REQUESTS`，找一组让静态批处理一步也不多花的请求。
怎样算对：有人等待时位置从不空着；总步数不多于静态批处理；每个请求都得到要的 token 数。

Lab 4: continuous batching.

Teaches: requests come at any time, short ones leave early, and the seat is taken in the next step; how many steps that
saves beside "fill a batch and wait for its longest".
Try: `--max-num-seqs 1`, `--max-num-seqs 5`; change `REQUESTS` and find a set for which static batching costs no step
more.
Check: no seat is empty while somebody waits; not more steps than static batching; each request gets its tokens.
"""

import argparse
import sys

from common import Arrival, Check, ask, make_engine, print_steps, run_steps, say, title

from engine.sampling_params import SamplingParams

# TODO 改改看：名字、第几步到来、要几个 token。
# TODO change these: name, before which step it arrives, how many tokens it wants.
REQUESTS = [("A", 0, 12), ("B", 0, 3), ("C", 1, 6), ("D", 2, 4), ("E", 6, 5)]


def static_steps(cap: int) -> int:
    """静态批处理要走到第几步：每批凑 `cap` 个，等最长的那个完成，才开始下一批。

    At which step static batching ends: batches of `cap`, each waits for its longest before the next begins.
    """
    end = 0
    queue = sorted(REQUESTS, key=lambda request: request[1])
    for start in range(0, len(queue), cap):
        group = queue[start : start + cap]
        end = max(end, *(step for _, step, _ in group)) + max(count for _, _, count in group)
    return end


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="continuous batching / 连续批处理")
    parser.add_argument("--max-num-seqs", type=int, default=2, help="最多几个同时运行 / how many run at once")
    args = parser.parse_args()
    cap = args.max_num_seqs
    if cap < 1:
        parser.error("--max-num-seqs must be at least 1")
    engine = make_engine(max_model_len=256, num_kvcache_blocks=128, max_num_seqs=cap)
    prompt = ask(engine, "Count from 1 to 20")
    arrivals = [
        Arrival(step, name, prompt, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
        for name, step, count in REQUESTS
    ]
    steps, outputs = run_steps(engine, arrivals)

    title("谁在哪一步运行", "who ran in which step")
    say(
        f"提示词 {len(prompt)} 个 token。大的数字是预填充，1 是解码，w 是等待；后来者命中前缀缓存，只算剩下的。",
        f"Prompts of {len(prompt)} tokens. A large number is a prefill, 1 a decode, w waiting; later prompts hit the "
        "prefix cache and compute only the rest.",
    )
    print_steps(steps, [name for name, _, _ in REQUESTS])
    ours, static = steps[-1].number + 1, static_steps(cap)
    say(f"连续批处理 {ours} 步，静态批处理 {static} 步。", f"Continuous batching: {ours} steps; static: {static}.")

    check = Check()
    check.that(
        all(len(step.rows) == cap or not step.waiting for step in steps),
        "有人等待时，位置都坐满了", "while somebody waits, every seat is taken",
    )
    check.that(ours <= static, "不比静态批处理多走一步", "not a step more than static batching")
    counts = {name: len(outputs[name].outputs[0].token_ids) for name, _, _ in REQUESTS}
    check.that(
        counts == {name: count for name, _, count in REQUESTS},
        "每个请求都得到要的 token 数", "each request got the tokens it wanted",
    )
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
