"""Instances of SENT batches that their archive says it does not have: put in line again once, then for a person."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy import Connection, text

from examsend.queue import events, sent_again, verdicts
from examsend.queue.destination import Destination
from examsend.queue.sent_again import Place
from examsend.queue.verdicts import UNTOLD
from examsend.states import UNSENT, Act, OnDisputed, Outcome, Rule, sql_list

# ``before``: it was sent again once, in this batch or an earlier one. ``under_way``: it, or a newer version of it, waits in
# another batch, or was stored since.
_ABSENT = text(f"""
    SELECT i.id, i.sop_instance_uid,
           EXISTS (SELECT 1 FROM exam_batch_instances e JOIN instance_confirmations r ON r.instance_id = e.id
                   WHERE e.destination_id = i.destination_id AND e.sop_instance_uid = i.sop_instance_uid
                     AND r.resent_at IS NOT NULL) AS before,
           (SELECT max(e.batch_id) FROM exam_batch_instances e JOIN exam_batches b ON b.id = e.batch_id
            WHERE e.destination_id = i.destination_id AND e.sop_instance_uid = i.sop_instance_uid AND e.id <> i.id
              AND (e.outcome IN ({sql_list(UNSENT)}) AND b.status IN ('PENDING', 'READY', 'SENDING')
                   OR e.outcome = '{Outcome.STORED}' AND e.stored_at > k.requested_at)) AS under_way
    FROM instance_confirmations k JOIN exam_batch_instances i ON i.id = k.instance_id
    JOIN batch_confirmations c ON c.batch_id = k.batch_id AND k.requested_at >= c.opened_at
    WHERE k.batch_id = :batch AND {UNTOLD}
    ORDER BY i.id
""")

_UIDS = text("""
    SELECT DISTINCT i.sop_instance_uid FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id
    WHERE b.study_instance_uid = :study AND b.destination_id = :destination
""")

# The PENDING batch of the study may have had instances of its own.
_GOES = text(f"""
    SELECT count(DISTINCT sop_instance_uid) FROM exam_batch_instances
    WHERE batch_id = :batch AND outcome = '{Outcome.WAITING}' AND sop_instance_uid = ANY(CAST(:uids AS text[]))
""")

_TOLD = text("""
    UPDATE instance_confirmations SET resent_at = clock_timestamp() WHERE instance_id = ANY(CAST(:ids AS bigint[]))
""")

_RESENT = text("""
    UPDATE batch_confirmations
    SET resent_batch_id = coalesce(:resent, resent_batch_id),
        gave_up_at = CASE WHEN :for_person THEN coalesce(gave_up_at, clock_timestamp()) ELSE gave_up_at END
    WHERE batch_id = :batch
""")


@dataclass(frozen=True, slots=True)
class Dispute:
    """A SENT batch of which the archive does not have an instance."""

    id: int
    study_instance_uid: str
    destination: str
    absent: int
    """Instances that are not there, and were not told of before."""
    resent: int
    """Those of them that are in line again."""
    resent_batch_id: int | None
    for_person: int
    """Those that nothing is done about by itself."""
    sentence: str


_UNTOLD = text(f"""
    SELECT DISTINCT k.batch_id FROM instance_confirmations k
    WHERE k.batch_id = ANY(CAST(:ids AS bigint[])) AND {UNTOLD}
""")


def untold(tx: Connection, batch_ids: Collection[int]) -> set[int]:
    """Return those of the batches of which an instance is absent that nobody was told of."""
    return set(tx.scalars(_UNTOLD, {"ids": list(batch_ids)}))


def tell(
    tx: Connection, batch_id: int, study: str, destination: Destination, gone: Callable[[str], bool]
) -> Dispute | None:
    """Put the absent instances of a batch in line again, each once, if the destination's setting says so, and record that they are
    told of; None: there is none. The caller has locked the row of the batch's confirmation."""
    absent = tx.execute(_ABSENT, {"batch": batch_id}).all()
    if not absent:
        return None
    resends = destination.on_disputed is OnDisputed.RESEND
    wanted = {row.sop_instance_uid for row in absent if resends and not row.before and row.under_way is None}
    again = None
    if wanted:
        there = set(tx.scalars(_UIDS, {"study": study, "destination": destination.id})) - wanted
        place = Place(study, destination.id, destination.name, sent=True, other=None, status=None)
        reason = f"the archive does not have what batch {batch_id} sent"
        again = sent_again.send_again(
            tx, place, there=there, gone=gone, by=events.BY_ITSELF, reason=reason, rule=Rule.DISPUTED
        )
    on_its_way = [row.under_way for row in absent if row.under_way is not None]
    batch = None if again is None else again.batch_id
    resent = 0 if batch is None else int(tx.execute(_GOES, {"batch": batch, "uids": sorted(wanted)}).scalar_one())
    batch = batch if resent else None
    tx.execute(_TOLD, {"ids": [row.id for row in absent]})
    for_person = len(absent) - resent - len(on_its_way)
    goes_in = batch if batch is not None else max(on_its_way, default=None)
    tx.execute(_RESENT, {"batch": batch_id, "resent": goes_in, "for_person": for_person > 0})
    sentence = (
        f"the archive does not have {len(absent)} {'instance' if len(absent) == 1 else 'instances'}: "
        + "; ".join(
            filter(
                None,
                (
                    f"{resent} sent again in batch {batch}" if resent else "",
                    f"{len(on_its_way)} on the way in batch {max(on_its_way)}" if on_its_way else "",
                    _for_person(for_person, resends=resends, gone=0 if again is None else again.gone),
                ),
            )
        )
    )
    events.record(tx, Act.DISPUTE, [batch_id], who=events.BY_ITSELF, why=sentence)
    verdicts.settle(tx, [batch_id])
    return Dispute(batch_id, study, destination.name, len(absent), resent, batch, for_person, sentence)


def _for_person(number: int, *, resends: bool, gone: int) -> str:
    if not number:
        return ""
    if not resends:
        return f"{number} for a person (on-disputed is report)"
    if gone:
        return f"{number} for a person: of {gone} no file is left"
    return f"{number} for a person: sent again once, and not there again"
