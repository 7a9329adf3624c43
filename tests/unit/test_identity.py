"""Identification of files: complete files are accepted, truncated files are not, wherever they are truncated."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from examsend.demo import samples
from examsend.dicom import identity
from examsend.errors import FileProblem, Incomplete, NotDicom, Unacceptable

HOME = Path(pydicom.data.__file__).parent
REAL = sorted(p for part in ("test_files", "charset_files") for p in (HOME / part).rglob("*") if p.is_file())

NO_UID = "MISSING_UID"
REFUSED = {
    "JPEGLSNearLossless_08.dcm": NO_UID,
    "JPEGLSNearLossless_16.dcm": NO_UID,
    "SC_rgb_jls_lossy_line.dcm": NO_UID,
    "SC_rgb_jls_lossy_sample.dcm": NO_UID,
    "UN_sequence.dcm": NO_UID,
    "chrSQEncoding.dcm": NO_UID,
    "chrSQEncoding1.dcm": NO_UID,
    "empty_charset_LEI.dcm": NO_UID,
    "nested_priv_SQ.dcm": NO_UID,
    "no_meta_group_length.dcm": NO_UID,
    "priv_SQ.dcm": NO_UID,
    "meta_missing_tsyntax.dcm": "NO_TRANSFER_SYNTAX",
    "SC_rgb_jpeg.dcm": "WRONG_SYNTAX",
    "MR_truncated.dcm": "TRUNCATED",
    "rtplan_truncated.dcm": "TRUNCATED",
}
"""Real files of pydicom that cannot be registered, each with the code of the reason."""


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.relative_to(HOME).as_posix())
def test_uids_of_real_files_match_pydicom(path: Path) -> None:
    try:
        found = identity.inspect(path)
    except NotDicom as problem:
        assert problem.code == "DICOMDIR" or not _pydicom_reads(path)
    except FileProblem as problem:
        assert REFUSED.get(path.name) == problem.code
    else:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        assert path.name not in REFUSED
        assert found.study_instance_uid == dataset.StudyInstanceUID
        assert found.sop_instance_uid == dataset.SOPInstanceUID
        assert found.sop_class_uid == dataset.SOPClassUID
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        assert syntax is None or found.transfer_syntax_uid == syntax


def _pydicom_reads(path: Path) -> bool:
    try:
        pydicom.dcmread(path)
    except Exception:
        return False
    return True


def _boundaries(content: bytes, offset: int, *, implicit: bool, little: bool) -> set[int]:
    """Return the ends of the top-level elements, read by pydicom: a file truncated there is not recognised as truncated."""
    stream = pydicom.filebase.DicomBytesIO(content)
    stream.seek(offset)
    ends = set()
    for element in pydicom.filereader.data_element_generator(stream, implicit, little):
        del element
        ends.add(stream.tell())
    return ends


def _identified(content: bytes, tmp_path: Path) -> bool:
    file = tmp_path / "cut.dcm"
    file.write_bytes(content)
    try:
        identity.inspect(file)
    except FileProblem:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "implicit", "little"),
    [
        ("rtplan.dcm", True, True),
        ("SC_rgb_small_odd.dcm", False, True),
        ("SC_rgb_small_odd_big_endian.dcm", False, False),
    ],
)
def test_a_file_truncated_inside_an_element_is_not_accepted(
    tmp_path: Path, name: str, implicit: bool, little: bool
) -> None:
    content = (HOME / "test_files" / name).read_bytes()
    offset = identity.inspect(HOME / "test_files" / name).dataset_offset
    ends = _boundaries(content, offset, implicit=implicit, little=little)
    taken = {cut for cut in range(len(content)) if _identified(content[:cut], tmp_path)}
    # A single zero byte after an element is either the first byte of a big endian tag or padding.
    assert taken <= ends | (set() if little else {end + 1 for end in ends})
    assert _identified(content, tmp_path)


def test_truncated_encapsulated_pixel_data_is_not_accepted(tmp_path: Path) -> None:
    content = (HOME / "test_files" / "SC_rgb_rle.dcm").read_bytes()
    begin = content.rindex(b"\xe0\x7f\x10\x00OB") + 1
    assert not [cut for cut in range(begin, len(content), 7) if _identified(content[:cut], tmp_path)]


def test_a_truncated_deflated_data_set_is_not_accepted(tmp_path: Path) -> None:
    content = (HOME / "test_files" / "image_dfl.dcm").read_bytes()
    assert _identified(content, tmp_path)
    assert not [cut for cut in range(400, len(content) - 2, 13) if _identified(content[:cut], tmp_path)]


def _image(tmp_path: Path, *extra: bytes, pixels: bytes = b"\0" * 128, rows: int = 8, bits: int = 16) -> Path:
    image = samples.Image(samples.CT, "1.2", "1.3", 1, 1, rows, 8, bits=bits)
    content = samples.data_set(image, "1.4", samples.element(0x7FE00010, "OW", pixels)) + b"".join(extra)
    path = tmp_path / "file.dcm"
    path.write_bytes(samples.file_of(content, samples.CT, "1.4"))
    return path


def test_pixel_data_shorter_than_its_geometry_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match="geometry needs 128"):
        identity.inspect(_image(tmp_path, pixels=b"\0" * 126))


@pytest.mark.parametrize("pixels", [b"", b"\0" * 128, b"\0" * 400])
def test_pixel_data_that_is_empty_exact_or_padded_is_accepted(tmp_path: Path, pixels: bytes) -> None:
    identity.inspect(_image(tmp_path, pixels=pixels))


def test_one_bit_pixels_are_packed(tmp_path: Path) -> None:
    identity.inspect(_image(tmp_path, pixels=b"\0" * 8, bits=1))
    with pytest.raises(Incomplete):
        identity.inspect(_image(tmp_path, pixels=b"\0" * 6, bits=1))


def test_trailing_zeros_and_data_set_trailing_padding_are_accepted(tmp_path: Path) -> None:
    identity.inspect(_image(tmp_path, b"\0" * 1000))
    identity.inspect(_image(tmp_path, samples.element(0xFFFCFFFC, "OB", b"\0" * 10)))


def _nested(depth: int) -> bytes:
    return b"".join(
        struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
        for _ in range(depth)
    ) + b"".join(struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) for _ in range(depth))


def test_sequences_nested_100_deep_are_accepted(tmp_path: Path) -> None:
    identity.inspect(_image(tmp_path, _nested(100)))


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_sequences_nested_a_thousand_deep_are_rejected(tmp_path: Path, depth: int) -> None:
    with pytest.raises(Unacceptable, match="nested"):
        identity.inspect(_image(tmp_path, _nested(depth)))


@pytest.mark.parametrize(
    ("uid", "code"),
    [("1.2.x", "INVALID_UID"), ("1." + "2" * 63, "INVALID_UID"), ("", "MISSING_UID"), ("1..2", "INVALID_UID")],
)
def test_an_invalid_or_missing_study_instance_uid_is_rejected(tmp_path: Path, uid: str, code: str) -> None:
    image = samples.Image(samples.CT, uid, "1.3", 1, 1, 8, 8)
    path = tmp_path / "file.dcm"
    path.write_bytes(samples.file_of(samples.data_set(image, "1.4", b""), samples.CT, "1.4"))
    with pytest.raises(Unacceptable) as caught:
        identity.inspect(path)
    assert caught.value.code == code
    assert not uid or uid not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"\0" * 200, b"hello", b"\x7fELF" + b"\0" * 300, b"<html>" * 100, b"PK\x03\x04" * 90]
)
def test_a_file_that_is_not_dicom_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotDicom):
        identity.inspect(path)


def test_an_empty_file_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Incomplete):
        identity.inspect(tmp_path / "file")


def test_a_pipe_is_not_dicom(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotDicom):
        identity.inspect(tmp_path / "pipe")


def test_a_deflated_data_set_that_inflates_beyond_the_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examsend.dicom.source.MAX_INFLATED", 1 << 20)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = deflate.compress(b"\0" * (1 << 22)) + deflate.flush()
    path = tmp_path / "file"
    path.write_bytes(samples.file_of(content, samples.CT, "1.4", "1.2.840.10008.1.2.1.99"))
    with pytest.raises(Unacceptable, match="inflates"):
        identity.inspect(path)


def test_inspecting_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    image = samples.Image(samples.CT, "1.2", "1.3", 1, 1, 8192, 16384, frames=2)
    head = samples.data_set(image, "1.4", struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 1 << 29))
    path.write_bytes(samples.file_of(head, samples.CT, "1.4"))
    os.truncate(path, path.stat().st_size + (1 << 29))
    import tracemalloc

    tracemalloc.start()
    identity.inspect(path)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


_BASES = [
    (HOME / "test_files" / name).read_bytes()
    for name in ("rtplan.dcm", "SC_rgb_rle.dcm", "image_dfl.dcm", "SC_rgb_small_odd_big_endian.dcm", "CT_small.dcm")
]


@examples(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sampled_from(_BASES),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    cut=st.integers(0, 40_000),
)
def test_a_corrupted_file_raises_only_file_problems(
    tmp_path: Path, base: bytes, edits: list[tuple[int, bytes]], cut: int
) -> None:
    content = bytearray(base)
    for at, new in edits:
        content[at % len(content) : at % len(content) + len(new)] = new
    path = tmp_path / "file"
    path.write_bytes(content[:cut] if cut < len(content) else content)
    try:
        identity.inspect(path)
    except FileProblem as problem:
        assert str(problem).isprintable()
