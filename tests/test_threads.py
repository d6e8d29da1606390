"""几个线程：共用一个 LLM，各建各的引擎，读取计数；结果都与单独运行时一样。

Several threads: they share an LLM, make engines of their own, read the counters; results are those of a run alone.
"""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import assert_all_free

import serving.llm
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.sampling_params import SamplingParams
from serving.chat_template import encode_chat
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = [f"What is {a} + {a + 3}?" for a in range(20, 32)]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module", params=["synchronous", "overlapped"])
def llm(request: pytest.FixtureRequest) -> LLM:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "overlapped":
            patch.setattr(serving.llm, "create_engine", OverlappedEngine)
        return LLM(device="cpu", num_kvcache_blocks=60, max_model_len=200, strict=True, seed=1)


def ask(llm: LLM, question: str) -> str:
    return llm.chat([{"role": "user", "content": question}], GREEDY, progress=False)[0].outputs[0].text


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """`count` 个线程各做一份，返回各自的结果；卡住就算失败。

    `count` threads do a share each; returns their results, and a thread that hangs is a failure.
    """
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            results[number] = work(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    return results


def test_chats_streams_and_outputs_from_six_threads(llm: LLM) -> None:
    mixed = SamplingParams(temperature=0.9, seed=5, n=3, max_tokens=12, logprobs=1, frequency_penalty=0.2)

    def work(number: int) -> list[Any]:
        results: list[Any] = []
        for question in QUESTIONS[number % 2 :: 4]:
            if number % 3 == 0:
                results.append(ask(llm, question))
            elif number % 3 == 1:
                results.append("".join(llm.stream(question, GREEDY)))
            else:
                output = llm.generate([question], mixed, progress=False)[0]
                results.append([each.token_ids for each in output.outputs])
        return results

    expected = [work(number) for number in range(6)]
    assert in_threads(6, work) == expected
    assert_all_free(llm.engine.block_manager)
    assert not llm.engine.requests.ids_in_use


def test_streams_interleaved_in_one_thread_beside_others(llm: LLM) -> None:
    prompts = [encode_chat(llm.engine.tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS[:4]]
    expected = ["".join(llm.stream(prompt, GREEDY)) for prompt in prompts]

    def work(number: int) -> list[str]:
        texts = ["" for _ in prompts]
        for row in zip_longest(*(llm.stream(prompt, GREEDY) for prompt in prompts), fillvalue=""):
            texts = [text + piece for text, piece in zip(texts, row)]
        return texts

    assert in_threads(3, work) == [expected] * 3


def test_a_short_request_does_not_wait_for_a_long_one(llm: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
    ends: dict[str, float] = {}

    def work(number: int) -> None:
        if number == 0:
            llm.generate([[5, 6, 7]] * 8, long, progress=False)
            ends["long"] = time.monotonic()
        else:
            while not llm.engine.scheduler.running:
                time.sleep(0.001)
            llm.generate([[8, 9]], SamplingParams(temperature=0, max_tokens=3), progress=False)
            ends["short"] = time.monotonic()

    assert in_threads(2, work) == [None, None]
    assert ends["short"] < ends["long"]


def test_one_callers_failure_stays_with_him(llm: LLM) -> None:
    def work(number: int) -> Any:
        if number:
            return [ask(llm, question) for question in QUESTIONS[:3]]
        refused = 0
        for _ in range(20):
            try:
                llm.generate([[5], [10**6]], GREEDY, progress=False)
            except ValueError:
                refused += 1
            for _ in llm.stream(QUESTIONS[0], GREEDY):
                break
        return refused

    expected = [ask(llm, question) for question in QUESTIONS[:3]]
    assert in_threads(3, work) == [20, expected, expected]
    gc.collect()
    assert_all_free(llm.engine.block_manager)


def test_a_stream_collected_in_mid_step_is_let_go_after_it(llm: LLM) -> None:
    """垃圾回收可能在半步里关闭一个没有人要的 `stream`：它的取消等到这一步走完。

    Garbage collection may close a forgotten `stream` in mid-step: its abort waits until the step is through.
    """
    long = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    forgotten: list[Any] = [llm.stream([1, 2, 3], long)]
    next(forgotten[0])
    real, seen = llm.engine.model_runner.execute, []

    def execute(batch: Any) -> Any:
        if forgotten:
            forgotten.clear()
            gc.collect()
            seen.append(len(llm.engine.scheduler.running))
        return real(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.engine.model_runner, "execute", execute)
        text = ask(llm, QUESTIONS[0])
    assert text == ask(llm, QUESTIONS[0]) and seen == [2]
    assert_all_free(llm.engine.block_manager)


def test_metrics_from_any_thread(llm: LLM) -> None:
    done = threading.Event()

    def work(number: int) -> Any:
        if number:
            count = 0
            while not done.is_set() or count < 100:
                metrics = llm.engine.metrics()
                assert 0 <= metrics.kv_cache_usage <= 1 and metrics.num_running <= 256
                count += 1
            return True
        for _ in range(2):
            llm.generate([[n, n + 1] for n in range(200)], SamplingParams(max_tokens=2), progress=False)
        done.set()
        return True

    assert in_threads(3, work) == [True] * 3


def test_engines_made_in_threads_at_once() -> None:
    """新的进程里第一次就同时建：导入、dtype、分词器都不互相打扰。

    At once and for the first time in a fresh process: imports, dtypes and tokenizers do not disturb each other.
    """
    code = """
import threading
import torch; torch.set_num_threads(1)
from mini_llama import LLM, SamplingParams
made = {}
def build(number):
    dtype = ("float32", "bfloat16")[number % 2]
    llm = LLM(device="cpu", dtype=dtype, num_kvcache_blocks=64, max_model_len=512)
    output = llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=6), progress=False)[0].outputs[0]
    kinds = {p.dtype for p in llm.engine.model_runner.model.parameters()}
    made[number] = (str(kinds), output.token_ids)
threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
build(4), build(5)
assert made[0] == made[2] == made[4] and made[1] == made[3] == made[5], made
assert torch.get_default_dtype() == torch.float32
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
