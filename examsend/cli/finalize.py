"""``examsend finalize``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend import collector
from examsend.cli import common
from examsend.cli.idle import idle
from examsend.db import probe


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(
        app,
        is_pass=lambda values: not (values["study"] or values["batch"] or values["everything"] or values["dry_run"]),
    )
    def finalize(
        session: common.Session,
        study: Annotated[
            list[str] | None, typer.Option("--study", metavar="UID", help="This study is complete (repeatable).")
        ] = None,
        batch: Annotated[
            list[int] | None,
            typer.Option(
                "--batch", min=1, max=common.LARGEST_ID, metavar="ID", help="This batch is complete (repeatable)."
            ),
        ] = None,
        everything: Annotated[
            bool, typer.Option("--all", help="All studies that are here are complete. Not for a timer.")
        ] = False,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Change nothing. Show which batches are complete, and why the others wait."),
        ] = False,
    ) -> object | None:
        """Make complete batches READY. A batch is complete when all that was announced is here, after its quiet period or
        longest wait, or if you name it."""
        with idle(
            session, "finalize", probe.nothing_to_finalize, selected=bool(study or batch or everything or dry_run)
        ) as is_idle:
            if is_idle:
                return None
            with collector.paused():
                from examsend.commands import finalize as command

            return command.run(
                session.settings,
                studies=study or (),
                batch_ids=batch or (),
                everything=everything,
                by=common.operator_name(),
                dry_run=dry_run,
                looks_ahead=session.json or not session.quiet,
            )
