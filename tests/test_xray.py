"""X 光：记录重放后账目正确、Chrome trace、网页（无界面 Chromium）、命令行，以及不用时一行也不执行。

X-ray: the recording replayed keeps the books right, the Chrome trace, the page in a headless Chromium, the command
line, and no line of it executed when it is off.
"""

import base64
import io
import json
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import browser, find_chromium
from engine_helpers import ROOT, python
from rich.console import Console
from rich.table import Table
from rich.text import Text

import mini_llama
from engine.block_manager import num_blocks_needed
from engine.gpu.overlapped_engine import OverlappedEngine
from engine.guides import StructuredOutputsParams
from engine.llm_engine import LLMEngine
from engine.sampling_params import SamplingParams
from engine.scheduler import ScheduledSequence
from engine.sequence import Sequence
from layers.ranks import Ranks
from serving.llm import LLM
from tools.xray import Recorder, Watch, observe, write_page, write_trace
from tools.xray.chrome_trace import trace_events
from tools.xray.events import SOURCES, Step, source_line

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = "A KV cache stores the keys and values of all earlier tokens in every layer. "
PROMPTS = [SHARED + "Why?", SHARED + "What for?", "what is a block table?", "</script><b>1 & 2</b> 中国"]
PARAMS = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
GRAMMAR = StructuredOutputsParams(regex="[0-9]{2},[0-9]{2}")


def small_llm(backend: str = "torch", **options: Any) -> LLM:
    """一个挤到要抢占的小块池。

    A pool so small that it preempts.
    """
    sizes = {"num_kvcache_blocks": 14, "kvcache_block_size": 8, "max_num_batched_tokens": 16, **options}
    return LLM(backend=backend, device="cpu", strict=True, **sizes)


def record(llm: LLM, prompts: list[str] = PROMPTS, params: SamplingParams = PARAMS) -> dict[str, Any]:
    with Recorder(llm.engine) as recorder:
        llm.generate(list(prompts), params, progress=False)
    # 与写进文件的完全一样：经过一次 JSON。
    # Just what goes into the file: through JSON once.
    return json.loads(json.dumps(recorder.recording()))


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    torch.set_num_threads(1)
    return record(small_llm())


# ---- 记录 ----
# ---- the recording ----


def kinds(recording: dict[str, Any]) -> Counter[str]:
    return Counter(event["kind"] for step in recording["steps"] for event in step["events"])


def test_the_small_pool_shows_what_there_is_to_see(recording: dict[str, Any]) -> None:
    assert {"arrive", "admit", "hit", "wait", "grow", "evict", "preempt", "write", "chunk", "sample", "register",
            "finish", "free"} <= set(kinds(recording))  # fmt: skip
    assert recording["steps"][-1]["preemptions"] == kinds(recording)["preempt"] > 0
    assert recording["steps"][-1]["hits"] > 0
    assert any(count > 1 for step in recording["steps"] for count in step["refs"].values()), "a block is shared"


def test_snapshots_keep_the_invariants_of_blocks(recording: dict[str, Any]) -> None:
    everything = set(range(recording["num_blocks"]))
    size = recording["block_size"]
    for step in recording["steps"]:
        held = Counter(block for table in step["tables"].values() for block in table)
        assert {int(block): count for block, count in step["refs"].items()} == held
        assert len(step["free"]) == step["num_free"] == len(set(step["free"]))
        assert set(step["free"]) | set(held) == everything and not set(step["free"]) & set(held)
        assert all(len(set(table)) == len(table) for table in step["tables"].values())
        assert all(count <= len(step["tables"][name]) * size for name, count in step["computed"].items())
        assert sum(row["count"] for row in step["rows"]) <= recording["budget"]
        written = []
        for row in step["rows"]:
            slots = [slot for first, count in row["slots"] for slot in range(first, first + count)]
            table = step["tables"][row["request"]]
            places = range(row["start"], row["start"] + row["count"])
            assert slots == [table[p // size] * size + p % size for p in places]
            written += slots
        # 共用的块从不写：同一步里没有两行写同一个槽位，也没有谁写进引用计数大于 1 的块。
        # A shared block is never written: no slot twice in a step, and none in a block of a reference count above 1.
        assert len(written) == len(set(written))
        assert all(held[slot // size] == 1 for slot in written)
    assert recording["steps"][-1]["num_free"] == recording["num_blocks"]


def test_events_replayed_give_the_snapshots(recording: dict[str, Any]) -> None:
    tables: dict[str, list[int]] = {}
    for number, step in enumerate(recording["steps"]):
        pictured = False
        for event in [*step["events"], {"kind": "end"}]:
            name, kind = event.get("request"), event["kind"]
            # 快照取自调度之后、前向之前：第一个 `write` 事件处。
            # The snapshot is taken after scheduling and before the forward pass: at the first `write` event.
            if kind in ("write", "end") and not pictured:
                pictured = True
                assert {k: v for k, v in tables.items() if v} == {k: v for k, v in step["tables"].items() if v}, number
            elif kind in ("hit", "grow"):
                tables.setdefault(name, []).extend(event["blocks"])
            elif kind == "free":
                assert tables[name] == event["blocks"]
                tables[name] = []


DETAILS = {
    "admit": ["tokens"], "hit": ["blocks"], "wait": ["needed", "hit", "free"], "grow": ["blocks", "tokens"],
    "evict": ["blocks"], "preempt": ["lost", "beneficiary"], "free": ["blocks"],
}  # fmt: skip


def eyewitness(engine: LLMEngine, name: Callable[[Sequence], str], patch: pytest.MonkeyPatch) -> list[list[Any]]:
    """站在每个内部方法旁边，当场记下发生了什么 / stand beside each inner method and note what happens on the spot"""
    scheduler, manager = engine.scheduler, engine.block_manager
    seen: list[list[Any]] = []
    served = ""

    def can_grow(original: Callable[..., bool], seq: Sequence, num_tokens: int) -> bool:
        nonlocal served
        served = name(seq)
        return original(seq, num_tokens)

    def preempt_last(original: Callable[[], Sequence]) -> Sequence:
        seq = scheduler.running[-1]
        seen.append(["preempt", name(seq), seq.num_computed_tokens, served])
        return original()

    def can_allocate(original: Callable[..., bool], seq: Sequence, hits: list[int], num_tokens: int) -> bool:
        fits = original(seq, hits, num_tokens)
        if not fits:
            needed = num_blocks_needed(num_tokens, manager.block_size)
            seen.append(["wait", name(seq), needed, len(hits), manager.num_free_blocks])
        return fits

    def allocate(original: Callable[..., None], seq: Sequence, hits: list[int], num_tokens: int) -> None:
        seen.append(["admit", name(seq), num_tokens - manager.block_size * len(hits)])
        seen.extend([["hit", name(seq), hits]] if hits else [])
        original(seq, hits, num_tokens)

    def grow(original: Callable[..., None], seq: Sequence, num_tokens: int) -> None:
        held = len(seq.block_table)
        original(seq, num_tokens)
        if seq.block_table[held:]:
            seen.append(["grow", name(seq), seq.block_table[held:], num_tokens])

    def take_free_block(original: Callable[[], int]) -> int:
        named = set(manager.cached.values())
        block_id = original()
        seen.extend([["evict", None, [block_id]]] if block_id in named else [])
        return block_id

    def free(original: Callable[[Sequence], None], seq: Sequence) -> None:
        seen.extend([["free", name(seq), list(seq.block_table)]] if seq.block_table else [])
        original(seq)

    for owner, method, around in (
        (scheduler, "_preempt_last", preempt_last), (manager, "can_grow", can_grow), (manager, "grow", grow),
        (manager, "can_allocate", can_allocate), (manager, "allocate", allocate), (manager, "free", free),
        (manager, "_take_free_block", take_free_block),
    ):  # fmt: skip
        patch.setattr(owner, method, partial(around, getattr(owner, method)))
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_events_from_snapshots_are_what_the_methods_did(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    budget = rng.choice([5, 16, 40])
    engine = small_llm(num_kvcache_blocks=12, max_num_batched_tokens=budget, max_num_seqs=5, seed=seed).engine
    with Recorder(engine) as recorder:
        seen = eyewitness(engine, recorder.name, monkeypatch)
        for number in range(40):
            if rng.random() < 0.4:
                head = [7, 8, 9] * 6 if rng.random() < 0.6 else []
                prompt = head + [rng.randrange(1000) for _ in range(rng.randrange(1, 30))]
                params = SamplingParams(max_tokens=rng.randrange(1, 30), ignore_eos=True, n=rng.choice([1, 1, 2]))
                engine.add_request(prompt, params, str(number))
            if rng.random() < 0.1:
                engine.abort(str(rng.randrange(number + 1)))
            engine.step()
        while engine.has_unfinished():
            engine.step()
    events = [event for step in recorder.steps for event in step.events if event["kind"] in DETAILS]
    assert [[e["kind"], e["request"], *(e[key] for key in DETAILS[e["kind"]])] for e in events] == seen
    assert {kind for kind, *_ in seen} == set(DETAILS)


def guessing_recording(plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """每步给解码的序列 3 个猜测，有对有错 / each step gives decoding sequences 3 guesses, some right and some wrong"""
    engine = (llm := small_llm(num_kvcache_blocks=40)).engine
    original = engine.scheduler.schedule

    def schedule() -> list[ScheduledSequence]:
        for seq in engine.scheduler.running:
            if done := seq.num_output_tokens:
                right = plain["requests"][seq.request_id]["tokens"][seq.num_tokens : seq.num_tokens + 3]
                seq.draft_ids = [token + (done + i) % 5 // 4 for i, token in enumerate(right)]
        return original()

    monkeypatch.setattr(engine.scheduler, "schedule", schedule)
    return record(llm)


def weights(request: dict[str, Any], position: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(request["attention"][position])), dtype=torch.uint8).int()


def test_a_row_with_guesses_yields_several_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = record(small_llm(num_kvcache_blocks=40))
    recording = guessing_recording(plain, monkeypatch)
    wrong = 0
    for name, request in recording["requests"].items():
        tokens = request["tokens"][: request["num_prompt"]]
        for row in (row for step in recording["steps"] for row in step["rows"] if row["request"] == name):
            assert len(row["top"]) == len(row["probabilities"]) == len(row["tokens"]) <= row["num_logits"]
            if row["guesses"]:
                assert row["num_logits"] == row["count"] == 1 + len(row["guesses"])
                # 猜对的都留下，外加猜错处的那个。
                # All right guesses stay, and the token where one was wrong.
                assert row["tokens"][:-1] == row["guesses"][: len(row["tokens"]) - 1]
                wrong += row["tokens"] != [*row["guesses"], row["tokens"][-1]]
            tokens += row["tokens"]
        assert tokens == request["tokens"] == plain["requests"][name]["tokens"]
        # 猜错的位置，留下的是重算之后的权重：与没有猜测时相同。
        # Where a guess was wrong the weights of the later computation stay: they are those of a run without guesses.
        assert request["attention"].keys() == plain["requests"][name]["attention"].keys()
        for position in request["attention"]:
            assert (weights(request, position) - weights(plain["requests"][name], position)).abs().max() <= 2
    assert wrong and kinds(recording)["sample"] == len(PROMPTS) * PARAMS.max_tokens
    for step in recording["steps"]:
        # 每个带猜测的行一件事：猜了什么，对了几个，得到几个。
        # An event for each row with guesses: what they were, how many were right, how many tokens came.
        told = {event["request"]: event for event in step["events"] if event["kind"] == "accept"}
        assert told.keys() == {row["request"] for row in step["rows"] if row["guesses"]}
        for row in (row for row in step["rows"] if row["guesses"]):
            event = told[row["request"]]
            assert event["guesses"] == row["guesses"] and event["tokens"] == len(row["tokens"])
            assert row["guesses"][: event["right"]] == row["tokens"][: event["right"]]
            assert event["right"] >= event["tokens"] - 1
    assert max(len(row["tokens"]) for step in recording["steps"] for row in step["rows"]) == 4
    # 解码行带着猜测，也还是解码。
    # A decode row with guesses is a decode row still.
    spans = [e["name"] for e in trace_events(recording) if e["ph"] == "X" and e["pid"] == 2]
    assert spans.count("prefill") == len(PROMPTS)


def guided_recording() -> dict[str, Any]:
    """一个有语法的请求，旁边是没有的 / a request with a grammar beside one without"""
    llm, params = small_llm(), replace(PARAMS, ignore_eos=False, structured_outputs=GRAMMAR)
    with Recorder(llm.engine) as recorder:
        llm.generate(PROMPTS[:2], [params, PARAMS], progress=False)
    return json.loads(json.dumps(recorder.recording()))


def test_a_guided_row_shows_what_its_grammar_allows() -> None:
    recording = guided_recording()
    rows = [row for step in recording["steps"] for row in step["rows"] if row["num_logits"]]
    free, guided = ([row for row in rows if row["request"] == name] for name in ("1", "0"))
    assert all(row["num_allowed"] == 0 and row["allowed"] == [] for row in free) and len(free) == 24
    text = ""
    for row in guided:
        allowed = [recording["tokens"][str(i)] for i in row["allowed"]]
        assert row["tokens"][0] in row["allowed"] and len(allowed) == min(row["num_allowed"], 10)
        # 选中的是允许的里面最可能的一个：贪心。
        # Chosen is the likeliest of those allowed: greedy.
        assert row["tokens"][0] == row["allowed"][0]
        assert all(each.isdigit() or each == "," or each.startswith("<|") for each in allowed), allowed
        if len(text) >= 5:
            assert row["num_allowed"] == 3 and all(each.startswith("<|") for each in allowed)
        text += recording["tokens"][str(row["tokens"][0])]
    assert recording["requests"]["0"]["finish_reason"] == "stop" and len(recording["requests"]["0"]["text"]) == 5


def test_tokens_of_the_steps_are_those_of_the_requests() -> None:
    llm = small_llm()
    recording = record(llm)
    plain = small_llm().generate(PROMPTS, PARAMS, progress=False)
    for name, output in zip(recording["requests"], plain):
        request = recording["requests"][name]
        sampled = [token for step in recording["steps"] for row in step["rows"] if row["request"] == name
                   for token in row["tokens"]]  # fmt: skip
        # 记录不改变结果，各步采到的接起来就是输出。
        # Recording changes no result, and what the steps sampled, joined, is the output.
        assert sampled == output.outputs[0].token_ids == request["tokens"][request["num_prompt"] :]
        assert request["text"] == output.outputs[0].text
        assert request["ends"][-1] <= len(request["text"]) and request["ends"] == sorted(request["ends"])
    for step in recording["steps"]:
        for row in step["rows"]:
            assert row["num_logits"] == len(row["tokens"]) == len(row["top"]) == len(row["probabilities"]) <= 1
            for token, probability, top in zip(row["tokens"], row["probabilities"], row["top"]):
                # 贪心：选中的就是概率最高的。
                # Greedy: the chosen one is the likeliest.
                assert top[0] == [token, probability]
                assert len(top) == 5 and sum(p for _, p in top) <= 1.001


def test_attention_rows_sum_to_one_and_only_the_reference_backend_has_them(recording: dict[str, Any]) -> None:
    layers, heads = recording["num_layers"], recording["num_heads"]
    first = recording["requests"]["0"]
    assert set(map(int, first["attention"])) == set(range(len(first["tokens"]) - 1)), "all computed positions"
    # 命中前缀的请求没有重算开头的块，那里也就没有权重；第 1 个请求命中了几个整块。
    # A request that hit a prefix did not compute those blocks and has no weights there; request 1 hit whole blocks.
    hits = {event["request"] for step in recording["steps"] for event in step["events"] if event["kind"] == "hit"}
    assert hits
    for position in first["attention"]:
        sums = weights(first, position).reshape(layers * heads, int(position) + 1).sum(1) / 255.0
        assert (sums - 1).abs().max() < (int(position) + 1) / 2 / 255 + 1e-6
    other = record(small_llm("sdpa"), PROMPTS[:1])
    assert not other["requests"]["0"]["attention"]


def test_every_output_of_n_and_aborts_are_recorded() -> None:
    llm = small_llm(num_kvcache_blocks=32)
    with Recorder(llm.engine) as recorder:
        llm.engine.add_request(SHARED, SamplingParams(n=2, max_tokens=4, seed=1, ignore_eos=True), "pair")
        llm.engine.add_request("bye", SamplingParams(max_tokens=50, ignore_eos=True), "gone")
        llm.engine.step()
        llm.engine.abort("gone")
        while llm.engine.has_unfinished():
            llm.engine.step()
    recording = recorder.recording()
    assert set(recording["requests"]) == {"pair", "pair.1", "gone"}
    assert recording["requests"]["gone"]["finish_reason"] == "abort"
    assert kinds(recording)["fork"] == 1 and kinds(recording)["abort"] == 1


def test_every_event_names_a_place_in_the_source(recording: dict[str, Any]) -> None:
    for kind, symbol in SOURCES.items():
        path, line = symbol.split("::")[0], recording["sources"][kind]["line"]
        text = (ROOT / path).read_text(encoding="utf-8").splitlines()[line - 1]
        assert symbol.rpartition(".")[2].rpartition(":")[2] in text, symbol
    with pytest.raises(ValueError, match="not in the source"):
        source_line("engine/scheduler.py::Scheduler.nothing")


def test_detaching_leaves_the_engine_as_it_was() -> None:
    llm = small_llm()
    engine = llm.engine
    owners = [engine, engine.scheduler, engine.block_manager, engine.model_runner, engine.sampler, engine.requests]
    layers = engine.model_runner.model.attention_layers()
    before = [set(vars(owner)) for owner in owners]
    with Recorder(engine) as recorder:
        wrapped = set[str]().union(*(set(vars(owner)) - was for owner, was in zip(owners, before)))
        assert wrapped == {"abort", "plan", "execute", "choose", "update"}
        assert all(layer._forward_hooks for layer in layers)
    assert [set(vars(owner)) for owner in owners] == before
    assert not any(layer._forward_hooks for layer in layers)
    llm.generate(["hello"], PARAMS, progress=False)
    assert len(recorder.steps) == 1, "only the last picture"


def test_a_long_run_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.xray.recorder.MAX_STEP_BYTES", 20_000)
    monkeypatch.setattr("tools.xray.recorder.MAX_ATTENTION_BYTES", 10_000)
    llm = small_llm()
    recording = record(llm)
    assert recording["truncated"] and 1 < len(recording["steps"]) < 40
    assert len(json.dumps(recording["steps"])) < 30_000
    assert sum(len(t) for r in recording["requests"].values() for t in r["attention"].values()) < 14_000


def test_the_overlapped_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="enforce_eager"):
        Recorder(OverlappedEngine.__new__(OverlappedEngine))


def test_the_guesses_that_the_chapter_tells_of() -> None:
    drafts = {"model": "tiny-poet-draft"}
    llm = LLM("tiny-poet", backend="torch", device="cpu", num_kvcache_blocks=32, speculative_config=drafts)
    with Recorder(llm.engine) as recorder:
        llm.generate("singer:", SamplingParams(temperature=0.0), progress=False)
    told = {n: event for n, step in enumerate(recorder.steps) for event in step.events if event["kind"] == "accept"}
    assert {n: (event["right"], event["tokens"]) for n, event in told.items() if n in (1, 3, 4)} == {
        1: (4, 5), 3: (0, 1), 4: (1, 1),
    }
    assert told[4]["guesses"][0] in llm.engine.requests.eos_token_ids


# ---- Chrome trace ----


def test_chrome_trace(recording: dict[str, Any], tmp_path: Path) -> None:
    write_trace(recording, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert events == json.loads(json.dumps(trace_events(recording)))
    steps = [e for e in events if e["ph"] == "X" and e["name"].startswith("step ")]
    assert len(steps) == len(recording["steps"]) - 1
    for name in ("schedule", "batch", "forward", "sample", "update"):
        phases = [e for e in events if e["ph"] == "X" and e["name"] == name]
        assert len(phases) == len(steps)
        # 每个阶段都在它那一步之内（取整误差 2 微秒）。
        # Each phase lies within its step, but for 2 microseconds of rounding.
        for phase, step in zip(phases, steps):
            assert step["ts"] - 2 <= phase["ts"] and phase["ts"] + phase["dur"] <= step["ts"] + step["dur"] + 2
    instants = Counter(e["name"] for e in events if e["ph"] == "i")
    assert instants == {kind: count for kind, count in kinds(recording).items() if kind in instants}
    assert instants["preempt"] and instants["hit"] and instants["finish"] == len(PROMPTS)
    spans = {e["name"] for e in events if e["ph"] == "X" and e["pid"] == 2}
    assert spans == {"waiting", "prefill", "decode"}
    assert {e["name"] for e in events if e["ph"] == "C"} == {"blocks", "queues"}
    assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")


# ---- 终端 ----
# ---- the terminal ----


def test_watch_draws_pool_queues_and_text() -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    llm = small_llm()
    seen = []
    watch = Watch(console)
    with watch, Recorder(llm.engine, lambda r, s: (seen.append(watch.render(r, s)), watch.show(r, s))):  # type: ignore[func-returns-value]
        llm.generate(PROMPTS, PARAMS, progress=False)
    for each in seen:
        console.print(each)
    text = console.export_text()
    assert "■" in text and "▣" in text and "preemptions 抢占 1" in text and "waiting 等待" in text
    assert "guesses" not in text
    assert "allowed" not in text
    with watch, Recorder(llm.engine, lambda r, s: console.print(watch.render(r, s))):
        llm.generate(PROMPTS[:1], replace(PARAMS, structured_outputs=GRAMMAR), progress=False)
    assert re.search(r"\(允许 / allowed: \d+\)", console.export_text())


def test_watch_strikes_wrong_guesses_out() -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    llm = small_llm(num_kvcache_blocks=40, speculative_config={"method": "ngram", "prompt_lookup_min": 1})
    styles = Counter[str]()

    def look(recorder: Recorder, step: Step) -> None:
        table = watch.render(recorder, step).renderables[-1]
        assert isinstance(table, Table)
        (column,) = [column for column in table.columns if column.header == "guesses 猜测"]
        cells = [cell for cell in column.cells if isinstance(cell, Text)]
        rows = {row.request: row for row in step.rows}
        for name, cell in zip(recorder.sequences, cells, strict=True):
            spans = [str(span.style) for span in cell.spans]
            if row := rows.get(name):
                right = sum(guess == token for guess, token in zip(row.guesses, row.tokens))
                assert spans == ["green"] * right + ["strike dim"] * (len(row.guesses) - right)
            styles.update(spans)

    watch = Watch(console)
    with Recorder(llm.engine, look):
        llm.generate(["1 2 3 4 1 2 3 4 1 2 3 4", *PROMPTS], PARAMS, progress=False)
    metrics = llm.engine.metrics()
    assert styles["green"] == metrics.num_accepted_tokens > 0
    assert styles.total() == metrics.num_draft_tokens > styles["green"]


# ---- 命令行 ----
# ---- the command line ----


def test_off_means_not_even_imported() -> None:
    script = (
        "import sys, mini_llama; mini_llama.main(['--device', 'cpu', '--prompt', 'hi', '--max-tokens', '2']);"
        "sys.exit(any('xray' in name for name in sys.modules))"
    )
    result = subprocess.run([python(), "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_command_line_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, trace = tmp_path / "run.html", tmp_path / "trace.json"
    options = ["--device", "cpu", "--backend", "torch", "--num-kvcache-blocks", "12", "--max-num-batched-tokens", "32"]
    code = mini_llama.main([*options, "--xray", str(page), "--xray-trace", str(trace), "--watch"])
    out = capsys.readouterr().out
    assert code == 0 and str(page) in out and "summary" in out
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert 50_000 < page.stat().st_size < 5_000_000


def test_bad_files_and_combinations_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = mini_llama.main(["--device", "cpu", "--xray", str(tmp_path / "missing" / "run.html")])
    err = capsys.readouterr().err
    assert code == 2 and "cannot write" in err and "Traceback" not in err
    with pytest.raises(SystemExit) as info:
        mini_llama.main(["--xray", "run.html", "--chat"])
    assert info.value.code == 2


def test_on_cuda_the_synchronous_loop_is_chosen_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_llm(**options: Any) -> None:
        raise ValueError(f"enforce_eager is {options['enforce_eager']}")

    # 没有 GPU 也能看它怎么选：设备是假的，模型不加载。
    # The choice shows without a GPU: the device is a pretence and no model is loaded.
    monkeypatch.setattr(mini_llama.EngineConfig, "resolve_device", lambda self: torch.device("cuda"))
    monkeypatch.setattr(mini_llama, "LLM", no_llm)
    for arguments, eager in ((["--watch"], True), ([], False)):
        assert mini_llama.main(arguments) == 2
        err = capsys.readouterr().err
        assert f"enforce_eager is {eager}" in err and ("--enforce-eager is on" in err) == eager


def test_what_was_recorded_is_written_after_an_error(tmp_path: Path) -> None:
    llm = small_llm()
    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt), observe(llm.engine, console, page=str(tmp_path / "run.html")):
        llm.engine.add_request("hello", PARAMS)
        llm.engine.step()
        raise KeyboardInterrupt
    assert (tmp_path / "run.html").exists()


def test_two_equal_questions_share_a_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # `docs/*/xray.md` 里的例子。
    # The example of `docs/*/xray.md`.
    question = "what is the difference between a block table and a page table?"
    page = tmp_path / "twice.html"
    options = ["--device", "cpu", "--max-num-batched-tokens", "16", "--prompt", question, "--prompt", question]
    assert mini_llama.main([*options, "--xray", str(page)]) == 0
    capsys.readouterr()
    data = json.loads(page.read_text(encoding="utf-8").split('id="recording">')[1].split("</script>")[0])
    assert kinds(data)["hit"] == 1 and any(2 in step["refs"].values() for step in data["steps"])
    # 默认的块池很大：空闲队列只留开头，文件仍然小。
    # The default pool is large: only the head of the free queue is kept, and the file stays small.
    assert page.stat().st_size < 1_000_000


# ---- 网页 ----
# ---- the page ----


def test_page_is_one_file_without_addresses(recording: dict[str, Any], tmp_path: Path) -> None:
    write_page(recording, tmp_path / "run.html")
    html = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert html.count("</script>") == 2, "text of the model cannot end the data"
    head = html.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in head and "https://" not in head and "{{" not in html
    data = html.split('id="recording">')[1].split("</script>")[0]
    assert json.loads(data) == recording


DRAW_ALL = """
(() => { const counts = [];
  for (let l = 0; l < 2; l++) {
    document.getElementById('language').click();
    for (let n = 0; n <= lastStep; n++) {
      go(n);
      const items = [...document.querySelectorAll('#events li')], text = document.querySelector('main').textContent;
      if (text.includes('undefined') || text.includes('NaN')) throw n;
      if (!items.every((i) => i.querySelector('a').href.startsWith('vscode://file/'))) throw n;
      counts.push(items.length);
    }
  }
  return counts; })()
"""


def test_page_shows_guesses_and_every_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium here: install it to test the page")
    recording = guessing_recording(record(small_llm(num_kvcache_blocks=40)), monkeypatch)
    write_page(recording, tmp_path / "run.html")
    steps = recording["steps"]
    with browser(program) as page:
        page.open((tmp_path / "run.html").as_uri())
        assert page.run(DRAW_ALL) == [len(step["events"]) for step in steps] * 2
        ghosts = 0
        for number, step in enumerate(steps):
            page.run(f"go({number})")
            shown = [page.run(f"document.querySelectorAll('#rows {what}').length") for what in (".guess", ".top .new")]
            assert shown == [sum(len(row[each]) for row in step["rows"]) for each in ("guesses", "tokens")]
            # 猜对的与划掉的，逐个看；块里的槽位也这样画。
            # Right ones and struck ones, each by itself; the slots of a block are drawn the same way.
            pairs = [pair for row in step["rows"] for pair in zip_longest(row["guesses"], row["tokens"])]
            wrong = [guess != token for guess, token in pairs if guess is not None]
            struck = "(e) => getComputedStyle(e).textDecorationLine === 'line-through'"
            assert page.run(f"[...document.querySelectorAll('#rows .guess')].map({struck})") == wrong
            for block in {block for row in step["rows"] if row["guesses"] for block in step["tables"][row["request"]]}:
                page.run(f"state.block = {block}; draw()")
                ghosts += page.run("document.querySelectorAll('#detail .guess').length")
        assert ghosts == sum(len(row["guesses"]) for step in steps for row in step["rows"])
        # 走到最后，页面上的文字就是回答。
        # At the end the page's text is the answer.
        outputs = page.run("[...document.querySelectorAll('#requests .out')].map((e) => e.textContent)")
    assert outputs == [request["text"] for request in recording["requests"].values()]


def test_page_shows_what_a_grammar_allows(tmp_path: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium here: install it to test the page")
    recording = guided_recording()
    write_page(recording, tmp_path / "run.html")
    with browser(program) as page:
        page.open((tmp_path / "run.html").as_uri())
        for number, step in enumerate(recording["steps"]):
            page.run(f"go({number})")
            shown = page.run("document.querySelectorAll('#rows .allowed .token').length")
            assert shown == sum(len(row["allowed"]) for row in step["rows"])
        assert page.run(DRAW_ALL) == [len(step["events"]) for step in recording["steps"]] * 2


def test_a_rank_shows_its_share_of_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 没有别人的 rank 1：求和不求，拼接就拼自己的；算出什么不要紧，只看记了哪些头。
    # A rank 1 without others: nothing is summed, and it is joined with itself. What it computes does not matter, but
    # which heads are recorded.
    monkeypatch.setattr("engine.config.connect", lambda *_: Ranks(1, 2))
    monkeypatch.setattr(Ranks, "_meet", lambda *_: None)
    monkeypatch.setattr(Ranks, "_gather", lambda ranks, x: [x] * ranks.size)
    recording = record(small_llm(tensor_parallel_size=2), PROMPTS[:1])
    assert (recording["rank"], recording["num_ranks"], recording["num_heads"]) == (1, 2, 4)
    request = recording["requests"]["0"]
    for position in request["attention"]:
        assert len(weights(request, position)) == recording["num_layers"] * 4 * (int(position) + 1)
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium here: install it to test the page")
    write_page(recording, tmp_path / "run.html")
    with browser(program) as page:
        page.open((tmp_path / "run.html").as_uri())
        page.run("state.language = 'en'; draw()")
        assert "rank 1 of 2, heads 4–7 of 8" in page.run("document.getElementById('facts').textContent")
        heads = "[...document.getElementById('heat-head').options].map((o) => [o.textContent, o.value])"
        assert page.run(heads) == [["4", "0"], ["5", "1"], ["6", "2"], ["7", "3"]]
        assert page.run(DRAW_ALL) == [len(step["events"]) for step in recording["steps"]] * 2


def test_page_in_a_browser(recording: dict[str, Any], tmp_path: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium here: install it to test the page")
    file = tmp_path / "run.html"
    write_page(recording, file)
    last = len(recording["steps"]) - 1
    with browser(program) as page:
        page.resize(1280)
        page.open(file.as_uri())
        label = "document.getElementById('label').textContent"
        step = "state.step"
        assert page.run(step) == 0 and page.run("document.getElementById('slider').max") == str(last)
        # 键盘。
        # The keyboard.
        for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last), ("Home", 0)):
            page.press(key)
            assert page.run(step) == expected
        # 滑块。
        # The slider.
        page.run("const s = document.getElementById('slider'); s.value = 3; s.dispatchEvent(new Event('input'))")
        assert page.run(step) == 3 and "3" in page.run(label)
        assert page.run("document.querySelectorAll('#blocks .block').length") == recording["num_blocks"]
        # 点一个块：看到它的 token；再点其中的请求。
        # Click a block and see its tokens; then click its request.
        table = recording["steps"][3]["tables"]["0"]
        page.click(f".block[data-block='{table[0]}']")
        detail = page.run("document.getElementById('detail').textContent")
        tokens = recording["requests"]["0"]["tokens"][: recording["block_size"]]
        for token in tokens:
            assert recording["tokens"][str(token)].replace(" ", "␣").replace("\n", "↵") in detail
        page.click("#detail .chip")
        assert page.run("state.request") == "0"
        assert page.run("document.querySelector('.request.selected .chip').textContent") == "#0"
        # 语言。
        # The language.
        heading = "document.querySelector('#pool h2').textContent"
        before, title = page.run("state.language"), page.run(heading)
        page.click("#language")
        assert page.run("state.language") != before and page.run(heading) != title
        # 每一步、两种语言都画得出来；每个事件都有说明和链接。
        # Every step draws in both languages; each event has its explanation and its link.
        assert page.run(DRAW_ALL) == [len(s["events"]) for s in recording["steps"]] * 2
        # 热图画出来了，点一格有说明。
        # The heat map is drawn, and a click on a cell explains it.
        page.press("End")
        assert page.run("document.getElementById('heat-map').width") > 20
        # 窄屏上没有横向滚动。
        # A narrow screen does not scroll sideways.
        for width in (1280, 390):
            page.resize(width)
            assert page.run("document.documentElement.scrollWidth") <= width
        page.call("Runtime.evaluate", expression="0")
        methods = Counter(event["method"] for event in page.events)
        sent = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert sent == [file.as_uri()], "no request leaves the page"
    logged = [e for e in page.events if e["method"] in ("Runtime.consoleAPICalled", "Log.entryAdded")]
    assert not methods["Runtime.exceptionThrown"] and not logged, logged
