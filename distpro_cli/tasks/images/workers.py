"""Processes that make batches for all parts of a run: started once, whichever part asks, and ended with the last.

A stream is an order of jobs for one maker of batches. All streams share the processes, each job goes to the one with
the least to do, and every stream gets its results in its own order.
"""

from __future__ import annotations

import atexit
import functools
import math
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from distpro_cli.errors import DistproError, first_line
from distpro_cli.tasks.images.handover import HAS_SLOTS, Seen, Slots

AHEAD = 2  # jobs per process that a stream has under way
_LOOK_SECONDS = 5.0  # between two looks of an idle process whether its parent still lives

Maker = Callable[[Any], Any]  # makes a batch of a job


@dataclass(eq=False)
class _Process:
    process: multiprocessing.process.BaseProcess
    connection: Connection
    jobs: int = 0
    seen: Seen = field(default_factory=Seen)


@dataclass(eq=False)
class _Stream:
    number: int
    maker: int
    jobs: Iterator[Any]
    asked: int = 0
    given: int = 0
    made: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Raised:
    """An error in a process; its traceback there is in the text, since a traceback does not travel."""

    error: Exception
    text: str


class Workers:
    """A number of processes, none of which runs before the first stream begins or after the last one ends.

    They leave this process's random states alone, and a death is found at once, when a batch is waited for.

    Args:
        count: Processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._makers: list[Maker] = []
        self._processes: list[_Process] = []
        self._streams: dict[int, _Stream] = {}
        self._num_streams = 0

    def stream(self, maker: Maker, jobs: Iterable[Any], others: Sequence[Maker] = ()) -> Generator[Any, None, None]:
        """Yields what the maker makes of each job, in their order.

        Args:
            maker: Called in the processes.
            jobs: What it is called with.
            others: The makers of further streams, which forked processes then know from the start; one that they do not
                know is sent to them.

        Raises:
            DistproError: a process died, or could not be had; or what the maker raised.
        """
        own: _Stream | None = None
        try:
            own = self._begin(maker, jobs, others)
            while own.given < own.asked:
                while own.given not in own.made:
                    self._receive()
                made = own.made.pop(own.given)
                own.given += 1
                if isinstance(made, _Raised):
                    raise made.error from RuntimeError(f"in a process that loads data:\n{made.text}")
                self._ask(own)
                yield made
                del made
        finally:
            if own is not None:
                self._end(own)

    def close(self) -> None:
        """Ends the processes at once; streams that go on find no one to ask."""
        ended, self._processes, self._makers = self._processes, [], []
        for one in ended:
            one.process.kill()  # they hold nothing that is to be saved
        for one in ended:
            one.process.join()
            one.process.close()
            one.connection.close()

    def _begin(self, maker: Maker, jobs: Iterable[Any], others: Sequence[Maker]) -> _Stream:
        with self._explaining():
            if not self._processes:
                self._start([maker, *others])
            own = _Stream(self._num_streams, self._number(maker), iter(jobs))
        self._num_streams += 1
        self._streams[own.number] = own
        try:
            self._ask(own)
        except BaseException:
            self._end(own)
            raise
        return own

    def _end(self, own: _Stream) -> None:
        self._streams.pop(own.number, None)
        if not self._streams:
            self.close()

    def _start(self, makers: Sequence[Maker]) -> None:
        self._makers = [*makers]
        _closed_at_exit().add(self)
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
            for _ in range(self.count):
                here, there = context.Pipe()
                # A fork has this process's ends, and would never see them closed.
                inherited = [here, *(one.connection for one in self._processes)] if sys.platform == "linux" else []
                arguments = (there, inherited, self._makers, os.getpid())
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                there.close()
                self._processes.append(_Process(process, here))

    def _number(self, maker: Maker) -> int:
        """Returns the number under which the processes know a maker, which is sent to them if they do not."""
        for number, known in enumerate(self._makers):
            if known is maker:
                return number
        self._makers.append(maker)
        for one in self._processes:
            one.connection.send((None, 0, 0, maker, []))
        return len(self._makers) - 1

    def _ask(self, own: _Stream) -> None:
        while own.asked - own.given < AHEAD * self.count:
            try:
                job = next(own.jobs)
            except StopIteration:
                return
            with self._explaining():
                least = min(self._processes, key=lambda one: one.jobs)
                least.connection.send((own.number, own.asked, own.maker, job, least.seen.take_done()))
            least.jobs += 1
            own.asked += 1

    def _receive(self) -> None:
        """Takes in what has been made; waits until there is something."""
        with self._explaining():
            by_connection = {one.connection: one for one in self._processes}
            ready = wait([*by_connection, *(one.process.sentinel for one in self._processes)])
            found = [by_connection[one] for one in ready if isinstance(one, Connection)]
            if not found:
                raise EOFError("it ended by itself")
            for one in found:
                stream, number, made = one.seen.receive(one.connection) if HAS_SLOTS else one.connection.recv()
                one.jobs -= 1
                if stream in self._streams:
                    self._streams[stream].made[number] = made

    def _explaining(self) -> _Explaining:
        return _Explaining(self)


class _Explaining:
    """Ends the processes and says what may be wrong when one cannot be started or spoken to."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if not isinstance(error, (OSError, EOFError, RuntimeError, IndexError, ValueError)):
            return
        self._workers.close()
        count = self._workers.count
        raise DistproError(
            f"data.workers: a process that loads data died, or could not be had ({first_line(error)}); memory may be "
            f"short, /dev/shm too: there were {count}, set fewer, or data.workers=0"
        ) from error


@functools.cache
def _closed_at_exit() -> weakref.WeakSet[Workers]:
    """Returns a set of workers that are ended when the interpreter exits.

    Multiprocessing would wait for them for ever, since they ignore the one SIGTERM that it sends.
    """
    running: weakref.WeakSet[Workers] = weakref.WeakSet()

    def close_all() -> None:
        for workers in list(running):
            workers.close()

    atexit.register(close_all)  # what is registered last runs first
    return running


def _work(connection: Connection, inherited: list[Connection], makers: list[Maker], parent: int) -> None:
    """Makes batches until the parent is gone or closes the connection."""
    _start_worker(parent)
    for end in inherited:
        end.close()
    torch.set_num_threads(1)
    slots = _own_slots() if HAS_SLOTS else None
    makers = [*makers]
    while True:
        try:
            while not connection.poll(_LOOK_SECONDS):
                if os.getppid() != parent:
                    return
            stream, number, maker, job, done = connection.recv()
            if stream is None:
                makers.append(job)
                continue
            if slots is None:
                connection.send((stream, number, _made(makers[maker], job)))
                continue
            slots.give_back(done)
            slots.send(connection, (stream, number, _made(makers[maker], job)))
        except (EOFError, ConnectionError):
            return


def _made(maker: Maker, job: Any) -> Any:
    try:
        return maker(job)
    except Exception as error:
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error of a library's that cannot travel
            return _Raised(RuntimeError(f"{type(error).__name__}: {first_line(error)}"), text)
        return _Raised(error, text)


_slots: list[Slots] = []  # of this process, if it is a worker


def _own_slots() -> Slots:
    _slots[:] = [Slots()]
    return _slots[0]


def empty_batch(*shape: int) -> Tensor:
    """Returns a uint8 tensor that is to be filled; in a worker, memory that is handed over without a copy."""
    return _slots[0].empty(math.prod(shape)).view(shape) if _slots else torch.empty(shape, dtype=torch.uint8)


def _start_worker(parent: int) -> None:
    """Ends a process whose parent was killed before it could look who that is."""
    if os.getppid() != parent:
        os._exit(1)
    _set_signals()


def _set_signals() -> None:
    """Leaves stopping to the main process: a signal to the whole group must not take its data away.

    SIGINT is ignored. So is the first SIGTERM; a second one ends the worker. A worker whose parent is gone
    ends by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
