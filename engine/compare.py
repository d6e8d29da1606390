"""两个后端同步对跑：同样的请求、同样的每一步，比较 logits 差多少、选的 token 是否相同。

Two backends in lockstep: the same requests and the same steps; how far apart are their logits, do they choose the same
tokens?
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from backends import create_backend
from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class StepComparison:
    """一步的比较。

    One step's comparison.

    Attributes:
        num_tokens: tokens computed in this step
        max_difference: the largest absolute difference of two logits, 0 if no row sampled
        different: rows that chose another token, as (request id, token of A, token of B)
    """

    step: int
    num_tokens: int
    max_difference: float
    different: list[tuple[str, int, int]]


def compare_backends(
    config: EngineConfig, names: tuple[str, str], prompts: list[list[int]], params: SamplingParams
) -> Iterator[StepComparison]:
    """逐步产出比较结果。

    选出不同 token 之后，两边的上文就不同了，再比就没有意义；所以两边都接着用 A 选的 token，一直比到最后。

    Yield a comparison for each step.
    Once the two choose different tokens their contexts differ and comparing means nothing; so both go on with A's
    tokens, and the comparison holds to the end.
    """
    device = config.resolve_device()
    # 页大小不同，前缀命中就不同，步子也会错开；统一用两者默认值里较大的。
    # With different block sizes prefix hits differ and the steps drift apart; use the larger default for both.
    block_size = config.kvcache_block_size or max(create_backend(name, device).default_block_size for name in names)
    first, second = (LLMEngine(replace(config, backend=name, kvcache_block_size=block_size)) for name in names)
    seeds = replace(params, seed=params.seed if params.seed is not None else 0)
    for index, prompt in enumerate(prompts):
        for engine in (first, second):
            engine.add_request(prompt, seeds, str(index))

    step = 0
    while first.has_unfinished():
        step += 1
        schedule_a, batch_a = first.schedule()
        schedule_b, batch_b = second.schedule()
        rows_a = [(row.seq.request_id, row.num_new_tokens) for row in schedule_a]
        rows_b = [(row.seq.request_id, row.num_new_tokens) for row in schedule_b]
        assert rows_a == rows_b, "scheduling does not depend on the backend"
        logits_a = first.model_runner.execute(batch_a)  # [S, vocab_size]
        logits_b = second.model_runner.execute(batch_b)
        tokens_a, tokens_b = first.sample(schedule_a, logits_a), second.sample(schedule_b, logits_b)
        yield StepComparison(
            step=step,
            num_tokens=sum(count for _, count in rows_a),
            max_difference=float((logits_a - logits_b).abs().max()) if logits_a.numel() else 0.0,
            different=[
                (request_id, a[0], b[0])
                for (request_id, _), a, b in zip(rows_a, tokens_a, tokens_b)
                if a != b
            ],
        )  # fmt: skip
        first.update(schedule_a, tokens_a)
        second.update(schedule_b, tokens_a)
