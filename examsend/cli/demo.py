"""``examsend demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
        as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON to standard output.")] = False,
    ) -> None:
        """Run a demonstration. It ingests and sends sample studies, with a temporary database and receiver."""
        import logging

        from examsend.demo import run
        from examsend.report import json, text
        from examsend.report.terminal import clean

        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

        result = run.run(directory, to=to, say=lambda line: typer.echo(clean(line), err=True))
        if as_json:
            typer.echo(json.as_json(result))
        else:
            text.to_console(result)
        if code := int(result.needs_person):
            raise typer.Exit(code)
