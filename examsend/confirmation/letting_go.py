"""Lets sources go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.db.engine import Database


@dataclass(frozen=True, slots=True)
class Kept:
    path: str
    reason: str
    code: str


@dataclass(frozen=True, slots=True)
class LetGo:
    removed: int = 0
    moved: int = 0
    bytes: int = 0
    directories: int = 0
    kept: tuple[Kept, ...] = ()
    kept_count: int = 0
    would: tuple[str, ...] = ()


def let_go(
    database: Database, settings: Settings, *, dry_run: bool, prune_directories: bool, over: Callable[[], bool]
) -> LetGo:
    return LetGo()
