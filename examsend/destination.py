"""Destinations as an operator handles them: add, list, show, set, enable, disable, remove, release, echo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from examsend import destinations, senders
from examsend.config import Settings
from examsend.db import engine
from examsend.destinations import Destination
from examsend.senders.base import Capabilities


@dataclass(frozen=True, slots=True)
class Destinations:
    """Destinations, in short."""

    destinations: tuple[Destination, ...]

    def rendered(self) -> list[Any]:
        """Return the table people read."""
        from examsend.report import table

        if not self.destinations:
            return ["no destination yet: `examsend destination add NAME AET@HOST:PORT`"]
        return [
            table(
                ("name", "address", "calling", "sender", "enabled", "default", "quiet>", "at once>", "held"),
                (
                    (
                        d.name,
                        f"{d.called_aet}@{d.host}:{d.port}",
                        d.calling_aet,
                        d.sender + (" (TLS)" if d.tls else ""),
                        "yes" if d.enabled else "no",
                        "yes" if d.is_default else "no",
                        f"{d.quiet_seconds:g} s",
                        d.association_limit,
                        d.held_reason if d.held_until else "",
                    )
                    for d in self.destinations
                ),
            )
        ]


@dataclass(frozen=True, slots=True)
class Shown:
    """One destination with all its settings, and what its sender can do."""

    destination: Destination
    capabilities: Capabilities

    def rendered(self) -> list[Any]:
        """Return the table people read."""
        from examsend.report import table

        rows = [(f.name.replace("_", "-"), getattr(self.destination, f.name)) for f in fields(Destination)]
        can = [f.name.replace("_", " ") for f in fields(Capabilities) if getattr(self.capabilities, f.name) is True]
        rows.append(("sender can", ", ".join(can)))
        rows += [("sender note", note) for note in self.capabilities.notes]
        return [table(("setting", "value"), ((name, "" if value is None else value) for name, value in rows))]


@dataclass(frozen=True, slots=True)
class Changed:
    """One destination was changed; ``sentence`` says how."""

    name: str
    sentence: str

    def rendered(self) -> list[Any]:
        """Return the line people read."""
        return [self.sentence]


@dataclass(frozen=True, slots=True)
class Echoed:
    """What a destination answered to a C-ECHO."""

    name: str
    address: str
    ok: bool
    milliseconds: float | None
    sentence: str

    @property
    def needs_person(self) -> bool:
        """Whether it did not answer as it should."""
        return not self.ok

    def rendered(self) -> list[Any]:
        """Return the line people read."""
        if self.ok:
            return [f"{self.name} ({self.address}) answers C-ECHO in {self.milliseconds:.1f} ms{self.sentence}"]
        return [f"{self.name} ({self.address}) does not answer C-ECHO: {self.sentence}"]


def add(settings: Settings, name: str, address: str, values: Mapping[str, object]) -> Changed:
    """Add a destination. Raises UsageError."""
    wanted = {**destinations.parse_address(address), **values}
    wanted["sender"] = wanted.get("sender") or senders.DEFAULT
    senders.check(str(wanted["sender"]))
    with engine.opened(settings) as database:
        made = database.run(lambda tx: destinations.add(tx, name, wanted))
    return Changed(name, f"destination {name} added: {made.called_aet}@{made.host}:{made.port}, sender {made.sender}")


def change(settings: Settings, name: str, address: str | None, values: Mapping[str, object]) -> Changed:
    """Change settings of a destination. Raises UsageError."""
    wanted = {k: v for k, v in values.items() if v is not None}
    if address is not None:
        wanted |= destinations.parse_address(address)
    if "sender" in wanted:
        senders.check(str(wanted["sender"]))
    with engine.opened(settings) as database:
        database.run(lambda tx: destinations.change(tx, name, wanted))
    return Changed(name, f"destination {name}: {', '.join(sorted(wanted)) or 'nothing'} changed")


def enable(settings: Settings, name: str, *, enabled: bool) -> Changed:
    """Take a destination into or out of use. Raises UsageError."""
    with engine.opened(settings) as database:
        database.run(lambda tx: destinations.change(tx, name, {"enabled": enabled}))
    return Changed(name, f"destination {name} {'enabled' if enabled else 'disabled: its batches wait'}")


def remove(settings: Settings, name: str) -> Changed:
    """Remove a destination. Raises UsageError, Refused while it has unsent or failed batches."""
    with engine.opened(settings) as database:
        database.run(lambda tx: destinations.remove(tx, name))
    return Changed(name, f"destination {name} removed")


def release(settings: Settings, name: str) -> Changed:
    """Release a held destination now. Raises UsageError."""
    with engine.opened(settings) as database:
        was = database.run(lambda tx: destinations.release(tx, destinations.get(tx, name).id))
    return Changed(name, f"destination {name} {'released' if was else 'was not held'}")


def show_all(settings: Settings) -> Destinations:
    """Return every destination."""
    with engine.opened(settings) as database, database.transaction() as tx:
        return Destinations(tuple(destinations.list_all(tx)))


def show(settings: Settings, name: str) -> Shown:
    """Return one destination. Raises UsageError."""
    with engine.opened(settings) as database, database.transaction() as tx:
        found = destinations.get(tx, name)
    return Shown(found, senders.get(found.sender).capabilities)


def echo(settings: Settings, name: str) -> Echoed:
    """Send a C-ECHO to a destination. Raises UsageError where there is none."""
    from examsend.dimse import echo as wire

    with engine.opened(settings) as database, database.transaction() as tx:
        found = destinations.get(tx, name)
    answer = wire.echo(found.peer())
    address = f"{found.called_aet}@{found.host}:{found.port}"
    return Echoed(name, address, answer.ok, answer.milliseconds, answer.sentence)
