"""引擎测试的工具：不带模型的调度器、槽位内容的模型、64 个混合请求、两次运行的比较（相等，或几乎并列处分开）。

Tools of the engine tests: a scheduler without a model, a model of what the slots hold, 64 mixed requests, and the
comparison of two runs: equal, or a close call.
"""

import math
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xxhash
from torch import Tensor

from engine import block_key
from engine.block_manager import BlockManager
from engine.drafters import Drafter
from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence, Scheduler
from engine.sequence import Sequence
from serving.llm import LLM

ROOT = Path(__file__).resolve().parent.parent

# ---- 不带模型 ----
# ---- without a model ----


def make_seq(
    request_id: str, tokens: list[int], max_tokens: int = 4, stop: tuple[int, ...] = (), **params: Any
) -> Sequence:
    """手工造一个序列，不经过引擎。

    A sequence made by hand, without the engine.
    """
    return Sequence(
        request_id=request_id,
        token_ids=list(tokens),
        num_prompt_tokens=len(tokens),
        params=SamplingParams(max_tokens=max_tokens, **params),
        stop_token_ids=frozenset(stop),
    )


def make_scheduler(
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_seqs: int = 8,
    budget: int = 64,
    max_model_len: int | None = None,
    caching: bool = True,
) -> Scheduler:
    """一个严格模式的调度器，默认最大长度正好占满块池。

    A strict scheduler; by default the longest sequence just fills the pool.
    """
    manager = BlockManager(num_blocks, block_size, caching)
    return Scheduler(manager, max_num_seqs, budget, max_model_len or num_blocks * block_size, strict=True)


def rows(schedule: list[ScheduledSequence]) -> list[tuple[str, int]]:
    """[(请求, 新 token 数)]，便于比较。

    [(request, new tokens)], to compare.
    """
    return [(row.seq.request_id, row.num_new_tokens) for row in schedule]


def step(
    scheduler: Scheduler, token: Callable[[Sequence], int] = lambda seq: 1000 + seq.num_tokens
) -> list[tuple[str, int]]:
    """走一步，采样的行得到假 token。

    One step; rows that sample get a fake token.
    """
    schedule = scheduler.schedule()
    done = rows(schedule)
    scheduler.update(schedule, [[token(row.seq)] if row.samples else [] for row in schedule])
    return done


def run_all(scheduler: Scheduler, limit: int = 1000) -> list[list[tuple[str, int]]]:
    """走到全部完成，返回每步的决定；走不完就是死循环。

    Step until all are done and return each step's decisions; not ending is a livelock.
    """
    steps = []
    while scheduler.has_unfinished():
        assert len(steps) < limit, "the scheduler makes no progress"
        steps.append(step(scheduler))
        assert steps[-1], "a step that schedules nothing"
    return steps


def assert_all_free(manager: BlockManager) -> None:
    """一轮结束：所有块空闲，账目正确。

    At the end of a run all blocks are free and the books are right.
    """
    manager.check_integrity([])
    assert manager.num_free_blocks == manager.num_blocks


@contextmanager
def few_hashes(count: int) -> Iterator[None]:
    """让哈希只有 `count` 个不同的值，碰撞成为常事。

    Let hashing return only `count` values, so that collisions are the rule.
    """
    real = xxhash.xxh64

    class FewHashes:
        def __init__(self, data: bytes = b"") -> None:
            self._hasher = real(data)

        def update(self, data: bytes) -> None:
            self._hasher.update(data)

        def intdigest(self) -> int:
            return self._hasher.intdigest() % count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_key, "xxhash", SimpleNamespace(xxh64=FewHashes))
        yield


class SlotModel:
    """不用张量的 KV 缓存：每个槽位记着“写入时的完整前缀”。

    真的 K、V 正是由完整前缀决定的；所以槽位内容等于本序列的前缀，注意力就算得对。

    The KV cache without tensors: each slot remembers the whole prefix that was current when it was written.
    Real K and V depend on just that prefix, so attention is right if each slot holds the sequence's own.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.content: dict[int, tuple[int, ...]] = {}

    def slot(self, seq: Sequence, position: int) -> int:
        """位置对应的槽位。

        The slot of a position.
        """
        return seq.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def prefix(self, seq: Sequence, length: int) -> tuple[int, ...]:
        """序列的前 `length` 个 token，猜测接在已知的后面。

        The sequence's first `length` tokens, guesses behind the known ones.
        """
        return (*seq.token_ids, *seq.draft_ids)[:length]

    def execute(self, schedule: list[ScheduledSequence], manager: BlockManager) -> None:
        """先写后读，与注意力层的次序相同。

        Store first, then read, as an attention layer does.
        """
        written: set[int] = set()
        for seq, num_new, _ in schedule:
            for position in range(seq.num_computed_tokens, seq.num_computed_tokens + num_new):
                slot = self.slot(seq, position)
                assert slot not in written, f"{seq!r}: two rows write slot {slot}"
                block = manager.blocks[slot // self.block_size]
                assert block.ref_count == 1, f"{seq!r} writes a shared block"
                assert block.key is None, f"{seq!r} writes a block that others can hit"
                written.add(slot)
                self.content[slot] = self.prefix(seq, position + 1)
        for seq, num_new, _ in schedule:
            for position in range(seq.num_computed_tokens + num_new):
                expected = self.prefix(seq, position + 1)
                found = self.content.get(self.slot(seq, position))
                assert found == expected, f"{seq!r} attends to {found} at {position}, its prefix is {expected}"

    def check_registered(self, manager: BlockManager) -> None:
        """每个登记在册的块，内容就是它名字所说的那段前缀。

        Each registered block holds just the prefix that its name says.
        """
        for block_id in manager.cached.values():
            key, prefix = manager.blocks[block_id].key, ()
            while key is not None:
                prefix, key = key.token_ids + prefix, key.parent
            first = len(prefix) - self.block_size
            for offset in range(self.block_size):
                found = self.content.get(block_id * self.block_size + offset)
                assert found == prefix[: first + offset + 1], f"block {block_id} holds {found}, its name is {prefix}"


# ---- 带模型 ----
# ---- with a model ----


def small_model_folder(folder: Path, **overrides: Any) -> Path:
    """随机小模型，`generation_config.json` 里有许多停止 id，随机的输出也常常会停。

    A small random model whose `generation_config.json` has many stop ids, so that random output often stops.
    """
    import json

    from conftest import make_hf_model, save_tokenizer

    make_hf_model("llama", **overrides).save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(2, 2304, 24))}))
    return folder


@dataclass
class Request:
    """一个请求：提示词和参数。

    One request: prompt and parameters.
    """

    prompt: list[int]
    params: SamplingParams


def mixed_requests(vocab_size: int, count: int = 64, seed: int = 7) -> list[Request]:
    """长短不一、有共同开头、贪心与采样混合的请求。

    Requests of mixed lengths, some with a shared beginning, some greedy and some sampled.
    """
    rng = random.Random(seed)
    shared = [[rng.randrange(vocab_size) for _ in range(size)] for size in (16, 48, 64)]
    requests = []
    for index in range(count):
        head = rng.choice(shared) if index % 4 == 0 else []
        # 长度也要包括块大小的整数倍。
        # Lengths include multiples of the block size.
        size = rng.choice([1, 8, 16, 32, 64]) if index % 5 == 0 else rng.randint(1, 90 if index % 3 == 1 else 24)
        tail = [rng.randrange(vocab_size) for _ in range(max(1, size - len(head)))]
        prompt = shared[1] if index % 16 == 3 else head + tail
        sampled = dict(
            temperature=rng.choice([0.3, 0.8, 1.0, 1.5]),
            top_k=rng.choice([0, -1, 1, 5, 50]),
            top_p=rng.choice([1.0, 0.9, 0.5]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            seed=rng.choice([None, 0, 11, 2**62]),
        )
        params = SamplingParams(
            max_tokens=rng.choice([rng.randint(1, 40), rng.randint(24, 40)]),
            ignore_eos=index % 3 != 0,
            **(dict(temperature=0.0) if index % 4 == 1 else sampled),  # type: ignore[arg-type]
        )
        requests.append(Request(list(prompt), params))
    return requests


def random_penalties(rng: random.Random) -> dict[str, float]:
    """三种惩罚，各有可能不用。

    The three penalties, each of them possibly off.
    """
    return {
        "presence_penalty": rng.choice([0.0, 0.0, 1.5, -1.0, 2.0]),
        "frequency_penalty": rng.choice([0.0, 0.0, 0.7, -0.4, 2.0]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.3, 0.8, 2.5]),
    }


def featured_requests(count: int = 48) -> list[Request]:
    """混合请求，三分之二带上新的参数，其余照旧。

    Mixed requests, two thirds of them with the new parameters, the rest as before.
    """
    rng, requests = random.Random(11), mixed_requests(2000, count, seed=3)
    for index, request in enumerate(requests):
        if index % 3 == 0:
            continue
        least = rng.choice([0, 0, 1, request.params.max_tokens // 2, request.params.max_tokens])
        extra = dict(min_tokens=least, logprobs=rng.choice([None, None, 0, 2, 5]), **random_penalties(rng))
        # 输出的 token 少，惩罚才常有机会起作用。
        # Few different tokens in the output, so that penalties have their effect.
        if index % 3 == 1:
            extra |= dict(temperature=rng.choice([0.0, 0.2]), ignore_eos=rng.random() < 0.5)
        stop = [rng.randrange(2000) for _ in range(50)] if index % 5 == 0 else None
        request.params = replace(request.params, stop_token_ids=stop, **extra)  # type: ignore[arg-type]
    return requests


# 名字 -> 提示词、参数、错误里该有的话；上限 100 个 token，词表 2304。
# Name -> prompt, parameters, what the error says; with a limit of 100 tokens and a vocabulary of 2304.
BAD_REQUESTS: dict[str, tuple[Any, SamplingParams | None, str]] = {
    "empty string": ("", None, "prompt is empty"),
    "no tokens": ([], None, "prompt is empty"),
    "as long as max_model_len": ([1] * 100, None, "100 tokens.*max_model_len=100.*at most 99"),
    "longer than max_model_len": ([1] * 1000, None, "1000 tokens.*max_model_len=100.*at most 99"),
    "negative token": ([1, -1], None, "token id -1.*2304"),
    "token beyond the embedding": ([1, 2304], None, "token id 2304.*2304"),
    "huge token": ([2**70], None, f"token id {2**70}"),
    "not a prompt": (None, None, "string or a list of token ids"),
    "a number": (5, None, "string or a list of token ids"),
    "list of strings inside": (["a"], None, "string or a list of token ids"),
    "float tokens": ([1.0], None, "string or a list of token ids"),
    "bool tokens": ([True], None, "string or a list of token ids"),
    "stop token beyond the embedding": ([1], SamplingParams(stop_token_ids=[5, 2304]), "stop token id 2304.*2304"),
    "n outputs of a prompt too long": ([1] * 1000, SamplingParams(n=3, logprobs=2), "1000 tokens.*max_model_len=100"),
    "min_tokens with a bad stop token": (
        [1], SamplingParams(n=2, min_tokens=4, stop_token_ids=[2304]), "stop token id 2304.*2304"
    ),
}


@dataclass
class Run:
    """一次运行留下的记录。

    What one run leaves behind.

    Attributes:
        scores: per request and output index, the logits of the row, [vocab_size]
        decisions: per step, (request, new tokens)
        stops: per request, all ids that end it
    """

    outputs: list[RequestOutput]
    seeds: list[int]
    scores: dict[str, list[Tensor]] = field(default_factory=dict)
    decisions: list[list[tuple[str, int]]] = field(default_factory=list)
    stops: list[frozenset[int]] = field(default_factory=list)
    num_preemptions: int = 0
    cache_hits: int = 0

    @property
    def tokens(self) -> list[list[int]]:
        """每个请求的输出。

        Each request's output.
        """
        return [output.outputs[0].token_ids for output in self.outputs]


def run_requests(llm: LLM, requests: list[Request], forced: Run | None = None) -> Run:
    """跑完全部请求，并记下每次采样的 logits 和每步的决定；`forced` 给出时，改用那次运行的 token。

    Run all requests; record the logits of each sample and the decisions of each step. With `forced`, that run's tokens
    are used instead of the sampled ones.
    """
    engine = llm.engine
    run = Run(outputs=[], seeds=[])
    real_choose, real_open = engine.sampler.choose, engine.requests.open

    def choose(schedule: list[ScheduledSequence], logits: Tensor) -> list[list[int]]:
        run.decisions.append(rows(schedule))
        tokens = real_choose(schedule, logits)
        assert sum(row.num_logits for row in schedule) == logits.shape[0]
        left = iter(logits)
        for place, row in enumerate(schedule):
            # 猜错处之后的那几行作废，不记。
            # The rows behind a wrong guess are void and not recorded.
            mine = [next(left).clone() for _ in range(row.num_logits)][: len(tokens[place])]
            run.scores.setdefault(row.seq.request_id, []).extend(mine)
            if forced is not None and mine:
                tokens[place] = [forced.tokens[int(row.seq.request_id)][row.seq.num_output_tokens]]
        return tokens

    def open_request(seq: Sequence) -> list[Sequence]:
        run.seeds.append(seq.seed)
        run.stops.append(seq.stop_token_ids)
        return real_open(seq)

    engine.sampler.choose, engine.requests.open = choose, open_request  # type: ignore[method-assign]
    run.outputs = llm.generate([r.prompt for r in requests], [r.params for r in requests], progress=False)
    run.num_preemptions = engine.scheduler.num_preemptions
    run.cache_hits = engine.block_manager.stats.hit
    assert_all_free(engine.block_manager)
    assert not engine.has_unfinished()
    assert len(run.seeds) == len(run.stops) == len(requests)
    for request, output in zip(requests, run.outputs):
        assert_well_ended(llm, request, output)
    return run


def add_guesses(engine: LLMEngine, plain: Run, kind: str) -> Counter[str]:
    """每步之前照着 `plain` 的输出给每个序列写猜测：对的，错的，或者先对后错。

    Before each step every sequence gets guesses after the outputs of `plain`: right, wrong, or right and then wrong.
    """
    rng, seen, real_read = random.Random(3), Counter[str](), engine.sampler.read

    class Told(Drafter):
        def propose(self, running: list[Sequence]) -> None:
            for seq in running:
                seq.draft_ids = self.guess(seq)

        def guess(self, seq: Sequence) -> list[int]:
            answer = plain.tokens[int(seq.request_id)][seq.num_output_tokens :]
            right = answer[: rng.randint(0, 6)] if kind != "wrong" else []
            wrong = [(token + 1) % 2000 for token in answer[len(right) :][: rng.randint(0, 3)]]
            return right + wrong if kind != "right" else right

        def complete(self, schedule: list[ScheduledSequence], sampler: Sampler) -> None:
            seen["guesses"] += sum(len(row.seq.draft_ids) for row in schedule)

    def read(*arguments: Any) -> list[list[int]]:
        token_ids = real_read(*arguments)
        seen["right"] += sum(max(len(tokens) - 1, 0) for tokens in token_ids)
        return token_ids

    engine.drafter, engine.sampler.read = Told(9), read  # type: ignore[method-assign]
    return seen


def assert_well_ended(llm: LLM, request: Request, output: RequestOutput) -> None:
    """每个输出都有停下的正当理由，恰好停在该停的地方。

    Each output stops for a proper reason, and just where it should.
    """
    completion, params = output.outputs[0], request.params
    assert output.prompt_token_ids == request.prompt
    stops = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else set(llm.engine.requests.eos_token_ids))
    assert not stops & set(completion.token_ids[:-1]), "went on after a stop token"
    if isinstance(completion.stop_reason, str):
        decode = llm.engine.tokenizer.decode
        assert completion.stop_reason in (params.stop or ()) and completion.finish_reason == "stop"
        assert completion.stop_reason in decode(completion.token_ids)
        assert completion.stop_reason not in decode(completion.token_ids[:-1])
    elif completion.finish_reason == "stop":
        assert completion.token_ids[-1] in stops
    else:
        assert completion.finish_reason == "length"
        limit = min(params.max_tokens, llm.engine.pool.max_model_len - len(request.prompt))
        assert len(completion.token_ids) == limit


def plain_scores(logits: Tensor, params: SamplingParams, prompt: list[int], output: list[int], stops: Any) -> Tensor:
    """独立地算出 `min_tokens` 和惩罚之后的分数：float64，逐个 token 照着定义写。

    The scores after `min_tokens` and penalties, worked out independently: float64, token by token, by definition.
    """
    scores = logits.double().clone()
    for token in stops if len(output) < params.min_tokens else ():
        scores[token] = -math.inf
    for token in {*prompt, *output}:
        score = float(scores[token])
        score = score / params.repetition_penalty if score > 0 else score * params.repetition_penalty
        count = output.count(token)
        scores[token] = score - params.frequency_penalty * count - params.presence_penalty * min(count, 1)
    return scores


def top_two(logits: Tensor, params: SamplingParams, seed: int, index: int) -> tuple[int, float]:
    """按参数独立地算出该选的 token，以及前两名分数之差；筛选用 float64，逐条照着定义写。

    The token that these parameters choose, worked out independently, and the gap between the top two scores. The
    filters follow their definitions, in float64.
    """
    from layers.sampler import gumbel_noise

    if params.temperature < 1e-5:
        best = logits.double().topk(2)
        return int(best.indices[0]), float(best.values[0] - best.values[1])
    scores = logits.double() / params.temperature
    keep = torch.ones_like(scores, dtype=torch.bool)
    probabilities = scores.softmax(-1)
    keep &= probabilities >= params.min_p * probabilities.max()
    if params.top_k > 0:
        order = scores.masked_fill(~keep, float("-inf")).sort(descending=True, stable=True).indices
        keep[order[params.top_k :]] = False
    if params.top_p < 1:
        left = scores.masked_fill(~keep, float("-inf")).softmax(-1)
        order = left.sort(descending=True, stable=True).indices
        total, count = 0.0, 0
        for probability in left[order].tolist():
            if total >= params.top_p:
                break
            total, count = total + probability, count + 1
        keep[order[count:]] = False
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([index]), logits.shape[-1])[0]
    best = (scores + noise).masked_fill(~keep, float("-inf")).topk(2)
    return int(best.indices[0]), float(best.values[0] - best.values[1])


def assert_equal_or_close_call(plain: Run, other: Run, requests: list[Request], tolerance: float = 1e-3) -> int:
    """“相等”：token 相同，或者第一次分开处几乎并列，`plain` 的前两名分数相差不到 1e-3。

    "Equal": the tokens are equal, or first part at a close call, where `plain`'s top two scores differ by < 1e-3.

    Returns:
        how many requests part
    """
    assert plain.seeds == other.seeds, "both runs must draw the same noise"
    parted = 0
    for number, (a, b) in enumerate(zip(plain.tokens, other.tokens, strict=True)):
        if a == b:
            continue
        parted += 1
        index = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
        assert index is not None, f"request {number}: one output is only longer: {a} and {b}"
        request, logits = requests[number], plain.scores[plain.outputs[number].request_id][index]
        scores = plain_scores(logits, request.params, request.prompt, a[:index], plain.stops[number])
        _, gap = top_two(scores, request.params, plain.seeds[number], index)
        assert gap < tolerance, f"request {number} parts at output {index}: {a[index]} and {b[index]}, gap {gap:.2e}"
    return parted


def check_logprobs(plain: Run, run: Run, requests: list[Request]) -> None:
    """每个输出 token 有一份报告，数值与 `plain` 记下的原始 logits 相符；没要的就是 None。

    Each output token has its report, which fits the raw logits that `plain` recorded; None if not asked for.
    """
    for number, request in enumerate(requests):
        completion = run.outputs[number].outputs[0]
        if request.params.logprobs is None:
            assert completion.logprobs is None and completion.cumulative_logprob is None
            continue
        assert completion.logprobs is not None and len(completion.logprobs) == len(completion.token_ids)
        if completion.token_ids != plain.tokens[number]:
            continue
        chosen = []
        for index, (token, report) in enumerate(zip(completion.token_ids, completion.logprobs)):
            exact = plain.scores[plain.outputs[number].request_id][index].double().log_softmax(-1)
            assert len(report) - (token not in exact.topk(request.params.logprobs or 1).indices) in (
                request.params.logprobs, request.params.logprobs + 1
            )
            for i, entry in report.items():
                assert entry.logprob == pytest.approx(float(exact[i]), abs=2e-3)
                assert entry.rank is not None and entry.decoded_token is not None
                assert float((exact > exact[i] + 4e-3).sum()) < entry.rank <= float((exact > exact[i] - 4e-3).sum())
            chosen.append(report[token].logprob)
        assert completion.cumulative_logprob == pytest.approx(sum(chosen))


def python() -> str:
    """正在运行测试的 Python。

    The Python that runs the tests.
    """
    return sys.executable


def environment() -> dict[str, str]:
    """去掉会让 rich 强制着色的变量。

    Without the variables that make rich use colours by force.
    """
    return {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE")}
