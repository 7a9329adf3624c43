"""What a shell offers to complete: names of destinations and ids of batches, by psycopg2 alone. Nothing is created or started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examsend.config.settings import Settings
from examsend.db import passes, patience
from examsend.states import BatchState

_SECONDS = 1.0
"""A person waits for the answer: no later one is of use."""

_DESTINATIONS = """
    SELECT name, concat(called_aet, '@', host, ':', port) FROM storage_backend_configs
    WHERE removed_at IS NULL AND starts_with(name, %s) ORDER BY name LIMIT 50
"""

_ATTENTION_FIRST = (BatchState.FAILED, BatchState.READY, BatchState.SENDING, BatchState.PENDING, BatchState.SENT)

_BATCHES = "\nUNION ALL ".join(
    f"(SELECT {rank} AS rank, b.id, b.status, b.destination_id, b.study_instance_uid FROM exam_batches b"
    f" WHERE b.status = '{state}' AND starts_with(b.id::text, %(begin)s) ORDER BY b.id DESC LIMIT 50)"
    for rank, state in enumerate(_ATTENTION_FIRST)
)
_BATCHES = f"""
    SELECT b.id, concat(b.status, ' ', d.name, ' ', b.study_instance_uid)
    FROM ({_BATCHES}) b JOIN storage_backend_configs d ON d.id = b.destination_id ORDER BY b.rank, b.id DESC LIMIT 50
"""


def destinations(settings: Settings, begin: str) -> list[tuple[str, str]]:
    """Return the name and the address of destinations whose names begin so. Raises what goes wrong."""
    return _asked(settings, _DESTINATIONS, (begin,))


def batches(settings: Settings, begin: str) -> list[tuple[str, str]]:
    """Return the id, and what it is, of batches whose ids begin so: FAILED ones first, then by age. Raises what goes wrong."""
    return _asked(settings, _BATCHES, {"begin": begin})


def _asked(settings: Settings, question: str, values: Sequence[str] | dict[str, str]) -> list[tuple[str, str]]:
    import psycopg2

    patience.install()
    with patience.limited(_SECONDS):
        connection = psycopg2.connect(**_server(settings), application_name="examsend")
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"SET statement_timeout = {_SECONDS * 1000:.0f}")
                cursor.execute(question, values)
                return [(str(value), str(about)) for value, about in cursor.fetchall()]
        finally:
            connection.close()


def _server(settings: Settings) -> dict[str, Any]:
    """Return where the server is. Raises LookupError where it is an embedded one that does not run."""
    if settings.database_url is not None:
        return {"dsn": passes.dsn(settings.database_url)}
    from examsend.db import embedded
    from examsend.db.server import embedded_directory

    found = embedded.status(embedded_directory(settings))
    if not found.running:
        raise LookupError("the embedded server does not run")
    return {"host": str(found.socket_directory), "port": embedded.PORT, "user": "postgres", "dbname": "examsend"}
