"""重叠循环的测试工具：记下每一步发出的行，跑完一批请求，核对什么都没剩下；还有在 CPU 上代替 CUDA graph 的“图”。

Tools to test the overlapped loop: record the rows of each step launched, run a batch of requests, check that nothing is
left; and "graphs" that stand in for CUDA graphs on the CPU.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_helpers import Request, Run, assert_all_free, assert_well_ended, rows
from sampling_helpers import sample_plainly
from torch import Tensor

import serving.llm
from backends.kernels import FusedKernels
from backends.kv_cache import KVCache
from backends.store import store_by_index
from engine.gpu.decode_graphs import DecodeGraphs
from engine.gpu.kernel_sampler import KernelSampler
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.llm_engine import LLMEngine
from engine.scheduler import ScheduledSequence
from engine.sequence import PENDING_TOKEN, Sequence
from layers.activation import silu_and_mul
from layers.rotary_embedding import apply_rotary
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

        def forward_and_sample(schedule: list[ScheduledSequence]) -> Any:
            assert schedule, "an empty step is not launched"
            self.decisions.append(rows(schedule))
            for row in schedule:
                seq = row.seq
                assert seq.num_output_tokens < seq.params.max_tokens, f"{seq!r}: a step that max_tokens rules out"
                assert seq.num_tokens < engine.pool.max_model_len, f"{seq!r}: a step beyond max_model_len"
                self.samples[seq.request_id] += row.samples
                self.inputs_from_device += seq.token_ids[-1] == PENDING_TOKEN
            return real(schedule)

        engine._forward_and_sample = forward_and_sample  # type: ignore[method-assign]


def run_overlapped(llm: LLM, requests: list[Request]) -> tuple[Run, Spy]:
    """像 `run_requests` 那样跑完，但不记 logits。

    Run all as `run_requests` does, without recording logits.
    """
    engine = llm.engine
    assert isinstance(engine, OverlappedEngine)
    spy, seeds = Spy(engine), []
    real_open = engine.requests.open

    def open_request(seq: Sequence) -> list[Sequence]:
        seeds.append(seq.seed)
        return real_open(seq)

    engine.requests.open = open_request  # type: ignore[method-assign]
    outputs = llm.generate([r.prompt for r in requests], [r.params for r in requests], progress=False)
    assert len(seeds) == len(requests)
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


def assert_nothing_kept(engine: OverlappedEngine) -> None:
    """图和采样器里，一个序列也不剩，每一条、每一行都空出来了。

    No sequence is left in the graphs or the sampler, and all lanes and rows are free.
    """
    assert engine.graphs is not None
    assert engine.graphs.lanes == {} and sorted(engine.graphs.free_lanes) == list(range(len(engine.graphs.tables)))
    assert engine.sampler.rows == {}
    assert sorted(engine.sampler.free_rows) == list(range(engine.sampler.counts.shape[1]))


def poison(llm: LLM) -> None:
    """没写过的槽位全填上 NaN：谁读到它们，结果里就看得出来。

    Fill all slots with NaN before any is written: whoever reads one will show it.
    """
    for layer in llm.engine.model_runner.model.attention_layers():
        cache = layer.cache()
        cache.k.fill_(float("nan"))
        cache.v.fill_(float("nan"))


# ---- CPU 上的“图” ----
# ---- "graphs" on a CPU ----


class PlainKernels(FusedKernels):
    """每个融合步骤都用逐步的写法，采样也有。

    Each fused step written out, sampling included.

    Attributes:
        seen_logits: 最近一次采样用的；those that were sampled from last
    """

    has_sampler = True

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x if residual is None else x + residual
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight, x

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Any) -> Tensor:
        assert packed is None
        return F.linear(x, weight, bias)

    def rotary(self, positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * inv_freq
        return angles.cos(), angles.sin()

    def gated_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Any) -> Tensor:
        return silu_and_mul(self.linear(x, weight, bias, packed))

    def qk_norm_rope_store(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, norm_weights: tuple[Tensor, Tensor] | None, eps: float,
        kv_cache: KVCache, slot_mapping: Tensor,
    ) -> Tensor:
        assert norm_weights is None
        heads, head_dim = kv_cache.k.shape[2:]
        q, k, v = qkv.unflatten(-1, (-1, head_dim)).tensor_split((-2 * heads, -heads), dim=1)
        store_by_index(apply_rotary(k, cos, sin), v, kv_cache.k, kv_cache.v, slot_mapping)
        return apply_rotary(q, cos, sin)

    def sample(
        self, logits: Tensor, columns: Tensor, counts: Tensor, masks: Tensor, max_logprobs: int,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        self.seen_logits = logits
        tokens, reports = sample_plainly(logits, columns, counts, masks, max_logprobs)
        return tokens if out is None else out.copy_(tokens), reports


class Recording:
    """“图”：重放就是把录下的函数再调用一遍。

    The "graph": to replay is to call the recorded function again.
    """

    replay: Callable[[], None]

    def pool(self) -> None:
        return None


@contextmanager
def no_cuda(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """没有 GPU 时也能走完录制的代码。

    Lets the code that records run without a GPU.
    """

    @contextmanager
    def graph(recording: Recording, pool: object = None) -> Iterator[None]:
        yield

    real_zeros = torch.zeros

    def zeros(*args: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        return real_zeros(*args, **options)

    patch.setattr(torch, "zeros", zeros)
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)
    patch.setattr(torch.cuda, "CUDAGraph", Recording)
    patch.setattr(torch.cuda, "graph", graph)
    yield


def make_graphs(engine: LLMEngine, max_num_seqs: int) -> DecodeGraphs:
    """为 CPU 上的引擎录“图”，并把核函数换成逐步写出的。

    Record "graphs" for an engine on the CPU, with kernels that are written out.
    """
    runner = engine.model_runner
    runner.kernels = PlainKernels(runner.device)
    runner.model.use_kernels(runner.kernels)
    vocab_size = engine.sampler.counts.shape[2]
    sampler = KernelSampler(runner.kernels, vocab_size, max_num_seqs, runner.device)
    engine.sampler = sampler
    with pytest.MonkeyPatch.context() as patch, no_cuda(patch):
        rows = engine.drafter.max_rows(max_num_seqs) if engine.drafter else max_num_seqs
        graphs = DecodeGraphs(runner, engine.pool, sampler, rows)
    for size, recording in graphs.graphs.items():

        @torch.inference_mode()
        def replay(size: int = size) -> None:
            graphs.reports[size].copy_(graphs._forward(size))

        recording.replay = replay  # type: ignore[method-assign]
    return graphs


def add_graphs(llm: LLM) -> DecodeGraphs:
    """给 CPU 上的重叠循环装上“图”。

    Give an overlapped engine on the CPU its "graphs".
    """
    engine = llm.engine
    assert isinstance(engine, OverlappedEngine)
    engine.graphs = graphs = make_graphs(engine, engine.scheduler.max_num_seqs)
    # 在 CUDA 上 token 会拷到主机；这里没有拷贝，要自己留一份，下一步才不会盖掉它。
    # On CUDA the tokens are copied to the host; here nothing is, so keep a copy that the next step does not overwrite.
    real = engine._forward_and_sample

    def forward_and_sample(schedule: list[ScheduledSequence]) -> Any:
        tokens, rows, logprobs = real(schedule)
        return tokens.clone(), rows, logprobs

    engine._forward_and_sample = forward_and_sample  # type: ignore[method-assign]
    return graphs
