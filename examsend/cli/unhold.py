"""``examsend unhold``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def unhold(
        session: common.Session,
        batch: Annotated[
            list[int], typer.Argument(min=1, max=common.LARGEST_ID, metavar="BATCH...", help="Held batches.")
        ],
    ) -> object:
        """End the hold of batches. They are due now."""
        from examsend.commands import unhold as command

        return command.run(session.settings, batch, by=common.operator_name())
