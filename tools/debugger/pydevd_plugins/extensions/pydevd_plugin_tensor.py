"""VSCode 的 Python 调试器（debugpy）扩展：张量显示为形状、类型、设备和几个值。
An extension of VSCode's Python debugger (debugpy): a tensor shows as shape, dtype, device and a few values.

`.vscode/launch.json` 把 `tools/debugger` 放进 `PYTHONPATH`，调试器就会加载名字以 `pydevd_plugin_` 开头的模块。
只改变调试器里的显示；程序里的 `repr(tensor)` 和 `print(tensor)` 保持原样。

`.vscode/launch.json` puts `tools/debugger` on `PYTHONPATH`, and the debugger loads modules whose name begins
with `pydevd_plugin_`. Only what the debugger shows changes; `repr(tensor)` and `print(tensor)` in the program
stay as they are.
"""

from __future__ import annotations

import sys
from typing import Any

from _pydevd_bundle.pydevd_extension_api import StrPresentationProvider
from tensor_summary import summarize

__all__ = ["TensorPresentation"]


class TensorPresentation(StrPresentationProvider):
    """把 `torch.Tensor` 及其子类交给 `summarize` 显示。
    Let `summarize` show `torch.Tensor` and its subclasses.
    """

    def can_provide(self, type_object: type, type_name: str) -> bool:
        """判断这个类型是否由本扩展显示。
        Tell whether this extension shows values of the type.
        """
        # 被调试的程序没有导入 torch，就不可能有张量；扩展自己不导入它。
        # A program that has not imported torch has no tensors; the extension itself does not import it.
        torch = sys.modules.get("torch")
        tensor = getattr(torch, "Tensor", None)
        return isinstance(tensor, type) and issubclass(type_object, tensor)

    def get_str(self, val: Any) -> str:
        """返回显示在调试器里的一行文字。
        Return the line that the debugger shows.
        """
        return summarize(val)
