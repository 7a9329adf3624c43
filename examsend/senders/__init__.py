"""The senders that deliver the instances of a batch, by name. All implement ``base.Sender``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from examsend.states import SenderName

if TYPE_CHECKING:
    from examsend.senders.base import Sender

_SENDERS = {
    SenderName.NATIVE: ("examsend.senders.native", "NativeSender"),
    SenderName.PYNETDICOM: ("examsend.senders.pynetdicom", "PynetdicomSender"),
}
"""{name: (module, class)}. A module is imported only when its sender is used: importing pynetdicom is slow."""


def get(name: SenderName) -> Sender:
    """Given a name, return a new sender."""
    module, kind = _SENDERS[name]
    return cast("Sender", getattr(importlib.import_module(module), kind)())
