"""``examsend prioritize``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def prioritize(
        session: common.Session,
        batch: Annotated[
            list[int],
            typer.Argument(min=1, max=common.LARGEST_ID, metavar="BATCH...", help="PENDING or READY batches."),
        ],
    ) -> object:
        """Let batches go before the others of their destination. Ends their pauses, too."""
        from examsend.commands import prioritize as command

        return command.run(session.settings, batch, by=common.operator_name())
