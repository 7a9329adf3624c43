"""``examsend ingest``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def ingest(
        session: common.Session,
        directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Directories of DICOM files.")],
        to: Annotated[
            list[str] | None,
            typer.Option("--to", metavar="NAME", help="Destination (repeatable). Not given: every enabled default."),
        ] = None,
        recursive: Annotated[bool, typer.Option(help="Go into directories below.")] = True,
        accept_incomplete: Annotated[
            bool, typer.Option("--accept-incomplete", help="Take files that are cut short, too: send what there is.")
        ] = False,
    ) -> object:
        """Register DICOM files: each becomes an instance of its study's batch, for each destination."""
        from examsend.cli import live
        from examsend.commands import ingest as command

        with live.ingesting(session) as progress:
            return command.run(
                session.settings,
                directories,
                to=to or (),
                recursive=recursive,
                accept_incomplete=accept_incomplete,
                progress=progress,
            )
