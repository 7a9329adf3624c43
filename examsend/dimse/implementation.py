"""What a requestor says about itself: implementation identification (PS3.7 D.3.3.2), user identity (PS3.7 D.3.3.7)."""

from __future__ import annotations

from examsend.config import files
from examsend.errors import ConfigError
from examsend.transfer import UserIdentity

IMPLEMENTATION_CLASS_UID = "2.25.134973446283937270573968137498117519761"
"""Fixed for this implementation; derived from a UUID (PS3.5 B.2)."""

IMPLEMENTATION_VERSION_NAME = "EXAMSEND_0_1"
"""At most 16 characters (PS3.7 D.3.3.2.3)."""


MAX_IDENTITY = 64_000
"""Bytes of the two fields of a user identity together. The length of the user information item, which holds this and a few
short sub-items, has 16 bits (PS3.8 9.3.2)."""


def identity_fields(identity: UserIdentity) -> tuple[bytes, bytes | None]:
    """Given a user identity, return its primary and secondary field: name and passcode, or the token and None.

    Raises ConfigError where a part is missing, the file of the secret cannot be used, or both together are too long.
    """
    if identity.kind not in {1, 2, 5}:
        raise ConfigError(f"the user identity is of kind {identity.kind}; it must be one of 1, 2, 5")
    if identity.kind != 5 and not identity.name:
        raise ConfigError(f"a user identity of kind {identity.kind} needs a name")
    if identity.kind != 1 and identity.secret_file is None:
        raise ConfigError(f"a user identity of kind {identity.kind} needs the file of its secret")
    secret = b"" if identity.kind == 1 or identity.secret_file is None else files.read_secret(identity.secret_file)
    name = b"" if identity.kind == 5 else (identity.name or "").encode()
    if len(name) + len(secret) > MAX_IDENTITY:
        raise ConfigError(
            f"the user identity is too long: its name and its secret may have {MAX_IDENTITY} bytes together"
        )
    if identity.kind == 5:
        return secret, None
    return name, secret if identity.kind == 2 else None
