"""实验 5：分块预填充。

学什么：每步有 token 预算；长提示词被切成几个分段，别人的解码与它同处一步，不用等它整段算完。
试一试：`--budget 128`（不切）、`--budget 8`（切得更碎）、`--budget 1`（全被解码用掉）、`--prompt-tokens 200`。
怎样算对：每一步谁算几个 token，与用数字手算的相同：先解码，余下的预算才给长提示词；切与不切，输出相同。

Lab 5: chunked prefill.

Teaches: a step has a token budget; a long prompt is cut into chunks, and others' decodes share its steps instead of
waiting for all of it.
Try: `--budget 128` (no cut), `--budget 8` (finer), `--budget 1` (decodes use it all up), `--prompt-tokens 200`.
Check: in each step everybody computes as many tokens as were worked out by hand, with numbers alone: decodes first, and
what is left of the budget goes to the long prompt; the output is the same, cut or not.
"""

import argparse

from common import Arrival, Check, Step, ask, make_engine, print_steps, run_lab, run_steps, say, steps_by_hand, title

from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="chunked prefill / 分块预填充")
    parser.add_argument("--budget", type=int, default=32, help="每步的 token 预算 / token budget of a step")
    parser.add_argument("--prompt-tokens", type=int, default=90, help="长提示词多长 / length of the long prompt")
    args = parser.parse_args()
    if args.budget < 1 or not 2 <= args.prompt_tokens <= 400:
        parser.error("--budget must be at least 1 and --prompt-tokens from 2 to 400")

    def run(budget: int) -> tuple[list[Step], dict[str, RequestOutput], list[Arrival], Tokenizer]:
        engine = make_engine(
            max_model_len=512, num_kvcache_blocks=128, max_num_batched_tokens=budget,
            enable_prefix_caching=False,
        )  # fmt: skip
        # 长提示词：先讲许多事，最后才提问；取结尾的那些 token，问题总在里面。
        # The long prompt tells many things and asks at the end; the last tokens are kept, so the question stays.
        places = ("Japan", "Italy", "Spain", "Egypt") * 12
        story = " ".join(f"The capital of {name} is a city." for name in places)
        question = ask(engine, story + " What is the capital of Italy?")
        arrivals = [
            Arrival(step, name, prompt, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
            for name, step, prompt, count in (
                ("A", 0, ask(engine, "Count from 1 to 20"), 12), ("B", 2, question[-args.prompt_tokens :], 4),
            )
        ]  # fmt: skip
        steps, outputs = run_steps(engine, arrivals)
        return steps, outputs, arrivals, engine.tokenizer

    steps, outputs, arrivals, tokenizer = run(args.budget)
    title(f"预算 {args.budget}", f"a budget of {args.budget}")
    print_steps(steps, ["A", "B"])
    chunks = [step.rows["B"] for step in steps if "B" in step.rows][:-3]
    longest = max(sum(step.rows.values()) for step in steps)
    say(
        f"B 的提示词分成 {len(chunks)} 段：{chunks}；最忙的一步算 {longest} 个，A 最多等一步。",
        f"B's prompt took {len(chunks)} chunk{'s' * (len(chunks) > 1)}: {chunks}; the busiest step computes "
        f"{longest} tokens, A waits no longer than that step.",
    )
    whole, whole_outputs, _, _ = run(2048)
    say(
        f"不切的话，最忙的一步算 {max(sum(step.rows.values()) for step in whole)} 个 token。",
        f"Uncut, the busiest step computes {max(sum(step.rows.values()) for step in whole)} tokens.",
    )
    for name in ("A", "B"):
        print(f"  {name}: {tokenizer.decode(outputs[name].outputs[0].token_ids)!r}")

    check = Check()
    check.same(
        "每一步各算几个 token，与手算的相同", "each step has the tokens that were worked out by hand",
        got={step.number: step.rows for step in steps}, expected=steps_by_hand(arrivals, budget=args.budget),
        where="step",
        likely=(
            "运行中的按次序先分，余下的预算才给新来的；没算完的提示词不采样：`Scheduler.schedule`",
            "running ones come first, in order, newcomers get what is left; an unfinished prompt does not sample: "
            "`Scheduler.schedule`",
        ),
        mistakes={
            ("提示词没有切：少了与预算取 `min`", "the prompt was not cut: the `min` with the budget is missing"):
                steps_by_hand(arrivals),
            ("预算没有扣掉解码用的：每行分完都要减", "decodes were not taken off the budget: subtract after each row"):
                steps_by_hand(arrivals, budget=args.budget + 1),
        },
    )  # fmt: skip
    check.same(
        "切与不切，输出的 token 相同", "cut or not, the output tokens are the same",
        got={name: output.outputs[0].token_ids for name, output in sorted(outputs.items())},
        expected={name: output.outputs[0].token_ids for name, output in sorted(whole_outputs.items())},
        where="request, token",
        likely=(
            "后面的分段接在哪里：位置（`build_batch`）、掩码右下角对齐、看得见缓存里的全部 key",
            "where later chunks go on: positions (`build_batch`), a bottom-right mask, all keys of the cache seen",
        ),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
