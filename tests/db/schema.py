"""The schema of a database as lines of text, for comparison."""

from __future__ import annotations

from examsend.db import engine
from tests.helpers import rows

_COLUMNS = """
    SELECT c.table_name || '.' || c.column_name || ' ' || c.data_type || ' ' || c.is_nullable || ' '
           || coalesce(c.column_default, '') || ' ' || c.is_identity || coalesce(c.identity_generation, '')
    FROM information_schema.columns c WHERE c.table_schema = 'public' AND c.table_name <> 'alembic_version'
"""
_CONSTRAINTS = """
    SELECT c.conrelid::regclass || ' ' || c.conname || ' ' || pg_get_constraintdef(c.oid)
    FROM pg_constraint c WHERE c.connamespace = 'public'::regnamespace AND c.contype <> 'n'
      AND c.conrelid <> coalesce(to_regclass('alembic_version'), 0)
"""
_INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
_TRIGGERS = "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"


def schema_lines(database: engine.Database) -> set[str]:
    """Return columns with types and defaults, constraints, indexes and triggers, one line each."""
    parts = (_COLUMNS, _CONSTRAINTS, _INDEXES, _TRIGGERS)
    return {str(row[0]) for part in parts for row in rows(database, part)}
