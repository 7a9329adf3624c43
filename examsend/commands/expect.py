"""Announce what a study consists of: its instances, or their number; or withdraw what is announced."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from examsend.completion import archive as archives
from examsend.completion import manifest
from examsend.completion.archive import Asked
from examsend.completion.manifest import Announcement
from examsend.config.settings import Settings
from examsend.db import access
from examsend.db.engine import Connection
from examsend.dicom.uids import is_uid
from examsend.errors import UsageError
from examsend.queue import addressee, announcements
from examsend.states import ExpectationSource
from examsend.transfer import Peer

_CALLING_AET = "EXAMSEND"
"""Of an association with an archive that is no destination: the default of a destination."""


@dataclass(frozen=True, slots=True)
class Expected:
    """An announcement of one study."""

    study_instance_uid: str
    source: ExpectationSource
    instances: int | None
    """Number of announced instances; None: only series are named."""
    series: int
    """Number of announced series; 0: not known."""
    here: dict[str, int]
    """{destination: how many have arrived}."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A study whose announcements were withdrawn."""

    study_instance_uid: str
    sources: tuple[ExpectationSource, ...]


@dataclass(frozen=True, slots=True)
class ExpectResult:
    """The result of ``expect``, by study."""

    expected: tuple[Expected, ...] = ()
    forgotten: tuple[Forgotten, ...] = ()
    asked: tuple[Asked, ...] = ()
    """What an archive has answered, by study."""

    @property
    def needs_person(self) -> bool:
        """Whether an archive did not answer."""
        return any(a.failure for a in self.asked)


def run(
    settings: Settings,
    *,
    studies: Sequence[str] = (),
    count: int | None = None,
    instances: str | None = None,
    manifest_file: str | None = None,
    archive: str | None = None,
    wait: bool = False,
    forget: bool = False,
) -> ExpectResult:
    """Announce what studies consist of, by a count, a list of SOP Instance UIDs, a manifest, or the answer of an archive;
    or ``forget`` what is announced. ``wait``: ask the archive again for the answer that confirms its first one.

    All is announced, or nothing. A study that has no batch yet is announced before it arrives. Raises UsageError.
    """
    for study in studies:
        if not is_uid(study):
            raise UsageError(f"{study[:80]!r} is not a Study Instance UID")
    given = [
        option
        for option, value in (
            ("--count", count),
            ("--instances", instances),
            ("--manifest", manifest_file),
            ("--from", archive),
            ("--forget", forget or None),
        )
        if value is not None
    ]
    if len(given) != 1:
        raise UsageError(
            f"give one of --count, --instances, --manifest, --from and --forget, not {' and '.join(given) or 'none'}"
        )
    if wait and archive is None:
        raise UsageError("--wait waits for the second answer of an archive: add --from")
    if manifest_file is not None:
        if studies:
            raise UsageError("a manifest names its studies itself: --manifest goes without --study")
        wanted = manifest.read_manifest(manifest_file)
    elif not studies:
        raise UsageError(f"{given[0]} of which study? Add --study")
    elif forget:
        return _forget(settings, studies)
    elif archive is not None:
        return _ask(settings, studies, archive, wait=wait)
    elif len(studies) > 1:
        raise UsageError(f"{given[0]} is about one study: give --study once")
    elif instances is not None:
        wanted = [Announcement(studies[0], series=(manifest.read_instances(instances),))]
    else:
        wanted = [Announcement(studies[0], count=count)]
    with access.opened(settings) as database:
        return ExpectResult(expected=database.run(lambda tx: tuple(_announce(tx, a) for a in wanted), idempotent=True))


def _announce(tx: Connection, announcement: Announcement) -> Expected:
    study, series, count = announcement.study_instance_uid, announcement.series, announcement.count
    source = ExpectationSource.MANIFEST if count is None else ExpectationSource.COUNT
    expectation = announcements.announce(tx, source, study, series=series, count=count)
    named = sum(len(s.instances) for s in series)
    here = announcements.here(tx, expectation, study, named=named > 0)
    known = sum(1 for s in series if s.series_instance_uid)
    return Expected(study, source, named or count, known, here)


def _ask(settings: Settings, studies: Sequence[str], text: str, *, wait: bool) -> ExpectResult:
    """Ask an archive about studies, and again about those whose answer is not confirmed, if ``wait``."""
    with access.opened(settings) as database:

        def found(tx: Connection) -> tuple[str, Peer]:
            name = addressee.canonical(tx, text)
            return name, addressee.peer_of(tx, name, _CALLING_AET)

        name, peer = database.run(found)
        asked = {study: archives.record(database, study, name, archives.ask(peer, study)) for study in studies}
        again = [study for study, answer in asked.items() if not answer.confirmed and not answer.failure]
        if wait and again:
            time.sleep(archives.APART + 0.1)
            for study in again:
                asked[study] = archives.record(database, study, name, archives.ask(peer, study))
        return ExpectResult(asked=tuple(asked.values()))


def _forget(settings: Settings, studies: Sequence[str]) -> ExpectResult:
    def work(tx: Connection) -> ExpectResult:
        found = [Forgotten(study, tuple(announcements.forget(tx, study))) for study in dict.fromkeys(studies)]
        for one in found:
            if not one.sources:
                raise UsageError(f"nothing is announced of study {one.study_instance_uid}")
        return ExpectResult(forgotten=tuple(found))

    with access.opened(settings) as database:
        return database.run(work)
