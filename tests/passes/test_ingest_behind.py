"""Ingest reads the next files while the ones before are registered: order, errors, interruptions."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection

from examsend.commands import ingest
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.dicom import elements, identity
from examsend.dicom.source import MemorySource
from examsend.errors import Interrupted
from examsend.intake import behind
from examsend.intake.behind import Behind
from examsend.intake.group import groups
from examsend.queue import registration
from examsend.queue.files import FileStat, texts
from examsend.queue.versions import Arrival
from tests.helpers import add, one, rows


@pytest.fixture
def pacs(settings: Settings) -> Settings:
    """Settings with one destination, and two files in one transaction."""
    add(settings, "PACS@127.0.0.1:1")
    return dataclasses.replace(settings, ingest_chunk=2)


def test_files_are_registered_in_the_order_in_which_they_are_found(
    pacs: Settings, database: engine.Database, tmp_path: Path
) -> None:
    files = samples.ct_study(tmp_path / "drop", 9, size=8)
    assert ingest.run(pacs, [tmp_path / "drop"]).new == 9
    found = [row[0] for row in rows(database, "SELECT processed_filepath FROM exam_batch_instances ORDER BY id")]
    assert found == sorted(map(str, files))


def test_the_group_in_progress_is_registered_and_counted_when_the_pass_is_interrupted(
    pacs: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.ct_study(tmp_path / "drop", 8, size=8)
    read = 0
    inspect, register = identity.inspect, registration.register
    registering = threading.Event()

    def interrupted(path: str, **values: bool) -> identity.DicomFile:
        nonlocal read
        read += 1
        if read == 6:
            assert registering.wait(10)
            raise KeyboardInterrupt
        return inspect(path, **values)

    def slowly(tx: Connection, arrivals: list[Arrival], *ids: list[int], **values: object) -> object:
        if read >= 4:
            registering.set()
            time.sleep(0.3)
        return register(tx, arrivals, *ids, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(identity, "inspect", interrupted)
    monkeypatch.setattr(registration, "register", slowly)
    with pytest.raises(Interrupted, match=r"; 4 new instances are registered and stay so"):
        ingest.run(pacs, [tmp_path / "drop"])
    assert one(database, "SELECT count(*) FROM exam_batch_instances") == 4
    monkeypatch.undo()
    again = ingest.run(pacs, [tmp_path / "drop"])
    assert (again.new, again.known) == (4, 4)


def test_an_error_while_files_are_registered_ends_the_pass(
    pacs: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.ct_study(tmp_path / "drop", 8, size=8)
    register, calls = registration.register, 0

    def fails(*args: object, **values: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("here")
        return register(*args, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(registration, "register", fails)
    with pytest.raises(RuntimeError, match="here"):
        ingest.run(pacs, [tmp_path / "drop"])
    assert (calls, one(database, "SELECT count(*) FROM exam_batch_instances")) == (2, 2)


def test_an_error_with_the_last_group_is_raised(
    pacs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples.ct_study(tmp_path / "drop", 1, size=8)
    monkeypatch.setattr(registration, "register", lambda *_a, **_k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest.run(pacs, [tmp_path / "drop"])


def test_one_item_is_worked_on_at_a_time_in_order_and_settled_by_the_caller() -> None:
    order: list[tuple[str, int, bool]] = []
    mine = threading.get_ident()

    def note(what: str, item: int) -> None:
        order.append((what, item, threading.get_ident() == mine))

    with Behind[int](lambda item: note("work", item), lambda item: note("settle", item)) as worker:
        for item in range(3):
            worker.put(item)
    assert order == [e for n in range(3) for e in (("work", n, False), ("settle", n, True))]


def test_work_that_hangs_does_not_keep_an_interrupted_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "GRACE", 0.1)
    release, settled = threading.Event(), list[int]()
    worker = Behind[int](lambda _: print(release.wait(30)), settled.append)

    def interrupted() -> None:
        with worker:
            worker.put(1)
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (time.monotonic() - began < 10, settled) == (True, [])
    assert worker.until() <= time.monotonic()
    release.set()


def test_groups_end_after_so_many_files_or_bytes() -> None:
    files = [FileStat(f"/{n}", size, 0, 0, 0) for n, size in enumerate((1, 1, 1, 1 << 30, 1, 1))]
    assert [[f.path for f in g] for g in groups(files, 3)] == [["/0", "/1", "/2"], ["/3"], ["/4", "/5"]]
    assert list(groups([], 3)) == []


@pytest.mark.parametrize(
    "values", [[], ["1.2"], ['a"b', "c\\d", "{e,f}", "", "NULL"], [None, "x", 'y"'], ["a,b", "ü \n"]]
)
def test_texts_reach_the_database_as_they_are(database: engine.Database, values: list[str | None]) -> None:
    with database.transaction() as tx:
        statement = "SELECT v FROM unnest(CAST(%s AS text[])) WITH ORDINALITY w (v, n) ORDER BY n"
        assert [row[0] for row in tx.exec_driver_sql(statement, (texts(values),))] == values


@pytest.mark.parametrize("explicit", [True, False])
def test_what_is_skimmed_is_what_the_walker_finds(explicit: bool) -> None:
    """Cut at every byte, and with every byte changed: the same elements, values and errors with and without it."""
    plain = b"\x08\0\x16\0UI\4\x001.2\0\x08\0\x18\0UI\4\x001.3\0\x09\0\1\0OB\0\0\2\0\0\0xy\x20\0\x0d\0UI\4\x001.4\0"
    pixels = b"\xe0\x7f\x10\0OW\0\0\4\0\0\x001234"
    if not explicit:
        plain = b"\x08\0\x16\0\4\0\0\x001.2\0\x08\0\x18\0\4\0\0\x001.3\0\x20\0\x0d\0\4\0\0\x001.4\0"
        pixels = b"\xe0\x7f\x10\0\4\0\0\x001234"
    whole = plain + pixels
    changed = [
        whole[:at] + bytes((value,)) + whole[at + 1 :]
        for at in range(len(whole))
        for value in (0, 1, 0xFF, 0xFE, 0x49, 0xE0)
    ]
    wanted = {elements.as_read(tag): tag for tag in (0x00080016, 0x00080018, 0x0020000D)}

    def found(data: bytes, *, skimmed: bool) -> tuple[dict[int, bytes], int, str]:
        values: dict[int, bytes] = {}
        source, odd = MemorySource(data), 0
        after = None
        if skimmed:
            after = elements.skim(data, 0, len(data), explicit=explicit, wanted=wanted, most=8, values=values)
        try:
            for kind, depth, tag, _, _, at, length in elements.walk(
                source, explicit=explicit, little=True, after=after
            ):
                if depth or kind != elements.VALUE:
                    continue
                odd += length & 1
                if tag in wanted.values() and length <= 8:
                    values.setdefault(tag, source.at(at, length))
        except Exception as error:
            return values, odd, f"{type(error).__name__}: {error}"
        return values, odd, ""

    for data in [*(whole[:end] for end in range(len(whole) + 1)), *changed]:
        assert found(data, skimmed=True) == found(data, skimmed=False), data
