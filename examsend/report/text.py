"""Shows the result of a command as lines and tables: each command's module of this folder makes them from its result.

Text from a file, a path or a peer is untrusted: ``clean`` escapes it.
"""

from __future__ import annotations

import importlib
from typing import Any

from examsend.report.layout import console
from examsend.report.terminal import clean


def to_console(result: object) -> None:
    """Print the result of a command."""
    out = console()
    for part in rendered(result):
        if isinstance(part, str):
            # Lines are not wrapped, so that grep finds them.
            out.print(clean(part), soft_wrap=True)
        else:
            out.print(part)


def rendered(result: object) -> list[Any]:
    """Given the result of a command, return lines of text and tables: those of ``examsend.report.X`` for a result of
    ``examsend.commands.X``. The demo, which is above this package, shows its own."""
    where = type(result).__module__
    module = importlib.import_module(where.replace("examsend.commands.", "examsend.report.", 1))
    lines: list[Any] = module.rendered(result)
    return lines
