"""把一份输出的 token 还原成文字：整段的、流式的、为 `stop` 字符串而查的，都走 `Detokenizer` 这一条路，所以总是相等。

一份输出的文字，是“提示词加输出”的文字去掉提示词的那部分。难处有两个：一个字符可以跨几个 token，“😀”是 4 个字节，
往往也就是 4 个 token；同一个 token 在全文开头和在中间，文字可以不同，Llama 2 的“▁list”在开头没有空格。
你在这里：`Scheduler.commit` 每得到一个 token 就交给 `OutputText.append`，`Requests.output` 取走文字。

An output's tokens back to text: the whole, the pieces of a stream and the search for `stop` strings all go through
`Detokenizer`, so they are always equal.

An output's text is the text of prompt and output without the prompt's. Two things make it hard. A character may span
several tokens: "😀" has 4 bytes, often 4 tokens. And a token may read differently at the very start than in the middle:
Llama 2's "▁list" has no space at the start. `Scheduler.commit` hands each token to `OutputText.append`, and
`Requests.output` takes the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from engine.sampling_params import SamplingParams

# 只有类型标注用到它。真导入它就会带进 torch，而调度器经过 `sequence.py` 也要导入本文件。
# For annotations only. Importing it would bring torch, and the scheduler imports this file by way of `sequence.py`.
if TYPE_CHECKING:
    from engine.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"

# 上文留几个 token：半个字符最多 3 个字节，也就是 3 个 token，前面还要有别的。
# How many tokens of context stay: half a character has at most 3 bytes, hence 3 tokens, and others must precede it.
CONTEXT = 8


class Detokenizer:
    """增量还原：交出的各段接起来等于一次还原的整段，从不切开一个字符，也从不收回交出去的。

    Incremental decoding: the pieces joined are what decoding the whole at once gives; none splits a character, and none
    is ever taken back.

    Args:
        prompt_token_ids: 输出之前的 token，它的末尾是最初的上文；what precedes the output; its end is the first context
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()
    ) -> None:
        self._visible = partial(tokenizer.visible, skip_special_tokens=skip_special_tokens)
        self._decode = partial(tokenizer.decode, skip_special_tokens=False)
        # 只留一个小窗口：末尾的几个 token，先是提示词的。无论输出多长，一个 token 的代价都一样。
        # Only a small window is kept, the last few tokens, at first the prompt's. So a token costs the same, however
        # long the output is.
        self._window = list(islice(filter(lambda i: self._visible([i]), reversed(prompt_token_ids)), CONTEXT))[::-1]
        # 窗口的文字里已经交出去的，或者属于提示词的那一段。
        # The part of the window's text that has been given out, or is the prompt's.
        self._given = self._decode(self._window)

    def push(self, *token_ids: int) -> str:
        """收下几个 token，返回因此确定下来的文字，可以是空的。

        Take tokens and return the text that they settle, which may be empty.
        """
        self._window += self._visible(token_ids)
        text = self._decode(self._window)
        # 提示词若断在半个字符中间，补全它的那个 token 就交出整个字符，它的替换符不再算数。
        # If the prompt ends in half a character, the token that completes it gives the character, and the prompt's
        # replacement mark no longer counts.
        start = len(self._given) - (not text.startswith(self._given))
        # 末尾的一个替换符可能是半个字符，先扣着；半个字符只还原成 1 个，所以在它前面的都不会再变。
        # A replacement mark at the end may be half a character and is held back; half a character makes just 1, so what
        # precedes it is final.
        #     token   " a"   E4      BD      A0      "!"
        #     text    " a"   " a�"   " a�"   " a你"  " a你!"
        #     piece   " a"   ""      ""      "你"    "!"
        end = max(start, len(text) - text.endswith(REPLACEMENT))
        piece, self._given = text[start:end], text[:end]
        if len(self._window) >= 2 * CONTEXT:
            tail = self._decode(self._window[-CONTEXT:])
            if tail:
                self._window, self._given = self._window[-CONTEXT:], tail[: len(tail) - len(text) + end]
            else:
                # 没有文字的当不了上文：丢掉它们，留着前面的。
                # What has no text is no context: drop it and keep what precedes it.
                del self._window[-CONTEXT:]
        return piece

    def rest(self) -> str:
        """输出到此为止时，还扣着的那部分文字。

        The text still held back, should the output end here.
        """
        return self._decode(self._window)[len(self._given) :]


class OutputText:
    """一份输出到目前为止的文字，并在其中寻找 `stop` 字符串。

    An output's text so far, searched for its `stop` strings.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt_token_ids: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, params.skip_special_tokens, prompt_token_ids)
        self._stop = [params.stop] if isinstance(params.stop, str) else list(params.stop or [])
        # 每个停止字符串最早还可能从文字的哪里开始；只往前走，所以代价与文字的长度成正比。
        # Where in the text each stop string may begin at the earliest; it only moves forward, so the cost is in
        # proportion to the text.
        self._starts = [0] * len(self._stop)
        self._text = ""
        self._stopped = False

    def append(self, token_id: int, check_stop: bool) -> str | None:
        """收下一个 token；若文字里因此出现了停止字符串，就从那里截断，并返回那个字符串。

        Take a token; if it completes a stop string, cut the text there and return that string.
        """
        self._text += self._detokenizer.push(token_id)
        found: list[tuple[int, str]] = []
        for index, stop in enumerate(self._stop):
            start = self._first_start(stop, self._starts[index])
            if check_stop and self._text.startswith(stop, start):
                found.append((start, stop))
            # `min_tokens` 之前出现的不算，从它后面接着找。
            # One that comes before `min_tokens` does not count; look on behind it.
            while not check_stop and self._text.startswith(stop, start):
                start = self._first_start(stop, start + 1)
            self._starts[index] = start
        # 最早的匹配优先；位置相同时 `min` 取列表里排在前面的。
        # The earliest match wins; of equal positions `min` takes the first in the list.
        at, stopped = min(found, key=lambda match: match[0], default=(0, None))
        if stopped is not None:
            self._text, self._stopped = self._text[:at], True
        return stopped

    def _first_start(self, stop: str, start: int) -> int:
        """从 `start` 起，第一个到文字末尾为止都与 `stop` 相符的位置；没有就是末尾。

        The first place from `start` on where `stop` fits as far as the text goes; the text's end if there is none.
        """
        # "###" 在 "a#b##" 里是 3，在 "a#b" 里也是 3，即末尾。
        # "###" in "a#b##" gives 3, and in "a#b" 3 as well, the end.
        while not stop.startswith(self._text[start : start + len(stop)]):
            start = self._text.find(stop[0], start + 1)
            if start < 0:
                return len(self._text)
        return start

    def so_far(self, finished: bool) -> str:
        """可以给用户看的文字：没结束时，扣下可能是停止字符串开头的尾巴。

        The text that may be shown: before the end, a tail that may begin a stop string is held back.
        """
        if finished:
            return self._text if self._stopped else self._text + self._detokenizer.rest()
        #     stop "###", text "answer #"  ->  "answer "
        return self._text[: min(self._starts, default=None)]
