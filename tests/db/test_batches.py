"""Every transition in every state: those in TRANSITIONS change the batch, all others leave its row unchanged."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from examsend.db import engine
from examsend.errors import ForbiddenTransition, LostClaim
from examsend.queue import batches
from examsend.queue.destination import due_destinations
from examsend.states import BatchState
from tests.helpers import execute, one, rows

ATTEMPT = uuid.uuid4()
CLAIM = batches.Claim(1, ATTEMPT, "1.2.3", 1, 1, 300.0)

_COLUMNS = {
    "PENDING": {},
    "READY": {"ready_at": "now()", "next_attempt_at": "now() - interval '1 s'"},
    "SENDING": {
        "ready_at": "now()",
        "attempt_id": f"'{ATTEMPT}'",
        "lease_expires_at": "now() + interval '1 h'",
        "attempt_count": "1",
    },
    "SENT": {"ready_at": "now()", "finished_at": "now()"},
    "FAILED": {"ready_at": "now()", "finished_at": "now()", "failure_code": "'X'"},
}


@pytest.fixture
def one_batch(database: engine.Database) -> engine.Database:
    """A database with one destination. ``insert_batch`` adds batch 1."""
    execute(
        database,
        "INSERT INTO storage_backend_configs (name, host, port, called_aet, sender) VALUES ('d', 'h', 104, 'A', 'native')",
    )
    return database


def insert_batch(database: engine.Database, state: str, *, outcome: str = "STORED", **columns: str) -> None:
    """Insert batch 1 in a state, with one instance."""
    values = {
        "study_instance_uid": "'1.2.3'",
        "destination_id": "1",
        "status": f"'{state}'",
        **_COLUMNS[state],
        **columns,
    }
    execute(database, f"INSERT INTO exam_batches ({', '.join(values)}) VALUES ({', '.join(values.values())})")
    stored = "now()" if outcome == "STORED" else "NULL"
    execute(
        database,
        "INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,"
        " transfer_syntax_uid, processed_filepath, file_size, file_mtime_ns, dataset_offset, content_digest, outcome, stored_at)"
        f" VALUES (1, 1, '1.9', '1.8', '1.7', '1.6', '/f', 10, 0, 0, sha256('x'), '{outcome}', {stored})",
    )


def _reopen(tx: Any) -> bool:
    return batches.open_pending(tx, [("1.2.3", 1)])["1.2.3", 1].reopened


def _finalize(tx: Any) -> bool:
    seen = tx.execute(text("SELECT last_instance_at FROM exam_batches WHERE id = 1")).scalar_one()
    return bool(batches.finalize(tx, [batches.Completed(1, seen, "QUIET")]))


def _claim(tx: Any) -> bool:
    return batches.claim(tx, 1, by="me", lease=300) is not None


def _put_back(tx: Any) -> bool:
    batches.put_back(tx, CLAIM, delay=0, uses_attempt=True, code="X", reason="x")
    return True


def _fail(tx: Any) -> bool:
    batches.fail(tx, CLAIM, code="X", reason="x")
    return True


def _take_back(tx: Any) -> bool:
    tx.execute(text("UPDATE storage_backend_configs SET enabled = false"))
    return bool(batches.take_back(tx))


def _cancel(tx: Any) -> bool:
    batches.cancel(tx, 1, code="CANCELLED", reason="not wanted")
    return True


def _retry(tx: Any) -> bool:
    batches.retry(tx, 1, reason="asked")
    return True


_CALLS = {
    "reopen": _reopen,
    "finalize": _finalize,
    "claim": _claim,
    "sent": lambda tx: batches.sent(tx, CLAIM),
    "put_back": _put_back,
    "fail": _fail,
    "give_up": lambda tx: bool(batches.give_up(tx)),
    "take_back": _take_back,
    "expire": lambda tx: bool(batches.expire(tx)),
    "cancel": _cancel,
    "retry": _retry,
}
# Column values that a transition requires besides the state.
_PRECONDITIONS = {
    "claim": {"SENDING": {"lease_expires_at": "now() - interval '1 s'"}},
    "give_up": {"SENDING": {"lease_expires_at": "now() - interval '1 s'", "attempt_count": "10"}},
    "take_back": {"SENDING": {"lease_expires_at": "now() - interval '1 s'"}},
    "expire": {"READY": {"ready_at": "now() - interval '6 days'"}},
}


@pytest.mark.parametrize("state", BatchState)
@pytest.mark.parametrize("transition", batches.TRANSITIONS)
def test_a_transition_changes_a_batch_only_in_the_states_that_transitions_allows(
    one_batch: engine.Database, transition: str, state: str
) -> None:
    insert_batch(one_batch, state, **_PRECONDITIONS.get(transition, {}).get(state, {}))
    before = rows(one_batch, "SELECT * FROM exam_batches WHERE id = 1")
    allowed, leads_to = batches.TRANSITIONS[transition]
    moved = False
    try:
        with one_batch.transaction() as tx:
            moved = _CALLS[transition](tx)
    except (LostClaim, ForbiddenTransition):
        moved = False
    assert bool(moved) == (state in allowed)
    if moved:
        assert one(one_batch, "SELECT status FROM exam_batches WHERE id = 1") == leads_to
    elif transition != "reopen" or state != "PENDING":  # ``open_pending`` sets last_instance_at of a PENDING batch
        assert rows(one_batch, "SELECT * FROM exam_batches WHERE id = 1") == before


@pytest.mark.parametrize("outcome", ["WAITING", "RETRY", "FAILED", "CONFLICT", "CHANGED", "MISSING"])
def test_sent_requires_every_instance_to_be_stored(one_batch: engine.Database, outcome: str) -> None:
    insert_batch(one_batch, "SENDING", outcome=outcome)
    with one_batch.transaction() as tx:
        assert batches.sent(tx, CLAIM) is None
    assert one(one_batch, "SELECT status FROM exam_batches") == "SENDING"


@pytest.mark.parametrize("act", ["sent", "put_back", "fail"])
def test_a_transition_by_a_sender_that_lost_its_claim_changes_nothing(one_batch: engine.Database, act: str) -> None:
    insert_batch(one_batch, "SENDING", attempt_id=f"'{uuid.uuid4()}'")
    with pytest.raises(LostClaim), one_batch.transaction() as tx:
        _CALLS[act](tx)
    assert one(one_batch, "SELECT status FROM exam_batches") == "SENDING"


def test_a_batch_with_a_newer_instance_is_not_finalized(one_batch: engine.Database) -> None:
    insert_batch(one_batch, "PENDING")
    with one_batch.transaction() as tx:
        seen = tx.execute(text("SELECT last_instance_at FROM exam_batches")).scalar_one()
    execute(one_batch, "UPDATE exam_batches SET last_instance_at = clock_timestamp()")
    with one_batch.transaction() as tx:
        assert batches.finalize(tx, [batches.Completed(1, seen, "QUIET")]) == set()


def test_a_batch_with_an_attempt_is_not_reopened_and_a_new_one_follows_it(one_batch: engine.Database) -> None:
    insert_batch(one_batch, "READY", attempt_count="1")
    with one_batch.transaction() as tx:
        home = batches.open_pending(tx, [("1.2.3", 1)])["1.2.3", 1]
    assert home.opened
    assert home.follows_batch_id == 1


def test_no_batch_is_claimed_beyond_the_association_limit(one_batch: engine.Database) -> None:
    insert_batch(one_batch, "SENDING")
    execute(
        one_batch,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, next_attempt_at)"
        " VALUES ('9.9', 1, 'READY', now(), now())",
    )
    with one_batch.transaction() as tx:
        assert batches.claim(tx, 1, by="me", lease=300) is None
    execute(one_batch, "UPDATE storage_backend_configs SET association_limit = 2")
    with one_batch.transaction() as tx:
        assert batches.claim(tx, 1, by="me", lease=300) is not None


def test_a_second_batch_of_a_study_waits_for_the_first(one_batch: engine.Database) -> None:
    insert_batch(one_batch, "SENDING")
    execute(one_batch, "UPDATE storage_backend_configs SET association_limit = 5")
    execute(
        one_batch,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, next_attempt_at)"
        " VALUES ('1.2.3', 1, 'READY', now(), now())",
    )
    with one_batch.transaction() as tx:
        assert batches.claim(tx, 1, by="me", lease=300) is None


@pytest.mark.parametrize("column", ["enabled = false", "held_until = now() + interval '1 h'"])
def test_a_disabled_or_held_destination_is_not_sent_to(one_batch: engine.Database, column: str) -> None:
    insert_batch(one_batch, "READY")
    execute(one_batch, f"UPDATE storage_backend_configs SET {column}")
    with one_batch.transaction() as tx:
        assert due_destinations(tx, None) == []
        assert batches.claim(tx, 1, by="me", lease=300) is None


def test_the_transitions_in_the_readme_match_the_code() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    drawn = {
        (match["name"], tuple(sorted(re.split(r"\s*\|\s*", match["states"]))), match["to"])
        for match in re.finditer(
            r"^\| `(?P<name>\w+)` \| (?P<states>[A-Z \\|]+?) \| (?P<to>[A-Z]+) \|",
            readme.replace("\\|", "|"),
            re.MULTILINE,
        )
    }
    assert drawn == {(n, tuple(sorted(states)), to) for n, (states, to) in batches.TRANSITIONS.items()}
