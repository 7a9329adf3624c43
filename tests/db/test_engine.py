"""Transactions that are repeated after a lost connection, a deadlock or a lost COMMIT. The tests end backends of PostgreSQL."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import event, text

from examsend.db import engine
from examsend.errors import CommitUnknown, DatabaseUnavailable
from tests.helpers import execute, one

_END_OURSELVES = "SELECT pg_terminate_backend(pg_backend_pid())"


@pytest.fixture
def counter(database: engine.Database) -> engine.Database:
    """A database with the table counter, which contains one number."""
    execute(database, "CREATE TABLE counter (n integer)")
    execute(database, "INSERT INTO counter VALUES (0)")
    return database


def _count(tx: engine.Connection) -> None:
    tx.execute(text("UPDATE counter SET n = n + 1"))


def test_work_is_repeated_after_a_connection_lost_before_commit(counter: engine.Database) -> None:
    tries: list[int] = []

    def work(tx: engine.Connection) -> None:
        _count(tx)
        tries.append(1)
        if len(tries) < 3:
            tx.execute(text(_END_OURSELVES))

    counter.run(work)
    assert (len(tries), one(counter, "SELECT n FROM counter")) == (3, 1)


def test_run_gives_up_after_its_wait(counter: engine.Database) -> None:
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        counter.run(lambda tx: tx.execute(text(_END_OURSELVES)), wait=0.3)
    assert time.monotonic() - began < 5
    with pytest.raises(DatabaseUnavailable):
        counter.run(lambda tx: tx.execute(text(_END_OURSELVES)), wait=0)


@pytest.mark.parametrize("idempotent", [False, True])
def test_work_with_a_lost_commit_is_repeated_only_if_it_is_idempotent(
    counter: engine.Database, idempotent: bool
) -> None:
    """The backend is ended after the work, before COMMIT is sent. The client cannot know whether it was committed."""
    lost: list[int] = []

    def lose(connection: engine.Connection) -> None:
        if not lost:
            lost.append(1)
            backend = connection.connection.driver_connection.info.backend_pid
            execute(counter, "SELECT pg_terminate_backend(:pid, 5000)", pid=backend)

    event.listen(counter.engine, "commit", lose)
    tries: list[int] = []

    def work(tx: engine.Connection) -> None:
        tries.append(1)
        _count(tx)

    try:
        if idempotent:
            counter.run(work, idempotent=True)
        else:
            with pytest.raises(CommitUnknown):
                counter.run(work)
    finally:
        event.remove(counter.engine, "commit", lose)
    assert len(tries) == (2 if idempotent else 1)
    assert one(counter, "SELECT n FROM counter") == (1 if idempotent else 0)


def test_work_is_repeated_after_a_deadlock(counter: engine.Database) -> None:
    execute(counter, "CREATE TABLE other (n integer)")
    execute(counter, "INSERT INTO other VALUES (0)")
    both = threading.Barrier(2)
    tries: list[int] = []

    def work(first: str, second: str) -> None:
        def once(tx: engine.Connection) -> None:
            tries.append(1)
            tx.execute(text(f"UPDATE {first} SET n = n + 1"))
            if len(tries) <= 2:
                both.wait(10)
            tx.execute(text(f"UPDATE {second} SET n = n + 1"))

        counter.run(once)

    threads = [threading.Thread(target=work, args=names) for names in (("counter", "other"), ("other", "counter"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(tries) == 3
    assert (one(counter, "SELECT n FROM counter"), one(counter, "SELECT n FROM other")) == (2, 2)
