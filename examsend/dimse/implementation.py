"""What a requestor says about itself: implementation identification (PS3.7 D.3.3.2), user identity (PS3.7 D.3.3.7)."""

from __future__ import annotations

import os
import stat

from examsend.errors import ConfigError
from examsend.transfer import UserIdentity

IMPLEMENTATION_CLASS_UID = "2.25.134973446283937270573968137498117519761"
"""Fixed for this implementation; derived from a UUID (PS3.5 B.2)."""

IMPLEMENTATION_VERSION_NAME = "EXAMSEND_0_1"
"""At most 16 characters (PS3.7 D.3.3.2.3)."""


_LONGEST_SECRET = 1 << 16
"""Bytes; no field of a user identity can be longer (PS3.7 Table D.3-14)."""


def identity_fields(identity: UserIdentity) -> tuple[bytes, bytes | None]:
    """Given a user identity, return its primary and secondary field: name and passcode, or the token and None.

    Raises ConfigError where the file of the secret cannot be read.
    """
    secret = b""
    if identity.secret_file is not None:
        secret = _secret(identity.secret_file)
    if identity.kind == 5:
        return secret, None
    return (identity.name or "").encode(), secret if identity.kind == 2 else None


def _secret(path: str) -> bytes:
    try:
        # A named pipe would otherwise be waited for, without end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"the secret in {path} cannot be read: it is not a regular file")
            secret = stream.read(_LONGEST_SECRET + 3)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the secret in {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(secret) > _LONGEST_SECRET + 2:
        raise ConfigError(f"the secret in {path} is longer than {_LONGEST_SECRET} bytes")
    return secret.strip(b"\r\n")
