"""`AsyncLLM` 与 `n` 份输出、停止字符串、对数概率合在一起；`LLM.stream` 只给一份文字。

`AsyncLLM` together with `n` outputs, stop strings and log-probabilities; `LLM.stream` gives a single text.
"""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from serving.async_llm import AsyncLLM
from serving.llm import LLM

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = dict(device="cpu", num_kvcache_blocks=200, max_model_len=400, strict=True)
PARAMS = SamplingParams(
    temperature=1.5, seed=3, n=3, max_tokens=30, logprobs=1, stop=["a", "的"], repetition_penalty=1.1, min_tokens=4
)
PROMPT = "The answer of life is a thing that we all know and say, over and over"


def test_async_results_with_n() -> None:
    async def collect() -> list[RequestOutput]:
        async with AsyncLLM(**OPTIONS) as llm:
            return [output async for output in llm.generate(PROMPT, PARAMS)]

    outputs = asyncio.run(collect())
    assert len(outputs) > 3 and [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    for before, after in pairwise(outputs):
        assert all(b.text.startswith(a.text) for a, b in zip(before.outputs, after.outputs))
    (expected,) = LLM(**OPTIONS).generate([PROMPT], PARAMS, progress=False)
    assert [each.text for each in outputs[-1].outputs] == [each.text for each in expected.outputs]
    assert [each.token_ids for each in outputs[-1].outputs] == [each.token_ids for each in expected.outputs]
    assert all(len(each.logprobs or []) == len(each.token_ids) >= 4 for each in outputs[-1].outputs)


def test_stream_gives_a_single_text() -> None:
    llm = LLM(**OPTIONS)
    with pytest.raises(ValueError, match="n=3"):
        llm.stream(PROMPT, PARAMS)
    assert not llm.engine.has_unfinished()
