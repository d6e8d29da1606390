"""实验 5：分块预填充。

学什么：每步有 token 预算；长提示词被切成几个分段，别人的解码与它同处一步，不用等它整段算完。
试一试：`--budget 128`（不切）、`--budget 8`（切得更碎）、`--budget 1`（全被解码用掉）、`--prompt-tokens 200`。
怎样算对：每步不超预算；A 从首个 token 起一步不落；各分段加起来正好是提示词；切与不切，输出相同。

Lab 5: chunked prefill.

Teaches: a step has a token budget; a long prompt is cut into chunks, and others' decodes share its steps instead of
waiting for all of it.
Try: `--budget 128` (no cut), `--budget 8` (finer), `--budget 1` (decodes use it all up), `--prompt-tokens 200`.
Check: no step exceeds the budget; A misses no step from its first token on; the chunks add up to the prompt; the output
is the same, cut or not.
"""

import argparse
import sys

from common import Arrival, Check, Step, ask, make_engine, print_steps, run_steps, say, title

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
        engine = make_engine(max_model_len=512, num_kvcache_blocks=128, max_num_batched_tokens=budget)
        # 长提示词：先讲许多事，最后才提问；取结尾的那些 token，问题总在里面。
        # The long prompt tells many things and asks at the end; the last tokens are kept, so the question stays.
        places = ("Japan", "Italy", "Spain", "Egypt") * 12
        story = " ".join(f"The capital of {name} is a city." for name in places)
        question = ask(engine, story + " What is the capital of Italy?")
        long_prompt = question[-args.prompt_tokens :]
        arrivals = [
            Arrival(0, "A", ask(engine, "Count from 1 to 20"), SamplingParams(temperature=0.0, max_tokens=12)),
            Arrival(2, "B", long_prompt, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)),
        ]
        steps, outputs = run_steps(engine, arrivals)
        return steps, outputs, arrivals, engine.tokenizer

    steps, outputs, arrivals, tokenizer = run(args.budget)
    title(f"预算 {args.budget}", f"a budget of {args.budget}")
    print_steps(steps, ["A", "B"])
    chunks = [step.rows["B"] for step in steps if "B" in step.rows][:-3]
    longest = max(sum(step.rows.values()) for step in steps)
    say(
        f"B 的提示词分成 {len(chunks)} 段：{chunks}；最忙的一步算 {longest} 个，A 最多等一步。",
        f"B's prompt took {len(chunks)} chunks: {chunks}; the busiest step computes {longest} tokens, A waits no "
        "longer than that step.",
    )
    whole, whole_outputs, _, _ = run(2048)
    say(
        f"不切的话，最忙的一步算 {max(sum(step.rows.values()) for step in whole)} 个 token。",
        f"Uncut, the busiest step computes {max(sum(step.rows.values()) for step in whole)} tokens.",
    )
    for name in ("A", "B"):
        print(f"  {name}: {tokenizer.decode(outputs[name].outputs[0].token_ids)!r}")

    check = Check()
    check.that(longest <= args.budget, f"每步不超过 {args.budget} 个 token", f"no step exceeds {args.budget} tokens")
    # A 的提示词算完的那一步就有首个 token；此后每步 1 个，共 `max_tokens - 1` 步。
    # The step that completes A's prompt gives the first token; from then on 1 a step, `max_tokens - 1` steps.
    turns = [step.number for step in steps if "A" in step.rows]
    count = len(outputs["A"].outputs[0].token_ids)
    decodes = turns[-count:]
    check.that(
        decodes == list(range(decodes[0], decodes[0] + count)),
        "A 有了首个 token 之后一步不落", "after its first token A misses no step",
    )
    check.that(sum(chunks) == len(arrivals[1].prompt), "各分段之和等于提示词", "the chunks add up to the prompt")
    same = all(outputs[n].outputs[0].token_ids == whole_outputs[n].outputs[0].token_ids for n in ("A", "B"))
    check.that(same, "切与不切，输出的 token 相同", "cut or not, the output tokens are the same")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
