"""与调试器自带的同名包合并，扩展就放在本文件夹。
Merge with the debugger's own package of the same name, the extension lies in this folder.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
