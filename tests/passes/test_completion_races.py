"""Ingests, modalities and passes at the same time: no look at a batch is lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg2.errors
import pytest
from sqlalchemy import Engine, event

from examsend.commands import finalize
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.queue import registration
from examsend.queue.announcements import Series
from tests.helpers import rows
from tests.passes.world import World, file

_STUDIES, _INSTANCES = 30, 6


@contextmanager
def deadlocks() -> Iterator[list[BaseException]]:
    """Collect the deadlocks that any connection of this process is told of."""
    seen: list[BaseException] = []

    def note(context: Any) -> None:
        if isinstance(context.original_exception, psycopg2.errors.DeadlockDetected):
            seen.append(context.original_exception)

    event.listen(Engine, "handle_error", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "handle_error", note)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_announced_study_goes_although_nothing_but_its_announcement_can_make_it(
    settings: Settings, database: engine.Database, seed: int
) -> None:
    """Without a grace, and with a quiet period that does not end: a study whose last event is overlooked would stay PENDING.

    Half of the instances of each pair of studies are announced by the other's step, as in the group case. No two
    transactions deadlock: each time both would wait for a second, until PostgreSQL ends one.
    """
    chance = random.Random(seed)
    world = World(settings, database, quiet_seconds=1e6, longest_wait_seconds=1e6, grace_seconds=0.0)
    work: list[Callable[[], object]] = []
    for n in range(_STUDIES):
        pair = n - n % 2
        studies = (f"1.{pair}", f"1.{pair + 1}") if n % 3 == 0 else (f"1.{n}",)
        uids = [f"1.{pair + k % len(studies) if len(studies) == 2 else n}.{n}.{k}" for k in range(_INSTANCES)]
        files = [file(uid, ".".join(uid.split(".")[:2]), f"{uid.rsplit('.', 1)[0]}.0") for uid in uids]
        chance.shuffle(files)
        steps = [Series(f"{uid.rsplit('.', 1)[0]}.0", frozenset({uid})) for uid in uids]
        parts = [files[:2], files[2:3], files[3:]]
        work += [
            lambda part=part: database.run(  # type: ignore[misc]
                lambda tx: registration.register(tx, part, [1], gone=lambda _path: False), idempotent=True
            )
            for part in parts
        ]

        def messages(step: str = f"9.{n}", named: tuple[str, ...] = studies, steps: list[Series] = steps) -> None:
            world.create(step, named)
            world.set(step, "IN PROGRESS", *steps[:2])
            world.set(step, "COMPLETED", *steps)

        work.append(messages)
    chance.shuffle(work)
    over = threading.Event()

    def passes() -> None:
        while not over.is_set():
            finalize.run(settings)

    with deadlocks() as locked, ThreadPoolExecutor(6) as pool:
        passing = [pool.submit(passes) for _ in range(2)]
        try:
            for done in [pool.submit(one) for one in work]:
                done.result(60)
        finally:
            over.set()
        for done in passing:
            done.result(60)
    finalize.run(settings)
    waiting = rows(database, "SELECT id, study_instance_uid FROM exam_batches WHERE status = 'PENDING'")
    assert [(row.study_instance_uid, world.why(row.id)) for row in waiting] == []
    assert locked == []
