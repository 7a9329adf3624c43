"""The presentation contexts that a set of instances needs (PS3.8 9.3.2.2, PS3.5 10.1).

Each pair of SOP class and transfer syntax of the files gets one context with just that syntax, so that data sets are sent
unchanged. For classes with files in a native (uncompressed) syntax, a separate context proposes Implicit VR Little Endian,
which every receiver must support (PS3.5 10.1). It is used only where the file's own syntax is not accepted; the data set is
then re-encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from examsend.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN, NATIVE
from examsend.states import Transcode

MAX_CONTEXTS = 128
"""Of one association: presentation context ids are the odd numbers from 1 to 255 (PS3.8 Table 9-18)."""


class HasSyntax(Protocol):
    """The attributes of an instance that decide its presentation context."""

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID (0008,0016)."""

    @property
    def transfer_syntax_uid(self) -> str:
        """Transfer Syntax UID (0002,0010) of the file."""


T = TypeVar("T", bound=HasSyntax)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed presentation context: one abstract syntax with one transfer syntax."""

    context_id: int
    sop_class_uid: str
    transfer_syntax_uid: str


def _pairs(instance: HasSyntax) -> list[tuple[str, str]]:
    pairs = [(instance.sop_class_uid, instance.transfer_syntax_uid)]
    if instance.transfer_syntax_uid in NATIVE and instance.transfer_syntax_uid != IMPLICIT_VR_LITTLE_ENDIAN:
        pairs.append((instance.sop_class_uid, IMPLICIT_VR_LITTLE_ENDIAN))
    return pairs


def propose(instances: Iterable[HasSyntax], transcode: Transcode = Transcode.NEVER) -> tuple[Proposal, ...]:
    """Given instances, return the contexts they need, with ids 1, 3, 5, ... in order of first use.

    Raises ValueError where they need more than 128; see ``partition``.
    """
    pairs = dict.fromkeys(pair for instance in instances for pair in _pairs(instance))
    if len(pairs) > MAX_CONTEXTS:
        raise ValueError(f"{len(pairs)} presentation contexts do not fit into one association (at most 128)")
    return tuple(Proposal(2 * n + 1, *pair) for n, pair in enumerate(pairs))


def partition(
    instances: Sequence[T], transcode: Transcode = Transcode.NEVER, most: int = MAX_CONTEXTS
) -> list[list[T]]:
    """Given instances in order, return them as lists that each need at most ``most`` contexts.

    Usually one list. Order is kept within each list. Instances of one SOP class and transfer syntax share a list.
    """
    groups: list[tuple[dict[tuple[str, str], None], list[T]]] = []
    home: dict[tuple[str, str], list[T]] = {}
    for instance in instances:
        pairs = _pairs(instance)
        known = home.get(pairs[0])
        if known is None:
            roomy = (g for g in groups if len(g[0]) + sum(pair not in g[0] for pair in pairs) <= most)
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
    """The accepted context in which an instance is sent."""

    context_id: int
    transfer_syntax_uid: str
    """The syntax of the data set as sent: the file's own, or Implicit VR Little Endian where that was not accepted."""


def choose(instance: HasSyntax, accepted: dict[tuple[str, str], int]) -> Carrier | None:
    """Given an instance and the accepted {(SOP class, transfer syntax): context id}, return the context to
    send it in, or None where none was accepted."""
    for sop_class_uid, syntax in _pairs(instance):
        context_id = accepted.get((sop_class_uid, syntax))
        if context_id is not None:
            return Carrier(context_id, syntax)
    return None
