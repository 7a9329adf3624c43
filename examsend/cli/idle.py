"""The idle check of a timer's pass: one short question to the database before the command is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from examsend.cli.common import Session
from examsend.db.server import serving


@contextmanager
def idle(session: Session, nothing_due: Callable[[str], bool], *, selected: bool) -> Iterator[bool]:
    """Yield whether a quiet pass has nothing to do, by the answer of ``nothing_due`` (of ``db.probe``) to the database's URL.
    An embedded server stays up until the block ends: the pass itself needs it next.

    ``selected``: the operator named something or asked for something special, so the pass runs in any case.
    Raises ConfigError, DatabaseUnavailable for an embedded server that does not start.
    """
    if selected or session.json or not session.quiet:
        yield False
        return
    with serving(session.settings) as (url, _):
        yield nothing_due(url)
