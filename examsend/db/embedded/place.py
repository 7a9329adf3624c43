"""The directories of an embedded server: lock files and log, data, socket."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from examsend.db.embedded.failures import os_errors_as_sentences
from examsend.db.embedded.user import ServerUser, require_entry, server_user
from examsend.errors import ConfigError

PORT = 5432
"""Part of the socket file's name only: the server does not listen on the network."""

_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107


@dataclass(frozen=True, slots=True)
class Place:
    """A server's directory. It contains the lock files, the log and, per major version, the data in ``pg18``."""

    directory: Path
    user: ServerUser

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.directory / "server.log"


def place_of(directory: Path) -> Place:
    """Return the Place for a directory, which need not exist. Raises ConfigError."""
    absolute = Path(os.path.abspath(directory))  # noqa: PTH100 (symbolic links are kept)
    if "\n" in str(absolute):
        raise ConfigError(f"the embedded database cannot use {str(absolute)!r}: the path contains a line break")
    with os_errors_as_sentences(absolute):
        return Place(absolute, server_user(absolute))


def default_directory() -> Path:
    """Return the directory of the embedded server if no setting names one. Raises ConfigError."""
    if os.geteuid() == 0:
        return Path("/var/lib/examsend/postgres")
    import platformdirs  # here, because the import takes longer than the rest of this package together

    try:
        return platformdirs.user_data_path("examsend") / "postgres"
    except RuntimeError:
        raise ConfigError(
            "this user has no home directory for an embedded database: set EXAMSEND_DATA_DIRECTORY"
        ) from None


def make_directory(place: Place) -> None:
    """Create the directory, private to the server's user, or check that the existing one is. Raises ConfigError."""
    _create_missing(place)
    directory, user = place.directory, place.user
    # Look into it before asking for its owner: another client that has just created it changes the owner before it puts
    # the first file in.
    empty = not any(directory.iterdir())
    found = directory.stat()
    if user.other and found.st_uid == 0 and empty:
        os.chown(directory, user.uid, user.gid)
        directory.chmod(0o700)
    elif found.st_uid != user.uid:
        raise ConfigError(
            f"{directory} belongs to user {found.st_uid}: the embedded database needs a directory of {user.name}, or"
            " one that does not exist yet"
        )
    elif found.st_mode & stat.S_IWOTH:
        raise ConfigError(f"{directory} can be written by every user: the embedded database needs a private directory")


def _create_missing(place: Place) -> None:
    directory, user = place.directory, place.user
    if directory.exists():
        return
    missing = [directory, *(p for p in directory.parents if not p.exists())]
    require_entry(user, missing[-1].parent, directory)
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            if user.other and path != directory:
                path.chmod(0o711)  # regardless of the umask: the server's user has to enter it, and need not list it


def data_directory(place: Place) -> Path | None:
    """Return the existing data directory, or None; the newest version's if an upgrade has left an older one."""
    try:
        entries = list(place.directory.iterdir())
    except FileNotFoundError:
        return None
    found = [p for p in entries if re.fullmatch(r"pg[0-9]{1,3}", p.name) and (p / "PG_VERSION").exists()]
    return max(found, key=number_in_name, default=None)


def socket_directory(place: Place, data: Path) -> Path:
    """Return the directory of the server's socket, which need not exist.

    It is the data directory, unless that path is too long for the address of a Unix socket or contains a character that
    libpq or PostgreSQL's settings would misread, such as the comma that separates hosts. The result depends on the data
    directory only, not on TMPDIR, so that all clients use the same socket. Raises ConfigError.
    """
    text = str(data)
    if len(os.fsencode(data / f".s.PGSQL.{PORT}")) <= _SOCKET_PATH_BYTES and "," not in text and text.isprintable():
        return data
    short = Path("/tmp") / f"examsend-{place.user.uid}-{digest(data)}"  # noqa: S108
    with suppress(FileNotFoundError):
        found = short.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != place.user.uid or found.st_mode & 0o077:
            raise ConfigError(f"{short} is not a private directory of {place.user.name}: remove it")
    return short


def number_in_name(path: Path) -> int:
    """Return the digits of a file name as a number, 0 if it has none."""
    digits = "".join(c for c in path.name if c in "0123456789")
    return int(digits) if digits else 0


def digest(*parts: object) -> str:
    """Return 16 hexadecimal digits that identify ``parts``, for a file name."""
    return hashlib.sha256(os.fsencode("\0".join(str(part) for part in parts))).hexdigest()[:16]
