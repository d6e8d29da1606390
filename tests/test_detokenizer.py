"""增量还原：各段接起来等于整段 `decode`，不切开字符，代价与长度成正比；停止字符串的查找与截断。

Incremental decoding: the pieces join to the whole `decode`, split no character and cost time in proportion to the
length; finding and cutting stop strings.
"""

from collections.abc import Callable
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from conftest import EMBEDDED_MODEL
from hypothesis import given, settings

from engine.detokenizer import CONTEXT, REPLACEMENT, Detokenizer, OutputText
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer

TOKENIZER = Tokenizer(EMBEDDED_MODEL)
TEXTS = [
    "The capital of France is Paris.",
    "前缀缓存复用先前请求的 KV 块，𠮷野家。",
    "😀👨‍👩‍👧‍👦🇨🇳 é e\u0301 ﷽ \u200b\t\n  x",
    f"a real {REPLACEMENT}{REPLACEMENT} inside, and at the end {REPLACEMENT}",
    "",
]


def byte_ids() -> list[int]:
    """内置分词器里每个字节的 id。

    The embedded tokenizer's id of each byte.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    names = bytes_to_unicode()
    return [TOKENIZER.hf_tokenizer.convert_tokens_to_ids(names[byte]) for byte in range(256)]


BYTES = byte_ids()


def pieces_of(ids: list[int], skip: bool = True) -> list[str]:
    """各段，最后一段是结束时交出的。

    The pieces; the last is what the end releases.
    """
    detokenizer = Detokenizer(TOKENIZER, skip)
    return [*[detokenizer.push(i) for i in ids], detokenizer.rest()]


def check(ids: list[int], skip: bool = True) -> None:
    detokenizer, joined = Detokenizer(TOKENIZER, skip), ""
    whole = TOKENIZER.decode(ids, skip)
    for count, token in enumerate(ids, 1):
        joined += detokenizer.push(token)
        # 交出去的永远是最终文字的开头；任何时候停下，接上 `rest` 都等于那一段的 `decode`。
        # What is given out is always a beginning of the final text; stopping anywhere, `rest` completes it.
        assert whole.startswith(joined)
        if count % 7 == 0:
            assert joined + detokenizer.rest() == TOKENIZER.decode(ids[:count], skip)
    assert joined + detokenizer.rest() == whole


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_known_texts(text: str) -> None:
    for ids in (TOKENIZER.encode(text, False), [BYTES[byte] for byte in text.encode()]):
        check(ids)
        assert "".join(pieces_of(ids)) == text
        if REPLACEMENT not in text:
            assert REPLACEMENT not in "".join(pieces_of(ids))


def test_a_character_comes_whole_when_its_last_byte_does() -> None:
    assert pieces_of([BYTES[byte] for byte in "a你😀!".encode()]) == ["a", "", "", "你", "", "", "", "😀", "!", ""]
    # 特殊 token 夹在中间，再多也不打断字符。
    # Special tokens in the middle do not break a character, however many there are.
    check([BYTES[0xE4], *[2048] * 30, BYTES[0xBD], *[2049] * 30, BYTES[0xA0]])
    # 没有完成的字符在结束时按 `decode` 的写法交出。
    # A character never completed is given out at the end, as `decode` writes it.
    assert pieces_of([BYTES[0x61], BYTES[0xE4], BYTES[0xBD]]) == ["a", "", "", REPLACEMENT]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_random_unicode(text: str) -> None:
    check(TOKENIZER.encode(text, False))
    check([BYTES[byte] for byte in text.encode()])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2070), max_size=60), st.booleans())
def test_random_ids_with_special_and_unknown_ones(ids: list[int], skip: bool) -> None:
    check(ids, skip)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([0x80, 0xBF, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x98, 0xED, 0x61, 0xC3, -1]), max_size=60))
def test_random_bytes_that_rarely_make_characters(data: list[int]) -> None:
    # -1 是一个没有文字的特殊 token，夹在字节之间。
    # -1 is a special token without text, amid the bytes.
    check([BYTES[byte] if byte >= 0 else 2048 for byte in data])


@pytest.mark.parametrize(
    "cycle", [[0x80], [0xE4], [0x61, 0x80], [0xE4, 0xBD], [0xF0, 0x9F, 0x98], [0x80, -1, -1, -1], [0xE4, *[-1] * 499]]
)
def test_garbage_costs_no_more_than_text(monkeypatch: pytest.MonkeyPatch, cycle: list[int]) -> None:
    ids = [BYTES[byte] if byte >= 0 else 2048 for byte in cycle * (2000 // len(cycle))]
    lengths: list[int] = []
    real = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, i, **k: lengths.append(len(i)) or real(self, i, **k))
    joined = "".join(pieces_of(ids))
    assert joined == real(TOKENIZER, ids)
    assert max(lengths) <= 3 * CONTEXT and sum(lengths) < 40 * len(ids)


# ---- 停止字符串 ----
# ---- stop strings ----


def run(ids: list[int], stop: str | list[str] | None, first_check: int = 1) -> tuple[str, str | None, int]:
    """喂到停为止：（文字，停止字符串，用掉几个 token）；途中交出的必须是最终文字的开头。

    Feed until it stops: (text, stop string, tokens used); what is shown on the way must begin the final text.
    """
    output, shown, found, used = OutputText(TOKENIZER, SamplingParams(stop=stop)), [""], None, 0
    for used, token in enumerate(ids, 1):
        found = output.append(token, used >= first_check)
        if found is not None:
            break
        shown.append(output.so_far(False))
    text = output.so_far(True)
    assert all(text.startswith(part) for part in shown), (text, shown)
    assert all(late.startswith(early) for early, late in pairwise(shown))
    return text, found, used


def letters(text: str) -> list[int]:
    return [BYTES[byte] for byte in text.encode()]


@pytest.mark.parametrize("encode", [letters, lambda text: TOKENIZER.encode(text, False)])
@pytest.mark.parametrize(
    ("text", "stop", "expected", "found"),
    [
        ("one END two", "END", "one ", "END"),
        ("one END two", ["two", "END"], "one ", "END"),
        ("一个句号。之后", "。", "一个句号", "。"),
        ("笑😀了", ["😀"], "笑", "😀"),
        ("no stop", ["xyz"], "no stop", None),
        ("ends with EN", "END", "ends with EN", None),
        ("ababac", "abac", "ab", "abac"),
        ("END", "END", "", "END"),
    ],
)
def test_stop_strings_are_found_and_cut(
    encode: Callable[[str], list[int]], text: str, stop: str | list[str], expected: str, found: str | None
) -> None:
    assert run(encode(text), stop)[:2] == (expected, found)


def test_the_earliest_match_wins_and_then_the_order_of_the_list() -> None:
    # 一个 token 里同时出现几个：用能产生整词的 id。
    # Several within one token: use ids that give whole words.
    token = next(i for i in range(2048) if len(TOKENIZER.decode([i]).strip()) >= 6)
    word = TOKENIZER.decode([token])
    late, early = word[3:5], word[1:3]
    assert run([token], [late, early]) == (word[:1], early, 1)
    assert run([token], [word[1:4], early]) == (word[:1], word[1:4], 1)
    assert run([token], [early, word[1:4]]) == (word[:1], early, 1)


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    output = OutputText(TOKENIZER, SamplingParams(stop=["###", "#!end"]))
    seen = []
    for token in letters("a##b#!e."):
        assert output.append(token, True) is None
        seen.append(output.so_far(False))
    assert seen == ["a", "a", "a", "a##b", "a##b", "a##b", "a##b", "a##b#!e."]
    assert output.append(letters("#")[0], True) is None
    assert output.so_far(False) == "a##b#!e." and output.so_far(True) == "a##b#!e.#"


def test_before_min_tokens_a_stop_string_does_not_count() -> None:
    # 第 3 个 token 完成的 "abc" 不算，第 6 个完成的算。
    # "abc" completed by token 3 does not count, by token 6 it does.
    assert run(letters("abcabc"), "abc", first_check=4) == ("abc", "abc", 6)
    assert run(letters("abcabc"), "abc", first_check=3) == ("", "abc", 3)


@settings(max_examples=400, deadline=None)
@given(
    st.text("ab你😀", max_size=30),
    st.lists(st.text("ab你😀", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(1, 12),
)
def test_any_text_and_any_stop_strings(text: str, stop: list[str], first_check: int) -> None:
    said, found, used = run(letters(text), stop, first_check)
    # 对照：逐个 token 从头查一遍整段文字。
    # The oracle: look through the whole text anew after every token.
    previous = ""
    for count in range(1, len(text.encode()) + 1):
        now = text.encode()[:count].decode(errors="ignore")
        places = [(now.find(s, max(0, len(previous) - len(s) + 1)), order) for order, s in enumerate(stop)]
        places = sorted(place for place in places if place[0] >= 0)
        if places and count >= first_check:
            assert (said, found, used) == (now[: places[0][0]], stop[places[0][1]], count)
            return
        previous = now
    assert (said, found) == (text, None)


def test_special_tokens_are_shown_only_if_wanted() -> None:
    ids = [*letters("a"), 2049, *letters("b")]
    assert "".join(pieces_of(ids, skip=True)) == "ab"
    assert "".join(pieces_of(ids, skip=False)) == TOKENIZER.decode(ids, False) != "ab"


def test_the_core_pays_nothing_without_stop_and_stream() -> None:
    from serving.llm import LLM

    engine = LLM(num_kvcache_blocks=16, device="cpu").engine
    assert engine.requests.prepare("hi").output_text is None
    assert engine.requests.prepare("hi", SamplingParams(stop=[])).output_text is None
    assert engine.requests.prepare("hi", SamplingParams(stop="x")).output_text is not None
    assert engine.requests.prepare("hi", stream=True).output_text is not None
