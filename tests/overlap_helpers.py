"""重叠循环的测试工具：记下每一步发出的行，跑完一批请求，核对什么都没剩下。

Tools to test the overlapped loop: record the rows of each step launched, run a batch of requests, check that nothing is
left.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import Request, Run, assert_all_free, assert_well_ended, rows

import serving.llm
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.scheduler import ScheduledSequence
from engine.sequence import PENDING_TOKEN, Sequence
from serving.llm import LLM

MAX_LEN = 160
# 块够多、预算够大，谁也不会被抢占或切开。
# Blocks and budget enough that nobody is preempted or cut.
ROOMY: dict[str, Any] = dict(backend="sdpa", max_model_len=MAX_LEN, num_kvcache_blocks=640, max_num_batched_tokens=8192)


def make_llm(folder: Path, overlapped: bool = True, **options: Any) -> LLM:
    """在 CPU 上造一个严格的引擎，可以指定用哪种循环。

    A strict engine on the CPU, with the loop that is asked for.
    """
    options = {"device": "cpu", "dtype": "float32", "seed": 5, "strict": True, **options}
    with pytest.MonkeyPatch.context() as patch:
        if overlapped:
            patch.setattr(serving.llm, "create_engine", OverlappedEngine)
        llm = LLM(folder, **options)
    assert isinstance(llm.engine, OverlappedEngine) == overlapped
    return llm


class Spy:
    """记下每一步发出的行，并核对：输出长度已经够了的序列，不再有它的行。

    Records the rows of each step launched, and checks that none belongs to a sequence whose output is long enough.

    Attributes:
        samples: per request, how many rows sampled
    """

    def __init__(self, engine: OverlappedEngine) -> None:
        self.decisions: list[list[tuple[str, int]]] = []
        self.samples: Counter[str] = Counter()
        self.inputs_from_device = 0
        real = engine._forward_and_sample

        def forward_and_sample(schedule: list[ScheduledSequence], samples: list[bool]) -> Any:
            assert schedule, "an empty step is not launched"
            self.decisions.append(rows(schedule))
            for row, sampled in zip(schedule, samples):
                seq = row.seq
                assert seq.num_output_tokens < seq.params.max_tokens, f"{seq!r}: a step that max_tokens rules out"
                assert seq.num_tokens < engine.model_runner.max_model_len, f"{seq!r}: a step beyond max_model_len"
                self.samples[seq.request_id] += sampled
                self.inputs_from_device += seq.token_ids[-1] == PENDING_TOKEN
            return real(schedule, samples)

        engine._forward_and_sample = forward_and_sample  # type: ignore[method-assign]


def run_overlapped(llm: LLM, requests: list[Request]) -> tuple[Run, Spy]:
    """像 `run_requests` 那样跑完，但不记 logits。

    Run all as `run_requests` does, without recording logits.
    """
    engine = llm.engine
    assert isinstance(engine, OverlappedEngine)
    spy, seeds = Spy(engine), []
    real_add = engine.add_sequence

    def add_sequence(seq: Sequence) -> None:
        seeds.append(seq.seed)
        real_add(seq)

    engine.add_sequence = add_sequence  # type: ignore[method-assign]
    outputs = llm.generate([r.prompt for r in requests], [r.params for r in requests], progress=False)
    run = Run(outputs, seeds, decisions=spy.decisions)
    run.num_preemptions = engine.scheduler.num_preemptions
    run.cache_hits = engine.block_manager.stats.hit
    assert_drained(engine)
    for request, output in zip(requests, outputs):
        assert_well_ended(llm, request, output)
        assert PENDING_TOKEN not in output.outputs[0].token_ids
    return run, spy


def assert_drained(engine: OverlappedEngine) -> None:
    """可能还剩一步多算的没收回；收回之后，什么都不剩。

    One extra step may be left to collect; after that nothing is.
    """
    assert_all_free(engine.block_manager)
    if engine.has_unfinished():
        assert engine.launched is not None and engine.step() == []
    assert not engine.has_unfinished() and engine.launched is None
    assert engine.step() == []
    assert_all_free(engine.block_manager)


def poison(llm: LLM) -> None:
    """没写过的槽位全填上 NaN：谁读到它们，结果里就看得出来。

    Fill all slots with NaN before any is written: whoever reads one will show it.
    """
    for layer in llm.engine.model_runner.model.attention_layers():
        cache = layer.cache()
        cache.k.fill_(float("nan"))
        cache.v.fill_(float("nan"))
