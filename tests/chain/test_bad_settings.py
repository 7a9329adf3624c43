"""A bad setting, secret or certificate file of one destination: it is refused when it is set. If it is there anyway, it ends that
destination's association with a sentence and holds that destination; the pass goes on for the others."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from examsend import senders
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.states import SenderName
from examsend.transfer import AssociationEnd, End, Item, Next, Peer, Tls
from tests.helpers import add, cli, execute, prepare, rows
from tests.peers.scripted import Peer as Receiver
from tests.peers.scripted import Script, scripted
from tests.senders.harness import ON_THE_WIRE, items_of


@dataclass(frozen=True)
class Bad:
    """One bad setting."""

    columns: dict[str, Any]
    """As a row holds them. A value that begins with ``files/`` is below the test's directory of files."""
    said: str
    """Part of the sentence that holds the destination."""
    options: tuple[str, ...] = ()
    """The options that set the same; none: there is no way to set it."""
    refused: int | None = 2
    """Exit code of ``destination add``; None: it is added, with a warning."""
    sent: bool = False
    """It is sent in spite of the setting, which is taken as the longest possible."""


def _identity(kind: int, file: str | None, name: str | None = "n") -> dict[str, Any]:
    return {"user_identity_kind": kind, "user_identity_name": name, "user_identity_file": file}


def _identity_options(kind: int, file: str | None, name: str | None = "n") -> tuple[str, ...]:
    options: list[str] = ["--user-identity-kind", str(kind)]
    options += ["--user-identity-file", file] if file else []
    options += ["--user-identity-name", name] if name else []
    return tuple(options)


def _identified(kind: int, file: str | None, said: str, *, name: str | None = "n", refused: int | None = 78) -> Bad:
    return Bad(_identity(kind, file, name), said, _identity_options(kind, file, name), refused)


def _key(name: str, said: str, *, refused: int | None = 78) -> Bad:
    files = ("files/client.pem", f"files/{name}")
    return Bad(
        {"tls": True, "tls_cert_file": files[0], "tls_key_file": files[1]},
        said,
        ("--tls", "--tls-cert-file", files[0], "--tls-key-file", files[1]),
        refused,
    )


def _name(name: str) -> Bad:
    return Bad({"tls": True, "tls_server_name": name}, "server name", ("--tls", "--tls-server-name", name))


BAD = {
    "passcode over 16 bits": _identified(2, "files/long", "too long"),
    "token over 16 bits": _identified(5, "files/long", "too long", name=None),
    "user information over 16 bits": _identified(2, "files/just-too-long", "too long"),
    "username over 16 bits": _identified(1, None, "too long", name="n" * 70_000, refused=2),
    "missing secret": _identified(2, "files/none", "cannot be read", refused=None),
    "empty secret": _identified(2, "files/empty", "is empty"),
    "secret is a directory": _identified(2, "files", "not a regular file"),
    "secret is a pipe": _identified(2, "files/pipe", "not a regular file"),
    "secret for everybody": _identified(2, "files/0666", "chmod 600"),
    "secret for all to read": _identified(5, "files/0644", "chmod 600"),
    "passcode without a file": _identified(2, None, "needs the file", refused=2),
    "token without a file": _identified(5, None, "needs the file", refused=2),
    "passcode without a name": _identified(2, "files/good", "needs a name", name=None, refused=2),
    "username without a name": _identified(1, None, "needs a name", name=None, refused=2),
    "identity of another kind": _identified(3, "files/good", "must be one of", refused=2),
    "encrypted key": _key("encrypted.key", "is encrypted"),
    "key for all to read": _key("0644.key", "chmod 600"),
    "key of another certificate": _key("other.key", "cannot be used"),
    "key that is none": _key("good", "cannot be used"),
    "key is a pipe": _key("pipe", "not a regular file"),
    "missing key": _key("none", "cannot be read", refused=None),
    "CA file that is none": Bad(
        {"tls": True, "tls_ca_file": "files/good"}, "cannot be used", ("--tls", "--tls-ca-file", "files/good"), 78
    ),
    "server name with an empty label": _name(".x"),
    "server name with a long label": _name("a" * 70 + ".test"),
    "server name that is too long": _name(".".join(["abcdefgh"] * 40)),
    "pin that is none": Bad({"tls": True, "tls_pin_sha256": "ä" * 64}, "SHA-256", ("--tls", "--tls-pin", "ä" * 64)),
    "host with a long label": Bad({"host": "a" * 70}, "host name"),
    "AE title that is not ASCII": Bad({"calling_aet": "ÄÖÜ"}, "AE title", ("--calling-aet", "ÄÖÜ")),
    "time-outs beyond the system's": Bad(
        {"stall_timeout": 3e6, "connect_timeout": 1e9, "accept_timeout": 1e9, "answer_timeout": 1e9},
        "",
        ("--stall-timeout", "3000000"),
        sent=True,
    ),
}
"""The identities that a sender cannot send, files that it cannot use, names that cannot be encoded, numbers too large."""


def _openssl(place: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the settings name; each but the ones named by their mode is private."""
    place = tmp_path_factory.mktemp("secrets") / "files"
    place.mkdir()
    (place / "long").write_text("x" * 70_000)
    (place / "just-too-long").write_text("x" * 65_500)
    (place / "empty").write_text("\n")
    for name in ("good", "0666", "0644"):
        (place / name).write_text("secret\n")
    for name in ("client", "other"):
        _openssl(place, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                 "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")  # fmt: skip
    _openssl(place, "rsa", "-in", "client.key", "-aes256", "-passout", "pass:phrase", "-out", "encrypted.key")
    (place / "0644.key").write_bytes((place / "client.key").read_bytes())
    for file in place.iterdir():
        file.chmod(int(file.stem, 8) if file.stem.isdigit() else 0o600)
    os.mkfifo(place / "pipe", 0o600)
    return place


def _in(files: Path, value: Any) -> Any:
    is_file = isinstance(value, str) and (value == "files" or value.startswith("files/"))
    return str(files.parent / value) if is_file else value


def _without_rules(database: engine.Database) -> None:
    """Drop the CHECK constraints, so that a row can be as an earlier version or another program left it."""
    for (name,) in rows(
        database,
        "SELECT conname FROM pg_constraint WHERE conrelid = 'storage_backend_configs'::regclass AND contype = 'c'",
    ):
        execute(database, f'ALTER TABLE storage_backend_configs DROP CONSTRAINT "{name}"')


@pytest.mark.parametrize("sender", ON_THE_WIRE)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_setting_holds_its_destination_and_the_others_are_sent(
    settings: Settings, database: engine.Database, files: Path, tmp_path: Path, bad: Bad, sender: SenderName
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=8)
    with scripted() as receiver:
        add(settings, receiver.address, name="bad", sender=sender, backoff_seconds=60.0, backoff_max_seconds=600.0)
        add(settings, receiver.address, name="healthy")
        prepare(settings, tmp_path / "drop")
        _without_rules(database)
        for column, value in bad.columns.items():
            execute(
                database, f"UPDATE storage_backend_configs SET {column} = :v WHERE name = 'bad'", v=_in(files, value)
            )
        completed = cli("send", url=settings.database_url)
    assert completed.returncode == 0, completed.stderr
    assert "bug" not in completed.stderr
    found = dict(
        rows(
            database,
            "SELECT d.name, b.status FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id",
        )
    )
    assert found == {"bad": "SENT" if bad.sent else "READY", "healthy": "SENT"}
    assert receiver.associations == (2 if bad.sent else 1)
    if not bad.sent:
        held = rows(
            database,
            "SELECT d.held_until > now(), d.held_reason, b.attempt_count FROM storage_backend_configs d"
            " JOIN exam_batches b ON b.destination_id = d.id WHERE d.name = 'bad'",
        )
        assert (held[0][0], held[0][2]) == (True, 0)
        assert bad.said in held[0][1]
        shown = json.loads(cli("status", "--json", url=settings.database_url).stdout)["destinations"]
        assert held[0][1] in {d["name"]: d["health"] for d in shown}["bad"]


@pytest.mark.parametrize("sender", [name for name in SenderName if name not in ON_THE_WIRE])
def test_a_bad_setting_holds_its_destination_for_a_program_too(
    settings: Settings, database: engine.Database, files: Path, tmp_path: Path, sender: SenderName
) -> None:
    """All of them in one pass: a destination each. A program that is not here is one more setting that cannot be used."""
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as receiver:
        add(settings, receiver.address, name="healthy")
        for n in range(len(BAD)):
            add(settings, receiver.address, name=f"bad{n}", backoff_seconds=60.0, backoff_max_seconds=600.0)
        prepare(settings, tmp_path / "drop")
        _without_rules(database)
        execute(
            database,
            "UPDATE storage_backend_configs SET sender = :sender, tls_check_name = :check WHERE name <> 'healthy'",
            sender=sender,
            check=senders.get(sender, settings).capabilities.checks_certificate_name,
        )
        for n, bad in enumerate(BAD.values()):
            changes = ", ".join(f"{column} = :{column}" for column in bad.columns)
            values = {column: _in(files, value) for column, value in bad.columns.items()}
            execute(database, f"UPDATE storage_backend_configs SET {changes} WHERE name = :n", n=f"bad{n}", **values)
        completed = cli("send", url=settings.database_url)
    assert completed.returncode == 0, completed.stderr
    assert "bug" not in completed.stderr
    assert rows(
        database,
        "SELECT b.status FROM exam_batches b JOIN storage_backend_configs d ON d.id = b.destination_id WHERE d.name = 'healthy'",
    ) == [("SENT",)]
    found = {
        row.name: row
        for row in rows(
            database,
            "SELECT d.name, d.held_code, d.held_reason, b.status, b.attempt_count FROM exam_batches b"
            " JOIN storage_backend_configs d ON d.id = b.destination_id",
        )
    }
    for n, (kind, bad) in enumerate(BAD.items()):
        row = found[f"bad{n}"]
        if not bad.sent:
            assert (row.status, row.attempt_count) == ("READY", 0), kind
            assert row.held_code in {"MISCONFIGURED", "UNREACHABLE"}, (kind, row.held_code, row.held_reason)
            assert row.held_reason, kind


@pytest.mark.parametrize("command", ["add", "set"])
@pytest.mark.parametrize("bad", [b for b in BAD.values() if b.options], ids=[n for n, b in BAD.items() if b.options])
def test_a_bad_setting_is_refused_when_it_is_set(
    database_url: str, database: engine.Database, files: Path, bad: Bad, command: str
) -> None:
    arguments = [str(_in(files, option)) for option in bad.options]
    if command == "add":
        completed = cli("destination", "add", "d", "A@h:104", *arguments, url=database_url)
    else:
        cli("destination", "add", "d", "A@h:104", url=database_url)
        completed = cli("destination", "set", "d", *arguments, url=database_url)
    settings_of = (
        "SELECT tls, user_identity_kind, tls_key_file, calling_aet, stall_timeout FROM storage_backend_configs"
    )
    stored = rows(database, settings_of)
    if bad.refused is None:
        assert (completed.returncode, len(stored)) == (0, 1)
        assert "warning: destination d: " in completed.stderr
        assert "must be there where `examsend send` runs" in completed.stderr
    else:
        assert completed.returncode == bad.refused, completed.stderr
        assert completed.stderr.startswith("examsend: ")
        assert len(completed.stderr.splitlines()) == 1
        assert "bug" not in completed.stderr
        assert stored == ([] if command == "add" else [(False, None, None, "EXAMSEND", 60.0)])


def test_an_encrypted_key_is_not_asked_for_on_the_terminal(
    settings: Settings, database: engine.Database, files: Path, tmp_path: Path
) -> None:
    """The pass has a terminal, as at a prompt. OpenSSL would ask there, and wait."""
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as receiver:
        add(settings, receiver.address, name="bad")
        add(settings, receiver.address, name="healthy")
        prepare(settings, tmp_path / "drop")
        key = str(files / "encrypted.key")
        execute(
            database,
            "UPDATE storage_backend_configs SET tls = true, tls_cert_file = :c, tls_key_file = :k WHERE name = 'bad'",
            c=str(files / "client.pem"),
            k=key,
        )
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["EXAMSEND_DATABASE_URL"] = settings.database_url or ""
            os.execv(sys.executable, [sys.executable, "-m", "examsend", "send"])
        shown, status = _read_until_the_end(pid, terminal, 20)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert "pass phrase:" not in shown
    assert {s for (s,) in rows(database, "SELECT status FROM exam_batches")} == {"READY", "SENT"}


def _read_until_the_end(pid: int, terminal: int, seconds: float) -> tuple[str, int]:
    shown, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:
                piece = b""
            if not piece:
                break
            shown += piece
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return shown.decode(errors="replace"), status


def test_a_secret_of_root_may_be_read_by_its_group(
    settings: Settings, database: engine.Database, files: Path, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of root")
    secret = tmp_path / "secret"
    secret.write_text("passcode\n")
    secret.chmod(0o600)
    samples.ct_study(tmp_path / "drop", 1, size=8)
    with scripted() as receiver:
        add(settings, receiver.address, user_identity_kind=5, user_identity_file=str(secret))
        for mode in (0o660, 0o604, 0o641):
            secret.chmod(mode)
            completed = cli(
                "destination", "set", "pacs", "--user-identity-file", str(secret), url=settings.database_url
            )
            assert (completed.returncode, f"mode {mode:04o}" in completed.stderr) == (78, True)
        secret.chmod(0o640)
        prepare(settings, tmp_path / "drop")
        assert cli("send", url=settings.database_url).returncode == 0
    assert [s for (s,) in rows(database, "SELECT status FROM exam_batches")] == ["SENT"]
    assert b"passcode" in receiver.user_information[0][0x58]


def test_a_passcode_over_plain_tcp_is_a_warning(database_url: str, files: Path) -> None:
    given = ("--user-identity-kind", "2", "--user-identity-name", "n", "--user-identity-file", str(files / "good"))
    plain = cli("destination", "add", "plain", "A@h:104", *given, url=database_url)
    assert (plain.returncode, "plain text" in plain.stderr) == (0, True)
    secure = cli("destination", "add", "secure", "A@h:105", *given, "--tls", url=database_url)
    assert (secure.returncode, secure.stderr) == (0, "")
    as_json = cli("destination", "set", "secure", "--no-tls", "--json", url=database_url)
    assert "plain text" in json.loads(as_json.stdout)["warnings"][0]


# --- what the end of an association is called -------------------------------------------------------------------------


@dataclass
class _Watch:
    """Goes on, and stops nothing."""

    problems: list[Any] = field(default_factory=list)

    def answered(self, answer: Any) -> Next:
        return Next.GO_ON

    def not_offered(self, fact: Any) -> Next:
        self.problems.append(fact)
        return Next.GO_ON

    def progressed(self, sent: int) -> None:
        pass

    def stop_at(self) -> float | None:
        return None


def _send(sender: SenderName, receiver: Receiver, item: Item, **values: Any) -> AssociationEnd:
    peer = Peer("127.0.0.1", receiver.port, "A", "B", accept_timeout=5, **values)
    return senders.get(sender, Settings()).send(peer, [item], _Watch())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("given", ["no certificate", "another one"])
def test_a_client_certificate_that_the_peer_refuses_is_a_failure_of_tls(
    files: Path, tmp_path: Path, version: ssl.TLSVersion, given: str
) -> None:
    """In TLS 1.3 the peer's alert comes after the handshake has succeeded on our side."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = server.maximum_version = version
    server.load_cert_chain(files / "client.pem", files / "client.key")
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(files / "client.pem")
    own = (
        {"cert_file": str(files / "other.pem"), "key_file": str(files / "other.key")} if given == "another one" else {}
    )
    item = items_of(samples.ct_study(tmp_path / "one", 1, size=8))[0]
    ends = []
    for _ in range(5):
        with scripted(Script(tls=server)) as receiver:
            ends.append(_send(SenderName.NATIVE, receiver, item, tls=Tls(ca_file=str(files / "client.pem"), **own)))
        assert receiver.requests == 0
    assert {end.end for end in ends} == {End.TLS_FAILED}, [end.sentence for end in ends]


def _unreadable(files: Path) -> str:
    return str(files / "none")


@pytest.mark.parametrize(
    "sender", [n for n in SenderName if 2 in senders.get(n, Settings()).capabilities.user_identity_kinds]
)
@pytest.mark.parametrize("listening", [True, False])
def test_an_unreadable_secret_is_not_a_peer_that_cannot_be_reached(
    files: Path, tmp_path: Path, sender: SenderName, listening: bool
) -> None:
    from examsend.transfer import UserIdentity

    who: Callable[[str], UserIdentity] = lambda path: UserIdentity(2, "n", path)  # noqa: E731
    item = items_of(samples.ct_study(tmp_path / "one", 1, size=8))[0]
    with scripted() as receiver:
        if listening:
            end = _send(sender, receiver, item, user_identity=who(_unreadable(files)))
    if not listening:
        end = _send(sender, receiver, item, user_identity=who(_unreadable(files)))
    assert (end.end, "cannot be read" in end.sentence) == (End.MISCONFIGURED, True)
    assert receiver.requests == 0


def test_a_setting_that_needs_no_value_can_be_taken_away(settings: Settings, database_url: str) -> None:
    add(settings, "PACS@127.0.0.1:104", required_series="CT=2", late_cutoff_hours=3.0, expect_from="PACS@127.0.0.1:104")
    taken = cli(
        "destination", "set", "pacs", "--unset", "required-series", "--unset", "--expect-from", url=database_url
    )
    assert "expect-from, required-series changed" in taken.stdout
    shown = json.loads(cli("destination", "show", "pacs", "--json", url=database_url).stdout)["destination"]
    assert (shown["required_series"], shown["expect_from"], shown["late_cutoff_hours"]) == (None, None, 3.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--unset", "grace"), "--grace always has a value"),
        (("--unset", "host"), "'host' is not an option of a destination"),
        (("--unset", ""), "'' is not an option of a destination"),
        (("--unset", "late-cutoff", "--late-cutoff", "3"), "contradict each other"),
        (("--unset", "tls-key-file"), "a client certificate needs its key"),
    ],
)
def test_what_cannot_be_taken_away_is_said(
    settings: Settings, database_url: str, arguments: tuple[str, ...], sentence: str
) -> None:
    add(settings, "PACS@127.0.0.1:104", tls=True, tls_cert_file="/nowhere/cert", tls_key_file="/nowhere/key")
    completed = cli("destination", "set", "pacs", *arguments, url=database_url)
    assert completed.returncode == 2
    assert sentence in completed.stderr
