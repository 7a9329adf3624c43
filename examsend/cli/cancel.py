"""``examsend cancel``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def cancel(
        session: common.Session,
        batch: Annotated[
            list[int],
            typer.Argument(min=1, max=common.LARGEST_ID, metavar="BATCH...", help="PENDING or READY batches."),
        ],
        why: Annotated[
            str, typer.Option("--why", metavar="TEXT", help="Why they are not to be sent: shown with them.")
        ],
    ) -> object:
        """Make PENDING or READY batches FAILED (CANCELLED). They are kept, and retry undoes it."""
        from examsend.commands import cancel as command

        return command.run(session.settings, batch, why=why, by=common.operator_name())
