"""重叠循环（在 CPU 上）：输出与同步循环相同，不发没有用的步，取消与抢占发生在半路上也不漏块。

The overlapped loop, on the CPU: its outputs are those of the synchronous loop, it launches no useless step, and aborts
and preemptions in flight leak no block.
"""

from pathlib import Path
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
from overlap_helpers import MAX_LEN, Spy, assert_drained, make_llm, run_overlapped

from engine.config import EngineConfig
from engine.gpu.overlapped_engine import OverlappedEngine, create_engine
from engine.llm_engine import LLMEngine
from engine.sampling_params import SamplingParams
from engine.sequence import PENDING_TOKEN

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = dict(
    backend="sdpa",
    max_model_len=MAX_LEN,
    num_kvcache_blocks=64 * MAX_LEN // 16,
    max_num_batched_tokens=8192,
    enable_prefix_caching=False,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("overlapped") / "model")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return mixed_requests(vocab_size=2000)


@pytest.fixture(scope="module")
def plain(folder: Path, requests: list[Request]) -> Run:
    return run_requests(make_llm(folder, overlapped=False, **PLAIN), requests)


def make_engine(folder: Path, **options: Any) -> OverlappedEngine:
    engine = make_llm(folder, **{"num_kvcache_blocks": 64, "max_model_len": MAX_LEN, **options}).engine
    assert isinstance(engine, OverlappedEngine)
    return engine


def tokens_of(engine: LLMEngine, limit: int = 500) -> dict[str, list[int]]:
    """走到完，返回每个请求的输出。

    Step until done; each request's output.
    """
    results: dict[str, list[int]] = {}
    for _ in range(limit):
        if not engine.has_unfinished():
            return results
        results.update({output.request_id: output.outputs[0].token_ids for output in engine.step()})
    raise AssertionError("the engine makes no progress")


# ---- 输出相同 ----
# ---- equal outputs ----

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tiny pool": dict(num_kvcache_blocks=MAX_LEN // 16),
    "tiny pool, no prefix caching": dict(num_kvcache_blocks=MAX_LEN // 16, enable_prefix_caching=False),
    "budget of 7 tokens": dict(max_num_batched_tokens=7),
    "budget of 7 tokens, tiny pool": dict(max_num_batched_tokens=7, num_kvcache_blocks=MAX_LEN // 16 + 1),
    "prefix caching, few at once": dict(max_num_seqs=5),
    "one at a time": dict(max_num_seqs=1),
    "block size 8, tiny pool": dict(kvcache_block_size=8, num_kvcache_blocks=MAX_LEN // 8),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_64_mixed_requests_give_equal_tokens(folder: Path, requests: list[Request], plain: Run, name: str) -> None:
    options = {**PLAIN, "enable_prefix_caching": True, **VARIANTS[name]}
    run, spy = run_overlapped(make_llm(folder, **options), requests)
    assert assert_equal_or_close_call(plain, run, requests) <= 2
    budget = options["max_num_batched_tokens"]
    assert all(sum(count for _, count in decision) <= budget for decision in run.decisions)
    assert (run.num_preemptions > 20) == ("tiny pool" in name)
    assert spy.inputs_from_device > 100
    # 每个输出采一次；以停止 token 结束的，最多多采一次。
    # Each output is sampled once; where a stop token ends it, at most once more.
    extra = 0
    for output in run.outputs:
        completion = output.outputs[0]
        more = spy.samples[output.request_id] - len(completion.token_ids)
        assert 0 <= more <= (completion.finish_reason == "stop"), output
        extra += more
    assert extra > 0 or name == "one at a time", "the requests were to include stop tokens"


def test_two_generations_on_one_engine(folder: Path, requests: list[Request], plain: Run) -> None:
    # 第一次以停止 token 结束，多发的一步还没收回，第二次就开始了。
    # The first ends with a stop token; its extra step is still out when the second begins.
    llm = make_llm(folder, **{**PLAIN, "enable_prefix_caching": True})
    stopped = next(i for i, output in enumerate(plain.outputs) if output.outputs[0].finish_reason == "stop")
    prompt, params = requests[stopped].prompt, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    said = llm.generate([prompt], params, progress=False)[0].outputs[0].token_ids
    stop = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop_token_ids=[said[4]])
    for _ in range(2):
        first = llm.generate([prompt], stop, progress=False)[0].outputs[0]
        assert first.token_ids == said[: said.index(said[4]) + 1] and first.finish_reason == "stop"
        assert isinstance(llm.engine, OverlappedEngine) and llm.engine.launched is not None
        assert llm.generate([prompt], params, progress=False)[0].outputs[0].token_ids == said
    assert isinstance(llm.engine, OverlappedEngine)
    assert_drained(llm.engine)


def test_max_tokens_of_1_takes_1_row(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=64, max_model_len=MAX_LEN)
    once = SamplingParams(temperature=0, max_tokens=1)
    requests = [Request([5] * size, once) for size in (1, 2, 16, 17, 40)]
    run, spy = run_overlapped(llm, requests)
    expected = run_requests(make_llm(folder, overlapped=False, num_kvcache_blocks=64, max_model_len=MAX_LEN), requests)
    assert run.tokens == expected.tokens
    assert [len(decision) for decision in run.decisions] == [5]
    assert set(spy.samples.values()) == {1}


def test_lengths_launch_no_useless_step(folder: Path) -> None:
    engine = make_engine(folder, max_model_len=48)
    spy = Spy(engine)
    for index, (size, max_tokens) in enumerate([(3, 1), (3, 2), (20, 7), (40, 100), (47, 100)]):
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        engine.add_request([5] * size, params, str(index))
    results = tokens_of(engine)
    assert {name: len(tokens) for name, tokens in results.items()} == {"0": 1, "1": 2, "2": 7, "3": 8, "4": 1}
    assert spy.samples == {"0": 1, "1": 2, "2": 7, "3": 8, "4": 1}
    # 8 个输出要 8 步，一步不多。
    # 8 outputs take 8 steps and not one more.
    assert len(spy.decisions) == 8
    assert engine.launched is None
    assert_drained(engine)


def test_a_stop_token_costs_one_extra_row(folder: Path) -> None:
    def run(stop: int | None) -> tuple[list[int], Spy]:
        engine = make_engine(folder)
        spy = Spy(engine)
        stop_token_ids = None if stop is None else [stop]
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=stop_token_ids)
        engine.add_request([1, 2, 3], params, "a")
        tokens = tokens_of(engine)["a"]
        assert_drained(engine)
        return tokens, spy

    said, spy = run(None)
    assert len(said) == 12 and spy.samples["a"] == 12
    for stop in set(said):
        tokens, spy = run(stop)
        assert tokens == said[: said.index(stop) + 1]
        # 停止 token 恰好是最后一个名额时，连这一步也省了。
        # Where the stop token takes the last place, even this step is saved.
        assert spy.samples["a"] == min(len(tokens) + 1, 12)


# ---- 半路取消 ----
# ---- aborts in flight ----


@pytest.mark.parametrize("when", range(7))
def test_abort_between_steps(folder: Path, when: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    prompts = {"a": [1, 2], "b": list(range(3, 40)), "c": [5, 6], "d": [7] * 20}
    options = dict(max_num_seqs=3, max_num_batched_tokens=16)
    plain_engine = make_llm(folder, overlapped=False, num_kvcache_blocks=64, max_model_len=MAX_LEN, **options).engine
    engine = make_engine(folder, **options)
    for each in (plain_engine, engine):
        for name, prompt in prompts.items():
            each.add_request(prompt, params, name)
    expected = tokens_of(plain_engine)
    # b 的提示词要好几段：`when` 从“还在等”走到“提示词的半路”再到“token 在半路上”；d 一直在等。
    # b's prompt takes several chunks: `when` goes from waiting over mid-prompt to a token in flight; d waits all along.
    for _ in range(when):
        assert engine.step() == []
    for name in ("b", "d"):
        aborted = engine.abort(name)
        assert aborted is not None and aborted.outputs[0].finish_reason == "abort"
        tokens = aborted.outputs[0].token_ids
        assert tokens == expected[name][: len(tokens)] and PENDING_TOKEN not in tokens
        assert engine.abort(name) is None
        engine.block_manager.check_integrity([*engine.scheduler.running, *engine.scheduler.waiting])
    results = tokens_of(engine)
    assert results == {name: expected[name] for name in ("a", "c")}
    assert_drained(engine)


def test_abort_of_everything_with_a_step_in_flight(folder: Path) -> None:
    engine = make_engine(folder)
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    for name in "abc":
        engine.add_request([1, 2, 3], params, name)
    engine.step()
    engine.step()
    assert engine.launched is not None
    for name in "abc":
        output = engine.abort(name)
        assert output is not None and len(output.outputs[0].token_ids) == 1
    assert_all_free(engine.block_manager)
    # 那一步还没收回，但谁的 token 也不再要；同名的新请求不受它影响。
    # That step is still out, though nobody wants its tokens; new requests of the same names are not touched by it.
    assert engine.has_unfinished()
    for name in "abc":
        engine.add_request([1, 2, 3], params, name)
    results = tokens_of(engine)
    assert len(results) == 3 and len({tuple(tokens) for tokens in results.values()}) == 1
    assert all(len(tokens) == 10 for tokens in results.values())
    assert_drained(engine)


def test_a_step_without_requests_does_nothing(folder: Path) -> None:
    engine = make_engine(folder)
    assert engine.step() == [] and engine.launched is None and not engine.has_unfinished()


def test_requests_may_join_a_running_engine(folder: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    alone = make_llm(folder, overlapped=False, num_kvcache_blocks=64)
    expected = [o.outputs[0].token_ids for o in alone.generate([[1, 2], [5, 6]], params, progress=False)]
    engine = make_engine(folder)
    engine.add_request([1, 2], params, "a")
    for _ in range(3):
        assert engine.step() == []
    engine.add_request([5, 6], params, "b")
    assert tokens_of(engine) == {"a": expected[0], "b": expected[1]}
    assert_drained(engine)


def test_counters_and_metrics(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=64, enable_prefix_caching=False)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    outputs = llm.generate([[1, 2, 3], [4]], params, progress=False)
    assert llm.engine.num_generated_tokens == 10
    assert llm.engine.num_computed_tokens == 4 + 2 * 4
    for output in outputs:
        times = output.metrics
        assert times.first_scheduled_time and times.first_token_time and times.finished_time
        assert times.arrival_time <= times.first_scheduled_time < times.first_token_time < times.finished_time


def test_the_cpu_takes_the_synchronous_loop(folder: Path) -> None:
    engine = create_engine(EngineConfig(model=folder, device="cpu", num_kvcache_blocks=64))
    assert type(engine) is LLMEngine
    assert make_engine(folder).graphs is None
