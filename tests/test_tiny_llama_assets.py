"""内置模型与术语表：文件齐全、体积合格、语料可重现、留出的问题没有泄漏。

The embedded model and the glossary: complete files, small size, a reproducible corpus, no leak of held-out questions.
"""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from engine.sampling_params import SamplingParams
from serving.llm import LLM
from tools import corpus_tables, eval_tiny_llama, make_corpus, train_tiny_llama, training

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "assets" / "tiny-llama"
OBLIGATORY = {
    "prefill": "预填充", "decode": "解码", "KV cache": "KV 缓存", "paged attention": "分页注意力",
    "block table": "块表", "slot mapping": "槽位映射", "prefix caching": "前缀缓存",
    "continuous batching": "连续批处理", "chunked prefill": "分块预填充", "preemption": "抢占", "scheduler": "调度器",
    "grouped-query attention": "分组查询注意力", "rotary position embedding": "旋转位置编码",
    "flash attention": "flash attention", "CUDA graph": "CUDA graph", "tensor parallelism": "张量并行",
    "temperature": "温度", "top-p": "top-p", "tokenizer": "分词器", "logits": "logits",
}


def read_json(name: str) -> dict[str, Any]:
    """读模型目录里的一个 JSON 文件。

    Reads one JSON file of the model folder.
    """
    content: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return content


# ---- 术语表 ----
# ---- the glossary ----


def test_glossaries_have_the_same_headings() -> None:
    """两种语言的标题与顺序完全相同。

    Headings and their order are the same in both languages.
    """
    texts = [(ROOT / "docs" / lang / "glossary.md").read_text(encoding="utf-8") for lang in make_corpus.LANGS]
    heads = [re.findall(r"^#.*$", text, re.M) for text in texts]
    assert heads[0] == heads[1]
    assert len(set(heads[0])) == len(heads[0])


def test_glossary_terms() -> None:
    """至少 60 个术语，必需的都在，定义简短且语言正确。

    At least 60 terms, the obligatory ones among them, short definitions in the right language.
    """
    terms = {term.en: term for term in make_corpus.terms()}
    assert len(terms) >= 60
    assert {name: terms[name].zh for name in OBLIGATORY} == OBLIGATORY
    for term in terms.values():
        assert 5 <= len(term.definition["en"].split()) <= 45, term.en
        assert not re.search(r"[\u4e00-\u9fff]", term.definition["en"]), term.en
        assert len(re.findall(r"[\u4e00-\u9fff]", term.definition["zh"])) <= 80, term.en
        assert re.search(r"[\u4e00-\u9fff]", term.definition["zh"]), term.en


def test_every_alias_belongs_to_a_term() -> None:
    """别名的键都是术语表里的术语。

    The keys of the aliases are terms of the glossary.
    """
    names = {term.en for term in make_corpus.terms()}
    assert all(set(corpus_tables.ALIASES[lang]) <= names for lang in make_corpus.LANGS)


# ---- 语料 ----
# ---- the corpus ----


def test_tables_have_the_same_sections_in_both_languages() -> None:
    """两种语言的表有同样的节，每种意图都有回答，首都特例都是表里的国家。

    The tables of both languages have the same sections, every intent has its answer, and the special capitals belong to
    countries of the table.
    """
    for name in ("identity", "small_talk", "templates", "keywords", "phrases", "words"):
        sections = [list(corpus_tables.by_language(name)[lang]) for lang in make_corpus.LANGS]
        assert sections[0] == sections[1], name
    intents = [*corpus_tables.IDENTITY["en"], *corpus_tables.SMALL_TALK["en"], "decline"]
    assert list(corpus_tables.ANSWERS) == intents
    assert set(corpus_tables.SPECIAL_CAPITALS) <= {country.names["en"][0] for country in make_corpus.countries()}


def test_read_sections(tmp_path: Path) -> None:
    """空行不算，首尾的 `_` 是空格，中间的不变；写错的文件报出是哪里。

    Blank lines do not count, `_` at an end is a space and elsewhere itself; a file that is wrong says where.
    """
    path = tmp_path / "table.txt"
    path.write_text("# first\nplease_\n_now\n\n# * second\n* top_k {a_noun}\nC# #\n", encoding="utf-8")
    expected = {"first": ("please ", " now"), "* second": ("* top_k {a_noun}", "C# #")}
    assert corpus_tables.read_sections(path) == expected
    for text, message in (("lost\n# a\n", "'lost' stands before"), ("# a\n# a\n", "two sections named 'a'")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            corpus_tables.read_sections(path)


def test_corpus_is_deterministic() -> None:
    """同一种子给出同样的对话，换一个种子就不同。

    One seed gives the same conversations again; another seed gives others.
    """
    first, again, other = (list(make_corpus.training_conversations(seed, 200)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert all(message["content"].strip() for conversation in first for message in conversation)
    assert all(conversation[-1]["role"] == "assistant" for conversation in first)


def template_sections(lang: str) -> dict[str, list[tuple[str, ...]]]:
    """某语言的所有模板节，按类别。

    All sections of templates of a language, by category.
    """
    talk = [*corpus_tables.IDENTITY[lang].values(), *corpus_tables.SMALL_TALK[lang].values()]
    return {category: [section] for category, section in corpus_tables.TEMPLATES[lang].items()} | {"talk": talk}


@pytest.mark.parametrize("lang", make_corpus.LANGS)
def test_no_held_out_template_is_a_training_template(lang: str) -> None:
    """展开所有写法、去掉礼貌用语和标点之后，两组模板没有交集。

    With all wordings expanded, politeness and punctuation removed, the two groups share nothing.
    """
    for category, sections in template_sections(lang).items():
        forms: tuple[set[str], set[str]] = (set(), set())
        for section in sections:
            for group, templates in zip(forms, make_corpus.split_templates(section), strict=True):
                assert templates, (category, lang)
                group |= {
                    make_corpus.normalize(form.replace("{a}", ""), lang)
                    for template in templates for form in make_corpus.all_expansions(template)
                }
        assert not forms[0] & forms[1], (category, lang)


def test_no_held_out_question_is_sampled_for_training() -> None:
    """抽样的训练问句里没有留出问题，也没有留出的数对。

    No held-out question and no held-out number pair occurs among sampled training questions.
    """
    held = {
        make_corpus.normalize(item.question, lang)
        for category in make_corpus.ASK for lang in make_corpus.LANGS
        for item in make_corpus.held_out_items(category, lang, 100)
    }
    for item in make_corpus.training_items(9, 10_000):
        assert make_corpus.normalize(item.question, item.lang) not in held or item.category == "unknown"
        if pair := re.fullmatch(r"(\d+) [+-] (\d+) = -?\d+[.。]", item.answer):
            assert not make_corpus.is_held_pair(int(pair[1]), int(pair[2]))


def test_about_a_tenth_of_the_pairs_is_held_out() -> None:
    """留出约一成两位数对，顺序无关。

    About a tenth of the pairs of two-digit numbers is held out, in either order.
    """
    pairs = [(x, y) for x in range(10, 100) for y in range(10, 100)]
    assert 0.08 < sum(make_corpus.is_held_pair(x, y) for x, y in pairs) / len(pairs) < 0.12
    assert all(make_corpus.is_held_pair(x, y) == make_corpus.is_held_pair(y, x) for x, y in pairs)


def test_answers_are_true() -> None:
    """算术、质数与求和的答案经得起重算。

    Answers of arithmetic, primes and sums hold when computed again.
    """
    rng = random.Random(1)
    for _ in range(300):
        for category in ("add", "sub"):
            x, op, y, _, z = make_corpus.make_item(category, "en", rng).answer.rstrip(".").split()
            assert int(z) == (int(x) + int(y) if op == "+" else int(x) - int(y))
        n, total = re.findall(r"\d+", make_corpus.make_item("sum_to", "zh", rng).answer)[1:]
        assert sum(range(int(n) + 1)) == int(total)
    assert [n for n in range(2, 101) if all(n % d for d in range(2, math.isqrt(n) + 1))] == make_corpus.PRIMES
    assert f"{math.pi:.15f}"[:16] == make_corpus.PI[:16]
    assert len(make_corpus.countries()) >= 190


def test_unknown_words_are_no_terms() -> None:
    """“不知道”的词表里没有术语，也没有国名。

    The word lists of unknown questions hold neither terms nor countries.
    """
    for lang in make_corpus.LANGS:
        countries = {name.lower() for country in make_corpus.countries() for name in country.names[lang]}
        known = set(make_corpus.known_names(lang)) | countries
        for slot in ("noun", "tech", "place", "name", "food"):
            assert not {word.lower() for word in corpus_tables.WORDS[lang][slot]} & known


# ---- 模型目录 ----
# ---- the model folder ----


def test_config_has_the_keys_of_llama() -> None:
    """`config.json` 用 Llama-3.2 的键名；停止词元有三个，生成默认是贪心。

    `config.json` uses the keys of Llama-3.2; there are three stop ids and generation is greedy by default.
    """
    config, generation = read_json("config.json"), read_json("generation_config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_scaling"]["rope_type"] == "llama3" and config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] and config["num_key_value_heads"] < config["num_attention_heads"]
    assert len(config["eos_token_id"]) == 3 and generation["eos_token_id"] == config["eos_token_id"]
    assert generation["do_sample"] is False
    added = read_json("tokenizer_config.json")["added_tokens_decoder"]
    special = {int(i): entry["content"] for i, entry in added.items()}
    base = config["bos_token_id"]
    assert [special[base + i] for i in range(16)] == training.SPECIAL_TOKENS
    assert [special[i] for i in config["eos_token_id"]] == ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    shape, factor = train_tiny_llama.SHAPE, train_tiny_llama.ROPE_FACTOR
    assert config == training.model_config(tokenizer, **shape, rope_factor=factor)


def test_weights_are_bfloat16_and_match_the_training_model() -> None:
    """权重都是 bf16，名称与形状同训练代码里的模型一致，参数在 2–4 M 之间。

    All weights are bf16, with the names and shapes of the model in the training code; 2–4 M parameters.
    """
    model = training.build_model(read_json("config.json"))
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert 2_000_000 <= sum(tensor.numel() for tensor in tensors.values()) <= 4_000_000


def test_tokenizer_round_trip() -> None:
    """中文、表情、代码与怪空格都能还原；数字和汉字不与邻居合并。

    Chinese, emoji, code and odd spaces survive; digits and Han characters never merge with their neighbours.
    """
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    code = "  def f(x):\n\treturn x+1\n\n"
    for text in ("什么是前缀缓存？", "1, 2, 3", "🦙 mini-llama 🚀", code, "Ünïcödé ñ 日本語 한국어"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("23加456的和", add_special_tokens=False).ids]
    assert pieces == ["2", "3", "加", "4", "5", "6", "的", "和"]
    assert tokenizer.encode("a").ids[0] == read_json("config.json")["bos_token_id"]


def test_training_encodes_like_the_chat_template() -> None:
    """训练时的编码与 `apply_chat_template` 逐个词元相同。

    Training encodes conversations as `apply_chat_template` does, token by token.
    """
    from transformers import AutoTokenizer

    reference: Any = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    conversations = list(make_corpus.training_conversations(3, 100))
    for conversation, (ids, _) in zip(
        conversations, train_tiny_llama.encode_conversations(tokenizer, conversations), strict=True
    ):
        assert reference.apply_chat_template(conversation, return_dict=False) == ids


def test_seven_prompts_with_transformers() -> None:
    """七个固定提问用 `transformers` 全部答对。

    All seven fixed prompts are answered right with `transformers`.
    """
    generate = eval_tiny_llama.transformers_generator(FOLDER, "cpu", batch_size=7, max_new_tokens=120)
    items = eval_tiny_llama.seven_prompts()
    answers = generate([item.question for item in items])
    assert [a for i, a in zip(items, answers, strict=True) if not eval_tiny_llama.is_right(i, a)] == []


def test_seven_prompts_at_the_end_of_the_context() -> None:
    """在 1800 个词元的对话之后提问，`transformers` 和我们的引擎都答对：上下文确实有配置说的那么长。

    Asked after a conversation of 1800 tokens, `transformers` and our engine answer right: the context is as long as
    the config says.
    """
    from transformers import AutoTokenizer

    items = eval_tiny_llama.seven_prompts()
    generate = eval_tiny_llama.transformers_generator(FOLDER, "cpu", 7, max_new_tokens=120, history_tokens=1800)
    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    llm = LLM(device="cpu")
    chats = [[*eval_tiny_llama.history(tokenizer, 1800, i), {"role": "user", "content": item.question}]
             for i, item in enumerate(items)]  # fmt: skip
    outputs = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=120), progress=False)
    assert min(len(output.prompt_token_ids) for output in outputs) > 1700
    for answers in (generate([item.question for item in items]), [output.outputs[0].text for output in outputs]):
        assert [a for i, a in zip(items, answers, strict=True) if not eval_tiny_llama.is_right(i, a)] == []


def test_training_smoke(tmp_path: Path) -> None:
    """训练三步，`transformers` 能读结果，其注意力与训练时的一致，也能在上下文末尾提问。

    Three training steps; `transformers` reads the result, its attention agrees with that of training, and questions can
    be asked at the end of the context.
    """
    options = "--device cpu --steps 3 --rows 1 --row 256 --conversations 60 --tokenizer-conversations 300 --workers 1"
    options += " --extension-steps 1 --extension-conversations 60"
    assert train_tiny_llama.main(["--out", str(tmp_path), *options.split()]) == 0
    reference = training.load_model(tmp_path, "cpu")
    model = training.build_model(json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))).eval()
    model.load_state_dict(reference.state_dict())
    ids = torch.randint(0, 500, (1, 1500))
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=ids).logits, reference(input_ids=ids).logits)
        loss = training.next_token_loss(model)(ids, torch.ones(1, 1500))
        nll = torch.nn.functional.cross_entropy(reference(input_ids=ids).logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(loss, nll)
    generate = eval_tiny_llama.transformers_generator(tmp_path, "cpu", 1, max_new_tokens=3, history_tokens=400)
    assert len(generate(["What is 23 + 45?"])) == 1


def test_history_fits() -> None:
    """提问之前的对话不超过所要的长度，也不短于它太多。

    The conversation before a question is at most as long as asked for, and not much shorter.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(FOLDER)
    messages = eval_tiny_llama.history(tokenizer, 600, 1)
    assert 300 < len(tokenizer.apply_chat_template(messages, return_dict=False)) <= 600
