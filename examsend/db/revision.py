"""The revision of the schema that this version of examsend needs."""

from __future__ import annotations

HEAD = "0008"
"""The newest migration. A test compares it with the files in migrations/."""
