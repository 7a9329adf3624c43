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
    async_window: bool = False
    """More than one C-STORE outstanding (PS3.7 D.3.3.3)."""
    user_identity: bool = False
    """User Identity Negotiation (PS3.7 D.3.3.7)."""
    live_progress: bool = True
    """``Watcher.progressed`` is called while a data set is sent."""
    converts_byte_order: bool = False
    """Re-encodes native transfer syntaxes to Implicit VR Little Endian where only that is accepted."""
    notes: tuple[str, ...] = field(default=())


class Sender(Protocol):
    """Sends instances to a peer. Keeps nothing from one call to the next."""

    name: str
    """The value of its ``states.SenderName``."""
    capabilities: Capabilities

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """Given a peer and items, send them in order over one association and return how it ended.

        The items need at most 128 presentation contexts; see ``dimse.contexts.partition``.

        Raises only what the watcher raised, after aborting the association: errors of the peer or of a file are reported
        to the watcher or returned. Every wait has a time-out.
        """
