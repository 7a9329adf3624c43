"""``examsend ingest``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend import collector
from examsend.cli import common
from examsend.states import SpoolMode


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
        spool: Annotated[
            SpoolMode | None,
            typer.Option(
                "--spool", help="Put each file aside first, and send that: none, copy, or link (a hard link)."
            ),
        ] = None,
        remove: Annotated[
            bool | None,
            typer.Option(
                "--remove/--keep", help="Remove each file from where it was found, once it is put aside and registered."
            ),
        ] = None,
    ) -> object:
        """Register DICOM files. Each is added to the batch of its study, for each destination."""
        with collector.paused():
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
                spool=spool,
                remove=remove,
                progress=progress,
            )
