"""``confirm`` and ``listen`` are killed at random points: nothing is confirmed that the archive did not confirm."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from examsend.commands import confirm
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.helpers import add, deliver, execute, one, rounds, rows
from tests.peers.archiving import archiving
from tests.peers.dcmtk import free_port
from tests.services.process import Listen, environment

KILLS = rounds(20)
"""In a long run (EXAMSEND_TEST_ROUNDS=10) 200."""

BACK_OFF = 0.8
"""Seconds; the pause between two questions about an instance is at least four fifths of it."""


def _listen(directory: Path, url: str, port: int) -> Listen:
    log = directory / f"listen-{time.monotonic_ns()}.log"
    words = [sys.executable, "-m", "examsend", "listen", "-v", "--port", str(port), "--bind", "127.0.0.1"]
    with log.open("wb") as stream:
        return Listen(log, subprocess.Popen(words, stdout=stream, stderr=stream, env=environment(url)))


# pynetdicom leaves the connections of peers that were killed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_kills_of_confirm_and_listen(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    port, batches = free_port(), 24
    killed = {"confirm": 0, "listen": 0}
    with archiving(to=port) as archive:
        for n in range(batches):
            samples.ct_study(tmp_path / "drop" / str(n), 3, size=16)
        add(
            settings,
            archive.address,
            confirm="commitment",
            on_disputed="report",
            confirm_after_seconds=0.0,
            confirm_backoff_seconds=BACK_OFF,
            confirm_backoff_max_seconds=BACK_OFF,
            confirm_instances=2,
        )
        deliver(settings, tmp_path / "drop")
        lost = set(chance.sample(sorted(archive.has), 6))
        archive.lose(*lost)
        archive.leave_out = lambda _uid: chance.random() < 0.5
        archive.choose = lambda: chance.choice(["same", "new", "new", "never"])
        listening = _listen(tmp_path, database_url, port)
        try:
            for _ in range(KILLS):
                if listening.process.poll() is not None:
                    listening = _listen(tmp_path, database_url, port)
                words = [sys.executable, "-m", "examsend", "confirm", "-q"]
                process = subprocess.Popen(
                    words, env=environment(database_url, EXAMSEND_LEASE="1"), stderr=subprocess.DEVNULL
                )
                time.sleep(chance.uniform(0.3, 1.6))
                if chance.random() < 0.3:
                    listening.process.send_signal(signal.SIGKILL)
                    listening.process.wait(10)
                    killed["listen"] += 1
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    killed["confirm"] += 1
                process.wait(10)
                if one(database, "SELECT count(*) FROM batch_confirmations WHERE due_at IS NOT NULL") == 0:
                    # All is answered: somebody asks again.
                    execute(
                        database,
                        "UPDATE batch_confirmations SET state = 'UNCONFIRMED', opened_at = clock_timestamp(), tries = 0,"
                        " confirmed_at = NULL, disputed_at = NULL, gave_up_at = NULL, due_at = clock_timestamp() + interval '1 s'",
                    )
            print(f"killed: {killed}, {len(archive.asked)} requests received")
            assert killed["confirm"] >= KILLS // 3, killed
            # Left alone, all of it comes to its end.
            archive.leave_out, archive.choose = (lambda _uid: False), (lambda: "same")
            over = time.monotonic() + 60
            while one(database, "SELECT count(*) FROM batch_confirmations WHERE due_at IS NOT NULL"):
                assert time.monotonic() < over, seed
                confirm.run(settings)
                time.sleep(0.2)
        finally:
            if listening.process.poll() is None:
                listening.process.kill()
            listening.process.wait(10)
        verdicts = rows(
            database,
            "SELECT i.sop_instance_uid, k.verdict, k.transaction_uid FROM instance_confirmations k"
            " JOIN exam_batch_instances i ON i.id = k.instance_id",
        )
        assert len(verdicts) == 3 * batches, seed
        for uid, verdict, transaction in verdicts:
            assert (verdict == "CONFIRMED") == (uid not in lost), (seed, uid, verdict)
            if verdict == "CONFIRMED":
                assert uid in archive.committed[transaction], (seed, uid)
        # Each question was on record, and none came before the pause was over.
        known = rows(
            database,
            "SELECT transaction_uid, batch_id, extract(epoch FROM requested_at)::float FROM commitment_requests",
        )
        assert {asked.transaction for asked in archive.asked} <= {row[0] for row in known}, seed
        at: dict[int, set[float]] = defaultdict(set)
        for _, batch, when in known:
            at[batch].add(when)
        for batch, times in at.items():
            pauses = [b - a for a, b in itertools.pairwise(sorted(times))]
            assert all(pause >= 0.8 * BACK_OFF for pause in pauses), (seed, batch, pauses)
