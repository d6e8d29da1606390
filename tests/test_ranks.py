"""张量并行：几个 rank 的输出与一个 rank 的相同；谁死了、谁不一致，都有一句话；切开的权重拼得回去。

几个进程由 torchrun 起一次，跑完所有场景（`ranks_program.py`），结果留在文件里；这里的测试各比较一个。

Tensor parallelism: several ranks put out what one does; a rank that dies or differs is told in a line; weights that
were cut can be put together again.

torchrun starts the processes once for all scenarios (`ranks_program.py`), whose results stay in files; each test here
compares one.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_hf_model, save_tokenizer
from engine_helpers import Run, assert_equal_or_close_call, environment, run_requests
from ranks_program import CROWDED, MODELS, SCENARIOS, make, requests_of
from safetensors.torch import load_file, save_file
from test_checkpoint_formats import make as make_packed

from backends.quantized_weight import QuantizedWeight
from engine.config import EngineConfig
from layers.ranks import ALONE, Ranks
from mini_llama import LLM, AsyncLLM
from models.config import ModelConfig, load_config
from models.shares import cut, divide

ROOT = Path(__file__).resolve().parent.parent
# 场景 -> 一个 rank 的同样一批请求怎样跑；其余的场景直接比结果。
# Scenario -> how one rank runs the same batch of requests; the other scenarios compare their results as they are.
MIXED: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: (name, "mixed", {}) for name in MODELS},
    "featured": ("llama", "featured", {}),
    "crowded": ("qwen2-tied", "mixed", CROWDED),
    "torch": ("llama-biases", "mixed", {"backend": "torch", "enforce_eager": True}),
    "int8": ("wide", "mixed", {"quantization": "int8", "dtype": "float32"}),
    "int4": ("wide", "mixed", {"quantization": "int4", "dtype": "float32"}),
    "gptq": ("gptq", "mixed", {"dtype": "float32"}),
    "kv-int8": ("wide", "mixed", {"kv_cache_dtype": "int8"}),
    "ngram": ("llama", "mixed", {}),
    "draft": ("tiny-poet", "few", {"max_model_len": 160}),
}
SAME = ("outputs-and-stops", "chat", "aborts", "streams")
# 平时只跑这些，全部的标了 `long`。4 个 rank 时，2 个 KV 头各有 2 份，词表除不尽。
# Just these run by default, all of them are marked `long`. On 4 ranks 2 KV heads are kept 2 times each, and one
# vocabulary does not divide.
ON_TWO = ("qwen2", "qwen3", "featured", "crowded", "int8", "kv-int8", "draft", "outputs-and-stops", "seeds", "aborts",
          "streams", "same-pool", "memory", "diverging-tokens", "diverging-calls")  # fmt: skip
ON_GPUS = ("llama-biases", "qwen3", "featured", "crowded", "kv-int8", "ngram", "streams", "diverging-calls")
ON_FOUR = ("llama-biases", "gptq", "same-pool", "memory", "diverging-tokens")


def torchrun(size: int, *arguments: str) -> list[str]:
    """起 `size` 个进程的命令；端口由它自己挑。

    The command that starts `size` processes; it picks the port itself.
    """
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *arguments]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    stops = json.dumps({"eos_token_id": list(range(2, 2304, 24))})
    for name, overrides in MODELS.items():
        kind = name.partition("-")[0] if name != "wide" else "llama"
        make_hf_model(kind, **overrides).save_pretrained(folder / name)
        save_tokenizer(folder / name)
        (folder / name / "generation_config.json").write_text(stops)
    pack(folder / "wide", folder / "gptq")
    return folder


def pack(source: Path, folder: Path) -> None:
    """同样形状的模型，线性层换成 GPTQ 打包的，每组 32 列。

    A model of the same shape, with its linear layers packed by GPTQ in groups of 32 columns.
    """
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    tensors: dict[str, torch.Tensor] = {}
    for seed, (name, tensor) in enumerate(load_file(source / "model.safetensors").items()):
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        layer = make_packed("gptq", rows=tensor.shape[0], columns=tensor.shape[1], seed=seed, symmetric=False)
        config |= layer.raw
        for part, packed in layer.tensors.items():
            tensors[name.removesuffix("weight") + part.rpartition(".")[2]] = packed
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def start(
    size: int, models: Path, folder: Path, names: tuple[str, ...], device: str = "cpu"
) -> list[dict[str, Any]]:
    """跑完这些场景，返回各 rank 的结果。

    Run these scenarios and return the results of each rank.
    """
    command = torchrun(size, str(ROOT / "tests" / "ranks_program.py"), str(models), str(folder), *names)
    env = {**environment(), "RANKS_DEVICE": device}
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text())["found"] for rank in range(size)]


@pytest.fixture(scope="module")
def two(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return start(2, models, tmp_path_factory.mktemp("two"), ON_TWO)


@pytest.fixture(scope="module")
def four(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return start(4, models, tmp_path_factory.mktemp("four"), ON_FOUR)


@pytest.fixture(scope="module", params=[2, 4])
def with_all(request: Any, models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return start(request.param, models, tmp_path_factory.mktemp("all"), tuple(SCENARIOS))


@pytest.fixture(scope="module")
def alone(models: Path, one_thread: None) -> Callable[[str], tuple[LLM, Run]]:
    """一个 rank 跑同样的请求，每种只跑一次。

    One rank runs the same requests, each kind once.
    """
    known: dict[str, tuple[LLM, Run]] = {}

    def get(name: str) -> tuple[LLM, Run]:
        # 有没有猜测、块池大小，都不改变输出，所以与普通的一次比。
        # Guesses and the size of the pool change no output: compare with a plain run.
        model, kind, options = MIXED[name]
        key = repr(MIXED[name])
        if key not in known:
            llm = make(models, model, 1, **options)
            known[key] = llm, run_requests(llm, requests_of(kind))
        return known[key]

    return get


def compare_mixed(name: str, ranks: list[dict[str, Any]], alone: Callable[[str], tuple[LLM, Run]]) -> None:
    """每个 rank 的结果都一样，也与一个 rank 的相等。

    The results of all ranks are the same, and equal to those of one rank.
    """
    mine, (_, plain) = ranks[0][name], alone(name)
    assert all(each[name] == mine for each in ranks)
    outputs = [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)]) for tokens in mine["tokens"]]
    other = Run(outputs=outputs, seeds=mine["seeds"])  # type: ignore[arg-type]
    requests = requests_of(MIXED[name][1])
    assert assert_equal_or_close_call(plain, other, requests) <= 1
    told = 0
    for tokens, reports, output in zip(mine["tokens"], mine["logprobs"], plain.outputs):
        expected = output.outputs[0].logprobs
        assert (reports is None) == (expected is None)
        if reports is None or expected is None or tokens != output.outputs[0].token_ids:
            continue
        for report, entries in zip(reports, expected, strict=True):
            told += 1
            assert report == pytest.approx([entry.logprob for entry in entries.values()], abs=1e-4)
    assert told > 0 or MIXED[name][1] != "featured"


def approximately(value: Any) -> Any:
    """同样的结果，浮点数相差不到 1e-4。

    The same result, floats within 1e-4.
    """
    if isinstance(value, list | tuple):
        return [approximately(each) for each in value]
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


# ---- 输出与一个 rank 的相同 ----
# ---- the output is that of one rank ----


@pytest.mark.parametrize("name", [name for name in ON_TWO if name in MIXED])
def test_two_ranks_put_out_what_one_does(name: str, two: Any, alone: Any) -> None:
    compare_mixed(name, two, alone)


@pytest.mark.parametrize("name", [name for name in ON_FOUR if name in MIXED])
def test_four_ranks_put_out_what_one_does(name: str, four: Any, alone: Any) -> None:
    compare_mixed(name, four, alone)


@pytest.mark.long
@pytest.mark.parametrize("name", MIXED)
def test_all_models_and_options(name: str, with_all: Any, alone: Any) -> None:
    compare_mixed(name, with_all, alone)


def compare_results(name: str, ranks: list[dict[str, Any]], models: Path) -> None:
    """每个 rank 的结果都一样，也与一个 rank 的相同。

    The results of all ranks are the same, and those of one rank.
    """
    plain = json.loads(json.dumps(SCENARIOS[name](models, 1)))
    assert all(each[name] == ranks[0][name] for each in ranks)
    assert ranks[0][name] == approximately(plain)


@pytest.mark.parametrize("name", [name for name in ON_TWO if name in SAME])
def test_two_ranks_do_all_that_one_does(name: str, two: Any, models: Path, one_thread: None) -> None:
    compare_results(name, two, models)


@pytest.mark.long
@pytest.mark.parametrize("name", SAME)
def test_ranks_do_all_that_one_does(name: str, with_all: Any, models: Path, one_thread: None) -> None:
    compare_results(name, with_all, models)


def test_the_scenarios_are_what_they_claim(two: Any) -> None:
    assert two[0]["crowded"]["preemptions"] > 3
    assert two[0]["crowded"]["hits"] > 0
    assert two[0]["draft"]["preemptions"] > 0
    assert any(report is not None for report in two[0]["featured"]["logprobs"])


def test_seeds_come_from_rank_0(two: Any) -> None:
    assert two[0]["seeds"] == two[1]["seeds"]


# ---- 两个 GPU ----
# ---- two GPUs ----


@pytest.fixture(scope="module")
def two_gpus(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 CUDA GPUs")
    return start(2, models, tmp_path_factory.mktemp("gpus"), ON_GPUS, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in ON_GPUS if name in MIXED])
def test_two_gpus_put_out_what_one_does(
    name: str, two_gpus: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 两个 GPU 用图和重叠循环，一个用同步循环，好记下分数。
    # Two GPUs run graphs and the overlapped loop, one the synchronous loop, to record scores.
    monkeypatch.setattr("ranks_program.DEVICE", "cuda")
    model, kind, options = MIXED[name]
    llm = make(models, model, 1, **{**options, "enforce_eager": True})
    run = run_requests(llm, requests_of(kind))
    compare_mixed(name, two_gpus, lambda _: (llm, run))


@pytest.mark.gpu
def test_two_gpus_agree(two_gpus: Any) -> None:
    assert two_gpus[0]["streams"] == two_gpus[1]["streams"]
    expected = "step 6: the scheduled rows of rank 1 are not those of rank 0"
    assert [each["diverging-calls"] for each in two_gpus] == [expected] * 2


# ---- 一份有多大 ----
# ---- how large a share is ----


def test_ranks_with_different_memory_get_the_same_pool(two: Any, four: Any, models: Path) -> None:
    whole = SCENARIOS["same-pool"](models, 1)
    for ranks in (two, four):
        (blocks,) = {each["same-pool"] for each in ranks}
        # 内存最少的少 1 MiB 或 3 MiB，只取四分之一；KV 头分开之后，同样的内存装得下 2 倍的块。
        # The one with the least has 1 or 3 MiB less, of which a quarter is taken; with KV heads divided the same memory
        # holds 2 times the blocks.
        least = ((1 << 26) - ((len(ranks) - 1) << 20)) // 4
        assert blocks == least // (2 * 2 * 16 * 16 * 4)
        assert whole < blocks < 2 * whole


def test_weights_and_pool_shrink(two: Any, four: Any, models: Path) -> None:
    weights, block = SCENARIOS["memory"](models, 1)
    for ranks in (two, four):
        for rank in ranks:
            mine, its_block = rank["memory"]
            # 归一化的权重每个 rank 都有；2 个 KV 头分给 4 个 rank，各存 1 个。
            # Every rank has the weights of the norms; 2 KV heads on 4 ranks are 1 each.
            assert mine < 1.1 * weights / len(ranks)
            assert its_block == block // 2


# ---- 不一致 ----
# ---- disagreement ----


def test_a_rank_that_differs_is_named_with_its_step(two: Any, four: Any) -> None:
    for ranks in (two, four):
        last = len(ranks) - 1
        expected = f"step 4: the tokens of rank {last} are not those of rank 0"
        assert [each["diverging-tokens"] for each in ranks] == [expected] * len(ranks)
    expected = "step 6: the scheduled rows of rank 1 are not those of rank 0"
    assert [each["diverging-calls"] for each in two] == [expected] * 2


# ---- 进程的生死 ----
# ---- life and death of processes ----


@pytest.fixture
def endless(models: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[int, int]]]:
    """一直生成的两个 rank，和它们的进程号。

    Two ranks that generate for ever, and their process ids.
    """
    command = torchrun(2, str(ROOT / "tests" / "ranks_program.py"), str(models), str(tmp_path), "endless")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    )
    # 到时还没有结束，就由 torchrun 收走各个 rank：测试失败，而不是一直等下去。
    # Should it last too long, torchrun puts the ranks away: the test fails and does not wait for ever.
    limit = threading.Timer(120, process.terminate)
    limit.start()
    pids: dict[int, int] = {}
    assert process.stdout is not None
    try:
        while len(pids) < 2:
            line = process.stdout.readline()
            assert line, process.wait()
            if match := re.fullmatch(r"pid (\d+) rank (\d+)\n", line):
                pids[int(match[2])] = int(match[1])
        time.sleep(0.5)
        yield process, pids
    finally:
        limit.cancel()
        process.terminate()
        process.wait()


def test_a_rank_that_dies_ends_all(endless: tuple[subprocess.Popen[str], dict[int, int]]) -> None:
    process, pids = endless
    began = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 1
    # torchrun 的结尾写明是哪个 rank、怎么死的。
    # torchrun's closing lines say which rank it was and how it died.
    assert re.search(r"rank +: 1 .*\n +exitcode +: -9", output), output[-3000:]
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_ctrl_c_ends_every_rank(endless: tuple[subprocess.Popen[str], dict[int, int]]) -> None:
    process, pids = endless
    began = time.monotonic()
    # 终端里按 Ctrl-C，前台的进程都收到；这里只发给两个 rank，好看清它们自己的退出码。
    # Ctrl-C in a terminal reaches all processes in front; here the two ranks get it, so that their own codes show.
    for pid in pids.values():
        os.kill(pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert re.findall(r"exitcode +: (\S+)", output) == ["130", "130"], output[-3000:]
    assert "Traceback" not in output.partition("torch/distributed")[0]


def test_a_lost_companion_is_told_in_one_line() -> None:
    ranks = Ranks(1, 2)
    message = "rank 1 stops, having lost the others: Connection closed by peer"
    with pytest.raises(ConnectionError, match=message) as error:
        ranks._meet(lambda: (_ for _ in ()).throw(RuntimeError("Connection closed by peer [127.0.0.1]:1\nmore")))
    assert "\n" not in str(error.value)


# ---- 命令行 ----
# ---- the command line ----


def command_line(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        torchrun(2, str(ROOT / "mini_llama.py"), "--device", "cpu", *arguments), capture_output=True, text=True,
        input=stdin, env=environment(), timeout=120,
    )  # fmt: skip


@pytest.mark.long
def test_the_command_line_answers_once(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    run = command_line("--backend", "torch", "--prompt", "中国的首都是哪里？", "--xray", str(page))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("中国的首都是北京。") == 1
    # 记录的是 rank 0 的那一份：8 个头里的 4 个。
    # What is recorded is the share of rank 0: 4 of the 8 heads.
    assert re.search(r'"num_heads": ?4\b', page.read_text(encoding="utf-8"))


@pytest.mark.long
def test_a_chat_is_read_by_rank_0() -> None:
    run = command_line("--chat", stdin="中国的首都是哪里？\nWhat is 23 + 45?\n/stats\n")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[:2] == ["中国的首都是北京。", "23 + 45 = 68."]
    assert "cached 命中 32 prompt tokens" in run.stdout


@pytest.mark.long
def test_a_benchmark_prints_once(tmp_path: Path) -> None:
    command = torchrun(2, str(ROOT / "benchmarks" / "workloads.py"), "--only", "n=8", "--scale", "16", "--repeats", "1")
    result = tmp_path / "result.json"
    run = subprocess.run([*command, "--json", str(result)], capture_output=True, text=True, env=environment(),
                         timeout=300)  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("n=8") == 1
    assert json.loads(result.read_text())["environment"]["ranks"] == 2


@pytest.mark.long
def test_two_hosts_share_a_model() -> None:
    # 两台机器都是这一台，各起一个 torchrun；端口由系统挑。
    # Both hosts are this one, and each starts a torchrun; the system picks the port.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", rank,
             "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port,
             str(ROOT / "mini_llama.py"), "--device", "cpu", "--prompt", "中国的首都是哪里？"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(),
        ) for rank in ("0", "1")
    ]  # fmt: skip
    told = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], told
    assert told[0][0].count("中国的首都是北京。") == 1 and told[1][0] == ""


@pytest.mark.parametrize("size", [2, 8])
def test_without_torchrun_one_line_tells_how(size: int) -> None:
    start = f"tensor_parallel_size={size}, the number of processes is 1: use 1, or torchrun --nproc-per-node {size}"
    with pytest.raises(ValueError, match=start):
        LLM(device="cpu", tensor_parallel_size=size)


def test_async_is_for_one_rank() -> None:
    with pytest.raises(ValueError, match="AsyncLLM runs on 1 rank: use LLM"):
        AsyncLLM(device="cpu", tensor_parallel_size=2)


@pytest.mark.parametrize("size", [0, -1, True, 1.0, "2", None])
def test_no_number_of_ranks(size: Any) -> None:
    with pytest.raises(ValueError, match=r"tensor_parallel_size=.* is out of range: use an integer from 1"):
        EngineConfig(tensor_parallel_size=size)


# ---- 一份：配置与权重 ----
# ---- a share: configuration and weights ----


@pytest.fixture(scope="module")
def config(models: Path) -> ModelConfig:
    return load_config(models / "wide")


def test_alone_the_configuration_stays(config: ModelConfig) -> None:
    assert divide(config, ALONE) is config


@pytest.mark.parametrize(("size", "heads", "kv_heads"), [(2, 4, 1), (4, 2, 1), (8, 1, 1)])
def test_heads_are_divided(config: ModelConfig, size: int, heads: int, kv_heads: int) -> None:
    mine = divide(config, Ranks(size - 1, size))
    assert (mine.num_attention_heads, mine.num_key_value_heads) == (heads, kv_heads)
    assert mine.intermediate_size * size == config.intermediate_size
    assert mine.vocab_size == config.vocab_size and mine.whole is config


@pytest.mark.parametrize("size", [3, 5, 6, 7, 16])
def test_a_size_that_does_not_divide_names_those_that_do(config: ModelConfig, size: int) -> None:
    message = f"tensor_parallel_size={size} does not divide 8 heads, 2 KV heads .*=256: use one of 1, 2, 4, 8$"
    with pytest.raises(ValueError, match=message):
        divide(config, Ranks(0, size))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_parts_are_the_whole(dim: int, size: int, bits: int | None) -> None:
    floats = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    shape = torch.Size((64 // size, 256) if dim == 0 else (64, 256 // size))

    def target() -> Any:
        if bits is None:
            return torch.empty(shape)
        weight = QuantizedWeight.frame(bits, shape)
        weight.materialize(torch.float32, torch.device("cpu"))
        return weight

    parts = []
    for rank in range(size):
        part = target()
        part.copy_(cut(floats, part, Ranks(rank, size)))
        parts.append(part if bits is None else part.dequantize())
    whole: Any = floats
    if bits is not None:
        weight = QuantizedWeight.frame(bits, floats.shape)
        weight.materialize(torch.float32, torch.device("cpu"))
        weight.copy_(floats)
        whole = weight.dequantize()
    assert torch.cat(parts, dim).equal(whole)


@pytest.mark.parametrize(("rows", "size"), [(7, 2), (9, 4), (5, 4), (2065, 8)])
def test_rows_that_do_not_divide_end_in_zeros(rows: int, size: int) -> None:
    table, each = torch.arange(1.0, 1 + rows * 3).view(rows, 3), -(-rows // size)
    parts = [cut(table, torch.empty(each, 3), Ranks(rank, size)) for rank in range(size)]
    joined = torch.cat(parts)
    assert joined[:rows].equal(table) and not joined[rows:].any()


def test_several_ranks_keep_the_same_kv_head() -> None:
    heads = torch.arange(2.0).repeat_interleave(4)[:, None].expand(8, 5)
    found = [cut(heads, torch.empty(4, 5), Ranks(rank, 8))[:, 0].unique().tolist() for rank in range(8)]
    assert found == [[0.0]] * 4 + [[1.0]] * 4


def test_weights_are_checked_against_the_whole(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 配置说有 4 个 KV 头，文件里是 2 个：切成 4 份后每份同样大，只有与整个模型比才看得出。
    # The configuration says 4 KV heads and the file has 2: cut in 4 a share is as large, and only a look at the whole
    # model tells.
    for file in (models / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "num_key_value_heads": 4}))
    monkeypatch.setattr("engine.config.connect", lambda *_: Ranks(1, 4))
    with pytest.raises(ValueError, match=r"k_proj.weight' has shape \[32, 64\], the model needs \[64, 64\]"):
        LLM(tmp_path, device="cpu")


def test_packed_groups_are_not_cut_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hf_model("llama", **{**MODELS["wide"], "intermediate_size": 128}).save_pretrained(tmp_path / "floats")
    save_tokenizer(tmp_path / "floats")
    pack(tmp_path / "floats", tmp_path / "packed")
    monkeypatch.setattr("engine.config.connect", lambda *_: Ranks(0, 8))
    with pytest.raises(ValueError, match=r"down_proj has 16 columns on each rank, no multiple of 32: use fewer ranks"):
        LLM(tmp_path / "packed", device="cpu")
