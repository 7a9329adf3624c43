"""``examsend confirm``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from examsend import collector
from examsend.cli import common
from examsend.cli.idle import idle
from examsend.db import probe
from examsend.states import Confirm


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app, is_pass=lambda values: not _selects(values))
    def confirm(
        session: common.Session,
        batch: Annotated[
            list[int] | None,
            typer.Option(
                "--batch", min=1, max=common.LARGEST_ID, metavar="ID", help="Ask about this batch now (repeatable)."
            ),
        ] = None,
        study: Annotated[
            list[str] | None, typer.Option("--study", metavar="UID", help="Ask about this study now (repeatable).")
        ] = None,
        since: Annotated[
            str | None,
            typer.Option("--since", metavar="TIME", help="Ask now about what was SENT since: 2026-11-29, or 36h ago."),
        ] = None,
        until: Annotated[
            str | None,
            typer.Option("--until", metavar="TIME", help="With --since: what was SENT until then; a day is included."),
        ] = None,
        destination: Annotated[str | None, typer.Option(metavar="NAME", help="Only this destination.")] = None,
        by: Annotated[
            Confirm | None,
            typer.Option(
                "--by", metavar="commitment|query", help="How to ask. Not set: as the destination's --confirm."
            ),
        ] = None,
        report: Annotated[
            Path | None,
            typer.Option(
                "--report", metavar="FILE", help="Write what is known of each instance of these batches to a CSV file."
            ),
        ] = None,
        wait: Annotated[
            float | None,
            typer.Option(
                min=0, metavar="SECONDS", help="Wait so long for the answers about these batches, then exit 3."
            ),
        ] = None,
        prune_directories: Annotated[
            bool,
            typer.Option(
                "--prune-directories", help="Also remove the directories that are empty once sources have gone."
            ),
        ] = False,
        max_runtime: Annotated[
            float | None, typer.Option(min=0, metavar="SECONDS", help="Stop the pass cleanly after this time.")
        ] = None,
        dry_run: Annotated[
            bool,
            typer.Option("--dry-run", help="Ask and change nothing. Show which sources would go, and why others stay."),
        ] = False,
    ) -> object | None:
        """Ask archives whether they have what was SENT. What is missing is sent again; sources go only on that proof."""
        selected = _selects({"batch": batch, "study": study, "since": since, "until": until, "dry_run": dry_run})
        with idle(session, "confirm", probe.nothing_to_confirm, selected=bool(selected or destination)) as is_idle:
            if is_idle:
                return None
            asked = common.Asked()
            with collector.paused():
                from examsend.commands import confirm as command
                from examsend.config import moments

            selection = command.Selection(
                batch or (),
                [uid.strip() for uid in study or ()],
                None if since is None else moments.option("--since", since),
                None if until is None else moments.option("--until", until, is_end=True),
            )
            with asked.obeyed():
                result = command.run(
                    session.settings,
                    selection,
                    destination=destination,
                    method=by,
                    report=report,
                    wait=wait,
                    dry_run=dry_run,
                    prune_directories=prune_directories,
                    max_runtime=max_runtime,
                    by=common.operator_name(),
                    stop=lambda: asked.to_end,
                )
            return dataclasses.replace(result, interrupted=asked.interrupted)


def _selects(values: object) -> bool:
    assert isinstance(values, dict)
    return any(values.get(name) for name in ("batch", "study", "since", "until", "dry_run"))
