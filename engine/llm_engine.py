"""LLMEngine：主循环。第一次读源码就从 `step` 开始，在那里设断点，一步一步跟着一个请求走完。

    schedule  = scheduler.schedule()            谁运行，各算几个 token / who runs, with how many tokens
    batch     = build_batch(schedule)           摊平成张量 / flatten into tensors
    logits    = model_runner.execute(batch)     前向 / forward
    token_ids = sampler.choose(schedule, logits)    选 token / choose tokens
    finished  = scheduler.update(...)           记账，停止，释放 / record, stop, free

请求怎样进门、怎样出门，在 `requests.py`；内存怎样分，在 `kv_pool.py`。

LLMEngine: the main loop. Reading for the first time, start at `step`: set a breakpoint there and follow one request.
How requests come in and go out is in `requests.py`, how memory is dealt out in `kv_pool.py`.
"""

import time
from collections.abc import Callable

from engine.batch import build_batch
from engine.block_manager import BlockManager
from engine.config import EngineConfig, EngineSetup
from engine.drafters import create_drafter
from engine.kv_pool import create_pool
from engine.model_runner import ModelRunner
from engine.outputs import EngineMetrics, RequestOutput
from engine.requests import Requests, load_generation_config
from engine.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence, Scheduler
from engine.sequence import Sequence
from engine.tokenizer import Tokenizer
from engine.validation import naming, request_name


class LLMEngine:
    """请求从这里进，token 从这里出；进出只发生在两步之间。

    Requests enter and tokens leave here, always between two steps.

    Attributes:
        num_generated_tokens, num_computed_tokens: 引擎启动以来的合计；totals since the engine started
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> None:
        # 先做开销小的：选项、分词器、生成配置有什么不对，马上就报错，不必等 6 GB 的权重读完。
        # What costs nothing comes first: wrong options, tokenizers and generation configs fail at once, and nobody
        # waits for 6 GB of weights.
        setup = config.resolve()
        self.tokenizer = Tokenizer(setup.folder)
        defaults, eos_token_ids = load_generation_config(setup.folder, setup.model_config)
        # 谁来猜后面的 token；没有要求就是 None，以后每步只多看它一眼。草稿模型小，先装。
        # Who guesses the tokens that follow; None if not asked for, and all that a step does then is to see that. A
        # draft model is small and is loaded first.
        self.drafter = create_drafter(setup, self.tokenizer)
        self.model_runner = ModelRunner(setup, on_progress)
        self.sampler, self.ranks = self.create_sampler(setup), setup.model_config.ranks
        # 有多少块、最长多少，要等权重装好、量过内存才知道，而块管理器和调度器都要用这两个数。
        # How many blocks, and what length: known once the weights are loaded and memory is measured; block manager and
        # scheduler need both.
        extra = self.drafter.block_bytes if self.drafter else 0
        self.pool = create_pool(setup, self.model_runner, self.sampler, self.reserved_bytes(setup), extra)
        if self.drafter:
            self.drafter.allocate(self.pool.num_blocks)
        self.block_manager = BlockManager(self.pool.num_blocks, self.pool.block_size, config.enable_prefix_caching)
        self.scheduler = Scheduler(
            self.block_manager, config.max_num_seqs, setup.max_num_batched_tokens, self.pool.max_model_len,
            config.strict,
        )
        # 没写种子就随启动的时刻而变；张量并行时，大家用 rank 0 的。
        # Without a seed it varies with the time of the start; with tensor parallelism all take that of rank 0.
        seed, *_ = self.ranks.messages(time.time_ns() if config.seed is None else config.seed)
        self.requests = Requests(
            self.tokenizer, self.block_manager, self.pool.max_model_len, setup.model_config.vocab_size, defaults,
            eos_token_ids, seed,
        )
        # 只增不减的计数器，像 Prometheus 的 counter：要速度，就取两次读数之差再除以时间。
        # Counters that only grow, as in Prometheus: for a speed, take two readings and divide by the time between.
        self.num_generated_tokens = 0
        self.num_computed_tokens = 0

    def create_sampler(self, setup: EngineSetup) -> Sampler:
        """选 token 的，它的表在量内存之前就要分好。

        What chooses tokens; its tables have to be there before memory is measured.
        """
        return Sampler(setup.model_config.vocab_size, setup.config.max_num_seqs, setup.device, setup.model_config.ranks)

    def reserved_bytes(self, setup: EngineSetup) -> int:
        """块池分好之后，这个循环还要占多少设备内存。

        How much of the device's memory this loop will take once the pool is there.
        """
        return 0

    # ---- 请求进出 ----
    # ---- requests in and out ----

    def add_request(
        self, prompt: str | list[int], params: SamplingParams | None = None, request_id: str | None = None
    ) -> str:
        """加入一个请求，返回它的 id；引擎正在运行别的请求时也可以加。

        Add a request and return its id; others may be running.

        Raises:
            ValueError: 请求不合法，什么也没有加入；the request is not valid; nothing was added
        """
        # 这一行抛错时引擎的状态还没变（只用掉一个编号），正在跑的请求照常继续。
        # If this line raises, no state has changed but a number used up, and the running requests go on.
        with naming(request_name(request_id)):
            seq = self.requests.prepare(prompt, params, request_id)
        self.add_sequence(seq)
        return seq.request_id

    def add_sequence(self, seq: Sequence) -> None:
        """把 `requests.prepare` 检查过的序列放进等待队列。

        Queue a sequence that `requests.prepare` has validated.

        Raises:
            ValueError: 请求 id 已在用；the request id is in use
        """
        for each in self.requests.open(seq):
            self.scheduler.add(each)

    def abort(self, request_id: str) -> RequestOutput | None:
        """取消一个请求，立刻归还它的块；它已经输出的部分会返回。在任何两步之间都可以调用。

        Cancel a request and return its blocks at once; what it has put out so far is returned. May be called between
        any two steps.
        """
        # 没有这个 id 或它已经结束，都返回 None 而不报错：取消和完成之间本来就有竞态，取消应当是幂等的。
        # None for an id unknown or finished, and no error: cancelling races with finishing and has to be idempotent.
        # 还没放进队列的也要一起取消；一个请求有几份输出，就取消几次，都停下之后才交出结果。
        # Those not queued yet are cancelled as well; each output takes a turn, the result comes once all have ended.
        self.scheduler.add_first(self.requests.held.pop(request_id, []))
        aborted = list(iter(lambda: self.scheduler.abort(request_id), None))
        return next(filter(None, [self.release(seq) for seq in aborted]), None)

    def has_unfinished(self) -> bool:
        """还有没有没算完的请求。

        Whether any request is unfinished.
        """
        return bool(self.requests.held) or self.scheduler.has_unfinished()

    def metrics(self) -> EngineMetrics:
        """引擎此刻的状况：队列、KV 占用、命中、抢占、token 合计。

        The engine at this moment: queues, KV use, hits, preemptions, totals of tokens.
        """
        manager, scheduler = self.block_manager, self.scheduler
        # 按请求数，不按序列：`n` 为 3 的请求有 3 条序列，一条在跑，整个请求就算在跑。
        # Requests and not sequences: a request whose `n` is 3 has 3 of them, and runs as soon as any of them does.
        # `list` 一次拷完，别的线程读它时，引擎可以照常走步。
        # `list` copies at once, so that another thread may read while the engine steps.
        running = {seq.request_id for seq in list(scheduler.running)}
        waiting = {seq.request_id for seq in list(scheduler.waiting)} - running
        # 空闲块里可能还留着可命中的旧内容，但随时能被取走，所以按空闲计。
        # Free blocks may hold contents that can still be hit, but anybody may take them, so they count as free.
        usage = 1 - manager.num_free_blocks / manager.num_blocks
        return EngineMetrics(
            num_running=len(running), num_waiting=len(waiting), kv_cache_usage=usage,
            prefix_cache_queries=manager.stats.queried, prefix_cache_hits=manager.stats.hit,
            num_preemptions=scheduler.num_preemptions, num_computed_tokens=self.num_computed_tokens,
            num_generated_tokens=self.num_generated_tokens, **(self.drafter.totals if self.drafter else {}),
        )

    # ---- 一步 ----
    # ---- one step ----

    def plan(self) -> list[ScheduledSequence]:
        """决定谁运行，并记下第一次轮到它的时间。

        Decide who runs, and note when each had its first turn.
        """
        self.scheduler.add_first(self.requests.take_released(self.scheduler.running))
        # 猜测分两半：先说想猜几个，好让调度器分块；块定了，小模型才能往里写 K、V。
        # Guessing has two halves: first how many are wanted, so that blocks are dealt; then, with the blocks settled, a
        # small model can write its K and V.
        if self.drafter:
            self.drafter.propose(self.scheduler.running)
        schedule = self.scheduler.schedule()
        if self.drafter:
            self.drafter.complete(schedule, self.sampler)
        # 张量并行时，几个进程的安排必须一模一样，否则前向里等的就不是同一步。
        # With tensor parallelism all ranks must plan alike, or they would wait for different steps in the forward pass.
        self.ranks.compare("scheduled rows", schedule)
        # 时钟由引擎读，调度器不读：同样的请求得到同样的决定，出了问题才能重放。
        # The engine reads the clock, the scheduler does not: same requests, same decisions, so a run can be replayed.
        now = time.monotonic()
        for row in schedule:
            # 只记第一次：被抢占后会再次排上。它减去 `arrival_time` 就是排队时间。
            # The first time only: a preempted one returns here. Minus `arrival_time`, it is the queueing time.
            row.seq.metrics.first_scheduled_time = row.seq.metrics.first_scheduled_time or now
        return schedule

    def step(self) -> list[RequestOutput]:
        """走一步：调度、前向、采样、更新，像一条直线。

        One step: schedule, forward, sample, update, in a straight line.

        Returns:
            这一步结束的请求；the requests that finished in this step
        """
        # 像事件循环的一次 tick：没有请求，或者做完一步，就返回，从不阻塞着等新请求；何时再来由调用者决定。
        # One tick of an event loop: without requests, or after a step, it returns and never blocks for new ones.
        if not self.has_unfinished():
            return []
        # 看 `schedule`：（序列，新 token 数）的列表。解码行都是 1，新提示词是整段，或预算剩下的那么多。
        # Look at `schedule`: (sequence, new tokens). A decode has 1, a new prompt all of it or what the budget left.
        schedule = self.plan()
        # 必须在 `update` 之前摊平：`build_batch` 从 `num_computed_tokens` 起取 token，`update` 会把它往前推。
        # Flatten before `update`: `build_batch` takes tokens from `num_computed_tokens` on, and `update` moves that.
        batch = build_batch(schedule, self.pool.block_size, self.model_runner.device)
        # 看 `batch.input_ids` 和 `batch.positions`：解码行只输入上一步选出的 1 个 token，历史都在 KV 缓存里。
        # Look at `batch.input_ids` and `batch.positions`: a decode brings 1 token, the KV cache has the rest.
        # 看 `logits.shape`：行数是要采样的序列数，不是 token 数；`logits.argmax(-1)` 就是贪心会选的 id。
        # Look at `logits.shape`: a row per sampling sequence, not per token; `logits.argmax(-1)` is the greedy choice.
        logits = self.model_runner.execute(batch)  # [S, vocab_size]
        # 看 `token_ids`：每行一个列表。输入 `self.tokenizer.decode(token_ids[0])`，就能读到第 0 行刚生成的文字。
        # Look at `token_ids`, a list a row: `self.tokenizer.decode(token_ids[0])` reads what row 0 has just produced.
        token_ids = self.sampler.choose(schedule, logits)
        # 新 token 从这里进入 `Sequence`，下一步的 `schedule` 才看得到：数据只有这一条回路。
        # New tokens enter `Sequence` here, where the next `schedule` finds them: data has no other way back.
        # 断点停在这里，单步越过（Step Over），对比前后的 `self.scheduler.running`：结束的请求离开，`block_table` 变空。
        # Stop here, step over, compare `self.scheduler.running`: a finished one has left, its `block_table` is empty.
        finished = self.scheduler.update(schedule, token_ids)
        return self.record(schedule, token_ids, finished)

    def record(
        self, schedule: list[ScheduledSequence], token_ids: list[list[int]], finished: list[Sequence]
    ) -> list[RequestOutput]:
        """计数、记时间，把结束的序列变成结果。

        Count, note times, and turn finished sequences into results.
        """
        # 重算也计入：这个数若远大于提示词与输出之和，说明抢占太频繁，块池该加大了。
        # Recomputation counts: far more than prompts plus outputs means too many preemptions, so the pool is too small.
        self.num_computed_tokens += sum(row.num_new_tokens for row in schedule)
        if self.drafter:
            self.drafter.count(schedule, token_ids)
        self.ranks.compare("tokens", token_ids)
        now = time.monotonic()
        for row, tokens in zip(schedule, token_ids):
            seq, metrics = row.seq, row.seq.metrics
            # 重叠循环里，早已结束的序列多算的那个 token 被丢掉了，也就不计数。
            # In the overlapped loop the extra token of a sequence that had ended is dropped, so it does not count.
            if tokens and (seq.finish_reason is None or seq in finished):
                # 首个 token 的时间在取回之后才记，包含 GPU 的时间；记在前向调用之后就会偏小，因为那时 GPU 可能还在算。
                # Taken when the token is here, GPU time included; right after the forward call the GPU may be busy.
                metrics.first_token_time = metrics.first_token_time or now
                metrics.last_token_time = now
                self.num_generated_tokens += len(tokens)
        return [output for seq in finished if (output := self.release(seq))]

    def release(self, seq: Sequence) -> RequestOutput | None:
        """一个序列结束：谁为它留着什么，都在这里放掉；请求的最后一份输出结束时，交出结果。

        A sequence has ended: whatever is kept for it is let go here; with the last output of its request the result is
        handed out.
        """
        self.sampler.release(seq)
        # 第 1 份结束得早，等它的各份也不必再等。
        # Where number 1 has ended early, those that wait for it need not wait any longer.
        self.scheduler.add_first(self.requests.held.pop(seq.request_id, []))
        return self.requests.finish(seq)
