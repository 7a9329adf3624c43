"""``examsend expect``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app, is_pass=common.always)
    def expect(
        session: common.Session,
        study: Annotated[
            list[str] | None, typer.Option("--study", metavar="UID", help="The study (repeatable).")
        ] = None,
        count: Annotated[
            int | None,
            typer.Option("--count", min=1, max=2**31 - 1, metavar="N", help="It has so many instances."),
        ] = None,
        instances: Annotated[
            str | None,
            typer.Option(
                "--instances", metavar="FILE", help="It has these instances: a SOP Instance UID a line; - is stdin."
            ),
        ] = None,
        manifest: Annotated[
            str | None,
            typer.Option(
                "--manifest",
                metavar="FILE",
                help="Studies and their instances: CSV, a Key Object Selection document or a DICOMDIR; - is stdin.",
            ),
        ] = None,
        archive: Annotated[
            str | None,
            typer.Option(
                "--from",
                metavar="ARCHIVE",
                help="Ask this archive what it has: AET@HOST:PORT, or a destination's name. Two equal answers are believed.",
            ),
        ] = None,
        wait: Annotated[bool, typer.Option("--wait", help="Ask the archive again after 10 s.")] = False,
        forget: Annotated[bool, typer.Option("--forget", help="Withdraw what is announced of the study.")] = False,
    ) -> object:
        """Announce which instances a study has, or how many. It is complete once they are here."""
        from examsend.commands import expect as command

        return command.run(
            session.settings,
            studies=study or (),
            count=count,
            instances=instances,
            manifest_file=manifest,
            archive=archive,
            wait=wait,
            forget=forget,
        )
