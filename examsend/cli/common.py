"""What all commands share: common options, settings, and how a result is shown and converted to an exit code."""

from __future__ import annotations

import functools
import getpass
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.models import ParameterInfo

from examsend import __version__, signals
from examsend.cli import suggest
from examsend.cli.pass_record import recorded
from examsend.config.settings import Explained, Settings, explained, unknown_variables
from examsend.errors import TRACEBACKS, DatabaseUnavailable, Interrupted, NoDatabase, UsageError
from examsend.report.terminal import clean

LARGEST_ID = 2**63 - 1
"""The ids of the database's rows are of the type bigint."""


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a command: its settings and what it prints."""

    settings: Settings
    json: bool
    quiet: bool
    verbose: int
    explained: Explained
    """The settings again, and where each comes from."""

    @property
    def live(self) -> bool:
        """Whether progress is displayed on the terminal."""
        return sys.stderr.isatty() and not self.json and not self.quiet


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "config_file": (
        Annotated[
            Path | None,
            # A file that cannot be read is said to be so by the settings: a wrong configuration, as a missing one is.
            typer.Option(
                "--config",
                metavar="FILE",
                help="Read settings from this TOML file.",
                show_default=False,
                readable=False,
            ),
        ],
        None,
    ),
    "database_url": (
        Annotated[
            str | None,
            typer.Option("--database-url", metavar="URL", help="URL of PostgreSQL. Not set: an embedded server."),
        ],
        None,
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="Write the result as JSON to standard output.")], False),
    "verbose": (
        Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more; -vv also shows tracebacks.")],
        0,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Print only what needs a person.")], False),
}


def always(_values: Mapping[str, Any]) -> bool:
    """An ``is_pass`` of ``command``: whatever the options."""
    return True


def command(
    app: typer.Typer,
    name: str | None = None,
    *,
    is_pass: Callable[[Mapping[str, Any]], bool] = lambda _values: False,
    **options: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function ``(session, ...) -> result`` as a command.

    The command has the function's own options and the common ones. Its result is shown, and sets the exit code. Given the
    values of its options, ``is_pass`` returns whether a run is a pass, which is recorded.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        paths = {p.name for p in own if _metavar(p) in _PATHS}
        common = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for n, (annotation, default) in _OPTIONS.items()
        ]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            session = _session(**{n: values.pop(n) for n in _OPTIONS})
            _check_text({name: value for name, value in values.items() if name not in paths})
            try:
                result = _result(session, function, values, recorded_as=function.__name__ if is_pass(values) else None)
            except KeyboardInterrupt:
                raise Interrupted(130, "interrupted; what was written to the database by then stays written") from None
            except NoDatabase as error:
                looked = ", ".join(f"{file.path} ({file.state})" for file in session.explained.files)
                raise NoDatabase(f"{error}. Settings were looked for in {looked}: `examsend config show`") from None
            if result is not None:
                _show(session, result)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
        for parameter in own:
            _offer(parameter)
        run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, **options)(run)
        return function

    return decorate


_PATHS = {"PATH", "WORD", "DIR", "FILE"}
"""Metavars of parameters that are, or may be, the path of a file: any bytes."""


def _metavar(parameter: inspect.Parameter) -> str:
    for declared in getattr(parameter.annotation, "__metadata__", ()):
        if isinstance(declared, ParameterInfo):
            return (declared.metavar or "").strip("[].")
    return ""


def _offer(parameter: inspect.Parameter) -> None:
    """Let the shell complete a parameter that is the name of a destination or the id of a batch."""
    for declared in getattr(parameter.annotation, "__metadata__", ()):
        if isinstance(declared, ParameterInfo) and declared.autocompletion is None:
            declared.autocompletion = suggest.completer(parameter.name, declared.metavar)


def _result(
    session: Session, function: Callable[..., Any], values: dict[str, Any], *, recorded_as: str | None
) -> object:
    """Run a command. ``recorded_as``: the name of the pass that it is; None: it is none."""
    if recorded_as is None:
        return function(session, **values)
    with recorded(session.settings, recorded_as) as ended:
        result = function(session, **values)
        if result is not None:
            ended(_exit_code(result))
    return result


def _check_text(values: dict[str, Any]) -> None:
    """Raise UsageError for text that is not UTF-8, which the database cannot compare with anything. Paths are not text."""
    for name, value in values.items():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, str) and any(0xD800 <= ord(c) <= 0xDFFF for c in item):
                raise UsageError(f"{name.replace('_', '-')} must be text in UTF-8, unlike {item!r}")


def _session(
    *, config_file: Path | None, database_url: str | None, as_json: bool, verbose: int, quiet: bool
) -> Session:
    found = explained(config_file, options={"database_url": database_url})
    session = Session(found.settings, as_json, quiet, verbose, found)
    level = logging.WARNING if quiet or (session.live and not verbose) else logging.INFO
    _log_to_stderr()
    # A result tells each attempt already. A quiet pass leaves its trail in the journal, and nowhere else: cron mails what it gets.
    trail = verbose or (quiet and _stderr_is_journal())
    logging.getLogger("examsend.attempt").setLevel(logging.INFO if trail else logging.WARNING)
    logging.getLogger("examsend").setLevel((level, logging.DEBUG, TRACEBACKS)[min(verbose, 2)])
    if not quiet:
        for sentence in unknown_variables(os.environ):
            logging.getLogger("examsend").warning("warning: %s", sentence)
    return session


def _stderr_is_journal() -> bool:
    """Whether standard error goes to systemd's journal, which says so by the file's device and inode."""
    found = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class _Escaping(logging.Formatter):
    """Escapes what could control a terminal. Messages quote peers and file names, and libraries log them as they are."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        lines = [record.getMessage()]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        return "\n".join(map(clean, lines))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Escaping())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Warnings are logged too. These libraries write what a peer or a file holds, and pynetdicom the passcode of a user
    # identity; examsend itself reports what is wrong with either.
    logging.captureWarnings(True)
    for library in ("pynetdicom", "pydicom", "py.warnings"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _exit_code(result: object) -> int:
    return int(getattr(result, "exit_code", getattr(result, "needs_person", False)))


def _show(session: Session, result: object) -> None:
    code = _exit_code(result)
    if session.json or not session.quiet or code:
        # Imported only if there is something to show, so that an idle pass with -q is fast.
        from examsend.report.json import as_json
        from examsend.report.text import to_console

        if session.json:
            sys.stdout.write(as_json(result) + "\n")
        else:
            to_console(result)
    if code:
        raise typer.Exit(code)


def show_version(value: bool) -> None:
    """Print the version and exit."""
    if value:
        typer.echo(f"examsend {__version__}")
        raise typer.Exit


def operator_name() -> str:
    """Return the login name of the operator, which is recorded with a request."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "an operator"


class Asked:
    """What signals have asked of the command. The first SIGTERM or SIGINT asks it to end, a SIGINT after that ends it at once."""

    def __init__(self) -> None:
        self.to_end = False
        self.interrupted = False
        """One of them was SIGINT: the command exits with 130."""
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Run the block. A database that was not reached before SIGINT ended the wait for it is no failure of the command."""
        try:
            yield
        except DatabaseUnavailable as error:
            if not self.interrupted:
                raise
            raise Interrupted(130, f"interrupted; {error}") from None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        at_once = number == signal.SIGINT and self.to_end
        self.to_end = True
        self.interrupted = self.interrupted or number == signal.SIGINT
        if at_once:
            signals.end(number, frame)
