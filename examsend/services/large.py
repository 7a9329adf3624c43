"""Large messages are read and stored one at a time: one of 8 MiB may name 350,000 instances, which take 200 MB meanwhile. Side by
side they would also slow each other down until none is stored in time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from examsend.dimse.inbound import Reply, Request
from examsend.dimse.refusal import RESOURCE_LIMITATION

BYTES = 1 << 20
"""Longest data set of a message that is read and stored beside others."""

SECONDS = 20.0
"""How long a large message waits for others, at most."""


class OneLarge:
    """The place of the large message that a service reads."""

    def __init__(self) -> None:
        self._place = threading.Lock()

    def answer(self, request: Request, small: Callable[[], Reply], large: Callable[[], Reply]) -> Reply:
        """Answer a request: by ``small``, or by ``large`` once no other large one is read."""
        if len(request.data or b"") <= BYTES:
            return small()
        if not self._place.acquire(timeout=SECONDS):
            return Reply(RESOURCE_LIMITATION, error_comment="too many large messages, try again later")
        try:
            return large()
        finally:
            self._place.release()
