"""Real compressed files reach a real receiver that takes only uncompressed syntaxes, with the pixels that DCMTK decodes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest

from examsend import senders
from examsend.config.settings import Settings
from examsend.dicom import identity, uids
from examsend.states import SenderName, Transcode
from examsend.transfer import End, Item, Peer, Problem
from tests.peers import dcmtk
from tests.senders.test_conformance import Watch, items_of

numpy = pytest.importorskip("numpy", reason="the extra transcode is not installed")

pytestmark = [pytest.mark.storescp, pytest.mark.dcmtk, dcmtk.needs("storescp"), dcmtk.needs("dcmdjpls")]

TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"

_DECODERS = {
    "1.2.840.10008.1.2.5": "dcmdrle",
    "1.2.840.10008.1.2.4.57": "dcmdjpeg",
    "1.2.840.10008.1.2.4.70": "dcmdjpeg",
    "1.2.840.10008.1.2.4.80": "dcmdjpls",
    "1.2.840.10008.1.2.4.81": "dcmdjpls",
}
"""{transfer syntax: the tool of DCMTK that decodes it}"""

LOSSLESS = (
    "MR_small_RLE.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "rtdose_rle.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
)
LOSSY = ("JPEG-lossy.dcm", "SC_rgb_jpeg_dcmtk.dcm")


@pytest.fixture(params=[SenderName.NATIVE, SenderName.PYNETDICOM])
def sender(request: pytest.FixtureRequest) -> Any:
    """One of the senders that convert."""
    return senders.get(request.param, Settings())


def items(directory: Path, *names: str) -> list[Item]:
    """Copy files of pydicom, each with a SOP Instance UID of its own, since some share one; return their items."""
    for n, name in enumerate(names):
        data_set = pydicom.dcmread(TEST_FILES / name)
        data_set.SOPInstanceUID = data_set.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n}"
        data_set.save_as(directory / name)
    return items_of([directory / name for name in names])


@contextmanager
def receiver(directory: Path, given: list[Item], *syntaxes: str) -> Iterator[dcmtk.Storescp]:
    """Run a storescp that accepts the SOP classes of items in some transfer syntaxes only."""
    directory.mkdir()
    lines = ["[[TransferSyntaxes]]", "[Some]"]
    lines += [f"TransferSyntax{n} = {syntax}" for n, syntax in enumerate(syntaxes, 1)]
    lines += ["[[PresentationContexts]]", "[All]"]
    classes = sorted({i.sop_class_uid for i in given})
    lines += [f"PresentationContext{n} = {kind}\\Some" for n, kind in enumerate(classes, 1)]
    lines += ["[[Profiles]]", "[Default]", "PresentationContexts = All"]
    profile = directory / "profile.cfg"
    profile.write_text("\n".join(lines) + "\n")
    with dcmtk.storescp(directory / "receiver", "-xf", str(profile), "Default") as running:
        yield running


def _send(sender: Any, running: dcmtk.Storescp, given: list[Item], transcode: Transcode) -> Watch:
    peer = Peer("127.0.0.1", running.port, "STORESCP", "EXAMSEND", transcode=transcode)
    watch = Watch()
    end = sender.send(peer, given, watch)
    assert end.end is End.RELEASED, end.sentence
    assert set(watch.statuses) <= {0}
    return watch


def _stored(running: dcmtk.Storescp) -> dict[str, Path]:
    return {identity.inspect(path).sop_instance_uid: path for path in running.directory.iterdir()}


def _decoded(item: Item, directory: Path) -> Any:
    """Return what DCMTK decodes of a file."""
    path = directory / f"decoded-{Path(item.path).name}"
    keep_colours = ["+cn"] if _DECODERS[item.transfer_syntax_uid] == "dcmdjpeg" else []
    tool = _DECODERS[item.transfer_syntax_uid]
    subprocess.run([tool, *keep_colours, item.path, str(path)], check=True, timeout=30)
    return pydicom.dcmread(path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("syntax", [uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN])
def test_lossless_files_arrive_with_the_pixels_that_another_decoder_finds(
    sender: Any, tmp_path: Path, syntax: str
) -> None:
    given = items(tmp_path, *LOSSLESS)
    with receiver(tmp_path / "r", given, syntax) as running:
        watch = _send(sender, running, given, Transcode.FALLBACK)
        assert watch.problems == []
        stored = _stored(running)
        assert stored.keys() == {i.sop_instance_uid for i in given}
        for item in given:
            arrived, expected = pydicom.dcmread(stored[item.sop_instance_uid]), _decoded(item, tmp_path)
            assert arrived.file_meta.TransferSyntaxUID == syntax
            assert numpy.array_equal(arrived.pixel_array, expected.pixel_array), item.path
            source = pydicom.dcmread(item.path)
            for data_set in (arrived, source):
                del data_set.PixelData
                if "PlanarConfiguration" in data_set:
                    del data_set.PlanarConfiguration
            assert arrived == source


def test_what_the_receiver_takes_as_it_is_arrives_byte_for_byte(sender: Any, tmp_path: Path) -> None:
    given = items(tmp_path, *LOSSLESS)
    own = {i.transfer_syntax_uid for i in given}
    native = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)
    with receiver(tmp_path / "r", given, *native, *sorted(own)) as running:
        _send(sender, running, given, Transcode.FALLBACK)
        assert running.digests() == {i.sop_instance_uid: i.content_digest.hex() for i in given}


def test_lossy_files_are_refused_with_a_reason_and_the_others_go_on(sender: Any, tmp_path: Path) -> None:
    given = items(tmp_path, LOSSLESS[0], *LOSSY, "JPEG2000.dcm", "CT_small.dcm")
    with receiver(tmp_path / "r", given, uids.EXPLICIT_VR_LITTLE_ENDIAN) as running:
        watch = _send(sender, running, given, Transcode.FALLBACK)
        assert _stored(running).keys() == {given[0].sop_instance_uid, given[-1].sop_instance_uid}
    reasons = {Path(p.item.path).name: (p.problem, p.sentence) for p in watch.problems}
    assert reasons.keys() == {*LOSSY, "JPEG2000.dcm"}
    problem, sentence = reasons[LOSSY[0]]
    assert problem is Problem.CONTEXT_REJECTED
    assert sentence.endswith("in 1.2.840.10008.1.2.4.51, which cannot be converted without loss")
    problem, sentence = reasons["JPEG2000.dcm"]
    assert problem is Problem.UNCONVERTIBLE
    assert "with loss" in sentence
    assert "1.2.840.10008.1.2.4.91" in sentence


def test_nothing_is_converted_unless_the_destination_asks_for_it(sender: Any, tmp_path: Path) -> None:
    given = items(tmp_path, LOSSLESS[0], "CT_small.dcm")
    with receiver(tmp_path / "r", given, uids.EXPLICIT_VR_LITTLE_ENDIAN) as running:
        watch = _send(sender, running, given, Transcode.NEVER)
        assert _stored(running).keys() == {given[1].sop_instance_uid}
    assert [p.problem for p in watch.problems] == [Problem.CONTEXT_REJECTED]
    assert "transcode is never" in watch.problems[0].sentence


@pytest.mark.parametrize("transcode", [t for t in Transcode if t.target])
def test_with_a_target_every_image_without_loss_arrives_in_it(tmp_path: Path, transcode: Transcode) -> None:
    """A file whose loss only its codestream shows, and a lossy one, arrive as they are."""
    assert transcode.target
    given = items(
        tmp_path,
        "MR_small_jpeg_ls_lossless.dcm",
        "CT_small.dcm",
        "SC_rgb_rle.dcm",
        "MR_small_implicit.dcm",
        "JPEG2000.dcm",
        LOSSY[0],
    )
    convertible, others = given[:4], given[4:]
    syntaxes = {transcode.target, *(i.transfer_syntax_uid for i in given)}
    with receiver(tmp_path / "r", given, *sorted(syntaxes)) as running:
        watch = _send(senders.get(SenderName.NATIVE, Settings()), running, given, transcode)
        assert watch.problems == []
        stored = {uid: identity.inspect(path) for uid, path in _stored(running).items()}
    assert [stored[i.sop_instance_uid].transfer_syntax_uid for i in convertible] == [transcode.target] * 4
    for item in others:
        assert stored[item.sop_instance_uid].content_digest == item.content_digest
