"""Does one piece of work on a thread of its own, while the caller prepares the next one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

GRACE = 3.0
"""Seconds that the work in progress may take to its end after the caller was interrupted or has failed."""


class Behind(Generic[T]):
    """Works on one item at a time, in the order in which they are put.

    Each item is settled in the caller's thread, after the work on it has ended, whether it succeeded or not. An exception of the
    work is raised where the caller puts the next item, or finishes. When the block ends by another exception, the work in progress
    goes on to its end, but not much longer than ``GRACE``, and its item is settled.
    """

    def __init__(self, work: Callable[[T], None], settle: Callable[[T], None]) -> None:
        self._work = work
        self._settle = settle
        self._item: list[T] = []
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._over = math.inf

    def until(self) -> float:
        """Return the time, by the monotonic clock, beyond which the work shall not wait for anything."""
        return self._over

    def put(self, item: T) -> None:
        """Wait for the work on the item before, then begin with this one."""
        self.finish()
        self._ended.clear()
        self._item = [item]
        # A daemon: what hangs (a mount that is gone) must not keep the process from ending.
        threading.Thread(target=self._run, args=(item,), name="behind", daemon=True).start()

    def finish(self) -> None:
        """Wait for the work in progress. Raises what it has raised."""
        if not self._item:
            return
        self._ended.wait()
        self._close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _close(self) -> None:
        [item], self._item = self._item, []
        self._settle(item)

    def _run(self, item: T) -> None:
        try:
            self._work(item)
        except BaseException as error:  # noqa: BLE001 (it is raised in the caller's thread)
            self._error = error
        finally:
            self._ended.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif self._item:
            self._over = time.monotonic() + GRACE
            if self._ended.wait(GRACE + 1):
                self._close()
