"""调度器：每一步决定谁运行、各算多少个 token。

没有“预填充阶段”和“解码阶段”之分：每个序列都有一些已知但还没算的 token（解码时恰好 1 个，新提示词是整段），
调度器把这一步的总 token 预算分给它们。长提示词分到剩余预算，被切成几段，和别人的解码同处一步（分块预填充）。
语义与 vLLM V1 相同。本文件不读时钟、不碰设备、不认识张量，因此给定同样的请求，决定永远相同。

The scheduler: who runs in this step, and with how many tokens each.

There is no prefill phase and no decode phase: each sequence has tokens that are known but not computed (exactly 1 when
decoding, the whole prompt when new), and the scheduler shares one token budget among them. A long prompt gets what is
left of the budget, is cut into chunks, and shares its step with the others' decodes (chunked prefill). The semantics
are those of vLLM V1. This file reads no clock, touches no device and knows no tensor, so the same requests always give
the same decisions.
"""

from collections import OrderedDict
from typing import NamedTuple

from engine.block_manager import BlockManager
from engine.sequence import PENDING_TOKEN, Sequence, SequenceStatus


class ScheduledSequence(NamedTuple):
    """这一步里的一行：哪个序列，算几个新 token。

    One row of a step: which sequence, and how many new tokens.

    Attributes:
        seq: 哪个序列；the sequence
        num_new_tokens: 已知而没算的 token 数，再加猜测；known tokens that are not computed, then guesses
        num_logits: 要几行 logits：没补平差额是 0，补平是 1，每个猜测再加 1；
            rows of logits: 0 for a chunk that ends earlier, 1 once all known tokens are computed, 1 more for each guess
    """

    seq: Sequence
    num_new_tokens: int
    num_logits: int

    @property
    def samples(self) -> bool:
        """这一步会不会产生 token。

        Whether it yields a token in this step.
        """
        return self.num_logits > 0


class Scheduler:
    """两个队列：`waiting` 先来先服务，`running` 按接纳顺序排列。

    Two queues: `waiting` is first come first served, `running` keeps the order of admission.

    Attributes:
        num_preemptions: 到目前为止抢占了几次；preemptions so far
    """

    def __init__(
        self, block_manager: BlockManager, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int,
        strict: bool = False,
    ) -> None:
        self.block_manager = block_manager
        # 两个上限：`max_num_seqs` 像连接数上限，`max_num_batched_tokens` 像一轮事件循环的工作量上限。
        # Two caps: `max_num_seqs` is like a connection limit,
        # `max_num_batched_tokens` like the work of one event-loop tick.
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.strict = strict
        # 新请求从尾部进，被抢占的插回头部，取消的从中间抽走，都要 O(1)：与空闲块的队列一样，用有序字典的键。
        # New requests join at the tail, preempted ones return to the head, aborted ones leave from the middle, each in
        # O(1): the keys of an ordered dict, as in the queue of free blocks.
        self.waiting: OrderedDict[Sequence, None] = OrderedDict()
        # 次序就是接纳的先后，越靠后来得越晚；抢占从末尾挑，全靠这一点。
        # Its order is that of admission, the latest at the end; preemption relies on that when it takes from the end.
        self.running: list[Sequence] = []
        # 取消时不必翻遍两个队列：每个请求在队列里的序列。
        # The sequences of each request that are in the queues, so that an abort need not search these.
        self._queued: dict[str, dict[Sequence, None]] = {}
        self.num_preemptions = 0

    def add(self, seq: Sequence) -> None:
        """新请求排到等待队列末尾；合法性由引擎在此之前检查过。

        A new request joins the end of the waiting queue; the engine has validated it before.
        """
        self.waiting[seq] = None
        self._queued.setdefault(seq.request_id, {})[seq] = None

    def add_first(self, sequences: list[Sequence]) -> None:
        """插到等待队列的最前面，次序不变。

        Put them at the front of the waiting queue, in this order.
        """
        for seq in sequences:
            self.add(seq)
        # 一个一个移到最前面，次序会倒过来，所以先用 `reversed` 反转。
        # Moving them to the front one by one turns their order around, hence `reversed`.
        for seq in reversed(sequences):
            self.waiting.move_to_end(seq, last=False)

    def has_unfinished(self) -> bool:
        """还有没有请求要算。

        Whether any request is left.
        """
        return bool(self.waiting or self.running)

    def schedule(self) -> list[ScheduledSequence]:
        """决定这一步：先照顾运行中的，再接纳等待的。

        例，预算 8：A、B 在解码，C 是 20 个 token 的新提示词；A、B 照样每步出 1 个 token，不必等 C 算完：

        Decide this step: serve the running ones first, then admit waiting ones.
        For example, with a budget of 8: A and B decode, C is a new prompt of 20 tokens; A and B still get 1 token a
        step and need not wait until C is through:

            step 1   A 1   B 1   C 6     C computed  6/20
            step 2   A 1   B 1   C 6     C computed 12/20
            step 3   A 1   B 1   C 6     C computed 18/20
            step 4   A 1   B 1   C 2     C computed 20/20, samples
            step 5   A 1   B 1   C 1     C decodes

        Returns:
            每个序列一项，只有一个新 token 的在前；one entry a sequence; those with a single new token first
        """
        planned: list[tuple[Sequence, int]] = []
        budget = self.max_num_batched_tokens
        preempted = False

        # 1. 运行中的，按顺序。预算可能小于运行数，轮不到的原地等下一步。
        # 1. The running ones, in order. The budget may be smaller than their number; the rest keep their place.
        # 运行中的先分：它们占着块，早结束就早归还；先放新人进来，反而更容易触发抢占。
        # Running ones hold blocks, and the sooner they end the sooner these return;
        # newcomers first means more preemption.
        # 用 `while` 和下标，不用 `for`：循环体里会从 `self.running` 的末尾弹出元素。
        # A `while` with an index, not a `for`: the loop's body pops from the end of `self.running`.
        index = 0
        while index < len(self.running) and budget > 0:
            seq = self.running[index]
            # 重叠循环里：算上还没读到的 token 已到长度上限，它必然结束，不必再为它发一步。
            # In the overlapped loop: if it is at its limit with the token not read yet, it will end; launch no more.
            if seq.num_pending_tokens and self._at_length_limit(seq, seq.num_tokens):
                index += 1
                continue
            # 解码时差额恰好是 1；没算完的提示词差额很大，由预算截断，分块预填充就是这一个 `min`。
            # The difference is just 1 when decoding; in an unfinished prompt the budget cuts it:
            # chunked prefill is this `min`.
            # 停在这里看 `seq`：`computed 12/20` 表示已知 20 个 token，算了 12 个。
            # Stop here and look at `seq`: `computed 12/20` says that 20 tokens are known and 12 are computed.
            num_new = min(seq.num_tokens - seq.num_computed_tokens, budget)
            # 没有空闲块：牺牲最后接纳的那个，再试；牺牲者可能就是自己，那么它退出 `running`，循环也到了尽头。
            # No block free: sacrifice the one admitted last and try again; if that is this one, it leaves `running`.
            # 例，共 4 个块，块大小 4：A 要第 3 个块，空闲 0 个，抢占末尾的 B；B 归还 2 个，A 取走 1 个。
            # Example with 4 blocks of 4: A needs a block number 3, 0 are free, so B is preempted;
            # it returns 2 and A takes 1.
            #     before   A computed 8/9 blocks [0, 1]      B computed 6/7 blocks [2, 3]   free []
            #     after    A computed 8/9 blocks [0, 1, 3]   B computed 0/7 blocks []       free [2]
            # 2 号块的前缀缓存登记还在（见 `BlockKey`）：只要 B 回来时它没被取走，就命中 4 个 token，7 个里只重算 3 个。
            # Block 2 is still registered (see `BlockKey`): unless taken before B is back,
            # it is a hit of 4 tokens, and only 3 of 7 are recomputed.
            # 不会死循环：只剩自己时全池都可用，而池子至少装得下一条 `max_model_len` 的序列。
            # No endless loop: the last one left has the whole pool,
            # which holds at least one sequence of `max_model_len`.
            while not self.block_manager.can_grow(seq, seq.num_computed_tokens + num_new):
                preempted = True
                if self._preempt_last() is seq:
                    break
            else:
                # 这个 `else` 属于 `while`：没有 `break` 才会执行，也就是块够了，而且 `seq` 自己没被抢占。
                # This `else` belongs to the `while`: it runs without a `break`,
                # so blocks suffice and `seq` was not preempted.
                # 被抢占的不是排在后面的，就是 `seq` 自己，所以已排进 `planned` 的行不会丢掉自己的块。
                # Only later ones or `seq` itself are ever preempted, so no row already in `planned` loses its blocks.
                self.block_manager.grow(seq, seq.num_computed_tokens + num_new)
                planned.append((seq, num_new))
                budget -= num_new
                index += 1

        # 2. 等待的，先来先服务；队首进不来，后面的也等着，免得大请求被小请求饿死。
        # 2. The waiting ones, first come first served; a blocked head blocks the rest, or small ones would starve it.
        # 刚发生过抢占就不接纳任何人：块已经不够，再放人进来只会马上又被抢占。
        # After a preemption admit nobody: blocks are short, and a newcomer would be preempted right away.
        while not preempted and self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            seq = next(iter(self.waiting))
            # 到接纳这一刻才查，不在 `add` 时查：等待期间别人可能登记了相同的开头，旧命中也可能已被淘汰。
            # Looked up now and not in `add`: meanwhile others may have registered the same beginning,
            # or old hits were evicted.
            hits = self.block_manager.find_prefix(seq)
            num_cached = len(hits) * self.block_manager.block_size
            # 命中的部分不花预算：提示词 1000 个 token、命中 960 个，只剩 40 个要算，首个 token 因此来得早。
            # Hits cost no budget: a prompt of 1000 with 960 hit has 40 left to compute,
            # and its first token comes early.
            num_new = min(seq.num_tokens - num_cached, budget)
            # 只看这个分段要的块，不为提示词的其余部分和输出预留，像内存超售：平时装得多，代价是偶尔抢占。
            # Only this chunk's blocks are asked for, none are reserved for the rest or the output,
            # like memory overcommit: more requests fit, and now and then one is preempted.
            if not self.block_manager.can_allocate(seq, hits, num_cached + num_new):
                break
            # 从查询命中到占用它们，中间没有分配过块，`hits` 才仍然有效；若分配过，命中的块可能已经换了主人。
            # `hits` still holds as no block was taken since the look-up; a block taken in between might be among them.
            del self.waiting[seq]
            self.block_manager.allocate(seq, hits, num_cached + num_new)
            # 提示词只排了一个分段也进 `running`：剩下的由下一步的第 1 部分接着分，不再排队。
            # With only a chunk of its prompt scheduled it joins `running` too:
            # part 1 of the next step goes on with the rest.
            seq.status = SequenceStatus.RUNNING
            self.running.append(seq)
            planned.append((seq, num_new))
            budget -= num_new

        # 3. 猜测放在最后，只用别人剩下的预算和块，这一步不为它抢占谁；猜错了块也不退，后面的 token 反正要用。
        # 一般的请求没有猜测，这里什么也不做。
        # 3. Guesses come last, take only the budget and the blocks that others leave, and preempt nobody in this step;
        # blocks of wrong ones stay for the tokens to come. Ordinary requests have none, and this does nothing.
        scheduled = []
        for seq, num_new in planned:
            num_guesses = self._fit_drafts(seq, num_new, budget) if seq.draft_ids else 0
            budget -= num_guesses
            # 补平了差额的行才要 logits，有猜测时每个猜测再要一行。
            # A row needs logits once it closes the difference, and one more for each guess.
            # 例：提示词 20 个 token，已算 12 个，这步 6 个：12 + 6 < 20，0 行；下一步 2 个：18 + 2 == 20，1 行。
            # Example: a prompt of 20, 12 computed, 6 in this step: 12 + 6 < 20, 0 rows; then 2: 18 + 2 == 20, 1 row.
            closes = seq.num_computed_tokens + num_new == seq.num_tokens
            scheduled.append(ScheduledSequence(seq, num_new + num_guesses, 1 + num_guesses if closes else 0))

        # 只有 1 个新 token 的行排到前面，走解码函数，其余走变长函数；排序是稳定的，组内次序不变。
        # 提示词只剩 1 个 token 要算的行，也按解码行处理。
        # Rows with 1 new token come first and take the decode function, the rest the varlen one; the sort is stable.
        # A prompt with only 1 token left to compute counts as a decode row.
        # 键是布尔值，False 排在 True 前面；只动这一步的行，`running` 的次序不变。
        # The key is a bool, and False sorts before True; only this step's rows move, `running` keeps its order.
        #     before   [(A, 6), (B, 1), (C, 1)]
        #     after    [(B, 1), (C, 1), (A, 6)]
        scheduled.sort(key=lambda row: row.num_new_tokens != 1)
        if self.strict:
            self._check(scheduled)
        return scheduled

    def _fit_drafts(self, seq: Sequence, num_known: int, budget: int) -> int:
        """把猜测裁到用得上、放得下的个数，占好块，返回剩几个。

        Cut the guesses to what can be used and has room, take their blocks, and return how many are left.

        Args:
            num_known: 这一步排了它的几个已知 token；its known tokens that are scheduled in this step
        """
        end = seq.num_computed_tokens + num_known
        # 已知的还没排完，就轮不到猜测；否则最多再输出几个，就最多猜几个减 1：最后一个总是抽出来的，不用猜。
        # Known tokens come first; if all are scheduled, there are at most as many guesses as tokens may still come,
        # less 1: the last one is drawn in any case and need not be guessed.
        room = min(seq.params.max_tokens - seq.num_output_tokens, self.max_model_len - seq.num_tokens) - 1
        # 有惩罚或语法的不猜：后一行的计数、掩码要看前一行选了什么，而它们同在一步里。
        # None with penalties or a grammar: a row's counts and mask depend on what the row before chose, and they share
        # a step.
        free = end == seq.num_tokens and not seq.params.penalizes and seq.guide is None
        count = min(budget, room, len(seq.draft_ids)) if free else 0
        while count > 0 and not self.block_manager.can_grow(seq, end + count):
            count -= 1
        seq.draft_ids = seq.draft_ids[: max(count, 0)]
        self.block_manager.grow(seq, end + len(seq.draft_ids))
        return len(seq.draft_ids)

    def _preempt_last(self) -> Sequence:
        """抢占最后接纳的序列：块全部归还，已算的清零，回到等待队列的最前面，以后连提示词带输出一起重算。

        Preempt the sequence admitted last: all its blocks go back, nothing counts as computed, and it waits at the
        very front, to recompute prompt and output later.
        """
        # 牺牲最晚来的：它通常算得最少，重算最便宜，先来的也不会饿死。
        # The latest pays: it has usually computed least, so redoing it is cheapest, and earlier ones never starve.
        seq = self.running.pop()
        # 丢掉重算，而不是换出到内存：token 都还在 `seq.token_ids` 里，成批重算往往比来回搬 K、V 快。
        # Dropped, not swapped out: the ids are still in `seq.token_ids`,
        # and computing them anew in one go is often faster than copying K and V out and back.
        self.block_manager.free(seq)
        # 为这一步写好的猜测作废：回来的那一步要不要猜，到时再说。
        # Guesses made for this step are void: whether the step of its return has any is settled then.
        seq.status, seq.draft_ids = SequenceStatus.WAITING, []
        seq.num_preemptions += 1
        self.num_preemptions += 1
        # 插在最前面：一步抢占多个时从后往前弹，再依次插到前面，先来后到正好还原。
        # At the very front: several are popped from the back and pushed to the front in turn, which keeps their order.
        #     running [A, B, C, D] -> [A, B, C] -> [A, B]
        #     waiting [E]          -> [D, E]    -> [C, D, E]
        self.waiting[seq] = None
        self.waiting.move_to_end(seq, last=False)
        return seq

    def update(self, schedule: list[ScheduledSequence], token_ids: list[list[int]]) -> list[Sequence]:
        """把采样结果记到各序列上，登记写满的块，收走结束的请求。

        Record the sampled tokens, register full blocks, retire finished requests.

        Args:
            schedule: `schedule` 的返回值；what `schedule` returned
            token_ids: 各行得到的 token，没有采样的行是空的；the tokens each row got; empty if it did not sample

        Returns:
            这一步结束的序列；the sequences that finished in this step
        """
        self.advance(schedule, [len(tokens) for tokens in token_ids])
        return self.commit(schedule, token_ids)

    def advance(self, schedule: list[ScheduledSequence], num_sampled: list[int]) -> None:
        """`update` 的前半：这一步的 K、V 算数了，采样的行先占一个位置，token 是几稍后再填。

        已知、已算、未读、猜测四个数，只在这里一起变。同步循环里紧接着就是 `commit`；重叠循环里隔着一步，
        占位的 token 已经足够让调度器安排下一步。

        The first half of `update`: this step's K and V count, and rows that sample reserve a place whose token comes
        later. The counts of known, computed, pending and guessed tokens move together, here and nowhere else. In the
        synchronous loop `commit` follows at once; in the overlapped loop one step lies between, and the placeholder is
        all that the scheduler needs to plan the next step.

            step                             known     computed  pending   drafted
            chunk of a prompt, 6 of 20       20 -> 20  0 -> 6    0 -> 0    0
            its last part, samples           20 -> 21  18 -> 20  0 -> 1    0
            decode                           21 -> 22  20 -> 21  0 -> 1    0
            3 guesses, all right             22 -> 26  21 -> 25  0 -> 4    3 -> 0
            3 guesses, the second is wrong   22 -> 24  21 -> 23  0 -> 2    3 -> 0
        """
        for row, count in zip(schedule, num_sampled, strict=True):
            # 这些 token 的 K、V 刚写进缓存，算数了；新采到的还没经过前向计算，只是“已知”。
            # K and V of these have just been written, so they count; the token just sampled is only "known" so far.
            # 例：提示词的 5 个 token 算完，已算 5；采到 1 个，已知 6。下一步的差额就是 1，解码不需要另外的状态。
            # Example: 5 prompt tokens are done, so 5 are computed; sampling 1 makes 6 known.
            # The next difference is 1, and decoding needs no state of its own.
            # 猜错的不算数，它们的槽位下一步会重写。
            # Wrong guesses do not count, and the next step writes their slots again.
            #     known 8, computed 7, 3 guesses; 2 tokens come: computed 7 + 4 - 2 = 9, known 10
            seq, num_rejected = row.seq, max(row.num_logits - count, 0)
            seq.num_computed_tokens += row.num_new_tokens - num_rejected
            seq.token_ids += [PENDING_TOKEN] * count
            seq.num_pending_tokens += count
            seq.draft_ids = []

    def commit(self, schedule: list[ScheduledSequence], token_ids: list[list[int]]) -> list[Sequence]:
        """`update` 的后半：填上 token，登记写满的块，收走结束的请求。

        The second half of `update`: fill in the tokens, register full blocks, retire finished requests.
        """
        finished = []
        # `strict=True`：行数对不上就报错，而不是把后面几行的 token 悄悄丢掉。
        # `strict=True`: lists of different lengths are an error,
        # instead of rows at the end that silently lose their tokens.
        for row, tokens in zip(schedule, token_ids, strict=True):
            seq = row.seq
            # 重叠循环里，这一步还在算的时候，它可能已经结束或被取消：多算的这一个 token 丢掉，块早已归还。
            # In the overlapped loop it may have ended or been aborted while this step ran: the extra token is dropped,
            # and its blocks went back already.
            if seq.status is SequenceStatus.FINISHED:
                continue
            # 空列表说明提示词还没算完：这个循环一次也不走，序列照样留在 `running` 里。
            # An empty list means that the prompt is unfinished:
            # this loop does nothing, the sequence stays in `running`.
            for index, token in enumerate(tokens):
                # 这一行的分数是 NaN 或无穷大：没有 token 可记，占位由 `_retire` 去掉；别的请求照常。
                # The row's scores are NaN or infinite: there is no token to record, `_retire` takes the placeholder
                # away, and the other requests go on.
                if token < 0:
                    seq.finish_reason = "error"
                    del tokens[index:]
                    break
                seq.token_ids[-seq.num_pending_tokens] = token
                seq.num_pending_tokens -= 1
                seq.finish_reason = self._finish_reason(seq, token)
                # 与 vLLM 一致：只有用户自己给的停止 id 才写进 `stop_reason`，模型自带的结束符不写。
                # As in vLLM: only a stop id that the user gave is named in `stop_reason`, not the model's own end.
                if seq.finish_reason == "stop" and token in (seq.params.stop_token_ids or ()):
                    seq.stop_reason = token
                if seq.finish_reason:
                    # 猜对的 token 里可能就有停止 token：它后面的作废，也不该计数。
                    # Among guesses that were right there may be a stop token: what follows is void and must not count.
                    del tokens[index + 1 :]
                    break
            # 先登记，后释放：释放后的块仍可被命中，但只有登记过的才找得到。出错的不登记：它的 K、V 里可能就有 NaN。
            # Register before freeing: a freed block can still be hit, but only if it was registered. Not after an
            # error: there may be NaN in its K and V.
            if seq.finish_reason != "error":
                self.block_manager.register_full_blocks(seq)
            if seq.finish_reason:
                finished.append(seq)
        self._retire(finished)
        if self.strict:
            for seq in self.running:
                if seq.num_computed_tokens >= seq.num_tokens:
                    raise RuntimeError(f"{seq!r} runs with nothing left to compute")
            self.block_manager.check_integrity([*self.running, *self.waiting])
        return finished

    def _finish_reason(self, seq: Sequence, token: int) -> str | None:
        """该停了吗：遇到停止 token，或达到长度上限。

        Time to stop: a stop token came, or a length limit is reached.
        """
        # 停止 token 先于长度：最后一个名额恰好采到停止 token，原因是 "stop" 而不是 "length"。
        # Stop tokens come before lengths: if the last token allowed is a stop token,
        # the reason is "stop", not "length".
        if token in seq.stop_token_ids:
            return "stop"
        # 调度器不认识分词器：序列带着自己的文字，问它一声就行；没有停止字符串、也不流式输出的请求没有这个对象。
        # The scheduler knows no tokenizer: the sequence brings its text and is asked; a request that neither streams
        # nor has stop strings has no such object.
        known = seq.num_tokens - seq.num_pending_tokens
        if seq.output_text is not None:
            stop = seq.output_text.append(token, known - seq.num_prompt_tokens >= seq.params.min_tokens)
            if stop is not None:
                seq.stop_reason = stop
                return "stop"
        # 语法的状态也由序列带着，在这里随 token 前进。
        # The sequence brings the state of its grammar as well, which advances here with the token.
        if seq.guide is not None and seq.guide.advance(token):
            return "stop"
        # `max_tokens` 只数输出，`max_model_len` 数提示词加输出：后者若为 100，提示词 90 个，最多输出 10 个。
        # `max_tokens` counts output, `max_model_len` prompt and output: if that is 100, a prompt of 90 leaves 10.
        return "length" if self._at_length_limit(seq, known) else None

    def _at_length_limit(self, seq: Sequence, num_tokens: int) -> bool:
        """有了这么多 token（提示词加输出）之后，是否到了长度上限。

        Whether so many tokens, prompt and output, reach a length limit.
        """
        return num_tokens - seq.num_prompt_tokens >= seq.params.max_tokens or num_tokens >= self.max_model_len

    def _retire(self, sequences: list[Sequence]) -> None:
        """结束的序列归还块，离开队列。

        Finished sequences return their blocks and leave the queues.
        """
        for seq in sequences:
            # 等待中的不占块，`free` 就什么也不做；两种情况走同一条路，取消时便不会漏还块。
            # A waiting one holds no blocks and `free` does nothing; with one way for both cases an abort leaks none.
            self.block_manager.free(seq)
            # 末尾若还有占位（下一步已经发出），那个 token 不再有意义。
            # A placeholder at the end, of a step already launched, means nothing any more.
            del seq.token_ids[len(seq.token_ids) - seq.num_pending_tokens :]
            seq.num_pending_tokens = 0
            self.waiting.pop(seq, None)
            seq.status = SequenceStatus.FINISHED
            group = self._queued.get(seq.request_id, {})
            group.pop(seq, None)
            if not group:
                self._queued.pop(seq.request_id, None)
        # 整体重建一次，而不是逐个 `remove`：后者每次都扫描列表，256 个同时结束就要扫 256 遍。
        # Rebuilt once, not with a `remove` for each: that scans the list every time, 256 scans when 256 end at once.
        if sequences:
            self.running = [seq for seq in self.running if seq.status is SequenceStatus.RUNNING]

    def abort(self, request_id: str) -> Sequence | None:
        """取消一个序列，无论它在等待还是在运行；没有这个 id 的未完成序列则返回 None。

        只在两步之间调用。块立刻归还；重叠循环里若有一步还在途中，`commit` 会丢掉它的 token。

        Cancel a sequence, waiting or running; None if no unfinished sequence has this id.
        Called between steps only. Its blocks go back at once; if a step is in flight in the overlapped loop, `commit`
        drops its token.
        """
        # 途中的那一步还会写刚归还的块，为什么无妨，见 `OverlappedEngine`。
        # The step in flight still writes to the blocks that go back; `OverlappedEngine` says why that does no harm.
        # 一个请求可以有 `n` 条序列，这里每次只取消一条；引擎反复调用，直到返回 None。
        # A request may have `n` sequences, and each call cancels one: the engine calls until it gets None.
        seq = next(iter(self._queued.get(request_id, ())), None)
        if seq is not None:
            seq.finish_reason = "abort"
            self._retire([seq])
        return seq

    def _check(self, scheduled: list[ScheduledSequence]) -> None:
        """严格模式下每步核对：总 token 数不超预算，运行数不超上限。

        In strict mode, every step: tokens within the budget, running sequences within the cap.
        """
        total = sum(row.num_new_tokens for row in scheduled)
        if total > self.max_num_batched_tokens:
            raise RuntimeError(f"scheduled {total} tokens, the budget is {self.max_num_batched_tokens}")
        if len(self.running) > self.max_num_seqs:
            raise RuntimeError(f"{len(self.running)} sequences run, the cap is {self.max_num_seqs}")
        self.block_manager.check_integrity([*self.running, *self.waiting])
