"""What ``destination`` and ``db check`` tell: two names of one archive, addresses of IPv6, times, and a schema that matches."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from examsend.commands import db, destination
from examsend.config.destination import address, host_port, parse_address
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.report.text import rendered
from tests.helpers import add, execute, rows


def test_a_second_name_of_the_same_archive_gets_a_notice(settings: Settings) -> None:
    add(settings, "ARCHIVE@pacs.test:104", name="pacs")
    assert destination.add(settings, "other", "OTHER@pacs.test:104", {}).warnings == ()
    twice = destination.add(settings, "twice", "ARCHIVE@PACS.test:104", {}).warnings
    assert twice == (
        "pacs has the same address (ARCHIVE@PACS.test:104): a study that goes to both is sent there twice",
    )
    assert destination.add(settings, "PACS", "NEW@10.0.0.1:104", {}).warnings == (
        "its name differs from that of pacs in upper and lower case only",
    )
    assert len(destination.add(settings, "Pacs", "ARCHIVE@pacs.test:104", {}).warnings) == 4
    assert destination.change(settings, "twice", None, {"quiet_seconds": 3.0}).warnings == ()
    assert destination.change(settings, "other", "ARCHIVE@pacs.test:104", {}).warnings != ()


@pytest.mark.parametrize("host", ["10.0.0.1", "pacs.test", "fe80::1", "2001:db8::7"])
def test_an_address_is_shown_as_it_is_given(host: str) -> None:
    shown = address("ARCHIVE", host, 104)
    assert parse_address(shown) == {"called_aet": "ARCHIVE", "host": host, "port": 104}
    assert ("[" in host_port(host, 104)) == (":" in host)


def test_addresses_of_ipv6_have_brackets_everywhere(settings: Settings) -> None:
    added = destination.add(settings, "six", "A@[::1]:1", {})
    assert "A@[::1]:1" in added.sentence
    echoed = destination.echo(settings, "six")
    assert echoed.address == "A@[::1]:1"
    assert "[::1]:1" in echoed.sentence


def test_times_of_a_destination_are_shown_in_the_zone_of_the_host(
    settings: Settings, database: engine.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(settings, "A@127.0.0.1:1")
    at = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)
    execute(database, "UPDATE storage_backend_configs SET last_success_at = :at", at=at)
    table = str(rendered(destination.show(settings, "pacs"))[0])
    assert f"{at.astimezone():%Y-%m-%d %H:%M:%S %Z}" in table
    assert "123456" not in table


def test_db_check_says_that_the_schema_matches(settings: Settings, database: engine.Database) -> None:
    assert rendered(db.check(settings))[0].endswith(" matches what examsend needs")
    assert "matches" not in rendered(db.current(settings))[0]
    execute(database, "ALTER TABLE rejected_files DROP COLUMN reason")
    said = rendered(db.check(settings))
    assert "differs" in said[0]
    assert "matches" not in said[0]


def test_what_a_person_does_to_a_destination_is_on_record(settings: Settings, database: engine.Database) -> None:
    destination.add(settings, "pacs", "A@127.0.0.1:1", {}, by="anna")
    destination.change(settings, "pacs", None, {"quiet_seconds": 5.0}, by="anna")
    destination.enable(settings, "pacs", enabled=False, by="bert")
    destination.unhold(settings, "pacs", by="bert")  # it is not held: nothing is done
    destination.remove(settings, "pacs", by="anna")
    assert [tuple(row) for row in rows(database, "SELECT act, who, why FROM events ORDER BY id")] == [
        ("DESTINATION", "anna", "added"),
        ("DESTINATION", "anna", "quiet-period changed"),
        ("DESTINATION", "bert", "disabled"),
        ("DESTINATION", "anna", "pacs removed"),
    ]
