"""RoPE 的各种缩放：频率与 `transformers` 逐位相同，模型的误差不超过它的 3 倍，原训练长度之外也一样；写在哪里都认得。

RoPE's scalings: frequencies equal those of `transformers` bit for bit, the model's error is at most 3 times theirs,
also beyond the original length; and they are found wherever a file writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_config, save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import assert_as_good_as_transformers, error, load, load_hf, random_tokens, run, run_hf, save_model

from backends import create_backend, create_kernels
from layers.rotary_embedding import Llama3Scaling, RopeScaling, RotaryEmbedding, inverse_frequencies
from mini_llama import LLM, SamplingParams
from models.config import ModelConfig, load_config, parse_config
from models.fields import ModelLoadError
from models.yarn import YarnScaling

pytestmark = pytest.mark.usefixtures("one_thread")

Raw = dict[str, Any]
LLAMA3: Raw = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
YARN: Raw = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, Raw] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear 1": {"rope_type": "linear", "factor": 1.0},
    "linear 2.5": {"rope_type": "linear", "factor": 2.5},
    "dynamic 1": {"rope_type": "dynamic", "factor": 1.0},
    "llama3": LLAMA3,
    "llama3 1": {**LLAMA3, "factor": 1.0},
    "yarn": YARN,
    "yarn 1": {**YARN, "factor": 1.0, "original_max_position_embeddings": 512},
    "yarn 40": {**YARN, "factor": 40.0},
    "yarn given": {**YARN, "attention_factor": 0.8},
    "yarn mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn mscale alone": {**YARN, "mscale": 0.707},
    "yarn betas": {**YARN, "beta_fast": 8, "beta_slow": 2},
    "yarn not truncated": {**YARN, "beta_fast": 8, "truncate": False},
    "yarn one step": {**YARN, "beta_fast": 1, "beta_slow": 1, "truncate": False},
    "yarn original 4096": {**YARN, "original_max_position_embeddings": 4096, "finetuned": True},
}
# 光把整段挪远还不够，旋转只看距离：token 之间也要隔得远。
# Moving the whole run far is not enough, as rotation sees distances: tokens have to stand far apart as well.
FAR = torch.tensor([0, 1, 2, 3, 63, 64, 65, 127, 255, 256, 300, 511, 700, 2047, 4095, 9000, 16383])


def scaled_model(folder: Path, scaling: Raw, architecture: str = "llama", **overrides: Any) -> Path:
    """一个带这种缩放的小模型；头宽 64，波长才有长有短。
    A small model with this scaling; heads of 64, to have long and short wavelengths.
    """
    parameters = {"rope_theta": 10000.0, **scaling}
    return save_model(folder, architecture, **{"head_dim": 64, "rope_parameters": parameters, **overrides})


@pytest.mark.parametrize("name", SCALINGS)
def test_each_scaling_is_as_good_as_transformers_also_beyond_the_original_length(tmp_path: Path, name: str) -> None:
    folder = scaled_model(tmp_path / "model", SCALINGS[name], max_position_embeddings=16384)
    assert_as_good_as_transformers(folder, random_tokens(21))
    assert_as_good_as_transformers(folder, random_tokens(len(FAR)), FAR)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("name", ["linear", "llama3", "yarn", "yarn given"])
def test_the_other_architectures(tmp_path: Path, architecture: str, name: str) -> None:
    window: Raw = {"sliding_window": None} if architecture == "mistral" else {}
    folder = scaled_model(tmp_path / "model", SCALINGS[name], architecture, rms_norm_eps=1e-5, **window)
    assert_as_good_as_transformers(folder, random_tokens(len(FAR)), FAR)


@pytest.mark.parametrize("name", [name for name in SCALINGS if not name.endswith(" 1")])
def test_each_scaling_shows_in_the_logits(tmp_path: Path, name: str) -> None:
    # 被忽略的话，上面的比较必须看得出来。
    # Were it ignored, the comparisons above would have to show it.
    folder = scaled_model(tmp_path / "model", SCALINGS[name])
    token_ids = random_tokens(len(FAR))
    scaled = run(load(folder), token_ids, positions=FAR)
    config = read_config(folder)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    assert error(run(load(folder), token_ids, positions=FAR), scaled.double()) > 3e-2


# ---- 逐位相同 ----
# ---- bit for bit ----


def theirs(head_dim: int, theta: float, scaling: Raw, length: int = 512) -> tuple[torch.Tensor, float]:
    """`transformers` 的频率和放大倍数。
    The frequencies of `transformers`, and its factor.
    """
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim, max_position_embeddings=length,
        rope_parameters={"rope_theta": theta, **scaling},
    )  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)
    return frequencies, float(factor)


CONFIG: Raw = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 512,
}  # fmt: skip


def ours(head_dim: int, theta: float, scaling: Raw) -> tuple[torch.Tensor, float]:
    config = parse_config({**CONFIG, "rope_theta": theta, "rope_scaling": scaling})
    return inverse_frequencies(head_dim, theta, config.rope_scaling), RotaryEmbedding(
        head_dim, theta, config.rope_scaling
    ).attention_factor


@settings(max_examples=150, deadline=None)
@given(
    head_dim=st.sampled_from([2, 4, 32, 64, 80, 128, 256]),
    theta=st.sampled_from([1.5, 100.0, 10000.0, 500000.0, 1e6, 1e9]),
    factor=st.floats(0.5, 64) | st.integers(1, 64),
    original=st.integers(2, 1 << 20),
    betas=st.none() | st.tuples(st.floats(0.5, 64), st.floats(0.01, 8)),
    extra=st.sampled_from([{}, {"truncate": False}, {"attention_factor": 1.3}, {"mscale": 0.7, "mscale_all_dim": 1.2}]),
)
def test_yarn_has_the_frequencies_of_transformers(
    head_dim: int, theta: float, factor: float, original: int, betas: tuple[float, float] | None, extra: Raw
) -> None:
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **extra}
    if betas is not None:
        scaling |= {"beta_fast": betas[0], "beta_slow": betas[1]}
    expected, expected_factor = theirs(head_dim, theta, scaling)
    actual, actual_factor = ours(head_dim, theta, scaling)
    assert torch.equal(actual, expected)
    assert actual_factor == pytest.approx(expected_factor, rel=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 64, 80, 128]), st.sampled_from([10000.0, 5e5]), st.floats(0.5, 64) | st.integers(1, 64))
def test_linear_has_the_frequencies_of_transformers(head_dim: int, theta: float, factor: float) -> None:
    scaling = {"rope_type": "linear", "factor": factor}
    expected, _ = theirs(head_dim, theta, scaling)
    actual, attention_factor = ours(head_dim, theta, scaling)
    assert torch.equal(actual, expected) and attention_factor == 1.0


def test_factor_one_of_linear_changes_nothing() -> None:
    assert torch.equal(inverse_frequencies(128, 5e5, RopeScaling(1.0)), inverse_frequencies(128, 5e5, None))


def test_yarn_bands() -> None:
    # Qwen3 接 YaRN：第 0 到 23 对不动，从 40 起除以 4，中间递减；与源码里的例子相同。
    # Qwen3 with YaRN: pairs 0 to 23 stay, from 40 on they are divided by 4, falling in between; as in the source.
    plain = inverse_frequencies(128, 1e6, None)
    ratio = inverse_frequencies(128, 1e6, YarnScaling(4.0, 32768)) / plain
    torch.testing.assert_close(ratio[:24], torch.ones(24))
    torch.testing.assert_close(ratio[40:], torch.full((24,), 0.25))
    assert (ratio[24:41].diff() < 0).all()


# ---- 放大 cos 和 sin ----
# ---- cos and sin enlarged ----


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_kernels_apply_the_attention_factor_too(backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    kernels = create_kernels(create_backend(backend, "cpu"), 64, torch.float32)
    assert kernels is not None
    positions = torch.tensor([0, 5, 300])
    scaled, plain = (RotaryEmbedding(64, 1e4, YarnScaling(4.0, 64, attention_factor=factor)) for factor in (1.5, 1.0))
    for kernels_or_none in (None, kernels):
        scaled.kernels = plain.kernels = kernels_or_none
        for enlarged, table in zip(scaled(positions), plain(positions)):
            torch.testing.assert_close(enlarged, table * 1.5)


@pytest.mark.parametrize("given_too", [False, True])
def test_attn_factor_multiplies(tmp_path: Path, given_too: bool) -> None:
    # transformers 不理 `attn_factor`，所以给它看的是乘好的 `attention_factor`。
    # transformers ignores `attn_factor`, so it is shown the product as `attention_factor`.
    factor, scaling = 0.9 if given_too else 0.1 * math.log(4.0) + 1.0, {"attention_factor": 0.9} if given_too else {}
    folder = scaled_model(tmp_path / "theirs", {**YARN, "attention_factor": factor * 0.7})
    truth = run_hf(load_hf(folder, torch.float64), random_tokens(len(FAR)), FAR)
    folder = scaled_model(tmp_path / "ours", {**YARN, **scaling, "attn_factor": 0.7})
    assert error(run(load(folder), random_tokens(len(FAR)), positions=FAR), truth) < 1e-5


def test_deepseeks_attn_factor_cancels_the_default() -> None:
    _, factor = ours(128, 1e6, {**YARN, "attn_factor": 0.8782488562869419})
    assert factor == pytest.approx(1.0, abs=1e-12)


def test_the_engine_generates_what_transformers_generates(tmp_path: Path) -> None:
    # 引擎默认带核函数；提示词 90 个 token，已在原训练长度 64 之外。
    # By default the engine has its kernels; the prompt of 90 tokens is beyond the original length of 64.
    folder = scaled_model(tmp_path / "model", {**YARN, "attention_factor": 1.4}, "qwen3", vocab_size=2304)
    save_tokenizer(folder)
    prompt = random_tokens(90, 2304)
    hf = load_hf(folder, torch.float32)
    expected = hf.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None)
    llm = LLM(folder, device="cpu", num_kvcache_blocks=32)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    assert llm.generate([prompt], params, progress=False)[0].outputs[0].token_ids == expected[0, 90:].tolist()


# ---- 写在哪里 ----
# ---- where it is written ----


def parsed(**changes: Any) -> ModelConfig:
    return parse_config({**CONFIG, **changes})


@pytest.mark.parametrize("name", SCALINGS)
def test_all_spellings_mean_the_same(name: str) -> None:
    scaling = SCALINGS[name]
    old_name = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    newer = parsed(rope_parameters={**scaling, "rope_theta": 5e5})
    assert newer.rope_theta == 5e5
    assert (newer.rope_scaling is None) == (name == "dynamic 1")
    for other in (
        {"rope_theta": 5e5, "rope_scaling": scaling},
        {"rope_theta": 5e5, "rope_scaling": old_name},
        {"rope_theta": 5e5, "rope_scaling": {**scaling, "type": "default"}},
        {"rope_theta": 7.0, "rope_scaling": {**scaling, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": scaling},
        {"rope_parameters": {**scaling, "rope_theta": 5e5}, "rope_scaling": None},
        {"rope_parameters": {**scaling, "rope_theta": 5e5}, "rope_scaling": {}},
        {"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {**scaling, "rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": scaling, "rope_theta": 5e5},
    ):
        assert parsed(**other) == newer, other


@pytest.mark.parametrize("name", ["linear", "llama3", "yarn"])
def test_rope_scaling_beside_rope_parameters_wins_as_in_transformers(tmp_path: Path, name: str) -> None:
    folder = save_model(tmp_path / "model", head_dim=64)
    config = {**read_config(folder), "rope_scaling": {**SCALINGS[name], "rope_theta": 20000.0}}
    assert config["rope_parameters"]["rope_type"] == "default"
    (folder / "config.json").write_text(json.dumps(config))
    assert load_config(folder).rope_theta == 20000.0
    assert_as_good_as_transformers(folder, random_tokens(len(FAR)), FAR)


def test_a_theta_that_rope_scaling_hides_is_asked_for() -> None:
    # transformers 会悄悄用 10000；文件里写的却是 1000000。
    # transformers would quietly take 10000, while the file has 1000000.
    newer = {"rope_type": "default", "rope_theta": 1e6}
    refuses(lambda: parsed(rope_parameters=newer, rope_scaling=YARN), "rope_theta", "copy", "rope_scaling")
    assert parsed(rope_parameters={**newer, "rope_theta": 10000.0}, rope_scaling=YARN).rope_theta == 10000.0
    assert parsed(rope_parameters=newer, rope_scaling=YARN, rope_theta=1e6).rope_theta == 1e6


# ---- 长度 ----
# ---- lengths ----


@pytest.mark.parametrize(
    "changes, length",
    [
        ({}, 512),
        ({"rope_scaling": SCALINGS["linear"]}, 512),
        ({"rope_scaling": LLAMA3}, 512),
        ({"rope_scaling": YARN}, 256),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 512}}, 2048),
        ({"rope_scaling": {**YARN, "factor": 2.5, "original_max_position_embeddings": 100}}, 250),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, 2048),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 128}, 512),
        ({"rope_scaling": {"type": "yarn", "factor": 4}, "max_position_embeddings": None}, None),
    ],
    ids=str,
)
def test_yarn_reaches_factor_times_the_original_length_all_else_what_the_file_says(
    changes: Raw, length: int | None
) -> None:
    if length is None:
        refuses(lambda: parsed(**changes), "original_max_position_embeddings")
    else:
        assert parsed(**changes).max_position_embeddings == length


def test_the_original_length_outside_goes_first_as_in_transformers(tmp_path: Path) -> None:
    folder = scaled_model(tmp_path / "model", YARN)
    config = {**read_config(folder), "original_max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    scaling = load_config(folder).rope_scaling
    assert isinstance(scaling, YarnScaling) and scaling.original_max_position_embeddings == 256
    assert_as_good_as_transformers(folder, random_tokens(len(FAR)), FAR)


# ---- 不认的 ----
# ---- what is refused ----


def refuses(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 250
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"


@pytest.mark.parametrize(
    "scaling, part",
    [
        *(({"rope_type": kind, "factor": 2.0}, repr(kind)) for kind in ("dynamic", "longrope", "su", "YARN", "", 7)),
        ({"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}, "alpha"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({**YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**YARN, "extrapolation_factor": 0.5}, "extrapolation_factor"),
        ({**YARN, "apply_yarn_scaling": False}, "apply_yarn_scaling"),
        ({"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}, "flat"),
        ({"rope_type": "linear"}, "factor"),
        ({"factor": 4.0}, "rope type None"),
        ({**YARN, "factor": 0.001}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 64}, "factor"),
        ({**YARN, "factor": 1e40}, "factor"),
        ({**YARN, "factor": 1e9}, "factor"),
        ({**YARN, "attention_factor": -1.0}, "attention_factor"),
        ({**YARN, "attn_factor": "1"}, "attn_factor"),
        ({**YARN, "beta_fast": math.nan}, "beta_fast"),
        ({**YARN, "beta_slow": 1e300}, "beta_slow"),
        ({**YARN, "mscale": "x", "mscale_all_dim": 1.0}, "mscale"),
        ({**YARN, "truncate": 1}, "truncate"),
        ({**YARN, "rope_theta": 1.0}, "rope_theta"),
        ({**YARN, "original_max_position_embeddings": "64"}, "original_max_position_embeddings"),
        (["yarn"], "object"),
        ({"rope_type": "x" * 10000}, "xxx"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_would_change_the_result_is_refused(scaling: Any, part: str) -> None:
    refuses(lambda: parsed(rope_scaling=scaling), "config.json", part)
    refuses(lambda: parsed(rope_parameters=scaling), "config.json", part)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["yarn", "linear", "x", [1], {}])
KEYS = [*YARN, *LLAMA3, "type", "rope_theta", "attention_factor", "attn_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate", "partial_rotary_factor"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([YARN, LLAMA3, SCALINGS["linear"], SCALINGS["yarn mscale"]]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
)
def test_any_scaling_gives_finite_frequencies_or_a_clear_error(base: Raw, changes: Raw) -> None:
    try:
        config = parsed(rope_scaling={**base, **changes})
    except ModelLoadError as refusal:
        assert str(refusal).isprintable() and len(str(refusal)) < 250
        return
    rotary = RotaryEmbedding(64, config.rope_theta, config.rope_scaling)
    assert rotary.inv_freq.isfinite().all() and math.isfinite(rotary.attention_factor)
    assert 0 < config.max_position_embeddings < 1 << 31


def test_scalings_are_told_apart() -> None:
    kinds = {name: type(parsed(rope_scaling=scaling).rope_scaling) for name, scaling in SCALINGS.items()}
    expected = {"linear": RopeScaling, "llama3": Llama3Scaling, "yarn": YarnScaling, "dynamic": type(None)}
    assert kinds == {name: expected[name.split()[0]] for name in SCALINGS}
