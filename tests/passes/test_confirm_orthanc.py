"""``confirm`` with Orthanc: by Storage Commitment, reported to ``listen`` on a new association, and by query."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from examsend.commands import confirm, send
from examsend.commands.confirm import Selection
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.queue.proven import Code
from examsend.states import Confirm
from tests.helpers import add, deliver, execute, one, rows
from tests.peers import orthanc
from tests.peers.dcmtk import free_port
from tests.services.process import listening

pytestmark = [orthanc.needs_orthanc, pytest.mark.orthanc]

NOW = {"confirm_after_seconds": 0.0, "confirm_backoff_seconds": 0.2, "confirm_backoff_max_seconds": 0.5}


def _state(database: engine.Database) -> list[tuple[int, str]]:
    return [tuple(row) for row in rows(database, "SELECT batch_id, state FROM batch_confirmations ORDER BY 1")]


def _requests(database: engine.Database) -> list[tuple[object, ...]]:
    return [tuple(row) for row in rows(database, "SELECT * FROM commitment_requests")]


def _until(settings: Settings, database: engine.Database, wanted: list[str], seconds: float = 30) -> None:
    """Run passes, as timers do, until the batches are in these states of confirmation."""
    over = time.monotonic() + seconds
    while [state for _, state in _state(database)] != wanted:
        assert time.monotonic() < over, (
            _state(database),
            [tuple(r) for r in rows(database, "SELECT * FROM commitment_requests")],
            [tuple(r) for r in rows(database, "SELECT confirm_problem FROM storage_backend_configs")],
        )
        confirm.run(settings)
        send.run(settings)
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["commitment", "query"])
def test_an_instance_that_orthanc_loses_is_found_sent_again_and_confirmed(
    settings: Settings,
    database: engine.Database,
    database_url: str,
    orthanc_server: Callable[..., orthanc.Orthanc],
    tmp_path: Path,
    how: str,
) -> None:
    drop = tmp_path / "drop"
    samples.ct_study(drop, 4, size=16)
    port = free_port()
    archive = orthanc_server(**orthanc.knows(port))
    with listening(tmp_path / "listen", database_url, "--port", str(port), "--bind", "127.0.0.1") as listen:
        listen.wait_for("listening as")
        add(settings, archive.address, confirm=how, **NOW)
        deliver(settings, drop)
        lost = one(database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY id LIMIT 1")
        archive.lose(lost)
        over = time.monotonic() + 20
        found = None
        while not rows(database, "SELECT 1 FROM exam_batches WHERE id = 2"):
            assert time.monotonic() < over, (found, _requests(database), listen.text())
            found = confirm.run(settings)
            time.sleep(0.1)
        [dispute] = found.disputes
        assert (dispute.id, dispute.absent, dispute.resent, dispute.for_person) == (1, 1, 1, 0)
        assert dispute.resent_batch_id == 2
        assert rows(database, "SELECT sop_instance_uid FROM exam_batch_instances WHERE batch_id = 2") == [(lost,)]
        assert _state(database) == [(1, "DISPUTED")]
        assert not found.needs_person
        _until(settings, database, ["CONFIRMED", "CONFIRMED"])
        assert sorted(archive.files()) == sorted(
            r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances WHERE batch_id = 1")
        )
        verdicts = rows(database, "SELECT verdict, count(*) FROM instance_confirmations GROUP BY 1 ORDER BY 1")
        assert [tuple(v) for v in verdicts] == [("CONFIRMED", 4), ("SENT_AGAIN", 1)]


def test_what_was_sent_before_confirm_was_turned_on_is_listed(
    settings: Settings,
    database: engine.Database,
    orthanc_server: Callable[..., orthanc.Orthanc],
    tmp_path: Path,
) -> None:
    drop = tmp_path / "drop"
    samples.ct_study(drop, 3, size=16)
    archive = orthanc_server(**orthanc.knows(1))
    add(settings, archive.address)
    deliver(settings, drop)
    assert _state(database) == []
    lost = one(database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY id DESC LIMIT 1")
    archive.lose(lost)
    selection = Selection(studies=[one(database, "SELECT study_instance_uid FROM exam_batches")])
    found = confirm.run(settings, selection, method=Confirm.QUERY, report=tmp_path / "list.csv")
    assert (found.asked, found.instances, found.report_rows, found.exit_code) == (1, 3, 3, 0)
    with (tmp_path / "list.csv").open() as stream:
        listed = {row["sop_instance_uid"]: (row["answer"], row["proof"]) for row in csv.DictReader(stream)}
    assert listed.pop(lost) == ("ABSENT", "")
    assert set(listed.values()) == {("CONFIRMED", "LISTED")}


def test_a_commitment_to_a_uid_of_which_orthanc_kept_the_older_version_lets_no_source_go(
    settings: Settings,
    database: engine.Database,
    database_url: str,
    orthanc_server: Callable[..., orthanc.Orthanc],
    tmp_path: Path,
) -> None:
    drop = tmp_path / "drop"
    [file] = samples.ct_study(drop, 1, size=16)
    port = free_port()
    archive = orthanc_server(**orthanc.knows(port), OverwriteInstances=False)
    with listening(tmp_path / "listen", database_url, "--port", str(port), "--bind", "127.0.0.1") as listen:
        listen.wait_for("listening as")
        add(settings, archive.address, confirm="commitment", **NOW)
        deliver(settings, drop)
        corrected = dcmread(file)
        corrected.PatientComments = "corrected"
        corrected.save_as(drop / "corrected.dcm")
        execute(database, "UPDATE storage_backend_configs SET after = 'remove'")
        deliver(settings, drop)
        _until(settings, database, ["CONFIRMED", "CONFIRMED"])
        # It answered success, and committed itself to the UID: of the version that it had.
        [kept] = archive.files().values()
        assert b"corrected" not in kept
        found = confirm.run(settings, Selection(batch_ids=[1, 2]), wait=20)
        assert (found.confirmed, found.sources.removed) == (2, 0)
        assert {k.code for k in found.sources.kept} == {Code.OTHER_CONTENT}
        assert sorted(p.name for p in drop.iterdir()) == sorted([file.name, "corrected.dcm"])
