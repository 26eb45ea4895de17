"""Local training in several processes; what comes back, and in which order, is what one process would give.

Processes are forked from one that has loaded what makes the engine, torch with it, and nothing else; each builds its
engine once, at its first device. Jobs and results cross as bytes, in memory.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine, Trained
from airtune.learning.pupil import Pupil
from airtune.types import AirtuneError

_AHEAD = 2
"""Devices in flight per process: one that trains and one that waits."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One device's local training in a round."""

    device: int
    module: int
    """1…M."""
    pupil: Pupil


class Workers:
    """Processes that train devices side by side; they start at the first job and end with this object.

    Args:
        count: number of processes W.
        make: builds the engine in a process from the samples; as it is sent there, a function of a module, or a
            `partial` of one.
        tokens: the training samples of the whole fleet, sent to each process once.
    """

    def __init__(self, count: int, make: Callable[[TokenSet], Engine], tokens: TokenSet) -> None:
        self._count = count
        self._start = (make, tokens, torch.get_num_threads())
        self._pool: ProcessPoolExecutor | None = None

    def train(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Trained]]:
        """Each job with its result, in the order of the jobs; at most 2 W are ahead of what was taken.

        Raises:
            AirtuneError: a process died; or what the training itself raised.
        """
        waiting: deque[tuple[Job, Future[bytes]]] = deque()
        try:
            for job in jobs:
                waiting.append((job, self._submit(pickle.dumps(job.pupil))))
                if len(waiting) == _AHEAD * self._count:
                    yield _taken(waiting)
            while waiting:
                yield _taken(waiting)
        except BrokenProcessPool:
            self.close()
            raise AirtuneError(
                "a worker process died (killed, or out of memory); resuming the run goes on after its last finished "
                "round, with fewer workers if memory was short"
            ) from None
        finally:
            for _, future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes as soon as each has finished its device; another job starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _submit(self, blob: bytes) -> Future[bytes]:
        with _uninterrupted():
            if self._pool is None:
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload([getattr(self._start[0], "func", self._start[0]).__module__])
                self._pool = ProcessPoolExecutor(self._count, context, _begin, self._start)
            return self._pool.submit(_train, blob)


def _taken(waiting: deque[tuple[Job, Future[bytes]]]) -> tuple[Job, Trained]:
    job, future = waiting.popleft()
    return job, pickle.loads(future.result())


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Hold Ctrl-C back, also from processes started meanwhile: it is the main process that ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Bench:
    """What a worker process holds."""

    make: Callable[[TokenSet], Engine]
    tokens: TokenSet
    engine: Engine | None = None


def _begin(make: Callable[[TokenSet], Engine], tokens: TokenSet, threads: int) -> None:
    """Prepare this process, and let it end with the main process, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _Bench.make, _Bench.tokens = staticmethod(make), tokens
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(blob: bytes) -> bytes:
    """Train one device in this process."""
    if _Bench.engine is None:
        _Bench.engine = _Bench.make(_Bench.tokens)
    pupil: Pupil = pickle.loads(blob)
    return pickle.dumps(pupil.train(_Bench.engine, _Bench.tokens))
