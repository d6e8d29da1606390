"""SamplingParams：默认值，以及各个字段不合法的值。

SamplingParams: the defaults, and the bad values of each field.
"""

import math
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest

from engine.sampling_params import SamplingParams

NAN, INF = math.nan, math.inf
PENALTIES = ("presence_penalty", "frequency_penalty")


def test_the_defaults() -> None:
    assert asdict(SamplingParams()) == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": None,
        "max_tokens": 16,
        "min_tokens": 0,
        "stop": None,
        "stop_token_ids": None,
        "ignore_eos": False,
        "n": 1,
        "logprobs": None,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "repetition_penalty": 1,
        "skip_special_tokens": True,
        "structured_outputs": None,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-0.1, -1e-9, 2.0001, NAN, INF, -INF, "1", None, True)],
        *[("top_p", value) for value in (0, 0.0, -0.5, 1.0001, NAN, "1", None)],
        *[("top_k", value) for value in (-2, 1.5, "3", None, True)],
        *[("min_p", value) for value in (-0.1, 1.1, NAN, None)],
        *[("max_tokens", value) for value in (0, -1, 1.0, None, True)],
        *[("min_tokens", value) for value in (-1, 17, 0.5, None, True)],
        *[("n", value) for value in (0, -1, 1.5, None, True)],
        *[("logprobs", value) for value in (-1, 21, 1.0, "5", True)],
        *[(name, value) for name in PENALTIES for value in (-2.001, 2.001, NAN, INF, -INF, None, "1", True)],
        *[("repetition_penalty", value) for value in (0, 0.0, -1.0, NAN, INF, -INF, 10**400, None, "1", True)],
        *[("seed", value) for value in (-1, 2**63, 1.5, "0", True)],
        *[("stop_token_ids", value) for value in ([-1], [1.5], [True], "12", 7, ["a"])],
        *[("stop", value) for value in ("", [""], ["a", ""], 7, b"x", ["a", 1], {"a": 1}, True)],
        *[("ignore_eos", value) for value in (1, None, "yes")],
        *[("skip_special_tokens", value) for value in (0, None)],
    ],
)
def test_a_bad_value_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b") as info:
        SamplingParams(**{name: value})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "params",
    [
        dict(temperature=0),
        dict(temperature=2),
        dict(temperature=2.0, top_p=1e-9),
        dict(top_p=1),
        dict(top_k=-1),
        dict(top_k=10**9),
        dict(min_p=0),
        dict(min_p=1.0),
        dict(max_tokens=1),
        dict(seed=0),
        dict(seed=2**63 - 1),
        dict(stop_token_ids=[]),
        dict(stop_token_ids=(3, 0)),
        dict(stop="end"),
        dict(stop=["end", "完"]),
        dict(stop=()),
        dict(min_tokens=0, stop=None, n=1, logprobs=None),
        dict(min_tokens=16),
        dict(n=1000),
        dict(logprobs=0),
        dict(logprobs=20),
        dict(presence_penalty=-2, frequency_penalty=2.0),
        dict(presence_penalty=2.0, frequency_penalty=-2),
        dict(repetition_penalty=1e-6),
        dict(repetition_penalty=1000),
    ],
)
def test_the_limits_themselves_are_allowed(params: dict[str, Any]) -> None:
    made = SamplingParams(**params)
    for name, value in params.items():
        # 列表存成元组。
        # Lists are kept as tuples.
        assert getattr(made, name) == (tuple(value) if isinstance(value, list) else value)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (9e-6, True), (1e-5, False), (1.0, False)])
def test_a_temperature_below_1e_5_is_greedy(temperature: float, greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).greedy is greedy


def test_params_cannot_change_under_a_running_request() -> None:
    with pytest.raises(FrozenInstanceError):
        SamplingParams().temperature = 0.0  # type: ignore[misc]
