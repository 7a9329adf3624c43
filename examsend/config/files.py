"""Files that a destination's settings name: secrets, keys, certificates. They are checked each time before they are used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from examsend.errors import ConfigError

_LONGEST = 1 << 17
"""Bytes read of a secret at most; longer than any that an association can carry."""


class NotReadable(ConfigError):
    """The file is missing, or this user may not read it. It may be another host or another user that sends."""


def check_regular(path: str) -> os.stat_result:
    """Given a path, return what the system says of the file. Raises ConfigError unless it is a regular file that can be read.

    Opening a named pipe would wait for its writer.
    """
    try:
        found = Path(path).stat()
        if stat.S_ISREG(found.st_mode):
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            return found
    except (OSError, ValueError) as error:
        raise NotReadable(f"the file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    raise ConfigError(f"{path} is not a regular file")


def check_private(path: str) -> None:
    """Given the path of a secret or a key, raise ConfigError if others may read or change it.

    The rule is that of PostgreSQL's own key file: only the owner, and where root owns the file its group may read it.
    """
    found = check_regular(path)
    mode = stat.S_IMODE(found.st_mode)
    if mode & (0o037 if found.st_uid == 0 else 0o077):
        raise ConfigError(f"the secret file {path} can be used by others too (mode {mode:04o}): `chmod 600 {path}`")


def read_secret(path: str) -> bytes:
    """Given the path of a file, return the secret in it without the line end. Raises ConfigError."""
    check_private(path)
    try:
        with Path(path).open("rb") as file:
            secret = file.read(_LONGEST).strip(b"\r\n")
    except OSError as error:
        raise NotReadable(f"the file {path} cannot be read: {error.strerror}") from None
    if not secret:
        raise ConfigError(f"the secret file {path} is empty")
    return secret
