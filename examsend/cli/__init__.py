"""The command line: parses options, runs one command, shows its result. No SQL, no sockets."""

from __future__ import annotations

import typer

from examsend.cli import common

app = typer.Typer(
    name="examsend",
    help="Gathers DICOM files by study and delivers each study to its archive over one DIMSE association.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=common.show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


from examsend.cli import (  # noqa: E402
    config,
    db,
    demo,
    destination,
    expect,
    finalize,
    ingest,
    listen,
    metrics,
    prune,
    retry,
    send,
    status,
)

# In the order of --help.
for _module in (
    ingest,
    expect,
    finalize,
    send,
    status,
    metrics,
    retry,
    listen,
    destination,
    prune,
    db,
    config,
    demo,
):
    _module.register(app)
