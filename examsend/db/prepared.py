"""Statements that a pass runs again and again: PostgreSQL plans them once a session, and not each time.

To parse and plan a statement takes PostgreSQL more time than to run it. From its third time in a session on, a statement is sent as
PREPARE and EXECUTE. That is state of a session, which pgbouncer in transaction mode shares between clients: there a prepared
statement may be missing, or be there already. The transaction fails then, is run again, and nothing is prepared any more
(``gone``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, TextClause, text

_OPTION = "examsend_prepared"

_TIMES = "examsend_times"
"""Key in ``Connection.info``: how often each statement was run in its session."""

_OFF = "examsend_prepares_nothing"
"""Execution option of an engine."""

_UNPREPARED = 2
"""Times that a statement is run as it is: a short pass does not prepare what it never runs again."""

GONE = {"26000", "42P05", "0A000"}
"""SQLSTATEs of a session that has not the prepared statements it should have: missing, there already, or of another schema."""

_PARAMETER = re.compile(r"%\((\w+)\)s")


def repeated(statement: str) -> TextClause:
    """Return a statement that is prepared where it is run often. Each parameter has a type that PostgreSQL can infer."""
    return text(statement).execution_options(**{_OPTION: True})


def is_repeated(statement: TextClause) -> bool:
    """Return whether ``repeated`` has made a statement."""
    return bool(statement.get_execution_options().get(_OPTION))


def prepare(statement: str) -> str:
    """Given a statement as psycopg2 takes it, with named parameters, return the one that prepares it."""
    return _of(statement).prepare


@dataclass(frozen=True, slots=True)
class _Prepared:
    prepare: str
    execute: str


@cache
def _of(statement: str) -> _Prepared:
    """Given a statement as psycopg2 takes it, with named parameters, return its two messages."""
    numbers: dict[str, int] = {}
    body = _PARAMETER.sub(lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}", statement)
    # Sessions may be shared with other versions of examsend: the same name is the same statement.
    name = f"examsend_{hashlib.sha256(statement.encode()).hexdigest()[:24]}"
    arguments = ", ".join(f"%({parameter})s" for parameter in numbers)
    return _Prepared(f"PREPARE {name} AS {body}", f"EXECUTE {name}" + (f" ({arguments})" if arguments else ""))


def statement_of(connection: Connection, statement: str, options: Mapping[str, Any]) -> str:
    """Given a statement that is about to be run, and its execution options, return what is sent for it."""
    if not options.get(_OPTION) or connection.engine.get_execution_options().get(_OFF):
        return statement
    times = connection.info.setdefault(_TIMES, {})
    times[statement] = time = times.get(statement, 0) + 1
    if time <= _UNPREPARED:
        return statement
    prepared = _of(statement)
    return f"{prepared.prepare}; {prepared.execute}" if time == _UNPREPARED + 1 else prepared.execute


def gone(engine: Engine) -> None:
    """Prepare nothing any more: the sessions are shared."""
    engine.update_execution_options(**{_OFF: True})
