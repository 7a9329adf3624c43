"""End the hold of batches, so that they are due now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.queue import requests
from examsend.queue.requests import Answers


@dataclass(frozen=True, slots=True)
class UnholdResult(Answers):
    """The result for each batch that was named."""


def run(settings: Settings, batch_ids: Sequence[int], *, by: str = "an operator") -> UnholdResult:
    """End the hold of batches, so that they are due now. Raises UsageError."""

    def work(tx: Connection) -> UnholdResult:
        answers = requests.unhold(tx, batch_ids, by=by)
        return UnholdResult(answers.done, answers.refused)

    with access.opened(settings, create=False) as database:
        return database.run(work)
