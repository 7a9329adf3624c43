"""What a requestor says about itself: implementation identification (PS3.7 D.3.3.2), user identity (PS3.7 D.3.3.7)."""

from __future__ import annotations

from pathlib import Path

from examsend.errors import ConfigError
from examsend.transfer import UserIdentity

IMPLEMENTATION_CLASS_UID = "2.25.134973446283937270573968137498117519761"
"""Fixed for this implementation; derived from a UUID (PS3.5 B.2)."""

IMPLEMENTATION_VERSION_NAME = "EXAMSEND_0_1"
"""At most 16 characters (PS3.7 D.3.3.2.3)."""


def identity_fields(identity: UserIdentity) -> tuple[bytes, bytes | None]:
    """Given a user identity, return its primary and secondary field: name and passcode, or the token and None.

    Raises ConfigError where the file of the secret cannot be read.
    """
    secret = b""
    if identity.secret_file is not None:
        try:
            secret = Path(identity.secret_file).read_bytes().strip(b"\r\n")
        except OSError as error:
            raise ConfigError(f"the secret in {identity.secret_file} cannot be read: {error.strerror}") from None
    if identity.kind == 5:
        return secret, None
    return (identity.name or "").encode(), secret if identity.kind == 2 else None
