"""A real `examsend send` that converts: however it ends, its workers end, nothing is left, and the batch goes on later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pydicom.data
import pytest

from examsend.commands import send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.dicom import uids
from examsend.states import Transcode
from tests.helpers import add, cli, deliver, execute, one, prepare, rows, states
from tests.peers.scripted import Script, scripted
from tests.senders.test_conversion import UNCOMPRESSED, _workers

pytest.importorskip("numpy", reason="the extra transcode is not installed")

TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"

_PROGRAM = """
from examsend.dimse import conversion
conversion._WORKER = "tests.senders.planted"
from examsend.__main__ import main
main()
"""


def _study(directory: Path, *names: str, source: str = "MR_small_RLE.dcm", study: str = "1.2.3.9") -> Path:
    """Write a file of pydicom under each name, with UIDs of their own; return the directory."""
    directory.mkdir(parents=True)
    for n, name in enumerate(names):
        data_set = pydicom.dcmread(TEST_FILES / source)
        data_set.StudyInstanceUID, data_set.InstanceNumber = study, n + 1
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = f"{study}.{n}"
        data_set.save_as(directory / f"{name}.dcm")
    return directory


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A directory for temporary files, in which nothing may be left."""
    place = tmp_path / "temporary"
    place.mkdir()
    yield place
    assert list(place.iterdir()) == []


def _sending(url: str, temporary: Path, *options: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "send", "-q", *options],
        env={**kept, "EXAMSEND_DATABASE_URL": url, "EXAMSEND_LEASE": "5", "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )


def _terminated(process: subprocess.Popen[str], _: engine.Database) -> None:
    process.send_signal(signal.SIGTERM)


def _killed(process: subprocess.Popen[str], _: engine.Database) -> None:
    process.kill()


def _lost(_: subprocess.Popen[str], database: engine.Database) -> None:
    execute(database, "UPDATE exam_batches SET attempt_id = gen_random_uuid(), claimed_by = 'other'")


@pytest.mark.parametrize("ends", [_terminated, _killed, _lost])
def test_a_pass_that_ends_during_a_conversion_leaves_no_worker_and_its_batch_goes_on_later(
    settings: Settings,
    database: engine.Database,
    database_url: str,
    tmp_path: Path,
    temporary: Path,
    ends: Callable[[subprocess.Popen[str], engine.Database], None],
) -> None:
    drop = _study(tmp_path / "drop", "a", "hang", "b")
    with scripted(UNCOMPRESSED) as receiver:
        add(settings, receiver.address, transcode=Transcode.FALLBACK)
        prepare(settings, drop)
        process = _sending(database_url, temporary)
        try:
            deadline = time.monotonic() + 30
            while not (drop / "hang.pid").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            workers = _workers(process.pid)
            ends(process, database)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()
        assert workers
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "a worker outlives its pass"
            time.sleep(0.02)
        assert process.returncode == (-signal.SIGKILL if ends is _killed else 0), said
        if ends is _terminated:
            assert states(database) == ["READY"]
            assert one(database, "SELECT attempt_count FROM exam_batches") == 0
        else:
            assert states(database) == ["SENDING"]
            execute(database, "UPDATE exam_batches SET lease_expires_at = now() - interval '1 s'")
        (drop / "hang.pid").unlink()
        assert send.run(settings).failed == 0
        assert states(database) == ["SENT"]
        assert {r.sop_instance_uid for r in receiver.stored} == {f"1.2.3.9.{n}" for n in range(3)}
    assert one(database, "SELECT max(lost_in_flight) FROM exam_batch_instances") == 0


def test_the_rows_and_status_say_what_became_of_each_instance(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    drop = _study(tmp_path / "drop", "a", "b")
    for n, name in enumerate(("JPEG2000.dcm", "JPEG-lossy.dcm", "CT_small.dcm")):
        data_set = pydicom.dcmread(TEST_FILES / name)
        data_set.StudyInstanceUID, data_set.InstanceNumber = "1.2.3.9", n + 3
        data_set.save_as(drop / name)
    explicit = Script(accept=lambda _, syntax: syntax == uids.EXPLICIT_VR_LITTLE_ENDIAN)
    with scripted(explicit) as receiver:
        add(settings, receiver.address, transcode=Transcode.FALLBACK)
        deliver(settings, drop)
        for _ in range(5):  # nothing is tried for ever
            send.run(settings)
        sizes = sum(r.size for r in receiver.stored)
        assert len(receiver.stored) == 3
    assert states(database) == ["FAILED"]
    found = rows(database, "SELECT processed_filepath, outcome, error_comment FROM exam_batch_instances")
    said = {Path(path).name: (outcome, comment) for path, outcome, comment in found}
    assert {said[name][0] for name in ("a.dcm", "b.dcm", "CT_small.dcm")} == {"STORED"}
    reasons = {
        "JPEG2000.dcm": "(transfer syntax 1.2.840.10008.1.2.4.91, to 1.2.840.10008.1.2.1)",
        "JPEG-lossy.dcm": "in 1.2.840.10008.1.2.4.51, which cannot be converted without loss",
    }
    for name, reason in reasons.items():
        assert said[name][0] == "FAILED"
        assert reason in said[name][1]
    assert one(database, "SELECT sum(bytes_sent) FROM send_attempts") == sizes
    shown = cli("status", "1", "--json", url=database_url)
    listed = json.dumps(json.loads(shown.stdout))
    for reason in reasons.values():
        assert reason in listed


def test_four_destinations_that_convert_share_the_workers(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path, temporary: Path
) -> None:
    _study(tmp_path / "drop", *(str(n) for n in range(40)))
    with scripted(UNCOMPRESSED) as receiver:
        for n in range(4):
            add(settings, receiver.address, name=f"d{n}", transcode=Transcode.FALLBACK)
        prepare(settings, tmp_path / "drop")
        process = _sending(database_url, temporary, "--parallel", "4")
        most = 0
        try:
            while process.poll() is None:
                most = max(most, len(_workers(process.pid)))
                time.sleep(0.01)
        finally:
            process.kill()
            process.communicate(timeout=20)
    assert states(database) == ["SENT"] * 4
    assert 1 <= most <= min(len(os.sched_getaffinity(0)), 4)


def test_a_pass_that_converts_nothing_imports_neither_pydicom_nor_numpy(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    """Also where a file is re-encoded, or refused since conversion is off."""
    drop = _study(tmp_path / "drop", "a")
    data_set = pydicom.dcmread(TEST_FILES / "CT_small.dcm")
    data_set.StudyInstanceUID = "1.2.3.9"
    data_set.save_as(drop / "CT_small.dcm")
    program = """
import sys
from examsend.__main__ import main
try:
    main()
finally:
    print("imported:", *[m for m in ("numpy", "pydicom", "pynetdicom", "examsend.dimse.conversion", "gdcm") if m in sys.modules])
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_")}
    with scripted(Script(accept=lambda _, syntax: syntax == uids.IMPLICIT_VR_LITTLE_ENDIAN)) as receiver:
        add(settings, receiver.address)
        prepare(settings, drop)
        done = subprocess.run(
            [sys.executable, "-c", program, "send", "-q"],
            env={**kept, "EXAMSEND_DATABASE_URL": database_url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert len(receiver.stored) == 1
    assert done.stdout.splitlines()[-1] == "imported:"
