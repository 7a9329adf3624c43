"""``examsend status``."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from examsend import collector
from examsend.cli import common
from examsend.errors import UsageError
from examsend.states import BatchState


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def status(
        session: common.Session,
        word: Annotated[
            str | None,
            typer.Argument(
                metavar="[WORD]",
                help="A batch, a Study, Series or SOP Instance UID or a part of one, or a file's path.",
            ),
        ] = None,
        study: Annotated[str | None, typer.Option(metavar="UID", help="Show this study alone.")] = None,
        destination: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Only this destination."),
        ] = None,
        state: Annotated[
            list[BatchState] | None,
            typer.Option("--state", metavar="STATE", help="Only batches in this state (repeatable)."),
        ] = None,
        since: Annotated[
            str | None,
            typer.Option(metavar="AGE", help="Only batches to which something happened in the last 2h, 3d, 15min."),
        ] = None,
        failed: Annotated[bool, typer.Option("--failed", help="Only FAILED batches.")] = False,
        rejected: Annotated[
            bool, typer.Option("--rejected", help="Show the files that could not be registered.")
        ] = False,
        limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="List at most this many.")] = 20,
        wait: Annotated[
            bool,
            typer.Option("--wait", help="With --study: wait until it is SENT (exit 0) or FAILED (1). Sends nothing."),
        ] = False,
        timeout: Annotated[
            float | None, typer.Option(min=0, metavar="SECONDS", help="With --wait: so long at most, then exit 3.")
        ] = None,
        check: Annotated[
            bool,
            typer.Option("--check", help="One line for Nagios; exits 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN."),
        ] = False,
        warning: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME=VALUE",
                help="With --check: WARNING above this: failed, down, stuck, waiting, rejected, finalize, send, errors, disputed,"
                " unconfirmed, awaited, archive; off.",
            ),
        ] = None,
        critical: Annotated[
            list[str] | None, typer.Option(metavar="NAME=VALUE", help="With --check: CRITICAL above this.")
        ] = None,
        watch: Annotated[
            bool, typer.Option("--watch", help="Show it again every 2 seconds, until q is pressed.")
        ] = False,
    ) -> object | None:
        """Show where exams are. What needs attention comes first, then what moves, each with the reason."""
        with collector.paused():
            from examsend.commands import status as command
            from examsend.config import ages

        if check:
            return command.check(session.settings, warning=warning or (), critical=critical or ())
        if warning or critical:
            raise UsageError("--warning and --critical go with --check")
        if wait:
            if study is None:
                raise UsageError("--wait goes with --study")
            return command.wait(session.settings, study.strip(), destination=destination, timeout=timeout, limit=limit)
        if timeout is not None:
            raise UsageError("--timeout goes with --wait")
        show = partial(
            command.run,
            word=word,
            study=None if study is None else study.strip(),
            destination=destination,
            states=tuple(state or ()),
            since=None if since is None else ages.option("--since", since),
            failed=failed,
            rejected=rejected,
            limit=limit,
        )
        if not watch:
            return show(session.settings)
        from examsend.cli import watching

        watching.watch(session, show)
        return None
