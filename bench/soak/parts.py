"""The database and the receivers of a soak, on the hub. Each can be taken away and brought back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.soak.hosts import HUB, Host, stop

_DATABASE_PORT = 54399


def _wait(host: Host, port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Wait until something listens on a port of a host."""
    listening = f":{port:04X} 00000000:0000 0A"
    deadline = time.monotonic() + seconds
    while listening not in Path(f"/proc/{host.pid}/net/tcp").read_text():
        assert process.poll() is None, f"the process for port {port} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"nothing listens on port {port}"
        time.sleep(0.05)


class Postgres:
    """Debian's PostgreSQL, durable, on the hub's address."""

    def __init__(self, hub: Host, place: Path) -> None:
        self._hub = hub
        self._bin = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda found: int(found.parent.name))
        self._data = place / "data"
        self._log = (place / "postgres.log").open("ab")
        place.chmod(0o711)
        shutil.chown(place, "postgres")
        self._as = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
        subprocess.run(
            [
                *self._as,
                str(self._bin / "initdb"),
                "-D",
                str(self._data),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
            ],
            check=True,
            capture_output=True,
            timeout=120,
            cwd="/",
        )
        with (self._data / "pg_hba.conf").open("a") as stream:
            stream.write("host all all 10.77.0.0/24 trust\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.crashes = 0
        self.url = f"postgresql://postgres@{HUB}:{_DATABASE_PORT}/postgres"
        self.local = f"postgresql://postgres@/postgres?host={self._data}&port={_DATABASE_PORT}"
        """The same, for a process that is on no host."""
        self.start()

    def start(self) -> None:
        """Start it; return once it accepts connections."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        options = {
            "listen_addresses": HUB,
            "port": str(_DATABASE_PORT),
            "unix_socket_directories": str(self._data),
            "max_connections": "60",
        }
        words = [w for name, value in options.items() for w in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            self._hub.inside(*self._as, self._bin / "postgres", "-D", self._data, *words),
            stdout=self._log,
            stderr=self._log,
            cwd="/",
            start_new_session=True,
        )
        _wait(self._hub, _DATABASE_PORT, self._process)

    def crash(self) -> None:
        """Kill all of its processes, and start it again."""
        assert self._process is not None
        top = self._process.pid
        children = Path(f"/proc/{top}/task/{top}/children").read_text().split()
        for pid in [top, *map(int, children)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)
        self.crashes += 1
        time.sleep(1)
        self.start()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            stop(self._process, signal.SIGINT)
        self._log.close()


class Receiver:
    """A receiver that stores the data sets as they come, in a directory of its own."""

    def __init__(self, hub: Host, place: Path, name: str, port: int) -> None:
        self._hub = hub
        self._place = place / name
        self._place.mkdir(parents=True)
        self.name = name
        self.port = port
        self.stored = self._place / "stored"
        self.stored.mkdir()
        self.frozen = False
        self._log = (self._place / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The address to pass to ``destination add``."""
        return f"{self.name.upper()}@{HUB}:{self.port}"

    def start(self, *flags: str) -> None:
        """Start it with options."""
        self._run(self._words(flags), wait=True)

    def _words(self, flags: Sequence[str]) -> list[str]:
        # Each process names its files by the time of day in addition: another one must not write over what is there.
        return ["storescp", "-v", "+B", "--fork", "+uf", "-od", str(self.stored), *flags, str(self.port)]

    def _run(self, words: Sequence[str], *, wait: bool) -> None:
        self._process = subprocess.Popen(
            self._hub.inside(*words), stdout=self._log, stderr=self._log, start_new_session=True
        )
        if wait:
            _wait(self._hub, self.port, self._process)

    def kill(self) -> None:
        """Kill it and its children in the middle of what they do."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Let it read nothing any more."""
        assert self._process is not None
        self.frozen = True
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        if self.frozen and self._process is not None:
            self.frozen = False
            os.killpg(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        """End it."""
        self.thaw()
        self.kill()
        self._log.close()


class Orthanc(Receiver):
    """Orthanc, which stores each file as it makes it anew from the data set."""

    def _words(self, flags: Sequence[str]) -> list[str]:
        settings: Mapping[str, object] = {
            "Name": "soak",
            "StorageDirectory": str(self.stored),
            "IndexDirectory": str(self.stored),
            "DicomAet": self.name.upper(),
            "DicomPort": self.port,
            "HttpServerEnabled": False,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowEcho": True,
            "OverwriteInstances": True,
            "StorageCompression": False,
            "StoreMD5ForAttachments": True,
            "Plugins": [],
        }
        config = self._place / "orthanc.json"
        config.write_text(json.dumps(settings))
        return [shutil.which("Orthanc") or "/usr/sbin/Orthanc", str(config), *flags]
