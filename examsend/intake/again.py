"""Reads files again that were changed or gone when they were to be sent, before their batches are sent again."""

from __future__ import annotations

from collections.abc import Iterable

from examsend.db.engine import Connection
from examsend.dicom import identity
from examsend.errors import FileProblem
from examsend.intake.directory import Mounts
from examsend.queue import registration
from examsend.queue.files import is_gone
from examsend.queue.instances import Lost
from examsend.queue.versions import Arrival


def read(lost: Iterable[Lost]) -> list[tuple[int, Arrival]]:
    """Return (destination id, file) for those of the files that hold a version of their instance."""
    mounts = Mounts()
    found: list[tuple[int, Arrival]] = []
    for instance in lost:
        try:
            file = identity.inspect(instance.path)
        except (OSError, FileProblem):
            continue
        if (file.study_instance_uid, file.sop_instance_uid) == (instance.study_instance_uid, instance.sop_instance_uid):
            found.append((instance.destination_id, Arrival(instance.path, file, mounts.above(instance.path))))
    return found


def register(tx: Connection, found: Iterable[tuple[int, Arrival]]) -> None:
    """Register the files that ``read`` returned. No batch changes its state."""
    for destination_id, arrival in found:
        registration.register(tx, [arrival], [destination_id], gone=is_gone, requested=True)
