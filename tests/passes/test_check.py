"""`examsend status --check`: each thing that it watches, made by a real fault; levels, thresholds, the line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from examsend.cli import app
from examsend.commands import ingest, send, status
from examsend.config import ages
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.queue.health import LIMITS, Level
from examsend.report.text import rendered
from tests.helpers import add, cli, execute, prepare
from tests.peers.dcmtk import free_port
from tests.peers.scripted import Script, scripted

LINE = re.compile(r"EXAMSEND (OK|WARNING|CRITICAL|UNKNOWN): [^|]+ \| ([a-z]+=(U|\d+s?);\d*;\d*;0 ?|[a-z]+=\d+;;;0 ?)+")


@pytest.fixture
def port() -> int:
    """A port of loopback at which nobody listens."""
    return free_port()


def _passes(database: engine.Database, ago: str = "5 s") -> None:
    execute(
        database,
        f"INSERT INTO command_passes SELECT c, 'h', now() - interval '{ago}', now() - interval '{ago}', 1, 0, 1, 0"
        " FROM unnest(ARRAY['finalize', 'send']) c ON CONFLICT (command, host) DO UPDATE SET finished_at = excluded.finished_at",
    )


def _check(settings: Settings, **values: object) -> tuple[Level, str]:
    result = status.check(settings, **values)  # type: ignore[arg-type]
    [line] = rendered(result)
    assert LINE.fullmatch(line), line
    return result.level, line


def test_a_site_that_is_well_is_ok(settings: Settings, database: engine.Database) -> None:
    _passes(database)
    level, line = _check(settings)
    assert level is Level.OK
    assert line.startswith(
        "EXAMSEND OK: nothing needs attention | failed=0;0;9;0 down=0s;900;14400;0 stuck=0;0;9;0 waiting="
    )
    assert line.endswith(" pending=0;;;0 ready=0;;;0 sending=0;;;0 sent=0;;;0")


def test_no_pass_lately(settings: Settings, database: engine.Database) -> None:
    assert _check(settings)[0] is Level.CRITICAL
    assert "no finalize has ever run; no send has ever run" in _check(settings)[1]
    _passes(database, "20 min")
    assert _check(settings)[0] is Level.WARNING
    _passes(database, "3 h")
    level, line = _check(settings)
    assert (level, "last send 3.0 h ago" in line) == (Level.CRITICAL, True)
    assert _check(settings, critical=["finalize=off", "send=off"])[0] is Level.WARNING


def test_a_long_send_that_makes_progress_is_no_missing_pass(settings: Settings, database: engine.Database) -> None:
    add(settings, "PACS@127.0.0.1:1")
    _passes(database, "3 h")
    execute(database, "UPDATE command_passes SET finished_at = now() WHERE command = 'finalize'")
    assert _check(settings)[0] is Level.CRITICAL
    execute(
        database,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, attempt_id, attempt_count,"
        " lease_expires_at) VALUES ('1.2', 1, 'SENDING', now(), gen_random_uuid(), 1, now() + interval '60 s')",
    )
    assert _check(settings)[0] is Level.OK
    execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")
    assert _check(settings)[0] is Level.CRITICAL


def test_a_pass_that_ends_by_an_error(
    settings: Settings, database: engine.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(settings, "PACS@127.0.0.1:1")
    _passes(database)
    monkeypatch.setattr("examsend.commands.send.Lanes.run", lambda _lanes: 1 / 0)
    CliRunner().invoke(app, ["send", "--database-url", settings.database_url or ""])
    level, line = _check(settings)
    assert level is Level.WARNING
    assert f"send on {settings.host_name} ended with exit code 70" in line


def test_a_batch_that_a_receiver_refuses(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted(Script(status=lambda _k, _uid: 0xC000)) as peer:
        add(settings, peer.address, max_attempts=1)
        prepare(settings, tmp_path / "drop")
        for _ in range(3):
            send.run(settings)
            execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")
    _passes(database)
    level, line = _check(settings)
    assert (level, ": 1 FAILED |" in line) == (Level.WARNING, True)
    assert _check(settings, critical=["failed=0"])[0] is Level.CRITICAL
    assert _check(settings, warning=["failed=1"])[0] is Level.OK
    assert _check(settings, warning=["failed=off"])[0] is Level.OK


def test_a_destination_that_nobody_listens_at(
    settings: Settings, database: engine.Database, tmp_path: Path, port: int
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    add(settings, f"PACS@127.0.0.1:{port}", backoff_seconds=60.0, backoff_max_seconds=60.0)
    prepare(settings, tmp_path / "drop")
    send.run(settings)
    _passes(database)
    assert _check(settings)[0] is Level.OK, "it is down for a moment only"
    assert _check(settings, warning=["down=0"])[0] is Level.WARNING
    execute(database, "UPDATE storage_backend_configs SET down_since = now() - interval '5 h'")
    level, line = _check(settings)
    assert level is Level.CRITICAL
    assert "pacs down for 5.0 h: held: cannot connect" in line
    execute(database, "UPDATE exam_batches SET created_at = now() - interval '2 days'")
    assert "oldest waiting 2 days" in _check(settings)[1]


def test_a_file_that_is_rejected(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    add(settings, "PACS@127.0.0.1:1")
    samples.ct_study(tmp_path / "drop", 1, size=8)
    [whole] = (tmp_path / "drop").rglob("*.dcm")
    whole.write_bytes(whole.read_bytes()[:-10])
    ingest.run(Settings(database_url=settings.database_url, settle=0, incomplete_after=0), [tmp_path / "drop"])
    _passes(database)
    assert _check(settings)[0] is Level.WARNING
    assert ": 1 rejected file |" in _check(settings)[1]


def test_a_study_that_no_finalize_takes_on(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    add(settings, "PACS@127.0.0.1:1", longest_wait_seconds=60.0)
    samples.ct_study(tmp_path / "drop", 1, size=8)
    ingest.run(Settings(database_url=settings.database_url, settle=0), [tmp_path / "drop"])
    execute(database, "UPDATE exam_batches SET created_at = now() - interval '1 h'")
    _passes(database)
    level, line = _check(settings)
    assert (level, ": 1 stuck PENDING |" in line) == (Level.WARNING, True)
    execute(database, "UPDATE exam_batches SET held_at = now(), held_reason = 'me: a test'")
    assert _check(settings)[0] is Level.OK, "a person holds it"


def test_the_command_exits_with_the_level_and_says_one_line(settings: Settings, database: engine.Database) -> None:
    _passes(database)
    well = cli("status", "--check", url=settings.database_url)
    assert (well.returncode, len(well.stdout.splitlines()), well.stderr) == (0, 1, "")
    _passes(database, "20 min")
    assert cli("status", "--check", url=settings.database_url).returncode == 1
    _passes(database, "3 h")
    assert cli("status", "--check", "-q", url=settings.database_url).returncode == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--warning", "nothing=1"),
            "the names are failed, down, stuck, waiting, rejected, finalize, send, errors, disputed",
        ),
        (("--critical", "down=soon"), "must be an age"),
        (("--critical", "failed=-1"), "must be a number, or off"),
        (("--crtical", "failed=1"), "--crtical"),
    ],
)
def test_a_wrong_threshold_is_unknown(database_url: str, words: tuple[str, ...], sentence: str) -> None:
    done = cli("status", "--check", *words, url=database_url)
    assert (done.returncode, done.stdout.startswith("EXAMSEND UNKNOWN: ")) == (3, True)
    assert sentence in done.stdout


def test_a_database_out_of_reach_is_unknown(port: int) -> None:
    url = f"postgresql://postgres@127.0.0.1:{port}/x"
    done = cli("status", "--check", url=url, EXAMSEND_DATABASE_WAIT="0")
    assert done.returncode == 3
    assert done.stdout.startswith("EXAMSEND UNKNOWN: the database cannot be reached")


def test_thresholds_need_check(database_url: str) -> None:
    assert cli("status", "--warning", "failed=1", url=database_url).returncode == 2


def test_every_threshold_is_named_in_the_help() -> None:
    text = " ".join(cli("status", "--help").stdout.split())
    assert all(name in text for name in LIMITS)


def test_the_thresholds_of_the_documents_are_those_of_the_program() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| `([a-z]+)` \| (\S+) \| (\S+) \|", page, re.MULTILINE)

    def value(text: str, name: str) -> float:
        return float("inf") if text == "off" else ages.parse(text) if LIMITS[name].seconds else float(text)

    assert {n: (value(w, n), value(c, n)) for n, w, c in rows if n in LIMITS} == {
        n: (limit.warning, limit.critical) for n, limit in LIMITS.items()
    }
