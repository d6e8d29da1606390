"""把 token 一个一个还原成文字：流式输出和 `stop` 字符串都靠它；两样都不用的请求，不会建它。

难处在于一个字符可以跨几个 token：“😀”是 4 个字节，往往也就是 4 个 token，前 3 个单独还原只得到替换符 U+FFFD。
你在这里：`Scheduler.commit` 每得到一个 token 就交给 `OutputText.append`，`Requests.output` 取走文字。

Token by token back to text, for streaming and for `stop` strings; a request that uses neither has no such object.

The difficulty: a character may span several tokens. "😀" has 4 bytes, often 4 tokens, and the first 3 alone decode to
the replacement character U+FFFD. `Scheduler.commit` hands each token to `OutputText.append`, and
`Requests.output` takes the text.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from engine.sampling_params import SamplingParams

# 只有类型标注用到它。真导入它就会带进 torch，而调度器经过 `sequence.py` 也要导入本文件。
# For annotations only. Importing it would bring torch, and the scheduler imports this file by way of `sequence.py`.
if TYPE_CHECKING:
    from engine.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
# 未完成的字符最多 3 个字节，所以合法的文字最多等 3 个 token；等了这么多个还没完，就是乱码。
# An unfinished character has at most 3 bytes, so valid text waits for 3 tokens at most; after this many it is garbage.
MAX_UNDECIDED = 8


class Detokenizer:
    """增量还原：交出的各段接起来，恰好等于整段 `Tokenizer.decode` 的结果，而且从不切开一个字符。

    Incremental decoding: the pieces joined are just what `Tokenizer.decode` makes of the whole, and none splits a
    character.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._decode = partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        # 只留一个小窗口，开头 `_read` 个是上文（有的分词器看上文才决定要不要空格），其余还没交完。
        # Only a small window is kept: its first `_read` tokens are context (some tokenizers need it to decide on a
        # space), the rest is not all given out. So a token costs the same, however long the output is.
        self._window: list[int] = []
        self._read = 0
        # 窗口的文字里，前多少个字符已经交出去了。
        # How many characters of the window's text have been given out.
        self._shown = 0

    def push(self, token_id: int) -> str:
        """收下一个 token，返回因此确定下来的文字，可以是空的。

        Take a token and return the text that it settles, which may be empty.
        """
        self._window.append(token_id)
        text = self._decode(self._window)
        # 末尾的替换符可能是半个字符，先扣着；在它前面的不会再变。
        # A replacement character at the end may be half a character and is held back; what precedes it is final.
        #     token   " a"   E4      BD      A0      "!"
        #     text    " a"   " a�"   " a�"   " a你"  " a你!"
        #     piece   " a"   ""      ""      "你"    "!"
        settled = text.rstrip(REPLACEMENT)
        piece, self._shown = settled[self._shown :], len(settled)
        if settled == text:
            # 这一组完整了：它变成下一组的上文，更早的丢掉。
            # This group is complete: it becomes the context of the next, and what came before is dropped.
            self._window = self._window[self._read :]
            self._read, self._shown = len(self._window), len(self._decode(self._window))
        elif not self._decode([token_id]):
            # 夹在半个字符里的特殊 token 没有文字，留着只会把窗口撑大。
            # A special token amid half a character has no text; kept, it would only make the window grow.
            self._window.pop()
        elif len(self._window) > self._read + MAX_UNDECIDED:
            piece += self._cut_garbage(text)
        return piece

    def rest(self) -> str:
        """输出到此为止时，还扣着的那部分文字。

        The text still held back, should the output end here.
        """
        return self._decode(self._window)[self._shown :]

    def _cut_garbage(self, text: str) -> str:
        """永远凑不成字符的一串字节：找一个没有切开字符的位置，交出前半，窗口不会无限长大。

        Bytes that never make a character: find a place where no character is cut and give out what precedes it, so
        that the window stays small.
        """
        # 两半分别还原再接起来与整体相同，就没有切开字符；一个字符最多 4 个字节，内部最多 3 处，所以试 4 处。
        # If the halves, decoded alone, join to the whole, no character was cut; one has at most 4 bytes and so 3 places
        # inside, which is why 4 places are tried.
        for split in range(len(self._window) - 4, len(self._window) - 8, -1):
            left = self._decode(self._window[:split])
            if left + self._decode(self._window[split:]) == text:
                piece, self._shown = left[self._shown :], max(0, self._shown - len(left))
                self._window, self._read = self._window[split:], 0
                return piece
        return ""


class OutputText:
    """一个请求到目前为止的文字，并在其中寻找 `stop` 字符串。

    A request's text so far, searched for its `stop` strings.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = Detokenizer(tokenizer, params.skip_special_tokens)
        self._stop = [params.stop] if isinstance(params.stop, str) else list(params.stop or [])
        self._text = ""
        self._stopped = False

    def append(self, token_id: int, check_stop: bool) -> str | None:
        """收下一个 token；若文字里因此出现了停止字符串，就从那里截断，并返回那个字符串。

        Take a token; if it completes a stop string, cut the text there and return that string.
        """
        start = len(self._text)
        self._text += self._detokenizer.push(token_id)
        # 只查可能新出现的地方：匹配的末尾必在新文字里，开头最多早 `len(s) - 1` 个字符。
        # Look only where it can be new: a match ends in the new text and begins at most `len(s) - 1` characters before.
        matches = [(self._text.find(s, max(0, start - len(s) + 1)), s) for s in self._stop if check_stop]
        # 最早的匹配优先；位置相同时 `min` 取列表里排在前面的。
        # The earliest match wins; of equal positions `min` takes the first in the list.
        at, stop = min((match for match in matches if match[0] >= 0), key=lambda match: match[0], default=(0, None))
        if stop is not None:
            self._text, self._stopped = self._text[:at], True
        return stop

    def so_far(self, finished: bool) -> str:
        """可以给用户看的文字：没结束时，扣下可能是停止字符串开头的尾巴。

        The text that may be shown: before the end, a tail that may begin a stop string is held back.
        """
        if finished:
            return self._text if self._stopped else self._text + self._detokenizer.rest()
        #     stop "###", text "answer #"  ->  "answer "
        text = self._text
        held = max((n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return text[: len(text) - held]
