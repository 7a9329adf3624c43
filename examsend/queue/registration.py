"""Registers files as instances: new, known, moved, or another version of a known SOP Instance UID."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import Connection, text

from examsend.queue import batches, late, removals, replacement, series, versions, whereabouts
from examsend.queue.files import bigints, from_text, signed, texts, to_text
from examsend.queue.pending import drop_empty
from examsend.queue.versions import Arrival, Key, Pass, Version
from examsend.queue.whereabouts import Places, columns_of
from examsend.states import FILE_LOST, NOT_COUNTED, LatePolicy, Outcome


class Kind(StrEnum):
    """How a file relates to the instances registered for one destination."""

    NEW = "NEW"
    KNOWN = "KNOWN"
    """Registered before with the same content, or the file of a row taken over from an older database."""
    MOVED = "MOVED"
    """Registered before with the same content; its path was updated."""
    NEW_VERSION = "NEW_VERSION"
    """Its SOP Instance UID is known with other content, and this one counts from now on."""
    OLDER_VERSION = "OLDER_VERSION"
    """The same pass found a newer file with its SOP Instance UID. It is registered as SUPERSEDED, and not sent."""


ADDED = frozenset({Kind.NEW, Kind.NEW_VERSION, Kind.OLDER_VERSION})
"""Kinds of a file that an instance was registered for."""

ARRIVED = ADDED - {Kind.OLDER_VERSION}
"""Kinds of a file that is to be delivered, unless a policy of its destination forbids it."""


class Registered(NamedTuple):
    """The result for one arrival and one destination."""

    arrival: Arrival
    destination_id: int
    kind: Kind
    batch_id: int
    opened: bool = False
    """NEW and NEW_VERSION: the batch did not exist before."""
    late: LatePolicy | None = None
    """The policy under which it was added to the batch; None: it is not late, or replaces what the batch has anyway."""


_INSERT = text("""
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, series_number, instance_number, processed_filepath, mount_point, file_size, file_mtime_ns,
        file_inode, file_ctime_ns, dataset_offset, content_digest, outcome, another_version)
    SELECT batch, destination, uid, series, class, syntax, series_number, number, path, mount, size, mtime, inode, ctime, off,
        decode(digest, 'hex'), outcome, another
    FROM unnest(CAST(:batches AS bigint[]), CAST(:destinations AS bigint[]), CAST(:uids AS text[]), CAST(:series AS text[]),
                CAST(:classes AS text[]), CAST(:syntaxes AS text[]), CAST(:series_numbers AS bigint[]),
                CAST(:numbers AS bigint[]), CAST(:paths AS text[]),
                CAST(:mounts AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]), CAST(:inodes AS bigint[]),
                CAST(:ctimes AS bigint[]), CAST(:offsets AS bigint[]), CAST(:digests AS text[]), CAST(:outcomes AS text[]),
                CAST(:another AS boolean[]))
         WITH ORDINALITY
         w (batch, destination, uid, series, class, syntax, series_number, number, path, mount, size, mtime, inode, ctime, off, digest,
            outcome, another, n)
    ORDER BY n
    ON CONFLICT DO NOTHING
""")

_IDENTIFY = text("""
    UPDATE exam_batch_instances
    SET series_instance_uid = :series, sop_class_uid = :class, transfer_syntax_uid = :syntax, series_number = :series_number,
        instance_number = :number, processed_filepath = :path, mount_point = :mount, file_size = :size,
        file_mtime_ns = :mtime, file_inode = :inode, file_ctime_ns = :ctime, dataset_offset = :off, content_digest = :digest
    WHERE id = :id AND content_digest IS NULL
""")


@dataclass(slots=True)
class _Row:
    """An instance to be inserted."""

    batch_id: int
    destination_id: int
    arrival: Arrival
    outcome: Outcome
    another: bool


class _Registration:
    """One group of arrivals, in one transaction."""

    def __init__(
        self,
        tx: Connection,
        arrivals: Sequence[Arrival],
        destination_ids: Sequence[int],
        during: Pass,
        gone: Callable[[str], bool],
        *,
        requested: bool,
    ) -> None:
        self._tx = tx
        self._requested = requested
        self._during = during
        self._gone = gone
        self._todo = [(arrival, destination) for arrival in arrivals for destination in destination_ids]
        self._replaced = versions.note_overwritten(tx, arrivals, destination_ids)
        self._known: dict[Key, list[Version]] = {}
        self._places = Places(gone)
        self._rows: list[_Row] = []
        self._results: list[Registered] = []
        self._touched: set[int] = set()
        """Earlier batches in which instances were superseded."""
        self._policies: dict[int, LatePolicy] = {}
        """Of the batches to which late instances are added."""

    def run(self) -> list[Registered]:
        """See ``register``."""
        self._load(self._todo)
        fresh = [pair for pair in self._todo if not self._settled(*pair)]
        if fresh:
            self._add(fresh)
        self._places.write(self._tx)
        if not self._during.removes:
            whereabouts.also(self._tx, [(a.source, d) for a, d in self._todo if a.source is not None])
        back = self._places.back
        if back:
            replacement.wait_again(self._tx, back)
        touched = self._touched | set(back.values())
        if touched and not self._requested:
            replacement.recover(self._tx, touched)
        return self._results

    def _load(self, pairs: Sequence[tuple[Arrival, int]]) -> None:
        keys = ((d, a.file.sop_instance_uid) for a, d in pairs)
        self._known = versions.load(self._tx, keys, self._during.began)

    def _settled(self, arrival: Arrival, destination: int) -> bool:
        """Whether an arrival needs no row of its own: it is registered already. Its result is then added."""
        key = (destination, arrival.file.sop_instance_uid)
        known = self._known[key]
        if not known:
            return False
        same = versions.same_content(known, arrival)
        if same is None:
            return self._identified(arrival, destination, known)
        replaced = (to_text(arrival.found_at), arrival.file.sop_instance_uid) in self._replaced
        now = versions.current(known)
        if versions.written_again(known, same, arrival, replaced=replaced, gone=self._gone):
            if now is not None and now.digest == same.digest:
                mine = _age(arrival)
                self._during.written_again[key] = max(mine, self._during.written_again.get(key, mine))
            elif now is not None and not self._is_older(arrival, key, now):
                return False
        delivered = versions.to_deliver(known)
        wanted = delivered is not None and delivered.digest == same.digest
        moved = self._places.note(same, key, arrival, current=same is now or same is delivered)
        for twin in known:
            # A study that is sent again as a whole has its instances in several batches.
            if wanted and twin is not same and twin.digest == same.digest and twin.outcome in FILE_LOST:
                self._places.note(twin, key, arrival, current=True)
        self._results.append(Registered(arrival, destination, Kind.MOVED if moved else Kind.KNOWN, same.batch_id))
        return True

    def _identified(self, arrival: Arrival, destination: int, known: Sequence[Version]) -> bool:
        """Whether an arrival is the file of a row taken over from an older database. The row is then completed."""
        path = to_text(arrival.path)
        for version in known:
            if version.digest is not None or version.id is None:
                continue
            if version.mtime_ns not in {0, arrival.file.mtime_ns}:
                continue  # it was read once, and has been written again since: it may be another version
            if version.path == path or self._gone(from_text(version.path)):
                identify(self._tx, version.id, arrival)
                version.digest, version.path = arrival.file.content_digest, path
                version.mtime_ns, version.holds = arrival.file.mtime_ns, True
                self._results.append(Registered(arrival, destination, Kind.KNOWN, version.batch_id))
                return True
        return False

    def _is_older(self, arrival: Arrival, key: Key, now: Version) -> bool:
        """Whether this pass found a newer file than an arrival: that of the current version, which has other content."""
        if not now.places:
            return False
        found = [self._during.written_again[key]] if key in self._during.written_again else []
        if now.in_pass:
            found.append((now.mtime_ns, now.path))
        return bool(found) and max(found) > _age(arrival)

    def _add(self, fresh: Sequence[tuple[Arrival, int]]) -> None:
        pending = batches.open_pending(self._tx, ((a.file.study_instance_uid, d) for a, d in fresh))
        self._places.write(self._tx)
        # Another ingest may have registered the same files while this one waited for the locks of the batches' rows.
        self._load(fresh)
        if not self._requested:
            follow_ups = {b.batch_id for b in pending.values() if not b.opened or b.follows_batch_id is not None}
            self._policies = late.policies(self._tx, follow_ups)
        mine = {batch.batch_id for batch in pending.values()}
        attempted = replacement.Attempted.lock(
            self._tx, (self._known[d, a.file.sop_instance_uid] for a, d in fresh), mine
        )
        for arrival, destination in fresh:
            if self._settled(arrival, destination):
                continue
            batch = pending[arrival.file.study_instance_uid, destination]
            self._add_one(arrival, destination, batch, attempted)
        self._touched = attempted.write(self._tx)
        if self._rows:
            self._tx.execute(_INSERT, _columns(self._rows))
            arrived = [r for r in self._results if r.kind in ARRIVED]
            series.note(self._tx, [(r.arrival.file, r.destination_id) for r in arrived])
            whole = {r.batch_id for r in arrived if r.late is LatePolicy.RESEND_ALL}
            late.resend(self._tx, whole, self._gone, self._during.resending)
        used = {row.batch_id for row in self._rows}
        drop_empty(self._tx, {h.batch_id for h in pending.values() if h.opened} - used)

    def _add_one(
        self, arrival: Arrival, destination: int, batch: batches.PendingBatch, attempted: replacement.Attempted
    ) -> None:
        key = (destination, arrival.file.sop_instance_uid)
        known = self._known[key]
        now = versions.current(known)
        kind, batch_id, opened = Kind.NEW, batch.batch_id, batch.opened
        policy = self._policies.get(batch_id)
        outcome = Outcome.WAITING
        if now is not None:
            if self._is_older(arrival, key, now):
                kind, batch_id, opened, outcome = Kind.OLDER_VERSION, now.batch_id, False, Outcome.SUPERSEDED
                policy = None
            else:
                kind = Kind.NEW_VERSION
                # What it replaces in the batch is sent in any case, and better in the new version than in the old one.
                replaces = any(v.batch_id == batch_id and v.outcome not in NOT_COUNTED for v in known)
                if policy is LatePolicy.NEVER and replaces:
                    policy = None
                if policy is not LatePolicy.NEVER and attempted.takes(now):
                    batch_id, opened, policy = now.batch_id, False, None
        if policy is LatePolicy.NEVER:
            outcome = Outcome.NOT_SENT
        if kind is Kind.NEW_VERSION:
            for version in known:
                self._replace(version, batch_id, arrival, attempted, sent=outcome is Outcome.WAITING)
        version = Version(
            None,
            batch_id,
            outcome,
            arrival.file.content_digest,
            to_text(arrival.path),
            arrival.file.mtime_ns,
            in_pass=self._during.began is not None,
            n=len(self._rows),
        )
        self._rows.append(_Row(batch_id, destination, arrival, outcome, another=bool(known)))
        known.append(version)
        self._results.append(Registered(arrival, destination, kind, batch_id, opened, policy))

    def _replace(
        self, version: Version, batch_id: int, arrival: Arrival, attempted: replacement.Attempted, *, sent: bool
    ) -> None:
        """Do not send an earlier version in the new version's batch, nor one whose file is lost, if the new one is ``sent``."""
        if version.outcome is Outcome.SUPERSEDED:
            return
        if version.batch_id != batch_id:
            if not sent or version.outcome is Outcome.NOT_SENT:
                return
            lost = version.path == to_text(arrival.path) or version.outcome in FILE_LOST
            if not lost or not attempted.supersedes(version):
                return
        elif version.id is None:
            self._rows[version.n].outcome = Outcome.SUPERSEDED
        else:
            attempted.supersede(version)
        version.outcome = Outcome.SUPERSEDED


def register(
    tx: Connection,
    arrivals: Sequence[Arrival],
    destination_ids: Sequence[int],
    *,
    gone: Callable[[str], bool],
    during: Pass | None = None,
    requested: bool = False,
) -> list[Registered]:
    """Given complete files and destinations, add each file to the PENDING batch of its (study, destination).

    A file with the same SOP Instance UID and the same content is known, whatever its path, unless it was written again after
    another version (see ``versions``). If it is unsent and ``gone(old path)``, its path is updated. A file with other content
    supersedes a version in the same batch that was never sent; otherwise it is added to a follow-up batch. Of the versions
    registered ``during`` one pass, the newest counts.

    A FAILED batch of which every failed instance is replaced, or has its file again, is READY again. What is added to a study
    that was attempted comes under its destination's late policy (see ``late``). ``requested``: neither of these, because an
    operator has asked for a retry with these files.
    """
    removals.together(tx)
    return _Registration(tx, arrivals, destination_ids, during or Pass(), gone, requested=requested).run()


def identify(tx: Connection, instance_id: int, arrival: Arrival) -> None:
    """Complete a row taken over from an older database with what its file says. A row that is complete is not changed."""
    file = arrival.file
    tx.execute(
        _IDENTIFY,
        {
            "id": instance_id,
            "series": file.series_instance_uid,
            "class": file.sop_class_uid,
            "syntax": file.transfer_syntax_uid,
            "series_number": file.series_number,
            "number": file.instance_number,
            "path": to_text(arrival.path),
            "mount": None if arrival.mount_point is None else to_text(arrival.mount_point),
            "size": file.size,
            "mtime": file.mtime_ns,
            "inode": signed(file.inode),
            "ctime": signed(file.ctime_ns),
            "off": file.dataset_offset,
            "digest": file.content_digest,
        },
    )


def _age(arrival: Arrival) -> tuple[int, str]:
    return arrival.file.mtime_ns, to_text(arrival.path)


def _columns(rows: Sequence[_Row]) -> dict[str, str]:
    files = [row.arrival.file for row in rows]
    return {
        "batches": bigints(row.batch_id for row in rows),
        "destinations": bigints(row.destination_id for row in rows),
        "uids": texts([f.sop_instance_uid for f in files]),
        "series": texts([f.series_instance_uid for f in files]),
        "classes": texts([f.sop_class_uid for f in files]),
        "series_numbers": bigints(f.series_number for f in files),
        "numbers": bigints(f.instance_number for f in files),
        "digests": texts([f.content_digest.hex() for f in files]),
        "outcomes": texts([row.outcome for row in rows]),
        "another": "{" + ",".join(["t" if row.another else "f" for row in rows]) + "}",
        **columns_of([row.arrival for row in rows]),
    }
