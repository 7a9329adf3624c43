"""What ingest stores of the series of a study, and of the number of instances that its files say it has."""

from __future__ import annotations

import os
from pathlib import Path

from examsend.commands import destination, ingest
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.dicom import identity
from tests.helpers import add, execute, one, rows


def _files(
    place: Path, count: int = 1, *, description: bytes = b"", said: str = "", study: str = "", name: str = "i"
) -> list[Path]:
    """Write CT images of one series, with a Series Description and a Number of Study Related Instances."""
    image = samples.Image(samples.CT, study or samples.new_uid(), samples.new_uid(), 1, 1, 2, 2)
    made: list[Path] = []
    place.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        uid = samples.new_uid()
        data = samples.data_set(image, uid, samples.element(0x7FE00010, "OW", bytes(8)))
        if description:
            end = data.index(b"\x08\x00\x30\x10LO") + len(samples.element(0x00081030, "LO", image.description))
            data = data[:end] + samples.element(0x0008103E, "LO", description) + data[end:]
        if said:
            at = data.index(b"\x28\x00\x02\x00US")
            data = data[:at] + samples.element(0x00201208, "IS", said) + data[at:]
        path = place / f"{name}{n}.dcm"
        path.write_bytes(samples.file_of(data, samples.CT, uid))
        made.append(path)
    return made


def _series(database: engine.Database) -> list[tuple[str | None, str | None]]:
    return [tuple(row) for row in rows(database, "SELECT modality, description FROM study_series ORDER BY description")]


def test_a_series_is_stored_and_its_last_instance_is_dated(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(settings, "A@127.0.0.1:104")
    [first, second] = _files(tmp_path / "all", 2, description=b"Scout")
    drop = tmp_path / "drop"
    drop.mkdir()
    os.rename(first, drop / "1.dcm")
    ingest.run(settings, [drop])
    assert _series(database) == [("CT", None)], "no description is stored where nothing requires it"
    began = one(database, "SELECT last_instance_at FROM study_series")
    ingest.run(settings, [drop])
    assert one(database, "SELECT last_instance_at FROM study_series") == began, "a known file is no arrival"
    os.rename(second, drop / "2.dcm")
    ingest.run(settings, [drop])
    assert one(database, "SELECT last_instance_at FROM study_series") > began
    assert one(database, "SELECT count(*) FROM study_series") == 1


def test_descriptions_are_stored_only_for_the_destination_that_requires_series(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(settings, "A@127.0.0.1:104", "plain")
    add(settings, "B@127.0.0.1:104", "needs", required_series="Scout*")
    _files(tmp_path / "drop", 3, description="Scout\x1b[31m Schädel".encode())
    ingest.run(settings, [tmp_path / "drop"])
    found = rows(
        database,
        "SELECT d.name, s.description FROM study_series s JOIN storage_backend_configs d ON d.id = s.destination_id ORDER BY 1",
    )
    assert [tuple(row) for row in found] == [("needs", "Scout[31m Schädel"), ("plain", None)]


def test_a_description_that_comes_with_a_later_file_is_stored(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(settings, "A@127.0.0.1:104")
    _files(tmp_path / "drop", description=b"Scout")
    ingest.run(settings, [tmp_path / "drop"])
    destination.change(settings, "pacs", None, {"required_series": "Scout*"})
    execute(database, "DELETE FROM exam_batch_instances")
    ingest.run(settings, [tmp_path / "drop"])
    assert _series(database) == [("CT", "Scout")]


def test_the_greatest_number_of_instances_that_files_say_is_a_hint(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(settings, "A@127.0.0.1:104", "one")
    add(settings, "B@127.0.0.1:104", "two")
    study, drop = samples.new_uid(), tmp_path / "drop"
    for name, said in (("a", "12"), ("b", "40"), ("c", "-3"), ("d", "nine"), ("e", "39\\70")):
        _files(drop, study=study, said=said, name=name)
        ingest.run(settings, [drop])
    [hint] = rows(
        database,
        "SELECT e.source, e.source_uid, e.state, e.expected_count, e.changed, s.study_instance_uid"
        " FROM study_expectations e JOIN expectation_studies s ON s.expectation_id = e.id",
    )
    assert tuple(hint) == ("FILES", study, "COMPLETED", 40, False, study)


def test_no_hint_without_a_number(settings: Settings, database: engine.Database, tmp_path: Path) -> None:
    add(settings, "A@127.0.0.1:104")
    _files(tmp_path / "drop", 2, said="0")
    ingest.run(settings, [tmp_path / "drop"])
    assert one(database, "SELECT count(*) FROM study_expectations") == 0


def test_what_a_file_says_of_its_series_is_cleaned(tmp_path: Path) -> None:
    for raw, clean in (
        (b"Scout  ", "Scout"),
        (b"\x00\x07", None),
        (b"x" * 200, "x" * 64),
        (b"Sch\xe4del", "Schädel"),
        ("\u202eabc\u2066".encode(), "abc"),
        (b"   ", None),
    ):
        [path] = _files(tmp_path, description=raw)
        assert identity.inspect(path).series_description == clean
    [path] = _files(tmp_path)
    data = path.read_bytes()
    assert identity.inspect(path).modality == "CT"
    at = data.index(b"\x08\x00\x60\x00CS") + 8
    for raw, code in ((b"mr", "MR"), (b"\xc3\xa4", None), (b"^A", None), (b"\\A", None)):
        path.write_bytes(data[:at] + raw + data[at + 2 :])
        assert identity.inspect(path).modality == code
