"""猜测的人：n 元组和草稿模型。输出与不猜时相同，草稿模型的缓存与目标模型的同步，账目清楚，坏选项说得明白。

The drafters: n-grams and a draft model. Outputs are those without guesses, the draft model's cache keeps up with the
target's, the counts are right, and bad options are told clearly.
"""

import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import (
    Request,
    Run,
    assert_all_free,
    assert_equal_or_close_call,
    check_logprobs,
    make_scheduler,
    make_seq,
    mixed_requests,
    run_requests,
    small_model_folder,
)
from overlap_helpers import MAX_LEN, ROOMY, add_graphs, assert_drained, make_llm, run_overlapped
from safetensors.torch import load_file, save_file

from engine.batch import build_batch
from engine.drafters import ModelDrafter, NgramDrafter, NgramIndex
from engine.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- n 元组 ----
# ---- n-grams ----


def follow_by_definition(tokens: list[int], shortest: int, longest: int, count: int) -> list[int]:
    """照定义找：从长到短，从头到尾，末尾自己不算。

    By definition: from long to short, from the beginning on, the end itself left out.
    """
    for size in range(longest, shortest - 1, -1):
        for start in range(len(tokens) - size):
            if tokens[start : start + size] == tokens[len(tokens) - size :]:
                return tokens[start + size : start + size + count]
    return []


def test_an_index_finds_what_the_definition_finds() -> None:
    rng, found = random.Random(1), Counter[int]()
    for _ in range(300):
        shortest = rng.randint(1, 3)
        longest, count, letters = rng.randint(shortest, 5), rng.randint(1, 6), rng.choice([1, 2, 4])
        tokens = [rng.randrange(letters) for _ in range(rng.randint(1, 12))]
        index = NgramIndex(shortest, longest)
        for _ in range(20):
            expected = follow_by_definition(tokens, shortest, longest, count)
            assert index.follow(tokens, count) == expected, (tokens, shortest, longest)
            found[len(expected)] += 1
            # 一步可以来好几个 token，问之前也可以一个都没来。
            # Several tokens may come in a step, and none before the next question.
            tokens += [rng.randrange(letters) for _ in range(rng.randint(0, 4))]
    assert min(found[size] for size in (0, 1, 2, 6)) > 50, found


def test_the_work_for_a_token_does_not_grow() -> None:
    # 每个 token 只登记 `longest - shortest + 1` 项，不管前面已有多少。
    # A token adds `longest - shortest + 1` entries, however many came before.
    class Counting(dict[tuple[int, ...], int]):
        calls = 0

        def setdefault(self, *pair: Any) -> int:
            self.calls += 1
            return super().setdefault(*pair)

    index, tokens = NgramIndex(2, 4), list(range(2000))
    index.ends = ends = Counting()
    index.follow(tokens, 4)
    before = ends.calls
    for token in range(10):
        index.follow([*tokens, *range(token + 1)], 4)
    assert ends.calls - before == 10 * 3


# ---- 选项 ----
# ---- options ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ngram", "speculative_config='ngram' is not a dictionary"),
        ({}, "names no way to guess: give method='ngram'"),
        ({"method": "eagle"}, "method='eagle' and model=None names no way to guess"),
        ({"method": "ngram", "model": "tiny-poet-draft"}, "names no way to guess"),
        ({"method": "draft_model"}, "names no way to guess"),
        ({"method": "ngram", "tokens": 3}, "has no 'tokens': use method, model, num_speculative_tokens"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens=0 is out of range: use .* 1 to 32"),
        ({"method": "ngram", "num_speculative_tokens": 33}, "num_speculative_tokens=33 is out of range"),
        ({"method": "ngram", "num_speculative_tokens": True}, "num_speculative_tokens=True is out of range"),
        ({"method": "ngram", "prompt_lookup_min": 0}, "prompt_lookup_min=0 is out of range"),
        ({"method": "ngram", "prompt_lookup_max": 2.0}, "prompt_lookup_max=2.0 is out of range"),
        ({"method": "ngram", "prompt_lookup_min": 5}, "prompt_lookup_min=5 exceeds prompt_lookup_max=4"),
        ({"model": "tiny-poet-draft", "prompt_lookup_max": 3}, "prompt_lookup_max=3 is for method='ngram': leave it"),
        ({"model": "no/such/folder"}, "the draft model: model folder no/such/folder does not exist"),
        ({"model": "tiny-llama"}, "tiny-llama has another vocabulary, its rows of the embedding are .* and not"),
    ],
)
def test_bad_options_fail_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        LLM("tiny-poet", device="cpu", num_kvcache_blocks=128, speculative_config=given)
    assert "\n" not in str(error.value)


def test_a_draft_model_with_other_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    names = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    vocab = tokenizer["model"]["vocab"]
    vocab[names[300]], vocab[names[301]] = vocab[names[301]], vocab[names[300]]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="another vocabulary, its tokens are not the model's"):
        make_llm(folder, overlapped=False, **ROOMY, speculative_config={"model": str(other)})


def test_a_bad_config_is_found_before_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.model_runner.load_weights", lambda *_: pytest.fail("weights were read"))
    for given in ({"method": "ngram", "prompt_lookup_min": 9}, {"model": "no/such"}, {"model": "tiny-poet"}):
        with pytest.raises(ValueError):
            make_llm(folder, overlapped=False, **ROOMY, speculative_config=given)


# ---- 输出与不猜时相同 ----
# ---- outputs are those without guesses ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("drafters") / "model")


@pytest.fixture(scope="module")
def draft_folder(folder: Path) -> Path:
    """目标模型自己，权重加一点噪声：有时猜对，有时猜错。

    The target itself with some noise on its weights: right at times, and wrong at times.
    """
    draft = folder.parent / "draft"
    shutil.copytree(folder, draft)
    weights, generator = load_file(draft / "model.safetensors"), torch.Generator().manual_seed(4)
    for weight in weights.values():
        weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    return draft


def repetitive_requests(count: int, seed: int) -> list[Request]:
    """混合请求：提示词重复自己，一部分带 `min_tokens`、对数概率、停止字符串，有几个带惩罚。

    Mixed requests whose prompts repeat themselves; some with `min_tokens`, log-probabilities, stop strings, and a few
    with penalties.
    """
    rng, requests = random.Random(seed), mixed_requests(vocab_size=2000, count=count, seed=seed)
    for index, request in enumerate(requests):
        if index % 2:
            piece = request.prompt[:6]
            request.prompt = (piece * 12)[: len(request.prompt) + 12]
        least = rng.choice([0, request.params.max_tokens // 2])
        extra: dict[str, Any] = [dict(min_tokens=least), dict(logprobs=2), dict(stop=["th", "的"]), {}][index % 4]
        if index % 11 == 0:
            extra = {**extra, "repetition_penalty": 1.2}
        # 低温时模型爱重复，n 元组才查得到。
        # At low temperatures the model likes to repeat itself, and n-grams find something.
        low = dict(temperature=rng.choice([0.0, 0.1])) if index % 3 == 0 else {}
        request.params = replace(request.params, **extra, **low)
    return requests


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return repetitive_requests(40, seed=9)


@pytest.fixture(scope="module")
def plain(folder: Path, requests: list[Request]) -> Run:
    return run_requests(make_llm(folder, overlapped=False, **ROOMY, enable_prefix_caching=False), requests)


NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "roomy": {},
    "reference backend": dict(backend="torch", enforce_eager=True),
    "tiny pool": dict(num_kvcache_blocks=MAX_LEN // 16),
    "budget of 7 tokens, tiny pool": dict(max_num_batched_tokens=7, num_kvcache_blocks=MAX_LEN // 16 + 1),
    "blocks of 8, few at once": dict(kvcache_block_size=8, num_kvcache_blocks=200, max_num_seqs=5),
}


def speculative(kind: str, draft: Path) -> dict[str, Any]:
    return {"speculative_config": NGRAM if kind == "ngram" else {"model": str(draft), "num_speculative_tokens": 4}}


def compare(llm: LLM, plain: Run, requests: list[Request], tolerance: float = 1e-3) -> Run:
    """跑一遍，与不猜的比；返回这一遍。

    Run, and compare with the run without guesses.
    """
    run = run_requests(llm, requests)
    assert assert_equal_or_close_call(plain, run, requests, tolerance) <= max(1, len(requests) // 200)
    check_logprobs(plain, run, requests)
    for a, b in zip(plain.outputs, run.outputs):
        if a.outputs[0].token_ids == b.outputs[0].token_ids:
            assert (a.outputs[0].text, a.outputs[0].stop_reason) == (b.outputs[0].text, b.outputs[0].stop_reason)
    metrics = llm.engine.metrics()
    assert metrics.num_generated_tokens == sum(map(len, run.tokens))
    assert 0 < metrics.num_accepted_tokens < metrics.num_draft_tokens
    return run


@pytest.mark.parametrize("kind", ["ngram", "draft model"])
@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_are_those_without_guesses(
    folder: Path, draft_folder: Path, requests: list[Request], plain: Run, name: str, kind: str
) -> None:
    llm = make_llm(folder, overlapped=False, **{**ROOMY, **VARIANTS[name]}, **speculative(kind, draft_folder))
    if isinstance(llm.engine.drafter, ModelDrafter):
        check_the_cache_of_the_draft_model(llm)
    run = compare(llm, plain, requests)
    assert (run.num_preemptions > 10) == ("tiny pool" in name)
    if kind == "draft model" and name == "roomy":
        assert sum(map(len, run.decisions)) < 0.8 * sum(map(len, plain.decisions))


@pytest.mark.parametrize("seed", [1, 2])
def test_who_is_preempted_does_not_come_back_with_guesses(seed: int) -> None:
    # 重复的与不重复的提示词混在一个小块池里：写好了猜测才被抢占的，回来时正好有一步在途，那一步不能丢。
    # Prompts with repetitions and without in a small pool: who is preempted with guesses written comes back while a
    # step is in flight, and that step must not be lost.
    rng = random.Random(seed)
    requests: list[tuple[list[int], SamplingParams]] = []
    for index in range(24):
        length, piece = rng.randint(3, 60), [rng.randrange(5, 1000) for _ in range(4)]
        prompt = [rng.randrange(5, 1000) for _ in range(length)] if index % 2 else (piece * 15)[:length]
        options = dict(max_tokens=rng.randint(5, 90), temperature=rng.choice([0.0, 1.0]), ignore_eos=True, seed=index)
        requests.append((prompt, SamplingParams(**options)))
    found = []
    for overlapped in (False, True):
        options = dict(num_kvcache_blocks=14, kvcache_block_size=16, max_model_len=160, strict=True)
        llm = make_llm(None, overlapped=overlapped, speculative_config={"method": "ngram"}, **options)
        names = [llm.engine.add_request(*request) for request in requests]
        outputs = {}
        for _ in range(4000):
            outputs |= {output.request_id: output.outputs[0].token_ids for output in llm.engine.step()}
        assert llm.engine.scheduler.num_preemptions > 10
        found.append([outputs.get(name) for name in names])
    assert found[0] == found[1] and None not in found[0]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("kind", ["ngram", "draft model"])
def test_the_overlapped_loop_collects_first_where_guesses_need_it(
    folder: Path, draft_folder: Path, requests: list[Request], plain: Run, kind: str, graphs: bool
) -> None:
    llm = make_llm(folder, **ROOMY, max_num_seqs=48, **speculative(kind, draft_folder))
    if graphs:
        add_graphs(llm)
    run, spy = run_overlapped(llm, requests)
    assert assert_equal_or_close_call(plain, run, requests) <= 1
    # 小模型每一步都要知道上一步的 token，没有输入留在设备上；n 元组只在有重复时才等。
    # A small model has to know each step's tokens, so no input stays on the device; n-grams wait for repetitions only.
    assert (spy.inputs_from_device == 0) == (kind == "draft model")
    assert llm.engine.metrics().num_accepted_tokens > 20


def test_with_a_quantized_cache_and_quantized_weights(
    folder: Path, draft_folder: Path, requests: list[Request]
) -> None:
    # 编码舍入时差一点就换一个，所以几乎并列的范围要放宽。
    # A code flips at the slightest difference, so close calls reach further.
    options = dict(kv_cache_dtype="int8", quantization="int8", dtype="float32")
    plain = run_requests(make_llm(folder, overlapped=False, **ROOMY, **options), requests)
    for kind in ("ngram", "draft model"):
        llm = make_llm(folder, overlapped=False, **ROOMY, **options, **speculative(kind, draft_folder))
        run = run_requests(llm, requests)
        assert assert_equal_or_close_call(plain, run, requests, tolerance=2e-2) <= 2
        assert llm.engine.metrics().num_accepted_tokens > 20


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ngram", "draft model"])
def test_a_thousand_requests(folder: Path, draft_folder: Path, kind: str) -> None:
    """两种各 1000 个请求：抢占、命中、分块都有，合计分开的不到 0.5 %。

    1000 requests of each kind with preemption, hits and chunks; those that part are at most 0.5 %.
    """
    seen = Counter[str]()
    for seed in range(10):
        requests = repetitive_requests(100, seed=100 + seed)
        plain = run_requests(make_llm(folder, overlapped=False, **ROOMY, enable_prefix_caching=False), requests)
        small = dict(num_kvcache_blocks=MAX_LEN // 16 + seed, max_num_batched_tokens=[7, 64, 8192][seed % 3])
        llm = make_llm(folder, overlapped=False, **{**ROOMY, **small}, **speculative(kind, draft_folder))
        run = run_requests(llm, requests)
        metrics = llm.engine.metrics()
        seen.update(
            parted=assert_equal_or_close_call(plain, run, requests), preemptions=run.num_preemptions,
            hits=run.cache_hits, guesses=metrics.num_draft_tokens, right=metrics.num_accepted_tokens,
        )
    print(f"{kind}, 1000 requests: {dict(seen)}")
    assert seen["parted"] <= 5 and seen["preemptions"] > 200 and seen["hits"] > 1000 and seen["right"] > 1000


def test_several_outputs_streams_and_aborts(folder: Path, draft_folder: Path) -> None:
    params = SamplingParams(temperature=0.7, seed=8, max_tokens=24, n=3, ignore_eos=True)
    prompt = list(range(3, 40)) * 2
    expected = make_llm(folder, overlapped=False, **ROOMY).generate([prompt], params, progress=False)[0]
    for kind in ("ngram", "draft model"):
        for overlapped in (False, True):
            llm = make_llm(folder, overlapped=overlapped, **ROOMY, **speculative(kind, draft_folder))
            output = llm.generate([prompt], params, progress=False)[0]
            assert [each.token_ids for each in output.outputs] == [each.token_ids for each in expected.outputs]
            single = replace(params, n=1)
            assert "".join(llm.stream(prompt, single)) == expected.outputs[0].text
            # 取消之后什么也不剩，已有的输出是完整输出的开头。
            # After an abort nothing is left, and what there was is the beginning of the whole.
            name = llm.engine.add_request(prompt, single)
            for _ in range(5):
                llm.engine.step()
            cut = llm.engine.abort(name)
            assert cut is not None
            said = cut.outputs[0].token_ids
            assert 0 < len(said) < 24 and expected.outputs[0].token_ids[: len(said)] == said
            if overlapped:
                assert_drained(llm.engine)  # type: ignore[arg-type]
            assert_all_free(llm.engine.block_manager)


# ---- 草稿模型的缓存 ----
# ---- the draft model's cache ----


def check_the_cache_of_the_draft_model(llm: LLM) -> None:
    """每一步之后：登记了的块里，草稿模型的 K、V 都已写好，与从头算出的相同；在运行的也一样，只可以差最后一个。

    After each step: in registered blocks the draft model's K and V are there and equal those computed from scratch;
    for running sequences too, with the last one allowed to be missing.
    """
    engine, drafter = llm.engine, llm.engine.drafter
    assert isinstance(drafter, ModelDrafter)
    layers, block_size = drafter.runner.model.attention_layers(), engine.pool.block_size
    for layer in layers:
        layer.cache().k.fill_(float("nan"))
        layer.cache().v.fill_(float("nan"))
    written: dict[int, tuple[int, ...]] = {}
    real_execute, real_step = drafter.runner.execute, engine.step

    def execute(batch: Any) -> torch.Tensor:
        logits = real_execute(batch)
        assert bool(logits.isfinite().all()), "the draft model read what nobody wrote"
        return logits

    def complete(schedule: list[ScheduledSequence], sampler: Sampler) -> None:
        real_complete(schedule, sampler)
        # 猜测也写进了缓存：记下每个位置写入时的完整前缀。
        # Guesses are written, too: note the whole prefix of each position when it was written.
        for row in schedule:
            seq, end = row.seq, row.seq.num_computed_tokens + row.num_new_tokens
            tokens = (*seq.token_ids, *seq.draft_ids)
            for position in range(seq.num_computed_tokens - 1, end):
                if position >= 0 and position != seq.draft_state:
                    slot = seq.block_table[position // block_size] * block_size + position % block_size
                    written[slot] = tokens[: position + 1]

    def step() -> Any:
        outputs = real_step()
        manager = engine.block_manager
        for block_id in manager.cached.values():
            key, prefix = manager.blocks[block_id].key, ()
            while key is not None:
                prefix, key = key.token_ids + prefix, key.parent
            for offset in range(block_size):
                length = len(prefix) - block_size + offset + 1
                found = written.get(block_id * block_size + offset)
                assert found == prefix[:length], f"block {block_id} holds {found} at {offset}, its name is {prefix}"
        for seq in engine.scheduler.running:
            for position in range(seq.num_computed_tokens):
                slot = seq.block_table[position // block_size] * block_size + position % block_size
                if position != seq.draft_state:
                    assert written[slot] == tuple(seq.token_ids[: position + 1]), f"{seq!r} at {position}"
        return outputs

    real_complete = drafter.complete
    drafter.runner.execute = execute  # type: ignore[method-assign]
    drafter.complete = complete  # type: ignore[method-assign]
    engine.step = step  # type: ignore[method-assign]


def leave_the_end_of_a_block(patch: pytest.MonkeyPatch, drafter: ModelDrafter) -> None:
    # 以为块没有尽头；批照旧按真的块大小来造。
    # It thinks that blocks have no end; batches are built with the real size as ever.
    size = drafter.setup.block_size
    drafter.setup = replace(drafter.setup, block_size=1 << 20)
    patch.setattr("engine.drafters.build_batch", lambda rows, _, device: build_batch(rows, size, device))


def never_catch_up(patch: pytest.MonkeyPatch, drafter: ModelDrafter) -> None:
    real = drafter.complete

    def complete(schedule: list[ScheduledSequence], sampler: Sampler) -> None:
        for row in schedule:
            row.seq.draft_state = None
        real(schedule, sampler)

    patch.setattr(drafter, "complete", complete)


@pytest.mark.parametrize("fault", [leave_the_end_of_a_block, never_catch_up])
def test_a_fault_in_the_draft_cache_is_found(
    folder: Path, fault: Callable[[pytest.MonkeyPatch, ModelDrafter], None], monkeypatch: pytest.MonkeyPatch,
    requests: list[Request],
) -> None:
    # 草稿模型就是目标模型：总是全对，最后一个位置总是留着。
    # The draft model is the target: always right, so the last position is always left.
    llm = make_llm(folder, overlapped=False, **ROOMY, speculative_config={"model": str(folder)})
    assert isinstance(llm.engine.drafter, ModelDrafter)
    fault(monkeypatch, llm.engine.drafter)
    check_the_cache_of_the_draft_model(llm)
    with pytest.raises((AssertionError, KeyError)):
        llm.generate([r.prompt for r in requests], [r.params for r in requests], progress=False)


def test_a_model_that_drafts_for_itself_is_always_right(folder: Path) -> None:
    llm = make_llm(folder, overlapped=False, **ROOMY, speculative_config={"model": str(folder)})
    check_the_cache_of_the_draft_model(llm)
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=51, ignore_eos=True)
    llm.generate([[5, 6, 7], list(range(40))], params, progress=False)
    # 第 1 个 token 来自提示词，其余 50 个每步 5 个。
    # Token 1 comes from the prompt, the other 50 come 5 a step.
    metrics = llm.engine.metrics()
    assert (metrics.num_drafts, metrics.num_draft_tokens, metrics.num_accepted_tokens) == (20, 80, 80)


def with_64_positions(folder: Path, tmp_path: Path) -> Path:
    """同一个模型，但只到 64 个位置。

    The same model that ends at 64 positions.
    """
    short = tmp_path / "short"
    shutil.copytree(folder, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    return short


def test_positions_beyond_the_draft_models_limit(folder: Path, tmp_path: Path) -> None:
    # 草稿模型只到 64 个位置：再往后照常输出，只是没有猜测。
    # The draft model ends at 64 positions: output goes on as ever behind, without guesses.
    short = with_64_positions(folder, tmp_path)
    params = SamplingParams(temperature=0.0, max_tokens=80, ignore_eos=True)
    prompt = list(range(30))
    expected = make_llm(folder, overlapped=False, **ROOMY).generate([prompt], params, progress=False)[0]
    llm = make_llm(folder, overlapped=False, **ROOMY, speculative_config={"model": str(short)})
    output = llm.generate([prompt], params, progress=False)[0]
    assert output.outputs[0].token_ids == expected.outputs[0].token_ids
    assert 20 < llm.engine.metrics().num_draft_tokens < 40


def test_a_prompt_beyond_the_draft_models_limit_fills_the_blocks_before_it(folder: Path, tmp_path: Path) -> None:
    # 同一个模型自己猜，猜测总是全对；长提示词留下的块，短的命中之后也一样。
    # A model that guesses for itself is always right, also behind blocks that a long prompt has left.
    short = with_64_positions(folder, tmp_path)
    params = SamplingParams(temperature=0.0, max_tokens=11, ignore_eos=True)
    llm = make_llm(folder, overlapped=False, **ROOMY, speculative_config={"model": str(short)})
    llm.generate([list(range(100))], replace(params, max_tokens=1), progress=False)
    output = llm.generate([list(range(50))], params, progress=False)[0]
    metrics = llm.engine.metrics()
    assert output.num_cached_tokens >= 40
    assert (metrics.num_drafts, metrics.num_draft_tokens, metrics.num_accepted_tokens) == (2, 8, 8)


def test_the_pool_counts_both_caches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.kv_pool.available_cpu_memory", lambda: 4 * 2**20)
    options = {**ROOMY, "num_kvcache_blocks": None, "max_model_len": None}
    alone = make_llm(folder, overlapped=False, **options)
    both = make_llm(folder, overlapped=False, **options, speculative_config={"model": str(folder)})
    assert both.engine.pool.num_blocks == alone.engine.pool.num_blocks // 2
    drafter = both.engine.drafter
    assert isinstance(drafter, ModelDrafter)
    assert len(drafter.runner.model.attention_layers()[0].cache().k) == both.engine.pool.num_blocks


def test_scores_of_nan_in_the_draft_model_cost_nothing_but_guesses(folder: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    expected = make_llm(folder, overlapped=False, **ROOMY).generate([[5, 6, 7]], params, progress=False)[0]
    llm = make_llm(folder, overlapped=False, **ROOMY, speculative_config={"model": str(folder)})
    drafter = llm.engine.drafter
    assert isinstance(drafter, ModelDrafter)
    drafter.runner.execute = lambda batch: torch.full((len(batch.logits_indices), 2304), float("nan"))  # type: ignore[method-assign]
    output = llm.generate([[5, 6, 7]], params, progress=False)[0]
    assert output.outputs[0].token_ids == expected.outputs[0].token_ids


# ---- 谁猜，谁不猜 ----
# ---- who guesses and who does not ----


def test_no_guesses_for_unfinished_prompts_and_penalties() -> None:
    drafter = NgramDrafter(4, 2, 4)
    scheduler = make_scheduler(budget=64)
    decoding, penalized = (make_seq(name, [1, 2, 3, 1, 2], max_tokens=9) for name in "ab")
    penalized.params = SamplingParams(repetition_penalty=1.1, max_tokens=9)
    prompt = make_seq("c", [1, 2, 3] * 30)
    for seq in (decoding, penalized, prompt):
        scheduler.add(seq)
    for expected in ({}, {"a": [1, 2, 3]}):
        drafter.propose(scheduler.running)
        schedule = scheduler.schedule()
        assert {row.seq.request_id: row.seq.draft_ids for row in schedule if row.seq.draft_ids} == expected
        scheduler.update(schedule, [[3] if row.num_logits else [] for row in schedule])


def test_off_means_that_nothing_is_imported_or_kept(folder: Path) -> None:
    llm = make_llm(folder, overlapped=False, **ROOMY)
    assert llm.engine.drafter is None
    metrics = llm.engine.metrics()
    assert (metrics.num_drafts, metrics.num_draft_tokens, metrics.num_accepted_tokens) == (0, 0, 0)


def test_several_threads_and_a_running_total(folder: Path, draft_folder: Path) -> None:
    llm = make_llm(folder, overlapped=False, **ROOMY, **speculative("draft model", draft_folder))
    prompts = [[number, 7, 9] * 5 for number in range(4)]
    params = SamplingParams(temperature=0.8, seed=1, max_tokens=20, ignore_eos=True)
    expected = [o.outputs[0].token_ids for o in make_llm(folder, overlapped=False, **ROOMY).generate(
        prompts, params, progress=False)]  # fmt: skip
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = llm.generate([prompts[number]], params, progress=False)[0].outputs[0].token_ids

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == expected


# ---- 内置的诗人和它的草稿模型 ----
# ---- the embedded poet and its draft model ----


def test_the_poet_and_its_draft_model() -> None:
    prompts = ["床前明月光，", "春眠不觉晓，", "a kind of bird that", "the act of", "red: ", "dog: "]
    found, tokens = {}, {}
    for temperature in (0.0, 0.8):
        params = SamplingParams(temperature=temperature, seed=3, max_tokens=100, ignore_eos=True)
        for draft in (None, {"model": "tiny-poet-draft"}):
            llm = LLM("tiny-poet", device="cpu", num_kvcache_blocks=128, strict=True, speculative_config=draft)
            outputs = llm.generate(prompts, params, progress=False)
            tokens[temperature, bool(draft)] = [output.outputs[0].token_ids for output in outputs]
            metrics = llm.engine.metrics()
            found[temperature] = 1 + metrics.num_accepted_tokens / max(metrics.num_drafts, 1)
        assert tokens[temperature, True] == tokens[temperature, False]
    print(f"tokens a step: greedy {found[0.0]:.2f}, at temperature 0.8 {found[0.8]:.2f}")
    assert found[0.0] >= 1.6 and found[0.8] > 1.5
