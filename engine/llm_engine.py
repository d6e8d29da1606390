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
from itertools import count

import torch

from engine.batch import Batch, build_batch, build_sampling_inputs
from engine.block_manager import BlockManager
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.outputs import CompletionOutput, RequestOutput
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence, Scheduler
from engine.sequence import Sequence
from engine.tokenizer import Tokenizer
from layers.sampler import sample
from models.config import ModelLoadError, parse_token_ids, read_json


class LLMEngine:
    """请求从这里进，token 从这里出；进出只发生在两步之间。

    Requests enter and tokens leave here, always between two steps.

    Attributes:
        generation_defaults: what the model's `generation_config.json` asks for
        num_generated_tokens, num_computed_tokens: totals since the engine started
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> None:
        folder = config.resolve_model_folder()
        self.config = config
        self.model_runner = ModelRunner(config, folder, on_progress)
        self.tokenizer = Tokenizer(folder)
        self.block_manager = BlockManager(
            self.model_runner.num_blocks, self.model_runner.block_size, config.enable_prefix_caching
        )
        self.scheduler = Scheduler(
            self.block_manager,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=self.model_runner.max_num_batched_tokens,
            max_model_len=self.model_runner.max_model_len,
            strict=config.strict,
        )
        path = folder / "generation_config.json"
        generation_config = read_json(path) if path.exists() else {}
        # 停止 id 取两个配置文件的并集：Llama 3.2 有三个，少一个就会说个不停。
        # Stop ids are the union of both files: Llama 3.2 has three, and missing one means it talks on and on.
        self.eos_token_ids = frozenset(self.model_runner.model_config.eos_token_ids) | frozenset(
            parse_token_ids(generation_config.get("eos_token_id"), "generation_config.json")
        )
        self.generation_defaults = self._default_params(generation_config)
        self.num_generated_tokens = 0
        self.num_computed_tokens = 0
        self._prompts: dict[str, str | None] = {}
        self._ids = count()
        self._seeds = random.Random(config.seed)

    @staticmethod
    def _default_params(generation_config: dict[str, object]) -> SamplingParams:
        """模型建议的采样参数；`do_sample` 为 false 就是贪心，即温度 0。

        The sampling parameters that the model recommends; `do_sample` false is greedy, that is temperature 0.
        """
        names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
        names["max_new_tokens"] = "max_tokens"
        values = {names[k]: v for k, v in generation_config.items() if k in names and v is not None}
        if generation_config.get("do_sample") is False:
            values["temperature"] = 0.0
        try:
            return SamplingParams(**values)  # type: ignore[arg-type]
        except ValueError as error:
            raise ModelLoadError(f"generation_config.json: {error}") from None

    # ---- 请求进出 ----
    # ---- requests in and out ----

    def prepare_request(
        self, prompt: str | list[int], params: SamplingParams | None = None, request_id: str | None = None
    ) -> Sequence:
        """检查一个请求并造出它的 Sequence，但不加入队列；`generate` 借此先查全部、再加任何一个。

        Validate a request and make its Sequence without queueing it, so that `generate` can check all before it adds
        any.

        Raises:
            ValueError: empty or too long a prompt, or a token id out of range; names the request and the limit
        """
        params = params or self.generation_defaults
        # 自动编号跳过正在使用的 id：用户自己也可能取名 "0"。
        # Automatic numbers skip ids in use: a user may have chosen "0" as well.
        if request_id is None:
            request_id = next(name for name in map(str, self._ids) if name not in self._prompts)
        if isinstance(prompt, str):
            token_ids = self.tokenizer.encode(prompt)
        elif isinstance(prompt, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
            token_ids = list(prompt)
        else:
            raise ValueError(f"request {request_id}: a prompt is a string or a list of token ids, got {prompt!r:.80}")
        limit, vocab_size = self.model_runner.max_model_len, self.model_runner.model_config.vocab_size
        # 空字符串分词后可能只剩一个 BOS，没有内容可答，同样算空提示。
        # An empty string may still tokenize to a lone BOS; it asks nothing and counts as empty too.
        if not token_ids or prompt == "":
            raise ValueError(f"request {request_id}: the prompt is empty; give at least one token")
        if len(token_ids) >= limit:
            raise ValueError(
                f"request {request_id}: the prompt has {len(token_ids)} tokens, but prompt and output together "
                f"must fit max_model_len={limit}: shorten it to at most {limit - 1}"
            )
        for what, ids in (("token", token_ids), ("stop token", params.stop_token_ids or [])):
            bad = next((i for i in ids if not 0 <= i < vocab_size), None)
            if bad is not None:
                raise ValueError(f"request {request_id}: {what} id {bad} is not in the vocabulary of {vocab_size}")
        stop_token_ids = frozenset(params.stop_token_ids or ())
        return Sequence(
            request_id=request_id,
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            params=params,
            # 没给种子就在此刻抽一个：之后无论怎样调度，这个请求的随机性都已定死。
            # Without a seed one is drawn now: from here on no scheduling can change this request's randomness.
            seed=params.seed if params.seed is not None else self._seeds.getrandbits(63),
            stop_token_ids=stop_token_ids if params.ignore_eos else stop_token_ids | self.eos_token_ids,
        )

    def add_sequence(self, seq: Sequence, prompt: str | None = None) -> None:
        """把检查过的序列放进等待队列。

        Queue a sequence that has been validated.

        Raises:
            ValueError: the request id is in use
        """
        if seq.request_id in self._prompts:
            raise ValueError(f"request {seq.request_id}: this id is already running; choose another")
        self._prompts[seq.request_id] = prompt
        seq.metrics.arrival_time = time.monotonic()
        self.scheduler.add(seq)

    def add_request(
        self, prompt: str | list[int], params: SamplingParams | None = None, request_id: str | None = None
    ) -> str:
        """加入一个请求，返回它的 id；引擎正在运行别的请求时也可以加。

        Add a request and return its id; others may be running.

        Raises:
            ValueError: the request is not valid; nothing was added
        """
        seq = self.prepare_request(prompt, params, request_id)
        self.add_sequence(seq, prompt if isinstance(prompt, str) else None)
        return seq.request_id

    def abort(self, request_id: str) -> RequestOutput | None:
        """取消一个请求，立刻归还它的页；它已经输出的部分会返回。

        Cancel a request and return its blocks at once; what it has put out so far is returned.
        """
        seq = self.scheduler.abort(request_id)
        return self._finish(seq) if seq else None

    def has_unfinished(self) -> bool:
        """还有没有没算完的请求。

        Whether any request is unfinished.
        """
        return self.scheduler.has_unfinished()

    # ---- 一步 ----
    # ---- one step ----

    def schedule(self) -> tuple[list[ScheduledSequence], Batch]:
        """一步的前半：决定谁运行，摊平成张量。

        The first half of a step: decide who runs and flatten it into tensors.
        """
        schedule = self.scheduler.schedule()
        now = time.monotonic()
        for row in schedule:
            if row.seq.metrics.first_scheduled_time is None:
                row.seq.metrics.first_scheduled_time = now
        return schedule, build_batch(schedule, self.model_runner.block_size, self.model_runner.device)

    def sample(self, schedule: list[ScheduledSequence], logits: torch.Tensor) -> list[list[int]]:
        """给要采样的行各选一个 token；其余行得到空列表。所有采到的 id 都从这一处经过。

        Choose a token for each row that samples; the others get an empty list. All sampled ids pass through here.

        Args:
            logits: [S, vocab_size]
        """
        if not any(row.samples for row in schedule):
            return [[] for _ in schedule]
        inputs = build_sampling_inputs(schedule, logits.shape[-1], logits.device)
        sampled = iter(sample(logits, inputs).tolist())
        return [[next(sampled)] if row.samples else [] for row in schedule]

    def update(self, schedule: list[ScheduledSequence], token_ids: list[list[int]]) -> list[RequestOutput]:
        """一步的后半：记下 token，收走结束的请求。

        The second half of a step: record tokens, retire what finished.
        """
        self.num_computed_tokens += sum(row.num_new_tokens for row in schedule)
        self.num_generated_tokens += sum(map(len, token_ids))
        finished = self.scheduler.update(schedule, token_ids)
        now = time.monotonic()
        for row, tokens in zip(schedule, token_ids):
            if tokens and row.seq.metrics.first_token_time is None:
                row.seq.metrics.first_token_time = now
        return [self._finish(seq) for seq in finished]

    def step(self) -> list[RequestOutput]:
        """走一步：调度、前向、采样、更新，像一条直线。

        One step: schedule, forward, sample, update, in a straight line.

        Returns:
            the requests that finished in this step
        """
        # 没有请求时调用也无妨：没事可做，就没有结果。
        # Calling it without any request does no harm: nothing to do, no results.
        if not self.has_unfinished():
            return []
        schedule, batch = self.schedule()
        logits = self.model_runner.execute(batch)  # [S, vocab_size]
        token_ids = self.sample(schedule, logits)
        return self.update(schedule, token_ids)

    def _finish(self, seq: Sequence) -> RequestOutput:
        """把结束的序列变成给用户的结果。

        Turn a finished sequence into the user's result.
        """
        seq.metrics.finished_time = time.monotonic()
        completion = CompletionOutput(
            index=0,
            text=self.tokenizer.decode(seq.output_token_ids, seq.params.skip_special_tokens),
            token_ids=seq.output_token_ids,
            finish_reason=seq.finish_reason,
            stop_reason=seq.stop_reason,
        )
        return RequestOutput(
            request_id=seq.request_id,
            prompt=self._prompts.pop(seq.request_id),
            prompt_token_ids=seq.prompt_token_ids,
            outputs=[completion],
            num_cached_tokens=seq.num_cached_tokens,
            metrics=seq.metrics,
        )
