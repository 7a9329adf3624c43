"""The presentation contexts that a set of instances needs (PS3.8 9.3.2.2, PS3.5 10.1).

Each pair of SOP class and transfer syntax of the files gets one context with just that syntax, so that data sets are sent
unchanged. For classes with files in a native (uncompressed) syntax, a separate context proposes Implicit VR Little Endian,
which every receiver must support (PS3.5 10.1). It is used only where the file's own syntax is not accepted; the data set is
then re-encoded.

Where compressed files may be converted (``Transcode.FALLBACK``), further contexts propose Explicit and Implicit VR Little
Endian for their classes, as far as there is room for them. With ``always:UID`` the contexts are those of the target:

- A compressed file that can be converted goes in the target syntax or not at all. Whoever sets this has a receiver that does
  not cope with the file's own syntax, even where it accepts it. Where the syntax alone does not tell whether a file is lossy,
  its own is proposed too, for the files that turn out to be.
- A native file goes as under ``never`` where the target is not accepted, or where there is nothing to convert: a report has no
  pixels to compress. Every receiver copes with native files.
- A file that is always lossy, or that is in the target syntax, goes as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping, Sequence
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


def _targets(syntax: str) -> tuple[str, ...]:
    """Return the uncompressed transfer syntaxes to which files in a compressed one can be converted; see ``transcode.targets``."""
    # Imported where a policy or a refusal asks for it: most associations convert nothing.
    from examsend.dicom.transcode import targets

    return targets(syntax)


def _may_be_lossy(syntax: str) -> bool:
    """Return whether only a file in a transfer syntax tells whether it was compressed with loss."""
    from examsend.dicom.plugins import MAY_BE_LOSSY

    return syntax in MAY_BE_LOSSY


@functools.lru_cache(256)
def _needed(syntax: str, transcode: Transcode) -> tuple[str, ...]:
    """Return the transfer syntaxes to propose in any case for a file in ``syntax``, the preferred one first."""
    own: tuple[str, ...] = (syntax,)
    if syntax in NATIVE and syntax != IMPLICIT_VR_LITTLE_ENDIAN:
        own = (syntax, IMPLICIT_VR_LITTLE_ENDIAN)
    target = transcode.target
    if target is None or target == syntax:
        return own
    if syntax in NATIVE:
        return tuple(dict.fromkeys((target, *own)))
    if not _targets(syntax):
        return own
    return (target, *own) if _may_be_lossy(syntax) else (target,)


@functools.lru_cache(256)
def _fallbacks(syntax: str, transcode: Transcode) -> tuple[str, ...]:
    """Return the transfer syntaxes to propose for a file in ``syntax`` where there is room for them, the preferred one first."""
    return _targets(syntax) if transcode is Transcode.FALLBACK else ()


def _pairs(instance: HasSyntax, transcode: Transcode) -> tuple[tuple[str, str], ...]:
    return tuple((instance.sop_class_uid, syntax) for syntax in _needed(instance.transfer_syntax_uid, transcode))


def propose(
    instances: Iterable[HasSyntax], transcode: Transcode = Transcode.NEVER, most: int = MAX_CONTEXTS
) -> tuple[Proposal, ...]:
    """Given instances, return the contexts they need, with ids 1, 3, 5, ... in order of first use, then their fall-backs.

    Fall-backs are left out where they would be more than ``most`` contexts: first Explicit VR Little Endian, since a receiver
    need not accept it. Raises ValueError where more than ``most`` are needed; see ``partition``.
    """
    kinds = dict.fromkeys((i.sop_class_uid, i.transfer_syntax_uid) for i in instances)
    pairs = dict.fromkeys((kind, needed) for kind, own in kinds for needed in _needed(own, transcode))
    if len(pairs) > most:
        raise ValueError(f"{len(pairs)} presentation contexts do not fit into one association (at most {most})")
    wanted = [(kind, syntax) for kind, own in kinds for syntax in _fallbacks(own, transcode)]
    # The default syntax first, which every receiver must accept (PS3.5 10.1).
    wanted.sort(key=lambda pair: pair[1] != IMPLICIT_VR_LITTLE_ENDIAN)
    for pair in wanted:
        if len(pairs) < most:
            pairs[pair] = None
    return tuple(Proposal(2 * n + 1, *pair) for n, pair in enumerate(pairs))


def partition(
    instances: Sequence[T], transcode: Transcode = Transcode.NEVER, most: int = MAX_CONTEXTS
) -> list[list[T]]:
    """Given instances in order, return them as lists that each need at most ``most`` contexts, fall-backs not counted.

    Usually one list. Order is kept within each list. Instances of one SOP class and transfer syntax share a list.
    """
    groups: list[tuple[dict[tuple[str, str], None], list[T]]] = []
    home: dict[tuple[str, str], list[T]] = {}
    for instance in instances:
        pairs = _pairs(instance, transcode)
        kind = (instance.sop_class_uid, instance.transfer_syntax_uid)
        known = home.get(kind)
        if known is None:
            roomy = (g for g in groups if len(g[0]) + sum(pair not in g[0] for pair in pairs) <= most)
            group = next(roomy, None)
            if group is None:
                group = ({}, [])
                groups.append(group)
            group[0].update(dict.fromkeys(pairs))
            known = home[kind] = group[1]
        known.append(instance)
    return [members for _, members in groups]


@dataclass(frozen=True, slots=True)
class Carrier:
    """The accepted context in which an instance is sent."""

    context_id: int
    transfer_syntax_uid: str
    """The syntax of the data set as sent: the file's own, or another one to which it is converted."""


def choose(
    instance: HasSyntax, accepted: Mapping[tuple[str, str], int], transcode: Transcode = Transcode.NEVER
) -> tuple[Carrier, ...]:
    """Given an instance and the accepted {(SOP class, transfer syntax): context id}, return the context to send it in.

    A second one is for the case that the instance cannot be converted for the first. Empty where none was accepted. Without a
    target in ``transcode`` the file's own syntax comes first: what the peer accepts as it is, is not converted.
    """
    own = instance.transfer_syntax_uid
    syntaxes = (*_needed(own, transcode), *_fallbacks(own, transcode))
    found = [
        Carrier(context_id, syntax)
        for syntax in syntaxes
        if (context_id := accepted.get((instance.sop_class_uid, syntax))) is not None
    ]
    if transcode.target is None:
        return tuple(found[:1])
    if own not in NATIVE and found and found[0].transfer_syntax_uid != syntaxes[0]:
        return ()
    return tuple(found[:2])


def refusal(instance: HasSyntax, transcode: Transcode, proposed: Container[tuple[str, str]]) -> str:
    """Return a sentence about an instance for which no context was accepted, with the reason why it is not converted.

    ``proposed`` has the (SOP class, transfer syntax) of the proposed contexts.
    """
    own, target = instance.transfer_syntax_uid, transcode.target
    sentence = f"the peer accepts no presentation context for {instance.sop_class_uid} in {own}"
    if own in NATIVE:
        return sentence
    if not _targets(own):
        return f"{sentence}, which cannot be converted without loss" if transcode is not Transcode.NEVER else sentence
    if transcode is Transcode.NEVER:
        return f"{sentence}, and the destination's setting transcode is never"
    if target is None:
        if (instance.sop_class_uid, IMPLICIT_VR_LITTLE_ENDIAN) not in proposed:
            return f"{sentence}, and there was no room for one in which it would be uncompressed"
        return f"{sentence}, nor uncompressed"
    if target == own:
        return sentence
    return (
        f"the peer accepts no presentation context for {instance.sop_class_uid} in {target}, to which all that is in {own} is"
        f" converted (transcode = {transcode})"
    )
