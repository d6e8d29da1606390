"""命令行：选项、帮助、退出码，以及重定向后的纯文本。

The command line: options, help, exit codes, and plain text where the output is redirected.
"""

import io
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import ROOT, environment, python

import mini_llama
from backends import backend_names
from engine import kv_pool
from engine.outputs import RequestOutput
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

HAN = re.compile(r"[\u4e00-\u9fff]")
LATIN_WORD = re.compile(r"[A-Za-z]{2,}")


def run_cli(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """像用户那样，在另一个进程里运行。

    Run in a process of its own, as a user would.
    """
    command = [python(), str(ROOT / "mini_llama.py"), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def assert_one_line_error(stderr: str) -> None:
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("mini_llama.py: error: ")


def main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """在本进程里运行，省去导入的时间。

    Run in this process, which saves the imports.
    """
    code = mini_llama.main([*arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# ---- 别人换过的流 ----
# ---- streams that others have replaced ----


def read_stream() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(b"first line\nsecond line\n"))
    stream.readline()
    return stream


def closed_stream() -> io.TextIOWrapper:
    stream = read_stream()
    stream.close()
    return stream


def detached_stream() -> io.TextIOWrapper:
    stream = read_stream()
    stream.detach()
    return stream


@pytest.mark.parametrize("make", [io.StringIO, read_stream, closed_stream, detached_stream])
def test_a_replaced_standard_input_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make: Any
) -> None:
    # pdb 读过命令的流就是第二种；IDLE、Jupyter 的像第一种。
    # A stream from which pdb has read its commands is the second kind; those of IDLE and Jupyter are like the first.
    monkeypatch.setattr("sys.stdin", make())
    code, out, err = main(capsys, "--list-backends")
    assert (code, err) == (0, "") and "torch" in out


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_an_output_of_another_kind_is_written_to(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(f"sys.{name}", stream)
    arguments = ["--list-backends"] if name == "stdout" else ["--top-p", "2"]
    assert mini_llama.main(arguments) == (0 if name == "stdout" else 2)
    assert ("torch" if name == "stdout" else "error: top_p") in stream.getvalue()


# ---- 回答 ----
# ---- answers ----


def test_without_arguments_it_answers_the_built_in_prompts() -> None:
    result = run_cli()
    assert result.returncode == 0, result.stderr
    for prompt in mini_llama.BUILT_IN_PROMPTS:
        assert f"> {prompt}\n" in result.stdout
    # 内置模型认真回答了其中几个。
    # The embedded model really answers some of them.
    for answer in ("北京", "68", "97"):
        assert answer in result.stdout
    assert "<|" not in result.stdout
    # 重定向后是纯文本：没有转义码，也没有进度条的残迹。
    # Redirected output is plain text: no escape codes and no traces of a progress bar.
    for stream in (result.stdout, result.stderr):
        assert "\x1b" not in stream and "\r" not in stream
    assert not re.search("[\u2500-\u257f]", result.stdout), "lines of a table"
    assert "Traceback" not in result.stderr


def test_it_runs_from_any_folder(tmp_path: Path) -> None:
    result = run_cli("--backend", "torch", "--prompt", "hi", "--max-tokens", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "> hi\n" in result.stdout and "torch, cpu" in result.stdout


def test_prompt_is_repeatable_and_keeps_its_order(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main(capsys, "--prompt", "What is 23 + 45?", "--prompt", "中国的首都是哪里？")
    assert code == 0
    positions = [out.index(text) for text in ("> What is 23 + 45?\n", "68", "> 中国的首都是哪里？\n", "北京")]
    assert positions == sorted(positions)


@pytest.mark.parametrize("prompt", ["what is [/] ?", "[red]x[/b] list[0]", "a\\[b]", "emoji :smile:"])
def test_a_prompt_with_brackets_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], prompt: str) -> None:
    code, out, _ = main(capsys, "--prompt", prompt, "--max-tokens", "1")
    assert code == 0
    assert f"> {prompt}\n" in out


def test_an_answer_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[/] [red]x[/b] :key: a\\[b] list[0] " + "word " * 60 + "\n  indented"
    real = mini_llama.LLM.chat

    def chat(self: LLM, *arguments: Any, **options: Any) -> list[RequestOutput]:
        outputs = real(self, *arguments, **options)
        outputs[0].outputs[0].text = text
        return outputs

    monkeypatch.setattr(mini_llama.LLM, "chat", chat)
    code, out, _ = main(capsys, "--prompt", "hi", "--max-tokens", "1")
    assert code == 0 and text in out


def test_a_long_prompt_is_not_wrapped_when_redirected(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "word " * 60 + "end"
    code, out, _ = main(capsys, "--prompt", prompt, "--max-tokens", "1")
    assert code == 0 and f"> {prompt}\n" in out


def test_max_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = main(capsys, "--prompt", "list all prime numbers within 100", "--max-tokens", "3")
    assert re.search(r"output tokens 输出 +3 \(", out)


def test_sampling_options_reach_the_engine_and_the_seed_fixes_the_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = mini_llama.LLM.chat
    monkeypatch.setattr(mini_llama.LLM, "chat", lambda self, c, p, **o: seen.append(p) or real(self, c, p, **o))
    options = ["--temperature", "1.5", "--top-p", "0.9", "--top-k", "7", "--max-tokens", "9"]

    def answer(seed: str) -> str:
        code, out, _ = main(capsys, "--prompt", "tell me", *options, "--seed", seed)
        assert code == 0
        return out.split("summary")[0]

    assert answer("3") == answer("3")
    params = seen[0]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.seed) == (1.5, 0.9, 7, 9, 3)
    # 不给选项时用模型建议的值（贪心），最多 256 个 token。
    # Without options the model's recommendation holds (greedy), and 256 tokens at most.
    main(capsys, "--prompt", "hi")
    assert seen[-1].greedy and seen[-1].max_tokens == 256 and seen[-1].seed is None


# ---- 帮助与列表 ----
# ---- help and lists ----


def test_help_explains_each_flag_in_both_languages() -> None:
    flags = {flag for action in mini_llama.build_parser()._actions for flag in action.option_strings}
    expected = "model backend prompt device dtype max-tokens temperature top-p top-k seed enforce-eager list-backends"
    assert {f"--{name}" for name in [*expected.split(), "compare", "help"]} <= flags
    for action in mini_llama.build_parser()._actions:
        if action.dest == "help":
            continue
        assert action.help and HAN.search(action.help), f"{action.option_strings}: no Chinese"
        english = action.help.split("/")[-1]
        assert LATIN_WORD.search(english) and not HAN.search(english), f"{action.option_strings}: no English"
    description = mini_llama.build_parser().description or ""
    assert HAN.search(description) and LATIN_WORD.search(description)


def test_help_prints_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        mini_llama.main(["--help"])
    assert info.value.code == 0
    out = capsys.readouterr().out
    assert "--compare A B" in out and "温度" in out
    assert all(name in out for name in backend_names())


def test_list_backends(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = main(capsys, "--list-backends", "--device", "cpu")
    assert code == 0 and err == ""
    for name in backend_names():
        assert re.search(rf"^ {name} +(yes 是|no 否) ", out, flags=re.MULTILINE)
    assert re.search(r"^ torch +yes 是 ", out, flags=re.MULTILINE)
    assert re.search(r"^ sdpa +yes 是 ", out, flags=re.MULTILINE)


def test_list_backends_loads_no_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_llama, "LLM", None)
    assert main(capsys, "--list-backends")[0] == 0


# ---- 对比 ----
# ---- compare ----


def test_compare_two_backends(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main(
        capsys, "--compare", "torch", "sdpa", "--prompt", "What is 23 + 45?", "--prompt", "hi", "--max-tokens", "6"
    )
    assert code == 0
    verdict = out.splitlines()[-1]
    match = re.fullmatch(r"torch vs sdpa: max \|Δlogit\| (\S+), tokens equal 全部相同", verdict)
    assert match and 0 < float(match[1]) < 1e-3
    steps = re.findall(r"^ (\d+) +(\d+) +(\d\S+) +- *$", out, flags=re.MULTILINE)
    assert [int(step) for step, _, _ in steps] == list(range(1, len(steps) + 1))
    assert 1 < len(steps) <= 6
    assert max(float(difference) for _, _, difference in steps) == float(match[1])


@pytest.mark.parametrize("quantization, least", [("int8", 0.01), ("int4", 0.1)])
def test_compare_quantized_and_plain(capsys: pytest.CaptureFixture[str], quantization: str, least: float) -> None:
    # 两边的精度相同，差别只来自量化：int8 的误差小，int4 的大。
    # Both sides compute in the same precision, and quantization alone makes the difference: small in int8, large in
    # int4.
    prompt = ("--prompt", "What is 23 + 45?", "--max-tokens", "6")
    code, out, _ = main(capsys, "--compare", "torch", f"torch:{quantization}", *prompt)
    match = re.search(r"max \|Δlogit\| (\S+), ", out)
    assert code == 0 and match and least < float(match[1]) < 40 * least
    same = main(capsys, "--compare", f"torch:{quantization}", f"torch:{quantization}", *prompt)[1]
    assert float(re.search(r"max \|Δlogit\| (\S+), ", same)[1]) == 0  # type: ignore[index]


@pytest.mark.parametrize(
    "name, wanted",
    [("torch:int5", "int8, int4"), ("torch:kv-int5", "int8"), ("x:int8", "torch"), ("torch:int8:int4", "twice")],
)
def test_compare_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str], name: str, wanted: str) -> None:
    code, out, err = main(capsys, "--compare", "torch", name, "--prompt", "hi")
    assert code == 2 and out == "" and wanted in err and len(err.splitlines()) == 1


def test_the_summary_says_what_is_quantized(capsys: pytest.CaptureFixture[str]) -> None:
    out = main(capsys, "--prompt", "hi", "--device", "cpu", "--backend", "sdpa", "--quantization", "int4")[1]
    assert "sdpa, cpu, bfloat16, weights int4" in out


def test_compare_finds_a_backend_that_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from backends.sdpa import SDPABackend

    real = SDPABackend.flash_attn_with_kvcache
    # 把 sdpa 的解码结果反号：对比必须看得出来，而且两边仍然同步走完。
    # Negate what sdpa's decode returns: the comparison must show it, and both must still walk in step.
    monkeypatch.setattr(SDPABackend, "flash_attn_with_kvcache", lambda self, *a, **k: -real(self, *a, **k))
    code, out, _ = main(capsys, "--compare", "torch", "sdpa", "--prompt", "introduce yourself", "--max-tokens", "8")
    assert code == 0
    match = re.search(r"max \|Δlogit\| (\S+), (\d+) tokens differ", out)
    assert match and float(match[1]) > 0.1 and int(match[2]) > 0


@pytest.mark.parametrize("names", [("torch", "sdpa"), ("sdpa", "torch"), ("sdpa", "sdpa")])
def test_compare_shows_scores_of_nan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    from backends.sdpa import SDPABackend

    real = SDPABackend.flash_attn_with_kvcache
    monkeypatch.setattr(SDPABackend, "flash_attn_with_kvcache", lambda self, *a, **k: real(self, *a, **k) * math.nan)
    code, out, err = main(capsys, "--compare", *names, "--prompt", "hi", "--prompt", "2 + 3?", "--max-tokens", "4")
    assert code == 0 and err == "" and "max |Δlogit| nan" in out
    assert "sdpa: " in (last := out.splitlines()[-1]) and "broken from step 2 on" in last
    shown = re.findall(r"#\d: (.+?) / (.+?)(?=;| *$)", out, flags=re.MULTILINE)
    assert all((a == "NaN") == (names[0] == "sdpa") and (b == "NaN") == (names[1] == "sdpa") for a, b in shown)
    assert bool(shown) == (names[0] != names[1])


def test_compare_takes_no_more_memory_than_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # 几个引擎同住一台设备：谁也不许按“剩余显存”去占。
    # Several engines share a device: none may size its pool by the memory that is free.
    monkeypatch.setattr(kv_pool, "_affordable_blocks", None)
    pools = []
    real = kv_pool.allocate_cache
    monkeypatch.setattr(kv_pool, "allocate_cache", lambda setup, model, n: pools.append(n) or real(setup, model, n))
    code, out, err = main(capsys, "--compare", "torch", "sdpa", "--prompt", "hi", "--prompt", "hi", "--max-tokens", "9")
    assert code == 0 and "tokens equal" in out and err == "" and caplog.records == []
    assert len(pools) == 2 and pools[0] == pools[1] < 20


# ---- 错误与退出码 ----
# ---- errors and exit codes ----


def test_an_unknown_backend_exits_2_with_one_line() -> None:
    result = run_cli("--backend", "nope")
    assert result.returncode == 2 and result.stdout == ""
    assert_one_line_error(result.stderr)
    assert "nope" in result.stderr and "torch" in result.stderr


def test_a_missing_model_exits_2_with_one_line(tmp_path: Path) -> None:
    result = run_cli("--model", str(tmp_path / "nowhere"))
    assert result.returncode == 2 and result.stdout == ""
    assert_one_line_error(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "hi", "--temperature", "3"], "temperature"),
        (["--prompt", "hi", "--temperature", "nan"], "temperature"),
        (["--prompt", "hi", "--top-p", "0"], "top_p"),
        (["--prompt", "hi", "--top-k", "-2"], "top_k"),
        (["--prompt", "hi", "--max-tokens", "0"], "max_tokens"),
        (["--prompt", "hi", "--seed", "-1"], "seed"),
        (["--prompt", "word " * 5000], "max_model_len"),
        (["--prompt", "hi", "--prompt", "word " * 5000], "prompt 2 of 2: the prompt has"),
        (["--dtype", "int8"], "dtype"),
        (["--device", "abacus"], "device"),
        (["--device", "cuda:99"], "CUDA"),
        (["--model", "nobody/no-such-model"], "hf download"),
        (["--compare", "torch", "nope", "--prompt", "hi"], "nope"),
        (["--compare", "nope", "torch", "--prompt", "hi"], "nope"),
        (["--compare", "torch", "sdpa", "--prompt", "hi", "--prompt", "word " * 5000], "prompt 2 of 2: the prompt has"),
        (["--compare", "torch", "sdpa", "--complete", "--prompt", ""], "error: the prompt is empty"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line_and_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    code, out, err = main(capsys, *arguments)
    assert code == 2 and out == ""
    assert_one_line_error(err)
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["--compare", "torch", "sdpa", "--backend", "nope"], ["--compare", "--backend"]),
        (["--compare", "torch", "sdpa", "--xray", "x.html"], ["--compare", "--xray"]),
        (["--list-backends", "--prompt", "hi", "--seed", "0"], ["--list-backends", "--prompt, --seed"]),
        (["--list-backends", "--max-num-batched-tokens", "9"], ["--list-backends", "--max-num-batched-tokens"]),
        (["--chat", "--watch"], ["--chat", "--watch"]),
    ],
)
def test_what_does_not_go_together_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], flags: list[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        mini_llama.main(arguments)
    assert info.value.code == 2
    assert "{} cannot be combined with {}".format(*flags) in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["--max-tokens", "many"], ["--compare", "torch"], ["stray"]])
def test_wrong_usage_exits_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as info:
        mini_llama.main(arguments)
    assert info.value.code == 2
    assert "usage:" in capsys.readouterr().err


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import mini_llama
from engine.llm_engine import LLMEngine
from engine.model_runner import ModelRunner
engines, steps, real = [], [], ModelRunner.execute
start = LLMEngine.__init__
def init(self, *arguments):
    start(self, *arguments)
    engines.append(self)
def execute(self, batch):
    steps.append(1)
    if len(steps) == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return real(self, batch)
LLMEngine.__init__, ModelRunner.execute = init, execute
code = mini_llama.main(["--device", "cpu"])
engine = engines[0]
engine.block_manager.check_integrity([])
print("steps", len(steps), "unfinished", engine.has_unfinished(),
      "held", engine.block_manager.num_blocks - engine.block_manager.num_free_blocks)
sys.exit(code)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT to oneself works differently on Windows")
def test_ctrl_c_exits_130_with_the_blocks_freed() -> None:
    result = subprocess.run(
        [python(), "-c", INTERRUPTED],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert result.returncode == 130, result.stderr
    assert result.stdout == "steps 3 unfinished False held 0\n"
    assert "interrupted 已中断" in result.stderr and "Traceback" not in result.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    process = subprocess.Popen(
        [python(), str(ROOT / "mini_llama.py"), "--list-backends"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in stderr and "BrokenPipe" not in stderr


def test_the_public_face() -> None:
    for name in mini_llama.__all__:
        assert getattr(mini_llama, name) is not None
    assert {"LLM", "SamplingParams"} <= set(mini_llama.__all__)
