"""How a batch's instances reach a destination: several senders behind one protocol (``base``)."""

from __future__ import annotations
