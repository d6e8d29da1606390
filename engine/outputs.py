"""交给用户的结果，字段名与 vLLM 相同。

What the user gets back; fields are named as in vLLM.
"""

from dataclasses import dataclass, field

from engine.sequence import RequestMetrics


@dataclass(slots=True)
class CompletionOutput:
    """一份输出。

    One output.

    Attributes:
        index: which of the request's `n` outputs
        text: the decoded output
        token_ids: the output's token ids, a stop token included
        finish_reason: "stop", "length" or "abort"
        stop_reason: the stop token id that the user gave and that ended it, else None
        logprobs: not yet supported, None
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: int | None = None
    logprobs: None = None


@dataclass(slots=True)
class RequestOutput:
    """一个请求的结果。

    One request's result.

    Attributes:
        prompt: the prompt's text, None if it came as token ids
        num_cached_tokens: prompt tokens that the prefix cache saved
        metrics: points in time, in seconds of `time.monotonic`
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
