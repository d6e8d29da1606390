"""CUDA graph 的输入准备，在 CPU 上：把“录制与重放”换成“再跑一遍”，其余代码原样不动。

缓冲区、补齐的行、块表的增量更新、上一步的 token 从哪一行取，这些都不需要 GPU 就能查。

How inputs of the CUDA graphs are prepared, on the CPU: "record and replay" becomes "run once more", and all other code
stays. Buffers, padded rows, updates of the block tables, the row that holds the last step's token: none needs a GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import (
    Request,
    Run,
    assert_equal_or_close_call,
    mixed_requests,
    run_requests,
    small_model_folder,
)
from overlap_helpers import add_graphs, poison, run_overlapped

import serving.llm
from engine.gpu.decode_graphs import graph_sizes
from engine.gpu.overlapped_engine import OverlappedEngine
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

MAX_LEN = 160


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
