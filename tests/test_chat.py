"""`--chat`：管道里的纯文本、命令、太长的历史，以及伪终端里的 Ctrl-C 与退出码。

`--chat`: plain text through pipes, the commands, a history that is too long, and Ctrl-C and exit codes in a
pseudo-terminal.
"""

import io
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_helpers import ROOT, environment, python

import mini_llama
from serving.chat import CHAT_HELP
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION, ANSWER = "中国的首都是哪里？", "中国的首都是北京。"


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """在本进程里，把几行字从 stdin 送进去。

    In this process, with lines fed to stdin.
    """

    def run(*lines: str, arguments: tuple[str, ...] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = mini_llama.main(["--chat", "--device", "cpu", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_plain_answers_in_order(chat: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = chat("What is 23 + 45?", "", "  ", QUESTION)
    assert (code, out, err) == (0, f"23 + 45 = 68.\n{ANSWER}\n", "")


def test_commands(chat: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = chat("/help", "/stats", QUESTION, QUESTION, "/stats", "/reset", "/nope", "/exit", QUESTION)
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[: len(CHAT_HELP.splitlines())] == CHAT_HELP.splitlines()
    assert all(command in CHAT_HELP for command in ("/help", "/reset", "/stats", "/exit"))
    assert out.count(ANSWER) >= 1 and out.count("prefix cache 前缀缓存") == 2
    assert "0 / 0 tokens (0%)" in out
    # 第二问带着历史，开头命中前缀缓存。
    # The second question brings the history, whose beginning hits the prefix cache.
    cached = re.search(r"last answer 上个回答   (\d+) tokens, [\d,]+ tok/s, cached 命中 (\d+) prompt tokens", out)
    assert cached and int(cached[1]) > 3 and int(cached[2]) >= 16
    assert "no such command: /nope" in out and "forgotten" in out


def test_the_history_is_sent_and_reset_clears_it(
    chat: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[dict[str, str]]] = []
    real = LLM.stream_chat
    monkeypatch.setattr(LLM, "stream_chat", lambda self, m, p: sent.append(list(m)) or real(self, m, p))
    chat(QUESTION, "hi", "/reset", "hello")
    assert [len(messages) for messages in sent] == [1, 3, 1]
    assert [m["role"] for m in sent[1]] == ["user", "assistant", "user"]
    assert [m["content"] for m in sent[1][:2]] == [QUESTION, ANSWER]


def test_a_history_that_is_too_long_forgets_the_oldest_exchanges(
    chat: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    real, stream = mini_llama.LLM, LLM.stream_chat
    monkeypatch.setattr(LLM, "stream_chat", lambda self, m, p: sent.append(len(m)) or stream(self, m, p))
    small = {"max_model_len": 224, "num_kvcache_blocks": 14}
    monkeypatch.setattr(mini_llama, "LLM", lambda **options: real(**options | small))
    code, out, err = chat(*[QUESTION] * 8)
    assert code == 0 and err == ""
    notices = [line for line in out.splitlines() if "too long: oldest exchanges forgotten" in line]
    assert notices and all("对话太长" in line for line in notices)
    # 先越来越长，到头之后不再增长。
    # It grows at first, and no more once the limit is reached.
    assert sent[:2] == [1, 3] and sent[-1] < 15 and max(sent) == sent[-1]
    # 一句话本身就太长：一行错误，历史还在，接着聊。
    # A single message that is too long by itself: one line of error, the history stays, and the chat goes on.
    sent.clear()
    code, out, err = chat(QUESTION, "word " * 300, "What is 23 + 45?")
    assert code == 0 and len(err.splitlines()) == 1 and "max_model_len=224" in err
    assert out.startswith(ANSWER) and out.rstrip().endswith("68.") and sent == [1, 1, 3]


def test_sampling_options_and_bad_values(chat: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = chat("list all prime numbers within 100", arguments=("--max-tokens", "3"))
    answer, _, cut = out.partition(" [")
    assert answer.count(" ") <= 3 and "--max-tokens" in cut
    code, out, err = chat("hi", arguments=("--temperature", "3"))
    assert code == 2 and out == "" and len(err.splitlines()) == 1


@pytest.mark.parametrize("other", [["--prompt", "x"], ["--compare", "torch", "sdpa"], ["--list-backends"]])
def test_it_cannot_be_combined(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        mini_llama.main(["--chat", *other])
    assert info.value.code == 2 and "--chat" in capsys.readouterr().err


def test_bad_bytes_on_stdin_do_not_end_it() -> None:
    command = [python(), str(ROOT / "mini_llama.py"), "--chat"]
    given = b"\xff\xfe hi\n" + QUESTION.encode() + b"\n"
    env = {**environment(), "PYTHONUTF8": "1"}
    result = subprocess.run(command, input=given, env=env, capture_output=True, timeout=120)
    assert result.returncode == 0 and result.stderr == b""
    assert result.stdout.decode().rstrip().endswith(ANSWER) and b"\x1b" not in result.stdout


# ---- 伪终端 ----
# ---- a pseudo-terminal ----

pty = pytest.importorskip("pty")

SLOW = """
import sys, time
sys.path.insert(0, {root!r})
import mini_llama
from engine.model_runner import ModelRunner
real = ModelRunner.execute
def execute(self, batch):
    time.sleep(0.02)
    return real(self, batch)
ModelRunner.execute = execute
sys.exit(mini_llama.main(["--chat", "--device", "cpu"]))
"""


class Terminal:
    """伪终端里的一个 `--chat`，每步放慢，好在回答途中按键。

    A `--chat` in a pseudo-terminal, slowed down so that keys can be pressed during an answer.
    """

    def __init__(self) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="dumb", PYTHONUTF8="1")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.execv(python(), [python(), "-c", SLOW.format(root=str(ROOT))])
        self.seen = ""

    def expect(self, text: str, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            self.seen += self._read()
        self.seen = self.seen.split(text, 1)[1]

    def _read(self) -> str:
        import select

        if not select.select([self.fd], [], [], 0.1)[0]:
            return ""
        try:
            return os.read(self.fd, 65536).decode(errors="replace")
        except OSError:
            return ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self) -> int:
        rest, end = "", time.monotonic() + 60
        while time.monotonic() < end:
            rest += self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid, self.seen = 0, self.seen + rest + self._read()
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it does not end: {rest!r}")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal() -> Iterator[Any]:
    made = Terminal()
    yield made
    made.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.expect("/help lists the commands")
    terminal.expect("> ")
    terminal.type("list all prime numbers within 100\n")
    terminal.expect("The primes")
    terminal.type("\x03")
    terminal.expect("[已停止 / stopped]")
    terminal.expect("> ")
    terminal.type(f"{QUESTION}\n")
    terminal.expect(ANSWER)
    terminal.expect("> ")
    terminal.type("/stats\n")
    terminal.expect("last answer 上个回答")
    terminal.expect("> ")
    # 提示符处的 Ctrl-C 离开程序。readline 先显示提示符，再开始等按键，正好落在两者之间的 Ctrl-C 会丢，所以等一下再按。
    # Ctrl-C at the prompt leaves the program. Readline shows the prompt before it waits for keys, and a Ctrl-C just
    # between the two gets lost; hence the pause.
    time.sleep(0.5)
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert "interrupted 已中断" in terminal.seen and "Traceback" not in terminal.seen


def test_ctrl_d_leaves_with_0(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.seen
