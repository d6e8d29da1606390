"""实验 15：两个 rank 合算一个模型。

学什么：张量并行怎样切一层，为什么前一个矩阵按行、后一个按列，加起来就是整个；每个 token 要求和几次、搬多少字节；
有一个 rank 走得不一样，不核对就没人发现，严格模式说得出是哪一步。
试一试：`--layer 3`、`--step 1`、`--step 10`；再改标着 TODO 的几行，看检查怎样发现。
怎样算对：各份相加与引擎的整个一层相同；切下的与引擎切的相同，与手算的也相同；用 torchrun 起的两个 rank 写出的与一个的
相同，你算的字节就是实际搬的；故意让 rank 1 不一致，严格模式的话与预先写好的一字不差。

Lab 15: two ranks share a model.

Teaches: how tensor parallelism cuts a layer, and why the shares sum up to the whole with rows of the first matrix and
columns of the second; how many sums a token takes and how many bytes they move; a rank that goes another way is noticed
by nobody unless they compare, and strict mode names the step.
Try: `--layer 3`, `--step 1`, `--step 10`; then change the lines marked TODO and see the check find it.
Check: the sum of the shares is the engine's whole layer; what you cut is what the engine cuts, and what was worked out
by hand; two ranks started by torchrun write what one does and move the bytes that you work out; when rank 1
differs on purpose, strict mode says, word for word, what was written down beforehand.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import Check, ask, make_engine, run_lab, say, title
from torch import Tensor

from engine.llm_engine import LLMEngine
from engine.sampling_params import SamplingParams
from layers import ranks
from layers.ranks import Ranks
from models.shares import cut

RANKS, QUESTIONS = 2, ("What is the capital of France?", "什么是前缀缓存？")
PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
# 手算：第几个 rank，共几个 rank，共几个 KV 头 -> 它有哪些 KV 头。头不够时，相邻的 rank 存同一个。
# By hand: which rank, of how many, how many KV heads -> those it has. With too few of them neighbours keep the same.
KV_HEADS: dict[tuple[int, int, int], list[int]] = {
    (0, 2, 8): [0, 1, 2, 3], (1, 2, 8): [4, 5, 6, 7], (0, 4, 2): [0], (1, 4, 2): [0], (2, 4, 2): [1], (3, 4, 2): [1],
}  # fmt: skip


def rows_of(weight: Tensor, rank: int) -> Tensor:
    """按行切：一部分输出，是算完的。

    Cut by rows: some of the outputs, complete.

    Args:
        weight: [out, in]

    Returns:
        [out // RANKS, in]
    """
    size = len(weight) // RANKS
    # TODO 试试写错：`weight[rank::RANKS]`，隔行取。
    # TODO try a mistake: `weight[rank::RANKS]`, every other row.
    return weight[rank * size : (rank + 1) * size]  # [out // RANKS, in]


def columns_of(weight: Tensor, rank: int) -> Tensor:
    """按列切：一部分输入，得到的是每个输出的一部分。

    Cut by columns: some of the inputs, which give a part of each output.

    Returns:
        [out, in // RANKS]
    """
    size = weight.shape[1] // RANKS
    return weight[:, rank * size : (rank + 1) * size]  # [out, in // RANKS]


def mlp_share(x: Tensor, gate_up: Tensor, down: Tensor, rank: int) -> Tensor:
    """这个 rank 的那一份 MLP。

    This rank's share of the MLP.

    Args:
        x: [T, hidden]
        gate_up: [2 * intermediate, hidden]，上半是 gate，下半是 up；gate is the upper half, up the lower
        down: [hidden, intermediate]

    Returns:
        [T, hidden]
    """
    # gate 和 up 摞在一个张量里，所以两半各切各的。
    # Gate and up lie in one tensor, one on the other: each half is cut by itself.
    # TODO 试试写错：`gate, up = rows_of(gate_up, rank).chunk(2)`，连着一起切。
    # TODO try a mistake: `gate, up = rows_of(gate_up, rank).chunk(2)`, which cuts the pile.
    gate, up = (rows_of(half, rank) for half in gate_up.chunk(2))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ columns_of(down, rank).T  # [T, hidden]


def look_up_share(table: Tensor, ids: Tensor, rank: int) -> Tensor:
    """词嵌入的一份：自己有的行照取，别人的是 0。

    A share of the embedding: rows that this rank has, and 0 for those of others.

    Args:
        table: [vocab_size, hidden]
        ids: [T]

    Returns:
        [T, hidden]
    """
    mine = rows_of(table, rank)
    rows = ids - rank * len(mine)
    others = (rows < 0) | (rows >= len(mine))
    # TODO 试试写错：去掉 `.masked_fill(others[:, None], 0)`。
    # TODO try a mistake: drop `.masked_fill(others[:, None], 0)`.
    return mine[rows.clamp(0, len(mine) - 1)].masked_fill(others[:, None], 0)  # [T, hidden]


def kv_heads_of(rank: int, size: int, num_kv_heads: int) -> list[int]:
    """这个 rank 有哪些 KV 头。

    Which KV heads this rank has.
    """
    if size > num_kv_heads:
        # TODO 试试写错：`rank % num_kv_heads`。
        # TODO try a mistake: `rank % num_kv_heads`.
        return [rank * num_kv_heads // size]
    each = num_kv_heads // size
    return list(range(rank * each, (rank + 1) * each))


def bytes_of_a_token(num_layers: int, hidden_size: int) -> int:
    """一个 token 的前向里，求和一共搬多少字节；float32 是 4 字节一个数。

    How many bytes all sums of a token's forward pass move; a number of float32 takes 4.
    """
    # TODO 试试写错：去掉 `1 +`，忘了词嵌入。
    # TODO try a mistake: drop `1 +` and forget the embedding.
    return (1 + 2 * num_layers) * hidden_size * 4


def first_difference(logs: list[list[Any]]) -> int | None:
    """各个 rank 每步记下的，从第几步起不同；步数从 1 数起。

    From which step on the ranks' logs differ; steps count from 1.
    """
    # TODO 试试写错：去掉 `start=1`。
    # TODO try a mistake: drop `start=1`.
    for number, each in enumerate(zip(*logs), start=1):
        if any(one != each[0] for one in each):
            return number
    return None


# ---- 每个 rank 做的事 ----
# ---- what each rank does ----


def make_rank(strict: bool) -> tuple[LLMEngine, list[str]]:
    """一个 rank 的引擎，问题已经加入。

    The engine of a rank, with the questions added.
    """
    engine = make_engine(backend="sdpa", tensor_parallel_size=RANKS, strict=strict)
    return engine, [engine.add_request(ask(engine, question), PARAMS) for question in QUESTIONS]


def go(engine: LLMEngine) -> list[list[int]]:
    """走完，返回每份回答的 token。

    Step until all are done; the tokens of each answer.
    """
    found: dict[str, list[int]] = {}
    while engine.has_unfinished():
        found |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    return [found[name] for name in sorted(found)]


def error_of(engine: LLMEngine) -> str:
    """走到出错为止，返回那句话。

    Step until it fails, and return what it says.
    """
    try:
        go(engine)
    except RuntimeError as error:
        return str(error)
    return "no error"


def differ(engine: LLMEngine, step: int) -> list[Any]:
    """让 rank 1 在第 `step` 步记下另一个 token；返回的列表里，每步添一项。

    Let rank 1 record another token in step `step`; the list that is returned gets an entry each step.
    """
    real, numbers, log = engine.sampler.choose, count(1), list[Any]()

    def choose(*args: Any) -> list[list[int]]:
        tokens = real(*args)
        # TODO 试试写错：去掉 `and engine.ranks.rank == 1`，两个 rank 就错得一样。
        # TODO try a mistake: drop `and engine.ranks.rank == 1`, and both ranks are wrong alike.
        if next(numbers) == step and engine.ranks.rank == 1:
            tokens[0] = [tokens[0][0] + 1]
        log.append([list(each) for each in tokens])
        return tokens

    engine.sampler.choose = choose  # type: ignore[method-assign]
    return log


def rank_main(step: int, folder: Path) -> int:
    """一个 rank：跑各种情形，把结果写成一个文件。

    One rank: run the cases and write what came out to a file.
    """
    engine, _ = make_rank(strict=True)
    engine.step()
    # 数一步里求和的字节：第 1 步是提示词，从第 2 步起，每个请求一个 token。
    # Count the bytes summed in one step: step 1 is the prompts, from step 2 on it is a token for each request.
    moved: list[int] = []
    real = ranks.dist.all_reduce
    ranks.dist.all_reduce = lambda x: (moved.append(x.nbytes), real(x))  # type: ignore[assignment]
    engine.step()
    ranks.dist.all_reduce = real
    result: dict[str, Any] = {"moved": moved, "tokens": go(engine)}

    # 不核对：没有人报错。
    # Without comparing: nobody complains.
    engine, _ = make_rank(strict=False)
    result["log"] = differ(engine, step)
    result["silent"] = [engine.tokenizer.decode(tokens) for tokens in go(engine)]

    # 核对：一次是另一个 token，一次是只有 rank 1 取消了一个请求。
    # Comparing: once another token, once a request that rank 1 alone aborts.
    engine, _ = make_rank(strict=True)
    differ(engine, step)
    result["token"] = error_of(engine)
    engine, names = make_rank(strict=True)
    for _ in range(step - 1):
        engine.step()
    if engine.ranks.rank == 1:
        engine.abort(names[0])
    result["abort"] = error_of(engine)
    (folder / f"{engine.ranks.rank}.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def start_ranks(step: int) -> list[dict[str, Any]]:
    """用 torchrun 把这个文件起 2 份，返回每个 rank 写下的结果。

    Let torchrun start this file 2 times, and return what each rank has written.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS),
            __file__, "--step", str(step), "--folder", folder,
        ]  # fmt: skip
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"}
        run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, timeout=120)
        if run.returncode != 0:
            print(run.stderr, file=sys.stderr)
            raise RuntimeError("a rank has failed, its message is above")
        return [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]


# ---- 实验 ----
# ---- the lab ----


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="two ranks share a model / 两个 rank 合算一个模型")
    parser.add_argument("--layer", type=int, default=0, help="切哪一层 / which layer to cut")
    parser.add_argument("--step", type=int, default=4, help="rank 1 在第几步不一致 / in which step rank 1 differs")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        return rank_main(args.step, args.folder)
    engine = make_engine(backend="torch")
    model, config = engine.model_runner.model, engine.model_runner.model_config
    num_layers, num_kv_heads = config.num_hidden_layers, config.num_key_value_heads
    if not 0 <= args.layer < num_layers or not 1 <= args.step <= 10:
        parser.error(f"use layers from 0 to {num_layers - 1} and steps from 1 to 10")

    mlp, table = model.model.layers[args.layer].mlp, model.model.embed_tokens.weight
    gate_up, down = mlp.gate_up_proj.weight, mlp.down_proj.weight
    x = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(0))  # [T, hidden]
    ids = torch.tensor([7, config.vocab_size - 1, 500])  # [T]
    shares = [mlp_share(x, gate_up, down, rank) for rank in range(RANKS)]
    title("第 0 个 token 的前 3 个输出", "the first 3 outputs of token 0")
    for rank, share in enumerate(shares):
        print(f"  rank {rank}: {[round(value, 4) for value in share[0, :3].tolist()]}")
    print(f"  sum:    {[round(value, 4) for value in sum(shares)[0, :3].tolist()]}")

    check = Check()
    check.same(
        "各份 MLP 相加，就是引擎的整个 MLP", "the shares of the MLP sum up to the engine's MLP",
        got=sum(shares), expected=mlp(x), where="token, output", tolerance=1e-4,
        likely=("自己的行要喂给自己的列：两边取同样的编号", "a rank's rows feed its own columns: the same numbers"),
        mistakes={
            ("gate 和 up 各切各的，不能连着一起切", "gate and up are cut each by itself, not as one pile"):
                sum((F.silu(x @ a.T) * (x @ b.T)) @ c.T for (a, b), c in zip(
                    [half.chunk(2) for half in gate_up.chunk(2)], down.chunk(2, dim=1)
                )),
        },
    )  # fmt: skip
    check.same(
        "各份词嵌入相加，就是表里的行", "the shares of the embedding sum up to rows of the table",
        got=sum(look_up_share(table, ids, rank) for rank in range(RANKS)), expected=table[ids], where="token",
        likely=("行号减去自己的第一行：rank * 行数", "row numbers count from one's own first row: rank * rows"),
        mistakes={
            ("别人的行要放 0，不是随便一行", "for rows of others there are zeros, not just any row"):
                sum(half[(ids - rank * len(half)).clamp(0, len(half) - 1)] for rank, half in enumerate(table.chunk(2))),
        },
    )  # fmt: skip
    check.same(
        "每个 rank 的 KV 头与手算的相同", "the KV heads of each rank are as by hand",
        got={key: kv_heads_of(*key) for key in KV_HEADS}, expected=KV_HEADS, where="rank/ranks/KV heads",
        likely=("够分就每个 rank 连着几个", "where there are enough, some in a row for each rank"),
        mistakes={
            ("不够分时，相邻的 rank 存同一个：rank * KV 头数 // rank 数",
             "where there are too few, neighbours keep the same: rank * KV heads // ranks"):
                {(rank, size, heads): [rank % heads] if size > heads else KV_HEADS[rank, size, heads]
                 for rank, size, heads in KV_HEADS},
        },
    )  # fmt: skip
    # 引擎切的：给它一个大小合适的空位，它自己看出切哪一维。
    # What the engine cuts: given an empty place of the right size, it finds the dimension by itself.
    up, keys = gate_up.chunk(2)[1], torch.arange(num_kv_heads).repeat_interleave(config.head_dim)[:, None].expand(-1, 5)
    each = {"rows": (up, rows_of), "columns": (down, columns_of)}
    check.same(
        "切下的与引擎切的相同", "what you cut is what the engine cuts", where="cut, rank",
        got={
            **{name: [of(whole, rank) for rank in range(RANKS)] for name, (whole, of) in each.items()},
            "KV heads": [kv_heads_of(rank, 4, num_kv_heads) for rank in range(4)],
        },
        expected={
            **{name: [cut(whole, torch.empty_like(of(whole, 0)), Ranks(rank, RANKS)) for rank in range(RANKS)]
               for name, (whole, of) in each.items()},
            "KV heads": [cut(keys, torch.empty(config.head_dim, 5), Ranks(rank, 4))[:, 0].unique().tolist()
                         for rank in range(4)],
        },
        likely=("每个 rank 拿连着的一段，rank 0 在前；或者引擎切错了：`models/shares.py::cut`",
                "a rank takes a run of them, rank 0 the first; or the engine is wrong: `models/shares.py::cut`"),
    )  # fmt: skip
    if check.num_off:
        say("先改对这些，再起两个 rank。", "Put these right first; then two ranks are started.")
        return check.finish()

    for question in QUESTIONS:
        engine.add_request(ask(engine, question), PARAMS)
    alone, both = go(engine), start_ranks(args.step)
    say(f"一个 token 求和 {len(both[0]['moved'])} 次。", f"The sums of a token: {len(both[0]['moved'])}.")
    for name, texts in (("alone", [engine.tokenizer.decode(tokens) for tokens in alone]),
                        *((f"rank {rank}", each["silent"]) for rank, each in enumerate(both))):  # fmt: skip
        print(f"  {name}: {texts[0]!r}")
    say(
        f"上面两个 rank 没有核对：rank 1 从第 {args.step} 步起与 rank 0 不一致，没有人报错。下面是严格模式的话：",
        f"These two ranks did not compare: rank 1 differs from step {args.step} on, and nobody complains. Strict mode:",
    )
    for kind in ("token", "abort"):
        print(f"  {both[0][kind]}")
    check.same(
        "两个 rank 写的，都与一个的相同", "what two ranks write is what one does", where="rank, request, token",
        got=[each["tokens"] for each in both], expected=[alone] * RANKS,
        likely=("少求了一次和，或者切错了", "a sum is missing, or something was cut wrong"),
    )  # fmt: skip
    check.same(
        "你算的字节，就是一个 token 实际求和的", "the bytes that you work out are those summed for a token",
        got=[bytes_of_a_token(num_layers, config.hidden_size)] * RANKS, where="rank",
        expected=[sum(each["moved"]) // len(QUESTIONS) for each in both],
        likely=("每层 2 次：`o_proj` 和 `down_proj` 之后", "2 a layer: after `o_proj` and after `down_proj`"),
        mistakes={
            ("词嵌入也要求一次和", "the embedding takes a sum as well"):
                [2 * num_layers * config.hidden_size * 4] * RANKS,
        },
    )  # fmt: skip
    check.same(
        "从各 rank 每步记下的，看得出从第几步起不同", "the logs of the ranks tell from which step on they differ",
        got={"is": first_difference([each["log"] for each in both])}, expected={"is": args.step}, where="step",
        likely=("两个 rank 记下的一样，或者没有逐步比", "both have logged the same, or were not compared step by step"),
        mistakes={
            ("步数从 1 数起", "steps count from 1"): {"is": args.step - 1},
        },
    )  # fmt: skip
    check.same(
        "严格模式说出第一步不一致", "strict mode names the first step that differs", where="case, rank",
        got={kind: [each[kind] for each in both] for kind in ("token", "abort")},
        expected={
            kind: [f"step {args.step}: the {what} of rank 1 are not those of rank 0"] * RANKS
            for kind, what in (("token", "tokens"), ("abort", "scheduled rows"))
        },
        likely=("rank 1 没有真的不一致，或者引擎核对得不对：`Ranks.compare`",
                "rank 1 did not really differ, or the engine compares wrongly: `Ranks.compare`"),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
