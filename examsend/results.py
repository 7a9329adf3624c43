"""What ``send`` and ``finalize`` did, apart from the work itself: an idle pass has a result and imports nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from examsend.completion import Waiting
    from examsend.delivery import Delivered


@dataclass(frozen=True, slots=True)
class Ready:
    """A batch that was found complete."""

    batch_id: int
    study_instance_uid: str
    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class FinalizeResult:
    """What a pass of ``finalize`` did, or (dry run) would do."""

    ready: tuple[Ready, ...]
    waiting: tuple[Waiting, ...]
    """Dry run only: why the others wait."""
    dry_run: bool


@dataclass(frozen=True, slots=True)
class SendResult:
    """What a pass of ``send`` did."""

    delivered: tuple[Delivered, ...]
    lost: tuple[int, ...]
    """Batches another sender took over in mid attempt."""
    expired: tuple[int, ...]
    """Batches that went FAILED without an attempt: too old, or their senders died too often."""
    stopped: bool
    seconds: float

    @property
    def failed(self) -> int:
        """Batches that went FAILED in this pass."""
        return len(self.expired) + sum(d.state == "FAILED" for d in self.delivered)

    @property
    def needs_person(self) -> bool:
        """Whether a batch went FAILED."""
        return self.failed > 0
