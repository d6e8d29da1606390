"""后端注册表：名字 -> 模块。选中哪个后端，才导入哪个模块，所以没装 GPU 包也能用其余后端。

引擎只通过这里的几个函数认识后端；换后端就是换一个名字，引擎、调度器、块管理器一行不改。

The backend registry: name -> module. A backend's module is imported when it is chosen, so a missing GPU package
never hurts the others.

The engine knows backends through these functions only; changing the backend means changing a name, and not a line
of engine, scheduler or block manager.
"""

import importlib
import importlib.util
from typing import NamedTuple

import torch

from backends.base import AttentionBackend, BackendUnavailableError

__all__ = ["BackendStatus", "BackendUnavailableError", "backend_names", "backend_status", "create_backend"]


class _Entry(NamedTuple):
    """登记项：模块、类名、要先装好的包。

    A registration: module, class, and the packages that must be installed.
    """

    module: str
    class_name: str
    packages: tuple[str, ...] = ()


# 加后端就在这里加一行；字典的顺序也是 `--list-backends` 的显示顺序。
# A new backend is one more line here; the order is the one that `--list-backends` shows.
_REGISTRY: dict[str, _Entry] = {
    "torch": _Entry("backends.torch_backend", "TorchBackend"),
    "sdpa": _Entry("backends.sdpa", "SDPABackend"),
}


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


def _why_missing(entry: _Entry) -> str | None:
    """缺少的包；只查找、不导入，查找不会触发 CUDA 初始化。

    The missing packages; they are looked for, not imported, so nothing initialises CUDA.
    """
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _load(name: str) -> type[AttentionBackend]:
    """导入后端所在的模块，返回它的类。

    Import the backend's module and return its class.
    """
    entry = _REGISTRY[name]
    return getattr(importlib.import_module(entry.module), entry.class_name)


def _why_unusable(name: str, device: torch.device) -> str | None:
    """先看包，再问后端自己。

    Packages first, then the backend itself.
    """
    return _why_missing(_REGISTRY[name]) or _load(name).why_unusable(device)


def backend_status(device: str | torch.device) -> list[BackendStatus]:
    """每个后端在 `device` 上能不能用，不能用时附原因。

    For each backend whether it can be used on `device`, and if not why.
    """
    reasons = {name: _why_unusable(name, torch.device(device)) for name in _REGISTRY}
    return [BackendStatus(name, reason is None, reason or "") for name, reason in reasons.items()]


def create_backend(name: str, device: str | torch.device) -> AttentionBackend:
    """按名字创建后端；`auto` 选 `sdpa`，它不需要额外安装，CPU 和 CUDA 都能跑。

    Create a backend by name; `auto` takes `sdpa`, which needs no extra install and runs on CPU and CUDA.

    Raises:
        ValueError: unknown name
        BackendUnavailableError: known, but not usable on this device
    """
    device = torch.device(device)
    if name == "auto":
        name = "sdpa"
    if name not in _REGISTRY:
        raise ValueError(f"unknown backend '{name}': choose one of auto, {', '.join(_REGISTRY)}")
    reason = _why_unusable(name, device)
    if reason:
        usable = ", ".join(status.name for status in backend_status(device) if status.usable)
        raise BackendUnavailableError(f"backend '{name}' cannot run on {device}: {reason}. Usable here: {usable}")
    return _load(name)()
