"""生成内置模型的训练与评测问答：术语表、首都、算术、身份，以及大量应当回答“不知道”的问题。

词表、国家和问句模板在 `assets/corpus`。`train_tiny_llama.py` 取训练对话，`eval_tiny_llama.py` 取留出问题；哪些模板和
数对被留出，只在这里和那些表里决定。直接运行则打印样本：`python tools/make_corpus.py --count 20`。

Questions and answers for training and judging the embedded model: glossary, capitals, arithmetic, identity, and many
questions that should be answered by "I don't know".

Word lists, countries and question templates are in `assets/corpus`. `train_tiny_llama.py` takes conversations from
here, `eval_tiny_llama.py` takes held-out questions; which templates and number pairs are held out is decided here and
in those tables alone. Run as a script it prints samples: `python tools/make_corpus.py --count 20`.
"""

import argparse
import functools
import itertools
import json
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import corpus_tables as tables
from tools.corpus_tables import LANGS, Sections

ROOT = Path(__file__).resolve().parent.parent
PI = "3.14159265358979323846264338327950288419716939937510"
PRIMES = [n for n in range(2, 101) if all(n % d for d in range(2, n))]
# 假词的音节：开头与结尾。
# Syllables of words that do not exist: how they begin and end.
ONSETS = [
    "b", "bl", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "h", "j", "k", "kl", "kr", "l", "m",
    "n", "p", "pl", "pr", "qu", "r", "s", "sh", "sk", "sl", "sn", "sp", "st", "t", "th", "tr", "v", "w", "z",
]
ENDINGS = ["", "n", "r", "l", "x", "ck", "st", "m", "t", "sh", "ng", "d"]
T = TypeVar("T")
Message = dict[str, str]

# 每类在训练中的份额。“不知道”占得最多：它的说法无穷无尽，其余各类都是封闭的。
# The share of each category in training. Declining has the largest: its wordings are endless, the others are closed.
SHARES = {
    "identity": 10, "small_talk": 5, "glossary": 18, "compare": 4, "capital": 12, "capital_of": 4, "add": 8, "sub": 6,
    "prime_list": 3, "prime_is": 3, "count": 4, "sum_to": 4, "pi": 2, "pi_what": 1, "unknown": 28,
}


@dataclass(frozen=True, slots=True)
class Item:
    """一问一答，连同类别和语言。

    One question with its answer, its category and its language.
    """

    category: str
    lang: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Term:
    """一个术语：英文名、中文名和两种语言的定义。

    A term: its names in English and Chinese and its definitions in both.
    """

    en: str
    zh: str
    definition: dict[str, str]


@dataclass(frozen=True, slots=True)
class Country:
    """一个国家：两种语言的名称（第一个是正式的）和首都。

    A country: its names in both languages (the first one is used in answers) and its capital.
    """

    names: dict[str, list[str]]
    capital: dict[str, str]


def read_glossary(lang: str) -> list[tuple[str, str, str]]:
    """读 `docs/LANG/glossary.md`，返回（英文名、中文名、定义）。

    Reads `docs/LANG/glossary.md` as (English name, Chinese name, definition).
    """
    text = (ROOT / "docs" / lang / "glossary.md").read_text(encoding="utf-8")
    entries = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, body = section.split("\n", 1)
        match = re.fullmatch(r"(.+?)(?: \((.+)\))?", heading.strip())
        if match is None:
            raise ValueError(f"glossary heading {heading!r} in docs/{lang} is not of the form 'term (术语)'")
        entries.append((match[1], match[2] or match[1], " ".join(body.split())))
    return entries


@functools.cache
def terms() -> list[Term]:
    """术语表的全部术语，按文件中的顺序。

    All terms of the glossary, in the order of the file.
    """
    pairs = zip(read_glossary("en"), read_glossary("zh"), strict=True)
    return [Term(en[0], en[1], {"en": en[2], "zh": zh[2]}) for en, zh in pairs]


@functools.cache
def countries() -> list[Country]:
    """全部国家。

    All countries.
    """
    return [
        Country({"en": en.split("|"), "zh": zh.split("|")}, {"en": capital_en, "zh": capital_zh})
        for en, zh, capital_en, capital_zh in tables.COUNTRIES
    ]


@functools.cache
def split_templates(section: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """把一节模板分成（训练用，留出）两份。

    Splits a section of templates into (for training, held out).
    """
    return [s for s in section if not s.startswith("* ")], [s[2:] for s in section if s.startswith("* ")]


def expand(template: str, rng: random.Random) -> str:
    """为每个 `[a|b]` 选一个写法。

    Chooses one wording for every `[a|b]`.
    """
    return re.sub(r"\[([^\[\]]*)\]", lambda m: rng.choice(m[1].split("|")), template)


def all_expansions(template: str) -> list[str]:
    """一个模板的所有写法，供泄漏检查使用。

    All wordings of a template, for the leak check.
    """
    parts = re.split(r"\[([^\[\]]*)\]", template)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(combination) for combination in itertools.product(*choices)]


def is_held_pair(x: int, y: int) -> bool:
    """两位数对中约十分之一只用于评测；顺序不影响结果。

    About a tenth of the pairs of two-digit numbers is held out, in both orders.
    """
    return min(x, y) >= 10 and max(x, y) < 100 and zlib.crc32(f"{min(x, y)}:{max(x, y)}".encode()) % 10 == 0


# ---- 提问的外观 ----
# ---- how a question looks ----


def is_imperative(text: str, lang: str) -> bool:
    """这句话是否以祈使动词开头。

    Whether the text begins with an imperative verb.
    """
    verbs = tables.PHRASES[lang]["imperatives"]
    return text.split()[0].lower() in verbs if lang == "en" else text.startswith(verbs)


def add_typo(text: str, rng: random.Random) -> str:
    """在一个长单词里漏掉或交换一个字母。

    Drops or swaps one letter inside one long word.
    """
    words = [m for m in re.finditer(r"[a-z]{5,}", text)]
    if not words:
        return text
    i = rng.randrange((word := rng.choice(words)).start() + 1, word.end() - 2)
    return text[:i] + (text[i + 1] + text[i] if rng.random() < 0.5 else text[i + 1]) + text[i + 2 :]


def respace(text: str, rng: random.Random) -> str:
    """汉字与西文之间加空格、去空格，或保持原样。

    Adds or removes the spaces between Han and Latin characters, or leaves them.
    """
    style = rng.random()
    if style < 0.35:
        return re.sub(r"(?<=[\u4e00-\u9fff])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[\u4e00-\u9fff])", " ", text)
    if style < 0.65:
        return re.sub(r"(?<=[\u4e00-\u9fff]) (?=[A-Za-z0-9])|(?<=[A-Za-z0-9]) (?=[\u4e00-\u9fff])", "", text)
    return text


def decorate(text: str, lang: str, rng: random.Random) -> str:
    """给问句加上礼貌用语、大小写、标点和少量错字。

    Varies politeness, case, punctuation and adds a few typos.
    """
    if rng.random() < 0.25:
        imperative = is_imperative(text, lang)
        opening = rng.choice([p for p in tables.PHRASES[lang]["openings"] if imperative or not p.startswith("+")])
        text = opening.lstrip("+") + text
    if rng.random() < 0.06:
        text += rng.choice(tables.PHRASES[lang]["endings"])
    if lang == "zh":
        end = rng.choices(["？", "?", "", "。", "！", "？ ", " "], [46, 10, 34, 5, 1, 2, 2])[0]
        return respace(text, rng) + end
    if rng.random() < 0.04:
        text = add_typo(text, rng)
    change = rng.choices(["keep", "first", "lower", "upper"], [38, 45, 14, 3])[0]
    if change == "first":
        text = text[:1].upper() + text[1:]
    elif change != "keep":
        text = text.lower() if change == "lower" else text.upper()
    return text + rng.choices(["?", "", ".", "!", " ?", "? ", "??"], [46, 36, 9, 3, 3, 2, 1])[0]


# ---- 已知的事 ----
# ---- what the model knows ----


def pick(options: Sequence[T], rng: random.Random, index: int | None) -> T:
    """训练时随机取，评测时按 `index` 轮流取，使每个事实都被问到。

    Random for training; for the evaluation taken in turn by `index`, so that every fact is asked.
    """
    return rng.choice(options) if index is None else options[index % len(options)]


def template_of(category: str, lang: str, rng: random.Random, held: bool) -> str:
    """取一个训练用或留出的模板，并展开写法；训练用的有三分之一再被打乱措辞。

    One template, for training or held out, with its wording chosen; a third of those for training is blurred.
    """
    template = expand(rng.choice(split_templates(tables.TEMPLATES[lang][category])[held]), rng)
    if held or rng.random() > 0.35:
        return template
    blurred = blur(template, lang, rng, tables.KEYWORDS[lang][category])
    return template if normalize(blurred, lang) in held_forms(lang) else blurred


@functools.cache
def held_forms(lang: str) -> frozenset[str]:
    """所有留出模板的标准形式；打乱措辞时不得碰巧得到它们。

    The normal forms of all held-out templates, which blurring must not hit by chance.
    """
    files = (tables.IDENTITY, tables.SMALL_TALK, tables.TEMPLATES)
    held = [template for file in files for section in file[lang].values() for template in split_templates(section)[1]]
    forms = itertools.chain.from_iterable(map(all_expansions, held))
    return frozenset(normalize(form.replace("{a}", ""), lang) for form in forms)


def blur(template: str, lang: str, rng: random.Random, keywords: Sequence[str] | None) -> str:
    """插入、替换或去掉一两个次要的词，让模型只依赖关键的部分；`keywords` 为 `None` 时只插入。

    Inserts, replaces or drops one or two minor words, so that the model relies on what matters; with `keywords`
    `None` it only inserts.
    """
    pieces = re.findall(r"\{\w+\}|[A-Za-z']+|[\u4e00-\u9fff]|\s+|.", template)
    for _ in range(rng.choice([1, 1, 2])):
        minor = [i for i, p in enumerate(pieces) if p[:1].isalpha() and keywords is not None and p not in keywords]
        extra = rng.choice(tables.PHRASES[lang]["fillers"])
        if rng.random() < 0.3 and keywords is not None:
            extra = rng.choice(tables.WORDS[lang][rng.choice(["noun", "verb", "adj"])])
        if minor and rng.random() < 0.5:
            pieces[rng.choice(minor)] = rng.choice([extra, ""])
        elif lang == "zh":
            pieces.insert(rng.randrange(len(pieces) + 1), extra)
        else:
            pieces.insert(rng.randrange(len(pieces) + 1), f" {extra} ")
    return re.sub(r"\s+", " ", "".join(pieces)).strip()


def term_name(term: Term, lang: str, rng: random.Random) -> str:
    """提问时对术语的称呼：多数用正式名称，少数用别名。

    How a question calls a term: mostly by its name, sometimes by another spelling.
    """
    others = tables.ALIASES[lang].get(term.en, ())
    return rng.choice(others) if others and rng.random() < 0.35 else getattr(term, lang)


def article(word: str, rng: random.Random) -> str:
    """词前的冠词：多数时候是合语法的那个。

    An article before a word: mostly the right one.
    """
    right = "an " if word[:1].lower() in "aeiou" else "a "
    return rng.choices([right, "", "the ", "a "], [60, 25, 10, 5])[0]


def ask_glossary(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """一个术语的定义。

    The definition of a term.
    """
    term = pick(terms(), rng, index)
    name = term_name(term, lang, rng)
    question = template_of("glossary", lang, rng, held).format(t=name, a=article(name, rng))
    return question, term.definition[lang]


def ask_compare(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """两个术语有什么区别：先后给出两个定义。

    The difference between two terms: both definitions, one after the other.
    """
    first = pick(terms(), rng, index)
    second = rng.choice([term for term in terms() if term is not first])
    names = {"t": term_name(first, lang, rng), "u": term_name(second, lang, rng)}
    answer = first.definition[lang] + (" " if lang == "en" else "") + second.definition[lang]
    return template_of("compare", lang, rng, held).format(**names), answer


def ask_intent(intents: dict[str, Sections]) -> Callable[..., tuple[str, str]]:
    """按意图提问：身份和寒暄共用。

    Questions by intent: shared by identity and small talk.
    """

    def ask(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
        intent = pick(list(intents[lang]), rng, index)
        question = expand(rng.choice(split_templates(intents[lang][intent])[held]), rng)
        if not held and rng.random() < 0.35:
            blurred = blur(question, lang, rng, None)
            question = question if normalize(blurred, lang) in held_forms(lang) else blurred
        return question, tables.ANSWERS[intent][lang]

    return ask


def capital_answer(country: Country, lang: str) -> str:
    """首都问题的答句。

    The sentence that answers for a capital.
    """
    name, capital = country.names[lang][0], country.capital[lang]
    if special := tables.SPECIAL_CAPITALS.get(country.names["en"][0]):
        return special[lang]
    return f"{name}的首都是{capital}。" if lang == "zh" else f"The capital of {name} is {capital.removesuffix('.')}."


def ask_capital(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """某国的首都。

    The capital of a country.
    """
    country = pick(countries(), rng, index)
    names = country.names[lang]
    name = names[0] if rng.random() < 0.6 else rng.choice(names)
    if lang == "en" and rng.random() < 0.08:
        name = name.removeprefix("the ") if name.startswith("the ") else name.lower()
    return template_of("capital", lang, rng, held).format(c=name), capital_answer(country, lang)


@functools.cache
def reversible(lang: str) -> list[Country]:
    """首都只属于一个国家、又不与国名相同的国家。

    Countries whose capital belongs to them alone and is not their own name.
    """
    capitals = [c.capital[lang] for c in countries()]
    return [
        c for c in countries()
        if capitals.count(c.capital[lang]) == 1 and c.capital[lang] not in c.names[lang]
        and c.names["en"][0] not in tables.SPECIAL_CAPITALS
    ]


def ask_capital_of(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """某城市是哪国的首都。

    Whose capital a city is.
    """
    country = pick(reversible(lang), rng, index)
    city, name = country.capital[lang], country.names[lang][0]
    answer = f"{city} is the capital of {name}." if lang == "en" else f"{city}是{name}的首都。"
    return template_of("capital_of", lang, rng, held).format(c=city), answer


def number_pair(rng: random.Random, held: bool) -> tuple[int, int]:
    """两个加数：训练避开留出的数对，评测只用留出的数对。

    Two operands: training avoids the held-out pairs, the evaluation uses nothing else.
    """
    while True:
        x, y = (rng.randrange(10, 100) if held or rng.random() < 0.85 else rng.choice([*range(10), 100]) for _ in "xy")
        if is_held_pair(x, y) == held:
            return x, y


def ask_add(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """两数相加。

    The sum of two numbers.
    """
    x, y = number_pair(rng, held)
    return template_of("add", lang, rng, held).format(x=x, y=y), f"{x} + {y} = {x + y}" + "。."[lang == "en"]


def ask_sub(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """两数相减；被减数较小时得负数。

    The difference of two numbers; negative if the first is smaller.
    """
    x, y = number_pair(rng, held)
    if x < y and rng.random() < 0.75:
        x, y = y, x
    return template_of("sub", lang, rng, held).format(x=x, y=y), f"{x} - {y} = {x - y}" + "。."[lang == "en"]


def ask_prime_list(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """一个范围内的质数。

    The primes of a range.
    """
    kind = rng.choices(["upto", "below", "between"], [60, 20, 20])[0]
    n = 100 if rng.random() < 0.25 else rng.choice([rng.randrange(3, 101), rng.randrange(1, 11) * 10])
    low = rng.randrange(2, n) if kind == "between" else 1
    primes = ", ".join(str(p) for p in PRIMES if low <= p and (p < n or (p == n and kind != "below")))
    if lang == "en":
        head = {"upto": f"The primes up to {n}: ", "below": f"The primes below {n}: ",
                "between": f"The primes from {low} to {n}: "}[kind]
        primes = primes or "none"
    else:
        head = {"upto": f"{n} 以内的质数：", "below": f"小于 {n} 的质数：", "between": f"{low} 到 {n} 的质数："}[kind]
        primes = primes or "没有"
    where = rng.choice(tables.PHRASES[lang][f"primes {kind}"]).format(a=low, n=n)
    return template_of("prime_list", lang, rng, held).format(r=where), head + primes + "。."[lang == "en"]


def ask_prime_is(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """某数是不是质数；不是时给出一个分解。

    Whether a number is prime; if not, a factorisation is shown.
    """
    x = rng.randrange(101)
    factor = next((d for d in range(2, x) if x % d == 0), 0)
    proof = f"{x} = {factor} × {x // factor}" if factor else ""
    if lang == "en":
        no = f"No, {x} is not a prime number" + (f": {proof}." if proof else ".")
        answer = f"Yes, {x} is a prime number." if x in PRIMES else no
    else:
        no = f"不是，{x} 不是质数" + (f"：{proof}。" if proof else "。")
        answer = f"是的，{x} 是质数。" if x in PRIMES else no
    return template_of("prime_is", lang, rng, held).format(x=x), answer


def ask_count(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """从一个数数到另一个数，偶尔倒着数。

    Counting from one number to another, sometimes downwards.
    """
    x = rng.choice([1, 1, rng.randrange(100)])
    y = min(100, x + rng.choice([9, rng.randrange(1, 25), rng.randrange(1, 25), rng.randrange(1, 100)]))
    numbers = list(range(x, y + 1))
    if rng.random() < 0.1:
        x, y, numbers = y, x, numbers[::-1]
    return template_of("count", lang, rng, held).format(x=x, y=y), ", ".join(map(str, numbers))


def ask_sum_to(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """从 1 加到 n。

    The sum from 1 to n.
    """
    n = rng.choice([10, 100, *[rng.randrange(2, 101)] * 8])
    total = n * (n + 1) // 2
    answer = f"The sum from 1 to {n} is {total}." if lang == "en" else f"从 1 加到 {n} 的和是 {total}。"
    return template_of("sum_to", lang, rng, held).format(n=n), answer


def ask_pi(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """圆周率的前 n 位，3 也算一位。

    The first n digits of pi, the 3 included.
    """
    n = rng.choice([5, 10, 20, *[rng.randrange(2, 31)] * 5])
    digits = PI[: n + 1]
    answer = f"The first {n} digits of pi: {digits}" if lang == "en" else f"圆周率的前 {n} 位：{digits}"
    return template_of("pi", lang, rng, held).format(n=n), answer


def ask_pi_what(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """圆周率的值。

    The value of pi.
    """
    answer = {"en": f"Pi is about {PI[:16]}.", "zh": f"圆周率约等于 {PI[:16]}。"}[lang]
    return template_of("pi_what", lang, rng, held), answer


# ---- 不知道的事 ----
# ---- what the model does not know ----


@functools.cache
def known_names(lang: str) -> list[str]:
    """术语的所有叫法（小写），“不知道”的问题里不得出现。

    All names of the terms in lower case; composed unknown questions must not contain them.
    """
    names = [getattr(term, lang) for term in terms()] + [term.en for term in terms()]
    return [name.lower() for name in itertools.chain(names, *tables.ALIASES[lang].values())]


@functools.cache
def common_han() -> str:
    """GB 2312 一级汉字（3755 个常用字），用来造不存在的词。

    The 3,755 common characters of GB 2312 level 1, of which words that do not exist are made.
    """
    codes = [bytes([high, low]) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF)]
    return "".join(code.decode("gb2312", "ignore") for code in codes)


def invented_word(rng: random.Random) -> str:
    """由音节拼成的假词，如 `blorfin`。

    A word that does not exist, made of syllables, for instance `blorfin`.
    """
    syllables = range(rng.choice([1, 2, 2, 3]))
    word = "".join(rng.choice(ONSETS) + rng.choice("aeiouy") + rng.choice(ENDINGS) for _ in syllables)
    return word.capitalize() if rng.random() < 0.2 else word


def plural(noun: str) -> str:
    """英文名词的复数（够用即可）。

    The plural of an English noun, well enough.
    """
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


class Slots(dict[str, str]):
    """`str.format_map` 的词典：第一次用到某个槽位时才取词。

    The mapping for `str.format_map`: a slot is filled when it is first asked for.
    """

    def __init__(self, lang: str, rng: random.Random) -> None:
        """记下语言和随机源。

        Keeps the language and the source of randomness.
        """
        super().__init__()
        self.lang, self.rng = lang, rng

    def __missing__(self, key: str) -> str:
        """为 `noun2` 这样的槽位取一个词；末尾的数字只用来区分。

        Fills a slot such as `noun2`; the digit at its end only tells slots apart.
        """
        return self.fill(key.rstrip("23"))

    def fill(self, slot: str) -> str:
        """按槽位的种类取词。

        Fills one slot by its kind.
        """
        rng, lang = self.rng, self.lang
        numbers = {"x": (0, 100), "y": (0, 100), "n": (1, 60), "d": (0, 10), "year": (1000, 2100)}
        if slot in numbers:
            return str(rng.randrange(*numbers[slot]))
        if slot == "big":
            return str(rng.randrange(101, 10 ** rng.choice([3, 3, 4, 5])))
        if slot in ("a_noun", "a_tech", "a_adj", "a_word"):
            word = self.fill(slot[2:])
            return ("an " if word[0].lower() in "aeiou" else "a ") + word
        if slot == "nouns":
            return plural(self.fill("noun"))
        if slot in SPECIAL_SLOTS:
            return SPECIAL_SLOTS[slot](rng, lang)
        return rng.choice(tables.WORDS[lang][slot])


def make_clause(rng: random.Random, lang: str) -> str:
    """一句随意的陈述。

    A random statement.
    """
    if lang == "zh":
        forms = ["{adj}的{noun}会{verb}{noun2}", "{name}{verb}了{noun}", "{noun}很{adj}", "{noun}比{noun2}更{adj}"]
    else:
        forms = ["the {adj} {noun} can {verb} the {noun2}", "{name} will {verb} {a_noun}", "{nouns} are {adj}",
                 "{nouns} {verb} {nouns2} in {place}", "my {noun} is in the {noun2}"]
    return rng.choice(forms).format_map(Slots(lang, rng))


def unambiguous_capital(rng: random.Random, lang: str) -> str:
    """不与国名同名的首都。

    A capital that is not also the name of a country.
    """
    return rng.choice(reversible(lang)).capital[lang]


SPECIAL_SLOTS: dict[str, Callable[[random.Random, str], str]] = {
    "word": lambda rng, lang: invented_word(rng),
    "hz": lambda rng, lang: "".join(rng.choices(common_han(), k=rng.choice([1, 2, 2, 2, 3, 3, 4]))),
    "gib": lambda rng, lang: "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=rng.randrange(2, 12))),
    "sym": lambda rng, lang: "".join(rng.choices("?!.,;:#@$%&*()[]<>/=+-_~😀🎉❤👍🚀🐱", k=rng.randrange(1, 6))),
    "letter": lambda rng, lang: rng.choice("abcdefghijklmnopqrstuvwxyz"),
    "country": lambda rng, lang: rng.choice(rng.choice(countries()).names[lang]),
    "capital": unambiguous_capital,
    "term": lambda rng, lang: term_name(rng.choice(terms()), lang, rng),
    "clause": make_clause,
}
# 这些种类会随意组合词语，可能碰巧拼出真术语，要筛掉。
# These kinds compose words freely and might hit a real term, so their questions are checked.
COMPOSING = {"terms", "statements", "gibberish", "术语", "陈述", "乱码", "外语混"}
# 最像已知问题的种类，出现得更多。
# The kinds closest to known questions; they come more often.
FREQUENT = {"terms", "statements", "fakecapital", "facts", "术语", "陈述", "假首都", "事实"}


@functools.cache
def unknown_kinds(lang: str, held: bool) -> list[str]:
    """训练或留出的“不知道”种类。

    The kinds of unknown questions for training, or those held out.
    """
    return [kind for kind in tables.UNKNOWN[lang] if kind.startswith("* ") == held]


def names_a_term(question: str, lang: str) -> bool:
    """问题里是否出现了真正的术语。

    Whether a real term occurs in the question.
    """
    text = question.lower()
    if lang == "zh":
        return any(name in text for name in known_names(lang))
    return any(re.search(rf"\b{re.escape(name)}s?\b", text) for name in known_names(lang) if name in text)


def ask_unknown(rng: random.Random, lang: str, held: bool, index: int | None) -> tuple[str, str]:
    """一个应当回答“不知道”的问题；种类先取，模板后取。

    A question to be declined: first its kind is drawn, then its template.
    """
    kinds = unknown_kinds(lang, held)
    weights = [3 if kind in FREQUENT else 1 for kind in kinds]
    while True:
        kind = pick(kinds, rng, index) if index is not None else rng.choices(kinds, weights)[0]
        template = expand(rng.choice(tables.UNKNOWN[lang][kind]), rng)
        if not held and rng.random() < 0.3:
            template = blur(template, lang, rng, None)
        question = template.format_map(Slots(lang, rng))
        if kind not in COMPOSING or not names_a_term(question, lang):
            return question, tables.ANSWERS["decline"][lang]


ASK: dict[str, Callable[[random.Random, str, bool, int | None], tuple[str, str]]] = {
    "identity": ask_intent(tables.IDENTITY), "small_talk": ask_intent(tables.SMALL_TALK), "glossary": ask_glossary,
    "compare": ask_compare,
    "capital": ask_capital, "capital_of": ask_capital_of, "add": ask_add, "sub": ask_sub,
    "prime_list": ask_prime_list, "prime_is": ask_prime_is, "count": ask_count, "sum_to": ask_sum_to, "pi": ask_pi,
    "pi_what": ask_pi_what, "unknown": ask_unknown,
}


def make_item(category: str, lang: str, rng: random.Random, held: bool = False, index: int | None = None) -> Item:
    """某类某语言的一问一答；`held` 为真时只用留出的模板、数对和种类。

    One question and answer; with `held` only held-out templates, number pairs and kinds are used.
    """
    question, answer = ASK[category](rng, lang, held, index)
    return Item(category, lang, decorate(question, lang, rng), answer)


def training_items(seed: int, count: int) -> Iterator[Item]:
    """按份额混合的训练问答，由 `seed` 完全决定。

    Training questions mixed by share, fully determined by `seed`.
    """
    rng = random.Random(seed)
    categories, shares = list(SHARES), list(SHARES.values())
    for _ in range(count):
        yield make_item(rng.choices(categories, shares)[0], rng.choice(LANGS), rng)


def training_conversations(seed: int, count: int) -> Iterator[list[Message]]:
    """训练对话：多数一轮，少数两三轮，偶尔带系统提示词。

    Training conversations: mostly one turn, some of two or three, some with a system prompt.
    """
    rng = random.Random(seed)
    items = training_items(seed, 3 * count)
    prompts = [prompt for lang in LANGS for prompt in tables.PHRASES[lang]["system prompts"]]
    for _ in range(count):
        messages = [{"role": "system", "content": rng.choice(prompts)}] if rng.random() < 0.12 else []
        for item in itertools.islice(items, rng.choices([1, 2, 3], [84, 10, 6])[0]):
            messages += [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
        yield messages


def held_out_items(category: str, lang: str, count: int, seed: int = 0) -> list[Item]:
    """评测用的问答：模板、数对和种类都是训练从未见过的。

    Questions for the evaluation: their templates, number pairs and kinds were never seen in training.
    """
    rng = random.Random(f"{seed}/{category}/{lang}")
    return [make_item(category, lang, rng, held=True, index=i) for i in range(count)]


def near_unknown_items(lang: str, count: int, seed: int = 0) -> list[Item]:
    """种类见过、但填词是新的“不知道”问题：多与已知问题很像。

    Unknown questions of kinds that were trained, freshly filled: many look close to known ones.
    """
    rng = random.Random(f"{seed}/near/{lang}")
    return [make_item("unknown", lang, rng) for _ in range(count)]


@functools.cache
def longest_openings(lang: str) -> list[str]:
    """全部礼貌开头，小写，长的在前。

    All polite openings in lower case, the longest first.
    """
    return sorted((p.lstrip("+").lower() for p in tables.PHRASES[lang]["openings"]), key=len, reverse=True)


def normalize(question: str, lang: str) -> str:
    """去掉礼貌用语、标点、空格和大小写，得到泄漏检查比较的形式。

    Removes politeness, punctuation, spaces and case: the form that the leak check compares.
    """
    text, openings = question.strip().lower(), longest_openings(lang)
    while hit := next((p for p in openings if text.startswith(p) and len(text) > len(p)), None):
        text = text[len(hit) :]
    return re.sub(r"[\s?!.,;:？。！，：]+", "", text)


def main(argv: list[str] | None = None) -> int:
    """打印样本，或以 JSON Lines 写出。

    Prints samples, or writes them as JSON lines.
    """
    parser = argparse.ArgumentParser(description="打印训练样本或留出问题 / print samples or held-out questions")
    parser.add_argument("--count", type=int, default=20, help="样本数 / number of samples")
    parser.add_argument("--seed", type=int, default=0, help="随机种子 / random seed")
    parser.add_argument("--held-out", action="store_true", help="打印留出的问题 / print held-out questions instead")
    parser.add_argument("--out", type=Path, help="写入这个 JSON Lines 文件 / write to this JSON lines file")
    args = parser.parse_args(argv)
    rows: Iterator[Any] = training_conversations(args.seed, args.count)
    if args.held_out:
        items = (held_out_items(c, lang, args.count, args.seed) for c in ASK for lang in LANGS)
        rows = ({"category": i.category, "lang": i.lang, "question": i.question, "answer": i.answer}
                for i in itertools.chain.from_iterable(items))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
