"""What a program may rely on: results and errors as JSON, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from examsend.db import engine
from tests.helpers import cli, execute


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
