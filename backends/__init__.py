"""后端注册表：名字 -> 模块。选中哪个后端，才导入哪个模块，所以没装 GPU 包也能用其余后端。

引擎只通过这里的几个函数认识后端；换后端就是换一个名字，引擎、调度器、块管理器一行不改。

The backend registry: name -> module. A backend's module is imported when it is chosen, so a missing GPU package
never hurts the others.

The engine knows backends through these functions only; changing the backend means changing a name, and not a line
of engine, scheduler or block manager.
"""

import importlib
import importlib.util
import logging
from typing import Any, NamedTuple

import torch

from backends.base import AttentionBackend, BackendUnavailableError
from backends.kernels import FusedKernels

logger = logging.getLogger(__name__)


class _Entry(NamedTuple):
    """登记项：模块、类名、要先装好的包。

    A registration: module, class, and the packages that must be installed.
    """

    # 存的是名字而不是类：写成类就得在文件开头导入它，没装 GPU 包的机器连 `torch` 后端都用不了。
    # Names and not classes: a class would have to be imported at the top,
    # and without the GPU packages not even the `torch` backend would start.
    module: str
    class_name: str
    # 要写顶层包名，例如 `flash_attn`：查找 `a.b` 会先导入 `a`，“只查不导入”就落空了。
    # Top-level names, such as `flash_attn`: looking for `a.b` imports `a`, which is what looking is meant to avoid.
    packages: tuple[str, ...] = ()


# 加后端就在这里加一行；字典的顺序也是 `--list-backends` 的显示顺序。
# A new backend is one more line here; the order is the one that `--list-backends` shows.
_REGISTRY: dict[str, _Entry] = {
    "torch": _Entry("backends.torch_backend", "TorchBackend"),
    "sdpa": _Entry("backends.sdpa", "SDPABackend"),
    "triton": _Entry("backends.triton", "TritonBackend", ("triton",)),
    "flash": _Entry("backends.flash", "FlashBackend", ("flash_attn", "triton")),
}

# 融合核函数按设备选，与注意力后端无关。
# Fused kernels go by the device, whatever the attention backend.
_KERNELS = {
    "cpu": _Entry("backends.cpu_kernels", "CPUKernels"),
    "cuda": _Entry("backends.triton", "TritonKernels", ("triton",)),
}

# `auto` 在 CUDA 上依次尝试的后端，按实测的快慢排：解码和预填充都是 `triton` 更快，见 `docs/*/performance.md`。
# What `auto` tries on CUDA, in the order measured: `triton` is faster in decode and prefill; see
# `docs/*/performance.md`.
_AUTO_ON_CUDA = ("triton", "flash")


class BackendStatus(NamedTuple):
    """一个后端在某设备上的状态，给 `--list-backends` 用。

    One backend's state on a device, for `--list-backends`.
    """

    name: str
    usable: bool
    reason: str


def backend_names() -> list[str]:
    """全部后端名，不含 `auto`。

    The names of all backends, `auto` not among them.
    """
    return list(_REGISTRY)


def _load(entry: _Entry) -> Any:
    """导入登记的模块，返回它的类。

    Import the registered module and return its class.
    """
    # 重复导入不花时间：模块已在 `sys.modules` 这张表里，直接取出。
    # Importing again costs nothing: the module is already in the table `sys.modules`.
    return getattr(importlib.import_module(entry.module), entry.class_name)


def _why_unusable(entry: _Entry, device: torch.device) -> str | None:
    """先看要装的包，再问登记的类自己。

    The packages that must be installed first, then the registered class itself.
    """
    # `find_spec` 只在磁盘上找这个包，像 `which` 之于命令；真去导入可能要几秒，还可能初始化 CUDA。
    # `find_spec` only looks on disk, as `which` does for a command; an import may take seconds and touch CUDA.
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    # 缺包时右边不执行，模块也就不会被导入，不会因 `ImportError` 而崩溃。
    # With a package missing the right side never runs: the module is not imported, and no `ImportError` escapes.
    return f"not installed: {', '.join(missing)}" if missing else _load(entry).why_unusable(device)


def backend_status(device: str | torch.device) -> list[BackendStatus]:
    """每个后端在 `device` 上能不能用，不能用时附原因。

    For each backend whether it can be used on `device`, and if not why.
    """
    # 例：在 CPU 上，要 CUDA 的后端得到一句原因，其余是 None。
    # Example: on the CPU, a backend that needs CUDA gets a reason and the others None.
    reasons = {name: _why_unusable(entry, torch.device(device)) for name, entry in _REGISTRY.items()}
    return [BackendStatus(name, reason is None, reason or "") for name, reason in reasons.items()]


def choose_backend(device: str | torch.device, head_dim: int = 128, dtype: torch.dtype = torch.bfloat16,
                   codes: torch.dtype | None = None) -> str:
    """`auto` 的选择：CUDA 上第一个能用、又支持这个模型的快后端，否则 `sdpa`；不知道是哪个模型时，按常见的形状算。

    What `auto` means: on CUDA the first fast backend that is usable and supports this model, else `sdpa`; with no model
    known, a common shape is assumed.

    Args:
        codes: 量化的 KV 缓存里编码的类型，None 是不量化；the codes' type in a quantized KV cache, None: not quantized
    """
    device = torch.device(device)
    # 解释模式下的 `triton` 在 CPU 上也“能用”，但慢得多，所以先看设备。
    # Interpreted, `triton` is usable on a CPU as well, but far slower, so the device comes first.
    for name in _AUTO_ON_CUDA if device.type == "cuda" else ():
        entry = _REGISTRY[name]
        if not (_why_unusable(entry, device) or _load(entry).why_unsupported(head_dim, dtype, codes)):
            return name
    return "sdpa"


def create_backend(name: str, device: str | torch.device, head_dim: int = 128, dtype: torch.dtype = torch.bfloat16,
                   codes: torch.dtype | None = None) -> AttentionBackend:
    """按名字创建后端；`auto` 由 `choose_backend` 换成具体的名字。

    Create a backend by name; `choose_backend` turns `auto` into one.

    Raises:
        ValueError: 没有这个名字；unknown name
        BackendUnavailableError: 有这个名字，但在这个设备上用不了；known, but not usable on this device
    """
    # `"cuda"` 和 `torch.device("cuda")` 都收；统一之后，下面只处理一种类型。
    # Both `"cuda"` and `torch.device("cuda")` are welcome; made uniform, what follows handles one type.
    device = torch.device(device)
    if name == "auto":
        name = choose_backend(device, head_dim, dtype, codes)
    # 名字写错和机器不支持是两种错误：前者改拼写，后者装包或换后端，所以类型不同，消息也不同。
    # A wrong name and an unfit machine differ: one wants its spelling mended,
    # the other a package or another backend, so the errors differ.
    if str(name) not in _REGISTRY:
        raise ValueError(f"unknown backend '{name}': choose one of auto, {', '.join(_REGISTRY)}")
    # 在创建时就失败，而不是等到第一次前向：那时已经读了好几个 GB 的权重。
    # Fail at creation and not in the first forward pass, when gigabytes of weights have been read.
    if reason := _why_unusable(_REGISTRY[name], device):
        usable = ", ".join(status.name for status in backend_status(device) if status.usable)
        raise BackendUnavailableError(f"backend '{name}' cannot run on {device}: {reason}. Usable here: {usable}")
    backend: AttentionBackend = _load(_REGISTRY[name])(device)
    return backend


def create_kernels(backend: AttentionBackend, head_dim: int, dtype: torch.dtype,
                   codes: torch.dtype | None = None) -> FusedKernels | None:
    """后端所在设备的融合核函数；参考后端旁边没有，缺包或不支持这个模型时也没有（说一次为什么）。

    The fused kernels of the backend's device; none beside the reference, and none where a package is missing or the
    model is not supported (which is said once).
    """
    if backend.is_reference:
        return None
    entry = _KERNELS[backend.device.type]
    # 没有核函数不算错，每一步都有逐步的写法，只是慢；可是慢在哪里，要让人看得到。
    # To have none is no error, as each step has its plain form, only slower; but why it is slow should be seen.
    if reason := _why_unusable(entry, backend.device) or _load(entry).why_unsupported(head_dim, dtype, codes):
        logger.warning("no fused kernels: %s / 没有融合核函数：%s", reason, reason)
        return None
    kernels: FusedKernels = _load(entry)(backend.device)
    return kernels
