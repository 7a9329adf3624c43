"""``examsend send``."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Annotated

import typer

from examsend.cli import common
from examsend.cli.idle import idle
from examsend.db import probe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def send(
        session: common.Session,
        limit: Annotated[
            int | None, typer.Option(min=1, metavar="N", help="Attempt at most this many batches.")
        ] = None,
        destination: Annotated[str | None, typer.Option(metavar="NAME", help="Only this destination.")] = None,
        parallel: Annotated[
            int, typer.Option(min=1, max=64, metavar="N", help="Send this many batches at a time.")
        ] = 1,
        max_runtime: Annotated[
            float | None, typer.Option(min=0, metavar="SECONDS", help="Stop the pass cleanly after this time.")
        ] = None,
    ) -> object | None:
        """Send READY batches, each over one association. Ends when none is due."""
        stop = _stop_on_signals()
        with idle(session, probe.nothing_to_send, selected=destination is not None) as is_idle:
            if is_idle:
                return None
            from examsend.cli import live
            from examsend.commands import send as command

            with live.sending(session) as observer:
                return command.run(
                    session.settings,
                    limit=limit,
                    destination=destination,
                    parallel=parallel,
                    max_runtime=max_runtime,
                    stop=stop.is_set,
                    observer=observer,
                )


def _stop_on_signals() -> threading.Event:
    """Return an event that the first SIGTERM or SIGINT sets, which asks the pass to end. A second SIGINT ends it at once."""
    stop = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return stop
