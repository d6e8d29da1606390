"""LLMEngine：主循环。第一次读源码就从 `step` 开始，在那里设断点，一步一步跟着一个请求走完。

    schedule  = scheduler.schedule()            谁运行，各算几个 token / who runs, with how many tokens
    batch     = build_batch(schedule)           摊平成张量 / flatten into tensors
    logits    = model_runner.execute(batch)     前向 / forward
    token_ids = sample(logits, ...)             选 token / choose tokens
    finished  = scheduler.update(...)           记账，停止，释放 / record, stop, free

LLMEngine: the main loop. Reading for the first time, start at `step`: set a breakpoint there and follow one request.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from engine.batch import Batch, build_batch, build_sampling_inputs
from engine.block_manager import BlockManager
from engine.config import EngineConfig
from engine.detokenizer import OutputText
from engine.logprobs import gather_logprobs, read_logprobs
from engine.model_runner import ModelRunner
from engine.outputs import CompletionOutput, EngineMetrics, RequestOutput
from engine.penalties import Penalties
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence, Scheduler
from engine.sequence import Sequence, SequenceStatus
from engine.tokenizer import Tokenizer
from engine.validation import is_int
from models.config import ModelLoadError, parse_token_ids, read_json


def load_generation_config(folder: Path) -> tuple[SamplingParams, frozenset[int]]:
    """模型建议的采样参数和它的停止 id；`do_sample` 为 false 就是贪心，即温度 0。

    The sampling parameters that the model recommends, and its stop ids; `do_sample` false is greedy, that is
    temperature 0.

    Raises:
        ModelLoadError: `generation_config.json` holds a value that is not valid
    """
    # 这个文件可有可无，与必需的 `config.json` 不同；没有它，就用 `SamplingParams` 自己的默认值。
    # Optional, unlike `config.json`, which must be there; without it `SamplingParams` has defaults of its own.
    path = folder / "generation_config.json"
    generation_config = read_json(path) if path.exists() else {}
    eos_token_ids = frozenset(parse_token_ids(generation_config.get("eos_token_id"), "generation_config.json"))
    # 两边叫法不同的只有一项：`max_new_tokens` 是 transformers 的叫法，这里和 vLLM 一样叫 `max_tokens`。
    # One name differs: transformers say `max_new_tokens`, here and in vLLM it is `max_tokens`.
    names = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    names["max_new_tokens"] = "max_tokens"
    # JSON 里的 null 读进来是 None，当作没写；否则 `temperature=None` 会被当成不合法的值。
    # A JSON null becomes None and counts as absent; otherwise `temperature=None` would be refused as a bad value.
    #   {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": null}  ->  {"temperature": 0.6, "top_p": 0.9}
    values = {names[k]: v for k, v in generation_config.items() if k in names and v is not None}
    # 文件里可以同时有 `do_sample: false` 和 0.6 的温度：前者优先，所以这一句放在后面覆盖。
    # A file may hold `do_sample: false` and a temperature of 0.6 together: the former wins, so it overwrites here.
    if generation_config.get("do_sample") is False:
        values["temperature"] = 0.0
    try:
        return SamplingParams(**values), eos_token_ids
    except ValueError as error:
        # 错在文件，不在用户的参数：改抛一个写明文件名的错误，免得用户去检查自己没写过的 `temperature`。
        # The file is wrong, not the user: name it, or the user looks for a `temperature` that nobody typed.
        raise ModelLoadError(f"generation_config.json: {error}") from None


class LLMEngine:
    """请求从这里进，token 从这里出；进出只发生在两步之间。

    Requests enter and tokens leave here, always between two steps.

    Attributes:
        generation_defaults: what the model's `generation_config.json` asks for
        num_generated_tokens, num_computed_tokens: totals since the engine started
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> None:
        folder = config.resolve_model_folder()
        # 执行器最先建：有多少块、最长多少，要等权重装好、量过内存才知道，而块管理器和调度器都要用这两个数。
        # The runner comes first: manager and scheduler need blocks and length, known once memory is measured.
        self.model_runner = ModelRunner(config, folder, on_progress)
        self.tokenizer = Tokenizer(folder)
        self.block_manager = BlockManager(
            self.model_runner.num_blocks, self.model_runner.block_size, config.enable_prefix_caching
        )
        self.scheduler = Scheduler(
            self.block_manager,
            max_num_seqs=config.max_num_seqs,
            # 取执行器算好的值，不取 `config` 里的：那里可以是 None，表示“你来定”。
            # The runner's values, not those of `config`: there they may be None, which means "you decide".
            max_num_batched_tokens=self.model_runner.max_num_batched_tokens,
            max_model_len=self.model_runner.max_model_len,
            strict=config.strict,
        )
        self.generation_defaults, eos_token_ids = load_generation_config(folder)
        # 停止 id 取两个配置文件的并集：Llama 3.2 有三个，少一个就会说个不停。
        # Stop ids are the union of both files: Llama 3.2 has three, and missing one means it talks on and on.
        #   Llama 3.2 Instruct: {128001, 128008, 128009}
        self.eos_token_ids = frozenset(self.model_runner.model_config.eos_token_ids) | eos_token_ids
        # 只增不减的计数器，像 Prometheus 的 counter：要速度，就取两次读数之差再除以时间。
        # Counters that only grow, as in Prometheus: for a speed, take two readings and divide by the time between.
        self.num_generated_tokens = 0
        self.num_computed_tokens = 0
        self.penalties = Penalties(self.model_runner.model_config.vocab_size, self.model_runner.device)
        # 未完成请求的 id，用来查重；`_finish` 会删掉它，id 便可再用。
        # The ids of unfinished requests, to find duplicates; `_finish` frees an id again.
        self._ids_in_use: set[str] = set()
        # 等第 1 份算完提示词的其余各份，按请求 id；见 `_release_held`。
        # The outputs of a request that wait until number 1 has computed the prompt, by request id; see `_release_held`.
        self._held: dict[str, list[Sequence]] = {}
        self._ids = count()
        # 引擎的种子只管发种子：`seed` 相同、加入顺序相同，第几个请求就拿到同样的种子；None 则每次启动都不同。
        # The engine's seed only deals out seeds: same `seed` and order, same seed for each request; None varies.
        self._seeds = random.Random(config.seed)

    # ---- 请求进出 ----
    # ---- requests in and out ----

    def prepare_request(
        self, prompt: str | list[int], params: SamplingParams | None = None, request_id: str | None = None,
        stream: bool = False,
    ) -> Sequence:
        """检查一个请求并造出它的 Sequence，但不加入队列；`generate` 借此先查全部、再加任何一个。

        Validate a request and make its Sequence without queueing it, so that `generate` can check all before it adds
        any.

        Args:
            stream: its text is wanted while it runs

        Raises:
            ValueError: empty or too long a prompt, or a token id out of range; names the request and the limit
        """
        # 检查都在入口做完，相当于准入校验：放进队列之后才发现不合法，就要在别人的请求中间收拾残局。
        # All checks stand at the door (admission control): one found bad in the queue must be removed amid others.
        if params is not None and not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params must be SamplingParams, got {type(params).__name__}")
        params = params or self.generation_defaults
        # 自动编号跳过正在使用的 id：用户自己也可能取名 "0"。
        # Automatic numbers skip ids in use: a user may have chosen "0" as well.
        if request_id is None:
            # `_ids` 只往前走：`generate` 一次检查几个、都还没加入时，编号也不会重复。
            # `_ids` only moves forward: requests validated by `generate` and not added yet get distinct numbers too.
            request_id = next(name for name in map(str, self._ids) if name not in self._ids_in_use)
        if isinstance(prompt, str):
            # 纯文本由分词器加 BOS；对话是以 id 传来的，模板已写好 BOS，走下面的分支，不会加第二遍。
            # Plain text gets its BOS from the tokenizer; a chat comes as ids, with the template's BOS, below.
            token_ids = self.tokenizer.encode(prompt)
        # 布尔值在 Python 里也是 int：不排除它，`[True]` 就会被当成 1 号 token。
        # A bool is an int in Python: without this check `[True]` would pass for token 1.
        elif isinstance(prompt, list | tuple) and all(map(is_int, prompt)):
            # 复制一份：输出会接在这个列表后面，不复制就改写了用户手里的提示词；numpy 的整数也换成 Python 的。
            # A copy: the output is appended to this list, and the user's own prompt must not grow; numpy's integers
            # become Python's.
            token_ids = list(map(int, prompt))
        else:
            raise ValueError(f"request {request_id}: a prompt is a string or a list of token ids, got {prompt!r:.80}")
        # 上限取嵌入表的行数，不是分词器的词表：Qwen3 的嵌入表有 151936 行，比分词器的词表大。
        # The limit is the embedding's rows, not the tokenizer's entries: Qwen3 has 151936 rows, its tokenizer fewer.
        limit, vocab_size = self.model_runner.max_model_len, self.model_runner.model_config.vocab_size
        # 空字符串分词后可能只剩一个 BOS，没有内容可答，同样算空提示词。
        # An empty string may still tokenize to a lone BOS; it asks nothing and counts as empty too.
        if not token_ids or prompt == "":
            raise ValueError(f"request {request_id}: the prompt is empty; give at least one token")
        # 用 `>=`，因为至少要给输出留 1 个位置：上限 4096 时，4095 个 token 的提示词可以，4096 个不行。
        # `>=` leaves room for at least 1 output token: with a limit of 4096, a prompt of 4095 passes and 4096 does not.
        if len(token_ids) >= limit:
            raise ValueError(
                f"request {request_id}: the prompt has {len(token_ids)} tokens, but prompt and output together "
                f"must fit max_model_len={limit}: shorten it to at most {limit - 1}"
            )
        # 越界的 id 在 CUDA 上查嵌入表会触发设备端断言，整个进程的 CUDA 从此不可用：一个坏请求拖垮所有请求。
        # On CUDA an id out of range trips a device-side assert, and CUDA is dead for the process: one takes down all.
        # 停止 id 也查：词表之外的 id 永远不会被选中，请求会一直跑到长度上限，也不会报错或告警。
        # Stop ids too: one outside the vocabulary is never chosen, so the request runs silently to its length limit.
        for what, ids in (("token", token_ids), ("stop token", params.stop_token_ids or [])):
            bad = next((i for i in ids if not 0 <= i < vocab_size), None)
            if bad is not None:
                raise ValueError(f"request {request_id}: {what} id {bad} is not in the vocabulary of {vocab_size}")
        # `ignore_eos` 只去掉模型自带的结束符，用户给的停止 id 照样有效；测速时靠它让输出一样长。
        # `ignore_eos` drops the model's own end tokens, the user's ids still count; benchmarks want equal lengths.
        stop_token_ids = frozenset(params.stop_token_ids or ())
        if not params.ignore_eos:
            stop_token_ids |= self.eos_token_ids
        # 全被禁用，就没有 token 可选了。
        # With all of them banned there would be no token left to choose.
        if params.min_tokens and len(stop_token_ids) >= vocab_size:
            raise ValueError(f"request {request_id}: min_tokens bans stop ids, and all {vocab_size} ids are stop ids")
        return Sequence(
            request_id=request_id,
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            params=params,
            prompt=prompt if isinstance(prompt, str) else None,
            # 没给种子就在此刻抽一个：之后无论怎样调度，这个请求的随机性都已定死。
            # Without a seed one is drawn now: from here on no scheduling can change this request's randomness.
            # 取 63 位：种子要放进 int64 张量，64 位的无符号数有一半放不下。
            # 63 bits: seeds go into an int64 tensor, where half of all unsigned numbers of 64 bits do not fit.
            seed=params.seed if params.seed is not None else self._seeds.getrandbits(63),
            stop_token_ids=stop_token_ids,
            # 多数请求两样都不要：它们结束时整段还原一次就够，每个 token 不必多花一分。
            # Most requests want neither: theirs is decoded once, at the end, and no token costs anything more.
            output_text=OutputText(self.tokenizer, params) if params.stop or stream else None,
        )

    def add_sequence(self, seq: Sequence) -> None:
        """把检查过的序列放进等待队列。

        Queue a sequence that has been validated.

        Raises:
            ValueError: the request id is in use
        """
        # 查重放在登记时做，不在 `prepare_request` 里：检查和加入之间，这个 id 可能被别人先用了。
        # Duplicates are checked here, not in `prepare_request`: between validating and adding somebody may take the id.
        if seq.request_id in self._ids_in_use:
            raise ValueError(f"request {seq.request_id}: this id is already running; choose another")
        self._ids_in_use.add(seq.request_id)
        # 计时从入队算起，用户等待的排队时间也在内；用 `monotonic`，系统校时不会让时间倒流。
        # Counted from queueing, so the wait is included; `monotonic` never runs backwards when the clock is adjusted.
        seq.metrics.arrival_time = time.monotonic()
        self.scheduler.add(seq)
        if seq.params.n == 1:
            return
        # `n` 份输出就是 `n` 个序列，各自调度、抢占、结束，只在交出结果时合在一起。
        # `n` outputs are `n` sequences, each scheduled, preempted and ended on its own; the result puts them together.
        siblings = [seq.sibling(index) for index in range(1, seq.params.n)]
        for each in (seq, *siblings):
            each.siblings = [seq, *siblings]
            # 文字各有各的。
            # Each has its own text.
            each.output_text = seq.output_text and OutputText(self.tokenizer, seq.params)
        # 同一步里大家互相查不到，提示词会算 `n` 遍；有整块可共享时，先让第 1 份算，其余的命中它的块。
        # In the same step they would not find each other and compute the prompt `n` times; if there are whole blocks to
        # share, number 1 computes them first and the others hit its blocks.
        if self._num_shareable_blocks(seq):
            self._held[seq.request_id] = siblings
        else:
            for each in siblings:
                self.scheduler.add(each)

    def _num_shareable_blocks(self, seq: Sequence) -> int:
        """别人最多能命中它的提示词的几个块。

        How many blocks of its prompt others can hit at most.
        """
        manager = self.block_manager
        return (seq.num_prompt_tokens - 1) // manager.block_size if manager.enable_prefix_caching else 0

    def _release_held(self) -> None:
        """第 1 份的提示词块都登记了，或者它已经结束，其余各份就进等待队列，排在最前面。

        Once the prompt's blocks of number 1 are registered, or it has ended, the others enter the waiting queue, at its
        front.
        """
        released: list[Sequence] = []
        for request_id, siblings in list(self._held.items()):
            first = siblings[0].siblings[0]
            computed = first.num_registered_blocks >= self._num_shareable_blocks(first)
            if computed or first.status is SequenceStatus.FINISHED:
                released += self._held.pop(request_id)
        self.scheduler.add_first(released)

    def add_request(
        self, prompt: str | list[int], params: SamplingParams | None = None, request_id: str | None = None
    ) -> str:
        """加入一个请求，返回它的 id；引擎正在运行别的请求时也可以加。

        Add a request and return its id; others may be running.

        Raises:
            ValueError: the request is not valid; nothing was added
        """
        # 这一行抛错时引擎的状态还没变（只用掉一个编号），正在跑的请求照常继续。
        # If this line raises, no state has changed but a number used up, and the running requests go on.
        seq = self.prepare_request(prompt, params, request_id)
        self.add_sequence(seq)
        return seq.request_id

    def abort(self, request_id: str) -> RequestOutput | None:
        """取消一个请求，立刻归还它的块；它已经输出的部分会返回。

        Cancel a request and return its blocks at once; what it has put out so far is returned.
        """
        # 没有这个 id 或它已经结束，都返回 None 而不报错：取消和完成本来就会赛跑，取消应当是幂等的。
        # None for an id unknown or finished, and no error: cancelling races with finishing and has to be idempotent.
        output = None
        # 还没放进队列的也要一起取消；一个请求有几份输出，就取消几次，最后一次得到结果。
        # Those not queued yet are cancelled as well; each output takes a turn, and the last turn gives the result.
        self.scheduler.add_first(self._held.pop(request_id, []))
        while seq := self.scheduler.abort(request_id):
            output = self._finish(seq)
        return output

    def has_unfinished(self) -> bool:
        """还有没有没算完的请求。

        Whether any request is unfinished.
        """
        return bool(self._held) or self.scheduler.has_unfinished()

    def metrics(self) -> EngineMetrics:
        """引擎此刻的状况：队列、KV 占用、命中、抢占、token 合计。

        The engine at this moment: queues, KV use, hits, preemptions, totals of tokens.
        """
        manager, scheduler = self.block_manager, self.scheduler
        # 按请求数，不按序列：`n` 为 3 的请求有 3 条序列，一条在跑，整个请求就算在跑。
        # Requests and not sequences: a request whose `n` is 3 has 3 of them, and runs as soon as any of them does.
        running = {seq.request_id for seq in scheduler.running}
        return EngineMetrics(
            num_running=len(running),
            num_waiting=len({seq.request_id for seq in scheduler.waiting} - running),
            # 空闲块里可能还留着可命中的旧内容，但随时能被取走，所以按空闲计。
            # Free blocks may hold contents that can still be hit, but anybody may take them, so they count as free.
            kv_cache_usage=1 - manager.num_free_blocks / manager.num_blocks,
            prefix_cache_queries=manager.stats.queried,
            prefix_cache_hits=manager.stats.hit,
            num_preemptions=scheduler.num_preemptions,
            num_computed_tokens=self.num_computed_tokens,
            num_generated_tokens=self.num_generated_tokens,
        )

    # ---- 一步 ----
    # ---- one step ----

    def plan(self) -> list[ScheduledSequence]:
        """决定谁运行，并记下第一次轮到它的时间。

        Decide who runs, and note when each had its first turn.
        """
        self._release_held()
        schedule = self.scheduler.schedule()
        # 时钟由引擎读，调度器不读：同样的请求得到同样的决定，出了问题才能重放。
        # The engine reads the clock, the scheduler does not: same requests, same decisions, so a run can be replayed.
        now = time.monotonic()
        for row in schedule:
            if row.seq.metrics.first_scheduled_time is None:
                # 只记第一次：被抢占后会再次排上。它减去 `arrival_time` 就是排队时间。
                # The first time only: a preempted one returns here. Minus `arrival_time`, it is the queueing time.
                row.seq.metrics.first_scheduled_time = now
        return schedule

    def schedule(self) -> tuple[list[ScheduledSequence], Batch]:
        """一步的前半：决定谁运行，摊平成张量。

        The first half of a step: decide who runs and flatten it into tensors.
        """
        schedule = self.plan()
        # 必须在 `update` 之前摊平：`build_batch` 从 `num_computed_tokens` 起取 token，`update` 会把它往前推。
        # Flatten before `update`: `build_batch` takes tokens from `num_computed_tokens` on, and `update` moves that.
        return schedule, build_batch(schedule, self.model_runner.block_size, self.model_runner.device)

    def sample(self, schedule: list[ScheduledSequence], logits: torch.Tensor) -> list[list[int]]:
        """给要采样的行各选一个 token；其余行得到空列表。所有采到的 id 都从这一处经过。

        Choose a token for each row that samples; the others get an empty list. All sampled ids pass through here.

        Args:
            logits: [S, vocab_size]
        """
        # 整步都是长提示词的中途分段时，没有 token 可选；返回的空列表仍与 `schedule` 一行对一行。
        # Nothing but middle chunks of long prompts: no token to choose, but still one list for each row of `schedule`.
        #   budget 2048, prompt 5000: 2048, 2048, 904; samples: False, False, True
        if not any(row.samples for row in schedule):
            return [[] for _ in schedule]
        tokens, logprobs = self.choose(schedule, logits)
        # CUDA 上的核函数是异步的，结果要到 `tolist` 才非等不可；一次取回 S 个，别写成 S 次 `.item()`。
        # Kernels on CUDA run asynchronously; at `tolist` we must wait: one transfer of S ids, not S calls of `.item()`.
        sampled = iter(tokens.tolist())
        # 每行是一个列表，不是一个数：将来一步得到几个 token（如投机解码），接口也不用改。
        # A list a row, not a number: speculative decoding yields several tokens a step, and the interface would stay.
        #   samples [True, False, True], sampled [42, 7]  ->  [[42], [], [7]]
        token_ids = [[next(sampled)] if row.samples else [] for row in schedule]
        self.keep_logprobs(schedule, token_ids, logprobs)
        return token_ids

    def choose(
        self, schedule: list[ScheduledSequence], logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """采样的全部工作，都在设备上：禁用与惩罚，采样，计数，对数概率。两种循环都用它。

        All of sampling, on the device: bans and penalties, the choice, counts, log-probabilities. Both loops use it.

        Args:
            logits: [S, vocab_size], one row for each of `schedule` that samples

        Returns:
            token ids [S] int64; and what `gather_logprobs` returns
        """
        sequences = [row.seq for row in schedule if row.samples]
        # 断点停在这里，比较 `logits` 与 `scores`：没有行要改时，两者就是同一个张量。
        # Stop here and compare `logits` with `scores`: where no row is changed, both are the same tensor.
        scores, penalized = self.penalties.apply(sequences, logits)
        inputs = build_sampling_inputs(schedule, logits.shape[-1], logits.device)
        tokens = self.model_runner.sample(scores, inputs)
        # 马上计数，不等主机读到：重叠循环里，下一步的惩罚比主机先用到它。
        # Counted at once, before the host reads it: in the overlapped loop the next step's penalties need it sooner.
        if penalized is not None:
            self.penalties.count(*penalized, tokens)
        return tokens, gather_logprobs(logits, tokens, [seq.params.logprobs for seq in sequences])

    def keep_logprobs(
        self, schedule: list[ScheduledSequence], token_ids: list[list[int]], logprobs: torch.Tensor | None
    ) -> None:
        """把到了主机的对数概率记到各序列上；要在 `commit` 之前调用。

        Record log-probabilities that have come to the host; to be called before `commit`.

        Args:
            logprobs: what `gather_logprobs` returned, on the host
        """
        if logprobs is None:
            return
        sampled = [(seq, ids[0]) for (seq, _), ids in zip(schedule, token_ids) if ids]
        wanted = [pair for pair in sampled if pair[0].params.logprobs is not None]
        for (seq, token), row in zip(wanted, logprobs.tolist(), strict=True):
            # 与 `commit` 一样：重叠循环里多算的那个 token 丢掉，它的对数概率也丢掉。
            # As in `commit`: the extra token of the overlapped loop is dropped, and so is its log-probability.
            if seq.status is not SequenceStatus.FINISHED:
                number = seq.params.logprobs or 0
                seq.logprobs.append(read_logprobs(row, token, number, self.tokenizer.decode_token))

    def update(self, schedule: list[ScheduledSequence], token_ids: list[list[int]]) -> list[RequestOutput]:
        """一步的后半：记下 token，收走结束的请求。

        The second half of a step: record tokens, retire what finished.
        """
        # 断点停在这里，单步越过（Step Over），对比前后的 `self.scheduler.running`：结束的请求离开，`block_table` 变空。
        # Stop here, step over, compare `self.scheduler.running`: a finished one has left, its `block_table` is empty.
        return self.record(schedule, token_ids, self.scheduler.update(schedule, token_ids))

    def record(
        self, schedule: list[ScheduledSequence], token_ids: list[list[int]], finished: list[Sequence]
    ) -> list[RequestOutput]:
        """计数、记时间，把结束的序列变成结果。

        Count, note times, and turn finished sequences into results.
        """
        # 重算也计入：这个数若远大于提示词与输出之和，说明抢占太频繁，块池该加大了。
        # Recomputation counts: far more than prompts plus outputs means too many preemptions, so the pool is too small.
        self.num_computed_tokens += sum(row.num_new_tokens for row in schedule)
        now, generated = time.monotonic(), 0
        for row, tokens in zip(schedule, token_ids):
            seq, metrics = row.seq, row.seq.metrics
            # 重叠循环里，早已结束的序列多算的那个 token 被丢掉了，也就不计数。
            # In the overlapped loop the extra token of a sequence that had ended is dropped, so it does not count.
            if tokens and (seq.finish_reason is None or seq in finished):
                # 首个 token 的时间在取回之后才记，包含 GPU 的时间；记在前向调用之后就会偏小，因为那时 GPU 可能还在算。
                # Taken when the token is here, GPU time included; right after the forward call the GPU may be busy.
                if metrics.first_token_time is None:
                    metrics.first_token_time = now
                metrics.last_token_time = now
                generated += len(tokens)
        self.num_generated_tokens += generated
        return [output for seq in finished if (output := self._finish(seq))]

    def step(self) -> list[RequestOutput]:
        """走一步：调度、前向、采样、更新，像一条直线。

        One step: schedule, forward, sample, update, in a straight line.

        Returns:
            the requests that finished in this step
        """
        # 没有请求时调用也无妨：没事可做，就没有结果。
        # Calling it without any request does no harm: nothing to do, no results.
        # 像事件循环的一次 tick：做完一步就返回，从不阻塞着等新请求；何时再来由调用者决定。
        # One tick of an event loop: do a step and return, never block for new requests; the caller calls again.
        if not self.has_unfinished():
            return []
        # 看 `schedule`：（序列，新 token 数）的列表。解码行都是 1，新提示词是整段，或预算剩下的那么多。
        # Look at `schedule`: (sequence, new tokens). A decode has 1, a new prompt all of it or what the budget left.
        # 再看 `batch.input_ids` 和 `batch.positions`：解码行只输入上一步选出的 1 个 token，历史都在 KV 缓存里。
        # Then at `batch.input_ids` and `batch.positions`: a decode brings 1 token, the KV cache has the rest.
        schedule, batch = self.schedule()
        # 看 `logits.shape`：行数是要采样的序列数，不是 token 数；`logits.argmax(-1)` 就是贪心会选的 id。
        # Look at `logits.shape`: a row per sampling sequence, not per token; `logits.argmax(-1)` is the greedy choice.
        logits = self.model_runner.execute(batch)  # [S, vocab_size]
        # 看 `token_ids`：每行一个列表。输入 `self.tokenizer.decode(token_ids[0])`，就能读到第 0 行刚生成的文字。
        # Look at `token_ids`, a list a row: `self.tokenizer.decode(token_ids[0])` reads what row 0 has just produced.
        token_ids = self.sample(schedule, logits)
        # 新 token 从这里进入 `Sequence`，下一步的 `schedule` 才看得到：数据只有这一条回路。
        # New tokens enter `Sequence` here, where the next `schedule` finds them: data has no other way back.
        return self.update(schedule, token_ids)

    def _finish(self, seq: Sequence) -> RequestOutput | None:
        """一个序列结束；若它是请求的最后一份输出，就让出请求的 id，交出结果。

        A sequence has ended; if it is the last output of its request, free the request's id and hand out the result.
        """
        self.penalties.release(seq)
        # 几份输出在同一步结束时，只有第一个来到这里的交出结果，那时 id 还在。
        # If several outputs end in the same step, only the first that comes here hands out the result: the id is there.
        if not seq.request_finished or seq.request_id not in self._ids_in_use:
            return None
        # 引擎可以跑上几周：不删掉这个 id 就是内存泄漏，它也永远不能再用。
        # An engine runs for weeks: an id left behind leaks memory and can never be used again.
        self._ids_in_use.remove(seq.request_id)
        seq.metrics.finished_time = time.monotonic()
        return self.make_output(seq)

    def make_output(self, seq: Sequence) -> RequestOutput:
        """把一个请求的序列变成给用户的结果；`seq` 是其中任何一个。

        Turn a request's sequences into the user's result; `seq` is any of them.
        """
        first, *others = seq.siblings or [seq]
        outputs = [self._completion(each) for each in (first, *others)]
        # 拷贝一份：没结束的请求会继续改自己的时间点，交出去的结果却不该再变。
        # A copy: an unfinished request goes on changing its times, and a result handed out must stay as it is.
        metrics = replace(first.metrics, num_generated_tokens=sum(len(each.token_ids) for each in outputs))
        return RequestOutput(
            request_id=first.request_id, prompt=first.prompt, prompt_token_ids=first.prompt_token_ids, outputs=outputs,
            finished=first.request_finished, num_cached_tokens=first.num_cached_tokens, metrics=metrics,
        )

    def _completion(self, seq: Sequence) -> CompletionOutput:
        """一个序列的输出。

        One sequence's output.
        """
        token_ids, finished = seq.output_token_ids, seq.finish_reason is not None
        if seq.output_text is not None:
            text = seq.output_text.so_far(finished)
        else:
            # 停止 token 留在 `token_ids` 里，但不进文字：它是信号，不是回答的一部分。
            # The stop token stays in `token_ids` but out of the text: it is a signal and no part of the answer.
            shown = token_ids[:-1] if seq.finish_reason == "stop" else token_ids
            # 整段一起还原成文字，不逐个拼接：一个汉字可能由几个 token 组成，拆开还原只会得到乱码符号。
            # Decoded as a whole: a Chinese character may span several tokens, each of which alone decodes to garbage.
            text = self.tokenizer.decode(shown, seq.params.skip_special_tokens)
        asked = seq.params.logprobs is not None
        chosen = [report[token].logprob for report, token in zip(seq.logprobs, token_ids)]
        return CompletionOutput(
            index=seq.index, text=text, token_ids=token_ids, finish_reason=seq.finish_reason,
            stop_reason=seq.stop_reason, logprobs=list(seq.logprobs) if asked else None,
            cumulative_logprob=sum(chosen) if asked else None,
        )
