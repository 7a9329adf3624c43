"""Two hosts with four senders each, which are killed at random, while files still arrive: all is SENT, by one sender at a time."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.faults.checking import ended, sound, started
from tests.helpers import add, execute, one, rounds, rows
from tests.peers.scripted import Script, scripted

STUDIES = 60
INSTANCES = 8
GROUP = 3
"""Outcomes in one group."""
KILLS = 12
PORTIONS = 3

_WATCH = """
CREATE TABLE two_live (batch_id bigint, was text, now text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status = 'SENDING' AND NEW.status = 'SENDING' AND OLD.attempt_id <> NEW.attempt_id
       AND OLD.lease_expires_at > clock_timestamp() THEN
        INSERT INTO two_live VALUES (OLD.id, OLD.claimed_by, NEW.claimed_by);
    END IF;
    IF OLD.status IN ('SENT', 'FAILED') AND NEW.status = 'SENDING' THEN
        INSERT INTO two_live VALUES (OLD.id, OLD.status, NEW.claimed_by);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER watch BEFORE UPDATE ON exam_batches FOR EACH ROW EXECUTE FUNCTION watch();
"""
"""A batch that is taken from a sender whose lease is not over, or after its end, is noted."""


@pytest.mark.slow
def test_eight_senders_of_two_hosts_that_are_killed_at_random_send_all(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    """An instance goes twice only where the sender that had it was killed before its outcome was written.

    Fails if a claim does not ask whether the lease is over, or if outcomes are written at the end of a batch only.
    """
    with database.transaction() as tx:
        tx.exec_driver_sql(_WATCH)
    drop, chance = tmp_path / "drop", random.Random(4)
    studies, most_kills, over = rounds(STUDIES), rounds(KILLS), threading.Event()
    pass_seconds = 2 * studies  # one pass may find work until the end
    kills: Counter[int] = Counter()
    errors: list[BaseException] = []
    shared = {"record_instances": str(GROUP), "record_seconds": "0.02"}
    with ExitStack() as stack:
        peers = [stack.enter_context(scripted(Script(delay=0.004))) for _ in range(3)]
        for number, peer in enumerate(peers):
            add(settings, peer.address, name=f"pacs{number}", association_limit=3)

        def one_sender(host: str) -> None:
            """Send again and again, until all is sent. One pass is killed now and then."""
            while not over.is_set():
                process = started(database_url, "send", "-q", "--parallel", "1", settings={**shared, "host_name": host})
                patience = chance.uniform(0.5, 4.0)
                if sum(kills.values()) < most_kills and chance.random() < 0.5:
                    if over.wait(patience) or process.poll() is not None:
                        ended(process, seconds=pass_seconds)
                        continue
                    process.kill()
                    process.communicate()
                    kills[process.pid] += 1
                    # Nobody waits for the five minutes of its lease.
                    execute(
                        database,
                        "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'"
                        " WHERE status = 'SENDING' AND attempt_id IN (SELECT attempt_id FROM send_attempts"
                        " WHERE pid = :pid AND host = :host) OR status = 'SENDING' AND claimed_by = :by",
                        pid=process.pid,
                        host=host,
                        by=f"{host}:{process.pid}",
                    )
                else:
                    ended(process, seconds=pass_seconds)

        def guarded(host: str) -> None:
            try:
                one_sender(host)
            except BaseException as error:
                errors.append(error)
                over.set()

        senders = [threading.Thread(target=guarded, args=(f"host{n % 2}",)) for n in range(8)]
        for thread in senders:
            thread.start()
        try:
            for portion in range(PORTIONS):
                samples.write_small(drop / str(portion), studies // PORTIONS * INSTANCES, studies=studies // PORTIONS)
                both = [
                    started(database_url, "ingest", "-q", drop, settings={"host_name": f"host{n}"}) for n in range(2)
                ]
                both += [started(database_url, "finalize", "-q", settings={"host_name": f"host{n}"}) for n in range(2)]
                for process in both:
                    ended(process, seconds=pass_seconds)
            ended(started(database_url, "finalize", "-q"))
            deadline = time.monotonic() + 60 + pass_seconds
            while rows(database, "SELECT 1 FROM exam_batches WHERE status <> 'SENT' LIMIT 1") and not over.wait(0.2):
                assert time.monotonic() < deadline, rows(
                    database, "SELECT status, count(*) FROM exam_batches GROUP BY 1"
                )
        finally:
            over.set()
            for thread in senders:
                thread.join(60)
        assert not errors, errors
        assert rows(database, "SELECT * FROM two_live") == []
        sound(database, drop, peers=peers)
        count = studies // PORTIONS * PORTIONS * INSTANCES
        again = 0
        for peer in peers:
            assert len({r.sop_instance_uid for r in peer.stored}) == count
            again += len(peer.offered) - count
        # A group may be on its way to the database while the next one is gathered, and one instance is on the wire.
        assert again <= sum(kills.values()) * (2 * GROUP + 1)
        lost = one(database, "SELECT count(DISTINCT attempt_id) FROM send_attempts WHERE result = 'LEASE_LOST'")
        assert lost <= sum(kills.values())
        assert {r[0] for r in rows(database, "SELECT host FROM send_attempts")} == {"host0", "host1"}
