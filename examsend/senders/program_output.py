"""What the output of a program that sends files says, as facts; and what such a program must provide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from examsend.transfer import End, Item, Peer, Problem


@dataclass(frozen=True, slots=True)
class Accepted:
    """A-ASSOCIATE-AC was received."""

    contexts: frozenset[tuple[str, str]] | None
    """The accepted (SOP class UID, transfer syntax UID); None: the program does not show them."""
    window: int = 1
    """C-STORE-RQs that may be outstanding at once (PS3.7 D.3.3.3); 0: no limit."""
    implementation: str = ""
    """The peer's implementation version name, or class UID; untrusted."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A C-STORE-RQ is being sent."""

    sop_instance_uid: str
    transfer_syntax_uid: str | None
    """Of the data set as sent; None: the program does not show it."""


@dataclass(frozen=True, slots=True)
class Responded:
    """A C-STORE-RSP was received."""

    sop_instance_uid: str
    status: int
    error_comment: str | None = None
    offending_elements: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NotSent:
    """The program says that it does not send a file, or that it cannot."""

    file_name: str
    """Of the link to the file, without its directory."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Unsent:
    """The output shows that an instance was not sent, and why. It counts only where no C-STORE-RQ was shown."""

    sop_instance_uid: str
    problem: Problem
    sentence: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The association was released, or did not come about, or ended early; the last event that counts."""

    end: End
    sentence: str = ""
    result: int | None = None
    source: int | None = None
    reason: int | None = None


Event: TypeAlias = Accepted | Requested | Responded | NotSent | Unsent | Finished


class Reader(Protocol):
    """Understands the output of one run of a program."""

    def feed(self, line: str) -> Iterable[Event]:
        """Given a line of its output (stdout and stderr as they come, undecodable bytes replaced), return what it says."""

    def close(self) -> Iterable[Event]:
        """The output has ended: return what was still incomplete."""


class Program(Protocol):
    """A program that sends the files of a directory over one association."""

    def check(self, item: Item) -> None:
        """Raise Unusable where the program would send something else than the item. Its content is checked by ``links``."""

    def command(self, peer: Peer, items: Sequence[Item], files: Path, private: Path) -> list[str]:
        """Return the program and its arguments.

        ``files``: the directory with a link to each file, and nothing else. ``private``: a directory for what else the program
        needs; other users cannot read it, and it is removed afterwards. The program runs in it, so that every path among the
        arguments must be absolute. Raises ConfigError.
        """

    def environment(self, private: Path) -> dict[str, str]:
        """Return the variables that are added to the environment of this process."""

    def reader(self, items: Sequence[Item]) -> Reader:
        """Return a new reader for the output of one run."""
