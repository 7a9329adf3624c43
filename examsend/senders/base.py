"""The protocol every sender speaks: a peer and items in, facts out. Nothing here decides what a fact means.

A sender delivers a list of items over **one** association. It reports every fact the moment it is known through a
``Watcher``, and how the association ended as its return value. ``outcomes`` judges facts, ``batches`` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from examsend.transfer import AssociationEnd, Item, Peer, Watcher


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a sender can do; shown by ``destination show``, checked at ``destination add``."""

    tls: bool = True
    async_window: bool = False
    user_identity: bool = False
    live_progress: bool = True
    converts_byte_order: bool = False
    """Re-encodes native syntaxes to Implicit VR Little Endian where only that is accepted."""
    notes: tuple[str, ...] = field(default=())


class Sender(Protocol):
    """One association, one call."""

    name: str
    capabilities: Capabilities

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """Given a peer and items (at most 128 presentation contexts' worth, see ``dimse.contexts.partition``), deliver
        them in order over one association and return how it ended.

        Never raises for what the peer or a file does: that is a fact or an ``AssociationEnd``. Raises only what the
        watcher raised, after aborting the association. Always ends: every wait has a time-out.
        """
