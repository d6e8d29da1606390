"""AsyncLLM 的边缘：引擎线程无论怎样死，人人都得到消息；一个请求自己的毛病只归它自己；不卡住事件循环；退出和 fork。

The edges of AsyncLLM: however the engine's thread dies, everybody is told; what is wrong with one request concerns it
alone; the event loop is never held up; exits and forks.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EMBEDDED_MODEL
from engine_helpers import assert_all_free

import serving.llm
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.sampling_params import SamplingParams
from serving.async_llm import AsyncLLM, EngineDeadError
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
OPTIONS: dict[str, Any] = {"device": "cpu", "num_kvcache_blocks": 64, "max_model_len": 512}


def params(count: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, **more)


async def last(stream: Any) -> Any:
    return [output async for output in stream][-1]


def run(main: Callable[[AsyncLLM], Awaitable[None]], **options: Any) -> AsyncLLM:
    llm = AsyncLLM(**{**OPTIONS, **options})

    async def wrapped() -> None:
        async with llm:
            await asyncio.wait_for(main(llm), 100)

    asyncio.run(wrapped())
    assert not llm._thread.is_alive() and llm._streams == {}
    return llm


@pytest.fixture(params=[False, True], ids=["synchronous", "overlapped"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(serving.llm, "create_engine", OverlappedEngine)


# ---- 引擎的线程死了 ----
# ---- the engine's thread dies ----


class Panic(BaseException):
    """像 pyo3 的 PanicException：不是 `Exception`。

    Like PanicException of pyo3, which is no `Exception`.
    """


PLACES = {
    "step": lambda llm: (llm.engine, "step"),
    "forward": lambda llm: (llm.engine.model_runner, "execute"),
    "commit": lambda llm: (llm.engine.scheduler, "commit"),
    "result": lambda llm: (llm.engine.requests, "output"),
    "abort": lambda llm: (llm.engine, "abort"),
}


@pytest.mark.parametrize("error", [Panic, SystemExit, KeyboardInterrupt, asyncio.CancelledError, MemoryError])
@pytest.mark.parametrize("place", PLACES)
def test_every_waiter_and_every_later_caller_is_told(
    loop: None, place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda *_: pytest.fail("the thread died silently"))
    failure = error("the engine is gone")

    async def main(llm: AsyncLLM) -> None:
        early = llm.generate([9], params(3), "early")
        waiting = [asyncio.ensure_future(last(llm.generate([n + 1, 5], params(300), str(n)))) for n in range(5)]
        while not llm.engine.scheduler.running:
            await asyncio.sleep(0.001)
        owner, name = PLACES[place](llm)

        def fail(*arguments: Any) -> Any:
            raise failure

        setattr(owner, name, fail)
        if place == "abort":
            await llm.abort("0")
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, EngineDeadError) and result.__cause__ is failure
        with pytest.raises(EngineDeadError):
            await last(early)
        for prompt in ([1, 2], "text"):
            with pytest.raises(EngineDeadError) as caught:
                await last(llm.generate(prompt, params(2)))
            assert caught.value.__cause__ is failure

    run(main)


def test_a_real_panic_of_the_tokenizer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """一个会让 Rust 恐慌的解码器：`Strip` 要从 "a" 的末尾去掉的，比它有的还多。

    A decoder that makes Rust panic: `Strip` is to take more from the end of "a" than it has.
    """
    folder = tmp_path / "panic"
    shutil.copytree(EMBEDDED_MODEL, folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["decoder"] = {"type": "Strip", "content": "a", "start": 0, "stop": 5}
    file.write_text(json.dumps(content))
    bad = content["model"]["vocab"]["a"]

    async def main(llm: AsyncLLM) -> None:
        real = llm.engine.model_runner.execute

        def execute(batch: Any) -> Any:
            logits = real(batch).clone()
            logits[:, bad] = 1e4
            return logits

        llm.engine.model_runner.execute = execute  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(EngineDeadError) as caught:
                await last(llm.generate([5, 6, 7], params(5)))
            assert type(caught.value.__cause__).__name__ == "PanicException"

    run(main, model=folder)
    assert "panicked" in capfd.readouterr().err


# ---- 一个请求自己的毛病 ----
# ---- what is wrong with one request ----

ODD: dict[str, Any] = {
    "numpy seed, n": lambda: SamplingParams(n=2, seed=np.int64(2**63 - 1), max_tokens=3),
    "uint64 seed": lambda: SamplingParams(n=3, seed=np.uint64(2**63 - 1), max_tokens=3),
    "fractions": lambda: SamplingParams(temperature=Fraction(1, 2), top_p=Fraction(9, 10), min_p=Fraction(1, 99)),
    "numpy floats": lambda: SamplingParams(temperature=np.float16(0.7), repetition_penalty=np.float32(1.1)),
    "numpy integers": lambda: SamplingParams(
        top_k=np.int8(5), max_tokens=np.uint8(3), min_tokens=np.int32(1), logprobs=np.int64(2),
        stop_token_ids=[np.int64(3)],
    ),
    "huge integers": lambda: SamplingParams(top_k=10**40, max_tokens=10**40, stop_token_ids=[3], n=2),
    "fractions as penalties": lambda: SamplingParams(frequency_penalty=Fraction(1, 3), max_tokens=4),
    "absurd n": lambda: SamplingParams(n=10**9),
    "a stop id beyond the vocabulary": lambda: SamplingParams(stop_token_ids=[10**9]),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_value_works_or_fails_its_caller_alone(loop: None, name: str) -> None:
    async def main(llm: AsyncLLM) -> None:
        innocent = asyncio.ensure_future(last(llm.generate([5, 6], params(60))))
        await asyncio.sleep(0.01)
        try:
            output = await last(llm.generate([np.int64(7), 8], ODD[name]()))
        except ValueError:
            assert "n" in name
        else:
            assert all(len(each.token_ids) > 0 for each in output.outputs)
        assert len((await innocent).outputs[0].token_ids) == 60

    assert_all_free(run(main, max_model_len=100).engine.block_manager)


def test_a_request_that_cannot_be_added_fails_alone(loop: None) -> None:
    async def main(llm: AsyncLLM) -> None:
        innocent = asyncio.ensure_future(last(llm.generate([5, 6], params(60))))
        await asyncio.sleep(0.01)
        # 直接占用一个 id：加入时才发现重名。
        # An id taken behind its back: the duplicate shows only when the request is added.
        llm.engine.requests.ids_in_use.add("taken")
        with pytest.raises(ValueError, match="taken"):
            await last(llm.generate([1], params(3), "taken"))
        llm.engine.requests.ids_in_use.remove("taken")
        assert (await innocent).finished

    run(main)


# ---- 事件循环 ----
# ---- the event loop ----


def test_text_is_never_tokenized_on_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = AsyncLLM(**OPTIONS)
    tokenizer, seen = llm.engine.tokenizer, []
    real = tokenizer.encode

    def encode(text: str, add_special_tokens: bool = True) -> list[int]:
        seen.append(threading.current_thread())
        time.sleep(0.3)
        return real(text, add_special_tokens)

    monkeypatch.setattr(tokenizer, "encode", encode)

    async def main() -> None:
        async with llm:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            ticking = asyncio.ensure_future(tick())
            outputs = await asyncio.gather(*(last(llm.generate(f"hello {n}", params(2), str(n))) for n in range(3)))
            assert all(output.finished for output in outputs)
            # 分词途中取消：以 "abort" 结束，或者不再有人要。
            # Aborted while it is tokenized: it ends by "abort", or nobody wants it any more.
            stream = llm.generate("hello again", params(300), "a")
            task = asyncio.ensure_future(last(stream))
            await asyncio.sleep(0.1)
            await llm.abort("a")
            assert (await task).outputs[0].finish_reason == "abort"
            task = asyncio.ensure_future(last(llm.generate("once more", params(300), "b")))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with pytest.raises(ValueError, match="UTF-8"):
                await last(llm.generate("\udce4", params(2)))
            ticking.cancel()
            assert ticks > 30

    asyncio.run(main())
    assert seen and threading.main_thread() not in seen and llm._thread not in seen
    assert llm._streams == {}
    assert_all_free(llm.engine.block_manager)


@pytest.mark.parametrize("count", [600, pytest.param(6400, marks=pytest.mark.long)])
def test_thousands_of_aborts_cost_their_number(loop: None, count: int) -> None:
    seconds: dict[int, float] = {}

    async def main(llm: AsyncLLM) -> None:
        for number in (count // 4, count):
            tasks = [asyncio.ensure_future(last(llm.generate([5], params(400), f"r{n}"))) for n in range(number)]
            while len(llm._streams) < number:
                await asyncio.sleep(0)
            started = time.process_time()
            for n in range(number):
                await llm.abort(f"r{n}")
            outputs = await asyncio.gather(*tasks)
            seconds[number] = time.process_time() - started
            assert {output.outputs[0].finish_reason for output in outputs} == {"abort"}

    llm = run(main)
    assert_all_free(llm.engine.block_manager)
    # 4 倍的个数，时间若是平方，就是 16 倍。
    # For 4 times as many, quadratic would be 16 times as long.
    assert seconds[count] < 8 * seconds[count // 4] + 0.5, seconds


@pytest.mark.parametrize("held", [False, True])
def test_aborts_of_waiting_requests_cost_their_number(held: bool) -> None:
    seconds = {}
    for count in (1600, 6400):
        engine = LLM(**OPTIONS).engine
        for number in range(count):
            engine.add_request([5] * (40 if held else 3), params(9, n=2 if held else 1), str(number))
        engine.step()
        started = time.process_time()
        for number in range(count):
            assert engine.abort(str(number)) is not None
        seconds[count] = time.process_time() - started
        assert not engine.has_unfinished() and not engine.requests.ids_in_use
        assert_all_free(engine.block_manager)
    assert seconds[6400] < 8 * seconds[1600] + 0.3, seconds


# ---- 退出与 fork ----
# ---- exits and forks ----

PROGRAM = """
import torch; torch.set_num_threads(1)
import asyncio, sys
from mini_llama import AsyncLLM, SamplingParams
params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
async def last(stream):
    async for output in stream: pass
async def main():
    llm = AsyncLLM(device="cpu", num_kvcache_blocks=256, max_model_len=2048, max_num_batched_tokens=1200)
    tasks = [asyncio.create_task(last(llm.generate([i + 1] * 600, params))) for i in range(12)]
    await asyncio.sleep(WAIT)
    return llm, tasks
loop = asyncio.new_event_loop()
kept = loop.run_until_complete(main())
ENDING
"""
ENDINGS = {"pass": 0, "raise ValueError('mine')": 1, "sys.exit(3)": 3, "del kept; sys.exit(4)": 4, "loop.close()": 0}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_that_forgets_shutdown_has_its_own_exit_code(ending: str) -> None:
    check_exits(ending, 1)


@pytest.mark.long
def test_20_of_20_programs_that_forget_shutdown() -> None:
    for ending in ENDINGS:
        check_exits(ending, 4)


def check_exits(ending: str, times: int) -> None:
    for number in range(times):
        code = PROGRAM.replace("WAIT", str(0.3 + 0.13 * number)).replace("ENDING", ending)
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert result.returncode == ENDINGS[ending], result.stderr
        assert "terminate called" not in result.stderr and "Fatal" not in result.stderr


def test_one_that_is_dropped_lets_its_model_go_after_shutdown() -> None:
    import gc
    import weakref

    llm = AsyncLLM(**OPTIONS)
    model = weakref.ref(llm.engine.model_runner.model)
    llm.shutdown()
    del llm
    gc.collect()
    assert model() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which Windows lacks")
def test_a_forked_child_gets_a_clear_error() -> None:
    code = """
import torch; torch.set_num_threads(1)
import asyncio, os, sys
from mini_llama import AsyncLLM, EngineDeadError, SamplingParams
llm = AsyncLLM(device="cpu", num_kvcache_blocks=64, max_model_len=512)
if os.fork() == 0:
    async def ask():
        async for _ in llm.generate([5, 6, 7], SamplingParams(max_tokens=2)):
            pass
    try:
        asyncio.run(ask())
    except EngineDeadError as error:
        os._exit(21 if "fork" in str(error) else 1)
    os._exit(2)
child = os.waitstatus_to_exitcode(os.wait()[1])
llm.shutdown()
sys.exit(child)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 21, result.stderr
