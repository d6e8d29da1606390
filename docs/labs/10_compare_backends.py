"""实验 10：两个后端同步对跑。

学什么：同样的请求、同样的每一步，两个后端的 logits 差多少，从哪一步开始选不同的 token；错误多半在哪个函数。
试一试：`--error 0.1` 故意把后端 A 的缩放弄偏，token 仍然全部相同，只看 token 发现不了；`--error -0.8` 才分开。
怎样算对：logits 相差不到 1e-3，提示词切成几个分段也一样；token 全部相同。故意弄偏时，检查标出 OFF，退出码 1。

Lab 10: two backends in lockstep.

Teaches: with the same requests and the same steps, how far apart the logits of two backends are, in which step they
choose different tokens, and which function is likely to be wrong.
Try: `--error 0.1` puts backend A's scale off on purpose: all tokens stay equal, and tokens alone would not show it;
with `--error -0.8` they part.
Check: logits within 1e-3, also with prompts cut into chunks; all tokens equal. With an error made on purpose: OFF,
exit code 1.
"""

import argparse
from collections.abc import Iterator
from math import isfinite
from typing import Any

from common import Check, equal, run_lab, say, title
from torch import Tensor

import backends
from backends.torch_backend import TorchBackend
from engine.config import EngineConfig
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from serving.chat_template import encode_chat
from serving.compare import StepComparison, compare_backends, show_token

QUESTIONS = ["What is the capital of Italy?", "What is a token?", "什么是 KV 缓存？"]
ERROR, LIMIT = 0.0, 1e-3


class WrongScale(TorchBackend):
    """参考后端，但 softmax 的缩放偏了 `ERROR`：一种很常见的错误，输出看上去仍然像样。

    The reference backend with its softmax scale off by `ERROR`: a common mistake whose output still looks plausible.
    """

    name = "wrong"

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, block_table: Tensor | None = None,
        plan: Any = None,
    ) -> Tensor:
        """只弄偏预填充：解码是对的，但缓存已经错了。

        Only prefill is off: decode is right, but the cache already holds wrong values.
        """
        scale = (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale) * (1 + ERROR)
        return super().flash_attn_varlen_func(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal, block_table, plan
        )


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    global ERROR
    parser = argparse.ArgumentParser(description="two backends in lockstep / 两个后端同步对跑")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--a", default="torch", help="后端 A / backend A")
    parser.add_argument("--b", default="sdpa", help="后端 B / backend B")
    which.add_argument(
        "--error", type=float, default=0.0, help="A 是 torch，缩放弄偏这么多 / A is torch, its scale off by this"
    )
    parser.add_argument("--max-tokens", type=int, default=12)
    args = parser.parse_args()
    if not isfinite(args.error):
        parser.error(f"--error {args.error}: use a finite number")
    ERROR = args.error
    if ERROR:
        backends._REGISTRY["wrong"] = backends._Entry(__name__, "WrongScale")
        args.a = "wrong"

    tokenizer = Tokenizer(EngineConfig(device="cpu").resolve_model_folder())
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]

    def compare(budget: int, max_tokens: int) -> Iterator[StepComparison]:
        config = EngineConfig(device="cpu", max_num_batched_tokens=budget)
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        return compare_backends(config, (args.a, args.b), prompts, params)

    title(f"{args.a} 与 {args.b}", f"{args.a} and {args.b}")
    print("step | tokens | largest difference of logits | different tokens")
    steps: list[StepComparison] = []
    try:
        for step in compare(2048, args.max_tokens):
            steps.append(step)
            differ = ", ".join(
                f"request {name}: {show_token(tokenizer, a)} / {show_token(tokenizer, b)}"
                for name, a, b in step.different
            )
            print(f"{step.step:>4} | {step.num_tokens:>6} | {step.max_difference:>28.1e} | {differ}")
        # 每步只有 16 个 token 的预算：提示词切成几段，后面的分段要看缓存里的 key。
        # A budget of 16 tokens a step: prompts are cut, and later chunks have to see keys of the cache.
        chunked = list(compare(16, 2))
    except (ValueError, backends.BackendUnavailableError) as error:
        parser.error(str(error))
    if parted := [step for step in steps if step.different]:
        name, _, _ = parted[0].different[0]
        say(f"第 {parted[0].step} 步，请求 {name} 首先分开。", f"Request {name} parts first, in step {parted[0].step}.")
    if broken := [step for step in steps if step.broken]:
        bad, number = ", ".join(broken[0].broken), broken[0].step
        say(f"第 {number} 步，{bad} 的分数是 NaN 或无穷大。", f"Scores of {bad} are NaN or infinite in step {number}.")

    check = Check()
    # 第 1 步是完整的提示词，以后都是解码：从哪一步开始错，就知道该查哪个函数。
    # Step 1 has the whole prompts, all others decode: the first wrong step tells which function to look at.
    prefill = (
        "第 1 步是预填充：`flash_attn_varlen_func`（缩放、掩码、头的对应）或 `store_kvcache`",
        "step 1 is the prefill: `flash_attn_varlen_func` (scale, mask, which heads) or `store_kvcache`",
    )
    decode = (
        "预填充对，解码不对：`flash_attn_with_kvcache`（缩放、长度、块表、掩码对齐），或写进缓存的不对",
        "prefill is right and decode is not: `flash_attn_with_kvcache` (scale, length, block table, how the mask is "
        "aligned), or what was stored",
    )
    chunk = (
        "整段对，分段不对：掩码没有右下角对齐，后面的分段看不到缓存里的 key",
        "whole prompts are right and chunks are not: the mask is not aligned bottom-right, later chunks miss keys",
    )
    whole = all(equal(step.max_difference, 0.0, LIMIT) for step in steps)
    check.same(
        "每一步的 logits 相差不到 1e-3", "in each step the logits are less than 1e-3 apart",
        got={step.step: step.max_difference for step in steps}, expected={step.step: 0.0 for step in steps},
        where="step", tolerance=LIMIT, likely=decode if equal(steps[0].max_difference, 0.0, LIMIT) else prefill,
    )  # fmt: skip
    check.same(
        "提示词切成分段，也相差不到 1e-3", "less than 1e-3 apart with prompts cut into chunks, too",
        got={step.step: step.max_difference for step in chunked}, expected={step.step: 0.0 for step in chunked},
        where="step", tolerance=LIMIT, likely=chunk if whole else ("见上一条", "see the item above"),
    )  # fmt: skip
    check.same(
        "选的 token 全部相同", "all tokens chosen are the same",
        got={step.step: {name: show_token(tokenizer, a) for name, a, _ in step.different} for step in steps},
        expected={step.step: {name: show_token(tokenizer, b) for name, _, b in step.different} for step in steps},
        where="step",
        likely=("分数差得太多，见上面", "the scores are too far apart, see above"),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
