"""``examsend ingest``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app, is_pass=common.always)
    def ingest(
        session: common.Session,
        directories: Annotated[
            list[str], typer.Argument(metavar="DIR...", help="Directories of DICOM files, or files.")
        ],
        to: Annotated[
            list[str] | None,
            typer.Option(
                "--to", metavar="NAME", help="Destination (repeatable). Not given: all enabled default destinations."
            ),
        ] = None,
        recursive: Annotated[bool, typer.Option(help="Include subdirectories.")] = True,
        accept_incomplete: Annotated[
            bool, typer.Option("--accept-incomplete", help="Also register truncated files, and send them as they are.")
        ] = False,
        verify: Annotated[
            bool,
            typer.Option(
                "--verify", help="Also read files that are registered and seem unchanged; report those that differ."
            ),
        ] = False,
    ) -> object:
        """Register DICOM files. Each is added to the batch of its study, for each destination."""
        from examsend.cli import live
        from examsend.commands import ingest as command

        with live.ingesting(session) as progress:
            return command.run(
                session.settings,
                directories,
                to=to or (),
                recursive=recursive,
                accept_incomplete=accept_incomplete,
                verify=verify,
                progress=progress,
            )
