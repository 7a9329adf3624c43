"""Storage Commitment Push Model as its SCU (PS3.4 J.3.3): an archive that was asked reports over an association of its own."""

from __future__ import annotations

import logging

from examsend.confirmation import reports
from examsend.confirmation.reports import Take
from examsend.dicom.uids import STORAGE_COMMITMENT_PUSH_MODEL
from examsend.dimse.inbound import SUCCESS, Reply, Request
from examsend.dimse.proposed import ProposedContext
from examsend.services.large import OneLarge
from examsend.services.mpps import Storage
from examsend.services.service import UNCOMPRESSED

log = logging.getLogger("examsend.listen")

_LARGE_STORE_SECONDS = 30.0
"""How long the database may take for a large report: it names some 8,000 instances or more."""


class CommitmentReports:
    """Stores reports. An answer of success is given only after the commit."""

    name: str = "Storage Commitment"
    abstract_syntaxes: frozenset[str] = frozenset({STORAGE_COMMITMENT_PUSH_MODEL})
    transfer_syntaxes: tuple[str, ...] = UNCOMPRESSED

    def __init__(self, storage: Storage, take: Take) -> None:
        """``take`` stores a report in the database."""
        self._storage = storage
        self._take = take
        self._large = OneLarge()

    def takes(self, context: ProposedContext) -> bool:  # noqa: ARG002
        """See ``Service``. The archive is the SCP, but some propose both roles, and some none."""
        return True

    def roles(self, context: ProposedContext) -> tuple[bool, bool]:
        """See ``Service``. What is proposed is granted: an archive that gets less may take it for a refusal."""
        return context.scu_role is True, context.scp_role is True

    def handle(self, request: Request, calling_aet: str) -> Reply:
        """See ``Service``."""
        return self._large.answer(
            request,
            lambda: self._answer(request, calling_aet, None),
            lambda: self._answer(request, calling_aet, _LARGE_STORE_SECONDS),
        )

    def _answer(self, request: Request, calling_aet: str, wait: float | None) -> Reply:
        reply = reports.answer(lambda work: self._storage.run(work, wait=wait), self._take, request, calling_aet)
        if reply.status == SUCCESS:
            log.info("Storage Commitment: a report of %s is stored", calling_aet)
        return reply
