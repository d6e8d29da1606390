"""`LLM.stream`、停止字符串（两种循环）和指标：各段接起来就是 `generate` 的文字，提前离开不漏块。

`LLM.stream`, stop strings in both loops, and metrics: the pieces join to the text of `generate`, and leaving early
leaks no block.
"""

from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

import pytest
from engine_helpers import assert_all_free, make_scheduler, make_seq, run_all
from overlap_helpers import assert_drained

import serving.llm
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import RequestMetrics
from serving.chat_template import encode_chat
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=80)
QUESTIONS = ["introduce yourself", "什么是前缀缓存？", "list all prime numbers within 100", "你好😀"]


def make_llm(overlapped: bool = False, **options: Any) -> LLM:
    options = {"device": "cpu", "num_kvcache_blocks": 64, "max_model_len": 512, "strict": True, "seed": 1, **options}
    with pytest.MonkeyPatch.context() as patch:
        if overlapped:
            patch.setattr(serving.llm, "create_engine", OverlappedEngine)
        return LLM(**options)


@pytest.fixture(scope="module", params=["synchronous", "overlapped"])
def llm(request: pytest.FixtureRequest) -> LLM:
    return make_llm(overlapped=request.param == "overlapped")


def ask(llm: LLM, question: str, params: SamplingParams = GREEDY) -> RequestOutput:
    return llm.chat([{"role": "user", "content": question}], params, progress=False)[0]


def stream(llm: LLM, question: str, params: SamplingParams = GREEDY) -> Any:
    return llm.stream_chat([{"role": "user", "content": question}], params)


def assert_idle(llm: LLM) -> None:
    if isinstance(llm.engine, OverlappedEngine):
        assert_drained(llm.engine)
    assert not llm.engine.has_unfinished()
    assert_all_free(llm.engine.block_manager)


# ---- 流式输出 ----
# ---- streaming ----


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_pieces_join_to_the_text_of_generate(llm: LLM, question: str) -> None:
    pieces = list(stream(llm, question))
    assert "".join(pieces) == ask(llm, question).outputs[0].text
    assert len(pieces) > 5 and "" not in pieces
    assert_idle(llm)


@pytest.mark.parametrize("seed", range(8))
def test_hot_samples_full_of_broken_characters(llm: LLM, seed: int) -> None:
    # 温度 2 的输出里有许多凑不成字符的字节。
    # At temperature 2 the output has many bytes that make no character.
    for skip in (True, False):
        params = SamplingParams(temperature=2, seed=seed, max_tokens=60, ignore_eos=True, skip_special_tokens=skip)
        pieces = list(llm.stream([5, 6, 7], params))
        output = llm.generate([[5, 6, 7]], params, progress=False)[0]
        assert "".join(pieces) == output.outputs[0].text
        assert output.outputs[0].text == llm.engine.tokenizer.decode(output.outputs[0].token_ids, skip)
    assert_idle(llm)


def test_without_params_the_model_s_defaults_hold(llm: LLM) -> None:
    assert "".join(llm.stream("hello")) == llm.generate("hello", progress=False)[0].outputs[0].text


@pytest.mark.parametrize(("prompt", "says"), [
    ("", "the prompt is empty"), ([], "the prompt is empty"), ([1] * 512, "the prompt has 512 tokens"),
    ([99999], "token id 99999"), (None, "got None"), (["a"], r"got \['a'\]"),
])  # fmt: skip
def test_a_bad_request_raises_at_the_call(llm: LLM, prompt: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        llm.stream(prompt)
    assert_idle(llm)


def test_a_stream_never_read_adds_nothing(llm: LLM) -> None:
    pieces = llm.stream("hello")
    assert not llm.engine.has_unfinished()
    pieces.close()
    assert_idle(llm)


def test_leaving_early_aborts_and_the_others_go_on(llm: LLM) -> None:
    expected = ask(llm, QUESTIONS[2]).outputs[0]
    params = SamplingParams(temperature=0, max_tokens=80, ignore_eos=True)
    prompt = encode_chat(llm.engine.tokenizer, [{"role": "user", "content": QUESTIONS[2]}])
    llm.engine.add_request(prompt, GREEDY, "other")
    for count, _ in enumerate(stream(llm, QUESTIONS[0], params)):
        if count == 4:
            break
    assert [seq.request_id for seq in llm.engine.scheduler.running] == ["other"]
    other = llm.engine.scheduler.running[0]
    assert other.num_output_tokens >= 4, "it advanced beside the stream"
    pieces = stream(llm, QUESTIONS[0], params)
    with pytest.raises(KeyboardInterrupt):
        for _ in pieces:
            raise KeyboardInterrupt
    pieces.close()
    results: list[RequestOutput] = []
    while not results:
        results = llm.engine.step()
    assert results[0].request_id == "other" and results[0].outputs[0].token_ids == expected.token_ids
    assert_idle(llm)


def test_two_streams_side_by_side(llm: LLM) -> None:
    expected = [ask(llm, question).outputs[0].text for question in QUESTIONS]
    texts = ["" for _ in QUESTIONS]
    for row in zip_longest(*(stream(llm, question) for question in QUESTIONS), fillvalue=""):
        texts = [text + piece for text, piece in zip(texts, row)]
    assert texts == expected
    assert_idle(llm)


def test_a_stream_aborted_from_outside_ends_with_what_it_had(llm: LLM) -> None:
    text = ask(llm, QUESTIONS[0]).outputs[0].text
    pieces = stream(llm, QUESTIONS[0])
    said = next(pieces) + next(pieces)
    llm.engine.abort(llm.engine.scheduler.running[0].request_id)
    said += "".join(pieces)
    assert text.startswith(said) and said != text
    assert_idle(llm)


def test_its_id_belongs_to_the_next_owner_once_it_has_ended(llm: LLM) -> None:
    name = "taken"
    once = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    pieces = llm._stream(llm.engine.requests.prepare("hello", once, name, stream=True))
    # 最后一段已交出，请求已经结束，迭代器却还停在 `yield`。
    # The last piece is out and the request has ended, but the iterator still stands at its `yield`.
    next(pieces)
    late = llm._stream(llm.engine.requests.prepare("hello", GREEDY, name, stream=True))
    llm.engine.add_request([1, 2], GREEDY, name)
    # 名字被别人占了：报错，而不是取消别人。
    # The name is somebody else's by now: an error, and that request is left alone.
    with pytest.raises(ValueError, match="taken"):
        next(late)
    pieces.close()
    assert llm.engine.requests.ids_in_use == {name}
    llm.engine.abort(name)
    while llm.engine.has_unfinished():
        llm.engine.step()
    assert_idle(llm)


# ---- 停止字符串 ----
# ---- stop strings ----


@pytest.mark.parametrize("question", QUESTIONS[:3])
def test_stop_strings_cut_anywhere_in_the_text(llm: LLM, question: str) -> None:
    plain = ask(llm, question).outputs[0]
    # 在文字的许多位置取 1 到 9 个字符，多数跨过 token 的边界。
    # 1 to 9 characters from many places of the text; most lie across token borders.
    for start in range(0, len(plain.text) - 1, max(1, len(plain.text) // 9)):
        stop = plain.text[start : start + 1 + start % 9]
        params = SamplingParams(temperature=0, max_tokens=80, stop=["never there", stop])
        output = ask(llm, question, params)
        completion = output.outputs[0]
        assert completion.text == plain.text[: plain.text.index(stop)]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
        # 留着凑成停止字符串的 token，一个也不多。
        # The tokens that made the stop string stay, and no more than these.
        count = len(completion.token_ids)
        assert completion.token_ids == plain.token_ids[:count]
        decode = llm.engine.tokenizer.decode
        assert stop in decode(completion.token_ids) and stop not in decode(completion.token_ids[:-1])
        assert "".join(stream(llm, question, params)) == completion.text
        assert output.metrics.num_generated_tokens == count
    assert_idle(llm)


def test_without_a_match_nothing_changes(llm: LLM) -> None:
    plain, stopped = ask(llm, QUESTIONS[0]), ask(llm, QUESTIONS[0], SamplingParams(0, max_tokens=80, stop="\u0001"))
    assert plain.outputs == stopped.outputs
    assert plain.outputs[0].finish_reason == "stop" and plain.outputs[0].stop_reason is None


def test_a_stop_string_with_the_last_token_allowed_is_a_stop(llm: LLM) -> None:
    plain = ask(llm, QUESTIONS[0], SamplingParams(temperature=0, max_tokens=5)).outputs[0]
    stop = plain.text[-2:]
    output = ask(llm, QUESTIONS[0], SamplingParams(temperature=0, max_tokens=5, stop=stop)).outputs[0]
    assert (output.finish_reason, output.stop_reason, output.text) == ("stop", stop, plain.text[:-2])


def test_stop_strings_through_preemption_and_a_tiny_budget(llm: LLM) -> None:
    overlapped = isinstance(llm.engine, OverlappedEngine)
    small = make_llm(overlapped, num_kvcache_blocks=12, max_model_len=128, max_num_batched_tokens=9)
    params = SamplingParams(temperature=0, max_tokens=60, stop=["million", "。", "41"])
    conversations = [[{"role": "user", "content": q}] for q in QUESTIONS * 3]
    expected = [ask(llm, q, params).outputs for q in QUESTIONS * 3]
    outputs = small.chat(conversations, params, progress=False)
    assert [o.outputs for o in outputs] == expected
    assert {c.stop_reason for o in expected for c in o} >= {"million", "。", "41"}
    assert small.engine.metrics().num_preemptions > 0
    assert all(output.finished for output in outputs)
    assert_idle(small)


def test_a_stop_string_counts_from_min_tokens_on() -> None:
    # 文字由替身给出：第 2 个和第 4 个 token 都会完成停止字符串；`min_tokens` 为 4 时只有第 4 个算。
    # A stand-in gives the text: tokens 2 and 4 complete a stop string; with a `min_tokens` of 4 only token 4 counts.
    for min_tokens, length in ((0, 2), (2, 2), (3, 4), (4, 4)):
        scheduler, seq = make_scheduler(), make_seq("a", [1, 2, 3], max_tokens=8)
        object.__setattr__(seq.params, "min_tokens", min_tokens)
        calls: list[bool] = []

        def append(token: int, check_stop: bool, calls: list[bool] = calls) -> str | None:
            calls.append(check_stop)
            return "end" if check_stop and len(calls) in (2, 4) else None

        seq.output_text = SimpleNamespace(append=append)  # type: ignore[assignment]
        scheduler.add(seq)
        run_all(scheduler)
        assert (seq.num_output_tokens, seq.finish_reason, seq.stop_reason) == (length, "stop", "end")


# ---- 指标 ----
# ---- metrics ----


def test_a_request_s_metrics_are_none_until_they_are_known() -> None:
    metrics = RequestMetrics(arrival_time=10.0)
    assert (metrics.time_in_queue, metrics.time_to_first_token, metrics.time_per_output_token) == (None, None, None)
    metrics.first_scheduled_time, metrics.first_token_time, metrics.last_token_time = 10.5, 11.0, 11.0
    metrics.num_generated_tokens = 1
    assert (metrics.time_in_queue, metrics.time_to_first_token, metrics.time_per_output_token) == (0.5, 1.0, None)
    metrics.last_token_time, metrics.num_generated_tokens = 14.0, 4
    metrics.later_seconds, metrics.num_later_tokens = 3.0, 3
    assert metrics.time_per_output_token == 1.0


def test_the_metrics_of_a_run(llm: LLM) -> None:
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    # 先问一遍：第二遍才命中，不管之前有没有别的测试问过。
    # Asked once before: the second time hits, whichever tests have run before.
    llm.chat(conversations, GREEDY, progress=False)
    before = llm.engine.metrics()
    outputs = llm.chat(conversations, GREEDY, progress=False)
    after = llm.engine.metrics()
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    # 重叠循环里多算的 token 不计入。
    # The overlapped loop's extra tokens do not count.
    assert after.num_generated_tokens - before.num_generated_tokens == tokens
    for output in outputs:
        m = output.metrics
        assert m.num_generated_tokens == len(output.outputs[0].token_ids) > 2
        assert m.time_in_queue is not None and m.time_to_first_token is not None
        assert 0 <= m.time_in_queue <= m.time_to_first_token
        assert m.last_token_time is not None and m.finished_time is not None and m.time_per_output_token
        assert m.last_token_time <= m.finished_time
    assert (after.num_running, after.num_waiting, after.kv_cache_usage) == (0, 0, 0)
    stats = llm.engine.block_manager.stats
    assert after.prefix_cache_hit_rate == stats.hit / stats.queried > 0
    fresh = make_llm().engine
    assert fresh.metrics().prefix_cache_hit_rate == 0
    fresh.add_request([1] * 17, GREEDY)
    assert (fresh.metrics().num_running, fresh.metrics().num_waiting) == (0, 1)
    fresh.step()
    assert (fresh.metrics().num_running, fresh.metrics().kv_cache_usage) == (1, 2 / 64)
    output = fresh.abort("0")
    assert output and output.finished and output.outputs[0].finish_reason == "abort"
