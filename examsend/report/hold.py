"""Shows the result of ``hold``."""

from __future__ import annotations

from examsend.commands.hold import HoldResult
from examsend.report import answers


def rendered(result: HoldResult) -> list[str]:
    """Return lines of text."""
    return answers.lines(result, "is held now")
