"""Totals: what happened at a destination is counted once, with real associations, and also where a sender dies."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import text

from examsend.commands import send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.delivery.lease import Lease
from examsend.delivery.stop import Stop
from examsend.demo import samples
from examsend.queue import attempts, batches, totals
from examsend.queue.claim import Claim
from examsend.queue.totals import DestinationDay
from examsend.transfer import AssociationEnd, End
from tests.helpers import add, deliver, execute, one, rows
from tests.passes.world import World, file
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted


def _day(database: engine.Database, name: str = "pacs") -> DestinationDay:
    return database.run(totals.last_day)[name]


def _statuses(database: engine.Database) -> dict[int, int]:
    return dict(rows(database, "SELECT dimse_status, sum(answers)::int FROM status_totals GROUP BY 1"))


def _send_now(settings: Settings, database: engine.Database) -> None:
    execute(database, "UPDATE storage_backend_configs SET held_until = NULL")
    execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")
    send.run(settings)


def test_a_delivered_study_is_counted_with_what_went_over_its_association(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 5, size=8)
    with scripted(Script(status=lambda k, _u: 0xB000 if k == 2 else 0)) as peer:
        add(settings, peer.address)
        deliver(settings, tmp_path / "drop")
    day = _day(database)
    assert (day.associations, day.established, day.released) == (1, 1, 1)
    assert (day.stored, day.failed, day.resent) == (5, 0, 0)
    assert day.hours[-1] == 5
    assert sum(day.hours) == 5
    assert day.bytes_sent == one(database, "SELECT sum(bytes_sent) FROM send_attempts") > 0
    assert (day.sent_batches, day.failed_batches, day.batch_size, day.success) == (1, 0, 5.0, 1.0)
    assert _statuses(database) == {0: 4, 0xB000: 1}
    took = rows(database, "SELECT stage, sum(batches)::int, sum(seconds) FROM duration_totals GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in took] == [
        ("READY", 1, day.ready_seconds),
        ("SENT", 1, day.sent_seconds),
    ]
    assert day.ready_seconds > 0
    assert day.sent_seconds > 0


def test_what_is_offered_again_is_a_resend_and_a_refused_instance_fails_its_batch(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 4, size=8)
    bad: list[str] = []

    def status_of(k: int, uid: str) -> int:
        if k == 2:
            bad.append(uid)
        return 0xC000 if uid in bad else 0

    with scripted(Script(status=status_of)) as peer:
        add(settings, peer.address)
        deliver(settings, tmp_path / "drop")
        _send_now(settings, database)
    day = _day(database)
    assert (day.stored, day.failed, day.resent) == (3, 1, 1)
    assert (day.sent_batches, day.failed_batches) == (0, 1)
    assert _statuses(database) == {0: 3, 0xC000: 2}


def test_an_instance_that_was_in_flight_when_its_association_ended_is_resent_by_the_next(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 3, size=8)
    with scripted(Script(at={2: "abort"})) as peer:
        add(settings, peer.address)
        deliver(settings, tmp_path / "drop")
        for _ in range(3):
            _send_now(settings, database)
        offered = len(peer.offered)
    day = _day(database)
    assert day.sent_batches == 1
    assert day.resent == offered - 3 > 0
    assert day.associations == day.established == day.released + 1


def test_a_dead_port_counts_as_an_association_that_was_not_established(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    add(settings, f"PACS@127.0.0.1:{free_port()}")
    deliver(settings, tmp_path / "drop")
    day = _day(database)
    assert (day.associations, day.established, day.released, day.success) == (1, 0, 0, 0.0)


def _associate(database: engine.Database, claim: Claim) -> int:
    def work(tx: engine.Connection) -> int:
        row = attempts.open_row(tx, claim, association=1, host="h", pid=1, sender="native", instances=2)
        attempts.count(tx, row, stored=1, failed=0, sent=100)
        return row

    return database.run(work)


def test_the_end_of_an_association_that_is_written_twice_is_counted_once(
    settings: Settings, database: engine.Database
) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"), file("1.2"))
    world.wait(100)
    world.finalize()
    claim = database.run(lambda tx: batches.claim(tx, 1, by="h", lease=300))
    assert claim is not None
    row = _associate(database, claim)
    end = AssociationEnd(End.RELEASED, established=True, seconds=2.0, bytes_sent=200)
    for _ in range(2):
        database.run(lambda tx: attempts.close_row(tx, row, end, attempts.Counts(2, 2, 0, 1, {0: 1, 0xB000: 1})))
    day = _day(database)
    assert (day.associations, day.stored, day.resent, day.association_seconds) == (1, 2, 1, 2.0)
    assert _statuses(database) == {0: 1, 0xB000: 1}


def test_the_association_of_a_sender_that_died_is_counted_with_what_it_stored(
    settings: Settings, database: engine.Database
) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"), file("1.2"))
    world.wait(100)
    world.finalize()
    claim = database.run(lambda tx: batches.claim(tx, 1, by="h", lease=300))
    assert claim is not None
    _associate(database, claim)
    execute(
        database,
        "UPDATE exam_batch_instances SET outcome = 'STORED', dimse_status = 45056, stored_at = clock_timestamp()"
        " WHERE sop_instance_uid = '1.1'",
    )
    execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")
    assert database.run(lambda tx: batches.claim(tx, 1, by="h2", lease=300)) is not None
    day = _day(database)
    assert (day.associations, day.established, day.released, day.stored, day.bytes_sent) == (1, 1, 0, 1, 100)
    assert _statuses(database) == {0xB000: 1}


def test_a_batch_that_expires_is_counted_as_failed(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database)
    world.arrive(file("1.1"))
    world.wait(100)
    world.finalize()
    world.wait(6 * 86400)
    send.run(settings)
    assert _day(database).failed_batches == 1


def test_totals_of_a_removed_destination_and_of_other_hours(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database)
    execute(
        database,
        "INSERT INTO delivery_totals (destination_id, hour, shard, stored)"
        " SELECT 1, date_trunc('hour', clock_timestamp(), 'UTC') - make_interval(hours => h), 3, h + 1"
        " FROM unnest(ARRAY[0, 1, 23, 24]) h",
    )
    day = _day(database)
    assert day.hours == (24, *[0] * 21, 2, 1)
    assert day.stored == 27
    execute(
        database,
        "UPDATE storage_backend_configs SET removed_at = now(), enabled = false, name = name || ' (removed 1)'",
    )
    assert list(database.run(totals.last_day)) == ["pacs (removed 1)"]
    assert world.states() == []


def test_many_senders_at_once_count_each_batch_and_no_deadlock_is_left(
    settings: Settings, database: engine.Database
) -> None:
    world = World(settings, database, association_limit=8)
    for n in range(24):
        world.arrive(file(f"1.{n}", study=f"2.{n}"))
    world.wait(100)
    assert len(world.finalize()) == 24

    def sender() -> None:
        while True:
            claim = database.run(lambda tx: batches.claim(tx, 1, by="t", lease=300))
            if claim is None:
                return
            row = database.run(
                lambda tx, c=claim: attempts.open_row(  # type: ignore[misc]
                    tx, c, association=1, host="h", pid=1, sender="native", instances=1
                )
            )

            def finish(tx: engine.Connection, claim: Claim = claim, row: int = row) -> None:
                end = AssociationEnd(End.RELEASED, established=True)
                attempts.close_row(tx, row, end, attempts.Counts(1, 1, 0, 0, {0: 1}))
                tx.execute(
                    text("UPDATE exam_batch_instances SET outcome = 'STORED', stored_at = now() WHERE batch_id = :b"),
                    {"b": claim.batch_id},
                )
                assert batches.sent(tx, claim)
                totals.batches_ended(tx, [claim.batch_id])

            Lease(database, claim, _never()).write(finish)

    threads = [threading.Thread(target=sender) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    day = _day(database)
    assert (day.associations, day.sent_batches, day.sent_instances) == (24, 24, 24)
    assert _statuses(database) == {0: 24}


def _never() -> Stop:
    return Stop(lambda: False, None)
