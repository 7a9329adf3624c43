"""The second sender of a destination: when it is used, until when, and who says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from examsend.commands import destination, send, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.errors import ConfigError, UsageError
from examsend.outcomes import is_protocol_error
from examsend.queue import second_sender
from examsend.queue.destination import get_destination
from examsend.states import SenderName
from examsend.transfer import End
from tests.helpers import add, cli, execute, one, prepare, rows
from tests.peers.dcmtk import needs, storescp
from tests.peers.scripted import Script, scripted

PROTOCOL = "PROTOCOL_ERROR"


def _chosen(database: engine.Database) -> second_sender.Choice:
    return database.run(lambda tx: second_sender.choose(tx, get_destination(tx, "pacs")))


def _ended(
    database: engine.Database,
    *results: str,
    sender: str = "native",
    ago: float = 60.0,
    codes: tuple[Any, Any] = (None, None),
) -> None:
    """Record associations that have ended, one second apart."""
    for n, result in enumerate(results):
        execute(
            database,
            "INSERT INTO send_attempts (batch_id, destination_id, attempt_id, host, pid, sender, started_at, finished_at, result,"
            " source_code, reason_code) SELECT b.id, b.destination_id, gen_random_uuid(), 'h', 1, :sender, t.at, t.at, :result,"
            " :source, :reason FROM exam_batches b, (SELECT clock_timestamp() - make_interval(secs => :ago) AS at) t",
            sender=sender,
            result=result,
            ago=ago + len(results) - n,
            source=codes[0],
            reason=codes[1],
        )


@pytest.fixture
def batch(settings: Settings, tmp_path: Path) -> None:
    """One batch for a destination with two senders."""
    add(settings, "PACS@127.0.0.1:1", fallback_sender=SenderName.PYNETDICOM, fallback_after=2)
    samples.ct_study(tmp_path / "drop", 1, size=8)
    prepare(settings, tmp_path / "drop")


@pytest.mark.usefixtures("batch")
@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((), "native"),
        ((PROTOCOL,), "native"),
        ((PROTOCOL, PROTOCOL), "pynetdicom"),
        ((PROTOCOL, PROTOCOL, "RELEASED"), "native"),
        ((PROTOCOL, "RELEASED", PROTOCOL), "native"),
        ((PROTOCOL, "CLOSED", PROTOCOL), "native"),
        ((PROTOCOL, "ABORTED", PROTOCOL), "native"),
        # An association that did not come about, or was ended by the pass, is no sign that the protocol errors are over.
        ((PROTOCOL, "UNREACHABLE", PROTOCOL, "STOPPED", "MISCONFIGURED", "LEASE_LOST"), "pynetdicom"),
    ],
)
def test_the_second_sender_is_used_after_protocol_errors_in_a_row(
    database: engine.Database, results: tuple[str, ...], expected: str
) -> None:
    _ended(database, *results)
    assert _chosen(database).name == expected


@pytest.mark.usefixtures("batch")
def test_only_associations_of_the_first_sender_count(database: engine.Database) -> None:
    _ended(database, PROTOCOL, PROTOCOL, sender="pynetdicom")
    assert _chosen(database).name == "native"
    _ended(database, PROTOCOL, PROTOCOL)
    _ended(database, "RELEASED", sender="pynetdicom")
    assert _chosen(database).name == "pynetdicom", "a success of the second says nothing about the first"


@pytest.mark.usefixtures("batch")
def test_after_an_hour_the_first_sender_is_tried_once_more(database: engine.Database) -> None:
    _ended(database, PROTOCOL, PROTOCOL, ago=3590)
    choice = _chosen(database)
    assert choice.name == "pynetdicom"
    assert choice.reason == (
        "native ended in a protocol error 2 times in a row: the next attempts go by pynetdicom; native is tried again in 1 min"
    )
    execute(database, "UPDATE send_attempts SET finished_at = finished_at - interval '30 seconds'")
    assert _chosen(database) == second_sender.Choice(SenderName.NATIVE)
    _ended(database, PROTOCOL)
    assert _chosen(database).name == "pynetdicom", "one more protocol error, and the second is used for another hour"


@pytest.mark.parametrize(
    ("end", "source", "reason", "expected"),
    [
        (End.PROTOCOL_ERROR, None, None, True),
        *((End.ABORTED, 2, reason, reason in {1, 2, 4, 5, 6}) for reason in range(8)),
        (End.ABORTED, 0, 0, False),
        (End.ABORTED, 0, 2, False),
        (End.CLOSED, None, None, False),
        (End.TIMED_OUT, None, None, False),
    ],
)
def test_a_protocol_error_is_ours_or_an_abort_of_the_peers_upper_layer_for_a_pdu(
    end: End, source: int | None, reason: int | None, expected: bool
) -> None:
    assert is_protocol_error(end, source, reason) is expected


def test_a_batch_goes_by_the_second_sender_and_everybody_is_told(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted(Script(at={1: "garbage", 2: "garbage"})) as peer:
        add(
            settings, peer.address, fallback_sender=SenderName.PYNETDICOM, fallback_after=2, backoff_seconds=0.01,
            backoff_max_seconds=0.01,
        )  # fmt: skip
        prepare(settings, tmp_path / "drop")
        for _ in range(4):
            execute(database, "UPDATE storage_backend_configs SET held_until = NULL")
            execute(database, "UPDATE exam_batches SET next_attempt_at = now() WHERE status = 'READY'")
            send.run(settings)
    found = rows(database, "SELECT sender, result FROM send_attempts ORDER BY id")
    assert [r.sender for r in found] == ["native", "native", "pynetdicom"]
    assert [r.result for r in found] == [PROTOCOL, PROTOCOL, "RELEASED"]
    assert one(database, "SELECT status FROM exam_batches") == "SENT"
    [note] = status.run(settings).destinations[0].notes
    assert note.startswith("native ended in a protocol error 2 times in a row: the next attempts go by pynetdicom")
    assert note in cli("status", url=database_url).stdout
    shown = cli("destination", "show", "pacs", url=database_url).stdout
    assert "go by pynetdicom" in " ".join(shown.split())


def test_the_second_sender_is_another_one(settings: Settings) -> None:
    with pytest.raises(UsageError, match="another sender"):
        add(settings, "PACS@127.0.0.1:1", fallback_sender=SenderName.NATIVE)


# --- a program that is not there ----------------------------------------------------------------------------------------


def _elsewhere(settings: Settings, tmp_path: Path) -> Settings:
    """The settings with a directory for DCMTK's programs in which there are none."""
    (tmp_path / "empty").mkdir(exist_ok=True)
    return Settings(database_url=settings.database_url, dcmtk=tmp_path / "empty")


def test_a_missing_program_is_said_when_the_destination_is_added_and_nothing_is_added(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    without = _elsewhere(settings, tmp_path)
    for values in ({"sender": SenderName.DCMTK}, {"fallback_sender": SenderName.DCMTK}):
        with pytest.raises(ConfigError, match=str(tmp_path / "empty")):
            add(without, "PACS@127.0.0.1:1", **values)
    assert one(database, "SELECT count(*) FROM storage_backend_configs") == 0


@pytest.mark.dcmtk
@needs("storescu")
@needs("storescp")
def test_a_missing_program_is_said_by_echo_and_status_and_holds_the_destination(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    without = _elsewhere(settings, tmp_path)
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with storescp(tmp_path / "received") as server:
        add(settings, server.address, sender=SenderName.DCMTK, tls=False)
        prepare(settings, tmp_path / "drop")
        with pytest.raises(ConfigError, match=r"sender dcmtk .*it answers C-ECHO"):
            destination.echo(without, "pacs")
        completed = cli("destination", "echo", "pacs", url=database_url, EXAMSEND_DCMTK=str(tmp_path / "empty"))
        assert completed.returncode == 78, completed.stderr
        [note] = status.run(without).destinations[0].notes
        assert "sender dcmtk" in note
        assert str(tmp_path / "empty") in note
        assert status.run(settings).destinations[0].notes == ()
        # Settings that have nothing to do with the sender can still be changed.
        destination.change(without, "pacs", None, {"quiet_seconds": 5.0})
        [delivered] = send.run(without).delivered
    assert (delivered.status, delivered.associations) == ("READY", 0)
    assert one(database, "SELECT attempt_count FROM exam_batches") == 0
    assert one(database, "SELECT held_code FROM storage_backend_configs") == "MISCONFIGURED"


def test_a_program_that_is_something_else_is_refused(settings: Settings, tmp_path: Path) -> None:
    other = tmp_path / "storescu"
    other.write_text(f"#!{sys.executable}\nprint('something else 1.0')\n")
    other.chmod(0o755)
    for name in (SenderName.DCMTK, SenderName.DCM4CHE):
        given = Settings(database_url=settings.database_url, dcmtk=other, dcm4che=other)
        with pytest.raises(ConfigError, match="storescu"):
            add(given, "PACS@127.0.0.1:1", sender=name)
