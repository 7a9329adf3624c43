"""Shows the result of ``db``."""

from __future__ import annotations

from typing import Any

from examsend.commands.db import SchemaResult


def rendered(result: SchemaResult) -> list[Any]:
    """Return lines of text and tables."""
    where = f"PostgreSQL {result.server}{' (embedded)' if result.embedded else ''}"
    if result.before != result.revision:
        return [f"schema {result.before or 'none'} -> {result.revision} on {where}"]
    if result.revision is None:
        return [f"no schema on {where}: run `examsend db upgrade`"]
    if result.differences:
        return [f"schema {result.revision} on {where} differs from what examsend needs:", *result.differences]
    if result.good and result.compared:
        return [f"schema {result.revision} on {where} matches what examsend needs"]
    return [f"schema {result.revision} on {where}" + ("" if result.good else f", needed is {result.needed}")]
