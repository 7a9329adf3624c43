"""The series that a destination requires of a study: the text of ``--required-series``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

_BY_MODALITY = re.compile(r"([A-Za-z0-9_ ]{1,16}?)\s*=\s*(\d{1,4})")


@dataclass(frozen=True, slots=True)
class Required:
    """One requirement: ``count`` series of a modality, or one series whose description matches ``pattern``."""

    pattern: str
    """Of the Series Description (0008,103E), in lower case; ``*`` stands for any text. Empty: by modality."""
    modality: str = ""
    count: int = 1

    def __str__(self) -> str:
        return f"{self.modality}={self.count}" if self.modality else self.pattern


def parse(value: str) -> tuple[Required, ...]:
    """Given ``CT=2; Scout*``, return the requirements, separated by semicolons. Raises ValueError."""
    found: list[Required] = []
    for part in filter(None, map(str.strip, value.split(";"))):
        match = _BY_MODALITY.fullmatch(part)
        if match is None:
            if "=" in part:
                raise ValueError(f"must be series like 'CT=2; Scout*', unlike {part!r}")
            found.append(Required(part.lower()))
        elif int(match[2]) == 0:
            raise ValueError(f"must ask for at least one series, unlike {part!r}")
        else:
            found.append(Required("", match[1].strip().upper(), int(match[2])))
    if not found:
        raise ValueError("must name series, like 'CT=2; Scout*'")
    return tuple(found)


def missing(required: Iterable[Required], here: Iterable[tuple[str | None, str | None]]) -> list[str]:
    """Given requirements, and modality and description of each series that is here, return those not met, in words."""
    series = [((modality or "").upper(), (description or "").lower()) for modality, description in here]
    left: list[str] = []
    for one in required:
        if one.modality:
            short = one.count - sum(modality == one.modality for modality, _ in series)
            if short > 0:
                left.append(f"{short} of {one.count} {one.modality} series")
        elif not any(fnmatch.fnmatchcase(description, one.pattern) for _, description in series):
            left.append(f"series {one.pattern!r}")
    return left


def parse_stored(value: str | None) -> tuple[Required, ...]:
    """Given the text in a destination's row, return the requirements; none where it is not set, or was written by hand wrongly."""
    try:
        return parse(value) if value else ()
    except ValueError:
        return ()
