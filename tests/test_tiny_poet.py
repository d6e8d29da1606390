"""诗人的语料、评测与训练：筛选、去重、分割的规则，三元模型是概率，训练出的目录本引擎能读。

The poet's corpus, evaluation and training: the rules of filtering, duplicates and the split; the trigram model is a
distribution; this engine reads the folders that training makes.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from engine.sampling_params import SamplingParams
from models.fields import ModelLoadError
from serving.llm import LLM
from tools import eval_tiny_poet, make_poet_corpus, train_tiny_poet, training
from tools.make_poet_corpus import Document, Simplifier

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"tiny-poet": train_tiny_poet.SHAPE, "tiny-poet-draft": train_tiny_poet.DRAFT_SHAPE}
TABLE = Simplifier({"乾坤": "乾坤"}, {"乾": "干", "國": "国", "後": "后"})
LINES = [f"{a}山{b}水{c}，{b}月{c}風{a}。" for a in "春夏秋冬" for b in "東西南北" for c in "一二三四五"]


def poem(*lines: str, **more: Any) -> dict[str, Any]:
    """包里的一首诗。

    One poem of the package.
    """
    return {"title": "春曉", "author": "孟浩然", "paragraphs": list(lines)} | more


# ---- 语料 ----
# ---- the corpus ----


def test_a_poem_becomes_a_document() -> None:
    """一句一行，题目与作者在前，三百首记为名篇。

    One sentence a line, title and author in the head, poems of the collections of 300 are famous.
    """
    lines = ("春眠不覺曉，處處聞啼鳥。", "夜來風雨聲，花落知多少。")
    expected = Document("shi", "《春曉》孟浩然", "\n".join(lines), False)
    assert make_poet_corpus.make_poem(poem(*lines), "shi") == expected
    famous = make_poet_corpus.make_poem(poem(*lines, title="春曉 其一", tags=["唐诗三百首"]), "shi")
    assert famous == Document("shi", "", "\n".join(lines), True)


@pytest.mark.parametrize("line", [
    "春眠不覺□，處處聞啼鳥。", "春眠不覺曉（一作曙），處處聞啼鳥。", "春眠不覺\U0002a6d6，處處聞啼鳥。",
    "春眠不覺曉，處處聞啼鳥", "春眠不覺x，處處聞啼鳥。", "春眠不覺屎，處處聞啼鳥。", "春" * 50 + "。",
])
def test_a_bad_line_drops_the_poem(line: str) -> None:
    """缺字、校注、四字节的字、没有句号、字母、粗话、太长的一句：整首都不要。

    Lost characters, notes, characters of four bytes, no full stop, letters, coarse words, too long a line: no poem.
    """
    assert make_poet_corpus.make_poem(poem("夜來風雨聲，花落知多少。", line), "shi") is None


def test_length_title_and_metre() -> None:
    """太短、太长、残句都不要；只有通篇五言或七言算格律整齐。

    Too short, too long and fragments are dropped; only five or seven characters throughout is regular.
    """
    good = "夜來風雨聲，花落知多少。"
    assert make_poet_corpus.make_poem(poem(good), "shi") is None
    assert make_poet_corpus.make_poem(poem(*[good] * 60), "shi") is None
    assert make_poet_corpus.make_poem(poem(good, good, title="句 其一"), "shi") is None
    assert make_poet_corpus.is_regular(good) and not make_poet_corpus.is_regular(good + "\n明月。")


def test_simplify_takes_words_before_characters() -> None:
    """“乾坤”整词不变，单独的“乾”变成“干”。

    The word “乾坤” stays, “乾” alone becomes “干”.
    """
    assert TABLE.simplify("乾坤國，乾後。") == "乾坤国，干后。"


def test_duplicates_and_the_split() -> None:
    """异体的重复只留一首；留出的诗与训练的诗至多有一个分句相同；名篇都在训练里。

    Of duplicates in other characters one is kept; a held-out poem shares at most one clause with the training part;
    what is famous is in training.
    """
    rng = random.Random(0)
    fresh = ["".join(rng.sample("金木水火土日月山川國後乾", 7)) for _ in range(12000)]
    common = [clause for line in LINES for clause in make_poet_corpus.clauses(line)]
    texts = ["，".join([*fresh[i : i + 4], *rng.sample(common, rng.randrange(4))]) for i in range(0, len(fresh), 4)]
    poems = [Document("shi", "", f"{text}。", famous=i % 20 == 0) for i, text in enumerate(texts)]
    copies = [Document("ci", "", TABLE.simplify(poem.text)) for poem in poems[:500]]
    train, held = make_poet_corpus.split_poems(copies + poems, TABLE)
    assert all(poem in train for poem in poems if poem.famous)
    own = [make_poet_corpus.clauses(TABLE.simplify(poem.text)) for poem in train + held]
    assert len({"".join(clauses) for clauses in own}) == len(own) and len(train) > 2800
    known = {clause for clauses in own[: len(train)] for clause in clauses}
    shared = [sum(clause in known for clause in clauses) for clauses in own[len(train) :]]
    assert set(shared) == {0, 1}


def synset(words: str, gloss: str, pointers: str = "000") -> str:
    """WordNet 数据文件的一行。

    A line of a data file of WordNet.
    """
    names = words.split()
    return f"00000001 03 n {len(names):02x} {' 0 '.join(names)} 0 {pointers} | {gloss}  "


@pytest.mark.parametrize(("line", "expected"), [
    (synset("moon", 'the satellite of the Earth; "the moon rose"'), ["moon: the satellite of the Earth"]),
    (synset("ice_cream gelato(a)", "a frozen dessert"), ["ice cream: a frozen dessert", "gelato: a frozen dessert"]),
    (synset("Li_Bai", "a poet of the Tang", "001 @i 00000001 n 0000"), []),
    (synset("x", "an offensive word"), []),
    (synset("x", "a word for a thing", "001 ;u 00000002 n 0000"), []),
    (synset("crude_word x", "something of little value"), []),
    (synset("x", "tiny"), []),
    (synset("x", "very long " * 20), []),
])
def test_glosses(line: str, expected: list[str]) -> None:
    """每个词一篇；去掉例句、专名、冒犯的、太短太长的。

    A document for each word; without examples, proper names, what offends, what is too short or too long.
    """
    others = synset("slang", "words of the street").replace("00000001", "00000002", 1)
    others += "\n" + synset("Crude_word", "a vulgar name for a thing").replace("00000001", "00000003", 1)
    data = {name: b"" for name in make_poet_corpus.PARTS_OF_SPEECH}
    data["noun"] = f"  1 licence\n{line}\n{others}\n".encode()
    texts = [d.text for d in make_poet_corpus.read_glosses(make_poet_corpus.read_synsets(data))]
    assert [text for text in texts if not text.startswith("slang")] == expected


def test_all_words_of_a_gloss_are_on_one_side() -> None:
    """同一释义不会一半训练、一半留出。

    No gloss is half in training and half held out.
    """
    documents = [Document("gloss", "", f"{word}: gloss number {i}") for i in range(1000) for word in ("one", "two")]
    train, held = make_poet_corpus.split_glosses(documents)
    sides = [{d.text.split(": ")[1] for d in part} for part in (train, held)]
    assert not sides[0] & sides[1] and len(train) + len(held) == 2000 and held


def test_a_changed_package_is_refused() -> None:
    """内容不同的包报出两个散列。

    A package with other content names both hashes.
    """
    with pytest.raises(ValueError, match=r"sha256 is .*, not"):
        make_poet_corpus.check_hash("poetry", b"other")


# ---- 装箱 ----
# ---- packing ----


def test_long_documents_begin_a_row() -> None:
    """超过半行的文档都从行首开始，别的依次接上，行满为止。

    Documents longer than half a row begin one, the others follow in turn, until the row is full.
    """
    examples = [([i] * length, [1] * length) for i, length in enumerate((3, 8, 3, 3, 9, 4))]
    ids, weights = training.pack(iter(examples), 9)
    assert ids.tolist() == [[0] * 3 + [2] * 3 + [3] * 3 + [5], [1] * 8 + [4] * 2]
    assert weights.shape == ids.shape
    with pytest.raises(ValueError, match="do not fill a row"):
        training.pack(iter(examples[:1]), 9)


# ---- 评测 ----
# ---- the evaluation ----


def test_trigram_is_a_distribution() -> None:
    """任何前文之后，全部字符（含没见过的）的概率之和为 1；见过的三元组更可能。

    After any context the probabilities of all characters, unseen ones included, sum to 1; a trigram that was seen is
    likelier.
    """
    model = eval_tiny_poet.Trigram(["abcabd", "abe", "cab"])
    symbols = [*map(chr, model.characters), "?"]
    for context in ("ab", "zz", "ca", eval_tiny_poet.START * 2):
        codes = [np.array([*map(ord, context + symbol)], np.uint32) for symbol in symbols]
        assert sum(model.probabilities(c)[0] for c in codes) == pytest.approx(1)
    seen, unseen = (model.probabilities(np.array([*map(ord, t)], np.uint32))[0] for t in ("abc", "abb"))
    assert seen > 2 * unseen


def test_tokens_per_step() -> None:
    """接受到第一个不同为止，再加一个自己的。

    Accepted up to the first that differs, plus one of its own.
    """
    assert eval_tiny_poet.tokens_per_step([True] * 10, 4) == 5
    assert eval_tiny_poet.tokens_per_step([False] * 10, 4) == 1
    assert eval_tiny_poet.tokens_per_step([True, False, True, True, False, False], 4) == 2


# ---- 训练 ----
# ---- training ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """在很小的语料上训练几步得到的两个目录，以及语料。

    Both folders after a few steps on a tiny corpus, and the corpus.
    """
    folder = tmp_path_factory.mktemp("poet")
    verse = [Document("shi", "《山水》無名", "\n".join(LINES[i : i + 4])) for i in range(0, len(LINES), 4)]
    glosses = [Document("gloss", "", f"word {i}: the gloss of number {i}") for i in range(40)]
    make_poet_corpus.write_corpus({"train": verse + glosses, "held_out": verse[:2] + glosses[:2]}, TABLE, folder)
    texts = [d.text for d in verse + glosses]
    training.train_tokenizer(texts, 400).save(str(folder / "tokenizer.json"))
    options = "--device cpu --steps 3 --draft-steps 3 --rows 1 --row 128 --continuations 8 --workers 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_tiny_poet, "LONGEST", 24)
        assert train_tiny_poet.main(["--out", str(folder), "--corpus", str(folder), *options.split()]) == 0
    return folder


def test_folders_are_read_by_the_engine_and_by_transformers(trained: Path) -> None:
    """两个目录都能读，贪心续写与 `transformers` 逐个词元相同；草稿的词表与诗人相同。

    Both folders load, and greedy continuations equal those of `transformers` token by token; the draft has the poet's
    vocabulary.
    """
    prompt = [300, 20, 40]
    for name in ("tiny-poet", "tiny-poet-draft"):
        reference = training.load_model(trained / name, "cpu")
        expected: Any = reference.generate(  # type: ignore[operator]
            torch.tensor([prompt]), attention_mask=torch.ones(1, 3), max_new_tokens=30, do_sample=False,
            eos_token_id=None,
        )
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        result = LLM(trained / name, device="cpu", dtype="float32").generate([prompt], params, progress=False)[0]
        assert result.outputs[0].token_ids == expected[0, 3:].tolist()
        assert {t.dtype for t in load_file(trained / name / "model.safetensors").values()} == {torch.bfloat16}
        tokenizer = Tokenizer.from_file(str(trained / name / "tokenizer.json"))
        config = json.loads((trained / name / "config.json").read_text(encoding="utf-8"))
        assert config == training.model_config(tokenizer, **SHAPES[name])
    tokenizers = [(trained / name / "tokenizer.json").read_text("utf-8") for name in ("tiny-poet", "tiny-poet-draft")]
    assert tokenizers[0] == tokenizers[1]


def test_evaluation_runs(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """评测走完全程，每张表都有数。

    The evaluation runs through, and every table has its numbers.
    """
    monkeypatch.setattr(eval_tiny_poet, "LENGTH", 12)
    models = ["--model", str(trained / "tiny-poet"), "--draft", str(trained / "tiny-poet-draft")]
    assert eval_tiny_poet.main([*models, "--corpus", str(trained), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n| shi |") == 1 and out.count("distinct") == len(eval_tiny_poet.PROMPTS)
    assert "\n| 0.0 |" in out and "\n| 1.0 |" in out


# ---- 发布的目录 ----
# ---- the folders that ship ----

LIMITS = {"tiny-llama": 10_000_000, "tiny-poet": 10_000_000, "tiny-poet-draft": 2_000_000}
SHIPPED = sorted(path.parent for path in (ROOT / "assets").glob("*/config.json"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_models(folder: Path) -> None:
    """每个发布的模型：文件齐全，不超过规定的大小，权重是 bf16，文本能还原，诗人们的词表相同。

    Each model that ships: complete files, no larger than agreed, weights in bf16, text survives, the poets share a
    vocabulary.
    """
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert names | {"README.md"} <= {path.name for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMITS[folder.name]
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if folder.name in SHAPES:
        assert config == training.model_config(tokenizer, **SHAPES[folder.name])
        assert (folder / "tokenizer.json").read_bytes() == (ROOT / "assets/tiny-poet/tokenizer.json").read_bytes()
        assert "Princeton University" in (folder / "NOTICE").read_text(encoding="utf-8")
    for text in ("春眠不覺曉，處處聞啼鳥。\n床前明月光。", "moon: the satellite", "  x\t🦙 ñ 日本語\n\n", "龘𪛖"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_embedded_models_have_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """名字就够了，在哪个目录都行；同名的文件夹优先。

    The name is enough in any directory; a folder of that name goes first.
    """
    monkeypatch.chdir(tmp_path)
    llm = LLM("tiny-poet", device="cpu", num_kvcache_blocks=64)
    seen = {llm.generate("春眠不覺曉，", SamplingParams(temperature=0.8, seed=s, max_tokens=12), progress=False)[0]
            .outputs[0].text for s in range(8)}
    assert len(seen) == 8
    (tmp_path / "tiny-poet").mkdir()
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        LLM("tiny-poet", device="cpu")
