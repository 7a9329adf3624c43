"""Rules for the source tree: sizes and names of modules, settings that are declared once."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from itertools import permutations
from pathlib import Path

from examsend.config.destination import DECLARED, DestinationSettings
from examsend.queue.destination import Destination
from examsend.transfer import Peer

TOP = Path(__file__).parents[1]
MODULES = sorted((TOP / "examsend").rglob("*.py"))


def test_no_module_is_over_420_lines() -> None:
    lengths = {str(path.relative_to(TOP)): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > 420} == {}


def test_no_two_modules_have_names_that_differ_by_a_suffix() -> None:
    names = {path.stem for path in MODULES} - {"__init__", "__main__"}
    pairs = {(a, b) for a, b in permutations(names, 2) if re.fullmatch(rf"{a}[a-z]{{1,4}}", b)}
    # As in finalize and finalizing: a suffix may replace the last letter.
    pairs |= {(a, b) for a, b in permutations(names, 2) if len(a) > 3 and re.fullmatch(rf"{a[:-1]}(ing|ed|er|es)", b)}
    assert pairs == set()


def test_every_command_has_a_module_in_cli_and_in_commands() -> None:
    shared = {"__init__", "common", "live", "idle", "watching", "demo", "suggest", "pass_record"}
    cli = {path.stem for path in (TOP / "examsend" / "cli").glob("*.py")} - shared
    assert cli == {path.stem for path in (TOP / "examsend" / "commands").glob("*.py")} - {"__init__"}


def test_a_peer_has_the_same_defaults_as_a_destination() -> None:
    declared = {f.name: f.default for f in fields(DestinationSettings)}
    given = {f.name: f.default for f in fields(Peer) if f.default is not MISSING}
    shared = given.keys() & declared.keys() - {"tls"}  # a flag of a destination, an object of a peer
    assert {name: given[name] for name in shared} == {name: declared[name] for name in shared}
    assert {
        "connect_timeout",
        "accept_timeout",
        "answer_timeout",
        "stall_timeout",
        "async_window",
        "priority",
    } <= shared


def test_a_destination_with_default_settings_gives_a_peer_with_defaults() -> None:
    settings = DestinationSettings(host="h", port=104, called_aet="A")
    row = {f.name: getattr(settings, f.name) for f in fields(DestinationSettings)}
    health = {
        "held_until": None,
        "held_code": None,
        "held_reason": None,
        "consecutive_failures": 0,
        "last_success_at": None,
        "down_since": None,
    }
    peer = Destination(**row, **health, id=1, name="d").peer()
    assert peer == Peer("h", 104, "A", "EXAMSEND")
    assert {f.name for f in fields(DestinationSettings)} == set(DECLARED)
