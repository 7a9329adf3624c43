"""Fixtures for all tests: a new database on a PostgreSQL server, settings, receivers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import access, embedded, engine
from examsend.demo import receiver
from tests.cluster import Cluster
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
    """The URL of a database with the schema and no rows."""
    name = cluster.take()
    yield cluster.url(name)
    cluster.give_back(name)


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
