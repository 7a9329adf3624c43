"""The senders that deliver the instances of a batch, by name. All implement ``base.Sender``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from examsend.config.settings import Settings
from examsend.errors import ConfigError
from examsend.states import SenderName
from examsend.transfer import Peer

if TYPE_CHECKING:
    from examsend.senders.base import Sender

_SENDERS = {
    SenderName.NATIVE: ("examsend.senders.native", "NativeSender"),
    SenderName.PYNETDICOM: ("examsend.senders.pynetdicom", "PynetdicomSender"),
    SenderName.DCM4CHE: ("examsend.senders.dcm4che", "Dcm4cheSender"),
    SenderName.DCMTK: ("examsend.senders.dcmtk", "DcmtkSender"),
}
"""{name: (module, class)}. A module is imported only when its sender is used: importing pynetdicom is slow."""


def problem(name: SenderName, peer: Peer, settings: Settings) -> str | None:
    """Return why a sender cannot send to a peer from this host, as a sentence; None: it can. See ``base.Sender.check``."""
    try:
        get(name, settings).check(peer)
    except ConfigError as error:
        return str(error)
    return None


def get(name: SenderName, settings: Settings) -> Sender:
    """Given a name and the settings of the pass, return a new sender."""
    module, kind = _SENDERS[name]
    return cast("Sender", getattr(importlib.import_module(module), kind)(settings))
