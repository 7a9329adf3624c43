"""Certificates for the tests of TLS, made by openssl."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:receiver.test"
"""The names in a right certificate: every test connects to 127.0.0.1 or localhost."""


def make(place: Path) -> Path:
    """Make in a directory, and return it: two CAs (ca, other), and certificates with their keys.

    Of ca: server and client; elsewhere, with another name; old, which has expired. stranger is of the other CA, and self is
    signed by itself.
    """

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True, timeout=60)

    def authority(name: str, *more: str) -> None:
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-days", "30", "-subj", f"/CN=examsend test {name}", *more)  # fmt: skip

    authority("ca")
    authority("other")
    authority("self", "-addext", NAMES)
    (place / "right").write_text(f"{NAMES}\n")
    (place / "wrong").write_text("subjectAltName=IP:192.0.2.7,DNS:elsewhere.test\n")
    for name, ca, names, days in (
        # The shortest time that every openssl takes.
        ("old", "ca", "right", "0"),
        ("server", "ca", "right", "30"),
        ("client", "ca", "right", "30"),
        ("elsewhere", "ca", "wrong", "30"),
        ("stranger", "other", "right", "30"),
    ):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
                "-out", f"{name}.pem", "-extfile", names, "-days", days)  # fmt: skip
    time.sleep(1.1)  # until old has expired
    return place
