"""What the shell is offered for an argument or an option. Quick, and silent whatever goes wrong: it is typed by itself then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

Completer = Callable[[typer.Context, str], list[tuple[str, str]]]


def destinations(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Offer the names of destinations."""
    return _found(context, incomplete, "destinations")


def batches(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Offer the ids of batches, those that need a person first."""
    return _found(context, incomplete, "batches")


def nothing(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Offer nothing: the name is a new one."""
    return []


def completer(name: str, metavar: str | None) -> Completer | None:
    """Given the name and the metavar of a parameter, return what completes it: a NAME that is called destination, to or name is
    a destination's, a BATCH or WORD is that of a batch."""
    shown = (metavar or "").strip("[].")
    if shown == "NAME" and name in {"destination", "to", "name"}:
        return destinations
    return batches if shown in {"BATCH", "WORD"} or name == "batch" else None


def _found(context: typer.Context, incomplete: str, what: str) -> list[tuple[str, str]]:
    try:
        from examsend.config.settings import load
        from examsend.db import candidates

        given: dict[str, Any] = context.params
        settings = load(given.get("config_file"), options={"database_url": given.get("database_url")})
        return list(getattr(candidates, what)(settings, incomplete))
    except Exception:  # noqa: BLE001 (a message would stand in the middle of the line that is being typed)
        return []
