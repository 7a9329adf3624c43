"""Every compressed file of pydicom, and of the open corpus where it is present, is sent to a storescp that takes only
uncompressed syntaxes: its pixels arrive as another decoder finds them, or it is refused with a reason."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest

from examsend import senders
from examsend.config.settings import Settings
from examsend.dicom import uids
from examsend.errors import FileProblem
from examsend.states import SenderName, Transcode
from examsend.transfer import End, Item, Peer, Problem
from tests.peers import dcmtk
from tests.senders.harness import Watch, items_of
from tests.senders.test_fall_back import receiver
from tests.unit.images import other_decoder, stored_values
from tests.unit.test_transcode_files import REFUSED

numpy = pytest.importorskip("numpy", reason="the extra transcode is not installed")

pytestmark = [pytest.mark.storescp, pytest.mark.dcmtk, dcmtk.needs("storescp"), dcmtk.needs("dcmdjpls")]

FOLDERS = (
    Path(pydicom.data.__file__).parent,
    Path(__file__).resolve().parents[3] / "shared" / "corpus" / "open",
)

_TAKEN = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)


def _compressed() -> Iterator[Item]:
    """Yield the compressed files that ingest takes, each content once, under SOP Instance UIDs of their own."""
    seen = set()
    for path in sorted(path for folder in FOLDERS for path in folder.rglob("*") if path.is_file()):
        try:
            [item] = items_of([path])
        except FileProblem:
            continue
        if item.transfer_syntax_uid not in uids.NATIVE and item.content_digest not in seen:
            seen.add(item.content_digest)
            yield dataclasses.replace(item, id=len(seen), sop_instance_uid=f"1.2.3.{len(seen)}")


def _same_pixels(item: Item, arrived: Path, directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        after = pydicom.dcmread(arrived)
    if "PixelData" not in after:
        return
    other: Any = other_decoder(Path(item.path), directory)
    expected = stored_values(after, other) if isinstance(other, bytes) else stored_values(other)
    assert numpy.array_equal(stored_values(after), expected), item.path


def test_each_lossless_file_arrives_with_its_pixels_and_the_others_have_a_reason(tmp_path: Path) -> None:
    given = list(_compressed())
    assert len({i.transfer_syntax_uid for i in given}) >= 7
    watch = Watch()
    with receiver(tmp_path / "r", given, *_TAKEN) as running:
        peer = Peer("127.0.0.1", running.port, "STORESCP", "EXAMSEND", transcode=Transcode.FALLBACK)
        end = senders.get(SenderName.NATIVE, Settings()).send(peer, given, watch)
        assert (end.end, end.sentence) == (End.RELEASED, "")
        stored = {path.name.partition(".")[2]: path for path in running.directory.iterdir()}
    assert set(watch.statuses) == {0}
    refused = {p.item.id: p for p in watch.problems}
    arrived = {a.item.id for a in watch.answers}
    assert not refused.keys() & arrived
    assert refused.keys() | arrived == {i.id for i in given}
    assert len(stored) == len(arrived)
    for item in given:
        file = Path(item.path).name
        problem = refused.get(item.id)
        if problem is None:
            assert file not in REFUSED
            _same_pixels(item, stored[item.sop_instance_uid], tmp_path)
        elif problem.problem is Problem.CONTEXT_REJECTED:
            assert problem.sentence.endswith(f"in {item.transfer_syntax_uid}, which cannot be converted without loss")
        else:
            assert problem.problem is Problem.UNCONVERTIBLE
            assert REFUSED[file] in problem.sentence
            assert item.transfer_syntax_uid in problem.sentence
