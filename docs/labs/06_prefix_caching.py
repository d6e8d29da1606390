"""实验 6：前缀缓存。

学什么：开头相同的请求共用已经算好的块，只算剩下的；命中以整块计，最后一个 token 总要真算。
试一试：`--block-size 8`（命中更细）、`--block-size 64`（可能一块也命中不了）、`--no-caching`。
怎样算对：命中数与公式一致：共同的 token 数除以块大小，向下取整，至多 (n - 1) // 块大小；有无缓存，回答相同。

Lab 6: prefix caching.

Teaches: requests with the same beginning share blocks that are computed already and compute only the rest; hits are
whole blocks, and the last token is always computed.
Try: `--block-size 8` (finer hits), `--block-size 64` (perhaps no hit at all), `--no-caching`.
Check: the hits follow the formula: common tokens divided by the block size, rounded down, at most
(n - 1) // block size; the answers are the same with and without caching.
"""

import argparse
import sys
from itertools import takewhile

from common import Check, make_engine, say, title

from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from serving.chat_template import encode_chat

SYSTEM = "You are a helpful assistant. Answer each question in one short sentence, and say so if you do not know."
QUESTIONS = ["What is the capital of France?", "What is the capital of Japan?", "What is the capital of Japan?"]


def answer(engine: LLMEngine, question: str) -> tuple[RequestOutput, int]:
    """跑完一个请求，返回结果和算过的 token 数。

    Run one request to its end; the result, and how many tokens were computed for it.
    """
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    before = engine.num_computed_tokens
    engine.add_request(encode_chat(engine.tokenizer, messages), SamplingParams(temperature=0.0, max_tokens=16))
    finished: list[RequestOutput] = []
    while not finished:
        finished = engine.step()
    return finished[0], engine.num_computed_tokens - before


def common_length(a: list[int], b: list[int]) -> int:
    """开头有几个 token 相同。

    How many tokens are equal from the start.
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="prefix caching / 前缀缓存")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--no-caching", action="store_true", help="关掉前缀缓存 / without prefix caching")
    args = parser.parse_args()
    size, caching = args.block_size, not args.no_caching
    options = {"max_model_len": 512, "num_kvcache_blocks": max(8, 1024 // max(size, 1)), "kvcache_block_size": size}
    try:
        engine = make_engine(enable_prefix_caching=caching, **options)
    except ValueError as error:
        parser.error(str(error))

    title("三个请求，先后到来", "three requests, one after the other")
    seen: list[list[int]] = []
    results, expected = [], []
    for question in QUESTIONS:
        output, computed = answer(engine, question)
        prompt, text = output.prompt_token_ids, output.outputs[0].text
        # 能命中的，是前人算过 K、V 的整块；前人的最后一个 token 只采样出来，没有算过。
        # What can be hit are whole blocks computed for others; the last token of each was sampled and never computed.
        common = max((common_length(prompt, other[:-1]) for other in seen), default=0)
        expected.append(min(common, len(prompt) - 1) // size * size if caching else 0)
        results.append(output)
        seen.append(prompt + output.outputs[0].token_ids)
        print(f"  {question}\n    prompt {len(prompt)} tokens, {common} in common, cached {output.num_cached_tokens} "
              f"= {output.num_cached_tokens // size} blocks of {size}, computed {computed}\n    -> {text}")  # fmt: skip
    stats, rate = engine.block_manager.stats, engine.metrics().prefix_cache_hit_rate
    say(f"命中率 {rate:.0%}（{stats.hit}/{stats.queried} 个 token）", f"Hit rate {rate:.0%}")
    say(
        "第三个提示词与第二个完全相同，也不能全部命中：没有算过的最后一行，就没有 logits 可采样。",
        "The third prompt equals the second and still is not hit whole: without a last row there are no logits.",
    )

    plain = make_engine(enable_prefix_caching=False, **options)
    check = Check()
    hits = [output.num_cached_tokens for output in results]
    check.that(hits == expected, f"命中 {hits}，公式说 {expected}", f"hits {hits}, the formula says {expected}")
    same = all(answer(plain, q)[0].outputs[0].token_ids == r.outputs[0].token_ids for q, r in zip(QUESTIONS, results))
    check.that(same, "有无缓存，回答的 token 相同", "with and without caching the answers' tokens are the same")
    manager = engine.block_manager
    check.that(manager.num_free_blocks == manager.num_blocks, "最后所有块都空闲", "in the end all blocks are free")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
