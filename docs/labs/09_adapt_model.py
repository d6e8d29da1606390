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
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, Check, make_engine, run_lab, say, title
from torch import Tensor

from backends.base import AttentionBackend
from engine.batch import build_batch
from engine.sampling_params import SamplingParams
from layers.activation import silu_and_mul
from layers.linear import StackedLinear
from models.config import ModelConfig
from models.fields import ModelLoadError
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


def logits_of(reference: Any, context: list[int], mistake: Callable[[Any], None] | None = None) -> list[float]:
    """transformers 对最后一行给出的分数；`mistake` 故意把它的每个 MLP 改坏，用来认出常见的错误。

    The scores of transformers for the last row; `mistake` breaks its MLPs on purpose, to recognise common mistakes.
    """
    if mistake is not None:
        reference = copy.deepcopy(reference)
        for layer in reference.model.layers:
            mistake(layer.mlp)
    logits: list[float] = reference(torch.tensor([context]), use_cache=False).logits[0, -1].tolist()
    return logits


def swap_gate_and_up(mlp: Any) -> None:
    """门与值对调。

    Gate and value change places.
    """
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


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
    if not 1 <= OPTIONS.steps <= 100:
        parser.error(f"--steps {OPTIONS.steps}: use 1 to 100")

    # 登记就是这一行。
    # Registration is this one line.
    MODEL_REGISTRY["LabForCausalLM"] = LabForCausalLM
    with tempfile.TemporaryDirectory() as name:
        reference = save_reference(Path(name))
        title("装入", "loading")
        try:
            engine = make_engine(model=name, max_model_len=128, num_kvcache_blocks=16)
        except ModelLoadError as error:
            check = Check()
            check.that(
                False, "文件与类里的张量一一对应", "the tensors of file and class match", f"ModelLoadError: {error}",
                "多半：类里少了或多了参数，例如偏置；也可能忘了换上自己的类",
                "Likely: the class has a parameter too few or too many, a bias say; or your class is not used",
            )  # fmt: skip
            return check.finish()
    weight = engine.model_runner.model.get_parameter("model.layers.0.self_attn.qkv_proj.weight")
    say(
        f"q、k、v 拼成一个矩阵 {list(weight.shape)}，偏置也拼在一起。",
        f"q, k, v are one matrix {list(weight.shape)}, and their biases are joined as well.",
    )

    title("逐步比较", "step by step")
    tokens = [5, 600, 1200, 7, 42, 999, 3, 17, 2000]
    engine.add_request(tokens, SamplingParams(temperature=0.0, max_tokens=OPTIONS.steps, ignore_eos=True))
    got: list[list[float]] = []
    expected: list[list[float]] = []
    while engine.has_unfinished():
        schedule = engine.plan()
        batch = build_batch(schedule, engine.pool.block_size, engine.model_runner.device)
        logits = engine.model_runner.execute(batch)  # [1, vocab_size]
        # transformers 每一步都从头算整段，不用缓存：慢，但不可能错在缓存上。
        # transformers computes all of it anew in each step, without a cache: slow, but no cache can be wrong.
        context = schedule[0].seq.token_ids
        got.append(logits[0].tolist())
        expected.append(logits_of(reference, context))
        difference = max(abs(a - b) for a, b in zip(got[-1], expected[-1]))
        chosen = engine.sampler.choose(schedule, logits)
        print(f"  {batch.input_ids.numel()} new of {len(context):>2} tokens: difference {difference:.1e}, "
              f"token {chosen[0][0]}, transformers {expected[-1].index(max(expected[-1]))}")  # fmt: skip
        engine.scheduler.update(schedule, chosen)

    check = Check()
    check.same(
        "每一步的 logits 相差不到 1e-3", "in each step the logits are less than 1e-3 apart",
        got=got, expected=expected, where="step, token id", tolerance=1e-3,
        likely=(
            "第 0 步就不对：某一层算的不同，逐层比较；以后才不对：位置，或缓存里的 K、V",
            "wrong from step 0 on: some layer computes something else, compare layer by layer; only later: positions, "
            "or K and V in the cache",
        ),
        # 认错误只用第 0 步。
        # Mistakes are recognised by step 0 alone.
        mistakes={
            ("激活是 silu，应是 gelu", "the activation is silu, and should be gelu"):
                [logits_of(reference, tokens, lambda mlp: setattr(mlp, "act_fn", torch.nn.SiLU()))],
            ("激活是 gelu 的 tanh 近似", "the activation is the tanh form of gelu"):
                [logits_of(reference, tokens, lambda mlp: setattr(mlp, "act_fn", torch.nn.GELU("tanh")))],
            ("门与值对调了：前一半是门", "gate and value changed places: the first half is the gate"):
                [logits_of(reference, tokens, swap_gate_and_up)],
        },
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
