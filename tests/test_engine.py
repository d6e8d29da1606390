"""引擎：64 个混合请求在各种配置下都得到相同的 token（或在几乎并列处分开），以及 LLM 的公共接口。

The engine: 64 mixed requests give equal tokens (or part at a close call) in every configuration; and LLM's public
interface.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import (
    Request,
    Run,
    assert_all_free,
    assert_equal_or_close_call,
    mixed_requests,
    run_requests,
    small_model_folder,
    top_two,
)

import layers.sampler
from engine.sampling_params import SamplingParams
from serving.chat_template import encode_chat
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0.0, max_tokens=8)
MAX_LEN = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("engine") / "model")


def make_llm(folder: Path | None, **options: Any) -> LLM:
    options = {"device": "cpu", "dtype": "float32", "seed": 5, "strict": True, **options}
    return LLM(folder, **options)


@pytest.fixture(scope="module")
def small(folder: Path) -> LLM:
    return make_llm(folder, num_kvcache_blocks=256)


@pytest.fixture(scope="module")
def embedded() -> LLM:
    return make_llm(None, num_kvcache_blocks=256)


# ---- 各种配置，同样的 token ----
# ---- every configuration, the same tokens ----

PLAIN = dict(
    backend="torch",
    max_model_len=MAX_LEN,
    num_kvcache_blocks=64 * MAX_LEN // 16,
    max_num_batched_tokens=8192,
    enable_prefix_caching=False,
)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return mixed_requests(vocab_size=2000)


@pytest.fixture(scope="module")
def plain(folder: Path, requests: list[Request]) -> Run:
    return run_requests(make_llm(folder, **PLAIN), requests)


def test_the_plain_run_is_what_it_should_be(folder: Path, requests: list[Request], plain: Run) -> None:
    # 一步算完全部提示词，从不抢占：它是其余各次运行的参照。
    # All prompts in a single step and no preemption: it is the reference of the other runs.
    assert plain.num_preemptions == 0
    assert sum(count for _, count in plain.decisions[0]) == sum(len(r.prompt) for r in requests)
    assert len(plain.decisions) == max(map(len, plain.tokens))
    reasons = {output.outputs[0].finish_reason for output in plain.outputs}
    assert reasons == {"stop", "length"}
    assert len({len(r.prompt) for r in requests}) > 30
    assert sum(r.params.greedy for r in requests) >= 16


def test_the_plain_run_chooses_what_an_independent_sampler_chooses(requests: list[Request], plain: Run) -> None:
    different = 0
    for request, output, seed in zip(requests, plain.outputs, plain.seeds):
        for index, (token, logits) in enumerate(zip(output.outputs[0].token_ids, plain.scores[output.request_id])):
            expected, gap = top_two(logits, request.params, seed, index)
            different += token != expected
            assert token == expected or gap < 1e-3
    # 只有恰好落在筛选边界上的才可能不同。
    # Only what lies just on a filter's boundary may differ.
    assert different <= 2


@dataclass(frozen=True)
class Variant:
    """一种配置，以及它至少要有多少命中的 token、多少次抢占：没有这两个数，测试可能什么也没测到。

    A configuration, and how many tokens must at least be hit and how often it must preempt: without these numbers the
    test might test nothing.
    """

    options: dict[str, Any]
    min_hits: int
    min_preemptions: int


# 64 个提示词若一步全进，谁也没有可命中的块；预算 256 让它们分几步进来。
# If all 64 prompts enter in one step nobody finds a block to hit; a budget of 256 spreads them over several steps.
VARIANTS = {
    "tiny pool": Variant(dict(num_kvcache_blocks=MAX_LEN // 16), 100, 20),
    "tiny pool, no prefix caching": Variant(
        dict(num_kvcache_blocks=MAX_LEN // 16, enable_prefix_caching=False), 0, 20
    ),
    "budget of 7 tokens": Variant(dict(max_num_batched_tokens=7), 100, 0),
    "budget of 7 tokens, tiny pool": Variant(
        dict(max_num_batched_tokens=7, num_kvcache_blocks=MAX_LEN // 16 + 1), 100, 20
    ),
    "prefix caching": Variant(dict(max_num_batched_tokens=256), 100, 0),
    "prefix caching, few at once": Variant(dict(max_num_seqs=5), 100, 0),
    "no prefix caching, few at once": Variant(dict(enable_prefix_caching=False, max_num_seqs=5), 0, 0),
    "one at a time": Variant(dict(max_num_seqs=1), 100, 0),
    "block size 8": Variant(dict(kvcache_block_size=8, num_kvcache_blocks=200), 100, 5),
    "block size 8, tiny pool": Variant(dict(kvcache_block_size=8, num_kvcache_blocks=MAX_LEN // 8), 100, 20),
    "block size 64": Variant(
        dict(kvcache_block_size=64, num_kvcache_blocks=200, max_num_batched_tokens=256), 100, 0
    ),
    # 块大小 64 的池只有 3 个块，最多 3 个请求同时运行，抢占自然少些；命中的块也早被淘汰。
    # With blocks of 64 the pool has 3, so at most 3 requests run at once and fewer are preempted; what could be hit is
    # evicted before.
    "block size 64, tiny pool": Variant(dict(kvcache_block_size=64, num_kvcache_blocks=3), 0, 5),
}


def options_of(name: str, backend: str) -> dict[str, Any]:
    return {**PLAIN, "enable_prefix_caching": True, **VARIANTS[name].options, "backend": backend}


def run_variant(folder: Path | None, requests: list[Request], name: str, backend: str) -> Run:
    variant, options = VARIANTS[name], options_of(name, backend)
    run = run_requests(make_llm(folder, **options), requests)
    budget = options["max_num_batched_tokens"]
    assert all(sum(count for _, count in decision) <= budget for decision in run.decisions)
    assert run.cache_hits >= variant.min_hits
    assert run.num_preemptions >= variant.min_preemptions
    if "max_num_seqs" in options:
        assert max(len(decision) for decision in run.decisions) == options["max_num_seqs"]
    if not options["enable_prefix_caching"]:
        assert run.cache_hits == 0
        assert all(output.num_cached_tokens == 0 for output in run.outputs)
    return run


@pytest.mark.parametrize("backend", ["torch", "sdpa"])
@pytest.mark.parametrize("name", VARIANTS)
def test_64_mixed_requests_give_equal_tokens(
    folder: Path, requests: list[Request], plain: Run, name: str, backend: str
) -> None:
    parted = assert_equal_or_close_call(plain, run_variant(folder, requests, name, backend), requests)
    # 几乎并列的应当极少；多了就说明数值出了问题，而不是舍入。
    # Close calls should be very rare; many would mean wrong numbers, not rounding.
    assert parted <= 2


@pytest.mark.parametrize("name", ["tiny pool", "budget of 7 tokens", "prefix caching, few at once", "block size 8"])
def test_scheduling_decisions_are_the_same_for_every_backend(folder: Path, requests: list[Request], name: str) -> None:
    first = run_requests(make_llm(folder, **options_of(name, "torch")), requests)
    # 第二次沿用第一次的 token，几乎并列处就不会让两边的长度不同。
    # The second run takes the first one's tokens, so no close call can make lengths differ.
    second = run_requests(make_llm(folder, **options_of(name, "sdpa")), requests, forced=first)
    assert first.decisions == second.decisions
    assert first.tokens == second.tokens
    for request_id, scores in first.scores.items():
        torch.testing.assert_close(torch.stack(scores), torch.stack(second.scores[request_id]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["tiny pool", "budget of 7 tokens", "prefix caching, few at once"])
def test_embedded_model_gives_equal_tokens(embedded: LLM, name: str) -> None:
    tokenizer = embedded.engine.tokenizer
    requests = mixed_requests(vocab_size=embedded.engine.model_runner.model_config.vocab_size)
    # 其中 8 个换成真正的对话。
    # Make 8 of them real conversations.
    questions = ["introduce yourself", "中国的首都是哪里？", "What is 23 + 45?", "什么是前缀缓存？"]
    for index, text in enumerate(questions * 2):
        requests[index * 7].prompt = encode_chat(tokenizer, [{"role": "user", "content": text}])[: MAX_LEN - 41]
    plain = run_requests(make_llm(None, **{**PLAIN, "backend": "sdpa"}), requests)
    parted = assert_equal_or_close_call(plain, run_variant(None, requests, name, "sdpa"), requests)
    assert parted <= 2


def test_the_judge_tells_a_wrong_token_from_a_close_call(requests: list[Request], plain: Run) -> None:
    # 这项比较本身也要能判错：改掉一个 token，它必须发现。
    # The judge must be able to say no: change one token and it has to notice.
    number = next(i for i, r in enumerate(requests) if r.params.greedy and len(plain.tokens[i]) > 3)
    completion = plain.outputs[number].outputs[0]
    token_ids = [*completion.token_ids[:2], completion.token_ids[2] + 1, *completion.token_ids[3:]]
    other = Run(list(plain.outputs), plain.seeds)
    other.outputs[number] = replace(plain.outputs[number], outputs=[replace(completion, token_ids=token_ids)])
    with pytest.raises(AssertionError, match=f"request {number} parts at output 2"):
        assert_equal_or_close_call(plain, other, requests)
    assert assert_equal_or_close_call(plain, other, requests, tolerance=1e9) == 1
    # 只是短了一截，同样是错。
    # Being merely shorter is wrong as well.
    other.outputs[number] = replace(plain.outputs[number], outputs=[replace(completion, token_ids=token_ids[:2])])
    with pytest.raises(AssertionError, match="only longer"):
        assert_equal_or_close_call(plain, other, requests)


# ---- 噪声不受旁人影响 ----
# ---- noise does not depend on the neighbours ----


class NoiseRecorder:
    """记下每次抽取的噪声：（种子，序号）-> 一行。

    Records each draw of noise: (seed, index) -> one row.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.drawn: dict[tuple[int, int], torch.Tensor] = {}
        real = layers.sampler.gumbel_noise

        def record(seeds: torch.Tensor, indices: torch.Tensor, vocab_size: int) -> torch.Tensor:
            noise = real(seeds, indices, vocab_size)
            for seed, index, row in zip(seeds.tolist(), indices.tolist(), noise):
                before = self.drawn.setdefault((seed, index), row.clone())
                assert torch.equal(before, row), "the same request and index drew other noise"
            return noise

        patch.setattr(layers.sampler, "gumbel_noise", record)


def test_a_seeded_request_alone_equals_itself_in_a_crowd(folder: Path, requests: list[Request]) -> None:
    params = SamplingParams(temperature=1.0, seed=99, max_tokens=20, ignore_eos=True)
    mine = Request([3, 1, 4, 1, 5], params)
    others = [Request(r.prompt, SamplingParams(temperature=0.9, seed=i, max_tokens=12)) for i, r in enumerate(requests)]
    with pytest.MonkeyPatch.context() as patch:
        alone_noise = NoiseRecorder(patch)
        alone = run_requests(make_llm(folder, **PLAIN), [mine])
    crowd = [*others[:40], mine, *others[40:]]
    options = {**PLAIN, "num_kvcache_blocks": MAX_LEN // 16 + 2, "max_num_batched_tokens": 50}
    with pytest.MonkeyPatch.context() as patch:
        crowd_noise = NoiseRecorder(patch)
        together = run_requests(make_llm(folder, **options), crowd)
    assert together.num_preemptions > 20
    for index in range(20):
        assert torch.equal(alone_noise.drawn[99, index], crowd_noise.drawn[99, index])
    just_mine = Run([together.outputs[40]], [together.seeds[40]])
    assert assert_equal_or_close_call(alone, just_mine, [mine]) == 0


def test_a_request_without_a_seed_draws_one_when_added(small: LLM) -> None:
    engine = small.engine
    params = SamplingParams(temperature=1.0)
    first, second = engine.requests.prepare([1, 2], params), engine.requests.prepare([1, 2], params)
    assert first.seed != second.seed
    assert engine.requests.prepare([1, 2], SamplingParams(seed=7)).seed == 7


def test_engine_seed_makes_runs_reproducible(folder: Path) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    prompts = [[1, 2, 3], [1, 2, 3], [4, 5]]

    def run(seed: int | None) -> list[list[int]]:
        llm = make_llm(folder, seed=seed, num_kvcache_blocks=64)
        return [output.outputs[0].token_ids for output in llm.generate(prompts, params, progress=False)]

    first = run(1)
    assert run(1) == first
    assert run(2) != first
    assert run(None) != run(None)
    # 同一个提示词两次，各抽各的种子。
    # The same prompt twice draws two seeds.
    assert first[0] != first[1]


# ---- generate ----


def tokens_of(outputs: list[Any]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_generate_takes_a_string_a_list_of_strings_and_lists_of_ids(small: LLM) -> None:
    ids = small.engine.tokenizer.encode("hello")
    one = small.generate("hello", GREEDY, progress=False)
    assert len(one) == 1 and one[0].prompt == "hello" and one[0].prompt_token_ids == ids
    several = small.generate(["hello", "你好"], GREEDY, progress=False)
    assert [output.prompt for output in several] == ["hello", "你好"]
    by_ids = small.generate([ids], GREEDY, progress=False)
    assert by_ids[0].prompt is None
    mixed = small.generate(["hello", ids, "你好"], GREEDY, progress=False)
    assert tokens_of(mixed) == [*tokens_of(one), *tokens_of(by_ids), tokens_of(several)[1]]
    assert tokens_of(one) == tokens_of(by_ids)
    assert small.generate([], GREEDY, progress=False) == []


def test_results_keep_the_order_of_the_prompts(small: LLM) -> None:
    # 长的先加，短的先完：结果仍按提示词的次序。
    # Long ones are added first and short ones end first, yet results keep the prompts' order.
    prompts = [[index + 1] for index in range(6)]
    params = [SamplingParams(temperature=0, max_tokens=12 - 2 * i, ignore_eos=True) for i in range(6)]
    outputs = small.generate(prompts, params, progress=False)
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [len(tokens) for tokens in tokens_of(outputs)] == [12, 10, 8, 6, 4, 2]


def test_params_one_for_all_or_one_each(small: LLM) -> None:
    with pytest.raises(ValueError, match="2 prompts, but 1 sampling_params"):
        small.generate([[1], [2]], [GREEDY], progress=False)
    assert not small.engine.has_unfinished()


def test_a_stop_token_of_the_user(small: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    said = small.generate([[1, 2, 3]], params, progress=False)[0].outputs[0]
    assert said.finish_reason == "length" and said.stop_reason is None and len(said.token_ids) == 10
    stop = said.token_ids[4]
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop_token_ids=[stop])
    stopped = small.generate([[1, 2, 3]], params, progress=False)[0].outputs[0]
    assert stopped.token_ids == said.token_ids[: said.token_ids.index(stop) + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    # 停止 token 留在 token_ids 里，不进文字。
    # The stop token stays in token_ids but out of the text.
    assert stopped.text == small.engine.tokenizer.decode(stopped.token_ids[:-1])
    assert said.text == small.engine.tokenizer.decode(said.token_ids)


def test_the_models_own_stop_tokens(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "union"
    shutil.copytree(folder, copy)
    greedy = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    said = tokens_of(make_llm(copy, num_kvcache_blocks=64).generate([[1, 2, 3]], greedy, progress=False))[0]
    in_config, in_generation = said[3], said[7]
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "eos_token_id": [2203, in_config]}))
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    llm = make_llm(copy, num_kvcache_blocks=64)
    # `generation_config.json` 有就以它为准，再加上分词器自己的结束符。
    # `generation_config.json` wins where it has any; the tokenizer's own end token is added.
    own = llm.engine.tokenizer.eos_token_id
    assert llm.engine.requests.eos_token_ids == {in_generation, own}
    for params, end in [(SamplingParams(temperature=0, max_tokens=30), {in_generation, own}), (greedy, None)]:
        completion = llm.generate([[1, 2, 3]], params, progress=False)[0].outputs[0]
        expected = said if end is None else said[: next(i for i, t in enumerate(said) if t in end) + 1]
        assert completion.token_ids == expected
        # 模型自带的停止 id 不写进 stop_reason，与 vLLM 一致。
        # As in vLLM, stop_reason does not name the model's own stop id.
        assert (completion.finish_reason, completion.stop_reason) == ("length" if end is None else "stop", None)
    (copy / "config.json").write_text(json.dumps({**config, "eos_token_id": in_config}))
    (copy / "generation_config.json").unlink()
    assert make_llm(copy, num_kvcache_blocks=64).engine.requests.eos_token_ids == {in_config, own}


def test_num_cached_tokens_of_a_repeated_prompt(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=64)
    prompt = list(range(2, 42))
    first, second = (llm.generate([prompt], GREEDY, progress=False)[0] for _ in range(2))
    # 40 个 token，块大小 16：命中 2 个块，32 个。
    # 40 tokens with blocks of 16: 2 blocks are hit, 32 tokens.
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 32)
    assert tokens_of([first]) == tokens_of([second])
    stats = llm.engine.block_manager.stats
    assert (stats.queried, stats.hit) == (80, 32)
    # 恰好 32 个 token 只能命中 1 个块。
    # Exactly 32 tokens can hit 1 block only.
    assert llm.generate([prompt[:32]], GREEDY, progress=False)[0].num_cached_tokens == 16
    off = make_llm(folder, num_kvcache_blocks=64, enable_prefix_caching=False)
    assert [off.generate([prompt], GREEDY, progress=False)[0].num_cached_tokens for _ in range(2)] == [0, 0]


def test_a_second_turn_hits_the_first_turns_answer(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=64)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    first = llm.generate([[7] * 20], params, progress=False)[0]
    second = llm.generate([[7] * 20 + first.outputs[0].token_ids + [9]], GREEDY, progress=False)[0]
    # 第一轮算过 49 个 token（最后一个输出没有再算），满 3 个块。
    # The first turn computed 49 tokens (its last output was never fed back), 3 full blocks.
    assert second.num_cached_tokens == 48


def test_metrics_are_in_order(small: LLM) -> None:
    for output in small.generate([[1, 2], [3] * 40, [4]], GREEDY, progress=False):
        times = output.metrics
        assert times.first_scheduled_time and times.first_token_time and times.finished_time
        assert 0 < times.arrival_time <= times.first_scheduled_time
        assert times.first_scheduled_time < times.first_token_time <= times.finished_time


def test_counters_add_up(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=64, enable_prefix_caching=False)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    llm.generate([[1, 2, 3], [4]], params, progress=False)
    assert llm.engine.num_generated_tokens == 10
    # 每个输出除最后一个外都要再算一遍。
    # Each output but the last is computed again.
    assert llm.engine.num_computed_tokens == 4 + 2 * 4


def test_output_that_reaches_max_model_len_ends_with_length(folder: Path) -> None:
    llm = make_llm(folder, max_model_len=48, num_kvcache_blocks=3)
    params = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    for size in (1, 16, 46, 47):
        output = llm.generate([[5] * size], params, progress=False)[0]
        assert len(output.outputs[0].token_ids) == 48 - size
        assert output.outputs[0].finish_reason == "length"
        assert_all_free(llm.engine.block_manager)


def test_two_engines_in_one_process(folder: Path) -> None:
    first, second = make_llm(folder, num_kvcache_blocks=64), make_llm(folder, num_kvcache_blocks=32, backend="torch")
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    expected = tokens_of(first.generate([[1, 2], [3]], params, progress=False))
    # 两台引擎交替走步，互不影响。
    # Two engines step in turn without touching each other.
    for llm in (first, second):
        for index, prompt in enumerate([[1, 2], [3]]):
            llm.engine.add_request(prompt, params, f"r{index}")
    results: dict[str, Any] = {}
    while first.engine.has_unfinished() or second.engine.has_unfinished():
        for name, llm in (("first", first), ("second", second)):
            results.update({f"{name} {o.request_id}": o.outputs[0].token_ids for o in llm.engine.step()})
    assert [results[f"{n} r{i}"] for n in ("first", "second") for i in (0, 1)] == expected * 2


# ---- add_request / step / abort ----


def test_requests_may_join_and_leave_a_running_engine(folder: Path) -> None:
    engine = make_llm(folder, num_kvcache_blocks=64).engine
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    alone = make_llm(folder, num_kvcache_blocks=64).generate([[1, 2], [5, 6]], params, progress=False)
    assert engine.add_request([1, 2], params, "a") == "a"
    engine.add_request([3, 4], params, "b")
    for _ in range(3):
        assert engine.step() == []
    engine.add_request([5, 6], params, "c")
    aborted = engine.abort("b")
    assert aborted is not None and aborted.outputs[0].finish_reason == "abort"
    assert len(aborted.outputs[0].token_ids) == 3 and aborted.metrics.finished_time is not None
    assert engine.abort("b") is None and engine.abort("nobody") is None
    results = {}
    while engine.has_unfinished():
        results.update({output.request_id: output for output in engine.step()})
    assert tokens_of([results["a"], results["c"]]) == tokens_of(alone)
    assert_all_free(engine.block_manager)


def test_a_step_without_requests_does_nothing(small: LLM) -> None:
    assert small.engine.step() == []


def test_generate_while_the_engine_serves_others(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=64)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    llm.engine.add_request([9], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), "short")
    llm.engine.add_request([8], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), "long")
    outputs = llm.generate([[1], [2]], params, progress=False)
    assert [output.prompt_token_ids for output in outputs] == [[1], [2]]
    assert [len(tokens) for tokens in tokens_of(outputs)] == [6, 6]
    # 别人的长请求还在继续。
    # The others' long request goes on.
    assert [seq.request_id for seq in llm.engine.scheduler.running] == ["long"]
    assert llm.engine.scheduler.running[0].num_output_tokens == 6


def test_a_request_aborted_from_elsewhere_returns_what_it_had(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=64)
    engine, real, steps = llm.engine, llm.engine.step, [0]

    def step() -> list[Any]:
        steps[0] += 1
        if steps[0] == 4:
            engine.abort(engine.scheduler.running[0].request_id)
        return real()

    engine.step = step  # type: ignore[method-assign]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    aborted, other = llm.generate(["hello", [2]], params, progress=False)
    assert (aborted.outputs[0].finish_reason, other.outputs[0].finish_reason) == ("abort", "length")
    assert [len(tokens) for tokens in tokens_of([aborted, other])] == [3, 6]
    assert aborted.prompt == "hello"
    assert_all_free(engine.block_manager)


def test_automatic_ids_skip_those_in_use(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=64)
    for name in ("0", "1"):
        llm.engine.add_request([9], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), name)
    outputs = llm.generate([[1], [2]], GREEDY, progress=False)
    assert [output.prompt_token_ids for output in outputs] == [[1], [2]]
    assert {seq.request_id for seq in llm.engine.scheduler.running} == {"0", "1"}


# ---- 默认参数与对话 ----
# ---- default parameters and chat ----


def with_generation_config(folder: Path, target: Path, content: dict[str, Any]) -> LLM:
    import shutil

    shutil.copytree(folder, target)
    (target / "generation_config.json").write_text(json.dumps(content))
    return make_llm(target, num_kvcache_blocks=64)


def test_generation_config_gives_the_defaults(folder: Path, tmp_path: Path) -> None:
    content = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "max_new_tokens": 3}
    llm = with_generation_config(folder, tmp_path / "sampled", content)
    assert llm.engine.requests.defaults == SamplingParams(
        temperature=0.6, top_p=0.9, top_k=40, min_p=0.1, max_tokens=3
    )
    outputs = llm.generate([[1], [2]], progress=False)
    assert [len(tokens) for tokens in tokens_of(outputs)] == [3, 3]


def test_do_sample_false_is_greedy(folder: Path, tmp_path: Path) -> None:
    llm = with_generation_config(folder, tmp_path / "greedy", {"do_sample": False, "temperature": 0.6})
    assert llm.engine.requests.defaults.greedy
    first, second = (tokens_of(llm.generate([[1, 2, 3]], progress=False)) for _ in range(2))
    assert first == second
    greedy = SamplingParams(temperature=0, max_tokens=16)
    assert tokens_of(llm.generate([[1, 2, 3]], greedy, progress=False)) == first


def test_params_given_replace_the_defaults(folder: Path, tmp_path: Path) -> None:
    llm = with_generation_config(folder, tmp_path / "given", {"do_sample": False, "max_new_tokens": 3})
    seq = llm.engine.requests.prepare([1], SamplingParams())
    assert seq.params == SamplingParams(temperature=1.0, max_tokens=16)


def test_a_model_without_generation_config(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "none"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").unlink()
    assert make_llm(copy, num_kvcache_blocks=64).engine.requests.defaults == SamplingParams()


def test_chat_takes_one_conversation_or_several(embedded: LLM) -> None:
    ask = [{"role": "user", "content": "introduce yourself"}]
    other = [{"role": "user", "content": "What is 23 + 45?"}]
    params = SamplingParams(temperature=0, max_tokens=12)
    one = embedded.chat(ask, params, progress=False)
    several = embedded.chat([ask, other], params, progress=False)
    assert len(one) == 1 and len(several) == 2
    assert one[0].prompt_token_ids == several[0].prompt_token_ids != several[1].prompt_token_ids
    assert tokens_of(one)[0] == tokens_of(several)[0]
    assert embedded.chat([], params, progress=False) == []
    each = embedded.chat([ask, other], [params, SamplingParams(temperature=0, max_tokens=1)], progress=False)
    assert [len(tokens) for tokens in tokens_of(each)][1] == 1


def test_chat_writes_one_bos(embedded: LLM) -> None:
    tokenizer = embedded.engine.tokenizer
    ids = embedded.chat([{"role": "user", "content": "hi"}], GREEDY, progress=False)[0].prompt_token_ids
    bos = tokenizer.encode("<|begin_of_text|>", add_special_tokens=False)
    assert len(bos) == 1 and ids[0] == bos[0] and ids.count(bos[0]) == 1


@pytest.mark.parametrize("messages", [[{"role": "user"}], [{"content": "x"}], ["hello"], [["hello"]], "hello"])
def test_bad_messages_are_a_value_error(embedded: LLM, messages: Any) -> None:
    with pytest.raises(ValueError, match="role and content"):
        embedded.chat(messages, GREEDY, progress=False)
    assert not embedded.engine.has_unfinished()


def test_chat_without_a_template_is_a_value_error(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "no-template"
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="chat template"):
        make_llm(copy, num_kvcache_blocks=64).chat([{"role": "user", "content": "hi"}], progress=False)


def test_text_leaves_special_tokens_out(embedded: LLM) -> None:
    engine = embedded.engine
    text = engine.tokenizer.encode("hello", add_special_tokens=False)
    special = min(engine.requests.eos_token_ids)
    name = engine.tokenizer.decode([special], skip_special_tokens=False)
    assert name.startswith("<|")

    def said(**params: Any) -> str:
        seq = engine.requests.prepare([1], SamplingParams(**params), "x")
        engine.add_sequence(seq)
        seq.token_ids += [*text, special]
        aborted = engine.abort("x")
        assert aborted is not None
        return aborted.outputs[0].text

    assert said() == "hello"
    assert said(skip_special_tokens=False) == "hello" + name


def test_an_answer_ends_with_stop_and_clean_text(embedded: LLM) -> None:
    output = embedded.chat([{"role": "user", "content": "What is 23 + 45?"}], progress=False)[0]
    completion = output.outputs[0]
    assert "68" in completion.text and "<|" not in completion.text
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] in embedded.engine.requests.eos_token_ids


def test_the_embedded_model_is_greedy_by_default(embedded: LLM) -> None:
    assert embedded.engine.requests.defaults.greedy


def test_num_kvcache_blocks_and_block_size_are_taken(folder: Path) -> None:
    llm = make_llm(folder, num_kvcache_blocks=70, kvcache_block_size=8)
    assert (llm.engine.block_manager.num_blocks, llm.engine.block_manager.block_size) == (70, 8)
    assert llm.engine.pool.max_model_len == 512


def test_a_row_of_nan_ends_its_request_alone(small: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, greedy = [[5, 6, 7], [9] * 20, [10, 11]], SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    expected = tokens_of(small.generate(prompts, greedy, progress=False))
    draw = small.engine.sampler.draw

    def broken(samples: list[tuple[Any, int]], logits: torch.Tensor) -> Any:
        rows = [row for row, (seq, index) in enumerate(samples) if seq.prompt_token_ids == [10, 11] and index == 2]
        return draw(samples, logits.index_fill(0, torch.tensor(rows, dtype=torch.int64), float("nan")))

    monkeypatch.setattr(small.engine.sampler, "draw", broken)
    outputs = small.generate(prompts, greedy, progress=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "length", "error"]
    assert tokens_of(outputs) == [expected[0], expected[1], expected[2][:2]]
    assert_all_free(small.engine.block_manager)
