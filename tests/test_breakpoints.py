"""每一章的“断点”一节：照它说的运行，停在它说的地方，它提到的每个表达式都得到它说的值。

The section "Breakpoint" of every chapter: run what it says, stop where it says, and every expression that it names has
the value that it tells.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import runpy
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from debugger_helpers import ROOT, Guide, find_line
from overlap_helpers import add_graphs
from test_docs import CHAPTERS, blocks_to_run, skip_without_packages

import backends
import mini_llama
import models.registry
from engine.gpu.overlapped_engine import OverlappedEngine
from mini_llama import LLM, SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

SECTION = re.compile(r"^## Breakpoint · 断点$(.*?)^## ", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
CONFIGURATIONS = json.loads((ROOT / ".vscode" / "launch.json").read_text(encoding="utf-8"))["configurations"]
FIRST_CONFIGURATION = shlex.join(["python", "mini_llama.py", *CONFIGURATIONS[0]["args"]])


@dataclass(frozen=True)
class Stop:
    """停在哪里，第几次停下时什么必须为真；反引号里是这一节写出来的，两种语言都要有。

    Where to stop, and what must be true when it stops for the nth time; what is in backticks stands in the section, in
    both languages.

    Attributes:
        at: `path::symbol`
        line: how the line begins, None for the first statement
        condition: where it is false, the stop does not count
        times: how often it stops in all, where the section says so
        sees: besides the frame's own names there are `up`, those of its caller, `script`, those of the code that was
            run, and `seen`, a dict to remember something in
    """

    at: str
    sees: dict[int, list[str]]
    line: str | None = None
    condition: str = "True"
    times: int | None = None

    @cached_property
    def place(self) -> tuple[str, int]:
        path, symbol = self.at.split("::")
        return path, find_line(path, symbol, self.line)


@dataclass(frozen=True)
class Walk:
    """一次运行。

    One run.

    Attributes:
        run: a command of the chapter, or which of its Python blocks make up the file: "0", "-1", "0-2", "all"
        words: what else is in backticks: names of lines, packages and the like
        answers: what is typed in
        upto: the blocks are cut behind this
    """

    chapter: str
    run: str
    stops: list[Stop]
    words: list[str] = field(default_factory=list)
    answers: str = ""
    upto: str = ""


WALKS = [
    Walk("add_backend", "all", [
        Stop("backends/torch_backend.py::attend", {
            1: ["`scores[0]`.shape == `weights[0]`.shape",
                "torch.allclose(`weights[0]`.sum(-1), torch.ones(q.shape[0], dtype=weights.dtype))",
                "up['up']['self'].name == '`checked`'"],
        }, "return torch.einsum(", "visible.any(-1).all()"),
    ], ["return", "self.name", "scores"]),
    Walk("add_model", "0-2", [
        Stop("models/llama.py::LlamaDecoderLayer.forward", {
            2: ["(`x + delta`).allclose(script['hf'](script['torch'].tensor([script['prompt']]),"
                " output_hidden_states=True).`hidden_states[1]`[0], atol=1e-4)"],
        }),
        Stop("models/llama.py::LlamaDecoderLayer.forward", {1: ["`normed`.shape == x.shape"]}, "delta = self.self"),
        Stop("models/llama.py::LlamaAttention.forward", {1: ["seen.update(q=q, k=k) is None"]}, "q, k = apply_rotary("),
        Stop("models/llama.py::LlamaAttention.forward", {
            1: ["all((new[0] == old[0]).all() and not new[1].allclose(old[1])"
                " for new, old in ((q, seen['q']), (k, seen['k'])))"],
        }, "return self.o_proj(self.attn(q, k, v"),
    ], ["transformers", "enforce_eager=True", "x", "delta"]),
    Walk("attention", 'python mini_llama.py --backend torch --prompt "What is 23 + 45?"', [
        Stop("backends/torch_backend.py::attend", {
            1: ["`q.shape[0]` == `k.shape[0]` == 23", "torch.equal(`visible`, torch.ones(23, 23).tril().bool())",
                "(`scores[0]` == -torch.inf).equal(~visible)",
                "torch.allclose(`weights[0].sum(-1)`, torch.ones(23))"],
            5: ["(`q.shape[0]`, `k.shape[0]`) == (1, 24)", "torch.allclose(`weights[0].sum(-1)`, torch.ones(1))"],
        }, "return torch.einsum("),
    ], ["return", "-inf"]),
    Walk("block_manager", "-1", [
        Stop("engine/block_manager.py::BlockManager._find", {
            1: ["not (`key.hash in self.cached`)"],
            2: ["`key.hash in self.cached`", "`self.blocks[block_id].ref_count` == 0",
                "list(`self.blocks[block_id].key.token_ids`) == script['llm'].engine.tokenizer.encode("
                "'<|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\nWhat is attention?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\\n\\n', add_special_tokens=False)[:16]"],
        }, "if block_id is None:"),
    ]),
    Walk("cuda_graphs", "all", [
        Stop("engine/gpu/overlapped_engine.py::OverlappedEngine.step", {
            1: ["`previous` is None", "`self.launched` is not None",
                "`self.scheduler.running[0].token_ids`[-1] == -1"],
            2: ["`previous` is not None", "`self.launched` is not previous",
                "`self.scheduler.running[0].token_ids`[-1] == -1"],
        }, "return"),
    ], ["return", "host[:, :size]", "replay"]),
    Walk("debugger_tour", 'python mini_llama.py --backend torch --device cpu --enforce-eager'
         ' --prompt "What is 23 + 45?"', [
        Stop("engine/llm_engine.py::LLMEngine.step", {
            1: ["schedule[0].num_new_tokens == 23"], **{n: ["schedule[0].num_new_tokens == 1"] for n in range(2, 11)},
        }, "batch = build_batch(", times=10),
    ]),
    Walk("kv_cache", "python mini_llama.py --backend torch", [
        Stop("engine/batch.py::flatten", {1: ["`seq.block_table` == [0, 1]"]}, "end = start + row"),
        Stop("engine/batch.py::flatten", {
            1: ["(seq.request_id, seq.num_output_tokens) == ('2', 9)", "`seq.block_table` == `[4, 5, 12]`",
                "(5 * block_size + 15, `step.slots`[-1]) == (95, 192)"],
        }, "if seq.num_pending_tokens",
            "`list(seq.block_table) != sorted(seq.block_table) or seq.block_table[-1] - seq.block_table[0] >="
            " len(seq.block_table)`"),
        Stop("backends/torch_backend.py::TorchBackend.store_kvcache", {
            23: ["`divmod(slot, block_size)` == (block_id, offset)", "`k_cache[block_id, offset]`.shape == (2, 32)"],
        }, "k_cache[block_id, offset] ="),
    ], ["--backend torch"]),
    Walk("labs", "python docs/labs/07_preemption.py", [
        Stop("docs/labs/common.py::run_steps", {
            1: ["[(row.seq.request_id, row.num_new_tokens) for row in `schedule`] == [('A', 20), ('B', 20), ('C', 19)]",
                "not `engine.scheduler.waiting`"],
        }, "steps.append("),
        Stop("docs/labs/common.py::run_steps", {
            1: ["[seq.request_id for seq in `engine.scheduler.waiting`] == ['C']",
                "not `engine.block_manager.free_queue`"],
        }, "steps.append(", "`engine.scheduler.num_preemptions` == 1"),
    ], ["steps"]),
    Walk("llama_block", "python mini_llama.py --backend torch", [
        Stop("models/llama.py::LlamaAttention.forward", {
            1: ["list(`q.shape`[1:]) == [8, 32]", "list(`k.shape`[1:]) == [2, 32]",
                "seen.update(q=`q[0, 0]`, second=q[1, 0]) is None"],
        }, "q, k = apply_rotary("),
        Stop("models/llama.py::LlamaAttention.forward", {
            1: ["`q[0, 0]`.equal(seen['q'])", "not q[1, 0].allclose(seen['second'])"],
        }, "return self.o_proj(self.attn(q, k, v"),
        Stop("models/llama.py::LlamaModel.forward", {
            2: ["seen.update(x=x, sum=`x[0] + delta[0]`) is None"],
            3: ["not (`x[0] + delta[0]`).allclose(seen['sum'])", "not x[0].allclose(seen['sum'])"],
        }, "x, delta = layer("),
    ], ["unflatten", "apply_rotary", "delta", "x"]),
    Walk("loading_weights", 'python mini_llama.py --prompt "What is safetensors?"', [
        Stop("models/loader.py::load_weights", {
            1: ["`name` == `place`", "`tensor.dtype` == torch.bfloat16", "`targets[place].dtype` == torch.float32"],
        }, "_fill("),
        Stop("models/loader.py::_fill", {
            1: ["list(`target.shape`) == [64, 256]", "target.untyped_storage().nbytes() == 384 * 256 * 4"],
        }, None, "'`k_proj`' in name"),
        Stop("models/loader.py::load_weights", {1: ["not (`targets.keys() - loaded`)"]}, "assert loaded =="),
        Stop("engine/model_runner.py::ModelRunner.__init__", {
            1: ["all(name in str(`self.model`) for name in ('embed_tokens', 'layers', 'qkv_proj', 'norm'))"],
        }, "load_weights("),
    ], ["_fill", "load_weights"]),
    Walk("map", 'python mini_llama.py --backend torch --prompt "中国的首都是哪里？"', [
        Stop("engine/llm_engine.py::LLMEngine.step", {
            1: ["len(`schedule`) == 1", "len(`batch.input_ids`) == 23", "list(`logits.shape`) == [1, 2064]",
                "seen.update(first=`token_ids`[0]) is None"],
            2: ["`batch.input_ids`.tolist() == seen['first']"],
        }, "finished = self.scheduler.update("),
    ], ["--device cpu"]),
    Walk("preemption", "0", [
        Stop("engine/scheduler.py::Scheduler._preempt_last", {
            1: ["[seq.request_id for seq in `self.running`] == ['A', 'B']", "`self.block_manager.num_free_blocks` == 0",
                "up['seq'] is self.running[0]"],
        }),
        Stop("engine/scheduler.py::Scheduler._preempt_last", {
            1: ["[seq.request_id for seq in `self.running`] == ['A']", "`self.block_manager.num_free_blocks` == 2",
                "`seq.block_table` == []", "len(`seq.token_ids`) == 7", "up['`seq`'] is not seq"],
        }, "seq.status, seq.draft_ids ="),
    ], ["free", "schedule"]),
    Walk("quantized_cache", "python mini_llama.py --backend torch --kv-cache-dtype int8 --prompt hi", [
        Stop("backends/quantized_cache.py::quantize", {
            1: ["list(`x`.shape) == `[15, 2, 32]`",
                "(`x[0, 0]` - `codes[0, 0] * descale[0, 0]`).abs().max() <= descale[0, 0] / 2"],
        }, "return (codes.round()"),
        Stop("backends/torch_backend.py::gather_pages", {1: ["descale is not None"]}, "rows = dequantize("),
    ]),
    Walk("quantized_weights", "python mini_llama.py --backend torch --quantization int8 --prompt hi", [
        Stop("backends/quantized_weight.py::quantize_int8", {
            1: ["`scales`.shape == (`weight.shape`[0],)", "(weight / steps).abs().amax(1).round().max() == 127"],
        }, "return (weight / steps)"),
        Stop("backends/quantized_weight.py::QuantizedWeight.linear", {
            1: ["list(`self.shape`) == `[384, 256]`", "len(`x`) == 15",
                "(`self.codes[0, :8] * self.scales[0]`).float()"
                ".allclose(`self.dequantize()[0, :8]`.float(), rtol=0.01)"],
        }, "parts = self.in_parts()"),
    ]),
    Walk("questions", "all", [
        Stop("engine/scheduler.py::Scheduler._finish_reason", {
            1: ["`token` == seq.token_ids[-1]", "`seq.params.max_tokens` == `seq.num_output_tokens` == 3"],
        }, "return \"length\"", "seq.params.max_tokens == seq.num_output_tokens == 3"),
        Stop("engine/block_manager.py::BlockManager.find_prefix", {
            1: ["`block_id` is `None`", "`index` == 0 < (`seq.num_tokens` - 1) // 16"],
        }, "break"),
        Stop("engine/scheduler.py::Scheduler._preempt_last", {1: ["up['self'] is script['small'].engine.scheduler"]}),
    ]),
    Walk("roofline", "-1", [
        Stop("engine/model_runner.py::ModelRunner.execute", {
            1: ["`batch.input_ids.shape[0]` == 3"],
            65: ["`batch.input_ids.shape[0]` == 992"],
            66: ["`batch.input_ids.shape[0]` == 32", "`batch.metadata.cache_seqlens`.tolist() == [32] * 32"],
        }, "hidden = "),
    ], ["forward"]),
    Walk("sampling", 'python mini_llama.py --model tiny-poet --complete --prompt "白日依山盡，" --top-p 0.5 --seed 7'
         " --max-tokens 2", [
        Stop("engine/sampler.py::Sampler.draw", {1: ["`scores` is `logits`"]}, "tokens = self.ranks.first(sample("),
        Stop("layers/sampler.py::sample", {
            1: ["`noise`.shape == `scores`.shape", "(`scores` == -torch.inf).sum() > scores.numel() / 2",
                "(scores.diff() <= 0)[scores[:, 1:] > -torch.inf].all()"],
        }, "best = "),
        Stop("layers/sampler.py::sample", {
            1: ["order[0, `(scores + noise.gather(-1, order))`.argmax()] == sampled",
                "`(scores + noise)`.shape == logits.shape"],
        }, "return torch.where(sound, torch.where("),
    ], ["sample", "top_p"]),
    Walk("scheduler", "all", [
        Stop("engine/scheduler.py::Scheduler.schedule", {
            1: ["[seq.request_id for seq in `self.waiting`] == ['A', 'B']", "`self.running` == []", "`budget` == 8"],
            4: ["repr(self.running[2]).endswith('`computed 12/20 tokens, blocks [2, 3, 5]`)')"],
        }, "index = 0"),
        Stop("engine/scheduler.py::Scheduler.schedule", {
            1: ["len(`planned`) == 2"], 2: ["len(`planned`) == 3"],
        }, "scheduled = []"),
        Stop("engine/batch.py::build_batch", {
            1: ["`ids`.tolist() == [109, 200, 201, 202]", "`places`.tolist() == [9, 0, 1, 2]",
                "`slot_mapping`.tolist() == [21, 0, 1, 2]"],
        }, "return Batch("),
    ], ["while", "index = 0"]),
    Walk("serving", "0-3", [
        Stop("serving/turns.py::Turns.abort", {
            1: ["up['finished'] is False", "len(sequences) == 1"], 2: ["up['finished'] is False"],
        }, condition="sequences[0].finish_reason is None", times=2),
    ], ["self._inbox", "message"]),
    Walk("setup", FIRST_CONFIGURATION, [
        Stop("engine/llm_engine.py::LLMEngine.step", {
            1: ["len(`self.scheduler.waiting`) == 6", "not `self.scheduler.running`"],
        }, "schedule = self.plan()"),
        Stop("engine/llm_engine.py::LLMEngine.step", {
            1: ["not `self.scheduler.waiting`", "len(`self.scheduler.running`) == 6"],
        }, "batch = build_batch("),
    ], [".venv"]),
    Walk("structured_outputs",
         "python mini_llama.py --backend torch --prompt hi --choice yes --choice yesterday --choice no", [
        Stop("engine/guides.py::ban", {
            1: ["`allowed.sum(1)`.tolist() == [len(`guided[0][1].allowed()`)] == [2]",
                "`banned.sum(1)`.tolist() == [logits.shape[1] - 2]"],
        }, "return logits.masked_fill("),
        Stop("engine/guides.py::Guide.advance", {
            1: ["seen.update(token=`token`) is None", "token not in `self.allowed()`"],
        }, "return not self"),
    ]),
    Walk("tensor_parallelism", "0-3", [
        Stop("models/shares.py::cut", {
            number: [f"(`ranks.rank`, `parts`, `start`) == ({rank}, 2, {start})"]
            for number, (rank, start) in enumerate([(0, 0), (1, 0), (2, 4), (3, 4)], start=1)
        }, "if isinstance(whole", times=4),
    ], ["python tools/chapter.py tensor_parallelism", "if isinstance(whole", CONFIGURATIONS[-1]["name"], "o_proj", "x",
        "self.weight", "sum_", "self.ranks.rank"]),
    Walk("tokens", "python mini_llama.py --chat", [
        Stop("serving/chat_template.py::encode_chat", {
            1: ["`text` == '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\nWhat is 23 + 45?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\\n\\n'"],
        }, "return tokenizer.encode("),
        Stop("engine/detokenizer.py::Detokenizer.push", {
            1: ["`piece` == '2'", "`self._given`.endswith('2')", "`self._window`[-1] == token_ids[0]"],
            2: ["`piece` == '3'", "`self._given`.endswith('23')", "`self._window`[-1] == token_ids[0]"],
        }, "return piece"),
    ], [], "What is 23 + 45?\n/exit\n"),
    Walk("speculation", "python mini_llama.py --model tiny-poet --draft-model tiny-poet-draft --complete --prompt"
         ' "singer:" --temperature 0 --max-tokens 14 --device cpu', [
        Stop("engine/drafters.py::ModelDrafter.complete", {
            1: ["[each[1:3] for each in `mine`] == [(5, 0)]", "`batch.positions`.tolist() == [*range(5)]"],
            2: ["[each[1:3] for each in mine] == [(1, 4)]", "batch.positions.tolist() == [5]"],
        }, "logits ="),
        Stop("engine/drafters.py::ModelDrafter.complete", {
            1: ["batch.positions.tolist()[0] == mine[0][3].num_computed_tokens - 1"],
        }, "logits =", "batch.positions.numel() == 2"),
        Stop("engine/sequence.py::Sequence.accept", {
            1: ["(`self.draft_ids`, len(`drawn`)) == ([], 1)"], 2: ["len(`drawn`) == len(`self.draft_ids`) + 1 == 5"],
        }, "for index, guess"),
    ], ["logits =", "for"]),
    Walk("triton_kernels", "all", [
        Stop("backends/triton/decode.py::decode_kernel", {
            1: ["`n` == 32", "NUM_SPLITS == 1", "`token`.handle.data.tolist() == list(range(32, 64))",
                "`kv_row`.handle.data.shape == (32,)", "`scores.handle.data`.shape[1] == 32",
                "seen.update(m=`m`.handle.data.copy(), total=`total`.handle.data.copy()) is None"],
        }, "m_new =", "`n > 0`"),
        Stop("backends/triton/decode.py::decode_kernel", {
            1: ["n == 64", "(m.handle.data >= seen['m']).all()", "(total.handle.data != seen['total']).all()"],
        }, "m_new =", "n > 32"),
        Stop("backends/triton/decode.py::decode_kernel", {1: ["n == 128"]}, "empty ="),
    ], ["TRITON_INTERPRET=1", "scores", "python tools/chapter.py triton_kernels"], upto="close(out[0], expected)\n"),
    Walk("xray", 'python mini_llama.py --model tiny-poet --complete --prompt "春眠不覺曉，處處聞啼鳥。" --prompt '
         '"白日依山盡，黃河入海流。" --prompt "秋風起，" --prompt "philosopher:" --seed 2 --max-tokens 64 --backend'
         " torch --device cpu --num-kvcache-blocks 9 --max-num-batched-tokens 16 --xray run.html", [
        Stop("engine/scheduler.py::Scheduler._preempt_last", {
            1: ["seen.update(running=[*`self.running`], table=[*self.running[-1].block_table],"
                " queue=[*`self.block_manager.free_queue`]) is None"],
        }),
        Stop("engine/scheduler.py::Scheduler._preempt_last", {
            1: ["seq is seen['running'][-1]",
                "[*`self.block_manager.free_queue`] == seen['queue'] + seen['table'][::-1]"],
        }, "seq.status, seq.draft_ids ="),
    ], ["free"]),
]

# 这一节提到、但不运行的地方：说明为什么。
# Places that a section names and no walk stops at: why.
NOT_WALKED = {
    "backends/triton/decode.py::decode_attention": "where the kernel is launched, nothing is claimed of its values",
    "layers/ranks.py::SummedLinear.forward": "in two processes at once; shapes are those of test_heads_are_divided",
    "serving/async_llm.py::AsyncLLM._take_messages": "runs in the engine's thread, which is not traced here",
    "engine/gpu/decode_graphs.py::DecodeGraphs.run": "needs graphs, see test_the_buffer_of_a_graph",
}


def section(lang: str, chapter: str) -> str:
    found = SECTION.search((ROOT / "docs" / lang / f"{chapter}.md").read_text(encoding="utf-8"))
    return found[1] if found else ""


def codes(text: str) -> set[str]:
    return set(CODE.findall(text))


def test_every_section_is_walked() -> None:
    assert {walk.chapter for walk in WALKS} == {chapter for chapter in CHAPTERS if section("en", chapter)}
    told = {code for chapter in CHAPTERS for code in codes(section("en", chapter))}
    assert told >= set(NOT_WALKED) and not {stop.at for walk in WALKS for stop in walk.stops} & set(NOT_WALKED)


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.chapter)
def test_the_walk_is_the_one_of_the_section(walk: Walk) -> None:
    """表里的每个地方、命令、表达式都写在两种语言的这一节里；这一节里的每个名字也都在表里。

    Every place, command and expression of the table stands in the section of both languages, and every name of the
    section stands in the table.
    """
    told = codes(section("en", walk.chapter))
    assert told == codes(section("zh", walk.chapter))
    places = {code for code in told if "::" in code}
    walked = {stop.at for stop in walk.stops}
    # 类的名字代表它的 `__init__`；只写了函数名的，是从上一站步入的。
    # A class stands for its `__init__`; a function without its file is stepped into.
    for at in walked:
        assert at in places or at.removesuffix(".__init__") in places or at.rpartition("::")[2] in told, at
    assert {at for at in places if not {at, f"{at}.__init__"} & walked} <= set(NOT_WALKED)
    texts = [text for stop in walk.stops for text in (stop.condition, *chain(*stop.sees.values()))]
    named = {code for text in texts for code in codes(text)}
    assert named <= told, named - told
    # `words` 里没有多余的：每个都写在这一节里，而且不靠它就没有着落。
    # Nothing in `words` is left over: each stands in the section and is accounted for by nothing else.
    assert told - places - named - {walk.run} == set(walk.words)
    if walk.run.startswith("python") and walk.run != FIRST_CONFIGURATION:
        text = (ROOT / "docs" / "en" / f"{walk.chapter}.md").read_text(encoding="utf-8")
        assert walk.run in told or walk.run in text.splitlines()


def code_of(walk: Walk) -> str:
    blocks = [block.code + "\n" for block in blocks_to_run("python", walk.chapter)]
    if walk.run != "all":
        first, _, last = walk.run.rpartition("-")
        blocks = blocks[int(first) : int(last) + 1] if first else [blocks[int(walk.run)]]
    code = "".join(blocks)
    return code[: code.index(walk.upto) + len(walk.upto)] if walk.upto else code


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.chapter)
def test_the_reader_sees_what_the_section_says(walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not walk.run.startswith("python"):
        skip_without_packages(blocks_to_run("python", walk.chapter))
    if walk.chapter == "triton_kernels" and torch.cuda.is_available():
        pytest.skip("with a GPU the kernels of this process are compiled, and no breakpoint stops in them")
    hits: Counter[int] = Counter()
    seen: dict[str, Any] = {}
    wrong = []

    def arrive(place: tuple[str, int], frame: FrameType) -> None:
        assert frame.f_back is not None and frame.f_back.f_back is not None
        up = {**frame.f_back.f_locals, "up": frame.f_back.f_back.f_locals}
        names = {**frame.f_globals, **frame.f_locals, "up": up, "script": vars(sys.modules["__main__"]), "seen": seen}
        for index, stop in enumerate(walk.stops):
            if stop.place == place and eval(stop.condition.replace("`", ""), dict(names)):
                hits[index] += 1
                checks = stop.sees.get(hits[index], [])
                wrong.extend(f"{stop.at}: {text}" for text in checks if not eval(text.replace("`", ""), dict(names)))

    # 有 GPU 的机器上也照没有的走：命令行不写 `--device` 时会用 GPU，张量和循环就不同了。
    # With a GPU, too, walk as without one: a command without `--device` would use it, and tensors and loop are other
    # ones.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    # 先导入：跟踪时导入这么大的库要慢好几倍。
    # Imported first: while tracing, the import of a library as large as this is several times slower.
    importlib.import_module("transformers.models.qwen2.modeling_qwen2")
    monkeypatch.setattr("models.registry.MODEL_REGISTRY", dict(models.registry.MODEL_REGISTRY))
    monkeypatch.setattr("backends._REGISTRY", dict(backends._REGISTRY))
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.stdin", io.StringIO(walk.answers))
    guide = Guide([stop.place for stop in walk.stops], arrive)
    try:
        command = shlex.split(walk.run)
        if command[:2] == ["python", "mini_llama.py"]:
            monkeypatch.chdir(tmp_path)
            assert guide.runcall(mini_llama.main, command[2:]) == 0
        elif command[0] == "python":
            monkeypatch.setattr("sys.argv", command[1:])
            sys.path.insert(0, str(ROOT / "docs" / "labs"))
            with pytest.raises(SystemExit) as ended:
                guide.runcall(runpy.run_path, str(ROOT / command[1]), run_name="__main__")
            assert ended.value.code == 0
        else:
            file = tmp_path / "blocks.py"
            file.write_text(code_of(walk), encoding="utf-8")
            guide.runcall(runpy.run_path, str(file), run_name="__main__")
    finally:
        guide.clear_all_breaks()
        sys.modules.pop("common", None)
    assert not wrong
    for index, stop in enumerate(walk.stops):
        assert hits[index] >= max(stop.sees), f"{stop.at} {stop.condition} was reached {hits[index]} times only"
        assert stop.times in (None, hits[index])


def test_the_buffer_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """断在 `DecodeGraphs.run` 的末尾，图在 CPU 上用“再跑一遍”代替：3 个请求用 4 行的图，最后一行是补齐的。

    At the end of `DecodeGraphs.run`, where graphs on the CPU are "run once more": 3 requests take the graph of 4 rows,
    and the last is padded.
    """
    at = "engine/gpu/decode_graphs.py::DecodeGraphs.run"
    assert {at, "host[:, :size]"} <= codes(section("en", "cuda_graphs"))
    monkeypatch.setattr("serving.llm.create_engine", OverlappedEngine)
    llm = LLM(device="cpu", num_kvcache_blocks=64, max_model_len=256)
    add_graphs(llm)
    seen = []

    def arrive(place: tuple[str, int], frame: FrameType) -> None:
        names = {**frame.f_globals, **frame.f_locals}
        if names["count"] == 3:
            rows = dict(zip(names["_COLUMNS"], eval("host[:, :size]", names).tolist()))
            seen.append((rows, [seq.num_tokens for seq, _, _ in names["schedule"]]))

    guide = Guide([Stop(at, {}, "return").place], arrive)
    prompts = [[{"role": "user", "content": f"What is {n} + {n}?"}] for n in (12, 23, 34)]
    try:
        guide.runcall(llm.chat, prompts, SamplingParams(temperature=0.0, max_tokens=8), progress=False)
    finally:
        guide.clear_all_breaks()
    rows, lengths = seen[-1]
    assert rows["seqlens"] == [*lengths, 0]
    assert rows["positions"] == [*(length - 1 for length in lengths), 0]
    assert rows["slots"][3] == -1 and min(rows["slots"][:3]) >= 0
    assert rows["input_ids"] == [-1, -1, -1, 0]
    assert min(rows["sources"][:3]) > rows["sources"][3] == 0
