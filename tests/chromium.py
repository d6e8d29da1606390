"""用管道上的 DevTools 协议驱动无界面的 Chromium：不装任何包，也不用 websocket。

Drive a headless Chromium by the DevTools protocol over pipes: no package to install, and no websocket.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT = 30.0


def find_chromium() -> str | None:
    """Chromium 或 Chrome 的路径，没有则为 None。

    The path of Chromium or Chrome, None where there is neither.
    """
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """一个标签页；`events` 是浏览器主动发来的全部消息。

    A tab; `events` are all messages that the browser sent on its own.
    """

    def __init__(self, commands: int, replies: int) -> None:
        self.commands, self.replies = commands, replies
        self.buffer = b""
        self.last_id = 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """发一条命令，等它的回答。

        Send a command and wait for its answer.
        """
        self.last_id += 1
        message: dict[str, Any] = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.last_id:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def receive(self) -> dict[str, Any]:
        """下一条消息；消息之间以零字节分隔。

        The next message; a zero byte stands between messages.
        """
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.replies], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.replies, 1 << 16) if ready else b""
            assert data, "chromium does not answer"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """打开网址，等到载入完。

        Open a URL and wait until it is loaded.
        """
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def run(self, script: str) -> Any:
        """在页面里求一个表达式的值。

        The value of an expression in the page.
        """
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """按一下键。

        Press a key.
        """
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def click(self, selector: str) -> None:
        """用鼠标点元素的中心。

        Click the centre of an element with the mouse.
        """
        point = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=point[0], y=point[1], button="left", clickCount=1)

    def resize(self, width: int, height: int = 900) -> None:
        """改变视口大小。

        Change the size of the viewport.
        """
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """存一张截图。

        Save a screenshot.
        """
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """启动浏览器，离开时结束它。

    Start the browser and end it when leaving.
    """
    command_read, command_write = os.pipe()
    reply_read, reply_write = os.pipe()
    # 浏览器从 3 号描述符读命令，往 4 号写回答；先挪到高处，再放到位，免得互相覆盖。
    # The browser reads from descriptor 3 and answers on 4; both are moved up first, so that neither overwrites one.
    shell = 'exec 8<&"$1" 9>&"$2"; exec 3<&8 4>&9; shift 2; exec "$@"'
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["bash", "-c", shell, "bash", str(command_read), str(reply_write), program, *options]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"], pass_fds=(command_read, reply_write),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(reply_write)
        try:
            yield Page(command_write, reply_read)
        finally:
            process.terminate()
            process.wait(10)
            os.close(command_write)
            os.close(reply_read)
