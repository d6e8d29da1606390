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
from collections.abc import AsyncGenerator, Callable
from functools import partial
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from serving.llm import LLM, Prompt


class EngineDeadError(RuntimeError):
    """引擎线程已经停了（出错或 `shutdown`）；起因在 `__cause__` 里。

    The engine's thread has ended, by a failure or by `shutdown`; `__cause__` has the failure.
    """


class _Stream:
    """一个请求的信箱：只留最新的一份结果，因为文字是累计的；读得慢的人不会积压内存。

    One request's mailbox. It keeps the latest result only, as texts are cumulative: slow readers pile up nothing.
    """

    def __init__(self, seq: Sequence) -> None:
        self.seq = seq
        # 记下是哪个事件循环在等：不同的线程可以各有一个，结果要送回提问的那一个。
        # Which event loop waits: each thread may have its own, and results go back to the one that asked.
        self.loop = asyncio.get_running_loop()
        self.arrived = asyncio.Event()
        self.latest: RequestOutput | EngineDeadError | None = None
        # 引擎线程上次发出时的（各份输出的总长，是否都结束了），没变就不用再发。
        # What the engine's thread has sent, as (length of all outputs, whether all ended); unchanged, nothing is sent.
        self.sent: tuple[int, bool] = (0, False)

    def put(self, item: RequestOutput | EngineDeadError) -> None:
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
        self.engine = LLM(*args, **options).engine
        # 信就是一个函数，引擎线程取出来调用它；None 是“该停了”。
        # A message is a function that the engine's thread takes out and calls; None says that it is time to stop.
        self._inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        # 空字符串表示还活着；停了之后是给用户看的原因。
        # Empty while the engine lives; afterwards the reason, as users will read it.
        self._death = ""
        self._cause: Exception | None = None
        # 守护线程：忘了 `shutdown` 的程序也能退出。
        # A daemon: a program that forgets `shutdown` can still exit.
        self._thread = threading.Thread(target=self._run, name="mini-llama engine", daemon=True)
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
            ValueError: the request is not valid (at the call), or its id is in use (at the first result)
            EngineDeadError: the engine has failed or was shut down
        """
        self._check_alive()
        # 随机的 id，不用引擎的编号：还在收件箱里的请求引擎不知道，编号可能与它重名。
        # A random id and not the engine's next number: the engine does not know requests that are still in the inbox,
        # and one of them may bear that number.
        request_id = uuid4().hex if request_id is None else request_id
        if not isinstance(request_id, str):
            raise ValueError(f"request_id={request_id!r} must be a string")
        # 检查在调用者的线程里做，不占引擎线程：分词再慢，别人的解码也不停。
        # Validated in the caller's thread and not in the engine's: however slow the tokenizer, others go on decoding.
        return self._generate(self.engine.requests.prepare(prompt, sampling_params, request_id, stream=True))

    async def _generate(self, seq: Sequence) -> AsyncGenerator[RequestOutput, None]:
        """登记信箱，寄出请求，等结果；无论怎样离开，都收拾干净。

        Set up a mailbox, post the request, wait for results; clean up, whichever way this is left.
        """
        if seq.request_id in self._streams:
            raise ValueError(f"request {seq.request_id}: this id is already running; choose another")
        stream = self._streams[seq.request_id] = _Stream(seq)
        try:
            # 先登记，再看引擎是否还在：它若此后才停，就会在 `_streams` 里看到这个信箱，并通知它。
            # Register first, then see if the engine lives: should it die later, it finds this mailbox in `_streams`.
            self._check_alive()
            self._inbox.put(partial(self.engine.add_sequence, seq))
            finished = False
            while not finished:
                await stream.arrived.wait()
                # 上次看过之后来了几份，只取最新的：文字是累计的，旧的都含在里面。
                # Of what has come since the last look only the latest is taken: texts are cumulative and hold the rest.
                stream.arrived.clear()
                item = stream.latest
                if not isinstance(item, RequestOutput):
                    raise self._dead()
                finished = item.finished
                yield item
        finally:
            # `break`、取消任务、出错都走到这里；没结束的就写信请引擎取消，不能在这个线程里直接碰引擎。
            # A `break`, a cancelled task and an error all lead here; what has not ended is aborted by a message, as the
            # engine must not be touched in this thread.
            self._streams.pop(seq.request_id, None)
            if not seq.request_finished:
                self._inbox.put(partial(self.engine.abort, seq.request_id))

    async def abort(self, request_id: str) -> None:
        """取消一个请求；它的消费者随后得到最后一份结果，`finish_reason` 是 "abort"。不存在就什么也不做。

        Cancel a request; its consumer then gets a last result whose `finish_reason` is "abort". Does nothing if there
        is no such request.
        """
        self._inbox.put(partial(self._abort, request_id))

    def shutdown(self) -> None:
        """走完手上的一步就停下；还在等结果的调用者得到 `EngineDeadError`。可以重复调用。

        Stop after the step in hand; callers still waiting get an `EngineDeadError`. May be called again.
        """
        self._inbox.put(None)
        # 等线程走完手上的一步：之后不会再有人碰引擎，程序可以放心退出。
        # Wait for the step in hand: nobody touches the engine afterwards, and the program may end.
        self._thread.join()

    def _check_alive(self) -> None:
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
                self.engine.step()
                self._publish()
        # 一步里出的错可能已弄乱引擎的账目：不再继续，让每个人都知道。
        # An error within a step may have spoilt the engine's books: go no further and tell everybody.
        except Exception as error:
            death, self._cause = f"the engine failed ({error!r}): make a new AsyncLLM", error
        self._death = death
        # 看的是“有没有告诉过他已结束”，不是“是否结束”：出错的那一步里结束的，结果还没发出去。
        # What counts is whether the end was sent, not whether it came: results of the failed step were not sent.
        waiting = [stream for stream in list(self._streams.values()) if not stream.sent[1]]
        for stream in waiting:
            self._send(stream, self._dead())
        for stream in waiting:
            self.engine.abort(stream.seq.request_id)

    def _take_messages(self) -> bool:
        """处理收件箱里的信；没有请求时睡在这里。收到 None 返回假，线程该结束了。

        Handle the messages in the inbox, and sleep here while there is no request. False if the thread is to end.
        """
        while not self._inbox.empty() or not self.engine.has_unfinished():
            # 收件箱空着又没有请求时，`get` 就睡在这里，直到有人投信。
            # With an empty inbox and no request, `get` sleeps here until somebody posts.
            message = self._inbox.get()
            if message is None:
                return False
            message()
        return True

    def _abort(self, request_id: str) -> None:
        # 取消之后引擎可能就闲下来了，不会再有下一步来发结果，所以这里就发。
        # After an abort the engine may be idle, and no step would follow to send the result, so it is sent here.
        self.engine.abort(request_id)
        self._publish()

    def _publish(self) -> None:
        """谁有了新 token 或者结束了，就给谁发一份结果。

        Send a result to everyone who has a new token or has ended.
        """
        # `list` 是一次拷贝：协程随时可能在别的线程里登记或离开。
        # `list` takes a copy at once: coroutines may register or leave in another thread at any time.
        for stream in list(self._streams.values()):
            seq = stream.seq
            # 重叠循环里末尾的占位还没读到，不算数。
            # Placeholders at the end, which the overlapped loop has not read yet, do not count.
            lengths = [each.num_output_tokens - each.num_pending_tokens for each in seq.siblings or [seq]]
            state = (sum(lengths), seq.request_finished)
            if state != stream.sent:
                stream.sent = state
                self._send(stream, self.engine.requests.output(seq))

    def _send(self, stream: _Stream, item: RequestOutput | EngineDeadError) -> None:
        try:
            # asyncio 的对象只许在自己的线程里碰，唯一的例外是这个函数：它请事件循环稍后调用 `put`。
            # Objects of asyncio may be touched in their own thread only; this function is the exception and asks the
            # event loop to call `put` soon.
            stream.loop.call_soon_threadsafe(stream.put, item)
        except RuntimeError:
            # 它的事件循环已经关了，没人会来读：取消它，别人照常。
            # Its event loop is closed and nobody will read: abort it, and the others go on.
            self._streams.pop(stream.seq.request_id, None)
            self.engine.abort(stream.seq.request_id)
