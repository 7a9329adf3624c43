"""SIGTERM to a real `examsend send`, whatever its peer does at that moment: it ends within 10 s, and nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from examsend.commands import send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.helpers import add, one, prepare, rows, states
from tests.peers.scripted import scripted
from tests.peers.talking import drips_acceptance, drips_values, floods, listening, never_answers, reads_slowly

Serve = Callable[[socket.socket, threading.Event], None]


@pytest.mark.parametrize("serve", [reads_slowly, drips_acceptance, drips_values, floods, never_answers])
def test_send_ends_within_10_s_and_the_instance_in_flight_is_sent_again(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path, serve: Serve
) -> None:
    size = 7000 if serve is reads_slowly else 64  # 98 MB
    samples.write_series(tmp_path / "drop", [samples.Image(samples.CT, "1.2", "1.3", 1, 1, size, size)])
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    with listening(serve) as port:
        add(settings, f"A@127.0.0.1:{port}", accept_timeout=60, answer_timeout=60, stall_timeout=60)
        prepare(settings, tmp_path / "drop")
        process = subprocess.Popen(
            [sys.executable, "-m", "examsend", "send", "-q"],
            env={**kept, "EXAMSEND_DATABASE_URL": database_url},
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while not rows(database, "SELECT 1 FROM send_attempts") and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        try:
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
        took = time.monotonic() - began
    assert process.returncode == 0, said
    assert took < 10
    assert states(database) == ["READY"]
    assert one(database, "SELECT attempt_count FROM exam_batches") == 0
    assert one(database, "SELECT held_until FROM storage_backend_configs") is None, "a stop says nothing about anybody"
    assert one(database, "SELECT lost_in_flight FROM exam_batch_instances") == 0
    assert one(database, "SELECT result FROM send_attempts") == "STOPPED"
    with scripted() as receiver:
        with database.transaction() as tx:
            tx.exec_driver_sql(f"UPDATE storage_backend_configs SET port = {receiver.port}")
        assert send.run(settings).failed == 0
        assert len(receiver.stored) == 1
    assert states(database) == ["SENT"]
