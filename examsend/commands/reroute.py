"""Let a batch of which nothing was stored go to another destination."""

from __future__ import annotations

from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.queue import reroute
from examsend.queue.reroute import Rerouted


@dataclass(frozen=True, slots=True)
class RerouteResult(Rerouted):
    """What became of the batch."""

    @property
    def needs_person(self) -> bool:
        """Whether a file is gone."""
        return self.gone > 0


def run(settings: Settings, batch_id: int, *, to: str, by: str = "an operator") -> RerouteResult:
    """Let the instances of a batch go to the destination ``to``. Raises UsageError, Refused; then nothing is changed."""

    def work(tx: Connection) -> RerouteResult:
        done = reroute.reroute(tx, batch_id, to, by=by)
        return RerouteResult(
            done.id,
            done.study_instance_uid,
            done.source,
            done.destination,
            done.instances,
            done.known,
            done.gone,
            done.batches,
        )

    with access.opened(settings, create=False) as database:
        return database.run(work)
