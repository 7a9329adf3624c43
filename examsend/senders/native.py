"""The sender of our own: ``dimse.association`` behind the protocol of ``base``."""

from __future__ import annotations

from collections.abc import Sequence

from examsend.dimse import association
from examsend.senders.base import Capabilities
from examsend.transfer import AssociationEnd, Item, Peer, Watcher


class NativeSender:
    """See ``base.Sender``."""

    name = "native"
    capabilities = Capabilities(async_window=True, user_identity=True, converts_byte_order=True)

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """See ``base.Sender.send``."""
        return association.run(peer, items, watcher)
