"""实验 9：接入一个新模型。

学什么：与 Llama 只差两处的模型（q、k、v 带偏置，激活换成 GELU）怎样接进来：覆盖两个类，登记一行；权重怎样核对。
试一试：`--no-bias` 忘了偏置，加载器当场指出；`--activation silu` 忘了换激活，不报错，只有与参照比较才看得出。
怎样算对：随机的小权重由 transformers 存盘，本引擎装入；提示词和每一步解码的 logits 与 transformers 相差不到 1e-3。

Lab 9: adapt a model.

Teaches: how a model that differs from Llama in two places (q, k, v with a bias, GELU as the activation) comes in:
override two classes, register one line; and how weights are checked.
Try: `--no-bias` forgets the bias, and the loader says so at once; `--activation silu` forgets the activation, no error
at all, and only the comparison shows it.
Check: transformers saves random tiny weights and the engine loads them; the logits of the prompt and of each decode
step are within 1e-3 of those of transformers.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, Check, make_engine, say, title
from torch import Tensor

from backends.base import AttentionBackend
from engine.batch import build_batch
from engine.sampling_params import SamplingParams
from layers.activation import silu_and_mul
from layers.linear import StackedLinear
from models.config import ModelConfig, ModelLoadError
from models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP
from models.registry import MODEL_REGISTRY

# 两处不同由命令行决定，便于试错；真正接入时，它们写死在类里，或者读自 `config.json`。
# The command line decides both differences, to try mistakes; a real adaptation fixes them or reads `config.json`.
OPTIONS = argparse.Namespace(no_bias=False, activation="gelu")


class LabAttention(LlamaAttention):
    """q、k、v 带偏置，o 不带。

    A bias on q, k, v, none on o.
    """

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__(config, backend)
        sizes = {"q_proj": self.q_size, "k_proj": self.kv_size, "v_proj": self.kv_size}
        self.qkv_proj = StackedLinear(config.hidden_size, sizes, bias=not OPTIONS.no_bias)


class LabMLP(LlamaMLP):
    """gelu(gate) * up，代替 silu(gate) * up。

    gelu(gate) * up in place of silu(gate) * up.
    """

    def forward(self, x: Tensor) -> Tensor:
        """逐 token 计算。

        Token by token.

        Args:
            x: [T, hidden]
        """
        gate_up = self.gate_up_proj(x)  # [T, 2 * intermediate_size]
        if OPTIONS.activation == "silu":
            return self.down_proj(silu_and_mul(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down_proj(F.gelu(gate) * up)


class LabDecoderLayer(LlamaDecoderLayer):
    """换上这两个类的一层。

    A layer of these two.
    """

    attention_class = LabAttention

    def __init__(self, config: ModelConfig, backend: AttentionBackend) -> None:
        super().__init__(config, backend)
        self.mlp = LabMLP(config)


class LabForCausalLM(LlamaForCausalLM):
    """完整的模型。

    The whole model.
    """

    layer_class = LabDecoderLayer


def save_reference(folder: Path) -> Any:
    """transformers 的 Qwen2 带 q、k、v 偏置，激活可换：拿它造随机小权重，它也就是参照。

    Qwen2 of transformers has the bias, and its activation can be set: it makes random tiny weights and is the oracle.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2064, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, hidden_act="gelu", tie_word_embeddings=True,
        eos_token_id=1, bos_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # 偏置默认全是 0，那样忘了它也看不出来，所以填上随机数。
            # Biases begin as 0, and nobody would miss them: fill in random numbers.
            if "norm" not in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    # `architectures` 换成登记的名字；`hidden_act` 去掉，因为激活由类决定，而加载器只认 silu。
    # `architectures` becomes the registered name; `hidden_act` goes: the class decides, the loader knows silu only.
    raw = json.loads((folder / "config.json").read_text())
    raw["architectures"] = ["LabForCausalLM"]
    for key in ("hidden_act", "use_sliding_window", "sliding_window"):
        raw.pop(key, None)
    (folder / "config.json").write_text(json.dumps(raw))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOT / "assets" / "tiny-llama" / name).read_bytes())
    return model


@torch.inference_mode()
def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="adapt a model / 接入新模型")
    parser.add_argument("--no-bias", action="store_true", help="忘了偏置 / forget the bias")
    parser.add_argument("--activation", choices=("gelu", "silu"), default="gelu")
    parser.add_argument("--steps", type=int, default=6, help="走几步 / steps to run")
    parser.parse_args(namespace=OPTIONS)

    # 登记就是这一行。
    # Registration is this one line.
    MODEL_REGISTRY["LabForCausalLM"] = LabForCausalLM
    with tempfile.TemporaryDirectory() as name:
        reference = save_reference(Path(name))
        title("装入", "loading")
        try:
            engine = make_engine(model=name, max_model_len=128, num_kvcache_blocks=16)
        except ModelLoadError as error:
            print(f"  ModelLoadError: {error}")
            check = Check()
            check.that(False, "张量没有去处：类里少了偏置", "a tensor has no place: the class lacks the bias")
            return check.finish()
    weight = engine.model_runner.model.get_parameter("model.layers.0.self_attn.qkv_proj.weight")
    say(
        f"q、k、v 拼成一个矩阵 {list(weight.shape)}，偏置也拼在一起。",
        f"q, k, v are one matrix {list(weight.shape)}, and their biases are joined as well.",
    )

    title("逐步比较", "step by step")
    tokens = [5, 600, 1200, 7, 42, 999, 3, 17, 2000]
    engine.add_request(tokens, SamplingParams(temperature=0.0, max_tokens=OPTIONS.steps, ignore_eos=True))
    worst = 0.0
    while engine.has_unfinished():
        schedule = engine.plan()
        batch = build_batch(schedule, engine.pool.block_size, engine.model_runner.device)
        logits = engine.model_runner.execute(batch)  # [1, vocab_size]
        # transformers 每一步都从头算整段，不用缓存：慢，但不可能错在缓存上。
        # transformers computes all of it anew in each step, without a cache: slow, but no cache can be wrong.
        context = schedule[0].seq.token_ids
        expected = reference(torch.tensor([context]), use_cache=False).logits[0, -1]  # [vocab_size]
        difference = float((logits[0] - expected).abs().max())
        worst = max(worst, difference)
        chosen = engine.sampler.choose(schedule, logits)
        print(f"  {batch.input_ids.numel()} new of {len(context):>2} tokens: difference {difference:.1e}, "
              f"token {chosen[0][0]}, transformers {int(expected.argmax())}")  # fmt: skip
        engine.scheduler.update(schedule, chosen)

    check = Check()
    check.that(worst < 1e-3, f"logits 最多相差 {worst:.1e}，不到 1e-3", f"logits differ by {worst:.1e}, below 1e-3")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
