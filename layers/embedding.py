"""词嵌入与输出头：token id 变成向量，向量再变回每个 token 的分数。

Embedding and output head: token ids become vectors, vectors become a score for every token again.
"""

import torch
from torch import Tensor, nn

from layers.linear import Linear
from layers.ranks import ALONE, Ranks


class Embedding(nn.Module):
    """查表：第 i 行就是 token i 的向量。

    A look-up table: row i is the vector of token i.
    """

    def __init__(self, vocab_size: int, hidden_size: int, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.ranks = ranks
        # Llama-3.2-1B 的这张表有 128256 行、2048 列，bf16 占 525 MB，是全部权重的 21%。
        # In Llama-3.2-1B the table has 128256 rows and 2048 columns: 525 MB in bf16, 21% of all weights.
        # 推理不求导。若要求导，加载器往参数里 `copy_` 时 torch 会报错。
        # Inference takes no gradients; were they required, torch would refuse the loader's `copy_` into the parameter.
        # 张量并行时各进程存一段，除不尽就向上取整：2065 行、2 个进程，各 1033 行，最后一行是空的。
        # With tensor parallelism each rank has a range, rounded up: 2065 rows on 2 ranks are 1033 each, the last empty.
        rows = -(-vocab_size // ranks.size)
        self.weight = nn.Parameter(torch.empty(rows, hidden_size), requires_grad=False)  # [rows, hidden]

    def forward(self, input_ids: Tensor) -> Tensor:
        """取出每个 token 的向量：数学上是 one-hot 向量乘矩阵，实际只按下标取行，id [5, 2, 5] 取出第 5、2、5 行。

        越界的 id 在 CPU 上抛异常，在 CUDA 上会毁掉整个进程的 CUDA 上下文，所以引擎收到请求时就先检查。

        Take each token's vector: in theory one-hot vectors times a matrix, in fact rows taken by index; ids [5, 2, 5]
        take rows 5, 2, 5.
        An id out of range raises on the CPU but ruins the whole process's CUDA context: the engine checks each request.

        Args:
            input_ids: [T] int64

        Returns:
            [T, hidden_size]
        """
        # 重叠循环里，分数坏了的行已经带着 -1 走进下一步：不管取到什么，算出来的没有人要。
        # In the overlapped loop a row of bad scores goes on as -1: whatever it takes, nobody wants the result.
        return self.ranks.look_up(self.weight, input_ids)  # [T, hidden_size]


class LMHead(Linear):
    """输出头：隐藏向量与词表里每个 token 的向量做点积，得到 logits。

    `tie_word_embeddings` 为真时，它与词嵌入共用同一块权重，文件里没有 `lm_head.weight`。

    The output head: the dot product of a hidden vector with every token's vector gives the logits.
    If `tie_word_embeddings` is true, it shares the embedding's weight and the file has no `lm_head.weight`.
    """

    def __init__(self, embedding: Embedding, tied: bool) -> None:
        rows, hidden_size = embedding.weight.shape
        # 共用时先建一个 0 行的权重占位，随即换掉：不会为它多分配 525 MB（以 1B 为例）。
        # When tied, a weight of 0 rows holds the place until it is replaced: no extra 525 MB (for the 1B) is allocated.
        super().__init__(hidden_size, 0 if tied else rows)
        if tied:
            # 是同一个 `Parameter` 对象，不是拷贝：`named_parameters` 只报一次，加载器也就只填一次。
            # The same `Parameter` object and no copy: `named_parameters` reports it once, so the loader fills it once.
            self.weight = embedding.weight  # [rows, hidden_size]
