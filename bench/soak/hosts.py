"""Hosts as namespaces: each has a network, mounts and a name of its own. They share a file system and reach a hub by a wire.

Needs root. Everything is gone when the processes that hold the namespaces have ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

HUB = "10.77.0.1"
"""The address of the hub, on which database and receivers listen."""


def run(*words: str | Path) -> None:
    """Run a command of the system. Raises CalledProcessError."""
    subprocess.run([str(w) for w in words], check=True, capture_output=True, timeout=30)


class Host:
    """Namespaces that a sleeping process holds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--propagation", "private", "sleep", "infinity"]
        )
        self.pid = self._holder.pid
        mine = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.pid}/ns/net") == mine:
            assert self._holder.poll() is None, "namespaces need root"
            time.sleep(0.01)
        time.sleep(0.1)  # the other namespaces are made right after
        run(*self.inside("hostname", name))
        run(*self.inside("ip", "link", "set", "lo", "up"))

    def inside(self, *words: str | Path) -> list[str]:
        """Return the command that runs a command on this host."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", *map(str, words)]

    def end(self) -> None:
        """End the process that holds the namespaces."""
        self._holder.kill()
        self._holder.wait(10)


class Client(Host):
    """A host that has a wire to the hub and mounts the shared directory."""

    def __init__(self, name: str, number: int, hub: Host, shared: Path, place: Path) -> None:
        super().__init__(name)
        self._source = shared
        self.place = place
        self.wire = f"exs{number}"
        """The hub's end of its wire."""
        self.address = f"10.77.0.{number + 10}"
        run("ip", "link", "add", self.wire, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        run("ip", "link", "set", self.wire, "netns", str(hub.pid))
        run(*hub.inside("ip", "link", "set", self.wire, "master", "br0", "up"))
        run(*self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0"))
        run(*self.inside("ip", "link", "set", "eth0", "up"))
        self.mount()

    def mount(self) -> None:
        """Mount the shared directory."""
        run(*self.inside("mount", "--bind", self._source, self.place))

    def unmount(self) -> None:
        """Take the shared directory away, also from those that use it."""
        run(*self.inside("umount", "-l", self.place))


def unplug(hub: Host, client: Client) -> None:
    """Cut a wire: no packet passes."""
    run(*hub.inside("ip", "link", "set", client.wire, "down"))


def plug(hub: Host, client: Client) -> None:
    """Mend it."""
    run(*hub.inside("ip", "link", "set", client.wire, "up"))


def slow(hub: Host, client: Client, rate: str | None) -> None:
    """Let so much pass a wire towards the client (``200kbit``); None: everything."""
    with suppress(subprocess.CalledProcessError):
        run(*hub.inside("tc", "qdisc", "del", "dev", client.wire, "root"))
    if rate is not None:
        run(
            *hub.inside(
                "tc", "qdisc", "add", "dev", client.wire, "root", "tbf", "rate", rate, "burst", "16kb", "latency", "2s"
            )
        )


@contextmanager
def network(names: Sequence[str], root: Path) -> Iterator[tuple[Host, list[Client]]]:
    """Make a hub, and clients that share the file system ``root/export`` at ``root/share``."""
    export, share = root / "export", root / "share"
    export.mkdir()
    share.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4g", "examsend-soak", export)
    made: list[Host] = []
    try:
        hub = Host("hub")
        made.append(hub)
        run(*hub.inside("ip", "link", "add", "br0", "type", "bridge"))
        run(*hub.inside("ip", "address", "add", f"{HUB}/24", "dev", "br0"))
        run(*hub.inside("ip", "link", "set", "br0", "up"))
        clients: list[Client] = []
        for number, name in enumerate(names):
            client = Client(name, number, hub, export, share)
            made.append(client)
            clients.append(client)
        yield hub, clients
    finally:
        for host in reversed(made):
            host.end()
        run("umount", "-l", export)


def stop(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM, seconds: float = 20) -> None:
    """End a process, and wait for it."""
    with suppress(ProcessLookupError):
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
