"""Escapes untrusted text for a terminal."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean(text: str) -> str:
    """Given untrusted text, return it with everything escaped that could control a terminal: control characters, escape
    sequences, direction marks, undecodable bytes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text
    )
