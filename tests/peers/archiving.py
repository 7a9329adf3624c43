"""An archive of pynetdicom: stores, commits itself, reports as it is told to, well or badly, and answers queries."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_role, evt
from pynetdicom.association import Association

COMMITMENT, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
AET = "ARCHIVE"


@dataclass
class Asked:
    """One N-ACTION as it was received."""

    transaction: str
    uids: tuple[str, ...]
    at: float
    """By the monotonic clock."""


@dataclass
class Archive:
    """What it has, what it was asked, and what it has said."""

    port: int = 0
    has: dict[str, Dataset] = field(default_factory=dict)
    """By SOP Instance UID."""
    asked: list[Asked] = field(default_factory=list)
    committed: dict[str, set[str]] = field(default_factory=dict)
    """{transaction: UIDs that it has said to have}; written before it is said."""
    finds: int = 0
    status: int = 0x0000
    """Of the answers to N-ACTION."""
    reason: int = 0x0112
    """Failure Reason of what it does not have."""
    look: Callable[[str], None] = lambda _transaction: None
    """Called with the Transaction UID of each N-ACTION before anything else is done."""
    leave_out: Callable[[str], bool] = lambda _uid: False
    """Which UIDs a report leaves out."""
    report: str = "same"
    """Where it reports: ``same`` association, ``new`` association, or ``never``."""
    choose: Callable[[], str] | None = None
    """Says that for each report."""
    times: int = 1
    """How often it says each report."""
    to: int = 0
    """The port of new associations."""
    calling_aet: str = AET
    """Of new associations."""
    image_level: bool = True
    """It lists instances; else it gives numbers only."""
    answers: list[int | None] = field(default_factory=list)
    """Statuses of N-EVENT-REPORT responses; None: there was none."""
    connections: list[socket.socket] = field(default_factory=list)
    saying: list[threading.Thread] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def address(self) -> str:
        """The address to pass to ``destination add``."""
        return f"{AET}@127.0.0.1:{self.port}"

    def lose(self, *uids: str) -> None:
        """Lose instances."""
        with self.lock:
            for uid in uids:
                del self.has[uid]

    def _report(self, asked: Asked, classes: dict[str, str]) -> tuple[Dataset, int]:
        said, failed = Dataset(), []
        said.TransactionUID = asked.transaction
        there = []
        with self.lock:
            for uid in asked.uids:
                if self.leave_out(uid):
                    continue
                item = Dataset()
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = classes[uid], uid
                if uid in self.has:
                    there.append(item)
                    self.committed.setdefault(asked.transaction, set()).add(uid)
                else:
                    item.FailureReason = self.reason
                    failed.append(item)
        if there:
            said.ReferencedSOPSequence = there
        if failed:
            said.FailedSOPSequence = failed
        return said, 2 if failed else 1

    def _say(self, association: Association, report: tuple[Dataset, int]) -> None:
        for _ in range(self.times):
            try:
                status, _ = association.send_n_event_report(report[0], report[1], UID(COMMITMENT), UID(INSTANCE))
            except (RuntimeError, ValueError):
                self.answers.append(None)
                return
            self.answers.append(status.Status if status else None)

    def say_anew(self, report: tuple[Dataset, int]) -> None:
        """Report over a new association; it is tried a few times."""
        ae = AE(self.calling_aet)
        ae.add_requested_context(COMMITMENT)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
        for _ in range(20):
            made = ae.associate(
                "127.0.0.1", self.to, ae_title="EXAMSEND", ext_neg=[build_role(COMMITMENT, scp_role=True)]
            )
            if made.dul.socket is not None and made.dul.socket.socket is not None:
                self.connections.append(made.dul.socket.socket)
            if made.is_established:
                self._say(made, report)
                made.release()
                if self.answers and self.answers[-1] is not None:
                    return
            time.sleep(0.2)

    # --- handlers ---

    def on_store(self, event: Any) -> int:
        found = event.dataset
        with self.lock:
            kept = Dataset()
            for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
                setattr(kept, name, getattr(found, name))
            self.has[str(found.SOPInstanceUID)] = kept
        return 0

    def on_action(self, event: Any) -> tuple[int, Dataset | None]:
        info = event.action_information
        items = info.ReferencedSOPSequence
        asked = Asked(str(info.TransactionUID), tuple(str(i.ReferencedSOPInstanceUID) for i in items), time.monotonic())
        classes = {str(i.ReferencedSOPInstanceUID): str(i.ReferencedSOPClassUID) for i in items}
        self.look(asked.transaction)
        with self.lock:
            self.asked.append(asked)
        where = self.report if self.choose is None else self.choose()
        if self.status == 0 and where != "never":
            report = self._report(asked, classes)
            if where == "same":
                # Before the response: later, another thread of pynetdicom would take the next request for the answer.
                self._say(event.assoc, report)
            else:
                saying = threading.Thread(target=self.say_anew, args=(report,), daemon=True)
                self.saying = [t for t in self.saying if t.is_alive()] + [saying]
                saying.start()
        return self.status, None

    def on_find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        with self.lock:
            self.finds += 1
            found = [d for d in self.has.values() if d.StudyInstanceUID == query.StudyInstanceUID]
        if not found:
            yield 0x0000, None
            return
        level = query.QueryRetrieveLevel
        if level == "STUDY":
            match = Dataset()
            match.StudyInstanceUID, match.NumberOfStudyRelatedInstances = query.StudyInstanceUID, len(found)
            yield 0xFF00, match
        elif level == "SERIES":
            for series in sorted({d.SeriesInstanceUID for d in found}):
                match = Dataset()
                match.StudyInstanceUID, match.SeriesInstanceUID = query.StudyInstanceUID, series
                match.NumberOfSeriesRelatedInstances = sum(d.SeriesInstanceUID == series for d in found)
                yield 0xFF00, match
        elif self.image_level:
            for one in found:
                if one.SeriesInstanceUID == query.SeriesInstanceUID:
                    match = Dataset()
                    match.StudyInstanceUID, match.SeriesInstanceUID = query.StudyInstanceUID, query.SeriesInstanceUID
                    match.SOPInstanceUID = one.SOPInstanceUID
                    yield 0xFF00, match
        else:
            yield 0xA900, None
            return
        yield 0x0000, None


@contextmanager
def archiving(**values: Any) -> Iterator[Archive]:
    """Run an archive on a free port."""
    archive = Archive(**values)
    ae = AE(AET)
    ae.maximum_pdu_size = 131072
    ae.maximum_associations = 50
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    ae.add_supported_context(COMMITMENT)
    ae.add_supported_context(FIND)
    ae.add_supported_context("1.2.840.10008.1.1")

    def opened(event: Any) -> None:
        made = event.assoc.dul.socket.socket
        archive.connections = [c for c in archive.connections if c.fileno() >= 0] + [made]
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, opened),
        (evt.EVT_C_STORE, archive.on_store),
        (evt.EVT_N_ACTION, archive.on_action),
        (evt.EVT_C_FIND, archive.on_find),
    ]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        server.shutdown()
        for thread in archive.saying:
            thread.join(10)
        # pynetdicom leaves the connections of peers that were killed to the garbage collector.
        for made in archive.connections:
            made.close()
