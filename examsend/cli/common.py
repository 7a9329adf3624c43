"""What every command shares: its options, its settings, how its result is shown and becomes an exit code."""

from __future__ import annotations

import functools
import getpass
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from examsend import __version__
from examsend.config.settings import Settings, load


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a command: its settings and how it may speak."""

    settings: Settings
    json: bool
    quiet: bool
    verbose: int

    @property
    def live(self) -> bool:
        """Whether a progress display belongs on the terminal."""
        return sys.stderr.isatty() and not self.json and not self.quiet


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "config_file": (
        Annotated[
            Path | None,
            typer.Option("--config", metavar="FILE", help="Read settings from this TOML file.", show_default=False),
        ],
        None,
    ),
    "database_url": (
        Annotated[
            str | None,
            typer.Option("--database-url", metavar="URL", help="PostgreSQL's URL. Not set: an embedded server."),
        ],
        None,
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="The result as JSON on standard output.")], False),
    "verbose": (
        Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; -vv with tracebacks.")],
        0,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="Say only what needs a person.")], False),
}


def command(
    app: typer.Typer, name: str | None = None, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function ``(session, ...) -> result`` as a command: the common options are added to its own, its result
    is reported, its exit code returned."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        common = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for n, (annotation, default) in _OPTIONS.items()
        ]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            session = _session(**{n: values.pop(n) for n in _OPTIONS})
            result = function(session, **values)
            if result is not None:
                _show(session, result)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
        run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, **options)(run)
        return function

    return decorate


def _session(
    *, config_file: Path | None, database_url: str | None, as_json: bool, verbose: int, quiet: bool
) -> Session:
    settings = load(config_file, options={"database_url": database_url})
    session = Session(settings, as_json, quiet, verbose)
    level = logging.WARNING if quiet or (session.live and not verbose) else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    # What a library makes of a peer is told by us, once, in our own words.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL if verbose < 2 else logging.DEBUG)
    logging.getLogger("examsend").setLevel(logging.DEBUG if verbose else level)
    return session


def _show(session: Session, result: object) -> None:
    code = int(getattr(result, "needs_person", False))
    if session.json or not session.quiet or code:
        # Imported only where there is something to show: an idle pass with -q should not pay for it.
        from examsend.report.json import as_json
        from examsend.report.text import to_console

        if session.json:
            sys.stdout.write(as_json(result) + "\n")
        else:
            to_console(result)
    if code:
        raise typer.Exit(code)


def show_version(value: bool) -> None:
    """Print the version and end."""
    if value:
        typer.echo(f"examsend {__version__}")
        raise typer.Exit


def who() -> str:
    """Return who gives an order, for the record: the login name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "an operator"
