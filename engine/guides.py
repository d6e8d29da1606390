"""结构化输出：每选一个 token 之前，先禁掉会让输出不合语法的那些，所以写完的输出必定合乎语法，不必重试。

语法由 llguidance 这个包来读，用到时才导入它；没有这种请求，这里一行也不执行。调度器的序列带着 `Guide`，所以本文件
不导入 torch。一个请求经过三处：

    Requests.prepare       Guides.start      编译语法，坏的当场报错 / compile; a bad grammar is told here
    Sampler.draw           Guide.mask        此刻允许哪些 token / which tokens are allowed now
    Scheduler.commit       Guide.advance     选中的是哪个 / which one was chosen

Structured outputs: before a token is chosen, those that would break the grammar are banned, so a finished output always
matches and nothing is tried again.
Grammars are read by the package llguidance, imported on use; without such a request not a line of this runs. A request
comes by in three places, as above. This file loads no torch, as the scheduler's sequences carry a `Guide`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

# 只有类型标注用到它们。
# For annotations only.
if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from torch import Tensor

    from engine.tokenizer import Tokenizer

# 共 100,000 个字符的选项编译约 0.03 秒，同样长、有几千个属性的 schema 约 1 秒；再长，一个请求就能拖住大家。
# Choices of 100,000 characters compile in some 0.03 s, a schema as long, with thousands of properties, in some 1 s;
# longer, and one request could hold up all.
MAX_CHARS = 100_000
# llguidance 读正则的限额，是默认值的 1/10：短短的 `(a{1000}){1000}` 会让一步等上 0.4 秒；正常的语法远远用不到。
# llguidance's allowance for reading expressions, 1/10 of its default, which lets the short `(a{1000}){1000}` hold up
# a step for 0.4 s; ordinary grammars need far less.
LEXER_FUEL = 100_000
# JSON 各部分之间的空白：没有，或一个空格，或换行加缩进；任意多的话，小模型会一直换行。schema 的 "x-guidance" 可改。
# Blanks between the parts of JSON: none, a space, or a line break with an indent. With any number of them small models
# break lines for ever; "x-guidance" in the schema overrides this.
WHITESPACE = r" ?|\n[ \t]{0,16}"
# 改线程栈大小的，一次一个。
# Those who change the size of threads' stacks take turns.
_STACK_SIZE = threading.Lock()
KINDS = ("json", "regex", "choice", "grammar")


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """输出要合乎什么，四样里恰好给一样；名字与 vLLM 相同。

    What the output has to match, exactly one of the four; named as in vLLM.

    Attributes:
        json: JSON Schema，字典或 JSON 文字；a JSON schema, as a dict or as JSON text
        regex: 整个输出要匹配的正则表达式，没有前后查找；a regular expression for the whole output, without look-around
        choice: 输出是其中之一；the output is one of these strings
        grammar: Lark 或 GBNF 写的语法；a grammar written in Lark or GBNF

    Raises:
        ValueError: 给了几样或一样也没给，类型不对，太长；several or none given, a wrong type, or too long
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"structured_outputs takes one of {', '.join(KINDS)}, got {' and '.join(given) or 'none'}")
        (kind,) = given
        value = getattr(self, kind)
        if kind == "choice":
            if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) for text in value):
                raise ValueError(f"choice={value!r:.80} must be a list of strings, at least one")
            value = tuple(value)
        elif kind == "json":
            value = _schema_text(value)
        elif not isinstance(value, str):
            raise ValueError(f"{kind}={value!r:.80} must be a string")
        size = sum(map(len, value))
        if size > MAX_CHARS:
            raise ValueError(f"{kind} has {size} characters: use at most {MAX_CHARS}")
        # 换成不可变的：用户以后再改他的字典，也绕不过检查；同样的两份还可以只编译一次。
        # Kept as something immutable: a user's later changes to the dict do not get past the checks, and two that are
        # equal are compiled once.
        object.__setattr__(self, kind, value)


def check_wanted(wanted: Any, min_tokens: int) -> None:
    """一个请求的 `structured_outputs` 是这里的参数，也没有 `min_tokens`。

    A request's `structured_outputs` are parameters from here, and there is no `min_tokens`.

    Raises:
        ValueError: 不是这样；it is not so
    """
    if wanted is not None and not isinstance(wanted, StructuredOutputsParams):
        raise ValueError(f"structured_outputs must be StructuredOutputsParams, got {type(wanted).__name__}")
    # 语法走到尽头，停止 token 就是唯一允许的；`min_tokens` 若还禁着它，便没有 token 可选了。
    # Where the grammar can go no further a stop token is all that is allowed; banned by `min_tokens`, it would leave
    # nothing to choose.
    if wanted is not None and min_tokens > 0:
        raise ValueError(f"min_tokens={min_tokens} does not go with structured_outputs: leave one out")


def _schema_text(schema: Any) -> str:
    """JSON Schema 的文字；它只能是对象或布尔值。

    A JSON schema as text; it is an object or a boolean and nothing else.
    """
    if isinstance(schema, str) and len(schema) > MAX_CHARS:
        return schema
    with _refusing("json is no JSON schema"):
        parsed = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(parsed, dict | bool):
            raise ValueError(f"it must be an object or a boolean, got {type(parsed).__name__}")
        # llguidance 只肯给对象加选项，布尔值就包一层。
        # llguidance adds options to objects only, so a boolean is wrapped.
        return json.dumps({"anyOf": [parsed]} if isinstance(parsed, bool) else parsed)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """在其中出的错变成一行 `ValueError`；Rust 的 panic 不是 `Exception`，也算。

    What goes wrong inside becomes a `ValueError` in one line; a panic in Rust is no `Exception` and counts as well.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {' '.join(str(error).split()):.300}") from None


class Guide:
    """一份输出在语法里走到了哪里。

    How far one output has come in its grammar.

    Args:
        compiled: 编译好的语法，大家共用，停在开头，从不改动；
            the compiled grammar, which all share; it stands at its start and never changes
        banned: 总是禁用的 id：llguidance 自己的结束符，凑满一个字的；
            ids that are always banned: llguidance's own end tokens, and those that fill up a word
        num_bytes: 掩码的字节数；the bytes of a mask
    """

    def __init__(
        self, compiled: LLMatcher, stop_token_ids: frozenset[int], banned: Sequence[int], num_bytes: int
    ) -> None:
        self._compiled, self._stop_token_ids, self._banned = compiled, stop_token_ids, banned
        self._num_bytes = num_bytes

    # 用到才复制：排队的几千个请求、`n` 份还没开始的输出，都不占一份状态。
    # Copied on first use: thousands of requests that wait, or `n` outputs that have not begun, hold no state.
    @cached_property
    def _matcher(self) -> LLMatcher:
        return self._compiled.deep_copy()

    def copy(self) -> Guide:
        """同一个请求的另一份输出，也在开头。

        For another output of the same request, at the start as well.
        """
        return Guide(self._compiled, self._stop_token_ids, self._banned, self._num_bytes)

    def mask(self) -> bytearray:
        """此刻允许哪些 token，一位一个，低位在前。

        Which tokens are allowed now, a bit each, the lowest first.
        """
        #     allowed 0, 3 and 9  ->  bytes 0b00001001, 0b00000010
        # 分词器的词表可以比嵌入表短，多出来的行没有文字，禁用；也可以更长，裁掉。
        # The tokenizer may have fewer entries than the embedding, whose further rows have no text and are banned; or
        # more, which are cut off.
        bits = self._matcher.compute_bitmask()[: self._num_bytes]
        # 语法太复杂，中途超了 llguidance 的限额：一个也不允许，这一行就以 "error" 结束，与分数坏了一样。
        # A grammar too complex exceeds a limit of llguidance's on the way: nothing is allowed, and the row ends with
        # "error", as with broken scores.
        mask = bytearray(self._num_bytes) if self._matcher.is_error() else bytearray(bits.ljust(self._num_bytes, b"\0"))
        # 语法可以在这里结束，才允许停止 token，而且全都允许，用户自己的也在内；别处一律禁用。
        # Stop tokens are allowed where the grammar may end, all of them, the user's own included; elsewhere none is.
        for token in self._banned:
            mask[token >> 3] &= ~(1 << (token & 7))
        ends = self._matcher.is_accepting()
        for token in self._stop_token_ids:
            mask[token >> 3] = mask[token >> 3] & ~(1 << (token & 7)) | ends << (token & 7)
        return mask

    def allowed(self) -> list[int]:
        """`mask` 允许的 id，给人看。

        The ids that `mask` allows, to be looked at.
        """
        return [8 * i + bit for i, byte in enumerate(self.mask()) for bit in range(8) if byte >> bit & 1]

    def advance(self, token: int) -> bool:
        """选中了 `token`，它不是停止 token；返回输出是不是到此为止。

        `token` was chosen, which is no stop token; returns whether the output ends here.
        """
        self._matcher.consume_token(token)
        # 没有停止 id 的请求（`ignore_eos`），语法走到尽头就结束；有的，与 vLLM 一样，下一步只能选停止 token。
        # A request without stop ids (`ignore_eos`) ends where the grammar can go no further; with them, as in vLLM, all
        # that the next step can choose is a stop token.
        return not self._stop_token_ids and self._matcher.is_stopped() and not self._matcher.is_error()


class Guides:
    """一个引擎的语法：词表读一次，同样的语法编译一次。

    An engine's grammars: the vocabulary is read once, and equal grammars are compiled once.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._num_bytes = (vocab_size + 31) // 32 * 4
        # 缓存的是函数，不是方法：方法带着 `self`，就成了环，引擎没人要了，词表和语法还留着，直到垃圾回收。
        # Functions are cached and no methods: a method holds `self`, which makes a cycle, and an engine that nobody
        # wants would leave vocabulary and grammars behind until garbage is collected.
        vocabulary = lru_cache(1)(partial(_read_vocabulary, tokenizer))
        self.compile = lru_cache(32)(partial(_compile, vocabulary, vocab_size))

    def start(self, wanted: StructuredOutputsParams, stop_token_ids: frozenset[int]) -> Guide:
        """一个请求的 `Guide`，在语法的开头。

        A request's `Guide`, at the start of its grammar.

        Raises:
            ValueError: 语法不对，或连头一个 token 都没有可选的；a bad grammar, or one that leaves no first token
        """
        matcher, banned = self.compile(wanted)
        guide = Guide(matcher, stop_token_ids, banned, self._num_bytes)
        if not any(guide.copy().mask()):
            raise ValueError("structured_outputs allows no first token: no text of this vocabulary matches")
        return guide


def _read_vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer.hf_tokenizer)


def _compile(
    read_vocabulary: Callable[[], LLTokenizer], vocab_size: int, wanted: StructuredOutputsParams
) -> tuple[LLMatcher, list[int]]:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise ValueError("structured_outputs needs the package llguidance: pip install llguidance") from None
    with _refusing("structured_outputs cannot be had with this tokenizer"):
        vocabulary = read_vocabulary()
    kind = next(name for name in KINDS if getattr(wanted, name) is not None)
    with _refusing(f"structured_outputs: this {kind} is not usable"):
        matcher = _on_a_deep_stack(lambda: _matcher(vocabulary, kind, getattr(wanted, kind)))
        if matcher.is_error():
            raise ValueError(matcher.get_error().replace("NoExtensionBias\n<non-verbose/>", "nothing matches it"))
    ends = [token for token in vocabulary.eos_tokens if token < vocab_size]
    return matcher, [*ends, *range(vocab_size, vocab_size + -vocab_size % 32)]


def _matcher(vocabulary: LLTokenizer, kind: str, text: Any) -> LLMatcher:
    """llguidance 读过的语法，在开头。

    A grammar as llguidance has read it, at its start.
    """
    import llguidance

    if kind == "json":
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": WHITESPACE})
    elif kind == "choice":
        # 名字大写，才合成一个词法单元；llguidance 自己的写法是一个选项一条规则，超过 2000 个，走到一半就出错。
        # In capitals they are a single terminal; llguidance's own way makes each a rule, and with more than 2000 of
        # these an output fails on the way.
        grammar = llguidance.LLMatcher.grammar_from_lark("start: C\nC: " + " | ".join(map(json.dumps, text)))
    else:
        grammar = llguidance.grammar_from(kind, text)  # type: ignore[arg-type]
    limits = llguidance.LLParserLimits(verbose_errors=False, initial_lexer_fuel=LEXER_FUEL)
    matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    # 第一个掩码也在这里算：有的语法这时才知道无法满足，有的要算上一秒，都不该留到引擎的一步里。
    # The first mask is computed here: only then do some grammars show that nothing matches, and for some it takes a
    # second; neither belongs into a step of the engine.
    matcher.compute_bitmask()
    return matcher


def _on_a_deep_stack(work: Callable[[], LLMatcher]) -> LLMatcher:
    """在一个栈很深的线程里做完。

    llguidance 逐层递归地读语法：几千条规则首尾相接，普通的栈（8 MB，有的系统上的线程只有 0.5 MB）就溢出，进程随之被杀，
    没有异常可接。512 MB 只是地址，用到才占内存；`MAX_CHARS` 以内的，量过都够。

    Do it in a thread whose stack is deep.
    llguidance reads a grammar by recursion: some thousand rules in a chain overflow an ordinary stack (8 MB, and 0.5 MB
    for threads on some systems), which kills the process without an exception to catch. 512 MB are addresses, and take
    memory only when used; for what `MAX_CHARS` admits they were measured to suffice.
    """
    # 栈的大小是进程的设置，只能在建线程的一瞬间改，随即改回；别人恰好也在建线程，不过是得到一个更大的栈。
    # The size of stacks is a setting of the process: it is changed for the moment in which the thread is made. Should
    # somebody else make a thread right then, it gets a larger stack and no harm is done.
    with ThreadPoolExecutor(1) as pool:
        with _STACK_SIZE:
            before = threading.stack_size(512 << 20)
            try:
                future = pool.submit(work)
            finally:
                threading.stack_size(before)
        return future.result()


def packed_masks(guides: Sequence[Guide]) -> Tensor:
    """各行的掩码，在主机上。

    The rows' masks, on the host.

    Returns:
        [len(guides), ceil(vocab_size / 32)] int32，一个 token 一位，0 是禁用；a bit a token, 0 bans
    """
    # 有这种请求时 torch 早已导入；放在顶上，调度器就会带进它。
    # Where there are such requests torch is long imported; at the top it would come along with the scheduler.
    import torch

    masks = bytearray().join(guide.mask() for guide in guides)
    return torch.frombuffer(masks, dtype=torch.int32).view(len(guides), -1)


def ban(logits: Tensor, guided: Sequence[tuple[int, Guide]]) -> Tensor:
    """语法不允许的，分数变成 -inf；`logits` 本身不改。

    What the grammars do not allow gets a score of -inf; `logits` itself stays.

    Args:
        logits: [S, vocab_size]
        guided: （哪一行，它的 `Guide`）；(which row, its `Guide`)
    """
    import torch

    words = packed_masks([guide for _, guide in guided]).to(logits.device)  # [G, ceil(vocab_size / 32)]
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = (words.unsqueeze(-1) >> bits & 1).flatten(1)[:, : logits.shape[1]]  # [G, vocab_size]
    banned = torch.zeros_like(logits, dtype=torch.bool)  # [S, vocab_size]
    banned[[row for row, _ in guided]] = allowed == 0
    return logits.masked_fill(banned, float("-inf"))
