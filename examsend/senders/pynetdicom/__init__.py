"""A sender whose PDUs and messages are encoded and decoded by pynetdicom; a second implementation to compare ``native`` with.

Only pynetdicom's codecs are used, in examsend's own association (``dimse.association``). pynetdicom's own is not: it reads as much
as a peer sends, waits as long as a peer keeps sending, and checks a pinned certificate only after it has sent a passcode.
"""

from __future__ import annotations

from collections.abc import Sequence

from examsend.config.settings import Settings
from examsend.dimse import association
from examsend.senders.base import Capabilities
from examsend.senders.pynetdicom.primitives import CODEC
from examsend.states import SenderName, Transcode
from examsend.transfer import AssociationEnd, Item, Peer, Watcher


class PynetdicomSender:
    """See ``base.Sender``."""

    name = SenderName.PYNETDICOM.value
    capabilities = Capabilities(
        user_identity_kinds=(1, 2, 5),
        converts_byte_order=True,
        transcodes=True,
        notes=("one C-STORE outstanding at a time; slower than native",),
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
        return association.run(peer, items, watcher, CODEC)
