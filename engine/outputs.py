"""交给用户的结果，字段名与 vLLM 相同。这里不导入引擎的任何东西：序列和调度器要用其中的几个类。

What the user gets back; fields are named as in vLLM. Nothing of the engine is imported here, as sequence and scheduler
use some of its classes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Logprob:
    """一个 token 的对数概率。

    One token's log-probability.

    Attributes:
        rank: 在词表里的名次，1 是最可能的；1 is the likeliest token of the vocabulary
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class Logprobs(Sequence[dict[int, Logprob]]):
    """各输出 token 的报告，用起来与列表相同；看到哪一条，才为它造字典。

    例：256 行各要 5 个，一步就是 256 个字典和一千多条对数概率，每步都造，主机要忙好几毫秒，而多数没有人看。
    造出的字典：所选的 token 在前，然后是最可能的几个。

    A report for each output token, used like a list; its dict is made when somebody looks at it.
    Example: 256 rows that ask for 5 are 256 dicts and over a thousand entries a step; made in every step they keep
    the host busy for milliseconds, and most are never looked at. A dict has the chosen token first, then the likeliest.
    """

    def __init__(self, number: int, decode: Callable[[int], str], reports: Iterable[tuple[int, Any]] = ()) -> None:
        self._number, self._decode, self._reports = number, decode, list(reports)

    def add(self, reports: Iterable[tuple[int, Any]]) -> None:
        """记下几个 token 的报告。

        Note the reports on some tokens.

        Args:
            reports: （token，[1 + k, 2]）；后者是 `gather_logprobs` 的一行，NumPy 数组；
                (token, [1 + k, 2]), a row of `gather_logprobs` as a NumPy array
        """
        self._reports += reports

    def total(self) -> float:
        """所选各 token 的对数概率之和。

        The sum of the chosen tokens' log-probabilities.
        """
        return float(sum(report[0, 0] for _, report in self._reports))

    def __len__(self) -> int:
        return len(self._reports)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Logprobs(self._number, self._decode, self._reports[index])
        token, report = self._reports[index]
        (chosen, rank), *top = report.tolist()
        # 所选的往往就在最可能的几个里，字典里只留一份：要 5 个，得到 5 项或 6 项。
        # The chosen token is often among the likeliest and stands in the dict once: ask for 5, get 5 or 6.
        entries = [(token, chosen, int(rank))]
        entries += [(int(i), logprob, place) for place, (logprob, i) in enumerate(top[: self._number], start=1)]
        return {i: Logprob(logprob, rank, self._decode(i)) for i, logprob, rank in entries}

    def __eq__(self, other: object) -> bool:
        return list(self) == other if isinstance(other, list) else isinstance(other, Logprobs) and self == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    # 存盘、拷贝、送到别的进程时，就是普通的列表，不带分词器。
    # When pickled or copied it is an ordinary list, without the tokenizer.
    def __reduce__(self) -> Any:
        return list, (list(self),)


@dataclass(slots=True)
class RequestMetrics:
    """一个请求的时间点，单位秒（`time.monotonic`）。由引擎记录，调度器不读时钟。

    A request's points in time, in seconds (`time.monotonic`). The engine records them; the scheduler reads no clock.
    """

    # 用单调时钟：系统对时可能把墙上时钟往回拨，算出来的延迟就成了负数。
    # A monotonic clock: time synchronisation may set the wall clock back, and a latency would come out negative.
    # 常用指标都是这些点的差，n 是输出 token 数；TPOT 的除数是 n - 1，有几份输出时取平均：
    # The usual metrics are differences of these points, with n output tokens; TPOT divides by n - 1, and is the mean
    # over several outputs:
    #     queueing = first_scheduled_time - arrival_time
    #     TTFT     = first_token_time - arrival_time
    #     TPOT     = (last_token_time - first_token_time) / (n - 1)
    arrival_time: float = 0.0
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    # 在交出结果时填上，运行途中不必每步都数；一个请求有几份输出时，是各份之和。
    # Filled in when a result is handed out, with no need to count in every step; sums over a request's outputs.
    num_generated_tokens: int = 0
    num_later_tokens: int = 0
    later_seconds: float = 0.0

    @property
    def time_in_queue(self) -> float | None:
        """排队多久才第一次轮到它；还没轮到则为 None。

        How long it waited for its first turn; None while it waits.
        """
        return None if self.first_scheduled_time is None else self.first_scheduled_time - self.arrival_time

    @property
    def time_to_first_token(self) -> float | None:
        """TTFT：从入队到首个 token；还没有则为 None。

        TTFT: from arrival to the first token; None before it.
        """
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def time_per_output_token(self) -> float | None:
        """TPOT：首个之后，平均每个 token 多久；没有哪份输出到了 2 个，则为 None。

        TPOT: the mean time of each token after the first; None if no output has 2.
        """
        # 每份输出各算各的：4 份输出同时写，每秒看到的字并没有快 4 倍。
        # Each output counts for itself: with 4 outputs written at once nobody sees any of them 4 times as fast.
        return self.later_seconds / self.num_later_tokens if self.num_later_tokens else None


@dataclass(slots=True)
class CompletionOutput:
    """一份输出。

    One output.

    Attributes:
        index: 请求的 `n` 份输出里的第几份；which of the request's `n` outputs
        text: 还原出的文字；the decoded output
        token_ids: 输出的 token id，停止 token 和组成停止字符串的也在内；
            the output's token ids, a stop token included, and those that made a stop string
        finish_reason: "stop"、"length"、"abort" 或 "error"，运行中为 None；
            "stop", "length", "abort" or "error"; None while it runs
        stop_reason: 结束它的、用户给的停止 id 或停止字符串，否则为 None；
            the stop token id or stop string that the user gave and that ended it, else None
        logprobs: 要求时，每个输出 token 自己和最可能的几个的对数概率；
            if asked for, the log-probabilities of each output token and of the likeliest ones
        cumulative_logprob: 要求时，所选各 token 的对数概率之和；sum of the chosen tokens' logprobs, if asked for
    """

    index: int
    text: str
    # 末尾的停止 token 留在这里，但不进 `text`，不管它是不是特殊 token，也不管 `skip_special_tokens`。
    # The stop token stays at the end here and never enters `text`, special or not, whatever `skip_special_tokens` says.
    token_ids: list[int]
    # 答案像是没说完？"length" 是到了长度上限，"abort" 是被取消，`token_ids` 都是已经得到的部分。
    # Does the answer look cut off? "length" is a limit reached, "abort" a cancellation;
    # `token_ids` is what there is so far.
    finish_reason: str | None
    stop_reason: int | str | None = None
    logprobs: Sequence[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """一个请求的结果。

    One request's result.

    Attributes:
        prompt: 提示词的文字；以 token id 传来时为 None；the prompt's text, None if it came as token ids
        finished: 是不是全部；只有 `AsyncLLM` 中途给的结果才为假；
            whether this is all; False only on the way, from `AsyncLLM`
        num_cached_tokens: 前缀缓存省下的提示词 token 数；prompt tokens that the prefix cache saved
        metrics: 几个时间点，单位是 `time.monotonic` 的秒；points in time, in seconds of `time.monotonic`
    """

    request_id: str
    prompt: str | None
    # 排查“回答不对劲”先看这里：开头有 2 个 BOS，就是对话模板加了一个，分词器又加了一个。
    # If answers are odd, look here first: 2 BOS at the start mean that chat template and tokenizer added one each.
    prompt_token_ids: list[int]
    # 一个请求可以要 `n` 份输出，所以是列表，按 `index` 排列；通常只有 1 份，用 `outputs[0]` 取。
    # A request may ask for `n` outputs, so it is a list in the order of `index`; mostly there is 1, `outputs[0]`.
    outputs: list[CompletionOutput]
    finished: bool = False
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """引擎此刻的状况。合计只增不减：要速度，就取两次读数之差再除以时间。

    The engine at this moment. Totals only grow: for a speed, divide the difference of two readings by the time between.

    Attributes:
        num_running, num_waiting: 请求数；requests
        kv_cache_usage: 在用的块所占的比例，0 到 1；the share of blocks in use, from 0 to 1
        prefix_cache_queries, prefix_cache_hits: 合计，单位 token；totals, in tokens
        num_computed_tokens, num_generated_tokens: 合计；重算也计入前者；totals; recomputation counts as computed
        num_drafts, num_draft_tokens, num_accepted_tokens: 合计：带猜测的行，猜测，猜对的；
            totals: rows with guesses, guesses, and those that were right
    """

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    num_computed_tokens: int
    num_generated_tokens: int
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    @property
    def prefix_cache_hit_rate(self) -> float:
        """前缀缓存命中率，没查过时为 0。

        The prefix cache's hit rate, 0 before the first query.
        """
        return self.prefix_cache_hits / max(1, self.prefix_cache_queries)
