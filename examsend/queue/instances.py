"""The instances of a batch: registered at ingest, read for sending, their outcomes recorded under the sender's claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.dicom.identity import DicomFile
from examsend.outcomes import SUSPECT_AFTER
from examsend.queue import batches
from examsend.queue.paths import from_text, to_text
from examsend.states import LOST, NOT_COUNTED, UNSENT, Outcome, sql_list
from examsend.transfer import Item

# --- registered -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrival:
    """A whole DICOM file and where it is (an absolute path)."""

    path: str
    file: DicomFile
    mount_point: str | None = None
    """The mount point above it; None: the root file system."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What became of one arrival at one destination."""

    arrival: Arrival
    destination_id: int
    kind: str
    """NEW, KNOWN, MOVED (known, and its path was brought up to date) or NEW_VERSION (the UID came with other bytes)."""
    batch_id: int
    opened: bool = False
    """NEW and NEW_VERSION: the batch did not exist before."""
    follows_batch_id: int | None = None


@dataclass(slots=True)
class _Version:
    id: int | None
    batch_id: int
    outcome: str
    sha256: bytes
    path: str


_VERSIONS = text("""
    SELECT i.id, i.destination_id, i.sop_instance_uid, i.batch_id, i.outcome, i.content_sha256, i.processed_filepath
    FROM unnest(CAST(:destinations AS bigint[]), CAST(:uids AS text[])) w (destination, uid)
    JOIN exam_batch_instances i ON i.destination_id = w.destination AND i.sop_instance_uid = w.uid
    ORDER BY i.id
""")

_SUPERSEDE = text("UPDATE exam_batch_instances SET outcome = 'SUPERSEDED' WHERE id = ANY(CAST(:ids AS bigint[]))")

_INSERT = text("""
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, series_number, instance_number, processed_filepath, mount_point, file_size, file_mtime_ns, dataset_offset,
        content_sha256, outcome)
    SELECT batch, destination, uid, series, class, syntax, series_number, number, path, mount, size, mtime, off, decode(sha, 'hex'), outcome
    FROM unnest(CAST(:batches AS bigint[]), CAST(:destinations AS bigint[]), CAST(:uids AS text[]), CAST(:series AS text[]),
                CAST(:classes AS text[]), CAST(:syntaxes AS text[]), CAST(:series_numbers AS bigint[]),
                CAST(:numbers AS bigint[]), CAST(:paths AS text[]),
                CAST(:mounts AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]),
                CAST(:offsets AS bigint[]), CAST(:shas AS text[]), CAST(:outcomes AS text[]))
         w (batch, destination, uid, series, class, syntax, series_number, number, path, mount, size, mtime, off, sha, outcome)
    ON CONFLICT DO NOTHING
""")

_MOVE = text("""
    UPDATE exam_batch_instances
    SET processed_filepath = :path, file_size = :size, file_mtime_ns = :mtime, dataset_offset = :off, transfer_syntax_uid = :syntax
    WHERE id = :id AND outcome <> 'STORED'
""")

_ALIAS = text("""
    INSERT INTO exam_batch_instance_aliases (instance_id, file_path, file_size, file_mtime_ns)
    VALUES (:id, :path, :size, :mtime)
    ON CONFLICT (instance_id, md5(file_path)) DO UPDATE SET file_size = :size, file_mtime_ns = :mtime
""")

_Key = tuple[int, str]


def _versions(tx: Connection, keys: Iterable[_Key]) -> dict[_Key, list[_Version]]:
    wanted = sorted(set(keys))
    found: dict[_Key, list[_Version]] = {key: [] for key in wanted}
    rows = tx.execute(_VERSIONS, {"destinations": [d for d, _ in wanted], "uids": [u for _, u in wanted]})
    for row in rows:
        found[row.destination_id, row.sop_instance_uid].append(
            _Version(row.id, row.batch_id, row.outcome, bytes(row.content_sha256), row.processed_filepath)
        )
    return found


def register(
    tx: Connection, arrivals: Sequence[Arrival], destination_ids: Sequence[int], *, gone: Callable[[str], bool]
) -> list[Registered]:
    """Given whole files and destinations, make each file an instance of the PENDING batch of its (study, destination).

    The same bytes under the same SOP Instance UID are already known, whatever their path; where they are unsent and
    ``gone(old path)``, the path is brought up to date. Other bytes take the place of a version that was never offered, or
    go with a follow-up batch.
    """
    todo = [(arrival, destination) for arrival in arrivals for destination in destination_ids]
    versions = _versions(tx, ((d, a.file.sop_instance_uid) for a, d in todo))
    done = [_known(tx, a, d, versions[d, a.file.sop_instance_uid], gone) for a, d in todo]
    fresh = [pair for pair, known in zip(todo, done, strict=True) if known is None]
    results = [known for known in done if known is not None]
    if not fresh:
        return results
    homes = batches.open_pending(tx, ((a.file.study_instance_uid, d) for a, d in fresh))
    # Another ingest may have registered the same while we waited for the batches' rows: look again, now that they are ours.
    versions = _versions(tx, ((d, a.file.sop_instance_uid) for a, d in fresh))
    rows: list[tuple[int, int, Arrival, str]] = []
    superseded: list[int] = []
    newest: dict[tuple[int, _Key], int] = {}
    for arrival, destination in fresh:
        key = (destination, arrival.file.sop_instance_uid)
        known = _known(tx, arrival, destination, versions[key], gone)
        if known is not None:
            results.append(known)
            continue
        home = homes[arrival.file.study_instance_uid, destination]
        others = [v for v in versions[key] if v.outcome not in {"SUPERSEDED", "NOT_SENT"}]
        for version in others:
            if version.batch_id == home.batch_id:
                version.outcome = "SUPERSEDED"
                if version.id is not None:
                    superseded.append(version.id)
                else:
                    n = newest[home.batch_id, key]
                    rows[n] = (*rows[n][:3], "SUPERSEDED")
        newest[home.batch_id, key] = len(rows)
        rows.append((home.batch_id, destination, arrival, "WAITING"))
        versions[key].append(_Version(None, home.batch_id, "WAITING", arrival.file.content_sha256, arrival.path))
        kind = "NEW_VERSION" if others else "NEW"
        results.append(Registered(arrival, destination, kind, home.batch_id, home.opened, home.follows_batch_id))
    if superseded:
        tx.execute(_SUPERSEDE, {"ids": superseded})
    if rows:
        tx.execute(_INSERT, _columns(rows))
    batches.drop_empty(tx, {h.batch_id for h in homes.values() if h.opened} - {row[0] for row in rows})
    return results


def _columns(rows: Sequence[tuple[int, int, Arrival, str]]) -> dict[str, list[object]]:
    files = [arrival.file for _, _, arrival, _ in rows]
    return {
        "batches": [row[0] for row in rows],
        "destinations": [row[1] for row in rows],
        "uids": [f.sop_instance_uid for f in files],
        "series": [f.series_instance_uid for f in files],
        "classes": [f.sop_class_uid for f in files],
        "syntaxes": [f.transfer_syntax_uid for f in files],
        "series_numbers": [f.series_number for f in files],
        "numbers": [f.instance_number for f in files],
        "paths": [to_text(row[2].path) for row in rows],
        "mounts": [None if row[2].mount_point is None else to_text(row[2].mount_point) for row in rows],
        "sizes": [f.size for f in files],
        "mtimes": [f.mtime_ns for f in files],
        "offsets": [f.dataset_offset for f in files],
        "shas": [f.content_sha256.hex() for f in files],
        "outcomes": [row[3] for row in rows],
    }


def _known(
    tx: Connection, arrival: Arrival, destination: int, versions: Iterable[_Version], gone: Callable[[str], bool]
) -> Registered | None:
    """The arrival as an instance that is already there, or None."""
    file = arrival.file
    same = next((v for v in versions if v.sha256 == file.content_sha256), None)
    if same is None:
        return None
    kind = "KNOWN"
    path = to_text(arrival.path)
    if same.id is not None:
        values = {"id": same.id, "path": path, "size": file.size, "mtime": file.mtime_ns}
        if same.outcome not in {"STORED", "SUPERSEDED"} and (same.path == path or gone(from_text(same.path))):
            tx.execute(_MOVE, {**values, "off": file.dataset_offset, "syntax": file.transfer_syntax_uid})
            kind = "KNOWN" if same.path == path else "MOVED"
            same.path = path
        else:
            tx.execute(_ALIAS, values)
    return Registered(arrival, destination, kind, same.batch_id)


# --- sent -------------------------------------------------------------------------------------------------------------

_TO_SEND = text(f"""
    SELECT i.id, i.processed_filepath, i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.file_size, i.file_mtime_ns,
           i.dataset_offset, i.content_sha256, i.attempts, i.lost_in_flight, i.mount_point,
           EXISTS (SELECT 1 FROM exam_batch_instances o
                   WHERE o.destination_id = i.destination_id AND o.sop_instance_uid = i.sop_instance_uid AND o.id <> i.id
                     AND o.outcome = '{Outcome.STORED}' AND o.content_sha256 <> i.content_sha256) AS other_content_stored
    FROM exam_batch_instances i
    WHERE i.batch_id = :batch AND i.outcome IN ({sql_list(UNSENT)})
    ORDER BY i.lost_in_flight >= :suspect, i.series_number NULLS LAST, i.series_instance_uid,
             i.instance_number NULLS LAST, i.sop_instance_uid
""")  # noqa: S608 (constants of ours)


@dataclass(frozen=True, slots=True)
class Unsent:
    """An instance the next attempt has to offer."""

    item: Item
    tries: int
    """How often it has been answered so far."""
    lost_in_flight: int
    """At how many unasked ends of associations in a row it was in flight."""
    mount_point: str | None
    other_content_stored: bool
    """The destination stored other content under its SOP Instance UID."""

    @property
    def suspect(self) -> bool:
        """Whether it may be what ends the associations: it goes last, with nothing beside it."""
        return self.lost_in_flight >= SUSPECT_AFTER


def to_send(tx: Connection, batch_id: int) -> list[Unsent]:
    """Return what a batch still has to offer, in series and instance order, suspects last."""
    return [
        Unsent(
            Item(
                row.id,
                from_text(row.processed_filepath),
                row.sop_class_uid,
                row.sop_instance_uid,
                row.transfer_syntax_uid,
                row.file_size,
                row.file_mtime_ns,
                row.dataset_offset,
                bytes(row.content_sha256),
            ),
            row.attempts,
            row.lost_in_flight,
            None if row.mount_point is None else from_text(row.mount_point),
            row.other_content_stored,
        )
        for row in tx.execute(_TO_SEND, {"batch": batch_id, "suspect": SUSPECT_AFTER})
    ]


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one instance in this attempt."""

    instance_id: int
    outcome: Outcome
    dimse_status: int | None = None
    comment: str | None = None
    tries: int = 0
    """How often it has been answered, this time included."""
    lost_in_flight: int = 0
    """At how many unasked ends in a row it was in flight, this one included."""


_RECORD = text(f"""
    UPDATE exam_batch_instances i
    SET outcome = w.outcome, dimse_status = w.status, error_comment = w.comment, attempts = w.tries, lost_in_flight = w.lost,
        stored_at = CASE WHEN w.outcome = '{Outcome.STORED}' THEN clock_timestamp() END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:outcomes AS text[]), CAST(:statuses AS integer[]),
                CAST(:comments AS text[]), CAST(:tries AS integer[]), CAST(:lost AS integer[]))
         w (id, outcome, status, comment, tries, lost)
    WHERE i.id = w.id AND i.batch_id = :batch AND i.outcome <> '{Outcome.STORED}'
""")  # noqa: S608 (a constant of ours)


def record(tx: Connection, claim: batches.Claim, records: Sequence[Record]) -> None:
    """Write outcomes under a claim and renew its lease. Writing the same again changes nothing. Raises LostClaim."""
    batches.renew(tx, claim)
    if not records:
        return
    last = {r.instance_id: r for r in records}
    tx.execute(
        _RECORD,
        {
            "batch": claim.batch_id,
            "ids": list(last),
            "outcomes": [r.outcome for r in last.values()],
            "statuses": [r.dimse_status for r in last.values()],
            "comments": [r.comment for r in last.values()],
            "tries": [r.tries for r in last.values()],
            "lost": [r.lost_in_flight for r in last.values()],
        },
    )


_TALLY = text("SELECT outcome, count(*) AS n FROM exam_batch_instances WHERE batch_id = :batch GROUP BY outcome")

_WORST = text(f"""
    SELECT i.outcome, i.dimse_status, i.error_comment, count(*) AS n FROM exam_batch_instances i
    WHERE i.batch_id = :batch AND i.outcome IN ({sql_list((Outcome.RETRY, *LOST))})
    GROUP BY i.outcome, i.dimse_status, i.error_comment ORDER BY n DESC, i.dimse_status LIMIT 1
""")  # noqa: S608


@dataclass(frozen=True, slots=True)
class Tally:
    """How a batch's instances stand."""

    outcomes: Counter[Outcome]
    worst: tuple[str, int | None, str | None] | None
    """(outcome, DIMSE status, comment) of the most frequent thing that went wrong."""

    @property
    def unsent(self) -> int:
        """Instances another attempt would offer."""
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
    def lost_for_good(self) -> int:
        """Instances that no further attempt would offer."""
        return sum(self.outcomes[outcome] for outcome in LOST)


def tally(tx: Connection, batch_id: int) -> Tally:
    """Return how a batch's instances stand."""
    outcomes = Counter({Outcome(row.outcome): row.n for row in tx.execute(_TALLY, {"batch": batch_id})})
    worst = tx.execute(_WORST, {"batch": batch_id}).one_or_none()
    return Tally(outcomes, None if worst is None else (worst.outcome, worst.dimse_status, worst.error_comment))
