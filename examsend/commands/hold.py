"""Hold batches until ``unhold``: no finalize completes them, and no send sends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.queue import requests
from examsend.queue.requests import Answers


@dataclass(frozen=True, slots=True)
class HoldResult(Answers):
    """The result for each batch that was named."""


def run(settings: Settings, batch_ids: Sequence[int], *, why: str, by: str = "an operator") -> HoldResult:
    """Hold batches until ``unhold``: neither finalize nor send takes them. Raises UsageError, also for a reason without words."""

    def work(tx: Connection) -> HoldResult:
        answers = requests.hold(tx, batch_ids, why=why, by=by)
        return HoldResult(answers.done, answers.refused)

    with access.opened(settings, create=False) as database:
        return database.run(work)
