"""用户真会写出的古怪输入：要么按意思办，要么一句清楚的话。

Odd inputs that users do write: either what they mean, or one clear line.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import EngineConfig
from mini_llama import LLM, BeamSearchParams, SamplingParams

ROOT = Path(__file__).resolve().parent.parent
P = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(device="cpu", num_kvcache_blocks=256)


@pytest.mark.parametrize("messages", [None, "hello", {"role": "user", "content": "hi"}, [None], [5], iter([])])
def test_messages_of_the_wrong_type(llm: LLM, messages: object) -> None:
    with pytest.raises(ValueError, match="message"):
        llm.chat(messages, P, progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="message"):
        llm.stream_chat(messages, P)  # type: ignore[arg-type]


def test_beam_search_wants_its_own_parameters(llm: LLM) -> None:
    with pytest.raises(ValueError, match="BeamSearchParams, got SamplingParams"):
        llm.beam_search("hello", SamplingParams())  # type: ignore[arg-type]
    assert llm.beam_search("hello", BeamSearchParams(beam_width=1, max_tokens=1))


def test_numbers_from_numpy_are_numbers(llm: LLM) -> None:
    odd = SamplingParams(temperature=np.float32(0), max_tokens=np.int64(3), seed=np.int32(4), ignore_eos=True)  # type: ignore[arg-type]
    ids = [int(i) for i in (5, 6, 7)]
    expected = llm.generate([ids], P, progress=False)[0].outputs[0].token_ids
    for prompt in (list(np.array(ids)), tuple(ids)):
        assert llm.generate([prompt], odd, progress=False)[0].outputs[0].token_ids == expected


def test_requests_are_counted_and_not_their_outputs(llm: LLM) -> None:
    engine = llm.engine
    name = engine.add_request(list(range(5, 60)), dataclasses.replace(P, n=3))
    assert (engine.metrics().num_running, engine.metrics().num_waiting) == (0, 1)
    engine.step()
    assert (engine.metrics().num_running, engine.metrics().num_waiting) == (1, 0)
    engine.abort(name)


def test_banning_every_token_is_refused(llm: LLM) -> None:
    params = SamplingParams(stop_token_ids=list(range(2064)), min_tokens=2, max_tokens=3)
    with pytest.raises(ValueError, match="all 2064 ids are stop ids"):
        llm.generate(["x"], params, progress=False)


def test_lists_changed_later_do_not_get_past_the_checks() -> None:
    stops = ["a"]
    params = SamplingParams(stop=stops)
    stops.append("")
    assert params.stop == ("a",) and hash(params) == hash(SamplingParams(stop=["a"]))


def test_a_pool_larger_than_the_memory() -> None:
    with pytest.raises(ValueError, match="GB, which does not fit into the memory of cpu: lower num_kvcache_blocks"):
        LLM(device="cpu", num_kvcache_blocks=10**12)


@pytest.mark.parametrize("size", [10**12, 2**63 - 1, 2**63, 10**30])
@pytest.mark.parametrize("name", ["max_num_seqs", "num_kvcache_blocks", "max_model_len"])
def test_absurd_sizes_are_one_line(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        LLM(device="cpu", **{name: size})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"dtype": []}, {"dtype": "int8"}, {"max_model_len": 1}])
def test_options_that_cannot_be(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EngineConfig(device="cpu", **options)  # type: ignore[arg-type]


def test_a_torch_dtype_is_a_dtype() -> None:
    assert LLM(device="cpu", dtype=torch.float32, num_kvcache_blocks=256).engine.model_runner.dtype is torch.float32


@pytest.mark.parametrize("model", ["", __file__])
def test_a_model_that_is_no_folder(model: str) -> None:
    with pytest.raises(ValueError, match="is not a folder: give the folder that holds"):
        EngineConfig(model=Path(model) if model else "").resolve_model_folder()


def test_a_line_of_a_table_stays_a_line_in_a_pipe() -> None:
    command = [sys.executable, "mini_llama.py", "--list-backends", "--device", "cpu"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (line,) = [line for line in lines if line.strip().startswith("triton")]
    assert "yes" in line or "use sdpa on the CPU" in line or "not installed" in line


def test_a_chat_without_standard_input() -> None:
    done = subprocess.run(
        f"{sys.executable} mini_llama.py --chat --device cpu <&-", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.strip().endswith("standard input, which is closed")


def test_a_model_name_too_long_for_the_file_system() -> None:
    with pytest.raises(ValueError, match=r"is not a folder .*check --model"):
        EngineConfig(model="a" * 5000).resolve_model_folder()
