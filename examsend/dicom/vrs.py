"""The value representations of PS3.5 6.2, grouped by how their elements are encoded."""

from __future__ import annotations

LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs with two reserved bytes and a 32-bit length in explicit form (PS3.5 Table 7.1-1)."""

SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US"}
)  # fmt: skip
"""VRs with a 16-bit length in explicit form (PS3.5 Table 7.1-2)."""

KNOWN = LONG | SHORT

WORD_BYTES = {
    b"AT": 2, b"FD": 8, b"FL": 4, b"OD": 8, b"OF": 4, b"OL": 4, b"OV": 8, b"OW": 2, b"SL": 4, b"SS": 2, b"SV": 8,
    b"UL": 4, b"US": 2, b"UV": 8,
}  # fmt: skip
"""Bytes of one word, for the VRs whose byte order is the transfer syntax's (PS3.5 6.2, 7.3).

The other known VRs have no byte order. UN is one of them: it is never byte-swapped (PS3.5 6.2.2).
"""


def text(raw: bytes) -> str:
    """Given the value of a UI, CS or IS element, return it as text, without its padding (PS3.5 6.2)."""
    return raw.decode("latin-1").strip(" \x00")
