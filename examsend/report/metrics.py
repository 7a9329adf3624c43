"""Shows the result of ``metrics``: the text itself, or where it was written."""

from __future__ import annotations

from typing import Any

from examsend.commands.metrics import MetricsResult
from examsend.report.layout import plural


def rendered(result: MetricsResult) -> list[Any]:
    """Return lines of text."""
    if result.textfile is not None:
        return [f"{plural(len(result.metrics), 'metric')} written to {result.textfile}"]
    return result.text.splitlines()
