"""What a program may rely on: results and errors as JSON, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from examsend.cli import live
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from tests.helpers import add, cli, execute, prepare


def error_of(*arguments: str, **values: str | None) -> dict[str, object]:
    """Run a command with --json; return the error that is alone on standard output, once its exit code is the process's."""
    url = values.pop("url", None)
    done = cli(*arguments, "--json", url=url, **{k: v for k, v in values.items() if v is not None})
    found = json.loads(done.stdout)
    assert found.keys() == {"error"}
    assert found["error"]["exit_code"] == done.returncode
    assert found["error"]["message"] in done.stderr, "people are told too"
    return found["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("status", "--frobnicate"), "USAGE", 2),
        (("send", "--limit", "0"), "USAGE", 2),
        (("ingest", ""), "USAGE", 2),
        (("ingest", "/no/such/place"), "USAGE", 2),
        (("send", "--destination", "x"), "USAGE", 2),
        (("status", "--config", "/none.toml"), "CONFIGURATION", 78),
    ],
)
def test_an_error_is_json_and_the_only_thing_on_standard_output(
    database_url: str, arguments: tuple[str, ...], code: str, exit_code: int
) -> None:
    error = error_of(*arguments, url=database_url)
    assert (error["code"], error["exit_code"]) == (code, exit_code)


def test_errors_of_the_database_are_json_too(empty_database_url: str) -> None:
    away = error_of("status", url="postgresql://nobody@127.0.0.1:1/x", EXAMSEND_DATABASE_WAIT="0.1")
    assert (away["code"], away["exit_code"]) == ("DATABASE_UNAVAILABLE", 69)
    empty = error_of("status", url=empty_database_url)
    assert (empty["code"], empty["exit_code"]) == ("CONFIGURATION", 78)


def test_a_bug_is_json_too(database_url: str, database: engine.Database) -> None:
    execute(database, "DROP TABLE rejected_files")
    assert error_of("status", url=database_url)["code"] == "BUG"


@pytest.mark.parametrize("arguments", [("status",), ("send", "-q"), ("finalize", "-q"), ("destination", "list")])
def test_ctrl_c_while_the_database_does_not_answer_is_a_sentence_and_130(arguments: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
        environment["EXAMSEND_DATABASE_URL"] = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        process = subprocess.Popen(
            [sys.executable, "-m", "examsend", *arguments, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            try:
                output, errors = process.communicate(timeout=20)
            finally:
                process.kill()
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert json.loads(output)["error"]["code"] == "INTERRUPTED"


def test_the_trail_of_a_quiet_pass_goes_to_the_journal_and_nowhere_else(
    database_url: str, settings: Settings, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    for n, journal in enumerate((True, False)):
        samples.ct_study(tmp_path / f"drop{n}", 1, size=8)
        prepare(settings, tmp_path / f"drop{n}")
        with (tmp_path / "stderr").open("w+") as stream:
            found = os.fstat(stream.fileno())
            environment = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
            environment |= {"EXAMSEND_DATABASE_URL": database_url}
            environment["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino if journal else found.st_ino + 1}"
            done = subprocess.run(
                [sys.executable, "-m", "examsend", "send", "-q"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stream,
                timeout=60,
                check=False,
            )
            stream.seek(0)
            assert (done.returncode, done.stdout) == (0, b"")
            assert stream.read().count("attempt batch=") == int(journal)


def test_a_display_tells_bytes_and_the_time_left_at_once(
    database_url: str, settings: Settings, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    for n in range(3):
        samples.ct_study(tmp_path / f"drop{n}", 3, size=64)
        prepare(settings, tmp_path / f"drop{n}")
    main, terminal = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    environment |= {"EXAMSEND_DATABASE_URL": database_url, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-m", "examsend", "send"], env=environment, stdout=subprocess.PIPE, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # Linux says EIO when the other end is closed
        while found := os.read(main, 65536):
            shown += found
    output, _ = process.communicate(timeout=30)
    os.close(main)
    assert process.returncode == 0
    assert output.count(b" SENT,") == 3
    assert b"-:--:--" not in shown
    assert b" of 3" in shown


@pytest.mark.parametrize(
    ("seconds", "done", "total", "said"),
    [
        (60, 57, 300, "4 min left"),
        (10, 1, 2, "10 s left"),
        (0.5, 1, 2, ""),
        (60, 0, 9, ""),
        (60, 3, 3, ""),
        (3600, 1, 6, "5 h left"),
    ],
)
def test_the_time_left_is_told_once_it_can_be(seconds: float, done: float, total: int, said: str) -> None:
    assert live.remaining(seconds, done, total) == said
