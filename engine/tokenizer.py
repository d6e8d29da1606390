"""分词器：文字 <-> token id；对话先由 `chat_template.py` 变成文字。底层用 `transformers`，这里只补上容易出错的规则。

The tokenizer: text <-> token ids; `chat_template.py` first turns a conversation into text. `transformers` does the
work; here are only the rules that are easily missed.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from models.fields import ModelLoadError

# `BYTES["<0x0A>"]` 是 10：有些词表把没有的字符拆成字节，每个字节是一个这样写的 token。
# `BYTES["<0x0A>"]` is 10: some vocabularies spell what they lack in bytes, each a token written like this.
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
_IMPORTING = threading.Lock()


class Tokenizer:
    """一个模型文件夹的分词器。

    The tokenizer of a model folder.

    Attributes:
        max_chars: 更长的文字不分词就拒绝；引擎按 `max_model_len` 设定；
            longer text is refused before it is tokenized; the engine sets it by its `max_model_len`
        hf_tokenizer: `transformers` 的分词器，`serving/chat_template.py` 用它的对话模板；
            that of `transformers`; its chat template is used by `serving/chat_template.py`
        eos_token_id: 分词器自己的文件写明的结束符，或 None；the end token that the tokenizer's own files name, or None
    """

    def __init__(self, folder: Path) -> None:
        # 自己先查文件：缺文件时 `transformers` 报的错，往往看不出缺的是哪个，更不说怎么办。
        # Look first: the error of `transformers` hardly tells which file is missing, still less what to do.
        if not (folder / "tokenizer.json").exists():
            raise ModelLoadError(f"{folder} lacks tokenizer.json: download the model again")
        # 直接用快速分词器的基类：`AutoTokenizer` 会为了找类名多导入几百个模块，慢好几倍。
        # The fast tokenizers' base class directly: `AutoTokenizer` imports hundreds of modules to find a class name.
        # 导入要一秒左右，所以放到用时才做：`--help` 和 `--list-backends` 不必等它。
        # The import takes about a second, so it happens on use: `--help` and `--list-backends` need not wait for it.
        # 几个线程同时第一次导入 transformers，它的惰性模块会说没有这个名字：一次只让一个线程进去。
        # If several threads import transformers at once for the first time, its lazy module says that there is no such
        # name: one thread at a time.
        with _IMPORTING:
            from transformers import PreTrainedTokenizerFast

        try:
            # 长度上限由引擎检查，消息也更清楚；不关掉分词器自己的上限，它会先打印一句误导人的警告。
            # The engine checks the length, with a clearer message; the tokenizer's own limit would first print a
            # misleading warning.
            self.hf_tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(folder), local_files_only=True, model_max_length=1 << 62
            )
        # 捕获一切：底层的 Rust 库对坏文件抛的是最普通的 `Exception`，再窄就漏掉了。
        # Catch everything: for a bad file the Rust library raises a plain `Exception`, and anything narrower misses it.
        except Exception as error:
            raise ModelLoadError(f"the tokenizer in {folder} cannot be loaded ({error}): download it again") from None
        self.max_chars = 1 << 62
        self.eos_token_id: int | None = self.hf_tokenizer.eos_token_id
        # 按 id 认特殊 token：底层的库按字符串认，标了 `normalized` 的，名字被改写之后它就认不出来了。
        # Special tokens are known by id: the library compares strings, and misses those flagged `normalized`, whose
        # names it rewrites.
        added = self.hf_tokenizer.added_tokens_decoder.items()
        self._special = {i for i, token in added if token.special} | set(self.hf_tokenizer.all_special_ids)
        self._backend = self.hf_tokenizer.backend_tokenizer
        self._texts: dict[int, str] = {}
        # id 的写法，例如 "▁list"、"<0x0A>"；词表没有这个 id 就是 None。
        # How an id is written, "▁list" or "<0x0A>" say; None if the vocabulary has no such id.
        self._piece: Callable[[int], str | None] = lru_cache(1 << 16)(self._backend.id_to_token)
        self._byte_fallback = self._join(["<0x41>"]) == "A"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """文字变 token id；`add_special_tokens` 决定要不要在前面加 BOS。

        Text to token ids; `add_special_tokens` says whether BOS goes in front.
        """
        #   Llama 3: "Hello", True -> [128000, 9906];  "Hello", False -> [9906]
        if len(text) > self.max_chars:
            raise ValueError(f"the prompt has {len(text)} characters: shorten it to at most {self.max_chars}")
        # 命令行里的坏字节会变成落单的代理字符，分词器不认；在这里说清楚，好过它内部的 TypeError。
        # A bad byte on the command line becomes a lone surrogate that the tokenizer refuses; say so here.
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("the prompt is not valid text: it holds a byte that is not UTF-8") from None
        return self.hf_tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def visible(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> list[int]:
        """其中有文字的：词表里没有的、不要显示的特殊 token 都去掉。

        Those of them that have text: without ids that the vocabulary lacks, and special tokens if these are hidden.
        """
        hidden: Any = self._special if skip_special_tokens else ()
        return [i for i in token_ids if i not in hidden and self._piece(i) is not None]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """token id 变文字。

        Token ids to text.
        """
        # 绕过 `transformers` 的“清理”：它把 "a , b" 改成 "a, b"，不再是模型写的原文，而 Llama 3 的配置偏偏打开了它。
        # Past the "clean-up" of `transformers`: it turns "a , b" into "a, b", not what the model wrote, and Llama 3's
        # configuration asks for it.
        ids = self.visible(token_ids, skip_special_tokens)
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        if not self._byte_fallback or "\ufffd" not in text:
            return text
        # 一串字节 token 里有一个坏字节，底层的库就把整串都变成替换符；这里只替换坏的那几个字节。
        # For one bad byte the library turns a whole run of byte tokens into replacement marks; here only the bad bytes
        # are replaced.
        #     <0xE4> <0xBD> <0xA0> <0xFF>   library "����"   here "你�"
        pieces: list[str] = []
        for is_bytes, run in groupby(map(str, map(self._piece, ids)), BYTES.__contains__):
            if is_bytes:
                sound = bytes(map(BYTES.__getitem__, run)).decode("utf-8", "replace").encode()
                run = map("<0x{:02X}>".format, sound)
            pieces += run
        return self._join(pieces)

    def _join(self, pieces: list[str]) -> str:
        """token 的写法接成文字；没有解码器的分词器（整词的）在中间加空格。

        How tokens are written, joined to text; a tokenizer without a decoder, of whole words, puts spaces between.
        """
        decoder = self._backend.decoder
        return str(decoder.decode(pieces) if decoder else " ".join(pieces))

    def decode_token(self, token_id: int) -> str:
        """单个 token 在一段文字中间的样子，特殊 token 也写出来；它若只是一个字符的一部分，得到的是替换符。

        A single token as it reads amid text, special tokens included; one that is only part of a character gives a
        replacement mark.
        """
        # 记住答案：256 行都要对数概率时，一步要问一千多次，每次都重算，就比 GPU 的一步还久。
        # Answers are kept: where 256 rows ask for log-probabilities, over a thousand questions a step would outlast the
        # GPU's step if each were worked out again.
        if token_id not in self._texts:
            # 前面放一个 "a" 再去掉：放在全文开头，“▁list”的空格就没有了。
            # An "a" is put in front and taken away again: at the very start, "▁list" would lose its space.
            piece = self._piece(token_id)
            self._texts[token_id] = "" if piece is None else self._join(["a", piece])[1:]
        return self._texts[token_id]
