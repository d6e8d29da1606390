"""猜后面的几个 token：查提示词和输出里重复过的，或者问一个小模型。猜对几个，一步就多得几个；输出与不猜时逐个相同。

    propose    scheduler.schedule()    complete    build_batch ...
       |______ draft_ids ______|  裁剪 / cut  |______ 填好 / filled in

你在这里：`LLMEngine.plan` 在调度前后各调用一次；猜得对不对，由 `Sequence.accept` 逐个位置比较。
为什么不改变输出：每个位置的 token 照旧由目标模型抽出，用的是那个位置自己的噪声；猜测只决定一步里能一起算几个位置。

Guess the tokens that follow: look up what prompt and output repeat, or ask a small model. A step yields one token more
for each right guess, and the output is that without guesses, token for token.

You are here: `LLMEngine.plan` calls it before and after scheduling; whether guesses are right is up to
`Sequence.accept`, position by position. Why the output stays: each position's token is drawn by the target model as
ever, with the position's own noise; guesses only decide how many positions a step computes together.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from engine.batch import build_batch
from engine.config import EngineSetup
from engine.kv_pool import allocate_cache, block_bytes
from engine.model_runner import ModelRunner
from engine.sampler import Sampler
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence
from engine.tokenizer import Tokenizer
from engine.validation import checked_int, naming

# 一步里猜得再多也没有用：全对的机会越来越小，每个猜测却都要算。拿去查的也一样：越长越难重复，每种长度都要多记一项。
# More guesses a step are of no use: the chance that all are right dwindles, and each one is computed. Nor are longer
# pieces to look up: they hardly ever repeat, and each length is an entry more for every token.
MAX_DRAFT_TOKENS: Final = 32
# 有猜测时，CUDA graph 的行数到此为止，除非序列本来就更多：256 行的一步，时间多半已经花在计算上，猜测不划算。
# With guesses CUDA graphs end at so many rows, unless there are more sequences: a step of 256 mostly computes, and
# guesses do not pay.
_MAX_GRAPH_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """`speculative_config` 的各项，名字与 vLLM 相同。

    What `speculative_config` holds, named as in vLLM.

    Attributes:
        method: "ngram" 或 "draft_model"；写了 `model` 就不必写；"ngram" or "draft_model"; not needed with `model`
        model: 草稿模型的文件夹、hub id 或内置模型的名字；the draft model: a folder, a hub id or an embedded one's name
        num_speculative_tokens: 一步最多猜几个，1 到 32；guesses a step at most, from 1 to 32
        prompt_lookup_min, prompt_lookup_max: n 元组拿末尾的几个 token 去查，先长后短，默认 2 到 4；
            for n-grams, how many tokens at the end are looked up, the longest first; 2 to 4 by default

    Raises:
        ValueError: 某一项不认识、超出范围或互相矛盾；an entry is unknown, out of range or contradicts another
    """

    method: str | None = None
    model: str | None = None
    num_speculative_tokens: int = 4
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None

    @classmethod
    def parse(cls, given: Any) -> "SpeculativeConfig":
        """从用户写的字典来；不认识的项是错误，不会悄悄忽略。

        From the dictionary that a user wrote; an unknown entry is an error and never ignored.
        """
        known = ", ".join(cls.__slots__)
        if not isinstance(given, Mapping):
            raise ValueError(f"speculative_config={given!r:.60} is not a dictionary: give some of {known}")
        if unknown := [name for name in given if name not in cls.__slots__]:
            raise ValueError(f"speculative_config has no {unknown[0]!r:.40}: use {known}")
        return cls(**given)

    def __post_init__(self) -> None:
        method = self.method or ("draft_model" if self.model is not None else None)
        if method not in ("ngram", "draft_model") or (method == "draft_model") != (self.model is not None):
            raise ValueError(
                f"speculative_config with method={self.method!r:.40} and model={self.model!r:.80} names no way to "
                "guess: give method='ngram', or the folder of a draft model as model"
            )
        object.__setattr__(self, "method", method)
        for name, default in (("num_speculative_tokens", 4), ("prompt_lookup_min", 2), ("prompt_lookup_max", 4)):
            value = getattr(self, name)
            # 草稿模型不查什么：写了也没有用的，就是写错了。
            # A draft model looks nothing up: what would be of no use was written by mistake.
            if method == "ngram" or not name.startswith("prompt_lookup"):
                value = default if value is None else value
                object.__setattr__(self, name, checked_int(name, value, 1, MAX_DRAFT_TOKENS))
            elif value is not None:
                raise ValueError(f"{name}={value!r:.40} is for method='ngram': leave it out beside model")
        if (shortest := self.prompt_lookup_min or 0) > (longest := self.prompt_lookup_max or 0):
            raise ValueError(f"prompt_lookup_min={shortest} exceeds prompt_lookup_max={longest}: lower it")


class Drafter(ABC):
    """猜的人；猜什么由子类决定，猜对多少在这里数。

    Who guesses; what, is up to the subclass, and how many were right is counted here.

    Attributes:
        num_draft_tokens: 一步最多猜几个；guesses a step at most
        block_bytes: 每个 KV 块还要为它占多少字节；bytes that it takes besides for each KV block
        totals: 有猜测的行，猜测，其中猜对的；rows with guesses, guesses, and those that were right
    """

    block_bytes = 0

    def __init__(self, num_draft_tokens: int) -> None:
        self.num_draft_tokens = num_draft_tokens
        self.totals = Counter(num_drafts=0, num_draft_tokens=0, num_accepted_tokens=0)

    def allocate(self, num_blocks: int) -> None:  # noqa: B027
        """块池有多少块，量过内存就知道了；要缓存的在这里分配。

        How many blocks there are is known once memory is measured: who needs a cache takes it here.
        """

    def max_rows(self, max_num_seqs: int) -> int:
        """CUDA graph 最多要几行：每个猜测也占一行，人少时都装得下。

        Rows that CUDA graphs want at most: a guess takes one as well, and with few sequences all fit.
        """
        return max(max_num_seqs, min(max_num_seqs * (1 + self.num_draft_tokens), _MAX_GRAPH_ROWS))

    def propose(self, running: list[Sequence]) -> None:
        """调度之前：给只差 1 个 token 的序列写上猜测，调度器会裁到用得上、放得下的个数。

        Before scheduling: sequences with 1 token to compute get guesses, which the scheduler cuts to what is of use and
        has room.
        """
        for seq in running:
            # 提示词还没算完的不猜，末尾的 token 还没读到的也不猜；还有谁不能猜、能猜几个，由 `Scheduler._fit_drafts`
            # 决定。
            # No guesses for a prompt that is unfinished, nor where the last token has not been read; who else may have
            # none, and how many, `Scheduler._fit_drafts` decides.
            if seq.num_computed_tokens + 1 == seq.num_tokens and not seq.num_pending_tokens:
                seq.draft_ids = self.guess(seq)

    def awaits(self, running: list[Sequence]) -> bool:
        """重叠循环问：下一步要不要猜？要猜，就得先读到在途的 token。

        The overlapped loop asks whether the next step wants guesses, for then the tokens in flight have to be read
        first.
        """
        return True

    @abstractmethod
    def guess(self, seq: Sequence) -> list[int]:
        """这个序列后面的 token，可以是空的。

        The tokens that follow in this sequence; may be empty.
        """

    def complete(self, schedule: list[ScheduledSequence], sampler: Sampler) -> None:  # noqa: B027
        """调度之后、前向之前：这一步的行和块都定了。

        After scheduling and before the forward pass: the step's rows and blocks are settled.
        """

    def count(self, schedule: list[ScheduledSequence], token_ids: list[list[int]]) -> None:
        """记下猜对了多少；一行得到的 token 比猜对的多 1 个。

        Note how many were right; a row gets 1 token more than that.
        """
        for row, tokens in zip(schedule, token_ids):
            if row.num_logits > 1:
                right = max(len(tokens) - 1, 0)
                self.totals.update(num_drafts=1, num_draft_tokens=row.num_logits - 1, num_accepted_tokens=right)


class NgramIndex:
    """一个序列里出现过的 n 元组，各记最早一次的末尾；每来一个 token 只加几项，不必每步从头找。

    The n-grams of a sequence, each with the end of its first place; every new token adds a few entries, and no step
    searches from the beginning.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self.sizes = range(shortest, longest + 1)
        self.ends: dict[tuple[int, ...], int] = {}
        self.num_indexed = 0

    def follow(self, token_ids: list[int], count: int, num_pending: int = 0) -> list[int]:
        """末尾的几个 token 以前最早在哪里出现过，那里后面接着什么；先找长的，都没有就是空的。还没读到的不看。

        Where the last tokens stood first, and what followed there; longer ones are tried first, empty if none stood
        anywhere. Those that are not read yet are left out.

            tokens [7, 8, 9, 7, 8]   (7, 8) -> 2   (8, 9) -> 3   (9, 7) -> 4   (7, 8, 9) -> 3   (8, 9, 7) -> 4
            the end is (7, 8), which stood at 2   ->   follow [9, 7, 8]
        """
        # 末尾自己不登记，否则查到的总是它自己；下一步来了新 token，它才成为“以前的”。
        # The end itself is left out, or it would always find itself; with the next step's tokens it becomes the past.
        known = len(token_ids) - num_pending
        for end in range(self.num_indexed + 1, known):
            for size in self.sizes:
                if size <= end:
                    self.ends.setdefault(tuple(token_ids[end - size : end]), end)
        self.num_indexed = known - 1
        for size in reversed(self.sizes):
            if end := self.ends.get(tuple(token_ids[max(known - size, 0) : known]), 0):
                return token_ids[end : min(end + count, known)]
        return []


class NgramDrafter(Drafter):
    """抄：末尾的几个 token 若出现过，就猜后面的也一样。改代码、摘要、引用原文时常常猜对，几乎不花时间。

    Copy: where the last tokens stood before, guess that the same follows. Often right when code is edited, text
    summarised or quoted, and next to free.
    """

    def __init__(self, num_draft_tokens: int, shortest: int, longest: int) -> None:
        super().__init__(num_draft_tokens)
        self.sizes = shortest, longest

    def guess(self, seq: Sequence) -> list[int]:
        """查它自己的索引；索引跟着序列，序列结束就一起消失，被抢占也还在。

        Look into its own index, which lives and goes with the sequence and survives preemption.
        """
        if seq.draft_state is None:
            seq.draft_state = NgramIndex(*self.sizes)
        return list(seq.draft_state.follow(seq.token_ids, self.num_draft_tokens, seq.num_pending_tokens))

    def awaits(self, running: list[Sequence]) -> bool:
        """读到的 token 里有了重复，才值得等：不重复的文字，就与不猜时一样快，只是重复刚开始时晚猜一步。

        Only a repetition in what has been read is worth the wait: text without any is as fast as without guesses, and a
        repetition that sets in is guessed one step later.
        """
        # 有惩罚的，有重复也不猜，不必为它等。
        # A row with penalties gets no guesses, whatever it repeats, and nobody waits for it.
        return any(not seq.params.penalizes and self.guess(seq) for seq in running)


class ModelDrafter(Drafter):
    """问小模型：它一个接一个地写，写出的就是猜测，用的是与目标模型相同的噪声，所以两者常常抽到同一个 token。

    它的 KV 缓存与目标模型的用同一套块编号，凡是目标模型算的 token，它也算一遍（有没有猜测都算）：
    共用的前缀、分段、抢占因此都不用另外记账。

    Ask a small model: it writes one token after the other, and these are the guesses. It draws with the target model's
    own noise, so that both often draw the same token.
    Its KV cache goes by the same block ids as the target's, and it computes each token that the target does, guesses
    or not; so shared prefixes, chunks and preemption need no books of their own.
    """

    def __init__(self, config: SpeculativeConfig, setup: EngineSetup, tokenizer: Tokenizer) -> None:
        super().__init__(config.num_speculative_tokens)
        # 与目标模型同样的后端、精度和块大小，长度不限：超过它自己上限的序列不猜。它小，张量并行时每个进程各算整个。
        # Backend, precision and block size are the target's, no length is asked for: beyond its own limit no guesses.
        # It is small: with tensor parallelism every rank computes all of it.
        mine = replace(
            setup.config, model=config.model, speculative_config=None, quantization=None, max_model_len=None,
            num_kvcache_blocks=None, backend=setup.backend.name, dtype=str(setup.dtype),
            kvcache_block_size=setup.block_size, device=str(setup.device), tensor_parallel_size=1,
        )
        with naming("the draft model"):
            self.setup = mine.resolve()
        vocabulary = Tokenizer(self.setup.folder).hf_tokenizer.get_vocab()
        what = "" if vocabulary == tokenizer.hf_tokenizer.get_vocab() else "tokens are not the model's"
        if (ours := self.setup.model_config.vocab_size) != (theirs := setup.model_config.vocab_size):
            what = f"rows of the embedding are {ours} and not {theirs}"
        if what:
            raise ValueError(
                f"the draft model {self.setup.folder} has another vocabulary, its {what}: "
                "use a draft model that was made for this model's tokenizer"
            )
        self.runner = ModelRunner(self.setup)
        self.block_bytes = block_bytes(self.setup)
        self.max_len = self.setup.model_config.max_position_embeddings

    def allocate(self, num_blocks: int) -> None:
        """与目标模型同样多的块。

        As many blocks as the target has.
        """
        allocate_cache(self.setup, self.runner, num_blocks)

    def guess(self, seq: Sequence) -> list[int]:
        """先占位：块要等调度器分，分好了 `complete` 才写得进 K、V。

        Places only: blocks come with scheduling, and K and V of `complete` need them.
        """
        return [0] * min(self.num_draft_tokens, max(self.max_len - seq.num_tokens, 0))

    @torch.inference_mode()
    def complete(self, schedule: list[ScheduledSequence], sampler: Sampler) -> None:
        """第 1 遍算目标模型这一步要算的已知 token，抽出第 1 个猜测；然后每遍算 1 个猜测，抽出下一个。

        例，块大小 16，已知 12 个、已算 11 个、猜 3 个，这一步占用位置 11 到 14：

        The first pass computes the known tokens of the target's step and draws the first guess; then each pass computes
        a guess and draws the next.
        Example, with blocks of 16: 12 known, 11 computed, 3 guesses, so the step takes positions 11 to 14:

            pass 1   position 11, the last known token   -> guess 12
            pass 2   position 12                         -> guess 13
            pass 3   position 13                         -> guess 14
                     position 14: left for pass 1 of the next step, if all were right
        """
        mine = []
        for seq, num_new, num_logits in schedule:
            # 超出自己上限的不算；没有超出的照样算，写满的块别人还会命中。
            # Not beyond its own limit; up to there all the same, as the blocks that this fills may be hit by others.
            num_guesses, end = max(num_logits - 1, 0), min(seq.num_computed_tokens + num_new, self.max_len)
            # 上一步的猜测若全对，最后一个在这里还没有 K、V：从它补起。
            # If all guesses of the step before were right, the last of them has no K and V here: begin with it.
            start = seq.num_computed_tokens - (seq.draft_state == seq.num_computed_tokens - 1)
            if start >= end:
                continue
            # 块的最后一个位置不能留着：这一步之后块就可能登记，供别人命中。
            # The last position of a block must not be left: after this step the block may be registered for others.
            seq.draft_state = end - 1 if num_guesses and end % self.setup.block_size else None
            # 只借它的列表：`build_batch` 从 `num_computed_tokens` 取起，而它自己的计数不能动。
            # Its lists are borrowed: `build_batch` starts at `num_computed_tokens`, and its own count must not move.
            mine.append((replace(seq, num_computed_tokens=start), end - num_guesses - start, num_guesses, seq))
        index = 0
        while mine:
            # 断点停在这里看 `mine`：第 1 遍与目标模型的一步同样长，以后每行只有 1 个 token。
            # Stop here and look at `mine`: pass 1 is as long as the target's step, later ones have 1 token a row.
            turn = [(ScheduledSequence(view, count, int(index < most)), seq) for view, count, most, seq in mine]
            turn.sort(key=lambda each: each[0].num_new_tokens != 1)
            batch = build_batch([row for row, _ in turn], self.setup.block_size, self.setup.device)
            logits = self.runner.execute(batch)
            # 序号是目标模型以后抽这个位置时的序号，噪声因此相同。
            # The index is that with which the target will draw this position, and so the noise is the same.
            samples = [(seq, seq.num_output_tokens + index) for row, seq in turn if row.samples]
            if samples:
                # 分数坏了（-1）就随便猜一个：猜错无非是白猜。
                # For bad scores (-1) any guess will do: a wrong one saves nothing, and that is all.
                for (seq, _), token in zip(samples, sampler.draw(samples, logits)[0].tolist()):
                    seq.draft_ids[index] = max(token, 0)
            # 已抽满的退出；猜测写满了一个块的，最后一个猜测也要算，不抽。
            # Rows with all their guesses leave; where these fill a block, the last is computed, too, and none drawn.
            index += 1
            mine = [each for each in mine if index < each[2] or (index == each[2] and each[3].draft_state is None)]
            for number, (view, count, most, seq) in enumerate(mine):
                view.num_computed_tokens += count
                mine[number] = (view, 1, most, seq)


def create_drafter(setup: EngineSetup, tokenizer: Tokenizer) -> Drafter | None:
    """`speculative_config` 要的那一种；没有要就是 None。

    The kind that `speculative_config` asks for; None if it asks for none.
    """
    if setup.config.speculative_config is None:
        return None
    config = SpeculativeConfig.parse(setup.config.speculative_config)
    if config.prompt_lookup_min is None or config.prompt_lookup_max is None:
        return ModelDrafter(config, setup, tokenizer)
    return NgramDrafter(config.num_speculative_tokens, config.prompt_lookup_min, config.prompt_lookup_max)
