"""AsyncLLM：给 asyncio 程序（例如一个网络服务）用的入口；许多协程同时提问，引擎在一个后台线程里运行。

    协程 / coroutines            收件箱 / inbox            引擎线程 / engine thread
    generate ── add ──────────> SimpleQueue ──────────> 两步之间取信 / between steps: add_sequence, abort
    async for <── asyncio.Event <── call_soon_threadsafe <── 每步之后 / after a step: RequestOutput

引擎不是线程安全的，也不必是：只有引擎线程碰它，别人都只往收件箱里放一封信。没有请求时线程睡在收件箱上，不空转。

AsyncLLM: the entry for asyncio programs, a network service for instance; many coroutines ask at once, and the engine
runs in one background thread. The engine is not thread-safe and need not be: only its thread touches it, and everybody
else posts a message. Without requests the thread sleeps at the inbox and does not spin.
"""

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.validation import check_unused, naming, request_name
from serving.llm import LLM, Prompt
from serving.turns import EngineDeadError


class _Stream:
    """一个请求的信箱：只留最新的一份结果，因为文字是累计的；读得慢的人不会积压内存。

    One request's mailbox. It keeps the latest result only, as texts are cumulative: slow readers pile up nothing.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self.arrived = asyncio.Event()
        # 还没有值：`put` 先写它，再让 `arrived` 亮起来。
        # No value yet: `put` writes it and sets `arrived` after that.
        self.latest: RequestOutput | Exception
        # 引擎线程上次发出时的（各份输出的总长，是否都结束了），没变就不用再发。
        # What the engine's thread has sent, as (length of all outputs, whether all ended); unchanged, nothing is sent.
        self.sent: tuple[int, bool] = (0, False)
        # 分好词、寄出之前还没有序列；那时来的取消先记下。
        # No sequence before the prompt is tokenized and posted; an abort that comes sooner is noted.
        self.seq: Sequence | None = None
        self.aborted = False

    def put(self, item: RequestOutput | Exception) -> None:
        """总在事件循环的线程里运行，所以不用锁。

        Always runs in the event loop's thread, so it needs no lock.
        """
        self.latest = item
        self.arrived.set()


class AsyncLLM:
    """参数与 `LLM` 相同。用完要 `shutdown`，或写成 `async with AsyncLLM() as llm:`。

    Takes the arguments of `LLM`. Call `shutdown` in the end, or write `async with AsyncLLM() as llm:`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # 请求到来的先后只有一个进程知道，张量并行却要求各进程的次序一样。
        # In which order requests come one process knows, and with tensor parallelism all need the same.
        if options.get("tensor_parallel_size", 1) != 1:
            raise ValueError("AsyncLLM runs on 1 rank: use LLM with tensor_parallel_size, or leave it out")
        self.engine = LLM(*args, **options).engine
        # 信就是一个函数，引擎线程取出来调用它；None 是“该停了”。
        # A message is a function that the engine's thread takes out and calls; None says that it is time to stop.
        self._inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._death = ""
        self._cause: BaseException | None = None
        # 守护线程：忘了 `shutdown` 的程序也能退出；但它若还在 torch 里面，解释器一收场，整个进程就会 abort。
        # 所以退出前要等它走完手上的一步。
        # A daemon: a program that forgets `shutdown` can still exit. But were it inside torch while the interpreter
        # goes away, the process would abort; so before the exit, it is waited for until its step is done.
        self._thread = threading.Thread(target=self._run, name="mini-llama engine", daemon=True)
        weakref.finalize(self, _stop, self._inbox, self._thread)
        self._thread.start()

    async def __aenter__(self) -> "AsyncLLM":
        return self

    async def __aexit__(self, *error: object) -> None:
        # `shutdown` 要等引擎走完手上的一步：放到别的线程里等，事件循环不停。
        # `shutdown` waits for the step in hand: in another thread, so that the event loop goes on.
        await asyncio.to_thread(self.shutdown)

    # ---- 调用者一侧 ----
    # ---- the callers' side ----

    def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        """逐次给出到目前为止的结果（文字是累计的），最后一份 `finished` 为真。

        取消任务、`break` 或 `aclose` 都会取消这个请求；它在第一次取结果时才加入引擎，在此之前 `abort` 找不到它。
        `break` 之后 asyncio 要过一会儿才真正关闭生成器；马上要重用同一个 id，就用 `contextlib.aclosing`。

        Give the result so far again and again (texts are cumulative); the last one has `finished` set. To cancel the
        task, `break` or `aclose` aborts the request. It joins the engine when the first result is asked for, and
        `abort` does not find it sooner. After a `break` asyncio closes the generator a little later; to use the same
        id at once, take `contextlib.aclosing`.

        Raises:
            ValueError: 请求不合法（提示词是 id 在调用时报，是文字或要结构化输出则在取第一份结果时），或请求 id 已在用；
                not valid (told at the call for ids, for text or structured outputs at the first result), or id in use
            EngineDeadError: 引擎已出错或已关闭；the engine has failed or was shut down
        """
        self._check_alive()
        name, request_id = request_name(request_id), request_id or uuid4().hex

        def prepare() -> Sequence:
            with naming(name):
                return self.engine.requests.prepare(prompt, sampling_params, request_id, stream=True)

        # 长文字分词要几秒，编译语法也是，不能让整个事件循环等它。
        # A long text takes seconds to tokenize, a grammar to compile, and the event loop must not wait for it.
        slow = bool(prompt and isinstance(prompt, str)) or getattr(sampling_params, "structured_outputs", None)
        return self._generate(request_id, prepare if slow else prepare())

    async def _generate(
        self, request_id: str, request: Sequence | Callable[[], Sequence]
    ) -> AsyncGenerator[RequestOutput, None]:
        """登记信箱，寄出请求，等结果；无论怎样离开，都收拾干净。

        Set up a mailbox, post the request, wait for results; clean up, whichever way this is left.
        """
        # 查重放在这里而不是引擎里：两个协程可以在引擎看到第一个之前，就用上同一个 id。
        # Duplicates are found here, not in the engine: two coroutines may take an id before it sees the first.
        check_unused(request_id, self._streams)
        stream = self._streams[request_id] = _Stream(request_id)
        try:
            # `to_thread` 之后回到事件循环：从这一行起，又只有这个线程在碰 `_streams`。
            # After `to_thread` we are back in the event loop, and only its thread touches `_streams` again.
            stream.seq = seq = request if isinstance(request, Sequence) else await asyncio.to_thread(request)
            self._inbox.put(partial(self._add, stream, seq))
            # 分词的时候可能已经有人取消了它，那时引擎里还没有可以取消的东西。
            # Somebody may have aborted it while it was tokenized, when the engine had nothing yet to abort.
            if stream.aborted:
                await self.abort(request_id)
            # 先寄出，再看引擎是否还在：它若此后才停，就会在 `_streams` 里看到这个信箱，并通知它。
            # Post first, then see if the engine lives: should it die later, it finds this mailbox in `_streams`.
            self._check_alive()
            finished = False
            while not finished:
                # 先等，再清掉标志，再取：取完之后到的，下一圈就会看到，不会漏掉。
                # Wait, clear the flag, then take: what arrives later is seen in the next round, nothing is lost.
                await stream.arrived.wait()
                stream.arrived.clear()
                item = stream.latest
                if isinstance(item, Exception):
                    raise item
                finished = item.finished
                yield item
        finally:
            self._streams.pop(request_id, None)
            self._inbox.put(partial(self._abort, stream))

    async def abort(self, request_id: str) -> None:
        """取消一个请求；它的消费者随后得到最后一份结果，`finish_reason` 是 "abort"。不存在就什么也不做。

        Cancel a request; its consumer then gets a last result whose `finish_reason` is "abort". Does nothing if there
        is no such request.
        """
        if isinstance(request_id, str) and (stream := self._streams.get(request_id)) is not None:
            stream.aborted = True
            self._inbox.put(partial(self._abort, stream))

    def shutdown(self) -> None:
        """走完手上的一步就停下；还在等结果的调用者得到 `EngineDeadError`。可以重复调用。

        Stop after the step in hand; callers still waiting get an `EngineDeadError`. May be called again.
        """
        _stop(self._inbox, self._thread)

    def _check_alive(self) -> None:
        # `fork` 出来的子进程里只有调用它的那个线程，引擎的线程没有跟来；等它就是永远等下去。
        # A child made by `fork` has only the thread that called it; the engine's has not come along, and to wait for it
        # would be to wait for ever.
        if not self._death and not self._thread.is_alive():
            self._death = "the engine's thread is not in this process, which was forked: make a new AsyncLLM here"
        if self._death:
            raise self._dead()

    def _dead(self) -> EngineDeadError:
        # 每个调用者一个新的异常对象：共用一个，traceback 会越接越长。
        # A new exception for each caller: a shared one would gather the tracebacks of all.
        error = EngineDeadError(self._death)
        error.__cause__ = self._cause
        return error

    # ---- 引擎线程一侧 ----
    # ---- the engine thread's side ----

    def _run(self) -> None:
        """线程的主循环：取信，走一步，发结果；结束时通知每一个还在等的人。

        The thread's loop: take messages, step, send results; at the end tell everybody who still waits.
        """
        death = "the engine was shut down: make a new AsyncLLM"
        try:
            while self._take_messages():
                self._publish(self.engine.step())
        # 分词器是 Rust 写的，它的 panic 不是 `Exception`；线程悄悄死掉，等的人就永远等下去。
        # The tokenizer is written in Rust, and a panic in it is no `Exception`; were the thread to die silently, those
        # who wait would wait for ever.
        except BaseException as error:
            death, self._cause = f"the engine failed ({error!r}): make a new AsyncLLM", error
        self._death = death
        # 看的是“有没有告诉过他已结束”，不是“是否结束”：出错的那一步里结束的，结果还没发出去。
        # What counts is whether the end was sent, not whether it came: results of the failed step were not sent.
        for stream in [stream for stream in list(self._streams.values()) if not stream.sent[1]]:
            # 归还块只是尽力而为：引擎已经出错，再错一次也不能耽误通知别人。
            # Returning blocks is best effort: the engine has failed, and failing again must not keep others waiting.
            with suppress(BaseException):
                self._send(stream, self._dead())
                self.engine.abort(stream.request_id)

    def _take_messages(self) -> bool:
        """处理收件箱里的信；没有请求时睡在这里。收到 None 返回假，线程该结束了。

        Handle the messages in the inbox, and sleep here while there is no request. False if the thread is to end.
        """
        while not self._inbox.empty() or not self.engine.has_unfinished():
            # 空的时候 `get` 就睡着，一点 CPU 也不占；来了信才醒。
            # On an empty inbox `get` sleeps and takes no CPU; a message wakes it.
            if (message := self._inbox.get()) is None:
                return False
            message()
        return True

    def _add(self, stream: _Stream, seq: Sequence) -> None:
        # 一个请求自己的毛病，只该由它的调用者承担。
        # What is wrong with one request concerns its caller alone.
        try:
            self.engine.add_sequence(seq)
        except Exception as error:
            stream.seq = None
            self._send(stream, error)

    def _abort(self, stream: _Stream) -> None:
        # 已经结束的不取消，它的 id 可能已另有主人；取消之后引擎可能就闲下来了，不会再有下一步来发结果，所以这里就发。
        # What has ended is left alone, its id may have a new owner. After an abort the engine may be idle, and no step
        # would follow to send the result, so it is sent here.
        if stream.seq is not None and not stream.seq.request_finished:
            self.engine.abort(stream.request_id)
        self._publish_one(stream)

    def _publish(self, finished: list[RequestOutput]) -> None:
        """谁有了新 token 或者结束了，就给谁发一份结果。

        Send a result to everyone who has a new token or has ended.
        """
        # 只看结束的和在运行的：等待中的可能有几千个，它们没有新 token。
        # Those that have ended and those that run: thousands may be waiting, and none of these has a new token.
        names = [output.request_id for output in finished] + [seq.request_id for seq in self.engine.scheduler.running]
        for name in dict.fromkeys(names):
            # 协程随时可能在别的线程里离开，所以找不到也不奇怪。
            # Coroutines may leave in another thread at any time, so it may well be gone.
            if (stream := self._streams.get(name)) is not None:
                self._publish_one(stream)

    def _publish_one(self, stream: _Stream) -> None:
        if (seq := stream.seq) is None:
            return
        lengths = [each.num_output_tokens - each.num_pending_tokens for each in seq.siblings or [seq]]
        state = (sum(lengths), seq.request_finished)
        if state != stream.sent:
            stream.sent = state
            self._send(stream, self.engine.requests.output(seq))

    def _send(self, stream: _Stream, item: RequestOutput | Exception) -> None:
        try:
            stream.loop.call_soon_threadsafe(stream.put, item)
        except RuntimeError:
            # 它的事件循环已经关了，没人会来读：取消它，别人照常。
            # Its event loop is closed and nobody will read: abort it, and the others go on.
            self._streams.pop(stream.request_id, None)
            self._abort(stream)


def _stop(inbox: "SimpleQueue[Callable[[], object] | None]", thread: threading.Thread) -> None:
    """让引擎的线程走完手上的一步，然后等它结束。

    Let the engine's thread end its step, and wait for it.
    """
    # 不收 `AsyncLLM` 自己作参数：退出时要做的事若拿着它，它就永远不会被回收。
    # It does not take the `AsyncLLM` itself: what is to be done at the exit would keep it alive for ever.
    inbox.put(None)
    thread.join()
