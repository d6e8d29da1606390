"""把记录写成一个网页：样式、脚本和数据都在同一个文件里，断网也能从磁盘打开。

`page.html` 是骨架，`page.css` 和 `page.js` 写文件时嵌进去；改页面就改这三个文件。

Write a recording as a web page: style, script and data are in the one file, which opens from disk without a network.
`page.html` is the skeleton, and `page.css` and `page.js` are put in while writing; to change the page, change these.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def write_page(recording: dict[str, Any], path: Path) -> None:
    """写出网页。

    Write the page.

    Args:
        recording: `Recorder.recording` 的返回值；what `Recorder.recording` returned
    """
    # 模型可以写出 `</script>`，那会提前结束数据：JSON 里的 `<` 一律写成转义。
    # A model may write `</script>`, which would end the data early: in the JSON every `<` becomes an escape.
    data = json.dumps(recording, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    html = (FOLDER / "page.html").read_text(encoding="utf-8")
    # 数据放在最后：它里面若有 `{{style}}` 这样的字，不能再被替换。
    # The data goes last: a `{{style}}` inside it must not be replaced.
    for name, text in (("style", (FOLDER / "page.css")), ("script", (FOLDER / "page.js"))):
        html = html.replace("{{" + name + "}}", text.read_text(encoding="utf-8"))
    before, _, after = html.partition("{{data}}")
    path.write_text(before + data + after, encoding="utf-8", errors="replace")
