"""Shows the result of ``cancel``."""

from __future__ import annotations

from examsend.commands.cancel import CancelResult
from examsend.report import answers


def rendered(result: CancelResult) -> list[str]:
    """Return lines of text."""
    return answers.lines(
        result,
        "is cancelled",
        "what arrives for a cancelled study later is in a new batch; `examsend retry BATCH` brings one back",
    )
