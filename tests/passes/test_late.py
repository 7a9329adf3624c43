"""What is done with instances that arrive after a batch of their study was attempted: the late policies."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from examsend.commands import destination, finalize, ingest, retry, send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.queue import batches, late
from examsend.queue.batches import Completed
from examsend.report.json import as_json
from examsend.report.text import rendered
from tests.helpers import add, execute, one, rows
from tests.peers.scripted import Peer, scripted


class Study:
    """A study whose instances are written to a directory in any version."""

    def __init__(self, place: Path) -> None:
        self.uid = samples.new_uid()
        self.drop = place / "drop"
        self.drop.mkdir(parents=True)
        self._series = samples.new_uid()
        self._base = samples.new_uid()
        self._writes = 0

    def instance(self, number: int) -> str:
        """Return the SOP Instance UID of an instance."""
        return f"{self._base[:58]}.{number}"

    def data(self, number: int, version: int) -> bytes:
        """Return the data set of a version of an instance."""
        image = samples.Image(samples.CT, self.uid, self._series, 1, number, 2, 2)
        pixels = samples.element(0x7FE00010, "OW", bytes((version, 0) * 4))
        return samples.data_set(image, self.instance(number), pixels)

    def digest(self, number: int, version: int = 1) -> str:
        """Return the digest of the data set of a version."""
        return blake3(self.data(number, version)).hexdigest()

    def write(self, number: int, version: int = 1, *, path: Path | None = None) -> Path:
        """Write a version of an instance, later than all before; by default to a path of its own."""
        path = path or self.drop / f"{number}.{version}.dcm"
        path.unlink(missing_ok=True)
        path.write_bytes(samples.file_of(self.data(number, version), samples.CT, self.instance(number)))
        self._writes += 1
        os.utime(path, (1_600_000_000 + self._writes,) * 2)
        return path


def _ready(database: engine.Database, study: Study) -> None:
    """PENDING -> READY for the batch of a study, if something of it is to be sent."""
    with database.transaction() as tx:
        found = tx.execute(
            batches.text(
                "SELECT b.id, b.last_instance_at FROM exam_batches b WHERE b.status = 'PENDING' AND b.study_instance_uid = :s"
                " AND EXISTS (SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = b.id AND i.outcome = 'WAITING')"
            ),
            {"s": study.uid},
        ).all()
        batches.finalize(tx, [Completed(row.id, row.last_instance_at, "QUIET") for row in found])


def _go(settings: Settings, database: engine.Database, study: Study) -> ingest.IngestResult:
    """Ingest, make READY, send."""
    result = ingest.run(settings, [study.drop])
    _send(settings, database, study)
    return result


def _send(settings: Settings, database: engine.Database, study: Study) -> None:
    _ready(database, study)
    for _ in range(3):
        execute(database, "UPDATE storage_backend_configs SET held_until = NULL, consecutive_failures = 0")
        execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")
        send.run(settings)
        if not rows(database, "SELECT 1 FROM exam_batches WHERE status = 'READY'"):
            return


def _outcomes(database: engine.Database, study: Study) -> list[tuple[str, dict[str, int]]]:
    """Return state and outcomes of each batch of a study, in order."""
    found: dict[int, tuple[str, dict[str, int]]] = {}
    for batch, state, outcome, n in rows(
        database,
        "SELECT b.id, b.status, i.outcome, count(*) FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id"
        " WHERE b.study_instance_uid = :s GROUP BY b.id, b.status, i.outcome ORDER BY b.id",
        s=study.uid,
    ):
        found.setdefault(batch, (state, {}))[1][outcome] = n
    return list(found.values())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with scripted() as made:
        yield made


def _shas(peer: Peer) -> list[str]:
    return [r.digest for r in peer.stored]


# --- never --------------------------------------------------------------------------------------------------------------


def test_under_never_a_late_instance_is_recorded_and_not_sent(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    study.write(1)
    assert _go(settings, database, study).not_sent == 0
    study.write(2)
    late_one = _go(settings, database, study)
    assert (late_one.new, late_one.not_sent) == (1, 1)
    assert json.loads(as_json(late_one))["late"] == [{"destination": "pacs", "policy": "never", "instances": 1}]
    assert "1 instance for pacs came late: recorded and not sent (late policy never)" in rendered(late_one)
    assert _outcomes(database, study) == [("SENT", {"STORED": 1}), ("PENDING", {"NOT_SENT": 1})]
    assert ingest.run(settings, [study.drop]).known == 2, "what is not sent is known"
    assert _shas(peer) == [study.digest(1)]


def test_a_batch_with_nothing_to_send_stays_pending(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    study.write(1)
    _go(settings, database, study)
    study.write(2)
    ingest.run(settings, [study.drop])
    for _ in range(2):
        assert finalize.run(settings).ready == ()
        send.run(settings)
    assert _outcomes(database, study) == [("SENT", {"STORED": 1}), ("PENDING", {"NOT_SENT": 1})]


def test_an_operator_can_send_what_was_recorded(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    study.write(1)
    _go(settings, database, study)
    path = study.write(2)
    _go(settings, database, study)
    os.rename(path, study.drop / "moved.dcm")
    assert ingest.run(settings, [study.drop]).new == 0
    batch = one(database, "SELECT max(id) FROM exam_batches")
    with database.transaction() as tx:
        assert late.release(tx, [batch]) == 1
    _send(settings, database, study)
    assert _outcomes(database, study) == [("SENT", {"STORED": 1}), ("SENT", {"STORED": 1})]
    assert _shas(peer) == [study.digest(1), study.digest(2)], "the file that has moved is found"


def test_versions_that_come_late_under_never_are_all_recorded(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    path = study.write(1)
    _go(settings, database, study)
    for version in (2, 3, 1):
        study.write(1, version, path=path)
        result = _go(settings, database, study)
        assert (result.new, result.not_sent) == (1, 1)
        assert "recorded and not sent" in result.warnings[0].sentence
    assert _outcomes(database, study) == [("SENT", {"STORED": 1}), ("PENDING", {"NOT_SENT": 1, "SUPERSEDED": 2})]
    newest = one(database, "SELECT encode(content_digest, 'hex') FROM exam_batch_instances WHERE outcome = 'NOT_SENT'")
    assert newest == study.digest(1, 1)
    assert len(peer.stored) == 1


def test_a_version_after_a_recorded_one_is_sent_under_another_policy(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    study.write(1)
    _go(settings, database, study)
    study.write(1, 2)
    _go(settings, database, study)
    destination.change(settings, "pacs", None, {"late_policy": "new-only"})
    study.write(1, 3)
    _go(settings, database, study)
    assert _shas(peer) == [study.digest(1, 1), study.digest(1, 3)]
    assert _outcomes(database, study)[1] == ("SENT", {"SUPERSEDED": 1, "STORED": 1})


def test_a_recorded_version_does_not_replace_one_that_is_to_be_sent(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    """SENT must stay true: nothing of an instance that was never sent may count as done."""
    add(settings, peer.address, late_policy="never")
    path = study.write(1)
    study.write(2)
    ingest.run(settings, [study.drop])
    _ready(database, study)
    execute(database, "UPDATE exam_batches SET attempt_count = 1")  # an attempt that stored nothing
    study.write(1, 2, path=path)
    assert _go(settings, database, study).not_sent == 1
    assert _outcomes(database, study) == [("FAILED", {"CHANGED": 1, "STORED": 1}), ("PENDING", {"NOT_SENT": 1})]
    with database.transaction() as tx:
        late.release(tx, rows(database, "SELECT max(id) FROM exam_batches")[0])
    _send(settings, database, study)
    retry.run(settings, all_failed=True)
    _send(settings, database, study)
    assert {state for state, _ in _outcomes(database, study)} == {"SENT"}
    assert sorted(_shas(peer)) == sorted([study.digest(2), study.digest(1, 2)])


def test_the_file_of_an_unsent_version_that_is_there_again_is_sent_although_a_newer_one_is_recorded(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    path, aside = study.write(1), study.drop.parent / "aside.dcm"
    ingest.run(settings, [study.drop])
    os.rename(path, aside)
    _send(settings, database, study)
    assert _outcomes(database, study) == [("FAILED", {"MISSING": 1})]
    study.write(1, 2)
    _go(settings, database, study)
    assert _outcomes(database, study)[1] == ("PENDING", {"NOT_SENT": 1})
    os.rename(aside, path)
    _go(settings, database, study)
    assert _outcomes(database, study) == [("SENT", {"STORED": 1}), ("PENDING", {"NOT_SENT": 1})]


def test_a_destination_with_nothing_but_recorded_instances_can_be_removed(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    study.write(1)
    _go(settings, database, study)
    study.write(2)
    _go(settings, database, study)
    destination.remove(settings, "pacs")


# --- the cut-off --------------------------------------------------------------------------------------------------------


def test_after_the_cut_off_the_second_policy_holds(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_cutoff_hours=5)
    study.write(1)
    _go(settings, database, study)
    study.write(2)
    assert _go(settings, database, study).not_sent == 0
    execute(database, "UPDATE exam_batches SET finished_at = finished_at - interval '4 hours'")
    study.write(3)
    assert ingest.run(settings, [study.drop]).not_sent == 0
    execute(database, "UPDATE exam_batches SET finished_at = finished_at - interval '2 hours'")
    study.write(4)
    assert ingest.run(settings, [study.drop]).not_sent == 1
    study.write(3, 2)
    assert ingest.run(settings, [study.drop]).not_sent == 0, "it replaces what is sent in any case"
    _send(settings, database, study)
    assert _outcomes(database, study)[2] == ("SENT", {"STORED": 1, "NOT_SENT": 1, "SUPERSEDED": 1})
    assert _shas(peer) == [study.digest(1), study.digest(2), study.digest(3, 2)]


def test_an_instance_for_a_batch_that_was_never_attempted_is_not_late(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    study.write(1)
    ingest.run(settings, [study.drop])
    _ready(database, study)
    study.write(2)
    result = ingest.run(settings, [study.drop])
    assert (result.not_sent, result.opened, result.late) == (0, 0, ())
    _send(settings, database, study)
    assert _outcomes(database, study) == [("SENT", {"STORED": 2})]


# --- resend-all ---------------------------------------------------------------------------------------------------------


def test_under_resend_all_the_whole_study_goes_again(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="resend-all")
    for number in (1, 2, 3):
        study.write(number)
    _go(settings, database, study)
    study.write(2, 2)
    study.write(4)
    result = _go(settings, database, study)
    assert result.new == 2
    assert result.left_out == ()
    assert "2 instances for pacs came late: the whole study goes again (late policy resend-all)" in rendered(result)
    assert _outcomes(database, study) == [("SENT", {"STORED": 3}), ("SENT", {"STORED": 4})]
    again = [study.digest(1), study.digest(2, 2), study.digest(3), study.digest(4)]
    assert sorted(_shas(peer)[3:]) == sorted(again)
    assert ingest.run(settings, [study.drop]).known == 5


@pytest.mark.parametrize("chunk", [1, 500])
def test_instances_without_a_file_are_left_out_and_counted_once(
    settings: Settings, database: engine.Database, study: Study, peer: Peer, chunk: int
) -> None:
    settings = Settings(database_url=settings.database_url, settle=0, ingest_chunk=chunk, record_seconds=0.02)
    add(settings, peer.address, late_policy="resend-all")
    paths = [study.write(number) for number in (1, 2, 3, 4)]
    copy = study.drop / "copy.dcm"
    shutil.copy2(paths[1], copy)
    _go(settings, database, study)
    for path in paths[:3]:
        path.unlink()
    for number in (5, 6):
        study.write(number)
    result = _go(settings, database, study)
    batch = one(database, "SELECT max(id) FROM exam_batches")
    assert result.left_out == (f"batch {batch}: 2 of 6 instances are not sent again: their files are gone",)
    assert f"warning: {result.left_out[0]}" in rendered(result)
    assert sorted(_shas(peer)[4:]) == sorted(study.digest(n) for n in (2, 4, 5, 6)), "a copy stands in"
    assert [state for state, _ in _outcomes(database, study)] == ["SENT", "SENT"]


def test_a_file_on_a_mount_that_is_away_is_not_gone(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="resend-all")
    path = study.write(1)
    _go(settings, database, study)
    execute(database, "UPDATE exam_batch_instances SET mount_point = :p", p=str(study.drop.parent))
    os.rename(path, study.drop.parent / "aside.dcm")
    study.write(2)
    assert ingest.run(settings, [study.drop]).left_out == ()
    assert _outcomes(database, study)[1] == ("PENDING", {"WAITING": 2})


def test_an_unsent_instance_without_a_file_stays_where_it_is_needed(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="resend-all")
    path, aside = study.write(1), study.drop.parent / "aside.dcm"
    study.write(2)
    ingest.run(settings, [study.drop])
    os.rename(path, aside)
    _send(settings, database, study)
    study.write(3)
    assert _go(settings, database, study).left_out == ()
    assert _outcomes(database, study) == [("FAILED", {"MISSING": 1, "STORED": 1}), ("SENT", {"STORED": 2})]
    os.rename(aside, path)
    _go(settings, database, study)
    assert [state for state, _ in _outcomes(database, study)] == ["SENT", "SENT"]


def test_a_resent_instance_whose_file_was_away_is_sent_once_it_is_back(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="resend-all")
    path, aside = study.write(1), study.drop.parent / "aside.dcm"
    _go(settings, database, study)
    study.write(2)
    ingest.run(settings, [study.drop])
    os.rename(path, aside)
    _send(settings, database, study)
    assert _outcomes(database, study)[1] == ("FAILED", {"MISSING": 1, "STORED": 1})
    os.rename(aside, path)
    _go(settings, database, study)
    assert [state for state, _ in _outcomes(database, study)] == ["SENT", "SENT"]
    assert Counter(_shas(peer)) == {study.digest(1): 2, study.digest(2): 1}


def test_what_was_recorded_goes_with_the_whole_study(
    settings: Settings, database: engine.Database, study: Study, peer: Peer
) -> None:
    add(settings, peer.address, late_policy="never")
    study.write(1)
    _go(settings, database, study)
    study.write(2)
    _go(settings, database, study)
    destination.change(settings, "pacs", None, {"late_policy": "resend-all"})
    study.write(3)
    _go(settings, database, study)
    assert _outcomes(database, study)[1] == ("SENT", {"STORED": 3})


# --- a model ------------------------------------------------------------------------------------------------------------

_STEPS = st.one_of(
    st.tuples(st.just("arrive"), st.sets(st.integers(0, 3), min_size=1, max_size=3)),
    st.just(("send", None)),
    st.just(("attempt", None)),
    st.just(("again", None)),
)
_MIXED = st.one_of(
    _STEPS,
    st.tuples(st.just("policy"), st.sampled_from(["new-only", "resend-all", "never"])),
    st.just(("age", None)),
)


class Model:
    """Plays steps with a study of its own, and checks after each what must always hold."""

    def __init__(self, settings: Settings, database: engine.Database, peer: Peer, place: Path, policy: str) -> None:
        self._settings, self._database, self.peer = settings, database, peer
        self.study = Study(place)
        self.versions: Counter[int] = Counter()
        self.early: set[str] = set()
        """Digests of what came before the first attempt."""
        self._sent: dict[int, list[Any]] = {}
        self.before = len(peer.stored)
        destination.change(
            settings, "pacs", None, {"late_policy": policy, "late_cutoff_hours": 5, "late_policy_after": policy}
        )

    def play(self, step: str, value: Any) -> None:
        attempted = bool(
            rows(
                self._database,
                "SELECT 1 FROM exam_batches WHERE study_instance_uid = :s AND (attempt_count > 0 OR status = 'SENT')",
                s=self.study.uid,
            )
        )
        match step:
            case "arrive":
                for number in value:
                    self.versions[number] += 1
                    self.study.write(number, self.versions[number])
                    if not attempted:
                        self.early.add(self.study.digest(number, self.versions[number]))
                result = ingest.run(self._settings, [self.study.drop])
                assert result.new == len(value)
            case "again":
                assert ingest.run(self._settings, [self.study.drop]).new == 0
            case "send":
                _send(self._settings, self._database, self.study)
            case "attempt":
                _ready(self._database, self.study)
                execute(
                    self._database,
                    "UPDATE exam_batches SET attempt_count = 1 WHERE study_instance_uid = :s AND status = 'READY'",
                    s=self.study.uid,
                )
            case "policy":
                destination.change(self._settings, "pacs", None, {"late_policy": value})
            case "age":
                execute(
                    self._database,
                    "UPDATE exam_batches SET finished_at = finished_at - interval '6 hours' WHERE study_instance_uid = :s"
                    " AND status = 'SENT'",
                    s=self.study.uid,
                )
        self._check()

    def _check(self) -> None:
        found: dict[int, list[Any]] = {}
        newest: dict[str, str] = {}
        for row in rows(
            self._database,
            "SELECT b.id, b.status, i.id AS instance, i.sop_instance_uid, encode(i.content_digest, 'hex') AS sha, i.outcome"
            " FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id WHERE b.study_instance_uid = :s"
            " ORDER BY i.id",
            s=self.study.uid,
        ):
            if row.outcome != "SUPERSEDED":
                newest[row.sop_instance_uid] = row.sha
            if row.status == "SENT":
                found.setdefault(row.id, []).append((row.instance, row.sha, row.outcome))
            assert row.status != "FAILED"
        current = {self.study.instance(n): self.study.digest(n, v) for n, v in self.versions.items()}
        assert newest == current, "the newest version of each instance is registered, whatever becomes of it"
        assert all(found[batch] == before for batch, before in self._sent.items()), "a SENT batch is never changed"
        self._sent = found

    def received(self) -> Counter[str]:
        """Count the digests received of this study."""
        return Counter(r.digest for r in self.peer.stored[self.before :])


def _play(
    settings: Settings, database: engine.Database, peer: Peer, policy: str, steps: list[tuple[str, Any]]
) -> Model:
    with tempfile.TemporaryDirectory() as place:
        model = Model(settings, database, peer, Path(place), policy)
        for step, value in [*steps, ("again", None), ("send", None)]:
            model.play(step, value)
    return model


_CONFIG = examples(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_under_new_only_everything_is_sent_exactly_once(
    settings: Settings, database: engine.Database, peer: Peer
) -> None:
    add(settings, peer.address)

    @_CONFIG
    @given(st.lists(_STEPS, min_size=2, max_size=7))
    def check(steps: list[tuple[str, Any]]) -> None:
        model = _play(settings, database, peer, "new-only", steps)
        received = model.received()
        assert set(received.values()) <= {1}
        assert {model.study.digest(n, v) for n, v in model.versions.items()} <= set(received)

    check()


def test_under_never_nothing_late_is_sent(settings: Settings, database: engine.Database, peer: Peer) -> None:
    add(settings, peer.address)

    @_CONFIG
    @given(st.lists(_STEPS, min_size=2, max_size=7))
    def check(steps: list[tuple[str, Any]]) -> None:
        model = _play(settings, database, peer, "never", steps)
        received = model.received()
        assert set(received) <= model.early
        assert set(received.values()) <= {1}

    check()


def test_under_resend_all_the_last_follow_up_is_the_whole_study(
    settings: Settings, database: engine.Database, peer: Peer
) -> None:
    add(settings, peer.address)

    @_CONFIG
    @given(st.lists(_STEPS, min_size=2, max_size=7))
    def check(steps: list[tuple[str, Any]]) -> None:
        model = _play(settings, database, peer, "resend-all", steps)
        last = rows(
            database,
            "SELECT encode(i.content_digest, 'hex') FROM exam_batch_instances i WHERE i.outcome = 'STORED' AND i.batch_id ="
            " (SELECT max(id) FROM exam_batches WHERE study_instance_uid = :s)",
            s=model.study.uid,
        )
        assert sorted(row[0] for row in last) == sorted(model.study.digest(n, v) for n, v in model.versions.items())

    check()


def test_whatever_the_policies_nothing_is_lost_and_what_is_sent_does_not_change(
    settings: Settings, database: engine.Database, peer: Peer
) -> None:
    add(settings, peer.address)

    @_CONFIG
    @given(st.sampled_from(["new-only", "resend-all", "never"]), st.lists(_MIXED, min_size=3, max_size=9))
    def check(policy: str, steps: list[tuple[str, Any]]) -> None:
        model = _play(settings, database, peer, policy, steps)
        open_left = rows(
            database,
            "SELECT 1 FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id WHERE b.study_instance_uid = :s"
            " AND b.status <> 'SENT' AND i.outcome NOT IN ('NOT_SENT', 'SUPERSEDED')",
            s=model.study.uid,
        )
        assert not open_left

    check()
