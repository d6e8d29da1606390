"""词嵌入与输出头：token id 变成向量，向量再变回每个 token 的分数。

Embedding and output head: token ids become vectors, vectors become a score for every token again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.linear import Linear


class Embedding(nn.Module):
    """查表：第 i 行就是 token i 的向量。

    A look-up table: row i is the vector of token i.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size), requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """取出每个 token 的向量。

        Take each token's vector.

        Args:
            input_ids: [T] int64

        Returns:
            [T, hidden_size]
        """
        return F.embedding(input_ids, self.weight)


class LMHead(Linear):
    """输出头：隐藏向量与词表里每个 token 的向量做点积，得到 logits。

    `tie_word_embeddings` 为真时，它与词嵌入共用同一块权重，文件里没有 `lm_head.weight`。

    The output head: the dot product of a hidden vector with every token's vector gives the logits.
    If `tie_word_embeddings` is true, it shares the embedding's weight and the file has no `lm_head.weight`.
    """

    def __init__(self, embedding: Embedding, tied: bool) -> None:
        vocab_size, hidden_size = embedding.weight.shape
        super().__init__(hidden_size, 0 if tied else vocab_size)
        if tied:
            self.weight = embedding.weight
