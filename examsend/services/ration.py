"""Limits what a peer can make a log grow by."""

from __future__ import annotations

import threading
import time

_PERIOD = 60.0
_MOST_KEYS = 1000


class Ration:
    """Says whether a line may be logged: at most ``most`` a minute for each key, and for at most 1,000 keys a minute."""

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._used: dict[str, int] = {}

    def allows(self, key: str) -> bool:
        """Given what the line is about, return whether it may be logged, and count it if so."""
        with self._lock:
            now = time.monotonic()
            if now - self._began >= _PERIOD:
                self._began = now
                self._used.clear()
            used = self._used.get(key, 0)
            if used >= self._most or (not used and len(self._used) >= _MOST_KEYS):
                return False
            self._used[key] = used + 1
            return True
