"""实验 12：亲手量化一层。

学什么：一行权重共用一个缩放，每个权重变成一个整数；误差最多半步，所以还没有算，就知道输出最多差多少；
int4 的两个编码怎样放进一个字节。
试一试：`--outlier 100`（一个特别大的权重，看它拖累谁）、`--tokens 64`、`--layer 3`；再改标着 TODO 的几行，看检查怎样
发现。
怎样算对：缩放、编码、字节与手算的相同；还原后每个权重最多差半步；输出的误差不超过先算好的上限，常见的大小也对；
引擎读得懂这些字节，它自己量化的也一样准。

Lab 12: quantize a layer by hand.

Teaches: the weights of a row share a scale, and each becomes an integer; the error is at most half a step, so one knows
before computing how far an output can be off; how two codes of int4 go into a byte.
Try: `--outlier 100` (a very large weight: see who suffers), `--tokens 64`, `--layer 3`; then change the lines marked
TODO and see the check find it.
Check: scales, codes and bytes are those worked out by hand; each restored weight is at most half a step off; the
outputs' error keeps within the bound that was predicted, and is typically as large as predicted; the engine reads
these bytes, and what it quantizes itself is as exact.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from common import Check, make_engine, run_lab, say, title
from torch import Tensor

from backends.quantized_weight import GROUP, QuantizedWeight

# 一行 6 个数，除以缩放 0.5 之后，三个恰好在两个整数正中；-127 是最大的，它定下缩放。
# A row of 6 numbers: over the scale 0.5, three lie just between two integers; -127 is the largest and sets the scale.
#     -63.5 / 0.5 = -127     1.25 / 0.5 = 2.5     0.75 / 0.5 = 1.5     -0.25 / 0.5 = -0.5     10 / 0.5 = 20
ROW, SCALE = [-63.5, 1.25, 0.75, -0.25, 10.0, 0.0], 0.5
CODES = [-127, 2, 2, 0, 20, 0]
# 同样的缩放，数却大到 65 / 0.5 = 130：编码只到 127。
# The same scale, and a number as large as 65 / 0.5 = 130: codes end at 127.
LARGE, LARGE_CODES = [65.0, -65.0, 1.0], [127, -127, 2]
# 四个 int4 的编码：前两个成为一个字节 0 + 16 * 15 = 240，后两个是 10 + 16 * 8 = 138。
# Four codes of int4: the first two become the byte 0 + 16 * 15 = 240, the others 10 + 16 * 8 = 138.
NIBBLES, BYTES = [0, 15, 10, 8], [240, 138]


def scales_of(weight: Tensor) -> Tensor:
    """每行的缩放：最大的绝对值是 127 步。

    The scale of each row: its largest absolute value is 127 steps.

    Args:
        weight: [N, K]

    Returns:
        [N]
    """
    # TODO 试试写错：去掉 `.abs()`，或把 127 换成 128。
    # TODO try a mistake: drop `.abs()`, or take 128 for 127.
    return weight.abs().amax(1) / 127  # [N]


def to_codes(weight: Tensor, scales: Tensor) -> Tensor:
    """权重 -> 编码：除以缩放，舍入，截到 -127 和 127 之间。`round` 遇到正中取偶数：2.5 -> 2，1.5 -> 2。

    Weights -> codes: divide by the scale, round, clamp to -127 and 127. `round` takes the even of two equally near: 2.5
    -> 2, 1.5 -> 2.

    Returns:
        [N, K] int8
    """
    # TODO 试试写错：用 `trunc` 代替 `round`，或去掉 `.clamp(-127, 127)`。
    # TODO try a mistake: `trunc` for `round`, or drop `.clamp(-127, 127)`.
    return (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8)  # [N, K]


def restore(codes: Tensor, scales: Tensor) -> Tensor:
    """编码 -> 权重：乘回缩放。

    Codes -> weights: multiply by the scale.

    Returns:
        [N, K]
    """
    return codes.float() * scales[:, None]  # [N, K]


def bound(x: Tensor, scales: Tensor) -> Tensor:
    """x @ W.T 最多差多少：每个权重差半步，全都偏向同一边，就是半步乘以 |x| 的和。

    How far x @ W.T can be off: if each weight is half a step off and all in the same direction, half a step times the
    sum of |x|.

    Args:
        x: [T, K]

    Returns:
        [T, N]
    """
    # TODO 试试写错：去掉 `/ 2`，或者去掉 `.abs()`。
    # TODO try a mistake: drop `/ 2`, or drop `.abs()`.
    return x.abs().sum(1)[:, None] * scales / 2  # [T, N]


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """每行每 32 列一组，从最小到最大 15 步；编码 0 是最小的，编码 8 的值叫 `zeros`。

    Each 32 columns of a row are a group with 15 steps from its least to its greatest; code 0 is the least, and the
    value of code 8 is called `zeros`.

    Returns:
        codes [N, K] uint8, scales [N, K // 32], zeros [N, K // 32]
    """
    groups = weight.unflatten(1, (-1, GROUP))  # [N, K // 32, 32]
    low, high = groups.amin(2), groups.amax(2)  # [N, K // 32]
    scales = (high - low) / 15
    codes = ((groups - low[..., None]) / scales[..., None]).round().clamp(0, 15)  # [N, K // 32, 32]
    return codes.flatten(1).to(torch.uint8), scales, low + 8 * scales


def pack(codes: Tensor) -> Tensor:
    """两个编码一个字节：第 2j 列在低 4 位，第 2j + 1 列在高 4 位。

    Two codes a byte: column 2j in the low 4 bits, column 2j + 1 in the high 4.

    Args:
        codes: [N, K] uint8，0 到 15；0 to 15

    Returns:
        [N, K // 2] uint8
    """
    # TODO 试试写错：对调 `0::2` 与 `1::2`。
    # TODO try a mistake: let `0::2` and `1::2` change places.
    return codes[:, 0::2] + 16 * codes[:, 1::2]  # [N, K // 2]


def in_steps(restored: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """每行最大的误差，以步计。

    The largest error of each row, in steps.

    Args:
        scales: [N, 1]，或每个权重一个 [N, K]；or one for each weight, [N, K]

    Returns:
        [N]
    """
    return ((restored - weight).abs() / scales).amax(1)  # [N]


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="quantize a layer / 量化一层")
    parser.add_argument("--layer", type=int, default=0, help="第几层的 down_proj / the down_proj of which layer")
    parser.add_argument("--tokens", type=int, default=16, help="几个输入 / number of inputs")
    parser.add_argument("--outlier", type=float, default=1.0, help="第 0 行最大的权重放大几倍 / row 0's largest, times")
    args = parser.parse_args()
    layers = make_engine().model_runner.model.model.layers
    if not 0 <= args.layer < len(layers) or not 1 <= args.tokens <= 100 or not 1 <= args.outlier <= 1000:
        parser.error(f"use layers from 0 to {len(layers) - 1}, 1 to 100 tokens and an --outlier from 1 to 1000")

    weight = layers[args.layer].mlp.down_proj.weight.float().clone()  # [N, K]
    weight[0, weight[0].abs().argmax()] *= args.outlier
    rows, columns = weight.shape
    x = torch.randn(args.tokens, columns, generator=torch.Generator().manual_seed(0))  # [T, K]

    scales = scales_of(weight)  # [N]
    codes = to_codes(weight, scales)  # [N, K]
    restored = restore(codes, scales)  # [N, K]
    title("第 0 行权重", "row 0 of the weights")
    print(f"  [{rows}, {columns}], largest {float(weight[0].abs().max()):.4f}, scale {float(scales[0]):.6f}")
    for w, code, back in zip(weight[0, :4].tolist(), codes[0, :4].tolist(), restored[0, :4].tolist()):
        print(f"  {w:+.6f} -> {code:>4} -> {back:+.6f}")

    # 半步之内哪里都一样可能，平方的平均是步长² / 12；各项的正负互不相干，和的平方就是各项平方之和。
    # Anywhere within half a step is as likely, and the mean square is step² / 12; the signs of the terms have nothing
    # to do with each other, and the square of their sum is the sum of their squares.
    predicted = bound(x, scales).double()  # [T, N]
    typical = x.double().norm(dim=1)[:, None] * scales.double() / math.sqrt(12)  # [T, N]
    title("输出会差多少：先说，再量", "how far the outputs will be off: said first, then measured")
    length, most, usual = float(x[0].abs().sum()), float(predicted[0, 0]), float(typical[0, 0])
    say(
        f"第 0 个输入的 |x| 之和是 {length:.1f}：第 0 个输出最多差 {most:.4f}，常见的是 {usual:.4f}。",
        f"|x| of input 0 sums to {length:.1f}: output 0 is off by {most:.4f} at most, typically by {usual:.4f}.",
    )
    exact = x.double() @ weight.double().T  # [T, N]
    errors = (x.double() @ restored.double().T - exact).abs()  # [T, N]
    rms, size = (float(each.square().mean().sqrt()) for each in (errors / typical, exact))
    say(
        f"量出来差 {float(errors[0, 0]):.4f}；全部输出的均方根误差是预计的 {rms:.2f} 倍。输出本身的大小是 {size:.2f}。",
        f"Measured: {float(errors[0, 0]):.4f}; over all outputs the root mean square is {rms:.2f} times what was said. "
        f"The outputs themselves are some {size:.2f}.",
    )

    nibbles, group_scales, zeros = to_int4(weight)
    small = QuantizedWeight(pack(nibbles), group_scales, zeros)
    small_weight = small.dequantize()  # [N, K]
    off8, off4 = (float((back - weight)[0].abs().mean()) for back in (restored, small_weight))
    say(
        f"第 0 行的权重平均差多少：int8 {off8:.6f}，int4（32 列一组）{off4:.6f}。",
        f"Row 0's weights are off on average: int8 {off8:.6f}, int4 (groups of 32) {off4:.6f}.",
    )

    check = Check()
    # 手算：纯 Python，一行一行地取最大的绝对值。
    # By hand: plain Python, the largest absolute value of each row.
    lists = weight.tolist()
    check.same(
        "每行的缩放是最大的绝对值 / 127", "each row's scale is its largest absolute value / 127",
        got=scales, expected=torch.tensor([max(map(abs, row)) / 127 for row in lists]), where="row",
        tolerance=1e-6 * float(scales.max()),
        likely=("一行一个缩放，只看这一行", "a scale for each row, from this row alone"),
        mistakes={
            ("先取绝对值，再找最大的", "the absolute value comes first, then the largest"):
                torch.tensor([max(row) / 127 for row in lists]),
            ("最大的编码是 127，不是 128", "the largest code is 127, not 128"):
                torch.tensor([max(map(abs, row)) / 128 for row in lists]),
        },
    )  # fmt: skip
    check.same(
        "一行 6 个数的编码与手算的相同", "the codes of a row of 6 numbers are those by hand",
        got=to_codes(torch.tensor([ROW]), torch.tensor([SCALE]))[0].tolist(), expected=CODES, where="column",
        likely=("除以缩放，再舍入", "divide by the scale, then round"),
        mistakes={
            ("舍入到最近的整数，不是去掉小数", "round to the nearest integer, do not cut off"):
                [int(value / SCALE) for value in ROW],
            ("正中的取偶数：2.5 -> 2", "of two equally near the even one is taken: 2.5 -> 2"):
                [int(math.copysign(abs(value) / SCALE + 0.5, value)) for value in ROW],
        },
    )  # fmt: skip
    check.same(
        "超出的截到 127", "what lies beyond is clamped to 127",
        got=to_codes(torch.tensor([LARGE]), torch.tensor([SCALE]))[0].tolist(), expected=LARGE_CODES, where="column",
        likely=(
            "转成 int8 之前要 `clamp`：130 装不进 8 位，会变成负数",
            "`clamp` before the cast to int8: 130 has no room in 8 bits and becomes negative",
        ),
    )  # fmt: skip
    # 允许 float32 自己的舍入：半步再多 0.001 步。
    # Room for float32's own rounding: half a step and 0.001 more.
    half, tolerance = torch.zeros(rows), 0.501
    check.same(
        "还原后每个权重最多差半步", "each restored weight is at most half a step off",
        got=in_steps(restored, weight, scales[:, None]), expected=half, where="row", tolerance=tolerance,
        likely=("权重 = 编码 * 这一行的缩放", "weight = code * the scale of its row"),
    )  # fmt: skip
    sums, each_sum = (
        torch.tensor([[sum(map(sign, row))] for row in x.tolist()], dtype=torch.float64).expand(-1, rows)
        for sign in (float, abs)
    )  # [T, N]
    largest = torch.tensor([max(map(abs, row)) for row in lists], dtype=torch.float64) / 127 / 2  # [N]
    check.same(
        "上限是半步乘以 |x| 的和", "the bound is half a step times the sum of |x|",
        got=predicted / largest, expected=each_sum, where="token, row", tolerance=1e-3 * float(each_sum.max()),
        likely=("缩放是这一行的，|x| 的和是这个 token 的", "the scale is that of the row, the sum of |x| the token's"),
        mistakes={
            ("误差最多是半步，不是一步", "the error is at most half a step, not a whole one"):
                2 * each_sum,
            ("x 有正有负，要先取绝对值", "x has both signs: take the absolute values first"):
                sums,
        },
    )  # fmt: skip
    check.same(
        "量出来的误差不超过手算的上限", "the errors that were measured keep within the bound by hand",
        got=errors / (each_sum * largest), expected=torch.zeros_like(errors), where="token, row", tolerance=1.001,
        likely=("有的权重差了半步以上：看上面几条", "some weights are off by more than half a step: see above"),
    )  # fmt: skip
    check.same(
        "误差常见的大小是步长 / sqrt(12) * sqrt(x² 的和)", "typically the error is step / sqrt(12) * sqrt(sum of x²)",
        got={"rms / typical": rms}, expected={"rms / typical": 1.0}, where="error", tolerance=0.25,
        likely=("误差偏向一边：舍入要取最近的", "the errors lean to one side: rounding takes the nearest"),
    )  # fmt: skip
    check.same(
        "四个编码的两个字节与手算的相同", "the two bytes of four codes are those by hand",
        got=pack(torch.tensor([NIBBLES], dtype=torch.uint8))[0].tolist(), expected=BYTES, where="byte",
        likely=("相邻的两列放进一个字节", "neighbouring columns share a byte"),
        mistakes={
            ("偶数列在低 4 位，奇数列在高 4 位", "even columns go into the low 4 bits, odd ones into the high 4"):
                [first * 16 + second for first, second in zip(NIBBLES[::2], NIBBLES[1::2])],
        },
    )  # fmt: skip
    # 用取余和整除拆开字节，不用引擎的函数。
    # The bytes are taken apart with division and no function of the engine.
    low = torch.tensor([[value for byte in row for value in (byte % 16, byte // 16)] for row in small.codes.tolist()])
    minima, maxima = (getattr(weight.unflatten(1, (-1, GROUP)), name)(2) for name in ("amin", "amax"))
    each = ((maxima - minima) / 15).repeat_interleave(GROUP, 1)  # [N, K]
    by_hand = minima.repeat_interleave(GROUP, 1) + low * each  # [N, K]
    own = {bits: QuantizedWeight.frame(bits, weight.shape) for bits in (8, 4)}
    for quantized in own.values():
        quantized.materialize(torch.float32, torch.device("cpu"))
        quantized.copy_(weight)
    for zh, en, got, steps in (
        ("拆开字节，int4", "your bytes, int4", by_hand, each),
        ("引擎读出的 int4", "what the engine reads of them, int4", small_weight, each),
        ("引擎自己量化的 int8", "what the engine quantizes itself, int8", own[8].dequantize(), largest[:, None] * 2),
        ("引擎自己量化的 int4", "what the engine quantizes itself, int4", own[4].dequantize(), each),
    ):
        check.same(
            f"{zh}，每个权重最多差半步", f"{en}: each weight is at most half a step off",
            got=in_steps(got, weight, steps), expected=half, where="row", tolerance=tolerance,
            likely=(
                "缩放、编码 8 的值、高低 4 位，有一样对不上：`backends/quantized_weight.py`",
                "scale, value of code 8 or which 4 bits do not fit together: `backends/quantized_weight.py`",
            ),
        )  # fmt: skip
    check.same(
        "`F.linear` 遇到量化的权重，结果与先还原再乘相同", "`F.linear` with a quantized weight restores and multiplies",
        got=F.linear(x, own[8]),  # type: ignore[arg-type]
        expected=x @ (own[8].codes.float() * own[8].scales[:, None]).T, where="token", tolerance=1e-3 * size,
        likely=("`QuantizedWeight.__torch_function__` 或还原", "`QuantizedWeight.__torch_function__`, or restoring"),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
