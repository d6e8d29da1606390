"""实验 7：抢占。

学什么：块不够时，最后接纳的请求让出全部块，回到队首，以后连提示词带输出一起重算；回答不变，只是多花计算。
试一试：`--blocks 4`、`--blocks 7`，找出不发生抢占的最小块数；加 `--caching`，看前缀缓存能省下多少重算。
怎样算对：每一步谁运行、谁让出了块、重算多少，与用数字手算的相同；回答与块池很大时相同；最后所有块都空闲。

Lab 7: preemption.

Teaches: when blocks run out, the request admitted last gives up all of its own, goes to the head of the queue, and
recomputes prompt and output later; the answers stay the same, only work is added.
Try: `--blocks 4`, `--blocks 7`, and find the fewest blocks without preemption; add `--caching` and see how much
recomputation prefix caching saves.
Check: who runs in each step, who loses blocks and how much is computed again are what was worked out by hand, with
numbers alone; the answers equal those of a large pool; in the end all blocks are free.
"""

import argparse

from common import Arrival, Check, ask, make_engine, print_steps, run_lab, run_steps, say, steps_by_hand, title

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

    engine, large = make(args.blocks), make(64)
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    arrivals = [Arrival(0, name, ask(engine, question), params) for name, question in QUESTIONS.items()]
    steps, outputs = run_steps(engine, arrivals)
    _, plain = run_steps(large, arrivals)
    # 最后一个 token 只采样、不再算 K、V，所以减 1。
    # The last token is sampled only, its K and V are never computed: hence minus 1.
    needed = [num_blocks_needed(len(arrival.prompt) + MAX_TOKENS - 1, BLOCK_SIZE) for arrival in arrivals]

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
    # 前缀缓存会省下一部分重算，手算就要知道哪些块还在：只核对没有它的情形。
    # Prefix caching saves part of the recomputation, and by hand one would have to know which blocks are still there:
    # checked without it only.
    if not args.caching:
        check.same(
            "每一步运行的与手算的相同", "in each step those run that were worked out by hand",
            got={step.number: step.rows for step in steps},
            expected=steps_by_hand(arrivals, blocks=args.blocks, block_size=BLOCK_SIZE), where="step",
            likely=(
                "块真的不够才抢占（`can_grow`）：最后接纳的让出全部块，回到队首，已算归 0，输出保留（`_preempt_last`）",
                "preempt only when blocks run out (`can_grow`): the one admitted last gives up all of its own and goes "
                "to the head of the queue with 0 computed and its output kept (`_preempt_last`)",
            ),
        )  # fmt: skip
    check.same(
        "回答与大块池时相同", "the answers equal those of a large pool",
        got={name: outputs[name].outputs[0].token_ids for name in QUESTIONS},
        expected={name: plain[name].outputs[0].token_ids for name in QUESTIONS}, where="request, token",
        likely=(
            "重算要连提示词带输出、从位置 0 起；别人不能写它的块",
            "prompt and output are computed again, from position 0 on, and nobody else writes to its blocks",
        ),
    )  # fmt: skip
    check.same(
        "最后所有块都空闲", "in the end all blocks are free",
        got={"free": engine.block_manager.num_free_blocks}, expected={"free": args.blocks}, where="blocks",
        likely=("结束的没有归还：`BlockManager.free`", "one that ended kept its own: `BlockManager.free`"),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
