"""Converts the result of a command, or the error that ended it, to JSON. docs/json.md has the contract, docs/schema.json its schema."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

from examsend import __version__


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def as_json(result: object) -> str:
    """Given the result of a command, return it as JSON: the command, the version, and the fields of the dataclass; times are in
    UTC."""
    command = command_of(type(result))
    return json.dumps({"command": command, "examsend_version": __version__, **_plain(result)}, indent=2)


def command_of(kind: type) -> str:
    """Given the class of a result, return the command: ``send`` for a class of ``examsend.commands.send``."""
    return kind.__module__.removesuffix(".run").rpartition(".")[2]


def error_as_json(code: str, message: str, exit_code: int) -> str:
    """Return as JSON why a command ended without a result."""
    return json.dumps({"error": {"code": code, "message": message, "exit_code": exit_code}}, indent=2)
