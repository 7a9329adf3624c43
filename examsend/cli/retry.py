"""``examsend retry``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def retry(
        session: common.Session,
        batch: Annotated[
            list[int] | None, typer.Argument(min=1, max=common.LARGEST_ID, metavar="[BATCH...]", help="FAILED batches.")
        ] = None,
        all_failed: Annotated[bool, typer.Option("--all-failed", help="All FAILED batches.")] = False,
        destination: Annotated[
            str | None, typer.Option(metavar="NAME", help="Only this destination. Also ends its hold.")
        ] = None,
    ) -> object:
        """Make FAILED batches READY again. The next send sends their unsent instances."""
        from examsend.commands import retry as command

        return command.run(
            session.settings, batch or (), all_failed=all_failed, destination=destination, by=common.operator_name()
        )
