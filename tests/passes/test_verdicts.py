"""What archives answer about the instances of SENT batches, and the state of confirmation that follows."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import text

from examsend.commands import ingest, send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from examsend.queue import commitment, confirmation, disputes, retention, sent_again, verdicts
from examsend.queue.destination import get_destination, remove_destination
from examsend.queue.disputes import Dispute
from examsend.queue.files import is_gone
from examsend.states import Confirm
from tests.helpers import add, deliver, execute, one, prepare, rows

NOW = {"confirm_after_seconds": 0.0, "confirm_backoff_seconds": 0.2, "confirm_backoff_max_seconds": 0.5}


class Sent:
    """One SENT batch, and what its archive is asked and says."""

    def __init__(
        self, settings: Settings, database: engine.Database, receiving: receiver.Receiver, drop: Path, number: int
    ) -> None:
        samples.ct_study(drop, number, size=16)
        self.settings, self.database = settings, database
        add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}", confirm="commitment", **NOW)
        deliver(settings, drop)
        found = rows(database, "SELECT id, sop_instance_uid FROM exam_batch_instances ORDER BY id")
        self.ids: list[int] = [row[0] for row in found]
        self.uids: list[str] = [row[1] for row in found]
        self.cls: str = one(database, "SELECT sop_class_uid FROM exam_batch_instances LIMIT 1")

    def ask(self, transaction: str, batch: int = 1) -> None:
        """Ask about what is to be asked about of a batch."""
        execute(self.database, "UPDATE batch_confirmations SET due_at = clock_timestamp() WHERE batch_id = :b", b=batch)

        def work(tx: engine.Connection) -> None:
            claims = confirmation.claim(tx, 1, by="test", lease=60, limit=10, began=confirmation.now(tx), ids=[batch])
            [held] = confirmation.held(tx, claims)
            wanted = tuple(i.id for i in confirmation.to_ask(tx, [held])[batch])
            at = confirmation.mark_asked(tx, [held], [0.0])
            commitment.add(tx, [commitment.Request(transaction, batch, wanted)], "ARCHIVE", at)
            confirmation.hand_back(tx, [held], [3600.0], asked=True)

        self.database.run(work)

    def ask_nothing(self) -> None:
        """Nothing is due."""
        assert one(self.database, "SELECT count(*) FROM batch_confirmations WHERE due_at <= clock_timestamp()") == 0

    def report(
        self, transaction: str, committed: list[str], failed: dict[str, int | None] | None = None, aet: str = "ARCHIVE"
    ) -> commitment.Taken:
        """Let the archive report."""
        said = dict.fromkeys(committed, self.cls)
        return self.database.run(lambda tx: commitment.take_report(tx, transaction, said, failed or {}, aet))

    def tell(self, batch: int = 1) -> Dispute | None:
        """Do what is done about absent instances."""
        study = one(self.database, "SELECT study_instance_uid FROM exam_batches LIMIT 1")
        return self.database.run(lambda tx: disputes.tell(tx, batch, study, get_destination(tx, "pacs"), is_gone))

    @property
    def state(self) -> str:
        """Of the confirmation."""
        return str(one(self.database, "SELECT state FROM batch_confirmations WHERE batch_id = 1"))

    @property
    def verdicts(self) -> list[str | None]:
        """Of each instance, in order."""
        statement = """
            SELECT k.verdict FROM exam_batch_instances i LEFT JOIN instance_confirmations k ON k.instance_id = i.id
            WHERE i.batch_id = 1 ORDER BY i.id
        """
        return [row[0] for row in rows(self.database, statement)]


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


def test_a_report_that_comes_twice_or_after_a_later_one_changes_nothing(sent: Sent) -> None:
    sent.ask("1.2.3")
    sent.ask("1.2.4")
    sent.report("1.2.4", sent.uids)
    before = rows(sent.database, "SELECT * FROM instance_confirmations ORDER BY 1")
    sent.report("1.2.4", sent.uids)
    sent.report("1.2.3", [], dict.fromkeys(sent.uids, 0x0112))
    assert rows(sent.database, "SELECT * FROM instance_confirmations ORDER BY 1") == before
    assert sent.state == "CONFIRMED"
    assert [r[0] for r in rows(sent.database, "SELECT reports FROM commitment_requests ORDER BY transaction_uid")] == [
        1,
        2,
    ]


def test_what_a_report_leaves_out_is_asked_about_under_a_new_transaction_uid(sent: Sent) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[:2])
    assert (sent.state, sent.verdicts) == ("ASKED", ["CONFIRMED", "CONFIRMED", None, None])
    sent.ask("1.2.4")
    asked = dict(tuple(r) for r in rows(sent.database, "SELECT transaction_uid, instance_ids FROM commitment_requests"))
    assert asked == {"1.2.3": sent.ids, "1.2.4": sent.ids[2:]}
    # The first one still counts for what it was asked about.
    sent.report("1.2.3", [sent.uids[3]])
    sent.report("1.2.4", [sent.uids[2]])
    assert sent.state == "CONFIRMED"


def test_instances_that_were_not_asked_about_count_for_nothing(sent: Sent) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[:2])
    sent.ask("1.2.4")
    sent.report("1.2.4", ["1.9.9", *sent.uids], {"1.9.8": 0x0112})
    assert sent.state == "CONFIRMED"
    assert one(sent.database, "SELECT count(*) FROM instance_confirmations") == 4
    sent.ask_nothing()


def test_a_report_of_another_ae_title_or_transaction_is_not_taken(sent: Sent) -> None:
    sent.ask("1.2.3")
    assert not sent.report("1.2.9", sent.uids).known
    assert not sent.report("1.2.3", sent.uids, aet="OTHER").right_aet
    assert (sent.state, sent.verdicts) == ("ASKED", [None] * 4)
    assert one(sent.database, "SELECT reports FROM commitment_requests") == 0


@pytest.mark.parametrize(
    ("reason", "verdict", "state", "asked_again"),
    [
        (0x0110, "LATER", "ASKED", True),
        (0x0213, "LATER", "ASKED", True),
        (0x0131, "LATER", "ASKED", True),
        (0xA123, "LATER", "ASKED", True),
        (None, "LATER", "ASKED", True),
        (0x0112, "ABSENT", "DISPUTED", False),
        (0x0119, "CONFLICT", "DISPUTED", False),
        (0x0122, "UNCONFIRMABLE", "UNCONFIRMED", False),
    ],
)
def test_what_each_failure_reason_means(
    sent: Sent, reason: int | None, verdict: str, state: str, asked_again: bool
) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[1:], {sent.uids[0]: reason})
    assert (sent.state, sent.verdicts[0]) == (state, verdict)
    row = rows(sent.database, "SELECT due_at IS NOT NULL, gave_up_at IS NOT NULL, reason FROM batch_confirmations")[0]
    # One that is absent is due, so that it is put in line again.
    assert row[0] is (asked_again or verdict == "ABSENT")
    assert row[1] is (verdict in {"CONFLICT", "UNCONFIRMABLE"})
    assert "3 of 4 confirmed" in row[2]
    if asked_again:
        sent.ask("1.2.4")
        assert one(sent.database, "SELECT instance_ids FROM commitment_requests WHERE transaction_uid = '1.2.4'") == [
            sent.ids[0]
        ]
        sent.report("1.2.4", [sent.uids[0]])
        assert sent.state == "CONFIRMED"


def test_a_commitment_to_another_sop_class_is_no_commitment(sent: Sent) -> None:
    sent.ask("1.2.3")
    said = dict.fromkeys(sent.uids, sent.cls) | {sent.uids[0]: "1.2.840.10008.5.1.4.1.1.4"}
    sent.database.run(lambda tx: commitment.take_report(tx, "1.2.3", said, {}, "ARCHIVE"))
    assert (sent.state, sent.verdicts[0]) == ("DISPUTED", "CONFLICT")


def test_a_report_says_nothing_about_what_was_stored_after_it_was_asked_for(sent: Sent) -> None:
    sent.ask("1.2.3")
    execute(
        sent.database, "UPDATE exam_batch_instances SET stored_at = clock_timestamp() WHERE id = :id", id=sent.ids[0]
    )
    sent.report("1.2.3", sent.uids)
    assert (sent.state, sent.verdicts) == ("ASKED", [None, "CONFIRMED", "CONFIRMED", "CONFIRMED"])


def test_what_is_asked_again_needs_a_new_answer(sent: Sent) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids)
    sent.database.run(lambda tx: confirmation.ask_again(tx, [1], None))
    assert sent.state == "UNCONFIRMED"
    sent.report("1.2.3", sent.uids)  # said before somebody asked again
    assert sent.state == "UNCONFIRMED"
    sent.ask("1.2.4")
    sent.report("1.2.4", sent.uids[1:], {sent.uids[0]: 0x0112})
    assert (sent.state, sent.verdicts) == ("DISPUTED", ["ABSENT", "CONFIRMED", "CONFIRMED", "CONFIRMED"])


# --- disputes ---------------------------------------------------------------------------------------------------------


def test_what_is_absent_goes_again_once_and_then_waits_for_a_person(sent: Sent) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[2:], dict.fromkeys(sent.uids[:2], 0x0112))
    dispute = sent.tell()
    assert dispute is not None
    assert (dispute.absent, dispute.resent, dispute.resent_batch_id, dispute.for_person) == (2, 2, 2, 0)
    assert sent.tell() is None
    assert rows(sent.database, "SELECT status, follows_batch_id FROM exam_batches WHERE id = 2") == [("READY", 1)]
    again = {r[0] for r in rows(sent.database, "SELECT sop_instance_uid FROM exam_batch_instances WHERE batch_id = 2")}
    assert again == set(sent.uids[:2])
    send.run(sent.settings)
    sent.ask("1.2.4", batch=2)
    sent.report("1.2.4", [sent.uids[0]], {sent.uids[1]: 0x0112})
    dispute = sent.tell(2)
    assert dispute is not None
    assert (dispute.absent, dispute.resent, dispute.for_person) == (1, 0, 1)
    assert sent.verdicts[:2] == ["SENT_AGAIN", "ABSENT"]
    states = rows(
        sent.database, "SELECT state, gave_up_at IS NOT NULL, due_at FROM batch_confirmations ORDER BY batch_id"
    )
    assert [tuple(s) for s in states] == [("DISPUTED", False, None), ("DISPUTED", True, None)]
    # A person sends it again; then it is there.
    study = one(sent.database, "SELECT study_instance_uid FROM exam_batches LIMIT 1")
    place = sent_again.Place(study, 1, "pacs", True, None, None)
    there = set(sent.uids) - {sent.uids[1]}
    sent.database.run(
        lambda tx: sent_again.send_again(tx, place, there=there, gone=is_gone, by="a person", reason="by hand")
    )
    send.run(sent.settings)
    sent.ask("1.2.5", batch=3)
    sent.report("1.2.5", [sent.uids[1]])
    assert [r[0] for r in rows(sent.database, "SELECT state FROM batch_confirmations ORDER BY batch_id")] == [
        "CONFIRMED"
    ] * 3


def test_a_dispute_is_only_reported_where_that_is_asked_for(sent: Sent) -> None:
    execute(sent.database, "UPDATE storage_backend_configs SET on_disputed = 'report'")
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[1:], {sent.uids[0]: 0x0112})
    dispute = sent.tell()
    assert dispute is not None
    assert (dispute.resent, dispute.resent_batch_id, dispute.for_person) == (0, None, 1)
    assert one(sent.database, "SELECT count(*) FROM exam_batches") == 1
    assert one(sent.database, "SELECT gave_up_at IS NOT NULL AND due_at IS NULL FROM batch_confirmations")


def test_what_has_no_file_any_more_is_for_a_person(sent: Sent) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[1:], {sent.uids[0]: 0x0112})
    Path(
        one(sent.database, "SELECT processed_filepath FROM exam_batch_instances WHERE id = :id", id=sent.ids[0])
    ).unlink()
    dispute = sent.tell()
    assert dispute is not None
    assert (dispute.resent, dispute.for_person) == (0, 1)
    assert "no file is left" in dispute.sentence
    assert one(sent.database, "SELECT count(*) FROM exam_batches") == 1


def test_a_newer_version_that_is_under_way_is_not_sent_twice(sent: Sent, tmp_path: Path) -> None:
    path = Path(
        one(sent.database, "SELECT processed_filepath FROM exam_batch_instances WHERE id = :id", id=sent.ids[0])
    )
    data = dcmread(path)
    data.PatientComments = "corrected"
    data.save_as(path)
    prepare(sent.settings, path.parent)
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[1:], {sent.uids[0]: 0x0112})
    dispute = sent.tell()
    assert dispute is not None
    assert (dispute.resent, dispute.for_person) == (0, 0)
    assert "on the way in batch 2" in dispute.sentence
    assert one(sent.database, "SELECT count(*) FROM exam_batch_instances WHERE batch_id = 2") == 1


def test_what_was_given_up_stays_for_a_person_until_it_is_confirmed(sent: Sent) -> None:
    sent.ask("1.2.3")
    execute(
        sent.database,
        "UPDATE batch_confirmations SET opened_at = opened_at - interval '25 h', due_at = clock_timestamp()",
    )

    def give_up(tx: engine.Connection) -> None:
        claims = confirmation.claim(tx, 1, by="test", lease=60, limit=10, began=confirmation.now(tx))
        assert [c.is_over for c in claims] == [True]
        assert confirmation.give_up(tx, claims) == [1]

    sent.database.run(give_up)
    sent.report("1.2.3", sent.uids[:2])
    row = rows(sent.database, "SELECT state, gave_up_at IS NOT NULL, due_at FROM batch_confirmations")[0]
    assert tuple(row) == ("UNCONFIRMED", True, None)
    sent.report("1.2.3", sent.uids)
    assert tuple(rows(sent.database, "SELECT state, gave_up_at FROM batch_confirmations")[0]) == ("CONFIRMED", None)


def test_a_dispute_does_not_release_what_a_policy_holds_back(sent: Sent, tmp_path: Path) -> None:
    execute(sent.database, "UPDATE storage_backend_configs SET late_policy = 'never'")
    drop = tmp_path / "drop"
    study = one(sent.database, "SELECT study_instance_uid FROM exam_batches")
    late = dcmread(next(drop.rglob("*.dcm")))
    late.SOPInstanceUID = late.file_meta.MediaStorageSOPInstanceUID = samples.new_uid()
    late.save_as(drop / "late.dcm")
    ingest.run(sent.settings, [drop])
    assert one(sent.database, "SELECT outcome FROM exam_batch_instances WHERE batch_id = 2") == "NOT_SENT"
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[1:], {sent.uids[0]: 0x0112})
    dispute = sent.tell()
    assert dispute is not None
    assert (dispute.resent, dispute.resent_batch_id) == (1, 2)
    outcomes = rows(sent.database, "SELECT outcome FROM exam_batch_instances WHERE batch_id = 2 ORDER BY id")
    assert [row[0] for row in outcomes] == ["NOT_SENT", "WAITING"], study


def test_a_way_to_ask_that_an_operator_named_counts_once(sent: Sent) -> None:
    sent.database.run(lambda tx: confirmation.ask_again(tx, [1], Confirm.QUERY))
    assert one(sent.database, "SELECT method FROM batch_confirmations") == "query"
    sent.database.run(lambda tx: confirmation.ask_again(tx, [1], None))
    assert one(sent.database, "SELECT method FROM batch_confirmations") is None


def test_who_asks_again_about_what_is_still_absent_is_told_again(sent: Sent) -> None:
    execute(sent.database, "UPDATE storage_backend_configs SET on_disputed = 'report'")
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[1:], {sent.uids[0]: 0x0112})
    assert sent.tell() is not None
    execute(sent.database, "UPDATE storage_backend_configs SET on_disputed = 'resend'")
    sent.database.run(lambda tx: confirmation.ask_again(tx, [1], None))
    sent.ask("1.2.4")
    sent.report("1.2.4", sent.uids[1:], {sent.uids[0]: 0x0112})
    dispute = sent.tell()
    assert dispute is not None
    assert (dispute.absent, dispute.resent, dispute.for_person) == (1, 0, 1)
    assert one(sent.database, "SELECT gave_up_at IS NOT NULL AND due_at IS NULL FROM batch_confirmations")
    assert sent.tell() is None


def test_what_cannot_go_again_is_for_a_person_although_its_study_has_a_batch_that_waits(
    sent: Sent, tmp_path: Path
) -> None:
    found = one(sent.database, "SELECT processed_filepath FROM exam_batch_instances WHERE id = :id", id=sent.ids[0])
    data = dcmread(found)
    Path(found).unlink()
    for n in range(3):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{n}"
        data.save_as(tmp_path / "drop" / f"late{n}.dcm")
    ingest.run(sent.settings, [tmp_path / "drop"])
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids[1:], {sent.uids[0]: 0x0112})
    dispute = sent.tell()
    assert dispute is not None
    assert (dispute.absent, dispute.resent, dispute.resent_batch_id, dispute.for_person) == (1, 0, None, 1)
    assert one(sent.database, "SELECT gave_up_at IS NOT NULL FROM batch_confirmations")


def test_two_that_answer_about_an_earlier_and_a_later_batch_do_not_wait_for_each_other(sent: Sent) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", [], dict.fromkeys(sent.uids, 0x0112))
    assert sent.tell() is not None
    send.run(sent.settings)
    sent.ask("1.2.4", batch=2)

    def later() -> None:
        sent.report("1.2.4", sent.uids)

    def earlier(tx: engine.Connection) -> None:
        verdicts.lock(tx, [1])
        if not other.is_alive():
            other.start()
        time.sleep(0.5)
        tx.execute(text("SET LOCAL lock_timeout = '300ms'"))
        # As a report about the earlier batch, which is late.
        tx.execute(text("SELECT 1 FROM instance_confirmations WHERE batch_id = 1 FOR NO KEY UPDATE"))

    other = threading.Thread(target=later)
    sent.database.run(earlier)
    other.join(30)
    assert sent.verdicts == ["SENT_AGAIN"] * 4
    assert sent.state == "CONFIRMED"


def test_a_batch_that_somebody_asks_about_meanwhile_is_not_pruned(sent: Sent) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids)
    found = sent.database.run(
        lambda tx: retention.find(tx, age=0.0, cancelled=False, after=retention.Place(), limit=10)
    )
    assert found.ids == (1,)
    sent.database.run(lambda tx: confirmation.ask_again(tx, [1], None))
    sent.database.run(lambda tx: retention.delete(tx, (1,), age=0.0, cancelled=False))
    assert one(sent.database, "SELECT count(*) FROM exam_batches") == 1
    sent.ask("1.2.4")
    sent.report("1.2.4", sent.uids)
    # Nor is one whose answer is being written.
    with sent.database.engine.begin() as tx:
        verdicts.lock(tx, [1])
        sent.database.run(lambda other: retention.delete(other, (1,), age=0.0, cancelled=False))
    assert one(sent.database, "SELECT count(*) FROM exam_batches") == 1
    sent.database.run(lambda tx: retention.delete(tx, (1,), age=0.0, cancelled=False))
    assert one(sent.database, "SELECT count(*) FROM exam_batches") == 0


def test_a_report_of_what_is_pruned_meanwhile_is_of_no_known_transaction(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent.ask("1.2.3")
    sent.report("1.2.3", sent.uids)

    def lock(_tx: engine.Connection, _ids: object) -> None:
        sent.database.run(lambda tx: retention.delete(tx, (1,), age=0.0, cancelled=False))

    monkeypatch.setattr(verdicts, "lock", lock)
    assert not sent.report("1.2.3", sent.uids).known


def test_what_a_removed_destination_has_not_confirmed_is_pruned(sent: Sent) -> None:
    sent.ask("1.2.3")

    def find(tx: engine.Connection) -> tuple[int, ...]:
        return retention.find(tx, age=0.0, cancelled=False, after=retention.Place(), limit=10).ids

    assert sent.database.run(find) == ()
    sent.database.run(lambda tx: remove_destination(tx, "pacs"))
    assert sent.database.run(find) == (1,)
