"""Stores the reports of archives, whichever association they come over, and answers them (PS3.4 J.3.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from examsend.db.engine import Connection
from examsend.dicom.uids import STORAGE_COMMITMENT_PUSH_MODEL
from examsend.dimse.inbound import N_EVENT_REPORT_RQ, SUCCESS, Reply, Request
from examsend.dimse.refusal import (
    INVALID_ARGUMENT,
    NO_SUCH_EVENT,
    NOT_AUTHORIZED,
    RESOURCE_LIMITATION,
    Wrong,
    of_another_class,
    without_operation,
)
from examsend.dimse.transaction import read_report
from examsend.errors import ConfigError, DatabaseUnavailable

_EVENTS = frozenset({1, 2, None})
"""Event Type IDs: all instances are committed; some are not (PS3.4 Table J.3-2). The sequences say it too, so that one that is
missing is of no interest."""


class Verdict(Protocol):
    """What became of a report."""

    @property
    def known(self) -> bool:
        """There is a transaction with this UID."""

    @property
    def right_aet(self) -> bool:
        """It comes from the archive that was asked. Only then it is stored; one that is stored already changes nothing."""


Take: TypeAlias = Callable[[Connection, str, dict[str, str], dict[str, int | None], str], Verdict]
"""Given a transaction, the Transaction UID, {SOP Instance UID: SOP Class UID} of what is committed, {SOP Instance UID: Failure
Reason} of what is not, and the AE title of the archive, store a report."""


def answer(
    run: Callable[[Callable[[Connection], Verdict]], Verdict], take: Take, request: Request, calling_aet: str
) -> Reply:
    """Given what runs a function in one transaction, an N-EVENT-REPORT-RQ and the AE title of the archive it comes from, store
    the report, and return the answer. An answer of success is given only after the commit."""
    if request.command != N_EVENT_REPORT_RQ:
        return without_operation()
    # A missing class is that of the presentation context: nothing else can be meant.
    if request.sop_class_uid not in {None, STORAGE_COMMITMENT_PUSH_MODEL}:
        return of_another_class()
    if request.event_type not in _EVENTS:
        return Reply(NO_SUCH_EVENT, error_comment="Event Type ID is neither 1 nor 2")
    try:
        report = read_report(request.data, request.transfer_syntax)
    except Wrong as wrong:
        # N-EVENT-REPORT has no list of attributes (PS3.7 Table 10.3-2): the comment names the one that is wrong.
        return Reply(wrong.status, error_comment=wrong.comment)
    try:
        verdict = run(lambda tx: take(tx, report.transaction_uid, report.committed, report.failed, calling_aet))
    except (DatabaseUnavailable, ConfigError):
        # Also where it is unknown whether the transaction was committed: an archive that reports again changes nothing.
        return Reply(RESOURCE_LIMITATION, error_comment="the database is not available, try again later")
    if not verdict.known:
        return Reply(INVALID_ARGUMENT, error_comment="there is no transaction with this Transaction UID")
    if not verdict.right_aet:
        return Reply(NOT_AUTHORIZED, error_comment="the transaction is that of another AE title")
    return Reply(SUCCESS)
