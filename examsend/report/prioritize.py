"""Shows the result of ``prioritize``."""

from __future__ import annotations

from examsend.commands.prioritize import PrioritizeResult
from examsend.report import answers


def rendered(result: PrioritizeResult) -> list[str]:
    """Return lines of text."""
    return answers.lines(result, "goes first")
