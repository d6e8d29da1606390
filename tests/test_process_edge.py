"""命令行的边缘：退出码，Ctrl-C，写不出去的输出，控制字符，基础模型，线程数。

The edges of the command line: exit codes, Ctrl-C, output that cannot be written, control characters, base models, the
number of threads.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EMBEDDED_MODEL

import mini_llama
import serving.console
from engine.sampling_params import SamplingParams
from serving.console import printable
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
needs_sh = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell to close outputs")
ESCAPES = "\x1b]0;owned\x07\x1b[31mred\x9b2J\r\x08\x7fend\tof\nline"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """在 sh 里运行；`$M` 是命令行程序。

    Run in sh, where `$M` is the command line.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "M": f"{sys.executable} {ROOT / 'mini_llama.py'} --device cpu"}
    return subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = mini_llama.main(["--device", "cpu", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_line(text: str, says: str) -> None:
    errors = [line for line in text.splitlines() if line and not line.endswith(" s")]
    assert len(errors) == 1 and says in errors[0] and "Traceback" not in text, text


# ---- 写不出去的输出 ----
# ---- output that cannot be written ----


@needs_full
@pytest.mark.parametrize(
    "command", ["$M --prompt hi --max-tokens 3 > /dev/full", "$M --list-backends > /dev/full", "$M --help > /dev/full"]
)
def test_a_full_disk_is_one_line_and_2(command: str) -> None:
    result = shell(command)
    assert result.returncode == 2
    assert_one_line(result.stderr, "No space left")


@needs_full
def test_a_full_disk_in_a_chat() -> None:
    result = shell("echo hi | $M --chat --max-tokens 3 > /dev/full")
    assert result.returncode == 2
    assert_one_line(result.stderr, "No space left")


@needs_sh
def test_closed_outputs() -> None:
    result = shell("$M --prompt hi --max-tokens 3 >&-")
    assert result.returncode == 2
    assert_one_line(result.stderr, "standard output is closed")
    result = shell("$M --prompt hi --max-tokens 3 2>&-")
    assert result.returncode == 0 and "> hi" in result.stdout
    assert shell("$M --temperature 3 2>&-").returncode == 2


@needs_full
def test_a_recording_that_cannot_be_written_loses_no_answer(tmp_path: Path) -> None:
    result = shell("$M --prompt 'What is 23 + 45?' --max-tokens 20 --xray /dev/full")
    assert result.returncode == 2 and "23 + 45 = 68." in result.stdout
    assert_one_line(result.stderr, "cannot write the recording")


@pytest.mark.parametrize("option", ["--xray", "--xray-trace"])
def test_a_bad_path_fails_before_weights_are_read(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mini_llama, "LLM", lambda *_, **__: pytest.fail("weights were read"))
    os.mkfifo(tmp_path / "pipe")
    for bad in ("no/such/folder/x.html", str(tmp_path), "x" * 300 + ".html", str(tmp_path / "pipe")):
        code, out, err = call(capsys, "--prompt", "hi", option, bad)
        assert code == 2 and out == ""
        assert_one_line(err, f"cannot write {bad}")
    # 检查之后，没有留下空文件。
    # After the check no empty file is left behind.
    monkeypatch.setattr(mini_llama, "LLM", lambda *_, **__: (_ for _ in ()).throw(ValueError("stop here")))
    assert call(capsys, "--prompt", "hi", option, str(tmp_path / "new.html"))[0] == 2
    assert not (tmp_path / "new.html").exists()


# ---- Ctrl-C ----


def interrupted_after(milliseconds: int, *arguments: str) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", START, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, text=True,
    )
    assert process.stdout is not None
    # 程序一启动就报告，从那时算起。
    # The program reports as soon as it starts, and the time counts from there.
    process.stdout.readline()
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    return process.returncode, err


# 与直接运行 mini_llama.py 相同；只是先报告，再让 SIGINT 用 Python 自己的处理函数（后台作业里它被忽略）。
# The same as running mini_llama.py, but it reports first and gives SIGINT Python's own handler, which is ignored in
# background jobs.
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, ".")
sys.argv = ["mini_llama.py", "--device", "cpu", *sys.argv[1:]]
code = compile(open("mini_llama.py").read(), "mini_llama.py", "exec")
scope = {"__name__": "__main__", "__file__": "mini_llama.py"}
first, rest = code, None
sys.stdout.write("ready\\n"); sys.stdout.flush()
exec(code, scope)
"""


@needs_sh
@pytest.mark.parametrize("milliseconds", [30, 200, 700, 1500, 3000])
def test_130_and_no_traceback_at_any_time(milliseconds: int) -> None:
    code, err = interrupted_after(milliseconds, "--prompt", "count to 100", "--max-tokens", "2000")
    assert code == 130 or (code == 0 and milliseconds > 1000), err
    assert "Traceback" not in err and "Exception ignored" not in err


def test_ctrl_c_while_the_interpreter_ends() -> None:
    # 解释器先撤掉信号处理函数，再销毁模块里的对象，所以 `__del__` 正好落在撤掉之后。
    # The interpreter takes its signal handlers down before it destroys the objects of modules, so `__del__` runs after.
    late = """
import os
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, 2)
os.late = Late()
"""
    arguments = ["--prompt", "What is 23 + 45?"]
    done = subprocess.run([sys.executable, "-c", late + START, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "68" in done.stdout) == (0, True), done.stderr


def test_ctrl_c_in_a_callback_that_swallows_exceptions_is_not_lost() -> None:
    # 垃圾回收的回调里抛出的异常，Python 会吞掉；正好在那里按下 Ctrl-C。
    # Python swallows what a callback of the garbage collector raises; the Ctrl-C comes just in there.
    inside = """
import gc, os, signal, sys
gone = []
def press(phase, info):
    engine = sys.modules.get("engine.scheduler")
    if engine and not gone and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        gone.append(1)
        os.kill(os.getpid(), 2)
gc.callbacks.append(press)
"""
    arguments = ["--prompt", "count to 100", "--max-tokens", "2000"]
    done = subprocess.run([sys.executable, "-c", inside + START, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_ctrl_c_that_a_library_turns_into_its_own_error() -> None:
    # 与 safetensors 一样：读张量时回调 Python，落在里面的 Ctrl-C 变成它自己的错误。
    # As safetensors does: reading a tensor calls back into Python, and a Ctrl-C in there becomes an error of its own.
    swallow = """
import os, time
from safetensors import SafetensorError
import models.loader
class Opened:
    def __init__(self, *args, **kwargs): self.real = real(*args, **kwargs)
    def __enter__(self): return self.real.__enter__()
    def __exit__(self, *args): return self.real.__exit__(*args)
    def get_tensor(self, name):
        try:
            os.kill(os.getpid(), 2)
            time.sleep(1)
        except KeyboardInterrupt:
            raise SafetensorError("no shape")
real, models.loader.safe_open = models.loader.safe_open, Opened
"""
    start = START.replace('sys.path.insert(0, ".")', 'sys.path.insert(0, ".")' + swallow)
    done = subprocess.run([sys.executable, "-c", start, "--prompt", "hi"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr and "corrupt" not in done.stderr and "Traceback" not in done.stderr


@needs_sh
@pytest.mark.long
def test_130_at_many_times() -> None:
    for milliseconds in range(5, 4000, 100):
        code, err = interrupted_after(milliseconds, "--prompt", "count to 100", "--max-tokens", "2000")
        assert code in (0, 130), (milliseconds, err)
        assert "Traceback" not in err and "Exception ignored" not in err, (milliseconds, err)


# ---- 控制字符 ----
# ---- control characters ----


def test_what_printable_leaves() -> None:
    every = "".join(map(chr, range(0x3000)))
    shown = printable(every)
    assert {c for c in shown if not c.isprintable() and (ord(c) < 32 or 127 <= ord(c) < 160)} == {"\t", "\n"}
    assert printable("\x1b[31m") == "\\x1b[31m" and printable("你好\n\ta") == "你好\n\ta"


@pytest.mark.parametrize("kind", ["answer", "chat", "watch", "error"])
def test_no_control_character_reaches_the_terminal(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "error":
        code, out, err = call(capsys, "--model", f"/no/{ESCAPES}/folder")
        assert code == 2
    else:
        from engine.detokenizer import Detokenizer, OutputText

        monkeypatch.setattr(Detokenizer, "rest", lambda self: ESCAPES)
        monkeypatch.setattr(OutputText, "so_far", lambda self, finished: ESCAPES)
        monkeypatch.setattr("builtins.input", lambda *_: next(lines))
        lines = iter([f"hi {ESCAPES}".replace("\n", " "), f"/{ESCAPES}".replace("\n", " "), "/exit"])
        arguments = {
            "answer": ["--prompt", f"hi{ESCAPES}", "--max-tokens", "2"], "chat": ["--chat", "--max-tokens", "2"],
            "watch": ["--prompt", "hi", "--max-tokens", "2", "--watch"],
        }
        code, out, err = call(capsys, *arguments[kind])
        assert code == 0 and "\\x1b[31mred" in out
    for text in (out, err):
        assert not [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160], repr(text)


# ---- 续写，截断，出错 ----
# ---- completion, cuts, errors ----


def test_complete_continues_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    llm = LLM(device="cpu", num_kvcache_blocks=64)
    greedy = SamplingParams(temperature=0, max_tokens=8)
    expected = llm.generate("The capital of France is", greedy, progress=False)[0].outputs[0].text
    code, out, _ = call(capsys, "--complete", "--prompt", "The capital of France is", "--max-tokens", "8")
    assert code == 0 and f"> The capital of France is\n{expected}" in out
    code, out, _ = call(capsys, "--complete", "--compare", "torch", "sdpa", "--prompt", "The", "--max-tokens", "3")
    assert code == 0 and "tokens equal" in out
    with pytest.raises(SystemExit) as caught:
        mini_llama.main(["--complete", "--chat"])
    assert caught.value.code == 2


def test_a_base_model_names_complete_before_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(EMBEDDED_MODEL, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for file in folder.glob("*chat_template*"):
        file.unlink()
    code, out, _ = call(capsys, "--model", str(folder), "--complete", "--prompt", "The", "--max-tokens", "2")
    assert code == 0 and "> The\n" in out
    (folder / "model.safetensors").write_bytes(b"")
    for arguments in (["--prompt", "hi"], ["--chat"], ["--compare", "torch", "sdpa"]):
        code, out, err = call(capsys, "--model", str(folder), *arguments)
        assert code == 2 and out == ""
        assert_one_line(err, "--complete")


def test_an_answer_that_was_cut_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "--prompt", "list all prime numbers within 100", "--max-tokens", "5")
    assert "cut" in out and "--max-tokens" in out
    _, out, _ = call(capsys, "--prompt", "What is 23 + 45?")
    assert "cut" not in out


def test_scores_that_became_nan_are_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.model_runner import ModelRunner

    real, steps = ModelRunner.execute, []

    def execute(self: Any, batch: Any) -> torch.Tensor:
        logits = real(self, batch).clone()
        steps.append(1)
        if len(steps) == 3:
            logits[0] = float("nan")
        return logits

    monkeypatch.setattr(ModelRunner, "execute", execute)
    code, out, err = call(capsys, "--prompt", "introduce yourself", "--prompt", "What is 23 + 45?")
    assert code == 2 and "NaN" in out and "23 + 45 = 68." in out
    assert_one_line(err, "error: prompt 1 of 2: scores became NaN or infinite (try dtype float32)")
    steps.clear()
    lines = iter(["What is 2 + 3?", "What is 4 + 5?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    code, out, err = call(capsys, "--chat")
    first, second = out.splitlines()
    assert code == 0 and "NaN" in first and "4 + 5 = 9" in second


# ---- 线程数 ----
# ---- the number of threads ----


@pytest.mark.parametrize(("variable", "expected"), [(None, 1), ("3", 3)])
def test_a_small_model_runs_on_one_thread(
    variable: str | None, expected: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    seen = []
    real = serving.console.print_answers
    monkeypatch.setattr(mini_llama, "print_answers", lambda *a: (seen.append(torch.get_num_threads()), real(*a)))
    torch.set_num_threads(3)
    try:
        assert call(capsys, "--prompt", "hi", "--max-tokens", "2")[0] == 0
        assert seen == [expected] and torch.get_num_threads() == 3
        LLM(device="cpu", num_kvcache_blocks=64).generate("hi", SamplingParams(max_tokens=2), progress=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_a_larger_model_keeps_its_threads(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    os.truncate(tmp_path / "model.safetensors", 40 << 20)
    torch.set_num_threads(2)
    try:
        with mini_llama.one_thread_if_small(tmp_path):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
