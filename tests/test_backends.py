"""后端注册表：名字、状态、出错时说什么，以及“选中才导入”；融合核函数按设备选。
The backend registry: names, status, what errors say, and "imported when chosen"; fused kernels go by the device.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import backends
from backends import (
    BackendUnavailableError,
    backend_names,
    backend_status,
    choose_backend,
    create_backend,
    create_kernels,
)
from backends.base import AttentionBackend
from backends.cpu_kernels import CPUKernels
from backends.kernels import FusedKernels
from backends.sdpa import SDPABackend
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
    assert names == ["torch", "sdpa", "triton", "flash"]
    status = {entry.name: entry for entry in backend_status("cpu")}
    assert list(status) == names
    for name in ("torch", "sdpa"):
        assert status[name].usable and status[name].reason == ""
    # `flash` 在 CPU 上无论如何都用不了，原因要么是没装，要么是要 CUDA。
    # `flash` never runs on a CPU: it is not installed, or it wants CUDA.
    assert not status["flash"].usable
    assert "not installed: flash_attn" in status["flash"].reason or "CUDA" in status["flash"].reason


def test_triton_on_the_cpu_is_for_tests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"'triton' cannot run on cpu: needs a CUDA GPU.*use sdpa"):
        create_backend("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backend = create_backend("triton", "cpu")
    assert backend.name == "triton" and backend.supports_cuda_graphs and not backend.is_reference
    # 能用归能用，`auto` 在 CPU 上仍是 `sdpa`。
    # Usable it is, but `auto` on a CPU still means `sdpa`.
    assert create_backend("auto", "cpu").name == choose_backend("cpu") == "sdpa"


def test_triton_and_flash_say_what_they_do_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from backends.flash import FlashBackend
    from backends.triton import TritonBackend

    # 解释执行靠 NumPy，它没有 bf16：照样算，结果全错，所以拒绝。
    # The interpreter works by NumPy, which has no bf16: it would compute all the same, all wrong, and is refused.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "bfloat16 cannot be interpreted" in str(TritonBackend.why_unsupported(64, torch.bfloat16))
    assert TritonBackend.why_unsupported(64, torch.float16) is None
    monkeypatch.delenv("TRITON_INTERPRET")
    for head_dim in (16, 32, 64, 128, 256):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert TritonBackend.why_unsupported(head_dim, dtype) is None
    for head_dim in (8, 80, 96, 100, 512):
        reason = TritonBackend.why_unsupported(head_dim, torch.bfloat16)
        assert reason is not None and f"head_dim={head_dim}" in reason and "sdpa" in reason
    assert TritonBackend.why_unsupported(64, torch.float64) is not None
    for head_dim in (64, 96, 128, 256):
        assert FlashBackend.why_unsupported(head_dim, torch.bfloat16) is None
        assert FlashBackend.why_unsupported(head_dim, torch.float32) is not None
    for head_dim in (60, 264):
        assert FlashBackend.why_unsupported(head_dim, torch.float16) is not None
    assert FlashBackend.why_unusable(torch.device("cpu")) is not None
    for size in (256, 512, 1024, FlashBackend.default_block_size):
        FlashBackend.check_block_size(size)
    for size in (0, -256, 16, 128, 300):
        with pytest.raises(ValueError, match=rf"={size} .*'flash'.*multiple of 256"):
            FlashBackend.check_block_size(size)


def fast_backend(name: str, unusable: str | None = None, unsupported: str | None = None) -> type[TorchBackend]:
    """冒充快后端，按要求说“用不了”或“不支持”。
    Stands in for a fast backend, unusable or unsupporting as asked.
    """
    methods = {
        "name": name,
        "why_unusable": classmethod(lambda cls, device: unusable),
        "why_unsupported": classmethod(lambda cls, head_dim, dtype, codes: unsupported),
    }
    return type("FakeBackend", (TorchBackend,), methods)


@pytest.mark.parametrize(
    "triton, flash, chosen",
    [
        ({}, {}, "triton"),
        ({"unusable": "old GPU"}, {}, "flash"),
        ({"unsupported": "head_dim=80"}, {}, "flash"),
        ({"unsupported": "head_dim=80"}, {"unsupported": "head_dim=80"}, "sdpa"),
        ({"unusable": "old GPU"}, {"unusable": "not there"}, "sdpa"),
    ],
)
def test_auto_on_cuda(
    monkeypatch: pytest.MonkeyPatch, triton: dict[str, str], flash: dict[str, str], chosen: str
) -> None:
    # 不用真的 GPU：只看选择的规则。
    # No real GPU is needed: this is about the rule of choice.
    for name, options in (("triton", triton), ("flash", flash)):
        module = ModuleType(f"fake_{name}_module")
        module.FakeBackend = fast_backend(name, **options)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        register(monkeypatch, name, module.__name__)
    assert choose_backend("cuda", 80, torch.bfloat16) == chosen
    assert choose_backend("cpu", 80, torch.bfloat16) == "sdpa"


def test_auto_on_cuda_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("triton", "flash"):
        register(monkeypatch, name, "module_that_nobody_has", (MISSING,))
    assert choose_backend("cuda") == "sdpa"


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


# ---- 融合核函数 ----
# ---- fused kernels ----


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.fixture
def kernels_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """不用真的 GPU：假装有一块 H100，也装了 flash-attn；后端和核函数的对象不在设备上分配。
    No real GPU is needed: pretend that there is an H100, and that flash-attn is installed; the objects of backends and
    kernels allocate nothing on the device.
    """
    pytest.importorskip("triton")
    from backends.triton import TritonBackend, TritonKernels

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(multi_processor_count=132)
    )
    monkeypatch.setattr(TritonKernels, "__init__", FusedKernels.__init__)
    monkeypatch.setattr(TritonBackend, "__init__", AttentionBackend.__init__)
    module = ModuleType("flash_attn")
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def test_the_reference_has_no_kernels_beside_it(warnings: pytest.LogCaptureFixture) -> None:
    backend = create_backend("torch", "cpu")
    assert backend.is_reference and create_kernels(backend, 64, torch.float32) is None
    assert not any(create_backend(name, "cpu").is_reference for name in ("sdpa", "auto"))
    # 这是它的本意，不必提醒。
    # That is what it is for, so there is nothing to warn about.
    assert warnings.records == []


@pytest.mark.parametrize("name", ["sdpa", "triton", "of anybody"])
def test_on_a_cpu_the_cpu_kernels_whatever_the_backend(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture, name: str
) -> None:
    if name == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backend = SDPABackend(torch.device("cpu")) if name == "of anybody" else create_backend(name, "cpu")
    monkeypatch.setattr(type(backend), "name", name)
    for head_dim, dtype in ((64, torch.float32), (80, torch.bfloat16)):
        kernels = create_kernels(backend, head_dim, dtype)
        assert type(kernels) is CPUKernels and kernels.device == torch.device("cpu")
    assert warnings.records == []


@pytest.mark.parametrize("name", ["sdpa", "triton", "flash"])
def test_on_cuda_the_triton_kernels_whatever_the_backend(
    kernels_on_cuda: None, warnings: pytest.LogCaptureFixture, name: str
) -> None:
    from backends.triton import TritonKernels

    backend = create_backend(name, "cuda:1")
    assert not backend.is_reference
    kernels = create_kernels(backend, 64, torch.bfloat16)
    assert type(kernels) is TritonKernels and kernels.device == torch.device("cuda:1")
    assert create_kernels(create_backend("torch", "cuda"), 64, torch.bfloat16) is None
    assert warnings.records == []


@pytest.mark.parametrize(
    "head_dim, dtype, change, reason",
    [
        (80, torch.bfloat16, "", "head_dim=80"),
        (64, torch.float64, "", "float64"),
        (64, torch.bfloat16, "old GPU", "compute capability"),
        (64, torch.bfloat16, "no package", f"not installed: {MISSING}"),
    ],
)
def test_no_kernels_where_they_are_not_supported_and_one_warning(
    kernels_on_cuda: None, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture, head_dim: int,
    dtype: torch.dtype, change: str, reason: str,
) -> None:  # fmt: skip
    if change == "old GPU":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    if change == "no package":
        # 模块也不存在：缺包时根本不该去导入它。
        # The module does not exist either: with a package missing it must not even be imported.
        entry = backends._Entry("module_that_nobody_has", "TritonKernels", (MISSING,))
        monkeypatch.setitem(backends._KERNELS, "cuda", entry)
    assert create_kernels(create_backend("sdpa", "cuda"), head_dim, dtype) is None
    (record,) = warnings.records
    message = record.getMessage()
    assert record.levelno == logging.WARNING and message.startswith("no fused kernels: ") and "\n" not in message
    # 两种语言各说一遍原因。
    # Both languages tell the reason.
    assert message.count(reason) == 2 and "没有融合核函数" in message


def test_a_backend_is_imported_when_chosen() -> None:
    # 契约总在，具体的实现选中才来。
    # The contracts are always there, what implements them comes when it is chosen.
    code = (
        "import sys, backends, torch\n"
        "contracts = {'backends.' + name for name in\n"
        "             ('base', 'kernels', 'kv_cache', 'quantized_cache', 'quantized_weight')}\n"
        "loaded = lambda: print(sorted(m for m in sys.modules if m.startswith('backends.') and m not in contracts))\n"
        "backends.backend_names(); loaded()\n"
        "backend = backends.create_backend('torch', 'cpu'); loaded()\n"
        "backends.create_kernels(backend, 64, torch.float32); loaded()\n"
        "backend = backends.create_backend('sdpa', 'cpu'); loaded()\n"
        "backends.create_kernels(backend, 64, torch.float32); loaded()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    plain = ["backends.torch_backend"]
    assert result.stdout.splitlines() == [
        str(modules)
        for modules in (
            [], plain, plain, ["backends.sdpa", "backends.store", *plain],
            ["backends.cpu_kernels", "backends.sdpa", "backends.store", *plain],
        )
    ]  # fmt: skip
