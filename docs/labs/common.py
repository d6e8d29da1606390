"""各个实验的公共部分：找到仓库、双语输出、检查、一步步走引擎并记下每步。

What the labs share: finding the repository, output in both languages, the check, stepping an engine and recording it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# 以 `python docs/labs/...` 启动时，Python 只把实验所在的文件夹放进路径；导入本模块就补上仓库的根目录。
# Started as `python docs/labs/...`, Python puts only the labs' folder on its path; importing this adds the root.
sys.path.insert(0, str(ROOT))

from engine.batch import build_batch  # noqa: E402
from engine.config import EngineConfig  # noqa: E402
from engine.llm_engine import LLMEngine  # noqa: E402
from engine.outputs import RequestOutput  # noqa: E402
from engine.sampling_params import SamplingParams  # noqa: E402
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


class Check:
    """实验末尾的检查：逐条列出，最后一行是 `check: OK`，或者有几条不对。

    The check at a lab's end: item by item; the last line is `check: OK`, or how many are off.
    """

    def __init__(self) -> None:
        title("检查", "check")
        self.num_off = 0

    def that(self, ok: bool, zh: str, en: str) -> None:
        """一条检查。

        One item.
        """
        self.num_off += not ok
        print(f"  {'ok ' if ok else 'OFF'}  {zh} / {en}")

    def finish(self) -> int:
        """打印结论，返回退出码：全对是 0，否则是 1。

        Print the result and return the exit code: 0 if all is right, else 1.
        """
        off = f"check: {self.num_off} off, see the lines marked OFF / 看标着 OFF 的行"
        print(off if self.num_off else "check: OK")
        return int(self.num_off > 0)


def make_engine(**options: object) -> LLMEngine:
    """CPU 上的内置模型，严格模式：每一步都核对账目。

    The embedded model on the CPU in strict mode: the books are checked in every step.
    """
    return LLMEngine(EngineConfig(device="cpu", **{"strict": True, **options}))  # type: ignore[arg-type]


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
        rows: request -> its new tokens in this step
        waiting: requests that wait after the step was scheduled
        preempted: requests that lost their blocks in this step
        num_free_blocks: free blocks while the step runs
    """

    number: int
    rows: dict[str, int]
    waiting: list[str]
    preempted: list[str]
    num_free_blocks: int


def run_steps(engine: LLMEngine, arrivals: list[Arrival]) -> tuple[list[Step], dict[str, RequestOutput]]:
    """走到全部完成。循环体就是 `LLMEngine.step` 的那几行，中间多记了一笔。

    Step until all are done. The loop holds the lines of `LLMEngine.step`, with a record made in between.
    """
    steps: list[Step] = []
    outputs: dict[str, RequestOutput] = {}
    todo = sorted(arrivals, key=lambda arrival: arrival.step)
    number = 0
    while todo or engine.has_unfinished():
        while todo and todo[0].step <= number:
            arrival = todo.pop(0)
            engine.add_request(arrival.prompt, arrival.params, arrival.name)
        if engine.has_unfinished():
            before = {seq.request_id: seq.num_preemptions for seq in engine.scheduler.running}
            schedule = engine.plan()
            waiting = list(engine.scheduler.waiting)
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
    return steps, outputs


def print_steps(steps: list[Step], names: list[str]) -> None:
    """每步一行，每个请求一列：数字是新 token 数，`w` 是在等待，`x` 是这一步被抢占。

    A line a step, a column a request: a number is its new tokens, `w` means it waits, `x` it was preempted here.
    """
    print("step | " + " ".join(f"{name:>4}" for name in names) + " | tokens  free blocks")
    for step in steps:
        marks = {**dict.fromkeys(step.waiting, "w"), **dict.fromkeys(step.preempted, "x"), **step.rows}
        cells = " ".join(f"{marks.get(name, '.'):>4}" for name in names)
        print(f"{step.number:>4} | {cells} | {sum(step.rows.values()):>6}  {step.num_free_blocks:>11}")
