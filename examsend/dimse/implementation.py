"""Who we are to a peer: implementation identification (PS3.7 D.3.3.2) and user identity (PS3.7 D.3.3.7)."""

from __future__ import annotations

from pathlib import Path

from examsend.errors import ConfigError
from examsend.transfer import UserIdentity

IMPLEMENTATION_CLASS_UID = "2.25.134973446283937270573968137498117519761"
"""Of this implementation; a UUID made once (PS3.5 B.2)."""

IMPLEMENTATION_VERSION_NAME = "EXAMSEND_0_1"
"""At most 16 characters."""


def fields(asked: UserIdentity) -> tuple[bytes, bytes | None]:
    """Given a user identity, return its primary and secondary field: name and passcode, or the token.

    Raises ConfigError where the file of the secret cannot be read.
    """
    secret = b""
    if asked.secret_file is not None:
        try:
            secret = Path(asked.secret_file).read_bytes().strip(b"\r\n")
        except OSError as error:
            raise ConfigError(f"the secret in {asked.secret_file} cannot be read: {error.strerror}") from None
    if asked.kind == 5:
        return secret, None
    return (asked.name or "").encode(), secret if asked.kind == 2 else None
