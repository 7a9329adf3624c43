"""Takes over tables that an earlier program created: keeps their rows and additional columns, and adds what is missing.

The first migration uses it for the three tables that such a program may have: storage_backend_configs, exam_batches and
exam_batch_instances.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import CheckConstraint, Column, Connection, ForeignKeyConstraint, Table, UniqueConstraint, exc, text
from sqlalchemy import inspect as inspector_of
from sqlalchemy.schema import AddConstraint

from examsend.errors import ConfigError
from examsend.states import BatchState

_EARLIER = {
    "storage_backend_configs": {"id", "name"},
    "exam_batches": {"id", "study_instance_uid", "destination_id", "status"},
    "exam_batch_instances": {"id", "batch_id", "processed_filepath", "sop_instance_uid"},
}
"""The tables that can be taken over, and the columns without which a table only has the name of one of them."""


def check_there(connection: Connection, tables: Collection[str]) -> None:
    """Given the tables of examsend, raise ConfigError if the database, which has no schema of examsend, holds something of the
    same name that cannot be taken over: another program's table, a view, a sequence."""
    found = connection.execute(
        text(
            "SELECT c.relname, c.relkind::text, (SELECT array_agg(a.attname::text) FROM pg_attribute a WHERE a.attrelid = c.oid)"
            " FROM pg_class c WHERE c.relname = ANY(:names) AND pg_table_is_visible(c.oid) ORDER BY c.relname"
        ),
        {"names": list(tables)},
    )
    for name, kind, columns in found.all():
        missing = sorted(_EARLIER[name] - set(columns or ())) if name in _EARLIER else []
        if kind == "r" and name in _EARLIER and not missing:
            continue
        what = f"it has no column {missing[0]}" if missing and kind == "r" else "it is not a table of examsend"
        raise ConfigError(
            f"the {name} that the database already holds cannot be taken over: {what};"
            f" give examsend a database of its own, or rename {name}"
        )


def add_columns(connection: Connection, table: Table) -> None:
    """Given a table that exists, convert its columns to the types of ``table`` and add the missing ones, without NOT NULL.

    Its constraints are dropped, except for the primary key. Additional columns are kept, and become nullable.
    Raises ConfigError if a column cannot be converted.
    """
    there = {column["name"]: column for column in inspector_of(connection).get_columns(table.name)}
    if "id" not in there:
        raise ConfigError(f"the table {table.name} has no column id: examsend cannot take it over")
    _drop_constraints(connection, table)
    for column in table.columns:
        if column.name in there:
            _convert(connection, table, column, there[column.name])
        else:
            default = f" DEFAULT {_default(column)}" if column.server_default is not None else ""
            _run(connection, table, f"ADD COLUMN {column.name} {_type(connection, column)}{default}")
    for name in there.keys() - table.columns.keys():
        if not there[name]["nullable"]:
            _run(connection, table, f'ALTER COLUMN "{name}" DROP NOT NULL')
    _identity(connection, table)


def add_constraints(connection: Connection, table: Table, *, nullable: Collection[str]) -> None:
    """Add the defaults, NOT NULL and constraints of ``table``. The columns in ``nullable`` stay nullable.

    Raises ConfigError if a row violates one of them.
    """
    for column in table.columns:
        if column.server_default is not None and column.name != "id":
            _run(connection, table, f"ALTER COLUMN {column.name} SET DEFAULT {_default(column)}")
            if not column.nullable:
                _sql(connection, f"UPDATE {table.name} SET {column.name} = DEFAULT WHERE {column.name} IS NULL", table)
        if not column.nullable and column.name not in nullable:
            _run(connection, table, f"ALTER COLUMN {column.name} SET NOT NULL")
    kinds = (UniqueConstraint, CheckConstraint, ForeignKeyConstraint)
    for constraint in sorted((c for c in table.constraints if isinstance(c, kinds)), key=lambda c: str(c.name)):
        _sql(connection, str(AddConstraint(constraint).compile(connection)), table)


def _drop_constraints(connection: Connection, table: Table) -> None:
    # Foreign keys of the other tables refer to this one with the old types. They are added again later, with the new types.
    pointing = connection.execute(
        text(
            "SELECT conname, conrelid::regclass::text AS source FROM pg_constraint"
            " WHERE contype = 'f' AND confrelid = CAST(:table AS regclass)"
        ),
        {"table": table.name},
    )
    for row in pointing.all():
        if row.source in table.metadata.tables:
            _sql(connection, f'ALTER TABLE {row.source} DROP CONSTRAINT "{row.conname}"', table)
    found = connection.execute(
        text(
            "SELECT conname, contype FROM pg_constraint WHERE conrelid = CAST(:table AS regclass) ORDER BY contype = 'u'"
        ),
        {"table": table.name},
    )
    for row in found.all():
        if row.contype == "p":
            _run(connection, table, f'RENAME CONSTRAINT "{row.conname}" TO pk_{table.name}')
        elif row.contype in {"c", "f", "u"}:
            _run(connection, table, f'DROP CONSTRAINT "{row.conname}"')
    unique = connection.execute(
        text(
            "SELECT indexrelid::regclass::text AS name FROM pg_index"
            " WHERE indrelid = CAST(:table AS regclass) AND indisunique AND NOT indisprimary"
        ),
        {"table": table.name},
    )
    for row in unique.all():
        _sql(connection, f"DROP INDEX {row.name}", table)


def _convert(connection: Connection, table: Table, column: Column[Any], found: Any) -> None:
    wanted = _type(connection, column)
    if str(found["type"].compile(connection.dialect)) == wanted:
        return
    name = column.name
    if found.get("default") is not None:
        _run(connection, table, f"ALTER COLUMN {name} DROP DEFAULT")
    _run(connection, table, f"ALTER COLUMN {name} TYPE {wanted} USING {name}::{wanted}")


def _identity(connection: Connection, table: Table) -> None:
    """Make the column id an identity column whose next value follows the highest id."""
    found = connection.execute(
        text("SELECT attidentity FROM pg_attribute WHERE attrelid = CAST(:table AS regclass) AND attname = 'id'"),
        {"table": table.name},
    ).scalar_one()
    if found == "":
        sequence = _sequence(connection, table)
        _run(connection, table, "ALTER COLUMN id DROP DEFAULT")
        if sequence is not None:
            _sql(connection, f"DROP SEQUENCE IF EXISTS {sequence}", table)
        _run(connection, table, "ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY")
    elif found == "d":
        _run(connection, table, "ALTER COLUMN id SET GENERATED ALWAYS")
    _sql(
        connection,
        f"SELECT setval('{_sequence(connection, table)}', (SELECT coalesce(max(id), 0) + 1 FROM {table.name}), false)",
        table,
    )


def _sequence(connection: Connection, table: Table) -> str | None:
    found = connection.execute(text("SELECT pg_get_serial_sequence(:table, 'id')"), {"table": table.name}).scalar_one()
    return None if found is None else str(found)


def check_states(connection: Connection, batches: Table) -> None:
    """Convert the states of the batches to upper case. Raises ConfigError if one of them is not a state of examsend."""
    _sql(connection, "UPDATE exam_batches SET status = upper(status) WHERE status <> upper(status)", batches)
    odd = connection.execute(
        text("SELECT DISTINCT status FROM exam_batches WHERE NOT status = ANY(:known)"), {"known": list(BatchState)}
    ).scalars()
    found = sorted(str(status) for status in odd)
    if found:
        raise ConfigError(
            f"exam_batches holds batches in a state that examsend does not know: {', '.join(found)};"
            f" it knows {', '.join(BatchState)}"
        )


def _type(connection: Connection, column: Column[Any]) -> str:
    return str(column.type.compile(connection.dialect))


def _default(column: Column[Any]) -> str:
    default: Any = getattr(column.server_default, "arg", None)
    return f"'{default}'" if isinstance(default, str) else str(default)


def _run(connection: Connection, table: Table, change: str) -> None:
    _sql(connection, f"ALTER TABLE {table.name} {change}", table)


def _sql(connection: Connection, statement: str, table: Table) -> None:
    try:
        connection.exec_driver_sql(statement)
    except exc.DBAPIError as error:
        lines = str(error.orig).strip().splitlines()
        raise ConfigError(
            f"the table {table.name} that the database already holds cannot be taken over: {lines[0]}"
        ) from None
