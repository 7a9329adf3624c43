"""What passes between a delivery and a sender: items and a peer in, answers and the association's end out.

These are plain facts: ``outcomes`` says what they mean, ``queue`` writes them. Nothing here knows of a socket or a database.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS for a peer: paths and names only, never key material (PS3.15 B.9, BCP 195)."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    """The name the certificate must carry; None: the host that is dialled."""
    pin_sha256: str | None = None
    """SHA-256 of the peer's DER certificate in hex; where given it replaces the check of chain and name."""


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """User Identity Negotiation (PS3.7 D.3.3.7). ``secret_file`` holds the passcode or the JWT itself."""

    kind: int
    """1 username, 2 username and passcode, 5 JSON Web Token."""
    name: str | None = None
    secret_file: str | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom to dial and how. Times in seconds, lengths in bytes."""

    host: str
    port: int
    called_aet: str
    calling_aet: str
    connect_timeout: float = 10.0
    accept_timeout: float = 30.0
    answer_timeout: float = 60.0
    """From the last byte of a data set leaving until its C-STORE-RSP."""
    stall_timeout: float = 60.0
    """Without one byte accepted by the peer. Progress, not total time: a slow peer that moves is fine."""
    max_pdu: int = 65536
    """The longest P-DATA-TF variable field we take from the peer (PS3.8 D.1); 0 would mean no limit."""
    async_window: int = 1
    """C-STORE-RQ outstanding at once that we propose (PS3.7 D.3.3.3): 1 proposes nothing, 0 means unlimited."""
    priority: int = 0
    """Priority (0000,0700): 0 medium, 1 high, 2 low (PS3.7 9.3.1.1)."""
    tls: Tls | None = None
    user_identity: UserIdentity | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One instance to deliver, as it was ingested."""

    id: int
    """The instance's row; returned in every fact about it."""
    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    file_size: int
    file_mtime_ns: int
    dataset_offset: int
    """Where the data set begins in the file: after preamble and file meta information (PS3.10 7.1)."""
    content_sha256: bytes
    """SHA-256 of the file from ``dataset_offset`` to its end: the bytes a C-STORE carries."""


class Problem(StrEnum):
    """Why an item could not be offered to the peer at all. The values are instance outcomes or lead to one."""

    CHANGED = "CHANGED"
    """The file's size or digest is not what was ingested. Nothing of it was stored under its UID by us."""
    MISSING = "MISSING"
    UNREADABLE = "UNREADABLE"
    CONTEXT_REJECTED = "CONTEXT_REJECTED"
    """The peer accepted no presentation context that could carry it."""
    UNCONVERTIBLE = "UNCONVERTIBLE"
    """Only another transfer syntax was accepted and the file could not be converted to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE-RSP (PS3.7 9.3.1.2)."""

    item: Item
    status: int
    bytes_sent: int = 0
    """Data set bytes that went out for it."""
    error_comment: str | None = None
    """(0000,0902), untrusted text of the peer."""
    offending_elements: tuple[int, ...] = ()
    """(0000,0901)."""


@dataclass(frozen=True, slots=True)
class NotOffered:
    """The item was not offered: ``problem`` and a sentence about it."""

    item: Item
    problem: Problem
    sentence: str


class Next(StrEnum):
    """What the sender does next, as the watcher answers to each fact."""

    GO_ON = "go on"
    RELEASE = "release"
    """Offer nothing more; wait for the answers of what is outstanding, then release."""


class End(StrEnum):
    """How an association ended."""

    RELEASED = "RELEASED"
    """Everything was offered (or ``Next.RELEASE`` / ``stopping()`` was obeyed) and A-RELEASE done."""
    REJECTED = "REJECTED"
    """A-ASSOCIATE-RJ (PS3.8 9.3.4): see result, source, reason."""
    UNREACHABLE = "UNREACHABLE"
    """No TCP connection: refused, no route, no such name, time-out of connect."""
    TLS_FAILED = "TLS_FAILED"
    NO_CONTEXT = "NO_CONTEXT"
    """Accepted, but not one presentation context was."""
    ABORTED = "ABORTED"
    """A-ABORT by the peer (source 0 or 2, reason: PS3.8 9.3.8)."""
    CLOSED = "CLOSED"
    """Reset, or closed without A-ABORT."""
    TIMED_OUT = "TIMED_OUT"
    """One of the time-outs after the connection stood; the sentence says which. We sent A-ABORT."""
    PROTOCOL_ERROR = "PROTOCOL_ERROR"
    """The peer sent what PS3.7/PS3.8 does not allow. We sent A-ABORT."""
    FILE_CHANGED = "FILE_CHANGED"
    """We aborted in mid data set because the file is not what was ingested; reported as NotOffered(CHANGED)."""


@dataclass(frozen=True, slots=True)
class AssociationEnd:
    """How one association went."""

    end: End
    sentence: str = ""
    """One sentence for people; untrusted where it quotes the peer."""
    established: bool = False
    """A-ASSOCIATE-AC was received."""
    result: int | None = None
    source: int | None = None
    reason: int | None = None
    """A-ASSOCIATE-RJ's result/source/reason, or A-ABORT's source/reason, as numbers."""
    seconds: float = 0.0
    """From connect to the end of the association (monotonic)."""
    bytes_sent: int = 0
    """Data set bytes that left."""
    in_flight: tuple[Item, ...] = ()
    """Offered (wholly or partly) and never answered: their outcome is unknown."""
    window: int = 1
    """The asynchronous operations window that was granted; 0: unlimited."""
    peer_implementation: str = ""
    """Implementation version name (or class UID) the peer gave; untrusted."""


class Watcher(Protocol):
    """Receives facts on the sending thread. Any method may raise (``LostClaim`` above all): the sender then aborts the
    association and re-raises."""

    def answered(self, answer: Answer) -> Next:
        """Given a C-STORE-RSP, return whether to go on."""

    def not_offered(self, fact: NotOffered) -> Next:
        """Given an item that could not be offered, return whether to go on."""

    def progressed(self, sent: int) -> None:
        """``sent`` more bytes were accepted by the transport. Called often; cheap."""

    def stopping(self) -> bool:
        """Whether the pass has been asked to end: offer nothing more, finish what is in flight, release."""
