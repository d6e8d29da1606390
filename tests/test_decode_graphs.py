"""CUDA graph 的输入准备，在 CPU 上：把“录制与重放”换成“再跑一遍”，其余代码原样不动。

缓冲区、补齐的行、块表的增量更新、上一步的 token 从哪一行取，这些都不需要 GPU 就能查。

How inputs of the CUDA graphs are prepared, on the CPU: "record and replay" becomes "run once more", and all other code
stays. Buffers, padded rows, updates of the block tables, the row that holds the last step's token: none needs a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_helpers import (
    Request,
    Run,
    assert_equal_or_close_call,
    mixed_requests,
    run_requests,
    small_model_folder,
)
from overlap_helpers import poison, run_overlapped
from torch import Tensor

import serving.llm
from backends.base import FusedKernels, KVCache
from backends.sdpa import SDPABackend
from engine.gpu.decode_graphs import DecodeGraphs, graph_sizes
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.scheduler import ScheduledSequence
from layers.activation import silu_and_mul
from layers.rotary_embedding import apply_rotary
from layers.sampler import SamplingInputs, sample
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

MAX_LEN = 160


class PlainFused(FusedKernels):
    """每个融合步骤都用逐步的写法。

    Each fused step written out.
    """

    max_skinny_rows, has_sampler = 1, True

    def __init__(self, backend: SDPABackend) -> None:
        self.backend = backend

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x if residual is None else x + residual
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight, x

    def skinny_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return silu_and_mul(gate_up)

    def qk_norm_rope_store(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        norm_weights: tuple[Tensor, Tensor] | None,
        eps: float,
        kv_cache: KVCache,
        slot_mapping: Tensor,
    ) -> Tensor:
        assert norm_weights is None
        heads, head_dim = kv_cache.k.shape[2:]
        q, k, v = qkv.unflatten(-1, (-1, head_dim)).tensor_split((-2 * heads, -heads), dim=1)
        self.backend.store_kvcache(apply_rotary(k, cos, sin), v, kv_cache.k, kv_cache.v, slot_mapping)
        return apply_rotary(q, cos, sin)

    def sample(
        self, logits: Tensor, temperatures: Tensor, seeds: Tensor, output_indices: Tensor, out: Tensor | None = None
    ) -> Tensor:
        column = temperatures[:, None].float()
        off = torch.zeros_like(column)
        chosen = sample(logits, SamplingInputs(column, off, off, off.long(), seeds, output_indices, False, False))
        return chosen if out is None else out.copy_(chosen)


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


def add_graphs(llm: LLM) -> DecodeGraphs:
    """给 CPU 上的引擎装上“图”。

    Give an engine on the CPU its "graphs".
    """
    runner = llm.engine.model_runner
    backend = runner.backend
    assert isinstance(backend, SDPABackend)
    backend.fused = PlainFused(backend)
    with pytest.MonkeyPatch.context() as patch, no_cuda(patch):
        max_blocks = -(-runner.max_model_len // runner.block_size)
        graphs = DecodeGraphs(
            runner.model, backend, runner.max_num_seqs, max_blocks, runner.block_size, runner.device
        )
    for size, recording in graphs.graphs.items():

        @torch.inference_mode()
        def replay(size: int = size) -> None:
            graphs.logits[size].copy_(graphs._forward(size))

        recording.replay = replay  # type: ignore[method-assign]
    runner.graphs = graphs
    # 在 CUDA 上 token 会拷到主机；这里没有拷贝，要自己留一份，下一步才不会盖掉它。
    # On CUDA the tokens are copied to the host; here nothing is, so keep a copy that the next step does not overwrite.
    engine = llm.engine
    assert isinstance(engine, OverlappedEngine)
    real = engine._forward_and_sample

    def forward_and_sample(schedule: list[ScheduledSequence], samples: list[bool]) -> Any:
        tokens, rows, logprobs = real(schedule, samples)
        return tokens.clone(), rows, logprobs

    engine._forward_and_sample = forward_and_sample  # type: ignore[method-assign]
    return graphs


def make_llm(folder: Path, **options: Any) -> LLM:
    options = {
        "device": "cpu",
        "dtype": "float32",
        "backend": "sdpa",
        "seed": 5,
        "strict": True,
        "max_model_len": MAX_LEN,
        "max_num_seqs": 64,
        "num_kvcache_blocks": 64 * MAX_LEN // 16,
        **options,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.llm, "create_engine", OverlappedEngine)
        return LLM(folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("graphs") / "model")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return mixed_requests(vocab_size=2000)


@pytest.fixture(scope="module")
def plain(folder: Path, requests: list[Request]) -> Run:
    llm = LLM(folder, device="cpu", dtype="float32", seed=5, max_model_len=MAX_LEN, num_kvcache_blocks=640)
    return run_requests(llm, requests)


def test_graph_sizes() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(3) == [1, 2, 3]
    assert graph_sizes(8) == [1, 2, 4, 8]
    assert graph_sizes(13) == [1, 2, 4, 8, 13]
    assert graph_sizes(256) == [1, 2, 4, *range(8, 257, 8)]
    for limit in range(1, 80):
        assert graph_sizes(limit)[-1] == limit


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tiny pool": dict(num_kvcache_blocks=MAX_LEN // 16 + 2),
    "tiny pool, block size 8": dict(kvcache_block_size=8, num_kvcache_blocks=MAX_LEN // 8),
    "13 at once": dict(max_num_seqs=13),
    "budget of 7 tokens": dict(max_num_batched_tokens=7, max_num_seqs=13),
    "one at a time": dict(max_num_seqs=1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_64_mixed_requests_give_equal_tokens(folder: Path, requests: list[Request], plain: Run, name: str) -> None:
    llm = make_llm(folder, **VARIANTS[name])
    graphs = add_graphs(llm)
    replayed: list[int] = []
    real = graphs.run

    def run_graph(schedule: Any) -> Any:
        replayed.append(sum(row.num_new_tokens for row in schedule))
        result = real(schedule)
        assert torch.isfinite(result[1]).all()
        return result

    graphs.run = run_graph  # type: ignore[method-assign]
    # 没写过的槽位全是 NaN：补齐的行若读到它们，结果里就会出现。
    # All slots never written are NaN: should a padded row read them, they would show.
    poison(llm)
    run, _ = run_overlapped(llm, requests)
    assert assert_equal_or_close_call(plain, run, requests) <= 2
    assert len(replayed) > 20 and max(replayed) <= graphs.sizes[-1]
    assert (run.num_preemptions > 10) == ("tiny pool" in name)
