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
        if not (folder / "tokenizer_config.json").exists() or not (folder / "tokenizer.json").exists():
            raise ModelLoadError(f"{folder} lacks tokenizer.json or tokenizer_config.json: download the model again")
        # 直接用快速分词器的基类：`AutoTokenizer` 会为了找类名多导入几百个模块，慢好几倍。
        # The fast tokenizers' base class directly: `AutoTokenizer` imports hundreds of modules to find a class name.
        from transformers import PreTrainedTokenizerFast

        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            raise ModelLoadError(f"the tokenizer in {folder} cannot be loaded ({error}): download it again") from None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """文字变 token id；`add_special_tokens` 决定要不要在前面加 BOS。

        Text to token ids; `add_special_tokens` says whether BOS goes in front.
        """
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """token id 变文字。

        Token ids to text.
        """
        return str(
            self._tokenizer.decode(
                token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def encode_chat(self, messages: Sequence[Message], template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """对话套上模板，再分词。

        Put a conversation through the template, then tokenize.

        Raises:
            ValueError: no template, or messages that the template refuses
        """
        if self._tokenizer.chat_template is None:
            raise ValueError("this model's tokenizer has no chat template: use generate() with plain prompts")
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise ValueError(f"a message must be a dict with role and content, got {message!r}")
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **(template_kwargs or {})
            )
        except Exception as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        # 模板自己已经写了 BOS，这里再加一次就成了两个 BOS，模型的回答会变差。
        # The template has written BOS itself; adding it here would make two, and the answers get worse.
        return self.encode(str(text), add_special_tokens=False)
