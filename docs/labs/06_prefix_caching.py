"""实验 6：前缀缓存。

学什么：开头相同的请求共用已经算好的块，只算剩下的；命中以整块计，从头连续，最后一个 token 总要真算。
试一试：`--block-size 8`（命中更细）、`--block-size 64`（几乎命中不了）、`--no-caching`；
改 `hits_by_hand` 里标着 TODO 的一行，看检查怎样发现。
怎样算对：每个请求命中多少，与公式手算的一致；命中的不再计算；有无缓存，回答相同；最后所有块都空闲。

Lab 6: prefix caching.

Teaches: requests with the same beginning share blocks that are computed already and compute only the rest; hits are
whole blocks, in a row from the start, and the last token is always computed.
Try: `--block-size 8` (finer hits), `--block-size 64` (hardly any), `--no-caching`; change the line marked TODO in
`hits_by_hand` and see the check find it.
Check: each request's hits are those of the formula; what was hit is not computed; the answers are the same with and
without caching; in the end all blocks are free.
"""

import argparse
from itertools import takewhile

from common import Arrival, Check, make_engine, run_lab, run_steps, say, title

from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from serving.chat_template import encode_chat

SYSTEM = "You are a helpful assistant. Answer each question in one short sentence, and say so if you do not know."
FIRST, SECOND = "What is a KV cache?", "Hello! Please tell me in a few words: what is paged attention?"
MAX_TOKENS = 16


def answer(engine: LLMEngine, name: str, prompt: list[int]) -> tuple[RequestOutput, int]:
    """跑完一个请求，返回结果和算过的 token 数。

    Run one request to its end; the result, and how many tokens were computed for it.
    """
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    steps, outputs = run_steps(engine, [Arrival(0, name, prompt, params)])
    return outputs[name], sum(step.rows[name] for step in steps)


def common_length(a: list[int], b: list[int]) -> int:
    """开头有几个 token 相同。

    How many tokens are equal from the start.
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def hits_by_hand(prompt: list[int], seen: list[list[int]], size: int, left: int = 1, sampled: int = 1) -> int:
    """公式：与前人共同的开头，至多差 `left` 个就是整段，再向下取整到整块。

    The formula: the beginning shared with others, at most the prompt without `left`, rounded down to whole blocks.

    Args:
        seen: 之前各请求的提示词和输出；prompt and output of each request before
        left: 至少要算几个 token，没有最后一行就没有 logits；
            tokens left to compute: without a last row there are no logits
        sampled: 输出末尾只采样、没有算过的 token 数；
            tokens at the end of an output that were sampled and never computed
    """
    common = max((common_length(prompt, other[: len(other) - sampled]) for other in seen), default=0)
    # TODO 试试写错：去掉 `- left`。
    # TODO try a mistake: drop `- left`.
    return min(common, len(prompt) - left) // size * size


def hits_without_chain(prompt: list[int], seen: list[list[int]], size: int) -> int:
    """故意犯错：块的键只看自己的 token，不看前面的。

    A mistake on purpose: a block's key depends on its own tokens and not on those before.
    """
    known = {tuple(other[i : i + size]) for other in seen for i in range(0, len(other) - size, size)}
    blocks = [tuple(prompt[i : i + size]) for i in range(0, len(prompt) - size, size)]
    return size * sum(1 for _ in takewhile(lambda block: block in known, blocks))


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
    engine, plain = (make_engine(enable_prefix_caching=on, **options) for on in (caching, False))

    first, second = (
        encode_chat(engine.tokenizer, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}])
        for question in (FIRST, SECOND)
    )
    title("五个请求，先后到来", "five requests, one after the other")
    seen: list[list[int]] = []
    prompts, hits, computed, outputs, expected = {}, {}, {}, {}, {}

    def request(name: str, prompt: list[int]) -> None:
        expected[name] = hits_by_hand(prompt, seen, size) if caching else 0
        prompts[name] = (prompt, list(seen))
        outputs[name], computed[name] = answer(engine, name, prompt)
        hits[name] = outputs[name].num_cached_tokens
        seen.append(prompt + outputs[name].outputs[0].token_ids)
        blocks = f"{hits[name] // size} blocks of {size}"
        print(f"  {name}\n    prompt {len(prompt)} tokens, cached {hits[name]} = {blocks}, computed {computed[name]}\n"
              f"    -> {outputs[name].outputs[0].text!r}")  # fmt: skip

    request("first", first)
    request("second", second)
    request("second again", second)
    # 前 2 块交换，别的不变：每一块都算过，但上文不同，K、V 就不同。
    # The first 2 blocks change places: each was computed, but after another context, and K and V differ.
    request("its blocks in another order", second[size : 2 * size] + second[:size] + second[2 * size :])
    # 上一轮的提示词加回答，再接一个问题：多轮对话就是这样。
    # The last turn's prompt and answer, then a question: a conversation of several turns.
    request("the conversation goes on", seen[2] + first[-20:])
    stats, rate = engine.block_manager.stats, engine.metrics().prefix_cache_hit_rate
    say(
        f"命中 {[*hits.values()]}，命中率 {rate:.0%}（{stats.hit}/{stats.queried} 个 token）",
        f"Hits {[*hits.values()]}, hit rate {rate:.0%}",
    )
    say(
        "第三个提示词与第二个完全相同，也不能全部命中：没有算过的最后一行，就没有 logits 可采样。",
        "The third prompt equals the second and still is not hit whole: without a last row there are no logits.",
    )

    check = Check()
    check.same(
        "命中的 token 数与公式相同", "as many tokens are hit as the formula says",
        got=hits, expected=expected, where="request",
        likely=(
            "命中从头连续、以整块计，都算过，至少留 1 个 token：`find_prefix`、`register_full_blocks`",
            "hits are whole blocks in a row from the start, all computed, and at least 1 token is left: `find_prefix`, "
            "`register_full_blocks`",
        ),
        mistakes={
            ("至少留 1 个 token 不命中，才有 logits", "at least 1 token is left unhit, or there are no logits"):
                {name: hits_by_hand(*each, size, left=0) for name, each in prompts.items()},
            ("最后采到的 token 还没算，不能登记它的块", "the last token sampled is not computed: its block is no hit"):
                {name: hits_by_hand(*each, size, sampled=0) for name, each in prompts.items()},
            ("块的键没有含前面的 token：链断了", "blocks' keys lack the tokens before them: the chain is broken"):
                {name: hits_without_chain(*each, size) for name, each in prompts.items()},
            ("什么也没有命中", "nothing is hit at all"): dict.fromkeys(prompts, 0),
        },
    )  # fmt: skip
    check.same(
        "命中的不再计算", "what was hit is not computed",
        got=computed,
        expected={name: len(prompt) - hits[name] + MAX_TOKENS - 1 for name, (prompt, _) in prompts.items()},
        where="request",
        likely=("从命中处接着算：`num_computed_tokens`", "computing goes on behind the hits: `num_computed_tokens`"),
        mistakes={
            ("命中的又算了一遍", "what was hit was computed again"):
                {name: len(prompt) + MAX_TOKENS - 1 for name, (prompt, _) in prompts.items()},
        },
    )  # fmt: skip
    check.same(
        "有无缓存，回答的 token 相同", "with and without caching the answers' tokens are the same",
        got={name: output.outputs[0].token_ids for name, output in outputs.items()},
        expected={name: answer(plain, name, prompt)[0].outputs[0].token_ids for name, (prompt, _) in prompts.items()},
        where="request, token",
        likely=("命中了内容不同的块，或者共享的块被改写", "a block of other contents was hit, or a shared one written"),
    )  # fmt: skip
    check.same(
        "最后所有块都空闲", "in the end all blocks are free",
        got={"free": engine.block_manager.num_free_blocks}, expected={"free": options["num_kvcache_blocks"]},
        where="blocks",
        likely=("结束的没有归还：`BlockManager.free`", "one that ended kept its own: `BlockManager.free`"),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
