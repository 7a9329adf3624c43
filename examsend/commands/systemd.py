"""Writes the units of systemd, settings and the user they run as; and takes the units away again."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from examsend.config import example
from examsend.config.settings import FILE_NAME, Settings
from examsend.errors import ConfigError, Refused, UsageError

USER = "examsend"
"""The user of the units, and the group that may read the settings. systemd/sysusers.d makes both."""

ENABLED = ("examsend.target", "examsend-finalize.timer", "examsend-send.timer", "examsend-confirm.timer")
OFFERED = ("examsend-listen.socket", "examsend-metrics.timer", "examsend-prune.timer")
"""Written, and left to the administrator."""

_HEADER = "# Written by `examsend systemd install`. A file that was changed is kept as it is; SHA-256 of what follows: "
_RUNS = "/usr/bin/env examsend"
"""How the units of the source name the program."""

_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./@:=,+-]+")
_HIDDEN = ("/tmp", "/var/tmp")  # noqa: S108 (what PrivateTmp= hides from the units)
_SECONDS = 120.0
_FOR_USERS = re.compile(
    r"(Description|PartOf|OnFailure|StartLimitIntervalSec|Requires|Type|Syslog\w+|LogLevelMax|Exec\w+|SuccessExitStatus|Timeout\w+"
    r"|RuntimeDirectory\w*|NoNewPrivileges|UMask|LockPersonality|MemoryDenyWriteExecute|RestrictRealtime|RestrictSUIDSGID"
    r"|RestrictAddressFamilies|SystemCall\w+|TasksMax|MemoryMax|On\w+|AccuracySec|Persistent|PathChanged|ListenStream|Backlog|WantedBy)="
)
"""What a user's own manager can do. It has one user, and no mounts of its own."""


class Act(StrEnum):
    """What is done with a file, a directory or a command."""

    WRITE = "write"
    KEEP = "keep"
    REMOVE = "remove"
    MAKE = "make"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done, or would be."""

    act: Act
    what: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class SystemdResult:
    """The result of ``install`` and ``uninstall``: what was done, and what is left to a person."""

    steps: tuple[Step, ...]
    left: tuple[str, ...]
    dry_run: bool


def sources() -> Path:
    """Return the directory of the units: in the installed package, or at the top of a checkout. Raises ConfigError."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "_systemd", package.parent / "systemd"):
        if (place / "examsend.target").is_file():
            return place
    raise ConfigError("the installed package has no units: install examsend again")


def install(
    settings: Settings,
    *,
    drop_dirs: Sequence[str] = (),
    user: bool = False,
    root: Path | None = None,
    dry_run: bool = False,
) -> SystemdResult:
    """Write the units, the settings file and the URL of the database, and enable what moves studies.

    ``drop_dirs``: directories that are ingested. ``user``: for the user's own manager, without root. ``root``: into this
    directory, of an image; nothing is started. A second run changes nothing but what is older than this examsend.

    Raises ConfigError, Refused, UsageError before anything is changed.
    """
    work = _Work(user=user, root=root, dry_run=dry_run)
    work.check_may()
    program = _program(work)
    url = _url(settings, work)
    directories = [_drop_directory(one, work) for one in drop_dirs]
    instances = [_escaped(one) for one in directories]
    if not user:
        work.place("sysusers.d/examsend.conf", work.etc / "sysusers.d" / "examsend.conf")
        work.place("tmpfiles.d/examsend.conf", work.etc / "tmpfiles.d" / "examsend.conf")
        work.run("systemd-sysusers", *work.in_root, "examsend.conf")
    work.settings(url)
    if not user:
        work.run("systemd-tmpfiles", *work.in_root, "--create", "examsend.conf")
    for directory in directories:
        work.drop_directory(directory)
    replaced = [work.place(name, work.units / name, program) for name in _unit_names()]
    names = [*ENABLED, *(f"examsend-ingest@{i}.{kind}" for i in instances for kind in ("path", "timer"))]
    if root is None:
        work.systemctl("daemon-reload")
        work.systemctl("enable", "--now", *names)
        if any(replaced):
            work.systemctl("try-restart", "examsend-*.timer", "examsend-*.path")
    else:
        work.systemctl("enable", *names)
    work.say_next()
    return work.result()


def uninstall(*, user: bool = False, root: Path | None = None, dry_run: bool = False) -> SystemdResult:
    """Stop and disable the units and remove what ``install`` has written, except settings, data and the user."""
    work = _Work(user=user, root=root, dry_run=dry_run)
    work.check_may()
    there = [name for name in _unit_names() if (work.units / name).exists()]
    names = sorted({*(n for n in there if "@" not in n and not n.endswith(".service")), *_enabled(work.units)})
    if names:
        if root is None:
            # Passes that run are waited for: they end in good order.
            work.systemctl("stop", "examsend.target", "examsend-*")
        work.systemctl("disable", *(("--now",) if root is None else ()), *names)
    for name in there:
        work.take_away(work.units / name)
    if not user:
        for folder in ("sysusers.d", "tmpfiles.d"):
            work.take_away(work.etc / folder / "examsend.conf")
    if root is None and there:
        work.systemctl("daemon-reload")
    if work.configuration.exists():
        work.left.append(f"kept: {work.configuration}, the database, and all DICOM files")
    return work.result()


def _unit_names() -> list[str]:
    return sorted(path.name for path in sources().glob("examsend*.*") if path.is_file())


def _enabled(units: Path) -> set[str]:
    return {link.name for wants in units.glob("*.wants") for link in wants.glob("examsend*")}


def for_user(text: str) -> str:
    """Given a unit of the system, return it for a user's own manager: comments, sections and what that can do."""
    kept: list[str] = []
    comments: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            comments.append(line)
        elif "=" in line and not line.startswith("["):
            if _FOR_USERS.match(line):
                kept += [*comments, line.replace("multi-user.target", "default.target")]
            comments = []
        else:
            kept += [*comments, line]
            comments = []
    return "\n".join(kept) + "\n"


# --- what is asked of the host before anything is changed -----------------------------------------------------------------


def _program(work: _Work) -> str:
    """Return the absolute path of this examsend. Raises Refused where the units could not run it."""
    called = Path(sys.argv[0])
    found = called if called.name == "examsend" else Path(sys.executable).parent / "examsend"
    # A link, as pipx makes it, leads to the environment's own program.
    path = Path(os.path.realpath(found))
    if not path.is_file():
        raise Refused(f"there is no {path}: the units run the program `examsend` of an installed package")
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise Refused(f"a unit cannot name {str(path)!r}: install examsend below a path of letters and digits")
    if not work.user and work.root is None:
        for needed in (path, Path(os.path.realpath(sys.executable))):
            if any(needed.is_relative_to(hidden) for hidden in _HIDDEN):
                raise Refused(
                    f"the units have a /tmp of their own and would not find {needed}: install examsend below /opt"
                )
            for parent in needed.parents:
                if not parent.stat().st_mode & stat.S_IXOTH:
                    raise Refused(
                        f"the user {USER} may not enter {parent} to run {needed}: install examsend below /opt"
                    )
    return str(path)


def _url(settings: Settings, work: _Work) -> str | None:
    """Return the URL that the units are given; None: they have one already. Raises ConfigError without one."""
    if work.url_file.exists():
        return None
    if settings.database_url is None:
        raise ConfigError(
            "units need a PostgreSQL that runs beside them: name it once by --database-url or EXAMSEND_DATABASE_URL;"
            f" it is kept in {work.url_file}"
        )
    return settings.database_url


def _drop_directory(given: str, work: _Work) -> Path:
    path = Path(os.path.normpath(Path(given).absolute())) if given else Path("/")
    if path == Path("/"):
        raise UsageError("--drop-dir must be a directory below /")
    if any(ord(c) < 32 or c == "\x7f" for c in given):
        raise UsageError(f"a unit cannot name {given!r}: it has control characters")
    if not work.user and any(path.is_relative_to(hidden) for hidden in _HIDDEN):
        raise UsageError(
            f"--drop-dir {path}: the units have a /tmp of their own, and tidying removes what is in the host's"
        )
    place = work.inside(path)
    if place.exists() and not place.is_dir():
        raise UsageError(f"--drop-dir {path} is not a directory")
    return path


def _escaped(path: Path) -> str:
    name = _output("systemd-escape", "--path", str(path)).strip()
    if len(f"examsend-ingest@{name}.service") > 255:
        raise UsageError(f"--drop-dir {path}: its name is too long for a unit")
    return name


def _output(*command: str) -> str:
    """Run a command; return what it prints. Raises Refused where it fails or is not here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise Refused(f"there is no {command[0]} here: docs/operating.md has lines for cron") from None
    except subprocess.TimeoutExpired:
        raise Refused(f"`{' '.join(command)}` did not end within {_SECONDS:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", "; ")
        raise Refused(f"`{' '.join(command)}` failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


# --- what is changed ------------------------------------------------------------------------------------------------------


class _Work:
    """Does one thing after another and remembers what it did; with ``dry_run``, only remembers."""

    def __init__(self, *, user: bool, root: Path | None, dry_run: bool) -> None:
        if user and root is not None:
            raise UsageError("--user and --root exclude each other")
        if root is not None and not root.is_dir():
            raise UsageError(f"--root {root} is not a directory")
        self.user = user
        self.root = root
        self._dry_run = dry_run
        self._runs_apart = not user and root is None
        self._steps: list[Step] = []
        self.left: list[str] = []
        self.in_root = () if root is None else (f"--root={root.absolute()}",)
        self.etc = self.inside(Path("/etc"))
        if user:
            home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
            self.units, self.configuration = home / "systemd" / "user", home / "examsend"
        else:
            self.units, self.configuration = self.etc / "systemd" / "system", self.etc / "examsend"
        self.url_file = self.configuration / "database_url"

    def inside(self, path: Path) -> Path:
        """Given an absolute path, return where it is for this process."""
        return path if self.root is None else self.root.absolute() / path.relative_to("/")

    def check_may(self) -> None:
        """Raise Refused where systemd does not run or this user may not change it."""
        if self._dry_run or self.root is not None:
            return
        if not self.user and os.geteuid() != 0:
            raise Refused(
                f"only root may write {self.units}: run it with sudo, or --user for units of your own, or --dry-run"
            )
        if not Path("/run/systemd/system").is_dir():
            raise Refused(
                "systemd does not run this host: docs/operating.md has lines for cron; --root writes into an image"
            )

    def result(self) -> SystemdResult:
        """Return what was done."""
        return SystemdResult(tuple(self._steps), tuple(self.left), self._dry_run)

    def place(self, name: str, target: Path, program: str | None = None) -> bool:
        """Write a file of the source to its place, unless somebody has changed it there. Return whether an older one was replaced."""
        text = (sources() / name).read_text()
        if program is not None:
            text = text.replace(_RUNS, program)
        if self.user:
            text = for_user(text)
        written = _HEADER + _digest(text) + "\n" + text
        known = os.path.lexists(target)
        if known and not _is_ours(target):
            self._keep(target, "it was changed, or is not of examsend")
            return False
        if known and target.read_text() == written:
            self._keep(target, "nothing to change")
            return False
        self._write(target, written, 0o644)
        return known

    def settings(self, url: str | None) -> None:
        """Write the URL of the database and the settings file, each only where there is none."""
        mode = 0o600 if self.user else 0o640
        if url is None:
            self._keep(self.url_file, "it names the database")
        else:
            self._write(self.url_file, url + "\n", mode)
        file = self.configuration / FILE_NAME
        line = f"database_url_file = {example.toml_value(self.url_file if self.user else Path('/etc/examsend/database_url'))}"
        if not file.exists():
            text = re.sub(r"^#database_url_file = .*$", lambda _: line, example.text(), flags=re.MULTILINE)
            self._write(file, text, mode)
            return
        self._keep(file, "settings are yours")
        if not _names_database(file):
            self.left.append(f"{file} names no database, so a shell uses another one than the units: add {line}")

    def drop_directory(self, path: Path) -> None:
        """Make a directory that is ingested, if it is not there, and see whether the units may read it."""
        place = self.inside(path)
        if not place.exists():
            self._steps.append(
                Step(Act.MAKE, str(place), f"of {USER}; its group may write" if self._runs_apart else "")
            )
            if not self._dry_run:
                place.mkdir(parents=True)
                if self._runs_apart:
                    shutil.chown(place, USER, USER)
                    place.chmod(0o2770)
        elif self._runs_apart and not self._dry_run:
            try:
                _output("runuser", "-u", USER, "--", "test", "-r", str(path), "-a", "-x", str(path))
            except Refused:
                self.left.append(
                    f"the user {USER} may not read {path}: setfacl -R -m u:{USER}:rX -m d:u:{USER}:rX, or a group that may"
                )

    def run(self, *command: str) -> None:
        """Run a command."""
        self._steps.append(Step(Act.RUN, " ".join(command)))
        if not self._dry_run:
            _output(*command)

    def systemctl(self, *arguments: str) -> None:
        """Run systemctl for the manager in question."""
        self.run("systemctl", *(("--user",) if self.user else self.in_root), *arguments)

    def take_away(self, target: Path) -> None:
        """Remove a file that ``place`` has written."""
        if not os.path.lexists(target):
            return
        if not _is_ours(target):
            self._keep(target, "it was changed, or is not of examsend")
            return
        self._steps.append(Step(Act.REMOVE, str(target)))
        if not self._dry_run:
            target.unlink()

    def say_next(self) -> None:
        """Say what is left to a person after an installation."""
        examsend = "examsend" if self.user else f"sudo -u {USER} examsend"
        self.left.append(f"once, and after an upgrade of examsend: {examsend} db upgrade")
        systemctl = "systemctl --user" if self.user else "systemctl"
        self.left.append(f"not enabled: {', '.join(OFFERED)} (`{systemctl} enable --now NAME`)")
        if self.user:
            self.left.append("to go on while you are not logged in: loginctl enable-linger")

    def _keep(self, target: Path, why: str) -> None:
        self._steps.append(Step(Act.KEEP, str(target), why))

    def _write(self, target: Path, text: str, mode: int) -> None:
        """Write a file in one step: a pass or a boot at this moment sees the old one or the new one."""
        self._steps.append(Step(Act.WRITE, str(target)))
        if self._dry_run:
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".examsend-")
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                os.fchmod(descriptor, mode)
            Path(name).replace(target)
        except OSError as error:
            raise Refused(f"{target} cannot be written: {error.strerror}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_ours(path: Path) -> bool:
    """Return whether a file is as ``install`` has written it, now or in an earlier version."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        first, _, rest = path.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return first == _HEADER + _digest(rest)


def _names_database(file: Path) -> bool:
    try:
        names: Iterable[str] = tomllib.loads(file.read_text())
    except (OSError, ValueError):
        return True  # what is wrong with it is said by every command
    return bool({"database_url", "database_url_file"} & set(names))
