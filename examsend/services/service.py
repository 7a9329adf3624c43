"""What a service is. A port is composed of services, and each answers the requests of its own SOP Classes."""

from __future__ import annotations

from typing import Protocol

from examsend.dicom.uids import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.proposed import ProposedContext

C_ECHO_RQ, N_SET_RQ, N_CREATE_RQ = 0x0030, 0x0120, 0x0140
"""Command Fields (PS3.7 annex E.1)."""

UNCOMPRESSED: tuple[str, ...] = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
"""The transfer syntaxes in which messages without pixels are exchanged, the preferred one first."""


class Service(Protocol):
    """A service."""

    name: str
    """For log lines."""
    abstract_syntaxes: frozenset[str]
    """The SOP Classes, or meta SOP Classes, that it serves."""
    transfer_syntaxes: tuple[str, ...]
    """What it can read; the first one that the peer proposes too is chosen."""

    def takes(self, context: ProposedContext) -> bool:
        """Given a proposed presentation context of one of its abstract syntaxes, return whether the service can have the role
        that the peer leaves to it (PS3.7 D.3.3.4)."""

    def roles(self, context: ProposedContext) -> tuple[bool, bool] | None:
        """Given a context that it takes and for which the peer proposes roles, return which of them (SCU, SCP) the peer gets.

        None: its role selection is not answered, so that it is the SCU (PS3.7 D.3.3.4.2).
        """

    def handle(self, request: Request, calling_aet: str) -> Reply:
        """Given a request in a context of this service, and the calling AE title of its association, do what it asks, and
        return the answer."""


def peer_may_request(context: ProposedContext) -> bool:
    """Return whether a presentation context has the requestor of the association as SCU. That is so without a role selection."""
    return context.scu_role is not False
