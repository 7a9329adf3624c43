"""Shows the result of ``expect``."""

from __future__ import annotations

from typing import Any

from examsend.commands.expect import Expected, ExpectResult
from examsend.completion.archive import Asked
from examsend.report.layout import plural


def rendered(result: ExpectResult) -> list[Any]:
    """Return lines of text and tables."""
    lines: list[Any] = [_expected(e) for e in result.expected]
    lines += [_asked(a) for a in result.asked]
    lines += [
        f"study {f.study_instance_uid}: forgotten what is announced by {', '.join(dict.fromkeys(f.sources))}"
        for f in result.forgotten
    ]
    return lines


def _expected(e: Expected) -> str:
    what = plural(e.instances, "instance") if e.instances is not None else "at least one instance"
    what += f" in {plural(e.series, 'series', 'series')}" if e.series else ""
    here = ", ".join(f"{count} here for {name}" for name, count in e.here.items()) or "none is here yet"
    return f"study {e.study_instance_uid}: {what} announced ({e.source}); {here}"


def _asked(a: Asked) -> str:
    if a.failure:
        return f"study {a.study_instance_uid}: no answer from {a.archive}: {a.failure}"
    if not a.instances:
        return f"study {a.study_instance_uid}: {a.archive} does not know it"
    believed = "" if a.confirmed else "; believed once it answers the same again, 10 s or more later"
    return f"study {a.study_instance_uid}: {a.archive} has {plural(a.instances, 'instance')}{believed}"
