"""``examsend send``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from examsend import collector
from examsend.cli import common
from examsend.cli.idle import idle
from examsend.db import probe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app, is_pass=lambda values: not values["study"])
    def send(
        session: common.Session,
        limit: Annotated[
            int | None, typer.Option(min=1, metavar="N", help="Attempt at most this many batches.")
        ] = None,
        destination: Annotated[str | None, typer.Option(metavar="NAME", help="Only this destination.")] = None,
        study: Annotated[
            str | None,
            typer.Option(
                metavar="UID",
                help="Only this study's batches, also those that wait for another attempt.",
                show_default=False,
            ),
        ] = None,
        parallel: Annotated[
            int | None,
            typer.Option(
                min=1,
                max=64,
                metavar="N",
                help="Send at most this many batches at a time. Not set: one of each destination, up to its --associations while"
                " there are fewer than 16.",
            ),
        ] = None,
        max_runtime: Annotated[
            float | None, typer.Option(min=0, metavar="SECONDS", help="Stop the pass cleanly after this time.")
        ] = None,
        wait: Annotated[
            bool, typer.Option("--wait", help="Wait until these batches are SENT or FAILED. Exit 1 if one is FAILED.")
        ] = False,
        timeout: Annotated[
            float | None, typer.Option(min=0, metavar="SECONDS", help="Wait so long at most, then exit 3.")
        ] = None,
    ) -> object | None:
        """Send READY batches, each over one association. All destinations are served side by side; ends when none is due."""
        with idle(session, "send", probe.nothing_to_send, selected=bool(destination or study or wait)) as is_idle:
            if is_idle:
                return None
            # From here on a signal ends the pass in good order. Before, there is nothing to put in order.
            asked = common.Asked()
            with collector.paused():
                from examsend.cli import live
                from examsend.commands import send as command

            with asked.obeyed(), live.sending(session) as (observer, total):
                result = command.run(
                    session.settings,
                    limit=limit,
                    destination=destination,
                    study=None if study is None else study.strip(),
                    parallel=parallel,
                    max_runtime=max_runtime,
                    wait=wait,
                    timeout=timeout,
                    looks_ahead=session.json or not session.quiet,
                    stop=lambda: asked.to_end,
                    observer=observer,
                    total=total,
                )
            return dataclasses.replace(result, interrupted=asked.interrupted)
