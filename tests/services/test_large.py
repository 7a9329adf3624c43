"""Long lists, large data sets, and what they cost."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.dimse.inbound import Request
from examsend.dimse.refusal import Wrong
from examsend.errors import DatabaseUnavailable
from examsend.services import large as large_messages
from examsend.services import lasting, mpps, step
from examsend.services.lasting import LastingDatabase
from examsend.services.mpps import PerformedSteps
from examsend.services.service import N_CREATE_RQ, N_SET_RQ
from tests.helpers import execute, one
from tests.services.process import MPPS

IMPLICIT = "1.2.840.10008.1.2"


def _element(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def _item(value: bytes) -> bytes:
    return _element(0xFFFEE000, value)


def _request(command: int, data: bytes) -> Request:
    return Request(3, MPPS, IMPLICIT, command, 1, MPPS, "1.2.9", data)


def _created() -> Request:
    status = _element(step.STATUS, b"IN PROGRESS ")
    return _request(N_CREATE_RQ, status + _element(step.SCHEDULED, _item(_element(step.STUDY, b"1.2.3\0"))))


def _list(instances: int) -> bytes:
    references = b"".join(
        _item(_element(0x00081150, b"1.2.840.10008.5.1.4.1.1.2\0") + _element(step.INSTANCE, b"1.2.3.%010d" % n))
        for n in range(instances)
    )
    series = _element(step.SERIES, b"1.2.3\0") + _element(step.IMAGES, references)
    return _element(step.PERFORMED, _item(series))


def test_a_list_that_takes_longer_to_store_than_other_messages_have_is_stored(
    settings: Settings, database: engine.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with "try again later", it would be refused again each time, and the step would stay IN PROGRESS."""
    storage = LastingDatabase(settings)
    try:
        steps = PerformedSteps(storage)
        assert steps.handle(_created(), "CT1").status == 0
        execute(
            database,
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3); RETURN NULL; END'",
        )
        execute(
            database,
            "CREATE TRIGGER wait AFTER INSERT ON expected_instances FOR EACH STATEMENT EXECUTE FUNCTION wait()",
        )
        monkeypatch.setattr(lasting, "WAIT_SECONDS", 2.0)
        monkeypatch.setattr(mpps, "_LONGEST_SECONDS", 20.0)
        assert steps.handle(_request(N_SET_RQ, _list(10)), "CT1").status == mpps.RESOURCE_LIMITATION
        monkeypatch.setattr(mpps, "_INSTANCES_A_SECOND", 500)
        assert steps.handle(_request(N_SET_RQ, _list(10_000)), "CT1").status == 0
        assert one(database, "SELECT count(*) FROM expected_instances") == 10_000
    finally:
        storage.close()


class _Slow:
    """Storage that counts the messages that are being stored."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.release = threading.Event()
        self.lock = threading.Lock()

    def run(self, work: Callable[[Any], Any], *, wait: float | None = None) -> Any:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.release.wait(10)
        with self.lock:
            self.now -= 1
        raise DatabaseUnavailable("away")


def test_large_data_sets_are_read_one_at_a_time_and_small_ones_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_messages, "SECONDS", 0.5)
    slow = _Slow()
    steps = PerformedSteps(slow)
    large = _request(N_SET_RQ, _list(20_000))
    assert len(large.data or b"") > 1 << 20
    found: list[str | None] = []
    first = threading.Thread(target=lambda: found.append(steps.handle(large, "CT1").error_comment))
    small = threading.Thread(target=lambda: found.append(steps.handle(_created(), "CT1").error_comment))
    first.start()
    try:
        over = time.monotonic() + 10
        while not slow.now and time.monotonic() < over:
            time.sleep(0.01)
        reply = steps.handle(large, "CT1")
        assert (reply.status, reply.error_comment) == (0x0213, "too many large messages, try again later")
        small.start()
        while slow.now < 2 and time.monotonic() < over:
            time.sleep(0.01)
        assert slow.most == 2
    finally:
        slow.release.set()
        first.join(10)
        small.join(10)
    assert found == ["the database is not available, try again later"] * 2
    # The place is free again.
    assert steps.handle(large, "CT1").error_comment == "the database is not available, try again later"


def test_elements_of_deep_levels_cost_no_more_than_others() -> None:
    opened = struct.pack("<HHL", 0x0009, 0x1010, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    small = _element(0x00091011, b"")

    def seconds(levels: int) -> float:
        began = time.process_time()
        with pytest.raises(Wrong):
            step.read(opened * levels + small * 300_000, IMPLICIT)
        return time.process_time() - began

    assert seconds(250) < 3 * seconds(2)


def test_what_is_above_a_deep_level_is_read_after_it() -> None:
    deep = _element(
        step.OTHERS, _item(_element(step.INSTANCE, b"1.2.7\0") + _element(0x00081140, _item(_element(0x00081140, b""))))
    )
    series = _item(
        deep + _element(step.SERIES, b"1.2.3\0") + _element(step.IMAGES, _item(_element(step.INSTANCE, b"1.2.8\0")))
    )
    told = step.read(_element(step.PERFORMED, series), IMPLICIT)
    assert told.series is not None
    assert told.series[0].instances == {"1.2.7", "1.2.8"}
