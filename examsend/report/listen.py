"""Shows the result of ``listen``."""

from __future__ import annotations

from typing import Any

from examsend.commands.listen import ListenResult
from examsend.report.layout import plural


def rendered(result: ListenResult) -> list[Any]:
    """Return lines of text and tables."""
    failed = f" ({result.failures} with a failure)" if result.failures else ""
    accepted = f"{plural(result.associations, 'association')}, {result.rejected} rejected"
    return [f"{accepted}; {plural(result.messages, 'message')} answered{failed} in {result.seconds:.0f} s"]
