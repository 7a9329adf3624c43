"""The senders that deliver the instances of a batch, by name. All implement ``base.Sender``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from examsend.errors import ConfigError
from examsend.states import SenderName

if TYPE_CHECKING:
    from examsend.senders.base import Sender

_KNOWN = {
    SenderName.NATIVE: ("examsend.senders.native", "NativeSender"),
    SenderName.PYNETDICOM: ("examsend.senders.pynetdicom.sender", "PynetdicomSender"),
}
"""{name: (module, class)}. A module is imported only when its sender is used: importing pynetdicom is slow."""

DEFAULT = SenderName.NATIVE.value


def check(name: str) -> None:
    """Given a name, raise ConfigError unless there is a sender of this name."""
    if name not in _KNOWN:
        raise ConfigError(f"sender {name!r} is not part of this examsend; the senders are {', '.join(_KNOWN)}")


def get(name: str) -> Sender:
    """Given a name, return a new sender. Raises ConfigError where there is none of this name."""
    check(name)
    module, kind = _KNOWN[SenderName(name)]
    return cast("Sender", getattr(importlib.import_module(module), kind)())
