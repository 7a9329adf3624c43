"""The database of a process that outlives the server's restarts.

A thread opens the database when it is first needed, so that no message waits for a server that has to be started, and keeps
it open. Where it cannot be opened, the message that needs it fails, and the next one tries again.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from examsend.config.settings import Settings
from examsend.db import access, engine
from examsend.db.revision import HEAD
from examsend.errors import TRACEBACKS, ConfigError, DatabaseUnavailable, ExamsendError
from examsend.services.ration import Ration

log = logging.getLogger("examsend.listen")

T = TypeVar("T")

WAIT_SECONDS = 5.0
"""How long a message waits for the database, at most (a last statement may take half a second more). One that stores much
may take longer."""

_OPEN_SECONDS = 10.0
"""How long one try to connect may take. An embedded server has its own time to start."""

_END_SECONDS = 5.0


class _Opening:
    """One opening of the database: under way, then open, then over."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.database: engine.Database | None = None
        self.failure: ExamsendError | None = None
        self.users = 0
        self.lost = False
        """Nobody is to use it any more."""
        self.over = False


class LastingDatabase:
    """The database, opened when it is needed, and opened again after it was lost."""

    def __init__(self, settings: Settings) -> None:
        self._settings = dataclasses.replace(settings, database_wait=min(settings.database_wait, WAIT_SECONDS))
        self._changed = threading.Condition()
        self._opening: _Opening | None = None
        self._threads: list[threading.Thread] = []
        self._ending = False
        self._ration = Ration()

    def run(self, work: Callable[[engine.Connection], T], *, wait: float | None = None) -> T:
        """Run ``work`` in one transaction and return its result, as ``engine.Database.run`` does, within WAIT_SECONDS; within
        ``wait`` seconds where the database is open in WAIT_SECONDS.

        Logs and raises DatabaseUnavailable (CommitUnknown where the commit's fate is unknown), ConfigError where the database
        has no schema or another one.
        """
        began = time.monotonic()
        over = began + (WAIT_SECONDS if wait is None else wait)
        try:
            with self._borrowed(began + WAIT_SECONDS) as database:
                try:
                    return database.run(work, until=lambda: over)
                except ExamsendError:
                    raise
                except Exception:
                    # A table or column may be missing because the schema was changed meanwhile.
                    self._check_schema(database)
                    raise
        except (DatabaseUnavailable, ConfigError) as error:
            if self._ration.allows(str(error)):
                log.warning("a message is refused: %s", error)
            raise

    def close(self) -> None:
        """Close the database, and leave the embedded server. Waits for that for a limited time."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            threads = list(self._threads)
        over = time.monotonic() + _END_SECONDS
        for thread in threads:
            thread.join(max(0.0, over - time.monotonic()))

    def _check_schema(self, database: engine.Database) -> None:
        found = engine.revision_of(database)
        if found != HEAD:
            raise ConfigError(f"the database's schema is {found}, this examsend needs {HEAD}")

    @contextmanager
    def _borrowed(self, deadline: float) -> Iterator[engine.Database]:
        """Yield the open database. After a failure it is opened again for the next message: an embedded server that has ended
        must be started, and a server that was away may have another schema now."""
        opening = self._await_open(deadline)
        assert opening.database is not None
        try:
            yield opening.database
        except (DatabaseUnavailable, ConfigError):
            opening.lost = True
            raise
        finally:
            with self._changed:
                opening.users -= 1
                self._changed.notify_all()

    def _await_open(self, deadline: float) -> _Opening:
        """Return the opening whose database is open, with this thread counted as a user."""
        with self._changed:
            while True:
                if self._ending:
                    raise DatabaseUnavailable("the process is ending")
                opening = self._opening
                if opening is None or opening.over or opening.lost:
                    opening = self._start()
                if opening.database is not None:
                    opening.users += 1
                    return opening
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise DatabaseUnavailable(f"the database was not opened within {WAIT_SECONDS:g} s")
                self._changed.wait(remaining)
                if opening.failure is not None:
                    raise opening.failure

    def _start(self) -> _Opening:
        """Begin an opening. One that is lost may still have users, and ends after them."""
        opening = _Opening()
        thread = threading.Thread(target=self._keep, args=(opening,), name="database", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise DatabaseUnavailable("the system has no more threads to open the database") from None
        self._opening = opening
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        return opening

    def _keep(self, opening: _Opening) -> None:
        """Open the database, keep it until it is lost or the process ends, and close it once nobody uses it."""

        def until() -> float:
            if self._ending:
                return 0.0
            return math.inf if opening.database is not None else opening.began + _OPEN_SECONDS

        failure: ExamsendError | None = None
        try:
            with access.opened(self._settings, until=until) as database, self._changed:
                opening.database = database
                self._changed.notify_all()
                while not (self._ending or opening.lost):
                    self._changed.wait(60)
                while opening.users:
                    self._changed.wait(60)  # each is done at its deadline
        except ExamsendError as error:
            failure = error
        except Exception as error:
            log.log(TRACEBACKS, "the database cannot be opened", exc_info=True)
            failure = DatabaseUnavailable(f"the database cannot be opened: {type(error).__name__}")
        with self._changed:
            opening.failure = None if opening.database is not None else failure
            opening.over = True
            self._changed.notify_all()
