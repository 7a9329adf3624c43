"""Which server: the one a URL names, or an embedded one. Light: an idle pass gets by with this and ``probe``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examsend.config import Settings

HEAD = "0001"
"""The migration this version of examsend works with."""


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[str, bool]]:
    """Given settings, the URL of a server for as long as the block lasts, and whether it is an embedded one.

    Raises ConfigError, DatabaseUnavailable for an embedded one that cannot be had.
    """
    if settings.database_url is not None:
        yield settings.database_url, False
        return
    from examsend.db import embedded

    directory = settings.data_directory / "postgres" if settings.data_directory else embedded.default_directory()
    with embedded.running(Path(directory)) as url:
        yield url, True


def nothing_in(url: str, *states: str) -> bool:
    """Given a server's URL and states, return True if it answers, has this schema, and no batch is in one of them.

    Asked without the toolkit, whose import takes longer than everything else an idle pass does. Whatever else is the case,
    False: the ordinary way then finds out what it is, and says so.
    """
    import psycopg2

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
