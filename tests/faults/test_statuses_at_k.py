"""A status that is not success, for the first, a middle or the last instance: what becomes of it, of the others and of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from examsend.commands import send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.states import BatchState
from tests.faults.checking import over, ran, sound
from tests.helpers import add, execute, one, prepare, rows, states
from tests.peers.scripted import scripted

COUNT = 5
POSITIONS = {"first": 1, "middle": 3, "last": COUNT}


@dataclass(frozen=True)
class Expected:
    """What becomes of an instance that is answered so."""

    once: str = "STORED"
    """Its outcome at the end if only its first answer is this status."""
    always: str = "FAILED"
    """Its outcome at the end if each answer to it is this status, and the others are stored."""
    answers: int = 2
    """How often it is offered at most, if each answer is this status."""


STATUSES: dict[int | None, Expected] = {
    0xA700: Expected(answers=6),
    0xA900: Expected(),
    0xC000: Expected(),
    0x0117: Expected(),
    0x0122: Expected(once="FAILED", answers=1),
    0x0124: Expected(answers=6),
    0x0111: Expected(always="STORED", answers=1),
    0xB000: Expected(always="STORED", answers=1),
    0xB006: Expected(always="STORED", answers=1),
    0xB007: Expected(always="STORED", answers=1),
    # The attempts of the batch are used up, and the instance could be tried again.
    0x5555: Expected(always="RETRY", answers=6),
    None: Expected(answers=6),
}
"""PS3.4 B.2.3 and PS3.7 annex C, as the design judges them. None: a response without a status, which is no answer."""

_names = [f"{s:04X}" if s is not None else "none" for s in STATUSES]


def _until_done(settings: Settings, database: engine.Database, drop: Path, most: int = 10) -> None:
    """Send until all is decided. Meanwhile other studies arrive, which show that the destination stores."""
    for n in range(most):
        send.run(settings)
        if BatchState.READY not in states(database):
            return
        assert "SENDING" not in states(database)
        samples.ct_study(drop / str(n), 1, size=8)
        prepare(settings, drop)
        over(database)
    pytest.fail("it is never decided")


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("status", STATUSES, ids=_names)
def test_the_outcome_is_the_one_of_the_table_and_the_others_are_stored(
    settings: Settings, database: engine.Database, tmp_path: Path, status: int | None, position: str, always: bool
) -> None:
    """Fails if a batch becomes SENT without a look at the outcomes of its instances."""
    samples.ct_study(tmp_path / "drop", COUNT, size=8)
    with scripted() as peer:
        add(settings, peer.address, max_attempts=3)
        prepare(settings, tmp_path / "drop")
        uid = one(
            database,
            "SELECT sop_instance_uid FROM exam_batch_instances WHERE instance_number = :n AND batch_id = 1",
            n=POSITIONS[position],
        )
        answered = []

        def answer(_k: int, offered: str) -> int | None:
            if offered != uid or (answered and not always):
                return 0x0000
            answered.append(offered)
            return status

        peer.script.status = answer
        _until_done(settings, database, tmp_path / "drop")
        expected = STATUSES[status]
        outcome = expected.always if always else expected.once
        found, code = rows(
            database, "SELECT outcome, dimse_status FROM exam_batch_instances WHERE sop_instance_uid = :uid", uid=uid
        )[0]
        assert found == outcome
        if always or expected.always == "STORED" or outcome == "FAILED":
            assert code == status
        first, *others_are = states(database)
        assert first == ("SENT" if outcome == "STORED" else "FAILED")
        assert set(others_are) <= {"SENT"}
        others = "SELECT DISTINCT outcome FROM exam_batch_instances WHERE sop_instance_uid <> :uid"
        assert [tuple(row) for row in rows(database, others, uid=uid)] == [("STORED",)]
        if always:
            assert peer.offered.count(uid) <= expected.answers
        sound(database, tmp_path / "drop", peers=[peer])


def test_a_failed_instance_can_be_retried_alone_once_the_receiver_takes_it(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", COUNT, size=8)
    with scripted() as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        peer.script.status = lambda k, _uid: 0x0122 if k == 3 else 0x0000
        said = ran(database_url, "send", code=1)
        assert "SOP class not supported" in said
        execute(database, "UPDATE storage_backend_configs SET held_until = NULL")
        before = len(peer.offered)
        ran(database_url, "retry", "1")
        ran(database_url, "send")
        assert peer.offered[before:] == [peer.offered[2]]
        sound(database, tmp_path / "drop", peers=[peer])
    assert states(database) == ["SENT"]
