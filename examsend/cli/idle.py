"""The idle check of a pass that a timer starts: one query to the database before the command's modules are imported."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from examsend.cli.common import Session
from examsend.db.passes import Pass
from examsend.db.probe import Ending
from examsend.db.server import serving


@contextmanager
def idle(
    session: Session, command: str, nothing_due: Callable[[str, Ending], bool], *, selected: bool
) -> Iterator[bool]:
    """Yield whether a pass with -q has nothing to do; it is then recorded. ``nothing_due`` is a function of ``db.probe``.

    An embedded server runs until the block ends, because the pass uses it next. ``selected``: the operator used an option that
    selects what to do, so that the pass runs in any case.

    Raises ConfigError, DatabaseUnavailable for an embedded server that does not start.
    """
    if selected or session.json or not session.quiet:
        yield False
        return
    began = time.monotonic()

    def ending() -> Pass:
        return Pass(command, session.settings.host_name, time.monotonic() - began, 0)

    with serving(session.settings) as (url, _):
        yield nothing_due(url, ending)
