"""``examsend destination``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from examsend.cli import common

app = typer.Typer(help="Where batches go.", no_args_is_help=True, rich_markup_mode=None)

_NAME = Annotated[str, typer.Argument(metavar="NAME", help="The destination's name.")]

_SETTINGS: dict[str, Any] = {
    "calling_aet": Annotated[str | None, typer.Option(metavar="AET", help="Our AE title (EXAMSEND).")],
    "sender": Annotated[str | None, typer.Option(help="native, pynetdicom, dcm4che or dcmtk.")],
    "is_default": Annotated[
        bool | None, typer.Option("--default/--no-default", help="ingest routes to it without --to (yes).")
    ],
    "quiet_seconds": Annotated[
        float | None,
        typer.Option(
            "--quiet-period", "--quiet", metavar="SECONDS", help="Complete after so long without a new instance (60)."
        ),
    ],
    "longest_wait_seconds": Annotated[
        float | None, typer.Option("--longest-wait", metavar="SECONDS", help="Complete so long after opening (5400).")
    ],
    "association_limit": Annotated[
        int | None, typer.Option("--associations", metavar="N", help="Associations at once (1).")
    ],
    "associations_per_study": Annotated[
        int | None, typer.Option(metavar="N", help="Split a large study over so many (1: the promise).")
    ],
    "async_window": Annotated[
        int | None, typer.Option(metavar="N", help="C-STOREs outstanding: 1 off, 0 unlimited (1).")
    ],
    "priority": Annotated[int | None, typer.Option(metavar="N", help="0 medium, 1 high, 2 low (0).")],
    "max_attempts": Annotated[int | None, typer.Option(metavar="N", help="Attempts before FAILED (10).")],
    "backoff_seconds": Annotated[
        float | None, typer.Option("--backoff", metavar="SECONDS", help="First pause after a failure (30).")
    ],
    "backoff_max_seconds": Annotated[
        float | None, typer.Option("--backoff-max", metavar="SECONDS", help="Longest pause (600).")
    ],
    "expire_seconds": Annotated[
        float | None, typer.Option("--expire", metavar="SECONDS", help="READY so long: FAILED (432000, 5 days).")
    ],
    "connect_timeout": Annotated[float | None, typer.Option(metavar="SECONDS", help="To connect (10).")],
    "accept_timeout": Annotated[float | None, typer.Option(metavar="SECONDS", help="A-ASSOCIATE answered (30).")],
    "answer_timeout": Annotated[float | None, typer.Option(metavar="SECONDS", help="C-STORE answered (60).")],
    "stall_timeout": Annotated[float | None, typer.Option(metavar="SECONDS", help="Without one byte accepted (60).")],
    "tls": Annotated[bool | None, typer.Option("--tls/--no-tls", help="Use TLS, never falling back to plain (no).")],
    "tls_ca_file": Annotated[str | None, typer.Option(metavar="FILE", help="CA certificates (PEM).")],
    "tls_cert_file": Annotated[str | None, typer.Option(metavar="FILE", help="Our certificate (PEM).")],
    "tls_key_file": Annotated[str | None, typer.Option(metavar="FILE", help="Its key (PEM).")],
    "tls_server_name": Annotated[str | None, typer.Option(metavar="NAME", help="Name the peer's certificate has.")],
    "tls_pin_sha256": Annotated[
        str | None, typer.Option("--tls-pin", metavar="HEX", help="SHA-256 of the peer's certificate.")
    ],
    "user_identity_kind": Annotated[
        int | None, typer.Option(metavar="N", help="1 username, 2 with passcode, 5 JSON Web Token.")
    ],
    "user_identity_name": Annotated[str | None, typer.Option(metavar="NAME", help="The username.")],
    "user_identity_file": Annotated[str | None, typer.Option(metavar="FILE", help="File of passcode or token.")],
}


def _with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function that takes ``**values`` one option for each setting of a destination."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _SETTINGS.items()
    ]
    function.__signature__ = inspect.Signature(own + options)  # type: ignore[attr-defined]
    return function


@common.command(app, own_quiet=True)
@_with_settings
def add(
    session: common.Session,
    name: _NAME,
    address: Annotated[str, typer.Argument(metavar="AET@HOST:PORT", help="Called AE title, host and port.")],
    **values: Any,
) -> object:
    """Add a destination: where it is and how it is to be sent to."""
    from examsend.commands import destination

    return destination.add(session.settings, name, address, values)


@common.command(app, "set", own_quiet=True)
@_with_settings
def change(
    session: common.Session,
    name: _NAME,
    address: Annotated[
        str | None, typer.Option("--address", metavar="AET@HOST:PORT", help="Called AE title, host and port.")
    ] = None,
    **values: Any,
) -> object:
    """Change settings of a destination."""
    from examsend.commands import destination

    return destination.change(session.settings, name, address, values)


@common.command(app, "list")
def show_all(session: common.Session) -> object:
    """List the destinations."""
    from examsend.commands import destination

    return destination.show_all(session.settings)


@common.command(app)
def show(session: common.Session, name: _NAME) -> object:
    """Show every setting of a destination, its health, and what its sender can do."""
    from examsend.commands import destination

    return destination.show(session.settings, name)


@common.command(app)
def enable(session: common.Session, name: _NAME) -> object:
    """Take a destination into use."""
    from examsend.commands import destination

    return destination.enable(session.settings, name, enabled=True)


@common.command(app)
def disable(session: common.Session, name: _NAME) -> object:
    """Take a destination out of use: nothing is routed or sent to it, its batches wait."""
    from examsend.commands import destination

    return destination.enable(session.settings, name, enabled=False)


@common.command(app)
def release(session: common.Session, name: _NAME) -> object:
    """Release a held destination: it is tried with the next send."""
    from examsend.commands import destination

    return destination.release(session.settings, name)


@common.command(app)
def remove(session: common.Session, name: _NAME) -> object:
    """Remove a destination that has no unsent batches. What was sent to it stays on record."""
    from examsend.commands import destination

    return destination.remove(session.settings, name)


@common.command(app)
def echo(session: common.Session, name: _NAME) -> object:
    """Ask a destination for a C-ECHO: says the round trip time, or what the peer said if it refused."""
    from examsend.commands import destination

    return destination.echo(session.settings, name)
