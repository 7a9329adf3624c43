"""``examsend expect``: manifests, counts, and what is withdrawn; hostile files are refused with a sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from examsend.commands import expect, ingest
from examsend.completion import manifest
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.dicom import identity
from examsend.errors import UsageError
from examsend.queue import announcements
from tests.helpers import add, cli, one, rows

STUDY = "1.2.3"

_MR = Path(get_testdata_file("MR_small.dcm", download=False) or "")


def _written(tmp_path: Path, content: bytes | str, name: str = "manifest") -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _read(path: str) -> dict[str, Any]:
    """Return {study: count, or {series: instances}}."""
    return {
        a.study_instance_uid: a.count or {s.series_instance_uid: set(s.instances) for s in a.series}
        for a in manifest.read_manifest(path)
    }


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("study_instance_uid,count\n1.2,40\n1.3,2\n", {"1.2": 40, "1.3": 2}),
        ("\ufeffStudy Instance UID;Count\r\n1.2;40\r\n\r\n", {"1.2": 40}),
        ("StudyInstanceUID\tCOUNT\n1.2\t40", {"1.2": 40}),
        (
            'patient,study_instance_uid,series_instance_uid,sop_instance_uid\n"a, ""b""\n",1.2,1.2.1,1.2.1.1\nx,1.2,1.2.1,1.2.1.2\n',
            {"1.2": {"1.2.1": {"1.2.1.1", "1.2.1.2"}}},
        ),
        ("SOPInstanceUID,STUDY-INSTANCE-UID\n1.5,1.2\n1.5,1.2\n", {"1.2": {"": {"1.5"}}}),
        ("study_instance_uid,series_instance_uid\n1.2,1.2.1\n", {"1.2": {"1.2.1": set()}}),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_csv_file(tmp_path: Path, content: str, found: object, encoding: str) -> None:
    assert _read(_written(tmp_path, content.encode(encoding))) == found


_HEAD = "study_instance_uid,series_instance_uid,sop_instance_uid\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "line 1 is not a header row"),
        (b"\n\n", "line 1 is not a header row"),
        (b"1.2,40\n", "line 1 is not a header row"),
        (b"study_instance_uid\n1.2\n", "line 1 is not a header row"),
        (b"study_instance_uid,count,sop_instance_uid\n", "one or the other"),
        (b"study_instance_uid,Count,COUNT\n", "line 1 has a column twice"),
        (_HEAD.encode(), "it names no study"),
        (_HEAD.encode() + b"1.2,1.3,1.4\n1.2,1.3,Doe^Jane\n", "line 3: 'Doe^Jane' is not a SOP Instance UID"),
        (_HEAD.encode() + b"1.2,,\n", "line 2 names neither a series nor an instance"),
        (_HEAD.encode() + b"1.2,1.3,1.4\n1.2,1.5,1.4\n", "line 3 has an instance in another series"),
        (_HEAD.encode() + b"1.2\n", "line 2 names neither"),
        (_HEAD.encode() + b"1.2,1.3," + b"1" * 65 + b"\n", "line 2: '1111"),
        (b"study_instance_uid,count\n1.2,0\n", "line 2: the count must be"),
        (b"study_instance_uid,count\n1.2,99999999999999\n", "line 2: the count must be"),
        ("study_instance_uid,count\n1.2,²\n".encode(), "line 2: the count must be"),
        (b"study_instance_uid,count\n1.2,3\n1.2,4\n", "line 3 gives another count"),
        (b"study_instance_uid,count\n1.2,3\n\xff\xfe,4\n", "is not text in UTF-8"),
        (b"study_instance_uid,count\n1.2,3\0\n", "line 2 is not text"),
        (b"\x7fELF" + bytes(1000), "line 1 is not text"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 100, "not text"),
        (_HEAD.encode() + b'"' + b"1.2\n" * 50_000, "line 2 is not CSV"),
        (b"x" * 200_000, "line 1 is not text"),
    ],
)
def test_a_csv_file_that_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = _written(tmp_path, content)
    with pytest.raises(UsageError, match="manifest: ") as refused:
        manifest.read_manifest(path)
    assert sentence in str(refused.value)


def test_a_file_that_is_too_large_or_has_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="more than 64 MB"):
        manifest.read_manifest(str(path))
    monkeypatch.setattr(manifest, "MOST_INSTANCES", 10)
    many = _written(tmp_path, _HEAD + "".join(f"1.2,1.3,1.4.{n}\n" for n in range(11)))
    with pytest.raises(UsageError, match="more than 10 instances"):
        manifest.read_manifest(many)
    with pytest.raises(UsageError, match="more than 10 instances"):
        manifest.read_instances(_written(tmp_path, "".join(f"1.4.{n}\n" for n in range(11))))


@pytest.mark.parametrize("read", [manifest.read_manifest, manifest.read_instances])
def test_what_is_not_a_file(tmp_path: Path, read: Callable[[str], object]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, sentence in (
        (str(fifo), "is not a file"),
        (str(tmp_path), "is not a file"),
        ("/dev/zero", "is not a file"),
        (str(tmp_path / "none"), "cannot be read: No such file"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=sentence):
            read(path)


# --- DICOM ------------------------------------------------------------------------------------------------------------


def _item(**values: object) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def _key_objects(path: Path, code: str = "113030", syntax: str = ExplicitVRLittleEndian, studies: int = 2) -> str:
    evidence = [
        _item(
            StudyInstanceUID=f"1.2.{study}",
            ReferencedSeriesSequence=Sequence(
                _item(
                    SeriesInstanceUID=f"1.2.{study}.{series}",
                    RetrieveAETitle="ARCHIVE",
                    ReferencedSOPSequence=Sequence(
                        _item(
                            ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.4",
                            ReferencedSOPInstanceUID=f"1.2.{study}.{series}.{n}",
                        )
                        for n in range(3)
                    ),
                )
                for series in range(2)
            ),
        )
        for study in range(studies)
    ]
    made = _item(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.88.59",
        SOPInstanceUID="1.2.99",
        PatientName="Doe^Jane",
        StudyInstanceUID="1.2.0",
        SeriesInstanceUID="1.2.98",
        Modality="KO",
        ConceptNameCodeSequence=Sequence([_item(CodeValue=code, CodingSchemeDesignator="DCM", CodeMeaning="x")]),
        CurrentRequestedProcedureEvidenceSequence=Sequence(evidence),
    )
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.TransferSyntaxUID = syntax
    made.save_as(path, enforce_file_format=True)
    return str(path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_a_key_object_selection(tmp_path: Path, syntax: str) -> None:
    found = _read(_key_objects(tmp_path / "ko", syntax=syntax))
    assert found == {
        f"1.2.{study}": {f"1.2.{study}.{s}": {f"1.2.{study}.{s}.{n}" for n in range(3)} for s in range(2)}
        for study in range(2)
    }


@pytest.mark.parametrize("code", ["113001", "113037", "113038", "113039"])
def test_a_rejection_note_is_no_manifest(tmp_path: Path, code: str) -> None:
    with pytest.raises(UsageError, match="rejection note"):
        manifest.read_manifest(_key_objects(tmp_path / "ko", code))


def test_another_dicom_file_is_no_manifest() -> None:
    with pytest.raises(UsageError, match="neither a Key Object Selection document nor a DICOMDIR"):
        manifest.read_manifest(str(_MR))


_DIRECTORIES = _MR.parent / "dicomdirtests"


def _of_pydicom(path: Path) -> dict[str, dict[str, set[str]]]:
    """Return what pydicom reads from a DICOMDIR."""
    found: dict[str, dict[str, set[str]]] = {}
    study = series = ""
    for record in pydicom.dcmread(path).DirectoryRecordSequence:
        match record.DirectoryRecordType:
            case "PATIENT":
                pass
            case "STUDY":
                study = record.StudyInstanceUID
            case "SERIES":
                series = record.SeriesInstanceUID
            case _:
                found.setdefault(study, {}).setdefault(series, set()).add(record.ReferencedSOPInstanceUIDInFile)
    return found


@pytest.mark.parametrize("name", ["DICOMDIR", "TINY_ALPHA/DICOMDIR", "DICOMDIR-implicit", "DICOMDIR-bigEnd"])
def test_a_dicomdir(name: str) -> None:
    path = _DIRECTORIES / name
    found = _read(str(path))
    assert found == _of_pydicom(path)
    assert found


def test_a_dicomdir_without_active_records_names_no_study() -> None:
    for name in ("DICOMDIR-empty.dcm", "DICOMDIR-nopatient"):
        with pytest.raises(UsageError, match="it names no study"):
            manifest.read_manifest(str(_DIRECTORIES / name))


def _patched(path: Path, tag: bytes, number: int, times: int = 1) -> bytes:
    """Return a DICOMDIR with the first values of an offset replaced."""
    data = path.read_bytes()
    at = 0
    for _ in range(times):
        at = data.index(tag + b"UL\4\0", at) + 8
        data = data[:at] + struct.pack("<L", number) + data[at + 4 :]
    return data


def test_a_dicomdir_with_circular_or_wild_offsets(tmp_path: Path) -> None:
    path = _DIRECTORIES / "DICOMDIR"
    first = pydicom.dcmread(path).OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity
    for tag in (b"\4\0\0\x14", b"\4\0\x20\x14"):
        with pytest.raises(UsageError, match="two directory records refer"):
            manifest.read_manifest(_written(tmp_path, _patched(path, tag, first)))
        with pytest.raises(UsageError, match="where none begins"):
            manifest.read_manifest(_written(tmp_path, _patched(path, tag, 0xFFFFFFF0)))
    with pytest.raises(UsageError, match="it names no study"):
        manifest.read_manifest(_written(tmp_path, _patched(path, b"\4\0\0\x12", 0)))


def test_every_truncation_of_a_dicom_manifest_is_refused_or_read(tmp_path: Path) -> None:
    for path in (_DIRECTORIES / "TINY_ALPHA" / "DICOMDIR", Path(_key_objects(tmp_path / "ko"))):
        data = path.read_bytes()
        for length in range(132, len(data), 41):
            with pytest.raises(UsageError):
                manifest.read_manifest(_written(tmp_path, data[:length], "cut"))


def test_a_key_object_selection_that_is_nested_deeply(tmp_path: Path) -> None:
    data = Path(_key_objects(tmp_path / "ko")).read_bytes()
    open_item = struct.pack("<HH2sHL", 0x40, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with pytest.raises(UsageError, match="nested more than"):
        manifest.read_manifest(_written(tmp_path, data + open_item * 100_000))


# --- the command --------------------------------------------------------------------------------------------------------


def _expected(database: engine.Database) -> list[Any]:
    return rows(
        database, "SELECT source, source_uid, state, expected_count, changed FROM study_expectations ORDER BY id"
    )


def test_a_count_and_a_list_for_a_study_that_is_not_here_yet(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    counted = expect.run(settings, studies=[STUDY], count=40).expected[0]
    assert (counted.source, counted.instances, counted.here) == ("COUNT", 40, {})
    listed = _written(tmp_path, "# two\n1.2.3.4\r\n\n 1.2.3.5 # the last one\n")
    named = expect.run(settings, studies=[STUDY], instances=listed).expected[0]
    assert (named.source, named.instances, named.series, named.here) == ("MANIFEST", 2, 0, {})
    assert _expected(database) == [
        ("COUNT", STUDY, "COMPLETED", 40, True),
        ("MANIFEST", STUDY, "COMPLETED", None, True),
    ]
    assert rows(database, "SELECT sop_instance_uid, series_instance_uid FROM expected_instances ORDER BY 1") == [
        ("1.2.3.4", None),
        ("1.2.3.5", None),
    ]


def test_it_says_how_many_are_here(settings: Settings, tmp_path: Path) -> None:
    add(settings, "A@127.0.0.1:1")
    add(settings, "B@127.0.0.1:1", "second")
    found = identity.inspect(_MR)
    drop = tmp_path / "drop"
    drop.mkdir()
    shutil.copy(_MR, drop)
    ingest.run(settings, [drop])
    study = found.study_instance_uid
    assert expect.run(settings, studies=[study], count=2).expected[0].here == {"pacs": 1, "second": 1}
    listed = _written(tmp_path, f"1.2.3.4\n{found.sop_instance_uid}\n")
    assert expect.run(settings, studies=["1.2.3"], instances=listed).expected[0].here == {"pacs": 1, "second": 1}


def test_a_manifest_is_announced_whole_or_not_at_all(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="line 4"):
        expect.run(settings, manifest_file=_written(tmp_path, "study_instance_uid,count\n1.2,1\n1.3,2\n1.4,x\n"))
    assert _expected(database) == []
    result = expect.run(settings, manifest_file=_key_objects(tmp_path / "ko"))
    assert [(e.study_instance_uid, e.instances, e.series) for e in result.expected] == [
        ("1.2.0", 6, 2),
        ("1.2.1", 6, 2),
    ]
    assert one(database, "SELECT count(*) FROM expected_instances") == 12
    assert not one(database, "SELECT count(*) FROM study_expectations WHERE source_uid LIKE '%Doe%'")

    calls: list[int] = []
    announce = announcements.announce

    def fails_at_the_second(*args: Any, **values: Any) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise UsageError("stop")
        return announce(*args, **values)

    monkeypatch.setattr(announcements, "announce", fails_at_the_second)
    with pytest.raises(UsageError, match="stop"):
        expect.run(settings, manifest_file=_written(tmp_path, "study_instance_uid,count\n1.8,1\n1.9,2\n"))
    assert one(database, "SELECT count(*) FROM study_expectations") == 2


def test_forget_withdraws_every_announcement_of_a_study(settings: Settings, database: engine.Database) -> None:
    expect.run(settings, studies=[STUDY], count=40)
    expect.run(settings, studies=["1.2.4"], count=40)
    with database.transaction() as tx:
        announcements.create_step(tx, "1.9", [STUDY, "1.2.4"], [])
    forgotten = expect.run(settings, studies=[STUDY], forget=True).forgotten
    assert [(f.study_instance_uid, f.sources) for f in forgotten] == [(STUDY, ("COUNT", "MPPS"))]
    left = rows(database, "SELECT source_uid FROM study_expectations WHERE forgotten_at IS NULL")
    assert left == [("1.2.4",)]
    with pytest.raises(UsageError, match="nothing is announced of study"):
        expect.run(settings, studies=[STUDY], forget=True)
    expect.run(settings, studies=[STUDY], count=41)
    assert one(database, "SELECT count(*) FROM study_expectations WHERE forgotten_at IS NULL") == 2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"studies": ["Doe^Jane"], "count": 1}, "is not a Study Instance UID"),
        ({"studies": [STUDY]}, "give one of"),
        ({"studies": [STUDY], "count": 1, "forget": True}, "not --count and --forget"),
        ({"count": 1}, "of which study"),
        ({"studies": [STUDY, "1.2.4"], "count": 1}, "give --study once"),
        ({"studies": [STUDY], "manifest_file": "x"}, "goes without --study"),
    ],
)
def test_wrong_usage(settings: Settings, values: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        expect.run(settings, **values)


def test_the_command_line(database_url: str, tmp_path: Path) -> None:
    done = cli("expect", "--study", STUDY, "--count", "2", url=database_url)
    assert (done.returncode, done.stdout) == (
        0,
        "study 1.2.3: 2 instances announced (COUNT); none is here yet\n",
    )
    as_json = cli("expect", "--manifest", _key_objects(tmp_path / "ko"), "--json", url=database_url)
    assert json.loads(as_json.stdout)["expected"][0]["instances"] == 6
    bad = cli("expect", "--manifest", _written(tmp_path, "\x1b[31m"), url=database_url)
    assert bad.returncode == 2
    assert "\x1b" not in bad.stderr
    forgotten = cli("expect", "--study", STUDY, "--forget", url=database_url)
    assert forgotten.stdout == "study 1.2.3: forgotten what is announced by COUNT\n"


@pytest.mark.parametrize("options", [("--manifest", "-"), ("--study", "1.2", "--instances", "-")])
def test_standard_input_that_is_closed_is_a_sentence(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "examsend", "expect", *options]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "examsend: standard input cannot be read: it is closed\n")
