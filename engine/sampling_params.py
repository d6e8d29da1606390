"""SamplingParams：一个请求怎样选 token、何时停止；构造时就把不合法的值拦下来。

SamplingParams: how a request chooses tokens and when it stops; bad values are refused at construction.
"""

import math
from dataclasses import dataclass

from layers.sampler import GREEDY_TEMPERATURE


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """采样参数，名字与 vLLM 相同。

    Sampling parameters, named as in vLLM.

    Attributes:
        temperature: 0 is greedy, 1 is the model's own distribution, at most 2
        top_p: keep the likeliest tokens until their probability reaches this, in (0, 1]
        top_k: keep the k likeliest tokens; 0 or -1 is off
        min_p: drop tokens below this share of the top probability, in [0, 1]
        seed: fixes the noise; None draws one when the request is added
        max_tokens: at most so many output tokens
        min_tokens: at least so many (not yet supported)
        stop: strings that end the output (not yet supported)
        stop_token_ids: token ids that end the output, besides the model's own
        ignore_eos: do not stop at the model's own end tokens
        n: outputs per request (only 1 so far)
        logprobs: how many log-probabilities to report (not yet supported)
        presence_penalty, frequency_penalty, repetition_penalty: (not yet supported)
        skip_special_tokens: leave special tokens out of the text

    Raises:
        ValueError: a value is out of range; the message says which
        NotImplementedError: a field that is not yet supported has another value than its default
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        # NaN 与任何数比较都为假，所以条件一律写成“合法范围”再取反，NaN 自然落在外面。
        # NaN compares false with everything, so each test states the valid range and NaN falls outside it.
        for name, low, high in (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0)):
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                raise ValueError(f"{name}={value!r} is out of range: use a number from {low:g} to {high:g}")
        if self.top_p == 0:
            raise ValueError("top_p=0 keeps no token: use a number above 0, at most 1")
        for name, lowest in (("top_k", -1), ("max_tokens", 1), ("min_tokens", 0), ("n", 1)):
            value = getattr(self, name)
            if not _is_int(value) or value < lowest:
                raise ValueError(f"{name}={value!r} is out of range: use an integer from {lowest} up")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}")
        if self.seed is not None and (not _is_int(self.seed) or not 0 <= self.seed < 2**63):
            raise ValueError(f"seed={self.seed!r} is out of range: use an integer from 0 to 2**63 - 1, or None")
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False")
        self._check_stop_token_ids()
        self._refuse_unsupported()

    def _check_stop_token_ids(self) -> None:
        """停止 id 必须是非负整数；是否超出词表要等请求加入时才知道。

        Stop ids must be integers from 0; whether they fit the vocabulary is known when the request is added.
        """
        ids = self.stop_token_ids
        if ids is not None and (not isinstance(ids, list | tuple) or not all(_is_int(i) and i >= 0 for i in ids)):
            raise ValueError(f"stop_token_ids={ids!r} must be a list of integers from 0 up")

    def _refuse_unsupported(self) -> None:
        """暂未实现的字段：宁可报错，也不能接受了却不起作用。

        Fields not implemented yet: an error is better than accepting and ignoring them.
        """
        if self.stop == "" or (isinstance(self.stop, list) and "" in self.stop):
            raise ValueError("stop='' would end every output at once: give a string that is not empty")
        defaults = {
            "min_tokens": 0,
            "stop": None,
            "n": 1,
            "logprobs": None,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
        }
        for name, default in defaults.items():
            if getattr(self, name) != default:
                raise NotImplementedError(f"SamplingParams.{name} is not supported yet: leave it at {default!r}")

    @property
    def greedy(self) -> bool:
        """温度低到等于总选最大值。

        The temperature is so low that the top score always wins.
        """
        return self.temperature < GREEDY_TEMPERATURE


def _is_int(value: object) -> bool:
    """整数，布尔不算。

    An integer; a bool does not count.
    """
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """有限或无限的实数，布尔不算，NaN 由调用者的范围检查拦下。

    A real number; a bool does not count, and the caller's range check stops NaN.
    """
    return _is_int(value) or (isinstance(value, float) and not math.isnan(value))
