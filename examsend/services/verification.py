"""Verification (PS3.4 annex A): answers C-ECHO."""

from __future__ import annotations

from examsend.dicom.uids import VERIFICATION
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.proposed import ProposedContext
from examsend.services.service import (
    C_ECHO_RQ,
    NO_SUCH_CLASS,
    SUCCESS,
    UNCOMPRESSED,
    peer_may_request,
    without_operation,
)


class Verification:
    """Answers C-ECHO requests with success, whatever the state of the database."""

    name: str = "Verification"
    abstract_syntaxes: frozenset[str] = frozenset({VERIFICATION})
    transfer_syntaxes: tuple[str, ...] = UNCOMPRESSED

    def takes(self, context: ProposedContext) -> bool:
        """See ``Service``."""
        return peer_may_request(context)

    def handle(self, request: Request) -> Reply:
        """See ``Service``."""
        if request.command != C_ECHO_RQ:
            return without_operation()
        if request.sop_class_uid not in {None, VERIFICATION}:
            return Reply(NO_SUCH_CLASS, error_comment="not the SOP Class of the presentation context")
        return Reply(SUCCESS)
