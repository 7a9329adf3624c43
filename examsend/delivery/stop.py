"""When a pass ends: once it is asked to, or after its longest time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_ASKED_SECONDS = 7.0
"""How long instances in flight may take once the pass was asked to end. The process then ends within 10 s."""

_FINISH_SECONDS = 300.0
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

    def at(self) -> float | None:
        """Return None to go on; else the time (monotonic clock) by which instances in flight must be answered."""
        now = time.monotonic()
        if self._asked_at is None and self._asked():
            self._asked_at = now
        if self._asked_at is not None:
            return self._asked_at + _ASKED_SECONDS
        if self._over_at is not None and now > self._over_at:
            return self._over_at + _FINISH_SECONDS
        return None

    def written_by(self) -> float:
        """Return the time (monotonic clock) by which everything must be written: no end while the pass goes on."""
        at = self.at()
        return math.inf if at is None else at + _WRITE_SECONDS

    def __call__(self) -> bool:
        """Whether the pass is to end: nothing new begins."""
        return self.at() is not None
