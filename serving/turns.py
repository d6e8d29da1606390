"""轮流：一个引擎，几个线程，还有 Ctrl-C。请求和取消都只在两步之间进出，所以引擎自己不必加锁。

    add, abort ──> 收件箱 / inbox ──> 走步的人在两步之间取走 / taken between steps by whoever steps
    step       ──> 锁 / lock: 谁拿到谁走；他的每一步也带着别人的请求前进 / his steps advance everybody's requests

Taking turns: one engine, several threads, and Ctrl-C. Requests and aborts enter between two steps only, so the engine
itself needs no locks.
"""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.sequence import Sequence
from serving.interrupts import in_main_thread

# 等锁等这么久就看一眼：自己的请求可能已经被别人的步子走完了。
# After waiting so long for the lock one looks up: steps of others may have finished one's own request.
_PATIENCE_SECONDS = 0.01


class EngineDeadError(RuntimeError):
    """引擎不能再用了：出错，半步被打断，或者关闭了；起因在 `__cause__` 里。

    The engine is of no more use: it failed, was broken off in mid-step, or was shut down; `__cause__` has the cause.
    """


class Turns:
    """几个线程共用的引擎。

    An engine that several threads share.

    Attributes:
        death: 引擎为什么不能再用，还能用时为 None；what has made the engine useless, None while it is alive
    """

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        self.death: BaseException | None = None
        # 可重入的锁：半步被打断、没来得及放手的线程，下次还拿得到它，而不是永远等自己。
        # A re-entrant lock: a thread that was broken off before it let go gets it again, and does not wait for itself.
        self._lock = threading.RLock()
        self._stepping = False
        self._inbox: deque[Callable[[], None]] = deque()
        # 加进引擎、还没放手的请求；取消时认的是对象：它的 id 可能已另有主人。
        # Requests that were added and not let go; an abort goes by the object: its id may have a new owner.
        self._added: set[Sequence] = set()
        self._failure: BaseException | None = None
        # 按了几次、还没处理的 Ctrl-C；只有主线程会收到。
        # How often Ctrl-C was pressed and not acted on; only the main thread gets any.
        self._pressed = 0

    # ---- 按下 Ctrl-C ----
    # ---- Ctrl-C ----

    @contextmanager
    def ctrl_c_noted(self) -> Iterator[None]:
        """其间 Ctrl-C 只记下来，由 `step` 在两步之间抛出；离开时还没抛的，这时抛。

        Python 在任何一行都可能抛 `KeyboardInterrupt`：抛在块管理器的两行之间，账就乱了。
        只在主线程、而且用户没有自己的处理函数时才装上；里层的什么也不做。

        Meanwhile Ctrl-C is only noted, and `step` raises it between two steps; what has not been raised by the end is
        raised then.
        Python may raise `KeyboardInterrupt` at any line: between two lines of the block manager it would spoil the
        books. Installed in the main thread only, and only where the user has no handler of his own; an inner one does
        nothing.
        """
        # 信号处理函数只能在主线程里安装；用户装过自己的（例如网络服务的收尾），就听他的。
        # Handlers can be installed in the main thread only; where the user has one, say of a server, his counts.
        if not in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        # 上一次留下的不算：那次已经抛过，或者那时没有人在运行。
        # What an earlier call left does not count: it was raised then, or nothing ran.
        self._pressed = 0
        try:
            signal.signal(signal.SIGINT, self._note)
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._raise_noted()

    def _note(self, number: int, _: object) -> None:
        """第一次 Ctrl-C 只记下来；还没等到两步之间又来一次，就马上抛出，账可能只记了一半，引擎不能再用了。

        The first Ctrl-C is only noted. Another one before the next step raises at once; the books may be half written,
        and the engine is of no more use.
        """
        self._pressed += 1
        if self._pressed > 1:
            self.death = KeyboardInterrupt("Ctrl-C, twice")
            raise self.death

    def _raise_noted(self) -> None:
        # 按了 2 次的，第二次已经在 `_note` 里抛出，这里不再抛。
        # Pressed 2 times, the second has raised in `_note` already, and nothing is raised here.
        if self._pressed == 1 and in_main_thread():
            self._pressed = 0
            raise KeyboardInterrupt

    # ---- 线程 ----
    # ---- threads ----

    def add(self, seq: Sequence) -> None:
        """登记一个请求，两步之间排进队列。

        Register a request; it is queued between two steps.

        Raises:
            ValueError: 请求 id 已在用；its id is in use
            EngineDeadError: 引擎不能再用了；the engine is of no more use
        """
        self.check_alive()
        # 登记 id 不碰队列，当场做：重名的错误要在调用者自己这里抛出。
        # Registering the id touches no queue and is done at once: a duplicate has to raise at the caller.
        queue = self.engine.requests.open(seq)
        # 先记下，再投进收件箱：反过来，中间来一次 Ctrl-C，这个请求就没有人放手了。
        # Noted before it is posted: the other way round, a Ctrl-C in between leaves a request that nobody lets go.
        self._added.add(seq)
        self._post(*(partial(self.engine.scheduler.add, each) for each in queue))

    def abort(self, sequences: list[Sequence]) -> None:
        """放手：没有结束的取消，块归还；对同一个请求可以再做一次。

        Let go: what has not ended is cancelled and its blocks return; doing it again does no harm.
        """
        # 已经不能用了的，账只记了一半，不再去动它。
        # Where it is of no more use the books are half written, and are left alone.
        if self.death is None:
            self._post(partial(self._let_go, sequences))

    def step(self) -> list[RequestOutput]:
        """走一步；别人正在走，就等他一会儿。

        One step; while somebody else is stepping, wait for him a little.

        Raises:
            KeyboardInterrupt: 记下过 Ctrl-C；Ctrl-C was noted
            EngineDeadError: 引擎不能再用了；the engine is of no more use
        """
        self._raise_noted()
        # 等锁之前先看它还在不在，否则可能永远等下去。
        # See whether it is alive before waiting for the lock, or the wait might never end.
        self.check_alive()
        # 没轮到就返回空列表：调用者再看一眼自己的请求，没完就再来。
        # Not our turn: an empty list, and the caller looks at its own request and comes again.
        if not self._lock.acquire(timeout=_PATIENCE_SECONDS):
            return []
        try:
            # 别人寄来的请求和取消，都在这一步开始之前生效，所以半步之中什么也不会变。
            # What others have posted takes effect before this step begins, so nothing changes in the middle of one.
            self._take_messages()
            self.check_alive()
            self._stepping = True
            return self.engine.step()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            # 放手之后再看一眼收件箱：刚才没拿到锁的人，信就放在那里走开了。
            # A last look at the inbox after letting go: who found the lock taken has left a message there and gone.
            self._stepping = False
            self._lock.release()
            self._post()

    def check_alive(self) -> None:
        """引擎不能再用时抛错。

        Raise if the engine is of no more use.
        """
        if self.death is not None:
            raise EngineDeadError(f"the engine broke off in mid-step ({self.death!r}): make a new LLM") from self.death

    def _post(self, *messages: Callable[[], None]) -> None:
        """放进收件箱；没有人在走步，就自己取走。

        Post to the inbox; if nobody is stepping, take it at once.
        """
        # 拿不到锁也不等：拿着它的人放手之后会再看一眼，也许就是本线程自己，垃圾回收可能在半步中间关闭一个 `stream`。
        # No waiting where the lock is taken: who holds it looks again after letting go. It may be this very thread, as
        # garbage collection can close a `stream` in mid-step.
        self._inbox.extend(messages)
        while self._inbox and self._lock.acquire(blocking=False):
            try:
                if self._stepping:
                    return
                self._take_messages()
            finally:
                self._lock.release()

    def _take_messages(self) -> None:
        while self._inbox:
            # 信就是函数，取出来就调用；它若出错，账可能只记了一半，引擎就不能再用了。普通的错不抛：信可能是别人寄的。
            # A message is a function, taken out and called; if it fails, the books may be half written: the end. Plain
            # errors are not raised here, as the message may be somebody else's.
            try:
                self._inbox.popleft()()
            except BaseException as error:
                self.death = self.death or error
                if not isinstance(error, Exception):
                    raise

    def _let_go(self, sequences: list[Sequence]) -> None:
        for seq in filter(self._added.__contains__, sequences):
            self._added.remove(seq)
            if not seq.request_finished:
                self.engine.abort(seq.request_id)
        # 某一步曾半途出错：出错者的请求都取消之后，引擎里若还有别人的，或者账不对，引擎就不能再用了。
        # A step has failed halfway: with the requests of its caller gone, if there are others left or the books are
        # wrong, the engine is of no more use.
        failure, self._failure = self._failure, None
        if failure is not None and not self._is_sound():
            self.death = self.death or failure

    def _is_sound(self) -> bool:
        # 没有请求时，每个块都该空闲、引用为 0；还有谁的 id 占着，就说明有请求没收拾干净。
        # Without requests all blocks are free with 0 references; an id still in use is a request not cleaned up.
        try:
            self.engine.block_manager.check_integrity(())
        except RuntimeError:
            return False
        return not self.engine.requests.ids_in_use
