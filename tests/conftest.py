"""测试的公共部分：随机的小模型文件夹、小分词器、内置模型的引擎。

What the tests share: folders with small random models, a small tokenizer, engines on the embedded model.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest-xdist 的进程已经占满所有核，每个进程再开线程只会互相等待；要在第一次导入 torch 之前设好，子进程也会继承它。
# The processes of pytest-xdist fill all cores, and more threads would only wait for each other; it must be set before
# torch is first imported, and child processes inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# 没有 GPU 时，Triton 核函数在 CPU 上解释执行；这个变量要在第一次导入 triton 之前设好，子进程也会继承它。
# Without a GPU, Triton kernels are interpreted on the CPU; it must be set before triton is first imported, and child
# processes inherit it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

EMBEDDED_MODEL = ROOT / "assets" / "tiny-llama"
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto` 的进程数：每个核一个，至多 4 个，因为每个到最后占两三 GB 内存；有 GPU 时只用一个进程，显存只有一份。

    The processes of `-n auto`: one a core, but at most 4, for each grows to two or three GB of memory; with a GPU a
    single process does it all, for there is but one memory of the GPU.
    """
    return 0 if torch.cuda.is_available() else min(os.cpu_count() or 1, 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """没有 CUDA 时跳过标了 gpu 的测试。

    Skip tests marked gpu where there is no CUDA.
    """
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def save_tokenizer(folder: Path) -> None:
    """把内置模型的分词器复制过来；随机模型的词表取它的大小即可。

    Copy the embedded model's tokenizer; a random model only needs a vocabulary of its size.
    """
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED_MODEL / name).read_bytes())


def make_hf_model(architecture: str = "llama", seed: int = 0, **overrides: Any) -> Any:
    """用 transformers 造一个随机的小模型，权重放大一些，让 logits 有明显的高低。

    A small random model made by transformers, its weights enlarged so that logits differ clearly.
    """
    import transformers

    config: dict[str, Any] = {
        "vocab_size": 2304,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    config.update(overrides)
    torch.manual_seed(seed)
    kind = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture]
    model_class = getattr(transformers, f"{kind}ForCausalLM")
    model = model_class(getattr(transformers, f"{kind}Config")(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.mul_(6.0)
    return model


@pytest.fixture
def make_model_folder(tmp_path: Path) -> Callable[..., Path]:
    """工厂：存好一个随机小模型的文件夹，返回路径。

    A factory: save a folder with a small random model and return its path.
    """

    def make(architecture: str = "llama", name: str = "model", max_shard_size: str = "5GB", **overrides: Any) -> Path:
        folder = tmp_path / name
        model = make_hf_model(architecture, **overrides)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        save_tokenizer(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """小张量用不上多线程；机器忙时，多线程互相等待反而慢许多倍。

    Small tensors gain nothing from threads, and on a busy machine threads that wait for each other are far slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read_config(folder: Path) -> dict[str, Any]:
    """读 config.json。

    Read config.json.
    """
    return json.loads((folder / "config.json").read_text())
