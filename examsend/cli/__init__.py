"""The command line: parses options, runs one command, shows its result. No SQL, no sockets."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from examsend.cli import common


class _InOrder(TyperGroup):
    """The commands in the order of a study's life, with those that have subcommands among them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of ``_MODULES``."""
        order = [module.__name__.rpartition(".")[2] for module in _MODULES]
        return sorted(self.commands, key=order.index)


app = typer.Typer(
    cls=_InOrder,
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
    cancel,
    config,
    confirm,
    db,
    demo,
    destination,
    expect,
    explain,
    finalize,
    hold,
    ingest,
    listen,
    metrics,
    prioritize,
    prune,
    rejected,
    reroute,
    retry,
    send,
    status,
    systemd,
    unhold,
)

# In the order of --help.
_MODULES = (
    ingest,
    expect,
    finalize,
    send,
    confirm,
    status,
    explain,
    rejected,
    metrics,
    retry,
    hold,
    unhold,
    cancel,
    prioritize,
    reroute,
    listen,
    destination,
    prune,
    db,
    config,
    systemd,
    demo,
)
for _module in _MODULES:
    _module.register(app)
