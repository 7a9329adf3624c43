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
        batch: Annotated[list[int] | None, typer.Argument(metavar="[BATCH...]", help="FAILED batches.")] = None,
        all_failed: Annotated[bool, typer.Option("--all-failed", help="Every FAILED batch.")] = False,
        destination: Annotated[
            str | None, typer.Option(metavar="NAME", help="Only this destination, and release it if it is held.")
        ] = None,
    ) -> object:
        """Put FAILED batches back in line: their unsent instances go with the next send."""
        from examsend.commands import retry as command

        return command.run(
            session.settings, batch or (), all_failed=all_failed, destination=destination, by=common.who()
        )
