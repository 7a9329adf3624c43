"""The command line: parses options, runs one command, shows its result. No SQL, no sockets."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from examsend.cli import common

_NAMES = (
    "ingest",
    "expect",
    "finalize",
    "send",
    "confirm",
    "status",
    "explain",
    "rejected",
    "metrics",
    "retry",
    "hold",
    "unhold",
    "cancel",
    "prioritize",
    "reroute",
    "listen",
    "destination",
    "prune",
    "db",
    "config",
    "systemd",
    "demo",
)
"""The commands in the order of --help, which is that of a study's life. Each is registered by the module of its name."""


class _OnDemand(MutableMapping[str, Any]):
    """The commands by name. One is made, and its module imported, when it is asked for: a pass needs one of them."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            if name not in _NAMES:
                raise KeyError(name)
            alone = typer.Typer(rich_markup_mode=None)
            importlib.import_module(f"examsend.cli.{name}").register(alone)
            self._made.update(get_group(alone).commands)
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in _NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)


class _Group(TyperGroup):
    """The command line: makes only the command that is run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _OnDemand()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of --help."""
        return list(self.commands)


app = typer.Typer(
    cls=_Group,
    name="examsend",
    help="Gathers DICOM files by study and delivers each study to its archive over one DIMSE association.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=common.show_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass
