"""All connection slots of the database are used up: each command says so and ends, or waits; nothing is lost."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import make_url

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.cluster import Cluster
from tests.db.embedded.helpers import until
from tests.faults.checking import ended, ran, sound, started
from tests.helpers import add, execute, one, prepare, rows, states
from tests.peers.scripted import Script, scripted


class Limited:
    """A role of the database that may have a few connections only."""

    def __init__(self, cluster: Cluster, url: str, name: str) -> None:
        self._cluster = cluster
        self.name = name
        self.url = make_url(url).set(username=name, password="limited").render_as_string(hide_password=False)

    def slots(self, count: int) -> None:
        """Let the role have so many connections; -1: any number."""
        self._cluster.execute(f'ALTER ROLE "{self.name}" CONNECTION LIMIT {count}')

    def use_up(self, stack: ExitStack, count: int) -> None:
        """Hold ``count`` connections until the stack is closed."""
        for _ in range(count):
            stack.enter_context(closing(psycopg2.connect(self.url.replace("+psycopg2", ""))))

    def cut(self) -> None:
        """End the connections that the role has."""
        self._cluster.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{self.name}'")


@pytest.fixture
def limited(cluster: Cluster, database: engine.Database, database_url: str) -> Iterator[Limited]:
    name = f"limited_{uuid.uuid4().hex[:8]}"
    cluster.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'limited'")
    execute(database, f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{name}"')
    execute(database, f'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO "{name}"')
    yield Limited(cluster, database_url, name)
    execute(database, f'DROP OWNED BY "{name}"')
    cluster.execute(f'DROP ROLE "{name}"')


SLOTS = 2


def test_each_command_says_that_there_is_no_slot_and_all_goes_on_once_there_is_one(
    settings: Settings, database: engine.Database, limited: Limited, tmp_path: Path
) -> None:
    """Fails if a pass without its database ends with another exit code than 69."""
    drop = tmp_path / "drop"
    samples.ct_study(drop / "before", 2, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, drop)
        samples.ct_study(drop / "after", 2, size=8)
        table = "SELECT id, status, updated_at FROM exam_batches"
        before = rows(database, table)
        commands: list[tuple[str | Path, ...]] = [
            ("ingest", drop),
            ("finalize",),
            ("send",),
            ("status",),
            ("retry", "1"),
            ("finalize", "-q"),
            ("send", "-q"),
        ]
        with ExitStack() as stack:
            limited.slots(SLOTS)
            limited.use_up(stack, SLOTS)
            tried = [(words, started(limited.url, *words, settings={"database_wait": "1"})) for words in commands]
            for words, process in tried:
                said = ended(process, 69)
                assert "the database cannot be reached" in said, words
                assert "too many connections" in said, words
                assert "limited@" not in said
            assert rows(database, table) == before
            assert peer.requests == 0
            waiting = started(limited.url, "ingest", drop, settings={"database_wait": "60"})
            time.sleep(1.5)
            assert waiting.poll() is None, "it waits"
        ended(waiting)
        ran(limited.url, "finalize")
        ran(limited.url, "send")
        assert len(peer.offered) == len(set(peer.offered)) == 4
        sound(database, drop, peers=[peer])
    assert states(database) == ["SENT", "SENT"]


def test_a_sender_that_loses_its_connections_and_gets_none_goes_on_once_it_gets_one(
    settings: Settings, database: engine.Database, limited: Limited, tmp_path: Path
) -> None:
    count = 40
    samples.ct_study(tmp_path / "drop", count, size=8)
    with scripted(Script(delay=0.05)) as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        process = started(limited.url, "send")
        until(lambda: len(peer.stored) >= 5)
        limited.slots(0)
        limited.cut()
        time.sleep(2.5)
        assert process.poll() is None
        limited.slots(-1)
        ended(process)
        assert peer.associations == 1
        assert len(peer.offered) == len(set(peer.offered)) == count
        sound(database, tmp_path / "drop", peers=[peer])
    assert states(database) == ["SENT"]
    assert one(database, "SELECT result FROM send_attempts") == "RELEASED"
