"""``examsend systemd``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from examsend.cli import common

app = typer.Typer(help="Install or remove the units of systemd.", no_args_is_help=True, rich_markup_mode=None)

_User = Annotated[bool, typer.Option("--user", help="For your own user manager, without root.")]
_Root = Annotated[
    Path | None,
    typer.Option(
        "--root", metavar="DIR", help="Write into this image of a system. Nothing is started.", show_default=False
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing. Show what would be done.")]


@common.command(app)
def install(
    session: common.Session,
    drop_dir: Annotated[
        list[str] | None,
        typer.Option("--drop-dir", metavar="DIR", help="Ingest this directory (repeatable).", show_default=False),
    ] = None,
    user: _User = False,
    root: _Root = None,
    dry_run: _DryRun = False,
) -> object:
    """Write units, settings and their user, and start the timers. A changed file is kept."""
    from examsend.commands import systemd

    return systemd.install(session.settings, drop_dirs=drop_dir or (), user=user, root=root, dry_run=dry_run)


@common.command(app)
def uninstall(session: common.Session, user: _User = False, root: _Root = None, dry_run: _DryRun = False) -> object:
    """Stop and remove what install has written. Settings and data are kept."""
    from examsend.commands import systemd

    return systemd.uninstall(user=user, root=root, dry_run=dry_run)


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="systemd")
