"""Find the program of a sender. DCMTK's and dcm4che's have the same name, so that each one found is asked what it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_FAULT_SECONDS = 60.0
"""How long a program that cannot be used is not asked again: one that hangs takes seconds, for each destination with its sender."""


class Unfit(Exception):
    """The program cannot be used; its text is why."""


class Search(Generic[T]):
    """Looks for a program ``storescu``, and remembers what each one answered until its file is another one."""

    def __init__(self, ask: Callable[[Path], T]) -> None:
        """``ask``: given a program, return what is to be known of it. Raises Unfit, OSError where it cannot be run."""
        self._ask = ask
        self._known: dict[tuple[Path, int, int, int], tuple[float, T | Unfit]] = {}

    def find(self, given: Path | None) -> tuple[Path, T]:
        """Given the setting, or None for those on PATH, return the first program that can be used and what it answered.

        Raises Unfit with what was looked at.
        """
        if given is None:
            places = [Path(place) / "storescu" for place in os.get_exec_path() if Path(place).is_absolute()]
        elif os.path.isdir(given):  # noqa: PTH112 (see below)
            places = [given / "storescu", given / "bin" / "storescu"]
        else:
            places = [given]
        faults: list[str] = []
        for place in dict.fromkeys(places):
            # Not with Path: it raises where a directory may not be looked into.
            if not (os.path.isfile(place) and os.access(place, os.X_OK)):  # noqa: PTH113
                continue
            answer = self._answer(place)
            if not isinstance(answer, Unfit):
                return place, answer
            faults.append(f"{place} {answer}")
        where = f"at {given}" if given is not None else "on PATH"
        raise Unfit("; ".join([f"there is none {where}", *faults]))

    def _answer(self, program: Path) -> T | Unfit:
        answer: T | Unfit
        try:
            state = program.stat()
            key = (program, state.st_ino, state.st_mtime_ns, state.st_size)
            at, answer = self._known.get(key, (0.0, Unfit()))
            if isinstance(answer, Unfit) and (not at or time.monotonic() - at > _FAULT_SECONDS):
                answer = self._asked(program)
                self._known[key] = (time.monotonic(), answer)
        except OSError as error:
            answer = Unfit(f"cannot be run ({error.strerror or error})")
        return answer

    def _asked(self, program: Path) -> T | Unfit:
        try:
            return self._ask(program)
        except Unfit as unfit:
            return unfit
