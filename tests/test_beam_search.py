"""束搜索：在内置模型上与 `transformers` 的 `generate(num_beams=k)` 相同，在小模型上与穷举相同。

Beam search: on the embedded model it equals `generate(num_beams=k)` of `transformers`, on a small case an exhaustive
search.
"""

import math
from typing import Any

import pytest
import torch
from conftest import EMBEDDED_MODEL
from engine_helpers import assert_all_free

from engine.sampling_params import SamplingParams
from serving.beam_search import BeamSearchParams, BeamSearchSequence, beam_score
from serving.chat_template import encode_chat
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTIONS = ["What is a KV cache?", "法国的首都是哪里？", "Tell me a story about", "34 + 57 = ?"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", dtype="float32", strict=True, num_kvcache_blocks=256, max_model_len=400)


@pytest.fixture(scope="module")
def prompts(llm: LLM) -> list[list[int]]:
    # 对话，和不套模板的开头：后者的分布平坦得多，各条候选差得近。
    # Conversations, and beginnings without a template, whose distributions are much flatter and candidates closer.
    chats = [encode_chat(llm.engine.tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS]
    return chats + [llm.engine.tokenizer.encode(text) for text in ("The", "A block", "缓存", "1, 2, 3")]


@pytest.fixture(scope="module")
def oracle() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()


def of_transformers(oracle: Any, prompt: list[int], width: int, max_tokens: int, eos: list[int] | None) -> Any:
    """`transformers` 的候选（只含输出）和总对数概率，最好的在前。

    The candidates of `transformers` (output only) with their total log-probabilities, the best first.
    """
    oracle.generation_config.eos_token_id = eos
    result = oracle.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=max_tokens,
        length_penalty=0.0,
        early_stopping="never",
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    sequences = []
    for row in result.sequences[:, len(prompt) :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if eos and token in eos), len(row))
        sequences.append(row[:end])
    return sequences, result.sequences_scores.tolist()


@pytest.mark.parametrize("width", [2, 3, 5])
def test_equal_to_transformers_without_end_tokens(
    llm: LLM, oracle: Any, prompts: list[list[int]], width: int
) -> None:
    # 不理会结束符时，两边的定义完全相同：候选、次序、分数都要相等。
    # With end tokens ignored both definitions are the same: candidates, order and scores have to be equal.
    params = BeamSearchParams(beam_width=width, max_tokens=10, ignore_eos=True)
    outputs = llm.beam_search(prompts, params)
    assert_all_free(llm.engine.block_manager)
    for prompt, output in zip(prompts, outputs, strict=True):
        expected, scores = of_transformers(oracle, prompt, width, 10, None)
        assert len(output.sequences) == width
        for beam, tokens, score in zip(output.sequences, expected, scores):
            assert beam.cum_logprob == pytest.approx(score, abs=2e-3)
            assert beam.finish_reason == "length" and beam.stop_reason is None
            assert beam.tokens[: len(prompt)] == prompt and beam.tokens[len(prompt) :] == tokens
            assert beam.text == llm.engine.tokenizer.decode(beam.tokens)


def test_equal_to_transformers_with_end_tokens(llm: LLM, oracle: Any, prompts: list[list[int]]) -> None:
    # `length_penalty` 为 0 时分数就是总和。两边只差在：遇到结束符的候选，这里一律收下，`transformers` 只收名次
    # 在束宽之内的；所以那边有而这里没有的，只能是被更好的挤掉了；两边都有的，分数相等。
    # With a `length_penalty` of 0 the score is the sum. The two differ only in this: every candidate that meets an end
    # token is kept here, `transformers` keep those ranked within the beam width; so what only they have was displaced
    # by better ones, and what both have has equal scores.
    eos = sorted(llm.engine.requests.eos_token_ids)
    params = BeamSearchParams(beam_width=3, max_tokens=40, length_penalty=0.0)
    same = 0
    for prompt, output in zip(prompts, llm.beam_search(prompts, params), strict=True):
        expected, scores = of_transformers(oracle, prompt, 3, 40, eos)
        by_tokens = {tuple(beam.tokens[len(prompt) :]): beam for beam in output.sequences}
        for tokens, score in zip(expected, scores):
            if (beam := by_tokens.get(tuple(tokens))) is None:
                assert output.sequences[-1].cum_logprob > score - 2e-3
            else:
                same += 1
                assert beam.cum_logprob == pytest.approx(score, abs=2e-3)
                assert (beam.finish_reason == "stop") == (tokens[-1] in eos)
                assert beam.stop_reason == (tokens[-1] if tokens[-1] in eos else None)
    assert same >= len(prompts)


def test_a_width_of_1_is_greedy(llm: LLM, prompts: list[list[int]]) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    greedy = llm.generate(prompts, params, progress=False)
    found = llm.beam_search(prompts, BeamSearchParams(beam_width=1, max_tokens=12, ignore_eos=True))
    for prompt, expected, output in zip(prompts, greedy, found):
        (beam,) = output.sequences
        assert beam.tokens == prompt + expected.outputs[0].token_ids
        assert beam.cum_logprob == pytest.approx(expected.outputs[0].cumulative_logprob, abs=1e-3)
        assert len(beam.logprobs) == 12 and all(len(report) == 2 for report in beam.logprobs)


def test_the_prefix_cache_carries_the_search(llm: LLM) -> None:
    prompt = llm.engine.tokenizer.encode("A key-value cache " * 20)
    before = llm.engine.num_computed_tokens
    llm.beam_search([prompt], BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True))
    # 第 1 步算整个提示词；之后 7 步，每条只算不满一块的尾巴，至多 16 个加已输出的。
    # Step 1 computes the prompt; in 7 more each candidate computes its tail, at most 16 and what it has put out.
    assert llm.engine.num_computed_tokens - before <= len(prompt) + 7 * 4 * (16 + 8)


def test_texts_of_strings_and_max_model_len(llm: LLM) -> None:
    one, two = llm.beam_search(["The", "缓存"], BeamSearchParams(beam_width=2, max_tokens=4, ignore_eos=True))
    assert all(beam.text is not None and beam.text.startswith("The") for beam in one.sequences)
    assert all(beam.text is not None and beam.text.startswith("缓存") for beam in two.sequences)
    # 到了长度上限就停，不报错。
    # It stops at the length limit without an error.
    (long,) = llm.beam_search([[5] * 398], BeamSearchParams(beam_width=2, max_tokens=9, ignore_eos=True))
    assert [len(beam.tokens) for beam in long.sequences] == [400, 400]
    assert llm.beam_search([], BeamSearchParams(2, 2)) == []


def test_length_penalty_ranks_long_and_short() -> None:
    short = BeamSearchSequence([1, 2, 3, 9], cum_logprob=-2.0, finish_reason="stop")
    long = BeamSearchSequence([1, 2, 3, 4, 5, 6], cum_logprob=-3.0, finish_reason="length")
    # 结束符不算长度：3 和 6。
    # An end token does not count: 3 and 6.
    assert beam_score(short, 0.0) == -2.0 and beam_score(long, 0.0) == -3.0
    assert beam_score(short, 1.0) == -2 / 3 and beam_score(long, 1.0) == -0.5
    assert beam_score(long, 2.0) == -3 / 36


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("beam_width", value) for value in (0, -1, 11, 1.5, None, True)],
        *[("max_tokens", value) for value in (0, -1, 2.0, None, True)],
        *[("temperature", value) for value in (0.5, -1, math.nan, None, False)],
        *[("length_penalty", value) for value in (math.nan, math.inf, None, "1", 1000)],
        ("ignore_eos", 1),
    ],
)
def test_a_bad_value_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        BeamSearchParams(**{"beam_width": 2, "max_tokens": 2, name: value})


def test_a_bad_prompt_adds_nothing(llm: LLM) -> None:
    for bad, message in (([], "prompt is empty"), ([1] * 400, "max_model_len=400"), ([10**6], "not in the vocabulary")):
        with pytest.raises(ValueError, match=message):
            llm.beam_search([[1, 2], bad], BeamSearchParams(2, 2))
    with pytest.raises(ValueError, match="prompts must be"):
        llm.beam_search({"prompt": "x"}, BeamSearchParams(2, 2))  # type: ignore[arg-type]
    assert not llm.engine.has_unfinished()


def test_scores_of_nan_name_the_prompt(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = llm.engine.sampler.draw

    def broken(samples: list[tuple[Any, int]], logits: torch.Tensor) -> Any:
        # 第 1 个提示词先到 `max_model_len` 而停：编号还是照调用者的列表。
        # Prompt 1 stops at `max_model_len` first: the number is still that of the caller's list.
        rows = [row for row, (seq, _) in enumerate(samples) if len(seq.token_ids) > 2 and seq.token_ids[:2] == [9, 9]]
        return draw(samples, logits.index_fill(0, torch.tensor(rows, dtype=torch.int64), float("nan")))

    monkeypatch.setattr(llm.engine.sampler, "draw", broken)
    params = BeamSearchParams(2, 4, ignore_eos=True)
    with pytest.raises(ValueError, match=r"^prompt 3 of 3: scores became NaN or infinite \(try dtype float32\)"):
        llm.beam_search([[5] * 399, [7, 8], [9, 9]], params)
    with pytest.raises(ValueError, match=r"^scores became NaN"):
        llm.beam_search([[9, 9]], params)
    assert not llm.engine.has_unfinished()
    assert_all_free(llm.engine.block_manager)
