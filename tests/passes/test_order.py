"""Several versions of one SOP Instance UID: the order in which they are sent, and what ``status`` says of each.

The archive keeps the first or the last version of a UID, and loses answers: by a reset, by a time-out, by the sender's death.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from examsend.commands import retry, send, status
from examsend.commands.destination import enable
from examsend.config.settings import Settings
from examsend.db import engine, probe
from examsend.demo import samples
from examsend.queue.views import BatchStatus
from examsend.report.text import rendered
from tests.helpers import add, execute, listed, one, prepare, rounds, rows, states
from tests.peers.scripted import Peer, Script, scripted

KEEPS_FIRST_0111 = (True, 0x0111)
KEEPS_FIRST_0000 = (True, 0x0000)
"""As Orthanc: it answers success and keeps the version that it has."""
KEEPS_LAST = (False, 0x0000)
ARCHIVES = [KEEPS_FIRST_0111, KEEPS_FIRST_0000, KEEPS_LAST]


class Archive:
    """Keeps one version of each UID. ``faults`` holds, for each UID, what happens at its next C-STOREs; then all is well."""

    def __init__(self, keeps_first: bool, duplicate: int) -> None:
        self.keeps_first = keeps_first
        self.duplicate = duplicate
        self.holds: dict[str, str] = {}
        self.faults: dict[str, list[str]] = {}
        self.received: list[str] = []
        """SHA-256 of each data set, in order."""
        self.sender: subprocess.Popen[bytes] | None = None

    def __call__(self, uid: str, digest: str) -> int | str:
        faults = self.faults.get(uid, [])
        fault = faults.pop(0) if faults else "ok"
        self.received.append(digest)
        if fault == "reset-before":
            return "reset"
        if fault == "refuse":
            return 0xC000
        known = uid in self.holds
        if not known or not self.keeps_first:
            self.holds[uid] = digest
        if fault == "kill":
            assert self.sender is not None
            os.kill(self.sender.pid, signal.SIGKILL)
            return "close"
        if fault == "ok":
            return self.duplicate if known and self.keeps_first else 0
        return fault


class Version:
    """Writes versions of files, each with the same UIDs and other pixels, to a path of its own."""

    def __init__(self, directory: Path, count: int = 1) -> None:
        self.study = samples.new_uid()
        """Of the first file."""
        self._files: dict[Path, bytes] = {}
        for n in range(count):
            place = directory / str(n)
            [file] = samples.ct_study(place, 1, size=8, study=None if n else self.study)
            self._files[place] = file.read_bytes()
            file.unlink()

    def write(self, number: int, *, over: int | None = None) -> None:
        """Write version ``number`` of each file, to the path of version ``over`` if that is given."""
        for place, data in self._files.items():
            (place / f"version{over or number}.dcm").write_bytes(data[:-2] + bytes((number, number)))


@contextmanager
def archive_at(settings: Settings, kind: tuple[bool, int], **values: object) -> Iterator[tuple[Archive, Peer]]:
    """Run an archive and add it as a destination."""
    archive = Archive(*kind)
    with scripted(Script(archive=archive)) as peer:
        add(settings, peer.address, **values)
        yield archive, peer


def _end_pauses(database: engine.Database) -> None:
    execute(database, "UPDATE storage_backend_configs SET held_until = NULL WHERE held_until IS NOT NULL")
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")


def _batches(settings: Settings) -> dict[int, BatchStatus]:
    return {batch.id: batch for batch in listed(settings)}


def _digests(database: engine.Database) -> list[str]:
    """The SHA-256 of each version, in the order of ingest."""
    return [r[0] for r in rows(database, "SELECT encode(content_digest, 'hex') FROM exam_batch_instances ORDER BY id")]


def _idle(settings: Settings) -> bool:
    return probe.nothing_to_send(settings.database_url or "")


# --- a batch waits for the batch that it follows -----------------------------------------------------------------------


def test_a_follow_up_waits_for_its_predecessor_in_a_pause(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    version = Version(tmp_path / "drop")
    with archive_at(settings, KEEPS_LAST, backoff_seconds=60.0, backoff_max_seconds=60.0) as (archive, _):
        for number in (1, 2, 3):
            version.write(number)
            prepare(settings, tmp_path / "drop")
            if number == 1:
                [uid] = [r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances")]
                archive.faults[uid] = ["reset-before"]
                send.run(settings)
            elif number == 2:
                execute(database, "UPDATE exam_batches SET attempt_count = 1 WHERE id = 2")  # so that 3 follows it
        assert rows(database, "SELECT status, follows_batch_id FROM exam_batches ORDER BY id") == [
            ("READY", None),
            ("READY", 1),
            ("READY", 2),
        ]
        assert _idle(settings), "nothing can be claimed"
        assert send.run(settings).delivered == ()
        shown = _batches(settings)
        assert (shown[1].waiting_for or "").startswith("due again in ")
        assert (shown[2].waiting_for or "") == "waits for batch 1, which it follows"
        assert (shown[3].waiting_for or "") == "waits for batch 2, which it follows"
        _end_pauses(database)
        assert not _idle(settings)
        assert [d.id for d in send.run(settings).delivered] == [1, 2, 3]
        assert archive.received == [_digests(database)[0], *_digests(database)]
        assert archive.holds[uid] == _digests(database)[2]


_BEFORE = {
    "READY later": "status = 'READY', next_attempt_at = now() + interval '1 h', finished_at = NULL",
    "READY now": "status = 'READY', next_attempt_at = now() - interval '1 h', finished_at = NULL",
    "READY and expired": "status = 'READY', next_attempt_at = now() + interval '1 h', finished_at = NULL,"
    " ready_at = now() - interval '6 days'",
    "PENDING": "status = 'PENDING', finished_at = NULL",
    "SENDING": "status = 'SENDING', attempt_id = gen_random_uuid(), lease_expires_at = now() + interval '1 h', finished_at = NULL",
    "SENDING, its sender dead": "status = 'SENDING', attempt_id = gen_random_uuid(), finished_at = NULL,"
    " lease_expires_at = now() - interval '1 h'",
    "SENT": "status = 'SENT'",
    "FAILED": "status = 'FAILED', failure_code = 'X'",
}


@pytest.mark.parametrize(
    ("before", "claimed"),
    [
        ("READY later", []),
        ("READY now", [1, 2]),
        ("PENDING", []),
        ("SENDING", []),
        ("SENDING, its sender dead", [1, 2]),
        ("SENT", [2]),
        ("FAILED", [2]),
        ("READY and expired", [2]),
    ],
)
@pytest.mark.parametrize("chain", [False, True], ids=["", "of three"])
def test_a_batch_is_claimed_after_the_earlier_ones_of_its_study(
    settings: Settings, database: engine.Database, tmp_path: Path, before: str, claimed: list[int], chain: bool
) -> None:
    """In a chain of three, the batch in the middle is SENT: the first one was retried later."""
    version = Version(tmp_path / "drop")
    with archive_at(settings, KEEPS_LAST, association_limit=4):
        for number in (1, 2, 3) if chain else (1, 2):
            version.write(number)
            prepare(settings, tmp_path / "drop")
            send.run(settings)
        last = 3 if chain else 2
        execute(database, f"UPDATE exam_batches SET {_BEFORE[before]} WHERE id = 1")
        execute(
            database,
            "UPDATE exam_batches SET status = 'READY', finished_at = NULL, next_attempt_at = now() WHERE id = :last",
            last=last,
        )
        wanted = [last if batch == 2 else batch for batch in claimed]
        if not claimed:
            why = _batches(settings)[last].waiting_for or ""
            which = "1 of the same study" if chain else "1, which it follows"
            assert why.startswith(f"waits for batch {which}; 1 stored under a UID")
        assert _idle(settings) == (not wanted and before != "READY and expired")
        result = send.run(settings)
        assert [d.id for d in result.delivered] == wanted
        assert _idle(settings)


def test_a_removed_or_disabled_destination_with_a_waiting_batch_is_idle(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    version = Version(tmp_path / "drop")
    with archive_at(settings, KEEPS_LAST) as (archive, _):
        version.write(1)
        prepare(settings, tmp_path / "drop")
        [uid] = [r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances")]
        archive.faults[uid] = ["reset-before"]
        send.run(settings)
        version.write(2)
        prepare(settings, tmp_path / "drop")
        _end_pauses(database)
        enable(settings, "pacs", enabled=False)
        assert _idle(settings)
        assert send.run(settings).delivered == ()
        assert _batches(settings)[2].waiting_for == "destination disabled"


def test_a_retried_batch_does_not_store_an_old_version_over_a_newer_one(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    version = Version(tmp_path / "drop", 1)
    samples.ct_study(tmp_path / "drop" / "0" / "more", 1, size=8, study=version.study)
    with archive_at(settings, KEEPS_LAST, max_attempts=1) as (archive, peer):
        version.write(1)
        prepare(settings, tmp_path / "drop")
        uids = [r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY id")]
        archive.faults = {uid: ["refuse"] for uid in uids}
        send.run(settings)
        assert states(database) == ["FAILED"]
        version.write(2)
        prepare(settings, tmp_path / "drop")
        send.run(settings)
        assert states(database) == ["FAILED", "SENT"]
        [new] = rows(
            database,
            "SELECT sop_instance_uid, encode(content_digest, 'hex') FROM exam_batch_instances WHERE batch_id = 2",
        )
        before = len(peer.offered)
        retry.run(settings, [1])
        send.run(settings)
        assert archive.holds[new[0]] == new[1]
        assert len(peer.offered) == before + 1, "the instance without a newer version is sent"
    assert states(database) == ["SENT", "SENT"]
    assert rows(
        database, "SELECT outcome, error_comment FROM exam_batch_instances WHERE batch_id = 1 ORDER BY outcome"
    ) == [
        ("STORED", None),
        ("SUPERSEDED", "batch 2 stored a newer version"),
    ]
    assert _batches(settings)[1].waiting_for == "1 not sent: another batch has a newer version"


def test_a_retried_batch_with_nothing_left_to_send_is_done(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    version = Version(tmp_path / "drop")
    with archive_at(settings, KEEPS_LAST, max_attempts=1) as (archive, peer):
        version.write(1)
        prepare(settings, tmp_path / "drop")
        [uid] = [r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances")]
        archive.faults[uid] = ["refuse"]
        send.run(settings)
        version.write(2)
        prepare(settings, tmp_path / "drop")
        send.run(settings)
        retry.run(settings, [1])
        send.run(settings)
        assert len(peer.offered) == 2
    assert states(database) == ["SENT", "SENT"]
    assert (_batches(settings)[1].stored, _batches(settings)[1].replaced) == (0, 1)
    assert not _batches(settings)[2].other_content, "version 1 was refused: it is not there"


# --- what is known of an archive's content -----------------------------------------------------------------------------


def _claims(settings: Settings, database: engine.Database, archive: Archive) -> None:
    """Assert that ``status`` says of no version that it is at the archive, without a warning, if it is not."""
    marked = {b.id: b.other_content for b in listed(settings)}
    stored = rows(
        database,
        "SELECT batch_id, sop_instance_uid, encode(content_digest, 'hex') FROM exam_batch_instances WHERE outcome = 'STORED'",
    )
    for batch, uid, digest in stored:
        if not marked[batch]:  # each batch has one instance
            assert archive.holds.get(uid) == digest, f"batch {batch} is said to be stored"


_FAULTS = ("ok", "reset", "reset-before", "refuse")


def _sequences(case: int) -> list[tuple[str, ...]]:
    """Return sequences of three faults for one of the cases, which together have all of them: 12 of 64, or all in the long run."""
    every = list(product(_FAULTS, repeat=3))
    random.Random(64).shuffle(every)
    count = min(rounds(12), len(every))
    first = case * count
    return [every[(first + n) % len(every)] for n in range(count)]


@pytest.mark.parametrize("kind", ARCHIVES, ids=["keeps the first, 0111", "keeps the first, 0000", "keeps the last"])
@pytest.mark.parametrize("attempts", [1, 2])
def test_no_version_is_said_to_be_stored_where_the_archive_has_another(
    settings: Settings, database: engine.Database, tmp_path: Path, kind: tuple[bool, int], attempts: int
) -> None:
    """Each study has another sequence of faults. Checked after each pass.

    The six cases share all sequences of three among them; in the long run, EXAMSEND_TEST_ROUNDS=10, each case has all.
    """
    sequences = _sequences(ARCHIVES.index(kind) * 2 + attempts - 1)
    version = Version(tmp_path / "drop", len(sequences))
    pauses = {"backoff_seconds": 60.0, "backoff_max_seconds": 60.0}
    with archive_at(settings, kind, max_attempts=attempts, **pauses) as (archive, _):
        for number, steps in ((1, "s"), (2, "srs"), (3, "srsrs")):
            version.write(number)
            prepare(settings, tmp_path / "drop")
            if number == 1:
                uids = rows(database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY id")
                archive.faults = {row[0]: list(faults) for row, faults in zip(uids, sequences, strict=True)}
            for step in steps:
                _end_pauses(database)
                if step == "r":
                    retry.run(settings, all_failed=True)
                else:
                    # Two studies in a row that are not answered hold the destination; the others go when that is over.
                    while send.run(settings).delivered:
                        execute(database, "UPDATE storage_backend_configs SET held_until = NULL")
                _claims(settings, database, archive)
        newest = dict(
            rows(
                database,
                "SELECT DISTINCT ON (sop_instance_uid) sop_instance_uid, encode(content_digest, 'hex')"
                " FROM exam_batch_instances ORDER BY sop_instance_uid, id DESC",
            )
        )
        if kind == KEEPS_LAST:
            assert set(states(database)) == {"SENT"}
            assert archive.holds == newest, "the newest version is stored last"


@pytest.mark.parametrize("kind", ARCHIVES, ids=["keeps the first, 0111", "keeps the first, 0000", "keeps the last"])
@pytest.mark.parametrize("fault", ["reset", "silence", "kill"])
def test_a_version_whose_answer_was_lost_may_be_at_the_archive(
    settings: Settings, database: engine.Database, tmp_path: Path, kind: tuple[bool, int], fault: str
) -> None:
    """The first version is stored and its answer lost, and its batch fails; the second one is then sent."""
    version = Version(tmp_path / "drop")
    # The pause is longer than a pass: an answer that is lost must not be made up for within the same one.
    given = {"answer_timeout": 0.4, "stall_timeout": 0.4, "backoff_seconds": 30.0, "backoff_max_seconds": 30.0}
    with archive_at(settings, kind, max_attempts=1, **given) as (archive, _):
        version.write(1)
        prepare(settings, tmp_path / "drop")
        [uid] = [r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances")]
        _send_once(settings, database, archive, uid, fault)
        if fault != "kill":
            execute(database, "UPDATE exam_batches SET ready_at = now() - interval '6 days'")
            send.run(settings)
        assert states(database) == ["FAILED"]
        _second_version(settings, database, tmp_path, version, kind, archive)


def _send_once(settings: Settings, database: engine.Database, archive: Archive, uid: str, fault: str) -> None:
    archive.faults[uid] = [fault]
    if fault != "kill":
        send.run(settings)
        return
    archive.sender = subprocess.Popen(
        [sys.executable, "-m", "examsend", "send", "--database-url", settings.database_url or ""]
    )
    assert archive.sender.wait(60) == -signal.SIGKILL
    execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s' WHERE status = 'SENDING'")
    send.run(settings)


def _second_version(
    settings: Settings,
    database: engine.Database,
    tmp_path: Path,
    version: Version,
    kind: tuple[bool, int],
    archive: Archive,
) -> None:
    version.write(2)
    prepare(settings, tmp_path / "drop")
    _end_pauses(database)
    send.run(settings)
    _claims(settings, database, archive)
    shown = _batches(settings)[2]
    if kind == KEEPS_FIRST_0111:
        assert shown.status == "FAILED"
        assert one(database, "SELECT outcome FROM exam_batch_instances WHERE batch_id = 2") == "CONFLICT"
        return
    assert shown.status == "SENT"
    assert (shown.stored, shown.other_content) == (1, 1)
    sentence = "1 stored under a UID whose other content the archive may have kept"
    assert shown.waiting_for == sentence
    assert sentence in rendered(status.run(settings, batch_id=2))[0]
    assert one(database, "SELECT other_content_possible FROM exam_batch_instances WHERE batch_id = 2")


@pytest.mark.parametrize("kind", ARCHIVES, ids=["keeps the first, 0111", "keeps the first, 0000", "keeps the last"])
def test_the_stored_version_is_marked_before_another_one_is_sent(
    settings: Settings, database: engine.Database, tmp_path: Path, kind: tuple[bool, int]
) -> None:
    """The sender of the second version dies before it records anything: the archive may have it instead of the first."""
    version = Version(tmp_path / "drop")
    with archive_at(settings, kind, max_attempts=1) as (archive, _):
        version.write(1)
        prepare(settings, tmp_path / "drop")
        send.run(settings)
        assert not _batches(settings)[1].other_content
        version.write(2)
        prepare(settings, tmp_path / "drop")
        [uid] = {r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances")}
        _send_once(settings, database, archive, uid, "kill")
        assert states(database) == ["SENT", "FAILED"]
        _claims(settings, database, archive)
        assert _batches(settings)[1].other_content == 1


def test_a_version_that_changed_before_it_was_sent_leaves_no_warning(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    """The usual course of a file that is rewritten between ingest and send."""
    version = Version(tmp_path / "drop")
    samples.ct_study(tmp_path / "drop" / "0" / "more", 1, size=8, study=version.study)
    with archive_at(settings, KEEPS_LAST) as (archive, _):
        version.write(1)
        prepare(settings, tmp_path / "drop")
        version.write(2, over=1)
        send.run(settings)
        assert states(database) == ["FAILED"]
        prepare(settings, tmp_path / "drop")
        send.run(settings)
        assert states(database) == ["SENT"], "the first version was never offered: the second takes its place"
        assert not _batches(settings)[1].other_content
        assert _batches(settings)[1].waiting_for is None
        assert set(archive.holds.values()) <= set(_digests(database))
