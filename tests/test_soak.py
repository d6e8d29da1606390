"""耐久：每种循环 1,500 个、长时间的证明里 5,000 个随机请求（随机参数、取消、重名、坏请求）挤过很小的块池和预算。
调度器、块管理器、采样和两种循环都是真的，只有前向换成查表。最后每个请求都有结局，合计对得上，什么都没漏。

A soak: 1,500 random requests in each loop, 5,000 in the long proof (random parameters, aborts, duplicate ids, bad
ones), squeeze through a tiny pool and budget. Scheduler, block manager, sampler and both loops are real, only the
forward pass is a table. In the end every request has ended, the totals add up, and nothing has leaked.
"""

import gc
import random
from collections import Counter
from typing import Any

import pytest
import torch
from engine_helpers import assert_all_free
from overlap_helpers import assert_drained

import serving.llm
from engine.block_key import BlockKey
from engine.detokenizer import OutputText
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

MAX_LEN = 96


def make_engine(overlapped: bool, monkeypatch: pytest.MonkeyPatch) -> LLMEngine:
    if overlapped:
        monkeypatch.setattr(serving.llm, "create_engine", OverlappedEngine)
    made = LLM(
        device="cpu", kvcache_block_size=8, num_kvcache_blocks=26, max_model_len=MAX_LEN, max_num_seqs=14,
        max_num_batched_tokens=40, seed=1, strict=True,
    ).engine
    # 前向：从一张随机的表里取连续几行，当作 logits。
    # The forward pass: consecutive rows of a random table serve as logits.
    table = torch.randn(512, made.model_runner.model_config.vocab_size, generator=torch.Generator().manual_seed(0)) * 3
    steps = Counter[str]()

    def execute(batch: Any) -> torch.Tensor:
        steps["all"] += 1
        rows, first = len(batch.logits_indices), steps["all"] * 37 % 480
        return table[first : first + rows].clone()

    monkeypatch.setattr(made.model_runner, "execute", execute)
    return made


def random_request(rng: random.Random, heads: list[list[int]]) -> tuple[Any, Any]:
    """一个随机请求；有的不合法。

    A random request; some are not valid.
    """
    tail = [rng.randrange(2000) for _ in range(rng.choice([1, 2, 5, 8, 16, 30]))]
    prompt: Any = (rng.choice(heads) if rng.random() < 0.4 else []) + tail
    params: Any = SamplingParams(
        temperature=rng.choice([0, 0, 0.7, 1.5]), top_k=rng.choice([0, 0, 0, 5]), top_p=rng.choice([1, 1, 1, 0.8]),
        max_tokens=rng.choice([1, 1, 2, 3, 5, 8, 40]), seed=rng.choice([None, 7]), ignore_eos=rng.random() < 0.5,
        stop=rng.choice([None, None, None, "e", ["的", " a", "zz"]]), stop_token_ids=rng.choice([None, [3, 5, 7]]),
        skip_special_tokens=rng.random() < 0.8,
    )
    if rng.random() < 0.03:
        prompt = rng.choice([[], "", [1] * MAX_LEN, [-1], [10**6], None])
    elif rng.random() < 0.01:
        params = rng.choice([{}, 5, SamplingParams(stop_token_ids=[99999])])
    return prompt, params


def count_objects() -> Counter[str]:
    gc.collect()
    kinds = {Sequence, OutputText, RequestOutput, BlockKey}
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in kinds)


@pytest.mark.parametrize("count", [1500, pytest.param(5000, marks=pytest.mark.long)])
@pytest.mark.parametrize("overlapped", [False, True])
def test_thousands_of_random_requests(overlapped: bool, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_engine(overlapped, monkeypatch)
    rng, seen = random.Random(4), Counter[str]()
    heads = [[rng.randrange(2000) for _ in range(size)] for size in (8, 16, 24, 40)]
    before, middle = count_objects(), 0
    live: dict[str, Sequence] = {}

    def end(output: RequestOutput) -> None:
        seq, completion = live.pop(output.request_id), output.outputs[0]
        params, tokens = seq.params, completion.token_ids
        assert output.finished and min(tokens, default=0) >= 0 and seq.block_table == []
        assert len(tokens) == output.metrics.num_generated_tokens <= params.max_tokens
        assert len(tokens) + seq.num_prompt_tokens <= MAX_LEN
        seen[str(completion.finish_reason)] += 1
        seen["tokens"] += len(tokens)
        seen["preemptions"] += seq.num_preemptions
        seen["stop strings"] += isinstance(completion.stop_reason, str)
        if completion.finish_reason == "length":
            assert len(tokens) == min(params.max_tokens, MAX_LEN - seq.num_prompt_tokens)
        elif completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str):
            assert tokens[-1] in seq.stop_token_ids
        for stop in [params.stop] if isinstance(params.stop, str) else params.stop or []:
            assert stop not in completion.text
        if completion.finish_reason != "stop":
            decode = made.tokenizer.decode
            before, whole = (decode(ids, params.skip_special_tokens) for ids in (seq.prompt_token_ids, seq.token_ids))
            # 提示词断在半个字符中间时，补全它的 token 给出整个字符。
            # Where the prompt ends in half a character, the token that completes it gives the character.
            assert completion.text == whole[len(before) - (not whole.startswith(before)) :]

    number = 0
    while number < count or made.has_unfinished():
        for _ in range(rng.randrange(8) if number < count and len(live) < 40 else 0):
            number += 1
            prompt, params = random_request(rng, heads)
            try:
                seq = made.requests.prepare(prompt, params, f"r{number}", stream=rng.random() < 0.2)
                # 偶尔用一个正在使用的 id。
                # Now and then an id in use.
                if live and rng.random() < 0.02:
                    seq.request_id = rng.choice(list(live))
                made.add_sequence(seq)
                live[seq.request_id] = seq
            except ValueError:
                seen["refused"] += 1
        for _ in range(rng.random() < 0.15 and len(live) > 0):
            output = made.abort(rng.choice([*live, "nobody"]))
            if output:
                end(output)
        for output in made.step():
            end(output)
        metrics = made.metrics()
        assert metrics.num_running + metrics.num_waiting == len(live)
        assert 0 <= metrics.kv_cache_usage <= 1
        if not middle and number > count // 2:
            middle = count_objects()["BlockKey"] - before["BlockKey"]
    assert live == {} and made.requests.ids_in_use == set()
    assert seen["stop"] + seen["length"] + seen["abort"] + seen["refused"] == number >= count
    assert (metrics.num_generated_tokens, metrics.num_preemptions) == (seen["tokens"], seen["preemptions"])
    assert metrics.prefix_cache_hits > count // 5
    for what in ("stop", "length", "abort", "refused", "preemptions", "stop strings"):
        assert seen[what] > count // 100, seen
    if isinstance(made, OverlappedEngine):
        assert_drained(made)
    assert_all_free(made.block_manager)
    del seq
    # 引擎还留着的，只有块上的名字和它们的上文，不随请求数增长。
    # What the engine keeps is the names of its blocks and of what precedes them, however many requests there were.
    after = count_objects()
    assert [after[kind] - before[kind] for kind in ("Sequence", "OutputText", "RequestOutput")] == [0, 0, 1]
    # 同一个进程里，别的测试的引擎可能还在，它们的不算。
    # Engines of other tests may still be there in this process, and theirs do not count.
    keys = after["BlockKey"] - before["BlockKey"]
    assert keys <= 26 * MAX_LEN // 8 and keys < 2 * middle + 50
