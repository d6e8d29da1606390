"""造 tiny-poet 的语料：从软件包仓库取诗词和英文词典，筛选、去重，分成训练与留出两份，再训练分词器。

诗词来自 npm 的 `chinese-poetry`，释义来自 Debian 的 `wordnet-base`，繁简对照来自 PyPI 的 OpenCC 词典；文本不进仓库，
只写进 `build/poet`。全唐诗和全宋诗原文是繁体，转成简体几乎没有歧义，所以两种字体都用；宋词原文是简体，转成繁体要猜
（“后”是“後”还是“后”），所以保持原样。

    python tools/make_poet_corpus.py
    python tools/make_poet_corpus.py --show 10

Makes the corpus of tiny-poet: takes verse and an English dictionary from package registries, filters, removes
duplicates, splits into a training and a held-out part, and trains the tokenizer.

Verse comes from npm's `chinese-poetry`, glosses from Debian's `wordnet-base`, the pairs of traditional and simplified
characters from PyPI's OpenCC dictionaries; the text stays out of the repository and goes to `build/poet` only. The
poems (shi) of Tang and Song are written in traditional characters, and simplifying them is nearly unambiguous, so both
scripts are used; the lyrics (ci) come simplified, and the way back would be a guess (“后” may be “後” or “后”), so they
stay as they are.
"""

import argparse
import functools
import hashlib
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.training import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "poet"
BASE_VOCAB = 6144
# 每个包：怎样取，文件名的样式，SHA-256；Debian 会重新打包，所以对它只核对四个数据文件。
# Each package: how to fetch it, the pattern of its file's name, its SHA-256; Debian repacks, so there only the four
# data files are checked.
PACKAGES = {
    "poetry": (["npm", "pack", "--silent", "chinese-poetry@2.0.1"], "chinese-poetry-2.0.1.tgz",
               "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86"),
    "wordnet": (["apt-get", "download", "wordnet-base"], "wordnet-base_*3.0-*_all.deb",
                "9c33953116f661f96b2af6815ea87a505a54cd48e72994ba47bca5aad58840a6"),
    "opencc": ([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "opencc-python-reimplemented==0.1.7"],
               "opencc_python_reimplemented-0.1.7-*.whl",
               "41b3b92943c7bed291f448e9c7fad4b577c8c2eae30fcfe5a74edf8818493aa6"),
}
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
HELD_OUT_PERCENT = 1

# 四字节的生僻字、缺字符号、校注用的括号、字母数字都不在其中；有一个别的字符，整首就不要。
# Characters of four bytes, marks for lost characters, brackets of editors, letters and digits are not among these; a
# poem with any other character is left out.
VERSE = re.compile(r"[\u3400-\u9fff，。？！、；：\n]+")
HEAD = re.compile(r"[\u3400-\u9fff]{1,8}")
SHORTEST, LONGEST, LONGEST_LINE, LONGEST_GLOSS = 20, 640, 48, 160
COARSE = re.compile("[屎尿糞粪娼嫖屄]")
# 词典标为冒犯的词，它的任何一义都不要；话题不雅的释义也不要。宁可多去掉一些。
# A word that the dictionary marks as offensive is left out in all its senses, and so are glosses on indelicate topics;
# rather too many than too few.
USAGE = {"disparagement", "ethnic slur", "obscenity", "slang", "street name"}
MARK = re.compile(r"(?i)offensive (?:term|name|word)|disparag|derogat|obscen|vulgar|slur\b|pejorative|dirty word")
OFFENSIVE = re.compile(
    r"(?i)offensive|slang|contempt|insult|abus|swear|curse|sex|genital|copulat|coit|foreskin|clitor|promiscu|erotic|slut|"
    r"\blust|prostitut|brothel|porn|orgasm|masturbat|penis|vagin|vulva|testic|semen\b|erection|\brap(?:e|ist)\b|"
    r"incest|pedophil|nude|naked|breasts?\b|nipple|buttock|\banus|excre|feces|urin|suicid|racis|racial|negro|\bjew|"
    r"muslim|nazi|genocid|slave|tortur|terroris|homosexual|lesbian|\bgay\b|retard|\bidiot|imbecil|stupid|\bfool|"
    r"(?:black|dark-skinned|gypsy) (?:person|people|man|woman)"
)


@dataclass(frozen=True, slots=True)
class Document:
    """一首诗词，或一个词条。

    A poem, or an entry of the dictionary.

    Attributes:
        kind: `shi`（繁体诗）、`ci`（简体词）或 `gloss`；`shi` (traditional), `ci` (simplified) or `gloss`
        head: 《题目》和作者，可能为空；"《title》" and author, may be empty
        text: 正文，诗词一句一行；the text, verse with one sentence a line
        famous: 是否在“三百首”之列；whether it is in one of the collections of "三百首"
    """

    kind: str
    head: str
    text: str
    famous: bool = False


# ---- 取包 ----
# ---- fetching ----


def fetch(name: str, folder: Path) -> Path:
    """取一个包，已经取过就不再取；返回文件的路径。

    Fetches a package unless it is there already, and returns the path of its file.
    """
    command, pattern, _ = PACKAGES[name]
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob(pattern)):
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    if not (found := sorted(folder.glob(pattern))):
        raise ValueError(f"{' '.join(command)} left no {pattern} in {folder}; another version is served")
    return found[-1]


def check_hash(name: str, content: bytes) -> None:
    """内容的 SHA-256 必须与记下的相同。

    The SHA-256 of the content must be the one on record.

    Raises:
        ValueError: 不同；it differs
    """
    if (got := hashlib.sha256(content).hexdigest()) != PACKAGES[name][2]:
        raise ValueError(f"{name}: sha256 is {got}, not {PACKAGES[name][2]}; take the version on record")


def read_tar(content: bytes, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """tar 里名字相符的文件。

    The files of a tar whose names match.
    """
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {m.name: tar.extractfile(m) for m in tar if m.isfile() and wanted.search(m.name)}
        return {name: file.read() for name, file in members.items() if file is not None}


# ---- 诗词 ----
# ---- verse ----


def read_poems(files: dict[str, bytes]) -> Iterator[Document]:
    """包里的全唐诗、宋词和全宋诗，按这个次序；写法不合的已去掉。

    The Tang poems, the ci and the Song poems of the package, in this order; what is not well written is left out.
    """
    for folder, prefix, kind in (("quantangshi", "poet.tang", "shi"), ("songci", "ci.song", "ci"),
                                 ("quantangshi", "poet.song", "shi")):
        pattern = re.compile(rf"{folder}/{re.escape(prefix)}\.(\d+)\.json$")
        numbered = sorted((int(m[1]), name) for name in files if (m := pattern.search(name)))
        for _, name in numbered:
            for poem in json.loads(files[name]):
                document = make_poem(poem, kind)
                if document and (prefix != "poet.song" or document.famous or is_regular(document.text)):
                    yield document


def make_poem(poem: dict[str, Any], kind: str) -> Document | None:
    """把包里的一条变成文档；有缺字、校注、粗俗字，太短或太长的不要。

    Makes a document of an entry of the package; with lost characters, editors' notes or coarse words, too short or too
    long, it is none.
    """
    text = unicodedata.normalize("NFC", "\n".join(poem["paragraphs"]))
    title, author = poem.get("title", poem.get("rhythmic", "")), poem["author"]
    lines = text.split("\n")
    well_formed = VERSE.fullmatch(text) and all(line[-1:] in "。？！" and len(line) <= LONGEST_LINE for line in lines)
    if not well_formed or not SHORTEST <= len(text) <= LONGEST or title.startswith("句") or COARSE.search(text):
        return None
    short = HEAD.fullmatch(title) and HEAD.fullmatch(author) and not COARSE.search(title)
    head = f"《{title}》{author}" if short else ""
    return Document(kind, head, text, any("三百首" in tag for tag in poem.get("tags", [])))


def is_regular(text: str) -> bool:
    """是否通篇五言或通篇七言；全宋诗里其余的多是偈颂。

    Whether all clauses have five, or all have seven characters; most other Song poems are Buddhist verses.
    """
    return {len(clause) for clause in re.findall(r"[\u3400-\u9fff]+", text)} in ({5}, {7})


def clauses(text: str) -> list[str]:
    """简体的分句，四字以上；判断两首是否相同时比较它们。

    The clauses in simplified characters, of four or more; two poems are compared by them.
    """
    return re.findall(r"[\u3400-\u9fff]{4,}", text)


def split_poems(poems: list[Document], table: "Simplifier") -> tuple[list[Document], list[Document]]:
    """去重，分成（训练，留出）。

    先后次序里，一半分句已经出现过的诗是重复的，去掉；与训练诗有两句相同的留出诗也去掉。名篇都用于训练。

    Removes duplicates and splits into (training, held out).

    A poem half of whose clauses came before is a duplicate and is dropped; so is a held-out poem that shares two
    clauses with the training part. Famous poems are all for training.
    """
    seen: set[str] = set()
    parts: tuple[list[Document], list[Document]] = ([], [])
    for poem in sorted(poems, key=lambda poem: not poem.famous):
        own = clauses(table.simplify(poem.text))
        if 2 * sum(clause in seen for clause in own) < len(own):
            parts[not poem.famous and is_held_out("".join(own))].append(poem)
            seen.update(own)
    known = {clause for poem in parts[0] for clause in clauses(table.simplify(poem.text))}
    held = [p for p in parts[1] if sum(clause in known for clause in clauses(table.simplify(p.text))) < 2]
    return parts[0], held


def is_held_out(text: str) -> bool:
    """由正文的散列决定一篇文档是否留出。

    Whether a document is held out, decided by a hash of its text.
    """
    return zlib.crc32(text.encode()) % 100 < HELD_OUT_PERCENT


class Simplifier:
    """繁体到简体：先换整词（例如“乾坤”不变），再逐字换。

    Traditional to simplified: whole words first (such as “乾坤”, which stays), then character by character.
    """

    def __init__(self, words: dict[str, str], characters: dict[str, str]) -> None:
        """记下两张对照表。

        Keeps both tables.
        """
        self.words, self.characters = words, characters
        longest_first = sorted(words, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.table = str.maketrans(characters)

    def simplify(self, text: str) -> str:
        """简体的 `text`。

        `text` in simplified characters.
        """
        pieces, end = [], 0
        for match in self.pattern.finditer(text):
            pieces += [text[end : match.start()].translate(self.table), self.words[match[0]]]
            end = match.end()
        return "".join(pieces) + text[end:].translate(self.table)


def read_opencc(path: Path) -> Simplifier:
    """从 OpenCC 的词典读出对照表，一对多时取第一个。

    Reads the tables from OpenCC's dictionaries; of several choices it takes the first.
    """
    tables = []
    with zipfile.ZipFile(path) as wheel:
        for name in ("TSPhrases", "TSCharacters"):
            lines = wheel.read(f"opencc/dictionary/{name}.txt").decode().splitlines()
            pairs = (line.split("\t") for line in lines if line)
            tables.append({old: new.split(" ")[0] for old, new in pairs})
    return Simplifier(*tables)


# ---- 释义 ----
# ---- glosses ----


@dataclass(frozen=True, slots=True)
class Synset:
    """WordNet 的一个同义词集。

    A synset of WordNet.
    """

    words: list[str]
    pointers: list[tuple[str, str]]
    gloss: str


def read_synsets(files: dict[str, bytes]) -> dict[str, Synset]:
    """四个数据文件里的全部同义词集，键是词性和偏移，例如 `n00001740`。

    All synsets of the four data files by part of speech and offset, such as `n00001740`.
    """
    synsets = {}
    for name in PARTS_OF_SPEECH:
        for line in files[name].decode("ascii").splitlines():
            if line.startswith("  "):
                continue
            data, gloss = line.split(" | ", 1)
            fields = data.split()
            end = 4 + 2 * int(fields[3], 16)
            words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4:end:2]]
            targets = zip(fields[end + 1 :: 4], fields[end + 3 :: 4], fields[end + 2 :: 4])
            pointers = [(symbol, pos + offset) for symbol, pos, offset in targets][: int(fields[end])]
            pos = "r" if name == "adv" else name[0]
            synsets[pos + fields[0]] = Synset(words, pointers, gloss.strip())
    return synsets


def marked_words(synsets: dict[str, Synset]) -> set[str]:
    """有一义被标为冒犯、粗俗或俚语的词。

    Words of which one sense is marked as offensive, vulgar or slang.
    """
    marked: set[str] = set()
    for synset in synsets.values():
        usage = {synsets[target].words[0] for symbol, target in synset.pointers if symbol == ";u"}
        if usage & USAGE or MARK.search(synset.gloss):
            marked.update(word.lower() for word in synset.words)
    return marked


def read_glosses(synsets: dict[str, Synset]) -> Iterator[Document]:
    """每个（词，释义）一篇，形如 `word: gloss`；例句、专名、冒犯的都去掉。

    One document for each word and gloss, as in `word: gloss`; without examples, proper names and what offends.
    """
    marked = marked_words(synsets)
    for synset in synsets.values():
        # `@i` 指向“某人、某城的实例”：关于真人真地的事实，诗人不该编造。
        # `@i` marks a certain person or city: facts about what is real, which a poet should not invent.
        named = any(symbol == "@i" for symbol, _ in synset.pointers)
        gloss = re.split(r';\s*"|\s"', synset.gloss)[0].strip(" ;:,")
        if named or not 8 <= len(gloss) <= LONGEST_GLOSS or gloss.count("(") != gloss.count(")"):
            continue
        clean = marked.isdisjoint(map(str.lower, synset.words))
        if clean and not OFFENSIVE.search(" ".join([gloss, *synset.words])):
            yield from (Document("gloss", "", f"{word}: {gloss}") for word in synset.words)


def split_glosses(glosses: list[Document]) -> tuple[list[Document], list[Document]]:
    """按释义的散列分成（训练，留出）：同一释义的各个词在同一边。

    Splits into (training, held out) by a hash of the gloss: all words of one gloss are on the same side.
    """
    parts: tuple[list[Document], list[Document]] = ([], [])
    for document in dict.fromkeys(glosses):
        gloss = re.sub(r"\W+", " ", document.text.split(": ", 1)[1].lower())
        parts[is_held_out(gloss)].append(document)
    return parts


# ---- 语料文件夹 ----
# ---- the folder of the corpus ----


def write_corpus(parts: dict[str, list[Document]], table: Simplifier, folder: Path) -> None:
    """写 `train.jsonl`、`held_out.jsonl` 和只含用得到的字的 `simplified.json`。

    Writes `train.jsonl`, `held_out.jsonl`, and `simplified.json` with those characters only that occur.
    """
    for name, documents in parts.items():
        lines = (json.dumps(asdict(document), ensure_ascii=False) for document in documents)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    used = {c for documents in parts.values() for d in documents if d.kind == "shi" for c in d.head + d.text}
    kept = [{old: new for old, new in t.items() if used.issuperset(old)} for t in (table.words, table.characters)]
    (folder / "simplified.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def read_corpus(folder: Path, name: str) -> list[Document]:
    """`train` 或 `held_out` 的全部文档。

    All documents of `train` or `held_out`.
    """
    path = folder / f"{name}.jsonl"
    if not path.exists():
        raise ValueError(f"{path} is missing; make the corpus first: python tools/make_poet_corpus.py")
    return [Document(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


@functools.cache
def read_simplifier(folder: Path) -> Simplifier:
    """`write_corpus` 写下的繁简对照。

    The tables that `write_corpus` wrote.
    """
    return Simplifier(*json.loads((folder / "simplified.json").read_text(encoding="utf-8")))


def render(document: Document, table: Simplifier, rng: random.Random) -> str:
    """训练时一篇文档的样子：一半的诗转成简体，有题目的一半带题目。

    How a document looks in training: half of the shi are simplified, half of those with a title show it.
    """
    text = f"{document.head}\n{document.text}" if document.head and rng.random() < 0.5 else document.text
    return table.simplify(text) if document.kind == "shi" and rng.random() < 0.5 else text


NOTICE = """\
tiny-poet 和 tiny-poet-draft 的权重由下列文本训练而成；文本本身不在这个仓库里。
The weights of tiny-poet and tiny-poet-draft were trained on the following text, which is not in this repository.

================ WordNet 3.0 (Debian wordnet-base) ================

{wordnet}

================ chinese-poetry 2.0.1 (npm) ================

{poetry}

================ OpenCC dictionaries (PyPI opencc-python-reimplemented 0.1.7) ================

{opencc}
The dictionaries are under the Apache License 2.0; they served to simplify characters in the training text.
"""


def main(argv: list[str] | None = None) -> int:
    """命令行入口。

    The command line.
    """
    parser = argparse.ArgumentParser(description="造 tiny-poet 的语料 / make the corpus of tiny-poet")
    parser.add_argument("--out", type=Path, default=FOLDER, help="语料文件夹 / folder of the corpus")
    parser.add_argument("--show", type=int, default=0, help="打印多少个样本 / samples to print")
    args = parser.parse_args(argv)

    paths = {name: fetch(name, args.out / "downloads") for name in PACKAGES}
    for name in ("poetry", "opencc"):
        check_hash(name, paths[name].read_bytes())
    table = read_opencc(paths["opencc"])
    wanted = re.compile(r"package/(?:LICENSE|dist/(?:quantangshi|songci)/[a-z.]+\d+\.json)$")
    poetry = read_tar(paths["poetry"].read_bytes(), wanted)
    unpack = subprocess.run(["dpkg-deb", "--fsys-tarfile", paths["wordnet"]], check=True, stdout=subprocess.PIPE)
    wordnet = read_tar(unpack.stdout, re.compile(r"/wordnet/data\.|/copyright$"))
    data = {pos: wordnet[f"./usr/share/wordnet/data.{pos}"] for pos in PARTS_OF_SPEECH}
    check_hash("wordnet", b"".join(data.values()))

    poems = split_poems(list(read_poems(poetry)), table)
    glosses = split_glosses(list(read_glosses(read_synsets(data))))
    parts = {"train": poems[0] + glosses[0], "held_out": poems[1] + glosses[1]}
    write_corpus(parts, table, args.out)
    for name, documents in parts.items():
        count, size = Counter(d.kind for d in documents), sum(len(d.text) for d in documents)
        print(f"{name}: {dict(count)}, {size:,} characters", flush=True)
    with zipfile.ZipFile(paths["opencc"]) as wheel:
        opencc = wheel.read("opencc/NOTICE.txt").decode("utf-8-sig").replace("\r", "").strip()
    copyright_file = wordnet["./usr/share/doc/wordnet-base/copyright"].decode()
    licence = copyright_file.split("License: WordNet3.0\n")[1].split("\n\n")[0]
    licence = "\n".join(line[1:].removeprefix(".").rstrip() for line in licence.splitlines())
    notice = NOTICE.format(wordnet=licence, poetry=poetry["package/LICENSE"].decode().strip(), opencc=opencc)
    for name in ("tiny-poet", "tiny-poet-draft"):
        (ROOT / "assets" / name / "NOTICE").write_text(notice, encoding="utf-8")

    # 释义只取三分之一：英文合并得少一些，更多的汉字就能自成一个词元。
    # Only a third of the glosses: with fewer merges for English, more Han characters become tokens of their own.
    rng = random.Random(0)
    sample = rng.sample(poems[0], len(poems[0]) // 2) + glosses[0][::3]
    tokenizer = train_tokenizer((render(document, table, rng) for document in sample), BASE_VOCAB)
    tokenizer.save(str(args.out / "tokenizer.json"), pretty=False)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {(args.out / 'tokenizer.json').stat().st_size:,} bytes")
    for document in rng.sample(parts["train"], args.show):
        print(f"[{document.kind}] {render(document, table, rng)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
