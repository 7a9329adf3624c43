"""Settings, addresses, paths and text for terminals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examsend.config.destination import parse_address
from examsend.config.settings import load
from examsend.dimse import words
from examsend.errors import ConfigError, UsageError
from examsend.queue import files
from examsend.report import terminal


def test_option_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "examsend.toml"
    file.write_text("settle = 1\nlease = 2\ndatabase_wait = 3\n")
    environ = {"EXAMSEND_LEASE": "20", "EXAMSEND_DATABASE_WAIT": "30"}
    made = load(file, environ=environ, options={"database_wait": 300})
    assert (made.settle, made.lease, made.database_wait, made.ingest_chunk) == (1, 20, 300, 1000)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense = 1", "unknown setting"),
        ("settle = 'x'", "must be a number"),
        ("settle = ", "not valid TOML"),
        ("lease = -1", "between"),
    ],
)
def test_an_invalid_settings_file_is_a_configuration_error(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "examsend.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load(file, environ={})


def test_a_missing_settings_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", environ={})


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("A@h:104", "h", 104),
        ("ARCHIVE ONE@10.0.0.5:11112", "10.0.0.5", 11112),
        ("A@[fe80::1]:104", "fe80::1", 104),
        ("A@B@h:1", "h", 1),
    ],
)
def test_valid_addresses_are_parsed(text: str, host: str, port: int) -> None:
    found = parse_address(text)
    assert (found["host"], found["port"]) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A@h",
        "h:104",
        "@h:104",
        "A@h:0",
        "A@h:65536",
        "A@:104",
        "A" * 17 + "@h:104",
        "A\\B@h:1",
        "Ä@h:1",
        "A@h h:1",
        "A\x00@h:1",
    ],
)
def test_an_invalid_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@given(st.binary(min_size=1, max_size=60).filter(lambda b: b"\0" not in b))
def test_any_path_survives_conversion_to_text_and_back(name: bytes) -> None:
    path = os.fsdecode(b"/" + name)
    text = files.to_text(path)
    text.encode()
    assert files.from_text(text) == path


@pytest.mark.parametrize("evil", ["\x1b[31mred", "a\nb", "bell\x07", "\u202eevil", "\udcff", "\x9b2J", "\u2028"])
def test_untrusted_text_is_escaped_for_the_terminal(evil: str) -> None:
    shown = terminal.clean(evil)
    assert shown.isprintable()
    shown.encode()


def test_ordinary_text_is_not_escaped() -> None:
    assert terminal.clean("/data/Kopf [links] – 1") == "/data/Kopf [links] – 1"


def test_rejections_and_aborts_are_described() -> None:
    assert (
        words.rejection(1, 1, 7)
        == "association rejected: called AE title not recognised (permanent, by the service user)"
    )
    assert "temporary congestion" in words.rejection(2, 3, 1)
    assert "reason 9" in words.rejection(3, 9, 9)
    assert "unexpected PDU" in words.abort(2, 2)
