"""What people read when something is wrong: a sentence and an exit code, never "a bug", never a piece of a password."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import make_url

from examsend import senders
from examsend.config.destination import DECLARED, DestinationSettings, type_of
from examsend.config.settings import Settings
from examsend.db import embedded, engine
from examsend.demo import samples
from examsend.errors import UsageError
from examsend.queue import destination as destinations
from examsend.states import SenderName
from tests.helpers import add, cli, execute, one, prepare, rows

# --- numbers ----------------------------------------------------------------------------------------------------------

_NUMBERS = [
    f.name for f in fields(DestinationSettings) if type_of(f)[0] in {"int", "float"} and DECLARED[f.name].option
]

_EXTREMES = [
    0, 0.001, 0.01, 0.1, 1, 1.5, 2, 3, 5, 10, 64, 65, 700, 1000, 1001, 10_000, 10_001, 65535, 65536, 86400, 86401, 10**9,
    10**9 + 1, 2**31 - 1, 2**31, 2**63, 10**400, 1e300, -1, -0.01, -(2**63), float("inf"), float("-inf"), float("nan"),
]  # fmt: skip

_BASE = {"host": "h", "port": 104, "called_aet": "A"}


class _UndoneError(Exception):
    pass


def _tried(database: engine.Database, values: dict[str, object], *, change: bool) -> bool:
    """Try settings in a transaction that is rolled back; return whether they are allowed. Anything but UsageError is raised."""
    with suppress(_UndoneError), database.transaction() as tx:
        if change:
            destinations.add_destination(tx, "d", _BASE)
        try:
            if change:
                destinations.change_destination(tx, "d", values)
            else:
                destinations.add_destination(tx, "d", {**_BASE, **values})
        except UsageError as error:
            assert "by its rule" not in str(error), f"the checks let through what the database refuses: {values}"
            allowed = False
        else:
            allowed = True
        raise _UndoneError
    return allowed


@pytest.mark.parametrize("change", [False, True], ids=["add", "set"])
@pytest.mark.parametrize("name", _NUMBERS)
def test_every_number_is_stored_or_refused_with_a_sentence(database: engine.Database, name: str, change: bool) -> None:
    allowed = [value for value in _EXTREMES if _tried(database, {name: value}, change=change)]
    assert len(allowed) < len(_EXTREMES)
    assert allowed or name == "user_identity_kind"


def test_settings_that_contradict_each_other_are_refused_with_a_sentence(database: engine.Database) -> None:
    chosen = random.Random(14)
    results = []
    for _ in range(400):
        names = chosen.sample(_NUMBERS, chosen.randint(2, 4))
        values = {name: chosen.choice(_EXTREMES) for name in names}
        results.append(_tried(database, values, change=chosen.random() < 0.5))
    assert set(results) == {True, False}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--backoff", "700"), "--backoff-max cannot be less than --backoff"),
        (("--backoff-max", "10"), "--backoff-max cannot be less than --backoff"),
        (("--associations", "2", "--associations-per-study", "3"), "cannot be more than --associations"),
        (("--stall-timeout", "3000000"), "--stall-timeout must be between 0.1 and 86400"),
        (("--associations", "9" * 400), "--associations must be between 1 and 1000"),
        (("--backoff", "nan"), "--backoff must be between"),
    ],
)
@pytest.mark.parametrize("command", ["add", "set"])
def test_a_contradiction_is_wrong_usage(
    database_url: str, options: tuple[str, ...], sentence: str, command: str
) -> None:
    if command == "set":
        cli("destination", "add", "d", "A@h:104", url=database_url)
    address = ("A@h:104",) if command == "add" else ()
    completed = cli("destination", command, "d", *address, *options, url=database_url)
    assert (completed.returncode, sentence in completed.stderr) == (2, True), completed.stderr


@pytest.mark.parametrize("table", ["pgstattuple", "priority", "stall_timeout", "backoff_max_seconds"])
def test_a_rule_of_the_database_is_never_a_bug(database: engine.Database, database_url: str, table: str) -> None:
    """A rule that the checks do not know, as a later version or an administrator may add."""
    column = table if table != "pgstattuple" else "priority"
    execute(database, f"ALTER TABLE storage_backend_configs ADD CONSTRAINT theirs CHECK ({column} <> 2)")
    given = f"--{column.removesuffix('_seconds').replace('_', '-')}"
    more = ("--backoff", "1") if "backoff" in column else ()
    for command in (
        ("add", "d", "A@h:104", given, "2", *more),
        ("add", "d", "A@h:104"),
        ("set", "d", given, "2", *more),
    ):
        completed = cli("destination", *command, url=database_url)
        if given in command:
            assert (completed.returncode, "by its rule theirs" in completed.stderr) == (2, True), completed.stderr
        else:
            assert completed.returncode == 0


@pytest.mark.parametrize("number", ["9" * 20, "9" * 400, "-1", "0"])
@pytest.mark.parametrize("command", [("status",), ("retry",), ("finalize", "--batch")], ids=" ".join)
def test_an_id_that_no_row_can_have_is_wrong_usage(database_url: str, command: tuple[str, ...], number: str) -> None:
    given = (*command, number) if command[0] == "finalize" else (*command, "--", number)
    completed = cli(*given, url=database_url)
    assert (completed.returncode, "bug" in completed.stderr) == (2, False), completed.stderr


@pytest.mark.parametrize(
    "words",
    [("status", "--study"), ("status", "--destination"), ("finalize", "--study"), ("destination", "show")],
    ids=" ".join,
)
def test_text_that_is_not_utf_8_is_wrong_usage(database_url: str, words: tuple[str, ...]) -> None:
    completed = cli(*words, os.fsdecode(b"\xff\xfe"), url=database_url)
    assert (completed.returncode, "bug" in completed.stderr) == (2, False), completed.stderr


# --- output -----------------------------------------------------------------------------------------------------------


def _shell(script: str, url: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EXAMSEND_DATABASE_URL": url, "E": f"{sys.executable} -m examsend"}
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.mark.parametrize("output", ["> /dev/full", ">&-"])
@pytest.mark.parametrize("command", ["status", "status --json", "destination list", "--help", "--version", "db check"])
def test_output_that_cannot_be_written_is_said(database_url: str, command: str, output: str) -> None:
    completed = _shell(f"$E {command} {output}", database_url)
    assert completed.returncode == 1, completed.stderr
    assert completed.stderr.startswith("examsend: the output could not be written: ")
    assert len(completed.stderr.splitlines()) == 1


@pytest.mark.parametrize("output", ["> /dev/full", ">&-", "<&- >&- 2>&-", "2> /dev/full"])
def test_a_pass_that_says_nothing_needs_no_output(database_url: str, output: str) -> None:
    assert _shell(f"$E send -q {output}", database_url).returncode == 0


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">&- 2>&-", "> /dev/full 2> /dev/full"])
def test_a_pass_does_its_work_without_standard_streams(
    settings: Settings, database: engine.Database, tmp_path: Path, streams: str
) -> None:
    """No connection gets the number of a closed stream, so that no text goes to the database or to a receiver."""
    samples.ct_study(tmp_path / "drop", 1, size=8)
    add(settings, "A@127.0.0.1:1")
    completed = _shell(f"$E ingest {tmp_path}/drop {streams}", settings.database_url or "")
    assert completed.returncode == 1
    assert one(database, "SELECT count(*) FROM exam_batch_instances") == 1


def test_a_name_that_the_encoding_of_the_output_lacks_is_escaped(database_url: str) -> None:
    cli("destination", "add", "x", "A@bücher.example:104", url=database_url)
    completed = cli("destination", "list", url=database_url, PYTHONIOENCODING="ascii")
    assert (completed.returncode, "b\\xfccher.example" in completed.stdout) == (0, True)


# --- the database -----------------------------------------------------------------------------------------------------


@dataclass
class _Server:
    """A server of its own, with users that it refuses for different reasons."""

    url: str

    def url_of(self, user: str, password: str | None = None, database: str | None = None) -> str:
        made = make_url(self.url).set(username=user, password=password)
        made = made.set(database=database or made.database)
        return made.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    """A PostgreSQL that asks for passwords."""
    with embedded.scratch_directory() as scratch, embedded.running(scratch, unsafe_fast=True) as url:
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SHOW hba_file")
            [name] = cursor.fetchone() or [""]
            file = Path(name)
            file.write_text("local all secured scram-sha-256\nlocal all rejected reject\n" + file.read_text())
            for statement in (
                "CREATE ROLE secured LOGIN PASSWORD 'the right one'",
                "CREATE ROLE rejected LOGIN",
                "CREATE ROLE nologin",
                "CREATE ROLE guest LOGIN",
                "CREATE DATABASE closed",
                "REVOKE CONNECT ON DATABASE closed FROM public",
                "SELECT pg_reload_conf()",
            ):
                cursor.execute(statement)
        connection.close()
        time.sleep(0.5)
        assert cli("db", "upgrade", url=url).returncode == 0
        yield _Server(url)


@pytest.mark.parametrize(
    ("user", "password", "database", "sentence"),
    [
        ("secured", "a wrong one", None, "refuses the password"),
        ("secured", None, None, "asks for a password"),
        ("rejected", None, None, "refuses this user"),
        ("nobody", None, None, "refuses this user"),
        ("nologin", None, None, "refuses this user"),
        ("postgres", None, "nowhere", "has no such database"),
        ("guest", None, "closed", "denies this user"),
    ],
)
@pytest.mark.parametrize("command", ["status", "send", "db upgrade"])
def test_what_waiting_does_not_mend_is_said_at_once(
    server: _Server, user: str, password: str | None, database: str | None, sentence: str, command: str
) -> None:
    began = time.monotonic()
    completed = cli(*command.split(), url=server.url_of(user, password, database), EXAMSEND_DATABASE_WAIT="30")
    assert (completed.returncode, sentence in completed.stderr) == (78, True), completed.stderr
    assert time.monotonic() - began < 15


def test_the_right_password_is_accepted(server: _Server) -> None:
    completed = cli("status", url=server.url_of("secured", "the right one"))
    assert "denies this user what the command needs" in completed.stderr, "it has no rights to the tables"


@pytest.mark.parametrize("more", ["foo=1", "sslmode=banana", "gssencmode=soon"])
def test_an_option_of_the_url_that_libpq_does_not_know_is_a_configuration_error(server: _Server, more: str) -> None:
    completed = cli("status", url=f"{server.url}&{more}", EXAMSEND_DATABASE_WAIT="30")
    assert (completed.returncode, "bug" in completed.stderr) == (78, False), completed.stderr


def _odd_passwords() -> list[str]:
    chosen = random.Random(15)
    letters, odd = "QXZJVKqxzjvk79", "@:/?#[]%&=+ !$*();,'\"\\|<>{}^`~ü€\n\t"
    made = [
        "QXZJ@VKqx",
        "QXZJ@/VKqx",
        "QXZJ@VKqx?zj=vk",
        "VKQX/ZJqx",
        "79379",
        "QXZJ@79",
        "VKqx%00zjQX",
        "@QXZJ",
        "QXZJ@",
    ]
    for _ in range(40):
        word = [chosen.choice(letters) for _ in range(12)]
        for _ in range(chosen.randint(1, 3)):
            word[chosen.randrange(12)] = chosen.choice(odd)
        made.append("".join(word))
    return made


@pytest.mark.parametrize("password", _odd_passwords(), ids=ascii)
def test_no_piece_of_a_password_is_printed(password: str) -> None:
    """The password is not encoded in the URL, as people write it; also without a host, or where the @ was forgotten."""
    for url in (
        f"postgresql://user:{password}@127.0.0.1:1/db",
        f"postgresql://user:{password}/db",
        f"postgresql://{password}@127.0.0.1:1/db",
    ):
        if url.startswith(f"postgresql://{password}") and "@" not in password:
            continue  # then it is the user's name
        if url == f"postgresql://user:{password}/db" and "@" in password:
            continue  # then what follows it is a host
        completed = cli("status", "-vv", url=url, EXAMSEND_DATABASE_WAIT="0")
        shown = completed.stdout + completed.stderr
        assert completed.returncode in {69, 78}, shown
        assert [password[n : n + 4] for n in range(len(password) - 3) if password[n : n + 4] in shown] == []


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TABLE exam_batches (id serial PRIMARY KEY, what text)",
        "CREATE TABLE exam_batches (batch text)",
        "CREATE VIEW exam_batches AS SELECT 1 AS id",
        "CREATE TABLE exam_batches (id bigint, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
        "CREATE TABLE exam_batch_instances (id bigint PRIMARY KEY, batch_id bigint)",
        "CREATE TABLE storage_backend_configs (id bigint PRIMARY KEY, url text)",
        "CREATE TABLE send_attempts (id bigint PRIMARY KEY)",
        "CREATE TABLE rejected_files (id bigint PRIMARY KEY)",
        "CREATE SEQUENCE send_attempts",
        "CREATE TYPE exam_batches AS (id bigint)",
        "CREATE TABLE alembic_version (number integer)",
        "CREATE FUNCTION exam_batches_touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    ],
)
def test_a_schema_beside_what_another_program_made_is_a_configuration_error(empty_database_url: str, made: str) -> None:
    connection = psycopg2.connect(empty_database_url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(made)
            before = _relations(cursor)
        for _ in range(2):
            completed = cli("db", "upgrade", url=empty_database_url)
            assert (completed.returncode, "bug" in completed.stderr) == (78, False), completed.stderr
            assert len(completed.stderr.splitlines()) == 1
        with connection, connection.cursor() as cursor:
            assert _relations(cursor) == before
    finally:
        connection.close()


def _relations(cursor: psycopg2.extensions.cursor) -> list[tuple[object, ...]]:
    cursor.execute(
        "SELECT c.relname, a.attname, a.atttypid FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1, 2"
    )
    return cursor.fetchall()


# --- sentences --------------------------------------------------------------------------------------------------------


def test_the_paths_of_a_batch_are_on_lines_of_their_own(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    add(settings, "A@127.0.0.1:1")
    prepare(settings, tmp_path / "drop")
    shown = cli("status", "1", url=settings.database_url).stdout
    assert "\\n" not in shown
    for (path,) in rows(database, "SELECT processed_filepath FROM exam_batch_instances"):
        assert path in "".join(line.strip() for line in shown.splitlines())


def test_nothing_rejected_and_nothing_failed_is_said(settings: Settings, database_url: str, tmp_path: Path) -> None:
    assert cli("status", "--rejected", url=database_url).stdout == "no rejected files\n"
    assert "destination add" in cli("status", url=database_url).stdout
    add(settings, "A@127.0.0.1:1")
    assert cli("status", "--rejected", url=database_url).stdout == "no rejected files\n"
    assert cli("status", "--failed", url=database_url).stdout.endswith("no FAILED batches\n")


def test_the_senders_that_the_help_offers_are_there() -> None:
    shown = " ".join(cli("destination", "add", "--help").stdout.split())
    assert f"Sender to use: {', '.join(SenderName)}." in shown
    for name in SenderName:
        assert senders.get(name, Settings()).name == name


def test_retry_says_that_the_destination_is_held_or_disabled(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    add(settings, "A@127.0.0.1:1", backoff_seconds=600.0, backoff_max_seconds=600.0)
    prepare(settings, tmp_path / "drop")
    cli("send", url=database_url)

    def retried(*more: str) -> str:
        execute(
            database,
            "UPDATE exam_batches SET status = 'FAILED', failure_code = 'X', failure = 'x', finished_at = now(),"
            " next_attempt_at = NULL",
        )
        completed = cli("retry", *more, url=database_url)
        assert completed.returncode == 0
        return completed.stdout

    said = retried("1")
    assert "destination pacs is held: cannot connect" in said
    assert "tried again in" in said
    assert "`examsend destination unhold pacs`" in said
    assert "is held" not in retried("--all-failed", "--destination", "pacs"), "this ends the hold"
    cli("destination", "disable", "pacs", url=database_url)
    assert "destination pacs is disabled: `examsend destination enable pacs`" in retried("1")
