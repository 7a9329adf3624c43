"""Shows the results of ``destination``."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from functools import singledispatch
from typing import Any

from examsend.commands.destination import Changed, Destinations, Echoed, Shown
from examsend.config.destination import address, label
from examsend.queue.destination import Destination
from examsend.report.layout import table
from examsend.senders.base import Capabilities


@singledispatch
def rendered(result: object) -> list[Any]:
    """Return lines of text and tables."""
    return [str(result)]


@rendered.register
def _destination_list(result: Destinations) -> list[Any]:
    if not result.destinations:
        return ["no destination yet: `examsend destination add NAME AET@HOST:PORT`"]
    return [
        table(
            ("name", "address", "calling", "sender", "enabled", "default", "quiet>", "at once>", "held"),
            (
                (
                    d.name,
                    address(d.called_aet, d.host, d.port),
                    d.calling_aet,
                    d.sender + (" (TLS)" if d.tls else ""),
                    "yes" if d.enabled else "no",
                    "yes" if d.is_default else "no",
                    f"{d.quiet_seconds:g} s",
                    d.association_limit,
                    d.held_reason if d.held_until else "",
                )
                for d in result.destinations
            ),
        )
    ]


@rendered.register
def _destination_shown(result: Shown) -> list[Any]:
    rows = [(label(f.name), getattr(result.destination, f.name)) for f in dataclasses.fields(Destination)]
    if result.next_sender_reason:
        rows.append(("next attempt", result.next_sender_reason))
    for name, can in result.senders.items():
        flags = [f.name for f in dataclasses.fields(Capabilities) if isinstance(getattr(can, f.name), bool)]
        rows += [
            (f"{name} can", ", ".join(f.replace("_", " ") for f in flags if getattr(can, f))),
            (f"{name} cannot", ", ".join(f.replace("_", " ") for f in flags if not getattr(can, f))),
            (f"{name} user identity kinds", ", ".join(map(str, can.user_identity_kinds)) or "none"),
            (f"{name} presentation contexts", can.most_contexts),
            *((f"{name} note", note) for note in can.notes),
        ]
    return [table(("setting", "value"), ((name, _shown(value)) for name, value in rows))]


def _shown(value: object) -> object:
    """Return the value of a setting as people read it: a time in this host's zone, with the zone's name."""
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S %Z}"
    return "" if value is None else value


@rendered.register
def _destination_changed(result: Changed) -> list[Any]:
    return [result.sentence]


@rendered.register
def _destination_echoed(result: Echoed) -> list[Any]:
    if result.ok:
        peer = f" ({result.sentence})" if result.sentence else ""
        return [f"{result.name} ({result.address}) answers C-ECHO in {result.milliseconds:.1f} ms{peer}"]
    return [f"{result.name} ({result.address}) does not answer C-ECHO: {result.sentence}"]
