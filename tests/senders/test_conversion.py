"""Data sets are converted by worker processes: a decoder that crashes, hangs or needs too much costs one instance at most."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest

from examsend import senders
from examsend.config.settings import Settings
from examsend.dicom import uids
from examsend.dimse import conversion
from examsend.dimse.payload import Unusable
from examsend.errors import ConfigError, LostClaim
from examsend.states import SenderName, Transcode
from examsend.transfer import End, Item, Peer, Problem
from tests.peers import dcmtk
from tests.peers.scripted import Script, scripted
from tests.senders.test_conformance import Watch, items_of, sent, study

pytest.importorskip("numpy", reason="the extra transcode is not installed")

TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"
RLE = TEST_FILES / "MR_small_RLE.dcm"
UNCOMPRESSED = Script(
    accept=lambda _class, syntax: syntax in {uids.IMPLICIT_VR_LITTLE_ENDIAN, uids.EXPLICIT_VR_LITTLE_ENDIAN}
)


@pytest.fixture(params=[SenderName.NATIVE, SenderName.PYNETDICOM])
def sender(request: pytest.FixtureRequest) -> Any:
    """One of the senders that convert."""
    return senders.get(request.param, Settings())


NATIVE = senders.get(SenderName.NATIVE, Settings())


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where a worker, a temporary file or a descriptor is left behind."""
    place = tmp_path / "converted"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert list(place.iterdir()) == []
    assert _workers(os.getpid()) == []
    assert len(os.listdir("/proc/self/fd")) <= before


def _workers(parent: int) -> list[int]:
    """Return the process ids of the workers of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended
            if int(fields[1]) == parent and (b"planted" in command or b"dimse.worker" in command):
                found.append(int(entry.name))
    return found


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the workers of ``planted``."""
    monkeypatch.setattr(conversion, "_WORKER", "tests.senders.planted")


def compressed(tmp_path: Path, *names: str) -> list[Item]:
    """Write an RLE file under each name; return their items, with different UIDs."""
    paths = [tmp_path / f"{name}.dcm" for name in names]
    for path in paths:
        path.write_bytes(RLE.read_bytes())
    return [dataclasses.replace(i, sop_instance_uid=f"1.2.{i.id}") for i in items_of(paths)]


def _convert(sender: Any, items: list[Item], script: Script = UNCOMPRESSED, **values: Any) -> tuple[Any, Watch, Any]:
    with scripted(script) as receiver:
        end, watch = sent(sender, receiver, items, transcode=Transcode.FALLBACK, **values)
    return end, watch, receiver


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_order_is_kept(sender: Any, tmp_path: Path) -> None:
    """Also between those that are converted and those that are not."""
    items = [item for pair in zip(compressed(tmp_path, *"abcdefgh"), study(tmp_path, 8), strict=True) for item in pair]
    end, watch, receiver = _convert(sender, items)
    assert (end.end, watch.problems) == (End.RELEASED, [])
    assert receiver.offered == [i.sop_instance_uid for i in items]
    assert [a.item for a in watch.answers] == items


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGFPE"])
@pytest.mark.usefixtures("planted")
def test_a_decoder_that_crashes_costs_one_instance(sender: Any, tmp_path: Path, name: str) -> None:
    items = compressed(tmp_path, "a", f"crash-{name}", "b", "c", "d")
    end, watch, _ = _convert(sender, items)
    assert end.end is End.RELEASED
    [problem] = watch.problems
    assert (problem.item, problem.problem) == (items[1], Problem.UNCONVERTIBLE)
    assert problem.sentence == (
        "the data set cannot be converted from transfer syntax 1.2.840.10008.1.2.5 to 1.2.840.10008.1.2.1:"
        f" the decoder crashed ({name})"
    )
    assert [a.item for a in watch.answers] == [items[0], *items[2:]]


@pytest.mark.parametrize(
    ("name", "problem", "why"),
    [
        ("full", Problem.UNREADABLE, "No space left on device"),
        ("hungry", Problem.UNCONVERTIBLE, "needs more memory"),
        ("error", Problem.UNCONVERTIBLE, "the decoder failed (RuntimeError)"),
        ("crash-SIGKILL", Problem.UNREADABLE, "was ended (SIGKILL)"),
    ],
)
@pytest.mark.usefixtures("planted")
def test_a_conversion_that_fails_costs_one_instance(tmp_path: Path, name: str, problem: Problem, why: str) -> None:
    """What may be over at the next attempt is UNREADABLE, the rest UNCONVERTIBLE."""
    items = compressed(tmp_path, name, "a", "b")
    end, watch, _ = _convert(NATIVE, items)
    assert end.end is End.RELEASED
    assert [(p.item, p.problem) for p in watch.problems] == [(items[0], problem)]
    assert why in watch.problems[0].sentence
    assert [a.item for a in watch.answers] == items[1:]


@pytest.mark.usefixtures("planted")
def test_a_conversion_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer waits longer than its answer may take: that time-out is not for the conversion."""
    monkeypatch.setattr(conversion, "_SHORTEST_LIMIT", 4.0)
    items = compressed(tmp_path, "hang", "a")
    end, watch, _ = _convert(NATIVE, items)
    assert (end.end, end.sentence) == (End.RELEASED, "")
    assert [(p.item, p.problem) for p in watch.problems] == [(items[0], Problem.UNCONVERTIBLE)]
    assert "took longer than 4 s" in watch.problems[0].sentence
    assert [a.item for a in watch.answers] == items[1:]


@pytest.mark.storescp
@dcmtk.needs("storescp")
@pytest.mark.usefixtures("planted")
def test_a_peer_that_goes_away_is_noticed_during_a_conversion(sender: Any, tmp_path: Path) -> None:
    """storescp takes uncompressed syntaxes only, unless it is told otherwise."""
    items = [*study(tmp_path, 1), *compressed(tmp_path, "hang")]
    port, stored = dcmtk.free_port(), tmp_path / "stored"
    stored.mkdir()
    receiver = subprocess.Popen(["storescp", "-od", str(stored), str(port)])

    def end() -> None:
        _wait_for(tmp_path / "hang.pid")
        time.sleep(0.5)  # the sender waits by then
        receiver.kill()

    thread = threading.Thread(target=end)
    watch = Watch()
    try:
        dcmtk.wait_until_listening(port, receiver)
        thread.start()
        peer = Peer("127.0.0.1", port, "STORESCP", "EXAMSEND", transcode=Transcode.FALLBACK)
        ended = sender.send(peer, items, watch)
        thread.join()
    finally:
        dcmtk.stop(receiver)
    assert (ended.end, ended.in_flight) == (End.CLOSED, ())
    assert [a.item for a in watch.answers] == items[:1]
    assert watch.problems == []


@pytest.mark.usefixtures("planted")
def test_a_peer_that_does_not_answer_is_noticed_during_a_conversion(sender: Any, tmp_path: Path) -> None:
    """With an asynchronous operations window the next instance may be converted before the one before is answered."""
    items = [*study(tmp_path, 1), *compressed(tmp_path, "hang")]
    silent = Script(accept=UNCOMPRESSED.accept, window=(8, 8), at={1: "silence"})
    end, watch, _ = _convert(sender, items, silent, async_window=8)
    assert (end.end, end.in_flight) == (End.TIMED_OUT, tuple(items[:1]))
    assert watch.problems == []


class _Lost(Watch):
    """A watcher that has lost its claim once a file exists."""

    def __init__(self, sign: Path) -> None:
        super().__init__()
        self.sign = sign

    def stop_at(self) -> float | None:
        if self.sign.exists():
            raise LostClaim("claimed by another sender")
        return None


@pytest.mark.usefixtures("planted")
def test_a_lost_claim_ends_a_conversion(sender: Any, tmp_path: Path) -> None:
    items = compressed(tmp_path, "hang")
    lost = _Lost(tmp_path / "hang.pid")
    with scripted(UNCOMPRESSED) as receiver, pytest.raises(LostClaim):
        sent(sender, receiver, items, lost, transcode=Transcode.FALLBACK)


@pytest.mark.usefixtures("planted")
def test_a_stop_ends_a_conversion_and_releases_the_association(sender: Any, tmp_path: Path) -> None:
    watch = Watch()

    def stop() -> None:
        _wait_for(tmp_path / "hang.pid")
        watch.stop.set()

    thread = threading.Thread(target=stop)
    thread.start()
    with scripted(UNCOMPRESSED) as receiver:
        end, _ = sent(sender, receiver, compressed(tmp_path, "hang", "a"), watch, transcode=Transcode.FALLBACK)
    thread.join()
    assert (end.end, watch.problems, watch.answers) == (End.RELEASED, [], [])


def test_a_file_that_was_changed_is_not_converted(sender: Any, tmp_path: Path) -> None:
    items = compressed(tmp_path, "a", "b", "c")
    content = bytearray(Path(items[1].path).read_bytes())
    content[-100] ^= 1
    Path(items[1].path).write_bytes(content)
    Path(items[2].path).unlink()
    end, watch, _ = _convert(sender, items)
    assert end.end is End.RELEASED
    assert [(p.item, p.problem) for p in watch.problems] == [(items[1], Problem.CHANGED), (items[2], Problem.MISSING)]
    assert [a.item for a in watch.answers] == items[:1]


def _at_once(senders_: list[tuple[list[Item], Watch]], port: int) -> list[threading.Thread]:
    """Begin an association for each list of items, each on a thread."""
    peer = Peer("127.0.0.1", port, "SCRIPTED", "EXAMSEND", transcode=Transcode.FALLBACK)
    threads = [threading.Thread(target=NATIVE.send, args=(peer, items, watch)) for items, watch in senders_]
    for thread in threads:
        thread.start()
    return threads


def test_associations_that_convert_at_the_same_time_share_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are processors for, however many destinations a pass serves."""
    monkeypatch.setattr(conversion, "_MOST_WORKERS", 2)
    given = [(compressed(tmp_path, *(f"{n}-{k}" for k in range(15))), Watch()) for n in range(5)]
    most = 0
    with scripted(UNCOMPRESSED) as receiver:
        threads = _at_once(given, receiver.port)
        while any(thread.is_alive() for thread in threads):
            most = max(most, len(_workers(os.getpid())))
            time.sleep(0.01)
    assert [[a.item for a in watch.answers] for _, watch in given] == [items for items, _ in given]
    assert 1 <= most <= 2


@pytest.mark.usefixtures("planted")
def test_an_association_that_ends_leaves_the_conversions_of_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began first, so that it started the workers."""
    monkeypatch.setattr(conversion, "_MOST_WORKERS", 1)
    hung, other = (compressed(tmp_path, "hang"), Watch()), (compressed(tmp_path, *"abc"), Watch())
    with scripted(UNCOMPRESSED) as receiver:
        threads = _at_once([hung], receiver.port)
        _wait_for(tmp_path / "hang.pid")
        threads += _at_once([other], receiver.port)
        time.sleep(0.5)
        hung[1].stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert (hung[1].answers, hung[1].problems) == ([], [])
    assert (other[1].problems, [a.item for a in other[1].answers]) == ([], other[0])


def test_a_conversion_may_take_the_longer_the_more_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may have a large result."""
    monkeypatch.setattr(conversion, "_SHORTEST_LIMIT", 0.0)
    monkeypatch.setattr(conversion, "_LOOK_SECONDS", 0.05)
    job = conversion.Job(compressed(tmp_path, "a")[0], uids.EXPLICIT_VR_LITTLE_ENDIAN)
    os.ftruncate(job.fd, conversion._SLOWEST * 60)
    workers = conversion.Workers()
    workers.begin(job, lambda: None)
    try:
        with pytest.raises(Unusable, match="not as long as"):
            job.future.result(60)
    finally:
        workers.close()
        job.close()


_SENDS = """
import sys
from pathlib import Path
from examsend.dimse import conversion
from tests.senders.test_conversion import NATIVE, Transcode, Watch, compressed, Peer
if sys.argv[3:]:
    conversion._WORKER = sys.argv[3]
items = compressed(Path(sys.argv[1]), "hang", "a", "b")
peer = Peer("127.0.0.1", int(sys.argv[2]), "SCRIPTED", "EXAMSEND", transcode=Transcode.FALLBACK)
NATIVE.send(peer, items, Watch())
"""


def test_workers_end_with_a_sender_that_is_killed(tmp_path: Path) -> None:
    with scripted(UNCOMPRESSED) as receiver:
        process = subprocess.Popen(
            [sys.executable, "-c", _SENDS, str(tmp_path), str(receiver.port), "tests.senders.planted"],
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(tmp_path / "hang.pid")
            workers = _workers(process.pid)
        finally:
            process.kill()
            process.wait()
    assert workers
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlives its sender"
        time.sleep(0.02)


@pytest.mark.usefixtures("planted")
def test_signals_to_all_processes_do_not_end_a_worker(tmp_path: Path) -> None:
    """As of a terminal or of systemd. The sender ends its workers."""
    watch = Watch()
    signalled = []

    def signals() -> None:
        _wait_for(tmp_path / "hang.pid")
        for pid in _workers(os.getpid()):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
        time.sleep(0.5)
        signalled.extend(_workers(os.getpid()))
        watch.stop.set()

    thread = threading.Thread(target=signals)
    thread.start()
    with scripted(UNCOMPRESSED) as receiver:
        sent(NATIVE, receiver, compressed(tmp_path, "hang"), watch, transcode=Transcode.FALLBACK)
    thread.join()
    assert len(signalled) == 1


_MEASURES = """
import resource, sys
from pathlib import Path
from tests.senders.test_conversion import NATIVE, Transcode, Watch, items_of, Peer
items = items_of([Path(sys.argv[1])])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
watch = Watch()
NATIVE.send(Peer("127.0.0.1", int(sys.argv[2]), "SCRIPTED", "EXAMSEND", transcode=Transcode.FALLBACK), items, watch)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert watch.statuses == [0], watch.problems
print((after - before) // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, watch.answers[0].bytes_sent)
"""


def test_a_conversion_of_300_frames_holds_few_of_them_in_memory(tmp_path: Path) -> None:
    """Decoded they have 157 MB. An interpreter with numpy and pydicom has some 60 MB itself."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.encoders import RLELosslessEncoder

    data_set = pydicom.dcmread(RLE)
    frame = RLELosslessEncoder.encode(
        bytes(512 * 512 * 2), rows=512, columns=512, bits_allocated=16, bits_stored=16, samples_per_pixel=1,
        number_of_frames=1, pixel_representation=0, photometric_interpretation="MONOCHROME2",
    )  # fmt: skip
    data_set.Rows = data_set.Columns = 512
    data_set.NumberOfFrames = 300
    data_set.PixelData = encapsulate([frame] * 300)
    path = tmp_path / "frames.dcm"
    data_set.save_as(path)
    with scripted(UNCOMPRESSED) as receiver:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURES, str(path), str(receiver.port)],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
    sender_mb, worker_mb, length = (int(word) for word in done.stdout.split())
    assert length > 300 * 512 * 512 * 2
    assert sender_mb < 40
    assert worker_mb < 130


def test_without_conversion_no_worker_is_imported(tmp_path: Path) -> None:
    """Importing costs time, and most associations convert nothing."""
    program = (
        "import sys; from examsend.dimse import association;"
        "print([m for m in ('examsend.dimse.conversion', 'examsend.dicom.transcode', 'numpy', 'pydicom') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_destination_that_converts_needs_the_extra(sender: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    sender.check(Peer("h", 104, "A", "B", transcode=Transcode.FALLBACK))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jpeg_ls" else real(name))
    sender.check(Peer("h", 104, "A", "B"))
    with pytest.raises(ConfigError, match=r"jpeg_ls .* pip install 'examsend\[transcode\]'"):
        sender.check(Peer("h", 104, "A", "B", transcode=Transcode.FALLBACK))
