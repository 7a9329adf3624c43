"""Progress displays on a terminal. Nothing is shown if standard error is not a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
def sending(session: Session) -> Iterator[Observer | None]:
    """Yield an observer that shows each delivery: instances, MB/s, time left."""
    if not session.live:
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    with _progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(30),
        TextColumn("{task.fields[done]}/{task.fields[instances]}", markup=False),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ) as bar:

        def began(claim: Claim, destination: Destination, instances: int, total_bytes: int) -> DeliveryProgress:
            name = f"batch {claim.batch_id} to {clean(destination.name)}"
            return _Line(bar, bar.add_task(name, total=max(total_bytes, 1), done=0, instances=instances))

        yield began


class _Line:
    """The line of one delivery in progress."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task
        self._lock = threading.Lock()
        self._done = 0
        self._unshown = 0

    def moved(self, sent: int) -> None:
        """See ``delivery.watcher.Progress``."""
        with self._lock:
            self._unshown += sent
            # Updating the display takes longer than sending a small PDU, so that it is updated once per megabyte.
            if self._unshown > 1_000_000:
                self._show()

    def answered(self) -> None:
        """See ``delivery.watcher.Progress``."""
        with self._lock:
            self._done += 1
            if self._done % 10 == 0:
                self._show()

    def ended(self, _delivered: Delivered) -> None:
        """See ``delivery.delivery.DeliveryProgress``."""
        with self._lock:
            self._show()
            self._bar.remove_task(self._task)

    def _show(self) -> None:
        self._bar.update(self._task, advance=self._unshown, done=self._done)
        self._unshown = 0
