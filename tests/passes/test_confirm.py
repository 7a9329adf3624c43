"""The pass ``confirm`` against an archive that behaves well, and badly in each way."""

from __future__ import annotations

import csv
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examsend.commands import confirm, send
from examsend.commands.confirm import Selection
from examsend.config.settings import Settings
from examsend.confirmation import csv_list
from examsend.db import engine, probe
from examsend.demo import samples
from examsend.errors import Refused, UsageError
from examsend.states import Confirm, SpoolMode
from tests.helpers import add, deliver, execute, one, rows
from tests.peers.archiving import Archive, archiving
from tests.services.process import listening

NOW = {"confirm_after_seconds": 0.0, "confirm_backoff_seconds": 0.05, "confirm_backoff_max_seconds": 0.1}


def _sent(
    settings: Settings, archive: Archive, drop: Path, number: int = 3, how: str = "commitment", **values: Any
) -> None:
    samples.ct_study(drop, number, size=16)
    add(settings, archive.address, confirm=how, **{**NOW, **values})
    deliver(settings, drop)


def _states(database: engine.Database) -> list[str]:
    return [row[0] for row in rows(database, "SELECT state FROM batch_confirmations ORDER BY batch_id")]


def _listed(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def _until(done: Callable[[], bool], seconds: float = 20) -> None:
    over = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < over
        time.sleep(0.05)


def _confirm_until(settings: Settings, database: engine.Database, wanted: list[str]) -> None:
    def done() -> bool:
        confirm.run(settings)
        send.run(settings)
        return _states(database) == wanted

    _until(done)


def test_a_report_on_the_same_association(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop")
        found = confirm.run(settings)
        assert (found.asked, found.instances, found.confirmed, found.exit_code) == (1, 3, 1, 0)
        assert _states(database) == ["CONFIRMED"]
        assert archive.answers == [0]
        proofs = rows(database, "SELECT DISTINCT proof, transaction_uid FROM instance_confirmations")
        assert [tuple(p) for p in proofs] == [("COMMITTED", archive.asked[0].transaction)]
        assert confirm.run(settings).asked == 0


def test_a_transaction_is_on_record_before_it_is_sent(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    known: list[bool] = []
    with archiving(report="never") as archive:
        _sent(settings, archive, tmp_path / "drop")

        def look(uid: str) -> None:
            known.append(bool(rows(database, "SELECT 1 FROM commitment_requests WHERE transaction_uid = :u", u=uid)))

        archive.look = look
        confirm.run(settings)
    assert known == [True]
    uid = archive.asked[0].transaction
    assert rows(database, "SELECT status FROM commitment_requests WHERE transaction_uid = :u", u=uid) == [(0,)]


def test_many_instances_go_in_several_requests(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", 7, confirm_instances=3)
        confirm.run(settings)
        assert [len(a.uids) for a in archive.asked] == [3, 3, 1]
        assert _states(database) == ["CONFIRMED"]


def test_reports_come_twice_to_listen_and_are_answered(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    with archiving(report="new", times=2) as archive, listening(tmp_path / "listen", database_url) as listen:
        archive.to = listen.port
        _sent(settings, archive, tmp_path / "drop")
        confirm.run(settings)
        _until(lambda: len(archive.answers) >= 2)
        assert archive.answers == [0, 0]
        assert _states(database) == ["CONFIRMED"]


def test_a_report_of_another_ae_title_to_listen_is_refused(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    with (
        archiving(report="new", calling_aet="OTHER") as archive,
        listening(tmp_path / "listen", database_url) as listen,
    ):
        archive.to = listen.port
        _sent(settings, archive, tmp_path / "drop")
        confirm.run(settings)
        _until(lambda: bool(archive.answers))
        assert archive.answers[0] == 0x0124
        assert _states(database) == ["ASKED"]
        assert one(database, "SELECT count(*) FROM instance_confirmations") == 0


def test_what_a_report_leaves_out_is_asked_about_again(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop")
        first = min(archive.has)
        archive.leave_out = lambda uid: uid == first
        confirm.run(settings)
        assert _states(database) == ["ASKED"]
        archive.leave_out = lambda _uid: False
        _confirm_until(settings, database, ["CONFIRMED"])
        assert archive.asked[-1].uids == (first,)
        assert len({a.transaction for a in archive.asked}) == len(archive.asked)


def test_an_archive_that_never_reports_is_given_up(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving(report="never") as archive:
        _sent(settings, archive, tmp_path / "drop")
        confirm.run(settings)
        assert _states(database) == ["ASKED"]
        execute(
            database,
            "UPDATE batch_confirmations SET opened_at = opened_at - interval '25 h', due_at = clock_timestamp()",
        )
        found = confirm.run(settings)
        assert (found.exit_code, [s.id for s in found.for_person]) == (1, [1])
        assert _states(database) == ["UNCONFIRMED"]
        assert "not confirmed within 24.0 hours" in one(database, "SELECT reason FROM batch_confirmations")
        assert confirm.run(settings).exit_code == 0


@pytest.mark.parametrize(("status", "held"), [(0x0110, False), (0x0213, False), (0x0124, True), (0x0122, True)])
def test_an_archive_that_refuses_the_request(
    settings: Settings, database: engine.Database, tmp_path: Path, status: int, held: bool
) -> None:
    with archiving(status=status) as archive:
        _sent(settings, archive, tmp_path / "drop", confirm_backoff_seconds=60.0, confirm_backoff_max_seconds=60.0)
        found = confirm.run(settings)
        assert bool(found.problems) is held
        assert f"{status:04X}" in one(database, "SELECT reason FROM batch_confirmations")
        assert one(database, "SELECT confirm_held_until > clock_timestamp() FROM storage_backend_configs") is (
            held or None
        )
        assert len(archive.asked) == 1
        confirm.run(settings)
        assert len(archive.asked) == 1


def test_an_archive_that_is_away_costs_one_association_a_pass(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", confirm_backoff_seconds=60.0, confirm_backoff_max_seconds=60.0)
    found = confirm.run(settings)
    [problem] = found.problems
    assert problem.destination == "pacs"
    assert one(database, "SELECT tries FROM batch_confirmations") == 0
    assert confirm.run(settings).problems == ()
    url = settings.database_url or ""
    assert probe.nothing_to_confirm(url)
    # Whoever names a batch asks now.
    assert confirm.run(settings, Selection(batch_ids=[1])).problems != ()


def test_a_lost_instance_goes_again_and_is_confirmed(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop")
        lost = sorted(archive.has)[1]
        archive.lose(lost)
        found = confirm.run(settings)
        [dispute] = found.disputes
        assert (dispute.resent, found.exit_code) == (1, 0)
        _confirm_until(settings, database, ["CONFIRMED", "CONFIRMED"])
        assert lost in archive.has


# --- by query ---------------------------------------------------------------------------------------------------------


def test_a_query_lists_each_instance(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", how="query")
        assert confirm.run(settings).confirmed == 1
        assert rows(database, "SELECT DISTINCT proof FROM instance_confirmations") == [("LISTED",)]
        assert archive.asked == []


def test_numbers_are_weaker_proof(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with archiving(image_level=False) as archive:
        _sent(settings, archive, tmp_path / "drop", how="query")
        assert confirm.run(settings).confirmed == 1
        assert rows(database, "SELECT DISTINCT proof FROM instance_confirmations") == [("COUNTED",)]
        assert "by number only" in one(database, "SELECT reason FROM batch_confirmations")
        archive.lose(min(archive.has))
        found = confirm.run(settings, Selection(batch_ids=[1]))
        # Which one is missing is not known, so that none is sent again.
        assert (found.confirmed, found.disputes) == (0, ())
        assert rows(database, "SELECT DISTINCT verdict FROM instance_confirmations") == [("LATER",)]


def test_a_study_that_the_archive_does_not_know_is_absent(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", how="query")
        archive.lose(*list(archive.has))
        [dispute] = confirm.run(settings).disputes
        assert (dispute.absent, dispute.resent) == (3, 3)
        _confirm_until(settings, database, ["CONFIRMED", "CONFIRMED"])


def test_many_studies_over_one_association(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with archiving() as archive:
        for n in range(25):
            samples.ct_study(tmp_path / "drop" / str(n), 1, size=16)
        add(settings, archive.address, confirm="query", **NOW)
        deliver(settings, tmp_path / "drop")
        found = confirm.run(settings)
        assert (found.asked, found.confirmed) == (25, 25)


# --- asked for ----------------------------------------------------------------------------------------------------------


def test_what_was_sent_before_is_asked_about_on_request(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", how="none")
        assert _states(database) == []
        study = one(database, "SELECT study_instance_uid FROM exam_batches")
        with pytest.raises(UsageError, match="never asked"):
            confirm.run(settings, Selection(studies=[study]))
        found = confirm.run(
            settings, Selection(studies=[study]), method=Confirm.COMMITMENT, wait=10, report=tmp_path / "list.csv"
        )
        assert (found.selected, found.confirmed, found.awaited, found.exit_code) == (1, 1, 0, 0)
        listed = _listed(tmp_path / "list.csv")
        assert {row["answer"] for row in listed} == {"CONFIRMED"}
        assert {row["transaction_uid"] for row in listed} == {archive.asked[0].transaction}


def test_what_was_confirmed_before_the_crash_is_found_missing(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", on_disputed="report")
        assert confirm.run(settings).confirmed == 1
        lost = min(archive.has)
        archive.lose(lost)
        since = one(database, "SELECT clock_timestamp() - interval '1 h'")
        found = confirm.run(settings, Selection(since=since), report=tmp_path / "list.csv")
        assert (found.exit_code, found.report_rows) == (1, 3)
        answers = {r["sop_instance_uid"]: r["answer"] for r in _listed(tmp_path / "list.csv")}
        assert answers[lost] == "ABSENT"
        assert sorted(answers.values()) == ["ABSENT", "CONFIRMED", "CONFIRMED"]


def test_selections_that_select_nothing(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=16)
    add(settings, "NOBODY@127.0.0.1:9", confirm="query")
    deliver(settings, tmp_path / "drop")
    with pytest.raises(Refused, match="not SENT"):
        confirm.run(settings, Selection(batch_ids=[1]))
    for selection in (Selection(batch_ids=[99]), Selection(studies=["1.2.99"])):
        with pytest.raises(UsageError, match="there is no batch"):
            confirm.run(settings, selection)
    with pytest.raises(UsageError, match="selected"):
        confirm.run(settings, wait=1)
    assert one(database, "SELECT count(*) FROM batch_confirmations") == 0


def test_a_dry_run_asks_nothing(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop")
        found = confirm.run(settings, Selection(batch_ids=[1]), dry_run=True)
        assert (found.selected, found.asked, archive.asked) == (1, 0, [])
        assert _states(database) == ["UNCONFIRMED"]


# --- several passes -----------------------------------------------------------------------------------------------------


def test_two_passes_at_once_ask_once(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    with archiving() as archive:
        for n in range(30):
            samples.ct_study(tmp_path / "drop" / str(n), 1, size=16)
        add(
            settings,
            archive.address,
            confirm="commitment",
            **{**NOW, "confirm_backoff_seconds": 60.0, "confirm_backoff_max_seconds": 60.0},
        )
        deliver(settings, tmp_path / "drop")
        passes = [threading.Thread(target=confirm.run, args=(settings,)) for _ in range(3)]
        for one_pass in passes:
            one_pass.start()
        for one_pass in passes:
            one_pass.join(60)
        asked = [uid for a in archive.asked for uid in a.uids]
        assert sorted(asked) == sorted(archive.has)
        assert set(_states(database)) == {"CONFIRMED"}


def test_no_setting_makes_it_ask_more_than_40_times_a_day(settings: Settings, tmp_path: Path) -> None:
    from examsend.confirmation.rounds import pause
    from examsend.queue.destination import get_destination

    add(settings, "A@127.0.0.1:9", confirm="query", **NOW)
    from examsend.db import access

    with access.opened(settings) as opened:
        destination = opened.run(lambda tx: get_destination(tx, "pacs"))
    day, asked, at = 86400.0, [], 0.0
    while at < 3 * day:
        asked.append(at)
        at += pause(destination, len(asked))
    assert max(sum(begin <= t < begin + day for t in asked) for begin in asked) <= 40


# --- sources ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_which_sources_of_selected_batches_would_go(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop")
        assert confirm.run(settings).confirmed == 1
        execute(database, "UPDATE storage_backend_configs SET after = 'remove'")
        assert confirm.run(settings, dry_run=True).sources.would == ()
        found = confirm.run(settings, Selection(batch_ids=[1]), dry_run=True)
        assert len(found.sources.would) == 3
        assert len(list((tmp_path / "drop").iterdir())) == 3
        # What was confirmed before somebody asked again proves nothing any more.
        archive.status = 0x0110
        confirm.run(settings, Selection(batch_ids=[1]))
        assert confirm.run(settings, Selection(batch_ids=[1]), dry_run=True).sources.would == ()
        archive.status = 0
        found = confirm.run(settings, Selection(batch_ids=[1]))
        assert (found.confirmed, found.sources.removed) == (1, 3)
        assert list((tmp_path / "drop").iterdir()) == []


def test_a_file_in_a_spool_that_this_host_does_not_know_of_stays(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    spooling = replace(settings, spool=SpoolMode.LINK, spool_directory=tmp_path / "spool")
    with archiving() as archive:
        samples.ct_study(tmp_path / "drop", 2, size=16)
        add(settings, archive.address, confirm="commitment", after="remove", **NOW)
        deliver(spooling, tmp_path / "drop")
        execute(database, "INSERT INTO ingested_directories (path) VALUES (:p)", p=str(tmp_path))
        # The spool's setting is missing here.
        confirm.run(settings)
        confirm.run(settings)
        assert len(list((tmp_path / "spool").rglob("*.dcm"))) == 2


def test_a_claim_is_renewed_while_a_slow_archive_answers(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", 6, confirm_instances=1, confirm_backoff_seconds=0.05)
        archive.look = lambda _transaction: time.sleep(0.4)
        short = replace(settings, lease=1.0)
        passes = [threading.Thread(target=confirm.run, args=(short,)) for _ in range(2)]
        for n, one_pass in enumerate(passes):
            time.sleep(1.2 * n)
            one_pass.start()
        for one_pass in passes:
            one_pass.join(60)
        assert len(archive.asked) == 6
        assert _states(database) == ["CONFIRMED"]


def test_a_study_that_ends_each_association_keeps_no_other_from_being_asked_about(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Archive.on_find
    first: list[str] = []

    def on_find(self: Archive, event: Any) -> Any:
        if event.identifier.StudyInstanceUID in first:
            event.assoc.abort()
            return
        yield from answer(self, event)

    monkeypatch.setattr(Archive, "on_find", on_find)
    with archiving() as archive:
        for n in range(3):
            samples.ct_study(tmp_path / "drop" / str(n), 1, size=16)
        add(settings, archive.address, confirm="query", **NOW)
        deliver(settings, tmp_path / "drop")
        first.append(one(database, "SELECT study_instance_uid FROM exam_batches WHERE id = 1"))
        for _ in range(3):
            time.sleep(0.2)
            confirm.run(settings)
        assert _states(database) == ["ASKED", "CONFIRMED", "CONFIRMED"]


def test_a_pass_that_is_to_end_sends_no_more_requests(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", 10, confirm_instances=1)
        archive.look = lambda _transaction: time.sleep(0.3)
        assert confirm.run(settings, max_runtime=1.0).stopped
        assert len(archive.asked) < 10
        archive.look = lambda _transaction: None
        _confirm_until(settings, database, ["CONFIRMED"])


@pytest.mark.parametrize("name", ["directory", "pipe", "link", "no/list.csv", "x" * 254])
def test_a_report_replaces_nothing_but_a_file(
    settings: Settings, database: engine.Database, tmp_path: Path, name: str
) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot be written"):
        csv_list.write(database, tmp_path / name, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory", "link", "pipe"]
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(UsageError, match="not a regular file"):
        csv_list.write(database, Path("/"), [])
    (tmp_path / "old.csv").write_text("old")
    csv_list.write(database, tmp_path / "old.csv", [])
    assert (tmp_path / "old.csv").read_text().startswith("batch,")


def test_by_none_is_no_way_to_ask(settings: Settings, database: engine.Database) -> None:
    with pytest.raises(UsageError, match="commitment or query"):
        confirm.run(settings, Selection(batch_ids=[1]), method=Confirm.NONE)


def test_what_is_absent_makes_the_rest_of_its_batch_no_sooner_asked_about(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    with archiving() as archive:
        _sent(settings, archive, tmp_path / "drop", confirm_backoff_seconds=60.0, confirm_backoff_max_seconds=60.0)
        first, second, _ = sorted(archive.has)
        archive.lose(first)
        archive.leave_out = lambda uid: uid == second
        assert confirm.run(settings).disputes[0].resent == 1
        confirm.run(settings)
        assert [second in a.uids for a in archive.asked] == [True]
        assert one(database, "SELECT due_at > clock_timestamp() + interval '20 s' FROM batch_confirmations")


def test_a_batch_that_ends_each_association_keeps_no_other_from_being_asked_about(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Archive.on_action
    first: list[str] = []

    def on_action(self: Archive, event: Any) -> Any:
        asked = {str(i.ReferencedSOPInstanceUID) for i in event.action_information.ReferencedSOPSequence}
        if asked & set(first):
            event.assoc.abort()
        return answer(self, event)

    monkeypatch.setattr(Archive, "on_action", on_action)
    with archiving(report="never") as archive:
        for n in range(3):
            samples.ct_study(tmp_path / "drop" / str(n), 1, size=16)
        add(settings, archive.address, confirm="commitment", **NOW)
        deliver(settings, tmp_path / "drop")
        first.append(one(database, "SELECT sop_instance_uid FROM exam_batch_instances WHERE batch_id = 1"))
        for _ in range(3):
            time.sleep(0.2)
            confirm.run(settings)
        asked = rows(database, "SELECT count(*) FROM commitment_requests WHERE batch_id > 1 AND status = 0")
        assert asked[0][0] >= 2
        tries = [row[0] for row in rows(database, "SELECT tries FROM batch_confirmations ORDER BY batch_id")]
        assert min(tries) >= 1, tries
