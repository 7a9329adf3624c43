"""``examsend rejected``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common
from examsend.config import ages
from examsend.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app)
    def rejected(
        session: common.Session,
        paths: Annotated[list[str] | None, typer.Argument(metavar="[PATH...]", help="Only these files.")] = None,
        study: Annotated[str | None, typer.Option(metavar="UID", help="Only files of this study.")] = None,
        since: Annotated[
            str | None, typer.Option(metavar="AGE", help="Only files rejected in this time: 90d, 36h, 15min.")
        ] = None,
        limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="List at most this many.")] = 50,
        dismissed: Annotated[bool, typer.Option("--dismissed", help="List those that are set aside.")] = False,
        dismiss: Annotated[bool, typer.Option("--dismiss", help="Set the named files aside. Needs --why.")] = False,
        why: Annotated[str | None, typer.Option(metavar="TEXT", help="Why they are set aside.")] = None,
        retry: Annotated[
            bool, typer.Option("--retry", help="Look at the named files again now. None named: at all.")
        ] = False,
        to: Annotated[
            list[str] | None,
            typer.Option(
                "--to", metavar="NAME", help="With --retry: destination (repeatable). Not given: as with ingest."
            ),
        ] = None,
    ) -> object:
        """List the files that could not be registered. Each has its reason; set them aside, or look at them again."""
        from examsend.commands import rejected as command

        if dismiss and retry:
            raise UsageError("--dismiss and --retry: use one of them")
        if (dismiss or retry) and (study is not None or since is not None or dismissed):
            raise UsageError("--study, --since and --dismissed choose what is listed: name the files by their paths")
        if why is not None and not dismiss:
            raise UsageError("--why goes with --dismiss")
        if to and not retry:
            raise UsageError("--to goes with --retry")
        if dismiss:
            return command.dismiss(session.settings, paths or (), why=why or "", by=common.operator_name())
        if retry:
            return command.look_again(session.settings, paths or (), to=to or ())
        return command.run(
            session.settings,
            paths or (),
            study=None if study is None else study.strip(),
            since=None if since is None else ages.option("--since", since),
            dismissed=dismissed,
            limit=limit,
        )
