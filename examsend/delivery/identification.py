"""Instances taken over from an older database: what their rows lack is read from their files before they are sent."""

from __future__ import annotations

from collections.abc import Sequence

from examsend.db.engine import Connection
from examsend.delivery.lease import Lease
from examsend.dicom import identity
from examsend.errors import FileProblem
from examsend.queue import instances, registration
from examsend.queue.claim import Claim
from examsend.queue.instances import Record, Unread
from examsend.queue.registration import Arrival
from examsend.states import Outcome

_GROUP = 100
"""Files read between two writes; each write renews the lease."""


def identify(lease: Lease, left: Sequence[Unread]) -> None:
    """Read the files of a claimed batch that were never read, and complete their rows. Record those that are missing or changed.

    Raises LostClaim, DatabaseUnavailable.
    """
    for at in range(0, len(left), _GROUP):
        read = [(unread, _read(lease.claim, unread)) for unread in left[at : at + _GROUP]]

        def write(tx: Connection, read: list[tuple[Unread, Arrival | Record]] = read) -> None:
            instances.record(tx, lease.claim, [found for _, found in read if isinstance(found, Record)])
            for unread, found in read:
                if isinstance(found, Arrival):
                    registration.identify(tx, unread.id, found)

        lease.write(write)


def _read(claim: Claim, unread: Unread) -> Arrival | Record:
    def failed(outcome: Outcome, sentence: str) -> Record:
        return Record(unread.id, outcome, comment=sentence, tries=unread.tries)

    try:
        found = identity.inspect(unread.path)
    except FileNotFoundError:
        return failed(Outcome.MISSING, "the file is gone")
    except OSError as error:
        return failed(Outcome.RETRY, f"the file cannot be read: {error.strerror or error}")
    except FileProblem as problem:
        return failed(Outcome.CHANGED, str(problem))
    if (found.study_instance_uid, found.sop_instance_uid) != (claim.study_instance_uid, unread.sop_instance_uid):
        return failed(Outcome.CHANGED, "the file holds another instance than the one that was registered")
    return Arrival(unread.path, found)
