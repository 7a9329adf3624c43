"""Alembic's environment. `examsend db upgrade` hands over its connection; Alembic's own command line gets one from the
settings (EXAMSEND_DATABASE_URL, a configuration file, or the embedded server)."""

from __future__ import annotations

from alembic import context

from examsend.config.settings import load
from examsend.db.tables import Base


def _migrate(connection: object) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    _migrate(handed_over)
else:
    from examsend.db import access

    with access.opened(load(), check=False) as database, database.transaction() as connection:
        _migrate(connection)
