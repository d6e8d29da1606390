"""实验 7：抢占。

学什么：块不够时，最后接纳的请求让出全部块，回到队首，以后连提示词带输出一起重算；回答不变，只是多花计算。
试一试：`--blocks 4`、`--blocks 7`，找出不发生抢占的最小块数；加 `--caching`，看前缀缓存能省下多少重算。
怎样算对：回答与块池很大时相同；有抢占才有重算；块够所有请求用时没有抢占；最后所有块都空闲。

Lab 7: preemption.

Teaches: when blocks run out, the request admitted last gives up all of its own, goes to the head of the queue, and
recomputes prompt and output later; the answers stay the same, only work is added.
Try: `--blocks 4`, `--blocks 7`, and find the fewest blocks without preemption; add `--caching` and see how much
recomputation prefix caching saves.
Check: the answers equal those of a large pool; recomputation only with preemption; none if the blocks suffice for all;
in the end all blocks are free.
"""

import argparse
import sys

from common import Arrival, Check, ask, make_engine, print_steps, run_steps, say, title

from engine.block_manager import num_blocks_needed
from engine.llm_engine import LLMEngine
from engine.sampling_params import SamplingParams

QUESTIONS = {"A": "What is paged attention?", "B": "What is a KV cache?", "C": "What is a token?"}
MAX_TOKENS, BLOCK_SIZE, MAX_MODEL_LEN = 28, 16, 64


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="preemption / 抢占")
    parser.add_argument("--blocks", type=int, default=6, help="块池有几个块，至少 4 / blocks in the pool, at least 4")
    parser.add_argument("--caching", action="store_true", help="打开前缀缓存 / with prefix caching")
    args = parser.parse_args()

    def make(blocks: int) -> LLMEngine:
        return make_engine(
            max_model_len=MAX_MODEL_LEN, num_kvcache_blocks=blocks, kvcache_block_size=BLOCK_SIZE,
            enable_prefix_caching=args.caching,
        )  # fmt: skip

    try:
        engine, large = make(args.blocks), make(64)
    except ValueError as error:
        parser.error(str(error))
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    arrivals = [Arrival(0, name, ask(engine, question), params) for name, question in QUESTIONS.items()]
    steps, outputs = run_steps(engine, arrivals)
    _, plain = run_steps(large, arrivals)
    # 最后一个 token 只采样、不再算 K、V，所以减 1。
    # The last token is sampled only, its K and V are never computed: hence minus 1.
    lengths = [len(plain[a.name].outputs[0].token_ids) + len(a.prompt) - 1 for a in arrivals]
    needed = [num_blocks_needed(length, BLOCK_SIZE) for length in lengths]

    title(f"{args.blocks} 个块", f"{args.blocks} blocks")
    say(
        f"三个请求最终各要 {needed} 个块，合计 {sum(needed)}；w 是等待，x 是在这一步被抢占。",
        f"In the end the requests need {needed} blocks, {sum(needed)} in all; w waits, x was preempted in this step.",
    )
    print_steps(steps, list(QUESTIONS))
    preemptions = engine.scheduler.num_preemptions
    extra = engine.num_computed_tokens - large.num_computed_tokens
    say(f"抢占 {preemptions} 次，重算 {extra} 个 token。", f"{preemptions} preempted, {extra} tokens computed again.")
    for name, output in outputs.items():
        print(f"  {name}: {output.outputs[0].text!r}")

    check = Check()
    same = all(outputs[name].outputs[0].token_ids == plain[name].outputs[0].token_ids for name in QUESTIONS)
    check.that(same, "回答与大块池时相同", "the answers equal those of a large pool")
    check.that(preemptions > 0 or extra == 0, "没有抢占就没有重算", "without preemption nothing is computed again")
    check.that(
        preemptions == 0 or args.blocks < sum(needed), "块够所有请求用时没有抢占", "no preemption if the blocks suffice"
    )
    manager = engine.block_manager
    check.that(manager.num_free_blocks == manager.num_blocks, "最后所有块都空闲", "in the end all blocks are free")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
