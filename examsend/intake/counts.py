"""What one pass over drop directories counts and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from examsend.states import LatePolicy


@dataclass(frozen=True, slots=True)
class Noted:
    """A message about one path."""

    path: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Touched:
    """A batch that was opened, re-opened or extended."""

    id: int
    study_instance_uid: str
    destination: str
    opened: bool
    """It did not exist before."""
    new: int
    """New instances, among them new versions of known ones."""


@dataclass(slots=True)
class Counts:
    """Number of files by kind, and the batches and messages that resulted."""

    new: int = 0
    known: int = 0
    deferred: int = 0
    ignored: int = 0
    rejected: int = 0
    vanished: int = 0
    differing: int = 0
    new_bytes: int = 0
    opened: set[int] = field(default_factory=set)
    """Ids of the batches that did not exist before."""
    batches: dict[int, Touched] = field(default_factory=dict)
    """The batches that were opened, re-opened or grew, by id."""
    not_dicom: list[Noted] = field(default_factory=list)
    """Files that the operator named, and that are no DICOM files."""
    rejections: list[Noted] = field(default_factory=list)
    """Files that are rejected and were not reported yet, as they are now."""
    before: list[Noted] = field(default_factory=list)
    """Files that are rejected, were reported by an earlier pass, and have not changed since."""
    warnings: list[Noted] = field(default_factory=list)
    not_sent: int = 0
    """New files that are recorded and not sent: the late policy never of a destination."""
    late: Counter[tuple[str, LatePolicy]] = field(default_factory=Counter)
    """Late instances by the name of a destination and its policy."""
    unreadable_directories: int = 0
    removed: list[str] = field(default_factory=list)
    """Names of the destinations that were removed during the pass."""
    gone: list[str] = field(default_factory=list)
    """Paths of files that were rejected, and are not there any more."""
    no_room: int = 0
    """Those of the deferred that the spool has no room for, or cannot be written for."""
    spool_trouble: str | None = None
    """Why the spool cannot be written."""
    not_removed: list[Noted] = field(default_factory=list)
    """Originals that are registered and could not be removed."""


Progress = Callable[[int, int, int], None]
"""Called repeatedly with (files seen, new instances, bytes of the new instances)."""
