"""Rows whose digest was emptied when it became BLAKE3 (migration 0008): a file that is the same is known, any other is sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from examsend.commands import finalize, ingest, send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.helpers import add, execute, one, prepare, states
from tests.peers.scripted import scripted


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_sent_file_is_known_unless_it_was_written_again(
    settings: Settings, database: engine.Database, tmp_path: Path, *, rewritten: bool
) -> None:
    [path] = samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        send.run(settings)
        execute(database, "UPDATE exam_batch_instances SET content_digest = NULL")
        if rewritten:
            data = path.read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            os.utime(path, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
        ingest.run(settings, [tmp_path / "drop"], verify=True)
        finalize.run(settings)
        send.run(settings)
    assert len(peer.stored) == 1 + rewritten
    assert states(database) == ["SENT"] * (1 + rewritten)
    assert rewritten or one(database, "SELECT content_digest IS NOT NULL FROM exam_batch_instances")


def test_an_unsent_file_is_read_again_before_it_is_sent(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        ingest.run(settings, [tmp_path / "drop"])
        execute(database, "UPDATE exam_batch_instances SET content_digest = NULL")
        finalize.run(settings)
        send.run(settings)
    assert len(peer.stored) == 2
    assert states(database) == ["SENT"]
    assert one(database, "SELECT count(*) FROM exam_batch_instances WHERE content_digest IS NULL") == 0
