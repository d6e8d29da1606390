"""mini-llama 的命令行和公共接口。

作为程序：`python mini_llama.py --backend torch` 用内置的小模型回答几个问题，不需要 GPU，也不需要下载。
作为库：`from mini_llama import LLM, SamplingParams`；asyncio 程序用 `AsyncLLM`。
往下读：`serving/llm.py`（入口）-> `engine/llm_engine.py`（主循环）-> `engine/scheduler.py`（谁运行）。

The command line and the public face of mini-llama.

As a program: `python mini_llama.py --backend torch` answers a few questions with the embedded model; no GPU, no
download. As a library: `from mini_llama import LLM, SamplingParams`; asyncio programs take `AsyncLLM`.
Read on in `serving/llm.py` (the entry), `engine/llm_engine.py` (the loop), `engine/scheduler.py` (who runs).
"""

import os
import signal
import sys

LEAVES_BY_CTRL_C = __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if LEAVES_BY_CTRL_C:
    # 下面的导入要一两秒：这时按 Ctrl-C，没有东西要收拾，直接走，不打印一屏 traceback。
    # The imports below take a second or two: a Ctrl-C meanwhile has nothing to clean up and leaves at once, without a
    # screenful of traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

import torch
from rich.console import Console

# 依赖只有一个方向：命令行 -> `serving` -> `engine` -> `models` -> `layers` -> `backends`；下层从不导入上层。
# Dependencies point one way: command line -> `serving` -> `engine` -> `models` -> `layers` -> `backends`; never back.
from backends import BackendUnavailableError, backend_names
from engine.config import EngineConfig
from engine.guides import StructuredOutputsParams
from engine.outputs import CompletionOutput, RequestOutput
from engine.requests import load_generation_config
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from layers.ranks import SPEAKS, WORLD_SIZE
from models.config import load_config
from serving import flags
from serving.async_llm import AsyncLLM, EngineDeadError
from serving.beam_search import BeamSearchParams
from serving.chat import chat
from serving.chat_template import encode_chat, require_chat_template
from serving.compare import compare_backends
from serving.console import print_answers, print_backends, print_comparison, print_summary, printable
from serving.interrupts import interrupt_again, never_lost
from serving.llm import LLM
from serving.prompts import check_finite, each_prompt

# 使用者只该依赖这几个名字；其余都是内部实现，随时会改。
# Users may rely on these names; all else is internal and may change at any time.
__all__ = [
    "LLM", "AsyncLLM", "BackendUnavailableError", "BeamSearchParams", "CompletionOutput", "EngineDeadError",
    "RequestOutput", "SamplingParams", "StructuredOutputsParams", "main",
]

# 6 个问题一起提交，在 `LLMEngine.step` 下断点，第一步就能看到 6 行的 `schedule`：批处理从这里看起。
# All 6 are submitted together: a breakpoint in `LLMEngine.step` shows a `schedule` of 6 rows at once, which is a batch.
# 内容取自内置模型学过的范围：它是谁、各国首都、素数、术语、两位数加法；问别的，它会说不知道。
# Taken from what the embedded model has learnt: itself, capitals, primes, terms, sums; asked for more, it declines.
BUILT_IN_PROMPTS = [
    "introduce yourself", "中国的首都是哪里？", "list all prime numbers within 100", "what is a KV cache?",
    "什么是前缀缓存？", "What is 23 + 45?",
]


# 权重文件合计不到 32 MiB 的模型，一步只要一毫秒，多线程省不下时间；别的程序一忙，线程互相等，反而要 100 毫秒。
# With weight files below 32 MiB in all a step takes a millisecond, where threads save nothing; and beside another busy
# program, threads that wait for each other make it 100.
_SMALL_BYTES = 1 << 25


def build_parser() -> argparse.ArgumentParser:
    """命令行选项，每条帮助都有中英两种语言。

    The options; each has its help in both languages.
    """
    # 建解析器不加载模型，也不碰 GPU：`--help` 应当马上返回。
    # Building the parser loads no model and touches no GPU: `--help` should return at once.
    parser = flags.Parser(
        prog="mini_llama.py",
        description="可读的 LLM 推理引擎；不带参数就用内置模型回答几个问题。"
        " / A readable LLM inference engine; without arguments the embedded model answers a few questions.",
        epilog="几个 GPU 合算一个模型 / several GPUs share a model: torchrun --nproc-per-node 2 mini_llama.py ...",
    )
    add = parser.add_argument
    # 不写 `choices`：后端名由注册表检查，作为库使用时报的也是同一个错，并列出可用的名字。
    # No `choices`: the registry checks the name, so the library gives the same error, with the names that there are.
    add("--model", metavar="DIR", help="模型文件夹，默认内置模型 / model folder; default: the embedded model")
    # 想逐行看注意力怎么算，用 `--backend torch`：没有融合，每个中间张量都能在调试器里打开。
    # To watch attention line by line take `--backend torch`: nothing is fused, and every tensor opens in the debugger.
    add("--backend", default="auto", metavar="NAME", help=f"注意力后端 / backend: auto, {', '.join(backend_names())}")
    # 默认值必须是 None：`append` 会往默认列表后面追加，给了默认问题，用户的问题就和它们混在一起。
    # The default must be None: `append` adds to a default list and would mix user's and built-in questions.
    add("--prompt", action="append", metavar="TEXT", help="问题，可重复 / a question; repeatable")
    add("--complete", action="store_true", help="不套对话模板，直接续写 / continue plain text, no chat template")
    add("--chat", action="store_true", help="交互对话，边写边显示 / talk to the model, answers are streamed")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N（默认 auto）/ (default auto)")
    add("--quantization", metavar="NAME", help="权重量化：int8 或 int4 / quantize the weights: int8 or int4")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16（默认 auto）/ (default auto)")
    add("--kv-cache-dtype", default="auto", metavar="NAME", help="KV 缓存 / KV cache: auto, int8, fp8")
    # 不用 `SamplingParams` 的 16：那是 vLLM 的默认值，一句话常常说到一半就断了。
    # Not the 16 of `SamplingParams`: that is vLLM's default, and many a sentence would break off halfway.
    add("--max-tokens", type=int, default=256, metavar="N", help="最多输出多少 token / most output tokens (256)")
    # 不设默认值：None 表示“没写，听模型的”，0 表示“我要贪心”，这是两回事。
    # No default: None means "not given, ask the model", 0 means "greedy, please"; they are not the same.
    add("--temperature", type=float, metavar="X", help="温度，0 是贪心 / temperature, 0 is greedy")
    add("--top-p", type=float, metavar="X", help="只在累计概率达到 X 的 token 里选 / nucleus sampling")
    add("--top-k", type=int, metavar="K", help="只在前 K 个 token 里选 / choose among the K likeliest")
    add("--seed", type=int, metavar="N", help="采样种子 / sampling seed")
    flags.add_features(parser)
    # 调试时加上它：重放的 CUDA graph 不经过 Python，断点停不住。
    # Add it for debugging: a replayed CUDA graph does not pass through Python, and no breakpoint is hit.
    add("--enforce-eager", action="store_true", help="不录图、不融合、不重叠 / no CUDA graphs, fusion or overlap")
    # 块池小到装不下所有请求，才看得到排队、抢占和前缀缓存的淘汰：6 个内置问题用 12 个块就够挤。
    # Only a pool too small for all shows waiting, preemption and eviction: 12 blocks are tight for the 6 questions.
    add("--num-kvcache-blocks", type=int, metavar="N", help="KV 块的个数 / number of KV blocks")
    add("--max-num-batched-tokens", type=int, metavar="N", help="每步的 token 预算 / token budget of a step")
    add("--xray", metavar="FILE", help="记录这次运行，写成一个网页 / record the run as a web page")
    add("--xray-trace", metavar="FILE", help="记录成 Perfetto 能打开的 trace / record a trace for Perfetto")
    add("--watch", action="store_true", help="在终端里看每一步 / watch each step in the terminal")
    add("--list-backends", action="store_true", help="列出后端及能否使用 / list backends and whether they work")
    add(
        "--compare", nargs=2, metavar=("A", "B"),
        help="逐步对比两个后端，或量化与不量化：torch torch:int8 / two backends, or quantized and not, step by step",
    )
    return parser


def make_params(args: argparse.Namespace, defaults: SamplingParams) -> SamplingParams:
    """命令行没给的，就用模型建议的值；选项的名字就是 `SamplingParams` 的字段名，加一个选项不必在这里再写一遍。

    优先级：命令行 > 模型的 `generation_config.json` > `SamplingParams` 的默认值。

    What the command line leaves out is taken from the model's recommendation. Options are named as the fields of
    `SamplingParams`: a new one need not be written here again.
    Precedence: command line > the model's `generation_config.json` > the defaults of `SamplingParams`.
    """
    # 必须用 `is not None` 判断：写成 `if value`，用户明确给的 `--temperature 0` 和 `--seed 0` 就被丢掉了。
    # It has to be `is not None`: a plain `if value` would drop an explicit `--temperature 0` or `--seed 0`.
    given = {name: value for name, value in vars(args).items() if value is not None and hasattr(defaults, name)}
    # `replace` 会重新构造，于是重新检查：`--top-p 2` 在这里就报错，不会带病进入引擎。
    # `replace` constructs anew and so checks anew: `--top-p 2` fails here and never reaches the engine.
    return replace(defaults, structured_outputs=flags.read_guide(args), **given)


def run(args: argparse.Namespace) -> None:
    """执行命令行要求的事。

    Do what the command line asks.
    """
    # 最先开始计时：总用时含加载，那才是敲下回车后等的时间。
    # The clock starts first: the total includes loading, which is what one waits for after pressing Enter.
    started = time.monotonic()
    # 输出不是终端时，rich 按 80 列排版，会把长行截成几段，表格也一样；给足宽度，文件里的一行仍是一行，可以 grep。
    # Without a terminal rich assumes 80 columns and cuts up long lines, those of tables too; given the width, a line in
    # a file stays a line for grep.
    # `emoji=False`：否则问答里的 `:key:` 会被 rich 换成图形。
    # `emoji=False`: or rich would turn a `:key:` in a question or an answer into a picture.
    console = Console(width=None if sys.stdout.isatty() else 1000, emoji=False)
    # 先造配置，下面几条路都从它取值：写错的数（例如 `--seed -1`）在这里就报错，不等模型加载。
    # The configuration first, all ways below read it: a bad number such as `--seed -1` fails before any loading.
    # 选项的名字也是 `EngineConfig` 的字段名。
    # Options are named as the fields of `EngineConfig`, too.
    options = {field.name: getattr(args, field.name) for field in fields(EngineConfig) if hasattr(args, field.name)}
    options |= {"speculative_config": flags.read_speculation(args), "tensor_parallel_size": WORLD_SIZE}
    config = EngineConfig(**options)
    tracing = args.xray or args.xray_trace or args.watch
    # 重叠循环里两步交错，得不到“这一步”的快照：记录时改用同步循环，并说一声。
    # The overlapped loop interleaves two steps, and "this step" cannot be pictured: record the synchronous one, say so.
    if tracing and config.resolve_device().type == "cuda" and not args.enforce_eager:
        options["enforce_eager"] = True
        print("xray: 记录的是同步循环，已启用 / records the synchronous loop: --enforce-eager is on", file=sys.stderr)
    # 放在加载之前：后端用不了的时候，正是最需要这张表的时候。
    # Before any loading: when no backend works is just when this table is needed.
    if args.list_backends:
        return print_backends(console, config.resolve_device())
    # 这里才填默认问题：没有 `--prompt` 时 `args.prompt` 是 None。
    # The default questions enter only here: without `--prompt`, `args.prompt` is None.
    prompts: list[str] = args.prompt or BUILT_IN_PROMPTS
    # 便宜的检查都在加载之前：`--top-p 2`、写不了的文件，不必等 6 GB 的权重读完才报错。
    # All that is cheap to check comes before any loading: `--top-p 2` or a file that cannot be written need not wait
    # for 6 GB of weights.
    folder = config.resolve_model_folder()
    params = make_params(args, load_generation_config(folder, load_config(folder))[0])
    flags.check_guide(folder, params.structured_outputs)
    if not args.complete:
        require_chat_template(folder)
    # 张量并行时，只有 rank 0 打印、记录。
    # With tensor parallelism only rank 0 prints and records.
    if tracing and SPEAKS:
        from tools.xray import check_writable

        for name in filter(None, (args.xray, args.xray_trace)):
            check_writable(name)
    with one_thread_if_small(folder):
        if args.compare:
            tokenizer = Tokenizer(folder)
            asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
            texts = prompts if args.complete else each_prompt(lambda one: encode_chat(tokenizer, one), asked)
            steps = compare_backends(config, tuple(args.compare), texts, params)
            return print_comparison(console, tuple(args.compare), steps, tokenizer)
        with never_lost():
            llm = LLM(**options, progress=True)
        if args.chat:
            return chat(llm, params)
        answer(llm, args, prompts, params, console, started)


def answer(
    llm: LLM, args: argparse.Namespace, prompts: list[str], params: SamplingParams, console: Console, started: float
) -> None:
    """回答全部问题，打印答案和小结。

    Answer all questions, then print answers and summary.

    Raises:
        ValueError: 答案打印之后：记录写不出去，或分数成了 NaN；after the answers: no recording, or scores of NaN
    """
    # 每个问题是一段独立的对话，互相看不到；想让模型记得上文，要把之前的消息一起放进列表。
    # Each question is a conversation of its own; to be remembered, earlier messages have to be sent along.
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    outputs: list[RequestOutput] = []
    try:
        # 单步进入这里，就跟着一个请求走完全程：`chat` -> `_run` -> `LLMEngine.step`。
        # Step in here and follow a request all the way: `chat` -> `_run` -> `LLMEngine.step`.
        with ExitStack() as stack:
            # 要记录才导入：平常运行时，记录器的代码一行也不执行。
            # Imported only to record: in an ordinary run not a line of the recorder is executed.
            if SPEAKS and (args.xray or args.xray_trace or args.watch):
                from tools.xray import observe

                stack.enter_context(observe(llm.engine, console, args.xray, args.xray_trace, args.watch))
            # `--watch` 自己占着终端，进度条会和它互相覆盖。
            # `--watch` has the terminal to itself: a progress bar would draw over it.
            if args.complete:
                outputs = llm.generate(prompts, params, progress=not args.watch)
            else:
                outputs = llm.chat(conversations, params, progress=not args.watch)
    finally:
        # 记录写不出去（磁盘满了），答案也不能丢。
        # Where the recording cannot be written, the disk being full say, the answers must not be lost.
        print_answers(console, prompts, outputs)
    print_summary(console, llm.engine, outputs, started)
    each_prompt(check_finite, [output.outputs[0].finish_reason for output in outputs])


@contextmanager
def one_thread_if_small(folder: Path) -> Iterator[None]:
    """小模型只用一个线程，除非环境里写了 `OMP_NUM_THREADS`；只有命令行这样做，作为库时不碰全局的设置。

    A small model runs on one thread, unless the environment has `OMP_NUM_THREADS`. The command line alone does so: as
    a library it leaves settings of the process alone.
    """
    before = torch.get_num_threads()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size < _SMALL_BYTES and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """读命令行，拒绝合不到一起的选项。

    Read the command line and refuse options that do not go together.
    """
    # `argv` 由参数传入：测试可以直接调用 `main(["--list-backends"])`，不必另起进程；None 时才读 `sys.argv`。
    # `argv` is a parameter: tests call `main(["--list-backends"])` without a new process; None means `sys.argv`.
    parser = build_parser()
    args = parser.parse_args(argv)
    given = {"--" + name.replace("_", "-") for name, value in vars(args).items() if value != parser.get_default(name)}
    recording = {"--xray", "--xray-trace", "--watch"}
    refused = {
        "--list-backends": given - {"--list-backends", "--device"},
        "--chat": {"--prompt", "--complete", "--compare", *recording},
        "--compare": {"--backend", "--quantization", "--kv-cache-dtype", "--speculate", "--draft-model", *recording},
    }
    for mode, bad in refused.items():
        if mode in given and (others := ", ".join(sorted(given & bad))):
            parser.error(f"{mode} 不能与 {others} 同用 / {mode} cannot be combined with {others}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """命令行入口。用户能造成的错误只打印一行，返回 2；Ctrl-C 返回 130，管道被对方关掉返回 1。

    The entry point. What a user can cause prints a single line and returns 2; Ctrl-C returns 130, a pipe that its
    reader has closed 1.
    """
    try:
        # 被关掉的输出（`>&-`）是 None：没有地方写，就当成写进黑洞，标准输出还要说一声。
        # An output that was closed (`>&-`) is None: with nowhere to write, it goes to nowhere; for standard output say
        # so.
        closed = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
        # 张量并行时只有 rank 0 说话；出错时例外，也许只有这一个进程知道是什么错。
        # With tensor parallelism only rank 0 speaks; errors are an exception, as maybe just this process knows of it.
        for name in closed if SPEAKS else [*closed, "stdout"]:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if "stdout" in closed:
            raise ValueError("standard output is closed, and the answers have nowhere to go: redirect it to a file")
        # 终端不支持某个字符时（例如 ASCII 的环境），打印一个问号，而不是丢掉整个回答。
        # Where the terminal lacks a character (an ASCII locale, say), print a question mark and do not lose the answer.
        # 输入也一样：对话里的一个坏字节不该结束程序。
        # Input alike: a bad byte in a chat should not end the program.
        # 别人读过的（命令由管道送进 pdb）、关掉的，或者换成别种对象的流（IDLE、Jupyter）不能改，照原样用。
        # A stream that was read before (commands piped into pdb), was closed, or is an object of another kind (IDLE,
        # Jupyter) cannot be changed and is used as it is.
        for stream in (sys.stdout, sys.stderr, sys.stdin):
            if isinstance(stream, io.TextIOWrapper):
                with suppress(ValueError):
                    stream.reconfigure(errors="replace")
        try:
            run(parse(argv))
        finally:
            # 缓冲区里可能还有没写出去的内容：在这里写，写不出去才会落到下面，而不是在退出时报错。
            # Output may still be buffered: flushed here, a failure is met below and is no error at exit.
            sys.stdout.flush()
    # 管道的另一头（如 head）提前关闭时，安静地退出，不打印一屏 traceback。
    # If the other end of a pipe (head, say) closes early, leave quietly instead of printing a traceback.
    except BrokenPipeError:
        return 1
    # 只接住用户能造成的错误；引擎的自检失败是 `AssertionError` 或 `RuntimeError`，要连同 traceback 露出来。
    # Catch only what a user can cause; a failed self-check is an `AssertionError` or `RuntimeError`, traceback and all.
    except (ValueError, NotImplementedError, BackendUnavailableError, OSError) as error:
        # 连标准错误也写不出去，就只剩退出码了。
        # If not even standard error can be written, the exit code is all there is.
        with suppress(OSError):
            print(f"mini_llama.py: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        # 退出码 2 与 argparse 对错误参数的做法一致，脚本据此分清“用法不对”和“跑的时候坏了”（1）。
        # Exit code 2 is what argparse uses for bad arguments, so scripts tell wrong usage from a crash (1).
        return 2
    except KeyboardInterrupt:
        with suppress(OSError):
            print("\ninterrupted 已中断", file=sys.stderr)
        # 130 = 128 + 2：shell 约定，被 2 号信号（SIGINT）中断；请求已由 `LLM._run` 取消，块也已归还。
        # 130 = 128 + 2, the shell's code for signal 2 (SIGINT); `LLM._run` has aborted the requests and freed blocks.
        return 130
    return 0


if __name__ == "__main__":
    code = 130
    with suppress(KeyboardInterrupt):
        if LEAVES_BY_CTRL_C:
            sys.unraisablehook = interrupt_again
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    # 收场时再按 Ctrl-C，也直接走。
    # A Ctrl-C while all is being put away leaves at once, too.
    if LEAVES_BY_CTRL_C:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # 解释器退出时还会再冲一次：把它改指向 `os.devnull`，那一次就不会再出错。
            # The interpreter flushes once more at exit: pointed at `os.devnull`, that cannot fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    # 输出已写完，退出码已定。解释器收尾时会撤掉自己的信号处理函数，那时的 Ctrl-C 会直接杀死进程；忽略则会保留到底。
    # The output is written and the code decided. The interpreter takes its signal handlers down as it ends, and then a
    # Ctrl-C would kill the process; an ignored signal stays ignored.
    if LEAVES_BY_CTRL_C:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
