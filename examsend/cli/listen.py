"""``examsend listen``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def listen(
        session: common.Session,
        port: Annotated[
            int | None,
            typer.Option(min=0, max=65535, metavar="N", help="Listen on this TCP port. 0: a free one."),
        ] = None,
        bind: Annotated[
            str | None,
            typer.Option(metavar="ADDRESS", help="Listen on this address only. Not set: on all.", show_default=False),
        ] = None,
        idle: Annotated[
            float | None,
            typer.Option(
                min=0,
                metavar="SECONDS",
                help="End after this time without an association. 0: never.",
                show_default=False,
            ),
        ] = None,
    ) -> object:
        """Listen for steps of modalities (MPPS) and reports of archives. On a port, or on sockets of systemd."""
        asked = common.Asked()
        from examsend.commands import listen as command

        result = command.run(session.settings, port=port, bind=bind, idle=idle, stop=lambda: asked.to_end)
        return dataclasses.replace(result, interrupted=asked.interrupted)
