"""Statuses that count as stored, or as failed, at one destination beyond the standard's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from examsend import outcomes
from examsend.commands import destination, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.errors import UsageError
from examsend.outcomes import OwnStatuses
from examsend.transfer import Answer, Item
from tests.helpers import add, deliver, listed, one, rows
from tests.peers.scripted import Script, scripted

ITEM = Item(1, "/f", "1", "2", "3", 0, 0, 0, b"")


def test_an_accepted_status_counts_as_stored_ends_no_association_and_is_shown(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 5, size=8)
    with scripted(Script(status=lambda k, _u: 0xA701 if k > 1 else 0)) as peer:
        add(settings, peer.address, accept_status="a701")
        deliver(settings, tmp_path / "drop")
        assert len(peer.offered) == 5
    [batch] = listed(settings)
    assert (batch.status, batch.stored) == ("SENT", 5)
    assert batch.waiting_for == "4 stored with a warning: A701 out of resources (counts as stored here)"
    assert rows(database, "SELECT count(*) FROM send_attempts") == [(1,)]
    assert one(database, "SELECT held_until IS NULL FROM storage_backend_configs") is True
    shown = status.run(settings, batch_id=1)
    assert "A701 out of resources (counts as stored here)" in repr(shown)


def test_a_status_that_fails_fails_at_the_first_try_and_the_others_go_on(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 5, size=8)
    with scripted(Script(status=lambda k, _u: {2: 0xB000, 3: 0xA700}.get(k, 0), comment="full")) as peer:
        add(settings, peer.address, fail_status="B000, A700")
        deliver(settings, tmp_path / "drop")
        assert len(peer.offered) == 5
    [batch] = listed(settings)
    assert (batch.status, batch.stored, batch.failed) == ("FAILED", 3, 2)
    assert "counts as failed here; full" in (batch.waiting_for or "")


def test_a_conflict_is_not_accepted(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as peer:
        add(settings, peer.address, accept_status="0111")
        deliver(settings, tmp_path / "drop")
        data = bytearray(file.read_bytes())
        data[-2] ^= 1
        file.write_bytes(data)
        peer.script.status = lambda _k, _u: 0x0111
        deliver(settings, tmp_path / "drop")
    assert one(database, "SELECT outcome FROM exam_batch_instances ORDER BY id DESC LIMIT 1") == "CONFLICT"


def test_an_accepted_status_before_the_last_byte_is_no_proof() -> None:
    own = OwnStatuses.of("C000", None)
    assert outcomes.of_answer(Answer(ITEM, 0xC000), 0, own=own).outcome == "STORED"
    assert outcomes.of_answer(Answer(ITEM, 0xC000, whole=False), 0, own=own).outcome == "RETRY"
    assert outcomes.of_answer(Answer(ITEM, 0xC001), 0, own=own).outcome == "RETRY"


def test_a_status_cannot_count_as_stored_and_as_failed(settings: Settings, database: engine.Database) -> None:
    with pytest.raises(UsageError, match="status A801 cannot be both"):
        add(settings, "P@127.0.0.1:1", accept_status="0111,A801", fail_status="A801")
    add(settings, "P@127.0.0.1:1", accept_status="0111")
    with pytest.raises(UsageError, match="both"):
        destination.change(settings, "pacs", None, {"fail_status": "0x0111"})
