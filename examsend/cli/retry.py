"""``examsend retry``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend import collector
from examsend.cli import common
from examsend.errors import UsageError


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
            str | None, typer.Option(metavar="NAME", help="Only this destination. Without --from, also ends its hold.")
        ] = None,
        from_file: Annotated[
            str | None,
            typer.Option(
                "--from",
                metavar="FILE",
                help="Send again what an archive lost: Study Instance UIDs, one a line (a CSV's first column, - for stdin).",
            ),
        ] = None,
        only_missing: Annotated[
            bool,
            typer.Option("--only-missing", help="With --from: ask the archive, and send only what it does not have."),
        ] = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and change nothing.")] = False,
    ) -> object:
        """Make FAILED batches READY again. The next send sends their unsent instances."""
        with collector.paused():
            from examsend.commands import retry as command

        by = common.operator_name()
        if from_file is not None:
            from examsend.intake import study_list

            if batch or all_failed:
                raise UsageError("--from names studies: don't name batches with it, nor --all-failed")
            return command.from_list(
                session.settings,
                study_list.read(from_file),
                destination=destination,
                only_missing=only_missing,
                dry_run=dry_run,
                by=by,
            )
        if only_missing:
            raise UsageError("--only-missing goes with --from")
        return command.run(
            session.settings, batch or (), all_failed=all_failed, destination=destination, dry_run=dry_run, by=by
        )
