"""`n` 份输出：与 `n` 个种子依次加 1 的请求相同，提示词的整块只算一遍，取消时一起结束。

`n` outputs: they equal `n` requests whose seeds count up by 1, whole blocks of the prompt are computed once, and an
abort ends all of them.
"""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_helpers import (
    Request,
    Run,
    assert_all_free,
    assert_equal_or_close_call,
    mixed_requests,
    run_requests,
    small_model_folder,
)
from overlap_helpers import MAX_LEN, ROOMY, add_graphs, assert_drained, make_llm, run_overlapped

import engine.llm_engine
import engine.requests
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = list(range(40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("parallel") / "model")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """长短不一的提示词，`n` 从 1 到 5，一部分带惩罚和对数概率；种子会绕过 2**63。

    Prompts of all lengths, `n` from 1 to 5, some with penalties and log-probabilities; seeds wrap around at 2**63.
    """
    requests = mixed_requests(2000, 14, seed=5)
    for index, request in enumerate(requests):
        seed = 2**63 - 2 if index % 4 == 0 else 100 * index
        extra: dict[str, Any] = dict(repetition_penalty=1.3, logprobs=1, min_tokens=1) if index % 3 == 0 else {}
        request.params = replace(request.params, n=1 + index % 5, seed=seed, **extra)
    return requests


def singles(requests: list[Request]) -> list[Request]:
    """每份输出各是一个请求。

    Each output as a request of its own.
    """
    return [
        Request(r.prompt, replace(r.params, n=1, seed=(r.params.seed + i) % 2**63))
        for r in requests if r.params.seed is not None for i in range(r.params.n)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def plain(folder: Path, requests: list[Request]) -> Run:
    options = {**ROOMY, "enable_prefix_caching": False}
    return run_requests(make_llm(folder, overlapped=False, **options), singles(requests))


def flat(run: Run, plain: Run) -> Run:
    """各份输出摊平，好与 `plain` 比较。

    All outputs in a row, to compare with `plain`.
    """
    for output in run.outputs:
        assert [completion.index for completion in output.outputs] == list(range(len(output.outputs)))
    outputs = [replace(output, outputs=[each]) for output in run.outputs for each in output.outputs]
    return replace(run, outputs=outputs, seeds=plain.seeds)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no prefix caching": dict(enable_prefix_caching=False),
    "tiny pool": dict(num_kvcache_blocks=MAX_LEN // 16),
    "tiny pool, no prefix caching": dict(num_kvcache_blocks=MAX_LEN // 16, enable_prefix_caching=False),
    "budget of 7 tokens": dict(max_num_batched_tokens=7),
    "budget of 7 tokens, tiny pool": dict(max_num_batched_tokens=7, num_kvcache_blocks=MAX_LEN // 16 + 1),
    "one at a time": dict(max_num_seqs=1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_n_outputs_equal_n_requests(folder: Path, requests: list[Request], plain: Run, name: str) -> None:
    llm = make_llm(folder, overlapped=False, **{**ROOMY, **VARIANTS[name]})
    run = run_requests(llm, requests)
    assert (run.num_preemptions > 10) == ("tiny pool" in name)
    assert assert_equal_or_close_call(plain, flat(run, plain), singles(requests)) <= 2


@pytest.mark.parametrize("name", ["plain", "no prefix caching", "tiny pool", "budget of 7 tokens, tiny pool"])
@pytest.mark.parametrize("with_graphs", [False, True])
def test_the_overlapped_loop(
    folder: Path, requests: list[Request], plain: Run, name: str, with_graphs: bool
) -> None:
    llm = make_llm(folder, **{**ROOMY, "max_num_seqs": 32, **VARIANTS[name]})
    if with_graphs:
        add_graphs(llm)
    run, _ = run_overlapped(llm, requests)
    assert assert_equal_or_close_call(plain, flat(run, plain), singles(requests)) <= 2
    for request, output in zip(requests, run.outputs):
        assert all((each.logprobs is None) == (request.params.logprobs is None) for each in output.outputs)
        assert all(len(each.logprobs or each.token_ids) == len(each.token_ids) for each in output.outputs)


@pytest.mark.parametrize("overlapped", [False, True])
def test_each_output_has_its_own_reports(folder: Path, overlapped: bool) -> None:
    llm = make_llm(folder, overlapped=overlapped, **ROOMY)
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=9, logprobs=1, ignore_eos=True)
    prompt = list(range(5, 45))
    (together,) = llm.generate([prompt], params, progress=False)
    for index, each in enumerate(together.outputs):
        alone = llm.generate([prompt], replace(params, n=1, seed=3 + index), progress=False)[0].outputs[0]
        assert each.token_ids == alone.token_ids and each.logprobs is not None and len(each.logprobs) == 9
        for token, report, other in zip(each.token_ids, each.logprobs, alone.logprobs or [], strict=True):
            assert report[token].logprob == pytest.approx(other[token].logprob, abs=2e-3)
        assert each.cumulative_logprob == pytest.approx(alone.cumulative_logprob, abs=2e-2)


def test_a_drawn_seed_counts_up_as_well(folder: Path) -> None:
    llm = make_llm(folder, overlapped=False, **ROOMY)
    params = SamplingParams(temperature=1.2, max_tokens=12, ignore_eos=True, n=3)
    run = run_requests(llm, [Request(PROMPT, params)])
    each = [SamplingParams(temperature=1.2, max_tokens=12, ignore_eos=True, seed=run.seeds[0] + i) for i in range(3)]
    alone = llm.generate([PROMPT] * 3, each, progress=False)
    assert [o.outputs[0].token_ids for o in alone] == [each.token_ids for each in run.outputs[0].outputs]
    assert len({tuple(each.token_ids) for each in run.outputs[0].outputs}) == 3


def test_greedy_outputs_are_all_equal(folder: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, n=4)
    output = make_llm(folder, overlapped=False, **ROOMY).generate([PROMPT], params, progress=False)[0]
    assert len(output.outputs) == 4 and len({tuple(each.token_ids) for each in output.outputs}) == 1


# ---- 等第 1 份 ----
# ---- waiting for number 1 ----


def waiting(engine: LLMEngine) -> list[tuple[str, int]]:
    return [(seq.request_id, seq.index) for seq in engine.scheduler.waiting]


def make_engine(folder: Path, overlapped: bool = False, **options: Any) -> LLMEngine:
    return make_llm(folder, overlapped=overlapped, **{**ROOMY, **options}).engine


def finish(engine: LLMEngine, limit: int = 500) -> dict[str, RequestOutput]:
    results: dict[str, RequestOutput] = {}
    for _ in range(limit):
        if not engine.has_unfinished():
            assert_all_free(engine.block_manager)
            return results
        for output in engine.step():
            assert output.request_id not in results
            results[output.request_id] = output
    raise AssertionError("the engine makes no progress")


PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=6, ignore_eos=True, n=3)
ONE = replace(PARAMS, n=1)


@pytest.mark.parametrize("overlapped", [False, True])
def test_the_others_take_the_blocks_of_number_1_and_enter_at_the_front(folder: Path, overlapped: bool) -> None:
    # 提示词 40 个 token：2 个整块 32 个，其余各份只重算 8 个。预算 16，所以 2 步算完整块。
    # A prompt of 40: 2 full blocks hold 32, each other output computes 8 anew. With a budget of 16 they take 2 steps.
    engine = make_engine(folder, overlapped, max_num_batched_tokens=16, max_num_seqs=1)
    engine.add_request(PROMPT, PARAMS, "x")
    engine.add_request([5, 6], ONE, "y")
    engine.add_request(PROMPT, PARAMS, "z")
    others = next(iter(engine.scheduler.waiting)).siblings[1:]
    assert waiting(engine) == [("x", 0), ("y", 0), ("z", 0)]
    results = {}
    for _ in range(2):
        assert waiting(engine) in ([("x", 0), ("y", 0), ("z", 0)], [("y", 0), ("z", 0)])
        results.update({output.request_id: output for output in engine.step()})
    engine.step()
    assert waiting(engine) == [("x", 1), ("x", 2), ("y", 0), ("z", 0)]
    before = engine.num_computed_tokens
    results.update(finish(engine))
    assert [seq.num_cached_tokens for seq in others] == [32, 32]
    assert results["x"].num_cached_tokens == 0 and results["z"].num_cached_tokens == 32
    assert engine.num_computed_tokens - before <= 4 * 6 + 2 * (8 + 5) + (2 + 5) + 3 * (8 + 5)
    assert set(results) == {"x", "y", "z"} and len(results["x"].outputs) == 3
    expected = make_engine(folder)
    for i in range(3):
        expected.add_request(PROMPT, replace(ONE, seed=3 + i), str(i))
    for name, output in finish(expected).items():
        assert output.outputs[0].token_ids == results["x"].outputs[int(name)].token_ids


@pytest.mark.parametrize(("size", "caching"), [(40, False), (5, True), (16, True)])
def test_without_whole_blocks_to_share_all_enter_at_once(folder: Path, size: int, caching: bool) -> None:
    engine = make_engine(folder, enable_prefix_caching=caching)
    engine.add_request([5, 6], ONE, "y")
    engine.add_request(PROMPT[:size], PARAMS, "x")
    assert waiting(engine) == [("y", 0), ("x", 0), ("x", 1), ("x", 2)]
    assert len(engine.step()) == 0 and len(engine.scheduler.running) == 4
    assert len(finish(engine)["x"].outputs) == 3


@pytest.mark.parametrize("overlapped", [False, True])
def test_number_1_may_end_first(folder: Path, overlapped: bool) -> None:
    engine = make_engine(folder, overlapped)
    for others in ([], ["y"]):
        # 没有别的请求时，调度器一时空了，引擎却还没完。
        # With no other request the scheduler is empty for a moment, but the engine is not done.
        engine.add_request(PROMPT[len(others) :], replace(PARAMS, max_tokens=1), "x")
        for name in others:
            engine.add_request(PROMPT, PARAMS, name)
        output = finish(engine)["x"]
        assert [each.finish_reason for each in output.outputs] == ["length"] * 3
    # 第 1 份中途没了，其余的也不会一直等下去。
    # Number 1 is gone halfway, and the others do not wait for ever.
    engine.add_request([7] * 100, PARAMS, "z")
    engine.add_request([7] * 100, ONE, "w")
    first = engine.scheduler.abort("z")
    assert first is not None and engine.release(first) is None and engine.has_unfinished()
    results = finish(engine)
    assert [each.finish_reason for each in results["z"].outputs] == ["abort", "length", "length"]
    assert len(results["w"].outputs[0].token_ids) == 6


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("when", range(9))
def test_abort_ends_all(folder: Path, overlapped: bool, when: int) -> None:
    # `when` 从“都在等”走到“第 1 份在算提示词”再到“各份都在输出”。
    # `when` goes from all waiting, over number 1 in its prompt, to all of them putting out.
    engine = make_engine(folder, overlapped, max_num_batched_tokens=16)
    engine.add_request(PROMPT, PARAMS, "x")
    engine.add_request([5, 6], replace(ONE, max_tokens=9), "y")
    results: dict[str, RequestOutput] = {}
    for _ in range(when):
        results.update({output.request_id: output for output in engine.step()})
    assert not results
    output = engine.abort("x")
    assert output is not None and engine.abort("x") is None
    assert [each.index for each in output.outputs] == [0, 1, 2]
    assert {each.finish_reason for each in output.outputs} <= {"abort", "length"}
    assert all(seq.request_id == "y" for seq in [*engine.scheduler.running, *engine.scheduler.waiting])
    # 名字马上可以再用。
    # The name is free at once.
    engine.add_request(PROMPT, PARAMS, "x")
    results = finish(engine)
    assert set(results) == {"x", "y"} and len(results["x"].outputs[2].token_ids) == 6
    if isinstance(engine, OverlappedEngine):
        assert_drained(engine)


def test_ids_of_users_and_of_outputs_never_collide(folder: Path) -> None:
    engine = make_engine(folder)
    names = ["x", "0", "1", "x-1", "1_x", "x_1", "x#1"]
    for name in names:
        engine.add_request(PROMPT, PARAMS, name)
    for name in names:
        with pytest.raises(ValueError, match=f"request {name}: this id is already running"):
            engine.add_request([1], ONE, name)
    automatic = engine.add_request(PROMPT, PARAMS)
    results = finish(engine)
    assert set(results) == {*names, automatic} and automatic not in names
    assert len({tuple(each.token_ids) for output in results.values() for each in output.outputs}) == 3


def test_a_bad_request_with_n_leaves_the_others_alone(folder: Path) -> None:
    engine = make_engine(folder)
    engine.add_request(PROMPT, PARAMS, "x")
    engine.step()
    for prompt, params in (([1] * MAX_LEN, PARAMS), ([1], replace(PARAMS, stop_token_ids=[2304], min_tokens=2))):
        with pytest.raises(ValueError, match="request bad"):
            engine.add_request(prompt, params, "bad")
    assert set(finish(engine)) == {"x"}


def test_metrics_and_counters(folder: Path) -> None:
    llm = make_llm(folder, overlapped=False, **ROOMY)
    output = llm.generate([PROMPT], PARAMS, progress=False)[0]
    times = output.metrics
    assert times.first_scheduled_time and times.first_token_time and times.finished_time
    assert times.arrival_time <= times.first_scheduled_time < times.first_token_time < times.finished_time
    # 提示词 40 个只算 1 遍，另外 2 份各算 8 个；每份再解码 5 步。
    # The prompt's 40 are computed once, the other 2 outputs compute 8 each; then every output decodes 5 steps.
    assert llm.engine.num_generated_tokens == 18
    assert llm.engine.num_computed_tokens == 40 + 2 * 8 + 3 * 5


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("uneven", [False, True])
def test_time_per_output_token_is_the_gap_that_a_reader_of_one_output_sees(
    folder: Path, overlapped: bool, uneven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 假的时钟：一步 2 秒。每份输出每 2 秒多一个 token，4 份一起写也还是 2 秒，不是 0.5 秒。
    # A fake clock: a step takes 2 seconds. Every output gets a token each 2 seconds, and with 4 written at once it is 2
    # seconds all the same and not 0.5.
    clock = SimpleNamespace(now=100.0)
    for module in (engine.llm_engine, engine.requests):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    llm = make_llm(folder, overlapped=overlapped, **ROOMY)
    real, real_record, times = llm.engine.step, llm.engine.record, dict[int, list[float]]()

    def step() -> list[RequestOutput]:
        clock.now += 1.0 + clock.now % 3 if uneven else 2.0
        return real()

    def record(schedule: list[ScheduledSequence], token_ids: list[list[int]], finished: list[Sequence]) -> Any:
        for row, tokens in zip(schedule, token_ids):
            if row.seq.finish_reason is None or row.seq in finished:
                times.setdefault(row.seq.index, []).extend([clock.now] * len(tokens))
        return real_record(schedule, token_ids, finished)

    monkeypatch.setattr(llm.engine, "step", step)
    monkeypatch.setattr(llm.engine, "record", record)
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=9, n=4, ignore_eos=True)
    # 第二轮里几份输出各有长短，一步的时间也不一样：所有间隔放在一起取平均。
    # In the second round outputs have different lengths and steps different times: the mean of all gaps together.
    said = llm.generate([PROMPT], params, progress=False)[0].outputs
    stop = [said[index].token_ids[2 * index] for index in (1, 2, 3)]
    times.clear()
    output = llm.generate([PROMPT], replace(params, stop_token_ids=stop) if uneven else params, progress=False)[0]
    lengths = [len(completion.token_ids) for completion in output.outputs]
    assert lengths == [len(times[index]) for index in range(4)]
    gaps = [b - a for mine in times.values() for a, b in pairwise(mine)]
    assert len(set(lengths)) > 2 if uneven else set(lengths) == {9} and set(gaps) == {2.0}
    assert output.metrics.time_per_output_token == pytest.approx(sum(gaps) / len(gaps))
    assert output.metrics.num_later_tokens == sum(lengths) - 4
    assert output.metrics.first_token_time == min(mine[0] for mine in times.values())
    assert output.metrics.last_token_time == max(mine[-1] for mine in times.values())
