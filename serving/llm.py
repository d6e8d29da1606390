"""LLM：给用户的入口，接口与 vLLM 相同。所有真正的工作都在 `llm_engine.py`，这里只是反复调用 `step`。

LLM: what the user calls, with vLLM's interface. The work is done in `llm_engine.py`; this calls `step` until done.
"""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.gpu.overlapped_engine import create_engine
from engine.outputs import RequestOutput
from engine.sampling_params import SamplingParams
from engine.sequence import Sequence as Request
from engine.validation import is_int
from layers.ranks import SPEAKS, WORLD_SIZE
from serving.beam_search import BeamSearchOutput, BeamSearchParams, beam_search
from serving.chat_template import Message, check_template_options, encode_chat
from serving.console import generation_progress, loading_progress
from serving.interrupts import leave_at_ctrl_c
from serving.prompts import check_finite, each_prompt
from serving.turns import Turns

# 文字，或已经分好的 token id；后者绕过分词器，测试和测速用它来固定输入。
# Text, or token ids; ids bypass the tokenizer, and tests and benchmarks use them to fix the input.
Prompt = str | list[int]
# 一段段文字；生成器的返回值是 `finish_reason`。
# Pieces of text; the generator's return value is the `finish_reason`.
Pieces = Generator[str, None, str | None]


def list_of_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """一个字符串，或者几个提示词，统一成列表。

    A string, or several prompts, as a list.

    Raises:
        ValueError: 两者都不是；it is neither
    """
    # 字符串也是可迭代的：不先判断，`list("你好")` 会变成 2 个各一个字的请求。
    # A string is iterable as well: without the test, `list("你好")` would be 2 requests of one character each.
    # 字典也能被 `list` 展开，得到的却是键名；与其补全一个键名，不如直接说不支持。
    # `list` would take a dict, too, and yield its keys; better to refuse than to complete the name of a key.
    if not isinstance(prompts, str | list | tuple):
        raise ValueError(f"prompts must be a string or a list, got {type(prompts).__name__}")
    # 直接传 [1, 2, 3] 会被当成 3 个提示词；一个以 id 表示的提示词要写成 [[1, 2, 3]]。
    # A bare [1, 2, 3] would count as 3 prompts; one prompt of ids is written [[1, 2, 3]].
    if prompts and all(map(is_int, prompts)):
        raise ValueError(f"prompts={prompts!r:.60} is a list of token ids: one prompt of ids is written [[1, 2, 3]]")
    return [prompts] if isinstance(prompts, str) else list(prompts)  # type: ignore[arg-type]


class LLM:
    """离线推理：给一批提示词，等全部完成。几个线程可以共用一个。

    Offline inference: give it prompts, wait for all of them. Several threads may share one.

    Args:
        model: 模型文件夹、本地缓存里的 hub id，None 是内置模型；folder, hub id in the local cache; None: embedded
        progress: 加载权重时显示进度条；show a bar while the weights load
        options: `EngineConfig` 的字段，含义见那里；the fields of `EngineConfig`, which documents them

    Raises:
        ValueError: 某个选项或模型文件夹有误；an option or the model folder is wrong
        BackendUnavailableError: 后端在这里用不了；the backend cannot run here
    """

    # 选项只列在 `EngineConfig` 里，这里原样传过去；写错名字，它的构造函数照样抛 `TypeError`，不会悄悄忽略。
    # Options are listed in `EngineConfig` alone and passed on as they are; for a misspelt name its constructor raises
    # `TypeError`, and nothing is silently ignored.
    def __init__(self, model: str | Path | None = None, *, progress: bool = False, **options: Any) -> None:
        # 先造配置：取值范围在构造时就查，写错一个数不必等权重加载完才知道。
        # The configuration first: its ranges are checked at construction, so a bad value need not wait for the weights.
        config = EngineConfig(model, **options)
        if config.tensor_parallel_size == WORLD_SIZE > 1:
            leave_at_ctrl_c()
        # 作为库使用时默认不显示：进度条是给命令行看的，服务的日志里不需要它。
        # As a library it is silent by default: bars are for the command line, a service's log has no use for them.
        # `with` 保证出错时也收起进度条，否则错误信息会和没画完的进度条搅在一起。
        # `with` closes the bar on an error too, or the message would be mixed up with a bar half drawn.
        with loading_progress(progress and SPEAKS) as bar:
            self.engine = create_engine(config, bar)
        self.turns = Turns(self.engine)

    def generate(
        self, prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, progress: bool = True,
    ) -> list[RequestOutput]:
        """补全每个提示词，结果与提示词同序。

        另外用 `add_request` 加入的请求会一起前进，但其中在此期间完成的，结果不在返回值里。

        Complete every prompt; results come in the order of the prompts.
        Requests added by `add_request` go on beside these, but results of those that end meanwhile are not returned.

        Args:
            prompts: 字符串，或列表：每项是字符串或 token id 列表；a string, or a list of strings or token id lists
            sampling_params: 大家共用一份，或每个提示词一份；None 取模型的 generation_config；
                one for all, or one per prompt; None takes the model's generation_config
            progress: 显示进度条；show a progress bar

        Raises:
            ValueError: 某个请求不合法，这时一个也没有加入；a request is not valid; then none has been added
            KeyboardInterrupt: 两步之间的 Ctrl-C；这些请求被取消，引擎里别的请求照常；
                Ctrl-C, between two steps; these requests are aborted, others in the engine go on
            EngineDeadError: 引擎不能再用了；the engine is of no more use
        """
        return self._run(list_of_prompts(prompts), sampling_params, progress)

    def beam_search(self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """为每个提示词找出总概率最高的几条补全；怎么找，见 `beam_search.py`。

        Find for each prompt the completions of the highest total probability; `beam_search.py` shows how.

        Args:
            prompts: 同 `generate`；as for `generate`

        Raises:
            ValueError: 某个提示词不合法，或分数成了 NaN；a prompt is not valid, or its scores became NaN
        """
        # 最外面护住一层：两次 `_run` 之间的 Ctrl-C 也记下来，下一步之前再抛。
        # Protected as a whole: a Ctrl-C between two calls of `_run` is noted as well and raised before the next step.
        with self.turns.ctrl_c_noted():
            return beam_search(
                self.engine, lambda beams, one: self._run(beams, one, progress=False), list_of_prompts(prompts), params
            )

    def chat(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None, add_generation_prompt: bool = True,
        continue_final_message: bool = False, progress: bool = True,
    ) -> list[RequestOutput]:
        """回答一段或几段对话，每段套上模型的对话模板。

        Answer one conversation or several, each put through the model's chat template.

        Args:
            messages: 一段对话 `[{"role": "user", "content": "..."}, ...]`，或几段；
                one conversation `[{"role": "user", "content": "..."}, ...]`, or several
            chat_template_kwargs: 模板的其他变量；extra variables for the template
            add_generation_prompt: 以“轮到助手说话”的标记结尾；end with the mark "the assistant speaks now"
            continue_final_message: 让模型接着写最后一条消息，不与上一项同用；
                have the model write on at the last message; not both

        Raises:
            ValueError: 没有模板，消息有误，或请求不合法；no template, bad messages, or a request that is not valid
        """
        if not isinstance(messages, list | tuple):
            raise ValueError(f"messages must be a list of dicts with role and content, or lists, got {messages!r:.70}")
        # 空列表没有第 0 项可看，先返回；0 段对话得到 0 个结果，批处理的代码不必自己判断。
        # An empty list has no item 0 to look at; 0 conversations give 0 results, and callers need no case of their own.
        if not messages:
            return []
        # 看第 0 项就能分清：是字典，整个列表便是一段对话；是列表，便有几段。
        # Item 0 tells: if it is a dict, the list is one conversation; if it is a list, there are several.
        #   [{"role": "user", ...}]     ->  1 conversation
        #   [[{...}], [{...}, {...}]]   ->  2 conversations
        conversations: Sequence[Any] = [messages] if isinstance(messages[0], Mapping) else messages
        # 这里就分好词，以 id 交下去：若交出文本，引擎会再加一个 BOS。因此结果里的 `prompt` 是 None。
        # Tokenized here and passed as ids: the engine would give text a second BOS. So `prompt` is None in the results.
        options = (chat_template_kwargs, add_generation_prompt, continue_final_message)
        check_template_options(self.engine.tokenizer, *options)
        prompts = each_prompt(lambda one: encode_chat(self.engine.tokenizer, one, *options), conversations)
        return self._run(prompts, sampling_params, progress)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Pieces:
        """边生成边交出文字；各段接起来就是 `generate` 的 `text`，从不切开一个字符。

        提前关闭迭代器（`break`、异常、Ctrl-C）就取消请求，归还它的块。引擎里的其他请求同步前进。
        生成器的返回值是 `finish_reason`。

        Yield the text as it is generated; the pieces joined are the `text` of `generate`, and none splits a character.
        To close the iterator early (`break`, an exception, Ctrl-C) aborts the request and returns its blocks. Others in
        the engine go on beside it. The generator's return value is the `finish_reason`.

        Raises:
            ValueError: 请求不合法（调用时就报），或分数成了 NaN；not valid (told at the call), or its scores became NaN
            EngineDeadError: 引擎不能再用了；the engine is of no more use
        """
        # 普通函数检查，生成器运行：若整个写成生成器，错误要等到取第一段文字时才抛出。
        # A plain function validates and a generator runs: as one generator it would raise at the first piece only.
        seq = self.engine.requests.prepare(prompt, sampling_params, stream=True)
        if seq.params.n > 1:
            raise ValueError(f"stream gives a single text, but n={seq.params.n}: use generate or AsyncLLM")
        return self._stream(seq)

    def stream_chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None, add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> Pieces:
        """回答一段对话；参数同 `chat`，其余同 `stream`。

        Answer one conversation; the arguments are those of `chat`, the rest is as in `stream`.
        """
        options = (chat_template_kwargs, add_generation_prompt, continue_final_message)
        return self.stream(encode_chat(self.engine.tokenizer, messages, *options), sampling_params)

    def _stream(self, seq: Request) -> Pieces:
        """走一步，交出新的文字，直到结束。

        Step and yield what is new, until the end.
        """
        try:
            return (yield from self._pieces(seq))
        finally:
            # 里层的收尾也可能恰好被 Ctrl-C 打断：再收一次，已经收过的什么也不做。
            # Ctrl-C may strike at just the line where the inner one cleans up: once more, which does nothing if done.
            with self.turns.ctrl_c_noted():
                self.turns.abort([seq])

    def _pieces(self, seq: Request) -> Pieces:
        assert seq.output_text is not None
        shown, finished = 0, False
        try:
            with self.turns.ctrl_c_noted():
                self.turns.add(seq)
            while not finished:
                # 只护住走步，不护住 `yield`：两段文字之间是用户自己的代码，Ctrl-C 该怎样就怎样。
                # The step is protected, the `yield` is not: between two pieces runs the user's own code, where Ctrl-C
                # does what it always does.
                with self.turns.ctrl_c_noted():
                    # 两段文字之间，别人（另一个 `stream`）可能已经把引擎走到了这个请求的结尾。
                    # Between two pieces somebody else, another `stream` say, may have stepped this request to its end.
                    if seq.finish_reason is None:
                        self.turns.step()
                    finished = seq.finish_reason is not None
                    text = seq.output_text.so_far(finished)
                # 半个字符、可能是停止字符串开头的尾巴，都还扣着，所以不是每步都有新文字。
                # Half a character, or a tail that may begin a stop string, is held back: not every step has new text.
                if len(text) > shown:
                    yield text[shown:]
                    shown = len(text)
        finally:
            # `break` 时 Python 在 `yield` 处抛 `GeneratorExit`，就走到这里。
            # On `break` Python raises `GeneratorExit` at the `yield`, which leads here.
            with self.turns.ctrl_c_noted():
                self.turns.abort([seq])
        check_finite(seq.finish_reason)
        return seq.finish_reason

    def _run(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        progress: bool,
    ) -> list[RequestOutput]:
        """先检查全部，再加入全部，然后一步步走到完。

        Validate all, add all, then step until done.
        """
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            # 同一个对象给所有请求用是安全的：`SamplingParams` 是冻结的，谁也改不了它。
            # One object for all requests is safe: `SamplingParams` is frozen, and nobody can change it.
            params: list[SamplingParams | None] = [sampling_params] * len(prompts)
            # 大家共用的先查一次：它不对，不是某一个提示词的错。
            # What all share is checked first: if it is wrong, that is no fault of any prompt.
            self.engine.requests.checked(sampling_params)
        else:
            if not isinstance(sampling_params, list | tuple):
                kind = type(sampling_params).__name__
                raise ValueError(f"sampling_params must be SamplingParams or a list of them, got {kind}")
            params = list(sampling_params)
            # `zip` 到短的那个就停：不比长度，多出来的提示词会被悄悄丢掉，结果也就少了几个。
            # `zip` stops at the shorter one: unchecked, the prompts left over vanish silently, and so do their results.
            if len(params) != len(prompts):
                raise ValueError(f"{len(prompts)} prompts, but {len(params)} sampling_params: give one or one each")
        # 第 5 个提示词不合法时，前 4 个也不该已经在跑：全部通过检查才加入。
        # If prompt 5 is bad, the first 4 must not be running already: add only when all have passed.
        sequences = each_prompt(self.engine.requests.prepare, prompts, params)
        # `step` 会返回任何人的结果，靠这个集合认出自己的。
        # `step` returns anybody's results; this set tells which are ours.
        ours = {seq.request_id for seq in sequences}
        results: dict[str, RequestOutput] = {}
        with self.turns.ctrl_c_noted():
            try:
                # 全部先进队列，再走第一步：调度器看得到所有请求，第一步就能把它们拼成一批。
                # All enter the queue before the first step, so that the scheduler can batch them from the start.
                for seq in sequences:
                    self.turns.add(seq)
                # 连续批处理就发生在这里：短的先完成离开，等待的随即补上，谁也不等同批最长的那个。
                # Continuous batching is this: short ones leave, waiting ones step in, nobody waits for the longest.
                with generation_progress(self.engine, sequences, progress and SPEAKS) as bar:
                    for seq in sequences:
                        while not seq.request_finished:
                            # 初读源码从这里“单步进入”。多数步返回空列表，只有请求结束的那一步才有结果。
                            # First reading: step into this call. Most return nothing; a request's end brings results.
                            finished = self.turns.step()
                            results.update((each.request_id, each) for each in finished if each.request_id in ours)
                            bar.update()
            finally:
                # 正常结束时这里无事可做；Ctrl-C 或出错时，把没完成的请求取消，块全部归还。
                # Nothing to do after a normal end; after Ctrl-C or an error, cancel what is left and return its blocks.
                # 不取消的话，下一次 `generate` 会接着算这些没人要的请求，还占着它们的块。
                # Otherwise the next `generate` would go on with requests that nobody wants, on their blocks.
                self.turns.abort(sequences)
        # 完成的次序不等于提交的次序：短的先完成。按提交次序取出，`outputs[i]` 才对得上 `prompts[i]`。
        # Short requests finish first; results go back in order, so that `outputs[i]` answers `prompts[i]`.
        # 被别处 `abort` 掉的、在别的线程的步子里完成的，结果不在其中，这里补上。
        # Those that somebody else's `abort` ended, or a step of another thread finished, are not among them: made here.
        return [results.get(seq.request_id) or self.engine.requests.output(seq) for seq in sequences]
