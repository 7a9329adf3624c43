"""Records a pass with its exit code, also one that ends by an error."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from examsend.config.settings import Settings
from examsend.db import passes
from examsend.db.server import embedded_directory, serving
from examsend.errors import DatabaseUnavailable, ExamsendError

log = logging.getLogger("examsend")


@contextmanager
def recorded(settings: Settings, command: str) -> Iterator[Callable[[int], None]]:
    """Run the block as a pass of a command, and record it. The block calls what is yielded with its exit code; without that
    call it has recorded the pass itself. A pass that ends by an exception is recorded with the exit code of that.

    Not recorded is a pass that the database was out of reach for, and one for which there is no embedded database yet.
    """
    began = time.monotonic()
    code: int | None = None

    def ended(exit_code: int) -> None:
        nonlocal code
        code = exit_code

    with _kept_running(settings):
        try:
            yield ended
        except DatabaseUnavailable:
            raise
        except BaseException as error:
            _record(
                settings, passes.Pass(command, settings.host_name, time.monotonic() - began, _code(error)), log.debug
            )
            raise
        if code is not None:
            _record(settings, passes.Pass(command, settings.host_name, time.monotonic() - began, code), log.warning)


def _code(error: BaseException) -> int:
    """Return the exit code that an exception ends the command with."""
    if isinstance(error, ExamsendError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    code = getattr(error, "exit_code", None)  # of Typer: wrong usage
    return code if isinstance(code, int) else 70


@contextmanager
def _kept_running(settings: Settings) -> Iterator[None]:
    """Let an embedded server that exists run to the end of the block, so that it is not started again for the record."""
    if settings.database_url is not None or not embedded_directory(settings).is_dir():
        yield
        return
    with serving(settings):
        yield


def _record(settings: Settings, ended: passes.Pass, say: Callable[..., None]) -> None:
    """Record a pass. What keeps it from being recorded is no reason for the pass to fail, and is said by ``say``."""
    try:
        if settings.database_url is None and not embedded_directory(settings).is_dir():
            return
        with serving(settings) as (url, _):
            problem = passes.record_at(url, ended)
    except ExamsendError as error:
        problem = str(error)
    if problem is not None:
        say("the pass of %s could not be recorded: %s", ended.command, problem)
