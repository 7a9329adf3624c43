"""Instances whose SOP Instance UID was, or may have been, sent to their destination with other content.

Storage commitment, C-FIND and the answer to a C-STORE name a UID and not its content: an archive may answer success and keep
what it had before. So everything that another batch may have stored under a UID counts, whether or not an answer was recorded.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from examsend.queue.claim import Claim
from examsend.states import FILE_LOST, LEASE_LOST, NOT_COUNTED, RUNNING, UNSENT, Outcome, sql_list
from examsend.transfer import End

_OTHERS = f"""
    FROM exam_batch_instances i
    JOIN exam_batch_instances o ON o.destination_id = i.destination_id AND o.sop_instance_uid = i.sop_instance_uid
     AND o.batch_id <> i.batch_id AND o.content_digest IS DISTINCT FROM i.content_digest
    WHERE i.batch_id = :batch AND i.outcome IN ({sql_list(UNSENT)}) AND i.content_digest IS NOT NULL
"""
"""Unsent instances ``i`` of a batch with the rows ``o`` of other batches for the same UID and another content. Versions in
the same batch were never sent: an attempt ends the exchange of versions in a batch."""

_SUPERSEDE = text(f"""
    UPDATE exam_batch_instances r
    SET outcome = '{Outcome.SUPERSEDED}', error_comment = 'batch ' || newer.batch || ' stored a newer version'
    FROM (SELECT i.id, max(o.batch_id) AS batch {_OTHERS} AND o.id > i.id AND o.outcome = '{Outcome.STORED}'
          GROUP BY i.id) newer
    WHERE r.id = newer.id
""")

# The end of an association is written together with its last outcomes. So after a RELEASED one every instance that was offered has
# an outcome; after any other end, or none, what was in flight may be stored whatever its outcome is now. With one request
# outstanding, a file that changed was the only instance in flight, and the peer did not get the whole of it.
MAY_HAVE_STORED = f"""
    (a.result IN ('{RUNNING}', '{LEASE_LOST}')
     OR a.established AND a.result NOT IN ({sql_list((End.RELEASED, End.NO_CONTEXT))})
        AND NOT (a.result = '{End.FILE_CHANGED}' AND a.async_window = 1))
"""
"""Whether an association ``a`` may have stored an instance that has no answer."""

_MARK = text(f"""
    WITH pairs AS MATERIALIZED (
        SELECT i.id AS mine, o.id AS theirs {_OTHERS}
          AND (o.outcome = '{Outcome.STORED}' OR o.lost_in_flight > 0
               OR EXISTS (SELECT 1 FROM exam_batches b WHERE b.id = o.batch_id AND b.status = 'SENDING')
               OR EXISTS (SELECT 1 FROM send_attempts a WHERE a.batch_id = o.batch_id AND {MAY_HAVE_STORED}))
    )
    UPDATE exam_batch_instances r SET other_content_possible = true
    WHERE r.id IN (SELECT mine FROM pairs UNION SELECT theirs FROM pairs) AND NOT r.other_content_possible
""")

_SETTLE = text(f"""
    UPDATE exam_batch_instances i SET outcome = '{Outcome.SUPERSEDED}'
    WHERE i.batch_id = :batch AND i.outcome IN ({sql_list(FILE_LOST)})
      AND EXISTS (SELECT 1 FROM exam_batch_instances n
                  WHERE n.destination_id = i.destination_id AND n.sop_instance_uid = i.sop_instance_uid AND n.id > i.id
                    AND n.outcome NOT IN ({sql_list(NOT_COUNTED)}))
""")


def compare(tx: Connection, claim: Claim) -> int:
    """Before the instances of a claimed batch are sent, compare them with what other batches sent under the same UIDs.

    An unsent instance of which a newer version is STORED becomes SUPERSEDED, because it would be stored over that version. Where
    other content is or may be at the destination, both instances are marked ``other_content_possible``, for good. The
    earlier one too, before the later one is sent: a sender may die without recording anything.

    Return the number of superseded instances. It runs in the transaction of the claim, or under it (``Lease.write``).
    """
    superseded = tx.execute(_SUPERSEDE, {"batch": claim.batch_id}).rowcount
    tx.execute(_MARK, {"batch": claim.batch_id})
    return superseded


def settle(tx: Connection, batch_id: int) -> bool:
    """Supersede the instances of a batch whose files are changed or gone, and of which a newer version is registered; return
    whether there are any."""
    return tx.execute(_SETTLE, {"batch": batch_id}).rowcount > 0
