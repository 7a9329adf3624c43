"""Let batches go before all others of their destination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.queue import requests
from examsend.queue.requests import Answers


@dataclass(frozen=True, slots=True)
class PrioritizeResult(Answers):
    """The result for each batch that was named."""


def run(settings: Settings, batch_ids: Sequence[int], *, by: str = "an operator") -> PrioritizeResult:
    """Let batches go before all others of their destination. Raises UsageError."""

    def work(tx: Connection) -> PrioritizeResult:
        answers = requests.prioritize(tx, batch_ids, by=by)
        return PrioritizeResult(answers.done, answers.refused)

    with access.opened(settings, create=False) as database:
        return database.run(work)
