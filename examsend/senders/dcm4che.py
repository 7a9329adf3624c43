"""The sender that runs dcm4che's storescu."""

from __future__ import annotations

from collections.abc import Sequence

from examsend.config.settings import Settings
from examsend.errors import ConfigError
from examsend.senders.base import Capabilities
from examsend.states import SenderName
from examsend.transfer import AssociationEnd, End, Item, Peer, Watcher


class Dcm4cheSender:
    """See ``base.Sender``."""

    name = SenderName.DCM4CHE.value
    capabilities = Capabilities(keeps_order=False, live_progress=False, stops_after_instance=False)

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check(self, peer: Peer) -> None:
        """See ``base.Sender.check``."""
        raise ConfigError("not there yet")

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """See ``base.Sender.send``."""
        return AssociationEnd(End.MISCONFIGURED, "not there yet")
