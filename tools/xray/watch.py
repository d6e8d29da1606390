"""`--watch`：在终端里边跑边看块池、队列、这一步的批和各请求的文字。

`--watch`: see the pool, the queues, this step's batch and the requests' text in the terminal while it runs.
"""

import time
from itertools import zip_longest

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serving.console import printable
from tools.xray.events import Step
from tools.xray.recorder import Recorder

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
MAX_CELLS = 512


class Watch:
    """一块不断重画的画面。

    A display drawn again at every step.

    Args:
        console: 画在哪里；不是终端时只打印最后一幅；where to draw; if no terminal, only the last picture is printed
        seconds: 每步之后停多久，好看得清；不是终端就不停；pause after each step, for the eye; none without a terminal
    """

    def __init__(self, console: Console, seconds: float = 0.1) -> None:
        self.console = console
        # 内置模型一步只要几毫秒，不停一下什么也看不清；重定向到文件时没有人在看，不必停。
        # The embedded model takes milliseconds a step, too fast to see; into a file nobody watches, and none pauses.
        self.seconds = seconds if console.is_terminal else 0.0
        self.live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> "Watch":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, recorder: Recorder, step: Step) -> None:
        """画出这一步。

        Draw this step.
        """
        self.live.update(self.render(recorder, step), refresh=self.console.is_terminal)
        time.sleep(self.seconds)

    def render(self, recorder: Recorder, step: Step) -> Group:
        """这一步的画面。

        The picture of this step.
        """
        colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(recorder.sequences)}
        manager, owners = recorder.engine.block_manager, {}
        for name, blocks in step.tables.items():
            owners.update({block_id: name for block_id in blocks})
        pool = Text(no_wrap=False)
        # 大块池里没有用到的块占满屏幕也说明不了什么：只画到用到的最后一个。
        # In a large pool unused blocks would fill the screen and say nothing: draw up to the last one in use.
        last = max([*owners, *step.named, 0]) + 1
        for block_id in range(min(manager.num_blocks, max(last, 64), MAX_CELLS)):
            if block_id in owners:
                shared = step.refs.get(block_id, 0) > 1
                pool.append("▣" if shared else "■", style=colours[owners[block_id]])
            else:
                pool.append("□" if block_id in step.named else "·", style="dim")
        used = manager.num_blocks - step.num_free
        head = Text(f"step 步 {recorder.num_steps}  blocks 块 {used}/{manager.num_blocks}  ")
        head.append(f"preemptions 抢占 {step.preemptions}  hits 命中 {step.hits}/{step.queries}")
        queues = Text()
        for title, names in (("running 运行 ", step.running), ("  waiting 等待 ", step.waiting)):
            queues.append(title)
            for name in names:
                queues.append(f" {name}", style=colours[name])
        rows = {row.request: row for row in step.rows}
        guessing = ["guesses 猜测"] if recorder.engine.drafter else []
        table = Table("request 请求", "positions 位置", *guessing, "sampled 采到", "text 文字", box=None)
        for name, seq in recorder.sequences.items():
            row = rows.get(name)
            positions = f"{row.start}–{row.start + row.count - 1}" if row else "-"
            tokenizer = recorder.engine.tokenizer
            tokens = " ".join(repr(tokenizer.decode_token(token)) for token in row.tokens) if row else ""
            if row and row.num_allowed:
                tokens += f" (允许 / allowed: {row.num_allowed})"
            text = tokenizer.decode(seq.output_token_ids)[-60:].replace("\n", " ")
            # 猜错的划掉：没有采到它，它后面的也作废。
            # Wrong guesses are struck out: they were not sampled, and what follows them is void.
            pairs = zip_longest(row.guesses, row.tokens[: len(row.guesses)]) if row else ()
            guesses = Text(" ").join(
                Text(repr(tokenizer.decode_token(guess)), "green" if guess == token else "strike dim")
                for guess, token in pairs
            )
            cells = [guesses] if guessing else []
            table.add_row(
                Text(name, style=colours[name]), positions, *cells, Text(tokens or "-"), Text(printable(text))
            )
        return Group(head, pool, queues, table)
