"""What is sent is what was ingested, whatever happens to the path meanwhile; what no receiver takes is not sent."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom.data
import pytest
from blake3 import blake3

from examsend.demo import samples
from examsend.dicom import uids
from examsend.states import SenderName
from examsend.transfer import End, Peer, Problem
from tests.peers import dcmtk, orthanc
from tests.peers.scripted import Script, scripted
from tests.senders.harness import Watch, items_of, made, sent

DEFLATED = Path(pydicom.data.__file__).parent / "test_files" / "image_dfl.dcm"


@contextmanager
def _swapping(current: Path, first: Path, other: Path, *, in_place: bool) -> Iterator[Callable[[], int]]:
    """Show the files of another directory under the same paths and then the first ones again, without a pause.

    ``current`` is a link to one of the directories, which is replaced by rename. ``in_place``: the last 1000 bytes of the first
    files are overwritten.
    """
    stop = threading.Event()
    swaps = itertools.count(1)
    done = 0

    def swap() -> None:
        nonlocal done
        files = [path.open("r+b", buffering=0) for path in sorted(first.iterdir())]
        tails = [[path.read_bytes()[-1000:] for path in sorted(place.iterdir())] for place in (other, first)]
        at = [file.seek(-1000, os.SEEK_END) for file in files]
        while not stop.is_set():
            for place, contents in zip((other, first), tails, strict=True):
                if in_place:
                    for file, offset, content in zip(files, at, contents, strict=True):
                        os.pwrite(file.fileno(), content, offset)
                else:
                    new = current.with_name("new")
                    new.symlink_to(place)
                    new.replace(current)
                done = next(swaps)
        for file in files:
            file.close()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield lambda: done
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("in_place", [False, True], ids=["renamed", "overwritten"])
def test_a_re_encoded_instance_has_the_bytes_that_were_ingested(
    wire_sender: Any, tmp_path: Path, in_place: bool
) -> None:
    """Forty files are swapped with files of the same size while they are sent in Implicit VR."""
    implicit = Script(accept=lambda _class, syntax: syntax == uids.IMPLICIT_VR_LITTLE_ENDIAN)
    first, other, current = tmp_path / "first", tmp_path / "other", tmp_path / "current"
    samples.ct_study(first, 40, size=256)
    other.mkdir()
    for path in first.iterdir():
        (other / path.name).write_bytes(path.read_bytes()[:-1000] + os.urandom(1000))
    current.symlink_to(first)
    items = items_of(sorted(current.iterdir()))
    with scripted(implicit) as receiver:
        sent(wire_sender, receiver, items)
        right = {r.sop_instance_uid: r.digest for r in receiver.stored}
    assert len(right) == 40
    stored = changed = 0
    with _swapping(current, first, other, in_place=in_place) as swapped:
        for _ in range(5):
            with scripted(implicit) as receiver:
                _, watch = sent(wire_sender, receiver, items)
                assert {p.problem for p in watch.problems} <= {Problem.CHANGED}
                changed += len(watch.problems)
                wrong = [r for r in receiver.stored if r.digest != right[r.sop_instance_uid]]
                assert len(wrong) == 0
                stored += len(receiver.stored)
        assert swapped() > 10
    assert stored > 0
    assert changed > 0


def test_a_data_set_of_odd_length_is_not_offered(sender: Any, tmp_path: Path) -> None:
    """As a row of an older version has it. The instances around it are stored."""
    first, odd, last = items_of(samples.ct_study(tmp_path, 3, size=16))
    with Path(odd.path).open("ab") as file:
        file.write(b"\0")
    content = Path(odd.path).read_bytes()
    digest = blake3(content[odd.dataset_offset :]).digest()
    odd = dataclasses.replace(odd, file_size=len(content), content_digest=digest)
    with scripted() as receiver:
        end, watch = sent(sender, receiver, [first, odd, last])
    assert end.end is End.RELEASED
    assert [(p.item, p.problem) for p in watch.problems] == [(odd, Problem.ODD_LENGTH)]
    # dcm4che sends in the order in which it reads its directory.
    assert sorted(a.item.id for a in watch.answers) == [first.id, last.id]


def test_a_deflated_stream_of_odd_length_is_sent_with_its_null_byte(wire_sender: Any) -> None:
    """PS3.5 A.5. The byte is no part of the data set; re-encoded, there is none."""
    [item] = items_of([DEFLATED])
    deflated = DEFLATED.read_bytes()[item.dataset_offset :]
    assert len(deflated) % 2
    with scripted() as receiver:
        end, watch = sent(wire_sender, receiver, [item])
    assert (end.end, watch.statuses) == (End.RELEASED, [0x0000])
    assert receiver.stored[0].digest == blake3(deflated + b"\0").hexdigest()
    with scripted(Script(accept=lambda _class, syntax: syntax == uids.IMPLICIT_VR_LITTLE_ENDIAN)) as receiver:
        end, watch = sent(wire_sender, receiver, [item])
    assert (end.end, watch.statuses) == (End.RELEASED, [0x0000])
    assert receiver.stored[0].size % 2 == 0


@dcmtk.needs("storescp")
@orthanc.needs_orthanc
def test_receivers_take_a_deflated_stream_of_odd_length(
    storescp: Callable[..., dcmtk.Storescp], orthanc_server: Callable[..., orthanc.Orthanc]
) -> None:
    """Without the NULL byte, storescp aborts ("Odd Fragment Length"), and Orthanc never answers."""
    items = items_of([DEFLATED])
    for port, aet in ((storescp("+xd").port, "STORESCP"), (orthanc_server().port, "ORTHANC")):
        watch = Watch()
        end = made(SenderName.NATIVE).send(Peer("127.0.0.1", port, aet, "X", answer_timeout=20), items, watch)
        assert (end.end, watch.statuses) == (End.RELEASED, [0x0000]), aet
