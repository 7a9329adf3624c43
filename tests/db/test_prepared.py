"""Statements that are prepared, and statements that go in one message."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from sqlalchemy import TextClause, exc, text

import examsend.queue
from examsend.db import engine, messages, prepared
from tests.helpers import one, rows


def _statements() -> Iterator[tuple[str, TextClause]]:
    for module in pkgutil.iter_modules(examsend.queue.__path__):
        found = importlib.import_module(f"examsend.queue.{module.name}")
        for name, value in vars(found).items():
            if isinstance(value, TextClause) and prepared.is_repeated(value):
                yield f"{module.name}.{name}", value


def test_the_statements_of_a_delivery_are_prepared() -> None:
    assert {name for name, _ in _statements()} >= {
        "batches._CLAIM",
        "batches._SENT",
        "instances._RECORD",
        "attempts._CLOSE",
    }


@pytest.mark.parametrize(("name", "statement"), [*_statements()])
def test_postgresql_can_tell_the_type_of_each_parameter(
    database: engine.Database, name: str, statement: TextClause
) -> None:
    with database.transaction() as tx:
        sql = prepared.prepare(str(statement.compile(dialect=tx.dialect)))
        tx.exec_driver_sql(sql)


_NUMBER = prepared.repeated("SELECT CAST(:number AS integer) % 7")


def _session(database: engine.Database) -> list[str]:
    with database.transaction() as tx:
        found = tx.execute(text("SELECT name FROM pg_prepared_statements")).scalars()
        return [name for name in found if name.startswith("examsend_")]


def test_a_statement_is_prepared_when_it_is_run_often(database: engine.Database) -> None:
    for times in range(1, 6):
        assert database.run(lambda tx: tx.execute(_NUMBER, {"number": 12}).scalar_one()) == 5
        assert len(_session(database)) == (times > 2)


def test_where_the_session_has_lost_what_was_prepared_the_transaction_is_run_again(database: engine.Database) -> None:
    """As behind pgbouncer in transaction mode."""
    for _ in range(3):
        database.run(lambda tx: tx.execute(_NUMBER, {"number": 1}).scalar_one())
    with database.transaction() as tx:
        tx.execute(text("DEALLOCATE ALL"))
    for number in range(5):
        assert database.run(lambda tx, n=number: tx.execute(_NUMBER, {"number": n}).scalar_one()) == number  # type: ignore[misc]
    assert not _session(database), "nothing is prepared any more"


def test_where_another_client_has_prepared_it_the_transaction_is_run_again(database: engine.Database) -> None:
    with database.transaction() as tx:
        tx.exec_driver_sql(prepared.prepare(str(_NUMBER.compile(dialect=tx.dialect))))
    for number in range(5):
        assert database.run(lambda tx, n=number: tx.execute(_NUMBER, {"number": n}).scalar_one()) == number  # type: ignore[misc]


def _insert(database: engine.Database) -> None:
    with database.transaction() as tx:
        tx.execute(text("CREATE TABLE noted (word text PRIMARY KEY)"))


_NOTE = text("INSERT INTO noted VALUES (:word)")


@pytest.mark.parametrize("read", [True, False])
def test_what_goes_with_the_next_statement_is_run_before_it_or_before_commit(
    database: engine.Database, *, read: bool
) -> None:
    _insert(database)
    with database.transaction() as tx:
        messages.later(tx, _NOTE, {"word": "100 %(word)s %"})
        messages.later(tx, _NOTE, {"word": "it's"})
        if read:
            assert tx.scalar(text("SELECT count(*) FROM noted WHERE 7 % :n = 1"), {"n": 2}) == 2
            messages.later(tx, _NOTE, {"word": "last"})
    wanted = [("100 %(word)s %",), ("it's",), *([("last",)] if read else [])]
    assert sorted(tuple(r) for r in rows(database, "SELECT word FROM noted")) == sorted(wanted)


def test_nothing_is_kept_for_the_next_transaction_when_one_is_rolled_back(database: engine.Database) -> None:
    _insert(database)

    def work(tx: engine.Connection) -> None:
        messages.later(tx, _NOTE, {"word": "a"})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.run(work)
    assert one(database, "SELECT count(*) FROM noted") == 0


def test_an_error_of_what_went_later_rolls_the_transaction_back_and_leaves_the_connection_sound(
    database: engine.Database,
) -> None:
    _insert(database)

    def work(tx: engine.Connection) -> None:
        tx.execute(_NOTE, {"word": "a"})
        messages.later(tx, _NOTE, {"word": "a"})

    for _ in range(3):
        with pytest.raises(exc.IntegrityError):
            database.run(work)
        assert one(database, "SELECT count(*) FROM noted") == 0
