"""The whole chain with each sender that is here: the same data sets at real receivers, and the same rows in the database."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.dicom import identity
from examsend.errors import FileProblem
from examsend.senders.base import Capabilities
from examsend.states import SenderName
from tests import certificates as making
from tests.helpers import add, cli, deliver, digests, one, rows, states
from tests.peers import dcmtk, orthanc
from tests.senders.harness import absent, capabilities, programs


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of certificates; see ``tests.certificates``."""
    return making.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=SenderName)
def sender(request: pytest.FixtureRequest) -> SenderName:
    """The name of each of the senders; skipped where its program is missing."""
    name = SenderName(request.param)
    if absent(name):
        pytest.skip(absent(name))
    return name


@pytest.fixture
def pass_settings(settings: Settings) -> Settings:
    """Settings with the programs of senders that the environment names."""
    return dataclasses.replace(settings, **programs())


def environment() -> dict[str, str]:
    """Return the variables that name the programs of senders."""
    return {f"EXAMSEND_{name.upper()}": str(path) for name, path in programs().items()}


def instances_of(database: engine.Database, name: str) -> list[Any]:
    """Return what the database says of the instances of a destination's batches."""
    return rows(
        database,
        "SELECT i.sop_instance_uid, b.status, i.outcome, i.dimse_status, i.attempts, i.transfer_syntax_uid"
        " FROM exam_batch_instances i JOIN exam_batches b ON b.id = i.batch_id"
        " JOIN storage_backend_configs d ON d.id = b.destination_id WHERE d.name = :name ORDER BY 1, 2, 3",
        name=name,
    )


def attempts_of(database: engine.Database, name: str) -> list[Any]:
    """Return what the database says of the associations of a destination's batches."""
    return rows(
        database,
        "SELECT b.study_instance_uid, a.result, a.established, a.instances, a.stored, a.failed, a.association"
        " FROM send_attempts a JOIN exam_batches b ON b.id = a.batch_id"
        " JOIN storage_backend_configs d ON d.id = b.destination_id WHERE d.name = :name ORDER BY 1, 2, 3",
        name=name,
    )


def data_sets(files: Iterator[Path]) -> dict[str, pydicom.Dataset]:
    """Return {SOP Instance UID: data set} of files."""
    found = (pydicom.dcmread(path, force=True) for path in files)
    return {str(data.SOPInstanceUID): data for data in found}


def files_of(archive: orthanc.Orthanc, directory: Path) -> Iterator[Path]:
    """Write the files that Orthanc has into a new directory; return their paths."""
    directory.mkdir()
    for uid, data in archive.files().items():
        (directory / uid).write_bytes(data)
    return directory.iterdir()


def _whole(path: Path) -> bool:
    try:
        identity.inspect(path)
    except FileProblem:
        return False
    return True


def content(data: pydicom.Dataset, *, exact: bool) -> Any:
    """Return what a data set says. Not ``exact``: without Data Set Trailing Padding, group lengths and VRs, which say nothing of
    their own (PS3.5 7.2, 7.1.1; PS3.10 7.2) and which a program may leave out, or write as the standard asks."""
    if exact:
        return data
    return [
        (element.tag, [content(part, exact=False) for part in element.value] if element.VR == "SQ" else element.value)
        for element in data
        if element.tag != 0xFFFCFFFC and element.tag.element != 0
    ]


def same_data_sets(sender: SenderName, files: Iterator[Path], reference: Iterator[Path]) -> None:
    """Check that two receivers hold the same data sets, element by element."""
    found, wanted = data_sets(files), data_sets(reference)
    assert set(found) == set(wanted)
    exact = capabilities(sender).keeps_bytes
    for uid, data in wanted.items():
        assert content(found[uid], exact=exact) == content(data, exact=exact), (sender, uid)


@dcmtk.needs("storescp")
@orthanc.needs_orthanc
@pytest.mark.orthanc
def test_a_ct_of_300_slices_arrives_identical_and_leaves_the_rows_of_native(
    pass_settings: Settings,
    database: engine.Database,
    storescp: Callable[..., dcmtk.Storescp],
    orthanc_server: Callable[..., orthanc.Orthanc],
    tmp_path: Path,
    sender: SenderName,
) -> None:
    samples.ct_study(tmp_path / "drop", 300, size=64)
    reference, receiver, archive = storescp(), storescp(), orthanc_server()
    add(pass_settings, reference.address, name="reference")
    add(pass_settings, receiver.address, name="pacs", sender=sender)
    add(pass_settings, archive.address, name="archive", sender=sender)
    deliver(pass_settings, tmp_path / "drop")
    assert states(database) == ["SENT"] * 3
    assert receiver.associations() == 1
    for name in ("pacs", "archive"):
        assert instances_of(database, name) == instances_of(database, "reference")
        assert attempts_of(database, name) == attempts_of(database, "reference")
    if capabilities(sender).keeps_bytes:
        assert receiver.digests() == digests(database)
    same_data_sets(sender, receiver.directory.iterdir(), reference.directory.iterdir())
    same_data_sets(sender, files_of(archive, tmp_path / "archive"), reference.directory.iterdir())


@dcmtk.needs("storescp")
@orthanc.needs_orthanc
@pytest.mark.orthanc
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns of values in real files that are not valid
def test_real_files_arrive_identical_at_storescp_and_orthanc(
    pass_settings: Settings,
    database: engine.Database,
    storescp: Callable[..., dcmtk.Storescp],
    orthanc_server: Callable[..., orthanc.Orthanc],
    tmp_path: Path,
    sender: SenderName,
) -> None:
    """An instance that a sender does not send has a reason; all others have the rows of native.

    Each study is a run of its program, so that senders that have one get a file of each transfer syntax, or all files where
    EXAMSEND_TEST_ALL_FILES is set.
    """
    home = Path(pydicom.data.__file__).parent / "test_files"
    (tmp_path / "drop").mkdir()
    files = {path: identity.inspect(path).transfer_syntax_uid for path in sorted(home.glob("*.dcm")) if _whole(path)}
    every = capabilities(sender).live_progress or "EXAMSEND_TEST_ALL_FILES" in os.environ
    if not every:
        files = {path: uid for uid, path in {uid: path for path, uid in files.items()}.items()}
    for path in files:
        shutil.copy(path, tmp_path / "drop")
    flags = ("+xa", "-pm")
    reference, receiver, archive = storescp(*flags), storescp(*flags), orthanc_server()
    add(pass_settings, reference.address, name="reference")
    add(pass_settings, receiver.address, name="pacs", sender=sender)
    add(pass_settings, archive.address, name="archive", sender=sender)
    deliver(pass_settings, tmp_path / "drop")
    wanted, found = instances_of(database, "reference"), instances_of(database, "pacs")
    assert [row[0] for row in found] == [row[0] for row in wanted]
    others = rows(
        database,
        "SELECT i.sop_instance_uid, i.error_comment FROM exam_batch_instances i JOIN exam_batches b ON b.id = i.batch_id"
        " JOIN storage_backend_configs d ON d.id = b.destination_id"
        " WHERE d.name = 'pacs' AND i.outcome NOT IN ('STORED', 'SUPERSEDED')",
    )
    unsent = dict(others)
    assert all(unsent.values()), unsent
    refused_by_peer = {row[0] for row in wanted if row[2] not in {"STORED", "SUPERSEDED"}}
    mine = set(unsent) - refused_by_peer
    assert len(mine) <= (0 if capabilities(sender).live_progress else 8), {uid: unsent[uid] for uid in mine}
    sent = {row[0] for row in found} - set(unsent)
    assert [row[2:4] for row in found if row[0] in sent] == [row[2:4] for row in wanted if row[0] in sent]
    have, native = data_sets(receiver.directory.iterdir()), data_sets(reference.directory.iterdir())
    assert set(have) == set(native) - mine
    exact = capabilities(sender).keeps_bytes
    for uid, data in have.items():
        assert content(data, exact=exact) == content(native[uid], exact=exact), (sender, uid)
    stored = one(database, "SELECT count(*) FROM exam_batch_instances i JOIN exam_batches b ON b.id = i.batch_id"
                 " JOIN storage_backend_configs d ON d.id = b.destination_id"
                 " WHERE d.name = 'archive' AND i.outcome = 'STORED'")  # fmt: skip
    at_archive = data_sets(files_of(archive, tmp_path / "archive"))
    assert len(at_archive) == stored > (30 if every else 5)
    for uid in set(at_archive) & set(native):
        # Orthanc encodes some data sets anew.
        assert content(at_archive[uid], exact=False) == content(native[uid], exact=False), (sender, uid)


@dcmtk.needs("storescp")
@pytest.mark.storescp
def test_a_receiver_that_is_not_trusted_holds_the_destination_and_costs_no_attempt(
    settings: Settings, database: engine.Database, storescp: Callable[..., dcmtk.Storescp], tmp_path: Path,
    certificates: Path, sender: SenderName,
) -> None:  # fmt: skip
    samples.ct_study(tmp_path / "drop", 2, size=8)
    receiver = storescp("+tls", str(certificates / "stranger.key"), str(certificates / "stranger.pem"), "-ic")
    url, secure = settings.database_url, ["--tls", "--tls-ca-file", str(certificates / "ca.pem")]
    if not capabilities(sender).checks_certificate_name:
        refused = cli(
            "destination", "add", "pacs", receiver.address, "--sender", sender, *secure, url=url, **environment()
        )
        assert refused.returncode == 78, refused
        assert "--no-tls-check-name" in refused.stderr
        secure.append("--no-tls-check-name")
    for words in (
        ("destination", "add", "pacs", receiver.address, "--sender", sender, "--quiet-period", "0", *secure),
        ("ingest", tmp_path / "drop"),
        ("finalize",),
    ):
        done = cli(*words, url=url, **{**environment(), "EXAMSEND_SETTLE": "0"})
        assert done.returncode == 0, done.stderr
    done = cli("send", url=url, **environment())
    assert done.returncode == 0, done.stderr
    assert rows(database, "SELECT status, attempt_count FROM exam_batches") == [("READY", 0)]
    assert rows(database, "SELECT result, established, stored FROM send_attempts") == [("TLS_FAILED", False, 0)]
    held = one(database, "SELECT held_reason FROM storage_backend_configs WHERE held_until > clock_timestamp()")
    assert "certif" in held.lower()
    answer = cli("destination", "echo", "pacs", url=url, **environment())
    assert (answer.returncode, "certificate" in answer.stdout) == (1, True), answer


@pytest.mark.parametrize("set_up", [True, False], ids=["service", "shell"])
@dcmtk.needs("storescp")
@pytest.mark.storescp
def test_credentials_of_systemd_are_used_where_they_are(
    settings: Settings, database: engine.Database, storescp: Callable[..., dcmtk.Storescp], tmp_path: Path,
    certificates: Path, set_up: bool,
) -> None:  # fmt: skip
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    for name in ("client.key", "client.pem", "ca.pem"):
        (credentials / name).write_bytes((certificates / name).read_bytes())
        (credentials / name).chmod(0o400)
    samples.ct_study(tmp_path / "drop", 2, size=8)
    own = ["+tls", str(certificates / "server.key"), str(certificates / "server.pem"), "-rc"]
    receiver = storescp(*own, "+cf", str(certificates / "ca.pem"))
    paths = {f"--tls-{what}-file": f"$CREDENTIALS_DIRECTORY/{name}"
             for what, name in (("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key"))}  # fmt: skip
    options = [word for pair in paths.items() for word in pair]
    added = cli("destination", "add", "pacs", receiver.address, "--quiet-period", "0", "--tls", *options,
                url=settings.database_url)  # fmt: skip
    assert added.returncode == 0, added.stderr
    assert "LoadCredential" in added.stderr
    for words in (("ingest", tmp_path / "drop"), ("finalize",)):
        cli(*words, url=settings.database_url, EXAMSEND_SETTLE="0")
    here = {"CREDENTIALS_DIRECTORY": str(credentials)} if set_up else {}
    sent = cli("send", url=settings.database_url, **here)
    assert sent.returncode == 0, sent.stderr
    if set_up:
        assert states(database) == ["SENT"]
        assert receiver.digests() == digests(database)
    else:
        assert rows(database, "SELECT status, attempt_count FROM exam_batches") == [("READY", 0)]
        assert one(database, "SELECT held_code FROM storage_backend_configs") == "MISCONFIGURED"
        assert "$CREDENTIALS_DIRECTORY/" in one(database, "SELECT held_reason FROM storage_backend_configs")


@pytest.mark.parametrize(
    "path", ["$CREDENTIALS_DIRECTORY/", "$CREDENTIALS_DIRECTORY/../x", "$CREDENTIALS_DIRECTORY/a/b", "$HOME/x"]
)
def test_only_the_name_of_a_credential_is_taken(database_url: str, path: str) -> None:
    done = cli("destination", "add", "pacs", "A@127.0.0.1:104", "--tls", "--tls-ca-file", path, url=database_url)
    assert (done.returncode, "--tls-ca-file must be" in done.stderr) == (2, True), done.stderr


def test_what_a_sender_can_and_cannot_do_is_shown(pass_settings: Settings, sender: SenderName) -> None:
    add(pass_settings, "A@127.0.0.1:104", sender=sender)
    shown = cli("destination", "show", "pacs", url=pass_settings.database_url, COLUMNS="1000", **environment()).stdout
    said = dict(re.findall(rf"{sender} (can|cannot)\s+(.*?)\s*$", shown, re.MULTILINE))
    can = capabilities(sender)
    for field in dataclasses.fields(Capabilities):
        value = getattr(can, field.name)
        if isinstance(value, bool):
            phrase = field.name.replace("_", " ")
            assert (phrase in said["can"].split(", "), phrase in said["cannot"].split(", ")) == (value, not value)
    for note in can.notes:
        assert note in shown
