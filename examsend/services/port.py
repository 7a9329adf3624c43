"""The process behind a port: accepts connections, and serves each association in a thread of its own.

What a peer can take is bounded: associations in all and of one peer, their times, their PDUs and data sets (``Limits``), and the
lines that it makes the log grow by.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from examsend.delivery.bug import place
from examsend.dicom.uids import is_uid
from examsend.dimse.acceptor import Acceptor, Limits
from examsend.dimse.ended import Ended
from examsend.dimse.inbound import SUCCESS, Reply, Request
from examsend.dimse.proposed import Granted, Proposed, Rejected
from examsend.dimse.refusal import NO_SUCH_CLASS, PROCESSING_FAILURE
from examsend.errors import TRACEBACKS, ConfigError
from examsend.services.admission import TOO_MANY, Address, Admission, address_of, household
from examsend.services.ration import Ration
from examsend.transfer import End

log = logging.getLogger("examsend.listen")

STOP_SECONDS = 7.0
"""How long associations may go on once the process is asked to end. The longest wait for the database fits in it."""

_LOOK_SECONDS = 0.25
"""How often the main thread looks whether it is to end."""

_REFUSING = 10
"""Connections beyond the limits that are rejected side by side; those beyond these are closed at once."""

_REFUSING_SECONDS = 3.0

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Stopped(Exception):
    """The process ends, and this association has had its time."""


@dataclass(slots=True)
class Counts:
    """What a port has done."""

    associations: int = 0
    """Associations that were accepted."""
    rejected: int = 0
    """Connections that were closed at once, and associations that were rejected."""
    messages: int = 0
    """Requests that were answered."""
    failures: int = 0
    """Those that were answered with a failure status."""


class Port:
    """Listening sockets, and the associations accepted from them."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        admission: Admission,
        *,
        most: int,
        limits: Limits,
        secure: Callable[[], ssl.SSLContext | None] = lambda: None,
    ) -> None:
        """``most``: associations at once. ``secure`` returns the TLS context for a connection, so that renewed certificates are
        used; it raises ConfigError."""
        self._listeners = listeners
        self._admission = admission
        self._most = most
        self._limits = limits
        self._secure = secure
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, str] = {}
        """The associations, and whose each is; those that are only rejected have none ("")."""
        self._busy_at = time.monotonic()
        self._over_at: float | None = None
        self._ration = Ration()
        self._failures = Ration(30)
        self.counts = Counts()

    def run(self, stop: Callable[[], bool], idle: float) -> None:
        """Accept connections until ``stop()``, or until ``idle`` seconds are over without an association (0: never).

        Connections that are not accepted stay in the sockets' backlogs: whoever listens on them next finds them. The sockets are
        neither shut down nor closed. Associations that are open at the end have STOP_SECONDS, and are then aborted.
        """
        ready = select.poll()
        by_descriptor = {listener.fileno(): listener for listener in self._listeners}
        for descriptor in by_descriptor:
            ready.register(descriptor, select.POLLIN)
        self._busy_at = time.monotonic()
        while not stop():
            if idle and self._is_idle(idle):
                log.info("no association for %g s: listen ends", idle)
                break
            for descriptor, _ in ready.poll(_LOOK_SECONDS * 1000):
                self._accept(by_descriptor[descriptor])
        self._end()

    def _is_idle(self, seconds: float) -> bool:
        with self._lock:
            return not self._threads and time.monotonic() - self._busy_at >= seconds

    def _end(self) -> None:
        with self._lock:
            threads = list(self._threads)
            self._over_at = time.monotonic() + STOP_SECONDS
        if threads:
            log.info("associations that end or are aborted within %g s: %d", STOP_SECONDS, len(threads))
        for thread in threads:
            # One more moment for the A-ABORT and for a message that waits for the database.
            thread.join(max(0.0, self._over_at + 2 - time.monotonic()))

    def _check(self) -> None:
        if self._over_at is not None and time.monotonic() >= self._over_at:
            raise _Stopped

    # --- connections ---

    def _accept(self, listener: socket.socket) -> None:
        try:
            made, peer = listener.accept()
        except (BlockingIOError, ConnectionError, InterruptedError):
            return  # it was gone before it was accepted
        except OSError as error:
            # Protocol errors of the connection are of no interest (accept(2)); where the system has no descriptors or no memory,
            # the connection waits in the backlog, and so does this thread.
            if error.errno in _EXHAUSTED and self._ration.allows("accept"):
                log.error("no connection can be accepted now: %s", error.strerror)  # noqa: TRY400 (no traceback)
            time.sleep(_LOOK_SECONDS)
            return
        try:
            address = address_of(peer[0])
            if not self._admission.lets_in(address):
                made.close()
                self._count(rejected=1)
                if self._ration.allows(f"peer {address}"):
                    log.warning("connection from %s closed: it is not in listen_allow_peers", address)
                return
            self._start(made, address)
        except BaseException:
            made.close()
            raise

    def _start(self, made: socket.socket, address: Address) -> None:
        """Serve a connection in a thread; only reject its association where there are too many."""
        whose = household(address)
        with self._lock:
            taken = Counter(self._threads.values())
            refusing = taken.pop("", 0)
            too_many = taken.total() >= self._most or taken[whose] >= self._most // 2
            is_flood = too_many and refusing >= _REFUSING
            if not is_flood:
                serve = self._reject if too_many else self._serve
                thread = threading.Thread(
                    target=serve, args=(made, address), name=f"association {address}", daemon=True
                )
                self._threads[thread] = "" if too_many else whose
        if too_many and self._ration.allows(f"many {whose}"):
            log.warning(
                "association from %s rejected: %d of at most %d are open, %d of them from there",
                address, taken.total(), self._most, taken[whose],
            )  # fmt: skip
        if is_flood:
            made.close()
            self._count(rejected=1)
            return
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            self._left(thread)
            made.close()
            self._count(rejected=1)
            if self._ration.allows("threads"):
                log.error("connection from %s closed: no thread can be started", address)  # noqa: TRY400 (no traceback)

    def _left(self, thread: threading.Thread) -> None:
        with self._lock:
            self._threads.pop(thread, None)
            self._busy_at = time.monotonic()

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)

    # --- one association ---

    def _reject(self, made: socket.socket, address: Address) -> None:
        limits = replace(self._limits, first_seconds=min(self._limits.first_seconds, _REFUSING_SECONDS))
        self._in_thread(made, address, limits, lambda _proposed: TOO_MANY)

    def _serve(self, made: socket.socket, address: Address) -> None:
        self._in_thread(made, address, self._limits, self._admission.judge)

    def _in_thread(
        self,
        made: socket.socket,
        address: Address,
        limits: Limits,
        judge: Callable[[Proposed], Granted | Rejected],
    ) -> None:
        acceptor: Acceptor | None = None
        abort = True
        try:
            acceptor = Acceptor(made, limits, self._check, self._secure())
            self._associate(acceptor, address, judge)
            abort = False
        except Ended as ended:
            abort = False
            if ended.end is End.REJECTED:
                self._count(rejected=1)
            elif self._failures.allows(f"ended {household(address)}"):
                log.info("association from %s ended: %s", address, ended.sentence)
        except ConfigError as error:
            if self._ration.allows("tls"):
                log.error("connection from %s closed: %s", address, error)  # noqa: TRY400 (a sentence)
        except _Stopped:
            log.info("association from %s aborted: listen ends", address)
        except Exception as error:
            if self._failures.allows(f"bug {household(address)}"):
                log.error("association from %s aborted: this is a bug in examsend: %s", address, place(error))  # noqa: TRY400
            log.log(TRACEBACKS, "where it was raised:", exc_info=True)
        finally:
            try:
                if acceptor is None:
                    made.close()
                else:
                    acceptor.close(abort)
            except Exception as error:  # noqa: BLE001
                log.debug("the connection from %s was not closed in order: %s", address, place(error))
            self._left(threading.current_thread())

    def _associate(self, acceptor: Acceptor, address: Address, judge: Callable[[Proposed], Granted | Rejected]) -> None:
        proposed = acceptor.open(judge)
        self._count(associations=1)
        log.debug("association of %s from %s with %s", proposed.calling_aet, address, proposed.called_aet)
        while (request := acceptor.request()) is not None:
            reply = self._answer(request, proposed, address)
            acceptor.reply(request, reply)
            self._count(messages=1, failures=int(reply.status != SUCCESS))

    def _answer(self, request: Request, proposed: Proposed, address: Address) -> Reply:
        service = self._admission.service(request.abstract_syntax)
        if service is None:  # its context was not granted
            return Reply(NO_SUCH_CLASS, error_comment="no service for this presentation context")
        try:
            reply = service.handle(request, proposed.calling_aet)
        except Exception as error:
            if self._failures.allows(f"bug {household(address)}"):
                log.error("%s: this is a bug in examsend: %s", service.name, place(error))  # noqa: TRY400
            log.log(TRACEBACKS, "where it was raised:", exc_info=True)
            reply = Reply(PROCESSING_FAILURE, error_comment="internal error")
        if reply.status != SUCCESS and self._failures.allows(f"failed {household(address)}"):
            log.warning(
                "%s: message of %s from %s about %s answered with %04X: %s",
                service.name, proposed.calling_aet, address, _named(request.sop_instance_uid),
                reply.status, reply.error_comment,
            )  # fmt: skip
        return reply


def _named(uid: str | None) -> str:
    """Return the SOP Instance UID of a request for the log. What is not a UID may be anything, patient data too."""
    if uid is None:
        return "no instance"
    return uid if is_uid(uid) else "something that is no UID"
