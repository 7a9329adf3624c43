"""Runs the demonstration: the passes one after another, with a temporary directory and database."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examsend.commands import confirm, destination, finalize, ingest, send, status
from examsend.config.settings import Settings
from examsend.db import access, embedded, migrate
from examsend.delivery.delivery import Delivered
from examsend.demo import modality, receiver, samples
from examsend.dicom import identity
from examsend.errors import UsageError
from examsend.queue import at_archive, views
from examsend.report import text
from examsend.report.layout import byte_size, table
from examsend.states import BatchState, Confirm

_NAME = "demo"

_GRACE = 0.2
"""Seconds; the default is longer than a demonstration should take."""

_AGAIN = 2.0
"""Seconds until the archive is asked again."""

_PASSES_SECONDS = 20.0
"""How long finalize is tried for, until a batch is READY."""


@dataclass(frozen=True, slots=True)
class Study:
    """The result for one study."""

    study_instance_uid: str
    status: str
    rule: str
    """By which rule it was complete (states.Rule); "": it is not."""
    instances: int
    stored: int
    associations: int
    total_bytes: int
    seconds: float
    confirmation: str | None
    """How far the archive has confirmed it (states.Confirmation); None: it was not asked."""


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
    """Instances whose data set at the receiver has the digest found at ingest; None: another receiver is used."""
    verified_bytes: int
    differing: int
    confirmed: int
    """Instances that the archive has confirmed."""
    proof: str
    """By what it said (states.Proof); "": it has confirmed none."""
    sent_again: int
    """Of these, instances that it had lost, and that were sent again."""
    seconds: float

    @property
    def needs_person(self) -> bool:
        """Whether a study was not SENT, or a data set differs at the receiver."""
        return self.differing > 0 or any(s.status != "SENT" for s in self.studies)


def rendered(result: DemoResult) -> list[Any]:
    """Return lines of text and tables."""
    rows = [
        (
            s.study_instance_uid,
            s.status if s.confirmation is None else f"{s.status}, {s.confirmation.lower()}",
            s.rule,
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
        ("studies", len({s.study_instance_uid for s in result.studies})),
        ("instances", sum(s.instances for s in result.studies) - result.sent_again),
        ("associations used", result.associations),
        ("associations with one per file", result.one_per_file),
        ("bytes verified by digest at the receiver", proof),
        ("instances confirmed by the receiver", _confirmation(result)),
        ("files rejected, with the reason on record", result.rejected),
        ("files ignored, because they are not DICOM", result.ignored),
        ("seconds from first file to last answer", f"{result.seconds:.1f}"),
    ]
    return [
        table(("study", "state", "complete by", "stored>", "associations>", "sent>", "seconds>"), rows),
        table(("", ""), facts),
    ]


def _confirmation(result: DemoResult) -> str:
    if not result.confirmed:
        return "none"
    again = f", {result.sent_again} after it was lost and sent again" if result.sent_again else ""
    return f"{result.confirmed} ({result.proof}){again}"


def run(
    directory: Path | None,
    *,
    to: str | None,
    how: Confirm | None = None,
    listen_port: int | None = None,
    say: Callable[[str], None],
) -> DemoResult:
    """Send the files of ``directory`` (None: sample studies) to ``to``, AET@HOST:PORT (None: a receiver on loopback), and ask it to
    confirm them.

    ``how``: None is by Storage Commitment, or by query where a receiver is given. ``listen_port``: where an archive reports that
    does so over an association of its own. ``say`` is called with each line of progress. Raises UsageError for a directory or an
    address that is not valid.
    """
    if directory is not None and not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="examsend-demo-")))
        late = None
        if directory is None:
            directory = place / "drop"
            say("making sample studies: a CT, an MR with two series, a CR, a compressed ultrasound, a broken file")
            samples.make(directory)
            late = _Late.take(directory / "ct", place)
        say("starting an embedded PostgreSQL")
        settings = stack.enter_context(_settings())
        receiving = None
        if how is None:
            how = Confirm.COMMITMENT if to is None or listen_port is not None else Confirm.QUERY
        if listen_port is not None:
            say(f"$ examsend listen --port {listen_port}")
            stack.enter_context(modality.listening(settings, listen_port, None))
        if to is None:
            say("starting a receiver on loopback that stores what it receives")
            receiving = stack.enter_context(receiver.listening(place / "received"))
            to = f"{receiving.aet}@{receiving.host}:{receiving.port}"
        passes = _Passes(settings, directory, say, how)
        if late is None:
            passes.run(to)
        else:
            passes.run_with_evidence(to, late)
        passes.confirm(receiving)
        return passes.result(receiving)


@dataclass(frozen=True, slots=True)
class _Late:
    """A study of which the last image is not there yet."""

    images: tuple[identity.DicomFile, ...]
    """All of them."""
    aside: Path
    """Where the last image waits."""
    place: Path
    """Where it belongs."""

    @classmethod
    def take(cls, directory: Path, to: Path) -> _Late:
        """Move the last image of the study in ``directory`` to ``to``."""
        paths = sorted(directory.iterdir())
        images = tuple(identity.inspect(path) for path in paths)
        aside = to / paths[-1].name
        paths[-1].rename(aside)
        return cls(images, aside, paths[-1])

    @property
    def study(self) -> str:
        """Its Study Instance UID."""
        return self.images[0].study_instance_uid

    def arrive(self) -> None:
        """Move the image to its place."""
        self.aside.rename(self.place)


@contextmanager
def _settings() -> Iterator[Settings]:
    """Yield settings of a temporary embedded database, which runs until the block ends."""
    with embedded.scratch_directory() as scratch, embedded.running(scratch, unsafe_fast=True) as url:
        made = Settings(database_url=url, settle=0)
        with access.opened(made, check=False) as database:
            migrate.upgrade(database)
        yield made


class _Passes:
    """The commands of the demonstration, each run and shown, and what they have done so far."""

    def __init__(self, settings: Settings, directory: Path, say: Callable[[str], None], how: Confirm) -> None:
        self._settings = settings
        self._directory = directory
        self._say = say
        self._how = how
        self._confirmations = 0
        """Passes of confirm that asked: each used an association."""
        self._began = 0.0
        self._seconds = 0.0
        self._ingested: list[ingest.IngestResult] = []
        self._delivered: dict[int, Delivered] = {}

    def run(self, to: str) -> None:
        """Send files as they are: a study is complete at once."""
        self._add(to, quiet=0.0)
        self._ingest()
        self._finalize()
        self._send()

    def run_with_evidence(self, to: str, late: _Late) -> None:
        """Send the sample studies: one by what its modality says, one by what an operator says, the others by their silence."""
        self._add(to, quiet=3600.0)
        with modality.listening(self._settings) as peer:
            self._say(f"$ examsend listen --port {peer.port}")
            step = samples.new_uid()
            modality.begin(peer, step, late.study)
            self._say("  a CT says by MPPS: step IN PROGRESS")
            self._ingest()
            modality.complete(peer, step, late.images)
            self._say(f"  the CT says by MPPS: step COMPLETED, with {len(late.images)} images; one is still on its way")
        self._finalize()
        ct, *others = self._waiting(first=late.study)
        self._status(ct)
        self._status(others[0])
        late.arrive()
        self._say("  the last image of the CT arrives")
        self._ingest()
        self._finalize(patient=True)
        self._send()
        self._status(ct)
        self._status(others[0])
        self._finalize(others[0].study_instance_uid)
        quiet = destination.change(self._settings, _NAME, None, {"quiet_seconds": 0.0})
        self._show(f"destination set {_NAME} --quiet-period 0", quiet)
        self._finalize(patient=True)
        self._send()

    def confirm(self, receiving: receiver.Receiver | None) -> None:
        """Ask the archive to confirm what was SENT. One of the demo loses an image before, so that it is sent again."""
        if self._how is Confirm.NONE:
            return
        if receiving is not None and (lost := next(iter(receiving.stored()), None)):
            receiving.lose(lost.sop_instance_uid)
            self._say("  the archive loses an image")
        self._confirm()
        if receiving is not None:
            self._send()
            self._confirm()

    def result(self, receiving: receiver.Receiver | None) -> DemoResult:
        """Return what became of the studies."""
        shown = status.run(self._settings, states=tuple(BatchState), limit=10_000)
        studies = tuple(self._study(b) for b in sorted(shown.batches, key=lambda b: b.id))
        verified, total_bytes, differing = _verify(self._settings, receiving)
        return DemoResult(
            studies,
            self._ingested[0].rejected,
            self._ingested[0].ignored,
            # The C-ECHO used one association.
            receiving.associations() - 1 - self._confirmations if receiving else sum(s.associations for s in studies),
            sum(s.stored for s in studies),
            verified,
            total_bytes,
            differing,
            *self._confirmed(),
            self._seconds,
        )

    def _confirmed(self) -> tuple[int, str, int]:
        with access.opened(self._settings) as database:
            return database.run(at_archive.proven)

    def _study(self, batch: views.BatchStatus) -> Study:
        delivered = self._delivered.get(batch.id)
        return Study(
            batch.study_instance_uid,
            batch.status,
            (batch.ready_reason or "").split(":")[0],
            batch.instances,
            batch.stored,
            delivered.associations if delivered else 0,
            batch.total_bytes,
            delivered.association_seconds if delivered else 0.0,
            batch.confirmation,
        )

    # --- the commands ---

    def _show(self, command: str, result: object, *, lines: int | None = None) -> None:
        self._say(f"$ examsend {command}")
        for part in [p for p in text.rendered(result) if isinstance(p, str)][:lines]:
            self._say(f"  {part}")

    def _add(self, to: str, *, quiet: float) -> None:
        values = {
            "quiet_seconds": quiet,
            "grace_seconds": _GRACE,
            "confirm": self._how,
            "confirm_after_seconds": 0.0,
            "confirm_backoff_seconds": _AGAIN,
        }
        added = destination.add(self._settings, _NAME, to, values)
        how = f" --confirm {self._how}" if self._how is not Confirm.NONE else ""
        self._show(f"destination add {_NAME} {to} --quiet-period {quiet:g} --grace {_GRACE:g}{how}", added)
        self._show(f"destination echo {_NAME}", destination.echo(self._settings, _NAME))
        self._began = time.monotonic()

    def _ingest(self) -> None:
        self._ingested.append(ingest.run(self._settings, [self._directory]))
        self._show(f"ingest {self._directory}", self._ingested[-1])

    def _finalize(self, study: str | None = None, *, patient: bool = False) -> None:
        """Finalize what is complete, or a study; ``patient``: again until something is, as a timer does."""
        over = time.monotonic() + _PASSES_SECONDS
        while True:
            done = finalize.run(self._settings, studies=[study] if study else [])
            if done.ready or not patient or time.monotonic() > over:
                break
            time.sleep(_GRACE / 4)
        self._show(f"finalize --study {study}" if study else "finalize", done)

    def _send(self) -> None:
        sent = send.run(self._settings)
        self._seconds = time.monotonic() - self._began
        self._delivered |= {d.id: d for d in sent.delivered}
        self._show("send", sent)

    def _confirm(self) -> None:
        """Ask, and again until each batch is confirmed or disputed, or the archive cannot be asked, as a timer does."""
        over = time.monotonic() + _PASSES_SECONDS
        shown = False
        while True:
            done = confirm.run(self._settings)
            self._confirmations += bool(done.asked)
            if not shown or done.disputes or done.problems:
                self._show("confirm", done)
                shown = True
            with access.opened(self._settings) as database:
                waiting = database.run(at_archive.awaited)
            if not waiting or done.disputes or done.problems or time.monotonic() > over:
                break
            time.sleep(_GRACE)
        if not done.disputes and not done.problems:
            self._say(f"  {waiting or 'no'} {'batch waits' if waiting == 1 else 'batches wait'} for confirmation")

    def _waiting(self, *, first: str) -> list[views.BatchStatus]:
        """Return the batches in the order of their ids, that of the study ``first`` before the others."""
        found = status.run(self._settings, states=tuple(BatchState), limit=10_000).batches
        return sorted(found, key=lambda b: (b.study_instance_uid != first, b.id))

    def _status(self, batch: views.BatchStatus) -> None:
        """Show the first line of a batch's status, which has the reason."""
        self._show(f"status {batch.id}", status.run(self._settings, batch_id=batch.id), lines=1)


def _verify(settings: Settings, receiving: receiver.Receiver | None) -> tuple[int | None, int, int]:
    """Compare the digests at the receiver with those of the ingest; return (equal instances, their bytes, differing ones)."""
    if receiving is None:
        return None, 0, 0
    with access.opened(settings) as database:
        wanted = database.run(views.stored_digests)
    got = {entry.sop_instance_uid: entry for entry in receiving.stored()}
    alike = {uid for uid, digest in wanted.items() if uid in got and got[uid].digest == digest}
    return len(alike), sum(got[uid].size for uid in alike), len(wanted) - len(alike)
