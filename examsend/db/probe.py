"""The idle check: one short question over bare psycopg2, whose import takes a tenth of the toolkit's."""

from __future__ import annotations

import psycopg2

from examsend.db.revision import HEAD


def nothing_in(url: str, *states: str) -> bool:
    """Given a server's URL and states, return True if it answers, has this schema, and no batch is in one of them.

    Asked without the toolkit, whose import takes longer than everything else an idle pass does. Whatever else is the case,
    False: the ordinary way then finds out what it is, and says so.
    """
    # States are constants of ours.
    empty = " AND ".join(f"NOT EXISTS (SELECT 1 FROM exam_batches WHERE status = '{s}')" for s in states)  # noqa: S608
    question = f"SELECT (SELECT version_num FROM alembic_version) = %s AND {empty}"  # noqa: S608
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
