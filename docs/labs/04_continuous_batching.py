"""实验 4：连续批处理。

学什么：请求随时到来，短的先走，空出的位置下一步就有人补上；与“凑齐一批、等最长的”比，差多少步。
试一试：`--max-num-seqs 1`、`--max-num-seqs 5`；改 `REQUESTS`，找一组让静态批处理一步也不多花的请求。
怎样算对：每一步运行的，就是用数字手算出的那几个；每个请求都得到要的 token 数。

Lab 4: continuous batching.

Teaches: requests come at any time, short ones leave early, and the slot is taken in the next step; how many steps that
saves beside "fill a batch and wait for its longest".
Try: `--max-num-seqs 1`, `--max-num-seqs 5`; change `REQUESTS` and find a set for which static batching costs no step
more.
Check: in each step those run that were worked out by hand, with numbers alone; each request gets its tokens.
"""

import argparse

from common import Arrival, Check, ask, make_engine, print_steps, run_lab, run_steps, say, steps_by_hand, title

from engine.sampling_params import SamplingParams

# TODO 改改看：名字、第几步到来、要几个 token。
# TODO change these: name, before which step it arrives, how many tokens it wants.
REQUESTS = [("A", 0, 12), ("B", 0, 3), ("C", 1, 6), ("D", 2, 4), ("E", 6, 5)]


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
    # 关掉前缀缓存：手算时不必知道谁命中了谁的提示词。
    # No prefix caching: by hand nobody has to know whose prompt hits whose.
    engine = make_engine(
        max_model_len=256, num_kvcache_blocks=128, max_num_seqs=cap, enable_prefix_caching=False
    )
    prompt = ask(engine, "Count from 1 to 20")

    def arrivals(more: int = 0) -> list[Arrival]:
        return [
            Arrival(step, name, prompt, SamplingParams(temperature=0.0, max_tokens=count + more, ignore_eos=True))
            for name, step, count in REQUESTS
        ]

    steps, outputs = run_steps(engine, arrivals())
    static = steps_by_hand(arrivals(), cap, static=True)

    title("谁在哪一步运行", "who ran in which step")
    say(
        f"提示词 {len(prompt)} 个 token。大的数字是预填充，1 是解码，w 是等待。",
        f"Prompts of {len(prompt)} tokens. A large number is a prefill, 1 a decode, w waiting.",
    )
    print_steps(steps, [name for name, _, _ in REQUESTS])
    ours, theirs = steps[-1].number + 1, max(static) + 1
    say(f"连续批处理 {ours} 步，静态批处理 {theirs} 步。", f"Continuous batching: {ours} steps; static: {theirs}.")

    check = Check()
    check.same(
        "每一步运行的与手算的相同", "in each step those run that were worked out by hand",
        got={step.number: step.rows for step in steps}, expected=steps_by_hand(arrivals(), cap), where="step",
        likely=(
            "先来先服务；有空位而且有人等待，下一步就补上：`Scheduler.schedule` 的第 2 部分",
            "first come first served, and a free slot is taken in the next step: part 2 of `Scheduler.schedule`",
        ),
        mistakes={
            ("这是静态批处理：一批全部离开，才接纳下一批", "static batching: all have to leave before the next come"):
                static,
            ("空着一个位置：与 `max_num_seqs` 的比较差 1", "a slot stays empty: off by 1 beside `max_num_seqs`"):
                steps_by_hand(arrivals(), max(cap - 1, 1)),
            ("每个请求多走一步：长度上限晚查一个 token", "a step more for each request: its limit comes a token late"):
                steps_by_hand(arrivals(more=1), cap),
        },
    )  # fmt: skip
    check.same(
        "每个请求都得到要的 token 数", "each request got the tokens it wanted",
        got={name: len(output.outputs[0].token_ids) for name, output in outputs.items()},
        expected={name: count for name, _, count in REQUESTS}, where="request",
        likely=("长度上限：`Scheduler._at_length_limit`", "the length limit: `Scheduler._at_length_limit`"),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
