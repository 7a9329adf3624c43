"""Convert data sets in worker processes, ahead of their turn to be sent.

A decoder is a large program in C that reads untrusted bytes: it may crash, never end, or need much memory. In a process of its
own it costs at most one instance. Results are temporary files without a name, so that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from examsend.dicom import plugins
from examsend.dimse.payload import OpenFile, Unusable
from examsend.errors import ConfigError
from examsend.transfer import Item, Peer, Problem

_WORKER = "examsend.dimse.worker"

_MOST_WORKERS = 4

LONGEST_MESSAGE = 1 << 16
"""Bytes of a job or a result. A path has at most 4096 bytes."""

READY = b"ready"
"""What a worker sends first."""

_START_SECONDS = 60.0

_END_SECONDS = 3.0
"""How long a process that was killed is waited for."""

_SHORTEST_LIMIT = 60.0
"""Seconds that a conversion may take at least. Longer files may take longer."""

_SLOWEST = 500_000
"""Bytes that a conversion reads and writes in a second, at least."""

_LOOK_SECONDS = 1.0
"""How often to look whether a conversion has taken too long."""

_MOST_MEMORY = 4 << 30
_LEAST_MEMORY = 1 << 30
"""Bytes of address space that a worker may use. A frame is held in memory several times, and plug-ins need some 500 MB."""

MOST_WAITING = 1 << 30
"""Bytes of results that wait to be sent, in all associations, from which on no further conversion is begun."""

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSYS})


def check_plugins(peer: Peer) -> None:
    """Given a peer whose setting asks for conversions, raise ConfigError where what decodes pixel data is not installed."""
    missing = plugins.absent(plugins.MODULES)
    if missing:
        raise ConfigError(
            f"transcode = {peer.transcode} needs what decodes pixel data, and {', '.join(missing)} cannot be imported:"
            " pip install 'examsend[transcode]'"
        )


def unconvertible(item: Item, target: str, why: str) -> str:
    """Return the sentence about an instance that cannot be converted."""
    return f"the data set cannot be converted from transfer syntax {item.transfer_syntax_uid} to {target}: {why}"


def unwritable(error: OSError, directory: str) -> str:
    """Return the sentence about a converted data set that cannot be written to a directory."""
    return f"the converted data set cannot be written to {directory}: {error.strerror or error}"


class Converted(OpenFile):
    """The result of a conversion, in a file without a name, read in order.

    It has the methods of ``payload.Payload``, and its digest is checked already.
    """

    def __init__(self, fd: int, length: int) -> None:
        super().__init__(fd)
        self._pos = 0
        self.length = length

    def fill(self, buffer: memoryview) -> int:
        """Read into a buffer until it is full or the data ends; return the number of bytes read. Raises Unusable."""
        wanted = min(len(buffer), self.length - self._pos)
        done = 0
        while done < wanted:
            try:
                count = os.preadv(self._fd, [buffer[done:wanted]], self._pos)
            except OSError as error:
                why = error.strerror or str(error)
            else:
                why = "it has become shorter"
                if count:
                    self._pos += count
                    done += count
                    continue
            raise Unusable(Problem.UNREADABLE, f"the converted data set cannot be read: {why}")
        return done

    def digest(self, data: memoryview) -> None:
        """Nothing is left to do: the worker computed the digest of what it converted."""

    def verify(self) -> None:
        """Nothing is left to do: the worker checked the digest."""


class Job:
    """A conversion that is under way or done."""

    def __init__(self, item: Item, target: str) -> None:
        """Raises Unusable (UNREADABLE) where there is no room for the result."""
        self.item = item
        self.target = target
        self.directory = "the directory for temporary files"
        try:
            self.directory = tempfile.gettempdir()
            with tempfile.TemporaryFile(buffering=0, dir=self.directory) as file:
                self.fd = os.dup(file.fileno())
        except OSError as error:
            raise Unusable(Problem.UNREADABLE, unwritable(error, self.directory)) from None
        self.future: Future[int] = Future()
        self.over = threading.Event()
        """It has ended, and whoever waits for it is told."""
        self.withdrawn = False
        """Its association has ended."""

    def bytes_waiting(self) -> int:
        """Return the bytes that are written so far."""
        return os.fstat(self.fd).st_size if self.fd >= 0 else 0

    def result(self) -> Converted:
        """Given that it is done, return the result. Raises Unusable."""
        length = self.future.result()
        fd, self.fd = self.fd, -1
        return Converted(fd, length)

    def close(self) -> None:
        """Discard the result. The conversion must be over."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Workers:
    """The workers as one association uses them. The process has one set of them, however many associations convert."""

    def __init__(self) -> None:
        self._pool = _Pool.joined()
        self._jobs: set[Job] = set()

    @property
    def count(self) -> int:
        """How many conversions can be under way at once."""
        return self._pool.count

    @property
    def most_waiting(self) -> int:
        """Bytes of results that may wait to be sent in this association before no further conversion is begun."""
        return MOST_WAITING // max(1, self._pool.users)

    def begin(self, job: Job, done: Callable[[], None]) -> None:
        """Convert in the background; ``done`` is called at the end, on another thread."""

        def over(_: Future[int]) -> None:
            done()
            job.over.set()
            self._jobs.discard(job)

        self._jobs.add(job)
        job.future = self._pool.submit(job)
        job.future.add_done_callback(over)

    def close(self) -> None:
        """End the conversions of this association, whatever they do. No ``done`` is called from then on."""
        self._pool.leave(list(self._jobs))


class _Pool:
    """The workers of this process, each kept by a thread. They are started when first needed, and end with the last user."""

    _lock = threading.Lock()
    _current: _Pool | None = None

    def __init__(self) -> None:
        self.count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_WORKERS)
        self.users = 0
        self._memory = _memory(self.count)
        # A worker ends with the thread that started it, so that the threads are not those of an association.
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="conversion")
        self._own = threading.local()
        self._all: list[_Worker] = []
        self._running: dict[Job, _Worker] = {}

    @classmethod
    def joined(cls) -> _Pool:
        """Return the pool of this process, with one user more."""
        with cls._lock:
            if cls._current is None:
                cls._current = cls()
            cls._current.users += 1
            return cls._current

    def submit(self, job: Job) -> Future[int]:
        """Begin a job once there is a worker for it."""
        return self._threads.submit(self._convert, job)

    def leave(self, jobs: list[Job]) -> None:
        """End a user's jobs; with the last user, end the workers."""
        with self._lock:
            for job in jobs:
                job.withdrawn = True
                if job in self._running:
                    self._running[job].kill()
        for job in jobs:
            job.future.cancel()
        for job in jobs:
            job.over.wait()
        with self._lock:
            self.users -= 1
            if self.users:
                return
            _Pool._current = None
        self._threads.shutdown()
        for worker in self._all:
            worker.end()

    def _convert(self, job: Job) -> int:
        """Called on a thread that keeps a worker: return the length of the result. Raises Unusable."""
        worker = self._worker(job)
        try:
            return worker.convert(job)
        finally:
            with self._lock:
                del self._running[job]
                if worker.is_over:
                    # The next job of this thread gets a new one.
                    self._own.worker = None
                    self._all.remove(worker)
            if worker.is_over:
                worker.end()

    def _worker(self, job: Job) -> _Worker:
        """Return the worker of this thread, which from then on may be killed because of the job. Raises Unusable."""
        worker: _Worker | None = getattr(self._own, "worker", None)
        with self._lock:
            if job.withdrawn:
                raise Unusable(Problem.UNREADABLE, "the association has ended")
            if worker is None:
                try:
                    worker = self._own.worker = _Worker(self._memory)
                except OSError as error:
                    sentence = f"no process that converts it can be started: {error.strerror or error}"
                    raise Unusable(Problem.UNREADABLE, sentence) from None
                self._all.append(worker)
            self._running[job] = worker
            return worker


def _memory(workers: int) -> int:
    """Return the bytes of address space for each of so many workers: half of the memory for all, within bounds."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(_LEAST_MEMORY, min(_MOST_MEMORY, physical // 2 // workers))


class _Worker:
    """One process that runs ``worker.main``. Used by one thread; ``kill`` may be called by another."""

    def __init__(self, memory: int) -> None:
        """Raises OSError where it cannot be started."""
        self.is_over = False
        """It has ended, or is to be ended: it takes no further job."""
        self._has_started = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # They stay blocked in the new process: a signal to all processes of a terminal or a service is for this one, which
        # ends its workers.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", _WORKER, str(theirs.fileno()), str(os.getpid()), str(memory)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                )
        except BaseException:
            self._socket.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def convert(self, job: Job) -> int:
        """Convert, and return the length of the result in bytes. Raises Unusable."""
        item = {**asdict(job.item), "content_digest": job.item.content_digest.hex()}
        message = json.dumps({"item": item, "target": job.target, "directory": job.directory}).encode()
        self._await_start()
        began = time.monotonic()
        answer: bytes | None = None
        try:
            self._socket.settimeout(_LOOK_SECONDS)
            socket.send_fds(self._socket, [message], [job.fd])
            while answer is None:
                with contextlib.suppress(TimeoutError):
                    answer = self._socket.recv(LONGEST_MESSAGE)
                # A small file may have a large result.
                limit = max(_SHORTEST_LIMIT, (job.item.file_size + job.bytes_waiting()) / _SLOWEST)
                if answer is None and time.monotonic() - began > limit:
                    self.is_over = True
                    why = f"it took longer than {limit:.0f} s"
                    raise Unusable(Problem.UNCONVERTIBLE, unconvertible(job.item, job.target, why))
        except OSError:
            answer = b""
        if not answer:
            raise self._ended(job)
        result: dict[str, Any] = json.loads(answer)
        if "problem" in result:
            raise Unusable(Problem(result["problem"]), result["sentence"])
        length = int(result["length"])
        if length != job.bytes_waiting():
            raise Unusable(Problem.UNREADABLE, "the converted data set is not as long as the process that made it says")
        return length

    def _await_start(self) -> None:
        """Wait until the process takes jobs. Raises Unusable (UNREADABLE: another attempt may do better)."""
        if self._has_started:
            return
        try:
            self._socket.settimeout(_START_SECONDS)
            self._has_started = self._socket.recv(LONGEST_MESSAGE) == READY
        except OSError:
            self._has_started = False
        if not self._has_started:
            self.is_over = True
            raise Unusable(Problem.UNREADABLE, "the process that converts data sets did not start")

    def _ended(self, job: Job) -> Unusable:
        """Return what the end of the process means for its job."""
        self.is_over = True
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        name = signal.Signals(-code).name if code < 0 and -code in set(signal.Signals) else f"exit status {code}"
        if -code in _CRASHES:
            why = f"the decoder crashed ({name})"
            return Unusable(Problem.UNCONVERTIBLE, unconvertible(job.item, job.target, why))
        # Something else ended it, for instance the system because memory was short. Another attempt may do better.
        return Unusable(Problem.UNREADABLE, f"the process that converted the data set was ended ({name})")

    def kill(self) -> None:
        """End the process at once. A thread that waits for it is told so by its socket."""
        self.is_over = True
        self._process.kill()
        # A process that waits for a file system that does not answer ends only when that does.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End the process and wait for it, as long as it needs if nothing holds it."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._socket.close()


def _environment() -> dict[str, str]:
    """Return the environment of a worker: it imports from where this process does, and its libraries start no threads."""
    places = [str(Path(place).absolute()) for place in sys.path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
