"""The idle check: one query by psycopg2 alone, whose import takes a tenth of the time of SQLAlchemy's."""

from __future__ import annotations

from examsend.db import due, patience
from examsend.db.revision import HEAD

_SECONDS = 5.0
"""How long the server may take to answer. The pass then asks again, and reports the error."""


def nothing_to_finalize(url: str) -> bool:
    """Given a server's URL, return True if it answers, has the current schema, and no PENDING batch is complete.

    Returns False in every other case, also after an error: the pass then runs, and reports the error.
    """
    return _nothing(url, due.TO_FINALIZE)


def nothing_to_send(url: str) -> bool:
    """Given a server's URL, return True if it answers, has the current schema, and ``examsend send`` has nothing to do.

    That is, no batch is due at a destination that is enabled and not held, and no batch has to be made FAILED. Returns False
    in every other case, also after an error.
    """
    return _nothing(url, due.TO_SEND)


def _nothing(url: str, condition: str) -> bool:
    import psycopg2  # here, because the import takes 25 ms, and --help imports this module too

    # ``condition`` is a constant of the module ``due``, so that no SQL can be injected.
    question = (
        "SELECT (SELECT version_num FROM alembic_version) = %s AND NOT EXISTS"
        f" (SELECT 1 FROM storage_backend_configs d WHERE d.removed_at IS NULL AND ({condition}))"
    )
    patience.install()
    try:
        with patience.limited(_SECONDS):
            connection = psycopg2.connect(
                url.replace("postgresql+psycopg2:", "postgresql:", 1), application_name="examsend"
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
