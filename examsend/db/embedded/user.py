"""The user that the server runs as, and running commands as that user."""

from __future__ import annotations

import os
import pwd
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examsend.errors import ConfigError, DatabaseUnavailable


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The user that the server runs as. ``other``: not the user that this process runs as."""

    uid: int
    gid: int
    name: str
    other: bool


def server_user(directory: Path) -> ServerUser:
    """Return the user for the server of a directory: the user of this process, unless that is root.

    For root: the owner of the directory, else the user postgres, else nobody. Raises ConfigError if there is none.
    """
    if os.geteuid() != 0:
        return ServerUser(os.geteuid(), os.getegid(), f"user {os.geteuid()}", other=False)
    with suppress(FileNotFoundError):
        found = directory.stat()
        if found.st_uid != 0:
            return ServerUser(found.st_uid, found.st_gid, f"user {found.st_uid}", other=True)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return ServerUser(entry.pw_uid, entry.pw_gid, name, other=True)
    raise ConfigError(
        "PostgreSQL does not run as root, and neither a user postgres nor a user nobody exists to run the embedded one"
    )


def environment() -> dict[str, str]:
    """Return the environment for the server: without PG* variables and without a locale, which could change what it
    does, and without secrets, because the server keeps running after this process has ended.
    """
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def run_as(
    user: ServerUser, *command: str | Path, seconds: float, given: bytes = b"", keep: int | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command as the server's user; ``given`` is its standard input.

    It runs in a new session, so that Ctrl-C in the terminal does not interrupt it. ``keep`` is an open lock file that
    the command inherits: the lock stays held until the command ends, even if this process dies before.

    Raises DatabaseUnavailable if it takes longer than ``seconds``, ConfigError if it cannot be run as that user.
    """
    as_user: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user.other else {}
    try:
        return subprocess.run(
            command,
            env=environment(),
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
            cwd="/",
            start_new_session=True,
            umask=0o077,
            pass_fds=() if keep is None else (keep,),
            **as_user,
        )
    except subprocess.TimeoutExpired:
        raise DatabaseUnavailable(f"{command[0]} for the embedded database did not end within {seconds:g} s") from None
    except subprocess.SubprocessError as error:
        raise ConfigError(f"{command[0]} cannot be run as {user.name}: {error}") from None


def may_enter(user: ServerUser, path: Path) -> bool:
    """Return True if the server's user can enter a directory, or execute a file.

    A command run as that user tests it, because file modes alone do not tell (access lists, mounts).
    """
    return not user.other or run_as(user, "/bin/sh", "-c", 'test -x "$0"', path, seconds=30).returncode == 0


def require_entry(user: ServerUser, path: Path, directory: Path) -> None:
    """Raise ConfigError if the server's user cannot enter ``path``, which leads to ``directory``."""
    if not may_enter(user, path):
        raise ConfigError(
            f"the embedded database runs as {user.name}, who cannot enter {path}: {directory} has to be below"
            " directories that this user can enter"
        )
