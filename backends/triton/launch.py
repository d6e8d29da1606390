"""提前启动（programmatic dependent launch）：前一个核函数快要结束时，下一个就先启动、等着。

平时，同一条流上的核函数一个完全结束，下一个才启动，中间空出 1 微秒左右。解码一步有两百多个核函数，1 个请求时，
这些空当占一成多。提前启动的核函数先在流式多处理器（SM）上就位，等前面的全部结束，再去碰它们写出的数据。

    平时      |==== norm ====|  |==== matmul ====|  |==== rope ====|
    提前启动  |==== norm ====|==== matmul ====|==== rope ====|

Early launch (programmatic dependent launch): when a kernel is about to end, the next comes on and stands by.

Normally a kernel starts when the one before it on the stream has ended altogether, which leaves some 1 microsecond
idle. A decode step has over two hundred kernels, and with 1 request these gaps are over a tenth of it. A kernel
launched early takes its place on the multiprocessors, waits until all before it have ended, and only then touches what
they wrote.
Source: "Programmatic Dependent Launch" in the CUDA C++ Programming Guide; needs compute capability 9.0 (Hopper).
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# `skinny.py` 最多管这么多行。
# `skinny.py` serves up to so many rows.
MAX_SKINNY_ROWS = 64
# `EARLY` 的取值：照常启动；一开始就放行后面的；快结束时才放行。
# What `EARLY` may be: an ordinary launch; let those behind come on at once; let them come on near the end.
OFF, AT_START, NEAR_END = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def await_inputs(EARLY: tl.constexpr):
    """等前面的核函数全部结束，才去碰它们写出的数据；权重从不改变，只有它可以在这之前就读。

    Wait until all kernels before have ended, and only then touch what they wrote; weights never change, and they alone
    may be read earlier.
    """
    if EARLY == AT_START:
        gdc_launch_dependents()
    # 提前启动的都要在这里等前一个，而前一个也等过它的前一个：等到了，就是前面的全部结束了；有一个不等，链条就断。
    # All that are launched early wait for the one before, which has waited in its turn, so that all before have ended;
    # a single one that did not wait would break the chain.
    # `store.py`、`prefill.py` 和 PyTorch 的核函数照常启动：前一个完全结束它们才开始，所以不必等。
    # The kernels of `store.py`, `prefill.py` and PyTorch are launched as usual: they start when the one before has
    # ended altogether, and need not wait.
    if EARLY != OFF:
        gdc_wait()


@triton.jit
def nearly_done(EARLY: tl.constexpr):
    """放在大部分工作做完之后：后面的可以启动了。放早放晚只关乎速度，后面的总要等这里全部结束。

    Stands where most of the work is done: those behind may come on. Where it stands is a matter of speed only, as they
    wait for the end of this one in any case.
    """
    if EARLY == NEAR_END:
        gdc_launch_dependents()


@cache
def early(device: torch.device, num_rows: int) -> dict[str, Any]:
    """启动参数：Hopper 及以后的 GPU 提前启动，更早的和解释模式照旧。

    Launch options: early launch from Hopper on, none on older GPUs and in the interpreter.

    Args:
        num_rows: 这一步的行数：token 或序列；rows of the step, tokens or sequences
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return {"EARLY": OFF.value}
    # H200 上量过，Qwen3-0.6B 每个 token 的毫秒数：1 行时一开始就放行 0.79，快结束时 0.91；8 行时反过来，1.34 和 1.03。
    # 2 到 64 行用 `skinny.py`，提前启动、还在等待的程序占着共享内存，正在跑的反而不够用。
    # Measured on an H200, milliseconds a token for Qwen3-0.6B: with 1 row 0.79 at once and 0.91 near the end; with 8
    # rows the reverse, 1.34 and 1.03. 2 to 64 rows run `skinny.py`, whose programs hold much shared memory standing by.
    return {"EARLY": (NEAR_END if 1 < num_rows <= MAX_SKINNY_ROWS else AT_START).value, "launch_pdl": True}
