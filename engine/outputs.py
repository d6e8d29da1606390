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
    # 末尾的结束符（特殊 token）留在这里，但默认不出现在 `text` 里：`skip_special_tokens` 把它略去。
    # The end token (a special one) stays at the end here, but by default `skip_special_tokens` keeps it out of `text`.
    token_ids: list[int]
    # 答案像是没说完？"length" 是到了长度上限，"abort" 是被取消，`token_ids` 都是已经得到的部分。
    # Does the answer look cut off? "length" is a limit reached, "abort" a cancellation;
    # `token_ids` is what there is so far.
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
    # 排查“回答不对劲”先看这里：开头有 2 个 BOS，就是对话模板加了一个，分词器又加了一个。
    # If answers are odd, look here first: 2 BOS at the start mean that chat template and tokenizer added one each.
    prompt_token_ids: list[int]
    # 是列表，因为 vLLM 一个请求可以要 n 份输出；这里目前总是 1 份，用 `outputs[0]` 取。
    # A list, as a request to vLLM may ask for n outputs; here there is always 1 so far, taken as `outputs[0]`.
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
