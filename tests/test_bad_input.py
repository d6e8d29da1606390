"""不合法的输入：请求、选项、模型文件夹，每种给出该给的一行错误，旁边的请求照常完成。

Bad input: requests, options, model folders. Each gives its error in one line, and the requests beside it finish.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_helpers import BAD_REQUESTS, assert_all_free, small_model_folder

import engine.model_runner
import mini_llama
from backends import BackendUnavailableError
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from models.fields import ModelLoadError
from serving.beam_search import BeamSearchParams
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model_folder(tmp_path_factory.mktemp("bad") / "model")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """一份可以弄坏的模型文件夹。

    A model folder to be damaged.
    """
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def make_llm(folder: Path | str | None, **options: Any) -> LLM:
    return LLM(folder, **{"device": "cpu", "num_kvcache_blocks": 16, "max_model_len": 100, "strict": True, **options})


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return make_llm(folder)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error), f"more than one line: {error}"
    return str(error)


# ---- 请求 ----
# ---- requests ----


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_generate_adds_nothing_if_one_request_is_bad(llm: LLM, name: str) -> None:
    prompt, params, message = BAD_REQUESTS[name]
    added = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.engine.scheduler, "add", added.append)
        # 坏的排在中间：前面的好请求也不该已经加入。
        # The bad one is in the middle: the good ones before it must not have been added either.
        with pytest.raises(ValueError, match=message) as info:
            llm.generate([[1, 2], prompt, [3]], [GREEDY, params or GREEDY, GREEDY], progress=False)
    assert one_line(info.value).startswith("prompt 2 of 3: ")
    assert added == [] and not llm.engine.has_unfinished()
    assert_all_free(llm.engine.block_manager)


def test_errors_count_in_the_list_of_the_caller(llm: LLM) -> None:
    # 引擎自己的编号越走越大，调用者只认得自己的列表。
    # The engine's own numbers grow and grow; the caller knows nothing but the list.
    hello, empty = [{"role": "user", "content": "hi"}], [{"role": "user"}]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^prompt 2 of 2: the prompt has 100 tokens"):
            llm.generate([[1], [1] * 100], GREEDY, progress=False)
        with pytest.raises(ValueError, match=r"^prompt 3 of 3: .*content"):
            llm.chat([hello, hello, empty], GREEDY, progress=False)  # type: ignore[list-item]
        with pytest.raises(ValueError, match=r"^prompt 2 of 3: the prompt is empty"):
            llm.beam_search([[1], "", [3]], BeamSearchParams(beam_width=2, max_tokens=2))
        # 只有一个就不必说第几个。
        # A single one needs no number.
        for call in (llm.engine.add_request, llm.stream, lambda prompt: llm.generate([prompt], progress=False)):
            with pytest.raises(ValueError, match=r"^token id 99999 is not"):
                call([99999])


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_in_a_running_engine_the_others_go_on(llm: LLM, name: str) -> None:
    prompt, params, message = BAD_REQUESTS[name]
    engine = llm.engine
    expected = llm.generate([[1, 2], [3]], GREEDY, progress=False)
    engine.add_request([1, 2], GREEDY, "a")
    engine.step()
    with pytest.raises(ValueError, match=f"request bad: .*{message}"):
        engine.add_request(prompt, params or GREEDY, "bad")
    engine.add_request([3], GREEDY, "b")
    results: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        results.update({output.request_id: output for output in engine.step()})
    assert set(results) == {"a", "b"}
    assert [results[i].outputs[0].token_ids for i in "ab"] == [output.outputs[0].token_ids for output in expected]
    assert_all_free(engine.block_manager)


def test_the_longest_prompt_allowed_is_max_model_len_minus_1(llm: LLM) -> None:
    output = llm.generate([[1] * 99], GREEDY, progress=False)[0]
    assert len(output.outputs[0].token_ids) == 1 and output.outputs[0].finish_reason == "length"


def test_a_request_id_in_use_is_refused_and_may_be_used_again_later(llm: LLM) -> None:
    engine = llm.engine
    engine.add_request([1], GREEDY, "same")
    with pytest.raises(ValueError, match="request same"):
        engine.add_request([2], GREEDY, "same")
    assert len(engine.scheduler.waiting) == 1
    engine.abort("same")
    engine.add_request([2], GREEDY, "same")
    engine.abort("same")
    assert not engine.has_unfinished()


def test_a_flat_list_of_ids_is_not_a_list_of_prompts(llm: LLM) -> None:
    for call in (llm.generate, lambda prompts: llm.beam_search(prompts, BeamSearchParams(2, 2))):
        with pytest.raises(ValueError, match=r"^prompts=\[1, 2, 3\] is a list of token ids.*written \[\[1, 2, 3\]\]$"):
            call([1, 2, 3])  # type: ignore[list-item]


def test_what_all_prompts_share_is_no_prompts_fault(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"^stop token id 99999 is not"):
        llm.generate([[1], [2]], SamplingParams(stop_token_ids=[99999]), progress=False)
    # 每个一份的，仍然说是哪一个。
    # Where each has its own, it is still named.
    with pytest.raises(ValueError, match=r"^prompt 2 of 2: stop token id 99999 is not"):
        llm.generate([[1], [2]], [GREEDY, SamplingParams(stop_token_ids=[99999])], progress=False)
    hello = [{"role": "user", "content": "hi"}]
    options: list[tuple[dict[str, Any], str]] = [
        ({"chat_template_kwargs": "x"}, "^chat_template_kwargs='x' must"),
        ({"continue_final_message": True}, "^continue_final_message and add_generation_prompt are not compatible"),
    ]
    for option, message in options:
        with pytest.raises(ValueError, match=message):
            llm.chat([hello, hello], GREEDY, progress=False, **option)


@pytest.mark.parametrize("name", ["", 5, b"a", ["a"]])
def test_a_request_id_is_a_string_that_is_not_empty(llm: LLM, name: Any) -> None:
    with pytest.raises(ValueError, match=r"^request_id=.* must be a string that is not empty$"):
        llm.engine.add_request([1], GREEDY, name)
    assert not llm.engine.has_unfinished()


# ---- 中断与出错 ----
# ---- interruption and failure ----


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_ctrl_c_aborts_the_running_requests_and_frees_their_blocks(folder: Path, error: type[BaseException]) -> None:
    llm = make_llm(folder, max_num_batched_tokens=30, max_num_seqs=2)
    engine, real, steps = llm.engine, llm.engine.model_runner.execute, [0]

    def execute(batch: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            assert engine.block_manager.num_free_blocks < 16
            raise error("stop")
        return real(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.model_runner, "execute", execute)
        with pytest.raises(error):
            llm.generate([[1] * 40, [2] * 5, [3]], GREEDY, progress=False)
    assert not engine.has_unfinished()
    assert engine.scheduler.running == [] and not engine.scheduler.waiting
    assert_all_free(engine.block_manager)
    # 引擎之后照常可用。
    # The engine is as good as new afterwards.
    again = llm.generate([[1] * 40], GREEDY, progress=False)[0].outputs[0].token_ids
    assert again == make_llm(folder).generate([[1] * 40], GREEDY, progress=False)[0].outputs[0].token_ids


# ---- 构造 ----
# ---- construction ----


def test_unknown_keyword_is_a_type_error(folder: Path) -> None:
    with pytest.raises(TypeError, match="tensor_parallel"):
        LLM(folder, tensor_parallel=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("max_model_len", value) for value in (0, -1, 1.5, "100", True)],
        *[("max_num_seqs", value) for value in (0, -1, None, True)],
        ("max_num_batched_tokens", 0),
        ("num_kvcache_blocks", 0),
        *[("kvcache_block_size", value) for value in (0, 4, 12, 100)],
        *[("gpu_memory_utilization", value) for value in (0, -0.1, 1.1, float("nan"), True, "0.5", None)],
        ("dtype", "float64"),
        ("device", "tpu"),
        ("device", "mps"),
        ("device", "cuda:99"),
        *[("seed", value) for value in (-1, 2**63, True, 1.5, "0")],
        *[("enable_prefix_caching", value) for value in ("False", 0, None)],
        *[("enforce_eager", value) for value in (1, "yes", None)],
        *[("strict", value) for value in ("no", 0, None)],
    ],
)
def test_a_bad_option_names_itself_and_its_value(folder: Path, option: str, value: Any) -> None:
    with pytest.raises(ValueError) as info:
        make_llm(folder, **{option: value})
    message = one_line(info.value)
    assert option.removeprefix("kvcache_") in message.replace("block size", "block_size")
    assert str(value) in message


def test_an_unknown_backend_lists_the_names(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"nope.*auto, torch, sdpa"):
        make_llm(folder, backend="nope")


def test_an_explicit_length_that_does_not_fit_says_what_would(folder: Path) -> None:
    # 200 个 token 要 13 个大小 16 的块，只有 5 个，装得下 80。
    # 200 tokens need 13 blocks of 16; there are 5, which hold 80.
    with pytest.raises(ValueError, match=r"max_model_len=200.*13 blocks of 16.*there are 5.*<= 80") as info:
        make_llm(folder, max_model_len=200, num_kvcache_blocks=5)
    one_line(info.value)
    assert make_llm(folder, max_model_len=80, num_kvcache_blocks=5).engine.pool.max_model_len == 80
    # 13 个块恰好够。
    # 13 blocks are just enough.
    assert make_llm(folder, max_model_len=200, num_kvcache_blocks=13).engine.pool.max_model_len == 200


def test_an_explicit_length_beyond_the_model_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"max_model_len=513.*512"):
        make_llm(folder, max_model_len=513, num_kvcache_blocks=100)


def test_without_an_explicit_length_it_is_reduced_with_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        llm = make_llm(folder, max_model_len=None, num_kvcache_blocks=3)
    assert llm.engine.pool.max_model_len == 48
    assert len(caplog.records) == 1
    message = one_line(AssertionError(caplog.records[0].getMessage()))
    assert "48" in message and "512" in message and "最大长度" in message
    # 生成时不再重复，够大时一声不吭。
    # It is not repeated while generating, and a pool that is large enough says nothing.
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        output = llm.generate([[1] * 40], SamplingParams(temperature=0, max_tokens=99, ignore_eos=True), progress=False)
        make_llm(folder, max_model_len=None, num_kvcache_blocks=32)
    assert len(output[0].outputs[0].token_ids) == 8
    assert caplog.records == []


def test_a_pool_of_one_block_still_answers(folder: Path) -> None:
    llm = make_llm(folder, max_model_len=None, num_kvcache_blocks=1)
    outputs = llm.generate([[1, 2, 3], [4] * 15, [5]], GREEDY, progress=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [8, 1, 8]
    with pytest.raises(ValueError, match="max_model_len=16"):
        llm.generate([[1] * 16], GREEDY, progress=False)
    assert_all_free(llm.engine.block_manager)


def test_the_models_repetition_penalty_is_taken_and_checked(copy: Path) -> None:
    edit("generation_config.json", repetition_penalty=1.1)(copy)
    assert make_llm(copy).engine.requests.defaults == SamplingParams(repetition_penalty=1.1)
    edit("generation_config.json", repetition_penalty=0)(copy)
    with pytest.raises(ModelLoadError, match=r"generation_config.json.*repetition_penalty=0"):
        make_llm(copy)


# ---- 模型文件夹 ----
# ---- the model folder ----


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist") as info:
        make_llm(tmp_path / "nowhere")
    one_line(info.value)


def test_a_hub_id_that_is_not_in_the_cache_says_how_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelLoadError, match="hf download nobody/no-such-model") as info:
        make_llm("nobody/no-such-model")
    one_line(info.value)


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """改 JSON 文件里的几个字段。

    Change fields of a JSON file.
    """

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(content))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes((folder / name).read_bytes()[:size]))


def void(_: object) -> None:
    """丢掉返回值。

    Drop a value.
    """


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (remove("config.json"), "config.json is missing"),
    "config not JSON": (write("config.json", b"{oops"), "config.json cannot be read"),
    "config a list": (write("config.json", b"[]"), "config.json must hold a JSON object"),
    "unknown architecture": (edit("config.json", architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
    "unknown rope type": (edit("config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "yarn"),
    "no weights": (remove("model.safetensors"), "model.safetensors"),
    "truncated weights": (truncate("model.safetensors", 5000), "truncated or corrupt"),
    "empty weights": (truncate("model.safetensors", 0), "truncated or corrupt"),
    "weights not safetensors": (write("model.safetensors", b"\x80\x04pickle" * 99), "truncated or corrupt"),
    "wrong shape": (edit("config.json", intermediate_size=128), "shape"),
    "missing tensor": (edit("config.json", num_hidden_layers=3), "layers.2"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json"),
    "tokenizer not JSON": (write("tokenizer.json", b"{oops\n\n"), "tokenizer"),
    "tokenizer config not JSON": (write("tokenizer_config.json", b"{\noops"), "tokenizer"),
    "generation config not JSON": (write("generation_config.json", b"oops"), "generation_config.json"),
    "bad default temperature": (edit("generation_config.json", temperature=-1), r"generation_config.json.*temperature"),
    "bad stop ids": (edit("generation_config.json", eos_token_id="x"), r"generation_config.json.*eos_token_id"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_folder_is_a_one_line_error(
    copy: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGE[name]
    damage(copy)
    with pytest.raises(ModelLoadError, match=message) as info:
        make_llm(copy)
    one_line(info.value)
    # 命令行：同一个错误，一行，返回 2。
    # The command line: the same error in one line, and 2.
    capsys.readouterr()
    assert mini_llama.main(["--model", str(copy), "--device", "cpu", "--prompt", "hi"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mini_llama.py: error: ")


# ---- 开销小的检查在前 ----
# ---- what costs nothing is checked first ----


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """谁去分配或读权重，谁就失败。

    Whoever allocates or reads weights fails.
    """

    def fail(*_: object) -> None:
        raise AssertionError("the weights were touched")

    for name in ("materialize", "load_weights"):
        monkeypatch.setattr(engine.model_runner, name, fail)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": 513}, "max_model_len=513"),
        ({"max_model_len": 1}, "max_model_len=1"),
        ({"max_model_len": 257}, "max_model_len=257.*17 blocks of 16.*there are 16"),
        ({"kvcache_block_size": 12}, "kvcache_block_size=12"),
        ({"backend": "nope"}, "nope.*torch, sdpa"),
        ({"backend": "flash"}, "flash"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "int8"}, "int8"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens=0"),
        ({"num_kvcache_blocks": 0}, "num_kvcache_blocks=0"),
        ({"seed": -1}, "seed=-1"),
    ],
    ids=str,
)
def test_a_bad_option_fails_before_weights_are_read(
    folder: Path, no_weights: None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, BackendUnavailableError), match=message):
        make_llm(folder, **options)


BEFORE_WEIGHTS = [
    "no config", "unknown architecture", "unknown rope type", "no tokenizer", "tokenizer not JSON",
    "generation config not JSON", "bad default temperature", "bad stop ids",
]  # fmt: skip


@pytest.mark.parametrize("name", BEFORE_WEIGHTS)
def test_a_bad_file_beside_the_weights_fails_before_they_are_read(copy: Path, no_weights: None, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(copy)
    with pytest.raises(ModelLoadError, match=message):
        make_llm(copy)


def test_good_options_do_read_the_weights(folder: Path, no_weights: None) -> None:
    with pytest.raises(AssertionError, match="the weights were touched"):
        make_llm(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "2"], "top_p=2"),
        (["--temperature", "3"], "temperature=3"),
        (["--top-k", "-2"], "top_k=-2"),
        (["--max-tokens", "0"], "max_tokens=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--backend", "nope"], "nope"),
        (["--num-kvcache-blocks", "0"], "num_kvcache_blocks=0"),
        (["--max-num-batched-tokens", "0"], "max_num_batched_tokens=0"),
        (["--chat", "--top-p", "2"], "top_p=2"),
        (["--compare", "torch", "nope"], "nope"),
        (["--compare", "torch", "sdpa", "--top-p", "2"], "top_p=2"),
    ],
    ids=str,
)
def test_the_command_line_fails_before_weights_are_read(
    folder: Path, no_weights: None, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mini_llama.main(["--model", str(folder), "--device", "cpu", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1
