"""`.ci/run` 用的 pytest 插件：第一遍记下运行过的测试；第二遍只运行其余的，除 GPU 测试外一个也不许跳过。

分成几个进程运行时，每个进程都加载它；测试的结果都报给主进程，由它写下记录。

A pytest plugin for `.ci/run`: the first pass writes down the tests that ran; the second runs only the others, and
nothing but GPU tests may be skipped in it.

Where several processes share the tests, each of them loads it; all results are reported to the main process, which
writes them down.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

RECORD = Path(os.environ["TESTS_THAT_RAN"])
FIRST_PASS = not RECORD.exists()

ran: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """第二遍不再运行第一遍运行过的测试。

    The second pass leaves out the tests that ran in the first.
    """
    # 有的测试自己也启动 pytest，那里面不该有这个插件；pytest-xdist 的主进程不收集，它启动的进程还要靠这两个变量加载它。
    # Some tests start pytest themselves, and this plugin is not meant for those; the main process of pytest-xdist
    # collects nothing, and the processes that it starts need both variables to load it.
    for name in ("PYTEST_ADDOPTS", "PYTHONPATH"):
        del os.environ[name]
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
    """一个测试的结果，由运行它的进程查看：跳过的只许是 GPU 测试。

    The result of one test, looked at by the process that ran it: only GPU tests may be skipped.
    """
    report = yield
    return report if item.get_closest_marker("gpu") else fail_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """收集一个文件的结果：模块顶层的 `importorskip` 会跳过整个文件。

    The result of collecting a file: `importorskip` at the top of a module skips all of it.
    """
    return fail_if_skipped((yield))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """主进程收到全部结果，记下运行过的测试。

    The main process gets all results and keeps the tests that ran.
    """
    if report.when == "call" and not report.skipped:
        ran.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """第一遍结束时，主进程写下记录。

    At the end of the first pass the main process writes the record.
    """
    if FIRST_PASS and not hasattr(session.config, "workerinput"):
        RECORD.write_text("\n".join(ran), encoding="utf-8")
