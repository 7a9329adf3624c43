"""What monitoring asks for, as Prometheus text. Reads only.

A label holds the name of a destination, a state, a code, a command or a host, and never a UID, a path or what a peer said.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from examsend import __version__
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.buckets import BUCKETS
from examsend.errors import ConfigError, DatabaseUnavailable, UsageError
from examsend.queue import measures
from examsend.queue.measures import DestinationMeasures, LastPass, Measures
from examsend.queue.unproven import OPEN
from examsend.states import Stage


@dataclass(frozen=True, slots=True)
class Sample:
    """One number with its labels."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """One metric and its samples."""

    name: str
    type: str
    help: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class MetricsResult:
    """The result of ``metrics``."""

    metrics: tuple[Family, ...]
    textfile: str | None
    """The file that was written; None: the text is printed."""
    seconds: float

    @property
    def text(self) -> str:
        """All of it in Prometheus's text format."""
        return _text(self.metrics)


def run(settings: Settings, *, textfile: Path | None = None) -> MetricsResult:
    """Return what is measured. ``textfile``: also write it to this file, which a reader sees either as it was or whole.

    Where the database cannot be used, the file says so (``examsend_database_up`` is 0).

    Raises UsageError for a file that cannot be written or that no node_exporter reads; ConfigError, DatabaseUnavailable.
    """
    began = time.monotonic()
    if textfile is not None:
        _check(textfile)
    try:
        with access.opened(settings, create=False) as database:
            taken = database.run(measures.take)
    except (ConfigError, DatabaseUnavailable):
        if textfile is not None:
            _write(textfile, _text(_plain(_about(began, up=False))))
        raise
    families = _plain([*_families(taken), *_about(began, up=True)])
    if textfile is not None:
        _write(textfile, _text(families))
    return MetricsResult(families, None if textfile is None else str(textfile), time.monotonic() - began)


# --- the file ---------------------------------------------------------------------------------------------------------


def _check(path: Path) -> None:
    if path.suffix != ".prom":
        raise UsageError(f"--textfile must end in .prom, unlike {path}: node_exporter reads no other file")
    if path.is_dir():
        raise UsageError(f"--textfile {path} is a directory")


def _write(path: Path, text: str) -> None:
    """Replace a file in one step. Its temporary name does not end in .prom, so that no reader takes it for a file of metrics."""
    try:
        handle, temporary = mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise UsageError(f"--textfile {path} cannot be written: {error.strerror or error}") from None


class _Given(Collector):
    """A collector of what was measured already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client``."""
        for family in self._families:
            metric = Metric(family.name, family.help, family.type)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric


def _text(families: Iterable[Family]) -> str:
    registry = CollectorRegistry()
    registry.register(_Given(families))
    return generate_latest(registry).decode()


def _plain(metrics: Iterable[Metric]) -> tuple[Family, ...]:
    return tuple(
        Family(m.name, m.type, m.documentation, tuple(Sample(s.name, dict(s.labels), s.value) for s in m.samples))
        for m in metrics
    )


# --- the metrics ------------------------------------------------------------------------------------------------------


def _about(began: float, *, up: bool) -> Iterator[Metric]:
    build = GaugeMetricFamily("examsend_build_info", "The version of examsend.", labels=["version"])
    build.add_metric([__version__], 1)
    yield build
    yield GaugeMetricFamily("examsend_database_up", "Whether the database could be read.", value=float(up))
    yield GaugeMetricFamily(
        "examsend_metrics_duration_seconds", "How long measuring took.", value=time.monotonic() - began
    )
    yield GaugeMetricFamily("examsend_metrics_timestamp_seconds", "When it was measured.", value=time.time())


def _families(taken: Measures) -> Iterator[Metric]:
    present = [d for d in taken.destinations if not d.removed]
    yield from _queues(present)
    yield from _health(present)
    yield from _proof(present)
    yield from _counters(taken.destinations)
    yield from _sizes_and_durations(taken.destinations)
    yield GaugeMetricFamily(
        "examsend_rejected_files",
        "Files that could not be registered and that nobody has set aside.",
        value=taken.rejected,
    )
    yield GaugeMetricFamily(
        "examsend_rejected_files_last_day",
        "Those that were first seen in the last 24 hours.",
        value=taken.rejected_lately,
    )
    yield from _passes(taken.passes)


def _queues(destinations: Iterable[DestinationMeasures]) -> Iterator[Metric]:
    labels = ["destination", "state"]
    batches = GaugeMetricFamily(
        "examsend_batches", "Batches by state; those that are SENT are counted apart.", labels=labels
    )
    held = GaugeMetricFamily("examsend_batches_held", "Batches that an operator holds, by state.", labels=labels)
    age = GaugeMetricFamily(
        "examsend_oldest_batch_age_seconds",
        "Age of the oldest batch in a state: PENDING since its first instance, READY and SENDING since READY, FAILED since it"
        " failed. Without those that an operator holds; 0 where there is none.",
        labels=labels,
    )
    stuck = GaugeMetricFamily(
        "examsend_pending_stuck",
        "PENDING batches that should have left PENDING 10 minutes ago or earlier, by the longest wait of their destination.",
        labels=["destination"],
    )
    incomplete = GaugeMetricFamily(
        "examsend_pending_incomplete",
        "PENDING batches that wait for a person, because their study is incomplete after the longest wait.",
        labels=["destination"],
    )
    cancelled = GaugeMetricFamily(
        "examsend_batches_cancelled",
        "Batches that an operator has cancelled or rerouted. They are not counted as FAILED.",
        labels=["destination"],
    )
    sending = GaugeMetricFamily(
        "examsend_batches_in_transfer", "SENDING batches whose sender makes progress.", labels=["destination"]
    )
    for d in destinations:
        cancelled.add_metric([d.name], d.cancelled)
        sending.add_metric([d.name], d.sending)
        stuck.add_metric([d.name], d.stuck)
        incomplete.add_metric([d.name], d.incomplete)
        for found in d.queue:
            batches.add_metric([d.name, found.state], found.batches)
            held.add_metric([d.name, found.state], found.held)
            age.add_metric([d.name, found.state], found.age)
    yield from (batches, held, cancelled, sending, age, stuck, incomplete)


def _health(destinations: Iterable[DestinationMeasures]) -> Iterator[Metric]:
    enabled = GaugeMetricFamily(
        "examsend_destination_enabled", "Whether a destination is enabled.", labels=["destination"]
    )
    up = GaugeMetricFamily(
        "examsend_destination_up", "Whether a destination is not held after failures.", labels=["destination"]
    )
    down = GaugeMetricFamily(
        "examsend_destination_down_seconds",
        "How long nothing could be delivered to a destination; 0 where it is up.",
        labels=["destination"],
    )
    success = GaugeMetricFamily(
        "examsend_destination_last_success_timestamp_seconds",
        "When a destination last stored an instance.",
        labels=["destination"],
    )
    for d in destinations:
        enabled.add_metric([d.name], float(d.enabled))
        up.add_metric([d.name], float(not d.down))
        down.add_metric([d.name], d.down_for)
        if d.last_success_at is not None:
            success.add_metric([d.name], d.last_success_at.timestamp())
    yield from (enabled, up, down, success)


def _proof(destinations: Iterable[DestinationMeasures]) -> Iterator[Metric]:
    labels = ["destination", "state"]
    batches = GaugeMetricFamily(
        "examsend_confirmations",
        "SENT batches that the archive has not confirmed, by state; without those that are not asked about any more, unless"
        " they are DISPUTED.",
        labels=labels,
    )
    age = GaugeMetricFamily(
        "examsend_confirmation_age_seconds",
        "Of these, since the oldest one was SENT, or asked for again; 0 where there is none.",
        labels=labels,
    )
    disputed = GaugeMetricFamily(
        "examsend_disputed_for_person",
        "DISPUTED batches about which nothing is done without a person.",
        labels=["destination"],
    )
    for_good = GaugeMetricFamily(
        "examsend_unconfirmed_for_good",
        "SENT batches that were not confirmed in time, or cannot be, and are not asked about any more.",
        labels=["destination"],
    )
    last = GaugeMetricFamily(
        "examsend_last_confirmation_age_seconds",
        "How long ago the archive confirmed a batch for the last time.",
        labels=["destination"],
    )
    failures = GaugeMetricFamily(
        "examsend_archive_failures",
        "How often in a row the archive could not be asked to confirm anything.",
        labels=["destination"],
    )
    for d in destinations:
        found = d.unproven
        for state in OPEN:
            batches.add_metric([d.name, state], found.batches[state])
            age.add_metric([d.name, state], found.ages[state])
        disputed.add_metric([d.name], found.disputed_for_person)
        for_good.add_metric([d.name], found.for_good)
        failures.add_metric([d.name], found.failures)
        if found.confirmed_ago is not None:
            last.add_metric([d.name], found.confirmed_ago)
    yield from (batches, age, disputed, for_good, last, failures)


_COUNTERS = {
    "stored": ("instances_stored", "Instances that a destination has stored."),
    "failed": ("instances_failed", "Answers and files by which an instance can not be delivered."),
    "resent": ("resent_instances", "Instances that were offered again."),
    "bytes_sent": ("bytes_sent", "Bytes of data sets sent."),
    "association_seconds": ("association_seconds", "Time of associations, from connecting to their end."),
    "sent_batches": ("sent_batches", "Batches that became SENT."),
    "failed_batches": (
        "failed_batches",
        "Batches that became FAILED; one that fails again after a retry counts again.",
    ),
}


def _counters(destinations: Iterable[DestinationMeasures]) -> Iterator[Metric]:
    found = {
        name: CounterMetricFamily(f"examsend_{metric}", text, labels=["destination"])
        for name, (metric, text) in _COUNTERS.items()
    }
    associations = CounterMetricFamily(
        "examsend_associations",
        "Associations by result: released after every response, ended otherwise, or refused (not established).",
        labels=["destination", "result"],
    )
    responses = CounterMetricFamily(
        "examsend_dimse_responses", "C-STORE responses by DIMSE status (hexadecimal).", labels=["destination", "status"]
    )
    for d in destinations:
        t = d.totals
        for name, family in found.items():
            family.add_metric([d.name], getattr(t, name))
        associations.add_metric([d.name, "released"], t.released)
        associations.add_metric([d.name, "ended"], t.established - t.released)
        associations.add_metric([d.name, "refused"], t.associations - t.established)
        for status, answers in d.statuses.items():
            responses.add_metric([d.name, f"{status:04X}"], answers)
    yield from (*found.values(), associations, responses)


_STAGES = {
    Stage.READY: (
        "examsend_batch_ready_seconds",
        "From the first instance of a batch to READY, counted once it is SENT.",
    ),
    Stage.SENT: ("examsend_batch_sent_seconds", "From READY to SENT."),
}


def _sizes_and_durations(destinations: Iterable[DestinationMeasures]) -> Iterator[Metric]:
    size = SummaryMetricFamily("examsend_batch_instances", "Instances of the SENT batches.", labels=["destination"])
    durations = {
        stage: HistogramMetricFamily(name, text, labels=["destination"]) for stage, (name, text) in _STAGES.items()
    }
    for d in destinations:
        size.add_metric([d.name], d.totals.sent_batches, d.totals.sent_instances)
        for stage, family in durations.items():
            counts, seconds = d.durations.get(stage, ({}, 0.0))
            family.add_metric([d.name], list(_cumulative(counts)), seconds)
    yield from (size, *durations.values())


def _cumulative(counts: Mapping[float, int]) -> Iterator[tuple[str, float]]:
    """Yield the buckets of a histogram as Prometheus has them: each counts what is below it too."""
    sum_so_far = 0
    for bound in BUCKETS:
        sum_so_far += counts.get(bound, 0)
        yield "+Inf" if bound == float("inf") else f"{bound:g}", sum_so_far


def _passes(passes: Iterable[LastPass]) -> Iterator[Metric]:
    labels = ["command", "host"]
    finished = GaugeMetricFamily(
        "examsend_pass_timestamp_seconds", "When the last pass of a command ended.", labels=labels
    )
    took = GaugeMetricFamily("examsend_pass_duration_seconds", "How long the last pass took.", labels=labels)
    code = GaugeMetricFamily("examsend_pass_exit_code", "The exit code of the last pass.", labels=labels)
    count = CounterMetricFamily("examsend_passes", "Passes of a command.", labels=labels)
    failures = CounterMetricFamily("examsend_pass_failures", "Passes with an exit code other than 0.", labels=labels)
    for p in passes:
        at = [p.command, p.host]
        finished.add_metric(at, p.finished_at.timestamp())
        took.add_metric(at, p.seconds)
        code.add_metric(at, p.exit_code)
        count.add_metric(at, p.passes)
        failures.add_metric(at, p.failures)
    yield from (finished, took, code, count, failures)
