"""The process of ``examsend listen``: sockets handed over, limits, allow-lists, TLS, its end, and a database that goes away."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import access, embedded, engine
from examsend.dimse.echo import echo
from examsend.transfer import Peer, Tls
from tests.helpers import add, cli, one
from tests.peers.postgres_proxy import proxied
from tests.services.process import MPPS, environment, listening, modality, rejection, status
from tests.services.test_step import item, performed

FIRST = {"PerformedProcedureStepStatus": "IN PROGRESS", "PerformedSeriesSequence": []}

HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = "1", str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Hands descriptor sys.argv[1] over to a program, as systemd does."""


def _bound() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=20)


def _prefix(made: socket.socket) -> list[str]:
    return [sys.executable, "-c", HAND_OVER, str(made.fileno())]


def _start(made: socket.socket, directory: Path, url: str | None, *options: str) -> subprocess.Popen[bytes]:
    command = [*_prefix(made), sys.executable, "-m", "examsend", "listen", "-v", *options]
    with (directory / "activated.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment(url), pass_fds=[made.fileno()])


def _ended(process: subprocess.Popen[bytes], seconds: float = 30) -> int:
    try:
        return process.wait(seconds)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# --- sockets ---


def test_a_socket_that_is_handed_over_is_served_and_outlives_the_process(
    settings: Settings, tmp_path: Path, database: engine.Database
) -> None:
    with _bound() as made:
        port = made.getsockname()[1]
        for uid in ("1.2.9", "1.2.10"):
            # The connection waits in the backlog until the process is there, as with a socket unit.
            process = _start(made, tmp_path, settings.database_url, "--idle", "1")
            try:
                with modality(port) as association:
                    assert status(association.send_n_create(performed(**FIRST), MPPS, uid)) == 0
            finally:
                code = _ended(process)
            assert code == 0, (tmp_path / "activated.log").read_text()
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert one(database, "SELECT count(*) FROM study_expectations") == 2


def test_a_connection_that_comes_while_the_process_ends_is_served_by_the_next_one(
    settings: Settings, tmp_path: Path
) -> None:
    with _bound() as made, ExitStack() as stack:
        port = made.getsockname()[1]
        process = _start(made, tmp_path, settings.database_url, "--idle", "0")
        try:
            assert rejection(port) is None
        finally:
            process.terminate()
            assert _ended(process) == 0
        answers: list[object] = []
        waiting = threading.Thread(target=lambda: answers.append(rejection(port)))
        waiting.start()
        stack.callback(waiting.join, 30)
        time.sleep(0.3)
        process = _start(made, tmp_path, settings.database_url, "--idle", "1")
        try:
            waiting.join(30)
        finally:
            _ended(process)
        assert answers == [None]


@pytest.mark.parametrize("kind", ["file", "unconnected", "datagram"])
def test_a_descriptor_that_is_no_listening_socket_ends_it(settings: Settings, tmp_path: Path, kind: str) -> None:
    with ExitStack() as stack:
        given: socket.socket
        if kind == "file":
            descriptor = stack.enter_context((tmp_path / "x").open("wb")).fileno()
        else:
            given = socket.socket(type=socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
            descriptor = stack.enter_context(given).fileno()
        completed = subprocess.run(
            [sys.executable, "-c", HAND_OVER, str(descriptor), sys.executable, "-m", "examsend", "listen"],
            env=environment(settings.database_url), pass_fds=[descriptor], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert completed.returncode == 78
    assert "descriptor 3, handed over for listening, is not a" in completed.stderr


def test_sockets_of_another_process_are_not_taken(settings: Settings) -> None:
    completed = cli("listen", url=settings.database_url, LISTEN_FDS="1", LISTEN_PID="1")
    assert completed.returncode == 2
    assert completed.stderr.startswith("examsend: there is nothing to listen on: give --port")


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd-socket-activate")
def test_under_systemd_socket_activate(settings: Settings, tmp_path: Path, database: engine.Database) -> None:
    with _bound() as found:
        port = found.getsockname()[1]
    prefix = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}"]
    names = [f"--setenv={name}" for name in ("EXAMSEND_DATABASE_URL", "PATH", "PYTHONPATH")]
    with listening(tmp_path, settings.database_url, "--idle", "1", prefix=[*prefix, *names]) as listen:
        listen.wait_for("Listening on")
        with modality(port) as association:
            assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0
        assert listen.process.wait(30) == 0
        assert "no association for 1 s: listen ends" in listen.text()
    assert one(database, "SELECT count(*) FROM study_expectations") == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("kind", ["socket", "service"])
def test_the_units_are_valid(kind: str) -> None:
    unit = Path(__file__).parents[2] / "systemd" / f"examsend-listen.{kind}"
    completed = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (completed.returncode, completed.stderr) == (0, "")


# --- settings and allow-lists ---


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("LISTEN_ALLOW_PEERS", "10.0.0.1/8", "must be IP addresses and networks"),
        ("LISTEN_ALLOW_PEERS", "localhost", "must be IP addresses and networks"),
        ("LISTEN_ALLOW_AETS", "CT1,,CT2", "nothing empty in it"),
        ("LISTEN_AET", "A" * 17, "must be an AE title"),
        ("LISTEN_TLS_KEY_FILE", "/nowhere/key.pem", "belong together"),
        ("LISTEN_TLS_CA_FILE", "/nowhere/ca.pem", "needs listen_tls_cert_file"),
        ("LISTEN_ASSOCIATIONS", "0", "between 2 and 200"),
    ],
)
def test_settings_that_are_wrong_are_named_before_it_listens(variable: str, value: str, sentence: str) -> None:
    completed = cli("listen", "--port", "0", **{f"EXAMSEND_{variable}": value})
    assert completed.returncode == 78
    assert sentence in completed.stderr
    assert "listening" not in completed.stderr


def test_a_certificate_that_cannot_be_read_is_named_before_it_listens(tmp_path: Path) -> None:
    files = {"EXAMSEND_LISTEN_TLS_CERT_FILE": "/nowhere/cert.pem", "EXAMSEND_LISTEN_TLS_KEY_FILE": "/nowhere/key.pem"}
    completed = cli("listen", "--port", "0", **files)
    assert completed.returncode == 78
    assert "/nowhere/cert.pem cannot be read" in completed.stderr


def test_a_port_that_is_taken_and_an_address_that_is_none_are_named() -> None:
    with _bound() as taken:
        completed = cli("listen", "--port", str(taken.getsockname()[1]), "--bind", "127.0.0.1")
    assert completed.returncode == 78
    assert "Address already in use" in completed.stderr
    assert cli("listen", "--port", "0", "--bind", "localhost").returncode == 2


def test_it_answers_to_its_own_title_and_to_those_of_the_destinations(settings: Settings, tmp_path: Path) -> None:
    add(settings, "ARCHIVE@127.0.0.1:11112", calling_aet="SENDER")
    with listening(tmp_path, settings.database_url, EXAMSEND_LISTEN_AET="PORT") as listen:
        assert rejection(listen.port, "PORT") is None
        assert rejection(listen.port, "SENDER") is None
        assert rejection(listen.port, "ARCHIVE") == (1, 1, 7)
        assert listen.end() == 0
        assert "the called AE title ARCHIVE is neither" in listen.text()


def test_only_calling_titles_that_are_allowed_are_accepted(settings: Settings, tmp_path: Path) -> None:
    with listening(tmp_path, settings.database_url, EXAMSEND_LISTEN_ALLOW_AETS="CT1, MR 1") as listen:
        assert rejection(listen.port, calling="CT1") is None
        assert rejection(listen.port, calling="MR 1") is None
        assert rejection(listen.port, calling="CT") == (1, 1, 3)


def test_a_peer_that_is_not_allowed_is_closed_at_once_and_logged_once(settings: Settings, tmp_path: Path) -> None:
    allowed = "127.0.0.2, fd00::/8"
    options = ("--port", "0", "--bind", "127.0.0.1")
    with listening(tmp_path, settings.database_url, *options, EXAMSEND_LISTEN_ALLOW_PEERS=allowed) as listen:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", listen.port), 10) as made:
                assert made.recv(1) == b""
        with modality(listen.port, bind_address=("127.0.0.2", 0)) as association:
            assert association.send_c_echo().Status == 0
        assert listen.end() == 0
        assert listen.text().count("127.0.0.1 closed: it is not in listen_allow_peers") == 1
        assert "1 association, 5 rejected" in listen.text()


# --- TLS ---


@pytest.mark.parametrize("mutual", [False, True])
def test_steps_over_tls(
    settings: Settings, tmp_path: Path, database: engine.Database, certificates: Path, mutual: bool
) -> None:
    with listening(tmp_path, settings.database_url, **_tls(certificates, mutual=mutual)) as listen:
        context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        if mutual:
            context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        with modality(listen.port, tls_args=(context, "receiver.test")) as association:
            assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0
    assert one(database, "SELECT count(*) FROM study_expectations") == 1


def test_clients_without_an_accepted_certificate_and_without_tls_are_turned_away(
    settings: Settings, tmp_path: Path, certificates: Path
) -> None:
    ca = str(certificates / "ca.pem")
    with listening(tmp_path, settings.database_url, **_tls(certificates, mutual=True)) as listen:
        for tls in (
            None,
            Tls(ca, server_name="receiver.test"),
            Tls(ca, str(certificates / "stranger.pem"), str(certificates / "stranger.key"), "receiver.test"),
        ):
            assert not echo(Peer("127.0.0.1", listen.port, "EXAMSEND", "CT1", tls=tls)).ok
        good = Tls(ca, str(certificates / "client.pem"), str(certificates / "client.key"), "receiver.test")
        assert echo(Peer("127.0.0.1", listen.port, "EXAMSEND", "CT1", tls=good)).ok


def test_a_certificate_that_becomes_unusable_and_usable_again_does_not_end_it(
    settings: Settings, tmp_path: Path, certificates: Path
) -> None:
    own = tmp_path / "own.pem"
    shutil.copy(certificates / "server.pem", own)
    values = _tls(certificates, mutual=False) | {"EXAMSEND_LISTEN_TLS_CERT_FILE": str(own)}
    peer = Tls(str(certificates / "ca.pem"), server_name="receiver.test")
    with listening(tmp_path, settings.database_url, **values) as listen:
        assert echo(Peer("127.0.0.1", listen.port, "EXAMSEND", "CT1", tls=peer)).ok
        own.write_text("no certificate")
        assert not echo(Peer("127.0.0.1", listen.port, "EXAMSEND", "CT1", tls=peer)).ok
        shutil.copy(certificates / "server.pem", own)
        assert echo(Peer("127.0.0.1", listen.port, "EXAMSEND", "CT1", tls=peer)).ok
        assert listen.end() == 0
        assert "cannot be used" in listen.text()


def _tls(certificates: Path, *, mutual: bool) -> dict[str, str]:
    files = {"CERT_FILE": "server.pem", "KEY_FILE": "server.key"} | ({"CA_FILE": "ca.pem"} if mutual else {})
    return {f"EXAMSEND_LISTEN_TLS_{name}": str(certificates / file) for name, file in files.items()}


# --- limits ---


def test_one_address_has_at_most_half_of_the_associations(settings: Settings, tmp_path: Path) -> None:
    with (
        listening(tmp_path, settings.database_url, EXAMSEND_LISTEN_ASSOCIATIONS="4") as listen,
        ExitStack() as stack,
    ):
        for _ in range(2):
            stack.enter_context(modality(listen.port))
        assert rejection(listen.port) == (2, 3, 2)
        for _ in range(2):
            stack.enter_context(modality(listen.port, bind_address=("127.0.0.2", 0)))
        # All four are in use: a third address is rejected too.
        with pytest.raises(AssertionError), modality(listen.port, bind_address=("127.0.0.3", 0)):
            pass
        stack.close()
        assert rejection(listen.port) is None


def test_silent_connections_of_one_address_do_not_keep_out_others(settings: Settings, tmp_path: Path) -> None:
    with (
        listening(tmp_path, settings.database_url, EXAMSEND_LISTEN_ASSOCIATIONS="4") as listen,
        ExitStack() as stack,
    ):
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", listen.port), 10))
        time.sleep(0.5)
        with modality(listen.port, bind_address=("127.0.0.2", 0)) as association:
            assert association.send_c_echo().Status == 0


def test_it_goes_on_where_no_descriptor_is_left(settings: Settings, tmp_path: Path) -> None:
    limit = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh"]
    with (
        listening(tmp_path, settings.database_url, prefix=limit, EXAMSEND_LISTEN_ASSOCIATIONS="200") as listen,
        ExitStack() as stack,
    ):
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", listen.port), 10))
        listen.wait_for("no connection can be accepted now")
        before = _seconds_used(listen.process.pid)
        time.sleep(2)
        assert _seconds_used(listen.process.pid) - before < 1
        stack.close()
        assert rejection(listen.port) is None
        assert listen.end() == 0


def _seconds_used(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


# --- the end ---


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_open_associations_are_aborted_after_a_time(
    settings: Settings, tmp_path: Path, number: int, code: int
) -> None:
    with listening(tmp_path, settings.database_url) as listen, modality(listen.port) as association:
        listen.process.send_signal(number)
        time.sleep(1)
        # It accepts no more, and the open association goes on for a while.
        assert association.send_c_echo().Status == 0
        began = time.monotonic()
        assert listen.end(0) == code
        assert 3 < time.monotonic() - began < 18
        association.join(5)
        assert association.is_aborted
        assert "1 association, 0 rejected; 1 message answered" in listen.text()


def test_it_ends_at_once_where_no_association_is_open(settings: Settings, tmp_path: Path) -> None:
    with listening(tmp_path, settings.database_url) as listen:
        assert rejection(listen.port) is None
        began = time.monotonic()
        assert listen.end() == 0
        assert time.monotonic() - began < 4


# --- the database ---


def test_without_a_schema_messages_are_refused_until_it_is_there(empty_database_url: str, tmp_path: Path) -> None:
    with listening(tmp_path, empty_database_url) as listen:
        with modality(listen.port) as association:
            assert association.send_c_echo().Status == 0
            assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0x0213
            assert cli("db", "upgrade", url=empty_database_url).returncode == 0
            assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0
        listen.wait_for("a message is refused: the database has no examsend schema yet")
        assert listen.end() == 0


def test_a_database_that_is_away_is_a_failure_status_within_a_time(tmp_path: Path) -> None:
    with _bound() as found:
        port = found.getsockname()[1]
    url = f"postgresql://nobody@127.0.0.1:{port}/nothing"
    with listening(tmp_path, url) as listen:
        # The titles of the destinations are not known: that may pass.
        assert rejection(listen.port, "ELSE") == (2, 1, 7)
        with modality(listen.port) as association:
            began = time.monotonic()
            assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0x0213
            assert time.monotonic() - began < 8
            assert association.send_c_echo().Status == 0
        assert listen.end() == 0


def test_a_server_that_freezes_is_a_failure_status_within_a_time(
    settings: Settings, tmp_path: Path, database: engine.Database
) -> None:
    assert settings.database_url is not None
    with (
        proxied(settings.database_url) as proxy,
        listening(tmp_path, proxy.url) as listen,
        modality(listen.port) as association,
    ):
        assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0
        proxy.freeze()
        for _ in range(2):
            began = time.monotonic()
            assert status(association.send_n_set(performed(), MPPS, "1.2.9")) == 0x0213
            assert time.monotonic() - began < 8
        proxy.go_on()
        over = time.monotonic() + 30
        while (found := status(association.send_n_set(performed(), MPPS, "1.2.9"))) == 0x0213:
            assert time.monotonic() < over
        assert found in {0, 0x0110}
        association.release()
        assert listen.end() == 0
    assert one(database, "SELECT state FROM study_expectations") == "COMPLETED"


def test_a_commit_whose_fate_is_unknown_is_never_a_success(
    settings: Settings, tmp_path: Path, database: engine.Database
) -> None:
    assert settings.database_url is not None
    with (
        proxied(settings.database_url) as proxy,
        listening(tmp_path, proxy.url) as listen,
        modality(listen.port) as association,
    ):
        assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.8")) == 0
        proxy.cut_at_commit = True
        assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0x0213
        # Sent again, the modality learns that it is there.
        assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0x0111
        assert status(association.send_n_set(performed(), MPPS, "1.2.9")) == 0
        association.release()
        assert listen.end() == 0
    assert one(database, "SELECT count(*) FROM study_expectations") == 2


def test_a_server_that_is_stopped_and_started_again(tmp_path: Path) -> None:
    """The process starts the embedded server itself. It is then stopped hard, as by a crash."""
    with embedded.scratch_directory() as scratch:
        settings = Settings(data_directory=scratch.parent)
        with (
            listening(tmp_path, None, EXAMSEND_DATA_DIRECTORY=str(scratch.parent)) as listen,
            modality(listen.port) as association,
        ):
            answers = _until_stored(association, "1.2.9")
            assert set(answers) <= {0x0213, 0}
            postmaster = next(scratch.rglob("postmaster.pid"))
            subprocess.run(["kill", "-QUIT", postmaster.read_text().split()[0]], check=True)
            time.sleep(0.5)
            answers = _until_stored(association, "1.2.10")
            assert set(answers) <= {0x0213, 0x0111, 0}
            # What was answered with success is there, and so is what comes after.
            assert status(association.send_n_set(performed(), MPPS, "1.2.9")) == 0
            with access.opened(settings) as database:
                assert one(database, "SELECT count(*) FROM study_expectations") == 2
            association.release()
            assert listen.end() == 0


def _until_stored(association: object, uid: str) -> list[int]:
    answers: list[int] = []
    over = time.monotonic() + 90
    while time.monotonic() < over:
        answers.append(status(association.send_n_create(performed(**FIRST), MPPS, uid)))  # type: ignore[attr-defined]
        if answers[-1] in {0, 0x0111}:
            return answers
        time.sleep(0.2)
    raise AssertionError(answers)


def test_killed_between_two_messages_nothing_that_was_answered_is_lost(
    settings: Settings, tmp_path: Path, database: engine.Database
) -> None:
    with listening(tmp_path, settings.database_url) as listen, modality(listen.port) as association:
        assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0
        listen.end(signal.SIGKILL)
        association.join(5)
    with listening(tmp_path, settings.database_url) as listen, modality(listen.port) as association:
        assert status(association.send_n_create(performed(**FIRST), MPPS, "1.2.9")) == 0x0111
        assert status(association.send_n_set(performed(), MPPS, "1.2.9")) == 0
        listen.end(signal.SIGKILL)
        association.join(5)
    with listening(tmp_path, settings.database_url) as listen, modality(listen.port) as association:
        assert status(association.send_n_set(item(PerformedSeriesSequence=[]), MPPS, "1.2.9")) == 0x0110
    assert one(database, "SELECT state FROM study_expectations") == "COMPLETED"
    assert one(database, "SELECT count(*) FROM expected_instances") == 3
