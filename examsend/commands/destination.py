"""The commands for destinations: add, list, show, set, enable, disable, remove, unhold, echo."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from examsend import senders
from examsend.config.destination import address, label, option_of, optional_setting, parse_address
from examsend.config.files import NotReadable
from examsend.config.settings import Settings
from examsend.config.together import check_lease
from examsend.config.together import warnings as destination_warnings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.errors import ConfigError, UsageError
from examsend.queue import events
from examsend.queue.addressee import canonical
from examsend.queue.destination import (
    Destination,
    add_destination,
    change_destination,
    enable_destination,
    get_destination,
    list_destinations,
    remove_destination,
    resemblance,
)
from examsend.queue.pauses import end_hold
from examsend.queue.second_sender import Choice, choose
from examsend.senders.base import Capabilities
from examsend.states import Act

log = logging.getLogger("examsend.destination")


@dataclass(frozen=True, slots=True)
class Destinations:
    """All destinations."""

    destinations: tuple[Destination, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """One destination with its settings, and the capabilities of its senders."""

    destination: Destination
    senders: Mapping[str, Capabilities]
    """By name: the sender, and the second one where there is one."""
    next_sender: str
    """Of the next attempt."""
    next_sender_reason: str
    """Why it is the second one; empty where it is not."""


@dataclass(frozen=True, slots=True)
class Changed:
    """One destination was changed; ``sentence`` says how."""

    name: str
    sentence: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Echoed:
    """The answer of a destination to a C-ECHO."""

    name: str
    address: str
    ok: bool
    milliseconds: float | None
    sentence: str

    @property
    def needs_person(self) -> bool:
        """Whether the C-ECHO failed."""
        return not self.ok


_SOMEBODY = "an operator"


def _record(tx: Connection, destination_id: int, by: str, what: str) -> None:
    events.record_destination(tx, Act.DESTINATION, destination_id, who=by, why=what)


def add(settings: Settings, name: str, at: str, values: Mapping[str, object], *, by: str = _SOMEBODY) -> Changed:
    """Add a destination at the address ``at``. Raises UsageError."""
    wanted = {**parse_address(at), **values}
    check_lease(wanted, settings.lease)

    def work(tx: Connection) -> tuple[Destination, tuple[str, ...]]:
        made = add_destination(tx, name, _with_archive(tx, wanted))
        _record(tx, made.id, by, "added")
        return made, (*_resembling(tx, made), *_inspect(settings, made, wanted))

    with access.opened(settings) as database:
        made, warnings = database.run(work)
    sentence = f"destination {name} added: {address(made.called_aet, made.host, made.port)}, sender {made.sender}"
    return Changed(name, sentence, warnings)


def change(
    settings: Settings,
    name: str,
    at: str | None,
    values: Mapping[str, object],
    unset: Sequence[str] = (),
    *,
    by: str = _SOMEBODY,
) -> Changed:
    """Change settings of a destination. ``at``: its new address. ``unset``: options whose settings are to have no value any more.

    Raises UsageError.
    """
    wanted = {k: v for k, v in values.items() if v is not None}
    if at is not None:
        wanted |= parse_address(at)
    for option in unset:
        setting = optional_setting(option)
        if setting in wanted:
            raise UsageError(f"--unset {option} and a value for it contradict each other")
        wanted[setting] = None
    check_lease(wanted, settings.lease)

    def work(tx: Connection) -> tuple[str, ...]:
        changed = change_destination(tx, name, _with_archive(tx, wanted))
        if wanted:
            _record(tx, changed.id, by, f"{', '.join(sorted(map(label, wanted)))} changed")
        similar = _resembling(tx, changed) if wanted.keys() & {"host", "port", "called_aet"} else ()
        return (*similar, *_inspect(settings, changed, wanted))

    with access.opened(settings, create=False) as database:
        warnings = database.run(work)
    return Changed(name, f"destination {name}: {', '.join(sorted(map(label, wanted))) or 'nothing'} changed", warnings)


def _resembling(tx: Connection, new: Destination) -> tuple[str, ...]:
    """Return, and log, a warning for each other destination that may be the same one: the same address, or the same name in
    another case."""
    others = (other for other in list_destinations(tx) if other.id != new.id)
    warnings = tuple(sentence for other in others for sentence in resemblance(new, other))
    for warning in warnings:
        log.warning("warning: destination %s: %s", new.name, warning)
    return warnings


def _with_archive(tx: Connection, wanted: Mapping[str, object]) -> Mapping[str, object]:
    """Check the archives to ask: each is an address, or a destination that there is. Raises UsageError."""
    return {
        **wanted,
        **{
            n: _archive(tx, n, archive)
            for n in ("expect_from", "confirm_to")
            if isinstance(archive := wanted.get(n), str)
        },
    }


def _archive(tx: Connection, setting: str, archive: str) -> str:
    try:
        return canonical(tx, archive)
    except UsageError as error:
        raise UsageError(f"{option_of(setting)} is AET@HOST:PORT or a destination: {error}") from None


_FOR_SENDERS = (
    "host",
    "called_aet",
    "calling_aet",
    "sender",
    "fallback_sender",
    "transcode",
    "priority",
    "tls",
    "user_identity",
)
"""How the names of the settings begin that a sender may not be able to honour."""


def _inspect(settings: Settings, destination: Destination, wanted: Mapping[str, object]) -> tuple[str, ...]:
    """Check that the senders can do what the settings ask for, and look at the files that these name, if one of these settings is
    to be changed; return warnings.

    Raises ConfigError for a sender that cannot, or whose program is missing, and for a file that is here and cannot be used. A
    file that is not here, or that this user may not read, is a warning: another host, or another user, may be the one that sends.
    """
    if not any(key.startswith(_FOR_SENDERS) for key in wanted):
        return ()
    from examsend.dimse import negotiation, tls

    found = destination_warnings(destination)
    peer = destination.peer()
    uses: list[Callable[[], object]] = [lambda: negotiation.request(peer, ())]
    if peer.tls is not None:
        uses.append(partial(tls.context, peer.tls))
    uses += [partial(senders.get(name, settings).check, peer) for name in destination.senders]
    for use in uses:
        try:
            use()
        except NotReadable as missing:
            found.append(f"{missing}: it must be there where `examsend send` runs")
    for warning in found:
        log.warning("warning: destination %s: %s", destination.name, warning)
    return tuple(found)


def enable(settings: Settings, name: str, *, enabled: bool, by: str = _SOMEBODY) -> Changed:
    """Enable or disable a destination. Raises UsageError."""

    def work(tx: Connection) -> None:
        changed = enable_destination(tx, name, enabled=enabled)
        _record(tx, changed, by, "enabled" if enabled else "disabled")

    with access.opened(settings, create=False) as database:
        database.run(work)
    return Changed(name, f"destination {name} {'enabled' if enabled else 'disabled: its batches wait'}")


def remove(settings: Settings, name: str, *, by: str = _SOMEBODY) -> Changed:
    """Remove a destination. Raises UsageError, Refused while it has unsent or failed batches."""

    def work(tx: Connection) -> None:
        _record(tx, remove_destination(tx, name), by, f"{name} removed")

    with access.opened(settings, create=False) as database:
        database.run(work)
    return Changed(name, f"destination {name} removed")


def unhold(settings: Settings, name: str, *, by: str = _SOMEBODY) -> Changed:
    """End a destination's hold. Raises UsageError."""

    def work(tx: Connection) -> bool:
        found = get_destination(tx, name)
        was = end_hold(tx, found.id)
        if was:
            _record(tx, found.id, by, "its hold is ended")
        return was

    with access.opened(settings, create=False) as database:
        was = database.run(work)
    return Changed(name, f"destination {name} {'is no longer held' if was else 'was not held'}")


def show_all(settings: Settings) -> Destinations:
    """Return every destination."""
    with access.opened(settings, create=False) as database:
        return Destinations(tuple(database.run(list_destinations)))


def show(settings: Settings, name: str) -> Shown:
    """Return one destination. Raises UsageError."""

    def read(tx: Connection) -> tuple[Destination, Choice]:
        found = get_destination(tx, name)
        return found, choose(tx, found)

    with access.opened(settings, create=False) as database:
        found, choice = database.run(read)
    capabilities = {n.value: senders.get(n, settings).capabilities for n in found.senders}
    return Shown(found, capabilities, choice.name, choice.reason)


def echo(settings: Settings, name: str) -> Echoed:
    """Send a C-ECHO to a destination, and check that its senders can send to it.

    Raises UsageError if there is no such destination, ConfigError for a sender that cannot do what the settings ask for, or whose
    program is missing.
    """
    from examsend.dimse import echo as wire

    with access.opened(settings, create=False) as database:
        found = database.run(lambda tx: get_destination(tx, name))
    answer = wire.echo(found.peer())
    problems = list(filter(None, (senders.problem(n, found.peer(), settings) for n in found.senders)))
    if problems:
        echoed = "it answers C-ECHO" if answer.ok else f"C-ECHO: {answer.sentence}"
        raise ConfigError(f"destination {name}: {'; '.join(problems)} ({echoed})")
    where = address(found.called_aet, found.host, found.port)
    return Echoed(name, where, answer.ok, answer.milliseconds, answer.sentence)
