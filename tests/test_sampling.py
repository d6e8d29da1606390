"""采样的其余部分：`min_tokens`、三种惩罚、对数概率，在同步循环、重叠循环和 CUDA graph 里都与照定义写的参照相同。

The rest of sampling: `min_tokens`, the three penalties, log-probabilities; in the synchronous loop, the overlapped loop
and with CUDA graphs they equal a reference written by definition.
"""

import copy
import math
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_helpers import (
    Request,
    Run,
    assert_all_free,
    assert_equal_or_close_call,
    check_logprobs,
    featured_requests,
    make_seq,
    plain_scores,
    random_penalties,
    run_requests,
    small_model_folder,
    top_two,
)
from overlap_helpers import MAX_LEN, ROOMY, add_graphs, make_llm, run_overlapped
from test_layers import LOGITS, chi_square, numpy_distribution
from torch import Tensor

import engine.sampler
import layers.sampler
from engine.batch import Sample
from engine.outputs import Logprob, Logprobs
from engine.sampler import Sampler, build_sampling_inputs, gather_logprobs
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence, SequenceStatus
from layers.sampler import apply_penalties, sample
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


# ---- 公式 ----
# ---- formulas ----


def make_sampler(vocab_size: int, max_num_seqs: int = 8) -> Sampler:
    return Sampler(vocab_size, max_num_seqs, CPU)


def draw(sampler: Sampler, sequences: list[Sequence], logits: Tensor, tokens: list[int] | None = None) -> Tensor:
    """`Sampler.draw`，但选中的 token 由测试指定；返回它从中选择的分数。

    `Sampler.draw`, with the chosen tokens given by the test; returns the scores that it chose from.
    """
    samples: list[Sample] = [(seq, seq.num_output_tokens) for seq in sequences]
    chosen, seen = torch.tensor(tokens or [0] * len(sequences)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.sampler, "sample", lambda scores, inputs: seen.append(scores) or chosen)
        assert sampler.draw(samples, logits)[0] is chosen
    return seen[0]


def penalized_scores(
    prompts: list[list[int]], outputs: list[list[int]], options: list[dict[str, float]], logits: Tensor
) -> Tensor:
    """经过引擎的 `Sampler`：一个一个选出给定的输出，最后看分数。

    Through the engine's `Sampler`: choose the given output one by one, then look at the scores.
    """
    sampler = make_sampler(logits.shape[1], len(prompts))
    sequences = [make_seq(str(i), p, max_tokens=99, **o) for i, (p, o) in enumerate(zip(prompts, options))]
    for step in range(max(map(len, outputs))):
        rows = [i for i, output in enumerate(outputs) if step < len(output)]
        tokens = [outputs[i][step] for i in rows]
        draw(sampler, [sequences[i] for i in rows], logits[rows], tokens)
        for i, token in zip(rows, tokens):
            sequences[i].token_ids.append(token)
    return draw(sampler, sequences, logits)


def test_penalties_equal_the_plain_formula() -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    vocab = 60
    prompts = [[rng.randrange(vocab) for _ in range(rng.randint(1, 40))] for _ in range(40)]
    outputs = [[rng.randrange(vocab) for _ in range(rng.randint(0, 40))] for _ in range(40)]
    options = [random_penalties(rng) for _ in range(40)]
    logits = 4 * torch.randn(40, vocab)
    before = logits.clone()
    scores = penalized_scores(prompts, outputs, options, logits)
    assert torch.equal(logits, before) and scores.dtype == torch.float32
    for row in range(40):
        params = SamplingParams(**options[row])  # type: ignore[arg-type]
        expected = plain_scores(logits[row], params, prompts[row], outputs[row], ())
        torch.testing.assert_close(scores[row].double(), expected, rtol=1e-6, atol=1e-5)


def test_penalties_equal_those_of_transformers() -> None:
    from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

    rng = random.Random(1)
    torch.manual_seed(1)
    vocab, factors = 50, [1.2, 0.7, 3.0, 1.01]
    prompts = [[rng.randrange(vocab) for _ in range(12)] for _ in factors]
    outputs = [[rng.randrange(vocab) for _ in range(9)] for _ in factors]
    logits = 4 * torch.randn(len(factors), vocab)
    scores = penalized_scores(prompts, outputs, [{"repetition_penalty": f} for f in factors], logits)
    for row, factor in enumerate(factors):
        ids = torch.tensor([prompts[row] + outputs[row]])
        expected = RepetitionPenaltyLogitsProcessor(factor)(ids, logits[row : row + 1].clone())
        assert torch.equal(scores[row : row + 1], expected)
        # `min_tokens` 就是 transformers 的 `min_new_tokens`：第 9 个之后才放行。
        # `min_tokens` is the `min_new_tokens` of transformers: from output 9 on stops are allowed.
        for least in (8, 9, 10):
            stops = [3, 17, 49]
            seq = make_seq("a", prompts[row], max_tokens=99, stop=tuple(stops), min_tokens=least)
            seq.token_ids += outputs[row]
            banned = draw(make_sampler(vocab), [seq], logits[row : row + 1])
            processor = MinNewTokensLengthLogitsProcessor(12, least, stops, device="cpu")
            assert torch.equal(banned, processor(ids, logits[row : row + 1].clone()))
            assert bool(banned[0, stops].isinf().all()) == (least == 10)


def test_a_negative_score_goes_down_too() -> None:
    counts = torch.tensor([[[0, 1, 0, 1, 0]], [[0, 0, 3, 0, 0]]])
    column = torch.ones(1, 1)
    logits = torch.tensor([[1.0, 3.0, -3.0, -3.0, -1.0]])
    assert apply_penalties(logits, counts, 0 * column, 0 * column, 2 * column).tolist() == [[1, 1.5, -6, -6, -1]]
    # 提示词里的 token 不受另两种影响。
    # Tokens of the prompt are not touched by the other two.
    assert apply_penalties(logits, counts, 0.5 * column, column, column).tolist() == [[1, 3, -6.5, -3, -1]]


def test_counts_follow_joining_leaving_and_preempted_sequences() -> None:
    rng, vocab = random.Random(3), 30
    sampler, alive, done, lost = make_sampler(vocab, max_num_seqs=4), list[Sequence](), 0, 0
    for step in range(400):
        if len(alive) < 12 and rng.random() < 0.4:
            prompt = [rng.randrange(vocab) for _ in range(rng.randint(1, 20))]
            options = random_penalties(rng) if rng.random() < 0.7 else {}
            alive.append(make_seq(str(step), prompt, max_tokens=999, **options))
        # 每步最多 4 个在跑；其余的像是被抢占了，有人要行时，它们的行就让出来。
        # At most 4 run in each step; the others are as if preempted, and when a row is wanted they give theirs up.
        before = set(sampler.rows)
        running = rng.sample(alive, min(len(alive), rng.randint(0, 4)))
        for seq in alive:
            seq.status = SequenceStatus.RUNNING if seq in running else SequenceStatus.WAITING
        tokens = [rng.randrange(vocab) for _ in running]
        if running:
            draw(sampler, running, torch.zeros(len(running), vocab), tokens)
        lost += len(before - set(sampler.rows))
        for seq, token in zip(running, tokens):
            seq.token_ids.append(token)
        for seq in [seq for seq in alive if rng.random() < 0.05]:
            alive.remove(seq)
            sampler.release(seq)
            done += 1
        for seq, row in sampler.rows.items():
            outputs = Counter(seq.output_token_ids)
            assert sampler.counts[1, row].tolist() == [outputs[token] for token in range(vocab)]
            assert sampler.counts[0, row].tolist() == [int(t in seq.prompt_token_ids) for t in range(vocab)]
        assert sorted([*sampler.rows.values(), *sampler.free_rows]) == list(range(4))
        assert set(sampler.rows) <= set(alive)
    assert done > 20 and lost > 20


def test_a_count_stays_at_the_most_that_it_can_hold() -> None:
    sampler, most = make_sampler(8), torch.iinfo(torch.int16).max
    seq = make_seq("x", [3], frequency_penalty=0.5, repetition_penalty=2.0)
    draw(sampler, [seq], torch.zeros(1, 8), [3])
    sampler.counts[1, sampler.rows[seq], 3] = most - 1
    for _ in range(3):
        draw(sampler, [seq], torch.zeros(1, 8), [3])
    assert sampler.counts[1, sampler.rows[seq]].tolist() == [0, 0, 0, most, 0, 0, 0, 0]
    # 提示词里也有它：两个计数不能相加成负数，惩罚照样是惩罚。
    # It stands in the prompt, too: the two counts must not add up to a negative number, and a penalty stays one.
    one = torch.ones(1, 1)
    scores = apply_penalties(torch.ones(1, 8), sampler.counts[:, [sampler.rows[seq]]], 0 * one, 0.5 * one, 2 * one)
    assert scores[0].tolist() == [1, 1, 1, 0.5 - most / 2, 1, 1, 1, 1]


def test_a_batch_without_such_features_pays_nothing() -> None:
    sampler = make_sampler(50)
    sequences = [make_seq(str(i), [1, 2], stop=(3,), temperature=i / 2, top_k=5) for i in range(4)]
    logits = torch.randn(4, 50)
    assert draw(sampler, sequences, logits) is logits
    assert sampler.rows == {} and len(sampler.free_rows) == sampler.counts.shape[1] == 8
    assert gather_logprobs(logits, torch.zeros(4, dtype=torch.int64), [None] * 4) is None
    # 到了 `min_tokens` 也一样。
    # The same once `min_tokens` is reached.
    seq = make_seq("a", [1], max_tokens=9, stop=(3,), min_tokens=2)
    assert seq.edits_scores and draw(sampler, [seq], logits[:1])[0, 3] == -math.inf
    seq.token_ids += [5, 5]
    assert draw(sampler, [seq], logits[:1]).data_ptr() == logits.data_ptr()


def test_reports_are_used_like_a_list() -> None:
    """一条报告要看时才造出来；切片、比较、打印、存盘都与列表相同，存盘不带分词器。

    A report is made when it is looked at; slices, comparisons, printing and pickling are those of a list, and no
    tokenizer is pickled.
    """
    decoded: list[int] = []

    def decode(token: int) -> str:
        decoded.append(token)
        return str(token)

    rows = torch.tensor([[[-0.5, 1], [-0.5, 3], [-2, 4]], [[-3, 9], [-0.25, 7], [-1, 3]]], dtype=torch.float64).numpy()
    reports = Logprobs(1, decode)
    reports.add([(3, rows[0])])
    reports.add([(8, rows[1])])
    assert len(reports) == 2 and reports.total() == -3.5 and decoded == []
    plain = [{3: Logprob(-0.5, 1, "3")}, {8: Logprob(-3.0, 9, "8"), 7: Logprob(-0.25, 1, "7")}]
    assert reports[-1] == plain[1] and decoded == [8, 7]
    assert reports == plain and plain == reports and list(reports) == plain and repr(reports) == repr(plain)
    assert reports[1:] == plain[1:] and reports[1:] != reports and reports != 5
    for copied in (pickle.loads(pickle.dumps(reports)), copy.deepcopy(reports)):
        assert type(copied) is list and copied == plain
    with pytest.raises(IndexError):
        reports[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_equal_the_plain_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    vocab = 37
    logits = (5 * torch.randn(6, vocab)).to(dtype)
    tokens = torch.tensor([0, 5, 36, 7, 8, int(logits[5].float().argmax())])
    wanted = [0, None, 20, 3, None, 1]
    packed = gather_logprobs(logits, tokens, wanted)
    assert packed is not None and packed.shape == (4, 1 + 20, 2)
    exact = logits.double().log_softmax(-1)
    for row, number, line in zip((0, 2, 3, 5), (0, 20, 3, 1), packed.numpy()):
        token = int(tokens[row])
        (report,) = Logprobs(number, str, [(token, line)])
        order = exact[row].sort(descending=True).indices.tolist()
        assert next(iter(report)) == token
        assert set(report) == {token, *order[:number]}
        for i, entry in report.items():
            assert entry.logprob == pytest.approx(float(exact[row, i]), abs=1e-5)
            assert (entry.decoded_token, exact[row, order[entry.rank - 1]]) == (str(i), exact[row, i])
    # 词表比要的还小，有几个给几个。
    # With fewer tokens in the vocabulary than asked for, there are as many as it has.
    small = gather_logprobs(torch.randn(1, 4), torch.tensor([2]), [20])
    assert small is not None and len(Logprobs(20, str, [(2, small[0].numpy())])[0]) == 4


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0.7),
        dict(temperature=1.6),
        dict(presence_penalty=0.9),
        dict(frequency_penalty=-0.5, temperature=0.8),
        dict(repetition_penalty=1.5),
        dict(repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.25, top_k=6),
        dict(frequency_penalty=0.5, top_p=0.75),
        dict(repetition_penalty=0.6, min_p=0.3),
        dict(min_tokens=9, temperature=0.9, min_p=0.2, top_k=7, top_p=0.83),
        dict(min_tokens=9, repetition_penalty=1.3, presence_penalty=0.4, temperature=2, min_p=0.2, top_k=6, top_p=0.9),
    ],
    ids=str,
)
def test_20000_draws_follow_the_exact_distribution(options: dict[str, Any]) -> None:
    # 次序：禁用，惩罚，温度，min_p，top_k，top_p。
    # The order: bans, penalties, temperature, min_p, top_k, top_p.
    draws, prompt, output, stops = 20000, [1, 4, 9], [8, 8, 7, 1], (8, 5)
    params = SamplingParams(**options)
    scores = plain_scores(LOGITS, params, prompt, output, stops)
    defaults = {"temperature": 1.0, "min_p": 0.0, "top_k": 0, "top_p": 1.0}
    filters = {name: options.get(name, default) for name, default in defaults.items()}
    expected = numpy_distribution(scores.numpy(), **filters)
    seq = make_seq("a", prompt, max_tokens=16, stop=stops, **options)
    sampler = make_sampler(len(LOGITS))
    for token in output:
        draw(sampler, [seq], LOGITS[None], [token])
        seq.token_ids.append(token)
    adjusted = draw(sampler, [seq], LOGITS[None])
    inputs = build_sampling_inputs([(seq, len(output))], len(LOGITS), CPU)
    assert inputs is not None
    columns = ("temperatures", "top_ps", "min_ps", "top_ks")
    many = replace(inputs, **{name: getattr(inputs, name).expand(draws, -1) for name in columns})
    many.seeds, many.output_indices = torch.arange(draws), torch.full((draws,), 4)
    counts = np.bincount(sample(adjusted.expand(draws, -1), many).numpy(), minlength=len(LOGITS))
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(expected))
    # 自由度至多 11，0.001 的临界值是 31.3；种子固定，结果不会变。
    # At most 11 degrees of freedom, whose critical value at 0.001 is 31.3; seeds are fixed and so is the outcome.
    assert chi_square(counts, expected) < 31.3


# ---- 三种循环 ----
# ---- the three loops ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("sampling") / "model")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return featured_requests()


@contextmanager
def recorded_noise() -> Iterator[dict[tuple[int, int], Tensor]]:
    """记下每个（种子，序号）用到的噪声；同一个再次用到时必须逐位相同。

    Records the noise of each (seed, index); when it is drawn again it must be the same, bit for bit.
    """
    noise: dict[tuple[int, int], Tensor] = {}
    real = layers.sampler.gumbel_noise

    def gumbel_noise(seeds: Tensor, output_indices: Tensor, vocab_size: int) -> Tensor:
        result = real(seeds, output_indices, vocab_size)
        for key, row in zip(zip(seeds.tolist(), output_indices.tolist()), result):
            assert torch.equal(noise.setdefault(key, row.clone()), row)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers.sampler, "gumbel_noise", gumbel_noise)
        yield noise


@pytest.fixture(scope="module")
def plain(folder: Path, requests: list[Request]) -> Run:
    return run_requests(make_llm(folder, overlapped=False, **ROOMY, enable_prefix_caching=False), requests)


def test_every_token_is_what_the_definition_chooses(plain: Run, requests: list[Request]) -> None:
    close = changed = 0
    for number, (request, output) in enumerate(zip(requests, plain.outputs)):
        tokens = output.outputs[0].token_ids
        for index, token in enumerate(tokens):
            logits = plain.scores[output.request_id][index]
            scores = plain_scores(logits, request.params, request.prompt, tokens[:index], plain.stops[number])
            best, gap = top_two(scores, request.params, plain.seeds[number], index)
            assert token == best or gap < 1e-3, f"request {number}, output {index}"
            close += token != best
            if index % 6 == 0:
                changed += top_two(logits, request.params, plain.seeds[number], index)[0] != best
    # 新参数确实改变了许多选择，而不是碰巧相同。
    # The new parameters did change many choices; it is no coincidence that all agree.
    assert close <= 2 and changed > 10


SYNCHRONOUS: dict[str, dict[str, Any]] = {
    "prefix caching": {},
    "tiny pool": dict(num_kvcache_blocks=MAX_LEN // 16),
    "budget of 7 tokens, few at once": dict(max_num_batched_tokens=7, max_num_seqs=8),
}
OVERLAPPED = {**SYNCHRONOUS, "budget of 7 tokens, tiny pool": dict(max_num_batched_tokens=7, num_kvcache_blocks=11)}


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_the_synchronous_loop(folder: Path, requests: list[Request], plain: Run, name: str) -> None:
    llm = make_llm(folder, overlapped=False, **{**ROOMY, **SYNCHRONOUS[name]})
    run = run_requests(llm, requests)
    assert (run.num_preemptions > 20) == ("tiny pool" in name)
    check_run(llm, plain, run, requests)


@pytest.mark.parametrize("name", OVERLAPPED)
def test_the_overlapped_loop(folder: Path, requests: list[Request], plain: Run, name: str) -> None:
    llm = make_llm(folder, **{**ROOMY, **OVERLAPPED[name]})
    run, spy = run_overlapped(llm, requests)
    assert (run.num_preemptions > 20) == ("tiny pool" in name) and spy.inputs_from_device > 100
    check_run(llm, plain, run, requests)


@pytest.mark.parametrize("name", OVERLAPPED)
def test_the_overlapped_loop_with_graphs(folder: Path, requests: list[Request], plain: Run, name: str) -> None:
    llm = make_llm(folder, **{**ROOMY, "max_num_seqs": 32, **OVERLAPPED[name]})
    graphs = add_graphs(llm)
    steps, short_prompts, real = [0], [0], graphs.run

    def run_graph(schedule: list[ScheduledSequence]) -> Any:
        steps[0] += 1
        # 短提示词在图里占好几行，取最后一行采样。
        # A short prompt takes several rows of a graph, and its last row samples.
        short_prompts[0] += any(row.num_new_tokens > 1 and row.samples and row.seq.edits_scores for row in schedule)
        return real(schedule)

    graphs.run = run_graph  # type: ignore[method-assign]
    run, _ = run_overlapped(llm, requests)
    assert steps[0] > 20 and (short_prompts[0] > 0 or "budget" not in name)
    check_run(llm, plain, run, requests)


def check_run(llm: LLM, plain: Run, run: Run, requests: list[Request]) -> None:
    """与 `plain` 相同，报告齐全，计数表的行全部让出。

    The same as `plain`, with all reports, and all rows of the counts free again.
    """
    assert assert_equal_or_close_call(plain, run, requests) <= 2
    check_logprobs(plain, run, requests)
    sampler = llm.engine.sampler
    assert sampler.rows == {} and len(sampler.free_rows) == sampler.counts.shape[1] > 0


def test_a_seeded_request_draws_the_same_noise_everywhere(folder: Path) -> None:
    params = SamplingParams(
        seed=77, temperature=0.9, max_tokens=30, ignore_eos=True, min_p=0.01, top_k=200, repetition_penalty=1.2,
        frequency_penalty=0.3, presence_penalty=0.2, logprobs=1, min_tokens=5, stop_token_ids=[2000],
    )
    mine = Request(list(range(5, 45)), params)
    crowd = [Request(r.prompt, replace(r.params, seed=1000 + i)) for i, r in enumerate(featured_requests(16))]
    tokens = []
    with recorded_noise() as noise:
        alone = run_requests(make_llm(folder, overlapped=False, **ROOMY), [mine])
        tokens.append(alone.tokens[0])
        assert {(77, index) for index in range(len(tokens[0]))} <= set(noise)
        for overlapped in (False, True):
            for blocks in (640, 11):
                llm = make_llm(folder, overlapped=overlapped, **{**ROOMY, "num_kvcache_blocks": blocks})
                everybody = [*crowd[:8], mine, *crowd[8:]]
                run = run_overlapped(llm, everybody)[0] if overlapped else run_requests(llm, everybody)
                assert (run.num_preemptions > 0) == (blocks == 11)
                tokens.append(run.tokens[8])
    # 这个请求的前两名从不相近，所以 token 也必须相同。
    # This request never comes near a tie, so its tokens must be the same, too.
    assert all(other == tokens[0] for other in tokens)


def test_each_feature_beside_plain_requests(folder: Path) -> None:
    base = dict(temperature=0.8, max_tokens=24, ignore_eos=True)
    features: list[dict[str, Any]] = [
        dict(min_tokens=24, stop_token_ids=list(range(1000))), dict(presence_penalty=2.0), dict(frequency_penalty=-1.0),
        dict(repetition_penalty=1.8), dict(logprobs=3), dict(min_p=0.2), dict(top_k=3), dict(temperature=0.0),
    ]  # fmt: skip
    plain_request = Request([9, 8, 7], SamplingParams(seed=4, **base))  # type: ignore[arg-type]
    llm = make_llm(folder, overlapped=False, **ROOMY)
    expected = run_requests(llm, [plain_request])
    for feature in features:
        other = Request([1, 2, 3], SamplingParams(**{"seed": 5, **base, **feature}))
        run, _ = run_overlapped(make_llm(folder, **ROOMY), [plain_request, other, plain_request])
        run.outputs, run.seeds = [run.outputs[0], run.outputs[2]], [4, 4]
        twice = replace(expected, outputs=expected.outputs * 2, seeds=[4, 4], stops=expected.stops * 2)
        assert assert_equal_or_close_call(twice, run, [plain_request] * 2) == 0


# ---- min_tokens ----


@pytest.mark.parametrize("overlapped", [False, True])
def test_min_tokens_holds_back_stop_ids_and_the_models_eos(folder: Path, overlapped: bool) -> None:
    llm = make_llm(folder, overlapped=overlapped, **ROOMY)
    eos = llm.engine.requests.eos_token_ids
    free = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    said = llm.generate([[1, 2, 3]], free, progress=False)[0].outputs[0].token_ids
    # 原本第 0 个就停；要求 6 个，就至少 6 个，第 6 个可以是停止 token。
    # It would stop at output 0; with 6 asked for there are 6 at least, and the next may be a stop token.
    for least in (0, 1, 6, 20):
        stop = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, min_tokens=least, stop_token_ids=said)
        output = llm.generate([[1, 2, 3]], stop, progress=False)[0].outputs[0]
        assert len(output.token_ids) == 1 if least == 0 else len(output.token_ids) >= least
        assert not set(said) & set(output.token_ids[:least])
        model = replace(stop, stop_token_ids=None, ignore_eos=False, temperature=1.9, seed=1)
        for output in llm.generate([[i] for i in range(20)], model, progress=False):
            completion = output.outputs[0]
            assert len(completion.token_ids) >= least and not eos & set(completion.token_ids[:least])
    # `ignore_eos` 时模型自带的结束符不被禁用：不停，也照样可选。
    # With `ignore_eos` the model's own end tokens are not banned: they do not stop it and may be chosen.
    greedy = replace(free, min_tokens=20)
    assert llm.generate([[1, 2, 3]], greedy, progress=False)[0].outputs[0].token_ids == said


def test_the_models_repetition_penalty_has_its_effect(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(json.dumps({"do_sample": False, "repetition_penalty": 5.0}))
    default = make_llm(copy, overlapped=False, **ROOMY).generate([[1, 2, 3]], progress=False)[0].outputs[0]
    params = SamplingParams(temperature=0, repetition_penalty=5.0)
    llm = make_llm(folder, overlapped=False, **ROOMY)
    given = llm.generate([[1, 2, 3]], replace(params, ignore_eos=True), progress=False)[0].outputs[0]
    assert default.token_ids == given.token_ids[: len(default.token_ids)]
    assert math.isclose(5.0, params.repetition_penalty) and len(set(given.token_ids)) == len(given.token_ids)


@pytest.mark.parametrize("overlapped", [False, True])
def test_an_abort_keeps_its_reports_and_frees_its_row(folder: Path, overlapped: bool) -> None:
    engine = make_llm(folder, overlapped=overlapped, **ROOMY).engine
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=1, repetition_penalty=1.1)
    for name in "ab":
        engine.add_request([1, 2, 3], params, name)
    for _ in range(5):
        engine.step()
    output = engine.abort("a")
    assert output is not None and output.outputs[0].logprobs is not None
    assert len(output.outputs[0].logprobs) == len(output.outputs[0].token_ids) > 2
    assert [seq.request_id for seq in engine.sampler.rows] == ["b"]
    while engine.has_unfinished():
        for finished in engine.step():
            assert len(finished.outputs[0].logprobs or []) == 20
    assert engine.sampler.rows == {}
    assert_all_free(engine.block_manager)
    assert all(seq.status is SequenceStatus.FINISHED for seq in engine.scheduler.running)
