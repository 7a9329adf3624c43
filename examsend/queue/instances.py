"""The instances of a batch: reads the unsent ones, records their outcomes under a claim, counts them by outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.db.messages import later
from examsend.db.prepared import repeated
from examsend.outcomes import SUSPECT_AFTER
from examsend.queue.claim import Claim
from examsend.queue.files import from_text
from examsend.states import NOT_COUNTED, UNDELIVERABLE, UNSENT, BatchState, Outcome, sql_list
from examsend.transfer import Item

_TO_SEND = repeated(f"""
    SELECT i.id, i.processed_filepath, i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.file_size, i.file_mtime_ns,
           i.dataset_offset, i.content_digest, i.attempts, i.lost_in_flight, i.strikes, i.mount_point, i.other_content_possible,
           EXISTS (SELECT 1 FROM exam_batch_instance_aliases a WHERE a.instance_id = i.id) AS has_copies,
           EXISTS (SELECT 1 FROM exam_batch_instances o
                   WHERE o.destination_id = i.destination_id AND o.sop_instance_uid = i.sop_instance_uid
                     AND o.batch_id <> i.batch_id AND o.content_digest IS DISTINCT FROM i.content_digest) AS is_contested
    FROM exam_batch_instances i
    WHERE i.batch_id = :batch AND i.outcome IN ({sql_list(UNSENT)})
    ORDER BY i.strikes, i.lost_in_flight, i.attempts, i.series_number NULLS LAST, i.series_instance_uid,
             i.instance_number NULLS LAST, i.sop_instance_uid
""")


_ELSEWHERE = text(f"""
    SELECT a.instance_id, a.file_path, a.mount_point, a.file_size, a.file_mtime_ns,
           coalesce(a.dataset_offset, i.dataset_offset) AS dataset_offset,
           coalesce(a.transfer_syntax_uid, i.transfer_syntax_uid) AS transfer_syntax_uid
    FROM exam_batch_instances i JOIN exam_batch_instance_aliases a ON a.instance_id = i.id
    WHERE i.batch_id = :batch AND i.outcome IN ({sql_list(UNSENT)})
    ORDER BY a.id DESC
""")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another file with the content of an instance. It stands in when the instance's own file is gone."""

    path: str
    mount_point: str | None
    file_size: int
    file_mtime_ns: int
    dataset_offset: int
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Unsent:
    """An instance that the next attempt sends."""

    item: Item
    tries: int
    """How often it was answered so far."""
    lost_in_flight: int
    """Number of consecutive abnormal ends of associations at which it was sent and not answered."""
    strikes: int
    """How often it was refused or not answered while the destination stored others."""
    mount_point: str | None
    other_content_possible: bool
    """The destination stored other content under the same SOP Instance UID, or may have: no answer was recorded."""

    elsewhere: tuple[Elsewhere, ...] = ()
    """Other files with its content, the one found last first."""
    contested: bool = False
    """Another batch for the destination has an instance with its SOP Instance UID and other content."""

    @property
    def suspect(self) -> bool:
        """Whether it may cause the abnormal ends: it is then sent last, with no other instance outstanding."""
        return self.strikes > 0 or self.lost_in_flight >= SUSPECT_AFTER

    @property
    def failed_before(self) -> bool:
        """Whether an earlier attempt sent it, and it was not stored."""
        return self.tries > 0 or self.lost_in_flight > 0


@dataclass(frozen=True, slots=True)
class Unread:
    """An instance taken over from an older database with path and SOP Instance UID only. Its file is read before it is sent."""

    id: int
    path: str
    sop_instance_uid: str
    tries: int


def to_send(tx: Connection, batch_id: int) -> tuple[list[Unsent], list[Unread]]:
    """Return the unsent instances of a batch, ordered by series and instance number, those after the others that were refused
    or not answered before; and, apart, those whose files were never read."""
    unsent: list[Unsent] = []
    unread: list[Unread] = []
    elsewhere: dict[int, list[Elsewhere]] = {}
    rows = tx.execute(_TO_SEND, {"batch": batch_id}).all()
    for row in tx.execute(_ELSEWHERE, {"batch": batch_id}) if any(row.has_copies for row in rows) else ():
        elsewhere.setdefault(row.instance_id, []).append(
            Elsewhere(
                from_text(row.file_path),
                None if row.mount_point is None else from_text(row.mount_point),
                row.file_size,
                row.file_mtime_ns,
                row.dataset_offset,
                row.transfer_syntax_uid,
            )
        )
    for row in rows:
        path = from_text(row.processed_filepath)
        if row.content_digest is None:
            unread.append(Unread(row.id, path, row.sop_instance_uid, row.attempts))
            continue
        item = Item(
            row.id,
            path,
            row.sop_class_uid,
            row.sop_instance_uid,
            row.transfer_syntax_uid,
            row.file_size,
            row.file_mtime_ns,
            row.dataset_offset,
            bytes(row.content_digest),
        )
        mount_point = None if row.mount_point is None else from_text(row.mount_point)
        others = tuple(elsewhere.get(row.id, ()))
        unsent.append(
            Unsent(
                item,
                row.attempts,
                row.lost_in_flight,
                row.strikes,
                mount_point,
                row.other_content_possible,
                others,
                row.is_contested,
            )
        )
    return unsent, unread


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one instance in this attempt."""

    instance_id: int
    outcome: Outcome
    dimse_status: int | None = None
    comment: str | None = None
    tries: int = 0
    """How often it was answered, this time included."""
    lost_in_flight: int = 0
    """Number of consecutive abnormal ends at which it was sent and not answered, this one included."""
    strikes: int = 0
    """See ``Unsent``; this time included."""
    bytes_sent: int = 0
    """Length of the data set as sent, where it was answered."""


# The rows are found by id. By the index on batch_id, PostgreSQL would read the whole batch for each group of outcomes.
_RECORD = repeated(f"""
    UPDATE exam_batch_instances i
    SET outcome = w.outcome, dimse_status = w.status, error_comment = w.comment, attempts = w.tries, lost_in_flight = w.lost,
        strikes = w.strikes,
        stored_at = CASE WHEN w.outcome = '{Outcome.STORED}' THEN clock_timestamp() END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:outcomes AS text[]), CAST(:statuses AS integer[]),
                CAST(:comments AS text[]), CAST(:tries AS integer[]), CAST(:lost AS integer[]), CAST(:strikes AS integer[]))
         w (id, outcome, status, comment, tries, lost, strikes)
    WHERE i.id = w.id AND i.id = ANY(CAST(:ids AS bigint[])) AND coalesce(i.batch_id = :batch, false)
      AND i.outcome <> '{Outcome.STORED}'
""")


def record(tx: Connection, claim: Claim, records: Sequence[Record]) -> None:
    """Write outcomes, in a transaction that has renewed the claim. Writing the same records twice is safe."""
    if not records:
        return
    last = {r.instance_id: r for r in records}
    later(
        tx,
        _RECORD,
        {
            "batch": claim.batch_id,
            "ids": list(last),
            "outcomes": [r.outcome for r in last.values()],
            "statuses": [r.dimse_status for r in last.values()],
            "comments": [r.comment for r in last.values()],
            "tries": [r.tries for r in last.values()],
            "lost": [r.lost_in_flight for r in last.values()],
            "strikes": [r.strikes for r in last.values()],
        },
    )


_TALLY = repeated("SELECT outcome, count(*) AS n FROM exam_batch_instances WHERE batch_id = :batch GROUP BY outcome")

_WORST = text(f"""
    SELECT i.outcome, i.dimse_status, i.error_comment, count(*) AS n FROM exam_batch_instances i
    WHERE i.batch_id = :batch AND i.outcome IN ({sql_list((Outcome.RETRY, *UNDELIVERABLE))})
    GROUP BY i.outcome, i.dimse_status, i.error_comment ORDER BY n DESC, i.dimse_status LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class Tally:
    """The number of a batch's instances by outcome."""

    outcomes: Counter[Outcome]
    worst: tuple[str, int | None, str | None] | None
    """(outcome, DIMSE status, comment) of the most frequent failure; None: there is no failure."""

    @property
    def unsent(self) -> int:
        """Instances that another attempt would send."""
        return sum(self.outcomes[outcome] for outcome in UNSENT)

    @property
    def stored(self) -> int:
        """Instances that were answered with success or a warning."""
        return self.outcomes[Outcome.STORED]

    @property
    def counted(self) -> int:
        """Instances that the batch is to deliver."""
        return sum(n for outcome, n in self.outcomes.items() if outcome not in NOT_COUNTED)

    @property
    def failed(self) -> int:
        """Instances that were to be delivered and that no further attempt would send."""
        return sum(self.outcomes[outcome] for outcome in UNDELIVERABLE)


_LOST = text(f"""
    SELECT i.batch_id, i.destination_id, i.sop_instance_uid, i.processed_filepath, b.study_instance_uid
    FROM exam_batch_instances i JOIN exam_batches b ON b.id = i.batch_id
    WHERE i.batch_id = ANY(CAST(:batches AS bigint[])) AND b.status = '{BatchState.FAILED}'
      AND i.outcome IN ('{Outcome.CHANGED}', '{Outcome.MISSING}')
    ORDER BY i.id
""")


@dataclass(frozen=True, slots=True)
class Lost:
    """An instance of a FAILED batch whose file was changed or gone when it was to be sent."""

    batch_id: int
    destination_id: int
    study_instance_uid: str
    sop_instance_uid: str
    path: str


def lost_files(tx: Connection, batch_ids: Sequence[int]) -> list[Lost]:
    """Return the instances of FAILED batches whose files were changed or gone."""
    return [
        Lost(
            row.batch_id,
            row.destination_id,
            row.study_instance_uid,
            row.sop_instance_uid,
            from_text(row.processed_filepath),
        )
        for row in tx.execute(_LOST, {"batches": list(batch_ids)})
    ]


def tally(tx: Connection, batch_id: int) -> Tally:
    """Return the number of a batch's instances by outcome."""
    outcomes = Counter({Outcome(row.outcome): row.n for row in tx.execute(_TALLY, {"batch": batch_id})})
    failed = any(outcomes[outcome] for outcome in (Outcome.RETRY, *UNDELIVERABLE))
    worst = tx.execute(_WORST, {"batch": batch_id}).one_or_none() if failed else None
    return Tally(outcomes, None if worst is None else (worst.outcome, worst.dimse_status, worst.error_comment))
