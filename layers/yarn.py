"""YaRN：一条把旋转位置编码拉长的规则，长文本的 Qwen 模型用它；`config.json` 里写了 `yarn` 才用得到。

YaRN: a rule that stretches rotary position embedding, used by Qwen models for long texts; met only where `config.json`
says `yarn`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layers.rotary_embedding import RopeScaling


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
