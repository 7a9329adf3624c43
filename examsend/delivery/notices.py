"""Tells of destinations that are down or back, and of batches that went FAILED: by a line, and by the programs of the settings.

A thread of its own tells while the lanes work, so that a long pass tells soon and sending is never delayed. What is told is
recorded first: each thing is told once, by one pass of one host. A pass that is killed in between has told nothing of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Self

from examsend.config.ages import span
from examsend.config.settings import Settings
from examsend.db.engine import Database
from examsend.delivery import hooks
from examsend.delivery.bug import report
from examsend.errors import DatabaseUnavailable, ExamsendError
from examsend.queue.down import FailedBatch, News, Told, any_to_tell, failed_batches, tell

log = logging.getLogger("examsend.send")

_LOOK_SECONDS = 15.0
"""How often to look for something to tell while the lanes work."""

_MOST = 100
"""Batches of which one run of ``on_failed`` is told. The others are counted."""

_AT_ONCE = 8
"""Programs that run at a time."""


class Notices:
    """What one pass tells. Used as a context manager around the lanes."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        only: int | None,
        failed: Callable[[], Iterable[int]],
        is_stopped: Callable[[], bool],
    ) -> None:
        """``only``: the id of the only destination to tell of. ``failed`` returns the ids of the batches that went FAILED in
        this pass by now. ``is_stopped``: the pass was asked to end."""
        self._database = database
        self._settings = settings
        self._only = only
        self._failed = failed
        self._is_stopped = is_stopped
        self._told: set[int] = set()
        """Ids of the FAILED batches that were told of."""
        self.bugs: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notices", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._over.set()
        if error is None or (isinstance(error, Exception) and not isinstance(error, DatabaseUnavailable)):
            self._thread.join()
            self._tell()

    def _work(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._tell()

    def _tell(self) -> None:
        """Tell of everything that is new. What goes wrong with it does not end the pass."""
        try:
            self._tell_news()
        except ExamsendError as error:
            log.warning("what is to be told of destinations and batches is left to the next pass: %s", error)
        except Exception as error:  # noqa: BLE001 (what is told is less important than what is sent)
            self.bugs.append(report(error, "telling of destinations and batches"))

    def _tell_news(self) -> None:
        news = self._news()
        failed = [n for n in self._failed() if n not in self._told]
        batches: list[FailedBatch] = []
        if failed and self._settings.on_failed:
            batches = self._database.run(lambda tx: failed_batches(tx, failed[:_MOST]))
        self._told.update(failed)
        for told in news:
            log.warning("%s", sentence(told))
        runs = [(hook, program, facts) for hook, program, facts in self._runs(news, batches, len(failed)) if program]
        if runs:
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="hook") as pool:
                for problem in pool.map(lambda run: self._run(*run), runs):
                    if problem is not None:
                        log.warning("warning: %s", problem)

    def _news(self) -> list[Told]:
        if not self._database.run(any_to_tell):
            return []
        return self._database.run(lambda tx: tell(tx, self._only))

    def _runs(
        self, news: list[Told], batches: list[FailedBatch], failed: int
    ) -> Iterable[tuple[str, tuple[str, ...], Mapping[str, object]]]:
        """Yield the programs to run: the setting, the program, its facts."""
        if batches:
            facts = {"batches": [{**asdict(b), "status": "FAILED"} for b in batches], "more": max(failed - _MOST, 0)}
            yield "on_failed", self._settings.on_failed, facts
        for told in news:
            if told.news is News.DOWN:
                yield "on_held", self._settings.on_held, _facts(told)
            elif told.news is News.BACK:
                yield "on_back", self._settings.on_back, _facts(told)

    def _run(self, hook: str, program: tuple[str, ...], facts: Mapping[str, object]) -> str | None:
        about = {"event": hook, "at": datetime.now(UTC).isoformat(), "host": self._settings.host_name}
        return hooks.run(hook, program, {**about, **facts}, self._settings.hook_timeout, self._is_stopped)


def _facts(told: Told) -> dict[str, object]:
    return {
        "destination": told.destination,
        "code": told.code,
        "reason": told.reason,
        "down_since": told.down_since.astimezone(UTC).isoformat(),
        "seconds": round(told.seconds, 1),
        "held_for": None if told.held_for is None else round(told.held_for, 1),
        "ready_batches": told.waiting,
    }


def sentence(told: Told) -> str:
    """Return what is told of a destination, for people."""
    since = told.down_since.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    if told.news is News.BACK:
        return f"destination {told.destination} is back: it was down for {span(told.seconds)}, since {since}"
    what = "is down" if told.news is News.DOWN else "is still down"
    waiting = f"{told.waiting} READY {'batch waits' if told.waiting == 1 else 'batches wait'} for it"
    return f"destination {told.destination} {what} since {since} ({span(told.seconds)}): {told.reason}; {waiting}"
