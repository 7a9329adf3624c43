"""Files and directories that the user of a pass may not read, for a time: nothing is lost, and nothing false is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.faults.checking import over, ran, sound
from tests.helpers import add, one, rows, states
from tests.peers import postgres_proxy
from tests.peers.scripted import Peer, scripted

# Root reads everything, unless it may not use the capabilities for that.
_BOUND = "-dac_override,-dac_read_search"
BEFORE = ("setpriv", f"--bounding-set={_BOUND}", f"--inh-caps={_BOUND}", "--") if os.geteuid() == 0 else ()


class Ordinary:
    """Runs passes that permissions bind."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, *words: str | Path, code: int = 0, **how: Any) -> str:
        return ran(self._url, *words, code=code, before=BEFORE, **how)


@pytest.fixture
def ordinary(database_url: str) -> Iterator[Ordinary]:
    # The socket of the server belongs to its user: others come by TCP.
    with postgres_proxy.proxied(database_url) as proxy:
        yield Ordinary(proxy.url)


@pytest.fixture
def drop(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "drop"
    made.mkdir()
    yield made
    for path in made.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)


@pytest.fixture
def peer(settings: Settings) -> Iterator[Peer]:
    with scripted() as made:
        add(settings, made.address, max_attempts=5)
        yield made


def _readable(*paths: Path, yes: bool) -> None:
    for path in paths:
        path.chmod((0o755 if path.is_dir() else 0o644) if yes else 0)


def test_what_ingest_may_not_read_is_said_and_registered_once_it_may(
    database: engine.Database, ordinary: Ordinary, peer: Peer, drop: Path
) -> None:
    """Fails if a file that could not be opened is remembered as read."""
    study = samples.new_uid()
    seen, closed = samples.ct_study(drop, 2, size=8, study=study)
    [inside] = samples.ct_study(drop / "closed", 1, size=8, study=study)
    _readable(closed, inside.parent, yes=False)
    said = ordinary("ingest", drop, code=1)
    assert str(closed) in said
    assert str(inside.parent) in said
    assert "ermission denied" in said
    assert [r[0] for r in rows(database, "SELECT file_path FROM rejected_files")] == [str(closed)]
    ordinary("finalize")
    ordinary("send")
    assert states(database) == ["SENT"]
    _readable(closed, inside.parent, yes=True)
    assert "2 new" in ordinary("ingest", drop)
    assert rows(database, "SELECT file_path FROM rejected_files") == []
    ordinary("finalize")
    ordinary("send")
    assert len(peer.offered) == len(set(peer.offered)) == 3
    assert states(database) == ["SENT", "SENT"]
    sound(database, drop, peers=[peer])
    assert seen.exists()


@pytest.mark.parametrize("what", ["one file", "the directory"])
def test_what_send_may_not_read_is_said_and_waits_until_it_may(
    database: engine.Database, ordinary: Ordinary, peer: Peer, drop: Path, what: str
) -> None:
    """Fails if EACCES is taken for a file that is missing."""
    files = samples.ct_study(drop / "in", 3, size=8)
    ordinary("ingest", drop)
    ordinary("finalize")
    closed = files[1] if what == "one file" else files[1].parent
    _readable(closed, yes=False)
    ordinary("send")
    assert states(database) == ["READY"]
    outcomes = dict(rows(database, "SELECT outcome, count(*) FROM exam_batch_instances GROUP BY 1"))
    assert outcomes == ({"STORED": 2, "RETRY": 1} if what == "one file" else {"RETRY": 3})
    assert "ermission denied" in one(database, "SELECT failure FROM exam_batches")
    assert "ermission denied" in ordinary("status", "1")
    assert one(database, "SELECT held_until FROM storage_backend_configs") is None, "the destination is not the cause"
    # What is registered stays registered, whatever a pass may read now.
    ordinary("ingest", drop, code=1)
    assert states(database) == ["READY"]
    _readable(closed, yes=True)
    over(database)
    ordinary("send")
    assert len(peer.offered) == len(set(peer.offered)) == 3
    assert states(database) == ["SENT"]
    sound(database, drop, peers=[peer])


def test_a_rejected_file_in_a_directory_that_cannot_be_entered_is_not_said_to_be_gone(
    database: engine.Database, ordinary: Ordinary, peer: Peer, drop: Path
) -> None:
    """Fails if a path that cannot be looked at is taken for one that is not there."""
    [cut] = samples.ct_study(drop / "in", 1, size=8)
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-10])
    ordinary("ingest", drop, code=1)
    _readable(cut.parent, yes=False)
    said = ordinary("ingest", drop, code=1)
    assert "gone" not in said
    assert [r[0] for r in rows(database, "SELECT file_path FROM rejected_files")] == [str(cut)]
    _readable(cut.parent, yes=True)
    cut.write_bytes(whole)
    ordinary("ingest", drop)
    ordinary("finalize")
    ordinary("send")
    assert states(database) == ["SENT"]
    sound(database, drop, peers=[peer])
