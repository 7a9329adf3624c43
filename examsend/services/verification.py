"""Verification (PS3.4 annex A): answers C-ECHO."""

from __future__ import annotations

from examsend.dicom.uids import VERIFICATION
from examsend.dimse.inbound import SUCCESS, Reply, Request
from examsend.dimse.proposed import ProposedContext
from examsend.dimse.refusal import of_another_class, without_operation
from examsend.services.service import C_ECHO_RQ, UNCOMPRESSED, peer_may_request


class Verification:
    """Answers C-ECHO requests with success, whatever the state of the database."""

    name: str = "Verification"
    abstract_syntaxes: frozenset[str] = frozenset({VERIFICATION})
    transfer_syntaxes: tuple[str, ...] = UNCOMPRESSED

    def takes(self, context: ProposedContext) -> bool:
        """See ``Service``."""
        return peer_may_request(context)

    def roles(self, context: ProposedContext) -> None:
        """See ``Service``."""

    def handle(self, request: Request, calling_aet: str) -> Reply:  # noqa: ARG002
        """See ``Service``."""
        if request.command != C_ECHO_RQ:
            return without_operation()
        if request.sop_class_uid not in {None, VERIFICATION}:
            return of_another_class()
        return Reply(SUCCESS)
