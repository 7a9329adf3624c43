"""Selects the server: the one that the URL names, or an embedded one.

Imports no large package, because an idle pass imports this module and ``probe`` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examsend.config.settings import Settings
from examsend.errors import NoDatabase


@contextmanager
def serving(settings: Settings, *, create: bool = True) -> Iterator[tuple[str, bool]]:
    """Given settings, yield the URL of a server and whether it is embedded. An embedded server is started if it is not
    running, and runs at least until the block ends. ``create``: an embedded server that does not exist yet is made.

    Raises NoDatabase if there is none and it is not to be made; ConfigError, DatabaseUnavailable for an embedded server that
    cannot be started.
    """
    if settings.database_url is not None:
        yield settings.database_url, False
        return
    from examsend.db import embedded

    directory = embedded_directory(settings)
    if not create and not embedded.exists(directory):
        raise NoDatabase(
            f"there is no database: no database_url is set, and no embedded database is in {directory} yet. Name the database"
            " that the passes use; or `examsend destination add` makes an embedded one"
        )
    with embedded.running(directory) as url:
        yield url, True


def embedded_directory(settings: Settings) -> Path:
    """Return the directory of the embedded server. Raises ConfigError for a user without a home directory."""
    from examsend.db import embedded

    return settings.data_directory / "postgres" if settings.data_directory else embedded.default_directory()
