"""The line of ``status --check``: level, what is wrong, and performance data (Monitoring Plugins' guidelines)."""

from __future__ import annotations

from examsend.commands.status import CheckResult
from examsend.queue.health import Level, Measure
from examsend.report.terminal import clean


def line(result: CheckResult) -> str:
    """Return the line: "EXAMSEND CRITICAL: 3 FAILED; pacs down for 4.0 h | failed=3;0;9;0 ..."."""
    wrong = [m for m in sorted(result.measures, key=lambda m: -m.level) if m.sentence]
    said = "; ".join(m.sentence for m in wrong) or "nothing needs attention"
    # A bar begins the performance data.
    text = clean(said).replace("|", "/")
    data = [_data(m) for m in result.measures] + [
        f"{state}={number};;;0" for state, number in result.batches.items() if state != "failed"
    ]
    return f"EXAMSEND {Level(result.level).name}: {text} | {' '.join(data)}"


def _data(m: Measure) -> str:
    value = (
        "U"
        if m.value is None and m.name in {"finalize", "send"}
        else f"{m.value or 0:.0f}" + ("s" if m.seconds else "")
    )
    limits = ["" if number is None else f"{number:.0f}" for number in (m.warning, m.critical)]
    return f"{m.name}={value};{limits[0]};{limits[1]};0"
