"""DCMTK's storescp as a receiver. Its options can inject faults."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from examsend.dicom import identity


def needs(tool: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test, with a reason, if a tool of DCMTK is missing."""
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"needs DCMTK's {tool}")


def free_port() -> int:
    """Return a TCP port on loopback that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_listening(port: int, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """Return once a connection to ``port`` is accepted. Fail if the process ends before, or after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the receiver ended with {process.returncode}"
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"no process listens on port {port}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, and wait for it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@dataclass(frozen=True, slots=True)
class Storescp:
    """A running storescp."""

    port: int
    directory: Path
    log: Path

    @property
    def address(self) -> str:
        """The address to pass to ``destination add``."""
        return f"STORESCP@127.0.0.1:{self.port}"

    def digests(self) -> dict[str, str]:
        """Return {SOP Instance UID: SHA-256 of the data set in hex} of all files that it stored."""
        found = (identity.inspect(path) for path in self.directory.iterdir() if path.is_file())
        return {f.sop_instance_uid: f.content_digest.hex() for f in found}

    def associations(self) -> int:
        """Return the number of associations it accepted. The connection of ``wait_until_listening`` is not counted."""
        return self.log.read_text(errors="replace").count("Association Acknowledged")


@contextmanager
def storescp(directory: Path, *flags: str) -> Iterator[Storescp]:
    """Run storescp with options on a free port (``+B``: it stores the bytes as received)."""
    stored = directory / "stored"
    stored.mkdir(parents=True)
    log = directory / "log"
    port = free_port()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["storescp", "-v", "+B", "-od", str(stored), *flags, str(port)], stdout=stream, stderr=stream
        )
        try:
            wait_until_listening(port, process)
            yield Storescp(port, stored, log)
        finally:
            stop(process)


def digest(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return blake3(data).hexdigest()
