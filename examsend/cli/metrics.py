"""``examsend metrics``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examsend.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""

    @common.command(app, is_pass=lambda values: values["textfile"] is not None)
    def metrics(
        session: common.Session,
        textfile: Annotated[
            Path | None,
            typer.Option(
                "--textfile",
                metavar="PATH",
                help="Write the text to this file (*.prom), in one step, for node_exporter.",
                show_default=False,
            ),
        ] = None,
    ) -> object:
        """Print queue, health and totals as Prometheus text. No label holds a UID or a path."""
        from examsend.commands import metrics as command

        return command.run(session.settings, textfile=textfile)
