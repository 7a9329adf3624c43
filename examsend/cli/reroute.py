"""``examsend reroute``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def reroute(
        session: common.Session,
        batch: Annotated[
            int,
            typer.Argument(
                min=1, max=common.LARGEST_ID, metavar="BATCH", help="PENDING, READY or FAILED; nothing of it stored."
            ),
        ],
        to: Annotated[str, typer.Option("--to", metavar="NAME", help="The destination that it goes to instead.")],
    ) -> object:
        """Let an unstored batch go to another destination."""
        from examsend.commands import reroute as command

        return command.run(session.settings, batch, to=to, by=common.operator_name())
