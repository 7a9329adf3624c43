"""The idle check: one short question over bare psycopg2, whose import takes a tenth of the toolkit's."""

from __future__ import annotations

import psycopg2

from examsend.db import due
from examsend.db.revision import HEAD


def nothing_to_finalize(url: str) -> bool:
    """Given a server's URL, return True if it answers, has this schema, and no PENDING batch is complete by its rule.

    In every other case False: the ordinary pass then finds out what it is, and says so.
    """
    return _nothing(url, due.TO_FINALIZE)


def nothing_to_send(url: str) -> bool:
    """Likewise for ``send``: no batch of an enabled destination that is not held is due, none is to go FAILED."""
    return _nothing(url, due.TO_SEND)


def _nothing(url: str, condition: str) -> bool:
    # The conditions are constants of ours.
    question = (
        "SELECT (SELECT version_num FROM alembic_version) = %s AND NOT EXISTS"
        f" (SELECT 1 FROM storage_backend_configs d WHERE d.removed_at IS NULL AND ({condition}))"
    )
    try:
        connection = psycopg2.connect(
            url.replace("postgresql+psycopg2:", "postgresql:", 1), connect_timeout=10, application_name="examsend"
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(question, (HEAD,))
                found = cursor.fetchone()
        finally:
            connection.close()
    except psycopg2.Error:
        return False
    return found is not None and found[0] is True
