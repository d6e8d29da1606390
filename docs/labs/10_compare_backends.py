"""实验 10：两个后端同步对跑。

学什么：同样的请求、同样的每一步，两个后端的 logits 差多少，从哪一步开始选不同的 token。
试一试：`--error 0.1` 故意把后端 A 的缩放弄偏，token 仍然全部相同，只看 token 发现不了；`--error -0.8` 才分开。
怎样算对：logits 相差不到 1e-3，token 全部相同；故意弄偏时，检查要能发现，标出 OFF，退出码 1。

Lab 10: two backends in lockstep.

Teaches: with the same requests and the same steps, how far apart the logits of two backends are, and in which step they
choose different tokens.
Try: `--error 0.1` puts backend A's scale off on purpose: all tokens stay equal, and tokens alone would not show it;
with `--error -0.8` they part.
Check: logits within 1e-3 and all tokens equal; with an error made on purpose the check must find it: OFF, exit code 1.
"""

import argparse
import sys
from typing import Any

from common import Check, say, title
from torch import Tensor

import backends
from backends.torch_backend import TorchBackend
from engine.config import EngineConfig
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from serving.chat_template import encode_chat
from serving.compare import compare_backends

QUESTIONS = ["What is the capital of Italy?", "What is a token?", "什么是 KV 缓存？"]
ERROR = 0.0


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
    parser.add_argument("--a", default="torch", help="后端 A / backend A")
    parser.add_argument("--b", default="sdpa", help="后端 B / backend B")
    parser.add_argument("--error", type=float, default=0.0, help="把 A 的缩放弄偏多少 / how far off A's scale is")
    parser.add_argument("--max-tokens", type=int, default=12)
    args = parser.parse_args()
    ERROR = args.error
    if ERROR:
        backends._REGISTRY["wrong"] = backends._Entry(__name__, "WrongScale")
        args.a = "wrong"

    config = EngineConfig(device="cpu")
    tokenizer = Tokenizer(config.resolve_model_folder())
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    title(f"{args.a} 与 {args.b}", f"{args.a} and {args.b}")
    print("step | tokens | largest difference of logits | different tokens")
    worst, parted = 0.0, []
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    try:
        for step in compare_backends(config, (args.a, args.b), prompts, params):
            worst = max(worst, step.max_difference)
            parted += [(step.step, *row) for row in step.different]
            differ = ", ".join(
                f"request {name}: {tokenizer.decode_token(a)!r} / {tokenizer.decode_token(b)!r}"
                for name, a, b in step.different
            )
            print(f"{step.step:>4} | {step.num_tokens:>6} | {step.max_difference:>28.1e} | {differ}")
    except (ValueError, backends.BackendUnavailableError) as error:
        parser.error(str(error))
    if parted:
        step_number, name, _, _ = parted[0]
        say(f"第 {step_number} 步，请求 {name} 首先分开。", f"Request {name} parts first, in step {step_number}.")

    check = Check()
    check.that(worst < 1e-3, f"logits 最多相差 {worst:.1e}，不到 1e-3", f"logits differ by {worst:.1e}, below 1e-3")
    check.that(not parted, f"选了不同 token 的行：{len(parted)}", f"rows that chose another token: {len(parted)}")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
