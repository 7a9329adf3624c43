"""Runs the demonstration: the passes one after another, with a temporary directory and database."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examsend.commands import destination, finalize, ingest, send, status
from examsend.config.settings import Settings
from examsend.db import access, embedded, migrate
from examsend.demo import receiver, samples
from examsend.errors import UsageError
from examsend.queue import views
from examsend.report.layout import byte_size, table
from examsend.report.text import rendered

_NAME = "demo"


@dataclass(frozen=True, slots=True)
class Study:
    """The result for one study."""

    study_instance_uid: str
    status: str
    instances: int
    stored: int
    associations: int
    total_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The result of the demonstration."""

    studies: tuple[Study, ...]
    rejected: int
    ignored: int
    associations: int
    """As counted by the demo's receiver, or by the sender if another receiver is used."""
    one_per_file: int
    """Associations that a sender with one association per file would have used."""
    verified: int | None
    """Instances whose data set at the receiver has the SHA-256 found at ingest; None: another receiver is used."""
    verified_bytes: int
    differing: int
    seconds: float

    @property
    def needs_person(self) -> bool:
        """Whether a study was not SENT, or a data set differs at the receiver."""
        return self.differing > 0 or any(s.status != "SENT" for s in self.studies)


@rendered.register
def _demo(result: DemoResult) -> list[Any]:
    rows = [
        (
            s.study_instance_uid,
            s.status,
            f"{s.stored}/{s.instances}",
            s.associations,
            byte_size(s.total_bytes),
            f"{s.seconds:.2f}",
        )
        for s in result.studies
    ]
    proof = (
        "not verified: not the demo's receiver"
        if result.verified is None
        else f"{result.verified} instances, {byte_size(result.verified_bytes)}; {result.differing} differ"
    )
    facts = [
        ("studies", len(result.studies)),
        ("instances", sum(s.instances for s in result.studies)),
        ("associations used", result.associations),
        ("associations with one per file", result.one_per_file),
        ("bytes verified by digest at the receiver", proof),
        ("files rejected, with the reason on record", result.rejected),
        ("files ignored, because they are not DICOM", result.ignored),
        ("seconds from first file to last answer", f"{result.seconds:.1f}"),
    ]
    return [
        table(("study", "state", "stored>", "associations>", "sent>", "seconds>"), rows),
        table(("", ""), facts),
    ]


def run(directory: Path | None, *, to: str | None, say: Callable[[str], None]) -> DemoResult:
    """Send the files of ``directory`` (None: sample studies) to ``to``, AET@HOST:PORT (None: a receiver on loopback).

    ``say`` is called with each line of progress. Raises UsageError for a directory or an address that is not valid.
    """
    if directory is not None and not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="examsend-demo-")))
        if directory is None:
            directory = place / "drop"
            say("making sample studies: a CT, an MR with two series, a CR, a compressed ultrasound, a broken file")
            samples.make(directory)
        say("starting an embedded PostgreSQL")
        settings = stack.enter_context(_settings())
        receiving = None
        if to is None:
            say("starting a receiver on loopback that stores what it receives")
            receiving = stack.enter_context(receiver.listening(place / "received"))
            to = f"{receiving.aet}@{receiving.host}:{receiving.port}"
        return _run_passes(settings, directory, to, receiving, say)


@contextmanager
def _settings() -> Iterator[Settings]:
    """Yield settings of a temporary embedded database, which runs until the block ends."""
    with embedded.scratch_directory() as scratch, embedded.running(scratch, unsafe_fast=True) as url:
        made = Settings(database_url=url, settle=0)
        with access.opened(made, check=False) as database:
            migrate.upgrade(database)
        yield made


def _run_passes(
    settings: Settings,
    directory: Path,
    to: str,
    receiving: receiver.Receiver | None,
    say: Callable[[str], None],
) -> DemoResult:
    def show(command: str, result: object) -> None:
        say(f"$ examsend {command}")
        for part in rendered(result):
            say(f"  {part}") if isinstance(part, str) else None

    show(f"destination add {_NAME} {to} --quiet-period 0", destination.add(settings, _NAME, to, {"quiet_seconds": 0.0}))
    show(f"destination echo {_NAME}", destination.echo(settings, _NAME))
    began = time.monotonic()
    ingested = ingest.run(settings, [directory])
    show(f"ingest {directory}", ingested)
    show("finalize", finalize.run(settings))
    sent = send.run(settings)
    seconds = time.monotonic() - began
    show("send", sent)
    shown = status.run(settings, limit=10_000)
    deliveries = {d.batch_id: d for d in sent.delivered}
    studies = tuple(
        Study(
            b.study_instance_uid,
            b.status,
            b.instances,
            b.stored,
            deliveries[b.id].associations if b.id in deliveries else 0,
            b.total_bytes,
            deliveries[b.id].association_seconds if b.id in deliveries else 0.0,
        )
        for b in sorted(shown.batches, key=lambda b: b.id)
    )
    verified, total_bytes, differing = _verify(settings, receiving)
    return DemoResult(
        studies,
        ingested.rejected,
        ingested.ignored,
        # The C-ECHO above used one association.
        receiving.associations() - 1 if receiving else sum(s.associations for s in studies),
        sum(s.stored for s in studies),
        verified,
        total_bytes,
        differing,
        seconds,
    )


def _verify(settings: Settings, receiving: receiver.Receiver | None) -> tuple[int | None, int, int]:
    """Compare the digests at the receiver with those of the ingest; return (equal instances, their bytes, differing ones)."""
    if receiving is None:
        return None, 0, 0
    with access.opened(settings) as database:
        wanted = database.run(views.stored_digests)
    got = {entry.sop_instance_uid: entry for entry in receiving.stored()}
    alike = {uid for uid, digest in wanted.items() if uid in got and got[uid].sha256 == digest}
    return len(alike), sum(got[uid].size for uid in alike), len(wanted) - len(alike)
