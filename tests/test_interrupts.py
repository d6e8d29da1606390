"""Ctrl-C：落在任何一行，都等到两步之间才生效；之后引擎照常，别人的请求继续。

Ctrl-C: whichever line it strikes, it takes effect between two steps; afterwards the engine is as good as before, and
the requests of others go on.
"""

import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from engine_helpers import assert_all_free

import serving.chat
import serving.llm
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.sampling_params import SamplingParams
from serving.beam_search import BeamSearchParams
from serving.llm import LLM
from serving.turns import EngineDeadError

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = str(Path(__file__).resolve().parent.parent) + os.sep
FOLDERS = tuple(ROOT + name + os.sep for name in ("serving", "engine", "models", "layers", "backends"))
GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
# 有 `n` 份、惩罚、停止字符串、对数概率，账本里的每一处都走到。
# With `n` outputs, penalties, stop strings and log-probabilities, so that every place of the books is visited.
MIXED = SamplingParams(
    temperature=0.9, seed=3, n=3, top_k=30, max_tokens=4, stop="zzz", logprobs=1, presence_penalty=0.3, ignore_eos=True
)
PROMPTS = [[5, 6, 7, 8], [9] * 20, [10, 11], [12] * 33]
Place = tuple[str, int]


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """SIGINT 在后台作业里是被忽略的，测试要 Python 自己的处理函数；每次之后也必须还是它。

    SIGINT is ignored in background jobs; the tests want Python's own handler, which must be back after each.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", params=["synchronous", "overlapped"])
def llm(request: pytest.FixtureRequest) -> LLM:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "overlapped":
            patch.setattr(serving.llm, "create_engine", OverlappedEngine)
        return make_llm()


def make_llm() -> LLM:
    """块少到会抢占，预算小到要分段。

    So few blocks that it preempts, so small a budget that prompts come in chunks.
    """
    return LLM(device="cpu", num_kvcache_blocks=10, max_model_len=96, max_num_batched_tokens=24, strict=True)


def tokens(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY, progress=False)]


def left_early(llm: LLM) -> None:
    """读一段就走：关闭迭代器的那几行也会被打断。

    Leave after a piece: the lines that close the iterator are struck as well.
    """
    pieces = llm.stream(PROMPTS[1], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    next(pieces)
    pieces.close()


CALLS: dict[str, Callable[[LLM], Any]] = {
    "generate": tokens,
    "generate, mixed": lambda llm: llm.generate([PROMPTS[1], PROMPTS[2]], MIXED),
    "stream": lambda llm: list(llm.stream(PROMPTS[1], GREEDY)),
    "stream left early": left_early,
    "beam search": lambda llm: llm.beam_search([PROMPTS[0]], BeamSearchParams(beam_width=2, max_tokens=3)),
}


def run_traced(call: Callable[[], Any], at_line: Callable[[Place], Any]) -> bool:
    """在我们自己的每一行之前调用 `at_line`；返回有没有被 Ctrl-C 打断。

    Call `at_line` before each line of our own; tells whether Ctrl-C broke it off.
    """

    def trace(frame: FrameType, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(FOLDERS) and not name.endswith("contextlib.py"):
            return None
        if event == "line":
            at_line((name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)


def places_of(call: Callable[[], Any]) -> tuple[list[Place], int]:
    """走过的每一处，和一共走了几行。

    Every place that is visited, and how many lines are executed.
    """
    visited: list[Place] = []
    run_traced(call, visited.append)
    return list(dict.fromkeys(visited)), len(visited)


def press_at(call: Callable[[], Any], wanted: int | Place) -> bool:
    """执行到第 `wanted` 行，或第一次到某一处时，按一次。

    Press once, at executed line number `wanted` or the first time that a place is reached.
    """
    count, pressed = 0, False

    def at_line(place: Place) -> None:
        nonlocal count, pressed
        count += 1
        if not pressed and wanted in (count, place):
            pressed = True
            signal.raise_signal(signal.SIGINT)

    return run_traced(call, at_line)


def assert_as_new(llm: LLM, where: object) -> None:
    engine = llm.engine
    llm.turns.check_alive()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, where
    assert_all_free(engine.block_manager)
    assert not engine.requests.ids_in_use and not engine.requests.held and not engine.sampler.rows, where
    assert not engine.scheduler.running and not engine.scheduler.waiting, where


def check_places(llm: LLM, name: str, places: list[Any], every: int) -> None:
    answers, stopped = tokens(llm), 0
    for number, place in enumerate(places):
        stopped += press_at(lambda: CALLS[name](llm), place)
        assert_as_new(llm, place)
        if number % every == 0:
            assert tokens(llm) == answers, place
    assert tokens(llm) == answers
    # 最后一步里按下的，可以直接交出答案。
    # One pressed in the very last step may give the answer instead.
    assert stopped >= 0.9 * len(places)


@pytest.mark.parametrize("name", CALLS)
def test_at_some_lines(llm: LLM, name: str) -> None:
    places, _ = places_of(lambda: CALLS[name](llm))
    outer = [place for place in places if f"{os.sep}serving{os.sep}" in place[0] or "contextlib" in place[0]]
    books = [place for place in places if f"{os.sep}engine{os.sep}" in place[0]]
    assert len(outer) > 40 and len(books) > 150
    rng = random.Random(name)
    check_places(llm, name, rng.sample(outer, 30) + rng.sample(books, 30), every=20)


@pytest.mark.long
@pytest.mark.parametrize("name", CALLS)
def test_at_every_line(llm: LLM, name: str) -> None:
    places, total = places_of(lambda: CALLS[name](llm))
    # 每一处都至少一次；同一行走过几千次的，再抽一部分。
    # Each place at least once; of the thousands of times that lines run, a part besides.
    check_places(llm, name, [*places, *range(1, total, 41)], every=10)


def test_the_requests_of_others_go_on(llm: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    alone = llm.generate([[40, 41, 42]], long, progress=False)[0].outputs[0].token_ids
    llm.engine.add_request([40, 41, 42], long, "other")
    for line in (50, 400, 1500):
        assert press_at(lambda: tokens(llm), line)
        assert llm.engine.requests.ids_in_use == {"other"}
    # 用户自己的代码里按下的 Ctrl-C 照常抛出，什么也没装。
    # Pressed in the user's own code it raises as always: nothing is installed there.
    with pytest.raises(KeyboardInterrupt):
        for _ in llm.stream(PROMPTS[0], GREEDY):
            signal.raise_signal(signal.SIGINT)
    results = []
    while not results:
        results = llm.engine.step()
    assert results[0].request_id == "other" and results[0].outputs[0].token_ids == alone
    assert_as_new(llm, "others")


def test_a_second_one_within_a_step_leaves_at_once_and_the_engine_is_dead() -> None:
    llm, came_to = make_llm(), []

    def grow(*arguments: Any) -> None:
        for number in range(3):
            came_to.append(number)
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.engine.block_manager, "grow", grow)
        with pytest.raises(KeyboardInterrupt):
            tokens(llm)
    assert came_to == [0, 1]
    for call in CALLS.values():
        with pytest.raises(EngineDeadError, match="make a new LLM") as caught:
            call(llm)
        assert isinstance(caught.value.__cause__, KeyboardInterrupt)


@pytest.mark.parametrize("stride", [pytest.param(97), pytest.param(7, marks=pytest.mark.long)])
def test_pressed_twice_at_any_line_it_never_hangs(stride: int) -> None:
    llm = make_llm()
    answers, (_, total) = tokens(llm), places_of(lambda: tokens(llm))
    dead = 0
    for line in range(1, total, stride):
        count = 0

        def at_line(place: Place, line: int = line) -> None:
            nonlocal count
            count += 1
            if count in (line, line + 1):
                signal.raise_signal(signal.SIGINT)

        with contextlib.suppress(EngineDeadError):
            run_traced(lambda: tokens(llm), at_line)  # noqa: B023
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            assert tokens(llm) == answers, line
        except EngineDeadError:
            llm, dead = make_llm(), dead + 1
    assert dead > 0


def test_pressed_while_cleaning_up_it_still_cleans_up(llm: LLM) -> None:
    real, pressed = llm.engine.abort, []

    def abort(request_id: str) -> Any:
        if not pressed:
            pressed.append(1)
            signal.raise_signal(signal.SIGINT)
        return real(request_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.engine, "abort", abort)
        assert press_at(lambda: tokens(llm), 600)
    assert pressed
    assert_as_new(llm, "pressed again")


class Alarm(Exception):
    pass


def ring(number: int, frame: object) -> None:
    raise Alarm


@pytest.mark.parametrize("name", ["generate", "stream"])
def test_a_handler_of_the_users_own_stays(llm: LLM, name: str) -> None:
    """用户自己的处理函数（例如超时）在半步里抛错：引擎要么照常，要么明说不能用了，绝不给出错的答案，也不会卡住。

    A handler of the user's own, a timeout say, raises in mid-step: the engine is as good as before or says that it is
    of no more use, and never gives a wrong answer or hangs.
    """
    answers = tokens(llm)

    def strike(llm: LLM, place: Place) -> bool:
        signal.signal(signal.SIGINT, ring)
        with contextlib.suppress(Alarm, EngineDeadError):
            press_at(lambda: CALLS[name](llm), place)
        assert signal.getsignal(signal.SIGINT) is ring
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            assert tokens(llm) == answers, place
        except EngineDeadError:
            return False
        assert_all_free(llm.engine.block_manager)
        return True

    with pytest.MonkeyPatch.context() as patch:
        if isinstance(llm.engine, OverlappedEngine):
            patch.setattr(serving.llm, "create_engine", OverlappedEngine)
        mine, dead = make_llm(), 0
        places, _ = places_of(lambda: CALLS[name](mine))
        for place in random.Random(1).sample(places, 60):
            if not strike(mine, place):
                mine, dead = make_llm(), dead + 1
    assert 0 < dead < 30


def test_in_other_threads_nothing_is_installed(llm: LLM) -> None:
    seen: list[object] = []
    real = llm.engine.step

    def step() -> Any:
        seen.append(signal.getsignal(signal.SIGINT))
        return real()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.engine, "step", step)
        thread = threading.Thread(target=tokens, args=(llm,))
        thread.start()
        thread.join(60)
    assert seen and set(seen) == {signal.default_int_handler}
    assert_as_new(llm, "threads")


def test_chat_stops_the_answer_and_keeps_what_was_written(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = iter(["What is 2 + 3?", "What is 4 + 5?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(questions))
    shown: list[str] = []
    real = serving.chat.printable

    def printable(text: str) -> str:
        shown.append(text)
        if len(shown) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(text)

    monkeypatch.setattr(serving.chat, "printable", printable)
    serving.chat.chat(llm, SamplingParams(temperature=0, max_tokens=20))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "".join(shown[:3]) + " [已停止 / stopped]" and "4 + 5 = 9" in second
    assert_as_new(llm, "chat")
