"""CUDA graph 的输入准备，在 CPU 上：把“录制与重放”换成“再跑一遍”，其余代码原样不动。

缓冲区、补齐的行、块表的增量更新、上一步的 token 从哪一行取，这些都不需要 GPU 就能查。

How inputs of the CUDA graphs are prepared, on the CPU: "record and replay" becomes "run once more", and all other code
stays. Buffers, padded rows, updates of the block tables, the row that holds the last step's token: none needs a GPU.
"""

import gc
import random
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import (
    Request,
    Run,
    add_guesses,
    assert_equal_or_close_call,
    featured_requests,
    mixed_requests,
    run_requests,
    small_model_folder,
)
from overlap_helpers import (
    ROOMY,
    add_graphs,
    assert_drained,
    assert_nothing_kept,
    poison,
    run_overlapped,
)

import serving.llm
from engine.batch import Batch, build_batch, flatten
from engine.drafters import ModelDrafter
from engine.gpu import decode_graphs
from engine.gpu.decode_graphs import graph_sizes
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.gpu.warm_up import warm_up
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence
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
        assert torch.isfinite(llm.engine.model_runner.kernels.seen_logits).all()
        return result

    graphs.run = run_graph  # type: ignore[method-assign]
    # 没写过的槽位全是 NaN：补齐的行若读到它们，结果里就会出现。
    # All slots never written are NaN: should a padded row read them, they would show.
    poison(llm)
    run, _ = run_overlapped(llm, requests)
    assert assert_equal_or_close_call(plain, run, requests) <= 2
    assert len(replayed) > 20 and max(replayed) <= graphs.sizes[-1]
    assert (run.num_preemptions > 10) == ("tiny pool" in name)


# ---- 带猜测的行 ----
# ---- rows with guesses ----


@pytest.mark.parametrize("kind", ["right", "wrong", "mixed"])
@pytest.mark.parametrize("name", ["plain", "tiny pool", "budget of 40 tokens"])
def test_rows_with_guesses_equal_the_eager_path(
    folder: Path, requests: list[Request], plain: Run, name: str, kind: str
) -> None:
    # 部分请求要过滤；带猜测的行在图里占好几行，各有自己的序号。
    # Some requests filter; a row with guesses takes several rows of the graph, each with its own output index.
    llm = make_llm(folder, **VARIANTS.get(name, dict(max_num_batched_tokens=40)))
    engine, graphs = llm.engine, add_graphs(llm)
    assert isinstance(engine, OverlappedEngine)
    seen = add_guesses(engine, plain, kind)
    replayed, real = Counter[str](), graphs.run

    def run_graph(schedule: list[ScheduledSequence]) -> Any:
        replayed["steps"] += 1
        for row in schedule:
            replayed["with guesses"] += len(row.seq.draft_ids) > 0
            replayed["with guesses, filtered"] += len(row.seq.draft_ids) > 0 and row.seq.params.top_p < 1
        return real(schedule)

    graphs.run = run_graph  # type: ignore[method-assign]
    poison(llm)
    outputs = llm.generate([r.prompt for r in requests], [r.params for r in requests], progress=False)
    assert assert_equal_or_close_call(plain, Run(outputs, plain.seeds), requests) <= 2
    assert seen["guesses"] > 100 and (seen["right"] > 50) == (kind != "wrong")
    # 64 个一起跑时，一步带上猜测常常超过 64 行，要逐个启动；快结束时才用得上图。
    # With 64 at once a step with guesses often has more than 64 rows and is launched kernel by kernel; graphs serve the
    # steps near the end.
    least = 3 if name == "plain" else 20
    assert replayed["steps"] > least and replayed["with guesses"] > 2 * least, replayed
    assert replayed["with guesses, filtered"] > least, replayed
    assert_nothing_kept(engine)


def test_a_graph_gets_the_step_laid_flat(folder: Path, requests: list[Request]) -> None:
    # 主机送去的每一列，就是 `flatten` 的那一列；补齐的行不写缓存，长度是 0。
    # Each column that the host sends is that of `flatten`; padded rows store nothing and have a length of 0.
    llm = make_llm(folder, max_num_seqs=24)
    engine, graphs = llm.engine, add_graphs(llm)
    for index, request in enumerate(requests[:12]):
        engine.add_request(request.prompt[:9], request.params, str(index))
    rng, seen = random.Random(0), Counter[str]()
    for _ in range(12):
        for seq in engine.scheduler.running:
            seq.draft_ids = [rng.randrange(2000) for _ in range(rng.choice([0, 0, 1, 2]))]
        schedule = engine.plan()
        step = flatten(schedule, engine.pool.block_size)
        batch = build_batch(schedule, engine.pool.block_size, engine.model_runner.device)
        if graphs.can_run(schedule):
            _, _, same = graphs.run(schedule)
            assert same == step
            column = dict(zip(decode_graphs._COLUMNS, graphs.inputs.tolist()))
            count, size = len(step.input_ids), next(s for s in graphs.sizes if s >= len(step.input_ids))
            assert column["input_ids"][:count] == step.input_ids == batch.input_ids.tolist()
            assert column["positions"][:count] == step.positions == batch.positions.tolist()
            assert column["slots"][:size] == step.slots + [-1] * (size - count)
            assert step.slots == batch.metadata.slot_mapping.tolist()
            assert column["seqlens"][:size] == [p + 1 for p in step.positions] + [0] * (size - count)
            assert [column["seeds"][i] for i in step.logits_indices] == [seq.seed for seq, _ in step.samples]
            assert [column["output_indices"][i] for i in step.logits_indices] == [index for _, index in step.samples]
            for row, start in zip(schedule, accumulate([row.num_new_tokens for row in schedule], initial=0)):
                for lane in column["lanes"][start : start + row.num_new_tokens]:
                    table = row.seq.block_table
                    assert graphs.tables[lane].tolist()[: len(table)] == table
            # 同样的一步逐个启动，得到同样的 logits。
            # The same step, launched one by one, gives the same logits.
            eager = engine.model_runner.execute(batch)
            logits = engine.model_runner.kernels.seen_logits
            torch.testing.assert_close(logits[step.logits_indices], eager, rtol=1e-4, atol=1e-4)
            seen["steps"] += 1
            seen["guesses"] += sum(len(row.seq.draft_ids) for row in schedule)
            seen["padded"] += size > count
        token_ids = engine.sampler.choose(schedule, engine.model_runner.execute(batch))
        engine.record(schedule, token_ids, engine.scheduler.update(schedule, token_ids))
    assert seen["steps"] > 6 and seen["guesses"] > 10 and seen["padded"] > 2, seen


# ---- 结束的序列不留下 ----
# ---- nothing is kept of a sequence that has ended ----


def count_sequences() -> int:
    gc.collect()
    return sum(type(thing) is Sequence for thing in gc.get_objects())


@pytest.mark.parametrize("blocks", [640, MAX_LEN // 16 + 2])
def test_lanes_and_rows_are_let_go_at_the_end_and_on_abort(folder: Path, blocks: int) -> None:
    before = count_sequences()
    llm = make_llm(folder, num_kvcache_blocks=blocks, max_num_seqs=6)
    engine, graphs = llm.engine, add_graphs(llm)
    assert isinstance(engine, OverlappedEngine)
    rng, aborted = random.Random(1), 0
    for index, request in enumerate(featured_requests(30)):
        engine.add_request(request.prompt, request.params, str(index))
    while engine.has_unfinished():
        engine.step()
        live = {*engine.scheduler.running, *engine.scheduler.waiting}
        # 结束的那一刻就让出，不等以后有人来要。
        # Let go at the very end, and not when somebody asks for it later.
        assert set(graphs.lanes) <= live and set(engine.sampler.rows) <= live
        assert len(graphs.lanes) + len(graphs.free_lanes) == 6
        if live and rng.random() < 0.2:
            victim = rng.choice(sorted(seq.request_id for seq in live))
            aborted += victim in {seq.request_id for seq in graphs.lanes}
            assert engine.abort(victim) is not None
            assert victim not in {seq.request_id for seq in [*graphs.lanes, *engine.sampler.rows]}
    assert_drained(engine)
    assert_nothing_kept(engine)
    assert aborted > 3 and (engine.scheduler.num_preemptions > 0) == (blocks < 640)
    del live
    # 引擎还在，序列一个也不在了。
    # The engine is there, and not one sequence is.
    assert count_sequences() == before


@pytest.mark.parametrize(("limit", "drafts"), [(40, False), (160, False), (500, False), (160, True)])
def test_the_warm_up_stays_within_the_limits_and_leaves_nothing(folder: Path, limit: int, drafts: bool) -> None:
    draft = {"speculative_config": {"model": str(folder)}} if drafts else {}
    llm = make_llm(folder, **{**ROOMY, "max_model_len": limit, "max_num_seqs": 32}, **draft)
    engine, graphs = llm.engine, add_graphs(llm)
    assert isinstance(engine, OverlappedEngine)
    steps: list[list[ScheduledSequence]] = []

    def run(schedule: list[ScheduledSequence]) -> None:
        steps.append(schedule)
        engine._forward_and_sample(schedule)

    batches: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "synchronize", lambda: None)
        if isinstance(engine.drafter, ModelDrafter):
            real = engine.drafter.runner.execute

            def execute(batch: Batch) -> torch.Tensor:
                batches.append(len(batch.input_ids))
                return real(batch)

            patch.setattr(engine.drafter.runner, "execute", execute)
        warm_up(engine, run)
    assert len(steps) > 3
    # 草稿模型跑过同样的步，解码的每一档也在内。
    # The draft model has run the same steps, decodes of every size included.
    assert batches == ([sum(row.num_new_tokens for row in schedule) for schedule in steps] if drafts else [])
    assert set(graph_sizes(32)) <= set(batches) or not drafts
    for schedule in steps:
        assert len(schedule) <= 32 and sum(row.num_new_tokens for row in schedule) <= 8192
        assert all(row.seq.num_tokens <= limit for row in schedule)
        blocks = [block for row in schedule for block in row.seq.block_table]
        assert len(set(blocks)) == len(blocks) and max(blocks) < 640
    # 有图里装得下的，也有只能逐个启动的（有猜测时图有 160 行，都装得下），还有和解码混在一起的。
    # Some fit into a graph, some are launched kernel by kernel (with guesses graphs have 160 rows, and all fit), and
    # some have decodes beside prompts.
    assert {graphs.can_run(schedule) for schedule in steps} == ({True} if drafts else {True, False})
    assert any({row.num_new_tokens == 1 for row in schedule} == {True, False} for schedule in steps) or limit < 300
    assert_nothing_kept(engine)
