"""YaRN：一条把旋转位置编码拉长的规则，长文本的 Qwen 模型用它；`config.json` 里写了 `yarn` 才用得到。

YaRN: a rule that stretches rotary position embedding, used by Qwen models for long texts; met only where `config.json`
says `yarn`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layers.rotary_embedding import RopeScaling
from models.fields import ModelLoadError, flag, positive_number


@dataclass(frozen=True, slots=True)
class YarnScaling(RopeScaling):
    """YaRN：也是快的不动、慢的除以 `factor`，但过渡按第几对来划，并且把 cos 和 sin 放大一点。

    位置多了，注意力会分散；`attention_factor` 把 q·k 放大 `attention_factor` 的平方倍，让它重新集中。

    YaRN: fast pairs stay and slow ones are divided by `factor` here too, but the blend goes by the pair's number, and
    cos and sin are enlarged a little. With more positions attention spreads; `attention_factor` enlarges q·k by its
    square, which draws it together again.
    Source: Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models".
    """

    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def _pair_with_turns(self, turns: float, head_dim: int, theta: float) -> float:
        """在原训练长度里转 `turns` 圈的是第几对。

        The number of the pair that makes `turns` turns within the original length.
        """
        # 第 i 对转 L·theta^(-2i / head_dim) / 2π 圈，由此解出 i，不必是整数。
        # Pair i makes L·theta^(-2i / head_dim) / 2π turns; solved for i, which need not be a whole number.
        waves = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(waves) / (2 * math.log(theta))

    def frequencies(self, waves: Tensor, theta: float) -> Tensor:
        """见 `RopeScaling.frequencies`。

        See `RopeScaling.frequencies`.
        """
        half = len(waves)
        # Qwen3 接 YaRN（128 维、theta 1000000、原长 32768）：第 0 到 23 对转 32 圈以上，不动；从 40 起不足 1 圈。
        # Qwen3 with YaRN (128 dims, theta 1000000, original length 32768): pairs 0 to 23 make over 32 turns and stay;
        # from 40 on they make less than 1.
        first = self._pair_with_turns(self.beta_fast, 2 * half, theta)
        last = self._pair_with_turns(self.beta_slow, 2 * half, theta)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        # 两端重合时就是一级台阶，让开一点，免得除以 0。
        # If both ends meet it is a step: move one a little, or it divides by 0.
        width = last - first or 0.001
        pairs = torch.arange(half, dtype=torch.float32, device="cpu")  # [D // 2]
        kept = 1 - ((pairs - first) / width).clamp(0.0, 1.0)  # [D // 2]
        return 1.0 / (self.factor * waves) * (1 - kept) + 1.0 / waves * kept  # [D // 2]


def read_yarn(rope: dict[str, Any], factor: float, original: int, theta: float) -> YarnScaling:
    """从 `config.json` 的 `rope_scaling`（或 `rope_parameters`）读出 YaRN 的各项。

    Read YaRN's parts from the `rope_scaling` (or `rope_parameters`) of `config.json`.

    Raises:
        ModelLoadError: 缺项，或数值不合理；a part missing, or a value that cannot be
    """
    # 要除以 theta 的对数；能到的长度也要放得进 int32。
    # The formula divides by theta's logarithm; and the length that it reaches must fit into int32.
    if theta <= 1 or not 1 <= original * factor < 1 << 31:
        raise ModelLoadError(f"config.json: yarn with rope_theta={theta:g}, {factor=:g} and {original=} cannot be")
    return YarnScaling(
        factor, original, positive_number(rope, "beta_fast", 32.0), positive_number(rope, "beta_slow", 1.0),
        flag(rope, "truncate", True), attention_factor=_attention_factor(rope, factor),
    )


def _attention_factor(rope: dict[str, Any], factor: float) -> float:
    """YaRN 的 `attention_factor`：写了就用，没写就由 `factor` 算出；`attn_factor` 再乘上去。

    DeepSeek-R1-0528-Qwen3-8B 写着 `attn_factor` 0.878，是 0.1·ln(4) + 1 = 1.139 的倒数：乘起来正好是 1。

    YaRN's `attention_factor`: as given, else it follows from `factor`; `attn_factor` multiplies it.
    DeepSeek-R1-0528-Qwen3-8B has an `attn_factor` of 0.878, which is 1 over 0.1·ln(4) + 1 = 1.139: the product is 1.
    """

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(max(factor, 1.0)) + 1.0

    default = grown(1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        default = grown(positive_number(rope, "mscale")) / grown(positive_number(rope, "mscale_all_dim"))
    return positive_number(rope, "attention_factor", default) * positive_number(rope, "attn_factor", 1.0)
