"""读模型文件夹里的 JSON，逐个字段取出并检查：文件是外来数据，错了要说清是哪个文件、哪个值。

Read the JSON of a model folder, field by field, and check each: files are foreign data, and an error says which file
and which value.
"""

import json
from pathlib import Path
from typing import Any


class ModelLoadError(ValueError):
    """模型文件夹有问题：消息一行，写明哪个文件、哪个值、怎么补救。

    Something is wrong with the model folder; one line that names the file, the value and the remedy.
    """

    def __init__(self, message: str) -> None:
        # 消息里常常转述别的库的话，那里面可以有换行和控制字符，甚至就来自文件的内容。
        # Messages often quote other libraries, with line breaks and control characters, even some of the file's own.
        super().__init__("".join(char if char.isprintable() else " " for char in message))


def read_json(path: Path) -> dict[str, Any]:
    """读一个 JSON 对象。

    Read a file that holds one JSON object.

    Raises:
        ModelLoadError: 文件缺失、读不了，或不是 JSON 对象；missing, unreadable, or not an object
    """
    # 解析 JSON 不会执行代码；能出的错只有文件缺失、读不了、语法错，以及括号嵌套过深（`RecursionError`）。
    # Parsing JSON runs no code; what can fail is a missing or unreadable file,
    # bad syntax, or brackets nested too deeply (`RecursionError`).
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        # `from None` 去掉原来的异常链：用户看到的是一行说明，不是一串 traceback。
        # `from None` drops the original exception: the user sees a line of explanation instead of chained tracebacks.
        raise ModelLoadError(f"{path} is missing: a model folder needs it; download the model again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON ({error}): download the model again") from None
    # `[1, 2]` 和 `"abc"` 也是合法的 JSON，但后面的 `.get` 会失败，而且错得莫名其妙。
    # `[1, 2]` and `"abc"` are valid JSON too, but `.get` would fail on them later with a puzzling message.
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def positive_int(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    """取一个正整数字段。布尔值在 Python 里也是整数，要排除。

    Take a positive integer; a bool is an int in Python, so rule it out.
    """
    value = raw.get(key, default)
    # 上限是 int32：长度之后要存进 int32 张量（如 `cache_seqlens`），放不下的值现在就拒绝，免得到时回绕成负数。
    # The limit is int32: lengths end up in int32 tensors such as `cache_seqlens`, so what does not fit is refused here
    # rather than wrapping to a negative number.
    # 层数和头宽远远用不到那么大；再大，连空架子都要搭上几个小时，或者光是频率表就有几 GB。
    # Layers and heads come nowhere near; beyond, even the empty frame takes hours, or the frequencies alone gigabytes.
    limit = {"num_hidden_layers": 1 << 12, "head_dim": 1 << 16}.get(key, 1 << 31)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < limit:
        raise ModelLoadError(f"config.json: {key} must be a positive integer below {limit}, got {value!r:.60}")
    return value


def positive_number(raw: dict[str, Any], key: str, default: float | None = None) -> float:
    """取一个有限的正数字段。

    Take a finite positive number.
    """
    value = raw.get(key, default)
    # JSON 的整数可以有几百位，装不进 float；界限取在 float32 之内，后面的乘除也就不会溢出。
    # An integer in JSON may have hundreds of digits and fit no float; the bounds lie within float32, so that products
    # and quotients later do not overflow.
    # 标准 JSON 没有 `NaN` 和 `Infinity`，Python 的解析器却接受；NaN 与任何数比较都是假，所以通不过。
    # Standard JSON has no `NaN` or `Infinity`, but Python's parser takes them; every comparison with NaN is false.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-30 < value < 1e30:
        raise ModelLoadError(f"config.json: {key} must be a positive number, got {value!r:.60}")
    return float(value)


def flag(raw: dict[str, Any], key: str, default: bool = False) -> bool:
    """取一个布尔字段。

    Take a boolean.
    """
    value = raw.get(key, default)
    # 字符串 `"false"` 在 Python 里是真值；不检查类型的话，它会悄悄打开这个选项。
    # The string `"false"` is truthy in Python; without this check it would quietly switch the option on.
    if not isinstance(value, bool):
        raise ModelLoadError(f"config.json: {key} must be true or false, got {value!r:.60}")
    return value
