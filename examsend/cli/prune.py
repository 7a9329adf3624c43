"""``examsend prune``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app, is_pass=lambda values: not values["dry_run"])
    def prune(
        session: common.Session,
        older_than: Annotated[
            str,
            typer.Option(
                "--older-than",
                metavar="AGE",
                help="Only batches that finished so long ago: 90d, 36h.",
                show_default=False,
            ),
        ],
        cancelled: Annotated[
            bool, typer.Option("--cancelled", help="Also batches that were cancelled or rerouted.")
        ] = False,
        limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Delete at most this many batches.")] = None,
        max_runtime: Annotated[
            float | None, typer.Option(min=0, metavar="SECONDS", help="Stop the pass cleanly after this time.")
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing. Show what would be deleted.")] = False,
    ) -> object:
        """Delete rows of studies delivered long ago. Nothing unsent is deleted, nor a batch whose files are still there."""
        asked = common.Asked()
        from examsend.commands import prune as command
        from examsend.config import ages

        return command.run(
            session.settings,
            older_than=ages.option("--older-than", older_than, least=86400.0),
            cancelled=cancelled,
            limit=limit,
            max_runtime=max_runtime,
            dry_run=dry_run,
            by=common.operator_name(),
            stop=lambda: asked.to_end,
        )
