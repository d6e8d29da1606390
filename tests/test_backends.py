"""后端注册表：名字、状态、出错时说什么，以及“选中才导入”。
The backend registry: names, status, what errors say, and "imported when chosen".
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import backends
from backends import BackendUnavailableError, backend_names, backend_status, create_backend
from backends.base import AttentionBackend
from backends.torch_backend import TorchBackend

ROOT = Path(__file__).resolve().parent.parent
MISSING = "package_that_nobody_has"


def register(monkeypatch: pytest.MonkeyPatch, name: str, module: str, packages: tuple[str, ...] = ()) -> None:
    """在注册表里临时加一个后端。
    Add a backend to the registry for the length of a test.
    """
    monkeypatch.setitem(backends._REGISTRY, name, backends._Entry(module, "FakeBackend", packages))


class FakeBackend(TorchBackend):
    """只在 `meta` 设备上能用的后端。
    A backend that can be used on the `meta` device only.
    """

    name = "fake"

    @classmethod
    def why_unusable(cls, device: torch.device) -> str | None:
        return None if device.type == "meta" else "needs a meta device: pass --device meta"


@pytest.fixture
def fake_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fake_backend_module")
    module.FakeBackend = FakeBackend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_backend_module", module)
    register(monkeypatch, "fake", "fake_backend_module")


def test_names_and_status() -> None:
    names = backend_names()
    assert {"torch", "sdpa"} <= set(names)
    assert "auto" not in names
    status = {entry.name: entry for entry in backend_status("cpu")}
    assert list(status) == names
    for name in ("torch", "sdpa"):
        assert status[name].usable and status[name].reason == ""


@pytest.mark.parametrize("name", ["torch", "sdpa"])
def test_create_by_name(name: str) -> None:
    for device in ("cpu", torch.device("cpu")):
        backend = create_backend(name, device)
        assert isinstance(backend, AttentionBackend)
        assert backend.name == name
    assert create_backend(name, "cpu") is not create_backend(name, "cpu")


def test_auto_is_sdpa_on_the_cpu() -> None:
    assert create_backend("auto", "cpu").name == "sdpa"


@pytest.mark.parametrize("name", ["nope", "", "SDPA", "torch ", "__init__", "os.path"])
def test_unknown_name_lists_the_names(name: str) -> None:
    with pytest.raises(ValueError) as error:
        create_backend(name, "cpu")
    assert repr(name) in str(error.value)
    for known in ("auto", *backend_names()):
        assert known in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # 模块也不存在：缺包时根本不该去导入它。
    # The module does not exist either: with a package missing it must not even be imported.
    register(monkeypatch, "fake", "module_that_nobody_has", ("torch", MISSING))
    with pytest.raises(BackendUnavailableError) as error:
        create_backend("fake", "cpu")
    message = str(error.value)
    assert "'fake'" in message and MISSING in message and "torch, sdpa" in message
    status = {entry.name: entry for entry in backend_status("cpu")}["fake"]
    assert not status.usable
    assert MISSING in status.reason
    assert create_backend("torch", "cpu").name == "torch"


def test_a_backend_that_refuses_the_device(fake_module: None) -> None:
    with pytest.raises(BackendUnavailableError, match=r"'fake' cannot run on cpu: needs a meta device.*torch, sdpa"):
        create_backend("fake", "cpu")
    assert create_backend("fake", "meta").name == "fake"
    assert {entry.name: entry.usable for entry in backend_status("meta")}["fake"]
    assert not {entry.name: entry.usable for entry in backend_status("cpu")}["fake"]


@pytest.mark.parametrize("name", ["torch", "sdpa"])
def test_block_sizes(name: str) -> None:
    backend = create_backend(name, "cpu")
    for size in (8, 16, 32, 64, 128, 256, 1024, backend.default_block_size):
        backend.check_block_size(size)
    for size in (0, -8, 1, 2, 4, 7, 9, 12, 24, 100, 255, 257):
        with pytest.raises(ValueError, match=rf"={size} .*'{name}'.*power of two from 8.*default 16"):
            backend.check_block_size(size)


def test_a_backend_is_imported_when_chosen() -> None:
    code = (
        "import sys, backends\n"
        "loaded = lambda: sorted(m for m in sys.modules if m.startswith('backends.') and m != 'backends.base')\n"
        "backends.backend_names(); print(loaded())\n"
        "backends.create_backend('sdpa', 'cpu'); print(loaded())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["[]", "['backends.sdpa']"]
