"""Compares senders: each sends the same study to several receivers.

    python -m bench.send [--repeat 5] [--studies ct,mr,dx,big] [--receivers storescp,nodelay,orthanc] [--senders ...] [--delay MS]

For examsend, two times are shown: the association from connect to release, as recorded in send_attempts, and the whole
process of `examsend send`, which also claims the batch and records the outcomes. For the other senders both columns are the
whole process. Receivers store into /dev/shm, if it exists.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import common
from examsend.demo import samples
from tests.peers import dcmtk, orthanc

STUDIES = {
    "ct": ("CT 500 x 0.5 MB", 500, 512, 512),
    "ct3000": ("CT 3000 x 0.5 MB", 3000, 512, 512),
    "mr": ("MR 2000 x 128 kB", 2000, 256, 256),
    "mr200": ("MR 200 x 128 kB", 200, 256, 256),
    "dx": ("DX 20 x 20 MB", 20, 3200, 3200),
    "big": ("one object of 1 GB", 1, 512, 512),
}
SENDERS = (
    "examsend", "examsend-pynetdicom", "dcmsend", "storescu",
    "examsend-dcm4che", "examsend-dcmtk", "pynetdicom-storescu", "dcm4che-storescu",
)  # fmt: skip
"""``examsend-X`` is examsend with the sender X; the last ones are other programs as they are."""


def make(name: str, place: Path) -> Path:
    """Make a study of STUDIES; return its directory."""
    _, count, rows, columns = STUDIES[name]
    drop = place / name
    if drop.exists():
        return drop
    study, series = samples.new_uid(), samples.new_uid()
    if name == "big":
        samples.write_series(drop, [samples.Image(samples.CT, study, series, 1, 1, 16384, 32766)])
    else:
        images = (samples.Image(samples.CT, study, series, 1, n + 1, rows, columns) for n in range(count))
        samples.write_series(drop, images)
    return drop


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


@contextmanager
def receiver(name: str, place: Path) -> Iterator[tuple[str, int]]:
    """Run a receiver, given its name; yield its AE title and port."""
    if name == "orthanc":
        with orthanc.running(place / "orthanc", StorageCompression=False) as server:
            yield "ORTHANC", server.port
    elif name == "window":
        # A receiver that grants an unlimited asynchronous operations window. No receiver in Debian does.
        from tests.peers.scripted import Script, scripted

        with scripted(Script(window=(0, 1), max_pdu=131072)) as peer:
            yield "SCRIPTED", peer.port
    else:
        port = dcmtk.free_port()
        stored = place / name
        stored.mkdir()
        options = []
        if name == "tls":
            certificate(place)
            options = ["+tls", str(place / "key.pem"), str(place / "cert.pem"), "-ic"]
        # DCMTK's environment variable that turns off Nagle's algorithm at the receiver.
        environment = {**os.environ, **({"TCP_NODELAY": "1"} if name == "nodelay" else {})}
        process = subprocess.Popen(["storescp", "+B", *options, "-od", str(stored), str(port)], env=environment)
        try:
            dcmtk.wait_until_listening(port, process)
            yield "STORESCP", port
        finally:
            dcmtk.stop(process)
            shutil.rmtree(stored)


def certificate(place: Path) -> None:
    """Make a self-signed certificate for 127.0.0.1, as key.pem and cert.pem."""
    if not (place / "cert.pem").exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2",
             "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1"],
            cwd=place, check=True, capture_output=True,
        )  # fmt: skip


def floor(drop: Path) -> float:
    """Send the same bytes over a plain socket to a reader that discards them; return the seconds."""
    listener = socket.create_server(("127.0.0.1", 0))

    def discard() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 20):
                pass

    reader = threading.Thread(target=discard)
    reader.start()
    began = time.perf_counter()
    with socket.create_connection(listener.getsockname()) as wire:
        for path in sorted(drop.iterdir()):
            with path.open("rb") as stream:
                wire.sendfile(stream)
    reader.join()
    listener.close()
    return time.perf_counter() - began


def outside(sender: str, aet: str, port: int, drop: Path, ca: Path | None) -> list[str] | None:
    """Return the command line of another sender; None if it is not installed, or does not support TLS."""
    if ca is not None:
        secure = ["storescu", "+sd", "+tla", "+cf", str(ca), "-aec", aet, "127.0.0.1", str(port), str(drop)]
        return secure if sender == "storescu" else None
    if sender == "dcmsend":
        return ["dcmsend", "-nh", "+sd", "-aec", aet, "127.0.0.1", str(port), str(drop)]
    if sender == "storescu":
        return ["storescu", "+sd", "-aec", aet, "127.0.0.1", str(port), str(drop)]
    if sender == "pynetdicom-storescu":
        return [
            sys.executable,
            "-m",
            "pynetdicom",
            "storescu",
            "-aec",
            aet,
            "-cx",
            "-q",
            "127.0.0.1",
            str(port),
            str(drop),
        ]
    dcm4che = dcm4che_storescu()
    return [dcm4che, "-c", f"{aet}@127.0.0.1:{port}", str(drop)] if dcm4che else None


def dcm4che_storescu() -> str | None:
    """Return dcm4che's storescu, as EXAMSEND_DCM4CHE (the program or its directory) or the PATH has it; None: there is none."""
    named = Path(os.environ.get("EXAMSEND_DCM4CHE", ""))
    if named.is_absolute():
        return str(named / "storescu" if named.is_dir() else named)
    return shutil.which("dcm4che-storescu")


def ours(
    sender: str, url: str, aet: str, port: int, drop: Path, window: int, ca: Path | None
) -> tuple[float, float, int]:
    """Send with examsend; return (association seconds, whole process seconds, peak memory in MB)."""
    name = f"d{time.monotonic_ns()}"
    kind = sender.partition("-")[2] or "native"
    secure = ["--tls", "--tls-ca-file", str(ca)] if ca is not None else []
    added = common.examsend(
        "destination",
        "add",
        name,
        f"{aet}@127.0.0.1:{port}",
        "--quiet-period",
        "0",
        "--sender",
        kind,
        "--async-window",
        str(window),
        *secure,
        url=url,
    )
    assert added.returncode == 0, added.stderr
    assert common.examsend("ingest", drop, "--to", name, url=url).returncode == 0
    assert common.examsend("finalize", url=url).returncode == 0
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {
        "EXAMSEND_DATABASE_URL": url
    }
    command = [sys.executable, "-c", code, sys.executable, "-m", "examsend", "send", "-q", "--destination", name]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - began
    shown = json.loads(common.examsend("status", "--destination", name, "--json", url=url).stdout)["batches"]
    assert [b["status"] for b in shown] == ["SENT"], shown
    one = json.loads(common.examsend("status", str(shown[0]["id"]), "--json", url=url).stdout)
    return sum(a["association_seconds"] for a in one["attempts"]), whole, int(done.stdout.split()[-1])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--studies", default="ct")
    parser.add_argument("--receivers", default="storescp,nodelay,orthanc")
    parser.add_argument("--senders", default=",".join(SENDERS[:4]))
    parser.add_argument("--delay", type=float, default=0.0, help="round trip in milliseconds, by a proxy")
    parser.add_argument("--window", type=int, default=1, help="asynchronous operations window to ask for")
    parser.add_argument("--name", default="send", help="of the file of figures")
    wanted = parser.parse_args()
    figures: list[dict[str, object]] = []
    with ExitStack() as stack:
        place = stack.enter_context(common.scratch())
        url = stack.enter_context(common.database())
        for study in wanted.studies.split(","):
            drop = make(study, place)
            least = statistics.median(floor(drop) for _ in range(wanted.repeat))
            for name in wanted.receivers.split(","):
                rows = []
                ca = place / "cert.pem" if name == "tls" else None
                for sender in wanted.senders.split(","):
                    runs = []
                    if sender == "examsend-dcm4che" and dcm4che_storescu() is None:
                        continue
                    for _ in range(wanted.repeat):
                        # A new receiver for each run, so that it has no instances of the run before.
                        with receiver(name, place) as (aet, port), delayed(port, wanted.delay) as proxy:
                            through = proxy if wanted.delay else port
                            if sender.startswith("examsend"):
                                runs.append(ours(sender, url, aet, through, drop, wanted.window, ca))
                            else:
                                command = outside(sender, aet, through, drop, ca)
                                if command is None:
                                    break
                                began = time.perf_counter()
                                subprocess.run(command, capture_output=True, check=True)
                                took = time.perf_counter() - began
                                runs.append((took, took, 0))
                        shutil.rmtree(place / "orthanc", ignore_errors=True)
                    if runs:
                        rows.append((sender, *(statistics.median(run[n] for run in runs) for n in range(3))))
                base = {n: next((row[n] for row in rows if row[0] == "dcmsend"), None) for n in (1, 2)}
                common.show(
                    f"{STUDIES[study][0]} to {name}"
                    + (f", {wanted.delay:g} ms round trip" if wanted.delay else "")
                    + f", median of {wanted.repeat}; the same bytes over a plain socket: {least:.2f} s",
                    (
                        "sender",
                        "association s>",
                        "whole process s>",
                        "dcmsend / association>",
                        "dcmsend / whole>",
                        "peak MB>",
                    ),
                    [
                        (
                            row[0],
                            f"{row[1]:.3f}",
                            f"{row[2]:.3f}",
                            f"{base[1] / row[1]:.1f}" if base[1] else "",
                            f"{base[2] / row[2]:.1f}" if base[2] else "",
                            row[3] or "",
                        )
                        for row in rows
                    ],
                )
                figures.append(
                    {
                        "study": study,
                        "receiver": name,
                        "delay_ms": wanted.delay,
                        "floor_seconds": least,
                        "repeat": wanted.repeat,
                        "senders": {
                            row[0]: {"association": row[1], "whole": row[2], "peak_mb": row[3]} for row in rows
                        },
                    }
                )
                common.keep(wanted.name, {"runs": figures})
            shutil.rmtree(drop)


if __name__ == "__main__":
    main()
