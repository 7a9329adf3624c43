"""The command line: messages, exit codes, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from tests.helpers import cli, execute, one, states
from tests.peers.dcmtk import free_port


def test_the_commands_take_files_from_ingest_to_sent(
    database_url: str, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    """Each in a new interpreter."""
    samples.make(tmp_path / "drop")
    added = cli(
        "destination",
        "add",
        "pacs",
        f"{receiving.aet}@{receiving.host}:{receiving.port}",
        "--quiet-period",
        "0",
        url=database_url,
        new=True,
    )
    assert (added.returncode, added.stderr) == (0, "")
    assert cli("destination", "echo", "pacs", url=database_url, new=True).returncode == 0
    ingested = cli("ingest", tmp_path / "drop", url=database_url, new=True, EXAMSEND_INCOMPLETE_AFTER="0")
    assert ingested.returncode == 1, "a rejected file needs a person"
    assert "1 rejected" in ingested.stdout
    assert cli("finalize", url=database_url, new=True).returncode == 0
    sent = cli("send", url=database_url, new=True)
    assert sent.returncode == 0
    assert sent.stdout.count(" SENT,") == 4
    assert sent.stderr == "", "each batch is told once"
    shown = cli("status", "--json", "--state", "SENT", url=database_url, new=True)
    batch = json.loads(shown.stdout)["batches"][0]
    assert {
        "id", "study_instance_uid", "destination", "status", "instances", "stored", "failed", "attempts", "waiting_for",
        "created_at", "finished_at",
    } <= batch.keys()  # fmt: skip
    assert (batch["status"], shown.stderr) == ("SENT", "")
    text = cli("status", url=database_url, new=True).stdout
    assert "1 rejected file" in text
    assert (
        "geometry" in (rejected := cli("status", "--rejected", url=database_url, new=True).stdout) or "says" in rejected
    )
    assert "STORED" in cli("status", str(batch["id"]), url=database_url, new=True).stdout


def test_an_idle_pass_with_q_prints_nothing(database_url: str) -> None:
    for command in ("finalize", "send"):
        completed = cli(command, "-q", url=database_url)
        assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("ingest",), 2, "Missing argument"),
        (("ingest", "/no/such/directory"), 2, "there is no directory"),
        (("ingest", "/dev/null"), 2, "not a directory, and not a file"),
        (("ingest", "/tmp", "--to", "nowhere"), 2, "no destination is called"),
        (("ingest", "/tmp"), 2, "there is no destination to route to"),
        (("destination", "add", "x", "nonsense"), 2, "is not AET@HOST:PORT"),
        (("destination", "add", "x", "A" * 17 + "@h:104"), 2, "1 to 16 characters"),
        (("destination", "add", "x y", "A@h:104"), 2, "the name 'x y' cannot be"),
        (("destination", "add", "x", "A@h:104", "--quiet-period", "-1"), 2, "--quiet-period must be between 0"),
        (("destination", "add", "x", "A@h:104", "--quiet", "5"), 2, "unexpected extra argument"),
        (("destination", "add", "x", "A@h:104", "--backoff", "1000"), 2, "--backoff-max cannot be less than --backoff"),
        (
            ("destination", "add", "x", "A@h:104", "--user-identity-kind", "3"),
            2,
            "--user-identity-kind must be one of 1, 2, 5",
        ),
        (
            ("destination", "add", "x", "A@h:104", "--tls-ca-file", "ca.pem"),
            2,
            "--tls-ca-file must be an absolute path",
        ),
        (("destination", "add", "x", "A@h:104", "--sender", "pigeon"), 2, "'pigeon' is not one of"),
        (("destination", "show", "x"), 2, "no destination is called"),
        (("status", "7"), 2, "there is no batch 7"),
        (("status", "--study", "1.2"), 2, "there is no batch of study"),
        (("retry",), 2, "which batch"),
        (("retry", "7"), 2, "there is no batch 7"),
        (("finalize", "--batch", "7"), 2, "there is no batch 7"),
        (("finalize", "--study", "1.2"), 2, "there is no batch of study"),
        (("send", "--destination", "x"), 2, "no destination is called"),
        (("frobnicate",), 2, "No such command"),
        (("--config", "/none.toml", "status"), 2, "No such option"),
        (("status", "--config", "/none.toml"), 78, "No such file"),
    ],
)
def test_invalid_input_gives_a_sentence_and_an_exit_code(
    database_url: str, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    completed = cli(*arguments, url=database_url)
    assert completed.returncode == code
    assert sentence in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("nonsense", 78),
        ("mysql://h/d", 78),
        ("postgresql://nobody@127.0.0.1:1/x", 69),
        ("postgresql://u:secret@no.such.host.invalid/x", 69),
        ("postgresql://u:pass@h:notaport/x", 78),
    ],
)
def test_an_unusable_database_url_gives_one_line_without_the_password(url: str, code: int) -> None:
    completed = cli("status", url=url, EXAMSEND_DATABASE_WAIT="0.3")
    assert completed.returncode == code
    assert completed.stderr.startswith("examsend: ")
    assert len(completed.stderr.splitlines()) == 1
    assert "secret" not in completed.stderr


def test_a_database_without_a_schema_gives_the_command_that_creates_it(empty_database_url: str) -> None:
    completed = cli("status", url=empty_database_url)
    assert (completed.returncode, "examsend db upgrade" in completed.stderr) == (78, True)
    assert cli("db", "upgrade", url=empty_database_url, new=True).returncode == 0
    assert cli("db", "check", url=empty_database_url, new=True).returncode == 0
    assert cli("status", url=empty_database_url, new=True).returncode == 0


def test_a_bug_is_exit_70_without_a_traceback(database_url: str, database: engine.Database) -> None:
    execute(database, "DROP TABLE rejected_files")
    completed = cli("status", url=database_url)
    assert completed.returncode == 70
    assert "this is a bug" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert "Traceback" in cli("status", "-vv", url=database_url, new=True).stderr


def test_the_embedded_database_is_used_without_a_database_url(tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        data = Path(name) / "data"
        first = cli("destination", "add", "pacs", "A@127.0.0.1:104", new=True, EXAMSEND_DATA_DIRECTORY=str(data))
        assert first.returncode == 0, first.stderr
        assert "pacs" in cli("destination", "list", EXAMSEND_DATA_DIRECTORY=str(data)).stdout


def test_control_characters_in_a_file_name_are_escaped(database_url: str, tmp_path: Path) -> None:
    drop = tmp_path / "drop"
    [file] = samples.ct_study(drop, 1, size=8)
    file.write_bytes(file.read_bytes()[:-10])
    file.rename(drop / "\x1b[31mred\n.dcm")
    cli("destination", "add", "pacs", "A@127.0.0.1:104", url=database_url)
    completed = cli("ingest", drop, url=database_url, EXAMSEND_INCOMPLETE_AFTER="0", EXAMSEND_SETTLE="0")
    assert "\x1b" not in completed.stdout + completed.stderr
    assert "\\x1b[31mred\\n.dcm" in completed.stdout


def test_sigterm_ends_a_send_cleanly_and_leaves_the_batch_ready(
    settings: Settings, database_url: str, database: engine.Database, tmp_path: Path
) -> None:
    from tests.peers.scripted import Script, scripted

    samples.ct_study(tmp_path / "drop", 50, size=8)
    with scripted(Script(delay=0.2)) as peer:
        cli("destination", "add", "pacs", peer.address, "--quiet-period", "0", url=database_url)
        cli("ingest", tmp_path / "drop", url=database_url)
        cli("finalize", url=database_url)
        process = subprocess.Popen(
            [sys.executable, "-m", "examsend", "send", "-q"], env={**os.environ, "EXAMSEND_DATABASE_URL": database_url}
        )
        deadline = time.monotonic() + 20
        while len(peer.stored) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert time.monotonic() - asked < 10
    assert states(database) == ["READY"]
    assert one(database, "SELECT attempt_count FROM exam_batches") == 0
    stored = one(database, "SELECT count(*) FROM exam_batch_instances WHERE outcome = 'STORED'")
    assert stored == len(peer.stored) > 0


def test_an_interrupted_command_exits_with_130() -> None:
    """It waits for a database that does not answer; SIGINT is what Ctrl-C sends."""
    environment = {**os.environ, "EXAMSEND_DATABASE_WAIT": "60"}
    command = [sys.executable, "-m", "examsend", "status", "--database-url", "postgresql://nobody@127.0.0.1:1/x"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_retry_makes_a_failed_batch_ready_and_refuses_a_sent_one(
    database_url: str, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    port = free_port()
    cli("destination", "add", "pacs", f"A@127.0.0.1:{port}", "--quiet-period", "0", url=database_url)
    cli("ingest", tmp_path / "drop", url=database_url)
    cli("finalize", url=database_url)
    assert cli("send", url=database_url).returncode == 0, "a pass that leaves a batch READY is a completed pass"
    assert "destination held: cannot connect" in cli("status", url=database_url).stdout
    assert cli("retry", "1", url=database_url).returncode == 1
    execute(
        database,
        "UPDATE exam_batches SET status='FAILED', failure_code='X', failure='x', finished_at=now(), next_attempt_at=NULL",
    )
    cli("destination", "set", "pacs", "--address", f"{receiving.aet}@127.0.0.1:{receiving.port}", url=database_url)
    completed = cli("retry", "--all-failed", "--destination", "pacs", url=database_url)
    assert completed.returncode == 0
    assert "destination pacs is no longer held" in completed.stdout
    assert cli("send", url=database_url).returncode == 0
    assert states(database) == ["SENT"]
    refused = cli("retry", "1", url=database_url)
    assert (refused.returncode, "never changed" in refused.stdout) == (1, True)


def test_a_destination_with_unsent_batches_is_not_removed(database_url: str, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    cli("destination", "add", "pacs", "A@127.0.0.1:104", url=database_url)
    cli("ingest", tmp_path / "drop", url=database_url)
    completed = cli("destination", "remove", "pacs", url=database_url)
    assert (completed.returncode, "unsent" in completed.stderr) == (1, True)


def test_finalize_dry_run_shows_why_batches_wait(database_url: str, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    cli("destination", "add", "pacs", "A@127.0.0.1:104", "--quiet-period", "600", url=database_url)
    cli("ingest", tmp_path / "drop", url=database_url)
    assert "quiet in 10 min" in cli("finalize", "--dry-run", url=database_url).stdout
    assert "quiet in 10 min" in cli("status", url=database_url).stdout
    assert cli("finalize", url=database_url).stdout.startswith("nothing is complete")
    assert "OPERATOR" in cli("finalize", "--batch", "1", url=database_url).stdout
