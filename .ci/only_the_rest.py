"""`.ci/run` 用的 pytest 插件：第一遍记下运行过的测试；第二遍只运行其余的，除 GPU 测试外一个也不许跳过。

A pytest plugin for `.ci/run`: the first pass writes down the tests that ran; the second runs only the others, and
nothing but GPU tests may be skipped in it.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# 有的测试自己也启动 pytest，那里面不该有这个插件。
# Some tests start pytest themselves, and this plugin is not meant for those.
for name in ("PYTEST_ADDOPTS", "PYTHONPATH"):
    del os.environ[name]

RECORD = Path(os.environ.pop("TESTS_THAT_RAN"))
FIRST_PASS = not RECORD.exists()

ran: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """第二遍不再运行第一遍运行过的测试。

    The second pass leaves out the tests that ran in the first.
    """
    if FIRST_PASS:
        return
    before = set(RECORD.read_text(encoding="utf-8").splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
    items[:] = [item for item in items if item.nodeid not in before]


def fail_if_skipped(report: Any) -> Any:
    """第二遍里，跳过就算失败；预期的失败（`xfail`）不算跳过。

    In the second pass a skip is a failure; an expected failure (`xfail`) is no skip.
    """
    if report.skipped and not FIRST_PASS and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr[2]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """一个测试的结果：记下运行过的，查没有运行的。

    The result of one test: those that ran are written down, those that did not are looked at.
    """
    report = yield
    if report.when == "call" and not report.skipped:
        ran.append(item.nodeid)
    return report if item.get_closest_marker("gpu") else fail_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """收集一个文件的结果：模块顶层的 `importorskip` 会跳过整个文件。

    The result of collecting a file: `importorskip` at the top of a module skips all of it.
    """
    return fail_if_skipped((yield))


def pytest_sessionfinish() -> None:
    """第一遍结束时写下记录。

    At the end of the first pass the record is written.
    """
    if FIRST_PASS:
        RECORD.write_text("\n".join(ran), encoding="utf-8")
