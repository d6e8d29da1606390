"""进程的边缘：Ctrl-C、线程、AsyncLLM 的收场、内存、写不出去的输出。

The edge of the process: Ctrl-C, threads, how AsyncLLM ends, memory, output that cannot be written.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from engine_helpers import assert_all_free

from engine.sampling_params import SamplingParams
from serving.async_llm import AsyncLLM, EngineDeadError
from serving.beam_search import BeamSearchParams
from serving.llm import LLM

ROOT = Path(__file__).resolve().parent.parent
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPTS = [[5, 6, 7, 8], [9] * 20, [10, 11], [12] * 33]


@pytest.fixture(scope="module")
def llm(one_thread: None) -> LLM:
    """一个严格的引擎，块少到会抢占。

    A strict engine with so few blocks that it preempts.
    """
    return LLM(device="cpu", num_kvcache_blocks=10, max_model_len=96, max_num_batched_tokens=24, strict=True)


@pytest.fixture(scope="module")
def answers(llm: LLM) -> list[list[int]]:
    """没有被打断时的答案。

    The answers of an undisturbed run.
    """
    return tokens(llm)


def tokens(llm: LLM) -> list[list[int]]:
    """四个请求的输出。

    The outputs of the four requests.
    """
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY, progress=False)]


def interrupt_at(call: Callable[[], Any], line: int) -> tuple[int, bool]:
    """在 `call` 里我们自己的代码执行到第 `line` 行时，来一次真的 SIGINT；返回一共走了几行，有没有被打断。

    A real SIGINT when our own code in `call` comes to line number `line`; how many lines ran, and whether it broke off.
    """
    ran = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal ran
        if not any(f"{os.sep}{part}{os.sep}" in frame.f_code.co_filename for part in ("engine", "serving", "layers")):
            return None
        if event == "line":
            ran += 1
            if ran == line:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
        return ran, False
    except KeyboardInterrupt:
        return ran, True
    finally:
        sys.settrace(before)


CALLS: dict[str, Callable[[LLM], Any]] = {
    "generate": tokens,
    "stream": lambda llm: list(llm.stream(PROMPTS[1], GREEDY)),
    "beam search": lambda llm: llm.beam_search([PROMPTS[0]], BeamSearchParams(beam_width=2, max_tokens=3)),
}


def check_interrupts(llm: LLM, name: str, answers: list[list[int]], stride: int) -> None:
    """每隔 `stride` 行打断一次，之后引擎都照常。

    Interrupt at every `stride`-th line; after each the engine is as good as before.
    """
    total, _ = interrupt_at(lambda: CALLS[name](llm), 0)
    assert total > 200
    stopped = 0
    for line in range(1, total, stride):
        stopped += interrupt_at(lambda: CALLS[name](llm), line)[1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert_all_free(llm.engine.block_manager)
        assert not llm.engine.has_unfinished() and not llm.engine.requests.ids_in_use
        if line % (10 * stride) == 1:
            assert tokens(llm) == answers, f"{name}: line {line}"
    assert tokens(llm) == answers
    assert stopped > 0.9 * len(range(1, total, stride))


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_at_some_lines(llm: LLM, answers: list[list[int]], name: str) -> None:
    check_interrupts(llm, name, answers, 211)


@pytest.mark.long
@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_at_many_lines(llm: LLM, answers: list[list[int]], name: str) -> None:
    check_interrupts(llm, name, answers, 31)


def test_one_llm_in_several_threads(llm: LLM, answers: list[list[int]]) -> None:
    results: dict[tuple[int, int], Any] = {}

    def work(number: int) -> None:
        for turn in range(3):
            try:
                results[number, turn] = tokens(llm)
            except Exception as error:
                results[number, turn] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert list(results.values()) == [answers] * 9
    assert_all_free(llm.engine.block_manager)


def test_a_row_of_nan_ends_its_request_alone(llm: LLM, answers: list[list[int]], monkeypatch: Any) -> None:
    real = llm.engine.model_runner.execute

    def execute(batch: Any) -> torch.Tensor:
        logits = real(batch).clone()
        for row, (seq, index) in enumerate(batch_rows):
            if seq.prompt_token_ids == PROMPTS[2] and index == 2:
                logits[row] = float("nan")
        return logits

    batch_rows: list[Any] = []
    plan = llm.engine.plan

    def planned() -> Any:
        from engine.batch import sampling_rows

        schedule = plan()
        batch_rows[:] = sampling_rows(schedule)
        return schedule

    monkeypatch.setattr(llm.engine, "plan", planned)
    monkeypatch.setattr(llm.engine.model_runner, "execute", execute)
    outputs = llm.generate(PROMPTS, GREEDY, progress=False)
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert reasons == ["length", "length", "error", "length"]
    got = [output.outputs[0].token_ids for output in outputs]
    assert got == [answers[0], answers[1], answers[2][:2], answers[3]]
    assert_all_free(llm.engine.block_manager)


def test_a_failure_in_the_engines_thread_reaches_everybody(one_thread: None) -> None:
    async def run() -> None:
        made = AsyncLLM(device="cpu", num_kvcache_blocks=16, max_model_len=96)

        def fail() -> Any:
            raise SystemExit(3)

        made.engine.step = fail  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(EngineDeadError) as caught:
                async for _ in made.generate([5, 6, 7], GREEDY):
                    pass
            assert isinstance(caught.value.__cause__, SystemExit)
        made.shutdown()

    asyncio.run(asyncio.wait_for(run(), 60))


def run_python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """另起一个 Python 进程。

    Another Python process.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, **options)


@pytest.mark.parametrize("ending", ["pass", "raise ValueError('mine')", "sys.exit(7)"])
def test_a_program_ends_without_shutdown(ending: str) -> None:
    code = f"""
import asyncio, sys
from mini_llama import AsyncLLM, SamplingParams
async def main():
    llm = AsyncLLM(device="cpu", num_kvcache_blocks=64, max_model_len=512)
    async for _ in llm.generate([5, 6, 7], SamplingParams(max_tokens=400, ignore_eos=True)):
        {ending}
        return
asyncio.run(main())
"""
    result = run_python(code)
    assert result.returncode == {"p": 0, "r": 1, "s": 7}[ending[0]], result.stderr
    assert "terminate called" not in result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork, which Windows lacks")
def test_a_forked_child_gets_a_clear_error() -> None:
    code = """
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
    assert run_python(code).returncode == 21


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, which tells a process's memory")
def test_many_prompt_lengths_do_not_grow_the_process() -> None:
    code = """
import os
import torch; torch.set_num_threads(1)
from mini_llama import LLM, SamplingParams
llm = LLM(device="cpu", num_kvcache_blocks=128, enable_prefix_caching=False)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
def run(length):
    llm.generate([[5] * length], SamplingParams(temperature=0.0, max_tokens=1), progress=False)
run(300)
before = resident()
for length in range(2, 300):
    run(length)
print(resident() - before)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 60, f"{result.stdout.strip()} MB for 298 lengths"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "mini_llama.py", "--prompt", "What is 23 + 45?"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode not in (0, 130) and "Traceback" not in result.stderr and result.stderr.count("\n") <= 2
