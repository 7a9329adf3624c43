"""A-ASSOCIATE-RJ with every result, source and reason (PS3.8 9.3.4), defined or not: nobody's attempts are used up."""

from __future__ import annotations

from pathlib import Path

import pytest

from examsend.commands import send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.faults.checking import attempts_used, over, ran, sound
from tests.helpers import add, one, prepare, rows, states
from tests.peers.scripted import Script, scripted

# PS3.8 Table 9-21: source -> reason -> words that the sentence must have; None: no reason is defined, and any number is named.
REASONS: dict[tuple[int, int], str] = {
    (1, 1): "no reason",
    (1, 2): "application context",
    (1, 3): "calling AE title",
    (1, 7): "called AE title",
    (2, 1): "no reason",
    (2, 2): "protocol version",
    (3, 1): "congestion",
    (3, 2): "limit",
}
RESERVED = [(1, 4), (1, 10), (2, 3), (3, 0), (3, 7), (0, 0), (4, 1), (255, 255)]
FIRST, LONGEST = 40.0, 600.0


@pytest.mark.parametrize("result", [1, 2, 0, 3, 255])
def test_no_rejection_uses_an_attempt_and_each_is_named_and_holds_the_destination(
    settings: Settings, database: engine.Database, tmp_path: Path, result: int
) -> None:
    """Fails if an attempt that a rejection ended is not given back."""
    samples.ct_study(tmp_path / "drop", 3, size=8)
    with scripted() as peer:
        add(settings, peer.address, backoff_seconds=FIRST, backoff_max_seconds=LONGEST, max_attempts=2)
        prepare(settings, tmp_path / "drop")
        for source, reason in [*REASONS, *RESERVED]:
            peer.script.reject = (result, source, reason)
            send.run(settings)
            assert rows(database, "SELECT status, attempt_count FROM exam_batches") == [("READY", 0)]
            said, held = rows(
                database,
                "SELECT held_reason, extract(epoch FROM held_until - now())::float FROM storage_backend_configs",
            )[0]
            assert "reject" in said
            expected = REASONS.get((source, reason))
            assert (expected or str(reason)) in said, said
            assert LONGEST * 0.7 < held <= LONGEST if result == 1 else FIRST * 0.7 < held <= LONGEST, said
            requests = peer.requests
            assert send.run(settings).delivered == (), "it is held"
            assert peer.requests == requests
            over(database)
        assert peer.associations == 0
        peer.script.reject = None
        send.run(settings)
        assert len(peer.offered) == len(set(peer.offered)) == 3
        sound(database, tmp_path / "drop", peers=[peer])
    assert states(database) == ["SENT"]
    assert attempts_used(database) == 1
    assert one(database, "SELECT held_until FROM storage_backend_configs") is None


@pytest.mark.parametrize("reject", [(1, 1, 7), (2, 3, 2)])
def test_the_command_says_the_rejection_and_ends_with_0(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path, reject: tuple[int, int, int]
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted(Script(reject=reject)) as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        assert REASONS[reject[1:]] in ran(database_url, "send")
        assert REASONS[reject[1:]] in ran(database_url, "status")
