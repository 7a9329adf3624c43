"""Modality Performed Procedure Step (PS3.4 F.7): a modality says which images a step has made.

Stored are the state of the step, the studies that it was scheduled for, and the series and instances that it lists: UIDs only.
Each N-SET that has a Performed Series Sequence replaces the list of the one before.

Only the attributes that are used are checked. Real modalities leave out or fill in others as they like, and a modality whose
first message is refused often sends no second one.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Protocol, TypeVar

from examsend.db.engine import Connection
from examsend.dicom.uids import MODALITY_PERFORMED_PROCEDURE_STEP, is_uid
from examsend.dimse.inbound import SUCCESS, Reply, Request
from examsend.dimse.proposed import ProposedContext
from examsend.dimse.refusal import (
    INVALID_VALUE,
    PROCESSING_FAILURE,
    RESOURCE_LIMITATION,
    Wrong,
    empty,
    missing,
    of_another_class,
    without_operation,
)
from examsend.errors import ConfigError, DatabaseUnavailable
from examsend.queue import announcements
from examsend.services import step
from examsend.services.large import OneLarge
from examsend.services.service import N_CREATE_RQ, N_SET_RQ, UNCOMPRESSED, peer_may_request
from examsend.services.step import Told
from examsend.states import ExpectationState

log = logging.getLogger("examsend.listen")

DUPLICATE, NO_SUCH_INSTANCE, INVALID_INSTANCE = 0x0111, 0x0112, 0x0117
"""Statuses of PS3.7 annex C."""

NO_LONGER_UPDATED = 0xA710
"""Error ID of an N-SET on a step that is in a final state (PS3.4 F.7.2.2.4)."""

_OPEN = ExpectationState.IN_PROGRESS

_MANY = 10_000
"""A list of more UIDs is given more time than other messages have."""

_INSTANCES_A_SECOND = 2_000
"""How fast the database must store a long list. Measured on a busy machine: 7,000."""

_LONGEST_SECONDS = 30.0
"""How long it may take for the longest list. Modalities wait that long for an answer, most of them longer."""

T = TypeVar("T")


class Storage(Protocol):
    """Where steps are stored."""

    def run(self, work: Callable[[Connection], T], *, wait: float | None = None) -> T:
        """Run ``work`` in one transaction, within ``wait`` seconds (None: what is usual). Raises DatabaseUnavailable,
        ConfigError."""


class PerformedSteps:
    """Stores steps. An answer of success is given only after the commit."""

    name: str = "MPPS"
    abstract_syntaxes: frozenset[str] = frozenset({MODALITY_PERFORMED_PROCEDURE_STEP})
    transfer_syntaxes: tuple[str, ...] = UNCOMPRESSED

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._large = OneLarge()

    def takes(self, context: ProposedContext) -> bool:
        """See ``Service``."""
        return peer_may_request(context)

    def roles(self, context: ProposedContext) -> None:
        """See ``Service``."""

    def handle(self, request: Request, calling_aet: str) -> Reply:  # noqa: ARG002
        """See ``Service``."""
        act = {N_CREATE_RQ: self._create, N_SET_RQ: self._set}.get(request.command)
        if act is None:
            return without_operation()
        # A missing class is that of the presentation context: nothing else can be meant.
        if request.sop_class_uid not in {None, MODALITY_PERFORMED_PROCEDURE_STEP}:
            return of_another_class()
        return self._large.answer(request, lambda: self._answer(act, request), lambda: self._answer(act, request))

    def _answer(self, act: Callable[[Request], Reply], request: Request) -> Reply:
        try:
            return act(request)
        except Wrong as wrong:
            offending = () if wrong.tag is None else (wrong.tag,)
            return Reply(wrong.status, error_comment=wrong.comment, offending=offending)
        except (DatabaseUnavailable, ConfigError):
            # Also where it is unknown whether the transaction was committed: a modality that sends the message again learns
            # which (0111, or 0110 with A710). ``Storage`` has logged why.
            return Reply(RESOURCE_LIMITATION, error_comment="the database is not available, try again later")

    def _create(self, request: Request) -> Reply:
        # The SCP makes the UID where the SCU gives none (PS3.7 10.1.5.1.4).
        uid = request.sop_instance_uid or f"2.25.{uuid.uuid4().int}"
        if not is_uid(uid):
            return Reply(INVALID_INSTANCE, error_comment="Affected SOP Instance UID is not a UID")
        told = step.read(request.data, request.transfer_syntax)
        if told.state is None:
            raise missing(step.STATUS)
        if told.state is not _OPEN:
            raise Wrong(INVALID_VALUE, step.STATUS, "a step is created IN PROGRESS")
        if told.studies is None:
            raise missing(step.SCHEDULED)
        if not told.studies:
            raise empty(step.SCHEDULED)
        studies, series = told.studies, told.series or []
        if not self._storage.run(lambda tx: announcements.create_step(tx, uid, studies, series), wait=_wait(told)):
            return Reply(DUPLICATE, error_comment="there is a step with this SOP Instance UID")
        log.info("MPPS: step %s is %s: %s", uid, _OPEN, _counted(told))
        return Reply(SUCCESS, sop_instance_uid=uid)

    def _set(self, request: Request) -> Reply:
        uid = request.sop_instance_uid or ""
        if not is_uid(uid):
            return Reply(INVALID_INSTANCE, error_comment="Requested SOP Instance UID is not a UID")
        told = step.read(request.data, request.transfer_syntax)

        def change(tx: Connection) -> Reply:
            found = announcements.lock_step(tx, uid)
            if found is None:
                return Reply(NO_SUCH_INSTANCE, error_comment="there is no step with this SOP Instance UID")
            if found.state is not _OPEN:
                comment = "Performed Procedure Step Object may no longer be updated"
                return Reply(PROCESSING_FAILURE, error_comment=comment, error_id=NO_LONGER_UPDATED)
            announcements.change_step(tx, found, told.state or found.state, told.studies or [], told.series)
            return Reply(SUCCESS)

        reply = self._storage.run(change, wait=_wait(told))
        if reply.status == SUCCESS:
            log.info("MPPS: step %s is %s: %s", uid, told.state or _OPEN, _counted(told))
        return reply


def _wait(told: Told) -> float | None:
    """Return how long it may take to store what is told, in seconds; None: as long as any message."""
    named = len(told.studies or ()) + sum(1 + len(s.instances) for s in told.series or ())
    return min(named / _INSTANCES_A_SECOND, _LONGEST_SECONDS) if named > _MANY else None


def _counted(told: Told) -> str:
    if told.series is None:
        return "no list of series"
    return f"{len(told.series)} series, {sum(len(s.instances) for s in told.series)} instances"
