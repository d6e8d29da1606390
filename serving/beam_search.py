"""束搜索：始终保留总对数概率最高的几条候选，而不是每步只留一个 token。名字与含义都与 vLLM 相同。

引擎本身不认识“束”：每一步把每条候选当作一个只生成 1 个 token 的请求，要它报告最可能的几个 token，
再从所有延长出来的候选里挑最好的。重新送进去的前文由前缀缓存承担，真正要算的最多只有最后一块。

Beam search: keep the few candidates of the highest total log-probability, instead of a single token a step. Names and
meaning are those of vLLM.

The engine knows nothing of beams: in each step every candidate becomes a request for 1 token that reports the likeliest
ones, and the best of all extended candidates stay. The text sent in again is left to the prefix cache; what remains to
compute is the last block at most.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.llm_engine import LLMEngine
from engine.outputs import Logprob, RequestOutput
from engine.sampling_params import MAX_LOGPROBS, SamplingParams
from engine.validation import check_flag, checked_int, is_number, naming
from serving.prompts import check_finite, each_prompt, nth


@dataclass(frozen=True, slots=True)
class BeamSearchParams:
    """束搜索的参数。

    The parameters of a beam search.

    Attributes:
        beam_width: 保留几条候选，1 到 10；how many candidates to keep, 1 to 10
        max_tokens: 最多输出多少个 token；at most so many output tokens
        ignore_eos: 遇到模型的结束符也继续；go on after the model's end tokens
        temperature: 只能是 0：比较的是原始对数概率；0 and nothing else: raw log-probabilities are compared
        length_penalty: 分数是总对数概率除以长度的这么多次方，见 `beam_score`；
            the score is the total log-probability over the length to this power; see `beam_score`

    Raises:
        ValueError: 某个值超出范围，消息里写明是哪个；a value is out of range; the message says which
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        # 每条候选要报告 2 倍于束宽的 token，而一次最多报告 20 个。
        # Every candidate reports 2 times the beam width in tokens, and a report has 20 at most.
        checked_int("beam_width", self.beam_width, 1, MAX_LOGPROBS // 2)
        checked_int("max_tokens", self.max_tokens, 1)
        check_flag("ignore_eos", self.ignore_eos)
        if not is_number(self.temperature) or self.temperature != 0:
            raise ValueError(f"temperature={self.temperature!r}: a beam search draws nothing, leave it at 0")
        if not is_number(self.length_penalty) or not -10 <= self.length_penalty <= 10:
            raise ValueError(f"length_penalty={self.length_penalty!r} is out of range: use a number from -10 to 10")


@dataclass(slots=True)
class BeamSearchSequence:
    """一条候选。

    One candidate.

    Attributes:
        tokens: 提示词加输出，结束符也在内；the prompt, then the output, an end token included
        logprobs: 每个输出 token 的对数概率报告；for each output token what the model reported
        cum_logprob: 输出的总对数概率；total log-probability of the output
        text: 由 `tokens` 还原的文字，不含特殊 token，最后才填；`tokens` decoded without special tokens, set at the end
        finish_reason: "stop", "length"
        stop_reason: 结束它的结束符；the end token
    """

    tokens: list[int]
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """一个提示词的结果：分数最高的至多 `beam_width` 条，最好的在前。

    A prompt's result: at most `beam_width` candidates of the highest score, the best first.
    """

    sequences: list[BeamSearchSequence]


def beam_score(beam: BeamSearchSequence, length_penalty: float) -> float:
    """总对数概率除以长度的 `length_penalty` 次方；没有它，短的总是占便宜，因为每多一个 token 总和只会更低。

    长度与 vLLM 一样，连提示词在内，不算结束符。`transformers` 只数输出，结束符也算，所以两边的分数
    只在 `length_penalty` 为 0 时相等；输出一样长时，名次总是相同。

    The total log-probability over the length to the power `length_penalty`; without it short ones win, as each further
    token only lowers the sum.
    As in vLLM the length includes the prompt and not the end token. `transformers` count the output alone, the end
    token included, so scores agree only where `length_penalty` is 0; among outputs of equal length the ranking is the
    same.
    """
    return beam.cum_logprob / (len(beam.tokens) - (beam.finish_reason == "stop")) ** length_penalty


def beam_search(
    engine: LLMEngine, generate: Callable[[list[list[int]], SamplingParams], list[RequestOutput]],
    prompts: list[str | list[int]], params: BeamSearchParams,
) -> list[BeamSearchOutput]:
    """所有提示词一起搜索，每步把全部候选合成一批。

    Search for all prompts at once; in each step all candidates make one batch.

    Args:
        generate: 补全若干提示词，结果与提示词同序；completes prompts, results in their order

    Raises:
        ValueError: 某个提示词不合法，或分数成了 NaN；a prompt is not valid, or its scores became NaN
    """
    if not isinstance(params, BeamSearchParams):
        raise ValueError(f"params must be BeamSearchParams, got {type(params).__name__}")
    # 借引擎检查和分词，但不加入：从这里起提示词都是 id。
    # The engine validates and tokenizes but adds nothing: from here on prompts are ids.
    starts = [seq.token_ids for seq in each_prompt(engine.requests.prepare, prompts)]
    # 每个提示词两张表：还在延长的，和遇到结束符的。
    # Two lists a prompt: candidates still growing, and those that met an end token.
    searches = [([BeamSearchSequence(start)], list[BeamSearchSequence]()) for start in starts]
    # 每条要 2 倍束宽：其中有些可能是结束符，剩下的仍够填满所有位置。
    # 2 times the beam width from each: some may be end tokens, and enough remain to fill all places.
    one = SamplingParams(temperature=0.0, max_tokens=1, logprobs=2 * params.beam_width)
    for _ in range(params.max_tokens):
        # 同一个提示词的候选一样长，到了 `max_model_len` 就一起停。
        # The candidates of a prompt are equally long and stop together at `max_model_len`.
        # 第几个照调用者的列表数：先停下的也占着自己的号。
        # Numbers are those of the caller's list: prompts that have stopped keep theirs.
        growing = [
            (nth(index, len(searches)), beams, done) for index, (beams, done) in enumerate(searches)
            if beams and len(beams[0].tokens) < engine.pool.max_model_len
        ]  # fmt: skip
        if not growing:
            break
        # 每条候选都是普通的请求，只生成 1 个 token；共同的开头由前缀缓存省下。
        # Each candidate is an ordinary request for 1 token; the prefix cache saves what they have in common.
        results = iter(generate([beam.tokens for _, beams, _ in growing for beam in beams], one))
        for name, beams, done in growing:
            extended: list[BeamSearchSequence] = []
            # 例：束宽 2，两条候选各报告 4 个 token，8 条延长的候选里留下 2 条；两条可能出自同一条。
            # Example with a beam width of 2: 2 candidates report 4 tokens each, and of the 8 extended ones 2 stay; both
            # may come from the same one.
            for beam in beams:
                output = next(results).outputs[0]
                with naming(name):
                    check_finite(output.finish_reason)
                report = (output.logprobs or [])[0]
                # 概率相乘，对数概率就相加：0.5 * 0.2 = 0.1，即 -0.69 - 1.61 = -2.30。
                # Probabilities multiply, so their logarithms add up: 0.5 * 0.2 = 0.1, that is -0.69 - 1.61 = -2.30.
                for token, entry in report.items():
                    # 遇到结束符的离开赛场，最后再与其余的比分数；没遇到的继续争夺位置。
                    # Who meets an end token leaves the race and compares scores at the end; the others compete on.
                    ended = token in engine.requests.eos_token_ids and not params.ignore_eos
                    longer = BeamSearchSequence(
                        [*beam.tokens, token], [*beam.logprobs, report], beam.cum_logprob + entry.logprob,
                        finish_reason="stop" if ended else "length", stop_reason=token if ended else None,
                    )
                    (done if ended else extended).append(longer)
            # 总分高的排前面；Python 的排序是稳定的，同分的保持原来的次序，结果可以重现。
            # The highest score first; Python's sort is stable, so ties keep their order and the result can be repeated.
            extended.sort(key=lambda beam: -beam_score(beam, params.length_penalty))
            # 改的是列表的内容，不是名字：`searches` 里的还是这个列表。
            # The contents of the list change and not the name: it is still the list that `searches` holds.
            beams[:] = extended[: params.beam_width]
    outputs = []
    for beams, done in searches:
        # 到长度上限还没结束的，与遇到结束符的一起排名：长度已经折算进分数。
        # Those cut off at the limit rank beside those that met an end token: the score has the length in it.
        best = sorted(done + beams, key=lambda beam: -beam_score(beam, params.length_penalty))[: params.beam_width]
        # 只在最后还原文字：中途落选的候选，谁也不会去读。
        # Decoded at the end only: nobody reads the candidates that were dropped on the way.
        for beam in best:
            beam.text = engine.tokenizer.decode(beam.tokens)
        outputs.append(BeamSearchOutput(best))
    return outputs
