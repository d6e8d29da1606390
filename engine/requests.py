"""请求的两头：进门时检查文字或 id，造出 `Sequence`；结束时把 `Sequence` 变成 `RequestOutput`。

你在这里：`llm_engine.py` 在两步之间调用；`serving/` 里的入口也用它，好先查全部、再加任何一个。

Both ends of a request: at the door text or ids are checked and become a `Sequence`; at the end a `Sequence` becomes a
`RequestOutput`.

You are here: `llm_engine.py` calls it between steps; the entries in `serving/` do too, to check all before any is
added.
"""

import logging
import random
import time
from collections.abc import Collection
from dataclasses import replace
from itertools import count
from pathlib import Path

from engine.block_manager import BlockManager
from engine.detokenizer import Detokenizer, OutputText
from engine.guides import Guides
from engine.outputs import CompletionOutput, Logprobs, RequestMetrics, RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from engine.tokenizer import Tokenizer
from engine.validation import check_unused, is_int
from models.config import ModelConfig, parse_token_ids
from models.fields import ModelLoadError, read_json

logger = logging.getLogger(__name__)

def load_generation_config(folder: Path, model_config: ModelConfig) -> tuple[SamplingParams, frozenset[int]]:
    """模型建议的采样参数，和它的文件里写的停止 id；`do_sample` 为 false 就是贪心，即温度 0。

    The sampling parameters that the model recommends, and the stop ids in its files; `do_sample` false is greedy, that
    is temperature 0.

    Raises:
        ModelLoadError: `generation_config.json` 里有不合法的值；`generation_config.json` holds an invalid value
    """
    # 这个文件可有可无，与必需的 `config.json` 不同；没有它，就用 `SamplingParams` 自己的默认值。
    # Optional, unlike `config.json`, which must be there; without it `SamplingParams` has defaults of its own.
    path = folder / "generation_config.json"
    generation_config = read_json(path) if path.exists() else {}
    # 这个文件写了就以它为准：`config.json` 里的常是微调之前留下的，可能是个普通 token。
    # What this file says wins: the ids in `config.json` are often left over from before a fine-tune, and may be those
    # of ordinary tokens.
    #   Llama 3.2 Instruct: {128001, 128008, 128009}
    given = parse_token_ids(generation_config.get("eos_token_id"), "generation_config.json")
    eos_token_ids = frozenset(given or model_config.eos_token_ids)
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


class Requests:
    """请求的登记处：发 id 和种子，记住谁还没结束，管着等第 1 份的兄弟序列。

    The register of requests: deals out ids and seeds, knows who is unfinished, and keeps the siblings that wait for
    number 1.

    Attributes:
        defaults: 模型的 `generation_config` 所建议的，请求没带参数时用；
            what the model's `generation_config` asks for, used where a request brings no parameters
        eos_token_ids: 结束一份输出的 id，除非 `ignore_eos`；the ids that end an output unless `ignore_eos`
        ids_in_use: 没有结束的请求的 id，用来查重；`finish` 让它可以再用；
            of the requests that are unfinished, to find duplicates; `finish` frees an id again
    """

    def __init__(
        self, tokenizer: Tokenizer, block_manager: BlockManager, max_model_len: int, vocab_size: int,
        defaults: SamplingParams, eos_token_ids: frozenset[int], seed: int,
    ) -> None:
        self.tokenizer, self.block_manager = tokenizer, block_manager
        self.max_model_len, self.vocab_size = max_model_len, vocab_size
        self.defaults, self.guides = defaults, Guides(tokenizer, vocab_size)
        # 分词器自己的结束符总在其中：微调的模型常常只在那里写对。
        # The tokenizer's own end token always counts: fine-tuned models often have the right one there alone.
        ends = eos_token_ids if tokenizer.eos_token_id is None else eos_token_ids | {tokenizer.eos_token_id}
        self.eos_token_ids = frozenset(i for i in ends if i < vocab_size)
        if dropped := sorted(ends - self.eos_token_ids):
            logger.warning("stop ids outside the vocabulary are dropped / 丢弃词表之外的停止 id：%s", dropped)
        # 一个 token 很少超过 64 个字符：长得没有希望的文字，分词之前就拒绝，不必先花几秒和几 GB。
        # A token is rarely longer than 64 characters: text that is hopelessly long is refused before it is tokenized,
        # which would take seconds and gigabytes.
        tokenizer.max_chars = 64 * max_model_len
        self.ids_in_use: set[str] = set()
        # 等第 1 份算完提示词的其余各份，按请求 id；见 `take_released`。
        # The outputs of a request that wait until number 1 has computed the prompt, by request id; see `take_released`.
        self.held: dict[str, list[Sequence]] = {}
        self._ids = count()
        # 引擎的种子只管发种子：`seed` 相同、加入顺序相同，第几个请求就拿到同样的种子。
        # The engine's seed only deals out seeds: same `seed` and order, same seed for each request.
        self._seeds = random.Random(seed)

    # ---- 进门 ----
    # ---- at the door ----

    def prepare(
        self, prompt: str | list[int], params: SamplingParams | None = None, request_id: str | None = None,
        stream: bool = False,
    ) -> Sequence:
        """检查一个请求并造出它的 Sequence，但不加入队列；`generate` 借此先查全部、再加任何一个。

        Validate a request and make its Sequence without queueing it, so that `generate` can check all before it adds
        any.

        Args:
            stream: 运行途中就要它的文字；its text is wanted while it runs

        Raises:
            ValueError: 提示词空或太长（文字超过 64 个字符 × `max_model_len` 的不分词），或 id 越界；
                an empty or too long prompt (over 64 characters × `max_model_len`: not tokenized), or an id out of range
        """
        # 检查都在入口做完，相当于准入校验：放进队列之后才发现不合法，就要在别人的请求中间收拾残局。
        # All checks stand at the door (admission control): one found bad in the queue must be removed amid others.
        params = self.checked(params)
        # 自动编号跳过正在使用的 id：用户自己也可能取名 "0"。
        # Automatic numbers skip ids in use: a user may have chosen "0" as well.
        if request_id is None:
            # `_ids` 只往前走：`generate` 一次检查几个、都还没加入时，编号也不会重复。
            # `_ids` only moves forward: requests validated by `generate` and not added yet get distinct numbers too.
            request_id = next(name for name in map(str, self._ids) if name not in self.ids_in_use)
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
            raise ValueError(f"a prompt is a string or a list of token ids, got {prompt!r:.80}")
        # 空字符串分词后可能只剩一个 BOS，没有内容可答，同样算空提示词。
        # An empty string may still tokenize to a lone BOS; it asks nothing and counts as empty too.
        if not token_ids or prompt == "":
            raise ValueError("the prompt is empty; give at least one token")
        # 用 `>=`，因为至少要给输出留 1 个位置：上限 4096 时，4095 个 token 的提示词可以，4096 个不行。
        # `>=` leaves room for at least 1 output token: with a limit of 4096, a prompt of 4095 passes and 4096 does not.
        if len(token_ids) >= self.max_model_len:
            raise ValueError(
                f"the prompt has {len(token_ids)} tokens, but prompt and output together must fit "
                f"max_model_len={self.max_model_len}: shorten it to at most {self.max_model_len - 1}"
            )
        # 越界的 id 在 CUDA 上查嵌入表会触发设备端断言，整个进程的 CUDA 从此不可用：一个坏请求拖垮所有请求。
        # On CUDA an id out of range trips a device-side assert, and CUDA is dead for the process: one takes down all.
        self._check_ids("token", token_ids)
        # `ignore_eos` 只去掉模型自带的结束符，用户给的停止 id 照样有效；测速时靠它让输出一样长。
        # `ignore_eos` drops the model's own end tokens, the user's ids still count; benchmarks want equal lengths.
        stop_token_ids = frozenset(params.stop_token_ids or ())
        if not params.ignore_eos:
            stop_token_ids |= self.eos_token_ids
        # 全被禁用，就没有 token 可选了。
        # With all of them banned there would be no token left to choose.
        if params.min_tokens and len(stop_token_ids) >= self.vocab_size:
            raise ValueError(f"min_tokens bans stop ids, and all {self.vocab_size} ids are stop ids")
        return Sequence(
            request_id=request_id, token_ids=token_ids, num_prompt_tokens=len(token_ids), params=params,
            prompt=prompt if isinstance(prompt, str) else None,
            # 没给种子就在此刻抽一个：之后无论怎样调度，这个请求的随机性都已定死。
            # Without a seed one is drawn now: from here on no scheduling can change this request's randomness.
            # 取 63 位：种子要放进 int64 张量，64 位的无符号数有一半放不下。
            # 63 bits: seeds go into an int64 tensor, where half of all unsigned numbers of 64 bits do not fit.
            seed=params.seed if params.seed is not None else self._seeds.getrandbits(63),
            stop_token_ids=stop_token_ids,
            # 多数请求两样都不要：它们结束时整段还原一次就够，每个 token 不必多花一分。
            # Most requests want neither: theirs is decoded once, at the end, and no token costs anything more.
            output_text=OutputText(self.tokenizer, params, token_ids) if params.stop or stream else None,
            logprobs=None if params.logprobs is None else Logprobs(params.logprobs, self.tokenizer.decode_token),
            guide=self.guides.start(wanted, stop_token_ids) if (wanted := params.structured_outputs) else None,
        )

    def checked(self, params: SamplingParams | None) -> SamplingParams:
        """一个请求的参数，检查过；没带就是模型建议的。

        A request's parameters, checked; those that the model recommends if it brings none.

        Raises:
            ValueError: 不是 `SamplingParams`，停止 id 越界，或语法不对；
                no `SamplingParams`, a stop id out of range, or a bad grammar
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise ValueError(f"sampling_params must be SamplingParams, got {type(params).__name__}")
        params = params or self.defaults
        # 停止 id 也查：词表之外的 id 永远不会被选中，请求会一直跑到长度上限，也不会报错或告警。
        # Stop ids too: one outside the vocabulary is never chosen, so the request runs silently to its length limit.
        self._check_ids("stop token", params.stop_token_ids or ())
        if params.structured_outputs is not None:
            self.guides.compile(params.structured_outputs)
        return params

    def _check_ids(self, what: str, ids: Collection[int]) -> None:
        # 上限取嵌入表的行数，不是分词器的词表：Qwen3 的嵌入表有 151936 行，比分词器的词表大。
        # The limit is the embedding's rows, not the tokenizer's entries: Qwen3 has 151936 rows, its tokenizer fewer.
        # `min` 和 `max` 比逐个判断快几倍，长提示词才检查得起。
        # `min` and `max` are several times as fast as a test for each, which long prompts need.
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            bad = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise ValueError(f"{what} id {bad} is not in the vocabulary of {self.vocab_size}")

    def open(self, seq: Sequence) -> list[Sequence]:
        """登记一个检查过的请求，返回现在就该排队的序列。

        Register a request that has been validated, and return the sequences to queue now.

        Raises:
            ValueError: 请求 id 已在用；the request id is in use
        """
        # 查重放在登记时做，不在 `prepare` 里：检查和加入之间，这个 id 可能被别人先用了。
        # Duplicates are checked here, not in `prepare`: between validating and adding somebody may take the id.
        check_unused(seq.request_id, self.ids_in_use)
        self.ids_in_use.add(seq.request_id)
        # 计时从入队算起，用户等待的排队时间也在内；用 `monotonic`，系统校时不会让时间倒流。
        # Counted from queueing, so the wait is included; `monotonic` never runs backwards when the clock is adjusted.
        seq.metrics.arrival_time = time.monotonic()
        if seq.params.n == 1:
            return [seq]
        # `n` 份输出就是 `n` 个序列，各自调度、抢占、结束，只在交出结果时合在一起。
        # `n` outputs are `n` sequences, each scheduled, preempted and ended on its own; the result puts them together.
        siblings = [seq.sibling(index) for index in range(1, seq.params.n)]
        # 大家共用一个列表：各存一份就是 `n` 的平方。
        # All share one list: a copy each would be the square of `n`.
        group = [seq, *siblings]
        for each in group:
            each.siblings = group
            # 文字各有各的。
            # Each has its own text.
            each.output_text = seq.output_text and OutputText(self.tokenizer, seq.params, each.token_ids)
        # 同一步里大家互相查不到，提示词会算 `n` 遍；有整块可共享时，先让第 1 份算，其余的命中它的块。
        # In the same step they would not find each other and compute the prompt `n` times; if there are whole blocks to
        # share, number 1 computes them first and the others hit its blocks.
        if not self.block_manager.num_shareable_blocks(seq.num_prompt_tokens):
            return group
        self.held[seq.request_id] = siblings
        return [seq]

    def take_released(self, running: list[Sequence]) -> list[Sequence]:
        """第 1 份的提示词块都登记了，其余各份就可以排队，排在最前面；它若先结束，由 `LLMEngine.release` 放行。

        Once the prompt's blocks of number 1 are registered, the others may queue, at the very front; should it end
        sooner, `LLMEngine.release` lets them go.
        """
        # 只看在运行的：等待中的第 1 份一个块也没有，它们可能有几千个。
        # Only running ones are looked at: a number 1 that waits has no blocks, and there may be thousands of them.
        released: list[Sequence] = []
        for seq in running if self.held else ():
            num_awaited = self.block_manager.num_shareable_blocks(seq.num_prompt_tokens)
            if seq.request_id in self.held and seq.num_registered_blocks >= num_awaited:
                released += self.held.pop(seq.request_id)
        return released

    # ---- 出门 ----
    # ---- on the way out ----

    def finish(self, seq: Sequence) -> RequestOutput | None:
        """一个序列结束；若它是请求的最后一份输出，就让出请求的 id，交出结果。

        A sequence has ended; if it is the last output of its request, free the request's id and hand out the result.
        """
        # 几份输出在同一步结束时，只有第一个来到这里的交出结果，那时 id 还在。
        # If several outputs end in the same step, only the first that comes here hands out the result: the id is there.
        if seq.request_id not in self.ids_in_use or not seq.request_finished:
            return None
        # 引擎可以跑上几周：不删掉这个 id 就是内存泄漏，它也永远不能再用。
        # An engine runs for weeks: an id left behind leaks memory and can never be used again.
        self.ids_in_use.remove(seq.request_id)
        seq.metrics.finished_time = time.monotonic()
        return self.output(seq)

    def output(self, seq: Sequence) -> RequestOutput:
        """一个请求到目前为止的结果；`seq` 是它的任何一个序列。

        A request's result so far; `seq` is any of its sequences.
        """
        sequences = seq.siblings or [seq]
        first = sequences[0]
        return RequestOutput(
            request_id=first.request_id, prompt=first.prompt, prompt_token_ids=first.prompt_token_ids,
            outputs=[self._completion(each) for each in sequences], finished=first.request_finished,
            num_cached_tokens=first.num_cached_tokens, metrics=self._metrics(sequences),
        )

    def _metrics(self, sequences: list[Sequence]) -> RequestMetrics:
        """把各份输出的时间合成请求的：首个 token 是最早的那份的，最后一个是最晚的那份的。

        A request's times out of those of its outputs: the first token is that of the earliest, the last that of the
        latest.
        """
        each = [seq.metrics for seq in sequences]
        firsts = [m.first_token_time for m in each if m.first_token_time is not None]
        lasts = [m.last_token_time for m in each if m.last_token_time is not None]
        ends = [m.finished_time for m in each if m.finished_time is not None]
        lengths = [len(seq.output_token_ids) for seq in sequences]
        # 这是一次拷贝：没结束的请求会继续改自己的时间点，交出去的结果却不该再变。
        # A copy: an unfinished request goes on changing its times, and a result handed out must stay as it is.
        return replace(
            each[0], first_token_time=min(firsts, default=None), last_token_time=max(lasts, default=None),
            finished_time=max(ends, default=None), num_generated_tokens=sum(lengths),
            num_later_tokens=sum(max(length - 1, 0) for length in lengths), later_seconds=sum(lasts) - sum(firsts),
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
            ended = seq.finish_reason == "stop" and token_ids[-1] in seq.stop_token_ids
            shown = token_ids[:-1] if ended else token_ids
            # 与流式走同一条路，只是一次收下全部 token，所以两边的文字总是相等。
            # The same way as a stream, all tokens at once: so both texts are always equal.
            whole = Detokenizer(self.tokenizer, seq.params.skip_special_tokens, seq.prompt_token_ids)
            text = whole.push(*shown) + whole.rest()
        # 报告先记，停止后查：一步里猜对了好几个、中间就该停，报告便比 token 多。
        # Reports are noted before a stop is looked for: where several guesses were right and an end lies among them,
        # there are more reports than tokens.
        reports = None if seq.logprobs is None else seq.logprobs[: len(token_ids)]
        return CompletionOutput(
            index=seq.index, text=text, token_ids=token_ids, finish_reason=seq.finish_reason,
            stop_reason=seq.stop_reason, logprobs=reports,
            cumulative_logprob=None if reports is None else reports.total(),
        )
