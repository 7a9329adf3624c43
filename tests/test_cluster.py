"""A database that a test gives back is as new for the next one, or is dropped."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from examsend.config.settings import Settings
from examsend.db import access
from tests.cluster import Cluster
from tests.helpers import add, one


def _used_again(cluster: Cluster, statement: str) -> bool:
    name = cluster.take()
    with (
        access.opened(Settings(database_url=cluster.url(name))) as database,
        database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        connection.execute(text(statement.format(name=name)))
    cluster.give_back(name)
    following = cluster.take()
    cluster.give_back(following)
    return following == name


def test_rows_are_removed_and_numbers_begin_at_1_again(cluster: Cluster) -> None:
    for _ in range(2):
        name = cluster.take()
        settings = Settings(database_url=cluster.url(name))
        with access.opened(settings) as database:
            for table in ("storage_backend_configs", "events"):
                assert one(database, f"SELECT count(*) FROM {table}") == 0
            add(settings, "A@127.0.0.1:1")
            assert one(database, "SELECT id FROM storage_backend_configs") == 1
        cluster.give_back(name)


@pytest.mark.parametrize("statement", ["SELECT 1", "INSERT INTO status_totals SELECT * FROM status_totals", "ANALYZE"])
def test_a_database_with_its_schema_is_used_again(cluster: Cluster, statement: str) -> None:
    assert _used_again(cluster, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE exam_batches ADD COLUMN more int",
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "ALTER SEQUENCE events_id_seq INCREMENT 5",
        "GRANT SELECT ON exam_batches TO PUBLIC",
        "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE INDEX more ON events (id)",
        "UPDATE alembic_version SET version_num = '0005'",
        "DROP SCHEMA public CASCADE",
        "ALTER DATABASE {name} SET default_transaction_read_only = on",
        "ALTER DATABASE {name} CONNECTION LIMIT 5",
    ],
)
def test_a_database_with_another_schema_or_settings_is_not_used_again(cluster: Cluster, statement: str) -> None:
    assert not _used_again(cluster, statement)
