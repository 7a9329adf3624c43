"""``examsend hold``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def hold(
        session: common.Session,
        batch: Annotated[
            list[int],
            typer.Argument(min=1, max=common.LARGEST_ID, metavar="BATCH...", help="PENDING, READY or SENDING batches."),
        ],
        why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Why they are held: shown with them.")],
    ) -> object:
        """Hold batches until unhold. Neither finalize nor send takes them, and nothing is lost."""
        from examsend.commands import hold as command

        return command.run(session.settings, batch, why=why, by=common.operator_name())
