"""SamplingParams：一个请求怎样选 token、何时停止；构造时就把不合法的值拦下来。

SamplingParams: how a request chooses tokens and when it stops; bad values are refused at construction.
"""

from dataclasses import dataclass

from engine.validation import check_flag, check_seed, is_int, is_number
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

    # 分数先除以温度 T 再做 softmax：分数差 2，T = 1 时概率相差 7.4 倍，T = 0.5 时相差 54.6 倍。
    # Scores are divided by the temperature T before softmax: a gap of 2 is a ratio of 7.4 at T = 1, 54.6 at T = 0.5.
    temperature: float = 1.0
    # 例：候选的概率是 0.5、0.3、0.15、0.05，各参数单独使用时留下几个：
    # Example: candidates with probabilities 0.5, 0.3, 0.15 and 0.05; how many each setting keeps by itself:
    #     top_p=0.7 -> 2    (0.5 < 0.7 <= 0.5 + 0.3)
    #     top_k=3   -> 3
    #     min_p=0.2 -> 3    (0.15 >= 0.2 * 0.5 > 0.05)
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    # 沿用 vLLM 的默认值，很小：答案断在半句时，先看 `finish_reason` 是不是 "length"。
    # vLLM's default, and a small one: if an answer breaks off, see first whether `finish_reason` is "length".
    max_tokens: int = 16
    min_tokens: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    # 压测时打开：每个请求的输出长度固定，两次运行的吞吐量才可比。
    # For benchmarks: with output lengths fixed, the throughput of two runs can be compared.
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    skip_special_tokens: bool = True

    # 构造时就查完，而且 frozen 不许再改：坏值不会等到几十个请求同批时才在 GPU 上出错。
    # All is checked at construction, and frozen keeps it so: no bad value turns up on the GPU amid a full batch.
    def __post_init__(self) -> None:
        # NaN 与任何数比较都为假，所以条件一律写成“合法范围”再取反，NaN 自然落在外面。
        # NaN compares false with everything, so each test states the valid range and NaN falls outside it.
        for name, low, high in (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0)):
            value = getattr(self, name)
            if not is_number(value) or not low <= value <= high:
                raise ValueError(f"{name}={value!r} is out of range: use a number from {low:g} to {high:g}")
        # 上面的区间含 0，因为 `temperature` 为 0 是贪心、`min_p` 为 0 是关闭；只有 `top_p` 不许为 0。
        # The range above includes 0, as a `temperature` of 0 is greedy and a `min_p` of 0 is off;
        # only `top_p` may not be 0.
        if self.top_p == 0:
            raise ValueError("top_p=0 keeps no token: use a number above 0, at most 1")
        # `max_tokens` 至少是 1：提示词算完那一步必然采样，没有“输出 0 个”的走法。
        # `max_tokens` is at least 1: the step that completes the prompt samples, there is no way to put out 0.
        for name, lowest in (("top_k", -1), ("max_tokens", 1), ("min_tokens", 0), ("n", 1)):
            value = getattr(self, name)
            if not is_int(value) or value < lowest:
                raise ValueError(f"{name}={value!r} is out of range: use an integer from {lowest} up")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}")
        check_seed(self.seed)
        for name in ("ignore_eos", "skip_special_tokens"):
            check_flag(name, getattr(self, name))
        self._check_stop_token_ids()
        self._refuse_unsupported()

    def _check_stop_token_ids(self) -> None:
        """停止 id 必须是非负整数；是否超出词表要等请求加入时才知道。

        Stop ids must be integers from 0; whether they fit the vocabulary is known when the request is added.
        """
        # 负数永远采不到，这样的停止条件等于没写；用户往往要跑满 `max_tokens` 才发现。
        # A negative id is never sampled, so it would stop nothing,
        # which users notice only when `max_tokens` has run out.
        ids = self.stop_token_ids
        if ids is not None and (not isinstance(ids, list | tuple) or not all(is_int(i) and i >= 0 for i in ids)):
            raise ValueError(f"stop_token_ids={ids!r} must be a list of integers from 0 up")

    def _refuse_unsupported(self) -> None:
        """暂未实现的字段：宁可报错，也不能接受了却不起作用。

        Fields not implemented yet: an error is better than accepting and ignoring them.
        """
        # 空字符串在任何文本的开头都找得到，等于一上来就停。
        # An empty string is found at the start of any text, so it would stop at once.
        if self.stop == "" or (isinstance(self.stop, list) and "" in self.stop):
            raise ValueError("stop='' would end every output at once: give a string that is not empty")
        # 暂不支持的字段也列在类里：从 vLLM 搬来的代码会得到一句明白话，而不是 TypeError。
        # Fields not yet supported are in the class all the same:
        # code written for vLLM gets a plain answer and no TypeError.
        defaults = {
            "min_tokens": 0, "stop": None, "n": 1, "logprobs": None, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
        }
        for name, default in defaults.items():
            # 与默认值相等就放行：写明 `n=1` 的代码本来就没要求什么特别的东西。
            # What equals the default passes: code that spells out `n=1` asks for nothing special.
            if getattr(self, name) != default:
                raise NotImplementedError(f"SamplingParams.{name} is not supported yet: leave it at {default!r}")

    @property
    def filters(self) -> bool:
        """用到 top_k、top_p 或 min_p，采样前要先筛掉一部分 token。

        Uses top_k, top_p or min_p, so tokens are filtered before sampling.
        """
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def greedy(self) -> bool:
        """温度低到等于总选最大值。

        The temperature is so low that the top score always wins.
        """
        # 不写成 `== 0`：温度 1e-6 时，0.001 的分数差会放大成 1000，噪声翻不了盘，结果就是取最大值。
        # Not `== 0`: at 1e-6 a score gap of 0.001 becomes 1000, no noise can turn that, and the result is the maximum.
        return self.temperature < GREEDY_TEMPERATURE
