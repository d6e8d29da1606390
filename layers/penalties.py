"""惩罚：改动分数，让已经出现过的 token 更难（或更容易）再被选中。含义与 vLLM 相同。

Penalties: change the scores so that tokens that have appeared are harder (or easier) to choose again, as in vLLM.
"""

import torch
from torch import Tensor


def apply_penalties(logits: Tensor, counts: Tensor, presence: Tensor, frequency: Tensor, repetition: Tensor) -> Tensor:
    """对每行用它自己的三种惩罚。

    Apply to each row its own three penalties.
    Source: repetition is from Keskar et al. 2019, "CTRL"; the other two are those of the OpenAI API.

    Args:
        logits: [P, vocab_size] float32
        counts: whether each token stands in the prompt (0), how often in the output (1); [2, P, vocab_size]
        presence, frequency, repetition: [P, 1] float32

    Returns:
        [P, vocab_size] float32
    """
    in_prompt, in_output = counts
    # 重复惩罚连提示词也算；除正数、乘负数，两种都是往下压。若一律用除法，负分反而会变大。
    # Repetition counts the prompt as well; positive scores are divided and negative ones multiplied, and both go down.
    # If all were divided, a negative score would go up.
    #     repetition 2:   3.0 -> 1.5     -3.0 -> -6.0
    factor = torch.where(in_prompt + in_output > 0, repetition, 1.0)  # [P, vocab_size]
    logits = torch.where(logits > 0, logits / factor, logits * factor)  # [P, vocab_size]
    # 这两种只数输出：提示词里写过 10 遍的专有名词，回答里照样可以说。
    # These two count the output only: a name that the prompt holds 10 times may still be said in the answer.
    return logits - frequency * in_output - presence * (in_output > 0)  # [P, vocab_size]
