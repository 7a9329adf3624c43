"""Fixtures for all tests: a new database on a PostgreSQL server, settings, receivers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from examsend.config.settings import Settings
from examsend.db import access, embedded, engine, migrate
from examsend.demo import receiver
from tests.peers import dcmtk, orthanc


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URL of a server: EXAMSEND_TEST_DATABASE_URL, or else an embedded server for the test run."""
    given = os.environ.get("EXAMSEND_TEST_DATABASE_URL")
    if given:
        yield given
        return
    with embedded.scratch_directory() as scratch, embedded.running(scratch, unsafe_fast=True) as url:
        yield url


class Cluster:
    """Makes and drops databases on the test server."""

    def __init__(self, url: str, *, alone: bool = False) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg2")
        self._admin = create_engine(
            self._url.set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        self._template: str | None = None
        # Copying files is faster where nobody else uses the server; with others, its checkpoints make them wait.
        self._strategy = " STRATEGY file_copy" if alone else ""

    def execute(self, statement: str) -> None:
        """Run one statement outside a transaction."""
        with self._admin.connect() as connection:
            connection.execute(text(statement))

    def url(self, name: str) -> str:
        """Given the name of a database, return its URL."""
        return self._url.set(database=name).render_as_string(hide_password=False)

    def empty(self) -> str:
        """Create a database without a schema; return its name."""
        name = f"t_{uuid.uuid4().hex[:16]}"
        self.execute(f'CREATE DATABASE "{name}"')
        return name

    def migrated(self) -> str:
        """Create a database with the schema, as a copy of a template that is migrated once; return its name."""
        if self._template is None:
            template = self.empty()
            with access.opened(Settings(database_url=self.url(template)), check=False) as database:
                migrate.upgrade(database)
            self._template = template
        name = f"t_{uuid.uuid4().hex[:16]}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._template}"{self._strategy}')
        return name

    def drop(self, name: str) -> None:
        """Drop a database, and end the connections to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def close(self) -> None:
        """Drop the template."""
        if self._template is not None:
            self.drop(self._template)


@pytest.fixture(scope="session")
def cluster(server_url: str) -> Iterator[Cluster]:
    """The test server."""
    made = Cluster(server_url, alone=not os.environ.get("EXAMSEND_TEST_DATABASE_URL"))
    yield made
    made.close()


@pytest.fixture
def empty_database_url(cluster: Cluster) -> Iterator[str]:
    """The URL of a new database without a schema."""
    name = cluster.empty()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def database_url(cluster: Cluster) -> Iterator[str]:
    """The URL of a new database with the schema."""
    name = cluster.migrated()
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings with a new database. Files are ingested without waiting for ``settle``."""
    return Settings(database_url=database_url, settle=0, incomplete_after=0, database_wait=2, record_seconds=0.02)


@pytest.fixture
def database(settings: Settings) -> Iterator[engine.Database]:
    """The database of ``settings``, opened."""
    with access.opened(settings) as opened:
        yield opened


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[receiver.Receiver]:
    """The receiver of the demo, which stores data sets and counts associations."""
    with receiver.listening(tmp_path / "received") as made:
        yield made


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[Callable[..., dcmtk.Storescp]]:
    """A function that starts DCMTK's storescp with options. It is stopped at the end of the test."""
    with ExitStack() as stack:
        count = iter(range(100))

        def start(*flags: str) -> dcmtk.Storescp:
            return stack.enter_context(dcmtk.storescp(tmp_path / f"storescp{next(count)}", *flags))

        yield start


@pytest.fixture
def orthanc_server(tmp_path: Path) -> Iterator[Callable[..., orthanc.Orthanc]]:
    """A function that starts Orthanc with settings. It is stopped at the end of the test."""
    with ExitStack() as stack:
        count = iter(range(100))

        def start(**options: object) -> orthanc.Orthanc:
            return stack.enter_context(orthanc.running(tmp_path / f"orthanc{next(count)}", **options))

        yield start
