"""SamplingParams：一个请求怎样选 token、何时停止；构造时就把不合法的值拦下来。

SamplingParams: how a request chooses tokens and when it stops; bad values are refused at construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.guides import StructuredOutputsParams, check_wanted
from engine.validation import MAX_INT, check_flag, checked_int, is_int, is_number

# 低于这个温度就当作贪心：分差 0.001 除以 1e-5 已是 100，而噪声的跨度不到 27，抽样的结果就是 argmax。
# Below this, take the argmax: a gap of 0.001 over 1e-5 is 100, noise spans less than 27, so a draw is the argmax.
GREEDY_TEMPERATURE = 1e-5
# 与 vLLM 的默认上限相同：每个 token 多报一份，就多占一份内存。
# vLLM's default cap: each one more is reported for every token, and takes memory for every token.
MAX_LOGPROBS = 20
# 每份输出是一个序列，每个停止字符串每步都要查：没有上限，一个请求就能拖住大家。
# Each output is a sequence and each stop string is searched every step: unbounded, one request could hold up all.
MAX_OUTPUTS = 1024
MAX_STOPS, MAX_STOP_CHARS = 64, 1024
_FACTORS = (1e-30, 1e30)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """采样参数，名字与 vLLM 相同。

    Sampling parameters, named as in vLLM.

    Attributes:
        temperature: 0 是贪心，1 是模型自己的分布，最大 2；0 is greedy, 1 is the model's own distribution, at most 2
        top_p: 保留最可能的，直到概率之和达到它，取值 (0, 1]；keep the likeliest until they sum up to this, in (0, 1]
        top_k: 保留最可能的 k 个；0 或 -1 不限；keep the k likeliest tokens; 0 or -1 is off
        min_p: 去掉概率不到最大概率这么多倍的，取值 [0, 1]；drop tokens below this share of the top one, in [0, 1]
        seed: 固定噪声；None 则在加入时抽一个；fixes the noise; None draws one when the request is added
        max_tokens: 最多输出多少个 token；at most so many output tokens
        min_tokens: 至少这么多；不到之前，选不中请求的停止 id；at least so many; until then no stop id can be chosen
        stop: 结束输出的字符串，最多 64 个、每个 1024 字符；文字在它之前截断，token 留着；
            strings that end the output, at most 64 of 1024 characters; cut from the text, their tokens stay
        stop_token_ids: 模型自带的之外，结束输出的 token id；token ids that end the output, besides the model's own
        ignore_eos: 遇到模型自带的结束符不停；do not stop at the model's own end tokens
        n: 每个请求几份输出，最多 1024；第 i 份用 seed + i；outputs per request, at most 1024; output i has seed + i
        logprobs: 报告所选的和最可能的这么多个的对数概率，0 到 20；None 不报告；
            report the log-probability of the chosen token and of so many likeliest ones, 0 to 20; None is off
        presence_penalty: 输出里有的 token，分数减去它，取值 [-2, 2]；taken from scores of tokens put out, in [-2, 2]
        frequency_penalty: 同上，再乘以在输出里的次数，取值 [-2, 2]；likewise, times its count in the output, in [-2, 2]
        repetition_penalty: 提示词和输出里有的 token，正的分数除以它，负的乘以它；
            divides the positive and multiplies the negative scores of tokens in prompt or output
        skip_special_tokens: 文字里不含特殊 token；leave special tokens out of the text
        structured_outputs: 输出要合乎的 JSON Schema、正则、选项或语法；a schema, regex, choice or grammar to match

    Raises:
        ValueError: 某个值超出范围，消息里写明是哪个；a value is out of range; the message says which
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
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    # 压测时打开：每个请求的输出长度固定，两次运行的吞吐量才可比。
    # For benchmarks: with output lengths fixed, the throughput of two runs can be compared.
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    # 例：某个 token 的分数是 2.0，已输出 3 次：
    # Example: a token whose score is 2.0 has been put out 3 times:
    #     presence_penalty=0.5    2.0 - 0.5     = 1.5
    #     frequency_penalty=0.5   2.0 - 0.5 * 3 = 0.5
    #     repetition_penalty=1.25 2.0 / 1.25    = 1.6
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None

    # 构造时就查完，而且 frozen 不许再改：坏值不会等到几十个请求同批时才在 GPU 上出错。
    # All is checked at construction, and frozen keeps it so: no bad value turns up on the GPU amid a full batch.
    def __post_init__(self) -> None:
        # NaN 与任何数比较都为假，所以条件一律写成“合法范围”再取反，NaN 自然落在外面。
        # NaN compares false with everything, so each test states the valid range and NaN falls outside it.
        # `repetition_penalty` 只要大于 0；两端的界限让 float32 的分数除以它、乘以它都不会溢出。
        # `repetition_penalty` need only be above 0; its bounds keep float32 scores from overflowing.
        ranges = {
            "temperature": (0.0, 2.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "presence_penalty": (-2.0, 2.0),
            "frequency_penalty": (-2.0, 2.0), "repetition_penalty": _FACTORS,
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not is_number(value) or not low <= value <= high:
                raise ValueError(f"{name}={value!r} is out of range: use a number from {low:g} to {high:g}")
            # 换成 Python 自己的数：`Fraction` 和 numpy 的数到了采样那一步，torch 未必认得，它们的运算还会溢出。
            # As Python's own numbers: torch may not know a `Fraction` or a number of numpy's when it samples, and
            # theirs overflow.
            object.__setattr__(self, name, float(value))
        # 上面的区间含 0，因为 `temperature` 为 0 是贪心、`min_p` 为 0 是关闭；只有 `top_p` 不许为 0。
        # The range above includes 0, as a `temperature` of 0 is greedy and a `min_p` of 0 is off;
        # only `top_p` may not be 0.
        if self.top_p == 0:
            raise ValueError("top_p=0 keeps no token: use a number above 0, at most 1")
        # `max_tokens` 至少是 1：提示词算完那一步必然采样，没有“输出 0 个”的走法。
        # `max_tokens` is at least 1: the step that completes the prompt samples, there is no way to put out 0.
        integers = {
            "top_k": (-1, None), "max_tokens": (1, None), "min_tokens": (0, None), "n": (1, MAX_OUTPUTS),
            "logprobs": (0, MAX_LOGPROBS), "seed": (0, MAX_INT),
        }
        for name, (lowest, highest) in integers.items():
            # 只有后两个可以不给。
            # Only the last two may be left out.
            if (value := getattr(self, name)) is not None or name not in ("logprobs", "seed"):
                object.__setattr__(self, name, checked_int(name, value, lowest, highest))
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}: lower it")
        for name in ("ignore_eos", "skip_special_tokens"):
            check_flag(name, getattr(self, name))
        check_wanted(self.structured_outputs, self.min_tokens)
        self._check_stops()

    def _check_stops(self) -> None:
        """停止 id 必须是非负整数，是否超出词表要等请求加入时才知道；停止字符串不能是空的。

        Stop ids must be integers from 0; whether they fit the vocabulary is known when the request is added. Stop
        strings must not be empty.
        """
        # 负数永远采不到，这样的停止条件等于没写；用户往往要跑满 `max_tokens` 才发现。
        # A negative id is never sampled, so it would stop nothing,
        # which users notice only when `max_tokens` has run out.
        ids = self.stop_token_ids
        if ids is not None and (not isinstance(ids, list | tuple) or not all(is_int(i) and i >= 0 for i in ids)):
            raise ValueError(f"stop_token_ids={ids!r} must be a list of integers from 0 up")
        # 空字符串在任何文本的开头都找得到，等于一上来就停。
        # An empty string is found at the start of any text, so it would stop at once.
        stops = [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
            raise ValueError(f"stop={self.stop!r} must be a string or a list of strings, none of them empty")
        if len(stops) > MAX_STOPS or any(len(s) > MAX_STOP_CHARS for s in stops):
            raise ValueError(f"stop={self.stop!r:.40}...: use up to {MAX_STOPS} strings of {MAX_STOP_CHARS} characters")
        # 存成元组：用户以后再改他的列表，也绕不过这里的检查。
        # Kept as tuples: if users change their lists later, that does not get past these checks.
        if isinstance(self.stop, list):
            object.__setattr__(self, "stop", tuple(self.stop))
        if ids is not None:
            object.__setattr__(self, "stop_token_ids", tuple(map(int, ids)))

    @property
    def penalizes(self) -> bool:
        """用到某种惩罚，要为它记下出现过哪些 token。

        Uses some penalty, so what has appeared must be counted for it.
        """
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def greedy(self) -> bool:
        """温度低到等于总选最大值。

        The temperature is so low that the top score always wins.
        """
        # 不写成 `== 0`：温度 1e-6 时，0.001 的分数差会放大成 1000，噪声翻不了盘，结果就是取最大值。
        # Not `== 0`: at 1e-6 a score gap of 0.001 becomes 1000, no noise can turn that, and the result is the maximum.
        return self.temperature < GREEDY_TEMPERATURE
