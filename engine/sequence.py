"""Sequence：一个请求在引擎里的全部状态，调度器、块管理器、批构造器都围着它转。

最重要的两个数：`num_tokens`（已知多少 token）和 `num_computed_tokens`（其中多少个的 K、V 已在缓存里）。
调度器要做的，就是让后者追上前者。

Sequence: all of a request's state inside the engine; scheduler, block manager and batch builder revolve around it.

The two numbers that matter: `num_tokens` (how many tokens are known) and `num_computed_tokens` (for how many of them K
and V are in the cache). All that the scheduler does is let the second catch up with the first.
"""

import enum
from dataclasses import dataclass, field, replace
from typing import Any

from engine.block_key import BlockKey
from engine.detokenizer import OutputText
from engine.guides import Guide
from engine.outputs import Logprobs, RequestMetrics
from engine.sampling_params import SamplingParams

# 占位：token 已在设备上采出，主机还没读到。任何真实的 id 都不是负数。
# A placeholder: the token is sampled on the device and not read by the host yet. No real id is negative.
PENDING_TOKEN = -1


class SequenceStatus(enum.Enum):
    """请求的三个阶段；被抢占的请求回到 WAITING。

    A request's three stages; a preempted one goes back to WAITING.
    """

    # 唯一往回走的是抢占；取消可以从 `WAITING` 或 `RUNNING` 直接到 `FINISHED`。
    # Only preemption goes back; an abort leads straight to `FINISHED`, from `WAITING` or from `RUNNING`.
    #     WAITING <-> RUNNING -> FINISHED
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


# `eq=False`：请求是实体，不是值，按身份比较；`deque.remove` 删的就一定是这一个对象。
# `eq=False`: a request is an entity, not a value, compared by identity; `deque.remove` removes this very object.
# `slots=True`：属性名写错一个字母，赋值当场报错，而不是悄悄多出一个没人读的属性。
# `slots=True`: assigning to a misspelt attribute fails at once, instead of adding one that nobody reads.
@dataclass(slots=True, eq=False)
class Sequence:
    """一个请求。

    One request.

    Attributes:
        prompt: 提示词的文字；以 token id 传来时为 None；the prompt's text, None if it came as token ids
        token_ids: 提示词，后面是到目前为止的输出；the prompt, then the output so far
        seed: 噪声的种子，加入时就定下；noise seed, fixed when the request is added
        stop_token_ids: 结束这个请求的全部 id：自己的，以及模型的（除非 `ignore_eos`）；
            every id that ends this request: its own and, unless `ignore_eos`, the model's
        num_computed_tokens: 其中多少个的 K、V 已在缓存里；tokens whose K and V are in the cache
        draft_ids: 对后续 token 的猜测，随下一步一起算，从不进 `token_ids`；
            guesses at the tokens that follow; computed with the next step, they never enter `token_ids`
        draft_state: 猜的人为它记着的东西，随它一起消失；what the drafter remembers for it, which goes when it goes
        num_pending_tokens: 末尾几个已在设备上采出、还没读到的（只在重叠循环里）；
            tokens at the end, sampled on the device but not read yet (overlapped loop only)
        sample_row: 它在最近一步的 token 里的行号（只在重叠循环里）；its row of the latest tokens (overlapped loop only)
        block_table: 物理块的编号，按逻辑次序；归块管理器管；physical block ids in logical order; the block manager's
        block_keys: 各满块的键，用到才算；抢占后仍有效；names of the full blocks, made on demand; survive preemption
        num_registered_blocks: 开头多少块已登记、可供别人命中；leading blocks that the block manager offers to share
        num_cached_tokens: 第一次接纳时前缀缓存省下的提示词 token 数；prompt tokens saved by the prefix cache at first
        num_preemptions: 被抢占过几次；how often this request lost its blocks
        index: 请求的 `n` 份输出里的第几份；which of the request's `n` outputs
        siblings: 请求的 `n` 个序列，含自己；只有一份时为空；the `n` sequences of its request, itself included; or empty
        logprobs: 要求时，每个输出 token 的报告，否则为 None；a report for each output token if asked for, else None
        guide: 结构化输出走到了语法的哪里；没有要求时为 None；
            how far a structured output has come in its grammar; None if none is asked for
        edits_scores: 采样前可能要改分数（惩罚、禁用）；scores may be edited before sampling (penalties, bans)
        output_text: 到目前为止的文字，供流式输出和停止字符串；都不用时为 None；
            the text so far, for streaming and stop strings; None if the request uses neither
    """

    request_id: str
    # 提示词和输出放在同一个列表里，只在末尾追加：抢占后的重算不过是一个更长的提示词，不需要专门的代码。
    # Prompt and output are one list that only grows at its end: recomputing after preemption is just a longer prompt,
    # without code of its own.
    token_ids: list[int]
    # 分界线。例：提示词 5 个 token、输出 2 个，`token_ids` 长 7，输出从下标 5 开始。
    # The border. Example: with 5 prompt and 2 output tokens, `token_ids` has 7 and the output starts at index 5.
    num_prompt_tokens: int
    params: SamplingParams
    prompt: str | None = None
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    status: SequenceStatus = SequenceStatus.WAITING
    # 调试时盯住它：`allocate` 让它从命中处起步，`update` 每步推进，`free`（抢占）让它归 0。
    # Watch this one when debugging: `allocate` starts it behind the hits,
    # `update` moves it, `free` (preemption) makes it 0.
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    draft_ids: list[int] = field(default_factory=list)
    draft_state: Any = None
    sample_row: int = -1
    # 类比页表：第 p 个 token 在 `block_table[p // block_size]` 号块的第 `p % block_size` 个槽位，都从 0 数。
    # The page table: token p is in block `block_table[p // block_size]` at offset `p % block_size`, all counted from 0.
    #     block_size 16, block_table [9, 4, 7]:   p = 35  ->  block 7, offset 3
    block_table: list[int] = field(default_factory=list)
    # 键只取决于 token，与物理块无关，所以抢占收走了块，键照样有效。
    # Names depend on tokens alone and not on physical blocks, so they stay valid when preemption takes the blocks.
    block_keys: list[BlockKey] = field(default_factory=list)
    num_registered_blocks: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    # None 就是还没结束；除了取消，只有刚得到一个 token 之后才会变。
    # None means unfinished; apart from an abort, it can change only when a token has just arrived.
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    output_text: OutputText | None = None
    index: int = 0
    siblings: list["Sequence"] = field(default_factory=list, repr=False)
    logprobs: Logprobs | None = None
    guide: Guide | None = None
    edits_scores: bool = field(init=False)

    def __post_init__(self) -> None:
        # 只算一次：每一步都要问遍所有的行，256 行逐项比较参数要 0.1 毫秒以上。
        # Worked out once: every step asks it of all rows, and comparing the parameters of 256 rows takes over 0.1 ms.
        self.edits_scores = self.params.penalizes or self.params.min_tokens > 0 or self.guide is not None

    def sibling(self, index: int) -> "Sequence":
        """同一个请求的另一份输出：提示词相同，种子加上 `index`；此时自己还没开始输出。

        Another output of the same request: the same prompt, the seed plus `index`; this one has put out nothing yet.
        """
        # 列表和时间都要各有各的：`replace` 只抄引用，漏写一个，两份输出就往同一个列表里追加。
        # Lists and times must not be shared: `replace` copies references, and with one left out both outputs would
        # append to the same list.
        return replace(
            self, index=index, seed=(self.seed + index) % 2**63, token_ids=self.prompt_token_ids, block_table=[],
            block_keys=[], draft_ids=[], logprobs=None if self.logprobs is None else self.logprobs[:0],
            metrics=replace(self.metrics), guide=self.guide and self.guide.copy(),
        )

    def inputs(self, start: int, end: int) -> list[int]:
        """第 `start` 到 `end` 个位置输入的 token：已知的，然后是猜测的。

        The tokens that go in at positions `start` to `end`: known ones, then guesses.
        """
        known = len(self.token_ids)
        return self.token_ids[start:end] + self.draft_ids[max(start - known, 0) : max(end - known, 0)]

    def accept(self, drawn: list[int]) -> list[int]:
        """一步里逐个位置抽出的 token，猜对几个就多留几个；没有猜测时原样返回。

        Of the tokens drawn at the positions of one step, keep one more for every guess that was right; without guesses
        all stay.
        """
        # 例：猜 [7, 8, 9]，抽出 [7, 8, 5, 4]：7、8 猜对了，5 是猜错处真正的 token，它后面的那个是接着 9 抽的，作废。
        # Example: guesses [7, 8, 9], drawn [7, 8, 5, 4]: 7 and 8 were right, 5 is the true token where the guess was
        # wrong, and what follows it was drawn after 9 and is void.
        for index, guess in enumerate(self.draft_ids):
            if drawn[index] != guess:
                return drawn[: index + 1]
        return drawn

    @property
    def request_finished(self) -> bool:
        """请求的各份输出是不是都结束了。

        Whether all outputs of its request have ended.
        """
        return all(seq.finish_reason is not None for seq in self.siblings or [self])

    @property
    def num_tokens(self) -> int:
        """已知的 token 数：提示词加输出。

        Known tokens: prompt and output.
        """
        # 现算，不另存一个计数：少一份状态，就少一处忘了同步的地方。
        # Computed, not stored: a count of its own would be one more state to keep in step.
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """已输出的 token 数。

        Output tokens so far.
        """
        # 它也是采样噪声的“第几个输出”：抢占不删已有的输出，所以重算之后接着抽，抽到的不变。
        # It is also the output index of the noise: preemption keeps the output, so the next draw stays the same.
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        """提示词部分。

        The prompt.
        """
        # 切片是拷贝：用户改动拿到的结果，碰不到引擎里的列表。
        # A slice is a copy: a user who changes the result does not touch the engine's list.
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        """输出部分，末尾的占位不算。

        The output, without placeholders at its end.
        """
        return self.token_ids[self.num_prompt_tokens : len(self.token_ids) - self.num_pending_tokens]

    def __repr__(self) -> str:
        # 调试器和严格模式的报错显示的就是这一行；`computed 12/20` 是“已知 20 个，已算 12 个”。
        # The debugger and the errors of strict mode show this line; `computed 12/20` is "20 known, 12 computed".
        return (
            f"Sequence({self.request_id!r}, {self.status.value}, computed {self.num_computed_tokens}"
            f"/{self.num_tokens} tokens, blocks {self.block_table})"
        )
