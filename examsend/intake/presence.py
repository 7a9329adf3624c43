"""The leases that a running ingest holds of the batches it has touched, renewed in the background."""

from __future__ import annotations

import threading
from functools import partial
from types import TracebackType
from typing import Self

from examsend.db.engine import Connection, Database
from examsend.queue import keep_open

LEASE = 30.0
"""Seconds that a lease lasts. An ingest that is killed delays its batches by so much."""

RENEWED = 10.0
"""Seconds between renewals."""

_GROUP = 1000
"""Batches in one transaction."""


class Presence:
    """Keeps batches from being quiet while the block runs, also while one file takes long to read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: set[int] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(5)
        for group in self._groups():
            try:
                self._database.run(partial(keep_open.let_go, batch_ids=group), wait=0, idempotent=True)
            except Exception:  # noqa: BLE001 (the leases end by themselves; what ended the block must be seen)
                return

    def hold(self, tx: Connection, batch_ids: set[int]) -> None:
        """Hold batches from the commit of a transaction on."""
        keep_open.renew(tx, batch_ids, LEASE)
        with self._lock:
            self._held |= batch_ids

    def _groups(self) -> list[list[int]]:
        with self._lock:
            ids = sorted(self._held)
        return [ids[at : at + _GROUP] for at in range(0, len(ids), _GROUP)]

    def _renew(self) -> None:
        while not self._over.wait(RENEWED):
            for group in self._groups():
                if self._over.is_set():
                    return
                try:
                    self._database.run(
                        partial(keep_open.renew, batch_ids=group, seconds=LEASE), wait=0, idempotent=True
                    )
                except Exception:  # noqa: BLE001 (what it cannot renew, nobody waits for longer than the lease)
                    break  # The ingest itself reports that the database is away.
