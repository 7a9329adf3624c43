"""``examsend destination``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Annotated, Any

import typer

from examsend.cli import common, suggest
from examsend.config.destination import DECLARED, DestinationSettings, type_of
from examsend.states import Confirm, LatePolicy, OnDisputed, OnIncomplete, SenderName, Transcode

app = typer.Typer(help="Manage the destinations of batches.", no_args_is_help=True, rich_markup_mode=None)

_NAME = Annotated[str, typer.Argument(metavar="NAME", help="The destination's name.")]

_NEW = Annotated[str, typer.Argument(metavar="NAME", help="The destination's name.", autocompletion=suggest.nothing)]

_TYPES: dict[str, Any] = {
    "str": str, "SenderName": SenderName, "Transcode": Transcode, "LatePolicy": LatePolicy, "OnIncomplete": OnIncomplete,
    "Confirm": Confirm, "OnDisputed": OnDisputed,
    "float": float, "int": int, "bool": bool,
}  # fmt: skip


def _options() -> Iterator[inspect.Parameter]:
    """Yield the option of each declared setting that has one.

    Its default is None, which means not set; the default of the setting is shown in the help text only.
    """
    for setting in fields(DestinationSettings):
        declared = DECLARED[setting.name]
        if declared.option is None:
            continue
        kind = _TYPES[type_of(setting)[0]]
        option = typer.Option(
            declared.option,
            metavar=declared.metavar,
            help=declared.help + _default(setting.default),
            show_default=False,
        )
        yield inspect.Parameter(
            setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
        )


def _default(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return " (yes)" if value else " (no)"
    return f" ({value:g})" if isinstance(value, float) else f" ({value})"


_OPTIONS = tuple(_options())


def _with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a destination's settings to the signature of a function that takes ``**values``."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = inspect.Signature([*own, *_OPTIONS])  # type: ignore[attr-defined]
    return function


@common.command(app)
@_with_settings
def add(
    session: common.Session,
    name: _NEW,
    address: Annotated[str, typer.Argument(metavar="AET@HOST:PORT", help="Called AE title, host and port.")],
    **values: Any,
) -> object:
    """Add a destination: its address and its settings."""
    from examsend.commands import destination

    return destination.add(session.settings, name, address, values, by=common.operator_name())


@common.command(app, "set")
@_with_settings
def change(
    session: common.Session,
    name: _NAME,
    address: Annotated[
        str | None, typer.Option("--address", metavar="AET@HOST:PORT", help="Called AE title, host and port.")
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(
            "--unset", metavar="OPTION", help="Take away the value of this option, as of expect-from (repeatable)."
        ),
    ] = None,
    **values: Any,
) -> object:
    """Change settings of a destination."""
    from examsend.commands import destination

    return destination.change(session.settings, name, address, values, unset or (), by=common.operator_name())


@common.command(app, "list")
def show_all(session: common.Session) -> object:
    """List the destinations."""
    from examsend.commands import destination

    return destination.show_all(session.settings)


@common.command(app)
def show(session: common.Session, name: _NAME) -> object:
    """Show the settings and health of a destination. Also shows the capabilities of its sender."""
    from examsend.commands import destination

    return destination.show(session.settings, name)


@common.command(app)
def enable(session: common.Session, name: _NAME) -> object:
    """Enable a destination. Files are routed to it, and its batches are sent."""
    from examsend.commands import destination

    return destination.enable(session.settings, name, enabled=True, by=common.operator_name())


@common.command(app)
def disable(session: common.Session, name: _NAME) -> object:
    """Disable a destination. Nothing is routed or sent to it, and its batches wait."""
    from examsend.commands import destination

    return destination.enable(session.settings, name, enabled=False, by=common.operator_name())


@common.command(app)
def unhold(session: common.Session, name: _NAME) -> object:
    """End the hold of a destination. The next send tries it."""
    from examsend.commands import destination

    return destination.unhold(session.settings, name, by=common.operator_name())


@common.command(app)
def remove(session: common.Session, name: _NAME) -> object:
    """Remove a destination that has no unsent or FAILED batches. The records of its SENT batches are kept."""
    from examsend.commands import destination

    return destination.remove(session.settings, name, by=common.operator_name())


@common.command(app)
def echo(session: common.Session, name: _NAME) -> object:
    """Send a C-ECHO to a destination. Shows the round trip time or the error."""
    from examsend.commands import destination

    return destination.echo(session.settings, name)


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="destination")
