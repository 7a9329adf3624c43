"""Receivers for the benchmarks, and a proxy that adds a round trip."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import loop
from tests.peers import dcmtk, orthanc
from tests.peers.scripted import Script, scripted

_QUIET = """<configuration><appender name="E" class="ch.qos.logback.core.ConsoleAppender"><encoder><pattern>%m%n</pattern></encoder>
</appender><root level="WARN"><appender-ref ref="E"/></root></configuration>"""


def program(name: str) -> str | None:
    """Return a program of dcm4che, given its name, as EXAMSEND_DCM4CHE (its storescu or the directory of it) or the PATH has
    it; None: there is none."""
    named = Path(os.environ.get("EXAMSEND_DCM4CHE", ""))
    if named.is_absolute():
        found = (named if named.is_dir() else named.parent) / name
        return str(found) if found.exists() else None
    return shutil.which(f"dcm4che-{name}")


def here(name: str) -> bool:
    """Return whether a receiver is installed."""
    return program("storescp") is not None if name == "dcm4che" else True


@contextmanager
def receiver(name: str, place: Path) -> Iterator[tuple[str, int]]:
    """Run a receiver named as in bench.names, which stores below a new directory in ``place``; yield its AE title and port."""
    with ExitStack() as stack:
        stored = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stored-", dir=place)))
        if name == "orthanc":
            server = stack.enter_context(orthanc.running(stored / "orthanc", StorageCompression=False))
            yield "ORTHANC", server.port
            return
        if name == "window":
            # No receiver in Debian grants an asynchronous operations window.
            peer = stack.enter_context(scripted(Script(window=(0, 1), max_pdu=131072)))
            yield "SCRIPTED", peer.port
            return
        if name == "sink":
            yield "SINK", stack.enter_context(discarding())
            return
        port = dcmtk.free_port()
        command = ["storescp", "+B", *(["--fork"] if name == "fork" else []), "-od", str(stored), str(port)]
        # DCMTK's environment variable that turns off Nagle's algorithm at the receiver.
        environment = {**os.environ, **({"TCP_NODELAY": "1"} if name == "nodelay" else {})}
        if name == "dcm4che":
            found = program("storescp")
            assert found is not None
            (stored / "quiet.xml").write_text(_QUIET)  # its own setting writes every message to the log
            environment["JAVA_TOOL_OPTIONS"] = f"-Dlogback.configurationFile={stored / 'quiet.xml'}"
            command = [found, "--accept-unknown", "-b", f"STORESCP:{port}", "--directory", str(stored / "files")]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
        try:
            dcmtk.wait_until_listening(port, process)
            yield "STORESCP", port
        finally:
            dcmtk.stop(process)


@contextmanager
def discarding() -> Iterator[int]:
    """Run a receiver that discards data sets, for one association at a time, in a process of its own; yield its port."""
    near, far = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=loop.sink, args=(far,), daemon=True)
    process.start()
    try:
        yield near.recv()
    finally:
        process.terminate()
        process.join(10)


@contextmanager
def delayed(port: int, milliseconds: float) -> Iterator[int]:
    """Yield the port of a proxy that delays each direction by half of ``milliseconds`` and does not limit the rate."""
    listener = socket.create_server(("127.0.0.1", 0))
    half = milliseconds / 2000

    def pump(source: socket.socket, target: socket.socket) -> None:
        line: list[tuple[float, bytes]] = []
        ready = threading.Condition()

        def drain() -> None:
            while True:
                with ready:
                    while not line:
                        ready.wait()
                    due, data = line.pop(0)
                time.sleep(max(due - time.monotonic(), 0))
                try:
                    if not data:
                        target.shutdown(socket.SHUT_WR)
                        return
                    target.sendall(data)
                except OSError:
                    return

        threading.Thread(target=drain, daemon=True).start()
        while True:
            try:
                data = source.recv(1 << 18)
            except OSError:
                data = b""
            with ready:
                line.append((time.monotonic() + half, data))
                ready.notify()
            if not data:
                return

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            for wire in (near, far):
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=pump, args=(near, far), daemon=True).start()
            threading.Thread(target=pump, args=(far, near), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
