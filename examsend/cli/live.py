"""Progress on a terminal; nothing where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from examsend.report.terminal import clean

if TYPE_CHECKING:
    from examsend.cli.common import Session
    from examsend.delivery.delivery import Delivered, Observer
    from examsend.queue.batches import Claim
    from examsend.queue.destination import Destination


def _progress(*columns: Any) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(*columns, console=Console(stderr=True, markup=False, highlight=False), transient=True)


@contextmanager
def ingesting(session: Session) -> Iterator[Callable[[int, int, int], None]]:
    """A callback that shows files seen, new instances and their rate."""
    if not session.live:
        yield lambda _seen, _new, _octets: None
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

    began = time.monotonic()
    with _progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn()
    ) as bar:
        task = bar.add_task("looking", total=None)

        def show(seen: int, new: int, octets: int) -> None:
            rate = seen / max(time.monotonic() - began, 0.001)
            bar.update(task, description=f"{seen} files seen, {new} new, {octets / 1e6:.0f} MB ({rate:.0f} files/s)")

        yield show


@contextmanager
def sending(session: Session) -> Iterator[Observer | None]:
    """An observer that shows each association: instances, MB/s, time left."""
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
        yield _Live(bar)


class _Live:
    """One line for each association under way."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._tasks: dict[int, Any] = {}
        self._done: dict[int, int] = {}
        self._unshown: dict[int, int] = {}
        self._lock = threading.Lock()

    def began(self, claim: Claim, destination: Destination, instances: int, octets: int) -> None:
        with self._lock:
            self._done[claim.batch_id] = self._unshown[claim.batch_id] = 0
            self._tasks[claim.batch_id] = self._bar.add_task(
                f"batch {claim.batch_id} to {clean(destination.name)}",
                total=max(octets, 1),
                done=0,
                instances=instances,
            )

    def moved(self, claim: Claim, octets: int) -> None:
        # The display's own lock costs more than a small PDU: told in steps.
        self._unshown[claim.batch_id] += octets
        if self._unshown[claim.batch_id] > 1_000_000:
            self._flush(claim.batch_id)

    def answered(self, claim: Claim) -> None:
        self._done[claim.batch_id] += 1
        if self._done[claim.batch_id] % 10 == 0:
            self._flush(claim.batch_id)

    def ended(self, delivered: Delivered) -> None:
        with self._lock:
            self._flush(delivered.batch_id)
            self._bar.remove_task(self._tasks.pop(delivered.batch_id))

    def _flush(self, batch_id: int) -> None:
        self._bar.update(self._tasks[batch_id], advance=self._unshown[batch_id], done=self._done[batch_id])
        self._unshown[batch_id] = 0
