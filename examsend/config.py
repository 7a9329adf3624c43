"""Settings: defaults < TOML file < environment < option.

A setting is declared once, here, with its help; the file's keys are the field names, the environment's are
``EXAMSEND_`` and the field name in capitals.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from examsend.errors import ConfigError

FILE_NAME = "examsend.toml"
PREFIX = "EXAMSEND_"


def _setting(default: Any, read: Callable[[object], Any], about: str) -> Any:
    return field(default=default, metadata={"read": read, "help": about})


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\x00" in value:
        raise ValueError("must be text, and not empty")
    return value


def _path(value: object) -> Path:
    path = Path(_text(value)).expanduser()
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _number(least: float, most: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError("must be a number") from None
        if isinstance(value, bool) or not least <= number <= most:
            raise ValueError(f"must be between {least:g} and {most:g}")
        return number

    return read


def _whole(least: int, most: int) -> Callable[[object], int]:
    read_number = _number(least, most)

    def read(value: object) -> int:
        number = read_number(value)
        if number != int(number):
            raise ValueError("must be a whole number")
        return int(number)

    return read


@dataclass(frozen=True, slots=True)
class Settings:
    """What a pass goes by."""

    database_url: str | None = _setting(
        None, _text, "PostgreSQL's URL, postgresql://user:password@host:5432/database. Not set: an embedded server."
    )
    data_directory: Path | None = _setting(
        None, _path, "Where the embedded server and the spool live. Not set: /var/lib/examsend (root), else the user's."
    )
    database_wait: float = _setting(15.0, _number(0, 3600), "Seconds to go on trying to reach the database.")
    settle: float = _setting(
        5.0, _number(0, 86400), "A file younger than this many seconds is left to the next ingest."
    )
    incomplete_after: float = _setting(
        300.0, _number(0, 7 * 86400), "A file that is cut short is rejected once it is this many seconds old."
    )
    ingest_chunk: int = _setting(500, _whole(1, 10_000), "Files registered in one transaction.")
    lease: float = _setting(
        300.0, _number(1, 86400), "Seconds without progress after which another sender may take a batch over."
    )
    record_instances: int = _setting(200, _whole(1, 10_000), "Outcomes written in one group, at most.")
    record_seconds: float = _setting(0.25, _number(0.01, 60), "Seconds an outcome waits for its group, at most.")
    host_name: str = _setting(socket.gethostname() or "localhost", _text, "What this host is called in attempts.")


def _read(name: str, raw: object, where: str) -> Any:
    spec = next(f for f in fields(Settings) if f.name == name)
    try:
        return spec.metadata["read"](raw)
    except ValueError as error:
        raise ConfigError(f"{where}: {name} {error}") from None


def search_path(environ: Mapping[str, str]) -> list[Path]:
    """Given an environment, return where a file of settings is looked for, the last one winning nothing: the first is
    taken."""
    home = environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    return [Path(home) / "examsend" / FILE_NAME, Path("/etc/examsend") / FILE_NAME]


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            document = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    known = {f.name for f in fields(Settings)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise ConfigError(f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return {name: _read(name, raw, str(path)) for name, raw in document.items()}


def load(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, options: Mapping[str, object] | None = None
) -> Settings:
    """Given a file (None: the usual places), an environment (None: this process's) and options (None values are not
    set), return the settings. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    chosen: dict[str, Any] = {}
    if file is None and environ.get(PREFIX + "CONFIG"):
        file = Path(environ[PREFIX + "CONFIG"])
    found = file or next((p for p in search_path(environ) if p.is_file()), None)
    if found is not None:
        chosen.update(_from_file(found))
    for spec in fields(Settings):
        raw = environ.get(PREFIX + spec.name.upper())
        if raw:
            chosen[spec.name] = _read(spec.name, raw, f"environment variable {PREFIX}{spec.name.upper()}")
    for name, value in (options or {}).items():
        if value is not None:
            chosen[name] = _read(name, value, f"option --{name.replace('_', '-')}")
    return Settings(**chosen)
