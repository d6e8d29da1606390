"""与调试器自带的同名包合并，使它能找到这里的扩展。
Merge with the debugger's own package of the same name, so that it finds the extension here.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
