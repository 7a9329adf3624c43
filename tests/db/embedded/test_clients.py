"""Clients that share one server: blocks, threads and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from examsend.db import embedded
from tests.db.embedded.helpers import LINUX, Client, answers, postmasters, server_pid


def test_the_last_block_that_ends_stops_the_server(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True) as url:
        with embedded.running(place, unsafe_fast=True) as again:
            assert url == again
        assert answers(url)
        assert embedded.status(place).running
    assert not embedded.status(place).running
    assert embedded.status(place).pid is None


def test_threads_share_one_server_until_the_last_one_leaves(place: Path) -> None:
    leave = [threading.Event() for _ in range(4)]
    entered = threading.Barrier(5)
    urls = []

    def use(mine: threading.Event) -> None:
        with embedded.running(place, unsafe_fast=True) as url:
            urls.append(url)
            entered.wait(60)
            mine.wait(60)

    threads = [threading.Thread(target=use, args=(event,)) for event in leave]
    for thread in threads:
        thread.start()
    entered.wait(60)
    assert len(set(urls)) == 1
    for thread, event in zip(threads, leave, strict=True):
        assert answers(urls[0])
        event.set()
        thread.join(60)
    assert not embedded.status(place).running


def test_a_forked_child_that_leaves_does_not_stop_its_parents_server(place: Path) -> None:
    script = """
import os, sys
from pathlib import Path
import psycopg2
from examsend.db import embedded
with embedded.running(Path(sys.argv[1]), unsafe_fast=True) as url:
    child = os.fork()
    if child == 0:
        sys.exit(0)  # leaves the block
    os.waitpid(child, 0)
    psycopg2.connect(url.replace('+psycopg2', '')).close()
    print('still up')
"""
    ran = subprocess.run([sys.executable, "-c", script, str(place)], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("still up\n", "")
    assert not embedded.status(place).running


def test_eight_cold_starts_at_once_share_one_server(place: Path, client: Callable[..., Client]) -> None:
    clients = [client() for _ in range(8)]
    assert [one.next_line() for one in clients] == ["up"] * 8
    if LINUX:
        assert postmasters(place) == [server_pid(place)]
    assert [one.leave() for one in clients] == [0] * 8
    assert not embedded.status(place).running


def test_clients_that_start_and_leave_at_once_never_use_a_stopping_server(place: Path) -> None:
    failures: list[BaseException] = []

    def use_repeatedly() -> None:
        try:
            for _ in range(12):
                with embedded.running(place, unsafe_fast=True) as url:
                    assert answers(url)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use_repeatedly) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert not embedded.status(place).running


def test_ctrl_c_in_a_terminal_ends_that_client_and_not_the_shared_server(
    place: Path, client: Callable[..., Client]
) -> None:
    first = client(start_new_session=True, stderr=subprocess.DEVNULL)
    assert first.next_line() == "up"
    with embedded.running(place) as url:
        os.killpg(first.process.pid, signal.SIGINT)
        assert first.process.wait(60) != 0
        assert answers(url)
    assert not embedded.status(place).running


def test_a_killed_client_leaves_a_server_that_the_next_one_uses_and_stops(
    place: Path, client: Callable[..., Client]
) -> None:
    first = client()
    assert first.next_line() == "up"
    pid = server_pid(place)
    first.kill()
    assert embedded.status(place).pid == pid
    with embedded.running(place) as url:
        assert answers(url)
        assert server_pid(place) == pid
    assert not embedded.status(place).running


def test_importing_the_package_imports_no_large_library() -> None:
    script = "import sys; from examsend.db import embedded; print({'sqlalchemy', 'platformdirs', 'psycopg2'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
