"""实验 11：时间花在哪里。

学什么：用 `torch.profiler` 记录几步解码，看哪些运算最费时；把 trace 文件打开，一步一步看时间轴。
试一试：`--requests 1` 与 `--requests 32`，比较每步的毫秒数与每个 token 的毫秒数；`--backend torch` 看慢在哪里。
怎样算对：计时的几步全是解码；每一步里，整批请求与每个权重只相乘 1 次，次数可以手算；各项时间加起来正好是每步的时间；
trace 文件里，每一步的标记各有 1 个。

Lab 11: where the time goes.

Teaches: record a few decode steps with `torch.profiler`, see which operations take longest, and open the trace file to
walk along the time line.
Try: `--requests 1` and `--requests 32`: compare milliseconds a step and milliseconds a token; `--backend torch` shows
what is slow there.
Check: the steps timed are decodes throughout; in each step the whole batch meets each weight 1 time, a number that can
be worked out by hand; all times add up to those of the steps; the trace file has 1 mark for each step.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import Check, ask, make_engine, run_lab, say, title
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
    # No checking of the state while timing, or part of what is measured is the checking.
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
    before = (engine.num_computed_tokens, engine.num_generated_tokens)
    start = time.perf_counter()
    for _ in range(args.steps):
        engine.step()
    milliseconds = (time.perf_counter() - start) * 1000 / args.steps
    timed = {
        "computed": engine.num_computed_tokens - before[0], "generated": engine.num_generated_tokens - before[1]
    }  # fmt: skip
    # 形状也记下来：看得出每次乘法有几行。
    # Shapes are recorded, too: they tell how many rows each product has.
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for index in range(args.steps):
            with record_function(f"step {index}"):
                engine.step()

    title("最费时的运算", "the costliest operations")
    # `self` 的时间不含它调用的运算，所以加得起来；每一步自己的，就是运算之间的 Python。
    # `self` times leave out what an operation calls, so they can be added; a step's own is Python between operations.
    averages = profiler.key_averages()
    marks = [row for row in averages if row.key.startswith("step ")]
    listed = [(r.key, r.count, r.self_cpu_time_total) for r in averages if not r.key.startswith("step ")]
    listed.sort(key=lambda each: each[2], reverse=True)
    total = sum(row.cpu_time_total for row in marks)
    python = ("(Python)", len(marks), sum(row.self_cpu_time_total for row in marks))
    print(f"  {'operation':<44} {'calls':>6} {'ms':>8} {'share':>6}")
    for key, count, micro in [*listed[: args.top], python]:
        print(f"  {key[:44]:<44} {count:>6} {micro / 1000:>8.2f} {micro / total:>6.0%}")
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
    # 每个请求每步解码 1 个 token。
    # Each request decodes 1 token a step.
    tokens = args.requests * args.steps
    check.same(
        "计时的几步全是解码，没有请求中途结束", "the steps timed are all decodes, and no request ends on the way",
        got=timed, expected={"computed": tokens, "generated": tokens}, where="tokens",
        likely=(
            "多了：预填充也算了进去，先热身；少了：`max_tokens` 不够走完所有步",
            "too many: a prefill is among them, warm up first; too few: `max_tokens` does not last for all steps",
        ),
    )  # fmt: skip
    # 每层 4 次乘法（q、k、v 并成一次，gate、up 并成一次），最后 1 次得到 logits；都与请求的个数无关。
    # 4 products a layer (q, k, v are one, gate and up are one), 1 at the end for the logits, however many requests.
    config = engine.model_runner.model_config
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    layers, rows_each = args.steps * config.num_hidden_layers, f"times {args.requests} rows"
    products: dict[str, list[str]] = {}
    for row in profiler.key_averages(group_by_input_shape=True):
        if row.key in ("aten::linear", "mkldnn::_linear_pointwise"):
            (num_rows, inputs), (outputs, _) = row.input_shapes[:2]
            products.setdefault(f"{inputs} -> {outputs}", []).append(f"{row.count} times {num_rows} rows")
    check.same(
        "每一步，整批与每个权重只相乘 1 次", "in each step the whole batch meets each weight 1 time",
        got={name: " and ".join(each) for name, each in products.items()},
        expected={
            f"{hidden} -> {q + 2 * kv}": f"{layers} {rows_each}", f"{q} -> {hidden}": f"{layers} {rows_each}",
            f"{hidden} -> {2 * inner}": f"{layers} {rows_each}", f"{inner} -> {hidden}": f"{layers} {rows_each}",
            f"{hidden} -> {config.vocab_size}": f"{args.steps} {rows_each}",
        },
        where="product",
        likely=(
            "行数多：记录里有预填充；行数少而次数多：请求是一个一个算的；次数是几倍：同一步算了几遍",
            "more rows: a prefill was recorded; fewer rows, more often: the requests go one by one; some times as "
            "often: a step is computed more than once",
        ),
    )  # fmt: skip
    parts = [micro / total for _, _, micro in [*listed, python]]
    check.same(
        "各项的份额加起来是 1", "the shares add up to 1",
        got={"sum": sum(parts)}, expected={"sum": 1.0}, where="shares", tolerance=0.02,
        likely=(
            "大于 1：把运算里面的运算算了两遍，要用 `self` 的时间；小于 1：漏了 Python",
            "more than 1: operations inside operations count twice, use `self` times; less than 1: Python is left out",
        ),
    )  # fmt: skip
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = Counter(event["name"] for event in events if str(event.get("name")).startswith("step "))
    check.same(
        "trace 里每一步的标记各有 1 个", "the trace has 1 mark for each step",
        got=dict(found), expected={f"step {index}": 1 for index in range(args.steps)}, where="mark",
        likely=("`record_function` 要在循环里，名字带步号", "`record_function` stands in the loop and names the step"),
    )  # fmt: skip
    return check.finish()


if __name__ == "__main__":
    run_lab(main)
