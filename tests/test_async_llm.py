"""AsyncLLM：许多协程同时提问，取消、出错、关闭都不漏请求，也不让谁白等。

AsyncLLM: many coroutines ask at once; cancelling, failing and shutting down leak no request and leave nobody waiting.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from engine_helpers import BAD_REQUESTS, assert_all_free

import mini_llama
import serving.llm
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from serving.async_llm import AsyncLLM, EngineDeadError
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"device": "cpu", "num_kvcache_blocks": 40, "max_model_len": 160, "strict": True, "seed": 3}


def params(count: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, **more)


def run(llm: AsyncLLM, main: Callable[[AsyncLLM], Awaitable[None]], dead: bool = False) -> None:
    """跑一段协程，最后核对引擎闲着、块全空闲、线程已退出。

    Run a coroutine, then check that the engine is idle, all blocks are free and the thread is gone.
    """

    async def wrapped() -> None:
        async with llm:
            await asyncio.wait_for(main(llm), 60)
            if not dead:
                await idle(llm)

    asyncio.run(wrapped())
    assert not llm._thread.is_alive() and llm._streams == {}
    if not dead:
        assert not llm.engine.has_unfinished() and llm.engine.requests.ids_in_use == set()
        assert_all_free(llm.engine.block_manager)


async def idle(llm: AsyncLLM) -> None:
    """等引擎闲下来。

    Wait until the engine is idle.
    """
    for _ in range(2000):
        if llm._inbox.empty() and not llm.engine.has_unfinished():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the engine does not become idle")


@pytest.fixture(params=["synchronous", "overlapped"])
def llm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[AsyncLLM]:
    if request.param == "overlapped":
        monkeypatch.setattr(serving.llm, "create_engine", OverlappedEngine)
    made = AsyncLLM(**OPTIONS)
    yield made
    made.shutdown()


async def collect(stream: Any) -> list[RequestOutput]:
    return [output async for output in stream]


async def last(stream: Any) -> RequestOutput:
    return (await collect(stream))[-1]


def test_texts_are_cumulative_and_the_last_is_finished(llm: AsyncLLM) -> None:
    plain = LLM(**OPTIONS)
    question = [{"role": "user", "content": "什么是前缀缓存？"}]
    greedy = SamplingParams(temperature=0, max_tokens=60)
    expected = plain.chat(question, greedy, progress=False)[0]

    async def main(llm: AsyncLLM) -> None:
        outputs = await collect(llm.generate(expected.prompt_token_ids, greedy, "a"))
        texts = [output.outputs[0].text for output in outputs]
        assert all(late.startswith(early) for early, late in pairwise(texts)) and len(set(texts)) > 5
        assert "\ufffd" not in "".join(texts)
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        assert outputs[-1].outputs == expected.outputs and outputs[-1].request_id == "a"
        for output in outputs:
            completion = output.outputs[0]
            assert completion.token_ids == expected.outputs[0].token_ids[: len(completion.token_ids)]
            assert (completion.finish_reason is not None) == output.finished
        # 较早的结果是当时的快照。
        # Earlier results are snapshots of their time.
        assert outputs[0].metrics.finished_time is None and outputs[-1].metrics.finished_time is not None

    run(llm, main)


def test_100_requests_10_of_them_aborted(llm: AsyncLLM) -> None:
    async def main(llm: AsyncLLM) -> None:
        async def one(number: int) -> int:
            # 10 个会被取消：一半由 `abort`，一半由取消任务。
            # 10 are aborted: half by `abort`, half by cancelling the task.
            doomed = number % 10 == 3
            await asyncio.sleep(number % 7 * 0.002)
            stream = llm.generate([number, 7, 8] * 4, params(100 if doomed else number % 20 + 1), f"r{number}")
            count = 0
            async for output in stream:
                count = len(output.outputs[0].token_ids)
                if doomed and count >= 2:
                    if number % 20 == 3:
                        task = asyncio.current_task()
                        assert task
                        task.cancel()
                    else:
                        await llm.abort(output.request_id)
                        doomed = False
            assert output.finished
            assert (output.outputs[0].finish_reason == "abort") == (number % 20 == 13)
            return count

        results = await asyncio.gather(*(one(number) for number in range(100)), return_exceptions=True)
        for number, result in enumerate(results):
            if number % 20 == 3:
                assert isinstance(result, asyncio.CancelledError)
            elif number % 20 == 13:
                assert isinstance(result, int) and 2 <= result < 100
            else:
                assert result == number % 20 + 1
        await idle(llm)
        total = llm.engine.metrics().num_generated_tokens
        exact = sum(n % 20 + 1 for n in range(100) if n % 10 != 3)
        assert exact + 20 <= total < exact + 10 * 100

    run(llm, main)


def test_requests_that_arrive_later_join_the_batch(llm: AsyncLLM) -> None:
    async def main(llm: AsyncLLM) -> None:
        long = llm.generate([1, 2, 3], params(120))
        await anext(long)
        short = await last(llm.generate([4, 5], params(3)))
        assert len(short.outputs[0].token_ids) == 3
        now = await anext(long)
        assert not now.finished and len(now.outputs[0].token_ids) < 120
        assert (await last(long)).finished

    run(llm, main)


def test_break_and_aclose_abort(llm: AsyncLLM) -> None:
    async def main(llm: AsyncLLM) -> None:
        async for output in llm.generate([1, 2], params(150)):
            if len(output.outputs[0].token_ids) >= 3:
                break
        stream = llm.generate([1, 2], params(150))
        await anext(stream)
        await stream.aclose()
        await idle(llm)
        assert llm.engine.metrics().num_generated_tokens < 300

    run(llm, main)


def test_a_stop_string_and_the_default_params(llm: AsyncLLM) -> None:
    async def main(llm: AsyncLLM) -> None:
        greedy = SamplingParams(temperature=0, max_tokens=40)
        text = (await last(llm.generate("hello", greedy))).outputs[0].text
        stop = text[4:7]
        output = await last(llm.generate("hello", SamplingParams(temperature=0, max_tokens=40, stop=[stop])))
        assert output.outputs[0].text == text[: text.index(stop)] and output.outputs[0].stop_reason == stop
        assert (await last(llm.generate("hello"))).outputs[0].text

    run(llm, main)


# ---- 不合法的输入 ----
# ---- bad input ----


def test_every_bad_request_raises_in_its_caller_and_the_others_go_on(llm: AsyncLLM) -> None:
    async def main(llm: AsyncLLM) -> None:
        running = llm.generate([1, 2, 3], params(100))
        await anext(running)
        for name, (prompt, bad, _) in BAD_REQUESTS.items():
            if name == "token beyond the embedding":
                prompt = [1, 2064]
            if name == "as long as max_model_len":
                prompt = [1] * 160
            with pytest.raises(ValueError, match="request bad: "):
                llm.generate(prompt, bad, "bad")
        for name in ("", 5, ["a"]):
            for prompt in ([1], "text"):
                with pytest.raises(ValueError, match="must be a string that is not empty"):
                    llm.generate(prompt, None, name)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="SamplingParams"):
            llm.generate([1], {"temperature": 0})  # type: ignore[arg-type]
        # 文字的错都等到取第一份结果时才报。
        # What is wrong with a request of text is all told at the first result.
        for late in (llm.generate("word " * 5000), llm.generate("hi", SamplingParams(stop_token_ids=[99999]))):
            with pytest.raises(ValueError, match=r"at most|stop token id"):
                await anext(late)
        assert len((await last(running)).outputs[0].token_ids) == 100

    run(llm, main)


def test_an_id_in_use_is_refused_and_free_again_later(llm: AsyncLLM) -> None:
    async def main(llm: AsyncLLM) -> None:
        first = llm.generate([1, 2], params(50), "same")
        await anext(first)
        with pytest.raises(ValueError, match="request same: this id is already running"):
            await anext(llm.generate([3], params(2), "same"))
        assert not (await anext(first)).finished
        await first.aclose()
        for _ in range(3):
            assert (await last(llm.generate([3], params(2), "same"))).finished
        await llm.abort("never heard of")

    run(llm, main)


def test_an_unknown_option_is_a_type_error() -> None:
    before = threading.active_count()
    with pytest.raises(TypeError, match="tensor_parallel"):
        AsyncLLM(tensor_parallel=2)
    with pytest.raises(ValueError, match="max_num_seqs"):
        AsyncLLM(max_num_seqs=0)
    assert threading.active_count() == before


# ---- 出错与关闭 ----
# ---- failure and shutdown ----


def test_a_failure_reaches_every_waiter_and_every_later_call(llm: AsyncLLM) -> None:
    failure, real = RuntimeError("the device is gone"), llm.engine.model_runner.execute
    steps = [0]

    def execute(batch: Any) -> Any:
        steps[0] += 1
        if steps[0] == 20:
            raise failure
        return real(batch)

    async def main(llm: AsyncLLM) -> None:
        llm.engine.model_runner.execute = execute  # type: ignore[method-assign]
        streams = [llm.generate([n, n + 1], params(100)) for n in range(12)]
        unread = llm.generate([1], params(5))
        results = await asyncio.gather(*map(last, streams), return_exceptions=True)
        for result in [*results]:
            assert isinstance(result, EngineDeadError) and "the device is gone" in str(result)
            assert result.__cause__ is failure
        assert len({id(result) for result in results}) == 12
        with pytest.raises(EngineDeadError, match="the device is gone"):
            llm.generate([1], params(2))
        with pytest.raises(EngineDeadError, match="the device is gone"):
            await anext(unread)
        await llm.abort("0")

    run(llm, main, dead=True)
    assert_all_free(llm.engine.block_manager)


def test_a_failure_after_the_last_token_reaches_its_waiter_too(llm: AsyncLLM) -> None:
    def output(seq: Any) -> Any:
        raise MemoryError("no more")

    async def main(llm: AsyncLLM) -> None:
        llm.engine.requests.output = output  # type: ignore[method-assign]
        with pytest.raises(EngineDeadError, match="no more"):
            await last(llm.generate([1, 2], params(1)))

    run(llm, main, dead=True)


def test_shutdown_tells_those_who_wait(llm: AsyncLLM) -> None:
    async def main(llm: AsyncLLM) -> None:
        stream = llm.generate([1, 2], params(150))
        await anext(stream)
        llm.shutdown()
        llm.shutdown()
        with pytest.raises(EngineDeadError, match="shut down"):
            await last(stream)
        with pytest.raises(EngineDeadError, match="shut down"):
            llm.generate([1], params(2))

    run(llm, main, dead=True)
    assert_all_free(llm.engine.block_manager)


def test_idle_it_sleeps(llm: AsyncLLM) -> None:
    async def main(llm: AsyncLLM) -> None:
        await last(llm.generate([1, 2], params(3)))
        await idle(llm)
        before = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before < 0.25, "the idle thread is busy"

    run(llm, main)


def test_a_closed_event_loop_ends_its_requests_only(llm: AsyncLLM) -> None:
    loop = asyncio.new_event_loop()
    stream = llm.generate([1, 2], params(150))
    loop.run_until_complete(anext(stream))
    loop.close()

    async def main(llm: AsyncLLM) -> None:
        assert len((await last(llm.generate([5], params(30)))).outputs[0].token_ids) == 30

    run(llm, main)


def test_it_is_exported() -> None:
    assert mini_llama.AsyncLLM is AsyncLLM and mini_llama.EngineDeadError is EngineDeadError
