"""各个实验的公共部分：找到仓库、双语输出、检查、一步步走引擎并记下每步、用手算出每步该是怎样。

What the labs share: finding the repository, output in both languages, the check, stepping an engine and recording it,
and working out by hand what each step should be.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
# 以 `python docs/labs/...` 启动时，Python 只把实验所在的文件夹放进路径；导入本模块就补上仓库的根目录。
# Started as `python docs/labs/...`, Python puts only the labs' folder on its path; importing this adds the root.
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from backends import BackendUnavailableError  # noqa: E402
from engine.batch import build_batch  # noqa: E402
from engine.config import EngineConfig  # noqa: E402
from engine.llm_engine import LLMEngine  # noqa: E402
from engine.outputs import RequestOutput  # noqa: E402
from engine.sampling_params import SamplingParams  # noqa: E402
from models.fields import ModelLoadError  # noqa: E402
from serving.chat_template import encode_chat  # noqa: E402


def say(zh: str, en: str) -> None:
    """先中文，再英文，各占一行。

    Chinese, then English, a line each.
    """
    print(f"{zh}\n{en}")


def title(zh: str, en: str) -> None:
    """一段输出的标题。

    The title of a part of the output.
    """
    print(f"\n== {zh} · {en} ==")


def places(values: Any, *names: str) -> dict[str, Any]:
    """嵌套的列表、字典或张量，摊成“地点 -> 值”，检查就说得出是哪里。

    Nested lists, dicts or tensors as "place -> value", so that a check can say where.

    Example: places([[5, 7]], "step", "row") is {"step 0, row 0": 5, "step 0, row 1": 7}.
    """
    if not names:
        return {"": values}
    parts = values.items() if isinstance(values, Mapping) else enumerate(values)
    return {
        f"{names[0]} {key}" + (f", {rest}" if rest else ""): value
        for key, part in parts for rest, value in places(part, *names[1:]).items()
    }  # fmt: skip


def equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """相同，数可以差到 `tolerance`；NaN 与什么都不同。

    Equal, numbers up to `tolerance`; NaN equals nothing.
    """
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance
    return bool(a == b)


def show(value: Any) -> str:
    """一行写得下的样子。

    A form that fits a line.
    """
    if value is None:
        return "nothing"
    if isinstance(value, torch.Tensor) and value.ndim:
        return "[" + " ".join(f"{x:.3f}" for x in value.flatten()[:3].tolist()) + " ...]"
    return f"{float(value):.4g}" if isinstance(value, torch.Tensor | float) else f"{value!r:.100}"


class Check:
    """实验末尾的检查：逐条列出，最后一行是 `check: OK`，或者有几条不对。

    The check at a lab's end: item by item; the last line is `check: OK`, or how many are off.
    """

    def __init__(self) -> None:
        title("检查", "check")
        self.num_off = 0

    def that(self, ok: bool, zh: str, en: str, *details: str) -> None:
        """一条检查；不对时接着打印 `details`。

        One item, followed by `details` if it is off.
        """
        self.num_off += not ok
        print(f"  {'ok ' if ok else 'OFF'}  {zh} / {en}")
        for line in () if ok else details:
            print(f"       {line}")

    def same(
        self, zh: str, en: str, got: Any, expected: Any, where: str, likely: tuple[str, str],
        mistakes: Mapping[tuple[str, str], Any] | None = None, tolerance: float = 0.0,
    ) -> None:
        """逐处比较得到的与应有的；不对时说出第一处在哪里、得到什么、应当是什么、多半因为什么。

        Compare got with expected place by place; where they differ, say which place is first, what was got, what was
        expected and the likely cause.

        Args:
            got, expected: 嵌套的列表、字典或张量；nested lists, dicts or tensors
            where: 各层是什么，由外到内，如 "layer, head"；what their levels are, from the outside in: "layer, head"
            likely: 要指出的原因，两种语言；the cause to name, in both languages
            mistakes: 已知的原因和各自会得到的结果，对得上的那个代替 `likely`；
                known causes and what each would give; the one that fits is named instead of `likely`
        """
        names = where.split(", ")
        got, expected = places(got, *names), places(expected, *names)
        assert expected, "a check compares something"
        every = {**expected, **got}
        wrong = [place for place in every if not equal(got.get(place), expected.get(place), tolerance)]
        details = []
        if wrong:
            for cause, values in (mistakes or {}).items():
                if all(equal(got.get(place), value, tolerance) for place, value in places(values, *names).items()):
                    likely = cause
                    break
            first = wrong[0]
            details = [
                f"{len(wrong)} of {len(every)} wrong, first {first}: "
                f"got {show(got.get(first))}, expected {show(expected.get(first))}",
                f"多半：{likely[0]}",
                f"Likely: {likely[1]}",
            ]
        self.that(not wrong, zh, en, *details)

    def finish(self) -> int:
        """打印结论，返回退出码：全对是 0，否则是 1。

        Print the result and return the exit code: 0 if all is right, else 1.
        """
        off = f"check: {self.num_off} off, see the lines marked OFF / 看标着 OFF 的行"
        print(off if self.num_off else "check: OK")
        return int(self.num_off > 0)


def run_lab(main: Callable[[], int]) -> NoReturn:
    """跑一个实验；引擎半路报错，也算检查不通过：改坏了引擎，严格模式常常先于检查发现。

    Run a lab; an error on the way counts as a check that is off: in a broken engine strict mode often finds the mistake
    first.
    """
    try:
        code = main()
    except Exception as error:
        traceback.print_exc()
        check = Check()
        what = str(error) if isinstance(error, StepError) else f"{type(error).__name__}: {error}"
        check.that(False, "没有报错", "no error on the way", what, "调用栈在上面 / the traceback is above")
        code = check.finish()
    sys.exit(code)


def make_engine(**options: object) -> LLMEngine:
    """CPU 上的内置模型，严格模式：每一步都核对账目。选项不合理，就用一行话说明，以退出码 2 结束；模型文件的错照样抛出。

    The embedded model on the CPU in strict mode: the state is checked in every step. Flags that make no sense end the
    lab with one line and exit code 2; errors of the model's files are raised.
    """
    try:
        return LLMEngine(EngineConfig(device="cpu", **{"strict": True, **options}))  # type: ignore[arg-type]
    except ModelLoadError:
        raise
    except (ValueError, BackendUnavailableError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def ask(engine: LLMEngine, text: str) -> list[int]:
    """一句话套上对话模板，变成 token id。

    A sentence through the chat template, as token ids.
    """
    return encode_chat(engine.tokenizer, [{"role": "user", "content": text}])


@dataclass
class Arrival:
    """在第几步到来的哪个请求。

    Which request arrives before which step.
    """

    step: int
    name: str
    prompt: list[int]
    params: SamplingParams


@dataclass
class Step:
    """一步的记录。

    What happened in one step.

    Attributes:
        rows: 请求 -> 这一步的新 token 数；request -> its new tokens in this step
        waiting: 调度之后还在等的请求；requests that wait after the step was scheduled
        preempted: 这一步失去块的请求；requests that lost their blocks in this step
        num_free_blocks: 这一步运行时的空闲块数；free blocks while the step runs
    """

    number: int
    rows: dict[str, int]
    waiting: list[str]
    preempted: list[str]
    num_free_blocks: int


class StepError(Exception):
    """哪一步出了什么错。

    What went wrong in which step.
    """


def run_steps(engine: LLMEngine, arrivals: list[Arrival]) -> tuple[list[Step], dict[str, RequestOutput]]:
    """走到全部完成。循环体就是 `LLMEngine.step` 的那几行，中间多记了一笔。

    Step until all are done. The loop holds the lines of `LLMEngine.step`, with a record made in between.
    """
    steps: list[Step] = []
    outputs: dict[str, RequestOutput] = {}
    todo = sorted(arrivals, key=lambda arrival: arrival.step)
    number = 0
    try:
        while todo or engine.has_unfinished():
            while todo and todo[0].step <= number:
                arrival = todo.pop(0)
                engine.add_request(arrival.prompt, arrival.params, arrival.name)
            if engine.has_unfinished():
                before = {seq.request_id: seq.num_preemptions for seq in engine.scheduler.running}
                schedule = engine.plan()
                waiting = list(engine.scheduler.waiting)
                # 改坏了的调度器可能谁也不排、没完没了，或者排上没什么可算的：停下来说清楚，而不是一直转。
                # A scheduler with a mistake may plan nobody, never end, or plan one with nothing to compute: stop and
                # say so, and do not go round for ever.
                if not schedule or number == 1000:
                    raise RuntimeError(f"no progress: runs {engine.scheduler.running}, waits {waiting}")
                if idle := [row.seq for row in schedule if row.num_new_tokens < 1]:
                    raise RuntimeError(f"no token left to compute, so no logits to sample from: {idle[0]}")
                steps.append(Step(
                    number=number,
                    rows={row.seq.request_id: row.num_new_tokens for row in schedule},
                    waiting=[seq.request_id for seq in waiting],
                    preempted=[s.request_id for s in waiting if s.num_preemptions > before.get(s.request_id, 10**9)],
                    num_free_blocks=engine.block_manager.num_free_blocks,
                ))  # fmt: skip
                batch = build_batch(schedule, engine.pool.block_size, engine.model_runner.device)
                tokens = engine.sampler.choose(schedule, engine.model_runner.execute(batch))
                finished = engine.record(schedule, tokens, engine.scheduler.update(schedule, tokens))
                outputs.update((output.request_id, output) for output in finished)
            number += 1
    except Exception as error:
        raise StepError(f"step {number}: {type(error).__name__}: {error}") from error
    return steps, outputs


NO_LIMIT = 10**9


def steps_by_hand(
    arrivals: list[Arrival], cap: int = NO_LIMIT, budget: int = NO_LIMIT, blocks: int = NO_LIMIT, block_size: int = 16,
    static: bool = False,
) -> dict[int, dict[str, int]]:
    """不用引擎，只用数字排出每一步：谁运行，各算几个 token。规则就是调度那一章的：

    1. 运行中的先来，按接纳的次序，直到预算用完；块不够，最后接纳的让出全部块，回到队首。
    2. 这一步没有抢占，才接纳等待的：先来先服务，直到没有位置、预算或块。
    3. 已知的 token 算完了，就多一个输出；够数就离开。

    The steps worked out with numbers alone and without the engine: who runs, with how many tokens. The rules are those
    of the chapter on scheduling:
    1. Running ones come first, in order of admission, until the budget is spent; if blocks run out, the one admitted
       last gives up all of its own and goes to the head of the queue.
    2. Only in a step without preemption are waiting ones admitted: first come first served, while there are slots,
       budget and blocks.
    3. Who has computed all known tokens gets one more output, and leaves once there are enough.

    Args:
        static: 静态批处理，全部离开、下一批 `cap` 个到齐才接纳；
            static batching: nobody is admitted before all have left and the next `cap` are there
    """
    known = {arrival.name: len(arrival.prompt) for arrival in arrivals}
    left = {arrival.name: arrival.params.max_tokens for arrival in arrivals}
    computed = dict.fromkeys(known, 0)
    todo = sorted(arrivals, key=lambda arrival: arrival.step)
    running: list[str] = []
    waiting: list[str] = []
    steps: dict[int, dict[str, int]] = {}
    rows: dict[str, int] = {}

    def take(name: str) -> None:
        rows[name] = min(known[name] - computed[name], budget - sum(rows.values()))

    def too_few_blocks() -> bool:
        return sum(-(-(computed[name] + rows.get(name, 0)) // block_size) for name in running) > blocks

    number = 0
    while todo or running or waiting:
        while todo and todo[0].step <= number:
            waiting.append(todo.pop(0).name)
        admits = not static or (not running and (len(waiting) >= cap or not todo))
        for name in list(running):
            if name in running and sum(rows.values()) < budget:
                take(name)
                while too_few_blocks():
                    victim, admits = running.pop(), False
                    rows.pop(victim, None)
                    computed[victim] = 0
                    waiting.insert(0, victim)
        while admits and waiting and len(running) < cap and sum(rows.values()) < budget:
            running.append(waiting[0])
            take(waiting[0])
            if too_few_blocks():
                del rows[running.pop()]
                break
            waiting.pop(0)
        for name, count in rows.items():
            computed[name] += count
            if computed[name] == known[name]:
                known[name] += 1
                left[name] -= 1
                if left[name] == 0:
                    running.remove(name)
        if rows:
            steps[number] = dict(rows)
        rows.clear()
        number += 1
    return steps


def print_steps(steps: list[Step], names: list[str]) -> None:
    """每步一行，每个请求一列：数字是新 token 数，`w` 是在等待，`x` 是这一步被抢占。

    A line a step, a column a request: a number is its new tokens, `w` means it waits, `x` it was preempted here.
    """
    print("step | " + " ".join(f"{name:>4}" for name in names) + " | tokens  free blocks")
    for step in steps:
        marks = {**dict.fromkeys(step.waiting, "w"), **dict.fromkeys(step.preempted, "x"), **step.rows}
        cells = " ".join(f"{marks.get(name, '.'):>4}" for name in names)
        print(f"{step.number:>4} | {cells} | {sum(step.rows.values()):>6}  {step.num_free_blocks:>11}")
