"""实验 11：时间花在哪里。

学什么：用 `torch.profiler` 记录几步解码，看哪些运算最费时；把 trace 文件打开，一步一步看时间轴。
试一试：`--requests 1` 与 `--requests 32`，比较每步的毫秒数与每个 token 的毫秒数；`--backend torch` 看慢在哪里。
怎样算对：trace 文件是能读的 JSON，里面有每一步的标记；记录的步数与要求的相同。

Lab 11: where the time goes.

Teaches: record a few decode steps with `torch.profiler`, see which operations take longest, and open the trace file to
walk along the time line.
Try: `--requests 1` and `--requests 32`: compare milliseconds a step and milliseconds a token; `--backend torch` shows
what is slow there.
Check: the trace file is readable JSON with a mark for each step, as many as were asked for.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from common import Check, ask, make_engine, say, title
from torch.profiler import ProfilerActivity, profile, record_function

from engine.sampling_params import SamplingParams


def main() -> int:
    """跑实验，返回退出码。

    Run the lab and return the exit code.
    """
    parser = argparse.ArgumentParser(description="profile / 性能剖析")
    parser.add_argument("--requests", type=int, default=8, help="几个请求同时解码 / requests that decode together")
    parser.add_argument("--steps", type=int, default=5, help="记录几步 / steps to record")
    parser.add_argument("--backend", default="sdpa", help="torch, sdpa")
    parser.add_argument("--top", type=int, default=8, help="列出几个运算 / operations to list")
    args = parser.parse_args()
    if not 1 <= args.requests <= 64 or not 1 <= args.steps <= 50 or args.top < 1:
        parser.error("use 1 to 64 requests, 1 to 50 steps and a --top of at least 1")

    # 测速时不核对账目，否则量到的有一部分是核对的时间。
    # No checking of the books while timing, or part of what is measured is the checking.
    engine = make_engine(backend=args.backend, max_model_len=256, num_kvcache_blocks=64 * 10, strict=False)
    params = SamplingParams(temperature=0.0, max_tokens=2 * args.steps + 4, ignore_eos=True)
    for _ in range(args.requests):
        engine.add_request(ask(engine, "Count from 1 to 20"), params)
    # 先走 3 步热身：预填充，以及第一次分配内存，都不该算进来。
    # Warm up for 3 steps: the prefill and the first allocations should not be counted.
    for _ in range(3):
        engine.step()

    # 先不记录，量一遍每步多久；记录本身也花时间，混在一起就不准了。
    # Time the steps without recording first: recording takes time too and would spoil the figure.
    start = time.perf_counter()
    for _ in range(args.steps):
        engine.step()
    milliseconds = (time.perf_counter() - start) * 1000 / args.steps
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for index in range(args.steps):
            with record_function(f"step {index}"):
                engine.step()

    title("最费时的运算", "the costliest operations")
    rows = [row for row in profiler.key_averages() if not row.key.startswith("step ")]
    rows.sort(key=lambda row: row.self_cpu_time_total, reverse=True)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"  {'operation':<44} {'calls':>6} {'ms':>8} {'share':>6}")
    for row in rows[: args.top]:
        milli = row.self_cpu_time_total / 1000
        print(f"  {row.key[:44]:<44} {row.count:>6} {milli:>8.2f} {row.self_cpu_time_total / total:>6.0%}")
    say(
        f"不记录时，{args.requests} 个请求每步 {milliseconds:.2f} 毫秒，"
        f"每个 token {milliseconds / args.requests:.2f} 毫秒。",
        f"Not recorded: {milliseconds:.2f} ms a step for {args.requests} requests, "
        f"{milliseconds / args.requests:.2f} ms a token.",
    )

    path = Path(tempfile.mkdtemp(prefix="mini-llama-")) / "trace.json"
    profiler.export_chrome_trace(str(path))
    title("trace 文件", "the trace file")
    print(f"  {path}  {path.stat().st_size / 1024:.0f} KiB")
    say(
        "打开 https://ui.perfetto.dev（或 Chrome 的 chrome://tracing），把文件拖进去；W、S 缩放，A、D 平移。",
        "Open https://ui.perfetto.dev (or chrome://tracing in Chrome) and drop the file there; W, S zoom, A, D move.",
    )

    check = Check()
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    names = {event.get("name") for event in events}
    check.that(
        all(f"step {index}" in names for index in range(args.steps)),
        f"{args.steps} 步都在 trace 里", f"all {args.steps} steps are in the trace",
    )
    found = total > 0 and any("aten::" in str(name) for name in names)
    check.that(found, "里面有 torch 的运算", "torch operations are in it")
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
