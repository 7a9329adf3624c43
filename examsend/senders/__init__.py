"""The senders that deliver the instances of a batch, by name. All implement ``base.Sender``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from examsend.config.settings import Settings
from examsend.states import SenderName

if TYPE_CHECKING:
    from examsend.senders.base import Sender

_SENDERS = {
    SenderName.NATIVE: ("examsend.senders.native", "NativeSender"),
    SenderName.PYNETDICOM: ("examsend.senders.pynetdicom", "PynetdicomSender"),
    SenderName.DCM4CHE: ("examsend.senders.dcm4che", "Dcm4cheSender"),
    SenderName.DCMTK: ("examsend.senders.dcmtk", "DcmtkSender"),
}
"""{name: (module, class)}. A module is imported only when its sender is used: importing pynetdicom is slow."""


def get(name: SenderName, settings: Settings) -> Sender:
    """Given a name and the settings of the pass, return a new sender."""
    module, kind = _SENDERS[name]
    return cast("Sender", getattr(importlib.import_module(module), kind)(settings))
