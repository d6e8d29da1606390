"""实验 8：写自己的注意力后端。

学什么：接一个新后端只要一个文件、三个函数、一行登记；引擎、调度器、块管理器一行不改。
试一试：填写 `docs/labs/my_backend.py` 里的三个 TODO，每填一个就再运行一遍；`--all` 跑全部用例；`--solution` 换成答案。
怎样算对：用真正的注意力测试（`tests/attention_cases.py`，float64 参照）评判；最后引擎用它回答，与 `torch` 相同。
没写完时，它说明缺什么、怎样继续，退出码 0；写错了，它说出是哪个用例，退出码 1。

Lab 8: write your own attention backend.

Teaches: a new backend is one file, three functions and one line of registration; not a line of engine, scheduler or
block manager changes.
Try: fill in the three TODOs of `docs/labs/my_backend.py` and run this again after each; `--all` runs every case;
`--solution` shows what the reference solution gives.
Check: by the real attention tests (`tests/attention_cases.py`, a float64 oracle); in the end the engine answers with it
and says the same as with `torch`. Unfinished, it says what is missing and how to go on, with exit code 0;
where it is wrong, it names the case, with exit code 1.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

import torch
from common import ROOT, Check, ask, make_engine, run_lab, say, title
from torch import Tensor

import backends
from engine.sampling_params import SamplingParams

sys.path.insert(0, str(ROOT / "tests"))
from attention_cases import (
    TOLERANCE,
    BackendSpec,
    Case,
    Problem,
    Target,
    all_cases,
    assert_solved,
    attention_oracle,
    decode_problem,
    run_decode,
    run_varlen,
    varlen_problem,
)

TARGET = Target(BackendSpec("mine"), "cpu")


def selected_cases(everything: bool) -> list[Case]:
    """默认每种布局、掩码、头数各取几个，几秒跑完；`--all` 取全部。

    By default some of each layout, mask and head count, done in seconds; `--all` takes all.
    """
    cases = list(all_cases())
    return cases if everything else [c for c in cases if c.head_dim in (16, 64) and c.num_q_heads in (1, 6)]


def judge_store() -> None:
    """写缓存：每个 token 落在自己的槽位，-1 不写，别处不动。

    Stores: each token lands in its slot, -1 stores nothing, and nothing else changes.
    """
    key, value = torch.randn(2, 5, 2, 16)
    # 最后一个槽位 39 没人写：下标 -1 在 Python 里正是它，忘了跳过 -1 就会在这里留下痕迹。
    # Nobody writes slot 39, the last: an index of -1 means just that in Python, and not skipping -1 leaves a mark here.
    slots = [21, -1, 0, 30, 8]
    k_cache, v_cache = torch.full((2, 5, 8, 2, 16), float("nan"))
    TARGET.create().store_kvcache(key, value, k_cache, v_cache, torch.tensor(slots))
    for name, new, cache in (("key", key, k_cache), ("value", value, v_cache)):
        flat = cache.flatten(0, 1)  # [40, 2, 16]
        for token, slot in enumerate(slots):
            if slot >= 0 and not torch.equal(flat[slot], new[token]):
                found = [other for other in range(40) if torch.equal(flat[other], new[token])]
                raise AssertionError(
                    f"{name} of token {token} is not in slot {slot} = block {slot // 8}, offset {slot % 8}, but in "
                    f"{found or 'no slot'}: cache[slot // block_size, slot % block_size]"
                )
        written = (~flat.isnan()).flatten(1).any(1).nonzero().flatten().tolist()
        if extra := sorted(set(written) - set(slots)):
            raise AssertionError(
                f"{name}: slots {extra} were written and should not be; token 1 has slot -1, which stores nothing, "
                "while cache[-1] is the last slot"
            )


# 常见的错误：照它重算一遍，结果若与交来的相同，就是它。
# Common mistakes: computed on purpose, and if the result is what was handed in, this is the one.
MISTAKES = {
    "top_left": "the causal mask is aligned bottom-right: query i sees keys 0 to num_k - num_q + i",
    "no_mask": "causal=True hides the keys behind each query",
    "in_turns": "query head h reads KV head h // (Hq // Hkv)",
    "no_scale": "scores are multiplied by softmax_scale, or by 1 / sqrt(D) where it is None",
}


def mistaken(problem: Problem, mistake: str) -> Tensor:
    """故意犯 `mistake` 的注意力。

    Attention with `mistake` made on purpose.

    Returns:
        [T, Hq, D] float64
    """
    case, (q, k, v) = problem.case, (problem.q, problem.k, problem.v)
    lengths_q, lengths_k, causal = problem.lengths_q, problem.lengths_k, case.causal
    scale = case.softmax_scale or case.head_dim**-0.5
    if mistake == "no_mask":
        causal = False
    elif mistake == "no_scale":
        scale = 1.0
    elif mistake == "in_turns":
        k, v = (x[:, torch.arange(case.num_q_heads) % case.num_kv_heads] for x in (k, v))
    elif causal:
        # 左上角对齐：第 i 个 query 看前 i + 1 个 key。把每个 query 当作一条序列，就不用另写掩码。
        # Top-left: query i sees the first i + 1 keys. With each query as a sequence no other mask is needed.
        pairs = zip(lengths_q, k.split(lengths_k), v.split(lengths_k))
        seen = [(keys[: i + 1], values[: i + 1]) for count, keys, values in pairs for i in range(count)]
        k, v = (torch.cat(parts) for parts in zip(*seen))
        lengths_q, lengths_k, causal = [1] * len(q), [len(keys) for keys, _ in seen], False
    return attention_oracle(q, k, v, lengths_q, lengths_k, scale, causal)


def explain(out: Tensor, problem: Problem) -> str:
    """哪里错了：有几个 NaN，第一处在哪条序列、哪个 query、哪个头，得到什么，应当是什么，多半因为什么。

    What is wrong: how many NaN; the first wrong sequence, query and head; got, expected, likely cause.
    """
    case, expected = problem.case, problem.reference  # [T, Hq, D]
    limit = 10 * TOLERANCE[case.dtype] * float(expected.abs().max())
    wrong = ~((out.double() - expected).abs() <= limit).all(-1)  # [T, Hq]
    if not wrong.any():
        return f"the dtype should be {case.dtype}, got {out.dtype}" if out.dtype != case.dtype else "just too inexact"
    token, head = wrong.nonzero()[0].tolist()
    sequence, query = 0, token
    while query >= problem.lengths_q[sequence]:
        query -= problem.lengths_q[sequence]
        sequence += 1
    num_q, num_k = problem.lengths_q[sequence], problem.lengths_k[sequence]
    causes = [
        cause for mistake, cause in MISTAKES.items()
        if torch.allclose(out.double(), mistaken(problem, mistake), rtol=0.0, atol=limit)
    ]
    if out.isnan().any():
        causes = ["a slot past the length was read (those hold NaN), or softmax ran over a row that sees nothing"]
    got, right = (", ".join(f"{x:.3f}" for x in rows[token, head, :3].tolist()) for rows in (out, expected))
    return (
        f"{int(out.isnan().sum())} NaN; first wrong: sequence {sequence} ({num_q} queries, {num_k} keys), "
        f"query {query}, head {head}: got [{got} ...], expected [{right} ...]. "
        f"Likely: {' or '.join(causes or ['the wrong keys: the block table, or where a sequence starts'])}"
    )


def run_case(solve: Callable[[Target, Problem], Tensor], problem: Problem, name: str) -> None:
    """跑一个用例；出错时说出是哪个用例、错在哪里。

    Run a case; an error says which case it was and what is wrong.
    """
    try:
        out = solve(TARGET, problem)
    except NotImplementedError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or ["no message"])[0]
        raise AssertionError(f"{name}: {type(error).__name__}: {reason}") from error
    if out.shape != problem.q.shape:
        raise AssertionError(f"{name}: the shape should be {tuple(problem.q.shape)}, got {tuple(out.shape)}")
    try:
        assert_solved(out, problem)
    except AssertionError:
        raise AssertionError(f"{name}: {explain(out, problem)}") from None


def judge_decode(cases: list[Case]) -> None:
    """解码：与 float64 的参照相比。

    Decode, against the float64 oracle.
    """
    for case in cases:
        for count in (1, 3) if case.block_size else ():
            run_case(run_decode, decode_problem(case, count), f"{case}, {count} queries")


def judge_varlen(cases: list[Case]) -> None:
    """预填充：与 float64 的参照相比。

    Prefill, against the float64 oracle.
    """
    for case in cases:
        run_case(run_varlen, varlen_problem(case), str(case))


def judge_engine() -> None:
    """整个引擎：小预算、两个请求，分段与解码同处一步；与参考后端的 token 相比。

    The whole engine: a small budget and two requests, chunks beside decodes; the tokens against the reference backend.
    """
    texts = {}
    for name in ("torch", "mine"):
        engine = make_engine(backend=name, max_model_len=256, num_kvcache_blocks=64, max_num_batched_tokens=16)
        for question in ("What is the capital of France?", "What is a token?"):
            engine.add_request(ask(engine, question), SamplingParams(temperature=0.0, max_tokens=12))
        done = []
        while engine.has_unfinished():
            done += engine.step()
        texts[name] = {output.request_id: output.outputs[0].text for output in done}
    print(f"  {texts['mine']}")
    if texts["mine"] != texts["torch"]:
        raise AssertionError(f"backend torch answers {texts['torch']}")


def stages(cases: list[Case]) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """先易后难的四关。

    Four stages, easy ones first.
    """
    yield "store_kvcache：写缓存", "store_kvcache", judge_store
    yield "flash_attn_with_kvcache：解码", "flash_attn_with_kvcache: decode", lambda: judge_decode(cases)
    yield "flash_attn_varlen_func：预填充", "flash_attn_varlen_func: prefill", lambda: judge_varlen(cases)
    yield "整个引擎跑在它上面", "the whole engine runs on it", judge_engine


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="your own backend / 自己的后端")
    parser.add_argument("--solution", action="store_true", help="用参考答案 / use the reference solution")
    parser.add_argument("--all", action="store_true", help="全部用例 / every case")
    args = parser.parse_args()

    # 登记就是这一行；要长期用，就把它写进 `backends/__init__.py`。
    # Registration is this one line; to keep the backend, write it into `backends/__init__.py`.
    module = "solutions.my_backend" if args.solution else "my_backend"
    backends._REGISTRY["mine"] = backends._Entry(module, "MyBackend")
    path = module.replace(".", "/") + ".py"
    title("后端", "the backend")
    print(f"  docs/labs/{path}::MyBackend")

    cases = selected_cases(args.all)
    print(f"  {len(cases)} cases")
    torch.manual_seed(0)
    check = Check()
    for number, (zh, en, judge) in enumerate(stages(cases), start=1):
        try:
            judge()
        except NotImplementedError as todo:
            say(
                f"还缺 {todo}。打开 docs/labs/{path}，写完这个函数，再运行一遍；已通过 {number - 1} 关。",
                f"Missing: {todo}. Open docs/labs/{path}, write this function and run again. Passed: {number - 1}.",
            )
            return 0
        except Exception as error:
            check.that(False, zh, en, f"{type(error).__name__}: {error}")
            break
        check.that(True, zh, en)
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
