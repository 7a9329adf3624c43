"""The interface of a sender, which sends instances to a peer over one association.

A sender reports each response and each instance that it cannot send to a ``transfer.Watcher`` as it happens, and returns how
the association ended. It decides nothing about the instances: ``outcomes`` does, and ``queue`` records it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from examsend.transfer import AssociationEnd, Item, Peer, Watcher


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The features that a sender supports, as ``destination show`` lists them."""

    tls: bool = True
    checks_certificate_name: bool = True
    """TLS: an association with a peer whose certificate has another name is refused."""
    pins_certificate: bool = True
    """TLS: a certificate can be pinned."""
    async_window: bool = False
    """More than one C-STORE outstanding (PS3.7 D.3.3.3)."""
    user_identity_kinds: tuple[int, ...] = ()
    """User Identity Negotiation (PS3.7 D.3.3.7)."""
    priority: bool = True
    """Priority (0000,0700) of C-STORE-RQs."""
    keeps_order: bool = True
    """Instances are sent in the order in which they are given."""
    live_progress: bool = True
    """``Watcher.progressed`` is called while a data set is sent."""
    stops_after_instance: bool = True
    """Told to stop, it sends no further instance and releases the association. If not, the association is cut."""
    keeps_bytes: bool = True
    """A data set that is not converted is sent byte for byte as it is in the file. If not, element by element."""
    converts_byte_order: bool = False
    """Re-encodes native transfer syntaxes to Implicit VR Little Endian where only that is accepted."""
    transcodes: bool = False
    """Converts compressed instances as ``Peer.transcode`` says."""
    most_contexts: int = 128
    """Presentation contexts that it can propose for instances over one association."""
    notes: tuple[str, ...] = field(default=())


class Sender(Protocol):
    """Sends instances to a peer. Keeps nothing from one call to the next."""

    name: str
    """The value of its ``states.SenderName``."""
    capabilities: Capabilities

    def check(self, peer: Peer) -> None:
        """Raise ConfigError where the sender cannot do what a setting of the peer asks for, or where its program is missing, is
        another one, or is too old. Takes at most 10 s."""

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """Given a peer and items, send them over one association and return how it ended.

        The items need at most ``capabilities.most_contexts`` presentation contexts; see ``dimse.contexts.partition``.

        Raises only what the watcher raised, after aborting the association: errors of the peer, of a file or of a setting are
        reported to the watcher or returned. Every wait has a time-out.
        """
