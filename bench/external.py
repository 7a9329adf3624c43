"""Compares the senders that a destination may have: examsend's own, and the programs of DCMTK and dcm4che run by examsend.

    python -m bench.external

Beside them the same two programs by themselves.
"""

from __future__ import annotations

from typing import Any

from bench import common, send

_SENDERS = ("native", "pynetdicom", "dcm4che", "dcmtk", "dcmsend", "dcm4che-storescu")


def measure(quick: bool) -> dict[str, Any]:
    """Measure each sender once with one study and receiver; those that take less than 8 s three times."""
    case = send.Case("ct", "storescp", _SENDERS)
    with common.scratch() as place, common.database() as url, send.made("ct", place, quick=quick) as drop:
        return {"senders": send.compare(case, url, place, drop, 1 if quick else 3)}


if __name__ == "__main__":
    common.alone("external", measure)
