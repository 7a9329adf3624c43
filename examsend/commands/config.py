"""The commands for the settings: show, check, example."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import combinations
from pathlib import Path

from examsend import senders
from examsend.config import example as example_file
from examsend.config import files
from examsend.config.checks import CREDENTIALS
from examsend.config.destination import address
from examsend.config.expiry import first_expiry
from examsend.config.settings import Explained, Settings, SettingsFile, unknown_variables
from examsend.config.together import check_lease
from examsend.config.together import warnings as destination_warnings
from examsend.db import access, connecting, embedded, facts
from examsend.db.engine import Database, revision_of
from examsend.db.revision import HEAD
from examsend.db.server import embedded_directory
from examsend.dimse import echo, tls
from examsend.errors import ConfigError, DatabaseUnavailable, ExamsendError, UsageError
from examsend.queue.destination import Destination, list_destinations, resemblance

_CLOCK_SECONDS = 5.0
"""A host's clock may be off by so much: the age of files is measured by it, all waiting by the database's."""

_EXPIRY_DAYS = 30
_FREE_BYTES = 1_000_000_000
_DATABASE_SECONDS = 5.0
_ECHO_SECONDS = 5.0
"""Time-outs of the check are no longer than these, whatever the settings say."""
_AT_ONCE = 16


# --- show and example ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, its value without any secret, and where the value comes from."""

    name: str
    value: object
    source: str
    """default, file, environment or option."""
    where: str
    """The file, the variable or the option; empty for a default."""


@dataclass(frozen=True, slots=True)
class ConfigShown:
    """The settings in effect, the files that were looked for, and variables that are no settings."""

    settings: tuple[Setting, ...]
    files: tuple[SettingsFile, ...]
    unknown_variables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigExample:
    """A commented settings file."""

    text: str


def show(explained: Explained) -> ConfigShown:
    """Return the settings and where each comes from."""
    shown = tuple(
        Setting(f.name, _public(f.name, getattr(explained.settings, f.name)), origin.source, origin.name)
        for f in fields(Settings)
        for origin in (explained.origins[f.name],)
    )
    return ConfigShown(shown, explained.files, unknown_variables(os.environ))


def example() -> ConfigExample:
    """Return a commented settings file."""
    return ConfigExample(example_file.text())


def _public(name: str, value: object) -> object:
    """Return a value that anybody may see. A program's arguments may hold a key, as of a messenger that it calls."""
    if name == "database_url" and isinstance(value, str):
        return connecting.masked(value)
    if name in _HOOKS and isinstance(value, tuple) and len(value) > 1:
        return (str(value[0]), *("***" for _ in value[1:]))
    if isinstance(value, tuple):
        return tuple(map(str, value))
    return str(value) if isinstance(value, Path) else value


# --- check --------------------------------------------------------------------------------------------------------------

_HOOKS = ("on_failed", "on_held", "on_back")


class Level(StrEnum):
    """What a finding asks for."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    """Something cannot work as it is set."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    level: Level
    code: str
    """A constant for programs."""
    subject: str
    sentence: str


@dataclass(frozen=True, slots=True)
class ConfigChecked:
    """The findings of all checks."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """78 for a problem, 69 if the only one is that the database cannot be reached, 1 for a warning."""
        problems = {f.code for f in self.findings if f.level is Level.PROBLEM}
        if problems:
            return 69 if problems == {"DATABASE_UNREACHABLE"} else 78
        return int(any(f.level is Level.WARNING for f in self.findings))


def check(explained: Explained, *, network: bool = True) -> ConfigChecked:
    """Check the settings, the database, the files that are named, and the destinations. Changes nothing, and creates no database.

    ``network``: also send a C-ECHO to each enabled destination.
    """
    settings = explained.settings
    found = [*_settings_files(explained.files), *_variables(), *_hooks(settings), *_listen(settings)]
    about_database, destinations = _database(settings)
    found += about_database
    if destinations is not None:
        found += _destinations(settings, destinations, network=network)
    return ConfigChecked(tuple(found))


def _ok(subject: str, sentence: str) -> Finding:
    return Finding(Level.OK, "OK", subject, sentence)


def _settings_files(looked_for: Sequence[SettingsFile]) -> Iterator[Finding]:
    used = next((one.path for one in looked_for if one.state == "used"), None)
    if used is None:
        places = " nor ".join(one.path for one in looked_for)
        yield _ok("settings", f"no file: neither {places} is there" if looked_for else "no file")
        return
    try:
        mode = Path(used).stat().st_mode
    except OSError:
        mode = 0  # it was read already, and has gone since
    if not stat.S_ISREG(mode):
        yield _ok("settings", f"{used} was read")
    elif mode & stat.S_IWOTH:
        yield Finding(Level.PROBLEM, "FILE_MODE", "settings", f"{used} can be changed by everybody: `chmod o-w {used}`")
    elif mode & stat.S_IROTH and _holds_password(Path(used)):
        yield Finding(
            Level.WARNING,
            "FILE_MODE",
            "settings",
            f"{used} holds a password, and everybody may read it: `chmod o-r {used}`",
        )
    else:
        yield _ok("settings", f"{used} is read")


def _holds_password(path: Path) -> bool:
    url = next((line for line in path.read_text("utf-8").splitlines() if line.strip().startswith("database_url")), "")
    return "passw" in url.lower() or ("@" in url and ":" in url.split("://")[-1].split("@")[0])


def _variables() -> Iterator[Finding]:
    for sentence in unknown_variables(os.environ):
        yield Finding(Level.WARNING, "UNKNOWN_VARIABLE", "environment", sentence)


def _hooks(settings: Settings) -> Iterator[Finding]:
    for name in _HOOKS:
        program = getattr(settings, name)
        if not program:
            continue
        path = Path(program[0])
        try:
            mode = path.stat().st_mode
        except OSError as error:
            yield Finding(Level.PROBLEM, "PROGRAM", name, f"{path} cannot be run: {error.strerror or error}")
            continue
        if not stat.S_ISREG(mode) or not os.access(path, os.X_OK):
            yield Finding(Level.PROBLEM, "PROGRAM", name, f"{path} is not a program that this user may run")
        elif mode & stat.S_IWOTH:
            yield Finding(Level.PROBLEM, "FILE_MODE", name, f"{path} can be changed by everybody: `chmod o-w {path}`")
        else:
            yield _ok(name, f"{path} can be run")


def _listen(settings: Settings) -> Iterator[Finding]:
    """Of the TLS settings of ``listen``; its other settings are checked where they are read."""
    certificate, key, authorities = (
        settings.listen_tls_cert_file, settings.listen_tls_key_file, settings.listen_tls_ca_file,
    )  # fmt: skip
    if certificate is None and key is None and authorities is None:
        return
    if certificate is None or key is None:
        yield Finding(
            Level.PROBLEM,
            "LISTEN_TLS",
            "listen",
            "listen_tls_cert_file and listen_tls_key_file belong together, also with listen_tls_ca_file",
        )
        return
    yield _attempt(
        "listen", lambda: str(tls.server_context(certificate, key, authorities) and "its TLS files can be used")
    )
    yield from _expiry("listen", filter(None, (certificate, authorities)))


def _attempt(subject: str, work: Callable[[], str], code: str = "FILE") -> Finding:
    """Return what ``work`` says is right, or what it raises: a file that is not here may be where another user or host sends."""
    try:
        return _ok(subject, work())
    except files.NotReadable as error:
        if CREDENTIALS in str(error):
            return Finding(Level.OK, "NOT_LOOKED_AT", subject, f"not looked at: {error}")
        return Finding(Level.WARNING, code, subject, f"{error}: it must be there where it is used")
    except ExamsendError as error:
        return Finding(Level.PROBLEM, code, subject, str(error))


def _expiry(subject: str, paths: Iterable[str]) -> Iterator[Finding]:
    for path in dict.fromkeys(files.located(path) or path for path in paths):
        try:
            files.check_regular(path)
            at = first_expiry(path)
        except files.NotReadable:
            continue  # said by the check that uses it
        except ConfigError as error:
            yield Finding(Level.PROBLEM, "CERTIFICATE", subject, str(error))
            continue
        days = (at - datetime.now(UTC)).total_seconds() / 86400
        if days < 0:
            yield Finding(Level.PROBLEM, "EXPIRED", subject, f"a certificate in {path} expired on {at:%Y-%m-%d}")
        elif days < _EXPIRY_DAYS:
            sentence = f"a certificate in {path} expires on {at:%Y-%m-%d}, in {days:.0f} days"
            yield Finding(Level.WARNING, "EXPIRES", subject, sentence)
        else:
            yield _ok(subject, f"{path} is valid until {at:%Y-%m-%d}")


# --- the database -------------------------------------------------------------------------------------------------------


def _database(settings: Settings) -> tuple[list[Finding], list[Destination] | None]:
    """Return the findings about the database, and its destinations; None where they cannot be read."""
    found: list[Finding] = []
    try:
        if settings.database_url is None:
            there, about = _embedded(embedded_directory(settings))
            found += about
            if not there:
                return found, None
        patient = replace(settings, database_wait=min(settings.database_wait, _DATABASE_SECONDS))
        with access.opened(patient, check=False) as database:
            destinations = _look_at(database, found)
    except DatabaseUnavailable as error:
        found.append(Finding(Level.PROBLEM, "DATABASE_UNREACHABLE", "database", str(error)))
        return found, None
    except ConfigError as error:
        found.append(Finding(Level.PROBLEM, "DATABASE", "database", str(error)))
        return found, None
    return found, destinations


def _embedded(directory: Path) -> tuple[bool, list[Finding]]:
    """Return whether there is an embedded server in a directory, and the findings about it. Raises ConfigError."""
    found: list[Finding] = []
    there = embedded.status(directory).version is not None
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        sentence = f"{existing} cannot be written by this user: the embedded server cannot be used"
        found.append(Finding(Level.PROBLEM, "NOT_WRITABLE", "data directory", sentence))
    elif (free := shutil.disk_usage(existing).free) < _FREE_BYTES:
        sentence = f"{existing} has {free / 1e6:.0f} MB free: a database that is full takes nothing in"
        found.append(Finding(Level.WARNING, "DISK_SPACE", "data directory", sentence))
    else:
        found.append(_ok("data directory", f"{existing} can be written, {free / 1e9:.0f} GB are free"))
    if not there:
        embedded.find_binaries()
        sentence = f"no database_url is set, and there is no embedded server in {directory} yet: `examsend destination add` makes one"
        found.append(Finding(Level.WARNING, "NO_DATABASE", "database", sentence))
    return there, found


def _look_at(database: Database, found: list[Finding]) -> list[Destination] | None:
    """Add the findings about a database; return its destinations, None where its schema has not the current revision."""
    asked = facts.facts(database)
    where = f"PostgreSQL {database.version()}{' (embedded)' if database.embedded else ''}"
    if asked.major < facts.OLDEST:
        sentence = f"{where} is too old: examsend needs {facts.OLDEST} or later"
        found.append(Finding(Level.PROBLEM, "DATABASE_VERSION", "database", sentence))
    elif asked.major > facts.NEWEST:
        sentence = f"{where} is newer than {facts.NEWEST}, with which this examsend was tried"
        found.append(Finding(Level.WARNING, "DATABASE_VERSION", "database", sentence))
    else:
        found.append(_ok("database", where))
    off = abs(asked.clock_ahead)
    if off - asked.unsure > _CLOCK_SECONDS:
        which = "ahead of" if asked.clock_ahead > 0 else "behind"
        sentence = f"the database's clock is {off:.0f} s {which} this host's: files are taken for younger or older than they are"
        found.append(Finding(Level.WARNING, "CLOCK_SKEW", "clock", sentence))
    else:
        found.append(_ok("clock", f"{off:.1f} s between this host's and the database's"))
    revision = revision_of(database)
    if revision == HEAD:
        found.append(_ok("schema", f"{revision}, as this examsend needs"))
        return database.run(list_destinations)
    what = "there is no schema yet" if revision is None else f"the schema is {revision}, this examsend needs {HEAD}"
    if database.embedded:
        found.append(Finding(Level.WARNING, "SCHEMA", "schema", f"{what}: the next command migrates it"))
    else:
        found.append(Finding(Level.PROBLEM, "SCHEMA", "schema", f"{what}: `examsend db upgrade`"))
    return None


# --- destinations -------------------------------------------------------------------------------------------------------


def _destinations(settings: Settings, all_of_them: Sequence[Destination], *, network: bool) -> list[Finding]:
    found: list[Finding] = []
    if not any(d.enabled and d.is_default for d in all_of_them):
        sentence = "none is enabled and a default: `examsend ingest` needs --to"
        found.append(Finding(Level.WARNING, "NO_DESTINATION", "destinations", sentence))
    for one, other in combinations(all_of_them, 2):
        subject = f"destination {one.name}"
        found += (Finding(Level.WARNING, "RESEMBLES", subject, sentence) for sentence in resemblance(one, other))
    with ThreadPoolExecutor(_AT_ONCE, "check") as pool:
        for about in pool.map(lambda d: _destination(settings, d, network=network), all_of_them):
            found += about
    return found


def _destination(settings: Settings, destination: Destination, *, network: bool) -> list[Finding]:
    subject = f"destination {destination.name}"
    found = [Finding(Level.WARNING, "PLAIN_TEXT", subject, one) for one in destination_warnings(destination)]
    try:
        check_lease({f.name: getattr(destination, f.name) for f in fields(destination)}, settings.lease)
    except UsageError as error:
        found.append(Finding(Level.PROBLEM, "TIMEOUT", subject, str(error)))
    peer = destination.peer()
    if peer.tls is not None:
        context = peer.tls
        found.append(_attempt(subject, lambda: str(tls.context(context) and "its TLS files can be used")))
        found += _expiry(subject, filter(None, (context.ca_file, context.cert_file)))
    identity = peer.user_identity
    if identity is not None and identity.secret_file is not None:
        secret = identity.secret_file
        found.append(_attempt(subject, lambda: f"{secret} holds a secret of {len(files.read_secret(secret))} bytes"))
    for name in destination.senders:
        problem = senders.problem(name, peer, settings)
        if problem is None:
            found.append(_ok(subject, f"sender {name} can be used"))
        elif not any(problem == f.sentence or problem in f.sentence for f in found):
            found.append(Finding(Level.PROBLEM, "SENDER", subject, f"sender {name}: {problem}"))
    if not destination.enabled:
        found.append(_ok(subject, "disabled: nothing is sent to it"))
    elif network:
        bounded = replace(
            peer,
            connect_timeout=min(peer.connect_timeout, _ECHO_SECONDS),
            accept_timeout=min(peer.accept_timeout, _ECHO_SECONDS),
            answer_timeout=min(peer.answer_timeout, _ECHO_SECONDS),
            stall_timeout=min(peer.stall_timeout, _ECHO_SECONDS),
        )
        found.append(_echo(subject, address(peer.called_aet, peer.host, peer.port), echo.echo(bounded)))
    return found


def _echo(subject: str, where: str, answer: echo.EchoResult) -> Finding:
    if answer.ok:
        return _ok(subject, f"{where} answers C-ECHO in {answer.milliseconds or 0:.0f} ms")
    return Finding(Level.WARNING, "NO_ECHO", subject, f"{where} does not answer C-ECHO: {answer.sentence}")
