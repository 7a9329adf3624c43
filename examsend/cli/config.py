"""``examsend config``."""

from __future__ import annotations

from typing import Annotated

import typer

from examsend.cli import common

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True, rich_markup_mode=None)


@common.command(app)
def show(session: common.Session) -> object:
    """Show each setting, and where it comes from. Passwords are not shown."""
    from examsend.commands import config

    return config.show(session.explained)


@common.command(app)
def check(
    session: common.Session,
    network: Annotated[
        bool, typer.Option("--network/--no-network", help="Also send a C-ECHO to each enabled destination.")
    ] = True,
) -> object:
    """Check settings, database, files and destinations. Nothing is changed."""
    from examsend.commands import config

    return config.check(session.explained, network=network)


@common.command(app)
def example(session: common.Session) -> object:
    """Print a commented examsend.toml. It has every setting."""
    from examsend.commands import config

    return config.example()


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="config")
