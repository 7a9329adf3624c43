"""``examsend db``."""

from __future__ import annotations

import typer

from examsend.cli import common

app = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode=None)


@common.command(app)
def upgrade(session: common.Session) -> object:
    """Bring the schema up to date (from nothing, too)."""
    from examsend.commands import db

    return db.upgrade(session.settings)


@common.command(app)
def current(session: common.Session) -> object:
    """Say which schema the database has and which this examsend needs."""
    from examsend.commands import db

    return db.current(session.settings)


@common.command(app)
def check(session: common.Session) -> object:
    """Compare the database's schema with what this examsend expects."""
    from examsend.commands import db

    return db.check(session.settings)
