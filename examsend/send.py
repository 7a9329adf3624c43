"""Pass 3: READY -> one association each -> SENT, back to READY, or FAILED."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from examsend.config import Settings
from examsend.db import probe
from examsend.results import SendResult

if TYPE_CHECKING:
    from examsend.delivery import Observer


def run(
    settings: Settings,
    *,
    limit: int | None = None,
    destination: str | None = None,
    parallel: int = 1,
    max_runtime: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    observer: Observer | None = None,
) -> SendResult:
    """Claim due batches one after another until none is due, ``parallel`` of them at a time, and send each over one
    association. Ends in good order when ``stop()`` says so or after ``max_runtime`` seconds.

    Raises UsageError for a destination that does not exist.
    """
    with probe.serving(settings) as (url, _):
        if destination is None and probe.nothing_in(url, "READY", "SENDING"):
            return SendResult((), (), (), stopped=stop(), seconds=0.0)
        # Imported once there may be something to send: an idle pass should not pay for it.
        from examsend import sending

        return sending.run(
            settings,
            limit=limit,
            destination=destination,
            parallel=parallel,
            max_runtime=max_runtime,
            stop=stop,
            observer=observer,
        )
