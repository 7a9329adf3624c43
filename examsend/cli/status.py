"""``examsend status``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def status(
        session: common.Session,
        word: Annotated[
            str | None,
            typer.Argument(
                metavar="[WORD]",
                help="Find this: a batch id, a study, series or SOP Instance UID or a part of one, or the path of a file.",
            ),
        ] = None,
        study: Annotated[str | None, typer.Option(metavar="UID", help="Show this study's batches.")] = None,
        destination: Annotated[str | None, typer.Option(metavar="NAME", help="Only this destination.")] = None,
        failed: Annotated[bool, typer.Option("--failed", help="Only FAILED batches.")] = False,
        rejected: Annotated[
            bool, typer.Option("--rejected", help="Show the files that could not be registered.")
        ] = False,
        limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="List at most this many.")] = 50,
    ) -> object:
        """Show the state of batches and destinations. Each batch is shown with the reason for its state."""
        from examsend.commands import status as command

        return command.run(
            session.settings,
            word=word,
            study=study,
            destination=destination,
            failed=failed,
            rejected=rejected,
            limit=limit,
        )
