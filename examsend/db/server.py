"""Selects the server: the one that the URL names, or an embedded one.

Imports no large package, because an idle pass imports this module and ``probe`` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examsend.config.settings import Settings


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[str, bool]]:
    """Given settings, yield the URL of a server and whether it is embedded. An embedded server is started if it is not
    running, and runs at least until the block ends.

    Raises ConfigError, DatabaseUnavailable for an embedded server that cannot be started.
    """
    if settings.database_url is not None:
        yield settings.database_url, False
        return
    from examsend.db import embedded

    with embedded.running(embedded_directory(settings)) as url:
        yield url, True


def embedded_directory(settings: Settings) -> Path:
    """Return the directory of the embedded server. Raises ConfigError for a user without a home directory."""
    from examsend.db import embedded

    return settings.data_directory / "postgres" if settings.data_directory else embedded.default_directory()
