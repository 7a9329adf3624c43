"""Key and trust stores as Java reads them (PKCS #12), made of the PEM files that a destination names."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from examsend.dimse import tls
from examsend.errors import ConfigError
from examsend.transfer import Tls

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

PASSWORD = "secret"  # noqa: S105
"""Of both stores: the one that dcm4che takes where none is given, so that none stands among its arguments. It protects nothing;
the stores are in a directory that other users cannot read."""

_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
"""Where distributions have the certificates of public authorities in one file."""

_LONGEST = 16 << 20
"""Bytes of a PEM file that are read."""


def check(settings: Tls) -> None:
    """Given TLS settings, raise ConfigError where no stores can be made of the files that they name."""
    _import()
    tls.context(settings)
    _trusted(settings)


def write(settings: Tls, directory: Path) -> tuple[Path, Path]:
    """Given TLS settings, write a trust store and a key store into a directory; return their paths. Raises ConfigError.

    Without a client certificate the key store has no key: it is the trust store.
    """
    _import()
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12

    # It also finds encrypted keys, and keys of another certificate.
    tls.context(settings)
    encryption = BestAvailableEncryption(PASSWORD.encode())
    trust = directory / "trust.p12"
    trusted = [pkcs12.PKCS12Certificate(found, str(n).encode()) for n, found in enumerate(_trusted(settings))]
    try:
        _write(trust, pkcs12.serialize_java_truststore(trusted, encryption))
        if settings.cert_file is None:
            return trust, trust
        own, *chain = _certificates(settings.cert_file)
        key = load_pem_private_key(_read(settings.key_file or settings.cert_file), None)
        store = directory / "key.p12"
        data = pkcs12.serialize_key_and_certificates(b"client", key, own, chain, encryption)  # type: ignore[arg-type]
        _write(store, data)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"no key store can be made of the TLS files: {error}") from None
    except OSError as error:
        raise ConfigError(f"no key store can be written: {error.strerror or error}") from None
    return trust, store


def _import() -> None:
    """Raise ConfigError where the package that writes stores is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ConfigError(
            "TLS with the sender dcm4che needs another package: `pip install examsend[dcm4che]`"
        ) from None


def _trusted(settings: Tls) -> list[Certificate]:
    """Return the certificates of the authorities that are trusted, those of the system where none is named."""
    if settings.ca_file is not None:
        return _certificates(settings.ca_file)
    for path in filter(None, (ssl.get_default_verify_paths().cafile, *_BUNDLES)):
        if Path(path).is_file():
            return _certificates(path)
    raise ConfigError("the system has no file of trusted certificates that dcm4che could use: set --tls-ca-file")


def _certificates(path: str) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise ConfigError(f"the certificates in {path} cannot be used: {error}") from None


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LONGEST)
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror or error}") from None


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
