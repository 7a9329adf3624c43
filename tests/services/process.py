"""The real process of ``examsend listen``, and a modality that talks to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association

from examsend.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN
from examsend.dimse import messages
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import Ended
from examsend.dimse.requestor import Requestor
from examsend.transfer import End, Peer

MPPS = "1.2.840.10008.3.1.2.3.3"
VERIFICATION = "1.2.840.10008.1.1"


def environment(url: str | None, **values: str) -> dict[str, str]:
    """Return an environment with these settings, and no other setting of examsend."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EXAMSEND_", "LISTEN_"))}
    if url is not None:
        kept["EXAMSEND_DATABASE_URL"] = url
    return kept | values


class Listen:
    """A process of ``examsend listen``. Its log is in a file."""

    def __init__(self, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.log = log
        self.process = process

    def text(self) -> str:
        """Return what it has logged and printed."""
        return self.log.read_text()

    def wait_for(self, pattern: str, seconds: float = 20) -> re.Match[str]:
        """Wait until its log has a line that matches."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            found = re.search(pattern, self.text())
            if found:
                return found
            assert self.process.poll() is None or re.search(pattern, self.text()), self.text()
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} is not in the log:\n{self.text()}")

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.wait_for(r"listening as .*, port (\d+)")[1])

    def end(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Send it a signal; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


@contextmanager
def listening(
    directory: Path, url: str | None, *options: str, prefix: Sequence[str] = (), **settings: str
) -> Iterator[Listen]:
    """Run ``examsend listen`` on a free port; it is stopped at the end of the block."""
    directory.mkdir(exist_ok=True)
    log = directory / f"listen{len(list(directory.glob('listen*')))}.log"
    command = [
        *prefix,
        sys.executable,
        "-m",
        "examsend",
        "listen",
        "-v",
        *(options or ("--port", "0", "--bind", "127.0.0.1")),
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment(url, **settings))
        try:
            yield Listen(log, process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


class _Checkpoint(threading.Event):
    """Where the thread of pynetdicom's association waits while a request is answered.

    With its own one, that thread sometimes does not wait yet when the request is sent, and swallows the answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._own = threading.Lock()
        self._waits = False
        self.set()

    def clear(self) -> None:
        """Let the thread wait, and return once it does."""
        with self._own:
            super().clear()
        over = time.monotonic() + 2
        while not self._waits and time.monotonic() < over:
            time.sleep(0.001)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until ``set``."""
        self._waits = True
        while True:
            super().wait(timeout)
            with self._own:
                if self.is_set():
                    self._waits = False
                    return True


@contextmanager
def modality(
    port: int, called: str = "EXAMSEND", calling: str = "CT1", host: str = "127.0.0.1", **more: Any
) -> Iterator[Association]:
    """An open association with MPPS and Verification."""
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.add_requested_context(MPPS)
    ae.add_requested_context(VERIFICATION)
    association = ae.associate(host, port, ae_title=called, **more)
    try:
        assert association.is_established
        association._reactor_checkpoint = _Checkpoint()
        yield association
    finally:
        if association.is_established:
            association.release()
        else:
            association.abort()


def rejection(port: int, called: str = "EXAMSEND", calling: str = "CT1") -> tuple[int, int, int] | None:
    """Ask for an association; return result, source and reason of the A-ASSOCIATE-RJ, None where it is accepted."""
    requestor = Requestor(Peer("127.0.0.1", port, called, calling), lambda: None)
    try:
        requestor.open([Proposal(1, VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN)])
        requestor.release()
    except Ended as ended:
        assert ended.end is End.REJECTED, ended.sentence
        assert ended.result is not None
        assert ended.source is not None
        assert ended.reason is not None
        return ended.result, ended.source, ended.reason
    finally:
        requestor.close(messages.ABORT)
    return None


def status(answer: Dataset | tuple[Dataset, Dataset | None]) -> int:
    """Return the status of an answer; -1 where there is none."""
    found = answer[0] if isinstance(answer, tuple) else answer
    return int(found.Status) if "Status" in found else -1
