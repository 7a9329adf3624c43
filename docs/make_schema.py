"""Makes docs/schema.json, the JSON Schema of what every command prints with --json, from the classes of the results.

python docs/make_schema.py
"""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import json
import pkgutil
import types
import typing
from collections.abc import Iterator
from datetime import datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import examsend.commands
from examsend.demo.run import DemoResult
from examsend.queue.views import BatchStatus
from examsend.report.json import command_of

FILE = Path(__file__).with_name("schema.json")

_LATE = {"BatchStatus": BatchStatus}
"""Classes that the module of a result does not import at its top."""


def results() -> Iterator[type]:
    """Yield the class of each result: what a public function of a module of commands returns."""
    found: dict[type, None] = {}
    for module in pkgutil.iter_modules(examsend.commands.__path__):
        loaded = importlib.import_module(f"examsend.commands.{module.name}")
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if not name.startswith("_") and function.__module__ == loaded.__name__:
                returned = typing.get_type_hints(function).get("return")
                for kind in typing.get_args(returned) or (returned,):
                    if dataclasses.is_dataclass(kind) and kind.__module__ == loaded.__name__:
                        found[typing.cast("type", kind)] = None
    yield from found
    yield DemoResult


class Schema:
    """Collects the definitions of the classes that results consist of."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """Given a type, return its schema."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in {typing.Union, types.UnionType}:
            return {"anyOf": [self.of(a) for a in arguments]}
        if origin in {dict, collections.abc.Mapping}:
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        if origin is tuple and Ellipsis not in arguments:
            return {"type": "array", "prefixItems": [self.of(a) for a in arguments], "items": False}
        if origin in {tuple, list, set, frozenset, collections.abc.Sequence}:
            return {"type": "array", "items": self.of(arguments[0])}
        return self._plain(kind)

    def _plain(self, kind: Any) -> dict[str, Any]:
        simple = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
        if kind in simple:
            return {"type": simple[kind]}
        if kind in {Any, object}:
            return {}
        if kind is datetime:
            return {"type": "string", "format": "date-time"}
        if inspect.isclass(kind) and issubclass(kind, IntEnum):
            return {"enum": [int(member) for member in kind]}
        if inspect.isclass(kind) and issubclass(kind, Enum):
            return {"enum": [str(member.value) for member in kind]}
        if dataclasses.is_dataclass(kind):
            return {"$ref": f"#/$defs/{self.define(typing.cast('type', kind))}"}
        return {"type": "string"}  # whatever else there is, is written as text

    def define(self, kind: type, command: str | None = None) -> str:
        """Add the definition of a class; return its name. ``command``: it is the result of this command."""
        name = f"{command}.{kind.__name__}" if command else kind.__name__
        if name in self.definitions:
            return name
        self.definitions[name] = {}  # a class may contain itself
        hints = typing.get_type_hints(kind, localns=_LATE)
        names = [f.name for f in dataclasses.fields(kind)]
        properties: dict[str, Any] = {n: self.of(hints[n]) for n in names}
        if command:
            properties = {"command": {"const": command}, "examsend_version": {"type": "string"}, **properties}
        self.definitions[name] = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return name


def make() -> dict[str, Any]:
    """Return the schema."""
    schema = Schema()
    names = [schema.define(kind, command_of(kind)) for kind in results()]
    error = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "exit_code": {"type": "integer"},
                },
                "required": ["code", "message", "exit_code"],
                "additionalProperties": False,
            }
        },
        "required": ["error"],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What examsend prints with --json",
        "anyOf": [{"$ref": "#/$defs/error"}, *({"$ref": f"#/$defs/{name}"} for name in sorted(names))],
        "$defs": {"error": error, **dict(sorted(schema.definitions.items()))},
    }


def main() -> None:
    """Write the file."""
    FILE.write_text(json.dumps(make(), indent=1) + "\n")


if __name__ == "__main__":
    main()
