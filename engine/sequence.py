"""Sequence：一个请求在引擎里的全部状态，调度器、块管理器、批构造器都围着它转。

最重要的两个数：`num_tokens`（已知多少 token）和 `num_computed_tokens`（其中多少个的 K、V 已在缓存里）。
调度器要做的，就是让后者追上前者。

Sequence: all of a request's state inside the engine; scheduler, block manager and batch builder revolve around it.

The two numbers that matter: `num_tokens` (how many tokens are known) and `num_computed_tokens` (for how many of them K
and V are in the cache). All that the scheduler does is let the second catch up with the first.
"""

import enum
from dataclasses import dataclass, field

from engine.block_key import BlockKey
from engine.sampling_params import SamplingParams


class SequenceStatus(enum.Enum):
    """请求的三个阶段；被抢占的请求回到 WAITING。

    A request's three stages; a preempted one goes back to WAITING.
    """

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True)
class RequestMetrics:
    """一个请求的时间点，单位秒（`time.monotonic`）。由引擎记录，调度器不看钟。

    A request's points in time, in seconds (`time.monotonic`). The engine records them; the scheduler reads no clock.
    """

    arrival_time: float = 0.0
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """一个请求。

    One request.

    Attributes:
        token_ids: the prompt, then the output so far
        seed: noise seed, fixed when the request is added
        stop_token_ids: every id that ends this request: its own and, unless ignore_eos, the model's
        num_computed_tokens: tokens whose K and V are in the cache
        block_table: physical block ids in logical order; the block manager owns it
        block_keys: names of the full blocks, computed as far as needed; they survive preemption
        num_registered_blocks: leading blocks that the block manager has offered for sharing
        num_cached_tokens: prompt tokens that the prefix cache saved at the first admission
        num_preemptions: how often this request lost its blocks
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_keys: list[BlockKey] = field(default_factory=list)
    num_registered_blocks: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    finish_reason: str | None = None
    stop_reason: int | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    @property
    def num_tokens(self) -> int:
        """已知的 token 数：提示加输出。

        Known tokens: prompt and output.
        """
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """已输出的 token 数。

        Output tokens so far.
        """
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        """提示部分。

        The prompt.
        """
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        """输出部分。

        The output.
        """
        return self.token_ids[self.num_prompt_tokens :]

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request_id!r}, {self.status.value}, computed {self.num_computed_tokens}"
            f"/{self.num_tokens} tokens, blocks {self.block_table})"
        )
