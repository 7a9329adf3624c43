"""The next items of an association: their files are read, digests computed and data sets converted before it is their turn.

The order of the items is kept. Nothing here waits for a conversion but ``Upcoming.wait``.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from examsend.dicom.uids import NATIVE, UNCOMPRESSED
from examsend.dimse import contexts
from examsend.dimse.contexts import Carrier
from examsend.dimse.payload import Payload, Unusable
from examsend.states import Transcode
from examsend.transfer import Item, Problem

if TYPE_CHECKING:
    from examsend.dimse.conversion import Converted, Job, Workers

_BUFFER = 1 << 20
"""Bytes of a file that are held in memory at once. Most instances are shorter. Measured: with longer ones the caches of the machine
hold less of what is read, digested and sent."""

_AHEAD = 3
"""Files that are read, and their digests computed, before it is their turn."""

_DIGEST_IN_THREAD = 1 << 16
"""From this many bytes on the digest is computed in the second thread; for fewer the hand-over takes longer. So it does where
several associations are open in this process: while one computes, another sends."""

_PLANNED = 64
"""Items that are looked at for what needs to be converted, before it is their turn."""

_IN_PROCESS = 16 << 20
"""Bytes of a native data set that is re-encoded without a worker, since the hand-over takes longer."""


class HasDescriptor(Protocol):
    """A connection that can be waited for."""

    def fileno(self) -> int:
        """Return its descriptor."""


@dataclass(slots=True)
class Ready:
    """An item that can be sent: its data set is open and its first bytes are read."""

    item: Item
    context_id: int
    payload: Payload | Converted
    buffer: memoryview
    count: int
    """Bytes of the data set in ``buffer``."""
    digest: Future[None] | None
    """Done when those bytes are in the digest; None where they already are."""


@dataclass(slots=True)
class _Planned:
    """An item whose context is chosen. ``failure``: why it cannot be converted for the first one."""

    item: Item
    carriers: tuple[Carrier, ...]
    job: Job | None = None
    failure: Unusable | None = None


def _needs_worker(item: Item, target: str) -> bool:
    """Return whether an item that is sent in a transfer syntax is to be converted by a worker."""
    if target == item.transfer_syntax_uid:
        return False
    re_encoded = item.transfer_syntax_uid in NATIVE and target in UNCOMPRESSED
    return not re_encoded or item.file_size > _IN_PROCESS


class Upcoming:
    """The items of an association that are not yet sent, in order."""

    _open: ClassVar[int] = 0
    """In this process."""
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        items: Sequence[Item],
        accepted: Mapping[tuple[str, str], int],
        transcode: Transcode,
        digests: ThreadPoolExecutor,
        not_offered: Callable[[Item, Unusable | None], None],
    ) -> None:
        """``accepted``: {(SOP class, transfer syntax): context id}. ``not_offered`` is called in order with each item that cannot
        be sent, and why; None: no context was accepted for it."""
        self._waiting = iter(items)
        self._accepted = accepted
        self._transcode = transcode
        self._digests = digests
        self._not_offered = not_offered
        self._carriers: dict[tuple[str, str], tuple[Carrier, ...]] = {}
        """Those of ``contexts.choose`` for a SOP class and a file's transfer syntax."""
        self._planned: deque[_Planned] = deque()
        self._ready: deque[Ready] = deque()
        self._buffers: list[memoryview] = []
        self._workers: Workers | None = None
        self._jobs: deque[Job] = deque()
        """Of the planned items, in order."""
        self._woken, self._wake = -1, -1
        self._poll = select.poll()

    def __enter__(self) -> Self:
        with Upcoming._lock:
            Upcoming._open += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with Upcoming._lock:
            Upcoming._open -= 1
        if self._workers is not None:
            self._workers.close()
            os.close(self._woken)
            os.close(self._wake)
        for job in self._jobs:
            job.close()
        for ready in self._ready:
            if ready.digest is not None:
                ready.digest.cancel()
                wait([ready.digest])
            ready.payload.close()
        # The association may be kept alive by a traceback, and the buffers are large.
        self._buffers.clear()
        self._ready.clear()

    @property
    def is_converting(self) -> bool:
        """Whether the next item waits for its conversion."""
        return bool(self._planned)

    def next(self) -> Ready | None:
        """Return the next item that can be sent; None where there is none, or it is still being converted."""
        if not self._ready:
            self.read_ahead()
        return self._ready.popleft() if self._ready else None

    def read_ahead(self, buffer: memoryview | None = None) -> None:
        """Read the next files. ``buffer`` is that of an item that was sent, to be used again."""
        if buffer is not None:
            self._buffers.append(buffer)
        while len(self._ready) < _AHEAD:
            self._plan()
            if not self._planned:
                return
            planned = self._planned[0]
            if planned.job is not None and not planned.job.future.done():
                return
            self._planned.popleft()
            try:
                self._ready.append(self._prepare(planned))
            except Unusable as unusable:
                self._not_offered(planned.item, unusable)

    def wait(self, connection: HasDescriptor, seconds: float) -> None:
        """Wait until a conversion ends or something arrives over the connection, at most so long."""
        self._poll.register(connection.fileno(), select.POLLIN)
        if self._poll.poll(seconds * 1000):
            with contextlib.suppress(BlockingIOError):
                while os.read(self._woken, 512):
                    pass

    # --- conversions ---

    def _plan(self) -> None:
        """Choose the context of the next items and begin conversions. Without conversions one item is enough."""
        while not self._planned or (self._jobs and len(self._planned) < _PLANNED and self._may_begin()):
            item = next(self._waiting, None)
            if item is None:
                return
            kind = item.sop_class_uid, item.transfer_syntax_uid
            carriers = self._carriers.get(kind)
            if carriers is None:
                carriers = self._carriers[kind] = contexts.choose(item, self._accepted, self._transcode)
            if not carriers:
                # Here the order does not matter: nothing is sent.
                self._not_offered(item, None)
                continue
            planned = _Planned(item, carriers)
            self._planned.append(planned)
            if _needs_worker(item, carriers[0].transfer_syntax_uid):
                self._begin(planned)

    def _may_begin(self) -> bool:
        """Whether another conversion may be begun: there are workers to take it, and room for its result."""
        assert self._workers is not None
        if len(self._jobs) > self._workers.count:
            return False
        return sum(job.bytes_waiting() for job in self._jobs) < self._workers.most_waiting

    def _begin(self, planned: _Planned) -> None:
        from examsend.dimse import conversion

        if self._workers is None:
            self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._poll.register(self._woken, select.POLLIN)
            self._workers = conversion.Workers()
        try:
            job = conversion.Job(planned.item, planned.carriers[0].transfer_syntax_uid)
        except Unusable as unusable:
            planned.failure = unusable
            return
        planned.job = job
        self._jobs.append(job)
        self._workers.begin(job, self._finished)

    def _finished(self) -> None:
        """Called on another thread when a conversion has ended."""
        # Where the pipe is full, whoever waits is woken anyway.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"\0")

    # --- files ---

    def _prepare(self, planned: _Planned) -> Ready:
        """Open a planned item and read its first bytes. Raises Unusable."""
        carrier, *others = planned.carriers
        try:
            payload = self._payload(planned, carrier)
        except Unusable as unusable:
            if unusable.problem is not Problem.UNCONVERTIBLE or not others:
                raise
            carrier = others[0]
            payload = Payload(planned.item, carrier.transfer_syntax_uid)
        buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(_BUFFER))
        try:
            count = payload.fill(buffer)
        except BaseException:
            payload.close()
            raise
        digest = None
        if count >= _DIGEST_IN_THREAD and Upcoming._open == 1:
            digest = self._digests.submit(payload.digest, buffer[:count])
        else:
            payload.digest(buffer[:count])
        return Ready(planned.item, carrier.context_id, payload, buffer, count, digest)

    def _payload(self, planned: _Planned, carrier: Carrier) -> Payload | Converted:
        if planned.failure is not None:
            raise planned.failure
        job = planned.job
        if job is None:
            return Payload(planned.item, carrier.transfer_syntax_uid)
        self._jobs.remove(job)
        try:
            return job.result()
        finally:
            job.close()
