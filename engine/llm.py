"""LLM：给用户的入口，接口与 vLLM 相同。所有真正的工作都在 `llm_engine.py`，这里只是反复调用 `step`。

LLM: what the user calls, with vLLM's interface. The work is done in `llm_engine.py`; this calls `step` until done.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.outputs import RequestOutput
from engine.progress import generation_progress, loading_progress
from engine.sampling_params import SamplingParams
from engine.tokenizer import Message

Prompt = str | list[int]


class LLM:
    """离线推理：给一批提示，等全部完成。

    Offline inference: give it prompts, wait for all of them.

    Args:
        model: model folder, hub id in the local cache, or None for the embedded model
        progress: show a bar while the weights load

    All other arguments are the fields of `EngineConfig`, which documents them.

    Raises:
        ValueError: an option or the model folder is wrong
        BackendUnavailableError: the backend cannot run here
    """

    def __init__(
        self,
        model: str | Path | None = None,
        backend: str = "auto",
        device: str | torch.device = "auto",
        dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int | None = None,
        kvcache_block_size: int | None = None,
        num_kvcache_blocks: int | None = None,
        gpu_memory_utilization: float = 0.9,
        enable_prefix_caching: bool = True,
        enforce_eager: bool = False,
        seed: int | None = None,
        strict: bool = False,
        progress: bool = False,
    ) -> None:
        config = EngineConfig(
            model=model,
            backend=backend,
            device=str(device),
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            kvcache_block_size=kvcache_block_size,
            num_kvcache_blocks=num_kvcache_blocks,
            gpu_memory_utilization=gpu_memory_utilization,
            enable_prefix_caching=enable_prefix_caching,
            enforce_eager=enforce_eager,
            seed=seed,
            strict=strict,
        )
        if progress:
            with loading_progress() as bar:
                self.engine = LLMEngine(config, bar)
        else:
            self.engine = LLMEngine(config)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """补全每个提示，结果与提示同序。

        Complete every prompt; results come in the order of the prompts.

        Args:
            prompts: a string, or a list whose items are strings or lists of token ids
            sampling_params: one for all, or one per prompt; None takes the model's generation_config
            progress: show a progress bar

        Raises:
            ValueError: a request is not valid; then none has been added
        """
        requests: list[Prompt] = [prompts] if isinstance(prompts, str) else list(prompts)  # type: ignore[arg-type]
        return self._run(requests, sampling_params, progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """回答一段或几段对话，每段套上模型的对话模板。

        Answer one conversation or several, each put through the model's chat template.

        Args:
            messages: [{"role": "user", "content": "..."}, ...], or a list of such lists
            chat_template_kwargs: extra variables for the template

        Raises:
            ValueError: no template, bad messages, or a request that is not valid
        """
        if not messages:
            return []
        conversations: Sequence[Any] = [messages] if isinstance(messages[0], Mapping) else messages
        tokenizer = self.engine.tokenizer
        prompts: list[Prompt] = [tokenizer.encode_chat(c, chat_template_kwargs) for c in conversations]
        return self._run(prompts, sampling_params, progress)

    def _run(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        progress: bool,
    ) -> list[RequestOutput]:
        """先检查全部，再加入全部，然后一步步走到完。

        Validate all, add all, then step until done.
        """
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params: list[SamplingParams | None] = [sampling_params] * len(prompts)
        else:
            params = list(sampling_params)
            if len(params) != len(prompts):
                raise ValueError(f"{len(prompts)} prompts, but {len(params)} sampling_params: give one or one each")
        # 第 5 个提示不合法时，前 4 个也不该已经在跑：全部通过检查才加入。
        # If prompt 5 is bad, the first 4 must not be running already: add only when all have passed.
        sequences = [self.engine.prepare_request(p, s) for p, s in zip(prompts, params)]
        ours = {seq.request_id for seq in sequences}
        results: dict[str, RequestOutput] = {}
        try:
            for seq, prompt in zip(sequences, prompts):
                self.engine.add_sequence(seq, prompt if isinstance(prompt, str) else None)
            with generation_progress(self.engine, len(sequences), progress) as bar:
                # 引擎里可能还有别人加的请求，它们同步前进，但不算在这里的结果里。
                # Others may have added requests to the engine; they go on beside ours but are not among our results.
                while len(results) < len(sequences):
                    finished = self.engine.step()
                    results.update((output.request_id, output) for output in finished if output.request_id in ours)
                    bar.update(len(results))
        finally:
            # 正常结束时这里无事可做；Ctrl-C 或出错时，把没完成的请求取消，页全部归还。
            # Nothing to do after a normal end; after Ctrl-C or an error, cancel what is left and return its blocks.
            for seq in sequences:
                if seq.request_id not in results:
                    self.engine.abort(seq.request_id)
        return [results[seq.request_id] for seq in sequences]
