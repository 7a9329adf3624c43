"""The types that a delivery and a sender exchange: a peer and items in, answers and the end of the association out.

``outcomes`` decides what they mean, and ``queue`` records them. Nothing here uses a socket or a database.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from examsend.states import Transcode


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS settings for a peer (PS3.15 B.9, BCP 195): paths and names, no key material."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    """The host name in the peer's certificate; None: the host that is connected to."""
    pin_sha256: str | None = None
    """SHA-256 of the peer's certificate (DER), in hex. Where given, it is checked instead of chain and name."""
    check_name: bool = True
    """The name in the peer's certificate must be ``server_name``."""


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """User Identity Negotiation (PS3.7 D.3.3.7). ``secret_file`` holds the passcode or the JWT itself."""

    kind: int
    """User-Identity-Type: 1 username, 2 username and passcode, 5 JSON Web Token."""
    name: str | None = None
    secret_file: str | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """The application entity to send to, and how. Times in seconds, lengths in bytes."""

    host: str
    port: int
    called_aet: str
    calling_aet: str
    connect_timeout: float = 10.0
    """For the TCP connection and the TLS handshake together."""
    accept_timeout: float = 30.0
    """For the answer to A-ASSOCIATE-RQ."""
    answer_timeout: float = 60.0
    """From the last byte of a data set, or the last C-STORE-RSP, to the next C-STORE-RSP."""
    stall_timeout: float = 60.0
    """Longest time in which the peer accepts no byte. It restarts with each byte, so that a slow peer is no error."""
    max_pdu: int = 65536
    """Longest P-DATA-TF variable field that the peer may send (PS3.8 D.1); 0: no limit."""
    async_window: int = 1
    """C-STORE-RQs outstanding at once, as proposed to the peer (PS3.7 D.3.3.3). 1: nothing is proposed; 0: no limit."""
    priority: int = 0
    """Priority (0000,0700): 0 medium, 1 high, 2 low (PS3.7 9.3.1.1)."""
    tls: Tls | None = None
    user_identity: UserIdentity | None = None
    transcode: Transcode = Transcode.NEVER


@dataclass(frozen=True, slots=True)
class Item:
    """One instance to send, as it was ingested. Sizes and offsets in bytes."""

    id: int
    """Primary key of the instance."""
    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    file_size: int
    file_mtime_ns: int
    dataset_offset: int
    """Where the data set begins in the file, after preamble and file meta information (PS3.10 7.1)."""
    content_digest: bytes
    """BLAKE3 digest (32 bytes) of the file from ``dataset_offset`` to its end, which is what a C-STORE sends."""


class Problem(StrEnum):
    """Why an item was not sent. ``outcomes`` maps each to the outcome of the instance."""

    CHANGED = "CHANGED"
    """The size or digest of the file differs from what was ingested. The peer never received the whole data set."""
    MISSING = "MISSING"
    UNREADABLE = "UNREADABLE"
    CONTEXT_REJECTED = "CONTEXT_REJECTED"
    """The peer accepted no presentation context for its SOP class and transfer syntax."""
    UNCONVERTIBLE = "UNCONVERTIBLE"
    """The peer accepted only another transfer syntax, and the file could not be converted to it."""
    ODD_LENGTH = "ODD_LENGTH"
    """The data set has an odd length (PS3.5 7.1): receivers abort the association, or never answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE-RSP (PS3.7 9.3.1.2)."""

    item: Item
    status: int
    """Status (0000,0900)."""
    bytes_sent: int = 0
    """Length of the data set as sent."""
    error_comment: str | None = None
    """Error Comment (0000,0902); untrusted."""
    offending_elements: tuple[int, ...] = ()
    """Offending Element (0000,0901), as tags."""
    whole: bool = True
    """The peer can have had the whole data set when it answered."""


@dataclass(frozen=True, slots=True)
class NotOffered:
    """An item that was not sent: ``problem`` and a sentence about it."""

    item: Item
    problem: Problem
    sentence: str


class Next(StrEnum):
    """What the sender is to do next; returned by the watcher."""

    GO_ON = "go on"
    RELEASE = "release"
    """Send no further item; wait for outstanding responses, then release."""


class End(StrEnum):
    """How an association ended."""

    RELEASED = "RELEASED"
    """Every item was sent or reported, or the watcher asked to stop; then A-RELEASE (PS3.8 7.2)."""
    REJECTED = "REJECTED"
    """A-ASSOCIATE-RJ (PS3.8 9.3.4); see result, source and reason."""
    UNREACHABLE = "UNREACHABLE"
    """No TCP connection: refused, no route, unknown host name, time-out."""
    TLS_FAILED = "TLS_FAILED"
    """The TLS handshake failed, or a certificate was not accepted."""
    NO_CONTEXT = "NO_CONTEXT"
    """The association was accepted without any presentation context."""
    ABORTED = "ABORTED"
    """The peer sent A-ABORT (PS3.8 9.3.8); see source and reason."""
    CLOSED = "CLOSED"
    """The peer closed or reset the connection without A-ABORT, or released the association before it had answered."""
    TIMED_OUT = "TIMED_OUT"
    """A time-out expired after the connection was established; the sentence says which. The sender aborted."""
    PROTOCOL_ERROR = "PROTOCOL_ERROR"
    """The peer sent what PS3.7 or PS3.8 does not allow. The sender aborted."""
    STOPPED = "STOPPED"
    """The pass was asked to stop, and the sender aborted before every outstanding item was answered."""
    MISCONFIGURED = "MISCONFIGURED"
    """A setting, secret or certificate file of the destination cannot be used. Nothing was sent to the peer."""
    FILE_CHANGED = "FILE_CHANGED"
    """The sender aborted while it sent a data set, since the file could not be read or differs from what was ingested.

    The item was also reported as ``NotOffered``.
    """


@dataclass(frozen=True, slots=True)
class AssociationEnd:
    """How one association ended, and what was sent over it."""

    end: End
    sentence: str = ""
    """One sentence for the operator; untrusted where it quotes the peer."""
    established: bool = False
    """A-ASSOCIATE-AC was received."""
    result: int | None = None
    source: int | None = None
    reason: int | None = None
    """Result, source and reason of an A-ASSOCIATE-RJ, or source and reason of an A-ABORT, as numbers."""
    seconds: float = 0.0
    """From connect to the end of the association."""
    bytes_sent: int = 0
    """Data set bytes that were sent."""
    in_flight: tuple[Item, ...] = ()
    """Items that were sent, wholly or in part, and not answered: whether they are stored is unknown."""
    window: int = 1
    """C-STORE-RQs that the peer allowed to be outstanding at once (PS3.7 D.3.3.3); 0: no limit."""
    peer_implementation: str = ""
    """The peer's implementation version name, or class UID where it gives no name; untrusted."""


class Watcher(Protocol):
    """Receives what happens during an association, on the sending thread.

    Any method may raise, for instance ``LostClaim``. The sender then aborts the association and raises it again.
    """

    def answered(self, answer: Answer) -> Next:
        """Given a C-STORE-RSP, return whether to send further items."""

    def not_offered(self, fact: NotOffered) -> Next:
        """Given an item that was not sent, return whether to send further items."""

    def progressed(self, sent: int) -> None:
        """Given the number of bytes sent since the last call. Called often, so that it must be fast."""

    def stop_at(self) -> float | None:
        """Return None to go on. Once the pass is asked to stop, return the time (monotonic clock) by which it must be over.

        No further item is sent then. Outstanding ones are awaited until that time; then the association is aborted
        (``End.STOPPED``). A sender calls this on every turn of every loop, and at least once a second while it waits, as a
        sign that it observes its time-outs.
        """
