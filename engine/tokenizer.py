"""分词器：文字 <-> token id，以及对话模板。底层用 `transformers` 的分词器，这里只补上几条容易出错的规则。

The tokenizer: text <-> token ids, and the chat template. `transformers` does the work; here are only the rules that
are easily missed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.config import ModelLoadError

Message = Mapping[str, str]


class Tokenizer:
    """一个模型文件夹的分词器。

    The tokenizer of a model folder.
    """

    def __init__(self, folder: Path) -> None:
        # 自己先查文件：缺文件时 `transformers` 报的错，往往看不出缺的是哪个，更不说怎么办。
        # Look first: the error of `transformers` hardly tells which file is missing, still less what to do.
        if not (folder / "tokenizer_config.json").exists() or not (folder / "tokenizer.json").exists():
            raise ModelLoadError(f"{folder} lacks tokenizer.json or tokenizer_config.json: download the model again")
        # 直接用快速分词器的基类：`AutoTokenizer` 会为了找类名多导入几百个模块，慢好几倍。
        # The fast tokenizers' base class directly: `AutoTokenizer` imports hundreds of modules to find a class name.
        # 导入要一秒左右，所以放到用时才做：`--help` 和 `--list-backends` 不必等它。
        # The import takes about a second, so it happens on use: `--help` and `--list-backends` need not wait for it.
        from transformers import PreTrainedTokenizerFast

        try:
            # 长度上限由引擎检查，消息也更清楚；不关掉分词器自己的上限，它会先打印一句误导人的警告。
            # The engine checks the length, with a clearer message; the tokenizer's own limit would first print a
            # misleading warning.
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(folder), local_files_only=True, model_max_length=1 << 62
            )
        # 捕获一切：底层的 Rust 库对坏文件抛的是最普通的 `Exception`，再窄就漏掉了。
        # Catch everything: for a bad file the Rust library raises a plain `Exception`, and anything narrower misses it.
        except Exception as error:
            raise ModelLoadError(f"the tokenizer in {folder} cannot be loaded ({error}): download it again") from None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """文字变 token id；`add_special_tokens` 决定要不要在前面加 BOS。

        Text to token ids; `add_special_tokens` says whether BOS goes in front.
        """
        #   Llama 3: "Hello", True -> [128000, 9906];  "Hello", False -> [9906]
        # 命令行里的坏字节会变成落单的代理字符，分词器不认；在这里说清楚，好过它内部的 TypeError。
        # A bad byte on the command line becomes a lone surrogate that the tokenizer refuses; say so here.
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("the prompt is not valid text: it holds a byte that is not UTF-8") from None
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """token id 变文字。

        Token ids to text.
        """
        return str(
            self._tokenizer.decode(
                # 不做“清理”：它把 "a , b" 改成 "a, b"，不再是模型写的原文；
                # 而 Llama 3 的 `tokenizer_config.json` 偏偏打开了它。
                # No "clean-up": it turns "a , b" into "a, b", not what the model wrote;
                # Llama 3's `tokenizer_config.json` asks for it.
                token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def decode_token(self, token_id: int) -> str:
        """单个 token 的文字，特殊 token 也写出来；一个汉字的几个字节若分在几个 token 里，得到的是替换符。

        A single token's text, special tokens included; one that is only part of a character gives a replacement mark.
        """
        return self.decode([token_id], skip_special_tokens=False)

    def encode_chat(self, messages: Sequence[Message], template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """对话套上模板，再分词。

        Put a conversation through the template, then tokenize.

        Raises:
            ValueError: no template, or messages that the template refuses
        """
        # 基础模型没有对话模板：与其自己编一个格式，不如让用户改用 `generate`。
        # A base model has no chat template: rather than invent a format, send the user to `generate`.
        if self._tokenizer.chat_template is None:
            raise ValueError("this model's tokenizer has no chat template: use generate() with plain prompts")
        if not isinstance(messages, list | tuple):
            raise ValueError(f"a conversation must be a list of messages with role and content, got {messages!r:.80}")
        for message in messages:
            # 模板对缺少的键往往静默地填空串：把 "content" 拼成 "contents"，问题就没了，模型答非所问。
            # Templates often render a missing key as nothing: with "contents" for "content" the question is gone.
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise ValueError(f"a message must be a dict with role and content, got {message!r}")
            # 分成几部分的内容（[{"type": "text", ...}]）会被模板照着 Python 的写法贴进提示词里，不报错，只是答非所问。
            # Content in parts ([{"type": "text", ...}]) would be pasted into the prompt as Python prints it: no error,
            # just a wrong answer.
            if not isinstance(message["content"], str):
                raise ValueError(f"a message's content must be a string, got {type(message['content']).__name__}")
        try:
            text = self._tokenizer.apply_chat_template(
                # `add_generation_prompt` 在末尾写上“轮到助手说话”的标记；没有它，模型可能接着替用户写下去。
                # `add_generation_prompt` ends with the mark "the assistant speaks now";
                # without it the model may go on as the user.
                # `template_kwargs` 原样传给模板，例如 Qwen3 的 `enable_thinking`；模板不认识的变量没有作用。
                # `template_kwargs` go to the template as is, say Qwen3's `enable_thinking`; unknown ones do nothing.
                list(messages), tokenize=False, add_generation_prompt=True, **(template_kwargs or {})
            )
        except Exception as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        # 模板自己已经写了 BOS，这里再加一次就成了两个 BOS，模型的回答会变差。
        # The template has written BOS itself; adding it here would make two, and the answers get worse.
        # 留意：用户在问题里打出的特殊 token 也会被认成真的，就像拼接字符串时的 SQL 注入；对外服务要先过滤。
        # Beware: a special token typed by a user counts as a real one, like SQL injection; a service must filter.
        return self.encode(str(text), add_special_tokens=False)
