"""Which schema this version of examsend works with."""

from __future__ import annotations

HEAD = "0002"
"""The newest migration (a test compares it with the files in migrations/)."""
