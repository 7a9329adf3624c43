"""How a batch's instances reach a destination: several senders behind one protocol (``base``)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from examsend.errors import ConfigError

if TYPE_CHECKING:
    from examsend.senders.base import Sender

_KNOWN = {
    "native": ("examsend.senders.native", "NativeSender"),
    "pynetdicom": ("examsend.senders.pynetdicom", "PynetdicomSender"),
}

DEFAULT = "native"


def check(name: str) -> None:
    """Raise ConfigError where no sender of this name can work here."""
    if name not in _KNOWN:
        raise ConfigError(f"sender {name!r} is not part of this examsend; there is {', '.join(_KNOWN)}")


def get(name: str) -> Sender:
    """Given a name, return the sender. Raises ConfigError."""
    check(name)
    module, kind = _KNOWN[name]
    return cast("Sender", getattr(importlib.import_module(module), kind)())
