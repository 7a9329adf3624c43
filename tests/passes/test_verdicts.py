"""What archives answer about the instances of SENT batches, and the state of confirmation that follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from examsend.queue import commitment, confirmation
from tests.helpers import add, deliver, one, rows

NOW = {"confirm_after_seconds": 0.0, "confirm_backoff_seconds": 0.2, "confirm_backoff_max_seconds": 0.5}


class Sent:
    """One SENT batch, and what its archive is asked and says."""

    def __init__(
        self,
        settings: Settings,
        database: engine.Database,
        receiving: receiver.Receiver,
        drop: Path,
        n: int,
        **values: object,
    ) -> None:
        samples.ct_study(drop, n, size=16)
        self.database = database
        add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}", confirm="commitment", **{**NOW, **values})
        deliver(settings, drop)
        self.uids: list[str] = [
            r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY id")
        ]
        self.ids: list[int] = [r[0] for r in rows(database, "SELECT id FROM exam_batch_instances ORDER BY id")]
        self.cls: str = one(database, "SELECT sop_class_uid FROM exam_batch_instances LIMIT 1")

    def ask(self, transaction: str, aet: str = "ARCHIVE") -> None:
        """Ask about what is to be asked about."""

        def work(tx: engine.Connection) -> None:
            destination = one(self.database, "SELECT id FROM storage_backend_configs")
            claims = confirmation.claim(tx, destination, by="test", lease=60, limit=10)
            assert claims
            held = confirmation.held(tx, claims)
            wanted = confirmation.to_ask(tx, held)
            at = confirmation.mark_asked(tx, held, [0.0])
            commitment.add(
                tx,
                [commitment.Request(transaction, held[0].batch_id, tuple(i.id for i in wanted[held[0].batch_id]))],
                aet,
                at,
            )
            confirmation.hand_back(tx, held, [0.0], asked=True)

        self.database.run(work)

    def report(
        self, transaction: str, committed: list[str], failed: dict[str, int | None] | None = None, aet: str = "ARCHIVE"
    ) -> commitment.Taken:
        """Let the archive report."""
        said = dict.fromkeys(committed, self.cls)
        return self.database.run(lambda tx: commitment.take_report(tx, transaction, said, failed or {}, aet))

    @property
    def state(self) -> str:
        """Of the confirmation."""
        return str(one(self.database, "SELECT state FROM batch_confirmations WHERE batch_id = 1"))

    @property
    def verdicts(self) -> list[str | None]:
        """Of each instance, in order."""
        return [
            r[0]
            for r in rows(
                self.database,
                "SELECT k.verdict FROM exam_batch_instances i LEFT JOIN instance_confirmations k ON k.instance_id = i.id WHERE i.batch_id = 1 ORDER BY i.id",
            )
        ]


@pytest.fixture
def sent(settings: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path) -> Sent:
    return Sent(settings, database, receiving, tmp_path / "drop", 4)


def test_a_report_of_each_instance_confirms_the_batch(sent: Sent) -> None:
    assert sent.state == "UNCONFIRMED"
    sent.ask("1.2.3")
    assert sent.state == "ASKED"
    assert sent.report("1.2.3", sent.uids) == commitment.Taken(known=True, batch_id=1)
    assert sent.state == "CONFIRMED"
    assert sent.verdicts == ["CONFIRMED"] * 4
