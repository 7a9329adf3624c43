"""All passes together, from files to receivers: one association per study, and every data set is identical."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pydicom.data
import pytest
from blake3 import blake3

from examsend.commands import send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from examsend.dicom import identity
from tests.helpers import add, cli, deliver, digests, listed, one, prepare, rows, states
from tests.peers import dcmtk, orthanc
from tests.senders.harness import ON_THE_WIRE


@pytest.fixture
def real_files(tmp_path: Path) -> Path:
    """A directory with a copy of the files of pydicom's tests."""
    drop = tmp_path / "real"
    home = Path(pydicom.data.__file__).parent
    for part in ("test_files", "charset_files"):
        shutil.copytree(home / part, drop / part)
    return drop


@pytest.mark.parametrize("sender", ON_THE_WIRE)
def test_real_files_arrive_byte_for_byte(
    settings: Settings, database: engine.Database, receiving: receiver.Receiver, real_files: Path, sender: str
) -> None:
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}", sender=sender)
    deliver(settings, real_files)
    assert set(states(database)) == {"SENT"}
    got = {entry.sop_instance_uid: entry.digest for entry in receiving.stored()}
    # A deflated stream of odd length goes with the NULL byte that PS3.5 A.5 asks for; receivers do not take it without.
    deflated = real_files / "test_files" / "image_dfl.dcm"
    file = identity.inspect(deflated)
    padded = deflated.read_bytes()[file.dataset_offset :] + b"\0"
    assert got == {**digests(database), file.sop_instance_uid: blake3(padded).hexdigest()}
    assert len(got) > 90
    assert receiving.associations() == one(database, "SELECT count(*) FROM exam_batches")


@pytest.mark.parametrize("sender", ON_THE_WIRE)
@dcmtk.needs("storescp")
@pytest.mark.storescp
def test_a_large_study_takes_exactly_one_association(
    settings: Settings,
    database: engine.Database,
    storescp: Callable[..., dcmtk.Storescp],
    tmp_path: Path,
    sender: str,
) -> None:
    samples.ct_study(tmp_path / "drop", 500, size=64)
    peer = storescp()
    add(settings, peer.address, sender=sender)
    deliver(settings, tmp_path / "drop")
    assert peer.associations() == 1
    assert peer.digests() == digests(database)
    [batch] = listed(settings)
    assert (batch.status, batch.stored, batch.instances) == ("SENT", 500, 500)


@pytest.mark.parametrize("sender", ON_THE_WIRE)
@orthanc.needs_orthanc
@pytest.mark.orthanc
def test_orthanc_stores_identical_data_sets(
    settings: Settings,
    database: engine.Database,
    orthanc_server: Callable[..., orthanc.Orthanc],
    tmp_path: Path,
    sender: str,
) -> None:
    samples.make(tmp_path / "drop")
    peer = orthanc_server()
    add(settings, peer.address, sender=sender)
    deliver(settings, tmp_path / "drop")
    assert set(states(database)) == {"SENT"}
    found: dict[str, str] = {}
    for uid, data in peer.files().items():
        copy = tmp_path / "copy.dcm"
        copy.write_bytes(data)
        found[uid] = data_set_digest(copy)
    assert found == digests(database)


def data_set_digest(path: Path) -> str:
    """Return the SHA-256 of a file's data set in hex."""
    from examsend.dicom import identity

    return identity.inspect(path).content_digest.hex()


@orthanc.needs_orthanc
@pytest.mark.orthanc
def test_a_duplicate_reported_by_orthanc_is_success(
    settings: Settings, database: engine.Database, orthanc_server: Callable[..., orthanc.Orthanc], tmp_path: Path
) -> None:
    samples.ct_study(tmp_path / "drop", 2, size=16)
    peer = orthanc_server(OverwriteInstances=False)
    add(settings, peer.address)
    deliver(settings, tmp_path / "drop")
    add(settings, peer.address, name="again")
    deliver(settings, tmp_path / "drop")
    assert states(database) == ["SENT", "SENT"]


def test_two_concurrent_sends_send_every_instance_exactly_once(
    settings: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    for n in range(12):
        samples.ct_study(tmp_path / "drop" / str(n), 5, size=16)
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}", association_limit=4)
    prepare(settings, tmp_path / "drop")
    command = [
        sys.executable,
        "-m",
        "examsend",
        "send",
        "-q",
        "--parallel",
        "2",
        "--database-url",
        settings.database_url or "",
    ]
    senders = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in senders] == [0, 0]
    assert states(database) == ["SENT"] * 12
    assert len(receiving.stored()) == 60
    assert {entry.sop_instance_uid for entry in receiving.stored()} == set(digests(database))
    assert receiving.associations() == 12


def test_the_demo_verifies_its_studies_and_leaves_no_files() -> None:
    with tempfile.TemporaryDirectory() as name:
        # The embedded server runs as another user if root runs the demo.
        Path(name).chmod(0o711)
        completed = cli("demo", "--json", TMPDIR=name)
        left = list(Path(name).iterdir())
    assert completed.returncode == 0, completed.stderr
    result = json.loads(completed.stdout)
    assert result["verified"] == 102
    assert result["differing"] == 0
    # Four studies, and one of them again, with the image that the archive has lost.
    assert result["associations"] == len(result["studies"]) == 5
    assert sorted(s["rule"] for s in result["studies"]) == ["DISPUTED", "EXPECTED", "OPERATOR", "QUIET", "QUIET"]
    assert (result["confirmed"], result["proof"], result["sent_again"]) == (102, "COMMITTED", 1)
    assert left == []


def test_the_demo_holds_a_study_until_all_that_its_modality_announced_is_here() -> None:
    completed = cli("demo")
    assert completed.returncode == 0, completed.stderr
    story = [
        r"batch \d+: PENDING: 59 of 60 announced instances here, missing 1 of series \.\.\.\d+; MPPS ended",
        r"batch \d+: PENDING: quiet in \d+ min",
        r"batch \d+ READY for demo: EXPECTED: all 60 announced instances are here \(MPPS\)",
        r"batch \d+ to demo: SENT, 60 stored",
        r"batch \d+: SENT",
        r"batch \d+: PENDING: quiet in \d+ min",
        r"batch \d+ READY for demo: OPERATOR",
        r"batch \d+ READY for demo: QUIET",
        r"the archive loses an image",
        r"DISPUTED: the archive does not have 1 instance: 1 sent again in batch \d+",
        r"batch \d+ to demo: SENT, 1 stored",
        r"1 instance: 1 confirmed",
    ]
    assert re.search(".*".join(story), completed.stderr, re.DOTALL), completed.stderr


def test_the_demo_sends_given_files_to_a_given_receiver(receiving: receiver.Receiver, tmp_path: Path) -> None:
    samples.ct_study(tmp_path / "drop", 3, size=16)
    completed = cli("demo", tmp_path / "drop", "--to", f"{receiving.aet}@{receiving.host}:{receiving.port}")
    assert completed.returncode == 0, completed.stderr
    assert len(receiving.stored()) == 3
    assert "listen" not in completed.stderr
    assert len(list((tmp_path / "drop").iterdir())) == 3


def test_instances_are_sent_in_series_and_instance_order(
    settings: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    study = samples.new_uid()
    wanted = []
    for number in (2, 1):
        series = samples.new_uid()
        images = [samples.Image(samples.MR, study, series, number, n, 8, 8) for n in (10, 9, 2, 1)]
        samples.write_series(tmp_path / "drop" / str(number), images)
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    deliver(settings, tmp_path / "drop")
    wanted = [
        row[0]
        for row in rows(
            database, "SELECT sop_instance_uid FROM exam_batch_instances ORDER BY series_number, instance_number"
        )
    ]
    assert [entry.sop_instance_uid for entry in receiving.stored()] == wanted


def test_a_study_with_more_than_128_contexts_takes_several_associations(
    settings: Settings, database: engine.Database, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    study, series = samples.new_uid(), samples.new_uid()
    drop = tmp_path / "drop"
    drop.mkdir()
    for n in range(140):
        sop_class, uid = f"1.2.826.0.1.3680043.10.1.{n}", samples.new_uid()
        image = samples.Image(samples.CT, study, series, 1, n, 4, 4)
        data = samples.data_set(image, uid, samples.element(0x7FE00010, "OW", samples.picture(image, n)))
        data = samples.element(0x00080016, "UI", sop_class) + data[data.index(b"\x08\x00\x18\x00UI") :]
        (drop / f"{n}.dcm").write_bytes(samples.file_of(data, sop_class, uid))
    add(settings, f"{receiving.aet}@{receiving.host}:{receiving.port}")
    result = send_all(settings, drop)
    assert states(database) == ["SENT"]
    assert receiving.associations() == result.delivered[0].associations == 3
    assert {e.sop_instance_uid: e.digest for e in receiving.stored()} == digests(database)


def send_all(settings: Settings, drop: Path) -> send.SendResult:
    """Ingest, finalize, send."""
    prepare(settings, drop)
    return send.run(settings)
