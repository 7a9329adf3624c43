"""Files that a destination's settings name: secrets, keys, certificates. They are checked each time before they are used."""

from __future__ import annotations

import os
import stat
from typing import IO

from examsend.config.checks import CREDENTIALS
from examsend.errors import ConfigError

_LONGEST = 1 << 17
"""Bytes read of a secret at most; longer than any that an association can carry."""


class NotReadable(ConfigError):
    """The file is missing, or this user may not read it. It may be another host or another user that sends."""


def located(path: str | None) -> str | None:
    """Given the path of a setting, return it with the directory in which systemd has put this service's credentials.

    It is left as it is where there is none; using it then says so.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if path is None or not path.startswith(CREDENTIALS) or not directory:
        return path
    return f"{directory}/{path.removeprefix(CREDENTIALS)}"


def check_regular(path: str) -> None:
    """Given a path, raise ConfigError unless it is a regular file that can be read."""
    with _opened(path):
        pass


def check_private(path: str) -> None:
    """Given the path of a secret or a key, raise ConfigError if others may read or change it."""
    with _opened(path) as file:
        _check_mode(path, file)


def read_secret(path: str) -> bytes:
    """Given the path of a file, return the secret in it without the line end. Raises ConfigError."""
    with _opened(path) as file:
        _check_mode(path, file)
        try:
            secret = file.read(_LONGEST).strip(b"\r\n")
        except OSError as error:
            raise NotReadable(f"the file {path} cannot be read: {error.strerror}") from None
    if not secret:
        raise ConfigError(f"the secret file {path} is empty")
    return secret


def _opened(path: str) -> IO[bytes]:
    """Return a regular file, open for reading. Opening a named pipe would otherwise wait for its writer."""
    if path.startswith(CREDENTIALS):
        raise NotReadable(f"{path} cannot be read: this process has no credentials of systemd (LoadCredential=)")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise NotReadable(f"the file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _check_mode(path: str, file: IO[bytes]) -> None:
    """The rule is that of PostgreSQL's own key file: only the owner, and where root owns the file its group may read it."""
    found = os.fstat(file.fileno())
    mode = stat.S_IMODE(found.st_mode)
    if mode & (0o037 if found.st_uid == 0 else 0o077):
        raise ConfigError(f"the secret file {path} can be used by others too (mode {mode:04o}): `chmod 600 {path}`")
