"""Settings of a pass. An option overrides the environment, which overrides the TOML file, which overrides the default.

Each setting is declared here once, with its check and help text. Its key in the file is the field name, its environment
variable ``EXAMSEND_`` and the field name in capitals.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from examsend.config import checks
from examsend.errors import ConfigError
from examsend.states import SpoolMode

FILE_NAME = "examsend.toml"
PREFIX = "EXAMSEND_"


def _setting(default: Any, check: checks.Check, about: str) -> Any:
    return field(default=default, metadata={"check": check, "help": about})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a pass. Times in seconds."""

    database_url: str | None = _setting(
        None,
        checks.text,
        "URL of PostgreSQL, postgresql://user:password@host:5432/database. Not set: an embedded server.",
    )
    database_url_file: str | None = _setting(
        None,
        checks.file,
        "File that holds database_url, for its reader alone; or $CREDENTIALS_DIRECTORY/ and the name of a credential of systemd.",
    )
    data_directory: Path | None = _setting(
        None,
        checks.directory,
        "Directory of the embedded server. Not set: /var/lib/examsend (root), else the user's data directory.",
    )
    database_wait: float = _setting(
        15.0, checks.number(0, 3600), "Keep trying to reach the database for this many seconds."
    )
    settle: float = _setting(
        5.0, checks.number(0, 86400), "A file younger than this many seconds is left to the next ingest."
    )
    incomplete_after: float = _setting(
        300.0, checks.number(0, 7 * 86400), "A truncated file is rejected once it is this many seconds old."
    )
    ingest_chunk: int = _setting(1000, checks.whole(1, 10_000), "Files registered in one transaction.")
    spool: SpoolMode = _setting(
        SpoolMode.NONE,
        checks.member(SpoolMode),
        "How ingest puts files aside before they are registered: none (they are sent from where they are), copy, link (hard links).",
    )
    spool_directory: Path | None = _setting(
        None,
        checks.directory,
        "Directory of the files that ingest puts aside, on storage that all hosts that send mount.",
    )
    spool_remove: bool = _setting(
        False, checks.flag, "Ingest removes a file from where it was found, once it is put aside and registered."
    )
    spool_keep: float = _setting(
        7 * 86400.0,
        checks.number(0, 3650 * 86400),
        "Seconds that a file stays in the spool after all batches that have it are SENT. Then prune deletes it.",
    )
    keep_free: int = _setting(
        1_000_000_000,
        checks.size(2**60),
        "Bytes, or such as 2 GB, that stay free on the disks of spool_directory and the embedded server: with less, nothing is put aside.",
    )
    lease: float = _setting(
        300.0,
        checks.number(1, 86400),
        "Seconds without a sign of its sender after which another may take a batch over.",
    )
    record_instances: int = _setting(200, checks.whole(1, 10_000), "Outcomes written in one group, at most.")
    record_seconds: float = _setting(0.25, checks.number(0.01, 60), "Seconds an outcome waits for its group, at most.")
    dcm4che: Path | None = _setting(
        None, checks.directory, "dcm4che's storescu, or the directory it is in. Not set: it is looked for on PATH."
    )
    dcmtk: Path | None = _setting(
        None, checks.directory, "DCMTK's storescu, or the directory it is in. Not set: it is looked for on PATH."
    )
    on_failed: tuple[str, ...] = _setting(
        (), checks.program, "Program run for batches that went FAILED, with the facts as JSON on standard input."
    )
    on_held: tuple[str, ...] = _setting(
        (), checks.program, "Program run when a destination is held, with the facts as JSON on standard input."
    )
    on_back: tuple[str, ...] = _setting(
        (), checks.program, "Program run when a destination stores again, with the facts as JSON on standard input."
    )
    hook_timeout: float = _setting(
        10.0, checks.number(0.1, 600), "Seconds that such a program may take before it is killed."
    )
    host_name: str = _setting(
        socket.gethostname() or "localhost", checks.text, "Name of this host in the records of attempts."
    )
    listen_aet: str = _setting("EXAMSEND", checks.ae_title, "AE title of listen.")
    listen_allow_aets: tuple[str, ...] = _setting(
        (), checks.ae_titles, "Calling AE titles that listen accepts, with commas between. Not set: all."
    )
    listen_allow_peers: tuple[checks.Network, ...] = _setting(
        (), checks.networks, "Addresses and networks that listen accepts, with commas between. Not set: all."
    )
    listen_tls_cert_file: str | None = _setting(
        None, checks.file, "Certificate of listen (PEM). Not set: listen does not use TLS."
    )
    listen_tls_key_file: str | None = _setting(None, checks.file, "Private key of listen (PEM).")
    listen_tls_ca_file: str | None = _setting(
        None, checks.file, "CA certificates (PEM) by which listen checks its clients. Not set: clients need none."
    )
    listen_associations: int = _setting(20, checks.whole(2, 200), "Associations that listen has at once, at most.")
    listen_idle: float = _setting(
        60.0,
        checks.zero_or(1, 86400),
        "Seconds without an association after which a listen started by systemd ends. 0: never.",
    )


def _read(name: str, raw: object, where: str) -> Any:
    spec = next(f for f in fields(Settings) if f.name == name)
    try:
        return spec.metadata["check"](raw)
    except ValueError as error:
        raise ConfigError(f"{where}: {name} {error}") from None


def search_path() -> list[Path]:
    """Return the candidate files of settings, in order; the first that exists is used."""
    import platformdirs  # here, because the import takes 7 ms and is not needed where the file is named

    candidates = [Path("/etc/examsend") / FILE_NAME]
    with suppress(RuntimeError):  # a user without a home directory
        candidates.insert(0, platformdirs.user_config_path("examsend") / FILE_NAME)
    return candidates


class Source(StrEnum):
    """What has set a setting."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    OPTION = "option"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the value of a setting comes from."""

    source: Source
    name: str
    """The path of the file, the variable or the option; empty for a default."""


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A file of settings that was looked for."""

    path: str
    state: str
    """``used``, ``absent``, or ``not looked at``, because a file before it is used."""


@dataclass(frozen=True, slots=True)
class Explained:
    """The settings, where each comes from, and the files that were looked for."""

    settings: Settings
    origins: Mapping[str, Origin]
    files: tuple[SettingsFile, ...]


_DEFAULT = Origin(Source.DEFAULT, "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Given a name that is not known, return ": did you mean NAME?" with the known name nearest to it, in upper or lower case;
    nothing if none is near."""
    import difflib  # here, because the import takes 5 ms

    folded = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.7)
    return f": did you mean {folded[found[0]]}?" if found else ""


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            document = tomllib.load(stream)
    except (OSError, ValueError) as error:
        if isinstance(error, (tomllib.TOMLDecodeError, UnicodeDecodeError)):
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        hint = " (run the command as a user who may read it)" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}{hint}") from None
    known = {f.name for f in fields(Settings)}
    unknown = [f"unknown setting {name!r}{nearest(name, known)}" for name in sorted(set(document) - known)]
    if unknown:
        raise ConfigError(f"{path}: {'; '.join(unknown)} (`examsend config example` shows the settings)")
    return {name: _read(name, raw, str(path)) for name, raw in document.items()}


def _is_there(path: Path) -> bool:
    """Return whether a file is there. One in a directory that this user may not enter is taken to be: that it cannot be read is
    said, and no other settings are used in its place."""
    try:
        return path.is_file()
    except OSError:
        return True


def _look_for(file: Path | None, environ: Mapping[str, str]) -> tuple[SettingsFile, ...]:
    """Return the files of settings that are looked for; at most one of them is used."""
    if file is None and environ.get(PREFIX + "CONFIG"):
        file = Path(environ[PREFIX + "CONFIG"])
    if file is not None:
        return (SettingsFile(str(file), "used"),)
    looked: list[SettingsFile] = []
    for path in search_path():
        used = any(one.state == "used" for one in looked)
        looked.append(SettingsFile(str(path), "not looked at" if used else "used" if _is_there(path) else "absent"))
    return tuple(looked)


def explained(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, options: Mapping[str, object] | None = None
) -> Explained:
    """Return the settings, and where each comes from. See ``load``."""
    environ = os.environ if environ is None else environ
    chosen: dict[str, Any] = {}
    origins = {spec.name: _DEFAULT for spec in fields(Settings)}
    files = _look_for(file, environ)
    for used in (one.path for one in files if one.state == "used"):
        chosen.update(_from_file(Path(used)))
        origins.update(dict.fromkeys(chosen, Origin(Source.FILE, used)))
    for spec in fields(Settings):
        variable = PREFIX + spec.name.upper()
        raw = environ.get(variable)
        if raw == "" and spec.name == "database_url" and not (options or {}).get(spec.name):
            # A variable that its script could not fill must not lead to another database than was meant.
            raise ConfigError(f"environment variable {variable} is empty: set it to the database's URL, or unset it")
        if raw:
            chosen[spec.name] = _read(spec.name, raw, f"environment variable {variable}")
            origins[spec.name] = Origin(Source.ENVIRONMENT, variable)
    for name, value in (options or {}).items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            chosen[name] = _read(name, value, f"option {option}")
            origins[name] = Origin(Source.OPTION, option)
    _read_database_url(chosen, origins)
    return Explained(Settings(**chosen), origins, files)


def _read_database_url(chosen: dict[str, Any], origins: dict[str, Origin]) -> None:
    """Set ``database_url`` from the file that ``database_url_file`` names, unless a stronger source has set it."""
    path = chosen.get("database_url_file")
    if path is None:
        return
    named, given = origins["database_url_file"], origins["database_url"]
    if given.source is named.source:
        raise ConfigError(
            f"database_url and database_url_file are both set ({given.name}, {named.name}): set one of them"
        )
    order = list(Source)
    if order.index(given.source) > order.index(named.source):
        return
    from examsend.config import files  # here, because most settings name no file

    found = files.located(path) or path
    raw = files.read_secret(found).decode(errors="surrogateescape")
    chosen["database_url"] = _read("database_url", raw, found)
    origins["database_url"] = Origin(Source.FILE, found)


def load(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, options: Mapping[str, object] | None = None
) -> Settings:
    """Return the settings.

    ``file``: None reads EXAMSEND_CONFIG, else the first file of ``search_path``. ``environ``: None is the environment of this
    process. ``options``: a value of None is not set. Raises ConfigError.
    """
    return explained(file, environ=environ, options=options).settings


_OTHER_VARIABLES = ("CONFIG", "PG_BIN")
"""EXAMSEND_CONFIG names the file of settings, EXAMSEND_PG_BIN the programs of the embedded server."""


def unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for each variable of the environment that looks like a setting and is none. Those of the tests are left out."""
    known = [PREFIX + name for name in (*(f.name.upper() for f in fields(Settings)), *_OTHER_VARIABLES)]
    unknown = sorted(
        n for n in environ if n.startswith(PREFIX) and n not in known and not n.startswith("EXAMSEND_TEST_")
    )
    return tuple(f"environment variable {name} is no setting{nearest(name, known)}" for name in unknown)
