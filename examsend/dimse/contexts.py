"""Which presentation contexts a set of instances needs (PS3.8 9.3.2.2, PS3.5 10.1).

One context for each (SOP class, transfer syntax of the files), offering just that syntax, so that bytes go out
unchanged. For a class whose files are in a native (uncompressed) syntax, Implicit VR Little Endian is offered too, in a
context of its own, and used, by re-encoding, only where the file's own syntax is refused: PS3.5 10.1 makes it the
syntax that every receiver must take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from examsend.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN, NATIVE

MAX_CONTEXTS = 128
"""Presentation context ids are the odd numbers 1-255 (PS3.8 Table 9-18)."""


class HasSyntax(Protocol):
    """What is needed of an instance here."""

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID (0008,0016)."""

    @property
    def transfer_syntax_uid(self) -> str:
        """Transfer syntax of the file."""


T = TypeVar("T", bound=HasSyntax)


@dataclass(frozen=True, slots=True)
class Proposal:
    """One presentation context: an abstract syntax with exactly one transfer syntax."""

    context_id: int
    sop_class_uid: str
    transfer_syntax_uid: str


def _pairs(instance: HasSyntax) -> list[tuple[str, str]]:
    pairs = [(instance.sop_class_uid, instance.transfer_syntax_uid)]
    if instance.transfer_syntax_uid in NATIVE and instance.transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN:
        pairs.append((instance.sop_class_uid, IMPLICIT_VR_LITTLE_ENDIAN))
    return pairs


def propose(instances: Iterable[HasSyntax]) -> tuple[Proposal, ...]:
    """Given instances, return the contexts they need: ids 1, 3, 5, ... in the order of first use.

    Raises ValueError where they need more than 128: partition first.
    """
    pairs = dict.fromkeys(pair for instance in instances for pair in _pairs(instance))
    if len(pairs) > MAX_CONTEXTS:
        raise ValueError(f"{len(pairs)} presentation contexts do not fit into one association (at most 128)")
    return tuple(Proposal(2 * n + 1, *pair) for n, pair in enumerate(pairs))


def partition(instances: Sequence[T]) -> list[list[T]]:
    """Given instances in their order, return lists that each fit into one association's 128 contexts.

    Nearly always that is one list. Order is kept within a list; a class's contexts stay together.
    """
    groups: list[tuple[dict[tuple[str, str], None], list[T]]] = []
    home: dict[tuple[str, str], list[T]] = {}
    for instance in instances:
        pairs = _pairs(instance)
        known = home.get(pairs[0])
        if known is None:
            roomy = (g for g in groups if len(g[0]) + sum(pair not in g[0] for pair in pairs) <= MAX_CONTEXTS)
            group = next(roomy, None)
            if group is None:
                group = ({}, [])
                groups.append(group)
            group[0].update(dict.fromkeys(pairs))
            known = home[pairs[0]] = group[1]
        known.append(instance)
    return [members for _, members in groups]


@dataclass(frozen=True, slots=True)
class Carrier:
    """The accepted context an instance goes out in."""

    context_id: int
    transfer_syntax_uid: str
    """What the bytes must be in; the file's own syntax unless it was refused."""


def choose(instance: HasSyntax, accepted: dict[tuple[str, str], int]) -> Carrier | None:
    """Given an instance and the accepted {(SOP class, transfer syntax): context id}, return its carrier or None."""
    for sop_class_uid, syntax in _pairs(instance):
        context_id = accepted.get((sop_class_uid, syntax))
        if context_id is not None:
            return Carrier(context_id, syntax)
    return None
