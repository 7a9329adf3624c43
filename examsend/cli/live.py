"""Progress displays on a terminal. Nothing is shown if standard error is not a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from examsend.report.layout import byte_size
from examsend.report.terminal import clean

if TYPE_CHECKING:
    from examsend.cli.common import Session
    from examsend.delivery.delivery import Delivered, DeliveryProgress, Observer
    from examsend.queue.claim import Claim
    from examsend.queue.destination import Destination


def _progress(*columns: Any) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True, markup=False, highlight=False), transient=True)


@contextmanager
def ingesting(session: Session) -> Iterator[Callable[[int, int, int], None]]:
    """Yield a callback that shows files seen, new instances and files per second."""
    if not session.live:
        yield lambda _seen, _new, _new_bytes: None
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

    began = time.monotonic()
    with _progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn()
    ) as bar:
        task = bar.add_task("listing files", total=None)

        def show(seen: int, new: int, new_bytes: int) -> None:
            rate = seen / max(time.monotonic() - began, 0.001)
            bar.update(task, description=f"{seen} files seen, {new} new, {new_bytes / 1e6:.0f} MB ({rate:.0f} files/s)")

        yield show


@contextmanager
def sending(session: Session) -> Iterator[tuple[Observer | None, Callable[[int], None] | None]]:
    """Yield an observer that shows each delivery (instances, bytes, MB/s), and what it is told the number of studies by."""
    if not session.live:
        yield None, None
        return
    from rich.progress import BarColumn, TextColumn

    with _progress(
        TextColumn("{task.description}", markup=False), BarColumn(30), TextColumn("{task.fields[facts]}", markup=False)
    ) as bar:
        shown = _Sending(bar)
        yield shown.began, shown.expect


class _Sending:
    """The lines of the deliveries in progress, and the line of the whole pass: "study 57 of 300, 12 min left"."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("looking for what is due", total=None, facts="")
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._known = 0
        self._begun = 0
        self._ended = 0
        self._running: dict[Any, float] = {}
        """Of each delivery in progress, the part that is done."""

    def expect(self, batches: int) -> None:
        """Note the number of studies that are due now."""
        with self._lock:
            self._known = self._begun + batches
            self._show()

    def began(self, claim: Claim, destination: Destination, instances: int, total_bytes: int) -> DeliveryProgress:
        """See ``delivery.Observer``."""
        name = f"batch {claim.batch_id} to {clean(destination.name)}"
        task = self._bar.add_task(name, total=max(total_bytes, 1), facts=f"0/{instances} instances")
        with self._lock:
            self._begun += 1
            self._running[task] = 0.0
            self._show()
        return _Line(self, self._bar, task, instances, total_bytes)

    def moved(self, task: Any, part: float) -> None:
        """Note which part of a delivery is done."""
        with self._lock:
            self._running[task] = part
            self._show()

    def ended(self, task: Any) -> None:
        """A delivery has ended."""
        with self._lock:
            self._running.pop(task, None)
            self._ended += 1
            self._show()
        self._bar.remove_task(task)

    def _show(self) -> None:
        total = max(self._known, self._begun)
        done = self._ended + sum(self._running.values())
        what = f"study {max(self._begun, min(1, total))} of {total}" if total else "nothing is due"
        left = remaining(time.monotonic() - self._began, done, total)
        self._bar.update(self._task, description=what, total=max(total, 1), completed=done, facts=left)


def remaining(seconds: float, done: float, total: int) -> str:
    """Given how long a part of the work took, return how long the rest takes at that pace: "12 min left"; "" while that cannot be
    told yet."""
    if seconds < 1 or done <= 0 or done >= total:
        return ""
    left = seconds / done * (total - done)
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if left >= 1.5 * size:
            return f"{left / size:.0f} {unit} left"
    return f"{max(left, 1):.0f} s left"


class _Line:
    """The line of one delivery in progress."""

    def __init__(self, pass_: _Sending, bar: Any, task: Any, instances: int, total_bytes: int) -> None:
        self._pass = pass_
        self._bar = bar
        self._task = task
        self._instances = instances
        self._total = max(total_bytes, 1)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._shown_at = 0.0
        self._done = 0
        self._sent = 0

    def moved(self, sent: int) -> None:
        """See ``delivery.watcher.Progress``."""
        with self._lock:
            self._sent += sent
            self._show()

    def answered(self) -> None:
        """See ``delivery.watcher.Progress``."""
        with self._lock:
            self._done += 1
            self._show()

    def ended(self, _delivered: Delivered | None) -> None:
        """See ``delivery.delivery.DeliveryProgress``."""
        self._pass.ended(self._task)

    def _show(self) -> None:
        """Update the display. That takes longer than sending a small PDU, and so is done ten times a second."""
        now = time.monotonic()
        if now - self._shown_at < 0.1:
            return
        self._shown_at = now
        rate = self._sent / max(now - self._began, 0.001)
        facts = f"{self._done}/{self._instances} instances, {byte_size(self._sent)} of {byte_size(self._total)}, {byte_size(rate)}/s"
        self._bar.update(self._task, completed=self._sent, facts=facts)
        self._pass.moved(self._task, min(self._sent / self._total, 1.0))
