"""交给用户的结果，字段名与 vLLM 相同。

What the user gets back; fields are named as in vLLM.
"""

from dataclasses import dataclass, field

from engine.logprobs import Logprob
from engine.sequence import RequestMetrics


@dataclass(slots=True)
class CompletionOutput:
    """一份输出。

    One output.

    Attributes:
        index: which of the request's `n` outputs
        text: the decoded output
        token_ids: the output's token ids, a stop token included, and those that made a stop string
        finish_reason: "stop", "length" or "abort"; None while it runs
        stop_reason: the stop token id or the stop string that the user gave and that ended it, else None
        logprobs: for each output token its id and the likeliest ones with their log-probabilities, if asked for
        cumulative_logprob: sum of the chosen tokens' log-probabilities, if asked for
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
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """一个请求的结果。

    One request's result.

    Attributes:
        prompt: the prompt's text, None if it came as token ids
        finished: whether this is all; False only for the outputs that `AsyncLLM` gives on the way
        num_cached_tokens: prompt tokens that the prefix cache saved
        metrics: points in time, in seconds of `time.monotonic`
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
        num_running, num_waiting: requests
        kv_cache_usage: the share of blocks in use, from 0 to 1
        prefix_cache_queries, prefix_cache_hits: totals, in tokens
        num_computed_tokens, num_generated_tokens: totals; recomputation after preemption counts as computed
    """

    num_running: int
    num_waiting: int
    kv_cache_usage: float
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    num_computed_tokens: int
    num_generated_tokens: int

    @property
    def prefix_cache_hit_rate(self) -> float:
        """前缀缓存命中率，没查过时为 0。

        The prefix cache's hit rate, 0 before the first query.
        """
        return self.prefix_cache_hits / max(1, self.prefix_cache_queries)
