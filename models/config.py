"""读 `config.json`：把两种写法的配置变成一个带类型的 `ModelConfig`，不支持的选项在这里就报错。

不执行模型文件夹里的任何代码，只把它当 JSON 读。

Read `config.json`: both spellings become one typed `ModelConfig`, and what is not supported fails here.

No code from the model folder is run; the file is read as JSON and nothing else.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layers.rotary_embedding import Llama3Scaling

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class ModelLoadError(ValueError):
    """模型文件夹有问题：消息一行，写明哪个文件、哪个值、怎么补救。

    Something is wrong with the model folder; one line that names the file, the value and the remedy.
    """


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """模型的形状与常数。

    The model's shapes and constants.

    Attributes:
        head_dim: size of one attention head; not always hidden_size / num_attention_heads
        max_position_embeddings: the longest context the model was made for, in tokens
        rope_theta, rope_scaling: see `layers/rotary_embedding.py`
        dtype: the dtype of the stored weights
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """读一个 JSON 对象。

    Read a file that holds one JSON object.

    Raises:
        ModelLoadError: missing, unreadable, or not an object
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing: a model folder needs it; download the model again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON ({error}): download the model again") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _positive_int(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    """取一个正整数字段。布尔值在 Python 里也是整数，要排除。

    Take a positive integer; a bool is an int in Python, so rule it out.
    """
    value = raw.get(key) if raw.get(key) is not None else default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ModelLoadError(f"config.json: {key} must be a positive integer, got {value!r}")
    return value


def _positive_number(raw: dict[str, Any], key: str, default: float | None = None) -> float:
    """取一个有限的正数字段。

    Take a finite positive number.
    """
    value = raw.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ModelLoadError(f"config.json: {key} must be a positive number, got {value!r}")
    return float(value)


def _flag(raw: dict[str, Any], key: str, default: bool = False) -> bool:
    """取一个布尔字段。

    Take a boolean.
    """
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise ModelLoadError(f"config.json: {key} must be true or false, got {value!r}")
    return value


def _read_rope(raw: dict[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """两种写法：旧的 `rope_theta` 加 `rope_scaling`；新的 `rope_parameters`，`rope_theta` 在它里面。

    Two spellings: the older `rope_theta` plus `rope_scaling`, and the newer `rope_parameters` with `rope_theta` inside.
    """
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ModelLoadError(f"config.json: rope_parameters/rope_scaling must be an object, got {rope!r}")
    theta = _positive_number(rope if "rope_theta" in rope else raw, "rope_theta", 10000.0)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return theta, None
    if rope_type != "llama3":
        raise ModelLoadError(f"config.json: rope type {rope_type!r} is not supported: use default or llama3")
    scaling = Llama3Scaling(
        factor=_positive_number(rope, "factor"),
        low_freq_factor=_positive_number(rope, "low_freq_factor"),
        high_freq_factor=_positive_number(rope, "high_freq_factor"),
        original_max_position_embeddings=_positive_int(rope, "original_max_position_embeddings"),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise ModelLoadError("config.json: low_freq_factor must be smaller than high_freq_factor")
    return theta, scaling


def parse_token_ids(value: Any, where: str) -> tuple[int, ...]:
    """`eos_token_id` 可以没有、是一个整数、或是一列整数。

    `eos_token_id` may be absent, one integer, or a list of them.
    """
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ModelLoadError(f"{where}: eos_token_id must be an integer or a list of integers, got {value!r}")
    return tuple(ids)


def _reject_unsupported(raw: dict[str, Any]) -> None:
    """会改变计算结果而这里没有实现的选项：宁可报错，也不装作没看见。

    Options that would change the result and are not implemented: an error is better than looking away.
    """
    required = {
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "quantization_config": (raw.get("quantization_config"), None),
        "use_sliding_window": (raw.get("use_sliding_window") or False, False),
        "partial_rotary_factor": (raw.get("partial_rotary_factor", 1.0), 1.0),
    }
    for key, (value, supported) in required.items():
        if value != supported:
            raise ModelLoadError(f"config.json: {key}={value!r} is not supported: only {supported!r} is")


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """把 `config.json` 的内容变成 `ModelConfig`，每个字段都检查过。

    Turn the content of `config.json` into a `ModelConfig`, every field checked.

    Raises:
        ModelLoadError: a field is missing, of the wrong kind, or asks for something unsupported
    """
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise ModelLoadError(f"config.json: architectures must name the model class, got {architectures!r}")
    _reject_unsupported(raw)
    hidden_size = _positive_int(raw, "hidden_size")
    num_heads = _positive_int(raw, "num_attention_heads")
    num_kv_heads = _positive_int(raw, "num_key_value_heads", num_heads)
    head_dim = _positive_int(raw, "head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise ModelLoadError(
            f"config.json: {num_heads} query heads do not divide among {num_kv_heads} KV heads"
        )
    if head_dim % 2:
        raise ModelLoadError(f"config.json: head_dim={head_dim} must be even for rotary embedding")
    dtype_name = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise ModelLoadError(f"config.json: dtype {dtype_name!r} is not supported: use {', '.join(_DTYPES)}")
    theta, scaling = _read_rope(raw)
    return ModelConfig(
        architecture=architectures[0],
        vocab_size=_positive_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_positive_int(raw, "intermediate_size"),
        num_hidden_layers=_positive_int(raw, "num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_positive_int(raw, "max_position_embeddings"),
        rms_norm_eps=_positive_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=_flag(raw, "tie_word_embeddings"),
        attention_bias=_flag(raw, "attention_bias"),
        mlp_bias=_flag(raw, "mlp_bias"),
        dtype=_DTYPES[dtype_name],
        eos_token_ids=parse_token_ids(raw.get("eos_token_id"), "config.json"),
    )


def load_config(folder: Path) -> ModelConfig:
    """读模型文件夹里的 `config.json`。

    Read the model folder's `config.json`.

    Raises:
        ModelLoadError: the folder or the file is missing, or the file is wrong
    """
    if not folder.is_dir():
        raise ModelLoadError(f"model folder {folder} does not exist: check --model, or download the model first")
    return parse_config(read_json(folder / "config.json"))
