"""两个后端同步对跑：同样的请求、同样的每一步，比较 logits 差多少、选的 token 是否相同。

Two backends in lockstep: the same requests and the same steps; how far apart are their logits, do they choose the same
tokens?
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends import create_backend
from engine.batch import build_batch
from engine.block_manager import num_blocks_needed
from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from models.config import load_config
from serving.prompts import each_prompt


@dataclass(frozen=True, slots=True)
class StepComparison:
    """一步的比较。

    One step's comparison.

    Attributes:
        num_tokens: 这一步算的 token 数；tokens computed in this step
        max_difference: logits 之差的最大绝对值，没有行采样时为 0；largest difference of two logits, 0 if none sampled
        different: 选得不同的：（请求 id，A 的 token，B 的 token）；those that differ: (request id, A's token, B's)
        broken: 分数成了 NaN 或无穷大的后端，token 是 -1；backends whose scores are NaN or infinite, the token is -1
    """

    step: int
    num_tokens: int
    max_difference: float
    different: list[tuple[str, int, int]]
    broken: list[str]


def show_token(tokenizer: Tokenizer, token: int) -> str:
    """表里的一个 token：空格、换行和特殊 token 都看得见；没有 token 就是 NaN。

    A token in a table: blanks, line breaks and special tokens are visible; where there is no token, NaN.
    """
    return repr(tokenizer.decode_token(token)) if token >= 0 else "NaN"


def make_side(config: EngineConfig, name: str) -> EngineConfig:
    """一边的选项：后端的名字，后面可以用冒号接上量化的方式，例如 `torch:int8`、`triton:int4:kv-int8`。

    The options of a side: the name of a backend, which colons may follow with what is quantized, as in `torch:int8` or
    `triton:int4:kv-int8`.

    Raises:
        ValueError: 没有这种量化；there is no such quantization
    """
    # 后端的名字里没有冒号，所以第一段总是它；写错的值由 `EngineConfig` 来说。
    # No backend's name has a colon, so the first piece is always it; a wrong value is for `EngineConfig` to tell.
    backend, *options = name.split(":")
    changes: dict[str, Any] = {"backend": backend}
    for option in options:
        # `kv-` 开头的是 KV 缓存，其余是权重。
        # What begins with `kv-` is the KV cache, all else the weights.
        field = "kv_cache_dtype" if option.startswith("kv-") else "quantization"
        if field in changes:
            raise ValueError(f"{name!r:.60} names {field} twice: leave one out")
        changes[field] = option.removeprefix("kv-")
    return replace(config, **changes)


def compare_backends(
    config: EngineConfig, names: tuple[str, str], prompts: Sequence[str | list[int]], params: SamplingParams
) -> Iterator[StepComparison]:
    """逐步产出比较结果。

    选出不同 token 之后，两边的上文就不同了，再比就没有意义；所以两边都接着用 A 选的 token，一直比到最后。

    Yield a comparison for each step.
    Once the two choose different tokens their contexts differ and comparing means nothing; so both go on with A's
    tokens, and the comparison holds to the end.

    Raises:
        ValueError: 某个提示词或选项不合法；a prompt or an option is not valid
    """
    # 适合检验新后端：拿慢而直白的 `torch` 当标准答案，误差从哪一步开始变大，一眼就能看到。
    # Made to test a new backend: `torch`, slow and plain, is the reference, and you see in which step the error grows.
    device, sides = config.resolve_device(), [make_side(config, name) for name in names]
    # 只比量化，不比精度：一边量化了，dtype 又没写明，两边都用量化那边的。
    # Compare quantization and not precision: where a side is quantized and no dtype is given, both take that side's.
    dtype = next((str(side.resolve().dtype) for side in sides if side.quantization), config.dtype)
    # 块大小不同，前缀命中就不同，步子也会错开；统一用两者默认值里较大的。
    # With different block sizes prefix hits differ and the steps drift apart; use the larger default for both.
    # 量化不影响块大小：它由后端决定，见 `AttentionBackend.default_block_size`。
    # Quantization does not change block sizes: they are the backend's, see `AttentionBackend.default_block_size`.
    defaults = [create_backend(side.backend, device).default_block_size for side in sides]
    block_size = config.kvcache_block_size or max(defaults)
    # 两个引擎各有自己的权重、块池和调度器，互不共享；所以内存要够放 2 份模型。
    # Each engine has its own weights, pool and scheduler, nothing is shared; so memory must hold the model 2 times.
    # 块池按需要给，不按显存给：两个引擎要同住一台设备，而且块数相同，调度才相同。
    # The pools get what is needed, not what is free: both share a device, and equal pools schedule equally.
    folder = config.resolve_model_folder()
    limit, encode = load_config(folder).max_position_embeddings, Tokenizer(folder).encode
    # 块数要在造引擎之前定好，所以文字在这里先分一次词，只数长度；检查留给引擎。
    # The pool is sized before there are engines, so text is tokenized here just to count; checking is left to them.
    lengths = each_prompt(lambda prompt: len(encode(prompt) if isinstance(prompt, str) else prompt), prompts)
    length = config.max_model_len or min(limit, max(lengths, default=0) + params.max_tokens)
    tokens = [length, *(min(count + params.max_tokens, length) for count in lengths)]
    num_blocks = config.num_kvcache_blocks or sum(num_blocks_needed(count, block_size) for count in tokens)
    first, second = (
        LLMEngine(replace(side, dtype=dtype, kvcache_block_size=block_size, max_model_len=length,
                          num_kvcache_blocks=num_blocks))
        for side in sides
    )  # fmt: skip
    # 没给种子时固定为 0：否则两边各抽各的，噪声不同，选的 token 当然不同，比较就失去意义。
    # Without a seed take 0: else each side draws its own, and tokens differ by the noise, not by the backend.
    seeds = replace(params, seed=params.seed if params.seed is not None else 0)
    # 两边用相同的请求 id，后面才能一行一行地对上。
    # Both sides use the same request ids, so that rows can be matched later.
    ids = [str(index) for index in range(len(prompts))]
    for engine in (first, second):
        for seq in each_prompt(engine.requests.prepare, prompts, [seeds] * len(prompts), ids):
            engine.add_sequence(seq)

    step = 0
    # 只看 A 的队列就够：两边记的 token 相同，结束也在同一步。
    # A's queues suffice: both record the same tokens and so finish in the same step.
    while first.has_unfinished():
        step += 1
        # 这就是 `LLMEngine.step` 的几行，拆开来两边交替执行，才能在中间插进比较。
        # The lines of `LLMEngine.step`, taken apart and run on both sides by turns, to compare in between.
        schedule_a, schedule_b = first.plan(), second.plan()
        # 序列对象各有各的，不能直接比；比的是 id 和新 token 数。
        # The sequence objects belong to their engines and cannot be compared; ids and numbers of new tokens can.
        rows_a = [(row.seq.request_id, row.num_new_tokens) for row in schedule_a]
        rows_b = [(row.seq.request_id, row.num_new_tokens) for row in schedule_b]
        assert rows_a == rows_b, "scheduling does not depend on the backend"
        # 停在这里，两边都走过后看 `(logits_a - logits_b).abs().max(-1)`：哪一行大，就查那一行的序列。
        # Stop here, run both, look at `(logits_a - logits_b).abs().max(-1)`: a large row names the sequence to check.
        logits_a = first.model_runner.execute(build_batch(schedule_a, block_size, device))  # [S, vocab_size]
        logits_b = second.model_runner.execute(build_batch(schedule_b, block_size, device))
        tokens_a = first.sampler.choose(schedule_a, logits_a)
        tokens_b = second.sampler.choose(schedule_b, logits_b)
        yield StepComparison(
            step=step, num_tokens=sum(count for _, count in rows_a),
            # 只含中途分段的一步没有 logits：空张量取 `max` 会报错，记为 0。
            # A step of middle chunks only has no logits: `max` of an empty tensor is an error, so it counts as 0.
            max_difference=float((logits_a.float() - logits_b.float()).abs().max()) if logits_a.numel() else 0.0,
            different=[
                # 没采样的行两边都是空列表，相等，所以能走到 `a[0]` 的两边都有 1 个 token。
                # A row that did not sample is empty on both sides, hence equal; where `a[0]` is read, both hold 1.
                (request_id, a[0], b[0]) for (request_id, _), a, b in zip(rows_a, tokens_a, tokens_b) if a != b
            ],
            # -1 是采样器的“没有 token 可选”；两边都是 -1 就没有分歧，所以另列一项。
            # -1 is the sampler's "no token to choose"; with -1 on both sides nothing differs, hence an item of its own.
            broken=[name for name, tokens in zip(names, (tokens_a, tokens_b)) if [-1] in tokens],
        )  # fmt: skip
        # `yield` 之后才更新：调用者处理结果时，两边还停在这一步，可以检查它们的状态。
        # Updated after the `yield`: while the caller looks, both sides still stand at this step and can be inspected.
        # 调度器会删去没有记下的 -1：各给一份，第 2 个才看得到同样的 token。
        # The scheduler deletes a -1, which it does not record: each gets a copy, so that number 2 sees the same tokens.
        recorded = [list(row) for row in tokens_a]
        first.record(schedule_a, recorded, first.scheduler.update(schedule_a, recorded))
        # B 也记 A 的 token，不记自己的：上文保持相同，一次分歧不会让后面的比较全部作废。
        # B records A's tokens, not its own: the contexts stay equal, and one difference does not void all later steps.
        second.record(schedule_b, tokens_a, second.scheduler.update(schedule_b, tokens_a))
