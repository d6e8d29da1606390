"""实验 8：写自己的注意力后端。

学什么：接一个新后端只要一个文件、三个函数、一行登记；引擎、调度器、块管理器一行不改。
试一试：填写 `docs/labs/my_backend.py` 里的三个 TODO，每填一个就再运行一遍；`--all` 跑全部用例；`--solution` 换成答案。
怎样算对：用真正的注意力测试（`tests/attention_cases.py`，float64 准绳）评判；最后引擎用它回答，与 `torch` 相同。
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
from common import ROOT, Check, ask, make_engine, say, title
from torch import Tensor

import backends
from engine.sampling_params import SamplingParams

sys.path.insert(0, str(ROOT / "tests"))
from attention_cases import (
    BackendSpec,
    Case,
    Problem,
    Target,
    all_cases,
    assert_solved,
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
    slots = [21, -1, 0, 39, 8]
    k_cache, v_cache = torch.full((2, 5, 8, 2, 16), float("nan"))
    TARGET.create().store_kvcache(key, value, k_cache, v_cache, torch.tensor(slots))
    for name, new, cache in (("key", key, k_cache), ("value", value, v_cache)):
        for token, slot in enumerate(slots):
            block, offset = divmod(slot, 8)
            if slot >= 0 and not torch.equal(cache[block, offset], new[token]):
                raise AssertionError(f"{name} of token {token} is not in slot {slot} = block {block}, offset {offset}")
        if int((~cache.isnan()).any(-1).any(-1).sum()) != 4:
            raise AssertionError("4 slots should be written, not more, not less")


def run_case(solve: Callable[[Target, Problem], Tensor], problem: Problem, name: str) -> None:
    """跑一个用例；出错时把用例的名字加进去。

    Run a case; on an error add its name.
    """
    try:
        assert_solved(solve(TARGET, problem), problem)
    except NotImplementedError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else "the result is off"
        raise AssertionError(f"{name}: {type(error).__name__}: {reason}") from error


def judge_decode(cases: list[Case]) -> None:
    """解码：与 float64 的准绳相比。

    Decode, against the float64 oracle.
    """
    for case in cases:
        for count in (1, 3) if case.block_size else ():
            run_case(run_decode, decode_problem(case, count), f"{case}, {count} queries")


def judge_varlen(cases: list[Case]) -> None:
    """预填充：与 float64 的准绳相比。

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
            check.that(False, zh, en)
            print(f"       {type(error).__name__}: {error}")
            break
        check.that(True, zh, en)
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
