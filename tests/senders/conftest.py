"""Certificates for the tests of TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a CA, certificates of a server and a client, one of another CA, and an expired one; return their directory."""
    place = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)

    for ca in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-days", "30",
                "-subj", f"/CN=examsend test {ca}")  # fmt: skip
    (place / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:receiver.test\n")
    for name, ca, days in (
        ("server", "ca", "30"),
        ("client", "ca", "30"),
        ("stranger", "other", "30"),
        ("old", "ca", "-1"),
    ):
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.csr",
            "-subj",
            f"/CN={name}",
        )
        expiry = (
            ("-not_before", "20200101000000Z", "-not_after", "20200201000000Z") if days == "-1" else ("-days", days)
        )
        done = subprocess.run(
            ["openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
             "-out", f"{name}.pem", "-extfile", "ext", *expiry],
            cwd=place, check=False, capture_output=True,
        )  # fmt: skip
        if done.returncode:  # this openssl has no -not_before: a certificate that expires at once
            openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
                    "-out", f"{name}.pem", "-extfile", "ext", "-days", "0")  # fmt: skip
    return place
