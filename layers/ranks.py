"""张量并行：几个进程（rank）各算模型的一份，凡是要合到一起的都在这里；只有一个进程时，每个方法都原样返回。

    torchrun --nproc-per-node 2 mini_llama.py --model DIR

每个进程运行同一个引擎、处理同样的请求，没有主从，也没有远程调用：调度看到的一样，决定就一样。
一层里要合两次：`o_proj` 和 `down_proj` 之后各求一次和；词嵌入和输出头按词表切开，前者求和，后者拼接。

Tensor parallelism: several processes, the ranks, compute a share of the model each, and all that has to come together
does so here; with one process every method returns what it is given.

Every process runs the same engine on the same requests, with no master and no remote calls: what schedulers see is the
same, and so is what they decide. Within a layer things come together twice, by a sum behind `o_proj` and one behind
`down_proj`; embedding and head are cut along the vocabulary, and the first is summed, the second joined.
Source: Shoeybi et al. 2019, "Megatron-LM".
"""

import json
import logging
import os
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from backends.quantized_weight import Weight
from layers.linear import Linear


@dataclass(slots=True, eq=False)
class Ranks:
    """这个进程在几个进程里的位置，和它们之间的往来；要用的地方都由参数得到它，不去别处找。

    Where this process stands among several, and what passes between them; whoever needs it is given it as an argument.

    Attributes:
        rank, size: 第几个，从 0 数起；共几个；which one, from 0; how many
        strict: 每步都核对大家是否一致；see in each step whether all agree
    """

    rank: int = 0
    size: int = 1
    strict: bool = False
    _compared: Counter[str] = field(default_factory=Counter)

    # ---- 设备上，在前向里 ----
    # ---- on the device, in the forward pass ----

    def sum_(self, x: Tensor) -> Tensor:
        """各进程的 x 相加，就地改写。

        The sum of all ranks' x, in place.
        """
        self._meet(dist.all_reduce, x)
        return x

    def look_up(self, table: Weight, ids: Tensor) -> Tensor:
        """按 id 取行；表按行切开，别人那里的行在这里是 0，加起来就齐了。

        Take rows by id from a table that is cut by rows: rows of others are 0 here, and the sum has them all.

        Args:
            table: [rows, hidden]，这个进程的行；the rows of this rank
            ids: [T] int64

        Returns:
            [T, hidden]
        """
        if self.size == 1:
            return table[ids]  # [T, hidden]
        # 例：词表 2064，2 个进程各 1032 行；id 1500 是第 1 个进程的第 468 行。
        # Example: a vocabulary of 2064 on 2 ranks, 1032 rows each; id 1500 is row 468 of rank 1.
        rows = ids - self.rank * len(table)  # [T]
        others = (rows < 0) | (rows >= len(table))
        return self.sum_(table[rows.clamp(0, len(table) - 1)].masked_fill(others.unsqueeze(1), 0))  # [T, hidden]

    def join(self, x: Tensor, columns: int) -> Tensor:
        """把各进程的列拼起来，只留前 `columns` 列：词表除不尽时，末尾是补的。

        Join the columns of all ranks and keep the first `columns`: the end is filling where a vocabulary does not
        divide.

        Args:
            x: [S, ceil(columns / size)]

        Returns:
            [S, columns]
        """
        # 例：词表 2065、2 个进程，各 1033 列，拼成 2066 列，最后一列不要。
        # Example: a vocabulary of 2065 on 2 ranks is 1033 columns each, joined 2066, and the last one goes.
        return x if self.size == 1 else torch.cat(self._gather(x), dim=1)[:, :columns].contiguous()  # [S, columns]

    def first(self, x: Tensor) -> Tensor:
        """大家都用 rank 0 的 x，就地改写。

        Everybody takes the x of rank 0, in place.
        """
        self._meet(dist.broadcast, x, 0)
        return x

    # ---- 主机上，在前向之外 ----
    # ---- on the host, outside the forward pass ----

    def messages(self, mine: Any) -> list[Any]:
        """各进程的消息，rank 0 的在前；以 JSON 的字节传送，不用 pickle，它能执行任意代码。

        The messages of all ranks, that of rank 0 first; they go as bytes of JSON, never as a pickle, which can run any
        code.
        """
        data = json.dumps(mine).encode()
        # 通信要求一样长：短的在末尾补空格，JSON 不在乎。
        # Communication wants equal lengths: shorter ones end in blanks, which JSON does not mind.
        size = max(map(int, self._gather(torch.tensor([len(data)], device="cpu"))))
        text = torch.frombuffer(bytearray(data.ljust(size)), dtype=torch.uint8)
        return [json.loads(bytes(each.tolist())) for each in self._gather(text)]

    def compare(self, what: str, content: object) -> None:
        """严格模式下每步核对：大家的 `content` 是否相同。

        In strict mode, every step: whether all have the same `content`.

        Raises:
            RuntimeError: 有人不同，写明是第几步、哪个进程；somebody differs, named with the step
        """
        if not self.strict:
            return
        self._compared[what] += 1
        # 只比哈希：256 行的安排有几十 KB，哈希是 8 字节。
        # Hashes are compared: a schedule of 256 rows has dozens of KB, its hash 8 bytes.
        first, *rest = self.messages(xxhash.xxh64_hexdigest(repr(content).encode()))
        for rank, other in enumerate(rest, start=1):
            if other != first:
                raise RuntimeError(f"step {self._compared[what]}: the {what} of rank {rank} are not those of rank 0")

    def _gather(self, x: Tensor) -> list[Tensor]:
        parts = [x] if self.size == 1 else [torch.empty_like(x) for _ in range(self.size)]
        self._meet(dist.all_gather, parts, x)
        return parts

    def _meet(self, meeting: Callable[..., object], *args: Any) -> None:
        """大家都要到场的一次通信。

        A communication in which all take part.

        Raises:
            ConnectionError: 有人已经不在了；somebody is gone
        """
        if self.size > 1:
            try:
                meeting(*args)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise ConnectionError(f"rank {self.rank} stops, having lost the others: {reason:.120}") from None


# 没有同伴：一个进程就是整个模型。
# Without others: one process is the whole model.
ALONE = Ranks()


class SummedLinear(Linear):
    """输入按列切开的线性层：各进程的结果加起来才是结果；偏置只由 rank 0 加一次。

    A linear layer whose inputs are cut: the sum over the ranks is its output; rank 0 alone adds the bias, once.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, ranks: Ranks) -> None:
        super().__init__(in_features, out_features, bias)
        self.ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """乘积，再求和。

        The product, then the sum.

        Args:
            x: [T, in_features]，这个进程的那一段；the part of this rank

        Returns:
            [T, out_features]
        """
        return self.ranks.sum_(self.product(x, None if self.ranks.rank else self.bias))  # [T, out_features]


# ---- torchrun 起的进程 ----
# ---- the processes that torchrun has started ----

# 共几个；不是由它启动的，就是 1。
# How many there are; 1 where it has started none.
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
# 只有 rank 0 打印、显示进度和告警。
# Only rank 0 prints, shows progress and warns.
SPEAKS = os.environ.get("RANK", "0") == "0"
# 同一台机器上的几个进程，各用一个 GPU。
# Processes on one machine take a GPU each.
LOCAL_CUDA = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def connect(size: int, device: torch.device, strict: bool) -> Ranks:
    """与同伴连上；只要 1 个时，什么也不做。

    Meet the others; with a size of 1 nothing is done.

    Raises:
        ValueError: `size` 既不是 1，也不是进程数；`size` is neither 1 nor the number of processes
    """
    if size not in (1, WORLD_SIZE):
        start = f"torchrun --nproc-per-node {size} PROGRAM"
        raise ValueError(f"tensor_parallel_size={size}, the number of processes is {WORLD_SIZE}: use 1, or {start}")
    # 核函数总是启动在“当前”的 GPU 上：由 torchrun 启动时，就是自己的那个。
    # Kernels are launched on the current GPU: under torchrun that is one's own.
    if device.type == "cuda" and LOCAL_CUDA != "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        return ALONE
    if not dist.is_initialized():
        # 主机上的数走 gloo，GPU 上的走 NCCL，看张量在哪里。谁死了，连接一断就知道；等人打字，则可以等上半天。
        # Numbers on the host go by gloo, those on a GPU by NCCL. Who dies is noticed at once, as the connection breaks;
        # for somebody to type all may wait half a day.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
        # 不收拾就退出，通信的线程会让解释器崩溃；录好的图占着 NCCL，`finalize` 从最新的做起，图在此之前已经放掉。
        # Left as they are, the threads that communicate make the interpreter crash at its end. Recorded graphs hold on
        # to NCCL; `finalize` begins with the newest, so these have gone by then.
        weakref.finalize(connect, dist.destroy_process_group)
        for name in () if SPEAKS else ("backends", "engine", "layers", "models", "serving"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return Ranks(dist.get_rank(), size, strict)
