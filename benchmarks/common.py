"""各个测速脚本的公共部分：建引擎（真实权重或随机权重）、随机提示词、统计、写 JSON。

What the benchmarks share: making an engine (real or random weights), random prompts, statistics, writing JSON.
"""

import argparse
import json
import platform
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.config import EngineConfig  # noqa: E402
from layers.ranks import SPEAKS, WORLD_SIZE  # noqa: E402
from mini_llama import LLM  # noqa: E402

# 随机权重的模型借用内置模型的分词器，测速只用 token id。
# Models with random weights borrow the embedded model's tokenizer; benchmarks use token ids only.
EMBEDDED_MODEL = ROOT / "assets" / "tiny-llama"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """所有脚本都有的选项。

    The options that all scripts have.
    """
    parser.add_argument("--model", metavar="DIR", help="模型文件夹 / model folder")
    parser.add_argument("--config", metavar="FILE", help="只用 config.json，权重随机 / random weights")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--max-model-len", type=int, help="默认取模型上限 / default: the model's limit")
    parser.add_argument("--repeats", type=int, default=3, help="计时几次 / timed runs")
    parser.add_argument("--json", metavar="FILE", help="结果写到文件 / write the results to a file")


def make_llm(args: argparse.Namespace, **options: Any) -> LLM:
    """按选项建引擎；随机权重直接在设备上生成，速度与真实权重相同。

    Make the engine; random weights are made on the device and run as fast as real ones.
    """
    # 由 torchrun 启动时，几个进程合算一个模型。
    # Started by torchrun, the processes share a model.
    options["tensor_parallel_size"] = WORLD_SIZE
    common = {"backend": args.backend, "max_model_len": args.max_model_len, **options}
    if args.config is None:
        return LLM(args.model, **common)
    # 引擎要一个完整的文件夹：配置来自 FILE，再加上分词器。
    # The engine wants a whole folder: the configuration from FILE, and a tokenizer.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(args.config, Path(folder) / "config.json")
        for name in TOKENIZER_FILES:
            shutil.copy(EMBEDDED_MODEL / name, folder)
        return LLM(folder, load_format="dummy", **common)


def model_name(args: argparse.Namespace) -> str:
    """结果属于哪个模型：文件名或文件夹名。

    Which model the results are of: the name of the file or of the folder.
    """
    return Path(args.config).stem if args.config else EngineConfig(args.model).resolve_model_folder().name


def random_prompts(rng: random.Random, lengths: Sequence[int], vocab_size: int) -> list[list[int]]:
    """随机 token id 的提示词，每次都不同，前缀缓存帮不上忙。

    Prompts of random token ids, new each time, so that the prefix cache is no help.
    """
    top = min(10000, vocab_size - 1)
    return [[rng.randint(0, top) for _ in range(length)] for length in lengths]


def spread(values: Sequence[float]) -> dict[str, float]:
    """中位数与最小、最大值。

    Median, minimum and maximum.
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def environment(llm: LLM | None = None) -> dict[str, Any]:
    """设备、版本、日期等，随结果一起保存。

    Device, versions and date, kept with the results.
    """
    on_gpu = torch.cuda.is_available() if llm is None else llm.engine.model_runner.device.type == "cuda"
    info: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if llm is not None:
        runner = llm.engine.model_runner
        info |= {"backend": runner.backend.name, "dtype": str(runner.dtype), "block_size": llm.engine.pool.block_size}
        info |= {"max_model_len": llm.engine.pool.max_model_len, "ranks": llm.engine.ranks.size}
    return info


def write_report(path: str | None, report: dict[str, Any]) -> None:
    """写 JSON，没给文件名就不写；几个进程时由 rank 0 写。

    Write the JSON, if a file is named; of several processes rank 0 does.
    """
    if path and SPEAKS:
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
