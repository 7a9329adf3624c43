"""What archives have confirmed of SENT batches, as `status`, `explain`, `status --check` and `metrics` tell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from examsend.commands import explain, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from examsend.queue import events
from examsend.queue.health import Level
from examsend.queue.views import BatchStatus
from examsend.report.text import rendered
from examsend.states import Act, BatchState, Confirmation
from tests.helpers import add, cli, deliver, execute, one, rows
from tests.passes.test_metrics import values
from tests.passes.world import World, file


class Sent:
    """A SENT study of four instances, of which the archive says what a test says."""

    def __init__(self, settings: Settings, database: engine.Database, study: str) -> None:
        self.settings = settings
        self.database = database
        self.study = study
        self.ids: list[int] = [r[0] for r in rows(database, "SELECT id FROM exam_batch_instances ORDER BY id")]
        self.uids: list[str] = [
            r[0] for r in rows(database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY id")
        ]

    def stands(self, **columns: object) -> None:
        """Set columns of the batch's confirmation; a text that begins with SQL: is an expression."""
        sets = ", ".join(
            f"{name} = {value[4:]}" if isinstance(value, str) and value.startswith("SQL:") else f"{name} = :{name}"
            for name, value in columns.items()
        )
        given = {k: v for k, v in columns.items() if not (isinstance(v, str) and v.startswith("SQL:"))}
        execute(self.database, f"UPDATE batch_confirmations SET {sets} WHERE batch_id = 1", **given)

    def answer(self, instance: int, verdict: str, proof: str | None = None, failure: int | None = None, reason: str | None = None,
               transaction: str | None = None) -> None:  # fmt: skip
        """Let the archive answer about one instance."""
        execute(
            self.database,
            "INSERT INTO instance_confirmations (instance_id, batch_id, verdict, proof, requested_at, confirmed_at, failure_reason,"
            " confirm_reason, transaction_uid) VALUES (:id, 1, :verdict, :proof, clock_timestamp(), CASE WHEN :verdict = 'CONFIRMED'"
            " THEN clock_timestamp() END, :failure, :reason, :transaction)",
            id=self.ids[instance],
            verdict=verdict,
            proof=proof,
            failure=failure,
            reason=reason,
            transaction=transaction,
        )

    def asked(self, transaction: str, ago: str = "10 s", *, reported: bool = False) -> None:
        """Record a request for Storage Commitment of all instances."""
        execute(
            self.database,
            "INSERT INTO commitment_requests (transaction_uid, batch_id, archive_aet, instance_ids, requested_at, status, reported_at,"
            f" reports) VALUES (:uid, 1, 'ARCHIVE', CAST(:ids AS bigint[]), clock_timestamp() - interval '{ago}', 0,"
            " CASE WHEN :reported THEN clock_timestamp() END, CASE WHEN :reported THEN 1 ELSE 0 END)",
            uid=transaction,
            ids=self.ids,
            reported=reported,
        )

    def dispute(self, **columns: object) -> None:
        """Two instances are confirmed, two are not there."""
        for n in range(2):
            self.answer(n, "CONFIRMED", "COMMITTED", transaction="1.2.3")
            self.answer(n + 2, "ABSENT", failure=0x0112, reason="0112 no such object instance", transaction="1.2.3")
        self.stands(
            state="DISPUTED",
            reason="the archive does not have 2 of 4 instances",
            **{"due_at": None, "asked_at": "SQL:clock_timestamp()", "disputed_at": "SQL:clock_timestamp()", **columns},
        )

    @property
    def batch(self) -> BatchStatus:
        """As status shows it."""
        [batch] = status.run(self.settings, batch_id=1).batches
        return batch

    @property
    def detail(self) -> str:
        """What status says of the batch alone."""
        return "\n".join(map(str, rendered(status.run(self.settings, batch_id=1))))

    @property
    def attention(self) -> list[tuple[int, str | None]]:
        """What status lists by itself."""
        return [(b.id, b.attention) for b in status.run(self.settings).batches]


@pytest.fixture
def sent(
    settings: Settings,
    database: engine.Database,
    receiving: receiver.Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Sent:
    monkeypatch.delenv("COLUMNS", raising=False)
    study = samples.new_uid()
    samples.ct_study(tmp_path / "drop", 4, size=16, study=study)
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}", confirm="commitment")
    deliver(settings, tmp_path / "drop")
    return Sent(settings, database, study)


# --- status -----------------------------------------------------------------------------------------------------------


def test_a_batch_that_nobody_asks_about_is_sent_and_no_more(settings: Settings, database: engine.Database) -> None:
    world = World(settings, database)
    world.arrive(file("1"))
    world.wait(100)
    world.finalize()
    world.send()
    [batch] = status.run(settings, batch_id=1).batches
    assert (batch.status, batch.confirmation, batch.confirmed, batch.disputed) == ("SENT", None, 0, 0)
    assert (batch.waiting_for, batch.waiting_code, status.run(settings, batch_id=1).proof) == (None, None, None)
    assert "batch 1: SENT\n" in "\n".join(map(str, rendered(status.run(settings, batch_id=1)))) + "\n"


def test_a_row_that_only_lets_sources_go_is_not_asked_about(sent: Sent) -> None:
    sent.stands(due_at=None, let_go_at="SQL:clock_timestamp()")
    assert (sent.batch.confirmation, sent.batch.waiting_for) == (None, None)
    assert status.run(sent.settings, batch_id=1).proof is None
    assert values(sent.settings, "examsend_confirmations")["pacs", "UNCONFIRMED"] == 0
    assert sent.attention == []


def test_before_the_archive_is_asked(sent: Sent) -> None:
    batch = sent.batch
    assert (batch.confirmation, batch.waiting_code, batch.attention) == (Confirmation.UNCONFIRMED, "UNCONFIRMED", None)
    assert batch.waiting_for is not None
    assert batch.waiting_for.startswith("its archive has not confirmed it yet: 0 of 4 confirmed; asked in ")
    sent.stands(due_at="SQL:clock_timestamp() - interval '1 s'")
    assert (
        sent.batch.waiting_for == "its archive has not confirmed it yet: 0 of 4 confirmed; asked with the next confirm"
    )
    assert "batch 1: SENT, unconfirmed: " in sent.detail
    assert "pacs was not asked yet (by Storage Commitment)" in sent.detail


def test_while_an_answer_is_awaited(sent: Sent) -> None:
    sent.asked("1.2.3", reported=True)
    for n in range(3):
        sent.answer(n, "CONFIRMED", "COMMITTED", transaction="1.2.3")
    sent.stands(
        state="ASKED", asked_at="SQL:clock_timestamp()", tries=2, due_at="SQL:clock_timestamp() + interval '245 s'"
    )
    batch = sent.batch
    assert (batch.confirmation, batch.confirmed, batch.waiting_code) == (Confirmation.ASKED, 3, "UNCONFIRMED")
    assert batch.waiting_for == "its archive has not confirmed it yet: 3 of 4 confirmed; asked again in 4 min"
    assert "3 of 4 confirmed (3 COMMITTED); 1 not answered about; pacs asked by Storage Commitment " in sent.detail
    assert ", 2 times" in sent.detail
    assert "1.2.3" in sent.detail
    [line] = [r for r in map(str, rendered(status.run(sent.settings, states=(BatchState.SENT,)))) if sent.study in r]
    assert "SENT, asked" in line
    execute(
        sent.database,
        "UPDATE storage_backend_configs SET confirm_failures = 3, confirm_problem = 'no answer',"
        " confirm_held_until = clock_timestamp() + interval '245 s'",
    )
    assert sent.batch.waiting_for == (
        "its archive has not confirmed it yet: 3 of 4 confirmed; it cannot be asked: no answer; tried again in 4 min"
    )


def test_a_confirmed_batch_has_nothing_to_say_but_when_and_by_which_proof(sent: Sent) -> None:
    for n in range(3):
        sent.answer(n, "CONFIRMED", "LISTED")
    sent.answer(3, "CONFIRMED", "COUNTED")
    sent.stands(
        state="CONFIRMED", method="query", due_at=None, confirmed_at="SQL:clock_timestamp()", asked_at="SQL:clock_timestamp()", tries=1
    )  # fmt: skip
    batch = sent.batch
    assert (batch.confirmation, batch.confirmed, batch.waiting_for, batch.waiting_code) == ("CONFIRMED", 4, None, None)
    assert batch.confirmed_at is not None
    assert "batch 1: SENT, confirmed\n" in sent.detail
    assert "4 of 4 confirmed since " in sent.detail
    assert "(1 COUNTED, 3 LISTED); pacs asked by query " in sent.detail
    assert sent.attention == []
    overview = status.run(sent.settings).overview
    assert overview is not None
    assert (overview.confirmed, overview.awaited, overview.disputed, overview.unconfirmed) == (1, 0, 0, 0)


def test_a_disputed_batch_that_is_sent_again_needs_nobody(sent: Sent) -> None:
    sent.dispute(resent_batch_id=12)
    batch = sent.batch
    assert (batch.confirmation, batch.confirmed, batch.disputed, batch.resent_batch_id) == ("DISPUTED", 2, 2, 12)
    assert batch.waiting_for == "the archive does not have 2 of 4 instances; sent again in batch 12"
    assert (batch.waiting_code, batch.attention, sent.attention) == ("DISPUTED", None, [])
    [pacs] = status.run(sent.settings).destinations
    assert (pacs.disputed, pacs.being_mended) == (0, 1)


def test_a_disputed_batch_for_a_person_is_listed_however_old_it_is(sent: Sent) -> None:
    sent.dispute(gave_up_at="SQL:clock_timestamp()")
    execute(sent.database, "UPDATE exam_batches SET finished_at = now() - interval '40 days'")
    assert sent.attention == [(1, "DISPUTED")]
    assert sent.batch.waiting_code == "DISPUTED"
    shown = "\n".join(map(str, rendered(status.run(sent.settings))))
    assert "SENT, disputed" in shown
    assert shown.count("1 disputed") == 2, "in the head, and in the line of the destination"
    detail = sent.detail
    assert "2 disputed since " in detail
    assert "for a person since " in detail
    assert "ABSENT" in detail
    assert "0112 no such object instance" in detail
    assert all(uid in detail for uid in sent.uids[2:])
    assert status.run(sent.settings, destination="pacs", limit=1).more == 0


def test_a_batch_that_is_unconfirmed_for_good_is_listed(sent: Sent) -> None:
    sent.stands(due_at=None, gave_up_at="SQL:clock_timestamp()", reason="not confirmed within 24.0 hours")
    batch = sent.batch
    assert (batch.confirmation, batch.waiting_code, batch.attention) == (
        "UNCONFIRMED",
        "UNCONFIRMED_FOR_GOOD",
        "UNCONFIRMED",
    )
    assert batch.waiting_for == "not confirmed within 24.0 hours"
    assert sent.attention == [(1, "UNCONFIRMED")]


def test_a_dispute_is_said_after_what_is_said_of_the_batch_already(sent: Sent) -> None:
    execute(sent.database, "UPDATE exam_batch_instances SET dimse_status = 45056 WHERE id = :id", id=sent.ids[0])
    assert sent.batch.waiting_for is not None
    assert sent.batch.waiting_for.startswith("1 stored with a warning: B000")
    assert "confirmed" not in sent.batch.waiting_for
    sent.dispute(gave_up_at="SQL:clock_timestamp()")
    assert sent.batch.waiting_for.endswith("; the archive does not have 2 of 4 instances")
    assert (sent.batch.waiting_code, sent.batch.attention) == ("WARNING", "DISPUTED")


def test_an_answer_from_before_somebody_asked_again_does_not_count(sent: Sent) -> None:
    sent.dispute()
    sent.stands(
        state="UNCONFIRMED", disputed_at=None, opened_at="SQL:clock_timestamp()", due_at="SQL:clock_timestamp()"
    )
    assert (sent.batch.confirmed, sent.batch.disputed) == (0, 0)
    proof = status.run(sent.settings, batch_id=1).proof
    assert proof is not None
    assert (proof.unanswered, proof.answers, proof.proofs) == (4, (), {})


def test_the_detail_has_groups_of_answers_and_the_last_requests_in_json_too(sent: Sent) -> None:
    for n in range(7):
        sent.asked(f"1.2.3.{n}", f"{100 - n} s", reported=n == 6)
    sent.dispute(gave_up_at="SQL:clock_timestamp()")
    shown: Any = json.loads(cli("status", "1", "--json", url=sent.settings.database_url).stdout)
    [batch] = shown["batches"]
    assert (batch["confirmation"], batch["confirmed"], batch["disputed"]) == ("DISPUTED", 2, 2)
    proof = shown["proof"]
    assert (proof["method"], proof["archive"], proof["proofs"]) == ("commitment", "pacs", {"COMMITTED": 2})
    assert [(a["verdict"], a["failure_reason"], a["count"], a["sop_instance_uids"]) for a in proof["answers"]] == [
        ("ABSENT", "0112", 2, sent.uids[2:])
    ]
    assert [r["transaction_uid"] for r in proof["requests"]] == [f"1.2.3.{n}" for n in (6, 5, 4, 3, 2)]
    assert (proof["request_count"], proof["requests"][0]["status"], proof["requests"][0]["instances"]) == (7, "0000", 4)
    assert proof["requests"][0]["reported_at"] is not None
    assert "... and 2 earlier requests" in sent.detail


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_tells_of_questions_answers_and_sources(sent: Sent) -> None:
    sent.asked("1.2.3", reported=True)
    sent.dispute(gave_up_at="SQL:clock_timestamp()")
    sent.database.run(lambda tx: events.record(tx, Act.CONFIRM, [1], who="eve"))
    sent.database.run(lambda tx: events.record(tx, Act.DISPUTE, [1], who=events.BY_ITSELF, why="2 are not there"))
    for n in range(2):
        execute(
            sent.database,
            "INSERT INTO source_removals (path, content_digest, file_size, file_inode, study_instance_uid, sop_instance_uid, proof,"
            " host, removed_at) VALUES (:path, sha256('x'), 1, 1, :study, :uid, 'pacs has committed to it', 'h1', clock_timestamp())",
            path=f"/drop/{n}.dcm",
            study=sent.study,
            uid=sent.uids[n],
        )
    told = [(e.event, e.sentence) for e in explain.run(sent.settings, sent.study).events]
    assert (
        "ASKED",
        "ARCHIVE asked to commit to 4 instances of batch 1: answered with 0000 (transaction 1.2.3)",
    ) in told
    assert ("REPORTED", "report on transaction 1.2.3 received") in told
    assert ("GAVE_UP", "batch 1 is disputed, and for a person: the archive does not have 2 of 4 instances") in told
    assert ("DISPUTE", "batch 1 is disputed: 2 are not there") in told
    assert any(s.startswith("confirmation of batch 1 asked for by eve on ") for _, s in told)
    assert ("LET_GO", "2 sources removed: /drop/0.dcm and 1 more; proof: pacs has committed to it") in told
    lines = [str(line) for line in rendered(explain.run(sent.settings, "1"))]
    assert lines[-1].startswith("now: batch 1 for pacs is SENT: the archive does not have 2 of 4 instances")


def test_explain_tells_of_a_query_and_of_the_confirmation(sent: Sent) -> None:
    for n in range(4):
        sent.answer(n, "CONFIRMED", "LISTED")
    sent.stands(
        state="CONFIRMED", method="query", due_at=None, confirmed_at="SQL:clock_timestamp()", asked_at="SQL:clock_timestamp()", tries=3
    )  # fmt: skip
    told = [(e.event, e.sentence, e.count) for e in explain.run(sent.settings, sent.study).events]
    assert ("ASKED", "pacs queried about batch 1 (the last of 3 times)", None) in told
    assert ("CONFIRMED", "batch 1 is confirmed by its archive: 4 LISTED", 4) in told


# --- status --check and metrics ---------------------------------------------------------------------------------------


def _check(sent: Sent, **values: object) -> tuple[Level, str]:
    execute(
        sent.database,
        "INSERT INTO command_passes SELECT c, 'h', now(), now(), 1, 0, 1, 0 FROM unnest(ARRAY['finalize', 'send']) c"
        " ON CONFLICT (command, host) DO UPDATE SET finished_at = excluded.finished_at",
    )
    result = status.check(sent.settings, **values)  # type: ignore[arg-type]
    return result.level, str(rendered(result)[0])


def test_a_dispute_for_a_person_is_critical(sent: Sent) -> None:
    sent.dispute(resent_batch_id=12)
    assert _check(sent)[0] is Level.OK
    sent.stands(gave_up_at="SQL:clock_timestamp()")
    level, line = _check(sent)
    assert (level, ": 1 disputed |" in line, " disputed=1;0;0;0 " in line) == (Level.CRITICAL, True, True)
    assert _check(sent, critical=["disputed=off"])[0] is Level.WARNING


def test_a_batch_that_is_unconfirmed_for_good_is_a_warning(sent: Sent) -> None:
    sent.stands(due_at=None, gave_up_at="SQL:clock_timestamp()")
    level, line = _check(sent)
    assert (level, ": 1 unconfirmed for good |" in line) == (Level.WARNING, True)


def test_a_batch_that_awaits_confirmation_for_long(sent: Sent) -> None:
    assert _check(sent)[0] is Level.OK
    sent.stands(opened_at="SQL:now() - interval '13 h'")
    level, line = _check(sent)
    assert (level, ": oldest awaits confirmation for 13.0 h |" in line) == (Level.WARNING, True)
    sent.stands(opened_at="SQL:now() - interval '40 h'", state="ASKED")
    assert _check(sent)[0] is Level.CRITICAL
    assert _check(sent, warning=["awaited=3d"], critical=["awaited=4d"])[0] is Level.OK


def test_an_archive_that_cannot_be_asked_for_long(sent: Sent) -> None:
    execute(sent.database, "UPDATE storage_backend_configs SET confirm_failures = 5, confirm_problem = 'not called so'")
    assert _check(sent)[0] is Level.OK
    execute(sent.database, "UPDATE storage_backend_configs SET confirm_failures = 6")
    level, line = _check(sent)
    assert (level, ": the archive of pacs could not be asked 6 times: not called so |" in line) == (Level.WARNING, True)
    assert "its archive cannot be asked: not called so" in "\n".join(map(str, rendered(status.run(sent.settings))))
    assert values(sent.settings, "examsend_archive_failures") == {("pacs",): 6}
    execute(sent.database, "UPDATE storage_backend_configs SET enabled = false")
    assert values(sent.settings, "examsend_archive_failures") == {("pacs",): 0}


def _measured(sent: Sent, name: str) -> dict[str, float]:
    return {state: value for (_, state), value in values(sent.settings, name).items()}


def test_the_metrics_tell_of_what_is_open_and_of_the_last_confirmation(sent: Sent) -> None:
    sent.stands(opened_at="SQL:now() - interval '100 s'")
    assert _measured(sent, "examsend_confirmations") == {"UNCONFIRMED": 1, "ASKED": 0, "DISPUTED": 0}
    ages = _measured(sent, "examsend_confirmation_age_seconds")
    assert 100 <= ages["UNCONFIRMED"] < 200
    assert (ages["ASKED"], ages["DISPUTED"]) == (0, 0)
    assert values(sent.settings, "examsend_last_confirmation_age_seconds") == {}
    sent.stands(state="ASKED")
    assert _measured(sent, "examsend_confirmations") == {"UNCONFIRMED": 0, "ASKED": 1, "DISPUTED": 0}
    sent.stands(state="UNCONFIRMED", due_at=None, gave_up_at="SQL:now()")
    assert _measured(sent, "examsend_confirmations") == {"UNCONFIRMED": 0, "ASKED": 0, "DISPUTED": 0}
    assert values(sent.settings, "examsend_unconfirmed_for_good") == {("pacs",): 1}
    sent.stands(state="DISPUTED", disputed_at="SQL:now()")
    assert _measured(sent, "examsend_confirmations") == {"UNCONFIRMED": 0, "ASKED": 0, "DISPUTED": 1}
    assert values(sent.settings, "examsend_disputed_for_person") == {("pacs",): 1}
    assert values(sent.settings, "examsend_unconfirmed_for_good") == {("pacs",): 0}
    sent.stands(state="CONFIRMED", disputed_at=None, gave_up_at=None, confirmed_at="SQL:now() - interval '50 s'")
    assert _measured(sent, "examsend_confirmations") == {"UNCONFIRMED": 0, "ASKED": 0, "DISPUTED": 0}
    assert 50 <= values(sent.settings, "examsend_last_confirmation_age_seconds")["pacs",] < 150


def test_the_figures_are_read_by_indexes(sent: Sent) -> None:
    execute(
        sent.database,
        "INSERT INTO exam_batches (study_instance_uid, destination_id, status, ready_at, finished_at) SELECT '1.2.' || n, 1, 'SENT',"
        " now(), now() - n * interval '1 min' FROM generate_series(1, 20000) n",
    )
    execute(
        sent.database,
        "INSERT INTO batch_confirmations (batch_id, destination_id, state, confirmed_at) SELECT id, 1, 'CONFIRMED', finished_at"
        " FROM exam_batches WHERE id > 1",
    )
    execute(sent.database, "ANALYZE batch_confirmations")
    from examsend.queue import unproven

    plan = "\n".join(r[0] for r in rows(sent.database, "EXPLAIN " + unproven._NUMBERS.text))
    assert "Seq Scan on batch_confirmations" not in plan
    assert "ix_batch_confirmations_open" in plan
    assert "ix_batch_confirmations_confirmed" in plan
    assert one(sent.database, "SELECT count(*) FROM batch_confirmations") == 20001
    assert _measured(sent, "examsend_confirmations")["UNCONFIRMED"] == 1
