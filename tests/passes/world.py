"""Studies that arrive, are announced, become complete and are sent, without files and receivers. Time passes when a test says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from blake3 import blake3
from pydicom.dataset import Dataset
from pynetdicom.dsutils import encode

from examsend.commands import finalize
from examsend.config.settings import Settings
from examsend.db.engine import Connection, Database
from examsend.dicom.identity import DicomFile
from examsend.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN
from examsend.dimse.inbound import Request
from examsend.queue import batches, registration, views
from examsend.queue.announcements import Series
from examsend.queue.versions import Arrival
from examsend.services.mpps import PerformedSteps
from examsend.services.service import N_CREATE_RQ, N_SET_RQ
from tests.helpers import add, execute, one, rows, states
from tests.services.process import MPPS
from tests.services.test_step import item, references

_CLOCKS = {
    "exam_batches": ("created_at", "last_instance_at", "check_at", "ingesting_until", "ready_at", "finished_at"),
    "study_expectations": ("created_at", "updated_at", "asked_at"),
    "study_series": ("last_instance_at",),
    "exam_batch_instances": ("created_at",),
}


def file(uid: str, study: str = "1.2.3", series: str = "1.2.3.1", content: str = "", **values: object) -> Arrival:
    """Return a file that arrives: an instance of a study and a series."""
    found = {
        "study_instance_uid": study,
        "series_instance_uid": series,
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "sop_instance_uid": uid,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "series_number": 1,
        "instance_number": 1,
        "dataset_offset": 300,
        "size": 1000,
        "mtime_ns": 1,
        "inode": 1,
        "ctime_ns": 1,
        "content_digest": blake3(f"{uid} {content}".encode()).digest(),
        "study_related_instances": None,
        "modality": "CT",
        "series_description": None,
        **values,
    }
    return Arrival(f"/drop/{study}/{uid}{content}", DicomFile(**found))  # type: ignore[arg-type]


def _performed(series: Iterable[Series]) -> list[Dataset]:
    return [
        item(SeriesInstanceUID=one.series_instance_uid, ReferencedImageSequence=references(*sorted(one.instances)))
        for one in series
    ]


class World:
    """One database with destinations ``pacs`` and, if asked for, others."""

    def __init__(self, settings: Settings, database: Database, **destination: object) -> None:
        self.settings = settings
        self.database = database
        self.sent: Counter[tuple[int, str]] = Counter()
        """How often each (destination id, SOP Instance UID) was sent."""
        self.add("pacs", **destination)

    def add(self, name: str, **values: object) -> int:
        """Add a destination with ordinary waits; return its id."""
        add(
            self.settings,
            "PACS@127.0.0.1:1",
            name=name,
            **{"quiet_seconds": 60.0, "longest_wait_seconds": 5400.0, **values},
        )
        return int(one(self.database, "SELECT id FROM storage_backend_configs WHERE name = :name", name=name))

    def arrive(self, *files: Arrival, to: Sequence[int] = (1,)) -> None:
        """Register files as one ingest does."""
        self.database.run(lambda tx: registration.register(tx, files, to, gone=lambda _path: False))

    def create(self, step: str, studies: Iterable[str] = ("1.2.3",), series: Iterable[Series] = ()) -> bool:
        """N-CREATE a performed procedure step; return whether it is a new one."""
        scheduled = [item(StudyInstanceUID=study) for study in studies]
        answer = self._say(
            N_CREATE_RQ,
            step,
            PerformedProcedureStepStatus="IN PROGRESS",
            ScheduledStepAttributesSequence=scheduled,
            PerformedSeriesSequence=_performed(series),
        )
        assert answer in {0x0000, 0x0111}
        return answer == 0

    def set(self, step: str, state: str = "COMPLETED", *series: Series) -> None:
        """N-SET a performed procedure step, with the series and instances that it has by now."""
        answer = self._say(
            N_SET_RQ, step, PerformedProcedureStepStatus=state, PerformedSeriesSequence=_performed(series)
        )
        assert answer in {0x0000, 0x0110}

    def _say(self, command: int, step: str, **attributes: object) -> int:
        """Let a new process of ``listen`` handle one message, as if the one before had died after its answer."""
        data = encode(item(**attributes), True, True)
        request = Request(1, MPPS, IMPLICIT_VR_LITTLE_ENDIAN, command, 1, MPPS, step, data)
        return PerformedSteps(self.database).handle(request, "CT1").status

    def step(self, uid: str, *instances: str, series: str = "1.2.3.1", studies: Iterable[str] = ("1.2.3",)) -> None:
        """A whole performed procedure step with one series."""
        self.create(uid, studies)
        self.set(uid, "COMPLETED", Series(series, frozenset(instances)))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        for table, columns in _CLOCKS.items():
            moved = ", ".join(f"{c} = {c} - make_interval(secs => :seconds)" for c in columns)
            execute(self.database, f"UPDATE {table} SET {moved}", seconds=seconds)

    def finalize(self, **values: object) -> list[str]:
        """Run finalize; return the reasons of the batches that are READY now."""
        return [r.reason for r in finalize.run(self.settings, **values).ready]  # type: ignore[arg-type]

    def send(self) -> list[int]:
        """Claim and store every READY batch, as a perfect sender; return their ids."""
        done: list[int] = []
        destinations = [row[0] for row in rows(self.database, "SELECT id FROM storage_backend_configs ORDER BY id")]
        for destination in destinations:
            while (claimed := self.database.run(lambda tx, d=destination: self._send(tx, d))) is not None:  # type: ignore[misc]
                done.append(claimed)
        return done

    def _send(self, tx: Connection, destination: int) -> int | None:
        from sqlalchemy import text

        claim = batches.claim(tx, destination, by="test", lease=300)
        if claim is None:
            return None
        found = tx.execute(
            text(
                "UPDATE exam_batch_instances SET outcome = 'STORED', dimse_status = 0, stored_at = clock_timestamp()"
                " WHERE batch_id = :batch AND outcome = 'WAITING' RETURNING sop_instance_uid"
            ),
            {"batch": claim.batch_id},
        )
        self.sent.update((destination, row[0]) for row in found)
        assert batches.sent(tx, claim)
        return claim.batch_id

    def states(self) -> list[str]:
        """Return the states of the batches, ordered by id."""
        return states(self.database)

    def why(self, batch: int = 1) -> str:
        """Return why a batch is in its state, as ``status`` says it."""
        [found] = self.database.run(lambda tx: views.batches(tx, ids=[batch], limit=1))
        return found.waiting_for or ""
