"""The sender that uses the association of ``dimse.association``."""

from __future__ import annotations

from collections.abc import Sequence

from examsend.config.settings import Settings
from examsend.dimse import association
from examsend.senders.base import Capabilities
from examsend.states import SenderName, Transcode
from examsend.transfer import AssociationEnd, Item, Peer, Watcher


class NativeSender:
    """See ``base.Sender``."""

    name = SenderName.NATIVE.value
    capabilities = Capabilities(
        async_window=True, user_identity_kinds=(1, 2, 5), converts_byte_order=True, transcodes=True
    )

    def __init__(self, settings: Settings) -> None:
        pass

    def check(self, peer: Peer) -> None:
        """See ``base.Sender.check``: it needs no program, and only to convert pixel data an extra."""
        if peer.transcode is not Transcode.NEVER:
            from examsend.dimse.conversion import check_plugins

            check_plugins(peer)

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """See ``base.Sender.send``."""
        return association.run(peer, items, watcher)
