"""Shows the results of ``config``."""

from __future__ import annotations

from collections import Counter
from functools import singledispatch
from typing import Any

from examsend.commands.config import ConfigChecked, ConfigExample, ConfigShown, Level
from examsend.report.layout import plural, table


@singledispatch
def rendered(result: object) -> list[Any]:
    """Return lines of text and tables."""
    return [str(result)]


@rendered.register
def _config_shown(result: ConfigShown) -> list[Any]:
    """One setting a line, as it stands in a settings file or would, and where it comes from."""
    rows = ((s.name, _value(s.value), f"{s.source} {s.where}".strip()) for s in result.settings)
    return [
        *(f"settings file {one.path}: {one.state}" for one in result.files),
        table(("setting", "value", "from"), rows),
    ]


def _value(value: object) -> str:
    if value is None or value == ():
        return "not set"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@rendered.register
def _config_checked(result: ConfigChecked) -> list[Any]:
    count = Counter(f.level for f in result.findings)
    last = f"{plural(count[Level.PROBLEM], 'problem')}, {plural(count[Level.WARNING], 'warning')}, {count[Level.OK]} ok"
    return [*(f"{f.level:<8} {f.subject}: {f.sentence}" for f in result.findings), last]


@rendered.register
def _config_example(result: ConfigExample) -> list[Any]:
    return result.text.removesuffix("\n").split("\n")
