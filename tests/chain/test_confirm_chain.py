"""The whole circle by the command line: sent, confirmed, lost by the archive, sent again, confirmed, and only then are sources let go."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.helpers import cli, rows
from tests.peers import orthanc
from tests.peers.dcmtk import free_port
from tests.services.process import listening

pytestmark = [orthanc.needs_orthanc, pytest.mark.orthanc]


@pytest.mark.parametrize("how", ["commitment", "query"])
def test_sources_go_only_once_the_archive_has_proven_to_have_them(
    settings: Settings,
    database: engine.Database,
    database_url: str,
    orthanc_server: Callable[..., orthanc.Orthanc],
    tmp_path: Path,
    how: str,
) -> None:
    def run(*words: str | Path, code: int = 0) -> str:
        done = cli(*words, EXAMSEND_DATABASE_URL=database_url, EXAMSEND_SETTLE="0")
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return str(done.stdout)

    drop = tmp_path / "drop"
    for study in ("a", "b"):
        samples.ct_study(drop / study, 3, size=16)
    port = free_port()
    archive = orthanc_server(**orthanc.knows(port))
    with listening(tmp_path / "listen", database_url, "--port", str(port), "--bind", "127.0.0.1") as listen:
        listen.wait_for("listening as")
        pauses = ("--confirm-after", "0", "--confirm-backoff", "1", "--quiet-period", "0")
        run("destination", "add", "orthanc", archive.address, "--confirm", how, *pauses)
        run("ingest", drop)
        run("finalize")
        run("send")
        # Proven before sources may go: they stay until somebody asks again.
        _confirmed(lambda: run("confirm"), database, 2)
        assert len(archive.files()) == 6
        run("destination", "set", "orthanc", "--after", "remove")
        run("confirm", "-q")
        assert len(list(drop.rglob("*.dcm"))) == 6
        # The archive loses everything after it has confirmed it.
        archive.lose_everything()
        said = run("confirm", "--since", "1h", "--wait", "20")
        assert said.count("is DISPUTED: the archive does not have 3 instances: 3 sent again in batch") == 2, said
        assert len(list(drop.rglob("*.dcm"))) == 6
        assert "SENT, disputed" in run("status", "1")
        run("send")
        assert len(archive.files()) == 6
        assert len(list(drop.rglob("*.dcm"))) == 6
        _confirmed(lambda: run("confirm", "--prune-directories"), database, 4)
        over = time.monotonic() + 20
        while list(drop.iterdir()):
            assert time.monotonic() < over, run("confirm", "--dry-run")
            run("confirm", "--prune-directories")
            time.sleep(0.2)
        assert drop.is_dir()
        gone = rows(database, "SELECT path, proof, removed_at IS NOT NULL FROM source_removals")
        assert len(gone) == 6
        proof = "committed" if how == "commitment" else "listed"
        assert all(proof in row[1].lower() and row[2] for row in gone), gone
        run("ingest", drop)
        assert len(rows(database, "SELECT 1 FROM exam_batches")) == 4


def _confirmed(confirm: Callable[[], str], database: engine.Database, number: int) -> None:
    over = time.monotonic() + 30
    while (found := rows(database, "SELECT state FROM batch_confirmations")) != [("CONFIRMED",)] * number:
        assert time.monotonic() < over, found
        confirm()
        time.sleep(0.2)


@pytest.mark.parametrize("how", ["commitment", "query"])
def test_the_demo_with_orthanc_shows_sent_then_confirmed(
    orthanc_server: Callable[..., orthanc.Orthanc], how: str
) -> None:
    port = free_port()
    archive = orthanc_server(**orthanc.knows(port))
    words = ("--confirm", "commitment", "--listen-port", port) if how == "commitment" else ()
    completed = cli("demo", "--to", archive.address, *map(str, words))
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("SENT, confirmed") == 4, completed.stdout
    assert f"102 ({'COMMITTED' if how == 'commitment' else 'LISTED'})" in completed.stdout
    assert len(archive.get("/instances")) == 102
