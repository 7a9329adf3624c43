"""Pass 2: complete studies -> READY."""

from __future__ import annotations

from collections.abc import Sequence

from examsend.config import Settings
from examsend.db import probe
from examsend.results import FinalizeResult


def run(
    settings: Settings,
    *,
    studies: Sequence[str] = (),
    batch_ids: Sequence[int] = (),
    by: str = "an operator",
    dry_run: bool = False,
) -> FinalizeResult:
    """Move complete PENDING batches to READY: those a rule calls complete, or exactly the ones an operator names.

    Raises UsageError for a study or batch that does not exist, Refused for a named batch that is not PENDING.
    """
    with probe.serving(settings) as (url, _):
        if not (studies or batch_ids) and probe.nothing_in(url, "PENDING"):
            return FinalizeResult((), (), dry_run)
        # Imported once something may be complete: an idle pass should not pay for it.
        from examsend import finalizing

        return finalizing.run(settings, studies, batch_ids, by, dry_run=dry_run)
