"""The sender that uses the association of ``dimse.association``."""

from __future__ import annotations

from collections.abc import Sequence

from examsend.dimse import association
from examsend.senders.base import Capabilities
from examsend.states import SenderName
from examsend.transfer import AssociationEnd, Item, Peer, Watcher


class NativeSender:
    """See ``base.Sender``."""

    name = SenderName.NATIVE.value
    capabilities = Capabilities(async_window=True, user_identity=True, converts_byte_order=True)

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """See ``base.Sender.send``."""
        return association.run(peer, items, watcher)
