"""各部分之间的接缝：参考后端只走逐步写出的代码，引擎不碰进程里别人的设置，后端每步只准备一次、什么都不记。

The seams between the parts: the reference runs the written-out lines and nothing else, the engine leaves the settings
of the process alone, and a backend prepares once a step and remembers nothing.
"""

import ast
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import small_model_folder
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mini_llama
from backends.cpu_kernels import CPUKernels
from backends.kernels import FusedKernels
from engine.guides import StructuredOutputsParams
from engine.sampling_params import SamplingParams
from serving.llm import LLM

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("seams") / "model")


def make_llm(folder: Path, **options: Any) -> LLM:
    common = {"device": "cpu", "num_kvcache_blocks": 64, "max_model_len": 128, "seed": 0, "strict": True}
    return LLM(folder, **{**common, **options})


# 贪心、采样、过滤、惩罚、对数概率、几份输出、停止字符串、语法；预算小，长的提示词要分块。
# Greedy, sampled, filters, penalties, log-probabilities, several outputs, a stop string, a grammar; a small budget
# makes chunks.
PROMPTS = [[5, 6, 7], [9] * 40, list(range(30, 55)), list(range(30, 60)), [3, 1, 4, 1, 5], "hello", [8, 8]]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=2),
    SamplingParams(temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, max_tokens=6, ignore_eos=True, logprobs=0),
    SamplingParams(temperature=0.8, max_tokens=6, n=2, min_tokens=3),
    SamplingParams(temperature=0.0, max_tokens=6, repetition_penalty=1.3, presence_penalty=0.5, logprobs=1),
    SamplingParams(temperature=1.2, max_tokens=6, frequency_penalty=0.7, ignore_eos=True),
    SamplingParams(temperature=0.0, max_tokens=6, stop=["zz"], ignore_eos=True),
    SamplingParams(temperature=0.9, max_tokens=6, structured_outputs=StructuredOutputsParams(regex="[a-z]{2,9}")),
]


def answers(llm: LLM) -> list[Any]:
    """全部输出，对数概率也在内，要逐位相同。

    All outputs, log-probabilities included, to be equal bit for bit.
    """
    outputs = llm.generate(PROMPTS, PARAMS, progress=False)
    return [(o.text, o.token_ids, o.finish_reason, o.logprobs) for output in outputs for o in output.outputs]


# ---- 逐步写出的代码，没有别的 ----
# ---- the written-out lines and nothing else ----

# 凡是有逐步写法的地方，那些“一次做完”的算子。
# Operators that do in one call what is written out step by step somewhere.
FAST = ("mkldnn", "scaled_dot_product", "rms_norm", "embedding", "_scaled_mm", "flash", "_native_multi_head")


class Spy(TorchDispatchMode):
    """记下名字里有 `FAST` 的算子。

    Records operators whose names have a piece of `FAST`.
    """

    def __init__(self, seen: set[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.update(piece for piece in FAST if piece in func.name())
        return func(*args, **(kwargs or {}))


class FunctionSpy(TorchFunctionMode):
    """同上，看的是 Python 里调用的函数：有的函数到了算子那一层，已经换了名字。

    The same for functions called in Python: some have another name by the time they are operators.
    """

    def __init__(self, seen: set[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.update(piece for piece in FAST if piece in getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@contextmanager
def spying() -> Iterator[set[str]]:
    """期间用到的快速算子，和调用过的核函数的方法。

    The fast operators used meanwhile, and the methods of kernels that were called.
    """
    seen: set[str] = set()

    def recorded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: seen.add(name) or method(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, FunctionSpy(seen), Spy(seen):
        for kernels in (FusedKernels, *FusedKernels.__subclasses__()):
            for name, method in vars(kernels).items():
                if inspect.isfunction(method):
                    patch.setattr(kernels, name, recorded(f"{kernels.__name__}.{name}", method))
        yield seen


def answer(folder: Path, **options: Any) -> None:
    make_llm(folder, **options).generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True), progress=False)


METHODS = {
    f"CPUKernels.{name}" for name, method in vars(CPUKernels).items()
    if inspect.isfunction(method) and name != "_quantized_linear"
}  # fmt: skip


def test_the_spy_sees_the_fast_path(folder: Path) -> None:
    # 先证明它看得见，下面的“什么都没看见”才算数。
    # First prove that it sees something; only then does it count that below it sees nothing.
    with spying() as seen:
        answer(folder, backend="sdpa")
    assert len(METHODS) > 5 and {"mkldnn", "scaled_dot_product", "embedding", *METHODS} <= seen
    with spying() as seen:
        answer(folder, backend="sdpa", enforce_eager=True)
    assert "scaled_dot_product" in seen and "mkldnn" not in seen
    assert not any("Kernels" in name for name in seen)
    with spying() as seen:
        torch.nn.functional.rms_norm(torch.ones(2, 4), (4,))
    assert "rms_norm" in seen


@pytest.mark.parametrize(
    "options",
    [{}, {"enforce_eager": True}, pytest.param({"device": "cuda", "enforce_eager": True}, marks=pytest.mark.gpu)],
    ids=str,
)
def test_the_reference_runs_nothing_but_plain_lines(folder: Path, options: dict[str, Any]) -> None:
    with spying() as seen:
        answer(folder, backend="torch", **options)
    assert seen == set()


def test_the_command_line_runs_nothing_but_plain_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(folder), "--device", "cpu", "--prompt", "hello", "--max-tokens", "3"]
    with spying() as seen:
        assert mini_llama.main([*arguments, "--backend", "torch", "--enforce-eager"]) == 0
    assert seen == set()
    assert capsys.readouterr().out


# ---- 每步一次 ----
# ---- once a step ----


def test_a_plan_is_made_once_a_step_and_the_backend_keeps_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make_llm(folder, backend="sdpa", max_num_batched_tokens=32)
    backend, plans = llm.engine.model_runner.backend, []
    before = dict(vars(backend))
    layers = llm.engine.model_runner.model.attention_layers()
    assert len(layers) == 2 and all(layer.backend is backend for layer in layers)
    real_prepare, real_attend, used = type(backend).prepare, type(layers[0]).attend, []

    def prepare(self: Any, metadata: Any) -> Any:
        plans.append(real_prepare(self, metadata))
        return plans[-1]

    def attend(self: Any, q: torch.Tensor, metadata: Any) -> torch.Tensor:
        used.append(metadata.plan)
        return real_attend(self, q, metadata)

    monkeypatch.setattr(type(backend), "prepare", prepare)
    monkeypatch.setattr(type(layers[0]), "attend", attend)
    steps = 0
    for prompt, params in zip(PROMPTS, PARAMS):
        llm.engine.add_request(prompt, params)
    while llm.engine.has_unfinished():
        llm.engine.step()
        steps += 1
        assert vars(backend) == before
    assert steps > 6 and len(plans) == steps
    # 每层用的正是这一步的那一份。
    # Every layer used the very plan of its step.
    assert len(used) == 2 * steps and all(used[2 * i] is used[2 * i + 1] is plans[i] for i in range(steps))


# ---- 别人的设置 ----
# ---- other people's settings ----


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
            stack.enter_context(torch.autocast(device, dtype=torch.bfloat16))
        yield


@contextmanager
def everything() -> Iterator[None]:
    with ExitStack() as stack:
        for name, make in SURROUNDINGS.items():
            if name != "everything":
                stack.enter_context(make())
        yield


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": autocast,
    "inference mode": torch.inference_mode,
    # `meta` 上的张量没有内容：哪里漏写了设备，马上就会出错。
    # Tensors on `meta` have no contents: wherever a device is not named, it fails at once.
    "another device": lambda: torch.device("meta"),
    "everything": everything,
}


def settings() -> list[Any]:
    """进程和线程里人人共用的设置，全局随机数的状态也在内。

    The settings that all share in a process or a thread, the state of the global generator included.
    """
    return [
        torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
        torch.get_num_interop_threads(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.backends.cuda.matmul.allow_tf32,
        torch.is_autocast_cache_enabled(), torch.is_inference_mode_enabled(), torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
    ]  # fmt: skip


OPTIONS: dict[str, dict[str, Any]] = {
    "torch": {"backend": "torch"},
    "sdpa": {"backend": "sdpa"},
    "bfloat16": {"backend": "sdpa", "dtype": "bfloat16"},
    # 重叠循环、CUDA graph、核函数，都在里面。
    # The overlapped loop, CUDA graphs and kernels are all in it.
    "cuda": {"backend": "triton", "device": "cuda", "dtype": "float32", "max_num_seqs": 4},
}


@pytest.fixture(scope="module")
def plain_answers(folder: Path) -> Callable[[str], list[Any]]:
    """没有别人的设置时的输出。

    The outputs without other people's settings.
    """
    return cache(lambda name: answers(make_llm(folder, max_num_batched_tokens=32, **OPTIONS[name])))


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("where", ["made and run inside", "made inside", "run inside"])
@pytest.mark.parametrize("options", [*list(OPTIONS)[:-1], pytest.param("cuda", marks=pytest.mark.gpu)])
def test_foreign_settings_change_nothing_and_are_not_changed(
    folder: Path, plain_answers: Callable[[str], list[Any]], surroundings: str, where: str, options: str
) -> None:
    surround, expected = SURROUNDINGS[surroundings], plain_answers(options)
    outside = settings()
    with surround() if where != "run inside" else nullcontext():
        before = settings()
        assert (before != outside) == (where != "run inside")
        llm = make_llm(folder, max_num_batched_tokens=32, **OPTIONS[options])
        assert settings() == before
    with surround() if where != "made inside" else nullcontext():
        before = settings()
        found = answers(llm)
        assert settings() == before
    assert found == expected
    assert settings() == outside


FORBIDDEN = {
    "set_default_dtype", "set_default_device", "set_default_tensor_type", "set_num_threads", "set_num_interop_threads",
    "set_float32_matmul_precision", "set_grad_enabled", "set_rng_state", "use_deterministic_algorithms",
    "set_autocast_enabled", "set_autocast_dtype", "seed_all", "manual_seed_all", "set_device",
}  # fmt: skip


def settings_changed(source: str) -> list[str]:
    """源码里改动进程设置的地方：调用某个 `set_...`，给 `torch.backends` 赋值，`torch.manual_seed`。

    Where a source changes settings of the process: a call of some `set_...`, an assignment to `torch.backends`,
    `torch.manual_seed`.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            # 自己的发生器可以有种子：`torch.Generator().manual_seed(0)`。
            # A generator of one's own may have a seed: `torch.Generator().manual_seed(0)`.
            if name in FORBIDDEN or ast.unparse(node) in ("torch.manual_seed", "torch.cuda.manual_seed"):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [f"{node.lineno}: {text}" for text in map(ast.unparse, targets) if text.startswith("torch.")]
        if isinstance(node, ast.alias) and node.name in FORBIDDEN:
            found.append(f"{node.lineno}: {node.name}")
    return found


@pytest.mark.parametrize("package", ["serving", "engine", "models", "layers", "backends"])
def test_no_source_changes_settings_of_the_process(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): settings_changed(path.read_text(encoding="utf-8")) for path in files}
    found = {path: [line.partition(": ")[2] for line in lines] for path, lines in found.items() if lines}
    # 由 torchrun 启动的进程各有一个 GPU，核函数总是启动在“当前”的那个上：只有这一处选定它。
    # Processes that torchrun has started have a GPU each, and kernels are launched on the current one: this alone
    # chooses it.
    assert found == ({"layers/ranks.py": ["torch.cuda.set_device"]} if package == "layers" else {})


@pytest.mark.parametrize(
    "source, count",
    [
        ("torch.set_default_dtype(x)", 1),
        ("from torch import set_num_threads", 1),
        ("f = torch.set_default_device", 1),
        ("torch.backends.cuda.matmul.allow_tf32 = True", 1),
        ("torch.manual_seed(0)", 1),
        ("torch.Generator().manual_seed(0)\nwith torch.device('meta'):\n    x = torch.empty(3)", 0),
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str, count: int) -> None:
    assert len(settings_changed(source)) == count
