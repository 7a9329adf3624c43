"""Requests for Storage Commitment over one association, and the reports that come over it (PS3.4 J.3.2 and J.3.3)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from examsend.confirmation import reports
from examsend.db.engine import Connection, Database
from examsend.dimse.commitment import Commitment
from examsend.dimse.inbound import SUCCESS, Reply, Request
from examsend.dimse.transaction import Reference
from examsend.queue import commitment
from examsend.queue.confirmation import Stored
from examsend.transfer import Peer

REPORT_SECONDS = 1.0
"""How long the report of a quick archive is waited for on the same association. Others report on one that they open."""

_OF_ARCHIVE = frozenset({0x0112, 0x0118, 0x0119, 0x0122, 0x0124, 0x0211, 0x0123})
"""Statuses of an N-ACTION (PS3.7 10.1.4.1.10) that the archive would give to each request: they do not concern one batch."""

_NAMES = {
    0x0110: "processing failure",
    0x0112: "no such SOP instance",
    0x0118: "no such SOP class",
    0x0122: "SOP class not supported",
    0x0123: "no such action",
    0x0124: "not authorised",
    0x0131: "duplicate transaction UID",
    0x0211: "unrecognised operation",
    0x0213: "resource limitation",
}


class Committing:
    """One association with an archive."""

    def __init__(self, database: Database, peer: Peer) -> None:
        self._database = database
        self._peer = peer
        self._association = Commitment(peer, self._take)
        self._statuses: dict[str, int] = {}
        """Of the N-ACTION responses that are not recorded yet, by Transaction UID."""
        self._awaited: set[str] = set()
        """Transactions of which no report came over this association."""
        self.refused: dict[int, str] = {}
        """Why the archive did not take a request, by the batch's id."""
        self.problem = ""
        """Why the archive takes no requests at all."""

    def open(self) -> None:
        """Open the association. Raises Ended."""
        self._association.open()

    @staticmethod
    def requests(batch_id: int, stored: Sequence[Stored], most: int) -> list[commitment.Request]:
        """Return the requests about a batch, each with at most ``most`` instances, and a new Transaction UID."""
        ids = [one.id for one in stored if one.sop_class_uid is not None]
        return [
            commitment.Request(f"2.25.{uuid.uuid4().int}", batch_id, tuple(ids[at : at + most]))
            for at in range(0, len(ids), most)
        ]

    def ask(self, request: commitment.Request, stored: Sequence[Stored]) -> None:
        """Send a request that is on record. Raises Ended, DatabaseUnavailable."""
        if self.problem:
            return
        wanted = set(request.instance_ids)
        references = [Reference(one.sop_class_uid or "", one.sop_instance_uid) for one in stored if one.id in wanted]
        self._awaited.add(request.transaction_uid)
        answer = self._association.ask(request.transaction_uid, references)
        self._statuses[request.transaction_uid] = answer.status
        if answer.status == SUCCESS:
            return
        self._awaited.discard(request.transaction_uid)
        name = _NAMES.get(answer.status, "unknown status")
        sentence = f"the archive answered N-ACTION with status {answer.status:04X} {name}"
        self.refused[request.batch_id] = sentence
        if answer.status in _OF_ARCHIVE:
            self.problem = sentence

    def take_statuses(self) -> dict[str, int]:
        """Return the statuses that were not taken before."""
        taken, self._statuses = self._statuses, {}
        return taken

    def wait(self) -> None:
        """Wait for reports over this association, as long as one comes every ``REPORT_SECONDS``. Raises Ended, DatabaseUnavailable."""
        self._association.wait(REPORT_SECONDS, lambda: not self._awaited)

    def close(self) -> None:
        """End the association. Raises nothing."""
        self._association.close()

    def _take(self, request: Request) -> Reply:
        seen: list[str] = []

        def take(tx: Connection, uid: str, *said: object) -> commitment.Taken:
            seen[:] = [uid]
            return commitment.take_report(tx, uid, *said)  # type: ignore[arg-type]

        reply = reports.answer(
            lambda work: self._database.run(work, idempotent=True), take, request, self._peer.called_aet
        )
        if reply.status == SUCCESS:
            self._awaited.difference_update(seen)
        return reply
