"""随机的字节和结构当作 config.json、model.safetensors 和 SamplingParams：出来的只有写明的错误，命令行只有一行。

Random bytes and structures as config.json, model.safetensors and SamplingParams: only documented errors come out, and
a single line from the command line.
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from conftest import EMBEDDED_MODEL
from engine_helpers import assert_all_free, small_model_folder
from hypothesis import HealthCheck, example, given, settings

import mini_llama
from backends import create_backend
from engine.requests import load_generation_config
from engine.sampling_params import SamplingParams
from models.config import ModelConfig, load_config, parse_config
from models.fields import ModelLoadError
from models.loader import load_weights, materialize
from models.registry import create_model
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

RELAXED = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
CONFIG = json.loads((EMBEDDED_MODEL / "config.json").read_text())
PARSED = parse_config(CONFIG)

numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(["llama3", "default", "float32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("fuzz") / "model")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def assert_one_line(error: BaseException) -> None:
    assert str(error) and "\n" not in str(error), repr(error)


# ---- config.json ----


@RELAXED
@given(st.dictionaries(st.sampled_from([*CONFIG, "rope_parameters", "dtype", "quantization_config"]), values))
@example({"rope_scaling": {"rope_type": "llama3"}})
@example({"architectures": [[]]})
@example({"num_attention_heads": 2**31 - 1, "hidden_size": 1})
def test_config_fields_of_any_kind(changes: dict[str, Any]) -> None:
    try:
        assert isinstance(parse_config({**CONFIG, **changes}), ModelConfig)
    except ModelLoadError as error:
        assert_one_line(error)


@RELAXED
@given(st.dictionaries(st.sampled_from([*CONFIG["rope_scaling"], "type", "rope_theta"]), values))
def test_rope_fields_of_any_kind(changes: dict[str, Any]) -> None:
    try:
        parse_config({**CONFIG, "rope_scaling": {**CONFIG["rope_scaling"], **changes}})
    except ModelLoadError as error:
        assert_one_line(error)


@RELAXED
@given(content=st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
@example(content=b"[" * 100_000)
@example(content=b"\xff\xfe{}")
@example(content=b'{"a": ' + b"9" * 5000 + b"}")
def test_config_files_of_any_bytes(copy: Path, content: bytes) -> None:
    loads = {"config.json": load_config, "generation_config.json": lambda copy: load_generation_config(copy, PARSED)}
    for name, load in loads.items():
        (copy / name).write_bytes(content)
        try:
            load(copy)
        except ModelLoadError as error:
            assert_one_line(error)


@RELAXED
@given(st.dictionaries(st.sampled_from(["temperature", "top_p", "top_k", "max_new_tokens", "eos_token_id"]), values))
def test_generation_config_fields_of_any_kind(changes: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "generation_config.json").write_text(json.dumps(changes))
        try:
            load_generation_config(Path(name), PARSED)
        except ModelLoadError as error:
            assert_one_line(error)


# ---- model.safetensors ----


def header_and_data(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@settings(RELAXED, max_examples=150)
@given(data=st.data())
def test_weights_of_any_bytes(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    config = load_config(folder)
    model = create_model(config, create_backend("torch", "cpu"))
    materialize(model, torch.float32, torch.device("cpu"))
    header, body = header_and_data(folder / "model.safetensors")
    kind = data.draw(st.sampled_from(["bytes", "cut", "flip", "header"]))
    if kind == "bytes":
        content = data.draw(st.binary(max_size=100))
    elif kind == "header":
        # 改一个张量的描述：类型、形状、区间，或者换成别的东西。
        # Change one tensor's description: its type, shape or range, or put something else there.
        name = data.draw(st.sampled_from(sorted(header)))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "all", "name"]))
        if field == "all":
            header[name] = data.draw(values)
        elif field == "name":
            header[data.draw(st.text(max_size=9))] = header.pop(name)
        elif isinstance(header[name], dict):
            dtypes = st.sampled_from(["I32", "F64", "BOOL", "F8_E4M3"])
            header[name] = {**header[name], field: data.draw(values | dtypes)}
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + body
    else:
        content = (folder / "model.safetensors").read_bytes()
        place = data.draw(st.integers(0, 3000))
        content = content[:place] + (b"" if kind == "cut" else bytes([content[place] ^ 0x15]) + content[place + 1 :])
    (tmp_path / "model.safetensors").write_bytes(content)
    try:
        load_weights(model, tmp_path)
    except ModelLoadError as error:
        assert_one_line(error)


# ---- 命令行 ----
# ---- the command line ----


@FEW
@given(
    content=st.binary(max_size=40),
    name=st.sampled_from(["config.json", "model.safetensors", "generation_config.json", "tokenizer.json"]),
)
def test_the_command_line_prints_one_line(
    folder: Path, copy: Path, capsys: pytest.CaptureFixture[str], content: bytes, name: str
) -> None:
    (copy / name).write_bytes(content)
    code = mini_llama.main(["--model", str(copy), "--device", "cpu", "--prompt", "hi", "--max-tokens", "1"])
    captured = capsys.readouterr()
    (copy / name).write_bytes((folder / name).read_bytes())
    # 空的 generation_config 对象是合法的，其余都是一行错误。
    # A generation_config that happens to be an object is valid; all else is a line of error.
    assert "Traceback" not in captured.err
    if code == 2:
        assert captured.out == "" and len(captured.err.splitlines()) == 1
        assert captured.err.startswith("mini_llama.py: error: ")
    else:
        assert code == 0


# ---- SamplingParams 与请求 ----
# ---- SamplingParams and requests ----

FIELDS = sorted(SamplingParams.__dataclass_fields__)
odd = values | st.binary(max_size=3) | st.tuples(values) | st.sampled_from([object(), int, print, {1, 2}])


@settings(RELAXED, max_examples=600)
@given(st.dictionaries(st.sampled_from(FIELDS), odd, max_size=4))
def test_sampling_params_of_any_kind(fields: dict[str, Any]) -> None:
    try:
        SamplingParams(**fields)
    except (ValueError, NotImplementedError) as error:
        assert any(name in str(error) for name in fields) and "\n" not in str(error)


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder, device="cpu", num_kvcache_blocks=16, max_model_len=100, strict=True)


@RELAXED
@given(prompt=odd | st.lists(st.integers(-2, 2400), max_size=5) | st.text(), params=odd)
def test_requests_of_any_kind(llm: LLM, prompt: Any, params: Any) -> None:
    for given_params in (params, SamplingParams(temperature=0, max_tokens=1)):
        for call in (llm.engine.requests.prepare, llm.stream):
            try:
                call(prompt, given_params)
            except ValueError as error:
                assert_one_line(error)
    try:
        llm.generate(prompt if isinstance(prompt, list | str) else [prompt], progress=False)
    except ValueError as error:
        assert_one_line(error)
    assert not llm.engine.has_unfinished()
    assert_all_free(llm.engine.block_manager)
