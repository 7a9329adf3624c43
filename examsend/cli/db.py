"""``examsend db``."""

from __future__ import annotations

import typer

from examsend.cli import common

app = typer.Typer(help="Manage the database's schema.", no_args_is_help=True, rich_markup_mode=None)


@common.command(app)
def upgrade(session: common.Session) -> object:
    """Create the schema, or migrate it to the current version."""
    from examsend.commands import db

    return db.upgrade(session.settings)


@common.command(app)
def current(session: common.Session) -> object:
    """Show the version of the schema. Also shows the version that is needed."""
    from examsend.commands import db

    return db.current(session.settings)


@common.command(app)
def check(session: common.Session) -> object:
    """Compare the database's schema with the current version."""
    from examsend.commands import db

    return db.check(session.settings)


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="db")
