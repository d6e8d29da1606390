"""EngineConfig：用户能设的全部选项，只在这里检查一次。

EngineConfig: all that a user may set, checked once, here.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from models.config import ModelLoadError

EMBEDDED_MODEL = Path(__file__).resolve().parent.parent / "assets" / "tiny-llama"

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """引擎的选项，默认值适合笔记本电脑。

    The engine's options; the defaults suit a laptop.

    Attributes:
        model: model folder, hub id in the local cache, or None for the embedded model
        backend: attention backend, or "auto"
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "auto", "float32", "bfloat16" or "float16"
        max_model_len: longest prompt + output in tokens; None takes what the model and the memory allow
        max_num_seqs: most sequences running at once
        max_num_batched_tokens: token budget of one step; None is 8192 on CUDA, 2048 on the CPU
        kvcache_block_size: tokens per block; None is the backend's default
        num_kvcache_blocks: size of the pool; None is what the memory allows
        gpu_memory_utilization: share of the GPU's memory that the engine may use, in (0, 1]
        enable_prefix_caching: share blocks of equal prefixes
        enforce_eager: never capture CUDA graphs
        seed: where the seeds of requests without one come from
        strict: check every invariant in every step (slow; for tests and for learning)

    Raises:
        ValueError: a value is out of range
    """

    model: str | Path | None = None
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    kvcache_block_size: int | None = None
    num_kvcache_blocks: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    seed: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        required = ("max_num_seqs",)
        optional = ("max_model_len", "max_num_batched_tokens", "kvcache_block_size", "num_kvcache_blocks")
        for name in required + optional:
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} is out of range: use an integer from 1 up")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization={self.gpu_memory_utilization!r} is out of range: use a share in (0, 1]"
            )
        if self.dtype != "auto" and self.dtype not in _DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown: use auto, {', '.join(_DTYPES)}")
        if self.seed is not None and (not isinstance(self.seed, int) or not 0 <= self.seed < 2**63):
            raise ValueError(f"seed={self.seed!r} is out of range: use an integer from 0 to 2**63 - 1, or None")

    def resolve_device(self) -> torch.device:
        """`auto` 是有 CUDA 就用 CUDA，否则 CPU。

        `auto` is CUDA where there is one, else the CPU.

        Raises:
            ValueError: no such device here
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device={self.device!r} is unknown: use auto, cpu, cuda or cuda:N") from None
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device!r} is not supported: use auto, cpu, cuda or cuda:N")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={self.device!r}: only {torch.cuda.device_count()} CUDA devices here; use cpu")
        return device

    def resolve_dtype(self, model_dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """`auto`：CPU 上用 float32；CUDA 上用模型自己的，不支持 bf16 的老卡改用 float16。

        `auto`: float32 on the CPU; on CUDA the model's own, or float16 where the GPU has no bf16.
        """
        if self.dtype != "auto":
            return _DTYPES[self.dtype]
        if device.type == "cpu":
            return torch.float32
        if model_dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.float16
        return model_dtype

    def resolve_model_folder(self) -> Path:
        """None 是内嵌模型；存在的路径就用它；像 `org/name` 的当作 hub id，到本地缓存里找。

        None is the embedded model; an existing path is used; what looks like `org/name` is a hub id, looked up in the
        local cache.

        Raises:
            ModelLoadError: none of these; the message says how to download
        """
        if self.model is None:
            return EMBEDDED_MODEL
        folder = Path(self.model).expanduser()
        name = str(self.model)
        # 恰好 1 个斜杠、不以 . 或 / 开头的，才可能是 hub id；其余一律是路径。
        # Only a name with exactly 1 slash that starts with neither . nor / can be a hub id; all else is a path.
        if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
            return folder
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
            raise ModelLoadError(
                f"model {name} is neither a folder nor in the local cache: download it with 'hf download {name}'"
            ) from None
