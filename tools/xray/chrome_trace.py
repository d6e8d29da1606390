"""把记录导出成 Chrome trace：用 https://ui.perfetto.dev 或 `chrome://tracing` 打开。

一个进程是引擎，每步和它的 5 个阶段是嵌套的条；另一个进程里每个请求一条线：等待、预填充、解码各是一段。

Export a recording as a Chrome trace, to be opened by https://ui.perfetto.dev or `chrome://tracing`.
One process is the engine, where each step holds its 5 phases; in the other each request has a line with its spans of
waiting, prefill and decode.
"""

import json
from pathlib import Path
from typing import Any

ENGINE, REQUESTS = 1, 2
INSTANTS = ("preempt", "evict", "hit", "finish", "abort")


def _name(pid: int, name: str, tid: int | None = None) -> dict[str, Any]:
    kind = "process_name" if tid is None else "thread_name"
    return {"ph": "M", "pid": pid, "tid": tid or 0, "name": kind, "args": {"name": name}}


def _span(pid: int, tid: int, name: str, start: float, end: float, **args: Any) -> dict[str, Any]:
    # 格式规定时间以微秒计，记录里是毫秒。
    # The format wants microseconds, the recording has milliseconds.
    times = {"ts": round(start * 1000), "dur": round((end - start) * 1000)}
    return {"ph": "X", "pid": pid, "tid": tid, "name": name, **times, "args": args}


def trace_events(recording: dict[str, Any]) -> list[dict[str, Any]]:
    """把记录变成 trace 事件的列表。

    Turn a recording into a list of trace events.

    Args:
        recording: `Recorder.recording` 的返回值；what `Recorder.recording` returned
    """
    events = [_name(ENGINE, "engine"), _name(ENGINE, "step", 1), _name(REQUESTS, "requests")]
    threads = {request: number for number, request in enumerate(recording["requests"], 1)}
    events += [_name(REQUESTS, f"request {request}", thread) for request, thread in threads.items()]
    # 每个请求当前的状态和它从何时开始；状态变了，就画出刚结束的那一段。
    # Each request's present state and since when; at a change the span that has just ended is drawn.
    states: dict[str, tuple[str, float]] = {}

    def change(request: str, state: str | None, now: float) -> None:
        old = states.get(request)
        if old is not None and old[0] != state:
            events.append(_span(REQUESTS, threads[request], old[0], old[1], now))
            del states[request]
        if state is not None and request not in states:
            states[request] = (state, now)

    for number, step in enumerate(recording["steps"]):
        start, phases = step["time"], step["phases"]
        end = max([start, *(begin + duration for _, begin, duration in phases)])
        tokens = sum(row["count"] for row in step["rows"])
        if phases:
            events.append(_span(ENGINE, 1, f"step {number}", start, end, tokens=tokens, rows=len(step["rows"])))
        events += [_span(ENGINE, 1, name, begin, begin + duration) for name, begin, duration in phases]
        counters = {"blocks": {"free": step["num_free"]}, "queues": {k: len(step[k]) for k in ("running", "waiting")}}
        for name, values in counters.items():
            events.append({"ph": "C", "pid": ENGINE, "name": name, "ts": round(start * 1000), "args": values})
        for request in step["waiting"]:
            change(request, "waiting", start)
        for row in step["rows"]:
            # 算的是提示词就叫预填充；抢占后的重算也算在内，因为它同样一次算好几个已知的 token。
            # Prompt tokens are prefill, and so is recomputation after preemption: it also takes several known tokens at
            # once.
            prompt = row["start"] < recording["requests"][row["request"]]["num_prompt"]
            known = row["count"] - len(row["guesses"])
            change(row["request"], "prefill" if prompt or known > 1 else "decode", start)
        for event in step["events"]:
            if event["kind"] in INSTANTS:
                thread = threads.get(event["request"], 1)
                pid = REQUESTS if event["request"] else ENGINE
                at = round((end if event["kind"] in ("finish", "abort") else start) * 1000)
                instant = {"ph": "i", "s": "t", "pid": pid, "tid": thread, "name": event["kind"], "ts": at}
                events.append({**instant, "args": {k: v for k, v in event.items() if k != "kind"}})
            if event["kind"] in ("finish", "abort"):
                change(event["request"], None, end)
    for request in list(states):
        change(request, None, recording["steps"][-1]["time"])
    return events


def write_trace(recording: dict[str, Any], path: Path) -> None:
    """写出 trace 文件。

    Write the trace file.

    Args:
        recording: `Recorder.recording` 的返回值；what `Recorder.recording` returned
    """
    trace = {"traceEvents": trace_events(recording), "displayTimeUnit": "ms"}
    path.write_text(json.dumps(trace, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
