"""结构化输出：写完的输出都合乎语法，随便和谁同批；旁边没有语法的请求逐位不变；坏语法在门口就报错。

Structured outputs: every finished output matches, whoever shares its batch; requests beside it without a grammar are
unchanged bit for bit; a bad grammar is told at the door.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import string
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EMBEDDED_MODEL, make_hf_model, save_tokenizer
from engine_helpers import (
    ROOT,
    Request,
    assert_all_free,
    environment,
    make_scheduler,
    make_seq,
    mixed_requests,
    run_requests,
)
from overlap_helpers import add_graphs, make_llm, run_overlapped
from test_text import KINDS, SPECIALS
from transformers import PreTrainedTokenizerFast

import engine.guides
import engine.sampler
import mini_llama
from engine.detokenizer import Detokenizer
from engine.gpu import kernel_sampler
from engine.gpu.kernel_sampler import KernelSampler
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.guides import MAX_CHARS, Guide, Guides, StructuredOutputsParams
from engine.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.sequence import PENDING_TOKEN
from engine.tokenizer import Tokenizer
from serving.async_llm import AsyncLLM
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")
END = 2057
VOCAB = 2304


def guided(max_tokens: int = 60, temperature: float = 0.0, **options: Any) -> SamplingParams:
    """一种语法，其余是采样参数。

    One grammar; all else are sampling parameters.
    """
    wanted = {name: options.pop(name) for name in ("json", "regex", "choice", "grammar") if name in options}
    params = StructuredOutputsParams(**wanted)
    return SamplingParams(structured_outputs=params, max_tokens=max_tokens, temperature=temperature, **options)


def allowed(guide: Guide, vocab_size: int = VOCAB) -> set[int]:
    assert len(guide.mask()) == (vocab_size + 31) // 32 * 4
    return set(guide.allowed())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """随机小模型，分词器是内置模型的，嵌入表比它多 240 行；有 2 个停止 id。

    A small random model with the embedded model's tokenizer, 240 more rows in the embedding, and 2 stop ids.
    """
    path = tmp_path_factory.mktemp("guides") / "model"
    make_hf_model("llama").save_pretrained(path)
    save_tokenizer(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, 2049]}))
    return path


@pytest.fixture(scope="module")
def small(folder: Path) -> LLM:
    return make_llm(folder, overlapped=False, max_model_len=256, num_kvcache_blocks=256)


@pytest.fixture(scope="module")
def tiny_llama() -> LLM:
    return make_llm(EMBEDDED_MODEL, overlapped=False, max_model_len=512, num_kvcache_blocks=512)


@pytest.fixture(scope="module")
def guides() -> Guides:
    return Guides(Tokenizer(EMBEDDED_MODEL), VOCAB)


# ---- 随机的语法 ----
# ---- random grammars ----


def random_regex(rng: random.Random, depth: int = 3) -> str:
    """Python 和 llguidance 都懂、也不会没完没了的正则。

    A regular expression that Python and llguidance both know and that does not go on for ever.
    """
    kind = rng.choice(["text", "class", "sequence", "either", "repeat"] if depth else ["text", "class"])
    if kind == "text":
        return re.escape("".join(rng.choices(string.ascii_letters + "0189 -_é你好😀.,", k=rng.randint(1, 4))))
    if kind == "class":
        return rng.choice(["[a-f]", "[0-9]", "[A-Za-z_]", "[^a-z\\n]", "[你好吗]", "[é-ü]", "[ ,.]"])
    if kind == "either":
        return "(" + "|".join(random_regex(rng, depth - 1) for _ in range(rng.randint(2, 4))) + ")"
    if kind == "repeat":
        low = rng.randint(0, 2)
        return f"({random_regex(rng, depth - 1)})" + rng.choice(["?", f"{{{low},{low + rng.randint(1, 3)}}}"])
    return "".join(random_regex(rng, depth - 1) for _ in range(rng.randint(1, 3)))


def random_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    plain = ["string", "integer", "boolean", "null", "enum", "const", "pattern"]
    kind = rng.choice(plain + ["object", "object", "array", "anyOf"] * 2 if depth else plain)
    if kind == "string":
        low = rng.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 5)}
    if kind == "integer":
        low = rng.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 2000)}
    if kind == "enum":
        return {"enum": rng.sample(["red", "绿", 7, -1.5, True, None, "a \"quoted\" one", ["x", 1]], rng.randint(1, 4))}
    if kind == "const":
        return {"const": rng.choice(["fixed", 42, False, {"a": [1, 2]}])}
    if kind == "pattern":
        return {"type": "string", "pattern": "^[a-z]{2,4}(-[0-9]{1,2})?$"}
    if kind == "array":
        low = rng.randint(0, 2)
        items = random_schema(rng, depth - 1)
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + rng.randint(0, 2)}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    if kind == "object":
        properties = {name: random_schema(rng, depth - 1) for name in rng.sample("abcdef", rng.randint(0, 3))}
        required = [name for name in properties if rng.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": kind}


TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def valid(value: Any, schema: dict[str, Any]) -> bool:
    """独立的检查：`random_schema` 会写的那些关键字。

    An independent check of the keywords that `random_schema` writes.
    """
    if "anyOf" in schema:
        return any(valid(value, each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        options = schema.get("enum", [schema.get("const")])
        return any(json.dumps(value, sort_keys=True) == json.dumps(option, sort_keys=True) for option in options)
    if not TYPES[schema["type"]](value):
        return False
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 1000)
        return fits and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        fits = schema["minItems"] <= len(value) <= schema["maxItems"]
        return fits and all(valid(each, schema["items"]) for each in value)
    if isinstance(value, dict):
        fits = set(schema["required"]) <= set(value) <= set(schema["properties"])
        return fits and all(valid(each, schema["properties"][name]) for name, each in value.items())
    return not isinstance(value, int) or schema.get("minimum", 0) <= value <= schema.get("maximum", 1)


def test_the_check_can_fail() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 3}}, "required": ["a"]}
    assert valid({"a": 2}, schema) and not valid({"a": 4}, schema) and not valid({}, schema)
    assert not valid({"a": True}, schema) and not valid({"a": 2, "b": 1}, schema) and not valid([2], schema)
    assert valid("x", {"enum": ["x"]}) and not valid(1, {"enum": [True]}) and not valid(True, {"const": 1})
    assert not valid("ab-", {"type": "string", "pattern": "^[a-z]{2,4}(-[0-9]{1,2})?$"})


def matches(params: SamplingParams, text: str) -> bool:
    wanted = params.structured_outputs
    assert wanted is not None
    if wanted.regex is not None:
        return re.fullmatch(wanted.regex, text) is not None
    if wanted.choice is not None:
        return text in wanted.choice
    return valid(json.loads(text), json.loads(wanted.json))  # type: ignore[arg-type]


def random_requests(count: int, seed: int) -> list[Request]:
    """正则、schema、选项各占一些，贪心和采样都有，带着别的参数，中间夹着没有语法的。

    Regexes, schemas and choices, greedy and sampled, with other parameters, and some without a grammar between them.
    """
    rng, requests = random.Random(seed), mixed_requests(2000, count + count // 4, seed)
    for index, request in enumerate(requests):
        if index % 5 == 4:
            continue
        wanted: dict[str, Any] = (
            dict(regex=random_regex(rng)) if index % 5 < 2
            else dict(json=random_schema(rng)) if index % 5 < 4 and index % 7
            else dict(choice=["yes", "no", "yes, but", "不知道", "😀"])
        )  # fmt: skip
        extra = dict(
            temperature=rng.choice([0.0, 0.7, 1.3]), top_k=rng.choice([0, 20]), top_p=rng.choice([1.0, 0.9]),
            seed=rng.choice([None, 5]), logprobs=rng.choice([None, 2]), n=rng.choice([1, 1, 1, 3]),
            repetition_penalty=rng.choice([1.0, 1.2]), presence_penalty=rng.choice([0.0, 0.5]),
        )  # fmt: skip
        request.params = guided(120, **wanted, **extra)
    return requests


@pytest.mark.parametrize("model", ["small", "tiny_llama"])
def test_finished_outputs_match_amid_others_preemption_and_aborts(
    model: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    requests = random_requests(200, seed=3 if model == "small" else 4)
    # 块不够：不断抢占；预算小：提示词要分段。
    # Too few blocks, so that somebody is always preempted; a small budget, so that prompts come in chunks.
    llm = make_llm(
        folder if model == "small" else EMBEDDED_MODEL, overlapped=False, max_model_len=256, num_kvcache_blocks=40,
        max_num_seqs=16, max_num_batched_tokens=64,
    )  # fmt: skip
    core, rng = llm.engine, random.Random(1)
    names = [core.add_request(each.prompt, each.params) for each in requests]
    outputs: dict[str, Any] = {}
    aborted = set(rng.sample(names, 12))
    for count in range(100_000):
        if not core.has_unfinished():
            break
        for output in core.step():
            outputs[output.request_id] = output
        running = [seq.request_id for seq in core.scheduler.running if seq.request_id in aborted]
        if count % 5 == 0 and running and (output := core.abort(running[0])) is not None:
            outputs[output.request_id] = output
            aborted.discard(running[0])
    assert_all_free(core.block_manager)
    assert core.scheduler.num_preemptions > 20
    ends = {"stop": 0, "length": 0, "abort": 0}
    for name, each in zip(names, requests):
        for output in outputs[name].outputs:
            if each.params.structured_outputs is None:
                continue
            ends[output.finish_reason] += 1
            if output.finish_reason == "stop":
                assert matches(each.params, output.text), (each.params.structured_outputs, output.text)
                assert output.token_ids[-1] in core.requests.eos_token_ids and output.stop_reason is None
            else:
                assert not set(output.token_ids) & core.requests.eos_token_ids
    assert ends["abort"] >= 6 and ends["stop"] >= 0.9 * sum(ends.values()), ends


# ---- 掩码 ----
# ---- the mask ----


def test_the_mask_is_what_brute_force_allows(guides: Guides) -> None:
    """逐个 token 试：接上去还是某个选项的开头，才允许。下一个字符已成定局时，llguidance 只留下分词器会用的那个 token。

    Token by token: allowed is what keeps the text a beginning of one of the choices. Where the next character is
    settled, llguidance keeps just the token that the tokenizer would use.
    """
    choices, tokenizer = ["yes", "yesterday", "no way", "no", "12 + 30", "123", "124"], guides._tokenizer
    texts = {i: tokenizer.decode([i]) for i in range(len(tokenizer.hf_tokenizer)) if i not in tokenizer._special}
    rng, seen, open_steps = random.Random(0), set(), 0
    for _ in range(100):
        guide, text = guides.start(StructuredOutputsParams(choice=choices), frozenset({END, 7, 2299})), ""
        while True:
            found, ends = allowed(guide), {END, 7, 2299} if text in choices else set()
            fits = {i for i, more in texts.items() if more and any(each.startswith(text + more) for each in choices)}
            fits -= {END, 7, 2299}
            assert found & {END, 7, 2299} == ends
            settled = len({each[len(text) :][:1] for each in choices if each.startswith(text)}) == 1
            assert found - ends <= fits and (found == fits | ends or (settled and found)), text
            open_steps += not settled
            token = rng.choice(sorted(found))
            if token in ends:
                break
            assert not guide.advance(token)
            text += texts[token]
        seen.add(text)
    assert seen == set(choices) and open_steps > 100


def test_other_end_tokens_and_rows_without_text_are_banned(guides: Guides) -> None:
    guide = guides.start(StructuredOutputsParams(regex="[^\\n]*"), frozenset())
    found = allowed(guide)
    assert len(found) > 500 and END not in found and max(found) < len(guides._tokenizer.hf_tokenizer)
    # 停止 id 是个普通的 token：语法可以结束的地方允许它，结束不了的地方不允许，哪怕语法里有它。
    # A stop id that is an ordinary token: allowed where the grammar may end, and elsewhere not, even if it would fit.
    comma = guides._tokenizer.encode(",", add_special_tokens=False)[-1]
    guide = guides.start(StructuredOutputsParams(regex="a(,|;)b"), frozenset({comma}))
    (a,) = guides._tokenizer.encode("a", add_special_tokens=False)
    guide.advance(a)
    assert comma not in allowed(guide) and allowed(guide)


def test_a_copy_goes_its_own_way(guides: Guides) -> None:
    first = guides.start(StructuredOutputsParams(regex="ab|ba"), frozenset({END}))
    second = first.copy()
    a, b = (guides._tokenizer.encode(text, add_special_tokens=False)[0] for text in "ab")
    first.advance(a)
    second.advance(b)
    assert allowed(first) == {b} and allowed(second) == {a}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_gives_matching_text_or_is_refused(kind: str, tmp_path: Path) -> None:
    library = KINDS[kind]()
    library.add_special_tokens(SPECIALS)
    PreTrainedTokenizerFast(tokenizer_object=library).save_pretrained(tmp_path)
    tokenizer, size = Tokenizer(tmp_path), library.get_vocab_size() + 3
    guides, end, rng = Guides(tokenizer, size), size - 1, random.Random(0)
    if kind in ("metaspace", "word-level", "word-piece"):
        with pytest.raises(ValueError, match="structured_outputs cannot be had with this tokenizer: can't determine"):
            guides.start(StructuredOutputsParams(regex="a"), frozenset({end}))
        return
    finished = 0
    for regex in ("(the|cat|at|s)( (the|cat|a))*[,.]?", "[a-z ]{1,12}", "(你好|😀|a)+", "[^\\n]{3,9}"):
        for _ in range(40):
            prompt = [rng.randrange(end) for _ in range(rng.randint(1, 5))]
            guide, output = guides.start(StructuredOutputsParams(regex=regex), frozenset({end})), []
            while len(output) < 40 and (token := rng.choice(sorted(allowed(guide, size)))) != end:
                output.append(token)
                guide.advance(token)
            if len(output) < 40:
                text = Detokenizer(tokenizer, True, prompt)
                shown = text.push(*output) + text.rest()
                assert re.fullmatch(regex, shown), (regex, shown, output)
                finished += 1
    assert finished > 100


def test_a_tokenizer_with_more_entries_than_the_embedding(guides: Guides) -> None:
    wanted = StructuredOutputsParams(regex="[a-z ]{1,30}")
    found = allowed(Guides(guides._tokenizer, 601).start(wanted, frozenset({5})), 601)
    every = allowed(guides.start(wanted, frozenset({5})))
    # 600 在里面，601 到 607 凑满最后一个字，不算。
    # 600 is in it; 601 to 607 only fill up the last word.
    assert found == {i for i in every if i < 601}
    assert 600 in found and 601 in every


# ---- 两种采样器，两种循环 ----
# ---- both samplers, both loops ----


def test_the_kernel_agrees_with_the_plain_twin(guides: Guides) -> None:
    pytest.importorskip("triton")
    from backends.triton import TritonKernels

    # 没有 GPU 时，核函数由解释器执行。
    # Without a GPU the interpreter runs the kernel.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator, rng = torch.Generator().manual_seed(0), random.Random(2)
    plain = Sampler(VOCAB, 8, device, str)
    kernel = KernelSampler(TritonKernels(device), VOCAB, 8, device, str)
    grammars = ["[a-z ]{5,20}", "(yes|no|maybe)( [0-9]{2})*", "[^\\n]{3,9}", "[0-9]{8}", None, None, "(你好|😀)+", None]
    rows = []
    for number, regex in enumerate(grammars):
        seq = make_seq(str(number), [3, 4, 5 + number], stop=(END, 9), temperature=rng.choice([0.0, 0.8, 1.5]),
                       top_k=rng.choice([0, 5]), repetition_penalty=rng.choice([1.0, 1.4]),
                       min_tokens=2 if number == 5 else 0)  # fmt: skip
        guide = guides.start(StructuredOutputsParams(regex=regex), seq.stop_token_ids) if regex else None
        rows.append(replace(seq, guide=guide, seed=number))
    compared = 0
    for index in range(6):
        live = [seq for seq in rows if not seq.output_token_ids or seq.output_token_ids[-1] not in seq.stop_token_ids]
        logits = (torch.randn(len(live), VOCAB, generator=generator) * 3).to(device)
        samples = [(seq, index) for seq in live]
        before = logits.clone()
        expected, _ = plain.draw(samples, logits)
        found, _ = kernel.draw(samples, logits)
        assert torch.equal(logits, before), "the scores that log-probabilities are read from have changed"
        assert found.tolist() == expected.tolist()
        for seq, token in zip(live, expected.tolist()):
            if seq.guide is not None:
                assert token in allowed(seq.guide)
                compared += 1
            seq.token_ids.append(token)
            if seq.guide is not None and token not in seq.stop_token_ids:
                seq.guide.advance(token)
    assert compared > 20


def test_a_free_choice_that_is_allowed_stays_the_choice(guides: Guides) -> None:
    """噪声与语法无关：没有过滤时，自由选中的若正好允许，选中的还是它。

    The noise has nothing to do with a grammar: without filters, a free choice that is allowed stays the choice.
    """
    sampler, generator, stayed = Sampler(VOCAB, 64, torch.device("cpu"), str), torch.Generator().manual_seed(0), 0
    logits = torch.randn(64, VOCAB, generator=generator) * 2
    guide = guides.start(StructuredOutputsParams(regex="[a-z ]{5,20}"), frozenset({END}))
    free = [replace(make_seq(str(i), [3, 4], temperature=0.9), seed=i) for i in range(64)]
    chosen, _ = sampler.draw([(seq, 0) for seq in free], logits)
    kept, _ = sampler.draw([(replace(seq, guide=guide), 0) for seq in free], logits)
    for before, after in zip(chosen.tolist(), kept.tolist()):
        assert after in allowed(guide) and (after == before or before not in allowed(guide))
        stayed += after == before
    assert 5 < stayed < 60


def test_overlapped_and_synchronous_loops_agree(folder: Path) -> None:
    requests = [
        Request(each.prompt, replace(each.params, n=1, max_tokens=min(each.params.max_tokens, 60)))
        for each in random_requests(64, seed=9)
    ]
    options: dict[str, Any] = dict(max_model_len=256, num_kvcache_blocks=24, max_num_seqs=12)
    plain = run_requests(make_llm(folder, overlapped=False, **options), requests)
    overlapped, _ = run_overlapped(make_llm(folder, **options), requests)
    graphs = make_llm(folder, **options)
    add_graphs(graphs)
    with_graphs, _ = run_overlapped(graphs, requests)
    # 分开处只可能是几乎并列（4.5 节的“相等”），这里不许多于 1 个。
    # Where they part it is a close call, of which at most 1 is accepted here.
    for run in (overlapped, with_graphs):
        assert sum(a != b for a, b in zip(plain.tokens, run.tokens)) <= 1
        assert plain.seeds == run.seeds and run.num_preemptions > 0
        for each, output in zip(requests, run.outputs):
            if each.params.structured_outputs is not None and output.outputs[0].finish_reason == "stop":
                assert matches(each.params, output.outputs[0].text)


@pytest.mark.parametrize("loop", ["synchronous", "overlapped", "graphs"])
def test_free_requests_beside_a_guided_one_are_unchanged_bit_for_bit(folder: Path, loop: str) -> None:
    rng = random.Random(5)
    prompts = [[rng.randrange(2000) for _ in range(rng.randint(2, 20))] for _ in range(32)]
    free = [
        SamplingParams(max_tokens=24, ignore_eos=True, logprobs=3, seed=i, temperature=rng.choice([0.0, 0.9]),
                       top_p=rng.choice([1.0, 0.8]), frequency_penalty=rng.choice([0.0, 0.3])) for i in range(32)
    ]  # fmt: skip
    # 那一个跑得一样久，每步的形状就相同，逐位比较才有意义。
    # That one runs just as long, so that every step has the same shape and bits can be compared.
    with_one = list(free)
    with_one[9] = replace(free[9], structured_outputs=StructuredOutputsParams(regex="[a-z ]+"))
    results = []
    for params in (free, with_one):
        llm = make_llm(folder, loop != "synchronous", max_model_len=128, num_kvcache_blocks=300, max_num_seqs=32)
        if loop == "graphs":
            add_graphs(llm)
        outputs = llm.generate(prompts, params, progress=False)
        results.append([(each.outputs[0].token_ids, each.outputs[0].logprobs) for each in outputs])
    texts = [llm.engine.tokenizer.decode(tokens) for tokens, _ in (results[0][9], results[1][9])]
    assert re.fullmatch("[a-z ]+", texts[1]) and not re.fullmatch("[a-z ]+", texts[0])
    for number in range(32):
        assert number == 9 or results[0][number] == results[1][number], number


def test_a_step_with_a_guided_row_waits_for_its_token_and_others_do_not(folder: Path) -> None:
    llm = make_llm(folder, max_model_len=128, num_kvcache_blocks=64)
    core = llm.engine
    assert isinstance(core, OverlappedEngine)
    pending: list[tuple[bool, bool]] = []
    real = core._forward_and_sample

    def watched(schedule: Any) -> Any:
        guide = any(row.seq.guide is not None for row in schedule)
        pending.append((guide, any(row.seq.token_ids[-1] == PENDING_TOKEN for row in schedule)))
        return real(schedule)

    core._forward_and_sample = watched  # type: ignore[method-assign]
    params = [SamplingParams(max_tokens=40, ignore_eos=True), guided(regex="[0-9]{3}")]
    outputs = llm.generate([[5, 6], [7, 8]], params, progress=False)
    assert re.fullmatch("[0-9]{3}", outputs[1].outputs[0].text)
    assert len(outputs[0].outputs[0].token_ids) == 40
    assert not any(waits for guide, waits in pending if guide) and sum(guide for guide, _ in pending) >= 2
    assert sum(waits for guide, waits in pending if not guide) > 20


def test_no_guesses_for_a_guided_row(guides: Guides) -> None:
    for guide, logits in ((None, 3), (guides.start(StructuredOutputsParams(regex="a*"), frozenset({END})), 1)):
        scheduler = make_scheduler()
        seq = replace(make_seq("a", [1, 2, 3], max_tokens=9), guide=guide)
        seq.draft_ids = [7, 8]
        scheduler.add(seq)
        assert [row.num_logits for row in scheduler.schedule()] == [logits]


# ---- 与别的参数一起 ----
# ---- with other parameters ----


def test_how_outputs_end(tiny_llama: LLM) -> None:
    prompt = [{"role": "user", "content": "What is 23 + 45?"}]

    def ask(**options: Any) -> Any:
        return tiny_llama.chat(prompt, guided(**options), progress=False)[0].outputs[0]

    # 与 vLLM 一样：停止 token 是最后一个，不进文字。
    # As in vLLM: the stop token is the last one and not in the text.
    done = ask(regex="[0-9]{2}")
    assert (done.finish_reason, done.stop_reason, len(done.text)) == ("stop", None, 2) and done.token_ids[-1] == END
    # 没有停止 id：语法走到尽头就结束，最后一个 token 也是文字。
    # Without stop ids: it ends where the grammar does, and the last token is text, too.
    bare = ask(regex="[0-9]{2}", ignore_eos=True)
    assert bare.finish_reason == "stop" and bare.token_ids == done.token_ids[:-1] and bare.text == done.text
    # 没有尽头的，`ignore_eos` 就一直写到长度上限，始终合乎语法。
    # Where there is no end, `ignore_eos` goes on to the length limit and keeps to the grammar.
    long = ask(regex="[0-9]+", ignore_eos=True, max_tokens=9)
    assert long.finish_reason == "length" and len(long.token_ids) == 9 and long.text.isdigit()
    cut = ask(regex="[0-9]{30}", max_tokens=5)
    assert cut.finish_reason == "length" and len(cut.token_ids) == 5 and cut.text.isdigit()
    # 用户自己的停止 id，语法可以结束时才允许；写进 `stop_reason`。
    # The user's own stop id is allowed where the grammar may end, and named in `stop_reason`.
    own = ask(regex="[0-9]{2}", ignore_eos=True, stop_token_ids=[3])
    assert own.token_ids[-1] == 3 and own.stop_reason == 3 and own.text == done.text
    # 停止字符串照旧：可以在语法结束之前停下。
    # Stop strings as ever: they may end it before the grammar does.
    digit = ask(regex="x[0-9]{5}", stop=["x"])
    assert digit.text == "" and digit.stop_reason == "x"


def test_outputs_of_one_request_have_states_of_their_own(small: LLM) -> None:
    params = guided(n=8, seed=3, temperature=1.5, choice=["yes", "no", "maybe", "perhaps"])
    outputs = small.generate([[5] * 40], params, progress=False)[0].outputs
    assert len({output.text for output in outputs}) > 1
    assert all(output.text in ("yes", "no", "maybe", "perhaps") for output in outputs)
    alone = small.generate([[5] * 40], replace(params, n=1, seed=6), progress=False)[0].outputs[0]
    assert outputs[3].token_ids == alone.token_ids


def test_log_probabilities_are_those_of_the_raw_scores(small: LLM) -> None:
    params = guided(regex="[0-9]{4}", logprobs=2)
    output = small.generate([[5, 6, 7]], params, progress=False)[0].outputs[0]
    free = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20)
    tokens = [5, 6, 7]
    for token, report in zip(output.token_ids, output.logprobs or []):
        raw = small.generate([tokens], free, progress=False)[0].outputs[0].logprobs[0]  # type: ignore[index]
        ranked = [i for i, entry in raw.items() if entry.rank in (1, 2)]
        # 最可能的两个是模型想说的，不是语法允许的。
        # The likeliest two are what the model would say, not what the grammar allows.
        assert set(report) == {token, *ranked}
        for i in ranked:
            assert report[i].logprob == pytest.approx(raw[i].logprob, abs=1e-4)
        tokens.append(token)
    assert any(report[token].rank != 1 for token, report in zip(output.token_ids, output.logprobs or []))


def test_streams_give_the_same_text(tiny_llama: LLM) -> None:
    params = guided(json={"type": "array", "items": {"enum": ["ab", "你好", 3]}, "maxItems": 3, "minItems": 1})
    whole = tiny_llama.generate("list", params, progress=False)[0].outputs[0]
    stream = tiny_llama.stream("list", params)
    pieces = []
    try:
        while True:
            pieces.append(next(stream))
    except StopIteration as end:
        assert end.value == whole.finish_reason == "stop"
    assert "".join(pieces) == whole.text and len(pieces) > 1
    # 语法走到尽头、没有停止 token 时，最后一个 token 的文字也在。
    # Where the grammar ends without a stop token, the last token's text is there as well.
    assert "".join(tiny_llama.stream("list", replace(params, ignore_eos=True))) == whole.text


def test_penalties_apply_among_what_is_allowed(small: LLM) -> None:
    params = guided(regex="[ab]{12}", max_tokens=40)
    plain = small.generate([[5, 6]], params, progress=False)[0].outputs[0]
    punished = small.generate([[5, 6]], replace(params, frequency_penalty=2.0), progress=False)[0].outputs[0]
    assert re.fullmatch("[ab]{12}", punished.text) and re.fullmatch("[ab]{12}", plain.text)
    counts = [max(map(output.token_ids.count, output.token_ids)) for output in (plain, punished)]
    assert counts[1] < counts[0]


def test_a_grammar_that_exceeds_a_limit_on_the_way_ends_with_an_error(small: LLM, tiny_llama: LLM) -> None:
    """开头还行，写了一个 token 之后，llguidance 说它太复杂：这一份以 "error" 结束，别人照常。

    All is well at the start, and after a token llguidance finds it too complex: it ends with "error", others go on.
    """
    for options in ({}, {"ignore_eos": True}, {"n": 2}):
        params = [guided(regex="a{1000000}", **options), SamplingParams(max_tokens=12, ignore_eos=True)]
        broken, other = small.generate([[5], [6]], params, progress=False)
        for output in broken.outputs:
            assert output.finish_reason == "error" and 1 <= len(output.token_ids) < 5 and set(output.text) == {"a"}
        assert len(other.outputs[0].token_ids) == 12
    assert_all_free(small.engine.block_manager)
    with pytest.raises(ValueError, match="or a grammar left no token"):
        list(tiny_llama.stream("a", guided(regex="a{1000000}")))


def test_prefix_hits_leave_the_grammar_alone(small: LLM) -> None:
    prompt = [9] * 50
    first, second = (small.generate([prompt], guided(regex="[a-z]{6}"), progress=False)[0] for _ in range(2))
    assert second.num_cached_tokens >= 32
    assert first.outputs[0].text == second.outputs[0].text and re.fullmatch("[a-z]{6}", first.outputs[0].text)


@pytest.mark.parametrize(
    "grammar, pattern",
    [
        ('start: "a" | "b" start', "b*a"),
        ('root ::= "x" root | "y"', "x*y"),
        ('start: NAME "=" NUMBER\nNAME: /[a-z]{1,3}/\nNUMBER: /[0-9]{1,2}/', "[a-z]{1,3}=[0-9]{1,2}"),
    ],
)
def test_grammars_in_lark_and_gbnf(small: LLM, grammar: str, pattern: str) -> None:
    outputs = small.generate([[5]], guided(grammar=grammar, n=4, temperature=2.0, seed=1), progress=False)[0].outputs
    assert all(re.fullmatch(pattern, output.text) and output.finish_reason == "stop" for output in outputs)


# ---- 门口 ----
# ---- at the door ----

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: StructuredOutputsParams(), "takes one of json, regex, choice, grammar, got none"),
    "two": (lambda: StructuredOutputsParams(regex="a", choice=["a"]), "got regex and choice"),
    "no choices": (lambda: StructuredOutputsParams(choice=[]), "choice=.. must be a list of strings, at least one"),
    "a number": (lambda: StructuredOutputsParams(choice=["a", 1]), "must be a list of strings"),  # type: ignore[list-item]
    "a string as choices": (lambda: StructuredOutputsParams(choice="ab"), "must be a list of strings"),
    "no string": (lambda: StructuredOutputsParams(regex=5), "regex=5 must be a string"),  # type: ignore[arg-type]
    "a list as schema": (lambda: StructuredOutputsParams(json="[1]"), "json is no JSON schema.*an object or a boolean"),
    "a number as schema": (lambda: StructuredOutputsParams(json=3), "object or a boolean, got int"),  # type: ignore[arg-type]
    "no JSON": (lambda: StructuredOutputsParams(json="{"), "json is no JSON schema"),
    "a set in a schema": (lambda: StructuredOutputsParams(json={"enum": {1}}), "not JSON serializable"),
    "too long": (lambda: StructuredOutputsParams(regex="a" * (MAX_CHARS + 1)), "100001 characters: use at most 100000"),
    "long choices": (lambda: StructuredOutputsParams(choice=["abcd"] * 25001), "100004 characters"),
    "long schema": (lambda: StructuredOutputsParams(json=" " * MAX_CHARS + "{}"), "100002 characters"),
    "not the parameters": (
        lambda: SamplingParams(structured_outputs={"regex": "a"}),  # type: ignore[arg-type]
        "structured_outputs must be StructuredOutputsParams, got dict",
    ),
    "min_tokens": (lambda: guided(regex="a", min_tokens=1), "min_tokens=1 does not go with structured_outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_are_refused_at_construction(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unclosed group": (dict(regex="a(("), "this regex is not usable: .*unclosed group"),
    "look-ahead": (dict(regex="(?=a)b"), "look-around"),
    "a surrogate": (dict(regex="\ud800"), "surrogates not allowed"),
    "a surrogate as a choice": (dict(choice=["\ud800"]), "this choice is not usable"),
    "nothing matches": (dict(regex="[^\\s\\S]"), "nothing matches it"),
    "deep": (dict(regex="(" * 5000 + "a" + ")" * 5000), "this regex is not usable"),
    "unknown type": (dict(json={"type": "strin"}), "this json is not usable: Invalid type: strin"),
    "false": (dict(json=False), "schema is false"),
    "unknown keyword": (dict(json={"not": {"type": "string"}}), "Unimplemented keys"),
    "unsatisfiable": (dict(json={"type": "string", "minLength": 5, "maxLength": 2}), "Unsatisfiable schema"),
    "a far reference": (dict(json={"$ref": "http://127.0.0.1:1/x"}), "does not fetch resources"),
    "unknown rule": (dict(grammar="start: x"), "this grammar is not usable: .*unknown name"),
    "no grammar": (dict(grammar="foo"), "this grammar is not usable"),
    "nothing but the end": (dict(regex="", ignore_eos=True), "allows no first token"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_grammars_are_refused_at_the_door(small: LLM, name: str) -> None:
    options, message = BAD[name]
    params = guided(**options)
    with pytest.raises(ValueError, match=message) as caught:
        small.generate([[5], [6]], [SamplingParams(), params], progress=False)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 450
    assert str(caught.value).startswith("prompt 2 of 2: structured_outputs")
    with pytest.raises(ValueError, match=message):
        small.stream([5], params)
    with pytest.raises(ValueError, match=message):
        small.engine.add_request([5], params)
    assert not small.engine.has_unfinished() and small.engine.requests.ids_in_use == set()
    # 大家共用的语法不对，不是某一个提示词的错。
    # Where all share the grammar, it is no fault of any prompt.
    if "ignore_eos" not in options:
        with pytest.raises(ValueError, match=message) as caught:
            small.generate([[5], [6]], params, progress=False)
        assert str(caught.value).startswith("structured_outputs")


def test_a_panic_is_an_error_of_the_request(small: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    import llguidance

    class PanicException(BaseException):
        pass

    def panic(*_: Any, **__: Any) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(llguidance, "LLMatcher", panic)
    with pytest.raises(ValueError, match="this regex is not usable: index out of bounds"):
        small.generate([[5]], guided(regex="never compiled before"), progress=False)
    monkeypatch.setattr(llguidance, "grammar_from", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        small.generate([[5]], guided(regex="never compiled before"), progress=False)


def test_without_the_package(small: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match="needs the package llguidance: pip install llguidance"):
        small.generate([[5]], guided(regex="not compiled without it"), progress=False)


def test_without_a_guided_request_nothing_of_it_runs() -> None:
    """新的进程：没有导入 llguidance；`guides.py` 里只执行了建 `Guides` 和查参数的函数。

    A new process: llguidance is not imported; of the functions in `guides.py` only those that make `Guides` and check
    the parameters run.
    """
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from mini_llama import LLM, SamplingParams\n"
        "calls = set()\n"
        "def note(frame, event, arg):\n"
        "    if frame.f_code.co_filename.endswith('guides.py'): calls.add(frame.f_code.co_name)\n"
        "sys.setprofile(note)\n"
        "llm = LLM(device='cpu', num_kvcache_blocks=64, max_model_len=256)\n"
        "llm.generate(['a', 'b'], SamplingParams(max_tokens=4, min_tokens=2, presence_penalty=1.0), progress=False)\n"
        "sys.setprofile(None)\n"
        "print(sorted(calls), 'llguidance' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "['__init__', 'check_wanted'] False"


def test_equal_grammars_are_compiled_once_and_few_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[StructuredOutputsParams] = []
    real = Guides._compile

    def compile(self: Guides, wanted: StructuredOutputsParams) -> Any:
        compiled.append(wanted)
        return real(self, wanted)

    monkeypatch.setattr(Guides, "_compile", compile)
    guides = Guides(Tokenizer(EMBEDDED_MODEL), VOCAB)
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for _ in range(5):
        guides.start(StructuredOutputsParams(json=schema), frozenset({END}))
        guides.start(StructuredOutputsParams(json=json.dumps(schema)), frozenset({3}))
    assert len(compiled) == 1
    # 之后再改字典，什么也不影响。
    # Changing the dict later has no effect.
    params = StructuredOutputsParams(json=schema, choice=None)
    schema["type"] = "nonsense"
    guides.start(params, frozenset({END}))
    assert len(compiled) == 1 and hash(params) == hash(replace(params))
    for number in range(100):
        guides.start(StructuredOutputsParams(regex=f"a{{{number + 1}}}"), frozenset({END}))
    assert guides.compile.cache_info().currsize <= 32  # type: ignore[attr-defined]


# ---- 命令行 ----
# ---- the command line ----


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "array", "items": {"enum": [68, 69]}, "minItems": 2, "maxItems": 2}')
    grammar.write_text('start: "sum: " /[0-9]{2}/\n')
    asked = ["--prompt", "What is 23 + 45?"]
    for options, answer in {
        ("--choice", "68 exactly", "--choice", "none"): "68 exactly",
        ("--regex", "[6-9]{2}"): "[6-9]{2}",
        ("--json-schema", '{"const": 68}'): "68",
        ("--json-schema", str(schema)): r"\[\s*6[89]\s*,\s*6[89]\s*\]",
        ("--grammar", str(grammar)): "sum: [0-9]{2}",
    }.items():
        assert mini_llama.main([*asked, *options]) == 0
        assert re.search(f"> What is 23 \\+ 45\\?\n{answer}\n", capsys.readouterr().out)
    # 写错的，不等权重读完就报错。
    # Mistakes are told before the weights are read.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_llama, "LLM", lambda *_, **__: pytest.fail("the weights were read"))
        for wrong, message in {
            ("--json-schema", "no such file"): "--json-schema 'no such file' cannot be read as a text file",
            ("--json-schema", str(grammar)): "json is no JSON schema",
            ("--grammar", str(tmp_path)): "cannot be read as a text file",
            ("--grammar", "/dev/zero"): "grammar has 100001 characters: use at most 100000",
            ("--regex", "a(("): "this regex is not usable",
            ("--regex", "a", "--choice", "b"): "got regex and choice",
        }.items():
            assert mini_llama.main([*asked, *wrong]) == 2
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1


def test_two_backends_keep_to_the_same_grammar(capsys: pytest.CaptureFixture[str]) -> None:
    assert mini_llama.main(["--compare", "torch", "sdpa", "--prompt", "hi", "--regex", "[0-9]{4}", "--seed", "1"]) == 0
    assert "tokens equal" in capsys.readouterr().out


def test_public_names_and_a_beam_search_has_no_grammar() -> None:
    assert mini_llama.StructuredOutputsParams is StructuredOutputsParams
    assert "StructuredOutputsParams" in mini_llama.__all__
    with pytest.raises(TypeError):
        mini_llama.BeamSearchParams(beam_width=2, max_tokens=3, structured_outputs=None)  # type: ignore[call-arg]


# ---- asyncio ----
# ---- asyncio ----


@pytest.mark.parametrize("overlapped", [False, True])
def test_async_streams_and_their_errors(folder: Path, overlapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if overlapped:
        import serving.llm

        monkeypatch.setattr(serving.llm, "create_engine", OverlappedEngine)
    threads: set[int] = set()
    real = Guides._compile

    def compile(self: Guides, wanted: StructuredOutputsParams) -> Any:
        threads.add(threading.get_ident())
        return real(self, wanted)

    monkeypatch.setattr(Guides, "_compile", compile)

    async def last(llm: AsyncLLM, params: SamplingParams) -> Any:
        return [result async for result in llm.generate([5, 6, 7], params)][-1].outputs[0]

    async def main() -> None:
        async with AsyncLLM(folder, device="cpu", max_model_len=128, num_kvcache_blocks=64, strict=True) as llm:
            wanted = [guided(regex="[0-9]{3}"), guided(choice=["yes", "no"], temperature=1.0), guided(regex="a((")]
            free = SamplingParams(max_tokens=20, ignore_eos=True)
            results = await asyncio.gather(*(last(llm, each) for each in [*wanted, free]), return_exceptions=True)
            assert re.fullmatch("[0-9]{3}", results[0].text) and results[1].text in ("yes", "no")
            assert isinstance(results[2], ValueError) and "unclosed group" in str(results[2])
            assert len(results[3].token_ids) == 20
            # 取消一个写到一半的，别人照常。
            # Abort one that is half written; others go on.
            async for _ in llm.generate([5], guided(regex="[0-9]+", max_tokens=100, ignore_eos=True), "long"):
                await llm.abort("long")
            assert (await last(llm, guided(regex="ab"))).text == "ab"

    asyncio.run(main())
    assert threads and threading.main_thread().ident not in threads


def test_names_the_seams_are_those_that_count() -> None:
    """两个采样器用的就是这里的函数。

    Both samplers use the functions tested here.
    """
    assert engine.sampler.ban is engine.guides.ban
    assert kernel_sampler.packed_masks is engine.guides.packed_masks
