"""What encodes and decodes the PDUs and messages of an association. A sender may bring its own; ``NATIVE`` is examsend's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from examsend.dimse import messages, negotiation
from examsend.dimse.contexts import Proposal
from examsend.dimse.negotiation import Accepted
from examsend.transfer import Item, Peer


class ResponseReader(Protocol):
    """Assembles the responses of one association."""

    def feed(self, body: bytes) -> list[messages.Response]:
        """Given a P-DATA-TF's body, return the responses it completes, in order. Raises Ended where it is not valid."""


@dataclass(frozen=True, slots=True)
class Codec:
    """The functions by which an association encodes and decodes."""

    longest_accept: int
    """Longest A-ASSOCIATE-AC that is decoded, in bytes."""
    associate_request: Callable[[Peer, Sequence[Proposal]], bytes]
    """Return an A-ASSOCIATE-RQ. Raises ConfigError where a setting cannot be encoded or a secret not be read."""
    accepted: Callable[[bytes, Peer, Sequence[Proposal]], Accepted]
    """Given an A-ASSOCIATE-AC's body, return what it grants. Raises Ended where it is not valid."""
    store_pieces: Callable[[int, Item, int, int, int], list[bytes]]
    """Given message id, item, priority, context id and the most bytes of a value, return the command set of a C-STORE-RQ as
    P-DATA-TFs."""
    data_encoder: Callable[[int, int], Callable[[memoryview, bool], Sequence[bytes | memoryview]]]
    """Given context id and the most bytes of a value, return a function that encodes a part of a data set as P-DATA-TFs. The part
    is as long as some whole values, except the last part."""
    response_reader: Callable[[], ResponseReader]
    """Return a new reader of C-STORE-RSPs."""


NATIVE = Codec(
    negotiation.MAX_ACCEPT,
    negotiation.request,
    negotiation.accepted,
    messages.store_pieces,
    messages.data_encoder,
    lambda: messages.ResponseReader(messages.C_STORE_RSP),
)
