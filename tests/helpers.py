"""Functions that many tests use."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import text

from examsend.commands import destination, finalize, ingest, send, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.queue import views
from examsend.states import BatchState
from tests import forked


def add(settings: Settings, address: str, name: str = "pacs", **values: Any) -> None:
    """Add a destination without a quiet period and with short pauses after failures."""
    destination.add(
        settings, name, address, {"quiet_seconds": 0.0, "backoff_seconds": 0.05, "backoff_max_seconds": 0.1, **values}
    )


def prepare(settings: Settings, directory: Path) -> None:
    """Ingest and finalize."""
    ingest.run(settings, [directory])
    finalize.run(settings)


def deliver(settings: Settings, directory: Path, **values: Any) -> send.SendResult:
    """Ingest, finalize, send."""
    prepare(settings, directory)
    return send.run(settings, **values)


def listed(settings: Settings, **values: Any) -> tuple[views.BatchStatus, ...]:
    """Return every batch as ``status`` shows it, the one to which something happened last first."""
    return status.run(settings, states=tuple(BatchState), limit=100_000, **values).batches


def rows(database: engine.Database, statement: str, **values: Any) -> list[Any]:
    """Return the rows of a SELECT."""
    with database.transaction() as tx:
        return list(tx.execute(text(statement), values))


def one(database: engine.Database, statement: str, **values: Any) -> Any:
    """Return the first value of the first row of a SELECT."""
    return rows(database, statement, **values)[0][0]


def execute(database: engine.Database, statement: str, **values: Any) -> None:
    """Execute a statement that returns no rows."""
    with database.transaction() as tx:
        tx.execute(text(statement), values)


def states(database: engine.Database) -> list[str]:
    """Return the states of the batches, ordered by id."""
    return [row[0] for row in rows(database, "SELECT status FROM exam_batches ORDER BY id")]


def digests(database: engine.Database) -> dict[str, str]:
    """Return {SOP Instance UID: SHA-256 in hex} of every instance that is not superseded."""
    return dict(
        rows(
            database,
            "SELECT sop_instance_uid, encode(content_digest, 'hex') FROM exam_batch_instances WHERE outcome <> 'SUPERSEDED'",
        )
    )


def rounds(number: int) -> int:
    """Given how many rounds of a random test every run plays, return how many this run plays.

    That is EXAMSEND_TEST_ROUNDS times as many, which is a factor: 1 without it, 10 for the long run.
    """
    return max(1, round(number * float(os.environ.get("EXAMSEND_TEST_ROUNDS") or 1)))


def cli(
    *arguments: str | Path, url: str | None = None, new: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own.

    It is forked from a process that has imported the program, which saves the time of the imports: all modules are there, the output goes
    to a file, and modules are not torn down at the end. With ``new`` it is a new interpreter; so it is where a variable is given that
    Python or a library reads when it starts.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_") and k != "COLUMNS"}
    kept |= environment
    if url is not None:
        kept["EXAMSEND_DATABASE_URL"] = url
    words = list(map(str, arguments))
    if not new:
        with suppress(forked.BusyError):
            return forked.process().run(words, kept)
    return subprocess.run(
        [sys.executable, "-m", "examsend", *words], capture_output=True, text=True, env=kept, timeout=120, check=False
    )
