"""Memory and processor time of a process and of those that it started, read from /proc, which only Linux has."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path


def tree(pid: int) -> Iterator[int]:
    """A process and those that it started, as far as they live."""
    yield pid
    try:
        tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        children = [int(child) for path in tasks for child in path.read_text().split()]
    except OSError:
        return
    for child in children:
        yield from tree(child)


def pss_byte(pid: int) -> int:
    """Proportional set size of one process; 0 if it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024


def cpu_s(pid: int) -> float:
    """Processor time of one process so far, user's and system's, without its children; 0 if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Follows a tree of processes from its making on.

    Args:
        pid: the root of the tree.
        period_s: between two looks; one costs about 10 ms of processor time for each GB.
    """

    def __init__(self, pid: int, period_s: float) -> None:
        self.peak_byte = 0
        """Largest proportional set size of the tree."""
        self._cpu_s: dict[int, float] = {}
        self._pid, self._ended = pid, threading.Event()
        self._period_s = period_s
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._ended.wait(self._period_s):
            pids = list(tree(self._pid))
            self.peak_byte = max(self.peak_byte, sum(map(pss_byte, pids)))
            self._cpu_s |= {pid: used for pid in pids if (used := cpu_s(pid))}

    @property
    def cpu_s(self) -> float:
        """Processor time of the tree, of processes that ended since as last seen."""
        return sum(self._cpu_s.values())

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()
