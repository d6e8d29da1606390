"""同一份输出的文字有三种取法，逐个字符都相等：整段的、一段段的、`decode`（提示词加输出）减去提示词。

对照是 `tokenizers` 库本身，六种分词器，随机的 token 序列；以及停止 id、对话消息、各种上限。

Three ways to an output's text, equal in every character: the whole, the pieces, and `decode` of prompt and output minus
the prompt. The oracle is the library `tokenizers` itself, over six kinds of tokenizer and random token sequences.
Besides: stop ids, chat messages, and the limits.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from conftest import EMBEDDED_MODEL, make_hf_model
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from engine.detokenizer import CONTEXT, REPLACEMENT, Detokenizer, OutputText
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from serving import chat_template
from serving.async_llm import AsyncLLM
from serving.chat_template import encode_chat
from serving.llm import LLM

CORPUS = ["the cat sat on the mat, and the dog ran", "你好世界，前缀缓存", "a  b\tc\n😀👨‍👩‍👧é", "x = y + 1 # ok"] * 20
SPECIALS = [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]
# 标了 `normalized` 的特殊 token：规范化会改写它的名字，库因此认不出它。
# A special token flagged `normalized`: the normalizer rewrites its name, and the library no longer knows it.
SPECIALS += [AddedToken("<|E|>", special=True, normalized=True)]


def byte_level() -> Library:
    """Llama 3、Qwen 的样子。

    As in Llama 3 and Qwen.
    """
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    library.train_from_iterator(CORPUS, trainer)
    return library


def byte_fallback(strip: bool = True) -> Library:
    """Llama 2、TinyLlama、Vicuna 的样子；不去掉开头的空格时是 Gemma 的样子。

    As in Llama 2, TinyLlama and Vicuna; without stripping the first space as in Gemma.
    """
    words = ["▁the", "▁cat", "▁", "▁▁", "at", "s", "t", "a", "x", "=", "你", "好", "▁你", ",", "."]
    # 一个普通的 token，却没有文字。
    # An ordinary token, yet without text.
    words.append("mute")
    pieces = ["<unk>", "<0x00>", *(f"<0x{byte:02X}>" for byte in range(1, 256)), *words]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    library = Library(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.Replace("mute", ""), decoders.ByteFallback()]
    library.decoder = decoders.Sequence([*steps, decoders.Fuse(), *[decoders.Strip(" ", 1, 0)] * strip])
    return library


def metaspace() -> Library:
    """T5 的样子。

    As in T5.
    """
    words = ["<unk>", "▁the", "▁cat", "▁", "▁▁", "at", "s", "▁a", "a▁", "你", "😀", "x", ",", "é"]
    library = Library(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return library


def word_level() -> Library:
    words = ["<unk>", "the", "cat", "sat", "你好", "😀", ",", ".", REPLACEMENT, "a"]
    library = Library(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return library


def word_piece() -> Library:
    words = ["<unk>", "the", "cat", "##s", "##ing", ",", ".", "do", "n't", "你", "##好", "😀"]
    library = Library(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    return library


KINDS: dict[str, Callable[[], Library]] = {
    "byte-level": byte_level, "byte-fallback": byte_fallback, "gemma-like": lambda: byte_fallback(strip=False),
    "metaspace": metaspace, "word-level": word_level, "word-piece": word_piece,
}


@dataclass
class Kind:
    """一种分词器，和它的对照。

    A kind of tokenizer and its oracle.
    """

    name: str
    library: Library
    ours: Tokenizer
    folder: Path

    def __post_init__(self) -> None:
        added = self.library.get_added_tokens_decoder()
        self.special = {i for i, token in added.items() if token.special}
        # 词表之后还有 3 个 id：嵌入表的行数可以更多。
        # 3 more ids behind the vocabulary: the embedding may have more rows.
        self.size = self.library.get_vocab_size() + 3

    def text(self, ids: list[int], skip: bool = True) -> str:
        """库的说法；其中有替换符时，字节串按 `bytes.decode` 读。

        What the library says; where that has a replacement mark, runs of bytes read as `bytes.decode`.
        """
        ids = [i for i in ids if i not in self.special] if skip else ids
        text = self.library.decode(ids, skip_special_tokens=False)
        if REPLACEMENT not in text or self.name not in ("byte-fallback", "gemma-like"):
            return text
        pieces = [piece for piece in map(self.library.id_to_token, ids) if piece is not None]
        text = ""
        for is_bytes, run in groupby(pieces, lambda piece: piece.startswith("<0x")):
            if is_bytes:
                text += bytes(int(piece[3:5], 16) for piece in run).decode(errors="replace")
            else:
                text += "".join(run).replace("mute", "").replace("▁", " ")
        return text.removeprefix(" ") if self.name == "byte-fallback" else text

    def output(self, prompt: list[int], ids: list[int], skip: bool = True) -> str:
        """输出的文字：全部减去提示词；提示词末尾的半个字符若补全了，整个字符归输出。

        The output's text, all minus the prompt's; half a character at the prompt's end, once completed, is its own.
        """
        before, text = self.text(prompt, skip), self.text(prompt + ids, skip)
        if not text.startswith(before):
            assert before.endswith(REPLACEMENT)
            before = before[:-1]
        assert text.startswith(before)
        return text[len(before) :]

    def random_ids(self, rng: random.Random) -> list[int]:
        """真实的文字、任意的 id、字节，夹着特殊 token 和词表之外的 id。

        Real text, any ids, bytes, amid special tokens and ids outside the vocabulary.
        """
        ids: list[int] = []
        while len(ids) < 4 or rng.random() < 0.8:
            if rng.random() < 0.5:
                text = "".join(rng.choices(["the cat", " ", "你", "好", "😀", "\n", "é", "x", "龘", ", "], k=4))
                ids += self.library.encode(text, add_special_tokens=False).ids
            else:
                ids += [rng.randrange(self.size) for _ in range(rng.randrange(1, 5))]
            ids += rng.choices([*self.special, self.size - 1], k=rng.choice([0, 0, 0, 1, 2, 20]))
        return ids


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    found = {}
    for name, make in KINDS.items():
        library, folder = make(), tmp_path_factory.mktemp(name)
        library.add_special_tokens(SPECIALS)
        library.add_tokens([AddedToken("<tool>", special=False)])
        library.save(str(folder / "tokenizer.json"))
        # 没有 `tokenizer_config.json` 也能加载。
        # It loads without a `tokenizer_config.json`.
        found[name] = Kind(name, library, Tokenizer(folder), folder)
    return found


def check(kind: Kind, rng: random.Random) -> None:
    """一个随机的文字：整段、各段、库，以及停止字符串。

    One random text: the whole, the pieces, the library, and stop strings.
    """
    ids, skip = kind.random_ids(rng), rng.random() < 0.8
    cut = rng.randrange(len(ids))
    prompt, ids = ids[:cut], ids[cut:]
    want = kind.output(prompt, ids, skip)
    whole = Detokenizer(kind.ours, skip, prompt)
    assert whole.push(*ids) + whole.rest() == want
    pieces, joined, shown = Detokenizer(kind.ours, skip, prompt), "", [""]
    for count, token in enumerate(ids, 1):
        joined += pieces.push(token)
        shown.append(joined)
        # 交出去的都是最终文字的开头；扣着的最多一个字符。
        # What is given out begins the final text; one character at most is held back.
        assert want.startswith(joined)
        if rng.random() < 0.1:
            now = kind.output(prompt, ids[:count], skip)
            assert joined + pieces.rest() == now and len(now) - len(joined) <= 1
    assert joined + pieces.rest() == want
    check_stops(kind, rng, prompt, ids, skip, shown)


def check_stops(
    kind: Kind, rng: random.Random, prompt: list[int], ids: list[int], skip: bool, shown: list[str]
) -> None:
    """对照：每个 token 之后把整段文字从头查一遍。

    The oracle looks through the whole text anew after every token.
    """
    text, stops = shown[-1], ["zzz"]
    for _ in range(rng.randrange(4)):
        start = rng.randrange(len(text) + 1)
        stops.append(text[start : start + rng.randrange(1, 6)] + rng.choice(["", "", "z"]) or "q")
    first_check = rng.randrange(1, 8)
    output = OutputText(kind.ours, SamplingParams(stop=stops, skip_special_tokens=skip), prompt)
    given = ""
    for count, token in enumerate(ids, 1):
        found = output.append(token, count >= first_check)
        now, before = shown[count], shown[count - 1]
        places = [(now.find(s, max(0, len(before) - len(s) + 1)), order) for order, s in enumerate(stops)]
        at, order = min((place for place in places if place[0] >= 0), default=(-1, 0))
        if at >= 0 and count >= first_check:
            assert found == stops[order] and output.so_far(True) == now[:at] and now[:at].startswith(given)
            return
        assert found is None
        part = output.so_far(False)
        assert part.startswith(given) and now.startswith(part)
        given = part
        # 扣下的恰好是最长的、可能是某个停止字符串开头的尾巴。
        # Held back is just the longest tail that may begin a stop string.
        tails = [length for s in stops for length in range(1, len(s)) if now.endswith(s[:length])]
        assert len(part) == len(now) - max(tails, default=0)
    assert output.so_far(True) == kind.output(prompt, ids, skip)


@pytest.mark.parametrize("name", KINDS)
def test_random_texts_are_the_same_in_all_ways(kinds: dict[str, Kind], name: str) -> None:
    for seed in range(500):
        check(kinds[name], random.Random(seed))


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_20_000_random_texts(kinds: dict[str, Kind], name: str) -> None:
    for seed in range(20_000 // len(KINDS) + 1):
        check(kinds[name], random.Random(f"long {seed}"))


def ids_of(kind: Kind, *pieces: str) -> list[int]:
    return [kind.library.token_to_id(piece) for piece in pieces]


def byte_ids(kind: Kind, data: bytes) -> list[int]:
    """字节的 id，两种词表的写法不同。

    The ids of bytes, which two kinds of vocabulary write differently.
    """
    if kind.name != "byte-level":
        return ids_of(kind, *(f"<0x{byte:02X}>" for byte in data))
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return ids_of(kind, *(bytes_to_unicode()[byte] for byte in data))


def pieces_of(kind: Kind, prompt: list[int], ids: list[int]) -> list[str]:
    pieces = Detokenizer(kind.ours, True, prompt)
    return [*(pieces.push(i) for i in ids), pieces.rest()]


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback", "gemma-like"])
def test_characters_in_pieces(kinds: dict[str, Kind], name: str) -> None:
    kind = kinds[name]
    you, special, unknown = byte_ids(kind, "你".encode()), sorted(kind.special)[0], kind.size - 1
    assert pieces_of(kind, byte_ids(kind, b"x"), [*you, *you]) == ["", "", "你", "", "", "你", ""]
    # 特殊 token 和词表之外的 id 再多，也不打断字符。
    # No number of special tokens or ids outside the vocabulary breaks a character.
    apart = [you[0], *[special] * 30, you[1], *[unknown] * 30, you[2]]
    assert "".join(pieces_of(kind, [], apart)) == "你"
    # 提示词末尾的半个字符：补全了归输出，没补全的归提示词。
    # Half a character at the prompt's end: completed it is the output's, otherwise the prompt's.
    x = byte_ids(kind, b"x")
    for cut in (1, 2):
        assert pieces_of(kind, [*x, *you[:cut]], [*you[cut:], *x]) == [""] * (2 - cut) + ["你", "x", ""]
        assert pieces_of(kind, [*x, *you[:cut]], x) == ["x", ""]
    # 一个坏字节只毁掉它自己。
    # One bad byte spoils itself alone.
    spoilt = byte_ids(kind, "你".encode() + b"\xff" + "好".encode())
    assert kind.ours.decode(spoilt) == "".join(pieces_of(kind, [], spoilt)) == f"你{REPLACEMENT}好"


def test_spaces_of_a_llama_2_tokenizer(kinds: dict[str, Kind]) -> None:
    kind = kinds["byte-fallback"]
    the, end, cat, e, mute = ids_of(kind, "▁the", "</s>", "▁cat", "<|E|>", "mute")
    # 开头的空格；没有文字的 token 不当上文；全文真正的开头才去掉空格。
    # The space at the start; a token without text is no context; only at the very start of all is the space dropped.
    assert pieces_of(kind, [the], [cat]) == [" cat", ""]
    assert pieces_of(kind, [the], [*[end, e, kind.size - 1] * 10, cat])[-2:] == [" cat", ""]
    assert pieces_of(kind, [the], [*[mute] * 50, cat])[-2:] == [" cat", ""]
    assert pieces_of(kind, [end], [the, end, cat]) == ["the", "", " cat", ""]
    # 库会漏出标了 `normalized` 的特殊 token。
    # The library lets the special token flagged `normalized` slip through.
    assert "<|E|>" in kind.library.decode([the, e, cat])
    assert kind.ours.decode([the, e, cat]) == "the cat"
    assert "<|E|>" in kind.ours.decode([the, e, cat], skip_special_tokens=False)


@pytest.mark.parametrize("name", KINDS)
def test_a_single_token_keeps_its_space(kinds: dict[str, Kind], name: str) -> None:
    kind = kinds[name]
    first = kind.library.encode("x" if name in ("byte-level", "byte-fallback", "gemma-like") else "the").ids[:1]
    for token in range(kind.size):
        want = kind.text([*first, token], skip=False)[len(kind.text(first, skip=False)) :]
        assert kind.ours.decode_token(token) == want
    assert kind.ours.decode_token(kind.size) == ""


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback"])
def test_a_token_costs_the_same_at_the_end(kinds: dict[str, Kind], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, lengths, real = kinds[name], list[int](), Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, i, **k: lengths.append(len(i)) or real(self, i, **k))
    for cycle in (byte_ids(kind, b"\x80"), byte_ids(kind, b"\xe4"), [*byte_ids(kind, b"\xe4"), 0, *[300] * 499]):
        lengths.clear()
        pieces_of(kind, [], (cycle * 2000)[:2000])
        assert max(lengths) <= 2 * CONTEXT and sum(lengths) < 20 * 2000


def test_many_long_stop_strings_cost_little(kinds: dict[str, Kind]) -> None:
    # 最坏的情形：每个停止字符串都几乎处处相符，只差最后一个字符。
    # The worst case: each stop string fits nearly everywhere, but for its last character.
    kind = kinds["byte-level"]
    stops = ["a" * (1024 - i - 1) + "b" * (i > 0) + "c" for i in range(64)]
    output, start = OutputText(kind.ours, SamplingParams(stop=stops)), time.process_time()
    for token in byte_ids(kind, b"a") * 3000:
        assert output.append(token, True) is None
        output.so_far(False)
    assert time.process_time() - start < 10
    assert output.append(*byte_ids(kind, b"c"), True) == stops[0]
    assert output.so_far(True) == "a" * (3000 - 1023)


# ---- 引擎 ----
# ---- the engine ----


def save_model(folder: Path, vocab_size: int, **config: Any) -> None:
    overrides = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None, **config}
    make_hf_model(**overrides).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback", "metaspace", "word-level"])
def test_generate_stream_async_and_stops_say_the_same(kinds: dict[str, Kind], name: str, one_thread: None) -> None:
    kind = kinds[name]
    save_model(kind.folder, kind.size)
    rng = random.Random(name)
    prompts = [kind.random_ids(rng)[:30] for _ in range(12)]
    prompts += [[*prompts[0], *byte_ids(kind, b"\xe4")]] if name.startswith("byte") else []
    llm = LLM(kind.folder, device="cpu", num_kvcache_blocks=256, max_model_len=128)

    def params(seed: int, **more: Any) -> SamplingParams:
        return SamplingParams(seed=seed, max_tokens=40, min_tokens=40, **more)

    each = [params(seed) for seed in range(len(prompts))]
    for prompt, one, output in zip(prompts, each, llm.generate(prompts, each, progress=False)):
        want = kind.output(prompt, output.outputs[0].token_ids)
        assert output.outputs[0].text == want == "".join(llm.stream(prompt, one))
    several = [params(seed, n=3) for seed in range(len(prompts))]
    stopped = [params(seed, n=3, stop=["never said", "nor this"]) for seed in range(len(prompts))]
    for more in (several, stopped):
        for prompt, output in zip(prompts, llm.generate(prompts, more, progress=False)):
            for completion in output.outputs:
                assert completion.text == kind.output(prompt, completion.token_ids)

    async def serve() -> None:
        async with AsyncLLM(kind.folder, device="cpu", num_kvcache_blocks=256, max_model_len=128) as server:
            for prompt, one in zip(prompts[:4], several):
                last = [""] * 3
                async for output in server.generate(prompt, one):
                    now = [completion.text for completion in output.outputs]
                    assert all(late.startswith(early) for late, early in zip(now, last))
                    last = now
                assert last == [kind.output(prompt, completion.token_ids) for completion in output.outputs]

    asyncio.run(serve())


def test_stop_ids_come_from_the_right_files(
    kinds: dict[str, Kind], tmp_path: Path, caplog: pytest.LogCaptureFixture, one_thread: None
) -> None:
    kind = kinds["byte-fallback"]
    (end,) = ids_of(kind, "</s>")
    save_model(tmp_path, kind.size, eos_token_id=7)
    (tmp_path / "tokenizer.json").write_bytes((kind.folder / "tokenizer.json").read_bytes())

    def ids(generation: dict[str, Any] | None, tokenizer: dict[str, Any] | None) -> frozenset[int]:
        for name, content in (("generation_config.json", generation), ("tokenizer_config.json", tokenizer)):
            (tmp_path / name).unlink(missing_ok=True)
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return LLM(tmp_path, device="cpu", num_kvcache_blocks=16).engine.requests.eos_token_ids

    assert ids(None, None) == {7}
    assert ids({"temperature": 0.5}, {"eos_token": "</s>"}) == {7, end}
    # `generation_config.json` 写了就以它为准，`config.json` 里过时的普通 token 不再停。
    # Where `generation_config.json` has them it wins, and a stale ordinary token in `config.json` no longer stops.
    assert ids({"eos_token_id": [8, 9]}, {"eos_token": "</s>"}) == {8, 9, end}
    caplog.clear()
    assert ids({"eos_token_id": [8, kind.size, kind.size + 5]}, None) == {8}
    said = [record.getMessage() for record in caplog.records if "stop ids" in record.getMessage()]
    assert len(said) == 1 and str([kind.size, kind.size + 5]) in said[0]


def test_limits_of_text_and_params(kinds: dict[str, Kind]) -> None:
    SamplingParams(n=1024, stop=["x" * 1024] * 64)
    for wrong in (dict(n=1025), dict(stop="x" * 1025), dict(stop=["x"] * 65)):
        with pytest.raises(ValueError, match=r"^(n=1025|stop=\W+x).*use .* 1024"):
            SamplingParams(**wrong)
    llm = LLM(EMBEDDED_MODEL, device="cpu", num_kvcache_blocks=16, max_model_len=128)
    seen: list[str] = []
    encode = llm.engine.tokenizer.hf_tokenizer.encode
    llm.engine.tokenizer.hf_tokenizer.encode = lambda text, **k: seen.append(text) or encode(text, **k)
    text = "x" * (64 * 128)
    with pytest.raises(ValueError, match=r"^the prompt has \d+ tokens"):
        llm.generate(text, progress=False)
    assert seen == [text]
    with pytest.raises(ValueError, match=r"^the prompt has 8193 characters: shorten it to at most 8192"):
        llm.generate(text + "x", progress=False)
    with pytest.raises(ValueError, match="8192"):
        llm.chat([{"role": "user", "content": text}], progress=False)
    assert len(seen) == 1


# ---- 对话 ----
# ---- chats ----

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}"
    "{% endif %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
PARTS = TEMPLATE.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")


def with_template(template: str) -> Tokenizer:
    tokenizer = Tokenizer(EMBEDDED_MODEL)
    tokenizer.hf_tokenizer.chat_template = template
    return tokenizer


def rendered(tokenizer: Tokenizer, messages: list[Any], **options: Any) -> str:
    return tokenizer.decode(encode_chat(tokenizer, messages, **options), skip_special_tokens=False)


def test_messages_with_tool_calls_and_parts() -> None:
    tokenizer, hi = with_template(TEMPLATE), {"role": "user", "content": "hi"}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    for message in (call, {**call, "content": None}):
        said = rendered(tokenizer, [hi, message, {"role": "tool", "content": "18"}])
        assert '"name": "f"' in said and "None" not in said and said.endswith("[tool]18<|eot_id|>[assistant]")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert rendered(tokenizer, [{"role": "user", "content": parts}]) == "[user]one\ntwo<|eot_id|>[assistant]"
    assert rendered(with_template(PARTS), [{"role": "user", "content": parts}]) == "[user]onetwo<|eot_id|>[assistant]"
    with pytest.raises(ValueError, match="tool_calls only where the template"):
        encode_chat(with_template("{{ messages[-1].content }}"), [hi, {**call, "content": "calling"}])
    for wrong in (
        {"role": "user"}, {"role": "user", "content": None}, {"content": "x"}, "x", {"role": "user", "content": 7},
        {"role": "user", "content": ["x"]}, {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
        {"role": "user", "content": [{"type": "text"}]}, {"role": "assistant", "content": 5, "tool_calls": [1]},
    ):
        with pytest.raises(ValueError, match="role and content"):
            encode_chat(tokenizer, [wrong])  # type: ignore[list-item]


def test_an_assistants_message_can_be_continued() -> None:
    tokenizer = with_template(TEMPLATE)
    messages = [{"role": "user", "content": "json"}, {"role": "assistant", "content": "{"}]
    open_end: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert rendered(tokenizer, messages, add_generation_prompt=False) == "[user]json<|eot_id|>[assistant]{<|eot_id|>"
    assert rendered(tokenizer, messages, **open_end) == "[user]json<|eot_id|>[assistant]{"
    with pytest.raises(ValueError, match="add_generation_prompt are not compatible"):
        encode_chat(tokenizer, messages, continue_final_message=True)
    with pytest.raises(ValueError, match="continue_final_message"):
        encode_chat(tokenizer, messages, continue_final_message="yes")  # type: ignore[arg-type]
    llm = LLM(EMBEDDED_MODEL, device="cpu", num_kvcache_blocks=16)
    params = SamplingParams(temperature=0, max_tokens=4)
    (output,) = llm.chat(messages, params, **open_end, progress=False)
    assert output.prompt_token_ids == encode_chat(llm.engine.tokenizer, messages, **open_end)
    assert "".join(llm.stream_chat(messages, params, **open_end)) == output.outputs[0].text


@pytest.mark.parametrize(
    "name", ["chat_template", "tokenize", "messages", "conversation", "add_generation_prompt", "return_dict", "padding"]
)
def test_reserved_variables_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"chat_template_kwargs.*variables"):
        encode_chat(with_template(TEMPLATE), [{"role": "user", "content": "hi"}], {name: "x"})


def test_variables_of_the_template_pass() -> None:
    tokenizer = with_template("{{ mood }}{{ tools | tojson if tools }}{{ messages[0].content }}")
    said = rendered(tokenizer, [{"role": "user", "content": "hi"}], template_kwargs={"mood": "x", "tools": [{"a": 1}]})
    assert said == 'x[{"a": 1}]hi'


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        LOOP.replace("BODY", "text"),
        LOOP.replace("BODY", ""),
        "{% macro f() %}" + LOOP.replace("BODY", "x") + "{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    ],
)
def test_a_template_without_end_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)
    tokenizer = with_template(template)
    tokenizer.max_chars = 10_000
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"over 10000 characters|takes over 0\.5 seconds"):
        encode_chat(tokenizer, [{"role": "user", "content": "hi"}])
    assert time.monotonic() - start < 20
