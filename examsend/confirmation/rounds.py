"""One destination's round of a pass: claim what is due, put in line again what is absent, ask the archive, write what it answers."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from examsend.confirmation import by_query
from examsend.confirmation.by_commitment import Committing
from examsend.db.engine import Connection, Database
from examsend.dimse.ended import Ended
from examsend.dimse.query import StudyFound, StudyQueries
from examsend.errors import UsageError
from examsend.outcomes import back_off
from examsend.queue import addressee, commitment, confirmation, disputes, verdicts
from examsend.queue.confirmation import OFTEN, SELDOM, Claimed, Stored
from examsend.queue.destination import Destination, get_destination_by_id
from examsend.queue.disputes import Dispute
from examsend.queue.files import is_gone
from examsend.queue.verdicts import Answered
from examsend.states import Confirm, Verdict
from examsend.transfer import End, Peer

log = logging.getLogger("examsend.confirm")

GROUP = 20
"""Batches that are claimed, and asked about, together."""

QUERY_SECONDS = 10.0
"""How long the queries about one study may take."""


@dataclass(slots=True)
class Found:
    """What a pass has done at one destination."""

    destination: str = ""
    batches: list[int] = field(default_factory=list)
    """Ids of the batches that the archive was asked about."""
    instances: int = 0
    """Of these, instances."""
    disputes: list[Dispute] = field(default_factory=list)
    gave_up: list[int] = field(default_factory=list)
    """Ids of batches of which the time is over."""
    problem: str = ""
    """Why the archive could not be asked."""


def pause(destination: Destination, tries: int) -> float:
    """Return the seconds until a batch may be asked about again that was asked about ``tries`` times."""
    jitter = random.random()  # noqa: S311 (not a secret: it spreads the questions)
    found = back_off(destination.confirm_backoff_seconds, destination.confirm_backoff_max_seconds, tries, jitter)
    return max(found, SELDOM) if tries >= OFTEN else found


class _Kept:
    """A claim that is renewed while a slow archive answers."""

    def __init__(self, database: Database, claimed: Claimed, lease: float) -> None:
        self._database = database
        self._claimed = claimed
        self._lease = lease
        self._holds = True
        self._renewed = time.monotonic()

    def holds(self) -> bool:
        """Return whether the batch is claimed still. Nobody else asks about it then. Raises DatabaseUnavailable."""
        if time.monotonic() - self._renewed > self._lease / 3:
            self._renewed = time.monotonic()
            self._holds = self._database.run(lambda tx: confirmation.renew(tx, self._claimed, self._lease))
        return self._holds


@dataclass(slots=True)
class _Archives:
    """The associations of a round, opened when they are needed."""

    committing: Committing | None = None
    queries: StudyQueries | None = None


class Round:
    """Asks the archive of one destination about its batches that are due."""

    def __init__(
        self,
        database: Database,
        destination_id: int,
        *,
        by: str,
        lease: float,
        over: Callable[[], bool],
        ids: Sequence[int] | None,
    ) -> None:
        """``ids``: only these batches; None: whichever are due."""
        self._database = database
        self._id = destination_id
        self._by = by
        self._lease = lease
        self._over = over
        self._ids = ids
        self._archives = _Archives()
        self.found = Found()

    def run(self) -> Found:
        """Ask until nothing is due, the archive cannot be asked, or the pass is over. Raises DatabaseUnavailable."""
        destination, began = self._database.run(lambda tx: (get_destination_by_id(tx, self._id), confirmation.now(tx)))
        self.found.destination = destination.name
        try:
            self._ask(destination, began)
            if self._archives.committing is not None and not self.found.problem:
                with suppress(Ended):  # what it has not reported by now, it reports elsewhere, or is asked about again
                    self._archives.committing.wait()
                # What it has just disputed is put in line again.
                self._ask(destination, began)
        finally:
            if self._archives.committing is not None:
                self._archives.committing.close()
            if self._archives.queries is not None:
                self._archives.queries.close()
        return self.found

    def _ask(self, destination: Destination, began: datetime) -> None:
        while not (self._over() or self.found.problem):
            claims = self._database.run(
                lambda tx: confirmation.claim(
                    tx, self._id, by=self._by, lease=self._lease, limit=GROUP, began=began, ids=self._ids
                )
            )
            if not claims:
                return
            self._group(destination, claims)

    def _group(self, destination: Destination, claims: list[Claimed]) -> None:
        to_ask = self._database.run(lambda tx: self._begin(tx, destination, claims))
        left = [c for c in claims if to_ask.get(c.batch_id)]
        for method in (Confirm.COMMITMENT, Confirm.QUERY):
            chosen = [c for c in left if c.method is method]
            if not chosen:
                continue
            try:
                peer = self._database.run(lambda tx: _peer(tx, destination))
                if method is Confirm.COMMITMENT:
                    self._commit(destination, peer, chosen, to_ask)
                else:
                    self._query(destination, peer, chosen, to_ask)
            except Ended as ended:
                self._hold(destination, ended.sentence)
            except UsageError as error:
                self._hold(destination, str(error))
            if self.found.problem:
                # What was claimed and not asked about waits as long as the archive does.
                self._database.run(lambda tx: self._leave(tx, destination, left))
                return
        if left:
            self._database.run(lambda tx: confirmation.archive_works(tx, self._id), idempotent=True)

    def _begin(self, tx: Connection, destination: Destination, claims: list[Claimed]) -> dict[int, list[Stored]]:
        """Tell of what is absent, and give up what is over; return what is to be asked about of the others."""
        mine = confirmation.held(tx, claims)
        absent = disputes.untold(tx, [c.batch_id for c in mine])
        told = [
            d
            for c in mine
            if c.batch_id in absent
            and (d := disputes.tell(tx, c.batch_id, c.study_instance_uid, destination, is_gone)) is not None
        ]
        over = confirmation.give_up(tx, [c for c in mine if c.is_over])
        # What is absent makes a batch due before its pause is over. The rest of it is not asked about for that.
        disputed = {d.id for d in told}
        early = {}
        for c in mine:
            seconds = pause(destination, c.tries) if c.batch_id in disputed and not c.is_over and c.tries else 0.0
            if c.asked_ago is not None and c.asked_ago < seconds:
                early[c.batch_id] = seconds
        resting = [c for c in mine if c.batch_id in early]
        open_now = confirmation.to_ask(tx, resting)
        resting = [c for c in resting if c.batch_id in open_now]
        confirmation.hand_back(tx, resting, [early[c.batch_id] for c in resting], asked=True)
        left = [c for c in mine if not c.is_over and c not in resting]
        to_ask = confirmation.to_ask(tx, left)
        # Nothing is left to ask about: the state says the rest.
        verdicts.settle(tx, [c.batch_id for c in left if c.batch_id not in to_ask])
        known = {d.id for d in self.found.disputes}
        self.found.disputes += [d for d in told if d.id not in known]
        self.found.gave_up += [b for b in over if b not in self.found.gave_up]
        return to_ask

    # --- Storage Commitment ---

    def _commit(
        self, destination: Destination, peer: Peer, claims: list[Claimed], to_ask: Mapping[int, Sequence[Stored]]
    ) -> None:
        if self._archives.committing is None:
            made = Committing(self._database, peer)
            made.open()
            self._archives.committing = made
        asking = self._archives.committing
        for claimed in self._in_turn(claims):
            if self._over():
                break
            seconds = pause(destination, claimed.tries + 1)
            stored = to_ask[claimed.batch_id]
            requests = asking.requests(claimed.batch_id, stored, destination.confirm_instances)
            mark = partial(self._mark, claimed, seconds, requests=requests, aet=peer.called_aet, stored=stored)
            if self._database.run(mark) is None:
                continue
            self._count([claimed], to_ask)
            kept = _Kept(self._database, claimed, self._lease)
            try:
                for request in requests:
                    if self._over() or not kept.holds():
                        break  # what is on record and was not sent is asked about again after its pause
                    asking.ask(request, stored)
            finally:
                end = partial(self._end, claimed, seconds, asking.refused.get(claimed.batch_id), asking.take_statuses())
                self._database.run(end, idempotent=True)
            if asking.problem:
                self._hold(destination, asking.problem)
                break
        # Of what was not asked about, the claims end here.
        self._database.run(lambda tx: self._leave(tx, destination, claims))

    def _end(
        self, claimed: Claimed, seconds: float, refused: str | None, statuses: Mapping[str, int], tx: Connection
    ) -> None:
        commitment.answered(tx, statuses)
        held = confirmation.held(tx, [claimed])
        if held and refused is not None:
            confirmation.note_of(tx, claimed.batch_id, refused)
        confirmation.hand_back(tx, held, [seconds] * len(held), asked=True)

    # --- C-FIND ---

    def _query(
        self, destination: Destination, peer: Peer, claims: list[Claimed], to_ask: Mapping[int, Sequence[Stored]]
    ) -> None:
        if self._archives.queries is None:
            made = StudyQueries(peer, QUERY_SECONDS)
            self._archives.queries = made
            made.open()
        queries = self._archives.queries
        for claimed in self._in_turn(claims):
            if self._over():
                break
            seconds = pause(destination, claimed.tries + 1)
            at = self._database.run(partial(self._mark, claimed, seconds))
            if at is None:
                continue
            self._count([claimed], to_ask)
            found: StudyFound | None = None
            try:
                found = queries.find(claimed.study_instance_uid)
                if not queries.is_open:
                    found = None
                    raise _lost()
            finally:
                answer = partial(self._answer, destination, claimed, seconds, to_ask[claimed.batch_id], found, at)
                self._database.run(answer, idempotent=True)
        # Of what was not asked about, the claims end here.
        self._database.run(lambda tx: self._leave(tx, destination, claims))

    def _answer(
        self,
        destination: Destination,
        claimed: Claimed,
        seconds: float,
        asked: Sequence[Stored],
        found: StudyFound | None,
        at: datetime,
        tx: Connection,
    ) -> None:
        held = confirmation.held(tx, [claimed])
        confirmation.hand_back(tx, held, [seconds] * len(held), asked=True)
        if not held or found is None:
            return
        if found.count is None:
            confirmation.note_of(tx, claimed.batch_id, found.sentence)
            return
        stored = confirmation.stored_counts(tx, claimed.study_instance_uid, destination.id)
        verdicts.write(tx, claimed.batch_id, by_query.answers(found, asked, stored), requested_at=at)

    # --- both ---

    @staticmethod
    def _in_turn(claims: Sequence[Claimed]) -> list[Claimed]:
        """Return claims in the order in which they are asked about, each in transactions of its own: whoever has locked two batches
        could wait for one that has locked a batch between them. What was asked about less often comes first, so that a batch that
        ends each association keeps no other from being asked about."""
        return sorted(claims, key=lambda c: (c.tries, c.batch_id))

    def _mark(
        self,
        claimed: Claimed,
        seconds: float,
        tx: Connection,
        *,
        requests: Sequence[commitment.Request] = (),
        aet: str = "",
        stored: Sequence[Stored] = (),
    ) -> datetime | None:
        """Record that a batch is asked about now, and by which requests; None: its claim is lost."""
        mine = confirmation.held(tx, [claimed])
        if not mine:
            return None
        at = confirmation.mark_asked(tx, mine, [max(seconds, self._lease)])
        commitment.add(tx, requests, aet, at)
        verdicts.write(tx, claimed.batch_id, _unknown(stored), requested_at=at)
        return at

    def _count(self, claims: Sequence[Claimed], to_ask: Mapping[int, Sequence[Stored]]) -> None:
        self.found.batches += [c.batch_id for c in claims]
        self.found.instances += sum(len(to_ask[c.batch_id]) for c in claims)

    def _hold(self, destination: Destination, problem: str) -> None:
        """Do not ask the archive for a while."""
        self.found.problem = problem

        def work(tx: Connection) -> None:
            failures = confirmation.archive_failures(tx, destination.id)
            confirmation.hold_archive(tx, destination.id, problem, pause(destination, failures + 1))

        self._database.run(work)

    def _leave(self, tx: Connection, destination: Destination, claims: Sequence[Claimed]) -> None:
        held = confirmation.held(tx, claims)
        confirmation.hand_back(tx, held, [destination.confirm_backoff_seconds] * len(held), asked=False)


def _peer(tx: Connection, destination: Destination) -> Peer:
    """Return whom to ask. Raises UsageError where it is a destination that there is not any more."""
    if destination.confirm_to is None:
        return replace(destination.peer(), async_window=1)
    return replace(addressee.peer_of(tx, destination.confirm_to, destination.calling_aet), async_window=1)


def _unknown(stored: Sequence[Stored]) -> list[Answered]:
    """Return the answers about instances that cannot be asked about, in rows taken over from an older database."""
    reason = "its SOP Class is not on record, without which no commitment can be asked for: ask by query"
    return [Answered(one.id, Verdict.UNCONFIRMABLE, reason=reason) for one in stored if one.sop_class_uid is None]


def _lost() -> Ended:
    return Ended(End.CLOSED, "the association ended before the archive had answered")
