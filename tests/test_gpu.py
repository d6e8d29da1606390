"""在 CUDA 上：图、融合核函数、重叠循环合在一起，输出与逐步执行的同步引擎相同。

On CUDA: graphs, fused kernels and the overlapped loop together give the outputs of the synchronous, eager engine.
"""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import (
    Request,
    Run,
    add_guesses,
    assert_all_free,
    assert_equal_or_close_call,
    check_logprobs,
    featured_requests,
    mixed_requests,
    run_requests,
    small_model_folder,
)
from overlap_helpers import assert_drained, assert_nothing_kept, poison, run_overlapped

from backends import backend_status, choose_backend
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.guides import StructuredOutputsParams
from engine.llm_engine import LLMEngine
from engine.sampler import Sampler
from engine.sampling_params import SamplingParams
from serving.async_llm import AsyncLLM
from serving.llm import LLM

pytestmark = pytest.mark.gpu

MAX_LEN = 160
BIG_POOL = 256 * MAX_LEN // 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """float32 就是 float32：不许 TF32 悄悄降低精度。

    float32 means float32: no TF32 that quietly lowers the precision.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("gpu") / "model")


def make_llm(folder: Path | None, **options: Any) -> LLM:
    options = {
        "device": "cuda",
        "backend": "triton",
        "dtype": "float32",
        "seed": 5,
        "max_model_len": MAX_LEN,
        "max_num_seqs": 64,
        # 下面的池都按每块 16 个 token 数块数。
        # The pools below count blocks of 16 tokens.
        "kvcache_block_size": 16,
        "num_kvcache_blocks": BIG_POOL,
        **options,
    }
    return LLM(folder, **options)


def eager_run(folder: Path, requests: list[Request], **options: Any) -> Run:
    """参照：`sdpa`，同步，没有图，没有融合核函数。

    The reference: `sdpa`, synchronous, no graphs, no fused kernels.
    """
    options = {"backend": "sdpa", "max_num_seqs": 256, "enable_prefix_caching": False, **options}
    llm = make_llm(folder, enforce_eager=True, **options)
    assert type(llm.engine) is LLMEngine
    run = run_requests(llm, requests)
    run.scores = {name: list(torch.stack(scores).cpu()) for name, scores in run.scores.items()}
    return run


def without_filters(requests: list[Request]) -> list[Request]:
    """同样的请求，去掉 top_k、top_p、min_p：采样走融合核函数。

    The same requests without top_k, top_p and min_p: sampling takes the fused kernel.
    """
    return [replace(r, params=replace(r.params, top_k=-1, top_p=1.0, min_p=0.0)) for r in requests]


class GraphSpy:
    """记下重放了哪些步、各有几行，并看 logits 里有没有 NaN。

    Records the steps that were replayed, with their rows, and looks for NaN in their logits.
    """

    def __init__(self, llm: LLM) -> None:
        assert isinstance(llm.engine, OverlappedEngine)
        graphs = llm.engine.graphs
        assert graphs is not None
        self.rows: list[int] = []
        self.finite = torch.ones((), dtype=torch.bool, device="cuda")
        real = graphs.run

        def run(schedule: Any) -> Any:
            result = real(schedule)
            self.rows.append(sum(row.num_new_tokens for row in schedule))
            self.finite &= torch.isfinite(result[1]).all()
            return result

        graphs.run = run  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return mixed_requests(vocab_size=2000)


@pytest.fixture(scope="module")
def plain(folder: Path, requests: list[Request]) -> Run:
    torch.set_float32_matmul_precision("highest")
    return eager_run(folder, requests)


@pytest.fixture(scope="module")
def unfiltered(folder: Path, requests: list[Request]) -> Run:
    torch.set_float32_matmul_precision("highest")
    return eager_run(folder, without_filters(requests))


# ---- 同样的 token ----
# ---- the same tokens ----

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tiny pool": dict(num_kvcache_blocks=MAX_LEN // 16 + 2),
    "13 at once": dict(max_num_seqs=13),
    "one at a time": dict(max_num_seqs=1),
    "budget of 7 tokens": dict(max_num_batched_tokens=7),
    "block size 256": dict(kvcache_block_size=256, num_kvcache_blocks=70),
    "tiny pool, no prefix caching": dict(num_kvcache_blocks=MAX_LEN // 16 + 2, enable_prefix_caching=False),
}


@pytest.mark.parametrize(
    "name, filters",
    [*((name, False) for name in VARIANTS), ("plain", True), ("tiny pool", True)],
)
def test_graphs_and_overlap_give_equal_tokens(
    folder: Path, requests: list[Request], plain: Run, unfiltered: Run, name: str, filters: bool
) -> None:
    llm = make_llm(folder, strict=True, **VARIANTS[name])
    assert type(llm.engine) is OverlappedEngine
    spy = GraphSpy(llm)
    mine = requests if filters else without_filters(requests)
    run, _ = run_overlapped(llm, mine)
    assert assert_equal_or_close_call(plain if filters else unfiltered, run, mine) <= 3
    assert spy.finite
    assert len(spy.rows) > 10, "graphs were to be replayed"
    if "tiny pool" in name:
        assert run.num_preemptions > 10


def test_graph_sizes_end_with_max_num_seqs(folder: Path) -> None:
    for max_num_seqs, sizes in {1: [1], 3: [1, 2, 3], 13: [1, 2, 4, 8, 13], 16: [1, 2, 4, 8, 16]}.items():
        llm = make_llm(folder, max_num_seqs=max_num_seqs)
        assert isinstance(llm.engine, OverlappedEngine)
        graphs = llm.engine.graphs
        assert graphs is not None and graphs.sizes == sizes
    # 13 个一起解码，恰好用满最大的图。
    # 13 decode together and just fill the largest graph.
    llm = make_llm(folder, max_num_seqs=13)
    spy = GraphSpy(llm)
    prompts = [[index + 3, 7] for index in range(13)]
    together = llm.generate(prompts, GREEDY, progress=False)
    assert spy.rows == [13] * (GREEDY.max_tokens - 1)
    eager = eager_run(folder, [Request(prompt, GREEDY) for prompt in prompts])
    other = Run(together, eager.seeds)
    assert assert_equal_or_close_call(eager, other, [Request(prompt, GREEDY) for prompt in prompts]) <= 1


def test_2000_requests_with_preemption(folder: Path) -> None:
    requests = without_filters(mixed_requests(vocab_size=2000, count=2000, seed=11))
    expected = eager_run(folder, requests)
    llm = make_llm(folder, num_kvcache_blocks=120)
    spy = GraphSpy(llm)
    run, _ = run_overlapped(llm, requests)
    assert run.num_preemptions > 100
    assert run.cache_hits > 100
    assert len(spy.rows) > 10 and spy.finite
    # 2000 个请求里，几乎并列的不超过百分之一。
    # Of 2000 requests, no more than 1 % are close calls.
    assert assert_equal_or_close_call(expected, run, requests) <= 20


def test_a_poisoned_pool_gives_no_nan(folder: Path, requests: list[Request], unfiltered: Run) -> None:
    mine = without_filters(requests)
    for options in ({}, {"kvcache_block_size": 256, "num_kvcache_blocks": 70}):
        llm = make_llm(folder, **options)
        poison(llm)
        spy = GraphSpy(llm)
        run, _ = run_overlapped(llm, mine)
        assert spy.finite
        assert assert_equal_or_close_call(unfiltered, run, mine) <= 3
    # 逐个启动的一步也查：这里记下了全部 logits。
    # Steps launched one by one as well: here all logits are recorded.
    llm = make_llm(folder, enforce_eager=True)
    poison(llm)
    run = run_requests(llm, mine)
    assert all(torch.isfinite(torch.stack(scores)).all() for scores in run.scores.values())
    assert assert_equal_or_close_call(unfiltered, run, mine) <= 3


@pytest.mark.parametrize("name", ["plain", "tiny pool"])
def test_penalties_logprobs_and_n(folder: Path, name: str) -> None:
    requests = featured_requests()
    expected = eager_run(folder, requests)
    llm = make_llm(folder, strict=True, **VARIANTS[name])
    spy = GraphSpy(llm)
    run, _ = run_overlapped(llm, requests)
    assert spy.finite and len(spy.rows) > 10
    assert assert_equal_or_close_call(expected, run, requests) <= 3
    check_logprobs(expected, run, requests)
    assert isinstance(llm.engine, OverlappedEngine)
    assert_nothing_kept(llm.engine)
    several = [Request(r.prompt, replace(r.params, n=3, seed=2**63 - 2)) for r in requests[:12]]
    each = [Request(r.prompt, replace(r.params, n=1, seed=s)) for r in several for s in (2**63 - 2, 2**63 - 1, 0)]
    alone = eager_run(folder, each)
    together, _ = run_overlapped(llm, several)
    outputs = [replace(output, outputs=[one]) for output in together.outputs for one in output.outputs]
    assert assert_equal_or_close_call(alone, replace(together, outputs=outputs, seeds=alone.seeds), each) <= 3


@pytest.mark.parametrize("kind", ["right", "mixed"])
@pytest.mark.parametrize("name", ["plain", "tiny pool"])
def test_rows_with_guesses(folder: Path, requests: list[Request], plain: Run, name: str, kind: str) -> None:
    llm = make_llm(folder, strict=True, **VARIANTS[name])
    assert isinstance(llm.engine, OverlappedEngine)
    spy, seen = GraphSpy(llm), add_guesses(llm.engine, plain, kind)
    outputs = llm.generate([r.prompt for r in requests], [r.params for r in requests], progress=False)
    assert assert_equal_or_close_call(plain, Run(outputs, plain.seeds), requests) <= 3
    assert spy.finite and len(spy.rows) > 3 and seen["right"] > 50
    assert_nothing_kept(llm.engine)


def test_abort_with_a_step_in_flight(folder: Path) -> None:
    prompts = {name: [index + 3, 9] for index, name in enumerate("abcd")}
    engine = make_llm(folder).engine
    for name, prompt in prompts.items():
        engine.add_request(prompt, GREEDY, name)
    results: dict[str, list[int]] = {}
    for number in range(4):
        assert engine.step() == []
        if number == 2:
            assert isinstance(engine, OverlappedEngine) and engine.launched is not None
            aborted = engine.abort("b")
            assert aborted is not None and len(aborted.outputs[0].token_ids) == 2
    # 新请求拿到刚归还的块，而那一步也许还在写。
    # A newcomer takes blocks that have just been returned, while that step may still be writing.
    engine.add_request(prompts["b"], GREEDY, "b")
    while engine.has_unfinished():
        results.update({output.request_id: output.outputs[0].token_ids for output in engine.step()})
    eager = eager_run(folder, [Request(prompt, GREEDY) for prompt in prompts.values()])
    outputs = [
        replace(output, outputs=[replace(output.outputs[0], token_ids=results[name])])
        for name, output in zip(prompts, eager.outputs)
    ]
    other = Run(outputs, eager.seeds)
    assert assert_equal_or_close_call(eager, other, [Request(p, GREEDY) for p in prompts.values()]) <= 1
    assert isinstance(engine, OverlappedEngine)
    assert_drained(engine)


def test_two_generations_with_a_step_left_over(folder: Path) -> None:
    llm = make_llm(folder)
    said = llm.generate([[3, 9]], GREEDY, progress=False)[0].outputs[0].token_ids
    stop = replace(GREEDY, stop_token_ids=[said[4]])
    for _ in range(3):
        stopped = llm.generate([[3, 9]], stop, progress=False)[0].outputs[0].token_ids
        assert stopped == said[: said.index(said[4]) + 1]
        assert llm.generate([[3, 9]], GREEDY, progress=False)[0].outputs[0].token_ids == said
    assert isinstance(llm.engine, OverlappedEngine)
    assert_drained(llm.engine)


# ---- 哪个后端，开不开图 ----
# ---- which backend, graphs or none ----


def test_auto_picks_triton(folder: Path) -> None:
    assert choose_backend("cuda") == "triton"
    assert {status.name: status.usable for status in backend_status("cuda")}["triton"]
    engine = LLM(folder, num_kvcache_blocks=64, max_num_seqs=4).engine
    assert engine.model_runner.device.type == "cuda"
    assert engine.model_runner.backend.name == "triton"
    assert type(engine) is OverlappedEngine and engine.graphs is not None
    # head_dim 不是 2 的幂时，不选它。
    # It is not chosen where head_dim is no power of two.
    assert choose_backend("cuda", head_dim=24) != "triton"


def test_enforce_eager_has_no_graphs_and_no_kernels(folder: Path) -> None:
    engine = make_llm(folder, enforce_eager=True).engine
    runner = engine.model_runner
    assert type(engine) is LLMEngine
    assert runner.kernels is None and type(engine.sampler) is Sampler
    kernels = [module.kernels for module in runner.model.modules() if hasattr(module, "kernels")]
    assert len(kernels) > 10 and set(kernels) == {None}


def test_sdpa_warns_and_runs_without_graphs(
    folder: Path, requests: list[Request], plain: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="engine.gpu.overlapped_engine"):
        llm = make_llm(folder, backend="sdpa")
    assert any("sdpa" in message and "CUDA graph" in message for message in caplog.messages)
    assert isinstance(llm.engine, OverlappedEngine) and llm.engine.graphs is None
    run, _ = run_overlapped(llm, requests)
    assert assert_equal_or_close_call(plain, run, requests) <= 3


def test_the_pool_is_measured(folder: Path) -> None:
    # 小模型的上限是“用得上的块数”；一点显存都不给，就说清楚。
    # A small model's limit is what it could ever use; with no memory at all the error says so.
    engine = make_llm(folder, num_kvcache_blocks=None, max_num_seqs=4, gpu_memory_utilization=0.5).engine
    assert engine.pool.num_blocks == 4 * 512 // 16
    with pytest.raises(ValueError, match="too full for the KV cache"):
        make_llm(folder, num_kvcache_blocks=None, gpu_memory_utilization=1e-6)


@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_bf16_with_graphs(tmp_path: Path, requests: list[Request], backend: str) -> None:
    if backend == "flash":
        pytest.importorskip("flash_attn")
    folder = small_model_folder(tmp_path / "model", head_dim=64)
    llm = make_llm(folder, backend=backend, dtype="bfloat16", kvcache_block_size=256, num_kvcache_blocks=4)
    poison(llm)
    spy = GraphSpy(llm)
    run_overlapped(llm, requests)
    assert spy.finite and spy.rows
    # 同样的引擎再来一次，token 逐个相同。
    # The same engine once more gives the very same tokens.
    first, second = (llm.generate([[3, 9, 4]], GREEDY, progress=False)[0].outputs[0].token_ids for _ in range(2))
    assert first == second
    assert_all_free(llm.engine.block_manager)


@pytest.mark.parametrize("options", [
    {"quantization": "int8"}, {"quantization": "int4"}, {"kv_cache_dtype": "int8"}, {"kv_cache_dtype": "fp8"},
    {"quantization": "int4", "kv_cache_dtype": "int8"},
], ids=str)  # fmt: skip
def test_quantized_with_graphs(folder: Path, requests: list[Request], options: dict[str, str]) -> None:
    mine = without_filters(requests)
    # fp8 的缓存只有 triton 认得；参照仍是同步、没有图的那一个。
    # Only triton knows a cache in fp8; the reference is still synchronous and without graphs.
    backend = "triton" if options.get("kv_cache_dtype") == "fp8" else "sdpa"
    expected = eager_run(folder, mine, backend=backend, **options)
    llm = make_llm(folder, strict=True, **options)
    spy = GraphSpy(llm)
    run, _ = run_overlapped(llm, mine)
    assert spy.finite and len(spy.rows) > 10
    # 舍入会让缓存的编码偶尔差 1，几乎并列的因此多几个。
    # Rounding moves a code of the cache by 1 now and then, which makes some more close calls.
    assert assert_equal_or_close_call(expected, run, mine) <= 3
    for rows in (1, 8, 64):
        prompts = [[3, 9, index + 1] for index in range(rows)]
        first, second = (llm.generate(prompts, GREEDY, progress=False) for _ in range(2))
        assert [out.outputs[0].token_ids for out in first] == [out.outputs[0].token_ids for out in second]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("kind", ["ngram", "draft model"])
def test_drafters_give_the_outputs_without_guesses(
    folder: Path, requests: list[Request], plain: Run, kind: str, graphs: bool
) -> None:
    config = {"method": "ngram", "prompt_lookup_min": 1} if kind == "ngram" else {"model": str(folder)}
    llm = make_llm(folder, strict=True, speculative_config=config, max_num_seqs=16)
    if not graphs:
        llm.engine.graphs = None
    run, spy = run_overlapped(llm, requests)
    assert assert_equal_or_close_call(plain, run, requests) <= 2
    assert kind == "ngram" or spy.inputs_from_device == 0
    check_logprobs(plain, run, requests)
    metrics = llm.engine.metrics()
    assert 0 < metrics.num_accepted_tokens <= metrics.num_draft_tokens
    assert kind == "ngram" or metrics.num_accepted_tokens > 0.9 * metrics.num_draft_tokens


def test_guided_rows_with_graphs_and_overlap() -> None:
    # 同样的请求，一遍同步、没有核函数，一遍重叠、有图；旁边没有语法的行也相同。
    # The same requests synchronously without kernels, and overlapped with graphs; the free rows beside them are equal,
    # too.
    regex = StructuredOutputsParams(regex="[a-z]{3,8}( [a-z]{3,8}){2,4}")
    number = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    schema = StructuredOutputsParams(json=number)
    prompts = ["introduce yourself", "name: ", "What is 2 + 3?", "json: "] * 4
    params = [
        SamplingParams(temperature=[0.0, 1.0][index % 2], seed=index, max_tokens=40, structured_outputs=each)
        for index, each in enumerate([None, regex, None, schema] * 4)
    ]
    outputs = [
        make_llm(None, strict=True, enforce_eager=eager).generate(prompts, params, progress=False)
        for eager in (True, False)
    ]
    texts = [[output.outputs[0].text for output in each] for each in outputs]
    assert sum(a != b for a, b in zip(*texts)) <= 1
    for text, output, each in zip(texts[1], outputs[1], params):
        if output.outputs[0].finish_reason == "stop" and each.structured_outputs is regex:
            assert re.fullmatch("[a-z]{3,8}( [a-z]{3,8}){2,4}", text)
        if output.outputs[0].finish_reason == "stop" and each.structured_outputs is schema:
            assert isinstance(json.loads(text)["a"], int)


def test_a_full_gpu_gives_one_clear_line(folder: Path) -> None:
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(int(free * 0.95), dtype=torch.uint8, device="cuda")
    with pytest.raises(ValueError, match=r"too full for the KV cache: .* GB are free, .*nvidia-smi"):
        make_llm(folder, num_kvcache_blocks=None)
    del hog
    torch.cuda.empty_cache()
    assert make_llm(folder, num_kvcache_blocks=None).engine.pool.num_blocks > 0


def test_streams_and_async_requests_equal_generate(folder: Path) -> None:
    # 图在主线程里录，在 `AsyncLLM` 的引擎线程里重放。
    # Graphs are captured in the main thread and replayed in the engine thread of `AsyncLLM`.
    llm = make_llm(None)
    prompts = [llm.engine.tokenizer.encode(text) for text in ("introduce yourself", "什么是前缀缓存？", "hello")]
    params = [replace(GREEDY, max_tokens=60), replace(GREEDY, max_tokens=60, stop=["e", "。"]), GREEDY]
    # 逐个运行，与流式输出的批大小相同。
    # One by one, as batches of the streams' size.
    expected = [llm.generate([prompt], p, progress=False)[0].outputs[0] for prompt, p in zip(prompts, params)]
    assert expected[1].finish_reason == "stop"
    for prompt, p, completion in zip(prompts, params, expected):
        assert "".join(llm.stream(prompt, p)) == completion.text
    assert isinstance(llm.engine, OverlappedEngine)
    assert_drained(llm.engine)

    async def main() -> None:
        async with AsyncLLM(
            device="cuda", backend="triton", dtype="float32", max_model_len=MAX_LEN, max_num_seqs=64,
            num_kvcache_blocks=BIG_POOL,
        ) as served:
            for prompt, p, completion in zip(prompts, params, expected):
                outputs = [output async for output in served.generate(prompt, p)]
                assert outputs[-1].outputs[0] == completion and outputs[-1].finished

            async def one(number: int) -> int:
                count = 0
                async for output in served.generate([number, 5], replace(GREEDY, max_tokens=number + 1)):
                    count = len(output.outputs[0].token_ids)
                    if number % 10 == 9 and count >= 5:
                        break
                return count

            counts = await asyncio.gather(*map(one, range(60)))
            assert all(count == number + 1 for number, count in enumerate(counts) if number % 10 != 9)
            while not served._inbox.empty() or served.engine.has_unfinished():
                await asyncio.sleep(0.01)
            assert_all_free(served.engine.block_manager)

    asyncio.run(main())
