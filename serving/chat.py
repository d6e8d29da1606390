"""`--chat`：在终端里和模型对话，边写边显示；Ctrl-C 停下正在写的回答，而不是退出。

`--chat`: talk to the model in a terminal, answers are shown as they are written; Ctrl-C stops the answer that is being
written and does not leave.
"""

import sys
import time
from contextlib import closing, suppress

from engine.sampling_params import SamplingParams
from serving.chat_template import Message, encode_chat
from serving.console import MARKS, format_hits, printable
from serving.llm import LLM, Pieces

CHAT_HELP = """\
/help    这份帮助 / this help
/reset   忘掉之前的对话 / forget the conversation
/stats   前缀缓存的命中率，上一个回答的速度 / hit rate of the prefix cache, speed of the last answer
/exit    离开，也可以按 Ctrl-D / leave, as Ctrl-D does
Ctrl-C   停下正在写的回答 / stop the answer that is being written"""


def _show(llm: LLM, stream: Pieces, pieces: list[str]) -> str:
    """边生成边打印，收进 `pieces`；返回为什么结束，被 Ctrl-C 停下的是 "abort"。

    Print while it is generated and collect in `pieces`; returns why it ended, "abort" if Ctrl-C stopped it.
    """
    try:
        # 护住整个回答：Ctrl-C 等到两步之间才停下它，不会把一段文字印到一半。
        # The whole answer is protected: Ctrl-C stops it between two steps and breaks off no piece being printed.
        with llm.turns.ctrl_c_noted(), closing(stream):
            while True:
                pieces.append(next(stream))
                print(printable(pieces[-1]), end="", flush=True)
    except StopIteration as end:
        return str(end.value)
    except ValueError:
        return "error"
    except KeyboardInterrupt:
        # 同一步里按了两次，引擎已经不能用了：离开。
        # Pressed twice within a step, and the engine is of no more use: leave.
        if llm.turns.death is not None:
            raise
        return "abort"


def _answer(llm: LLM, history: list[Message], params: SamplingParams) -> str:
    """边生成边打印回答，记进 `history`；返回一行统计。

    Print an answer while it is generated and add it to `history`; returns a line of statistics.

    Raises:
        ValueError: 最后一个问题太长，或不是合法的文字；the last question is too long, or not valid text
    """
    engine, start = llm.engine, 0
    # 历史加回答要装进 `max_model_len`：装不下就丢掉最早的一问一答，回答至少留得下半个窗口或 `max_tokens`。
    # History and answer must fit `max_model_len`: else the oldest exchanges go, until `max_tokens` or half the window
    # is left for the answer.
    limit = engine.pool.max_model_len
    room = limit - min(params.max_tokens, limit // 2)
    while start < len(history) - 1 and len(encode_chat(engine.tokenizer, history[start:])) > room:
        # 一问一答一起丢：很多模板要求用户先说话，只丢一半就不合它们的格式。
        # Question and answer go together: many templates want the user to speak first, and half of it breaks that.
        start += 2
    # 这一行会检查问题；它抛错时历史还没动过。
    # This line validates the question; if it raises, the history has not been touched.
    stream = llm.stream_chat(history[start:], params)
    if start:
        del history[:start]
        print(f"[对话太长，忘掉最早的 {start // 2} 轮 / too long: oldest exchanges forgotten: {start // 2}]")
    before, started, pieces = engine.metrics(), time.monotonic(), list[str]()
    # 正常说完的没有记号；到了长度上限、被停下、出错的，各有一句。
    # An answer that is complete bears no mark; one cut at its limit, stopped or failed has a few words.
    mark = MARKS.get(_show(llm, stream, pieces))
    print(f" {mark}" if mark else "")
    # 停下的也一样：已经写出的留在历史里。
    # The same where it was stopped: what was written stays in the history.
    history.append({"role": "assistant", "content": "".join(pieces)})
    # 统计取前后两次之差：引擎的计数从启动时累加，还有别人的请求也在里面。
    # Figures are differences of before and after: the engine counts from its start, other requests included.
    after, seconds = engine.metrics(), max(time.monotonic() - started, 1e-9)
    tokens = after.num_generated_tokens - before.num_generated_tokens
    hits = after.prefix_cache_hits - before.prefix_cache_hits
    return f"{tokens} tokens, {tokens / seconds:,.0f} tok/s, cached 命中 {hits} prompt tokens"


def chat(llm: LLM, params: SamplingParams) -> None:
    """交互对话：读一行，答一段；每次都把全部历史发给引擎，重复的开头由前缀缓存省下。

    Talk: read a line, answer it. All of the history is sent every time; the prefix cache saves the part it knows.
    """
    # 标准输入被关掉（`<&-`）时是 None。
    # It is None where standard input was closed (`<&-`).
    if sys.stdin is None:
        raise ValueError("--chat reads questions from standard input, which is closed")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        # 导入它，`input` 就能用方向键编辑和翻历史；Windows 上没有。
        # Importing it gives `input` line editing and the arrow keys; Windows has none.
        with suppress(ImportError):
            import readline  # noqa: F401
        print("输入问题，/help 看命令 / ask a question, /help lists the commands")
    history: list[Message] = []
    last = "-"
    while True:
        # 不是终端就不写提示符：问题来自管道时，输出里只该有回答。
        # Without a terminal there is no prompt sign: where questions come from a pipe, the output is answers only.
        # Ctrl-D 在这里变成 `EOFError`：输入到头了，正常离开。
        # Ctrl-D becomes an `EOFError` here: the input has ended, and we leave as usual.
        # 张量并行时由 rank 0 读，再告诉大家。
        # With tensor parallelism rank 0 reads and tells all.
        try:
            line = "" if llm.engine.ranks.rank else input("> " if terminal else "").strip()
        except EOFError:
            print(end="\n" if terminal else "")
            line = "/exit"
        line, *_ = llm.engine.ranks.messages(line)
        # 以 / 开头的是命令，不进历史；其余的都是问题。
        # What begins with / is a command and stays out of the history; all else is a question.
        if line == "/exit":
            return
        if line == "/help":
            print(CHAT_HELP)
        elif line == "/reset":
            history.clear()
            print("[对话已清空 / the conversation is forgotten]")
        elif line == "/stats":
            print(f"prefix cache 前缀缓存  {format_hits(llm.engine.metrics())}\nlast answer 上个回答   {last}")
        elif line.startswith("/"):
            print(f"[没有这个命令 / no such command: {printable(line)}; /help]")
        elif line:
            history.append({"role": "user", "content": line})
            try:
                last = _answer(llm, history, params)
            except ValueError as error:
                # 这一句问不了（例如太长），不是程序坏了：说一声，忘掉它，接着聊。
                # This question cannot be asked, being too long say, and nothing is broken: say so and go on without it.
                history.pop()
                print(f"error: {printable(str(error))}", file=sys.stderr)
