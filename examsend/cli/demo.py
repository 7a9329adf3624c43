"""``examsend demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examsend.states import Confirm


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def demo(
        directory: Annotated[
            Path | None, typer.Argument(metavar="[DIR]", help="Your own DICOM files. Not given: sample files.")
        ] = None,
        to: Annotated[
            str | None,
            typer.Option(
                "--to", metavar="AET@HOST:PORT", help="Send to this destination. Not given: a receiver on loopback."
            ),
        ] = None,
        confirm: Annotated[
            Confirm | None,
            typer.Option(
                "--confirm",
                metavar="none|commitment|query",
                help="How the destination of --to is asked to confirm what it has. Not given: query.",
            ),
        ] = None,
        listen_port: Annotated[
            int | None,
            typer.Option(
                min=1,
                max=65535,
                metavar="N",
                help="With --confirm commitment: take the reports of the archive on this TCP port, as AE title EXAMSEND.",
            ),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON to standard output.")] = False,
    ) -> None:
        """Run a demonstration. It ingests and sends sample studies, and has them confirmed, with a temporary database and receiver."""
        import logging

        from examsend.demo import run
        from examsend.report import json, text
        from examsend.report.terminal import clean

        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

        result = run.run(
            directory, to=to, how=confirm, listen_port=listen_port, say=lambda line: typer.echo(clean(line), err=True)
        )
        if as_json:
            typer.echo(json.as_json(result))
        else:
            text.to_console(result)
        if code := int(result.needs_person):
            raise typer.Exit(code)
