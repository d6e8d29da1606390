"""主机上还有多少内存可用，容器的限额也算在内。

你在这里：KV 缓存放在 CPU 上、又没有写明块数时，`kv_pool.py` 来问。

How much memory of the host is left, with the limits of containers taken into account.

You are here: `kv_pool.py` asks where the KV cache is on a CPU and the number of its blocks is not given.
"""

import os
from collections.abc import Iterator
from pathlib import Path


def available_cpu_memory() -> int:
    """此刻可用的内存，单位字节；在容器里，不超过它的限额还剩的。

    Memory available right now, in bytes; in a container no more than its limit leaves.
    """
    # macOS 没有 /proc，退而取总内存；`kv_pool.py` 的 1 GiB 上限仍然管用。
    # macOS has no /proc, so take the total; the cap of 1 GiB in `kv_pool.py` still holds.
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        # 取 `MemAvailable` 而不是 `MemFree`：页缓存随时可以回收，`MemFree` 却把它算成已经用掉的。
        # `MemAvailable`, not `MemFree`, which counts the page cache as used though it can be reclaimed at any time.
        if line.startswith("MemAvailable:"):
            #   "MemAvailable:   16384000 kB"  ->  16384000 * 1024
            host = int(line.split()[1]) * 1024
    return min([host, *_cgroup_rooms()])


def _cgroup_rooms() -> Iterator[int]:
    """本进程所在的每一层 cgroup，限额还剩多少字节；容器的内存上限就是这样设的，/proc/meminfo 里看不到。

    How many bytes the limit of each cgroup around this process leaves: that is how containers are limited, and
    /proc/meminfo does not show it.
    """
    for line in _lines(Path("/proc/self/cgroup")):
        # 第 2 版是 "0::/a/b"，第 1 版是 "4:memory:/a/b"；两版的目录和文件名都不同。
        # Version 2 has "0::/a/b", version 1 "4:memory:/a/b"; their folders and file names differ.
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current", "inactive_file")
        if controllers:
            root, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        # 外层的限额也管着里层；容器里常常只看得到最外面的一层。
        # An outer limit holds for what is inside; from within a container often only the outermost level is seen.
        folder = root / path.lstrip("/")
        for level in (each for each in (folder, *folder.parents) if each.is_relative_to(root)):
            limit, used = (next(iter(_lines(level / name)), "") for name in names[:2])
            # 没有限额时写着 "max"。
            # Without a limit it says "max".
            if limit.isdigit() and used.isdigit():
                stat = dict(line.rsplit(" ", 1) for line in _lines(level / "memory.stat"))
                # 页缓存也算在“已用”里，要加回来：内存紧张时它会被回收。
                # The page cache counts as used and is added back: it is reclaimed when memory runs short.
                yield int(limit) - int(used) + int(stat.get(names[2], 0))


def _lines(path: Path) -> list[str]:
    """文件的各行；没有这个文件，就一行也没有。

    A file's lines; none if there is no such file.
    """
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
