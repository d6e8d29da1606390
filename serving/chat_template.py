"""对话模板：一段对话 -> 模型看到的文字。模板来自模型文件夹，是一段小程序，所以消息和它的运行都要看着。

你在这里：`LLM.chat` 调用 `encode_chat`；只用纯文本提示词的人用不到。

The chat template: a conversation -> the text that the model sees. The template comes with the model's folder and is a
small program, so the messages and its run are both watched.

You are here: `LLM.chat` calls `encode_chat`; whoever sends plain prompts never meets it.
"""

import inspect
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.tokenizer import Tokenizer
from engine.validation import check_flag

Message = Mapping[str, Any]
# 渲染对话模板最多花多少秒；正常的对话用不到 0.1 秒。
# How many seconds a chat template may take; an ordinary conversation takes less than 0.1.
RENDER_SECONDS = 10.0


def require_chat_template(folder: Path) -> None:
    """没有对话模板的是基础模型，读权重之前就说清楚。

    What has no chat template is a base model: say so before weights are read.

    Raises:
        ValueError: 没有对话模板；there is none
    """
    config = folder / "tokenizer_config.json"
    named = config.exists() and '"chat_template"' in config.read_text(encoding="utf-8", errors="replace")
    if not named and not any(folder.glob("*chat_template*")):
        raise ValueError(f"{folder} has no chat template, as base models have none: add --complete for plain text")


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True, continue_final_message: bool = False,
) -> list[int]:
    """对话套上模板，再分词。

    Put a conversation through the template, then tokenize.

    Args:
        template_kwargs: 模板的其他变量，如 Qwen3 的 `enable_thinking`；不认识的不起作用；
            extra variables for the template, say Qwen3's `enable_thinking`; unknown ones do nothing
        add_generation_prompt: 以“轮到助手说话”的标记结尾；end with the mark "the assistant speaks now"
        continue_final_message: 让模型接着写最后一条消息，不与上一项同用；
            have the model write on at the last message; not both

    Raises:
        ValueError: 没有模板，或模板拒绝这些消息；no template, or messages that the template refuses
    """
    check_template_options(tokenizer, template_kwargs, add_generation_prompt, continue_final_message)
    library = tokenizer.hf_tokenizer
    # 字典或字符串也能遍历，模板会把它的键或字母当作消息。
    # A dict or a string can be iterated as well, and the template would take its keys or letters for messages.
    if not isinstance(messages, list | tuple):
        raise ValueError(f"a conversation must be a list of messages with role and content, got {messages!r:.80}")
    checked = [_check_message(message, str(library.chat_template)) for message in messages]
    # 调试器也靠 `settrace`，一个线程只有一个：正在调试就让给它。
    # A debugger lives on `settrace` too, one a thread: while one is at work it keeps it.
    free = sys.gettrace() is None
    try:
        if free:
            sys.settrace(rendering_limit(tokenizer.max_chars))
        text: str = library.apply_chat_template(
            checked, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message, **(template_kwargs or {}),
        )
    except Exception as error:
        raise ValueError(f"the chat template refuses these messages: {' '.join(str(error).split()):.300}") from None
    finally:
        if free:
            sys.settrace(None)
    # 模板自己已经写了 BOS，这里再加一次就成了两个 BOS，模型的回答会变差。
    # The template has written BOS itself; adding it here would make two, and the answers get worse.
    # 留意：用户在问题里打出的特殊 token 也会被认成真的，就像拼接字符串时的 SQL 注入；对外服务要先过滤。
    # Beware: a special token typed by a user counts as a real one, like SQL injection; a service must filter.
    return tokenizer.encode(text, add_special_tokens=False)


def check_template_options(
    tokenizer: Tokenizer, template_kwargs: Any, add_generation_prompt: Any, continue_final_message: Any
) -> None:
    """几段对话共用的选项；参数同 `encode_chat`。

    The options that several conversations share; the arguments are those of `encode_chat`.

    Raises:
        ValueError: 没有模板，或选项有误；no template, or an option is wrong
    """
    library = tokenizer.hf_tokenizer
    # 基础模型没有对话模板：与其自己编一个格式，不如让用户改用 `generate`。
    # A base model has no chat template: rather than invent a format, send the user to `generate`.
    if library.chat_template is None:
        raise ValueError("this model's tokenizer has no chat template: use generate() with plain prompts")
    check_flag("add_generation_prompt", add_generation_prompt)
    check_flag("continue_final_message", continue_final_message)
    # 这些名字是 `apply_chat_template` 自己的参数：转交客户端给的变量时，不能让他换掉模板。
    # These names are arguments of `apply_chat_template`: whoever forwards a client's variables must not let him
    # replace the template.
    reserved = {"messages", *inspect.signature(library.apply_chat_template).parameters} - {"tools", "documents"}
    if not isinstance(template_kwargs, Mapping | None) or reserved & {*(template_kwargs or ())}:
        raise ValueError(f"chat_template_kwargs={template_kwargs!r:.80} must name variables of the template only")
    # 一个要助手另起一条消息，一个要他接着写最后一条：只能选一个。
    # One has the assistant begin a message, the other has him write on at the last: it can only be one of them.
    if add_generation_prompt and continue_final_message:
        raise ValueError("continue_final_message and add_generation_prompt are not compatible: turn one of them off")


def _check_message(message: Any, template: str) -> Message:
    """核对一条消息；内容若是几部分文字，而模板只会写字符串，就合成一个字符串。

    Check a message; content in parts of text becomes a single string where the template writes strings only.
    """
    match message:
        # 助手调用工具的消息可以没有内容。
        # An assistant's message that calls tools may have no content.
        case {"role": _, "content": str()} | {"role": _, "tool_calls": [_, *_]} if (
            isinstance(message.get("content"), str | None)
            # 模板里没有“工具调用”这几个字，就会把调用漏掉，不报错。
            # A template that never names tool calls would drop them without an error.
            and ("tool_calls" in template or not message.get("tool_calls"))
        ):
            return message
        case {"role": _, "content": [*parts]}:
            texts = [p["text"] for p in parts if isinstance(p, Mapping) and p.get("type") == "text" and "text" in p]
            # 不认识部分的模板会照 Python 的写法贴进提示词，不报错，只是答非所问；认识的都要读 `text`。
            # A template that knows no parts would paste them as Python prints them: no error, just a wrong answer.
            # Those that know them read `text`.
            if len(texts) == len(parts) and all(isinstance(text, str) for text in texts):
                knows_parts = re.search(r"""\.text\b|\[\\?['"]text""", template)
                return message if knows_parts else {**message, "content": "\n".join(texts)}
    # 模板对缺少的键往往静默地填空串：把 "content" 拼成 "contents"，问题就没了，模型答非所问。
    # Templates often render a missing key as nothing: with "contents" for "content" the question is gone.
    raise ValueError(
        "a message must be a dict with role and content, text or parts of text (tool_calls only where the template "
        f"writes them), got {message!r:.80}"
    )


def rendering_limit(max_chars: int) -> Callable[[Any, str, Any], Any]:
    """模板是文件里的程序，循环可能没完没了：写出的超过 `max_chars`，或者时间超过 `RENDER_SECONDS`，
    这个给 `settrace` 的函数就抛 `ValueError`。

    A template is a program out of a file, and its loops may never end: this function for `settrace` raises `ValueError`
    where it writes more than `max_chars` or takes more than `RENDER_SECONDS`.
    """
    chars, deadline = 0, time.monotonic() + RENDER_SECONDS

    def watch(frame: Any, event: str, arg: Any) -> Any:
        nonlocal chars
        # 只看模板编译成的代码，Jinja 给它这个文件名；它写出的每一段都由 `yield` 交出，也算 "return"。
        # Only the code compiled from the template, which Jinja gives this file name; each piece that it writes leaves
        # by `yield`, which counts as "return".
        if frame.f_code.co_filename != "<template>":
            return None
        chars += len(arg) if event == "return" and isinstance(arg, str) else 0
        # 多半是对话太长，也可能是模板的循环停不下来；哪一种，消息里说清楚。
        # Mostly the conversation is too long, sometimes a loop never ends; the message says which it was.
        if chars > max_chars:
            raise ValueError(f"over {max_chars} characters, 64 a token of max_model_len: shorten the conversation")
        if time.monotonic() > deadline:
            raise ValueError(f"it takes over {RENDER_SECONDS:g} seconds")
        return watch

    return watch
