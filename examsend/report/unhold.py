"""Shows the result of ``unhold``."""

from __future__ import annotations

from examsend.commands.unhold import UnholdResult
from examsend.report import answers


def rendered(result: UnholdResult) -> list[str]:
    """Return lines of text."""
    return answers.lines(result, "is not held any more")
