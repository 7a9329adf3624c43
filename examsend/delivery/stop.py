"""When a pass ends: once it is asked to, or after its longest time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_ASKED_SECONDS = 5.0
"""How long instances in flight may take once the pass was asked to end. The process then ends within 10 s, on a busy machine too."""

FINISH_SECONDS = 300.0
"""How long instances in flight may take once the pass has run for its longest time. systemd's unit allows 600 s."""

_WRITE_SECONDS = 1.0
"""How much longer the database may take then."""


class Stop:
    """Tells everything in a pass that it is to end. Used by several threads."""

    def __init__(self, asked: Callable[[], bool] = lambda: False, max_runtime: float | None = None) -> None:
        """``asked`` returns whether a signal asked the pass to end. ``max_runtime``: seconds from now; None: no limit."""
        self._asked = asked
        self._asked_at: float | None = None
        self._over_at = None if max_runtime is None else time.monotonic() + max_runtime
        self._now_at: float | None = None

    def now(self) -> None:
        """End at once: instances in flight are not awaited."""
        self._now_at = time.monotonic()

    @property
    def is_now(self) -> bool:
        """Whether instances in flight are not awaited."""
        return self._now_at is not None

    def at(self) -> float | None:
        """Return None to go on; else the time (monotonic clock) by which instances in flight must be answered."""
        if self._now_at is not None:
            return self._now_at
        if self.asked() and self._asked_at is not None:
            return self._asked_at + _ASKED_SECONDS
        if self._over_at is not None and time.monotonic() > self._over_at:
            return self._over_at + FINISH_SECONDS
        return None

    def asked(self) -> bool:
        """Whether a signal asked the pass to end. What ends from then on says nothing about destinations and instances."""
        if self._asked_at is None and self._asked():
            self._asked_at = time.monotonic()
        return self._asked_at is not None or self.is_now

    def written_by(self) -> float:
        """Return the time (monotonic clock) by which everything must be written: no end while the pass goes on."""
        at = self.at()
        return math.inf if at is None else at + _WRITE_SECONDS

    def __call__(self) -> bool:
        """Whether the pass is to end: nothing new begins."""
        return self.at() is not None
