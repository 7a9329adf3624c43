"""The idle check: one query by psycopg2 alone, whose import takes a tenth of the time of SQLAlchemy's."""

from __future__ import annotations

from collections.abc import Callable

from examsend.db import due, passes, patience
from examsend.db.revision import HEAD

_SECONDS = 5.0
"""How long the server may take to answer. The pass then asks again, and reports the error."""


Ending = Callable[[], passes.Pass]
"""Returns the pass that ends now."""


def nothing_to_finalize(url: str, ending: Ending | None = None) -> bool:
    """Given a server's URL, return True if it answers, has the current schema, and no PENDING batch is complete. The pass that
    is ``ending`` with that is then recorded, on the same connection.

    Returns False in every other case, also after an error: the pass then runs, and reports the error.
    """
    return _nothing(url, due.TO_FINALIZE, ending)


def nothing_to_send(url: str, ending: Ending | None = None) -> bool:
    """Given a server's URL, return True if it answers, has the current schema, and ``examsend send`` has nothing to do. The
    pass that is ``ending`` with that is then recorded, on the same connection.

    That is, no batch is due at a destination that is enabled and not held, no batch has to be made FAILED, and nothing is to
    be said about a destination. Returns False in every other case, also after an error.
    """
    return _nothing(url, f"{due.TO_SEND} OR {due.TO_TELL}", ending)


def nothing_to_confirm(url: str, ending: Ending | None = None) -> bool:
    """Given a server's URL, return True if it answers, has the current schema, and ``examsend confirm`` has nothing to do: no archive
    is to be asked about a SENT batch, no source to be looked at that may go, and no pass that died has left one. Else as
    ``nothing_to_send``."""
    return _nothing(url, f"{due.TO_CONFIRM} OR {due.TO_LET_GO} OR {due.TO_RECOVER}", ending)


def _nothing(url: str, condition: str, ending: Ending | None) -> bool:
    import psycopg2  # here, because the import takes 25 ms, and --help imports this module too

    # ``condition`` is a constant of the module ``due``, so that no SQL can be injected.
    question = (
        "SELECT (SELECT version_num FROM alembic_version) = %s AND NOT EXISTS"
        f" (SELECT 1 FROM storage_backend_configs d WHERE d.removed_at IS NULL AND ({condition}))"
    )
    patience.install()
    try:
        with patience.limited(_SECONDS):
            connection = passes.connect(url)
            try:
                with connection.cursor() as cursor:
                    cursor.execute(question, (HEAD,))
                    found = cursor.fetchone()
                is_idle = found is not None and found[0] is True
                if is_idle and ending is not None:
                    passes.record(connection, ending())
            finally:
                connection.close()
    except psycopg2.Error:
        return False
    return is_idle
