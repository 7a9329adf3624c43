"""Orthanc as a receiver."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.peers.dcmtk import free_port, stop, wait_until_listening

_PROGRAM = shutil.which("Orthanc") or next((p for p in ("/usr/sbin/Orthanc",) if Path(p).exists()), None)

needs_orthanc = pytest.mark.skipif(_PROGRAM is None, reason="needs Orthanc")


@dataclass(frozen=True, slots=True)
class Orthanc:
    """A running Orthanc."""

    port: int
    http: int

    @property
    def address(self) -> str:
        """The address to pass to ``destination add``."""
        return f"ORTHANC@127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        """Return the decoded JSON of a path of the REST API."""
        return json.loads(self.content(path))

    def content(self, path: str) -> bytes:
        """Return the content of a path of the REST API."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def delete(self, path: str) -> None:
        """Delete a resource by the REST API."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", method="DELETE")
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()

    def lose(self, sop_instance_uid: str) -> None:
        """Delete an instance."""
        [found] = [
            i for i in self.get("/instances")
            if self.get(f"/instances/{i}")["MainDicomTags"]["SOPInstanceUID"] == sop_instance_uid
        ]  # fmt: skip
        self.delete(f"/instances/{found}")

    def lose_everything(self) -> None:
        """Delete every patient."""
        for patient in self.get("/patients"):
            self.delete(f"/patients/{patient}")

    def files(self) -> dict[str, bytes]:
        """Return {SOP Instance UID: the stored file} of all instances."""
        return {
            self.get(f"/instances/{i}")["MainDicomTags"]["SOPInstanceUID"]: self.content(f"/instances/{i}/file")
            for i in self.get("/instances")
        }


def knows(port: int, aet: str = "EXAMSEND") -> dict[str, object]:
    """Return settings of an Orthanc that reports on Storage Commitment to a port on loopback, and lets itself be queried."""
    return {
        "DicomModalities": {
            "examsend": {
                "AET": aet,
                "Host": "127.0.0.1",
                "Port": port,
                "AllowStorageCommitment": True,
                "AllowFind": True,
            }
        },
        "DicomAlwaysAllowFind": True,
    }


@contextmanager
def running(directory: Path, **options: object) -> Iterator[Orthanc]:
    """Run Orthanc with settings on free ports. Returns after it has ended, because its database allows one process only."""
    directory.mkdir(parents=True)
    port, http = free_port(), free_port()
    settings: dict[str, object] = {
        "Name": "examsend-tests",
        "StorageDirectory": str(directory / "storage"),
        "IndexDirectory": str(directory / "storage"),
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "OverwriteInstances": True,
        "Plugins": [],
        **options,
    }
    config = directory / "orthanc.json"
    config.write_text(json.dumps(settings))
    assert _PROGRAM is not None
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([_PROGRAM, str(config)], stdout=log, stderr=log)
        try:
            wait_until_listening(port, process)
            made = Orthanc(port, http)
            _wait_for_rest(made)
            yield made
        finally:
            stop(process)


def _wait_for_rest(server: Orthanc) -> None:
    for _ in range(200):
        try:
            server.get("/system")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
        else:
            return
    raise AssertionError("Orthanc's REST API does not answer")
