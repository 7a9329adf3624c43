"""``examsend explain``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def explain(
        session: common.Session,
        word: Annotated[
            str, typer.Argument(metavar="WORD", help="A batch id, or a UID or a file's path of one study.")
        ],
    ) -> object:
        """Tell what happened to an exam, in the order of time. Arrivals, announcements, attempts, acts of people."""
        from examsend.commands import explain as command

        return command.run(session.settings, word)
