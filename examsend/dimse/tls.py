"""TLS for associations (PS3.15 B.9): version 1.2 or later, cipher suites of BCP 195."""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import Callable

from examsend.config import checks, files
from examsend.errors import ConfigError
from examsend.transfer import Tls

_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aDSS"
"""For TLS 1.2. BCP 195 allows all cipher suites of TLS 1.3."""


def context(tls: Tls) -> ssl.SSLContext:
    """Given a peer's TLS settings, return a client's context. Raises ConfigError where a file or a name cannot be used."""
    for certificates in filter(None, (tls.ca_file, tls.cert_file)):
        files.check_regular(certificates)
    if tls.key_file is not None:
        files.check_private(tls.key_file)
    made = _context(ssl.PROTOCOL_TLS_CLIENT)
    try:
        made.check_hostname = tls.check_name
        if tls.pin_sha256 is not None:
            # The pinned certificate is checked after the handshake (check_pin), in place of chain and name.
            checks.sha256(tls.pin_sha256)
            made.check_hostname = False
            made.verify_mode = ssl.CERT_NONE
        elif tls.ca_file is not None:
            made.load_verify_locations(cafile=tls.ca_file)
        else:
            made.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if tls.cert_file is not None:
            made.load_cert_chain(tls.cert_file, tls.key_file, _no_password(tls.key_file or tls.cert_file))
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(f for f in (tls.ca_file, tls.cert_file, tls.key_file) if f)
        raise ConfigError(f"the TLS files {named} cannot be used: {_reason(error)}") from None
    except ValueError as error:
        raise ConfigError(f"the pinned certificate {error}") from None
    if tls.server_name is not None:
        _check_server_name(made, tls.server_name)
    return made


def server_context(certificate: str, key: str, client_ca: str | None) -> ssl.SSLContext:
    """Given the files of a certificate (PEM, with its chain) and of its key, return the context of an acceptor.

    ``client_ca``: the file of the authorities of which a peer must show a certificate; None: none is asked for. Raises
    ConfigError where a file cannot be used.
    """
    certificate, key = files.located(certificate) or certificate, files.located(key) or key
    client_ca = files.located(client_ca)
    for path in filter(None, (certificate, client_ca)):
        files.check_regular(path)
    files.check_private(key)
    made = _context(ssl.PROTOCOL_TLS_SERVER)
    try:
        if client_ca is not None:
            made.verify_mode = ssl.CERT_REQUIRED
            made.load_verify_locations(cafile=client_ca)
        made.load_cert_chain(certificate, key, _no_password(key))
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(filter(None, (client_ca, certificate, key)))
        raise ConfigError(f"the TLS files {named} cannot be used: {_reason(error)}") from None
    return made


def _context(protocol: int) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(_CIPHERS)
    # A peer could otherwise ask for handshake after handshake (TLS 1.2).
    made.options |= ssl.OP_NO_RENEGOTIATION
    return made


def _no_password(path: str) -> Callable[[], str]:
    """Return what OpenSSL is to call for the password of a key. Without it OpenSSL would ask on the terminal, and wait."""

    def refuse() -> str:
        raise ConfigError(f"the key in {path} is encrypted: only a key without a pass phrase can be used")

    return refuse


def _check_server_name(made: ssl.SSLContext, name: str) -> None:
    """Raise ConfigError unless a handshake can ask for ``name``: an empty or an overlong label cannot be encoded."""
    try:
        made.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except (ValueError, ssl.SSLError) as error:  # UnicodeError is a ValueError
        raise ConfigError(f"the TLS server name {name!r} cannot be used: {error}") from None


def check_pin(tls: Tls, certificate: bytes | None) -> None:
    """Given the peer's certificate (DER), raise ssl.SSLCertVerificationError unless it is the pinned one.

    Does nothing where none is pinned.
    """
    if tls.pin_sha256 is None:
        return
    found = hashlib.sha256(certificate or b"").hexdigest()
    if not hmac.compare_digest(found, tls.pin_sha256.replace(":", "").lower()):
        raise ssl.SSLCertVerificationError(f"the peer's certificate is not the pinned one: its SHA-256 is {found}")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error)


def words(error: ssl.SSLError) -> str:
    """Given an error of TLS, return a sentence about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the peer's certificate is not accepted: {getattr(error, 'verify_message', '') or error.args[-1]}"
    return f"TLS: {_reason(error)}"
