"""What goes to PostgreSQL in one message: the settings of a transaction, statements whose result nobody needs, and the next one.

Each message costs a round trip, and where both sides share the cores of a machine more than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, TextClause, event

from examsend.db import prepared

_WAITING = "examsend_waiting"
"""Key in ``Connection.info``: what goes before the next statement of the transaction."""


def listen(engine: Engine) -> None:
    """Let an engine's connections send messages as this module makes them."""
    event.listen(engine, "before_cursor_execute", _join, retval=True)
    event.listen(engine, "commit", _check)
    event.listen(engine, "rollback", _forget)


def begin(connection: Connection, settings: str) -> None:
    """Given a transaction that begins, let its first message have ``settings``, which are statements."""
    connection.info[_WAITING] = [settings]


def later(tx: Connection, statement: TextClause, values: Mapping[str, object]) -> None:
    """Run a statement before the next one of the transaction, in its message, or at the latest before COMMIT.

    Its result is lost. An error of it is raised where it is run.
    """
    waiting = tx.info.setdefault(_WAITING, [""])
    driver: Any = tx.connection.dbapi_connection
    made = prepared.statement_of(tx, str(statement.compile(dialect=tx.dialect)), statement.get_execution_options())
    with driver.cursor() as cursor:
        text = cursor.mogrify(made, values).decode()
    # The driver looks for parameters in the whole message.
    waiting.append(text.replace("%", "%%"))


def _join(
    connection: Connection, _cursor: Any, statement: str, parameters: Any, context: Any, _many: bool
) -> tuple[str, Any]:
    if context is not None:
        statement = prepared.statement_of(connection, statement, context.execution_options)
    waiting = connection.info.pop(_WAITING, ())
    if not waiting:
        return statement, parameters
    return "; ".join(filter(None, (*waiting, statement))), parameters


def flush(tx: Connection) -> None:
    """Run what waits for the next statement, before COMMIT."""
    waiting = tx.info.pop(_WAITING, ())
    if len(waiting) > 1:  # the first ones are the settings
        tx.exec_driver_sql("; ".join(filter(None, waiting)))


def _check(connection: Connection) -> None:
    assert len(connection.info.get(_WAITING, ())) < 2, "flush was not called before COMMIT"


def _forget(connection: Connection) -> None:
    if not connection.invalidated:  # else it is gone, and what waited with it
        connection.info.pop(_WAITING, None)
